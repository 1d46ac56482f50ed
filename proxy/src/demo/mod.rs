//! `cutover demo`: the main job on one machine, with nothing to configure.
//!
//! It uses two sample backends, a few hundred simulated users, the real proxy on free ports, and a
//! file that is edited as an operator would edit it. The demo raises the share to 1 %, 10 % and 50
//! %; then the new backend breaks and traffic falls to 0 % automatically. After that the file can
//! be edited freely, until Ctrl-C.
//!
//! `--headless` ends after these steps. `--assert` checks them: every user is where the hash says,
//! and no user is moved back before the breakdown. The drop happens, nothing fails after it, and a
//! raised percentage does not lift it.

mod backend;
mod users;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use cutover_core::{Percent, Salt, Side};

pub use crate::demo::backend::SampleBackend;
use crate::demo::users::Users;

use crate::assemble::{Origin, Running, Start};
use crate::clock;
use crate::status::RolloutStatus;
use crate::terminal::{note, out};

/// The number of simulated users.
const USERS: u32 = 400;
/// The number of requests per second that all users send together.
const RPS: u32 = 400;
/// The rollout of the demo, which is also its salt.
const ROLLOUT: &str = "checkout";
/// How long each step of the ramp is observed.
const STEP: Duration = Duration::from_millis(2_500);
/// How long an expected event may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the demo checks whether an event has happened.
const LOOK: Duration = Duration::from_millis(20);

/// Arguments of `cutover demo`
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// End after the demonstration instead of waiting for Ctrl-C
    #[arg(long)]
    headless: bool,
    /// Check every step and exit with 1 when one is not as expected
    #[arg(long)]
    assert: bool,
    /// Print the steps as JSON lines
    #[arg(long)]
    json: bool,
}

/// The running demo.
struct Stage {
    legacy: SampleBackend,
    new: SampleBackend,
    users: Users,
    running: Running,
    file: PathBuf,
    began: cutover_core::Mono,
    json: bool,
    wrong: Vec<String>,
}

