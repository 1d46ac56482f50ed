//! The file operators write, and the code that understands it: text in, [`Settings`] or *all*
//! problems out.
//!
//! The way of a file: `document` (is it text, is it TOML) -> `shape` (does it fit the schema) ->
//! `lower` (what does it mean, does it fit together) -> [`Settings`]. Every step reports what it
//! finds and goes on with the rest, so an operator sees all problems of a file at once, each at its
//! line with a caret and a hint. `schema` holds the words of the file once, for serde, for editors
//! and for `shape`. Other files and the environment come in through a [`Loader`].
//!
//! Architecture invariant: nothing here reads a file, a clock or the environment, or knows the HTTP
//! engine. The same text and the same answers of the loader always give the same result, so
//! `cutover check` says exactly what a reload will do.

mod document;
mod duration;
mod edit;
mod error;
mod lower;
mod schema;
mod settings;
mod shape;
mod text;
mod world;

pub use document::MAX_FILE;
pub use duration::{MAX_DURATION, parse_duration};
pub use edit::{EditError, set_percent};
pub use error::{Problem, Problems, Severity};
pub use lower::{MAX_CA, MAX_LIST};
pub use schema::schema;
pub use settings::{
    AccessLog, Admin, Backend, Certificate, Engine, HealthCheck, Listen, Log, LogFormat, LogUser,
    Role, Routing, Server, Settings, State, Token, Traces,
};

/// How the shell hands in the world. Paths are as the file writes them: relative to the folder of
/// the main file unless absolute, in included files too.
pub trait Loader {
    /// The text of an included file or of a `file:` list.
    ///
    /// # Errors
    /// Why it cannot be read, in words for the operator.
    fn read(&self, path: &str) -> Result<String, String>;

    /// The text of an included file. The shell may treat it otherwise than a list: a cut of it may
    /// show.
    ///
    /// # Errors
    /// Why it cannot be read, in words for the operator.
    fn include(&self, path: &str) -> Result<String, String> {
        self.read(path)
    }

    /// The files that match a pattern with `*`, sorted, in a form that [`Loader::read`] takes. No
    /// match is an empty list.
    ///
    /// # Errors
    /// Why the folder cannot be read, or what is wrong with the pattern.
    fn glob(&self, pattern: &str) -> Result<Vec<String>, String>;

    /// A variable of the environment, for `${NAME}` in strings.
    fn env(&self, name: &str) -> Option<String>;
}

/// Reads the text of a main file, and what it names through the loader. `name` is how problems call
/// it.
///
/// # Errors
/// Everything that is wrong with the file, its includes and its lists, at once, warnings included.
/// The one exception is broken TOML, where only the first mistake of a file can be told from its
/// consequences.
pub fn parse(name: &str, text: &str, loader: &dyn Loader) -> Result<Settings, Problems> {
    let mut world = world::World::new(loader);
    let main = world.main(name, text);
    let mut report = error::Report::default();
    let settings = lower::lower(&main, world, &mut report);
    let warnings = report.finish()?;
    // Every `None` on the way comes with an error; if one ever does not, the file is refused all
    // the same.
    settings
        .map(|settings| Settings {
            warnings,
            ..settings
        })
        .ok_or_else(|| Problems::only(main.error(0..0, "this file cannot be understood")))
}

/// The annotated reference: every key with its default and what it is for. It parses, and is a good
/// first file.
pub fn reference() -> &'static str {
    include_str!("../cutover.toml")
}
