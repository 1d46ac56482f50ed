//! The rules for cases in which the lane is deliberately stricter than the proxy engine, or knows
//! less.
//!
//! These rules are applied to differences that no other rule explains. Some of them concern one
//! header line. Others concern a whole request and the requests after it on the same connection,
//! because an answer that one engine refuses ends the connection.

use crate::differential::case::{After, Case, Request, Script};
use crate::differential::compare::Difference;
use crate::differential::rules::Rule;

/// The header names that the proxy engine capitalises although the client wrote them in lower case.
const CANONICAL: [&str; 12] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "cache-control",
    "date",
    "accept-ranges",
    "age",
    "server",
    "set-cookie",
];

/// Assigns a rule to each difference that has none yet.
pub fn explain(case: &Case, found: &mut [Difference]) {
    let outcomes = |is_meant: fn(&Difference) -> bool| -> Vec<usize> {
        found
            .iter()
            .filter(|difference| difference.what == "client outcome" && is_meant(difference))
            .filter_map(|difference| difference.request)
            .collect()
    };
    let unsent = outcomes(|difference| difference.candidate == "NotSent");
    let is_moved = case.requests.last().is_some_and(|last| {
        last.end == b"\r\n\r\n" && !last.body.is_empty() && declares(last) == Some(last.body.len())
    });
    let reset = found
        .iter()
        .filter(|difference| difference.what == "client body" && is_cut_in_one(difference))
        .filter_map(|difference| difference.request);
    let reset = reset.min().filter(|&at| {
        case.requests
            .get(at)
            .is_some_and(|request| request.script.after == After::Reset)
    });
    let hung = case
        .requests
        .iter()
        .position(|request| request.script.after == After::Hang);
    let is_late = |difference: &Difference| {
        difference.what == "client status line"
            && (difference.reference.contains(" 504 ") != difference.candidate.contains(" 504 "))
    };
    let met_a_hung_one = found
        .iter()
        .filter(|difference| is_late(difference))
        .filter_map(|difference| difference.request)
        .min()
        .filter(|&at| hung.is_some_and(|from| at > from));
    let broken_off = case
        .requests
        .iter()
        .position(|request| has_empty_size(&request.script));
    let odd = case.requests.iter().enumerate().find_map(|(at, request)| {
        Some((
            at,
            of_request(request, case.is_pipelined).or_else(|| of_what_was_before(case, at))?,
        ))
    });
    for difference in found
        .iter_mut()
        .filter(|difference| difference.rule.is_none())
    {
        let Some(at) = difference.request else {
            // Bytes behind a broken answer are part of that answer.
            difference.rule = case
                .requests
                .iter()
                .any(|request| is_cut(&request.script))
                .then_some(Rule::CutAnswer)
                .or(odd.map(|(_, rule)| rule));
            // A superfluous empty line shifts the body, so its last bytes are left over behind it.
            if difference.rule.is_none()
                && is_moved
                && difference.what == "bytes behind the last answer"
                && difference.reference == "\"\""
            {
                difference.rule = Some(Rule::LooseBytes);
            }
            continue;
        };
        let script = case.requests.get(at).map(|request| &request.script);
        difference.rule = script
            .and_then(|script| of_line(script, difference))
            .or_else(|| odd.filter(|(from, _)| at >= *from).map(|(_, rule)| rule));
        // A backend that answers first and reads later must receive the whole body.
        if difference.rule == Some(Rule::EarlyAnswer)
            && difference.what == "backend body"
            && script.is_some_and(|script| !script.refuses())
        {
            difference.rule = None;
        }
        if difference.rule.is_none()
            && broken_off.is_some_and(|from| {
                at == from && is_of_broken_answer(difference) || at > from && unsent.contains(&at)
            })
        {
            difference.rule = Some(Rule::EmptySize);
        }
        // The backend may have received the head if the bad chunk arrived later.
        let is_asked = difference.what == "backend asked" || difference.what == "backend body";
        if difference.rule.is_none()
            && is_asked
            && case.requests.get(at).is_some_and(|request| {
                request.names("transfer-encoding:") && !is_whole_in_chunks(&request.body)
            })
        {
            difference.rule = Some(Rule::BadChunk);
        }
        if difference.rule.is_none() && met_a_hung_one.is_some_and(|from| at >= from) {
            difference.rule = Some(Rule::KeptOrNew);
        }
        if difference.rule.is_none() && reset.is_some_and(|from| at >= from) {
            difference.rule = Some(Rule::CutAnswer);
        }
    }
}

