//! The check that every user stayed on one side, except when the split moved.
//!
//! A step that moves the split states its direction, and the move has a window from the start of
//! the step until it has settled. The side of a request is known to have been decided between its
//! sending and its end. From this follows what can be proved against the proxy, and nothing else
//! counts:
//!
//! - Two requests of a user are on different sides, and the first finished before the second was
//!   sent. Then some move in that direction must have its window between the sending of the first
//!   and the end of the second.
//! - Two requests were in flight together. Then some move in either direction must have such a
//!   window.
//!
//! A user who switches there and back within one window of `both` directions is not found. A
//! scenario that needs to find such users moves in two steps.

use crate::driver::Record;
use crate::report::history::{Direction, Move};
use crate::report::{MOST_EXAMPLES, milliseconds};
use crate::users::{Side, user_name};
use serde::Serialize;

/// The most requests of one user that are considered as possibly in flight together.
const MOST_TOGETHER: usize = 1_024;

/// Whether every user stayed on one side.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stickiness {
    /// The number of users with at least one answer that named a side.
    pub users_seen: u64,
    /// The number of users with at least two such answers. The other users cannot have switched.
    pub users_seen_again: u64,
    /// The number of users that were seen on both sides.
    pub users_on_both_sides: u64,
    /// The number of users whose first switch was to new.
    pub users_first_to_new: u64,
    /// The number of users whose first switch was to legacy.
    pub users_first_to_legacy: u64,
    /// The number of users whose first switch overlapped.
    pub users_first_overlapping: u64,
    /// The number of switches of all users.
    pub switches: u64,
    /// The number of switches from legacy to new.
    pub legacy_to_new: u64,
    /// The number of switches from new to legacy.
    pub new_to_legacy: u64,
    /// The number of switches between two requests that were in flight together.
    pub overlapping: u64,
    /// The number of changes of side that no move of the split explains.
    pub unexplained: u64,
    /// The number of users with such a change.
    pub users_unexplained: u64,
    /// Some of the unexplained changes.
    pub examples: Vec<Switch>,
}

/// One change of side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Switch {
    /// The user.
    pub user: String,
    /// The direction of the change, in the order of sending.
    pub direction: Direction,
    /// Whether the two requests were in flight together, so that the order proves nothing.
    pub overlapping: bool,
    /// The time at which the first request on the other side was sent.
    pub at_ms: f64,
}

/// Checks each user from answer to answer. The records are sorted by user and sending time. Also
/// returns how many users ended on new.
pub(super) fn check_stickiness(records: &[Record], moves: &[Move]) -> (Stickiness, u64) {
    let mut found = Stickiness::default();
    let mut users_on_new = 0;
    for of_user in records.chunk_by(|one, other| one.user == other.user) {
        let answers: Vec<Answer> = of_user.iter().filter_map(Answer::of).collect();
        let Some(last) = answers.last() else {
            continue;
        };
        found.users_seen += 1;
        found.users_seen_again += u64::from(answers.len() > 1);
        users_on_new += u64::from(last.side == Side::New);
        found.count_switches(of_user[0].user, &answers);
        found.find_unexplained(of_user[0].user, &answers, moves);
    }
    (found, users_on_new)
}

/// An answer that named a side. The side was decided between `sent` and `finished`.
#[derive(Debug, Clone, Copy)]
struct Answer {
    side: Side,
    sent: u64,
    finished: u64,
}

impl Answer {
    fn of(record: &Record) -> Option<Self> {
        Some(Self {
            side: record.outcome.side()?,
            sent: record.sent?,
            finished: record.finished,
        })
    }
}

impl Stickiness {
    /// Returns the violation in words, if there is one.
    pub fn violation(&self) -> Option<String> {
        let example = self.examples.first()?;
        Some(format!(
            "{} of {} users changed sides where no step moved them ({} of {} switches), such as \
             {} {} at {:.1} ms",
            self.users_unexplained,
            self.users_seen,
            self.unexplained,
            self.switches,
            example.user,
            example.direction,
            example.at_ms
        ))
    }

    /// Counts all switches of a user, explained or not.
    fn count_switches(&mut self, user: u32, answers: &[Answer]) {
        let mut last: Option<(Side, u64)> = None;
        let mut switched = false;
        for answer in answers {
            let last_finished = match last {
                Some((last_side, last_finished)) if last_side != answer.side => {
                    self.add(
                        &Switch::to(user, answer, answer.sent < last_finished),
                        !switched,
                    );
                    switched = true;
                    last_finished
                }
                Some((_, last_finished)) => last_finished,
                None => 0,
            };
            last = Some((answer.side, last_finished.max(answer.finished)));
        }
        self.users_on_both_sides += u64::from(switched);
    }

    fn add(&mut self, switch: &Switch, first_of_user: bool) {
        let first = u64::from(first_of_user);
        self.switches += 1;
        if switch.overlapping {
            self.overlapping += 1;
            self.users_first_overlapping += first;
        } else if switch.direction == Direction::LegacyToNew {
            self.legacy_to_new += 1;
            self.users_first_to_new += first;
        } else {
            self.new_to_legacy += 1;
            self.users_first_to_legacy += first;
        }
    }

