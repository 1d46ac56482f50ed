//! A mistake in a scenario file, with its place.

use std::fmt;
use std::ops::Range;

/// A mistake in a scenario, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioError {
    name: String,
    message: String,
    place: Option<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
    width: usize,
    text: String,
}

impl ScenarioError {
    /// Creates a mistake at these bytes of the text.
    pub fn at(name: &str, text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        let start = (0..=span.start.min(text.len()))
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let marked = span.end.clamp(start, line_end.max(start));
        let width = text
            .get(start..marked)
            .map_or(1, |marked| marked.chars().count())
            .max(1);
        let place = Place {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width,
            text: text[line_start..line_end].to_owned(),
        };
        Self {
            name: name.to_owned(),
            message: message.into(),
            place: Some(place),
        }
    }

    /// Creates a mistake of the scenario as a whole.
    pub fn whole(name: &str, message: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            message: message.into(),
            place: None,
        }
    }

    /// Converts an error of the TOML parser.
    pub fn parsing(name: &str, text: &str, error: &toml::de::Error) -> Self {
        match error.span() {
            Some(span) => Self::at(name, text, span, error.message()),
            None => Self::whole(name, error.message()),
        }
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else {
            return write!(formatter, "{}: {}", self.name, self.message);
        };
        let margin = place.line.to_string().len();
        writeln!(
            formatter,
            "{}:{}:{}: {}",
            self.name, place.line, place.column, self.message
        )?;
        writeln!(formatter, "{:margin$} |", "")?;
        writeln!(formatter, "{} | {}", place.line, place.text)?;
        write!(
            formatter,
            "{:margin$} | {}{}",
            "",
            " ".repeat(place.column - 1),
            "^".repeat(place.width)
        )
    }
}

impl std::error::Error for ScenarioError {}

#[cfg(test)]
mod tests {
    use super::ScenarioError;

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_marker_below() {
        let text = "title = \"ä\"\nrate = -1\n";
        let at = text.find("-1").expect("there");
        assert_eq!(
            ScenarioError::at("a.toml", text, at..at + 2, "expected more").to_string(),
            "a.toml:2:8: expected more\n  |\n2 | rate = -1\n  |        ^^"
        );
        let at = text.find('ä').expect("there");
        assert!(
            ScenarioError::at("a.toml", text, at..at + 2, "x")
                .to_string()
                .starts_with("a.toml:1:10: x")
        );
        assert!(
            ScenarioError::at("a.toml", text, 999..1_000, "x")
                .to_string()
                .starts_with("a.toml:3:1: x")
        );
        assert_eq!(
            ScenarioError::whole("a.toml", "nothing").to_string(),
            "a.toml: nothing"
        );
    }
}