/// Whether a body is complete on one side and cut off on the other. A backend that resets its
/// connection may revoke bytes it has sent.
fn is_cut_in_one(difference: &Difference) -> bool {
    let is_cut = |body: &str| body.starts_with("Cut");
    is_cut(&difference.reference) && is_whole(&difference.candidate)
        || is_whole(&difference.reference) && is_cut(&difference.candidate)
}

fn is_whole(body: &str) -> bool {
    body.starts_with("Whole")
}

/// Returns the rule for one header line, in one direction.
fn of_line(script: &Script, difference: &Difference) -> Option<Rule> {
    let is_absent = difference.candidate == "absent";
    let status = script.answer.get(9..12).unwrap_or_default();
    match difference.what.as_str() {
        "client header date" if script_has(script, b"date") => Some(Rule::BackendDate),
        // After a 101 the client sees the chunks themselves.
        "client body"
            if status == b"101"
                && head(script).contains("chunked")
                && is_whole(&difference.reference)
                && is_whole(&difference.candidate) =>
        {
            Some(Rule::ChunkBoundaries)
        }
        "client interim answers"
            if script_has(script, b"content-length")
                || script_has(script, b"transfer-encoding") =>
        {
            Some(Rule::Framing)
        }
        "client header content-length" if is_absent || difference.reference.contains(", ") => {
            Some(Rule::Framing)
        }
        "client header transfer-encoding" if is_absent && matches!(status, b"204" | b"304") => {
            Some(Rule::Framing)
        }
        "client framing"
            if head(script).contains("content-length") && head(script).contains(", ") =>
        {
            Some(Rule::Framing)
        }
        "backend asked" | "client interim answers" if has_no_final_head(script) => {
            Some(Rule::AskedAgain)
        }
        what => {
            let name = what.strip_prefix("backend spelling of ")?;
            (CANONICAL.contains(&name)
                && difference
                    .reference
                    .eq_ignore_ascii_case(&difference.candidate))
            .then_some(Rule::Capitals)
        }
    }
}

/// Returns the rule for a whole request and the requests after it.
fn of_request(request: &Request, is_pipelined: bool) -> Option<Rule> {
    let script = &request.script;
    let is_kept_or_new = script.closes_kept;
    match () {
        () if is_kept_or_new => Some(Rule::KeptOrNew),
        () if request.has_loose_bytes()
            || declares(request).is_some_and(|length| length < request.body.len()) =>
        {
            Some(Rule::LooseBytes)
        }
        // Pipelined bytes after this request are read as the rest of its body.
        () if is_pipelined
            && declares(request).is_some_and(|length| length > request.body.len()) =>
        {
            Some(Rule::LooseBytes)
        }
        () if !request.body.is_empty() && (script.is_early || !script.before.is_empty()) => {
            Some(Rule::EarlyAnswer)
        }
        () if has_odd_coding(script) => Some(Rule::Coding),
        // The HTTP client of one engine cannot tell where the body ends.
        () if head(script)
            .lines()
            .any(|line| line.starts_with("content-length") && line.contains(',')) =>
        {
            Some(Rule::Framing)
        }
        () => None,
    }
}

/// Returns the rule for a request that is pipelined behind an answer whose backend closes without
/// notice. Such a request meets either that connection or a new one.
fn of_what_was_before(case: &Case, at: usize) -> Option<Rule> {
    let before = case.requests.get(at.checked_sub(1)?)?;
    (case.is_pipelined && before.script.after != After::Keep).then_some(Rule::KeptOrNew)
}

/// Returns the declared length of the body.
fn declares(request: &Request) -> Option<usize> {
    request.lines.iter().find_map(|line| {
        let line = String::from_utf8_lossy(line).to_ascii_lowercase();
        line.strip_prefix("content-length:")?
            .trim()
            .parse::<usize>()
            .ok()
    })
}

fn head(script: &Script) -> String {
    let end = script
        .answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or(script.answer.len());
    String::from_utf8_lossy(&script.answer[..end]).to_ascii_lowercase()
}

fn script_has(script: &Script, name: &[u8]) -> bool {
    let name = String::from_utf8_lossy(name).into_owned();
    let before = String::from_utf8_lossy(&script.before).to_ascii_lowercase();
    format!("{before}\r\n{}", head(script)).lines().any(|line| {
        line.split(':')
            .next()
            .is_some_and(|found| found.trim() == name)
    })
}

