//! The bench that plays one case after another on both engines, compares the results, and checks
//! each difference again.

use crate::differential::backend::Backends;
use crate::differential::case::Case;
use crate::differential::client::converse;
use crate::differential::compare::{Difference, Observation, compare};
use crate::differential::course::Course;
use crate::differential::generate;
use crate::differential::lookup::{self, Again, Verdict, unexplained};
use crate::differential::report::show::conversations;
use crate::differential::report::{Example, record, wants_example};
use crate::differential::rules::Rule;
use crate::differential::shrink::shrink;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The duration above which a case may have met a timeout of an engine. Those timeouts are one
/// second.
const STALL: Duration = Duration::from_millis(900);

/// The equipment that cases are played on.
#[derive(Debug)]
pub struct Bench {
    /// The backends of each engine.
    pub backends: [Backends; 2],
    /// The addresses that clients connect to, one per engine.
    pub addresses: [SocketAddr; 2],
    /// The names of the engines.
    pub names: [String; 2],
    /// The seed of the random numbers.
    pub seed: u64,
    /// The groups that no worker uses, for a second opinion: one for each thread, in the order of
    /// the threads.
    pub spares: Vec<tokio::sync::Mutex<usize>>,
    /// Whether conversations without a difference are printed as well.
    pub full: bool,
}

impl Bench {
    async fn play(&self, engine: usize, group: usize, case: &Arc<Case>) -> Observation {
        let (Some(backends), Some(&address)) =
            (self.backends.get(engine), self.addresses.get(engine))
        else {
            return Observation::default();
        };
        let play = backends.begin(group, case).await;
        let client = converse(address, case).await;
        let is_under_way = client.has_answer_of_the_engine();
        Observation {
            client,
            arrivals: backends.end(group, &play, is_under_way).await,
        }
    }

    async fn both(&self, group: usize, case: &Arc<Case>) -> (Observation, Observation) {
        tokio::join!(self.play(0, group, case), self.play(1, group, case))
    }

    /// Plays a case and counts its result.
    pub async fn play_and_judge(&self, course: &Course, group: usize, number: u64) {
        let case = Arc::new(generate::case(self.seed, number, group));
        let begun = Instant::now();
        let (reference, candidate) = self.both(group, &case).await;
        let took = begun.elapsed();
        let differences = compare(&case, &reference, &candidate);
        {
            let mut tally = course.tally();
            tally.count(&case, &reference, took);
            if unexplained(&differences).is_empty() {
                differences
                    .iter()
                    .filter_map(|difference| difference.rule)
                    .for_each(|rule| tally.explain(rule));
            }
        }
        if self.full {
            say(&self.text(&case, &reference, &candidate, &differences));
        }
        if let Some(foreign) = [&reference, &candidate]
            .iter()
            .find_map(|observation| observation.crossed(&case))
        {
            let text = self.text(&case, &reference, &candidate, &differences);
            say(&format!(
                "crossed: case {number} of seed {} got the answer of {foreign}\n{text}",
                self.seed
            ));
            record(
                &mut course.tally().unexplained,
                "crossed: an answer of another case".to_owned(),
                Some(Example { case: number, text }),
            );
        }
        if !unexplained(&differences).is_empty() {
            self.look_again(
                course,
                group,
                &case,
                (reference, candidate, begun.elapsed()),
                &differences,
            )
            .await;
        }
    }

