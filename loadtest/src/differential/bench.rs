//! One case after the other, on both engines: played, judged, and looked at again.

use super::backend::Backends;
use super::case::{Case, Cut};
use super::client::converse;
use super::compare::{Difference, Observation, compare};
use super::course::Course;
use super::generate;
use super::lookup::{self, Again, Verdict, unexplained};
use super::report::{Example, record, wants_example};
use super::rules::Rule;
use super::show::conversations;
use super::shrink::shrink;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How the reference is asked for the end of a conversation: as the case says, with all of it there from the beginning, with little of it, and with as much as it reads at once.
const HAND_OVERS: [Cut; 4] = [Cut::Whole, Cut::AsItIs, Cut::Bytes, Cut::Looks];

/// What took longer may have met a timeout of an engine, which are a second.
const STALL: Duration = Duration::from_millis(900);

/// What cases are played on.
#[derive(Debug)]
pub struct Bench {
    /// The backends of each engine.
    pub backends: [Backends; 2],
    /// Where clients connect.
    pub addresses: [SocketAddr; 2],
    /// The names of the engines.
    pub names: [String; 2],
    /// What chance begins with.
    pub seed: u64,
    /// The groups that no worker has, for a second opinion: one for each thread, in their order.
    pub spares: Vec<tokio::sync::Mutex<usize>>,
    /// Whether an engine is compared with itself.
    pub is_self: bool,
    /// Whether conversations are printed also where nothing is different.
    pub full: bool,
}

/// A case as each engine plays it: the same, save where the reference is asked one request after the other.
struct Versions {
    reference: Arc<Case>,
    candidate: Arc<Case>,
}

impl Versions {
    fn of(case: Case) -> Self {
        let case = Arc::new(case);
        Self { reference: Arc::clone(&case), candidate: case }
    }

    /// The reference is asked one request after the other.
    fn one_by_one(&mut self) {
        self.reference = Arc::new(Case { is_pipelined: false, ..Case::clone(&self.candidate) });
    }

    /// Another case, asked in the same way.
    fn like(&self, case: Case) -> Self {
        let mut versions = Self::of(case);
        if self.reference.is_pipelined != self.candidate.is_pipelined {
            versions.one_by_one();
        }
        versions
    }
}

impl Bench {
    async fn play(&self, engine: usize, group: usize, case: &Arc<Case>) -> Observation {
        let (Some(backends), Some(&address)) = (self.backends.get(engine), self.addresses.get(engine)) else { return Observation::default() };
        let play = backends.begin(group, case).await;
        let client = converse(address, case).await;
        let is_under_way = client.has_answer_of_the_engine();
        Observation { client, arrivals: backends.end(group, &play, is_under_way).await }
    }

    async fn both(&self, group: usize, versions: &Versions) -> (Observation, Observation) {
        tokio::join!(self.play(0, group, &versions.reference), self.play(1, group, &versions.candidate))
    }

    /// Plays a case and counts what came of it.
    pub async fn play_and_judge(&self, course: &Course, group: usize, number: u64) {
        let mut versions = Versions::of(generate::case(self.seed, number, group));
        let begun = Instant::now();
        let (mut reference, candidate) = self.both(group, &versions).await;
        let took = begun.elapsed();
        let mut differences = compare(&versions.candidate, &reference, &candidate);
        if versions.reference.is_pipelined && !unexplained(&differences).is_empty() {
            course.tally().explain(Rule::Pipelined);
            if self.is_self {
                // Both do by chance what the rule says of one.
                differences.clear();
            } else {
                versions.one_by_one();
                reference = self.play(0, group, &versions.reference).await;
                differences = compare(&versions.candidate, &reference, &candidate);
                if !unexplained(&differences).is_empty()
                    && let Some(at) = self.handed_over(group, &versions, &reference, &candidate).await
                {
                    differences.iter_mut().filter(|difference| difference.request.is_none_or(|request| request >= at)).for_each(|difference| {
                        difference.rule.get_or_insert(Rule::HandedOver);
                    });
                }
            }
        }
        {
            let mut tally = course.tally();
            tally.count(&versions.candidate, &reference, took);
            if unexplained(&differences).is_empty() {
                differences.iter().filter_map(|difference| difference.rule).for_each(|rule| tally.explain(rule));
            }
        }
        if self.full {
            say(&self.text(&versions.candidate, &reference, &candidate, &differences));
        }
        if let Some(foreign) = [&reference, &candidate].iter().find_map(|observation| observation.crossed(&versions.candidate)) {
            let text = self.text(&versions.candidate, &reference, &candidate, &differences);
            say(&format!("crossed: case {number} of seed {} got the answer of {foreign}\n{text}", self.seed));
            record(&mut course.tally().unexplained, "crossed: an answer of another case".to_owned(), Some(Example { case: number, text }));
        }
        if !unexplained(&differences).is_empty() {
            self.look_again(course, group, &versions, (reference, candidate, begun.elapsed()), &differences).await;
        }
    }

