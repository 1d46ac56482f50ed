//! The client's spelling of a request head, and whether anything is lost without pingora's record
//! of it.

use pingora::http::{HeaderNameVariant, RequestHeader};

/// The names that pingora writes in this case when it keeps no record of what the client wrote.
const CANONICAL: [&[u8]; 12] = [
    b"Host",
    b"Connection",
    b"Content-Length",
    b"Content-Type",
    b"Content-Encoding",
    b"Transfer-Encoding",
    b"Cache-Control",
    b"Date",
    b"Accept-Ranges",
    b"Age",
    b"Server",
    b"Set-Cookie",
];

/// Returns whether nothing is lost without pingora's record of the client's own spelling. That is
/// the case if all names are in lower case, as behind anything that speaks HTTP/2, and the URI
/// reproduces the target byte for byte. Edits then need one map instead of two, and the second map
/// is most of their cost. Any other spelling is kept, for backends that depend on it.
pub fn is_plain(head: &RequestHeader) -> bool {
    let mut plain = head.uri.authority().is_none()
        && head
            .uri
            .path_and_query()
            .is_some_and(|target| target.as_str().as_bytes() == head.raw_path());
    if plain && head.has_case() {
        let looked_at = head.map(|name, _| {
            if let HeaderNameVariant::Case(name) = name {
                let name = name.as_slice();
                plain &= is_lower(name) || CANONICAL.contains(&name);
            }
            Ok(())
        });
        plain &= looked_at.is_ok();
    }
    plain
}

/// Returns whether a name is written without capital letters. Capital letters lack the sixth bit.
/// Of the other characters allowed in a name, only underscore and circumflex lack it. A name with
/// one of these is treated as one with capitals, and its spelling is kept.
fn is_lower(name: &[u8]) -> bool {
    const LOWER: u8 = 0x20;
    name.iter().fold(LOWER, |all, byte| all & byte) == LOWER
}
