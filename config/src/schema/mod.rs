//! The words of the file: ONE definition that serde reads it by, that `schema()` describes it by,
//! and that `shape` checks it against.
//!
//! Every field is optional for serde. What must be there is said in the schema
//! (`#[schemars(required)]`) and checked by `shape`, which finds all mistakes at once where serde
//! would stop at the first. Ranges, defaults and examples are in the schema too, so an editor shows
//! what the program checks. No `#[serde(flatten)]`: it loses spans.
//!
//! Tables are in `file` and `rollout`, kinds of values in `value`. A description that ends in "Not
//! supported yet." belongs to a key that is understood and refused, so that no operator believes in
//! a
//! safety that is not there.

mod file;
mod rollout;
mod value;

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

pub(crate) use file::{
    AccessText, AdminTable, BackendTable, CertificateTable, EngineText, File, HealthTable,
    IncludedFile, ListenTable, LogFormatText, LogTable, LogUserText, RoleText, RoutingTable,
    StateTable, TokenTable, TracesTable,
};
pub(crate) use rollout::{
    AnonymousText, DownTable, ErrorsTable, FailoverText, GuardTable, HangTable, LatencyTable,
    MatchTable, ModeText, RolloutTable, SharedCauseText, VsLegacyTable,
};
pub(crate) use value::{
    At, DURATION_PATTERN, DurationText, Number, OrOff, RATE_PATTERN, RateText, SIZE_PATTERN,
    SizeText,
};

/// The defaults of the file, as the file would write them: in the schema for editors, and read by
/// `lower` like anything else.
pub(crate) mod default {
    pub(crate) const HTTP: &str = "0.0.0.0:8080";
    pub(crate) const MAX_CONNECTIONS: u64 = 20_000;
    pub(crate) const MAX_HEADER_BYTES: &str = "64KiB";
    pub(crate) const HEADER_TIMEOUT: &str = "10s";
    pub(crate) const BODY_IDLE_TIMEOUT: &str = "20s";
    pub(crate) const WRITE_TIMEOUT: &str = "30s";
    pub(crate) const KEEPALIVE_TIMEOUT: &str = "60s";
    pub(crate) const MAX_BODY: &str = "100MiB";
    pub(crate) const ADMIN: &str = "127.0.0.1:9090";
    pub(crate) const DIRECTORY: &str = "/var/lib/cutover";
    pub(crate) const LOG_SAMPLE: &str = "100%";
    pub(crate) const TRACES_SAMPLE: &str = "1%";
    pub(crate) const TRACES_SERVICE: &str = "cutover";
    pub(crate) const CONNECT_TIMEOUT: &str = "1s";
    pub(crate) const RESPONSE_TIMEOUT: &str = "30s";
    pub(crate) const IDLE_TIMEOUT: &str = "30s";
    pub(crate) const BODY_PAUSE_TIMEOUT: &str = "5m";
    pub(crate) const STREAM_IDLE_TIMEOUT: &str = "1h";
    pub(crate) const SLOW_START: &str = "0s";
    pub(crate) const HEALTH_INTERVAL: &str = "2s";
    pub(crate) const UNHEALTHY_AFTER: u64 = 3;
    pub(crate) const HEALTHY_AFTER: u64 = 2;
    pub(crate) const DRAIN_ON_ROLLBACK: &str = "60s";
    pub(crate) const LEGACY: &str = "legacy";
    pub(crate) const NEW: &str = "new";
    pub(crate) const GENERATION: u64 = 1;
}

/// The schema of the main file. Without references and without null, so that every editor
/// understands it, and so does `shape`.
pub(crate) fn main_file() -> &'static Value {
    static MAIN: LazyLock<Value> = LazyLock::new(describe::<File>);
    &MAIN
}

/// The schema of an included file.
pub(crate) fn included_file() -> &'static Value {
    static INCLUDED: LazyLock<Value> = LazyLock::new(describe::<IncludedFile>);
    &INCLUDED
}

/// The JSON Schema (draft 7) of the main file, indented, with a newline at the end.
/// `config/cutover.schema.json` is this text.
pub fn schema() -> String {
    format!("{:#}\n", main_file())
}

fn describe<T: JsonSchema>() -> Value {
    let described = SchemaSettings::draft07()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>();
    // What the file is comes first, for people.
    let mut schema = Map::new();
    for key in ["$schema", "title", "description"] {
        schema.insert(
            key.to_owned(),
            described.get(key).cloned().unwrap_or_default(),
        );
    }
    schema.insert("title".to_owned(), Value::from("cutover.toml"));
    schema.extend(
        described
            .as_object()
            .cloned()
            .into_iter()
            .flatten()
            .filter(|(key, _)| key != "title"),
    );
    let mut schema = Value::Object(schema);
    tidy(&mut schema);
    schema
}

/// Takes out what speaks of Rust and not of TOML: null, which TOML does not have, and the widths of
/// integers.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Object(object) => {
            object.retain(|key, value| key != "format" || !value.is_string());
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                // The lines of a doc comment are one paragraph.
                let paragraphs = text.split("\n\n").map(|lines| lines.replace('\n', " "));
                *text = paragraphs.collect::<Vec<_>>().join("\n\n");
            }
            drop_null_variant(object);
            object.values_mut().for_each(tidy);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// `anyOf: [X, null]` becomes `X`.
fn drop_null_variant(object: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = object.get_mut("anyOf") else {
        return;
    };
    let before = variants.len();
    variants.retain(|variant| variant.get("type").is_none_or(|name| name != "null"));
    if variants.len() == before {
        return;
    }
    if let [Value::Object(only)] = variants.as_mut_slice() {
        let only = std::mem::take(only);
        object.shift_remove("anyOf");
        for (key, value) in only {
            object.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_speaks_of_toml_only() {
        let text = schema();
        for word in ["\"null\"", "$ref", "uint", "\"format\": \"u"] {
            assert!(!text.contains(word), "{word}");
        }
        assert!(text.ends_with("}\n"));
    }

    #[test]
    fn every_key_is_described() {
        fn check(path: &str, schema: &Value) {
            for (key, property) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                assert!(
                    path == ".rollout.rollout" || property["description"].is_string(),
                    "{path} has no description"
                );
                for part in [
                    property,
                    &property["items"],
                    &property["additionalProperties"],
                ] {
                    check(&path, part);
                }
            }
        }
        check("", main_file());
    }
}