    /// Where the candidate can have handed a conversation to the reference: from some request on it does what the reference does when that one and all behind it come at once.
    async fn handed_over(&self, group: usize, versions: &Versions, reference: &Observation, candidate: &Observation) -> Option<usize> {
        for at in 1..versions.candidate.requests.len() {
            let rest = Case { begins_at: at, ..Case::clone(&versions.candidate) };
            for cut in HAND_OVERS {
                let rest = self.play(0, group, &Arc::new(rest.cut(cut))).await;
                if lookup::agree(&versions.candidate, &reference.up_to(&versions.candidate, at, &rest), candidate) {
                    return Some(at);
                }
            }
        }
        None
    }

    async fn look_again(&self, course: &Course, group: usize, versions: &Versions, first: (Observation, Observation, Duration), differences: &[Difference]) {
        let (number, took) = (versions.candidate.number, first.2);
        let kind = unexplained(differences).first().map(|difference| kind_of(difference)).unwrap_or_default();
        let mut verdict = self.judge(group, versions, (&first.0, &first.1)).await;
        if matches!(verdict, Verdict::Differs) && wants_example(&course.tally().unexplained, &kind) {
            verdict = self.second_opinion(group, versions).await;
        }
        match verdict {
            Verdict::Chance => course.tally().explain(Rule::EitherWay),
            Verdict::Unrepeated if took > STALL => course.tally().explain(Rule::Stall),
            Verdict::Unrepeated => {
                let is_wanted = wants_example(&course.tally().unrepeated, &kind);
                let example = is_wanted.then(|| Example { case: number, text: self.text(&versions.candidate, &first.0, &first.1, differences) });
                say(&format!("unrepeated: case {number} of seed {}: {kind}\n{}", self.seed, example.as_ref().map_or("", |example| &example.text)));
                record(&mut course.tally().unrepeated, kind, example);
            }
            Verdict::Differs => {
                if !wants_example(&course.tally().unexplained, &kind) {
                    say(&format!("unexplained: case {number} of seed {}: {kind}", self.seed));
                    return record(&mut course.tally().unexplained, kind, None);
                }
                let mut text = self.text(&versions.candidate, &first.0, &first.1, differences);
                if !self.full {
                    text.push_str(&self.shrunk(group, versions, &kind).await);
                }
                say(&format!("unexplained: case {number} of seed {}: {kind}\n{text}", self.seed));
                record(&mut course.tally().unexplained, kind, Some(Example { case: number, text }));
            }
        }
    }

    async fn judge(&self, group: usize, versions: &Versions, first: (&Observation, &Observation)) -> Verdict {
        let again = |again: Again| async move {
            match again {
                Again::Reference(cut, is_at_once) => {
                    let case = if is_at_once { &versions.candidate } else { &versions.reference };
                    self.play(0, group, &Arc::new(case.cut(cut))).await
                }
                Again::Candidate => self.play(1, group, &versions.candidate).await,
            }
        };
        lookup::judge(&versions.reference, first, again).await
    }

    /// Whether a difference shows among other backends, too. What does not is of one place and one time, and not of an engine.
    async fn second_opinion(&self, group: usize, versions: &Versions) -> Verdict {
        // There are as many as threads, so one of them is on the thread of this group.
        let Some(spare) = self.spares.get(group % self.spares.len().max(1)) else { return Verdict::Differs };
        let spare = spare.lock().await;
        let versions = versions.like(generate::case(self.seed, versions.candidate.number, *spare));
        let (reference, candidate) = self.both(*spare, &versions).await;
        match self.judge(*spare, &versions, (&reference, &candidate)).await {
            Verdict::Differs => Verdict::Differs,
            Verdict::Chance | Verdict::Unrepeated => Verdict::Unrepeated,
        }
    }

    /// A smaller case with a difference of this kind.
    async fn shrunk(&self, group: usize, versions: &Versions, kind: &str) -> String {
        let differs = |case: Case| async move {
            let versions = versions.like(case);
            let (reference, candidate) = self.both(group, &versions).await;
            let differences = compare(&versions.candidate, &reference, &candidate);
            unexplained(&differences).iter().any(|difference| kind_of(difference) == kind)
        };
        let small = shrink(Case::clone(&versions.candidate), differs).await;
        let versions = versions.like(small);
        let (reference, candidate) = self.both(group, &versions).await;
        let differences = compare(&versions.candidate, &reference, &candidate);
        format!("  --- smaller\n{}", self.text(&versions.candidate, &reference, &candidate, &differences))
    }

    fn text(&self, case: &Case, reference: &Observation, candidate: &Observation, differences: &[Difference]) -> String {
        conversations(case, [&self.names[0], &self.names[1]], [reference, candidate], differences)
    }
}

/// What differences are grouped by: what they are about, and both values where these are words and not data.
fn kind_of(difference: &Difference) -> String {
    let Difference { what, reference, candidate, .. } = difference;
    let short = |value: &str| value.len() <= 40 && !value.bytes().any(|byte| byte.is_ascii_digit());
    let is_status = what == "client status line";
    if is_status || short(reference) && short(candidate) { format!("{what}: {reference} | {candidate}") } else { what.clone() }
}

/// Writes a line to stderr. There is nowhere left to say that stderr is closed.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
