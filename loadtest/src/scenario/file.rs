//! The scenario file: what to start, what load, what happens meanwhile, and what is expected.
//!
//! Reading is strict: an unknown key is an error, a value says what was expected, and both show
//! their place. What can be known to be wrong without starting anything is found here, by
//! [`Scenario::parse`].

use crate::backend::Dial;
use crate::capacity::CapacitySection;
use crate::driver::{Arrivals, Protocol, UserKey};
use crate::report::history::MoveDirection;
use crate::scenario::located::ScenarioError;
use crate::slow::SlowSection;
use crate::units::Percent;
use crate::values;
use crate::websockets::WebSocketSection;
use http::uri::PathAndQuery;
use http::{HeaderName, Method};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;

use crate::scenario::expect::Expect;

/// A scenario as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in a line.
    pub title: String,
    /// What it shows, in a paragraph.
    #[serde(default)]
    pub about: String,
    /// How often it is played, each time from the beginning.
    #[serde(default = "one")]
    pub runs: u32,
    /// Placeholders of one's own.
    #[serde(default)]
    pub variables: BTreeMap<String, values::Variable>,
    /// The sample backends, by name. The names `legacy` and `new` are the sides.
    #[serde(default)]
    pub backend: BTreeMap<String, Spanned<BackendSection>>,
    /// Certificates by name: made before the proxy starts, below `{folder}`.
    #[serde(default)]
    pub certificate: BTreeMap<String, CertificateSection>,
    /// The proxy to start, unless a target is given.
    pub proxy: Option<ProxySection>,
    /// The load.
    #[serde(default)]
    pub load: LoadSection,
    /// The published hash, if the proxy has one, so that each answer's side can be checked.
    pub hash: Option<HashSection>,
    /// WebSockets held beside the requests.
    pub websockets: Option<WebSocketSection>,
    /// Clients that are slow on purpose.
    pub slow: Option<SlowSection>,
    /// The search for the knee, instead of one load.
    pub capacity: Option<CapacitySection>,
    /// Stretches of the run that are measured apart.
    #[serde(default)]
    pub part: Vec<Spanned<Part>>,
    /// What happens meanwhile.
    #[serde(default)]
    pub step: Vec<Spanned<Step>>,
    /// What has to come out.
    #[serde(default)]
    pub expect: Expect,
}

/// A sample backend.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendSection {
    /// Where it listens; a free port of loopback unless said.
    pub listen: Option<SocketAddr>,
    /// The control port of a backend that runs already: nothing is started then.
    pub control: Option<String>,
    /// Time every answer takes.
    #[serde(deserialize_with = "values::duration")]
    pub latency: Duration,
    /// Time of a processor every answer takes.
    #[serde(deserialize_with = "values::duration")]
    pub work: Duration,
    /// Share of answers that are 500.
    #[serde(deserialize_with = "values::percent")]
    pub error_rate: Percent,
    /// Size of the body.
    pub body_bytes: usize,
    /// Requests worked on at once.
    pub concurrency: Option<usize>,
    /// Connections served at once.
    pub connections: Option<usize>,
}

impl Default for BackendSection {
    fn default() -> Self {
        Self {
            listen: None,
            control: None,
            latency: Duration::ZERO,
            work: Duration::ZERO,
            error_rate: Percent::ZERO,
            body_bytes: 0,
            concurrency: None,
            connections: None,
        }
    }
}

/// A certificate that the kit makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateSection {
    /// The names and addresses in it.
    pub names: Vec<String>,
}

/// A proxy that the kit starts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySection {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Files to write below `{folder}` before the start, by name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Where it takes requests: a URL, or how a line of its output says so, with `{}` in the URL's
    /// place.
    pub target: String,
    /// Where its admin port is, likewise; known as `{admin}`.
    pub admin: Option<String>,
    /// Certificate authority to believe, such as `{folder}/ca.pem`.
    pub ca: Option<String>,
    /// How long a start may take.
    #[serde(default = "ten_seconds", deserialize_with = "values::duration")]
    pub ready_within: Duration,
    /// Processors it may use, if fewer than there are: what its work is compared with.
    pub cores: Option<f64>,
}

