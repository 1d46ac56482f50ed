//! Properties that hold for every text, and not only for the texts of other tests.

mod common;

use common::{BACKENDS, parse};
use cutover_config::{Problems, Settings, reference, set_percent};
use cutover_core::Percent;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::sample::{Index, select};

/// Parses and renders a text, and checks the properties of every result.
fn check(text: &str) -> Result<Settings, Problems> {
    let result = parse(text);
    match &result {
        Ok(settings) => {
            assert!(!settings.rollouts.is_empty() && !settings.backends.is_empty());
            assert_eq!(settings.rollouts.len(), settings.rollout_files.len());
            settings
                .warnings
                .iter()
                .for_each(|warning| drop(warning.render(true)));
        }
        Err(problems) => {
            assert!(problems.len() > 0);
            let rendered = problems.render(false);
            problems.render(true);
            assert!(
                !rendered.contains("does not fit") && !rendered.contains("cannot be understood"),
                "the schema and the types disagree:\n{rendered}"
            );
            for problem in problems {
                let lines = if problem.file == "cutover.toml" {
                    text.matches('\n').count() + 1
                } else {
                    usize::MAX
                };
                assert!(
                    (1..=lines).contains(&problem.line) && problem.column >= 1,
                    "{problem}"
                );
                assert!(
                    !problem.message.is_empty() && !problem.message.contains('\n'),
                    "{problem}"
                );
            }
        }
    }
    result
}

/// Values of all types, which are right for some keys and wrong for most.
const VALUES: [&str; 43] = [
    "1",
    "0",
    "-1",
    "1.5",
    "100",
    "99999999999999999999",
    "1e400",
    "0x10",
    "nan",
    "inf",
    "true",
    "\"\"",
    "\"x\"",
    "\"5%\"",
    "\"30s\"",
    "\"0s\"",
    "\"64KiB\"",
    "\"10.0.0.1:80\"",
    "\"legacy\"",
    "\"off\"",
    "\"sequential\"",
    "\"${SERVER}\"",
    "\"${NOPE}\"",
    "'''a\nb'''",
    "\"\\u0000\"",
    "\"é\"",
    "\"file:users.txt\"",
    "\"file:nope\"",
    "1979-05-27",
    "[]",
    "[1]",
    "[\"a\"]",
    "[\"ip\"]",
    "[\"x\", \"header:y\"]",
    "[[1]]",
    "[{}]",
    "{}",
    "{ a = 1 }",
    "{ max = \"2%\" }",
    "{ older_than = \"5s\" }",
    "{ down_for = \"5s\" }",
    "\"threshold\"",
    "{ path = \"/x\" }",
];

/// Lines that may appear anywhere.
const LINES: [&str; 16] = [
    "[rollout]",
    "[[rollout]]",
    "[rollout.guard]",
    "[rollout.plan]",
    "[[rollout.check]]",
    "[[notify]]",
    "[backend.x]",
    "[backend]",
    "[listen]",
    "[[listen]]",
    "percent = 7",
    "rollout.x = 1",
    "a.b.c = 1",
    "[\"\"]",
    "\"\" = 1",
    "servers = [",
];

