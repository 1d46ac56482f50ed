//! The history of the split during a run: moves, and the percentages that were in force.
//!
//! Both have windows instead of instants, because no observer outside a proxy knows exactly when a
//! change takes effect. A window opens with the step and closes when the step has settled.

use crate::driver::Record;
use crate::report::milliseconds;
use crate::report::share::Share;
use crate::units::Percent;
use crate::users::{Oracle, Side, user_name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The direction in which a user moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Direction {
    /// From legacy to new.
    #[serde(rename = "legacy->new")]
    LegacyToNew,
    /// From new back to legacy.
    #[serde(rename = "new->legacy")]
    NewToLegacy,
}

impl Direction {
    /// Returns the direction that ends on this side.
    pub fn to(side: Side) -> Self {
        match side {
            Side::New => Self::LegacyToNew,
            Side::Legacy => Self::NewToLegacy,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::LegacyToNew => "legacy->new",
            Self::NewToLegacy => "new->legacy",
        })
    }
}

/// The direction in which a step moves users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveDirection {
    /// Some users move from legacy to new.
    ToNew,
    /// Some users move from new to legacy.
    ToLegacy,
    /// Some users move in each direction, as another salt makes them do.
    Both,
}

/// A time in which users may change sides, in nanoseconds since the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The direction of the move.
    pub direction: MoveDirection,
    /// The time at which the step began.
    pub begin: u64,
    /// The time at which the step had settled.
    pub end: u64,
}

impl Move {
    /// Whether the move sends users in this direction.
    pub(super) fn allows(&self, direction: Direction) -> bool {
        match self.direction {
            MoveDirection::Both => true,
            MoveDirection::ToNew => direction == Direction::LegacyToNew,
            MoveDirection::ToLegacy => direction == Direction::NewToLegacy,
        }
    }

    /// Whether the window of the move overlaps this time.
    pub(super) fn touches(&self, from: u64, to: u64) -> bool {
        self.begin <= to && self.end >= from
    }
}

/// A percentage, and the window in which it replaced the previous one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The percentage after the change.
    pub percent: Percent,
    /// The time at which the step began.
    pub begin: u64,
    /// The time at which the step had settled.
    pub end: u64,
}

/// What was done to the split during a run. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The moves in which users may have changed sides, ordered by their start.
    pub moves: Vec<Move>,
    /// The percentages that followed the one of the plan, ordered by their start.
    pub changes: Vec<Change>,
    /// The time at which something was first broken on purpose.
    pub fault: Option<u64>,
}

