//! W3C trace context: the ids that connect the records of all programs about one request.
//!
//! A request with a context keeps it byte for byte, unless one of our spans is sampled. Then the
//! backend gets the id of the attempt as its parent. A request without a context, or with a
//! malformed one, gets a new context that is not sampled, so that the backend decides for itself.
//! `tracestate` belongs to its `traceparent` and is kept or replaced with it.
//!
//! A request is sampled by chance here, or by the flag that a trusted proxy has set. If any client
//! could set the flag, any client could fill the collector.
//!
//! Source: W3C Trace Context, Level 1 (versions above 00 are read as 00, as it requires).

use rand::Rng;

use crate::gateway::message::fields::Fields;
use crate::telemetry::traces::{Spans, hex_digits, new_span};

/// The context of one request, and what we add to it.
#[derive(Debug)]
pub struct Trace {
    /// The id of the whole trace. Never zero.
    pub id: u128,
    /// The span of the caller. `None` if the trace begins here.
    pub parent: Option<u64>,
    /// The span that is sent to the backend in a context that begins here. `None` if the client's
    /// own context is kept.
    begun: Option<u64>,
    /// Whether a `tracestate` of the client must not be passed on, because there is no
    /// `traceparent` that it could belong to.
    pub is_orphaned: bool,
    /// Our spans for the request. `None` if it is not sampled.
    pub spans: Option<Box<Spans>>,
}

impl Trace {
    /// Determines the context of a request with this `traceparent`. `samples` is the number of
    /// requests in a million that are sampled, if spans are made at all.
    pub fn of(fields: &Fields<'_>, is_trusted: bool, samples: Option<u32>) -> Self {
        let sent = fields.traceparent.and_then(Context::parse);
        let mut random = rand::rng();
        let (id, parent) = match sent {
            Some(Context { id, span, .. }) => (id, Some(span)),
            // The W3C forbids all-zero ids.
            None => (random.random::<u128>() | 1, None),
        };
        let is_sampled = samples.is_some_and(|ppm| match sent {
            Some(context) if is_trusted => context.is_sampled,
            _ => ppm > 0 && random.random_range(0..1_000_000) < ppm,
        });
        let spans = is_sampled.then(|| {
            Box::new(Spans {
                id: new_span(&mut random),
                attempts: Vec::new(),
            })
        });
        let begun = (sent.is_none() && spans.is_none()).then(|| new_span(&mut random));
        Self {
            id,
            parent,
            begun,
            is_orphaned: sent.is_none() && fields.has_tracestate,
            spans,
        }
    }

