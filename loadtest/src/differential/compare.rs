//! The comparison of what two engines made of the same case.
//!
//! Both ends are compared. For every request: what arrived at the backend, how often, and in which
//! framing. For every answer: what the client received and whether the connection stayed open.
//! Deliberately absent: time, the number of connections to the backend, and how bytes were split
//! into segments. No client or backend may rely on those.

use crate::differential::backend::Arrival;
use crate::differential::case::{ANSWERED, Case, Request, decode};
use crate::differential::client::{Replies, Reply};
use crate::differential::rules::Rule;
use crate::differential::rules::allowed::explain;
use crate::differential::wire::{Body, Ending, Field, Framing, Head};
use std::collections::BTreeSet;
use std::fmt::Debug;

/// What was observed when one engine handled a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// What the client received.
    pub client: Replies,
    /// What the backend received.
    pub arrivals: Vec<Arrival>,
}

/// One difference between the engines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The index of the request, counted from 0. `None` for a difference that belongs to no
    /// request.
    pub request: Option<usize>,
    /// The subject of the difference, such as `backend header x-a`.
    pub what: String,
    /// The value of the reference.
    pub reference: String,
    /// The value of the candidate.
    pub candidate: String,
    /// The rule that allows the difference. `None` if no rule allows it.
    pub rule: Option<Rule>,
}

impl Observation {
    /// Returns an answer that belongs to another case, if the client received one. Such an answer
    /// is wrong even if both engines agree on it.
    pub fn crossed(&self, case: &Case) -> Option<String> {
        let heads = self.client.replies.iter().map(|reply| &reply.head);
        let foreign = |code: &&[u8]| decode(code).is_some_and(|(number, _)| number != case.number);
        heads
            .flat_map(|head| head.values(ANSWERED))
            .find(foreign)
            .map(shown)
    }
}

/// Returns all differences, explained or not.
pub fn compare(case: &Case, reference: &Observation, candidate: &Observation) -> Vec<Difference> {
    if reference == candidate {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (at, request) in case.requests.iter().enumerate() {
        let mut judge = Judge {
            request,
            at: Some(at),
            found: &mut found,
        };
        let (before, after) = (
            reference.client.replies.get(at),
            candidate.client.replies.get(at),
        );
        if let (Some(before), Some(after)) = (before, after) {
            judge.reply(before, after);
        }
        let of = |observation: &Observation| {
            observation
                .arrivals
                .iter()
                .filter(|arrival| arrival.request == Some(at))
                .cloned()
                .collect::<Vec<_>>()
        };
        let (before, after) = (of(reference), of(candidate));
        judge.same("backend asked", &before.len(), &after.len());
        for (before, after) in before.iter().zip(&after) {
            judge.arrival(before, after);
        }
    }
    let strays = |observation: &Observation| {
        observation
            .arrivals
            .iter()
            .filter(|arrival| arrival.request.is_none_or(|at| at >= case.requests.len()))
            .map(|arrival| shown(&arrival.head.start))
            .collect::<Vec<_>>()
    };
    let mut all = Overall(&mut found);
    all.same(
        "requests without a code at the backend",
        &strays(reference),
        &strays(candidate),
    );
    all.same(
        "bytes behind the last answer",
        &shown(&reference.client.surplus),
        &shown(&candidate.client.surplus),
    );
    explain(case, &mut found);
    found
}

struct Overall<'a>(&'a mut Vec<Difference>);

impl Overall<'_> {
    fn same<T: PartialEq + Debug>(&mut self, what: &str, reference: &T, candidate: &T) {
        if reference != candidate {
            self.0.push(Difference {
                request: None,
                what: what.to_owned(),
                reference: format!("{reference:?}"),
                candidate: format!("{candidate:?}"),
                rule: None,
            });
        }
    }
}

struct Judge<'a> {
    request: &'a Request,
    at: Option<usize>,
    found: &'a mut Vec<Difference>,
}