    async fn look_again(
        &self,
        course: &Course,
        group: usize,
        case: &Arc<Case>,
        first: (Observation, Observation, Duration),
        differences: &[Difference],
    ) {
        let (number, took) = (case.number, first.2);
        let kind = unexplained(differences)
            .first()
            .map(|difference| kind_of(difference))
            .unwrap_or_default();
        let mut verdict = self.judge(group, case, (&first.0, &first.1)).await;
        if matches!(verdict, Verdict::Differs) && wants_example(&course.tally().unexplained, &kind)
        {
            verdict = self.second_opinion(group, case).await;
        }
        match verdict {
            Verdict::Chance => course.tally().explain(Rule::EitherWay),
            Verdict::Unrepeated if took > STALL => course.tally().explain(Rule::Stall),
            Verdict::Unrepeated => {
                let is_wanted = wants_example(&course.tally().unrepeated, &kind);
                let example = is_wanted.then(|| Example {
                    case: number,
                    text: self.text(case, &first.0, &first.1, differences),
                });
                say(&format!(
                    "unrepeated: case {number} of seed {}: {kind}\n{}",
                    self.seed,
                    example.as_ref().map_or("", |example| &example.text)
                ));
                record(&mut course.tally().unrepeated, kind, example);
            }
            Verdict::Differs => {
                if !wants_example(&course.tally().unexplained, &kind) {
                    say(&format!(
                        "unexplained: case {number} of seed {}: {kind}",
                        self.seed
                    ));
                    return record(&mut course.tally().unexplained, kind, None);
                }
                let mut text = self.text(case, &first.0, &first.1, differences);
                if !self.full {
                    text.push_str(&self.shrunk(group, case, &kind).await);
                }
                say(&format!(
                    "unexplained: case {number} of seed {}: {kind}\n{text}",
                    self.seed
                ));
                record(
                    &mut course.tally().unexplained,
                    kind,
                    Some(Example { case: number, text }),
                );
            }
        }
    }

    async fn judge(
        &self,
        group: usize,
        case: &Arc<Case>,
        first: (&Observation, &Observation),
    ) -> Verdict {
        let again = |again: Again| async move {
            match again {
                Again::Reference(cut) => self.play(0, group, &Arc::new(case.cut(cut))).await,
                Again::Candidate => self.play(1, group, case).await,
            }
        };
        lookup::judge(case, first, again).await
    }

    /// Plays the case again on other backends and returns whether a difference shows there as well.
    /// A difference that does not recur comes from one place and time, not from an engine.
    async fn second_opinion(&self, group: usize, case: &Arc<Case>) -> Verdict {
        // There is one spare group per thread, so one of them is on the thread of this group.
        let Some(spare) = self.spares.get(group % self.spares.len().max(1)) else {
            return Verdict::Differs;
        };
        let spare = spare.lock().await;
        let case = Arc::new(generate::case(self.seed, case.number, *spare));
        let (reference, candidate) = self.both(*spare, &case).await;
        match self.judge(*spare, &case, (&reference, &candidate)).await {
            Verdict::Differs => Verdict::Differs,
            Verdict::Chance | Verdict::Unrepeated => Verdict::Unrepeated,
        }
    }

    /// Returns a smaller case with a difference of this kind.
    async fn shrunk(&self, group: usize, case: &Arc<Case>, kind: &str) -> String {
        let differs = |case: Case| async move {
            let case = Arc::new(case);
            let (reference, candidate) = self.both(group, &case).await;
            let differences = compare(&case, &reference, &candidate);
            unexplained(&differences)
                .iter()
                .any(|difference| kind_of(difference) == kind)
        };
        let case = Arc::new(shrink(Case::clone(case), differs).await);
        let (reference, candidate) = self.both(group, &case).await;
        let differences = compare(&case, &reference, &candidate);
        format!(
            "  --- smaller\n{}",
            self.text(&case, &reference, &candidate, &differences)
        )
    }

    fn text(
        &self,
        case: &Case,
        reference: &Observation,
        candidate: &Observation,
        differences: &[Difference],
    ) -> String {
        conversations(
            case,
            [&self.names[0], &self.names[1]],
            [reference, candidate],
            differences,
        )
    }
}

/// Returns the key by which differences are grouped: their subject, and both values if these are
/// words and not data.
fn kind_of(difference: &Difference) -> String {
    let Difference {
        what,
        reference,
        candidate,
        ..
    } = difference;
    let short = |value: &str| value.len() <= 40 && !value.bytes().any(|byte| byte.is_ascii_digit());
    let is_status = what == "client status line";
    if is_status || short(reference) && short(candidate) {
        format!("{what}: {reference} | {candidate}")
    } else {
        what.clone()
    }
}

/// Writes a line to stderr. Errors are ignored because there is nowhere left to report a closed
/// stderr.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