#[derive(Clone, Debug)]
enum Edit {
    /// Replaces the value of a line.
    Value(Index, &'static str),
    /// Inserts a new line.
    Insert(Index, &'static str),
    /// Removes a line.
    Remove(Index),
    /// Swaps two lines.
    Swap(Index, Index),
    /// Inserts a character anywhere.
    Character(Index, char),
    /// Cuts off the text after a character.
    Cut(Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        8 => (any::<Index>(), select(&VALUES[..])).prop_map(|(at, value)| Edit::Value(at, value)),
        3 => (any::<Index>(), select(&LINES[..])).prop_map(|(at, line)| Edit::Insert(at, line)),
        3 => any::<Index>().prop_map(Edit::Remove),
        2 => (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Edit::Swap(a, b)),
        1 => (any::<Index>(), any::<char>()).prop_map(|(at, character)| Edit::Character(at, character)),
        1 => any::<Index>().prop_map(Edit::Cut),
    ];
    proptest::collection::vec(edit, 0..8)
}

/// Returns the reference with and without the part that is not supported yet, so that its keys are
/// also tested.
fn start() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(reference().to_owned()),
        Just(
            reference()
                .lines()
                .map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(line)))
                .filter(|line| line.contains(" = ") || line.starts_with('['))
                .collect()
        )
    ]
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    for edit in edits {
        if lines.is_empty() {
            break;
        }
        match edit {
            Edit::Value(at, value) => {
                let line = at.get_mut(&mut lines);
                if let Some((key, _)) = line.split_once('=') {
                    *line = format!("{key}= {value}");
                }
            }
            Edit::Insert(at, new) => lines.insert(at.index(lines.len()), (*new).to_owned()),
            Edit::Remove(at) => drop(lines.remove(at.index(lines.len()))),
            Edit::Swap(a, b) => {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
            }
            Edit::Character(at, character) => {
                let mut characters: Vec<char> = lines.join("\n").chars().collect();
                characters.insert(at.index(characters.len() + 1), *character);
                lines = characters
                    .into_iter()
                    .collect::<String>()
                    .split('\n')
                    .map(str::to_owned)
                    .collect();
            }
            Edit::Cut(at) => {
                let text = lines.join("\n");
                let keep = at.index(text.chars().count() + 1);
                lines = text
                    .chars()
                    .take(keep)
                    .collect::<String>()
                    .split('\n')
                    .map(str::to_owned)
                    .collect();
            }
        }
    }
    lines.join("\n")
}

/// Returns rollouts `r0`, `r1`, ... in unusual layouts, with a comment on each percentage.
fn rollouts(count: usize) -> String {
    let layouts = [
        "[[rollout]]\nid = \"rN\"\npercent = 5   # raised by ana, CHG-N\nkey = \
         [\"cookie:uid\"]\nmatch = { path = \"/rN\" }\n",
        "\n  [[rollout]] # number N\n  key=['cookie:uid']\n  percent=0.5# CHG-N\n  \
         match.path='/rN'\n  id='rN'\n[rollout.guard]\nerrors={max='1%'}\n",
        "[[ rollout ]]\n\"id\" = \"\"\"rN\"\"\"\n\"percent\"\t=\t100.0\t# CHG-N\nkey = [ # who\n  \
         \"cookie:uid\",\n]\nmatch = { path = \"/rN\", }\n# end of N\n",
    ];
    (0..count)
        .map(|number| layouts[number % layouts.len()].replace('N', &number.to_string()))
        .collect()
}

proptest! {
    #[test]
    fn no_text_causes_a_panic(text in any::<String>()) {
        let _ = check(&text);
    }

    #[test]
    fn no_file_close_to_the_reference_causes_a_panic(text in start(), edits in edits()) {
        let _ = check(&apply(&text, &edits));
    }

    #[test]
    fn a_percentage_that_was_set_is_read_back(thousandths in 0..=100_000u32, which in any::<Index>(), crlf in any::<bool>()) {
        let percent = Percent::from_thousandths(thousandths).expect("in range");
        let count = 5;
        let number = which.index(count);
        let id = format!("r{number}");
        let mut before = format!("{BACKENDS}{}", rollouts(count));
        if crlf {
            before = before.replace('\n', "\r\n");
        }
        let after = set_percent(&before, &id, percent).expect("edited");

        let (was, is) = (parse(&before).expect("valid"), parse(&after).expect("still valid"));
        for (was, is) in was.rollouts.iter().zip(&is.rollouts) {
            assert_eq!(is.percent, if *is.id == *id { percent } else { was.percent });
        }
        let (was, is): (Vec<&str>, Vec<&str>) = (before.split('\n').collect(), after.split('\n').collect());
        assert_eq!(was.len(), is.len());
        let changed: Vec<(&str, &str)> = was.into_iter().zip(is).filter(|(was, is)| was != is).collect();
        assert!(changed.len() <= 1, "{changed:?}");
        for (was, is) in changed {
            assert!(is.contains(&format!("CHG-{number}")) && is.ends_with('\r') == crlf, "{is:?}");
            let comment = |line: &str| line.split_once('#').map(|(_, comment)| comment.to_owned());
            assert_eq!(comment(was), comment(is));
        }
    }
}