impl History {
    /// Returns the percentages that may have decided a request of this time. The one of the plan is
    /// the first.
    pub(super) fn percents(
        &self,
        first: Percent,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = Percent> {
        let begun = std::iter::once((first, 0)).chain(
            self.changes
                .iter()
                .map(|change| (change.percent, change.begin)),
        );
        let ends = self
            .changes
            .iter()
            .map(|change| change.end)
            .chain(std::iter::once(u64::MAX));
        begun
            .zip(ends)
            .filter(move |((_, begin), end)| *begin <= to && *end >= from)
            .map(|((percent, _), _)| percent)
    }

    /// Returns the periods in which nothing moved.
    fn rests(&self, end: u64) -> Vec<(u64, u64)> {
        let mut rests = Vec::new();
        let mut from = 0;
        for one in &self.moves {
            if one.begin > from {
                rests.push((from, one.begin));
            }
            from = from.max(one.end);
        }
        if end > from {
            rests.push((from, end));
        }
        rests
    }
}

/// The share on new between two moves.
#[derive(Debug, Clone, Serialize)]
pub struct Segment {
    /// The start of the segment.
    pub from_ms: f64,
    /// The end of the segment.
    pub to_ms: f64,
    /// The share of the answers that named a side, for requests sent and finished in the segment.
    pub requests: Share,
    /// The share of the users that were seen in the segment.
    pub users: Share,
}

/// Measures the share on new in each period between moves. There is one segment for the whole run
/// if nothing moved.
pub(super) fn segments(
    records: &[Record],
    oracle: Option<&Oracle>,
    population: u32,
    history: &History,
) -> Vec<Segment> {
    let end = records
        .iter()
        .map(|record| record.finished)
        .max()
        .unwrap_or(0);
    let rests = history.rests(end);
    let mut counts = vec![[[0_u64; 2]; 2]; rests.len()];
    for of_user in records.chunk_by(|one, other| one.user == other.user) {
        let mut last: Vec<Option<Side>> = vec![None; rests.len()];
        for record in of_user {
            let (Some(side), Some(sent)) = (record.outcome.side(), record.sent) else {
                continue;
            };
            let at = rests
                .partition_point(|(from, _)| *from <= sent)
                .wrapping_sub(1);
            if rests.get(at).is_some_and(|(_, to)| record.finished <= *to) {
                counts[at][0][usize::from(side == Side::New)] += 1;
                last[at] = Some(side);
            }
        }
        for (count, side) in counts.iter_mut().zip(last) {
            if let Some(side) = side {
                count[1][usize::from(side == Side::New)] += 1;
            }
        }
    }
    let buckets: Vec<u64> = oracle
        .map(|oracle| {
            (0..population)
                .map(|user| oracle.bucket(&user_name(user)))
                .collect()
        })
        .unwrap_or_default();
    rests
        .into_iter()
        .zip(counts)
        .map(|((from, to), [[legacy, new], [users_legacy, users_new]])| {
            // Between moves one percentage is in force. The ends of the period belong to the moves.
            let middle = from + (to - from) / 2;
            let percent =
                oracle.and_then(|oracle| history.percents(oracle.percent(), middle, middle).last());
            let expected = percent.map(|percent| {
                buckets
                    .iter()
                    .filter(|bucket| Oracle::side_of(**bucket, percent) == Side::New)
                    .count() as f64
                    / f64::from(population)
            });
            Segment {
                from_ms: milliseconds(from),
                to_ms: milliseconds(to),
                requests: Share::new(new, legacy + new, expected),
                users: Share::new(users_new, users_legacy + users_new, expected),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Change, History, Move, MoveDirection, segments};
    use crate::driver::{Outcome, Record};
    use crate::units::Percent;
    use crate::users::{Oracle, Side};
    use http::StatusCode;

    fn percent(text: &str) -> Percent {
        Percent::parse(text).expect("a percentage")
    }

    fn history() -> History {
        let window = |begin, end| Move {
            direction: MoveDirection::Both,
            begin,
            end,
        };
        History {
            moves: vec![window(100, 120), window(110, 130), window(200, 210)],
            changes: vec![
                Change {
                    percent: percent("50"),
                    begin: 100,
                    end: 120,
                },
                Change {
                    percent: percent("0"),
                    begin: 200,
                    end: 210,
                },
            ],
            fault: None,
        }
    }

    #[test]
    fn a_request_may_meet_every_percentage_whose_window_it_overlaps() {
        let met = |from, to| {
            history()
                .percents(percent("1"), from, to)
                .map(|percent| percent.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(met(0, 99), ["1"]);
        assert_eq!(met(90, 105), ["1", "50"]);
        assert_eq!(met(121, 199), ["50"]);
        assert_eq!(met(205, 206), ["50", "0"]);
        assert_eq!(met(211, 300), ["0"]);
        assert_eq!(met(0, 300), ["1", "50", "0"]);
    }

    #[test]
    fn shares_are_measured_only_between_moves() {
        let answered = |user, sent: u64, side| Record {
            user,
            outcome: Outcome::Answered {
                status: StatusCode::OK,
                side: Some(side),
            },
            intended: sent,
            released: sent,
            sent: Some(sent),
            finished: sent + 5,
        };
        let records = [
            answered(0, 10, Side::Legacy),
            answered(0, 98, Side::New),
            answered(0, 115, Side::New),
            answered(0, 140, Side::New),
            answered(0, 150, Side::New),
            answered(1, 160, Side::Legacy),
            answered(1, 220, Side::Legacy),
        ];
        let oracle = Oracle::new("checkout", percent("1"));
        let found = segments(&records, Some(&oracle), 10, &history());
        let counted: Vec<(u64, u64, u64, u64)> = found
            .iter()
            .map(|one| {
                (
                    one.requests.on_new,
                    one.requests.total,
                    one.users.on_new,
                    one.users.total,
                )
            })
            .collect();
        assert_eq!(counted, [(0, 1, 0, 1), (2, 3, 1, 2), (0, 1, 0, 1)]);
        let by_hash = |at| f64::from(Oracle::new("checkout", percent(at)).users_on_new(10)) / 10.0;
        assert_eq!(
            found
                .iter()
                .map(|one| one.requests.expected)
                .collect::<Vec<_>>(),
            [Some(by_hash("1")), Some(by_hash("50")), Some(0.0)]
        );
    }
}
