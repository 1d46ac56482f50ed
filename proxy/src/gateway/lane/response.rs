//! The head of an answer: the framing of its body, whether the connection can be kept, and which
//! fields are passed on.
//!
//! Backends are less strict than clients may be, and no client can get an answer that was not
//! parsed. So this parser is as lenient as the proxy engine (a fold, a space before a colon, bare
//! line feeds, the same length twice). It writes in one form whatever could be read in two ways.

use std::mem::MaybeUninit;

use http::HeaderName;

use crate::gateway::adapter::timeouts::is_stream;
use crate::gateway::lane::body_decoder::Body;
use crate::gateway::lane::date;
use crate::gateway::lane::header_lines::{Lines, MAX_LINES, Splice};
use crate::gateway::lane::request::Parsed;
use crate::gateway::lane::write_buffer::Scratch;
use crate::gateway::message::head::HOP_BY_HOP;
use crate::gateway::router::{Exchange, Router};

/// The facts about an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// The length of the head in bytes.
    pub(super) head: usize,
    pub(super) status: u16,
    pub(super) body: Body,
    /// Whether the backend would keep the connection, and whether the connection can be trusted
    /// with another request.
    pub(super) keeps: bool,
    framing: Framing,
    /// Whether the head has hop-by-hop fields.
    has_hops: bool,
    has_date: bool,
}

/// The treatment of the fields that frame the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// The fields are kept.
    Stays,
    /// Several fields give this length, and one of them is passed on.
    Agreed(u64),
    /// A transfer coding overrides the length.
    OverridesLength,
    /// The fields are not allowed here.
    Forbidden,
}

/// The head of an answer, as the positions of all parts in the received bytes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response_head: Answered,
    lines: Lines,
    reason: (usize, usize),
}

/// Parses the head at the start of these bytes. `to_head` says whether it answers a HEAD request.
/// `None` when the head is malformed.
pub(super) fn parse(bytes: &[u8], to_head: bool) -> Option<Parsed<Answer>> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut response = httparse::Response::new(&mut []);
    let mut config = httparse::ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true);
    let httparse::Status::Complete(head) = config
        .parse_response_with_uninit_headers(&mut response, bytes, &mut headers)
        .ok()?
    else {
        return Some(Parsed::Partial);
    };
    let status = response
        .code
        .filter(|status| (100..1000).contains(status))?;
    let lines = Lines::read(bytes, response.headers, true);
    let response_head = answered(
        &bytes[..head],
        &lines,
        status,
        response.version == Some(1),
        to_head,
    )?;
    let reason = response
        .reason
        .filter(|reason| !reason.is_empty())
        .map_or((0, 0), |reason| {
            let at = reason.as_ptr() as usize - bytes.as_ptr() as usize;
            (at, at + reason.len())
        });
    Some(Parsed::Whole(Answer {
        response_head,
        lines,
        reason,
    }))
}

/// Returns the length in a list of lengths, if they agree.
fn length(value: &[u8]) -> Option<u64> {
    let number = |digits: &[u8]| {
        let digits = digits.trim_ascii();
        let add = |number: u64, digit: &u8| {
            digit
                .is_ascii_digit()
                .then(|| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
                .flatten()
        };
        digits
            .iter()
            .try_fold(0, add)
            .filter(|_| !digits.is_empty())
    };
    if !value.contains(&b',') {
        return number(value);
    }
    let mut all = value.split(|&byte| byte == b',').map(number);
    let first = all.next()??;
    all.all(|other| other == Some(first)).then_some(first)
}

fn answered(
    bytes: &[u8],
    lines: &Lines,
    status: u16,
    is_current: bool,
    to_head: bool,
) -> Option<Answered> {
    let (mut keeps, mut closes, mut has_hops, mut has_date) = (is_current, false, false, false);
    // The common value of the lengths, if they agree, and the number of lengths.
    let (mut said, mut lengths, mut codings, mut is_chunked) = (None, 0u8, 0u8, false);
    for (name, value) in lines.each(bytes) {
        match name {
            b"date" => has_date = true,
            b"connection" => {
                has_hops = true;
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    keeps |= option.eq_ignore_ascii_case(b"keep-alive");
                    closes |= option.eq_ignore_ascii_case(b"close");
                }
            }
            b"keep-alive" | b"proxy-connection" | b"upgrade" | b"trailer" | b"te" => {
                has_hops = true;
            }
            b"content-length" => {
                let here = length(value);
                said = if lengths == 0 || said == here {
                    here
                } else {
                    None
                };
                lengths = lengths.saturating_add(if value.contains(&b',') { 2 } else { 1 });
            }
            b"transfer-encoding" => {
                codings = codings.saturating_add(1);
                is_chunked = value.eq_ignore_ascii_case(b"chunked");
            }
            _ => {}
        }
    }
    if codings == 0 && lengths > 0 {
        said?;
    }
    let may_be_framed = status >= 200 && status != 204;
    let has_body = may_be_framed && status != 304 && !to_head;
    let body = match (codings, lengths) {
        _ if !has_body => Body::Length(0),
        (0, 0) => Body::Close,
        (0, _) => Body::Length(said.unwrap_or_default()),
        (1, _) if is_chunked => Body::Chunked,
        _ => return None,
    };
    let framing = match (codings, lengths) {
        _ if !may_be_framed => Framing::Forbidden,
        (1.., 1..) => Framing::OverridesLength,
        (0, 2..) => said.map_or(Framing::Stays, Framing::Agreed),
        _ => Framing::Stays,
    };
    // A backend that announces a body where none is allowed may also send one. A backend that
    // frames a body in two ways may mean the other one.
    let is_suspect = match framing {
        Framing::Forbidden => codings > 0 || (lengths > 0 && said != Some(0)),
        Framing::OverridesLength => true,
        Framing::Stays | Framing::Agreed(_) => {
            codings > 0 && !(is_current && codings == 1 && is_chunked)
        }
    };
    Some(Answered {
        head: bytes.len(),
        status,
        body,
        keeps: keeps && !closes && !is_suspect && body != Body::Close,
        framing,
        has_hops,
        has_date,
    })
}

