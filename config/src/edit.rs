//! The change of one number in a file that people own.
//!
//! `toml_edit` finds the position of the number, and only those bytes are replaced. Writing the
//! document back through `toml_edit` would also keep comments, but it would normalise line ends and
//! layout in places. A diff of one number is what an operator expects to see in version control.
//! The result is parsed again before it is returned.
//!
//! Deliberately absent: adding or removing anything. A rollout without `percent` is an invalid
//! file, and people should see it as they wrote it.

use std::fmt;
use std::ops::Range;

use cutover_core::Percent;
use toml_edit::{Document, Item, TableLike};

/// The reason why a file was not edited.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EditError {
    /// The file has no rollout with this id.
    NotFound,
    /// The file is not TOML. Contains the mistake in one line, with line and column.
    Syntax(String),
    /// The rollout follows a plan, so the operator cannot set its percentage.
    HasPlan,
    /// The rollout has no `percent` to change.
    NoPercent,
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("there is no rollout of this id in this file"),
            Self::Syntax(what) => {
                write!(f, "the file cannot be edited, it is not valid TOML: {what}")
            }
            Self::HasPlan => {
                f.write_str("the rollout follows a plan, so its percentage cannot be set by hand")
            }
            Self::NoPercent => f.write_str("the rollout has no `percent` that could be changed"),
        }
    }
}

impl std::error::Error for EditError {}

/// Returns the text with the `percent` of one rollout changed. Every other byte stays. Works on
/// main and included files, whose rollouts are found by their literal `id`.
///
/// # Errors
/// [`EditError::NotFound`] if the rollout is not in this file ([`crate::Settings::rollout_files`]
/// says which one it is in), and the other reasons of [`EditError`].
///
/// ```
/// # use cutover_core::Percent;
/// let text = "[[rollout]]\nid = \"a\"\npercent = 5   # CHG-123\n";
/// let percent = Percent::parse("12.5").expect("a percentage");
/// let edited = cutover_config::set_percent(text, "a", percent)?;
/// assert_eq!(edited, "[[rollout]]\nid = \"a\"\npercent = 12.5   # CHG-123\n");
/// # Ok::<(), cutover_config::EditError>(())
/// ```
pub fn set_percent(text: &str, rollout: &str, percent: Percent) -> Result<String, EditError> {
    let span = place_of_percent(text, rollout)?;
    let mut edited = String::with_capacity(text.len() + 8);
    edited.push_str(&text[..span.start]);
    edited.push_str(&percent.to_string());
    edited.push_str(&text[span.end..]);
    // The same position must now hold the new number. Otherwise the assumed position was wrong.
    let written = place_of_percent(&edited, rollout)?;
    if edited.get(written) == Some(percent.to_string().as_str()) {
        Ok(edited)
    } else {
        Err(EditError::NoPercent)
    }
}

/// Returns the position of the number, in bytes.
fn place_of_percent(text: &str, rollout: &str) -> Result<Range<usize>, EditError> {
    let document = Document::parse(text)
        .map_err(|error| EditError::Syntax(in_one_line(text, error.message(), error.span())))?;
    let table = rollouts(document.get("rollout"))
        .into_iter()
        .find(|table| table.get("id").and_then(Item::as_str) == Some(rollout))
        .ok_or(EditError::NotFound)?;
    if table.contains_key("plan") {
        return Err(EditError::HasPlan);
    }
    let span = table
        .get("percent")
        .filter(|item| item.is_value())
        .and_then(Item::span)
        .ok_or(EditError::NoPercent)?;
    if text.get(span.clone()).is_some() {
        Ok(span)
    } else {
        Err(EditError::NoPercent)
    }
}

/// Returns the `[[rollout]]` blocks, or the tables of `rollout = [{ ... }]`.
fn rollouts(item: Option<&Item>) -> Vec<&dyn TableLike> {
    match item {
        Some(Item::ArrayOfTables(tables)) => {
            tables.iter().map(|table| table as &dyn TableLike).collect()
        }
        Some(Item::Value(value)) => value
            .as_array()
            .into_iter()
            .flat_map(|items| items.iter())
            .filter_map(|item| item.as_inline_table())
            .map(|table| table as &dyn TableLike)
            .collect(),
        Some(Item::Table(_) | Item::None) | None => Vec::new(),
    }
}

fn in_one_line(text: &str, message: &str, span: Option<Range<usize>>) -> String {
    let at = span.map_or(0, |span| span.start).min(text.len());
    let before = text.as_bytes().get(..at).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(
        before
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default(),
    )
    .chars()
    .count()
        + 1;
    format!(
        "line {line}, column {column}: {}",
        message.lines().collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# top\r\n[[rollout]]\r\nid='a'\r\n  percent =  5   # raised by ana, \
                        CHG-123\r\n\r\n[rollout.guard]\r\nmode=\"off\"\r\n\r\n[[rollout]] # \
                        second\nid = \"b\"\npercent = 0.5\n# end";

    fn percent(text: &str) -> Percent {
        Percent::parse(text).expect("a percentage")
    }

    #[test]
    fn only_the_number_changes() {
        let edited = set_percent(FILE, "a", percent("25")).expect("edited");
        assert_eq!(edited, FILE.replace("=  5 ", "=  25 "));
        let edited = set_percent(FILE, "b", percent("100")).expect("edited");
        assert_eq!(edited, FILE.replace("0.5", "100"));
        assert_eq!(
            set_percent(FILE, "a", percent("0.125")).expect("edited"),
            FILE.replace("=  5 ", "=  0.125 ")
        );
    }

    #[test]
    fn inline_tables_and_a_byte_order_mark_are_handled() {
        let text =
            "\u{feff}rollout = [{ id = \"a\", percent = 5 }, { percent = 7, id = \"b\" }] # é";
        assert_eq!(
            set_percent(text, "b", percent("1")).expect("edited"),
            text.replace('7', "1")
        );
    }

    #[test]
    fn a_file_that_cannot_be_edited_reports_why() {
        assert_eq!(
            set_percent(FILE, "c", Percent::ZERO),
            Err(EditError::NotFound)
        );
        assert_eq!(
            set_percent("", "c", Percent::ZERO),
            Err(EditError::NotFound)
        );
        assert_eq!(
            set_percent(
                "[[rollout]]\nid='a'\npercent=1\n[rollout.plan]\n",
                "a",
                Percent::ZERO
            ),
            Err(EditError::HasPlan)
        );
        assert_eq!(
            set_percent("[[rollout]]\nid='a'\n", "a", Percent::ZERO),
            Err(EditError::NoPercent)
        );
        let Err(EditError::Syntax(what)) = set_percent("a = 1\nb = [\n", "a", Percent::ZERO) else {
            panic!("not TOML")
        };
        assert!(what.starts_with("line "), "{what}");
    }
}