/// The load, with the keys of `run`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadSection {
    /// Requests per second.
    pub rate: f64,
    /// How the starts are spread.
    pub arrivals: Arrivals,
    /// Time during which requests start.
    #[serde(deserialize_with = "values::duration")]
    pub duration: Duration,
    /// Size of the population.
    pub users: u32,
    /// Keep-alive connections.
    pub connections: usize,
    /// Most requests at once on a connection of HTTP/2.
    pub streams: usize,
    /// Requests after which a connection is closed.
    pub requests_per_connection: u32,
    /// What is spoken.
    #[serde(deserialize_with = "values::protocol")]
    pub protocol: Protocol,
    /// Method of every request.
    #[serde(deserialize_with = "values::method")]
    pub method: Method,
    /// Path of every request.
    #[serde(deserialize_with = "values::path")]
    pub path: PathAndQuery,
    /// Size of the body of every request.
    pub body_bytes: usize,
    /// Where a request carries its user.
    #[serde(deserialize_with = "values::key")]
    pub key: UserKey,
    /// Response header that names the side.
    #[serde(deserialize_with = "values::header")]
    pub side_header: HeaderName,
    /// Seed of the first run; the second has the next one.
    pub seed: u64,
    /// Longest time a request may take.
    #[serde(deserialize_with = "values::duration")]
    pub timeout: Duration,
}

impl Default for LoadSection {
    fn default() -> Self {
        Self {
            rate: 1_000.0,
            arrivals: Arrivals::Poisson,
            duration: Duration::from_secs(10),
            users: 10_000,
            connections: 128,
            streams: 32,
            requests_per_connection: u32::MAX,
            protocol: Protocol::H1,
            method: Method::GET,
            path: PathAndQuery::from_static("/"),
            body_bytes: 0,
            key: UserKey::Header(HeaderName::from_static("x-user-id")),
            side_header: HeaderName::from_static(crate::backend::SERVED_BY),
            seed: 1,
            timeout: Duration::from_secs(10),
        }
    }
}

/// The published hash.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashSection {
    /// Its salt.
    pub salt: String,
    /// The percentage at the start.
    #[serde(deserialize_with = "values::percent")]
    pub percent: Percent,
}

/// A stretch of the run. Those of one name are one part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its begin.
    #[serde(deserialize_with = "values::duration")]
    pub from: Duration,
    /// Its end.
    #[serde(deserialize_with = "values::duration")]
    pub to: Duration,
    /// How often, as one part: quiet and storm that take turns see the same machine.
    #[serde(default = "one")]
    pub repeat: u32,
    /// Time from one begin to the next.
    #[serde(default, deserialize_with = "values::some_duration")]
    pub every: Option<Duration>,
}

impl Part {
    /// Its windows, in the order of time.
    pub fn windows(&self) -> impl Iterator<Item = (Duration, Duration)> {
        let every = self.every.unwrap_or_default();
        (0..self.repeat).map(move |number| (self.from + every * number, self.to + every * number))
    }
}

/// Something that happens meanwhile: at most one of `dial`, `edit`, `write`, `command`, `request`,
/// `signal` and `certificate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// When.
    #[serde(deserialize_with = "values::duration")]
    pub at: Duration,
    /// What it is called in the report.
    pub label: Option<String>,
    /// How often.
    #[serde(default = "one")]
    pub repeat: u32,
    /// Time from one to the next.
    #[serde(default, deserialize_with = "values::some_duration")]
    pub every: Option<Duration>,
    /// Whose dial is turned.
    pub backend: Option<String>,
    /// Turn it to this.
    pub dial: Option<Dial>,
    /// Replace a line of a file.
    pub edit: Option<Edit>,
    /// Write a file.
    pub write: Option<Write>,
    /// Run a command; another exit code than 0 is a failed step.
    pub command: Option<Vec<String>>,
    /// Make a request, to an admin API for example.
    pub request: Option<Call>,
    /// Send the proxy a signal.
    pub signal: Option<SignalName>,
    /// Make this certificate anew, and look until the target shows it.
    pub certificate: Option<String>,
    /// Then wait until an answer in JSON has a value.
    pub until: Option<Until>,
    /// Users may change sides in this direction from now on, until it has settled.
    pub moves: Option<MoveDirection>,
    /// How long that may take after the step is done.
    #[serde(default = "settled", deserialize_with = "values::duration")]
    pub settle: Duration,
    /// The percentage by the hash after this step.
    #[serde(default, deserialize_with = "values::some_percent")]
    pub percent: Option<Percent>,
    /// Whether something breaks here, from where a blast radius is measured; by default when a
    /// dial is turned to a fault.
    pub fault: Option<bool>,
}

