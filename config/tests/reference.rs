//! Tests of the shipped files: the reference, the schema and the examples agree with the code.

mod common;

use std::fs;

use common::{Folder, folder, parse};
use cutover_config::{Settings, reference, schema};
use serde_json::Value;

#[test]
fn every_default_in_the_reference_is_the_default_of_the_code() {
    let written = parse(reference()).unwrap_or_else(|problems| panic!("{problems}"));
    // The reference with only the lines that are marked as examples.
    let mut bare = String::new();
    for line in reference().lines() {
        let is_heading = line.starts_with("[backend") || line.starts_with("[[rollout]]");
        if is_heading || line.trim_end().ends_with("# yours") {
            bare.push_str(line);
            bare.push('\n');
        }
    }
    let defaults = parse(&bare).unwrap_or_else(|problems| panic!("{problems}"));
    let without_text = |settings: Settings| Settings {
        digest: String::new(),
        warnings: Vec::new(),
        ..settings
    };
    assert!(written.warnings.is_empty(), "{:?}", written.warnings);
    assert_eq!(without_text(written), without_text(defaults));
}

#[test]
fn every_default_in_the_schema_is_the_one_in_the_reference() {
    fn compare(schema: &Value, written: &Value, path: &str, compared: &mut usize) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            let Some(written) = written.get(key) else {
                continue;
            };
            if let Some(default) = property.get("default") {
                assert_eq!(written, default, "{path}");
                *compared += 1;
            }
            compare(property, written, &path, compared);
            compare(&property["items"], &written[0], &path, compared);
            for written in written
                .as_object()
                .into_iter()
                .flat_map(|tables| tables.values())
            {
                compare(&property["additionalProperties"], written, &path, compared);
            }
        }
    }
    let schema: Value = serde_json::from_str(&schema()).expect("the schema is JSON");
    let written: Value = toml::from_str(reference()).expect("the reference is TOML");
    let mut compared = 0;
    compare(&schema, &written, "", &mut compared);
    assert!(compared > 30, "{compared}");
}

#[test]
fn every_supported_key_is_in_the_reference() {
    fn missing(schema: &Value, path: &str, uncommented: &[String], missing_keys: &mut Vec<String>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let description = property["description"].as_str().unwrap_or_default();
            if description.ends_with("Not supported yet.") {
                continue;
            }
            let shown = |line: &String| {
                line.starts_with(&format!("{key} ="))
                    || line.contains(&format!(" {key} = "))
                    || line.starts_with(&format!("[{key}"))
                    || line.contains(&format!(".{key}]"))
            };
            if !uncommented
                .iter()
                .any(|line| shown(line) || line.contains(&format!("[[{key}]]")))
                && !["p50", "p95", "mean"].contains(&key.as_str())
            {
                missing_keys.push(format!("{path}{key}"));
            }
            for part in [
                property,
                &property["items"],
                &property["additionalProperties"],
            ] {
                missing(part, &format!("{path}{key}."), uncommented, missing_keys);
            }
        }
    }
    let supported = reference().split("# Later.").next().unwrap_or_default();
    let lines: Vec<String> = supported
        .lines()
        .map(|line| line.trim_start_matches("# ").to_owned())
        .collect();
    let schema: Value = serde_json::from_str(&schema()).expect("the schema is JSON");
    let mut missing_keys = Vec::new();
    missing(&schema, "", &lines, &mut missing_keys);
    assert!(
        missing_keys.is_empty(),
        "not in the reference: {missing_keys:?}"
    );
}

#[test]
fn every_unsupported_line_of_the_reference_is_refused() {
    let later = reference()
        .split("what is not there:")
        .nth(1)
        .expect("the part that comes later");
    let uncommented: String = later
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or_default()))
        .collect();
    let backends = "[backend.legacy]\nservers = [\"h:1\"]\n[backend.new]\nservers = [\"h:2\"]\n";
    let uncommented = uncommented.replace(
        "[[rollout]]\n",
        &format!("{backends}[[rollout]]\nid = \"a\"\nkey = [\"ip\"]\n"),
    );
    // The only other message is the warning about `ip` as the only key.
    let problems = parse(&uncommented).expect_err("nothing of this is supported");
    let refused = problems
        .iter()
        .filter(|problem| problem.message.contains("not supported yet"))
        .count();
    assert_eq!((refused, problems.len() - refused), (3, 1), "{problems}");
}

#[test]
fn the_committed_schema_is_current() {
    let path = folder("cutover.schema.json");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, schema()).expect("the schema can be written");
    }
    assert_eq!(
        fs::read_to_string(path).unwrap_or_default(),
        schema(),
        "run the tests with UPDATE=1"
    );
}

#[test]
fn the_reference_names_its_schema_in_the_first_line() {
    assert_eq!(
        reference().lines().next(),
        Some("#:schema ./cutover.schema.json")
    );
}

#[test]
fn every_example_is_valid_without_errors() {
    let examples = folder("examples");
    let mut seen = 0;
    for entry in fs::read_dir(&examples).expect("the examples").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("an example");
        let name = entry.file_name().to_string_lossy().into_owned();
        let settings = cutover_config::parse(&name, &text, &Folder(examples.clone()))
            .unwrap_or_else(|problems| panic!("{problems}"));
        let warnings: Vec<&str> = settings
            .warnings
            .iter()
            .map(|warning| warning.message.as_str())
            .collect();
        let expected: &[&str] = if name == "several-rollouts.toml" {
            &[
                "rollouts \"login\" and \"profile\" share the salt \"accounts\": they move the \
                 same users",
            ]
        } else {
            &[]
        };
        assert_eq!(warnings, expected, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn the_smallest_useful_file_has_at_most_ten_lines() {
    let text = fs::read_to_string(folder("examples/minimal.toml")).expect("the smallest example");
    assert!(text.lines().count() <= 10);
}
