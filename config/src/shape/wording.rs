//! Descriptions of values and of the expected values, in words.

use super::{RATE_SHAPE, is, is_supported, keys, within};
use crate::duration::{DURATION_SHAPE, SIZE_SHAPE};
use crate::schema::{DURATION_PATTERN, RATE_PATTERN, SIZE_PATTERN};
use crate::text::{self};
use serde_json::{Map, Value};
use toml::de::DeValue;

/// Returns the heading of the table that has this key, and whether it is a list of tables. The
/// outermost matching table is returned.
pub(super) fn heading_with(root: &Value, name: &str) -> Option<(String, bool)> {
    let mut level: Vec<(String, bool, &Value)> = vec![(String::new(), false, root)];
    while !level.is_empty() {
        let mut next = Vec::new();
        for (heading, is_list, schema) in level {
            let properties: Option<&Map<String, Value>> = schema["properties"].as_object();
            if !heading.is_empty()
                && properties.is_some_and(|properties| properties.contains_key(name))
            {
                return Some((heading, is_list));
            }
            for (key, property) in properties.into_iter().flatten() {
                let heading = if heading.is_empty() {
                    key.clone()
                } else {
                    format!("{heading}.{key}")
                };
                next.push((heading.clone(), false, property));
                next.push((heading.clone(), true, &property["items"]));
                next.push((
                    format!("{heading}.NAME"),
                    false,
                    &property["additionalProperties"],
                ));
            }
        }
        level = next;
    }
    None
}

pub(super) fn words(schema: &Value) -> Vec<&str> {
    schema["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|variant| variant["const"].as_str())
        .collect()
}

/// Returns the words to choose from, without those that have no effect yet.
pub(super) fn offered(schema: &Value) -> Vec<&str> {
    schema["oneOf"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|variant| is_supported(variant))
        .filter_map(|variant| variant["const"].as_str())
        .collect()
}

/// Describes what a value must be, in words.
pub(super) fn expected(schema: &Value) -> String {
    if !words(schema).is_empty() {
        return text::either(&offered(schema));
    }
    let range = match (&schema["minimum"], &schema["maximum"]) {
        (Value::Null, _) => String::new(),
        (least, Value::Null) => format!(" of at least {least}"),
        (least, most) => format!(" from {least} to {most}"),
    };
    match schema["pattern"].as_str() {
        Some(DURATION_PATTERN) => DURATION_SHAPE.to_owned(),
        Some(SIZE_PATTERN) => SIZE_SHAPE.to_owned(),
        Some(RATE_PATTERN) => RATE_SHAPE.to_owned(),
        _ => format!("{}{range}", kind(schema)),
    }
}

/// Describes the type that a value must have, in words.
pub(super) fn kind(schema: &Value) -> &'static str {
    if is(schema, "boolean") && !schema["type"].is_string() {
        return if is(schema, "object") {
            "a table or false"
        } else {
            "a whole number or false"
        };
    }
    match schema["type"].as_str() {
        Some("boolean") => "true or false",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("array") if is(&schema["items"], "object") => "a list of tables",
        Some("array") if is(&schema["items"], "string") => "a list of strings",
        Some("array") => "a list",
        Some("object") => "a table",
        _ => "a string",
    }
}

/// Returns what to type for a value of the wrong type: the same value in the right form where that
/// is known, or otherwise an example.
pub(super) fn retype(found: &DeValue<'_>, schema: &Value, key: &str) -> Option<String> {
    let written = match found {
        DeValue::String(text) if is(schema, "array") && is(&schema["items"], "string") => {
            Some(format!("[{text:?}]"))
        }
        DeValue::String(text) if is(schema, "number") || is(schema, "integer") => {
            let number = text.trim().trim_end_matches('%').trim_end();
            number
                .parse::<f64>()
                .ok()
                .filter(|number| within(*number, schema))
                .map(|_| number.to_owned())
        }
        DeValue::String(text) if is(schema, "boolean") => match text.as_ref() {
            "true" | "yes" | "on" => Some("true".to_owned()),
            "false" | "no" | "off" => Some("false".to_owned()),
            _ => None,
        },
        DeValue::Integer(number) if is(schema, "string") => {
            Some(match schema["pattern"].as_str() {
                Some(DURATION_PATTERN) => format!("\"{number}s\" for seconds"),
                Some(RATE_PATTERN) => format!("\"{number}%\""),
                _ => format!("\"{number}\""),
            })
        }
        DeValue::Float(number) if schema["pattern"] == RATE_PATTERN => {
            Some(format!("\"{number}%\""))
        }
        DeValue::Table(_) if is(schema, "array") && is(&schema["items"], "object") => {
            return Some(format!("write [[{key}]] with two brackets"));
        }
        DeValue::Array(items)
            if is(schema, "object")
                && items.iter().all(|item| item.get_ref().is_table())
                && !items.is_empty() =>
        {
            return Some(format!("write [{key}] with one bracket, and only once"));
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    };
    match written {
        Some(written) => Some(format!("write {key} = {written}")),
        None if schema.get("examples").is_some() || schema.get("default").is_some() => {
            Some(format!("write {key} = {}", example(schema)))
        }
        None if is(schema, "object") && keys(schema).next().is_some() => Some(format!(
            "the keys of {key} are {}",
            text::list(keys(schema))
        )),
        None => None,
    }
}

/// Returns a value to copy, as TOML.
pub(super) fn example(schema: &Value) -> String {
    let value = schema["examples"].get(0).or_else(|| schema.get("default"));
    value.map_or_else(|| "...".to_owned(), toml_of)
}

pub(super) fn toml_of(value: &Value) -> String {
    match value {
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(toml_of).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(object) => format!(
            "{{ {} }}",
            object
                .iter()
                .map(|(key, value)| format!("{key} = {}", toml_of(value)))
                .collect::<Vec<_>>()
                .join(", ")
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}
