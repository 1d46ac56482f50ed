//! Problems: what is wrong with a file, where, and what to type instead.
//!
//! A person reads these at 3 am, so each has a position, a caret under the very word, and where
//! possible a hint that can be copied. All problems are collected before anything is said: an
//! operator fixes a file once, not once per mistake. Rendering is `annotate-snippets`, the renderer
//! of cargo and rustc.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// More problems than this are counted, not shown: nobody reads them, and a file of garbage must
/// not take seconds.
const MAX_PROBLEMS: usize = 100;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but this is probably not meant.
    Warning,
}

/// One thing that is wrong, and where. Displays as `file:line:column: message`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Problem {
    /// Whether the file is refused for it.
    pub severity: Severity,
    /// The file it is in: the name given to [`crate::parse`], or the path of an included file or
    /// list.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What was expected and what was found; lower case, one line.
    pub message: String,
    /// What to type, if that can be said.
    pub hint: Option<String>,
    /// A few words at the caret.
    label: Option<String>,
    source: Arc<Source>,
    span: Range<usize>,
}

impl Problem {
    /// The problem with its line of the file, a caret and the hint; in colour for terminals that
    /// take it. Ends without a newline.
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

    /// Adds what to type.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what to type, if anything can be said.
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

/// Everything that is wrong with a file, sorted by position: at least one error, and the warnings
/// beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn only(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// All problems by position: the main file first, then the others in the order in which they
    /// were read.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// How many there are; never zero.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All problems with their lines, carets and hints, an empty line between two. Ends without a
    /// newline.
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

/// One file as it was read, so that a problem can show its line.
#[derive(Debug, PartialEq)]
pub(crate) struct Source {
    /// As people know it.
    pub(crate) name: String,
    /// All of it.
    pub(crate) text: String,
    /// Its place among the files read, the main file first.
    order: usize,
    /// Where lines begin, so that the place of a problem is not counted out each time.
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

    /// An error in this file.
    pub(crate) fn error(
        self: &Arc<Self>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Problem {
        self.problem(Severity::Error, span, message.into())
    }

    /// A warning about this file.
    pub(crate) fn warning(
        self: &Arc<Self>,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Problem {
        self.problem(Severity::Warning, span, message.into())
    }

    /// `file:line:column` of a place, for hints that point elsewhere.
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

    /// The line that holds this place, without its line end.
    fn line_around(&self, at: usize) -> Range<usize> {
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = self.text[at..]
            .find('\n')
            .map_or(self.text.len(), |newline| at + newline);
        // A span may point at the `\r` of a CRLF line end; the line must still hold it.
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

/// Collects problems on the way.
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

    /// The warnings if there is nothing worse, or else everything.
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
