//! The option `--set key=value`: a scenario with some of its keys changed.
//!
//! The change is made in the text, which keeps its lines, so that a mistake is still shown at its
//! place.

use crate::scenario::located::ScenarioError;
use toml_edit::{DocumentMut, Item, Value};

/// Writes the value at a dotted key such as `load.rate` or `step.2.at` into the text. A value that
/// is not TOML is treated as a string.
pub fn set(name: &str, text: &str, setting: &str) -> Result<String, ScenarioError> {
    let wrong = |what: &str| ScenarioError::whole(name, format!("--set {setting}: {what}"));
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| wrong("expected key=value, such as load.rate=500"))?;
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        ScenarioError::at(name, text, error.span().unwrap_or(0..0), error.message())
    })?;
    let value = value
        .parse::<Value>()
        .unwrap_or_else(|_| Value::from(value));
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys
        .pop()
        .filter(|last| !last.is_empty())
        .ok_or_else(|| wrong("expected a key"))?;
    let mut item: &mut Item = document.as_item_mut();
    for key in keys {
        item = match item {
            Item::ArrayOfTables(tables) => {
                let index: usize = key.parse().map_err(|_| {
                    wrong(&format!(
                        "expected a number for one of [[...]], found {key:?}"
                    ))
                })?;
                let table = index
                    .checked_sub(1)
                    .and_then(|index| tables.get_mut(index))
                    .ok_or_else(|| wrong("there are not so many, counted from 1"))?;
                return replace(table.get_mut(last), value.clone(), || {
                    wrong("expected a key of it that is there")
                })
                .map(|()| document.to_string());
            }
            Item::Table(table) => table.entry(key).or_insert_with(toml_edit::table),
            Item::None => return Err(wrong(&format!("there is no {key:?}"))),
            Item::Value(held) => {
                let Some(table) = held.as_inline_table_mut() else {
                    return Err(wrong(&format!("{key:?} is below a value")));
                };
                table.insert(last, value);
                return Ok(document.to_string());
            }
        };
    }
    match item {
        Item::Table(table) => {
            table.insert(last, Item::Value(value));
        }
        Item::Value(held) => {
            let table = held
                .as_inline_table_mut()
                .ok_or_else(|| wrong("it is below a value"))?;
            table.insert(last, value);
        }
        Item::ArrayOfTables(_) | Item::None => {
            return Err(wrong(
                "expected a number for one of [[...]] before the key, such as step.2.at",
            ));
        }
    }
    Ok(document.to_string())
}

fn replace(
    item: Option<&mut Item>,
    value: Value,
    missing: impl Fn() -> ScenarioError,
) -> Result<(), ScenarioError> {
    *item.ok_or_else(missing)? = Item::Value(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::set;

    const TEXT: &str = "title = \"t\" # kept\n\n[load]\nrate = 5\n\n[[step]]\nat = \
                        \"1s\"\n\n[[step]]\nat = \"2s\"\n";

    #[test]
    fn a_key_is_changed_or_added_and_other_lines_stay() {
        for (setting, found) in [
            ("load.rate=500", "rate = 500\n"),
            ("load.users=7", "rate = 5\nusers = 7\n"),
            ("title=a b", "title = \"a b\""),
            ("step.2.at=\"9s\"", "at = \"1s\"\n\n[[step]]\nat = \"9s\"\n"),
            (
                "variables.failover=safe",
                "[variables]\nfailover = \"safe\"\n",
            ),
        ] {
            let changed = set("a", TEXT, setting).expect(setting);
            assert!(changed.contains(found), "{setting}:\n{changed}");
        }
    }

    #[test]
    fn a_setting_without_a_matching_key_is_refused() {
        for setting in [
            "load.rate",
            "=5",
            "step.x.at=1",
            "step.9.at=1",
            "step.at=1",
            "title.x.y=1",
        ] {
            assert!(
                set("a", TEXT, setting)
                    .expect_err(setting)
                    .to_string()
                    .contains(setting),
                "{setting}"
            );
        }
    }
}
