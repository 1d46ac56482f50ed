//! Helpers for the wording of messages: lists, quotes, near misses, variables.

/// The largest distance between two words that are taken for the same: a third of the longer one,
/// and never more than this.
const MAX_DISTANCE: usize = 3;

/// The length in characters to which strings in messages are cut.
const MAX_QUOTED: usize = 60;

/// Returns the candidate that was probably meant.
pub(crate) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let lower = word.to_lowercase();
    // A key of a megabyte must not be compared letter by letter.
    if lower.len() > MAX_QUOTED {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| {
            *distance <= MAX_DISTANCE.min(lower.len().max(candidate.len()) / 3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Joins words with commas.
pub(crate) fn list<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().collect::<Vec<_>>().join(", ")
}

/// Joins quoted words with commas, and with "or" before the last.
pub(crate) fn either(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("{only:?}"),
        [first @ .., last] => format!(
            "{} or {last:?}",
            first
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// Returns a string in quotes, escaped, and cut if it is long.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// Returns a piece of the file on one line, cut if it is long.
pub(crate) fn clip(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(MAX_QUOTED) {
        None => line.to_owned(),
        Some((end, _)) => format!("{}...", &line[..end]),
    }
}

/// Returns a key in TOML form, with quotes unless it is a bare key.
pub(crate) fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if bare { name.to_owned() } else { quote(name) }
}

/// The reason why a string with `${` cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExpandError {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Substitutes the environment's values for `${NAME}`; `$${` stands for a literal `${`. Substituted
/// values are not expanded again.
pub(crate) fn expand(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 2..];
        let Some(end) = after.find('}') else {
            return Err(ExpandError {
                message: "expected a closing } after ${".to_owned(),
                hint: "write ${NAME}, or $${ for a literal ${".to_owned(),
            });
        };
        let name = &after[..end];
        let is_name = name.bytes().enumerate().all(|(i, byte)| {
            byte == b'_' || byte.is_ascii_alphabetic() || (i > 0 && byte.is_ascii_digit())
        });
        if name.is_empty() || !is_name {
            let message = format!(
                "expected the name of an environment variable between ${{ and }}, found {}",
                quote(name)
            );
            return Err(ExpandError {
                message,
                hint: "letters, digits and _ only; there are no defaults. Write $${ for a literal \
                       ${"
                .to_owned(),
            });
        }
        let Some(value) = env(name) else {
            return Err(ExpandError {
                message: format!("the environment variable {name:?} is not set"),
                hint: "set it where the proxy is started, or write the value itself".to_owned(),
            });
        };
        expanded.push_str(&value);
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, &|name| {
            (name == "HOST").then(|| "10.0.0.1".to_owned())
        })
        .map_err(|error| error.message)
    }

    #[test]
    fn variables_are_replaced_and_doubled_dollars_are_not() {
        assert_eq!(expanded("${HOST}:80").as_deref(), Ok("10.0.0.1:80"));
        assert_eq!(
            expanded("a${HOST}b${HOST}").as_deref(),
            Ok("a10.0.0.1b10.0.0.1")
        );
        assert_eq!(expanded("$${HOST}").as_deref(), Ok("${HOST}"));
        assert_eq!(expanded("$$${HOST}").as_deref(), Ok("$${HOST}"));
        assert_eq!(expanded("$HOST $ {").as_deref(), Ok("$HOST $ {"));
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_an_error_and_never_empty() {
        for text in [
            "${NOPE}",
            "${",
            "${HOST",
            "${}",
            "${HOST:-x}",
            "${1A}",
            "${é}",
        ] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_near_miss_is_found_and_a_different_word_is_not() {
        let keys = ["percent", "salt", "always_new", "key"];
        assert_eq!(nearest("percnt", keys), Some("percent"));
        assert_eq!(nearest("Percent", keys), Some("percent"));
        assert_eq!(nearest("percentage", keys), Some("percent"));
        assert_eq!(nearest("always-new", keys), Some("always_new"));
        assert_eq!(nearest("weight", keys), None);
    }

    #[test]
    fn long_strings_are_cut_between_characters() {
        let long = "ü".repeat(100);
        assert_eq!(quote(&long), format!("\"{}\"...", "ü".repeat(60)));
        assert_eq!(clip("a\nb"), "a");
    }
}