impl Judge<'_> {
    fn differ(
        &mut self,
        what: impl Into<String>,
        reference: impl Into<String>,
        candidate: impl Into<String>,
        rule: Option<Rule>,
    ) {
        self.found.push(Difference {
            request: self.at,
            what: what.into(),
            reference: reference.into(),
            candidate: candidate.into(),
            rule,
        });
    }

    fn same<T: PartialEq + Debug>(&mut self, what: &str, reference: &T, candidate: &T) {
        if reference != candidate {
            self.differ(
                what,
                format!("{reference:?}"),
                format!("{candidate:?}"),
                None,
            );
        }
    }

    fn same_bytes(&mut self, what: &str, reference: &[u8], candidate: &[u8]) {
        if reference != candidate {
            self.differ(what, shown(reference), shown(candidate), None);
        }
    }

    fn reply(&mut self, reference: &Reply, candidate: &Reply) {
        self.same("client outcome", &reference.outcome, &candidate.outcome);
        let interim = |reply: &Reply| {
            reply
                .interim
                .iter()
                .map(|head| (shown(&head.start), head.fields.clone()))
                .collect::<Vec<_>>()
        };
        let (before, after) = (interim(reference), interim(candidate));
        if before != after {
            let said =
                |heads: &[Head]| heads.iter().map(shown_head).collect::<Vec<_>>().join(" | ");
            self.differ(
                "client interim answers",
                said(&reference.interim),
                said(&candidate.interim),
                None,
            );
        }
        self.same_bytes(
            "client status line",
            &reference.head.start,
            &candidate.head.start,
        );
        let request = self.request;
        let start = reference.head.start.clone();
        self.fields(
            "client",
            &reference.head,
            &candidate.head,
            |name, before, after| {
                Rule::of_answer_line(&request.script, &start, name, before, after)
            },
        );
        self.same(
            "client framing",
            &reference.framing.map(kind),
            &candidate.framing.map(kind),
        );
        let rule = Rule::of_answer_body(&reference.body, &candidate.body);
        self.body("client", &reference.body, &candidate.body, rule);
        if reference.body.trailers != candidate.body.trailers {
            self.differ(
                "client trailers",
                shown_fields(&reference.body.trailers),
                shown_fields(&candidate.body.trailers),
                None,
            );
        }
        if reference.body.extensions != candidate.body.extensions {
            self.differ(
                "client chunk extensions",
                format!("{:?}", reference.body.extensions),
                format!("{:?}", candidate.body.extensions),
                None,
            );
        }
        self.same(
            "client connection closed",
            &reference.is_closed,
            &candidate.is_closed,
        );
    }

    fn arrival(&mut self, reference: &Arrival, candidate: &Arrival) {
        self.same_bytes(
            "backend request line",
            &reference.head.start,
            &candidate.head.start,
        );
        let request = self.request;
        self.fields(
            "backend",
            &reference.head,
            &candidate.head,
            |name, before, after| Rule::of_request_line(request, name, before, after),
        );
        self.same(
            "backend framing",
            &kind(reference.framing),
            &kind(candidate.framing),
        );
        let rule = Rule::of_request_body(request, &reference.body, &candidate.body);
        self.body("backend", &reference.body, &candidate.body, rule);
        if reference.body.trailers != candidate.body.trailers {
            self.differ(
                "backend trailers",
                shown_fields(&reference.body.trailers),
                shown_fields(&candidate.body.trailers),
                None,
            );
        }
        self.same(
            "backend chunk extensions",
            &reference.body.extensions,
            &candidate.body.extensions,
        );
    }

    fn body(&mut self, end: &str, reference: &Body, candidate: &Body, rule: Option<Rule>) {
        if reference.bytes != candidate.bytes || reference.ending != candidate.ending {
            self.differ(
                format!("{end} body"),
                shown_body(reference),
                shown_body(candidate),
                rule,
            );
        } else if reference.chunks != candidate.chunks
            && reference.ending == Ending::Whole
            && !reference.chunks.is_empty()
            && !candidate.chunks.is_empty()
        {
            self.differ(
                format!("{end} chunks"),
                format!("{} chunks", reference.chunks.len()),
                format!("{} chunks", candidate.chunks.len()),
                Some(Rule::ChunkBoundaries),
            );
        }
    }

    fn fields(
        &mut self,
        end: &str,
        reference: &Head,
        candidate: &Head,
        rule: impl Fn(&[u8], &[&[u8]], &[&[u8]]) -> Option<Rule>,
    ) {
        if reference.fields == candidate.fields {
            return;
        }
        let names: BTreeSet<Vec<u8>> = reference
            .fields
            .iter()
            .chain(&candidate.fields)
            .map(|field| field.name.to_ascii_lowercase())
            .collect();
        let mut is_all_the_same = true;
        for name in &names {
            let of = |head: &'_ Head| {
                head.fields
                    .iter()
                    .filter(|field| field.name.eq_ignore_ascii_case(name))
                    .cloned()
                    .collect::<Vec<Field>>()
            };
            let (before, after) = (of(reference), of(candidate));
            let values = |fields: &[Field]| {
                fields
                    .iter()
                    .map(|field| field.value.clone())
                    .collect::<Vec<_>>()
            };
            let (before_values, after_values) = (values(&before), values(&after));
            if before_values != after_values {
                is_all_the_same = false;
                let (before, after): (Vec<&[u8]>, Vec<&[u8]>) = (
                    before_values.iter().map(Vec::as_slice).collect(),
                    after_values.iter().map(Vec::as_slice).collect(),
                );
                let why = rule(name, &before, &after);
                self.differ(
                    format!("{end} header {}", shown(name)),
                    shown_values(&before),
                    shown_values(&after),
                    why,
                );
                continue;
            }
            let spelled = |fields: &[Field]| {
                fields
                    .iter()
                    .map(|field| shown(&field.name))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            if before
                .iter()
                .map(|field| &field.name)
                .ne(after.iter().map(|field| &field.name))
            {
                is_all_the_same = false;
                self.differ(
                    format!("{end} spelling of {}", shown(name)),
                    spelled(&before),
                    spelled(&after),
                    None,
                );
            }
        }
        let order = |head: &Head| {
            head.fields
                .iter()
                .map(|field| field.name.to_ascii_lowercase())
                .collect::<Vec<_>>()
        };
        let (before, after) = (order(reference), order(candidate));
        if is_all_the_same || before.len() == after.len() && before != after {
            let said = |order: &[Vec<u8>]| shown(&order.join(&b", "[..]));
            self.differ(
                format!("{end} order of lines"),
                said(&before),
                said(&after),
                Some(Rule::LineOrder),
            );
        }
    }
}

