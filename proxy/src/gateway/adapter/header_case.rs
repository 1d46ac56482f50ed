//! How a client spelled the head of its request, and whether anything is lost without pingora's
//! record of it.

use pingora::http::{HeaderNameVariant, RequestHeader};

/// Names that pingora writes in this case when it keeps no record of what the client wrote.
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

/// Whether nothing is lost without pingora's record of the client's own spelling: names in lower
/// case, as behind anything that speaks HTTP/2, and a target that its URI gives back byte for byte.
/// Edits then need one map instead of two, which is most of what they cost. Any other spelling is
/// kept, for backends that depend on it.
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

/// Whether a name is written without capital letters. Those lack the sixth bit, and of what else
/// may stand in a name only an underscore and a circumflex do; a name with one of these is taken
/// for one with capitals, and its spelling kept.
fn is_lower(name: &[u8]) -> bool {
    const LOWER: u8 = 0x20;
    name.iter().fold(LOWER, |all, byte| all & byte) == LOWER
}