impl Demo {
    /// Runs the demo.
    ///
    /// # Errors
    /// Fails when a part of the demo cannot be started.
    pub fn run(self) -> Result<ExitCode, String> {
        let began = clock::mono();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let directory = std::env::temp_dir().join(format!("cutover-demo-{}", std::process::id()));
        let cleanup = CleanUp(directory.clone());
        let mut stage = runtime.block_on(Stage::set_up(&directory, began, self.json))?;
        let interrupted = runtime.block_on(async {
            tokio::select! {
                played = stage.play() => played.map(|()| false),
                _ = tokio::signal::ctrl_c() => Ok(true),
            }
        })?;
        let failed = self.assert && (interrupted || !stage.wrong.is_empty());
        for wrong in &stage.wrong {
            note(&format!("not as it should be: {wrong}"));
        }
        if !self.headless && !interrupted {
            stage.tell(
                "play",
                &format!(
                    "now it is yours: edit `percent` or raise `generation` in {}, save, and \
                     watch. Ctrl-C ends the demo",
                    stage.file.display()
                ),
            );
            stage.tell(
                "play",
                &format!(
                    "try: cutover status --watch --admin http://{}",
                    stage.running.admin
                ),
            );
            stage.tell(
                "play",
                &format!(
                    "     cutover rearm {ROLLOUT} --percent 1 --reason 'fixed' --admin http://{}",
                    stage.running.admin
                ),
            );
            stage.new.set_broken(false);
            runtime.block_on(stage.wait_for_the_end());
        }
        let Stage {
            legacy,
            new,
            users,
            running,
            ..
        } = stage;
        drop(users);
        running.stop(Duration::ZERO, Duration::from_secs(2), || false);
        drop((legacy, new));
        drop(cleanup);
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// A guard that removes the files of the demo when it is dropped.
struct CleanUp(PathBuf);

impl Drop for CleanUp {
    fn drop(&mut self) {
        // The files are in the temporary directory, so those that cannot be removed do no harm.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stage {
    async fn set_up(
        directory: &Path,
        began: cutover_core::Mono,
        json: bool,
    ) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let legacy = SampleBackend::start("legacy").await.map_err(text)?;
        let new = SampleBackend::start("new").await.map_err(text)?;
        std::fs::create_dir_all(directory).map_err(text)?;
        let file = directory.join("cutover.toml");
        std::fs::write(&file, config(directory, &legacy, &new)).map_err(text)?;
        let start = Start {
            file: file.clone(),
            threads: Some(2),
            access_out: Box::new(std::io::sink()),
            origin: Origin::default(),
        };
        let running = tokio::task::spawn_blocking(move || start.start())
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| match error.hint() {
                Some(hint) => format!("{error}\nhint: {hint}"),
                None => error.to_string(),
            })?;
        let users = Users::start(running.http[0], USERS, RPS);
        Ok(Self {
            legacy,
            new,
            users,
            running,
            file,
            began,
            json,
            wrong: Vec::new(),
        })
    }

    async fn play(&mut self) -> Result<(), String> {
        self.tell(
            "start",
            &format!(
                "legacy is on http://{}, new on http://{}",
                self.legacy.address, self.new.address
            ),
        );
        self.tell(
            "start",
            &format!(
                "the proxy is on http://{}: {USERS} users send {RPS} requests per second through \
                 it",
                self.running.http[0]
            ),
        );
        self.tell(
            "start",
            &format!(
                "admin: http://{0}/api/v1/rollouts and http://{0}/metrics",
                self.running.admin
            ),
        );
        self.tell(
            "start",
            &format!("the file it follows: {}", self.file.display()),
        );
        for share in ["1", "10", "50"] {
            self.ramp(share).await?;
        }
        self.break_new().await?;
        self.stays_down().await
    }

    /// Raises the percentage as an operator would: edit, save, watch.
    async fn ramp(&mut self, share: &str) -> Result<(), String> {
        let percent = Percent::parse(share).map_err(|error| error.to_string())?;
        self.tell("ramp", &format!("saving `percent = {share}` in the file"));
        let saved = clock::mono();
        self.save(percent)?;
        self.until(&format!("{share} % to be in force"), |rollout| {
            rollout.effective_percent == crate::status::percent(percent)
        })
        .await?;
        let took = clock::mono().since(saved);
        // One round of all users passes before anything is counted, so that every user has been
        // served under the new share.
        self.round().await?;
        self.users.start_counting();
        tokio::time::sleep(STEP).await;
        let seen = self.users.seen();
        let salt = Salt::new(ROLLOUT);
        let expected = (0..USERS)
            .filter(|user| salt.bucket(users::id(*user).as_bytes()).is_within(percent))
            .count();
        let on_new = seen.users_on(Side::New);
        self.tell(
            "ramp",
            &format!(
                "in force after {} ms: {on_new} of {USERS} users are on new ({expected} by the \
                 hash); {} requests, {} to new, {} failed, {} users moved back",
                took.as_millis(),
                seen.total(),
                seen.answers.get(&Side::New).copied().unwrap_or_default(),
                seen.failed,
                seen.moved_back
            ),
        );
        self.expect(
            on_new == expected,
            &format!("at {share} % exactly {expected} users should be on new, found {on_new}"),
        );
        self.expect(
            seen.failed == 0,
            &format!(
                "no request should fail while ramping to {share} %, found {}",
                seen.failed
            ),
        );
        self.expect(
            seen.moved_back == 0,
            &format!(
                "raising to {share} % should move no user back, found {}",
                seen.moved_back
            ),
        );
        Ok(())
    }

    async fn break_new(&mut self) -> Result<(), String> {
        self.users.start_counting();
        self.tell(
            "break",
            "the new backend breaks: every answer of it is now a 500",
        );
        let broke = clock::mono();
        self.new.set_broken(true);
        let rollout = self
            .until("the drop to 0 %", |rollout| rollout.phase == "rolled_back")
            .await?;
        let took = clock::mono().since(broke);
        self.round().await?;
        let seen = self.users.seen();
        let latch = rollout.latch.as_ref();
        self.tell(
            "rollback",
            &format!(
                "traffic fell to 0 % by itself after {:.1} s: {}",
                took.as_secs_f64(),
                latch.map_or("", |latch| &latch.trip.sentence)
            ),
        );
        let saved = rollout.failovers.saved;
        self.tell(
            "rollback",
            &format!(
                "{saved} requests that failed on new were answered by legacy; users hurt: {} of \
                 {USERS}, with {} bad answers",
                seen.hurt.len(),
                seen.failed
            ),
        );
        self.expect(
            saved > 0,
            "the breakdown should have been noticed by requests",
        );
        self.expect(
            seen.hurt.is_empty(),
            &format!(
                "legacy should have answered what failed on new, found {} bad answers",
                seen.failed
            ),
        );
        self.expect(
            latch.is_some_and(|latch| latch.trip.cause == "errors_max"),
            "the error rule should have tripped",
        );
        Ok(())
    }

    async fn stays_down(&mut self) -> Result<(), String> {
        self.users.start_counting();
        let before = self.new.requests();
        self.tell(
            "latch",
            "saving `percent = 60`: a rollback is latched, so no user moves",
        );
        self.save(Percent::parse("60").map_err(|error| error.to_string())?)?;
        let rollout = self
            .until("the file to be read", |rollout| {
                rollout.desired_percent == 60.0
            })
            .await?;
        tokio::time::sleep(STEP).await;
        let seen = self.users.seen();
        let reached = self.new.requests() - before;
        self.tell(
            "latch",
            &format!(
                "{} requests later: {reached} reached new, {} failed; {} % asked, {} % in force",
                seen.total(),
                seen.failed,
                rollout.desired_percent,
                rollout.effective_percent
            ),
        );
        self.expect(
            reached == 0,
            &format!("after the drop nothing should reach new, found {reached}"),
        );
        self.expect(
            seen.failed == 0,
            &format!("after the drop nothing should fail, found {}", seen.failed),
        );
        self.expect(
            rollout.effective_percent == 0.0,
            "the latch should hold against a raised percentage",
        );
        self.tell(
            "end",
            if self.wrong.is_empty() {
                "the story went as it should"
            } else {
                "the story did NOT go as it should"
            },
        );
        Ok(())
    }

    /// Reports changes in the interactive demo, until Ctrl-C.
    async fn wait_for_the_end(&self) {
        let mut last = String::new();
        let end = tokio::signal::ctrl_c();
        tokio::pin!(end);
        loop {
            tokio::select! {
                _ = &mut end => return,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    let Ok(report) = self.running.control.report().await else { return };
                    let state = report.status.config.problems.or_else(|| report.status.rollouts.into_iter().next().map(|rollout| rollout.sentence)).unwrap_or_default();
                    if state != last {
                        self.tell("status", &state);
                        last = state;
                    }
                }
            }
        }
    }

