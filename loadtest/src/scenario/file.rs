//! The scenario file: what to start, which load to generate, which steps to take, and what to
//! expect.
//!
//! Parsing is strict. An unknown key is an error, and an invalid value is reported with what was
//! expected. Both errors show their place. All mistakes that can be found without starting anything
//! are found here, by [`Scenario::parse`].

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

/// A scenario as it is written in its file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The title: what the scenario shows, in one line.
    pub title: String,
    /// The description: what the scenario shows, in a paragraph.
    #[serde(default)]
    pub about: String,
    /// How often the scenario is played, each time from the beginning.
    #[serde(default = "one")]
    pub runs: u32,
    /// User-defined placeholders.
    #[serde(default)]
    pub variables: BTreeMap<String, values::Variable>,
    /// The sample backends, by name. The names `legacy` and `new` are the sides.
    #[serde(default)]
    pub backend: BTreeMap<String, Spanned<BackendSection>>,
    /// The certificates, by name. They are made below `{folder}` before the proxy starts.
    #[serde(default)]
    pub certificate: BTreeMap<String, CertificateSection>,
    /// The proxy to start. It is not started if a target is given.
    pub proxy: Option<ProxySection>,
    /// The load of the scenario.
    #[serde(default)]
    pub load: LoadSection,
    /// The published hash, if the proxy has one. With it the side of each answer is checked.
    pub hash: Option<HashSection>,
    /// The WebSockets that are held open during the run.
    pub websockets: Option<WebSocketSection>,
    /// The deliberately slow clients.
    pub slow: Option<SlowSection>,
    /// The capacity search, which replaces the single load.
    pub capacity: Option<CapacitySection>,
    /// The parts of the run that are measured separately.
    #[serde(default)]
    pub part: Vec<Spanned<Part>>,
    /// The steps during the run.
    #[serde(default)]
    pub step: Vec<Spanned<Step>>,
    /// The expectations.
    #[serde(default)]
    pub expect: Expect,
}

/// A sample backend.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackendSection {
    /// The address to listen on. The default is a free port of loopback.
    pub listen: Option<SocketAddr>,
    /// The control port of a backend that is already running. If it is given, no backend is
    /// started.
    pub control: Option<String>,
    /// The time that every answer takes.
    #[serde(deserialize_with = "values::duration")]
    pub latency: Duration,
    /// The processor time that every answer takes.
    #[serde(deserialize_with = "values::duration")]
    pub work: Duration,
    /// The percentage of answers with status 500.
    #[serde(deserialize_with = "values::percent")]
    pub error_rate: Percent,
    /// The size of the body, in bytes.
    pub body_bytes: usize,
    /// The number of requests worked on at once.
    pub concurrency: Option<usize>,
    /// The number of connections served at once.
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
    /// The names and addresses in the certificate.
    pub names: Vec<String>,
}

/// A proxy that the kit starts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxySection {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The files to write below `{folder}` before the start, by name.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The address that receives requests: a URL, or the pattern of a line in the proxy's output
    /// with `{}` in place of the URL.
    pub target: String,
    /// The address of the admin port, in the same form as `target`. Scenario files refer to it as
    /// `{admin}`.
    pub admin: Option<String>,
    /// The certificate authority to trust, such as `{folder}/ca.pem`.
    pub ca: Option<String>,
    /// How long a start may take.
    #[serde(default = "ten_seconds", deserialize_with = "values::duration")]
    pub ready_within: Duration,
    /// The number of processors that the proxy may use, if lower than that of the machine. The
    /// proxy's use is compared with it.
    pub cores: Option<f64>,
}

/// The load, with the keys of `run`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadSection {
    /// The rate, in requests per second.
    pub rate: f64,
    /// The distribution of the intended starts.
    pub arrivals: Arrivals,
    /// The time during which requests start.
    #[serde(deserialize_with = "values::duration")]
    pub duration: Duration,
    /// The size of the population.
    pub users: u32,
    /// The number of keep-alive connections.
    pub connections: usize,
    /// The limit of concurrent requests on an HTTP/2 connection.
    pub streams: usize,
    /// The number of requests after which a connection is closed.
    pub requests_per_connection: u32,
    /// The protocol of the requests.
    #[serde(deserialize_with = "values::protocol")]
    pub protocol: Protocol,
    /// The method of every request.
    #[serde(deserialize_with = "values::method")]
    pub method: Method,
    /// The path of every request.
    #[serde(deserialize_with = "values::path")]
    pub path: PathAndQuery,
    /// The size of the body of every request, in bytes.
    pub body_bytes: usize,
    /// Where a request carries its user.
    #[serde(deserialize_with = "values::key")]
    pub key: UserKey,
    /// The response header that names the side.
    #[serde(deserialize_with = "values::header")]
    pub side_header: HeaderName,
    /// The seed of the first run. Each further run uses the next seed.
    pub seed: u64,
    /// The longest time that a request may take.
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
    /// The salt of the hash.
    pub salt: String,
    /// The percentage at the start.
    #[serde(deserialize_with = "values::percent")]
    pub percent: Percent,
}

