//! Joins the cookies of a request into one header.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

/// Joins the cookie fields of a request into one (RFC 9113, section 8.2.3). HTTP/1.1 servers may
/// read a second field as part of the first.
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let tidy = |crumb: &'_ HeaderValue| crumb.as_bytes().trim_ascii().to_vec();
    let without_end = |mut crumb: Vec<u8>| {
        while crumb
            .last()
            .is_some_and(|byte| *byte == b';' || byte.is_ascii_whitespace())
        {
            crumb.pop();
        }
        crumb
    };
    let crumbs: Vec<Vec<u8>> = headers
        .get_all(COOKIE)
        .iter()
        .map(tidy)
        .map(without_end)
        .filter(|crumb| !crumb.is_empty())
        .collect();
    // Values that are valid remain valid when valid bytes join them.
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::COOKIE;

    #[test]
    fn several_cookie_fields_are_joined_and_a_single_one_is_kept() {
        for (fields, joined) in [
            (&["a=1"][..], "a=1"),
            (&["a=1", "b=2"], "a=1; b=2"),
            (&["a=1; b=2", "c=3", ""], "a=1; b=2; c=3"),
            (&["a=1;", " b=2 ", "c=3; "], "a=1; b=2; c=3"),
            (&[""], ""),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(COOKIE, HeaderValue::from_static(field));
            }
            join_cookies(&mut headers);
            assert_eq!(
                headers.get_all(COOKIE).iter().collect::<Vec<_>>(),
                [joined],
                "{fields:?}"
            );
        }
    }
}
