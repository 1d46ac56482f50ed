//! The reduction of a case to a smaller one that still differs, so that its reader has less to
//! consider.
//!
//! The search is greedy and bounded. Requests are removed first, then splits into writes, then
//! lines one by one, then bodies. Each attempt plays the case on both engines. A case whose
//! difference is intermittent counts as small enough when the difference does not show once.

use crate::differential::case::{Case, Request, Writes};
use std::time::{Duration, Instant};

/// The most plays for one case.
const MOST_TRIES: usize = 80;
/// The longest time spent on one case.
const LONGEST: Duration = Duration::from_secs(20);

/// Reduces a case as long as `differs` holds.
pub async fn shrink<F: Future<Output = bool>>(
    case: Case,
    mut differs: impl FnMut(Case) -> F,
) -> Case {
    let mut smallest = case;
    let (begun, mut tries) = (Instant::now(), 0);
    let mut at = 0;
    loop {
        // After a successful step another item is at the same place.
        let Some(candidate) = step(&smallest, at) else {
            return smallest;
        };
        match candidate {
            Some(candidate) if candidate != smallest => {
                tries += 1;
                if tries > MOST_TRIES || begun.elapsed() > LONGEST {
                    return smallest;
                }
                if differs(candidate.clone()).await {
                    smallest = candidate;
                } else {
                    at += 1;
                }
            }
            _ => at += 1,
        }
    }
}

/// Returns the case with one item less. Returns `None` if no such step is left, and `Some(None)` if
/// the step does not apply.
fn step(case: &Case, at: usize) -> Option<Option<Case>> {
    let requests = case.requests.len();
    if at < requests {
        // The last requests are removed first. The first request is always kept.
        let gone = requests - 1 - at;
        return Some((requests > 1 && gone > 0).then(|| without_request(case, gone)));
    }
    let mut left = at - requests;
    for (which, request) in case.requests.iter().enumerate() {
        let changes = 3 + request.lines.len();
        if left < changes {
            return Some(changed(request, left).map(|request| {
                let mut case = case.clone();
                if let Some(place) = case.requests.get_mut(which) {
                    *place = request;
                }
                case
            }));
        }
        left -= changes;
    }
    None
}

/// Returns the case without the requests from `gone` on. Only the last requests can be removed,
/// because a request's code holds its place in the case.
fn without_request(case: &Case, gone: usize) -> Case {
    let mut case = case.clone();
    case.requests.truncate(gone);
    case
}

fn changed(request: &Request, which: usize) -> Option<Request> {
    let mut request = request.clone();
    match which {
        0 => {
            request.writes = if request.awaits_continue {
                Writes {
                    cuts: vec![request.head().len()],
                    ..Writes::default()
                }
            } else {
                Writes::default()
            }
        }
        1 => request.script.writes = Writes::default(),
        2 => request.script.before.clear(),
        line => {
            let line = line - 3;
            if request
                .lines
                .get(line)
                .is_none_or(|line| Request::is_code(line))
            {
                return None;
            }
            request.lines.remove(line);
            request.writes.cuts.clear();
            request.awaits_continue = false;
        }
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::generate;

    #[tokio::test]
    async fn irrelevant_parts_of_a_case_are_removed() {
        let mut case = generate::case(1, 1, 0);
        case.requests.truncate(1);
        case.requests[0]
            .lines
            .extend((0..10).map(|at| format!("X-{at}: 1\r\n").into_bytes()));
        case.requests.push(case.requests[0].clone());
        let matters = |case: &Case| {
            case.requests[0]
                .lines
                .iter()
                .any(|line| line == b"X-7: 1\r\n")
        };
        let small = shrink(case, |case| {
            let matters = matters(&case);
            async move { matters }
        })
        .await;
        assert_eq!(
            (small.requests.len(), small.requests[0].lines.len()),
            (1, 2),
            "{small:?}"
        );
    }
}
