//! The configuration file and the code that reads it: text in, [`Settings`] or *all* problems out.
//!
//! The steps for a file: `document` (is it text, is it TOML) -> `shape` (does it fit the schema) ->
//! `lower` (what does it mean, do its parts fit together) -> [`Settings`]. Every step reports what
//! it finds and continues with the rest. An operator therefore sees all problems of a file at once,
//! each at its line with a caret and a hint. `schema` contains the words of the file once, for
//! serde, for editors and for `shape`. Other files and the environment are read through a
//! [`Loader`].
//!
//! Architecture invariant: this crate does not read files, a clock or the environment, and does not
//! depend on the HTTP engine. The same text and the same answers of the loader always give the same
//! result, so `cutover check` shows exactly what a reload will do.

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

/// The interface through which the shell provides other files and the environment. Paths are as the
/// file contains them: relative to the folder of the main file unless absolute, also in included
/// files.
pub trait Loader {
    /// Returns the text of an included file or of a `file:` list.
    ///
    /// # Errors
    /// The reason why it cannot be read, in words for the operator.
    fn read(&self, path: &str) -> Result<String, String>;

    /// Returns the text of an included file. The shell may treat it differently from a list,
    /// because an excerpt of it may be shown.
    ///
    /// # Errors
    /// The reason why it cannot be read, in words for the operator.
    fn include(&self, path: &str) -> Result<String, String> {
        self.read(path)
    }

    /// Returns the files that match a pattern with `*`, sorted, in a form that [`Loader::read`]
    /// accepts. The list is empty if there is no match.
    ///
    /// # Errors
    /// The reason why the folder cannot be read, or what is wrong with the pattern.
    fn glob(&self, pattern: &str) -> Result<Vec<String>, String>;

    /// Returns a variable of the environment, for `${NAME}` in strings.
    fn env(&self, name: &str) -> Option<String>;
}

/// A loader without files and without an environment, for a text that names none.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl Loader for NoFiles {
    fn read(&self, path: &str) -> Result<String, String> {
        Err(format!("no file {path}"))
    }

    fn glob(&self, _: &str) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    fn env(&self, _: &str) -> Option<String> {
        None
    }
}

/// Parses the text of a main file, and the files that it names through the loader. `name` is the
/// name of the main file in problems.
///
/// # Errors
/// All mistakes in the file, its includes and its lists, at once, including warnings. The one
/// exception is broken TOML, where only the first mistake of a file can be distinguished from its
/// consequences.
pub fn parse(name: &str, text: &str, loader: &dyn Loader) -> Result<Settings, Problems> {
    let mut world = world::World::new(loader);
    let main = world.main(name, text);
    let mut report = error::Report::default();
    let settings = lower::lower(&main, world, &mut report);
    let warnings = report.finish()?;
    // Every `None` on the way is accompanied by an error. If one ever is not, the file is refused
    // nevertheless.
    settings
        .map(|settings| Settings {
            warnings,
            ..settings
        })
        .ok_or_else(|| Problems::only(main.error(0..0, "this file cannot be understood")))
}

/// Returns the annotated reference: every key with its default and its purpose. It parses, and is a
/// good first file.
pub fn reference() -> &'static str {
    include_str!("../cutover.toml")
}