/// A time range of the run. Ranges with the same name form one part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The name of the part.
    pub name: String,
    /// The start of the range.
    #[serde(deserialize_with = "values::duration")]
    pub from: Duration,
    /// The end of the range.
    #[serde(deserialize_with = "values::duration")]
    pub to: Duration,
    /// How often the range is repeated as one part. Alternating quiet and storm ranges see the
    /// same state of the machine.
    #[serde(default = "one")]
    pub repeat: u32,
    /// The time from the start of one repetition to the start of the next.
    #[serde(default, deserialize_with = "values::some_duration")]
    pub every: Option<Duration>,
}

impl Part {
    /// Returns the windows of the part, in chronological order.
    pub fn windows(&self) -> impl Iterator<Item = (Duration, Duration)> {
        let every = self.every.unwrap_or_default();
        (0..self.repeat).map(move |number| (self.from + every * number, self.to + every * number))
    }
}

/// A step during the run, with at most one of `dial`, `edit`, `write`, `command`, `request`,
/// `signal` and `certificate`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The time of the step.
    #[serde(deserialize_with = "values::duration")]
    pub at: Duration,
    /// The name of the step in the report.
    pub label: Option<String>,
    /// How often the step is repeated.
    #[serde(default = "one")]
    pub repeat: u32,
    /// The time from one repetition to the next.
    #[serde(default, deserialize_with = "values::some_duration")]
    pub every: Option<Duration>,
    /// The backend whose dial is set.
    pub backend: Option<String>,
    /// The setting of the dial.
    pub dial: Option<Dial>,
    /// The line of a file to replace.
    pub edit: Option<Edit>,
    /// The file to write.
    pub write: Option<Write>,
    /// The command to run. An exit code other than 0 is a failed step.
    pub command: Option<Vec<String>>,
    /// The request to make, for example to an admin API.
    pub request: Option<Call>,
    /// The signal to send to the proxy.
    pub signal: Option<SignalName>,
    /// The certificate to issue again. The step waits until the target presents it.
    pub certificate: Option<String>,
    /// The condition to wait for afterwards: an answer in JSON has a value.
    pub until: Option<Until>,
    /// The direction in which users may change sides, from this step until it has settled.
    pub moves: Option<MoveDirection>,
    /// How long settling may take after the step is done.
    #[serde(default = "settled", deserialize_with = "values::duration")]
    pub settle: Duration,
    /// The percentage of the hash after this step.
    #[serde(default, deserialize_with = "values::some_percent")]
    pub percent: Option<Percent>,
    /// Whether this step breaks something, so that a blast radius is measured from it. By default
    /// this holds if a dial is set to a fault.
    pub fault: Option<bool>,
}

/// The replacement of a line in a file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The path of the file.
    pub file: String,
    /// The start of the line, ignoring leading spaces.
    pub line: String,
    /// The whole new line.
    pub with: String,
}

/// The replacement of a file's content.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// The path of the file.
    pub file: String,
    /// The new content.
    pub text: String,
}

/// A request of a step.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The method of the request.
    #[serde(default = "post", deserialize_with = "values::method")]
    pub method: Method,
    /// The URL of the request.
    pub url: String,
    /// The body of the request, as JSON.
    pub body: Option<String>,
    /// The status that the answer must have. By default any status below 400 is accepted.
    pub status: Option<u16>,
}

/// The condition to wait for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Until {
    /// The URL that is requested repeatedly.
    pub url: String,
    /// A JSON pointer, such as `/effective_percent`.
    pub at: String,
    /// The value that is waited for.
    pub is: toml::Value,
    /// The longest time to wait.
    #[serde(default = "ten_seconds", deserialize_with = "values::duration")]
    pub within: Duration,
}

/// The signals that a proxy may be sent.
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

/// The most steps of a scenario, including repetitions.
const MOST_STEPS: u64 = 100_000;
/// The most times that a scenario is played.
const MOST_RUNS: u32 = 10_000;

impl Scenario {
    /// Parses a scenario. Mistakes are reported with `name`.
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

    /// Returns the first problem of a scenario whose keys are all valid on their own.
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

    /// Returns the steps with their repetitions, in chronological order.
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
    /// Returns the name of the step in the report.
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

    /// Whether this step breaks something.
    pub fn is_fault(&self) -> bool {
        self.fault
            .unwrap_or_else(|| self.dial.is_some_and(|dial| !dial.is_healthy()))
    }
}