/// A line of a file gets other words.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The file.
    pub file: String,
    /// How the line begins, spaces before it aside.
    pub line: String,
    /// The whole line after it.
    pub with: String,
}

/// A file gets a new content.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// The file.
    pub file: String,
    /// The content.
    pub text: String,
}

/// A request of a step.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Its method.
    #[serde(default = "post", deserialize_with = "values::method")]
    pub method: Method,
    /// Where to.
    pub url: String,
    /// Its body, as JSON.
    pub body: Option<String>,
    /// The status it must have; any below 400 unless said.
    pub status: Option<u16>,
}

/// What to wait for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Until {
    /// Where to ask.
    pub url: String,
    /// A JSON pointer, such as `/effective_percent`.
    pub at: String,
    /// What it has to be.
    pub is: toml::Value,
    /// How long at most.
    #[serde(default = "ten_seconds", deserialize_with = "values::duration")]
    pub within: Duration,
}

/// Signals a proxy may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignalName {
    /// SIGHUP.
    Hup,
    /// SIGUSR1.
    Usr1,
    /// SIGUSR2.
    Usr2,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Cont,
    /// SIGTERM.
    Term,
    /// SIGKILL.
    Kill,
}

fn one() -> u32 {
    1
}

fn settled() -> Duration {
    Duration::from_millis(250)
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn post() -> Method {
    Method::POST
}

/// Most steps of a scenario, repetitions counted.
const MOST_STEPS: u64 = 100_000;
/// Most times that a scenario is played.
const MOST_RUNS: u32 = 10_000;

impl Scenario {
    /// Reads a scenario; `name` is what mistakes are told with.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError::parsing(name, text, &error))?;
        let problem = scenario.problem();
        match problem {
            Some((Some(span), message)) => Err(ScenarioError::at(name, text, span, message)),
            Some((None, message)) => Err(ScenarioError::whole(name, message)),
            None => Ok(scenario),
        }
    }

    /// The first thing that is wrong though every key by itself is right.
    fn problem(&self) -> Option<(Option<std::ops::Range<usize>>, String)> {
        if self.runs == 0 || self.runs > MOST_RUNS {
            return Some((
                None,
                format!("expected 1 to {MOST_RUNS} runs, found {}", self.runs),
            ));
        }
        if !(self.load.rate.is_finite() && self.load.rate > 0.0) {
            return Some((
                None,
                format!("expected a load.rate above 0, found {}", self.load.rate),
            ));
        }
        for part in &self.part {
            let one = part.get_ref();
            let repeats = one.repeat > 0
                && (one.repeat == 1 || one.every.is_some_and(|every| !every.is_zero()));
            if one.from >= one.to
                || !repeats
                || one.windows().any(|(_, to)| to > self.load.duration)
            {
                let message = format!(
                    "expected a part that begins before it ends, within the {:?} of the load, and \
                     every = \"...\" beside repeat",
                    self.load.duration
                );
                return Some((Some(part.span()), message));
            }
        }
        if let Some((one, name)) = self.expect.parts().find_map(|name| {
            (!self.part.iter().any(|part| part.get_ref().name == name))
                .then_some(("[expect]", name))
        }) {
            return Some((
                None,
                format!("{one}: expected the name of a [[part]], found {name:?}"),
            ));
        }
        if self
            .step
            .iter()
            .map(|step| u64::from(step.get_ref().repeat))
            .sum::<u64>()
            > MOST_STEPS
        {
            return Some((
                None,
                format!("expected at most {MOST_STEPS} steps, repetitions counted"),
            ));
        }
        self.step
            .iter()
            .find_map(|step| Some((Some(step.span()), self.problem_of(step.get_ref())?)))
    }

    fn problem_of(&self, step: &Step) -> Option<String> {
        let actions: Vec<&str> = [
            (step.dial.is_some(), "dial"),
            (step.edit.is_some(), "edit"),
            (step.write.is_some(), "write"),
            (step.command.is_some(), "command"),
            (step.request.is_some(), "request"),
            (step.signal.is_some(), "signal"),
            (step.certificate.is_some(), "certificate"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
        if actions.len() > 1 {
            return Some(format!(
                "expected one action in a step, found {}",
                actions.join(" and ")
            ));
        }
        if actions.is_empty() && step.label.is_none() && step.until.is_none() {
            return Some("expected an action, until, or a label in a step".to_owned());
        }
        match (&step.backend, &step.dial) {
            (Some(name), Some(dial)) => {
                if !self.backend.contains_key(name) {
                    return Some(format!(
                        "expected the name of a [backend.*], found {name:?}"
                    ));
                }
                if let Err(error) = dial.check() {
                    return Some(error.to_string());
                }
            }
            (None, None) => {}
            (Some(_), None) => return Some("expected dial beside backend".to_owned()),
            (None, Some(_)) => {
                return Some("expected backend beside dial: whose dial is it?".to_owned());
            }
        }
        if let Some(name) = &step.certificate
            && !self.certificate.contains_key(name)
        {
            return Some(format!(
                "expected the name of a [certificate.*], found {name:?}"
            ));
        }
        if step.repeat == 0 || (step.repeat > 1 && step.every.is_none_or(|every| every.is_zero())) {
            return Some(
                "expected repeat of at least 1, and every = \"...\" above 0 where it is more"
                    .to_owned(),
            );
        }
        if step.percent.is_some() && self.hash.is_none() {
            return Some("expected [hash] where a step has a percent".to_owned());
        }
        let last = step.at + step.every.unwrap_or_default() * (step.repeat - 1);
        if self.capacity.is_none() && last >= self.load.duration {
            return Some(format!(
                "expected every repetition within the {:?} of the load, found {last:?}",
                self.load.duration
            ));
        }
        None
    }

    /// The steps with their repetitions, in the order of time.
    pub fn timetable(&self) -> Vec<(Duration, u32, &Step)> {
        let mut timetable: Vec<(Duration, u32, &Step)> = self
            .step
            .iter()
            .map(Spanned::get_ref)
            .flat_map(|step| {
                (0..step.repeat).map(move |number| {
                    (
                        step.at + step.every.unwrap_or_default() * number,
                        number,
                        step,
                    )
                })
            })
            .collect();
        timetable.sort_by_key(|(at, _, _)| *at);
        timetable
    }
}

impl Step {
    /// What it is called in the report.
    pub fn name(&self) -> String {
        if let Some(label) = &self.label {
            return label.clone();
        }
        if let (Some(backend), Some(dial)) = (&self.backend, &self.dial) {
            return if dial.is_healthy() {
                format!("{backend} is healthy")
            } else {
                format!(
                    "{backend}: {}",
                    serde_json::to_string(dial).unwrap_or_default()
                )
            };
        }
        if let Some(edit) = &self.edit {
            return edit.with.clone();
        }
        if let Some(write) = &self.write {
            let file = PathBuf::from(&write.file);
            return format!(
                "write {}",
                file.file_name().unwrap_or_default().to_string_lossy()
            );
        }
        if let Some(command) = &self.command {
            return command.join(" ");
        }
        if let Some(call) = &self.request {
            return format!("{} {}", call.method, call.url);
        }
        if let Some(signal) = &self.signal {
            return format!("signal {signal:?}");
        }
        if let Some(certificate) = &self.certificate {
            return format!("a new certificate {certificate}");
        }
        "until".to_owned()
    }

    /// Whether something breaks here.
    pub fn is_fault(&self) -> bool {
        self.fault
            .unwrap_or_else(|| self.dial.is_some_and(|dial| !dial.is_healthy()))
    }
}
