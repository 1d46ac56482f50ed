//! The command line of the load kit: arguments, progress, and exit codes.
//!
//! The exit codes are 0 for success, 1 if the run failed or, with `--assert`, found a violation,
//! and 2 for bad usage. The result goes to stdout and all other messages go to stderr, so the
//! output of `--json` can be piped.

mod cli;

use clap::{Parser, Subcommand};
use cli::{Failure, say};
use std::process::ExitCode;

/// This allocator is faster than glibc's for many small, short-lived allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load kit of Cutover: sample backends, an open-loop generator that checks stickiness, and
/// scenarios
#[derive(Debug, Parser)]
#[command(name = "cutover-loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as a sample backend with a fault dial (GET and PUT /__dial, GET /__stats)
    Backend(cli::backend::BackendArguments),
    /// Send requests of stable users and check that each stays on its side
    Run(Box<cli::run::RunArguments>),
    /// Play a scenario: start backends and a proxy, apply load and faults, and judge the result
    Scenario(Box<cli::scenario::ScenarioArguments>),
    /// Compare the cost of cutover with a do-nothing proxy, HAProxy and nginx
    #[cfg(target_os = "linux")]
    Peers(Box<cutover_loadtest::peers::Arguments>),
    /// Play the same messages through two engines of cutover and find differences
    #[cfg(target_os = "linux")]
    Differential(Box<cutover_loadtest::differential::Arguments>),
}

impl Command {
    fn threads(&self) -> Option<usize> {
        match self {
            Self::Backend(arguments) => arguments.threads,
            Self::Run(_) | Self::Scenario(_) => None,
            #[cfg(target_os = "linux")]
            Self::Peers(_) | Self::Differential(_) => None,
        }
    }

    async fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Backend(arguments) => cli::backend::serve(arguments).await,
            Self::Run(arguments) => cli::run::run(*arguments).await,
            Self::Scenario(arguments) => cli::scenario::run(*arguments).await,
            #[cfg(target_os = "linux")]
            Self::Peers(arguments) => cutover_loadtest::peers::run(*arguments)
                .await
                .map_err(Failure::from),
            #[cfg(target_os = "linux")]
            Self::Differential(arguments) => cutover_loadtest::differential::run(*arguments)
                .await
                .map_err(Failure::from),
        }
    }
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = command.threads() {
        runtime.worker_threads(threads.max(1));
    }
    let result = match runtime.enable_all().build() {
        Ok(runtime) => runtime.block_on(command.run()),
        Err(error) => Err(Failure::Running(error)),
    };
    match result {
        Ok(code) => code,
        Err(Failure::Usage(error)) => {
            say(&format!("error: {error}"));
            ExitCode::from(2)
        }
        Err(Failure::Running(error)) => {
            say(&format!("error: {error}"));
            ExitCode::from(1)
        }
    }
}
