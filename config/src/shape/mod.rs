//! The check whether the file has the shape that the schema describes. It finds every unknown key,
//! wrong type, missing key and number out of range at once.
//!
//! serde stops at its first error, and the usual workaround (record, cut out the offender, retry)
//! leaves the wording to serde. Therefore the parsed tree is walked along the schema, the same one
//! that editors use. Anything that the schema refuses is reported in our words and cut out, and the
//! rest deserialises. Variables (`${NAME}`) are substituted on the way, so that a value from the
//! environment is checked like any other.
//!
//! Deliberately absent: `pattern`. `lower` parses the meaning of a string into types.

mod path;
mod wording;

use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::error::{Report, Source};
use crate::schema::{self};
use crate::text::{self, nearest};
use path::Path;
pub(crate) use path::rollout_context;
use wording::{example, expected, heading_with, kind, retype, words};

/// The description of a rate in messages.
pub(crate) const RATE_SHAPE: &str = "a percentage such as \"1%\" or \"0.05%\"";

/// Checks one file against its schema. Refused parts are reported and cut out of `table`.
pub(crate) fn check(
    source: &Arc<Source>,
    table: &mut DeTable<'_>,
    schema: &Value,
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) {
    Shape {
        source,
        env,
        report,
        included: !std::ptr::eq(schema, schema::main_file()),
    }
    .table(table, schema, &Path::default(), 0..0);
}

struct Shape<'a> {
    source: &'a Arc<Source>,
    env: &'a dyn Fn(&str) -> Option<String>,
    report: &'a mut Report,
    included: bool,
}