    /// Finds the changes that no move explains.
    fn find_unexplained(&mut self, user: u32, answers: &[Answer], moves: &[Move]) {
        let before = self.unexplained;
        // The answers of each side so far, in the order of sending.
        let mut seen: [Vec<Answer>; 2] = [Vec::new(), Vec::new()];
        // The answer that was last found to contradict a later one. A change is counted once, not
        // at every later answer.
        let mut accused = None;
        for answer in answers {
            let (own, other) = match answer.side {
                Side::Legacy => (0, 1),
                Side::New => (1, 0),
            };
            let direction = Direction::to(answer.side);
            // The latest answer leaves the least room for a move. If it can be explained, so can
            // every earlier one.
            let ordered = seen[other]
                .iter()
                .rev()
                .find(|earlier| earlier.finished <= answer.sent);
            let ordered = ordered.filter(|earlier| {
                !moves
                    .iter()
                    .any(|one| one.allows(direction) && one.touches(earlier.sent, answer.finished))
            });
            let together = || {
                let mut in_flight = seen[other]
                    .iter()
                    .rev()
                    .take(MOST_TOGETHER)
                    .filter(|earlier| earlier.finished > answer.sent);
                in_flight.find(|earlier| {
                    !moves
                        .iter()
                        .any(|one| one.touches(earlier.sent, earlier.finished.max(answer.finished)))
                })
            };
            let unexplained = match ordered {
                Some(earlier) => Some((earlier, false)),
                None => together().map(|earlier| (earlier, true)),
            };
            if let Some((earlier, overlapping)) = unexplained
                && accused != Some((earlier.sent, direction))
            {
                accused = Some((earlier.sent, direction));
                self.unexplained += 1;
                if self.examples.len() < MOST_EXAMPLES {
                    self.examples.push(Switch::to(user, answer, overlapping));
                }
            }
            seen[own].push(*answer);
        }
        self.users_unexplained += u64::from(self.unexplained > before);
    }
}

impl Switch {
    fn to(user: u32, answer: &Answer, overlapping: bool) -> Self {
        Self {
            user: user_name(user),
            direction: Direction::to(answer.side),
            overlapping,
            at_ms: milliseconds(answer.sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check_stickiness;
    use crate::driver::{Outcome, Record};
    use crate::report::history::{Move, MoveDirection};
    use crate::users::Side;
    use http::StatusCode;

    const MILLISECOND: u64 = 1_000_000;

    fn record(user: u32, sent: u64, finished: u64, side: Side) -> Record {
        let (sent, finished) = (sent * MILLISECOND, finished * MILLISECOND);
        Record {
            user,
            outcome: Outcome::Answered {
                status: StatusCode::OK,
                side: Some(side),
            },
            intended: sent,
            released: sent,
            sent: Some(sent),
            finished,
        }
    }

    fn one_move(direction: MoveDirection, begin: u64, end: u64) -> Move {
        Move {
            direction,
            begin: begin * MILLISECOND,
            end: end * MILLISECOND,
        }
    }

    fn unexplained(records: &[Record], moves: &[Move]) -> (u64, u64) {
        let (found, _) = check_stickiness(records, moves);
        (found.unexplained, found.users_unexplained)
    }

    use Side::{Legacy, New};

    #[test]
    fn a_change_within_a_move_in_its_direction_is_explained() {
        let records = [record(1, 0, 1, Legacy), record(1, 20, 21, New)];
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 10, 15)]),
            (0, 0)
        );
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::Both, 10, 15)]),
            (0, 0)
        );
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToLegacy, 10, 15)]),
            (1, 1)
        );
        assert_eq!(unexplained(&records, &[]), (1, 1));
    }

    #[test]
    fn a_change_after_the_move_has_settled_is_a_violation() {
        let records = [
            record(1, 0, 1, Legacy),
            record(1, 20, 21, Legacy),
            record(1, 30, 31, New),
        ];
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 10, 15)]),
            (1, 1)
        );
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 10, 20)]),
            (0, 0)
        );
    }

    #[test]
    fn a_change_before_the_move_starts_is_a_violation() {
        let records = [record(1, 0, 1, Legacy), record(1, 5, 6, New)];
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 10, 15)]),
            (1, 1)
        );
    }

    #[test]
    fn switching_back_within_a_one_way_move_is_a_violation() {
        let records = [
            record(1, 0, 1, Legacy),
            record(1, 11, 12, New),
            record(1, 13, 14, Legacy),
            record(1, 16, 17, New),
        ];
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 10, 20)]),
            (1, 1)
        );
    }

    #[test]
    fn overlapping_requests_are_explained_only_during_a_move() {
        let records = [
            record(1, 0, 30, New),
            record(1, 10, 12, Legacy),
            record(1, 40, 41, New),
        ];
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 20, 25)]),
            (0, 0)
        );
        assert_eq!(
            unexplained(&records, &[one_move(MoveDirection::ToNew, 50, 55)]),
            (2, 1)
        );
    }

    #[test]
    fn an_unexplained_change_counts_once_whatever_follows() {
        let records = [
            record(1, 0, 1, Legacy),
            record(1, 2, 3, New),
            record(1, 4, 5, New),
            record(1, 6, 7, New),
            record(2, 0, 1, New),
            record(2, 2, 3, New),
        ];
        assert_eq!(unexplained(&records, &[]), (1, 1));
    }

    #[test]
    fn switching_there_and_back_in_two_moves_is_explained() {
        let records = [
            record(1, 0, 1, Legacy),
            record(1, 20, 21, New),
            record(1, 40, 41, Legacy),
        ];
        let moves = [
            one_move(MoveDirection::ToNew, 10, 15),
            one_move(MoveDirection::ToLegacy, 30, 35),
        ];
        assert_eq!(unexplained(&records, &moves), (0, 0));
        assert_eq!(unexplained(&records, &moves[..1]), (1, 1));
    }
}