/// The framing of an answer for the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    /// Whether the client's connection is kept.
    pub(super) keeps: bool,
    /// Whether the body is chunked for the client although the backend did not chunk it.
    pub(super) in_chunks: bool,
}

impl Answer {
    /// Writes a final answer, parsed from these bytes, in the form that the client receives.
    pub(super) fn write(
        &self,
        bytes: &[u8],
        sending: Sending,
        router: &Router,
        exchange: &Exchange,
        out: &mut Vec<u8>,
    ) {
        self.splice(bytes, out, |splice| {
            if sending.in_chunks {
                splice.add("Transfer-Encoding", b"chunked");
            }
            router.client_edits(exchange, splice);
            if !self.response_head.has_date {
                date::with(|date| splice.add("Date", date));
            }
            if !sending.keeps {
                splice.add("Connection", b"close");
            }
        });
    }

    /// Returns the first value of a field. The name must be in lower case.
    pub(super) fn value<'a>(&'a self, bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
        self.lines.values(bytes, name).next()
    }

    /// Returns whether the parts of the answer may be far apart, as in an event stream.
    pub(super) fn is_stream(&self, bytes: &[u8]) -> bool {
        !matches!(self.response_head.body, Body::Length(_))
            && is_stream(self.lines.values(bytes, "content-type").next(), false)
    }

    /// Writes an interim answer without the headers that are meant for the proxy alone.
    pub(super) fn write_interim(
        &self,
        bytes: &[u8],
        private: Option<&HeaderName>,
        out: &mut Vec<u8>,
    ) {
        self.splice(bytes, out, |splice| {
            if let Some(name) = private {
                splice.drop_named(name.as_str().as_bytes());
            }
        });
    }

    fn splice(&self, bytes: &[u8], out: &mut Vec<u8>, edit: impl FnOnce(&mut Splice<'_>)) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(
            itoa::Buffer::new()
                .format(self.response_head.status)
                .as_bytes(),
        );
        out.push(b' ');
        out.extend_from_slice(bytes.get(self.reason.0..self.reason.1).unwrap_or_default());
        out.extend_from_slice(b"\r\n");
        let mut added = Scratch::new();
        let mut splice = Splice::new(bytes, &self.lines, &mut added);
        if self.response_head.has_hops {
            self.drop_hops(bytes, &mut splice);
        }
        match self.response_head.framing {
            Framing::Stays => {}
            Framing::OverridesLength => splice.drop_named(b"content-length"),
            Framing::Forbidden => {
                splice.drop_named(b"content-length");
                splice.drop_named(b"transfer-encoding");
            }
            Framing::Agreed(length) => {
                splice.drop_named(b"content-length");
                splice.add(
                    "Content-Length",
                    itoa::Buffer::new().format(length).as_bytes(),
                );
            }
        }
        edit(&mut splice);
        splice.write(out);
    }

    /// Removes the hop-by-hop fields, including those that `Connection` names. Fields that frame
    /// the message are kept.
    fn drop_hops(&self, bytes: &[u8], splice: &mut Splice<'_>) {
        splice.drop_named(b"connection");
        HOP_BY_HOP
            .iter()
            .for_each(|name| splice.drop_named(name.as_str().as_bytes()));
        for option in self
            .lines
            .values(bytes, "connection")
            .flat_map(|value| value.split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
        {
            let is_framing = [&b"content-length"[..], b"transfer-encoding"]
                .into_iter()
                .any(|name| option.eq_ignore_ascii_case(name));
            if !is_framing && !option.is_empty() {
                splice.drop_named(&option.to_ascii_lowercase());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response_head(fields: &str, status: u16, to_head: bool) -> Option<(Body, bool)> {
        let bytes = format!("HTTP/1.1 {status} X\r\n{fields}\r\nbody");
        match parse(bytes.as_bytes(), to_head) {
            Some(Parsed::Whole(answer)) => {
                assert_eq!(answer.response_head.head, bytes.len() - 4);
                Some((answer.response_head.body, answer.response_head.keeps))
            }
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    }

    fn written(bytes: &str) -> String {
        let Some(Parsed::Whole(answer)) = parse(bytes.as_bytes(), false) else {
            panic!("no answer: {bytes:?}")
        };
        let mut out = Vec::new();
        answer.write_interim(bytes.as_bytes(), None, &mut out);
        String::from_utf8(out).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_head_determines_the_framing_of_the_body() {
        for (fields, status, to_head, body, keeps) in [
            ("content-length: 5\r\n", 200, false, Body::Length(5), true),
            (
                "Content-Length: 5\r\nConnection: close\r\n",
                200,
                false,
                Body::Length(5),
                false,
            ),
            (
                "transfer-encoding: Chunked\r\n",
                200,
                false,
                Body::Chunked,
                true,
            ),
            ("", 200, false, Body::Close, false),
            ("content-length: 5\r\n", 200, true, Body::Length(0), true),
            (
                "transfer-encoding: chunked\r\n",
                200,
                true,
                Body::Length(0),
                true,
            ),
            ("", 204, false, Body::Length(0), true),
            ("content-length: 5\r\n", 304, false, Body::Length(0), true),
            (
                "content-length: 5, 5\r\ncontent-length: 5\r\n",
                200,
                false,
                Body::Length(5),
                true,
            ),
            // The connection is not used again: a body may follow, or another length may be meant.
            ("content-length: 5\r\n", 204, false, Body::Length(0), false),
            ("content-length: 0\r\n", 204, false, Body::Length(0), true),
            (
                "transfer-encoding: chunked\r\n",
                204,
                false,
                Body::Length(0),
                false,
            ),
            (
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                200,
                false,
                Body::Chunked,
                false,
            ),
        ] {
            assert_eq!(
                response_head(fields, status, to_head),
                Some((body, keeps)),
                "{fields:?} {status}"
            );
        }
        for bad in [
            "content-length: 5, 6\r\n",
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: -1\r\n",
            "content-length: \r\n",
            "transfer-encoding: gzip, chunked\r\n",
        ] {
            assert_eq!(response_head(bad, 200, false), None, "{bad:?}");
        }
        assert_eq!(
            response_head(
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
                200,
                false
            ),
            None
        );
        assert_eq!(
            response_head("content-length: 5, 6\r\n", 200, true),
            None,
            "though nothing is framed by it"
        );
    }

    #[test]
    fn an_old_backend_keeps_its_connection_only_if_it_says_so() {
        for (fields, keeps) in [
            ("", false),
            ("connection: keep-alive\r\n", true),
            ("connection: keep-alive, close\r\n", false),
            (
                "transfer-encoding: chunked\r\nconnection: keep-alive\r\n",
                false,
            ),
        ] {
            let bytes = format!("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n{fields}\r\n");
            let kept = matches!(parse(bytes.as_bytes(), false), Some(Parsed::Whole(answer)) if answer.response_head.keeps);
            assert_eq!(kept, keeps, "{fields:?}");
        }
    }

    #[test]
    fn hop_by_hop_fields_are_not_passed_on() {
        let hops = "Connection: x-hop, content-length, close\r\nX-Hop: 1\r\nKeep-Alive: \
                    timeout=5\r\nUpgrade: h2c\r\nTrailer: x\r\n";
        assert_eq!(
            written(&format!(
                "HTTP/1.1 200 Fine\r\na: 1\r\n{hops}content-length: 2\r\n\r\n"
            )),
            "HTTP/1.1 200 Fine\r\na: 1\r\ncontent-length: 2\r\n\r\n"
        );
    }

    #[test]
    fn ambiguous_framing_is_passed_on_in_one_form() {
        assert_eq!(
            written("HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\na: 1\r\n\r\n"),
            "HTTP/1.1 200 OK\r\na: 1\r\nContent-Length: 2\r\n\r\n"
        );
        assert_eq!(
            written("HTTP/1.1 200\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"),
            "HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n"
        );
        assert_eq!(
            written("HTTP/1.0 204 No Content\ncontent-length: 2\n\n"),
            "HTTP/1.1 204 No Content\r\n\r\n"
        );
    }

    #[test]
    fn a_malformed_answer_is_rejected() {
        for bad in [
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/1.1 099 X\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        ] {
            assert!(parse(bad.as_bytes(), false).is_none(), "{bad:?}");
        }
        assert!(matches!(
            parse(b"HTTP/1.1 20", false),
            Some(Parsed::Partial)
        ));
    }
}