/// Whether the transfer coding of an answer is anything other than `chunked`, given once.
fn has_odd_coding(script: &Script) -> bool {
    // A folded line counts as one line.
    let head = head(script).replace("\r\n ", " ").replace("\r\n\t", " ");
    let codings: Vec<&str> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "transfer-encoding")
        .map(|(_, value)| value.trim())
        .collect();
    !codings.is_empty() && codings != ["chunked"]
}

/// Whether an answer has an empty line in place of a chunk size.
fn has_empty_size(script: &Script) -> bool {
    let begin = script
        .answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .filter(|_| head(script).contains("chunked"));
    begin.is_some_and(|begin| has_empty_line_for_size(&script.answer[begin + 4..]))
}

fn has_empty_line_for_size(chunks: &[u8]) -> bool {
    let mut rest = chunks;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = rest[..end]
            .split(|&byte| byte == b';')
            .next()
            .and_then(|size| std::str::from_utf8(size).ok())
            .unwrap_or_default();
        match usize::from_str_radix(size, 16) {
            Ok(size @ 1..) => {
                rest = size
                    .checked_add(end + 4)
                    .and_then(|next| rest.get(next..))
                    .unwrap_or_default();
            }
            _ => return end == 0,
        }
    }
    false
}

/// Whether these bytes start with a complete chunked body.
fn is_whole_in_chunks(chunks: &[u8]) -> bool {
    let mut rest = chunks;
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = rest[..end]
            .split(|&byte| byte == b';')
            .next()
            .and_then(|size| std::str::from_utf8(size).ok())
            .unwrap_or_default();
        let is_size = !rest[..end].iter().any(u8::is_ascii_control)
            && size
                .trim_ascii_end()
                .bytes()
                .all(|byte| byte.is_ascii_hexdigit());
        match usize::from_str_radix(size.trim_ascii_end(), 16) {
            Ok(0) if is_size => return true,
            Ok(size) if is_size => match size
                .checked_add(end + 2)
                .and_then(|at| rest.get(at..))
                .and_then(|rest| rest.strip_prefix(b"\r\n"))
            {
                Some(next) => rest = next,
                None => return false,
            },
            _ => return false,
        }
    }
    false
}

/// Whether the candidate cut off an answer that the reference completed: the client received less
/// of the same answer, and then the end of the connection.
fn is_of_broken_answer(difference: &Difference) -> bool {
    match difference.what.as_str() {
        "client body" => {
            difference.reference.starts_with("Whole") && difference.candidate.starts_with("Cut")
        }
        "client connection closed" => difference.candidate == "true",
        "client trailers" => difference.candidate.is_empty(),
        _ => false,
    }
}

/// Whether the connection ends before the head of a final answer is complete.
fn has_no_final_head(script: &Script) -> bool {
    let text = String::from_utf8_lossy(&script.answer);
    let is_final = |head: &str| head.get(9..10).is_some_and(|class| class != "1");
    script.after != After::Keep
        && !text
            .split_inclusive("\r\n\r\n")
            .any(|head| head.ends_with("\r\n\r\n") && is_final(head))
}

