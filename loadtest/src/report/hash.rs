//! The check that every answer came from the side that the published hash assigns.
//!
//! While a percentage is being changed, both sides may be right for the users between the two
//! percentages, and only for them.

use crate::driver::Record;
use crate::report::history::History;
use crate::report::{MOST_EXAMPLES, milliseconds};
use crate::users::{Oracle, Side, user_name};
use serde::Serialize;

/// Whether every answer came from the side that the hash assigns.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HashCheck {
    /// The number of answers that named a side.
    pub checked: u64,
    /// The number of answers from the other side.
    pub wrong_answers: u64,
    /// The number of distinct users with such an answer.
    pub wrong_users: u64,
    /// Some of the wrong answers.
    pub examples: Vec<WrongAnswer>,
}

/// An answer from the side to which its user does not belong.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WrongAnswer {
    /// The user.
    pub user: String,
    /// The hash bucket of the user, 0 to 99999.
    pub bucket: u64,
    /// The side to which the user belongs.
    pub expected: Side,
    /// The side that answered.
    pub found: Side,
    /// The time at which the answer was complete.
    pub at_ms: f64,
}

/// Compares each answer with the oracle. The records are sorted by user.
pub(super) fn check_hash(records: &[Record], oracle: &Oracle, history: &History) -> HashCheck {
    let mut check = HashCheck::default();
    for of_user in records.chunk_by(|one, other| one.user == other.user) {
        let user = user_name(of_user[0].user);
        let bucket = oracle.bucket(&user);
        let wrong_before = check.wrong_answers;
        for record in of_user {
            let Some(found) = record.outcome.side() else {
                continue;
            };
            check.checked += 1;
            let sent = record.sent.unwrap_or(record.intended);
            if history
                .percents(oracle.percent(), sent, record.finished)
                .any(|percent| Oracle::side_of(bucket, percent) == found)
            {
                continue;
            }
            check.wrong_answers += 1;
            if check.examples.len() < MOST_EXAMPLES {
                let expected = match found {
                    Side::Legacy => Side::New,
                    Side::New => Side::Legacy,
                };
                check.examples.push(WrongAnswer {
                    user: user.clone(),
                    bucket,
                    expected,
                    found,
                    at_ms: milliseconds(record.finished),
                });
            }
        }
        check.wrong_users += u64::from(check.wrong_answers > wrong_before);
    }
    check
}

impl HashCheck {
    /// Returns the violation in words, if there is one.
    pub fn violation(&self) -> Option<String> {
        let example = self.examples.first()?;
        Some(format!(
            "{} of {} answers came from a side other than the hash says, to {} users, such as {} \
             (bucket {}) on {} at {:.1} ms",
            self.wrong_answers,
            self.checked,
            self.wrong_users,
            example.user,
            example.bucket,
            example.found,
            example.at_ms
        ))
    }
}
