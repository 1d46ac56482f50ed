//! The invariants of the fuzz targets, checked on their seeds and on random bytes, with a stable
//! compiler and in every test run.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;

#[path = "../../fuzz/invariants.rs"]
mod invariants;

fn seeds(target: &str, minimum: usize, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(target);
    let seeds: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(
        seeds.len() >= minimum,
        "{} has {} seeds",
        directory.display(),
        seeds.len()
    );
    for seed in seeds {
        check(&std::fs::read(seed).unwrap());
    }
}

#[test]
fn every_seed_of_the_fuzz_targets_keeps_their_invariants() {
    seeds("key_extraction", 14, invariants::keys);
    seeds("path_normalisation", 13, invariants::path);
    seeds("config_parser", 7, invariants::config);
    seeds("lane_request", 12, invariants::lane_request);
    seeds("lane_response", 13, invariants::lane_response);
}

/// Generates bytes from the given pieces, with some noise between them.
fn made_of(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![6 => select(pieces).prop_map(|piece| piece.as_bytes().to_vec()), 1 => vec(any::<u8>(), 0..4), 1 => Just(b"x".to_vec())];
    vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

const PATHS: [&str; 14] = [
    "/", "//", ".", "..", "/./", "/../", "%2e", "%2F", "%", "%25", "%00", ";", "a", "checkout",
];
const HEADS: [&str; 22] = [
    "\n",
    "x-user-id:",
    " ana",
    "cookie:",
    "uid=",
    "\"",
    ";",
    ",",
    "=",
    "authorization: Bearer ",
    "e30.",
    "eyJzdWIiOiJ1c2VyLTcifQ",
    ".",
    "connection:",
    "close",
    "X-User-Id",
    "?user=",
    "&",
    "%41",
    "%",
    "+",
    "/",
];
const MESSAGES: [&str; 34] = [
    "GET / HTTP/1.1\r\nhost: h\r\n",
    "POST /a?b HTTP/1.1\r\nHost:h\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 204\r\n",
    "HTTP/1.1 103 Early Hints\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\n\n",
    "\r",
    " ",
    "\t",
    ":",
    ": ",
    "content-length: 2\r\n",
    "Content-Length: 2, 2\r\n",
    "content-length: 3\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "connection: close\r\n",
    "Connection: x-a, keep-alive\r\n",
    "x-a: 1\r\n",
    "X_A:\r\n",
    "a: 1\r\n 2\r\n",
    "expect: 100-continue\r\n",
    "upgrade: websocket\r\n",
    "ok",
    "2\r\nok\r\n",
    "A;x=y\r\n0123456789\r\n",
    "0\r\n",
    "0\r\n\r\n",
    "f\r\n",
    "\0",
    "\u{e9}",
];
const FILES: [&str; 18] = [
    "\n",
    "[listen]\n",
    "[[rollout]]\n",
    "[backend.legacy]\n",
    "id = ",
    "\"x\"",
    "percent = ",
    "5",
    "key = [",
    "\"header:x-user-id\"",
    "]",
    "{",
    "}",
    "servers = [\"127.0.0.1:1\"]\n",
    "${SERVER}",
    "\r\n",
    "\u{e9}",
    "\"\"\"",
];

/// Generates a message with a valid beginning: a first line, a few fields, the end of the head, and
/// more.
fn begun_with(first: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let fields =
        vec(select(&MESSAGES[14..26]), 0..6).prop_map(|fields| fields.concat().into_bytes());
    (
        select(first),
        fields,
        select(&["\r\n", "\n", ""][..]),
        made_of(&MESSAGES),
    )
        .prop_map(|(first, fields, end, rest)| {
            [first.as_bytes(), &fields, end.as_bytes(), &rest].concat()
        })
}

proptest! {
    #[test]
    fn any_bytes_are_declined_by_the_lane_or_are_a_request_in_one_form(bytes in prop_oneof![made_of(&MESSAGES), begun_with(&MESSAGES[..2])]) {
        invariants::lane_request(&bytes);
    }

    #[test]
    fn any_bytes_are_an_answer_in_one_form_or_none(bytes in prop_oneof![made_of(&MESSAGES), begun_with(&MESSAGES[2..5])]) {
        invariants::lane_response(&bytes);
    }

    #[test]
    fn any_request_head_gives_one_user_no_user_or_a_refusal(bytes in made_of(&HEADS)) {
        invariants::keys(&bytes);
    }

    #[test]
    fn any_path_is_normalised_to_one_without_dot_segments(bytes in made_of(&PATHS)) {
        invariants::path(&bytes);
    }

    #[test]
    fn any_text_is_a_configuration_or_gives_problems_with_places(bytes in made_of(&FILES)) {
        invariants::config(&bytes);
    }
}