fn is_cut(script: &Script) -> bool {
    script.after != After::Keep || head(script).contains("chunked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(what: &str, reference: &str, candidate: &str) -> Difference {
        Difference {
            request: Some(0),
            what: what.to_owned(),
            reference: reference.to_owned(),
            candidate: candidate.to_owned(),
            rule: None,
        }
    }

    fn explained(answer: &str, change: impl Fn(&mut Request), found: Difference) -> Option<Rule> {
        let mut request = Request::raw(b"GET / HTTP/1.1\r\n".to_vec());
        request.script.answer = answer.as_bytes().to_vec();
        change(&mut request);
        let mut found = [found];
        explain(
            &Case {
                number: 1,
                requests: vec![request],
                is_pipelined: false,
            },
            &mut found,
        );
        found[0].rule
    }

    #[test]
    fn only_a_backend_that_resets_may_revoke_sent_bytes() {
        let judged = |after: After, reference: &str| {
            let mut requests = vec![
                Request::raw(b"GET / HTTP/1.1\r\n".to_vec()),
                Request::raw(b"GET / HTTP/1.1\r\n".to_vec()),
            ];
            requests[0].script.after = after;
            requests[0].script.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec();
            let mut found = [
                difference("client body", reference, "Cut, 1 bytes"),
                Difference {
                    request: Some(1),
                    ..difference("client outcome", "Answered", "NotSent")
                },
            ];
            explain(
                &Case {
                    number: 1,
                    requests,
                    is_pipelined: false,
                },
                &mut found,
            );
            found.map(|difference| difference.rule)
        };
        assert_eq!(
            judged(After::Reset, "Whole, 2 bytes"),
            [Some(Rule::CutAnswer); 2]
        );
        assert_eq!(judged(After::Keep, "Whole, 2 bytes"), [None; 2]);
        assert_eq!(judged(After::Reset, "Silent, 0 bytes"), [None; 2]);
    }

    #[test]
    fn after_a_silent_backend_an_engine_may_use_its_connection_or_a_new_one() {
        let judged = |after: After, reference: &str| {
            let mut requests = vec![
                Request::raw(b"GET / HTTP/1.1\r\n".to_vec()),
                Request::raw(b"GET / HTTP/1.1\r\n".to_vec()),
            ];
            requests[0].script.after = after;
            let mut found = ["client status line", "client body"].map(|what| Difference {
                request: Some(1),
                ..difference(what, reference, "HTTP/1.1 200 OK")
            });
            explain(
                &Case {
                    number: 1,
                    requests,
                    is_pipelined: false,
                },
                &mut found,
            );
            found.map(|difference| difference.rule)
        };
        assert_eq!(
            judged(After::Hang, "HTTP/1.1 504 Gateway Timeout"),
            [Some(Rule::KeptOrNew); 2]
        );
        assert_eq!(
            judged(After::Keep, "HTTP/1.1 504 Gateway Timeout"),
            [None; 2]
        );
        assert_eq!(judged(After::Hang, "HTTP/1.1 502 Bad Gateway"), [None; 2]);
    }

    #[test]
    fn the_end_of_a_body_shifted_by_an_empty_line_is_loose() {
        let judged = |end: &[u8], length: &str, reference: &str| {
            let mut request = Request {
                end: end.to_vec(),
                body: b"body".to_vec(),
                ..Request::raw(b"POST / HTTP/1.1\r\n".to_vec())
            };
            request.lines = vec![format!("Content-Length: {length}\r\n").into_bytes()];
            let mut found = [Difference {
                request: None,
                ..difference(
                    "bytes behind the last answer",
                    reference,
                    "\"HTTP/1.1 400 Bad Request\"",
                )
            }];
            explain(
                &Case {
                    number: 1,
                    requests: vec![request],
                    is_pipelined: false,
                },
                &mut found,
            );
            found[0].rule
        };
        assert_eq!(judged(b"\r\n\r\n", "4", "\"\""), Some(Rule::LooseBytes));
        assert_eq!(judged(b"\r\n", "4", "\"\""), None);
        assert_eq!(judged(b"\r\n\r\n", "6", "\"\""), None);
        assert_eq!(judged(b"\r\n\r\n", "4", "\"x\""), None);
    }

    #[test]
    fn an_early_answer_still_needs_the_whole_body_unless_it_refuses() {
        let judged = |answer: &'static str, after: After, what: &str| {
            let early = |request: &mut Request| {
                request.body = b"body".to_vec();
                request.lines = vec![b"Content-Length: 4\r\n".to_vec()];
                (request.script.is_early, request.script.after) = (true, after);
            };
            explained(
                answer,
                early,
                difference(what, "Whole, 4 bytes", "Cut, 1 bytes"),
            )
        };
        assert_eq!(
            judged("HTTP/1.1 202 Accepted\r\n\r\n", After::Keep, "backend body"),
            None
        );
        assert_eq!(
            judged(
                "HTTP/1.1 202 Accepted\r\n\r\n",
                After::Keep,
                "client connection closed"
            ),
            Some(Rule::EarlyAnswer)
        );
        assert_eq!(
            judged(
                "HTTP/1.1 202 Accepted\r\n\r\n",
                After::Close,
                "backend body"
            ),
            Some(Rule::EarlyAnswer)
        );
        assert_eq!(
            judged(
                "HTTP/1.1 413 Content Too Large\r\n\r\n",
                After::Keep,
                "backend body"
            ),
            Some(Rule::EarlyAnswer)
        );
    }

    #[test]
    fn each_rule_applies_only_where_it_is_meant_to() {
        let plain = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let keep = |_: &mut Request| ();
        assert_eq!(
            explained(plain, keep, difference("client status line", "a", "b")),
            None
        );
        assert_eq!(
            explained(
                plain,
                keep,
                difference("client header x-a", "\"1\"", "absent")
            ),
            None
        );
        assert_eq!(
            explained(plain, keep, difference("client header date", "a", "b")),
            None
        );
        assert_eq!(
            explained(
                "HTTP/1.1 200 OK\r\nDate: x\r\n\r\n",
                keep,
                difference("client header date", "a", "b")
            ),
            Some(Rule::BackendDate)
        );
        assert_eq!(
            explained(
                plain,
                keep,
                difference("client header content-length", "\"2\", \"2\"", "\"2\"")
            ),
            Some(Rule::Framing)
        );
        assert_eq!(
            explained(
                plain,
                keep,
                difference("client header content-length", "\"2\"", "\"3\"")
            ),
            None
        );
        assert_eq!(
            explained(
                plain,
                keep,
                difference("backend spelling of host", "Host", "host")
            ),
            Some(Rule::Capitals)
        );
        assert_eq!(
            explained(
                plain,
                keep,
                difference("backend spelling of x-a", "X-A", "x-a")
            ),
            None
        );
        assert_eq!(
            explained(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n",
                keep,
                difference("client status line", "a", "b")
            ),
            Some(Rule::Coding)
        );
        assert_eq!(
            explained(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n x-a: 1\r\n\r\n",
                keep,
                difference("client status line", "a", "b")
            ),
            Some(Rule::Coding)
        );
        assert_eq!(
            explained(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: 1\r\n 2\r\n\r\n",
                keep,
                difference("client status line", "a", "b")
            ),
            None
        );
        assert_eq!(
            explained(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n",
                keep,
                difference("client status line", "a", "b")
            ),
            None
        );
        assert_eq!(
            explained(
                plain,
                |request| request.script.closes_kept = true,
                difference("client status line", "a", "b")
            ),
            Some(Rule::KeptOrNew)
        );
        assert_eq!(
            explained(
                plain,
                |request| request.body = b"loose".to_vec(),
                difference("client status line", "a", "b")
            ),
            Some(Rule::LooseBytes)
        );
        let (cut, whole) = (
            "Cut, 0 bytes: \"\"...\"\"",
            "Whole, 2 bytes: \"ok\"...\"ok\"",
        );
        let empty =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n\r\nx: 1\r\n\r\n";
        assert_eq!(
            explained(empty, keep, difference("client body", whole, cut)),
            Some(Rule::EmptySize)
        );
        assert_eq!(
            explained(
                &empty.replace("\r\n\r\nx:", "\r\n0\r\nx:"),
                keep,
                difference("client body", whole, cut)
            ),
            None
        );
        assert_eq!(
            explained(empty, keep, difference("client body", cut, whole)),
            None
        );
        assert_eq!(
            explained(empty, keep, difference("client body", whole, whole)),
            None
        );
        assert_eq!(
            explained(empty, keep, difference("client status line", "a", "b")),
            None
        );
        let switched = "HTTP/1.1 101 Switching Protocols\r\ntransfer-encoding: \
                        chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(
            explained(
                switched,
                keep,
                difference("client body", "Whole, 12 bytes", "Whole, 17 bytes")
            ),
            Some(Rule::ChunkBoundaries)
        );
        assert_eq!(
            explained(switched, keep, difference("client body", whole, cut)),
            None
        );
        assert_eq!(
            explained(
                &switched.replace("101", "200"),
                keep,
                difference("client body", "Whole, 12 bytes", "Whole, 17 bytes")
            ),
            None
        );
        let asked = |body: &'static str| {
            move |request: &mut Request| {
                request.lines = vec![b"Transfer-Encoding: chunked\r\n".to_vec()];
                request.body = body.as_bytes().to_vec();
            }
        };
        for (body, rule) in [
            ("3\r\nabc\r\n\r\nhello", Some(Rule::BadChunk)),
            ("0x3\r\nabc\r\n0\r\n\r\n", Some(Rule::BadChunk)),
            ("3;x \r\nabc\r\n0\r\n\r\n", None),
        ] {
            assert_eq!(
                explained(plain, asked(body), difference("backend asked", "0", "1")),
                rule,
                "{body}"
            );
            assert_eq!(
                explained(
                    plain,
                    asked(body),
                    difference("client status line", "a", "b")
                ),
                None,
                "{body}"
            );
        }
        let with_length = |request: &mut Request| {
            request.lines = vec![b"Content-Length: 5\r\n".to_vec()];
            request.body = b"whole".to_vec();
        };
        assert_eq!(
            explained(
                plain,
                with_length,
                difference("client status line", "a", "b")
            ),
            None
        );
    }
}
