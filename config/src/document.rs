//! The reading of a file into the mirror types: size, binary content, syntax, shape. The result has
//! no mistakes left that the schema can detect, and those found are in the report.

use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::de::{DeTable, DeValue, Error as TomlError};

use crate::error::{Problem, Report, Source};
use crate::shape;
use crate::text::{clip, quote};

/// The largest main or included file in bytes. A larger file is a mistake: other data was written
/// in its place.
pub const MAX_FILE: usize = 1 << 20;

/// One file, as far as it could be read.
pub(crate) struct Document<T> {
    pub(crate) source: Arc<Source>,
    /// The file without the parts that were refused.
    pub(crate) file: T,
    /// The names of all backends, including those with mistakes in them, so that one mistake is
    /// not reported twice.
    pub(crate) backend_names: Vec<String>,
    /// Whether there is any `rollout`, valid or not.
    pub(crate) has_rollouts: bool,
}

/// Reads a file of this schema. `None` if the file cannot be evaluated, and the report says why.
pub(crate) fn read<T: DeserializeOwned>(
    source: &Arc<Source>,
    schema: &Value,
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) -> Option<Document<T>> {
    let text = &source.text;
    if let Some(problem) = not_a_text(source, MAX_FILE) {
        report.push(problem);
        return None;
    }
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        report.push(
            source
                .error(0..0, "the file is empty")
                .label("nothing in here")
                .hint("if it was just saved, it may be half written: the next read sees all of it"),
        );
        return None;
    }
    let (tree, mistakes) = DeTable::parse_recoverable(text);
    let mut tree = tree.into_inner();
    if !syntax(source, &tree, &mistakes, report) {
        return None;
    }
    let backend_names = match tree.get("backend").map(toml::Spanned::get_ref) {
        Some(DeValue::Table(backends)) => backends
            .keys()
            .map(|name| name.get_ref().to_string())
            .collect(),
        _ => Vec::new(),
    };
    let has_rollouts = tree.contains_key("rollout");
    shape::check(source, &mut tree, schema, env, report);
    match T::deserialize(toml::de::Deserializer::from(toml::Spanned::new(0..0, tree))) {
        Ok(file) => Some(Document {
            source: Arc::clone(source),
            file,
            backend_names,
            has_rollouts,
        }),
        // The schema and the types agree, so this is not reached. If it ever is, it is a refusal
        // and not a panic.
        Err(error) => {
            report.push(source.error(
                error.span().unwrap_or(0..0),
                format!("this file does not fit: {}", error.message()),
            ));
            None
        }
    }
}

/// Returns the problem if this is not a text file written by a person.
pub(crate) fn not_a_text(source: &Arc<Source>, max: usize) -> Option<Problem> {
    if source.text.len() > max {
        let problem = source
            .error(0..0, format!("the file is larger than {} MiB", max >> 20))
            .label(format!("{} bytes", source.text.len()));
        return Some(problem.hint("is this the right file?"));
    }
    let nul = source.text.find('\0')?;
    Some(
        source
            .error(
                nul..nul,
                "the file holds a NUL byte: this is not a text file",
            )
            .label("here")
            .hint("is this the right file? it may also be damaged, or in UTF-16: save it as UTF-8"),
    )
}

/// Reports what is not TOML, and returns whether the rest is worth checking. A duplicate key leaves
/// the rest readable. After any other mistake, the rest is guesswork.
fn syntax(
    source: &Arc<Source>,
    tree: &DeTable<'_>,
    mistakes: &[TomlError],
    report: &mut Report,
) -> bool {
    let is_duplicate = |mistake: &TomlError| mistake.message() == "duplicate key";
    let span = |mistake: &TomlError| mistake.span().unwrap_or(0..0);
    let worst = mistakes
        .iter()
        .filter(|mistake| !is_duplicate(mistake))
        .min_by_key(|mistake| span(mistake).start);
    for mistake in mistakes.iter().filter(|mistake| is_duplicate(mistake)) {
        let span = span(mistake);
        if worst.is_none_or(|worst| span.start < worst.span().unwrap_or(0..0).start) {
            report.push(duplicate(source, tree, span));
        }
    }
    let Some(worst) = worst else { return true };
    report.push(explain(source, worst));
    false
}

