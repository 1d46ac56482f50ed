//! Placeholders in the texts of a scenario: `{folder}`, `{new}`, `{port:http}`.
//!
//! A placeholder is a name in braces without a space. TOML tables, nginx blocks and JSON objects
//! can therefore stand in a template unchanged. An undefined name is a mistake and is not left
//! unchanged: a proxy started with `{leagcy}` in its file would be blamed for the typo.

use crate::units::UsageError;
use std::collections::BTreeMap;

/// The values of placeholders, by name.
pub type Names = BTreeMap<String, String>;

/// Fills in the placeholders of a text.
pub fn fill(text: &str, names: &Names) -> Result<String, UsageError> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, braced) = rest.split_at(at);
        filled.push_str(before);
        match name_at(braced) {
            Some(name) => {
                let value = names.get(name).ok_or_else(|| {
                    let known: Vec<String> =
                        names.keys().map(|known| format!("{{{known}}}")).collect();
                    UsageError::new(format!(
                        "expected one of the placeholders {}, found {{{name}}}",
                        known.join(", ")
                    ))
                })?;
                filled.push_str(value);
                rest = &braced[name.len() + 2..];
            }
            None => {
                filled.push('{');
                rest = &braced[1..];
            }
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Returns the names of the placeholders in a text that start with this prefix, such as `port:`.
pub fn names_with<'text>(text: &'text str, prefix: &'text str) -> impl Iterator<Item = &'text str> {
    text.match_indices('{')
        .filter_map(|(at, _)| name_at(&text[at..]))
        .filter(move |name| name.starts_with(prefix))
}

/// Returns the name of the placeholder that the text starts with.
fn name_at(braced: &str) -> Option<&str> {
    let name = &braced[1..braced.find('}')?];
    let good = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .chars()
            .all(|one| one.is_ascii_lowercase() || one.is_ascii_digit() || "_-:.".contains(one));
    good.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::{Names, fill, names_with};

    fn names() -> Names {
        [("new", "127.0.0.1:1"), ("port:http", "8080")]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn placeholders_are_filled_in_and_other_text_is_unchanged() {
        for (text, filled) in [
            ("servers = [\"{new}\"]", "servers = [\"127.0.0.1:1\"]"),
            ("{new}{new}", "127.0.0.1:1127.0.0.1:1"),
            ("listen {port:http};", "listen 8080;"),
            ("errors = { max = \"1%\" }", "errors = { max = \"1%\" }"),
            (
                "{\"reason\":\"x\"} {} { new } {",
                "{\"reason\":\"x\"} {} { new } {",
            ),
        ] {
            assert_eq!(fill(text, &names()).expect(text), filled);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let message = fill("{leagcy}", &names()).expect_err("unknown").to_string();
        assert_eq!(
            message,
            "expected one of the placeholders {new}, {port:http}, found {leagcy}"
        );
    }

    #[test]
    fn names_can_be_found_by_their_prefix() {
        assert_eq!(
            names_with("{port:a} {new} {port:b}", "port:").collect::<Vec<_>>(),
            ["port:a", "port:b"]
        );
    }
}
