//! Problems: what is wrong with a file, its position, and the text to type instead.
//!
//! A person may read these messages at 3 am. Each one has a position, a caret under the exact word,
//! and where possible a hint that can be copied. All problems are collected before any is reported,
//! so that an operator fixes a file once and not once per mistake. They are rendered by
//! `annotate-snippets`, the renderer of cargo and rustc.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Problems beyond this number are counted and not shown. A longer list is not useful, and a file
/// of garbage must not take seconds.
const MAX_PROBLEMS: usize = 100;

/// The severity of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but this is probably not intended.
    Warning,
}

/// One mistake and its position. Displays as `file:line:column: message`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Whether the file is refused because of this problem.
    pub severity: Severity,
    /// The file with the problem: the name given to [`crate::parse`], or the path of an included
    /// file or list.
    pub file: String,
    /// The line, starting at 1.
    pub line: usize,
    /// The column in characters, starting at 1.
    pub column: usize,
    /// The message: what was expected and what was found, in lower case and on one line.
    pub message: String,
    /// The text to type instead, if it is known.
    pub hint: Option<String>,
    /// A few words at the caret.
    label: Option<String>,
    source: Arc<Source>,
    span: Range<usize>,
}

impl Problem {
    /// Renders the problem with its line of the file, a caret and the hint, and in colour for
    /// terminals that support it. The text ends without a newline.
    pub fn render(&self, color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let line = self.source.line_around(self.span.start);
        let span = self.span.start - line.start
            ..self.span.end.clamp(self.span.start, line.end) - line.start;
        let snippet = Snippet::source(&self.source.text[line])
            .path(&*self.source.name)
            .line_start(self.line)
            .annotation(
                AnnotationKind::Primary
                    .span(span)
                    .label(self.label.as_deref()),
            );
        let mut group = level.primary_title(&*self.message).element(snippet);
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(hint));
        }
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        renderer.render(&[group])
    }

    /// Adds a hint about what to type.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a hint about what to type, if there is one.
    pub(crate) fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Adds a few words at the caret.
    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    fn position(&self, other: &Self) -> Ordering {
        let key = |problem: &Self| {
            (
                problem.source.order,
                problem.span.start,
                problem.span.end,
                problem.severity,
            )
        };
        key(self).cmp(&key(other))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}",
            self.file, self.line, self.column, self.message
        )
    }
}

/// All problems of a file, sorted by position: at least one error, and the warnings.
#[derive(Clone, Debug, PartialEq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn only(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// Returns all problems by position: the main file first, then the others in the order in which
    /// they were read.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// Returns the number of problems, which is never zero.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Renders all problems with their lines, carets and hints, separated by empty lines. The text
    /// ends without a newline.
    pub fn render(&self, color: bool) -> String {
        let rendered: Vec<String> = self.iter().map(|problem| problem.render(color)).collect();
        rendered.join("\n\n")
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Problems {}

/// A file as it was read, kept so that a problem can show its line.
#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    /// The name under which people know the file.
    pub(crate) name: String,
    /// The whole text.
    pub(crate) text: String,
    /// The index of the file among the files read, with the main file first.
    order: usize,
    /// The positions at which lines begin, so that the line of a problem is not counted each time.
    line_starts: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: &str, text: String, order: usize) -> Arc<Self> {
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(newline, _)| newline + 1))
            .collect();
        Arc::new(Self {
            name: name.to_owned(),
            text,
            order,
            line_starts,
        })
    }

    /// Creates an error in this file.
    pub(crate) fn error(
        self: &Arc<Self>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Problem {
        self.problem(Severity::Error, span, message.into())
    }

    /// Creates a warning about this file.
    pub(crate) fn warning(
        self: &Arc<Self>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Problem {
        self.problem(Severity::Warning, span, message.into())
    }

    /// Returns `file:line:column` of a position, for hints that refer to another place.
    pub(crate) fn place(&self, at: usize) -> String {
        let (line, column) = self.line_and_column(at);
        format!("{}:{line}:{column}", self.name)
    }

    fn problem(
        self: &Arc<Self>,
        severity: Severity,
        span: Range<usize>,
        message: String,
    ) -> Problem {
        let start = floor_char_boundary(&self.text, span.start);
        let end = floor_char_boundary(&self.text, span.end.max(start));
        let (line, column) = self.line_and_column(start);
        Problem {
            severity,
            file: self.name.clone(),
            line,
            column,
            message,
            hint: None,
            label: None,
            source: Arc::clone(self),
            span: start..end,
        }
    }

    fn line_and_column(&self, at: usize) -> (usize, usize) {
        let at = floor_char_boundary(&self.text, at);
        let line = self.line_starts.partition_point(|start| *start <= at);
        (
            line,
            self.text[self.line_starts[line - 1]..at].chars().count() + 1,
        )
    }

    /// Returns the line that contains this position, without its line end.
    fn line_around(&self, at: usize) -> Range<usize> {
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text[at..]
            .find('\n')
            .map_or(self.text.len(), |newline| at + newline);
        // A span may point at the `\r` of a CRLF line end, and the line must still contain it.
        if end > at && self.text[..end].ends_with('\r') {
            start..end - 1
        } else {
            start..end
        }
    }
}

fn floor_char_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The problems collected so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    problems: Vec<Problem>,
    errors: usize,
    warnings: usize,
}

impl Report {
    pub(crate) fn push(&mut self, problem: Problem) {
        let count = match problem.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// Returns the warnings if there are no errors, or otherwise all problems.
    pub(crate) fn finish(mut self) -> Result<Vec<Problem>, Problems> {
        self.problems.sort_by(Problem::position);
        self.problems.dedup();
        for (count, severity, name) in [
            (self.warnings, Severity::Warning, "warnings"),
            (self.errors, Severity::Error, "errors"),
        ] {
            if let (true, Some(last)) = (count > MAX_PROBLEMS, self.problems.last()) {
                let more = format!("{} more {name} are not shown", count - MAX_PROBLEMS);
                let more = last.source.problem(severity, last.span.clone(), more);
                self.problems.push(more);
            }
        }
        if self.has_errors() {
            Err(Problems(self.problems))
        } else {
            Ok(self.problems)
        }
    }
}
