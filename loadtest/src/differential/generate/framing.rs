//! The oddities of the body of a request, and of where it ends.

use crate::differential::engine::group_name;
use crate::differential::generate::request::{Draft, chunked, spelled};
use crate::differential::generate::{Chance, tagged};

/// Leaves something out on a connection that stays open.
pub fn missing(chance: &mut Chance, draft: &mut Draft) {
    if chance.one_in(3) {
        draft.unframed();
        draft.line("Content-Length", "50");
        draft.body = b"short".to_vec();
        draft.is_last_word = false;
    }
}

/// Adds lengths that are impossible or given twice.
pub fn length_lines(chance: &mut Chance, draft: &mut Draft) {
    let own = draft.content.len().to_string();
    draft.unframed();
    draft.body = draft.content.clone();
    let lists = |value: String| vec![value];
    let values = match chance.below(16) {
        0 => vec![own.clone(), own],
        1 => vec![own, "7".to_owned()],
        2 => lists(format!("+{own}")),
        3 => lists(format!("{own}, {own}")),
        4 => lists(format!("{own}, 9")),
        5 => lists(format!("0{own}")),
        6 => lists(format!("-{own}")),
        7 => lists(format!("0x{own}")),
        8 => lists(format!(" {own} ")),
        9 => lists("18446744073709551615".to_owned()),
        10 => lists("99999999999999999999".to_owned()),
        11 => lists(String::new()),
        12 => lists("0".to_owned()),
        13 => lists(format!("{own}.0")),
        14 => lists("200000000".to_owned()),
        _ => Vec::new(),
    };
    for value in values {
        draft.line(&spelled(chance, "Content-Length"), value);
    }
}

/// Adds transfer codings that are impossible or stand beside a length.
pub fn coding_lines(chance: &mut Chance, draft: &mut Draft) {
    draft.unframed();
    if chance.one_in(5) {
        draft.line("Content-Length", draft.content.len().to_string());
    }
    let value = chance.text(&[
        "chunked",
        "Chunked",
        "CHUNKED",
        "gzip, chunked",
        "chunked, chunked",
        "chunked, gzip",
        "gzip",
        "identity",
        "xchunked",
        "\"chunked\"",
        "chunked;a=b",
        "",
        " chunked ",
        "\tchunked",
        "chunked,",
        ",chunked",
    ]);
    draft.line(&spelled(chance, "Transfer-Encoding"), value);
    if chance.one_in(6) {
        draft.line("Transfer-Encoding", "chunked");
    }
    draft.body = chunked(chance, &draft.content, b"");
    if chance.one_in(5) {
        draft.line("Content-Length", "5");
    }
}

/// Makes chunks with extensions, with trailers, and with impossible sizes.
pub fn bad_chunks(chance: &mut Chance, draft: &mut Draft) {
    if draft.content.is_empty() {
        draft.content = tagged(draft.place, 'q', 20);
    }
    draft.in_chunks(chance);
    // Valid chunks come first.
    draft.body = match chance.below(24) {
        0..=2 => chunked(chance, &draft.content, b";a=b"),
        3 => chunked(chance, &draft.content, b";a=\"b;c\""),
        4 => chunked(chance, &draft.content, b" ;a"),
        5 => chunked(chance, &draft.content, b";"),
        6 => chunked(chance, &draft.content, b" "),
        7..=9 => [
            b"5\r\nhello\r\n0\r\n",
            chance
                .text(&[
                    "x-t: 1\r\n",
                    "Content-Length: 3\r\n",
                    "Host: evil\r\nx-t: 2\r\n",
                    "bad\r\n",
                    ": x\r\n",
                    "X-User-Id: evil\r\n",
                ])
                .as_bytes(),
            b"\r\n",
        ]
        .concat(),
        10 => b"005\r\nhello\r\n000\r\n\r\n".to_vec(),
        at => {
            let bad = [
                "0x5\r\nhello\r\n0\r\n\r\n",
                "+5\r\nhello\r\n0\r\n\r\n",
                "-5\r\nhello\r\n0\r\n\r\n",
                " 5\r\nhello\r\n0\r\n\r\n",
                "5\nhello\r\n0\r\n\r\n",
                "5\r\nhello\n0\r\n\r\n",
                "5\r\nhelloworld\r\n0\r\n\r\n",
                "five\r\nhello\r\n0\r\n\r\n",
                "\r\nhello\r\n0\r\n\r\n",
                "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
                "5;a\rb\r\nhello\r\n0\r\n\r\n",
                "5\r\nhello0\r\n\r\n",
                "0\r\n\n",
            ];
            let first = if chance.one_in(2) {
                &b"3\r\nabc\r\n"[..]
            } else {
                b""
            };
            // The bytes that an engine reads on after this one may be too few for its reading of
            // it.
            draft.is_last_word = true;
            [
                first,
                bad.get(at as usize - 11)
                    .copied()
                    .unwrap_or_default()
                    .as_bytes(),
            ]
            .concat()
        }
    };
}

/// Makes a body shorter than declared, with nothing after it.
pub fn short_body(chance: &mut Chance, draft: &mut Draft) {
    if draft.body.len() < 2 {
        draft.content = tagged(draft.place, 'q', 30);
        draft.by_length();
    }
    let length = chance.size(draft.body.len());
    draft.body.truncate(length);
    draft.is_last_word = true;
    draft.awaits_continue = false;
}

/// Makes a body, or bytes behind a request without one, that is itself a request.
pub fn smuggled(chance: &mut Chance, draft: &mut Draft) {
    let name = group_name(draft.place.group);
    draft.content =
        format!("GET /{name}/smuggled HTTP/1.1\r\nHost: {name}.test\r\n\r\n").into_bytes();
    match chance.below(3) {
        0 => draft.by_length(),
        1 => draft.in_chunks(chance),
        _ => {
            draft.unframed();
            draft.body = draft.content.clone();
        }
    }
}