impl Shape<'_> {
    fn table(&mut self, table: &mut DeTable<'_>, schema: &Value, path: &Path, span: Range<usize>) {
        let mut refused = Vec::new();
        let mut entries: Vec<_> = table.iter_mut().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let given = entries.len();
        for (key, value) in entries {
            let name: &str = key.get_ref();
            let kept = match property(schema, name) {
                Some(property) => self.value(value, property, &path.child(name)),
                None => {
                    self.unknown_key(name, key.span(), schema, path);
                    false
                }
            };
            if !kept {
                refused.push(name.to_owned());
            }
        }
        self.missing_keys(table, schema, path, &span);
        if given == 0
            && schema["minProperties"]
                .as_u64()
                .is_some_and(|least| least > 0)
        {
            let message = format!(
                "{path}expected at least one of {}, found an empty table",
                text::list(keys(schema))
            );
            self.report.push(
                self.source
                    .error(span, message)
                    .label("nothing in here")
                    .hint(format!("write {} = {}", path.key(), example(schema))),
            );
        }
        for name in refused {
            table.remove(name.as_str());
        }
    }

    fn missing_keys(
        &mut self,
        table: &DeTable<'_>,
        schema: &Value,
        path: &Path,
        span: &Range<usize>,
    ) {
        let required = |schema: &'_ Value| -> Vec<String> {
            schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect()
        };
        let mut missing: Vec<String> = required(schema)
            .into_iter()
            .filter(|name| !table.contains_key(name.as_str()))
            .collect();
        // There are several alternative sets of keys, and the first is the usual one.
        let alternatives: Vec<Vec<String>> = schema["anyOf"]
            .as_array()
            .into_iter()
            .flatten()
            .map(required)
            .collect();
        if !alternatives
            .iter()
            .any(|names| names.iter().all(|name| table.contains_key(name.as_str())))
        {
            missing.extend(alternatives.into_iter().next().unwrap_or_default());
        }
        for name in missing {
            let hint = property(schema, &name)
                .map(|property| format!("write {name} = {}", example(property)));
            self.report.push(
                self.source
                    .error(span.clone(), format!("{path}missing key {name:?}"))
                    .label(format!("{name:?} is missing here"))
                    .maybe_hint(hint),
            );
        }
    }

    fn unknown_key(&mut self, name: &str, span: Range<usize>, schema: &Value, path: &Path) {
        let hint = self
            .place_of(name, path)
            .or_else(|| nearest(name, keys(schema)).map(|near| format!("did you mean {near:?}?")))
            .unwrap_or_else(|| {
                let here = text::list(keys(schema));
                if here.is_empty() {
                    "remove it".to_owned()
                } else {
                    format!("the keys here are {here}")
                }
            });
        self.report.push(
            self.source
                .error(span, format!("{path}unknown key {name:?}"))
                .label("not known here")
                .hint(hint),
        );
    }

    /// Returns where a key belongs that was written in the wrong table, typically below a
    /// `[rollout.guard]` line.
    fn place_of(&self, name: &str, path: &Path) -> Option<String> {
        if self.included && property(schema::main_file(), name).is_some() {
            return Some(
                "an included file holds only [[rollout]] blocks: move it to the main file"
                    .to_owned(),
            );
        }
        let (heading, is_list) = heading_with(schema::main_file(), name)?;
        let brackets = |heading: &str, is_list: bool| {
            if is_list {
                format!("[[{heading}]]")
            } else {
                format!("[{heading}]")
            }
        };
        let here = path.heading();
        let below = here
            .strip_prefix(heading.as_str())
            .is_some_and(|rest| rest.starts_with('.'));
        let place = brackets(&heading, is_list);
        Some(if below {
            format!("{name:?} is a key of {place}: write it above the [{here}] line")
        } else {
            format!("{name:?} is a key of {place}: move it there")
        })
    }

    /// Whether the value may stay.
    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, schema: &Value, path: &Path) -> bool {
        let span = value.span();
        let was_variable = match self.expand(value, path) {
            Ok(was_variable) => was_variable,
            Err(()) => return false,
        };
        match value.get_mut() {
            DeValue::Table(table) if is(schema, "object") => {
                self.table(table, schema, path, span);
                true
            }
            DeValue::Array(array) if is(schema, "array") => {
                self.array(array, schema, path, span);
                true
            }
            DeValue::String(text) if is(schema, "string") => self.choice(text, schema, path, span),
            DeValue::Boolean(_) if is(schema, "boolean") => true,
            DeValue::Integer(number) if is(schema, "integer") || is(schema, "number") => {
                let exact = i128::from_str_radix(number.as_str(), number.radix()).ok();
                self.in_range(
                    exact.is_some_and(|number| {
                        within(number as f64, schema) && i64::try_from(number).is_ok()
                    }),
                    schema,
                    path,
                    span,
                )
            }
            DeValue::Float(number) if is(schema, "number") => {
                let exact = number.as_str().parse::<f64>().ok();
                self.in_range(
                    exact.is_some_and(|number| within(number, schema)),
                    schema,
                    path,
                    span,
                )
            }
            found => {
                let (what, hint) = (self.found(found, &span), retype(found, schema, path.key()));
                let hint = if was_variable {
                    Some(
                        "a variable is always a string; write the value itself in the file"
                            .to_owned(),
                    )
                } else {
                    hint
                };
                let problem = self.source.error(
                    span,
                    format!("{path}expected {}, found {what}", expected(schema)),
                );
                self.report.push(
                    problem
                        .label(format!("expected {}", kind(schema)))
                        .maybe_hint(hint),
                );
                false
            }
        }
    }

    fn array(&mut self, array: &mut DeArray<'_>, schema: &Value, path: &Path, span: Range<usize>) {
        if array.is_empty() && schema["minItems"].as_u64().is_some_and(|least| least > 0) {
            let problem = self.source.error(
                span,
                format!("{path}expected at least one entry, found an empty list"),
            );
            self.report
                .push(problem.label("nothing in here").hint(format!(
                    "write {} = {}",
                    path.key(),
                    example(schema)
                )));
        }
        let items = std::mem::replace(array, DeArray::new());
        let mut kept = DeArray::new();
        for (index, mut item) in items.into_iter().enumerate() {
            let path = path.item(index, item.get_ref());
            if self.value(&mut item, &schema["items"], &path) {
                kept.push(item);
            }
        }
        *array = kept;
    }

    /// Checks a string that must be one of several words, if the schema requires that.
    fn choice(&mut self, text: &str, schema: &Value, path: &Path, span: Range<usize>) -> bool {
        let words = words(schema);
        if words.is_empty() || words.contains(&text) {
            return true;
        }
        let hint =
            nearest(text, words.iter().copied()).map(|near| format!("did you mean {near:?}?"));
        let problem = self.source.error(
            span,
            format!(
                "{path}expected {}, found {}",
                expected(schema),
                text::quote(text)
            ),
        );
        self.report
            .push(problem.label("not one of these words").maybe_hint(hint));
        false
    }

    fn in_range(&mut self, fits: bool, schema: &Value, path: &Path, span: Range<usize>) -> bool {
        if !fits {
            let found = text::clip(&self.source.text[span.clone()]);
            self.report.push(
                self.source
                    .error(
                        span,
                        format!("{path}expected {}, found {found}", expected(schema)),
                    )
                    .label("out of range"),
            );
        }
        fits
    }

    /// Substitutes variables in a string, and returns whether there were any.
    fn expand(&mut self, value: &mut Spanned<DeValue<'_>>, path: &Path) -> Result<bool, ()> {
        let span = value.span();
        let DeValue::String(text) = value.get_mut() else {
            return Ok(false);
        };
        if !text.contains("${") {
            return Ok(false);
        }
        match text::expand(text, self.env) {
            Ok(expanded) => {
                *text = expanded.into();
                Ok(true)
            }
            Err(error) => {
                self.report.push(
                    self.source
                        .error(span, format!("{path}{}", error.message))
                        .label("in this string")
                        .hint(error.hint),
                );
                Err(())
            }
        }
    }

    fn found(&self, value: &DeValue<'_>, span: &Range<usize>) -> String {
        match value {
            DeValue::String(text) => format!("the string {}", text::quote(text)),
            DeValue::Integer(_) | DeValue::Float(_) => {
                format!("the number {}", text::clip(&self.source.text[span.clone()]))
            }
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }
}

fn property<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    schema["properties"].get(name).or_else(|| {
        schema
            .get("additionalProperties")
            .filter(|others| others.is_object())
    })
}

fn keys(schema: &Value) -> impl Iterator<Item = &str> {
    schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, property)| is_supported(property))
        .map(|(name, _)| name.as_str())
}

/// A key that has no effect yet is not suggested to users.
fn is_supported(schema: &Value) -> bool {
    !schema["description"]
        .as_str()
        .is_some_and(|text| text.ends_with("ot supported yet."))
}

fn is(schema: &Value, name: &str) -> bool {
    match &schema["type"] {
        Value::String(only) => only == name,
        Value::Array(several) => several.iter().any(|one| one == name),
        // The words of a choice are strings.
        _ => name == "string" && schema.get("oneOf").is_some(),
    }
}

fn within(number: f64, schema: &Value) -> bool {
    let at_least = schema["minimum"]
        .as_f64()
        .is_none_or(|least| number >= least);
    let at_most = schema["maximum"].as_f64().is_none_or(|most| number <= most);
    number.is_finite() && at_least && at_most
}
