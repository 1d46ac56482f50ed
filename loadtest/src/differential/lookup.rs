//! The second examination of a difference: whether it is real, is chance, or does not recur.
//!
//! The reference is replayed both unchanged and with the same bytes split into other writes. If its
//! outcome depends on that split, no client or backend can rely on the outcome.

use crate::differential::case::{Case, Cut};
use crate::differential::compare::{Difference, Observation, compare};
use std::time::Duration;
use tokio::time::Instant;

/// How often a case is replayed.
const AGAIN: usize = 8;
/// How often the reference is played to collect its possible outcomes.
const MOST_REFERENCES: usize = 40;

/// The longest time spent on one case. A case that waits for timeouts is replayed less often.
const LONGEST: Duration = Duration::from_secs(20);

/// The splits with which the reference is replayed, in turn.
const WAYS: [Cut; 5] = [Cut::AsItIs, Cut::Whole, Cut::Looks, Cut::AsItIs, Cut::Bytes];

/// The verdict about a difference.
#[derive(Debug)]
pub enum Verdict {
    /// Chance: the reference alone gives both outcomes.
    Chance,
    /// The difference did not recur.
    Unrepeated,
    /// The difference is real.
    Differs,
}

/// Returns the differences that no rule explains.
pub fn unexplained(differences: &[Difference]) -> Vec<&Difference> {
    differences
        .iter()
        .filter(|difference| difference.rule.is_none())
        .collect()
}

/// Whether two observations are equal or differ only as rules allow.
pub fn agree(case: &Case, reference: &Observation, candidate: &Observation) -> bool {
    compare(case, reference, candidate)
        .iter()
        .all(|difference| difference.rule.is_some())
}

/// The engine that is played again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The reference, with writes split in this way.
    Reference(Cut),
    /// The candidate.
    Candidate,
}

/// Judges a difference by replaying it with `play`.
pub async fn judge<F: Future<Output = Observation>>(
    case: &Case,
    first: (&Observation, &Observation),
    mut play: impl FnMut(Again) -> F,
) -> Verdict {
    let mut references = vec![first.0.clone()];
    let mut candidates = vec![first.1.clone()];
    let mut ways = WAYS.iter().cycle().map(|&cut| Again::Reference(cut));
    let mut reference = || ways.next().unwrap_or(Again::Reference(Cut::AsItIs));
    let begun = Instant::now();
    for _ in 0..AGAIN {
        let (one, other) = tokio::join!(play(reference()), play(Again::Candidate));
        references.push(one);
        candidates.push(other);
    }
    let is_known = |candidate: &Observation, references: &[Observation]| {
        references
            .iter()
            .any(|reference| agree(case, reference, candidate))
    };
    loop {
        let unknown: Vec<usize> = (0..candidates.len())
            .filter(|&at| {
                candidates
                    .get(at)
                    .is_some_and(|candidate| !is_known(candidate, &references))
            })
            .collect();
        let is_enough = references.len() >= MOST_REFERENCES || begun.elapsed() > LONGEST;
        match unknown.as_slice() {
            [] => return Verdict::Chance,
            [0] if is_enough => return Verdict::Unrepeated,
            _ if is_enough => return Verdict::Differs,
            // No outcome of the candidate is known from the reference, and the reference has had
            // its turns.
            unknown if unknown.len() == candidates.len() && references.len() > AGAIN => {
                return Verdict::Differs;
            }
            _ => references.push(play(reference()).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::client::{Replies, Reply};
    use crate::differential::generate;
    use std::cell::Cell;

    /// Returns the observation of an engine that closes the connection or keeps it.
    fn shows(is_closed: bool) -> Observation {
        Observation {
            client: Replies {
                replies: vec![Reply {
                    is_closed,
                    ..Reply::default()
                }],
                surplus: Vec::new(),
            },
            arrivals: Vec::new(),
        }
    }

    async fn verdict(
        first: (bool, bool),
        reference: impl Fn(usize) -> bool,
        candidate: impl Fn(usize) -> bool,
    ) -> Verdict {
        let case = generate::case(1, 1, 0);
        let plays = Cell::new(0);
        let play = |again: Again| {
            plays.set(plays.get() + 1);
            let is_closed = if again == Again::Candidate {
                candidate(plays.get() / 2)
            } else {
                reference(plays.get() / 2)
            };
            async move { shows(is_closed) }
        };
        judge(&case, (&shows(first.0), &shows(first.1)), play).await
    }

    #[tokio::test]
    async fn a_difference_that_recurs_is_real() {
        assert!(matches!(
            verdict((false, true), |_| false, |_| true).await,
            Verdict::Differs
        ));
    }

    #[tokio::test]
    async fn an_outcome_that_the_reference_also_gives_is_chance() {
        assert!(matches!(
            verdict((false, true), |at| at % 3 == 0, |_| true).await,
            Verdict::Chance
        ));
        assert!(
            matches!(
                verdict((false, true), |_| false, |at| at % 2 == 0).await,
                Verdict::Differs
            ),
            "half of what the candidate does"
        );
    }

    #[tokio::test]
    async fn a_difference_that_does_not_recur_is_unrepeated() {
        assert!(matches!(
            verdict((false, true), |_| false, |_| false).await,
            Verdict::Unrepeated
        ));
    }
}
