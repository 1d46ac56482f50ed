//! The file operators write, and the code that understands it: text in, [`Settings`] or *all* problems out.

mod duration;
mod edit;
mod error;
mod settings;

pub use duration::{MAX_DURATION, parse_duration};
pub use edit::{EditError, set_percent};
pub use error::{Problem, Problems, Severity};
pub use settings::{AccessLog, Admin, Backend, Listen, Log, LogFormat, Role, Routing, Server, Settings, State, Token};

/// How the shell hands in the world. Paths are as the file writes them: relative to the folder of the main file unless absolute, in included files too.
pub trait Loader {
    /// The text of an included file or of a `file:` list.
    ///
    /// # Errors
    /// Why it cannot be read, in words for the operator.
    fn read(&self, path: &str) -> Result<String, String>;

    /// The files that match a pattern with `*`, sorted, in a form that [`Loader::read`] takes. No match is an empty list.
    ///
    /// # Errors
    /// Why the folder cannot be read, or what is wrong with the pattern.
    fn glob(&self, pattern: &str) -> Result<Vec<String>, String>;

    /// A variable of the environment, for `${NAME}` in strings.
    fn env(&self, name: &str) -> Option<String>;
}

/// Reads the text of a main file. `name` is how problems call it.
///
/// # Errors
/// Everything that is wrong with the file, its includes and its lists, at once.
pub fn parse(name: &str, text: &str, loader: &dyn Loader) -> Result<Settings, Problems> {
    let _ = (name, text, loader);
    let source = error::Source::new(name, text.to_owned(), 0);
    let mut report = error::Report::default();
    report.push(source.error(0..0, "not written yet"));
    match report.finish() {
        Err(problems) => Err(problems),
        Ok(_) => unreachable!("an error was reported"),
    }
}

/// The JSON Schema of the file.
pub fn schema() -> String {
    String::new()
}

/// The annotated reference.
pub fn reference() -> &'static str {
    ""
}