    /// Returns the header that replaces the client's in the request to the backend, if any.
    pub fn header(&self) -> Option<TraceParent> {
        match (&self.spans, self.begun) {
            (Some(spans), _) => Some(header(
                self.id,
                spans.attempts.last().map_or(spans.id, |attempt| attempt.id),
                true,
            )),
            (None, Some(span)) => Some(header(self.id, span, false)),
            (None, None) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    id: u128,
    span: u64,
    is_sampled: bool,
}

impl Context {
    /// Parses a `traceparent`.
    fn parse(value: &[u8]) -> Option<Self> {
        let part = |from: usize, to: usize| value.get(from..to);
        let (version, rest) = (hex(part(0, 2)?)?, value.get(55..)?);
        let is_complete = match version {
            0 => rest.is_empty(),
            0xff => false,
            // The rest of the value is for programs that know that version.
            _ => rest.first().is_none_or(|&byte| byte == b'-'),
        };
        if !is_complete || [2, 35, 52].iter().any(|&at| value[at] != b'-') {
            return None;
        }
        let (id, span, flags) = (
            hex(part(3, 35)?)?,
            hex(part(36, 52)?)? as u64,
            hex(part(53, 55)?)?,
        );
        (id != 0 && span != 0).then_some(Self {
            id,
            span,
            is_sampled: flags & 1 == 1,
        })
    }
}

/// Parses lower-case digits only, as the W3C requires.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |number, &digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// The text of a `traceparent`.
pub type TraceParent = [u8; 55];

fn header(id: u128, span: u64, is_sampled: bool) -> TraceParent {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    text[3..35].copy_from_slice(&hex_digits(id));
    text[36..52].copy_from_slice(&hex_digits(u128::from(span))[16..]);
    text[54] += u8::from(is_sampled);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::router::testing::TestHead;
    use cutover_core::FailureKind;
    use cutover_core::Mono;
    use cutover_core::Side;
    use std::net::SocketAddr;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn trace_of(head: &TestHead, is_trusted: bool, samples: Option<u32>) -> Trace {
        Trace::of(&Fields::of(head, &[]), is_trusted, samples)
    }

    fn header_of(trace: &Trace) -> Option<String> {
        trace
            .header()
            .map(|value| String::from_utf8(value.to_vec()).expect("ASCII"))
    }

    #[test]
    fn a_context_that_we_do_not_sample_passes_unchanged() {
        for samples in [None, Some(0)] {
            let trace = trace_of(
                &TestHead::get("/").with("traceparent", SENT),
                false,
                samples,
            );
            assert_eq!(
                (trace.id, trace.parent),
                (
                    0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
                    Some(0x00f0_67aa_0ba9_02b7)
                )
            );
            assert!(trace.spans.is_none() && header_of(&trace).is_none() && !trace.is_orphaned);
        }
    }

    #[test]
    fn a_new_context_leaves_the_sampling_choice_to_the_backend() {
        let trace = trace_of(&TestHead::get("/").with("tracestate", "a=1"), false, None);
        let header = header_of(&trace).expect("a header");
        assert!(
            header.starts_with(&format!("00-{:032x}-", trace.id))
                && header.ends_with("-00")
                && header.len() == 55,
            "{header}"
        );
        assert_eq!(
            Context::parse(header.as_bytes()).map(|context| context.id),
            Some(trace.id)
        );
        assert!(
            trace.is_orphaned && trace.parent.is_none(),
            "a state without its context belongs to nothing"
        );
    }

    #[test]
    fn a_malformed_context_is_replaced_together_with_its_state() {
        for wrong in [
            "",
            "nonsense",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
        ] {
            let trace = trace_of(
                &TestHead::get("/")
                    .with("traceparent", wrong)
                    .with("tracestate", "a=1"),
                true,
                None,
            );
            assert!(
                trace.is_orphaned && trace.parent.is_none() && header_of(&trace).is_some(),
                "{wrong:?}"
            );
        }
        let twice = trace_of(
            &TestHead::get("/")
                .with("traceparent", SENT)
                .with("traceparent", SENT)
                .with("tracestate", "a=1"),
            true,
            None,
        );
        assert!(twice.is_orphaned, "two contexts are none");
        let later = trace_of(
            &TestHead::get("/").with(
                "traceparent",
                &format!("cc{}-what-the-future-brings", &SENT[2..]),
            ),
            true,
            None,
        );
        assert_eq!(
            later.parent,
            Some(0x00f0_67aa_0ba9_02b7),
            "a later version is read as this one"
        );
    }

    #[test]
    fn only_a_trusted_proxy_decides_what_is_sampled() {
        let head = TestHead::get("/").with("traceparent", SENT);
        assert!(trace_of(&head, true, Some(0)).spans.is_some());
        assert!(
            trace_of(&head, false, Some(0)).spans.is_none(),
            "anybody can set a flag"
        );
        assert!(trace_of(&head, false, Some(1_000_000)).spans.is_some());
        let asked_not_to = TestHead::get("/").with("traceparent", &format!("{}0", &SENT[..54]));
        assert!(
            trace_of(&asked_not_to, true, Some(1_000_000))
                .spans
                .is_none()
        );
    }

    #[test]
    fn the_backend_span_is_a_child_of_its_attempt() {
        let mut trace = trace_of(&TestHead::get("/"), false, Some(1_000_000));
        let spans = trace.spans.as_mut().expect("sampled");
        let server = SocketAddr::from(([127, 0, 0, 1], 3000));
        spans.attempt(Side::New, server, Mono::from_micros(1));
        spans.ended(Some(FailureKind::Connect), Mono::from_micros(2));
        spans.attempt(Side::Legacy, server, Mono::from_micros(2));
        spans.answered(200);
        let second = spans.attempts[1].id;
        assert_eq!(
            (spans.attempts[0].failure, spans.attempts[0].ended),
            (Some(FailureKind::Connect), Some(Mono::from_micros(2)))
        );
        assert_eq!(
            header_of(&trace),
            Some(format!("00-{:032x}-{second:016x}-01", trace.id))
        );
    }
}