fn duplicate(source: &Arc<Source>, tree: &DeTable<'_>, span: Range<usize>) -> Problem {
    let text = &source.text;
    let name = &text[span.clone()];
    let line_start = text[..span.start]
        .rfind('\n')
        .map_or(0, |newline| newline + 1);
    let is_heading = text[line_start..span.start].trim_start().starts_with('[');
    if is_heading {
        let heading = text[line_start..]
            .lines()
            .next()
            .unwrap_or_default()
            .split('#')
            .next()
            .unwrap_or_default()
            .trim();
        let mut at = 0;
        let first = text[..line_start].split_inclusive('\n').find_map(|line| {
            let start = at + (line.len() - line.trim_start().len());
            at += line.len();
            line.trim_start().starts_with(heading).then_some(start)
        });
        let hint = match first {
            Some(first) => format!(
                "the first one is at {}: put the two together",
                source.place(first)
            ),
            None => {
                "a table is written once, and not both as [x] and as x.y = ... or [[x]]".to_owned()
            }
        };
        return source
            .error(span, format!("{heading} is in the file twice"))
            .label("a second time")
            .hint(hint);
    }
    let hint = match key_before(tree, name, span.start) {
        Some(first) => format!(
            "the first one is at {}: keep one of the two",
            source.place(first)
        ),
        None => "keep one of the two".to_owned(),
    };
    source
        .error(span, format!("the key {name:?} is in this table twice"))
        .label("a second time")
        .hint(hint)
}

/// Returns the nearest key of this name before a position.
fn key_before(table: &DeTable<'_>, name: &str, before: usize) -> Option<usize> {
    table
        .iter()
        .flat_map(|(key, value)| {
            let here = (key.get_ref() == name).then(|| key.span().start);
            let below = match value.get_ref() {
                DeValue::Table(table) => key_before(table, name, before),
                DeValue::Array(items) => items
                    .iter()
                    .filter_map(|item| item.get_ref().as_table())
                    .filter_map(|table| key_before(table, name, before))
                    .max(),
                DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_) => None,
            };
            [here, below]
        })
        .flatten()
        .filter(|place| *place < before)
        .max()
}

/// Explains a mistake in the parser's words, or in our own and with a hint for the most frequent
/// mistakes.
fn explain(source: &Arc<Source>, mistake: &TomlError) -> Problem {
    let text = &source.text;
    let span = mistake.span().unwrap_or(0..0);
    let found = text.get(span.clone()).unwrap_or_default();
    let line_start = text
        .get(..span.start)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let before = text.get(line_start..span.start).unwrap_or_default().trim();
    let problem = |message: &str| {
        source
            .error(span.clone(), format!("not valid TOML: {message}"))
            .label("here")
    };
    if ["<<<<<<<", "=======", ">>>>>>>"]
        .iter()
        .any(|marker| line.starts_with(marker))
    {
        return problem("this is the marker of a merge conflict").hint(
            "keep one of the two versions, and remove the lines that begin with <<<<<<<, ======= \
             and >>>>>>>",
        );
    }
    let message = mistake.message();
    if let (Some(before), "string values must be quoted, expected literal string") =
        (before.strip_suffix('='), message)
    {
        let key = before
            .trim_end()
            .rsplit([' ', '{', ',', '.', '\t'])
            .next()
            .unwrap_or_default();
        return match found.trim() {
            "" => problem("expected a value after =, found nothing")
                .hint("write a value, or remove the line"),
            value => problem(&format!("expected a value, found {}", clip(value)))
                .hint(format!("write {key} = {}", as_value(key, value))),
        };
    }
    if let Some((key, value)) = line
        .split_once(':')
        .filter(|(key, _)| found == ":" && key.trim_start() == before)
    {
        return problem("expected = between a key and its value, found :").hint(format!(
            "write {} = {}",
            key.trim(),
            clip(value.trim())
        ));
    }
    let hint = match message.split(',').next().unwrap_or_default() {
        "invalid basic string" | "invalid literal string" => {
            Some("a string ends on the line that it begins on, with the quote that it begins with")
        }
        "unclosed array" => Some("close the list with ]"),
        "unclosed table" => Some("close the heading with ]"),
        "unclosed array table" => Some("close the heading with ]]"),
        "key with no value" => Some("write key = value; a comment begins with #"),
        _ => None,
    };
    problem(message).maybe_hint(hint.map(str::to_owned))
}

/// Returns the value that was probably meant where the quotes are missing.
fn as_value(key: &str, value: &str) -> String {
    match value.to_lowercase().as_str() {
        "true" | "yes" | "on" => return "true".to_owned(),
        "false" | "no" | "off" if key != "mode" && key != "access" && key != "failover" => {
            return "false".to_owned();
        }
        _ => {}
    }
    match value.strip_suffix('%') {
        Some(number) if matches!(key, "percent" | "holdback") && number.parse::<f64>().is_ok() => {
            number.to_owned()
        }
        _ => quote(value),
    }
}
