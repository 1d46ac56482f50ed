//! A fixed number of requests through one piece, to be counted by `valgrind --tool=none`-like tools: the difference of two counts divided by the difference of the requests is what one
//! request costs, on any machine. `make instructions` does the division.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use cutover::gateway::gate::Gate;
use cutover::recorder::{recorder, slot_of};
use cutover_benches::fixture;
use cutover_core::{Ending, FailureKind, Outcome, Reason, Side};

// The product's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Piece {
    /// The recorder with a success on new that is not slow.
    Success,
    /// The recorder with a success on legacy.
    SuccessOnLegacy,
    /// The recorder with a failure on new.
    Failure,
    /// The whole gate.
    Gate,
    /// The whole gate with an access log, its writer included.
    GateLogged,
}

#[derive(Debug, Parser)]
struct Arguments {
    piece: Piece,
    requests: u32,
}

fn main() {
    let Arguments { piece, requests } = Arguments::parse();
    let users = fixture::users(fixture::REQUESTING);
    match piece {
        Piece::Gate => {
            let (gate, _reader) = fixture::gate();
            pass(&gate, &users, requests, |_| ());
        }
        Piece::GateLogged => {
            let (gate, _reader, bytes) = fixture::gate_logging();
            pass(&gate, &users, requests, |request| {
                // As many as the queue holds, and then the writer has its turn, so that nothing is dropped; waiting costs no instructions to speak of.
                let mut before = u64::MAX;
                while (request % 8_192 == 8_191 || request + 1 == requests) && bytes.load(Ordering::Relaxed) != before {
                    before = bytes.load(Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        }
        Piece::Success | Piece::SuccessOnLegacy | Piece::Failure => {
            let (recorder, _reader) = recorder();
            let outcome = if matches!(piece, Piece::Failure) { Outcome::Failure(FailureKind::Status) } else { Outcome::Success };
            let side = if matches!(piece, Piece::SuccessOnLegacy) { Side::Legacy } else { Side::New };
            let origins: Vec<_> = (0..10_000).map(fixture::origin).collect();
            let ending = Ending { outcome, status: Some(200), latency_us: Some(20_000), evidence: true };
            for request in 0..requests {
                let in_flight = recorder.begin(slot_of(2), side, Some(Reason::Bucket));
                in_flight.end(black_box(&ending), black_box(&origins[request as usize % origins.len()]));
            }
        }
    }
}

/// So many requests through a gate.
fn pass(gate: &Gate, users: &[String], requests: u32, mut after: impl FnMut(u32)) {
    let conn = fixture::conn();
    let heads: Vec<_> = users.iter().map(|user| fixture::MemoryHead::of_user(user)).collect();
    for request in 0..requests {
        let head = &heads[request as usize % heads.len()];
        let mut edits = head.copied();
        fixture::pass(gate, &conn, head, &mut edits);
        black_box(&edits);
        after(request);
    }
}
