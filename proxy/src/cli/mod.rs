//! The command line: arguments, exit codes, and one file for each group of commands.
//!
//! Data is written to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 bad usage
//! or invalid configuration, 3 valid with warnings (`check --strict`). An error message ends with
//! what to do next.

mod client;
mod file;
mod live;
mod replay;
mod run;
mod simulate;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::cli::client::Client;

use crate::terminal::{self, note};

/// Move live users from an old stack to a new one: split by a sticky hash, compare both sides, and
/// drop to 0 % automatically when the new one is worse
#[derive(Debug, Parser)]
#[command(
    name = "cutover",
    version,
    max_term_width = 110,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy in the foreground. SIGTERM drains and a second SIGTERM ends it at once; SIGHUP
    /// reads the
    /// file again; SIGUSR1 reopens the access log; SIGUSR2 starts the program again and lets it
    /// take over
    Run(run::Run),
    /// Show everything on one machine: two sample backends, simulated users, a ramp, a breakdown
    /// and the drop to 0 %
    Demo(crate::demo::Demo),
    /// Parse and validate a file exactly as a reload does, and show every problem
    Check(file::Check),
    /// Show what a changed file would do: how many users move, and in which direction
    Diff(file::Diff),
    /// Show what a guard would do, with the real engine on virtual time: with made-up traffic and
    /// faults, or with recorded numbers
    Simulate(simulate::Simulate),
    /// Explain why a request goes to a side
    Explain(live::Explain),
    /// Show the status of the rollouts
    Status(live::Status),
    /// Change the share of users on new, in the watched file
    Set(live::Set),
    /// Send all users to legacy at once, until re-armed
    #[command(alias = "abort")]
    Rollback(live::Rollback),
    /// Lift the latch after a rollback, so that the percentage of the file is in force again
    #[command(alias = "retry")]
    Rearm(live::Rearm),
    /// Block writes or all requests for a while, for one rollout or for all: off, read-only, hold
    /// or full
    Maintenance(live::Maintenance),
    /// Show who changed what, when and why, and verify that nothing was altered
    History(live::History),
    /// Print the JSON Schema of the file
    Schema,
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Options for reaching a running proxy
#[derive(Clone, Debug, clap::Args)]
struct AdminAddress {
    /// The admin address of a running proxy. The token, if one is needed, is read from
    /// CUTOVER_TOKEN
    #[arg(
        long,
        env = "CUTOVER_ADMIN",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL"
    )]
    admin: String,
}

impl AdminAddress {
    fn client(&self) -> Result<Client, Failed> {
        Client::new(&self.admin, std::env::var("CUTOVER_TOKEN").ok())
    }
}

/// The default path of the configuration file.
const FILE: &str = "cutover.toml";

fn file_or_default(file: Option<PathBuf>) -> PathBuf {
    file.unwrap_or_else(|| PathBuf::from(FILE))
}

/// The most requests per second that a command accepts.
const MOST_RPS: f64 = 100_000.0;

/// Parses a number of requests per second.
fn rps(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rps: &f64| *rps > 0.0 && *rps <= MOST_RPS)
        .ok_or_else(|| format!("expected a number above 0 and at most {MOST_RPS}"))
}

/// The reason and the exit code of a failed command.
#[derive(Debug)]
struct Failed {
    code: u8,
    message: String,
    /// What to do next.
    hint: Option<String>,
}

impl Failed {
    /// Creates a failure with exit code 1.
    fn new(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            message: message.into(),
            hint: None,
        }
    }

    /// Creates a failure with exit code 2.
    fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            message: message.into(),
            hint: None,
        }
    }

    /// Returns the same failure with what to do next. An empty text is no hint.
    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()).filter(|hint| !hint.is_empty()),
            ..self
        }
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(run) => run.run(),
        Command::Demo(demo) => demo.run().map_err(Failed::new),
        Command::Check(check) => check.run(),
        Command::Diff(diff) => diff.run(),
        Command::Simulate(simulate) => simulate.run(),
        Command::Explain(explain) => explain.run(),
        Command::Status(status) => status.run(),
        Command::Set(set) => set.run(),
        Command::Rollback(rollback) => rollback.run(),
        Command::Rearm(rearm) => rearm.run(),
        Command::Maintenance(maintenance) => maintenance.run(),
        Command::History(history) => history.run(),
        Command::Schema => out(cutover_config::schema().trim_end()).map(|()| ExitCode::SUCCESS),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "cutover", &mut script);
            out(String::from_utf8_lossy(&script).trim_end()).map(|()| ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failed| {
        if !failed.message.is_empty() {
            let text = failed.message.trim_end();
            let prefixed = if text.starts_with("error") {
                text.to_owned()
            } else {
                format!("error: {text}")
            };
            terminal::note(&prefixed);
        }
        if let Some(hint) = &failed.hint {
            terminal::note(&format!("hint: {hint}"));
        }
        ExitCode::from(failed.code)
    })
}

/// Returns `docs/cli.md`: the help of every command, as Markdown.
pub fn document() -> String {
    let mut text = String::from(
        "# Commands\n\nMade from the program's own help. `UPDATE=1 cargo test -p cutover --test it \
         the_page_about_commands`\nwrites it.\n\nData goes to stdout, everything else to stderr. \
         Exit codes: 0 done, 1 failed, 2 bad usage or invalid\nconfiguration, 3 valid with warnings \
         (`check --strict`). `FILE` is `cutover.toml` unless given.\nCommands that talk to a running \
         proxy read `CUTOVER_ADMIN` and `CUTOVER_TOKEN`.\n\n| command | does |\n|---|---|\n",
    );
    let program = Arguments::command().term_width(100);
    let commands: Vec<clap::Command> = program.get_subcommands().cloned().collect();
    let line = |text: String| text.replace('\n', " ").replace('|', "\\|");
    for command in &commands {
        let (name, about) = (command.get_name(), command.get_about().unwrap_or_default());
        text += &format!(
            "| [`cutover {name}`](#cutover-{name}) | {} |\n",
            line(about.to_string())
        );
    }
    for command in commands {
        let name = command.get_name().to_owned();
        let mut command = command
            .bin_name(format!("cutover {name}"))
            .term_width(100)
            .disable_help_flag(true);
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        text += &format!(
            "\n## `cutover {name}`\n\n```text\n{}\n```\n",
            help.join("\n").trim()
        );
    }
    text
}

/// Writes a line to stdout. If the reader has gone (`| head`), the program ends quietly.
fn out(line: &str) -> Result<(), Failed> {
    terminal::out(line).map_err(|error| {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Failed {
                code: 0,
                message: String::new(),
                hint: None,
            }
        } else {
            error.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