    /// Waits until every user has had the time to send a request and to receive the answer.
    async fn round(&self) -> Result<(), String> {
        let before = self.users.seen().total();
        let needed = u64::from(USERS) + u64::from(RPS) / 10;
        let deadline = clock::mono().forward(PATIENCE);
        while self.users.seen().total() < before + needed {
            if clock::mono() > deadline {
                return Err("the simulated users get no answers".to_owned());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn until(
        &self,
        what: &str,
        holds: impl Fn(&RolloutStatus) -> bool,
    ) -> Result<RolloutStatus, String> {
        let deadline = clock::mono().forward(PATIENCE);
        loop {
            let report = self
                .running
                .control
                .report()
                .await
                .map_err(|error| error.to_string())?;
            if let Some(rollout) = report
                .status
                .rollouts
                .into_iter()
                .find(|rollout| holds(rollout))
            {
                return Ok(rollout);
            }
            if clock::mono() > deadline {
                return Err(format!("waited {} s for {what}", PATIENCE.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn save(&self, percent: Percent) -> Result<(), String> {
        let text = std::fs::read_to_string(&self.file).map_err(|error| error.to_string())?;
        let edited = cutover_config::set_percent(&text, ROLLOUT, percent)
            .map_err(|error| error.to_string())?;
        std::fs::write(&self.file, edited).map_err(|error| error.to_string())
    }

    fn expect(&mut self, holds: bool, otherwise: &str) {
        if !holds {
            self.wrong.push(otherwise.to_owned());
        }
    }

    fn tell(&self, event: &str, sentence: &str) {
        let at = clock::mono().since(self.began);
        let line = if self.json {
            serde_json::json!({"at_ms": at.as_millis() as u64, "event": event, "sentence": sentence}).to_string()
        } else {
            format!("[{:5.1} s] {event:<8} {sentence}", at.as_secs_f64())
        };
        // A reader that has gone does not end the demo.
        let _ = out(&line);
    }
}

/// Returns the configuration file of the demo, formatted for people to edit.
fn config(directory: &Path, legacy: &SampleBackend, new: &SampleBackend) -> String {
    format!(
        r#"# The demo's file. Change `percent`, save, and watch what `cutover status --watch` says.

[listen]
http = ["127.0.0.1:0"]

[admin]
address = "127.0.0.1:0"

[state]
directory = "{}"

[log]
access = "off"

[backend.legacy]
servers = ["{}"]

[backend.new]
servers = ["{}"]

[[rollout]]
id = "{ROLLOUT}"
percent = 0                      # share of users on new
key = ["header:x-user-id"]
generation = 1                   # raise it to re-arm after a rollback

[rollout.guard]                  # all of these are the defaults
mode = "sequential"
errors = {{ max = "1%", vs_legacy = 2.0 }}
latency = {{ vs_legacy = 1.5 }}
"#,
        directory.join("state").display(),
        legacy.address,
        new.address
    )
}
