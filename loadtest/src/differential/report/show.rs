//! The readable form of a case and of what two engines made of it.

use crate::differential::case::{Case, Request};
use crate::differential::compare::{Difference, Observation, shown};
use crate::differential::wire::{Body, Head};
use std::fmt::Write;

/// Formats the case, both conversations, and the differences. Writing to a string does not fail.
pub fn conversations(
    case: &Case,
    names: [&str; 2],
    observations: [&Observation; 2],
    differences: &[Difference],
) -> String {
    let mut text = said(case);
    for (name, observation) in names.iter().zip(observations) {
        let _ = writeln!(text, "  --- {name}");
        observed(&mut text, observation);
    }
    let _ = writeln!(text, "  --- differences ({} | {})", names[0], names[1]);
    for Difference {
        request,
        what,
        reference,
        candidate,
        rule,
    } in differences
    {
        let at = request
            .map(|at| format!("request {at}: "))
            .unwrap_or_default();
        let why = rule
            .map(|rule| format!(" [{}]", rule.name()))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "  {at}{what}{why}\n      {reference}\n      {candidate}"
        );
    }
    text
}

/// Formats what a client sends, and how it is answered.
fn said(case: &Case) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "  case {}{}",
        case.number,
        if case.is_pipelined {
            ", all requests at once"
        } else {
            ""
        }
    );
    for (at, request) in case.requests.iter().enumerate() {
        let Request {
            start,
            lines,
            end,
            body,
            writes,
            is_last_word,
            awaits_continue,
            script,
            ..
        } = request;
        let notes = [
            (*is_last_word, "then ends its side"),
            (*awaits_continue, "waits for 100"),
        ]
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, note)| *note)
        .collect::<Vec<_>>()
        .join(", ");
        let _ = writeln!(
            text,
            "  request {at}, in {} writes ({:?}) {notes}",
            writes.cuts.len() + 1,
            writes.pause
        );
        for line in [start].into_iter().chain(lines).chain([end]) {
            let _ = writeln!(text, "    > {}", shown(line));
        }
        if !body.is_empty() {
            let _ = writeln!(text, "    > {}", shown(body));
        }
        let notes = [
            (script.is_early, "before the body is read"),
            (script.closes_kept, "or closes a kept connection"),
        ]
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, note)| *note)
        .collect::<Vec<_>>()
        .join(", ");
        let _ = writeln!(
            text,
            "    backend, in {} writes ({:?}), then {:?} {notes}",
            script.writes.cuts.len() + 1,
            script.writes.pause,
            script.after
        );
        if !script.before.is_empty() {
            let _ = writeln!(text, "    < {}", shown(&script.before));
        }
        let head = script
            .answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .map_or(script.answer.len(), |at| at + 4);
        let _ = writeln!(
            text,
            "    < {}\n    < {}",
            script.answer[..head].escape_ascii(),
            shown(&script.answer[head..])
        );
    }
    text
}

fn observed(text: &mut String, observation: &Observation) {
    for arrival in &observation.arrivals {
        let request = arrival
            .request
            .map_or("without a code".to_owned(), |at| format!("request {at}"));
        let _ = writeln!(text, "  backend got {request}, {:?}", arrival.framing);
        head_and_body(text, &arrival.head, &arrival.body);
    }
    for (at, reply) in observation.client.replies.iter().enumerate() {
        let closed = if reply.is_closed { ", then closed" } else { "" };
        let _ = writeln!(
            text,
            "  client got for request {at}: {:?}, {:?}{closed}",
            reply.outcome, reply.framing
        );
        for interim in &reply.interim {
            head_and_body(text, interim, &Body::default());
        }
        if !reply.head.start.is_empty() {
            head_and_body(text, &reply.head, &reply.body);
        }
    }
    if !observation.client.surplus.is_empty() {
        let _ = writeln!(
            text,
            "  client got behind that: {}",
            shown(&observation.client.surplus)
        );
    }
}

fn head_and_body(text: &mut String, head: &Head, body: &Body) {
    let _ = writeln!(text, "    {}", shown(&head.start));
    for field in &head.fields {
        let _ = writeln!(text, "    {}: {}", shown(&field.name), shown(&field.value));
    }
    let _ = writeln!(
        text,
        "    ({:?}, {} bytes, {} chunks) {}",
        body.ending,
        body.bytes.len(),
        body.chunks.len(),
        shown(&body.bytes)
    );
    for trailer in &body.trailers {
        let _ = writeln!(
            text,
            "    trailer {}: {}",
            shown(&trailer.name),
            shown(&trailer.value)
        );
    }
}