fn kind(framing: Framing) -> &'static str {
    match framing {
        Framing::None => "none",
        Framing::Length(_) => "length",
        Framing::Chunked => "chunked",
        Framing::UntilClose => "until close",
    }
}

/// Formats bytes for a reader, and shortens long ones.
pub fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 300;
    let text = bytes[..bytes.len().min(MOST)].escape_ascii().to_string();
    if bytes.len() > MOST {
        format!("{text}... ({} bytes)", bytes.len())
    } else {
        text
    }
}

fn shown_values(values: &[&[u8]]) -> String {
    match values {
        [] => "absent".to_owned(),
        values => values
            .iter()
            .map(|value| format!("\"{}\"", shown(value)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn shown_fields(fields: &[Field]) -> String {
    fields
        .iter()
        .map(|field| format!("{}: {}", shown(&field.name), shown(&field.value)))
        .collect::<Vec<_>>()
        .join("; ")
}

fn shown_head(head: &Head) -> String {
    format!("{} [{}]", shown(&head.start), shown_fields(&head.fields))
}

fn shown_body(body: &Body) -> String {
    let (begin, end) = (
        &body.bytes[..body.bytes.len().min(60)],
        &body.bytes[body.bytes.len().saturating_sub(20)..],
    );
    format!(
        "{:?}, {} bytes: \"{}\"...\"{}\"",
        body.ending,
        body.bytes.len(),
        begin.escape_ascii(),
        end.escape_ascii()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::case::{Pause, Script, Writes};
    use crate::differential::client::Outcome;

    const REQUEST: &str = "GET /w000/p0 HTTP/1.1\r\nHost: w000.test\r\nX-A: 1\r\nx-script: \
                           5.0\r\nx-request-id: 4bf92f3577b34da6a3ce929d0e0e4736\r\n\r\n";
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nx-case: 5.0\r\nDate: Sat, 21 Nov 2026 18:35:45 \
                          GMT\r\nX-A: 1\r\nX-B: 2\r\n\r\n";

    fn case() -> Case {
        let script = Script {
            answer: b"HTTP/1.1 200 OK\r\nx-case: 5.0\r\n\r\n2;ext=1\r\nok\r\n0\r\nx-t: 1\r\n\r\n"
                .to_vec(),
            ..Script::default()
        };
        let request = Request {
            start: b"GET /w000/p0 HTTP/1.1\r\n".to_vec(),
            lines: vec![
                b"Host: w000.test\r\n".to_vec(),
                b"X-A: 1\r\n".to_vec(),
                b"x-script: 5.0\r\n".to_vec(),
            ],
            end: b"\r\n".to_vec(),
            body: Vec::new(),
            writes: Writes {
                cuts: Vec::new(),
                pause: Pause::Nothing,
            },
            is_head: false,
            awaits_continue: false,
            is_last_word: false,
            script,
        };
        Case {
            number: 5,
            requests: vec![request],
            is_pipelined: false,
        }
    }

    fn seen() -> Observation {
        let body = Body {
            bytes: b"ok".to_vec(),
            chunks: vec![2],
            ending: Ending::Whole,
            ..Body::default()
        };
        let reply = Reply {
            outcome: Outcome::Answered,
            head: Head::parse(ANSWER.as_bytes()),
            framing: Some(Framing::Chunked),
            body: body.clone(),
            ..Reply::default()
        };
        let arrival = Arrival {
            request: Some(0),
            head: Head::parse(REQUEST.as_bytes()),
            framing: Framing::None,
            body,
        };
        Observation {
            client: Replies {
                replies: vec![reply],
                surplus: Vec::new(),
            },
            arrivals: vec![arrival],
        }
    }

    /// Returns the differences that are found when the candidate is changed in this way.
    fn found(change: impl Fn(&mut Observation)) -> Vec<(String, Option<Rule>)> {
        let mut candidate = seen();
        change(&mut candidate);
        compare(&case(), &seen(), &candidate)
            .into_iter()
            .map(|difference| (difference.what, difference.rule))
            .collect()
    }

    fn one(what: &str) -> Vec<(String, Option<Rule>)> {
        vec![(what.to_owned(), None)]
    }

    fn by(what: &str, rule: Rule) -> Vec<(String, Option<Rule>)> {
        vec![(what.to_owned(), Some(rule))]
    }

    fn answer(old: &str, new: &str) -> Vec<(String, Option<Rule>)> {
        found(|seen| seen.client.replies[0].head = Head::parse(ANSWER.replace(old, new).as_bytes()))
    }

    fn request(old: &str, new: &str) -> Vec<(String, Option<Rule>)> {
        found(|seen| seen.arrivals[0].head = Head::parse(REQUEST.replace(old, new).as_bytes()))
    }

    #[test]
    fn identical_observations_have_no_difference() {
        assert_eq!(found(|_| {}), []);
    }

    #[test]
    fn everything_that_a_client_receives_is_compared() {
        assert_eq!(
            found(|seen| seen.client.replies[0].outcome = Outcome::Closed),
            one("client outcome")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].interim.push(Head::default())),
            one("client interim answers")
        );
        assert_eq!(answer("200 OK", "200 Ok"), one("client status line"));
        assert_eq!(answer("X-A: 1", "X-A: 2"), one("client header x-a"));
        assert_eq!(answer("X-A: 1\r\n", ""), one("client header x-a"));
        assert_eq!(answer("X-A: 1", "x-a: 1"), one("client spelling of x-a"));
        assert_eq!(
            answer("X-A: 1\r\n", "X-A: 1\r\nX-A: 1\r\n"),
            one("client header x-a")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].framing = Some(Framing::UntilClose)),
            one("client framing")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].body.bytes = b"oh".to_vec()),
            one("client body")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].body.ending = Ending::Cut),
            one("client body")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].is_closed = true),
            one("client connection closed")
        );
        assert_eq!(
            found(|seen| seen.client.surplus = b"x".to_vec()),
            one("bytes behind the last answer")
        );
    }

    #[test]
    fn everything_that_a_backend_receives_is_compared() {
        assert_eq!(found(|seen| seen.arrivals.clear()), one("backend asked"));
        assert_eq!(
            found(|seen| seen.arrivals.push(seen.arrivals[0].clone())),
            one("backend asked")
        );
        assert_eq!(
            found(|seen| seen.arrivals.push(Arrival {
                request: None,
                ..seen.arrivals[0].clone()
            })),
            one("requests without a code at the backend")
        );
        assert_eq!(request("p0", "P0"), one("backend request line"));
        assert_eq!(request("X-A: 1", "X-A: 2"), one("backend header x-a"));
        assert_eq!(request("X-A", "x-a"), one("backend spelling of x-a"));
        assert_eq!(
            found(|seen| seen.arrivals[0].framing = Framing::Chunked),
            one("backend framing")
        );
        assert_eq!(
            found(|seen| seen.arrivals[0].body.bytes = b"o".to_vec()),
            one("backend body")
        );
        assert_eq!(
            found(|seen| seen.arrivals[0].body.trailers.push(Field {
                name: b"x".to_vec(),
                value: Vec::new()
            })),
            one("backend trailers")
        );
    }

    #[test]
    fn only_random_ids_may_differ() {
        assert_eq!(
            request(
                "4bf92f3577b34da6a3ce929d0e0e4736",
                "00000000000000000000000000000001"
            ),
            by("backend header x-request-id", Rule::RequestId)
        );
        assert_eq!(
            request("4bf92f3577b34da6a3ce929d0e0e4736", "1"),
            one("backend header x-request-id")
        );
        assert_eq!(
            request("x-request-id: 4bf92f3577b34da6a3ce929d0e0e4736\r\n", ""),
            one("backend header x-request-id")
        );
    }

    #[test]
    fn dates_keep_alive_and_order_may_differ_by_their_rules() {
        assert_eq!(
            answer("18:35:45", "18:35:46"),
            by("client header date", Rule::Date)
        );
        assert_eq!(
            answer("Sat, 21 Nov 2026 18:35:45 GMT", "now"),
            one("client header date")
        );
        assert_eq!(
            answer("X-A: 1\r\nX-B: 2", "X-B: 2\r\nX-A: 1"),
            by("client order of lines", Rule::LineOrder)
        );
        assert_eq!(
            answer("X-B: 2\r\n", "X-B: 2\r\nconnection: keep-alive\r\n"),
            one("client header connection"),
            "only the reference may say so"
        );
        let mut reference = seen();
        reference.client.replies[0].head = Head::parse(
            ANSWER
                .replace("X-B: 2\r\n", "X-B: 2\r\nconnection: keep-alive\r\n")
                .as_bytes(),
        );
        assert_eq!(
            compare(&case(), &reference, &seen())[0].rule,
            Some(Rule::KeepAliveLine)
        );
        reference.client.replies[0].head = Head::parse(
            ANSWER
                .replace("X-B: 2\r\n", "X-B: 2\r\nconnection: close\r\n")
                .as_bytes(),
        );
        assert_eq!(compare(&case(), &reference, &seen())[0].rule, None);
    }

    #[test]
    fn chunks_may_differ_but_trailers_and_extensions_may_not() {
        assert_eq!(
            found(|seen| seen.client.replies[0].body.chunks = vec![1, 1]),
            by("client chunks", Rule::ChunkBoundaries)
        );
        let trailer = |name: &[u8]| {
            vec![Field {
                name: name.to_vec(),
                value: b"1".to_vec(),
            }]
        };
        assert_eq!(
            found(|seen| seen.client.replies[0].body.trailers = trailer(b"x-t")),
            one("client trailers")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].body.trailers = trailer(b"x-other")),
            one("client trailers")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].body.extensions = vec![b"ext=1".to_vec()]),
            one("client chunk extensions")
        );
        assert_eq!(
            found(|seen| seen.client.replies[0].body.extensions = vec![b"other".to_vec()]),
            one("client chunk extensions")
        );
    }

    #[test]
    fn broken_answers_may_differ_only_in_length() {
        let with = |end: Ending, bytes: &[u8]| {
            let mut seen = seen();
            (
                seen.client.replies[0].body.ending,
                seen.client.replies[0].body.bytes,
            ) = (end, bytes.to_vec());
            (seen.arrivals[0].body.ending, seen.arrivals[0].body.bytes) = (end, bytes.to_vec());
            seen
        };
        let rules = |one: (Ending, &[u8]), other: (Ending, &[u8])| {
            compare(&case(), &with(one.0, one.1), &with(other.0, other.1))
                .iter()
                .map(|difference| difference.rule)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            rules((Ending::Cut, b"ok"), (Ending::Cut, b"o")),
            [Some(Rule::CutAnswer), Some(Rule::CutRequest)]
        );
        assert_eq!(
            rules((Ending::Cut, b"ok"), (Ending::Cut, b"x")),
            [None, None]
        );
        assert_eq!(
            rules((Ending::Whole, b"ok"), (Ending::Cut, b"o")),
            [None, None]
        );
    }

    #[test]
    fn an_answer_of_another_case_is_found_in_a_single_conversation() {
        assert_eq!(seen().crossed(&case()), None);
        assert_eq!(
            seen()
                .crossed(&Case {
                    number: 6,
                    ..case()
                })
                .as_deref(),
            Some("5.0")
        );
    }
}
