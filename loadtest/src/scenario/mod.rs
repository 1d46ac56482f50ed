//! Scenarios: a complete test in a file that is played against a proxy, with its expectations.
//!
//! `file` is the format of the file, and `world` is what is started. `steps` are taken during the
//! run, and `play` puts them together. `expect` judges, and `outcome` is the reported result.
//! Nothing in this module knows Cutover: its command line, its configuration and its admin API are
//! written in the scenario files.

pub mod expect;
pub mod file;
pub mod outcome;

mod builtin;
mod certificates;
mod located;
mod play;
mod settings;
mod steps;
mod table;
mod template;
mod world;

pub use crate::scenario::builtin::{BUILT_IN, built_in};
pub use crate::scenario::file::Scenario;
pub use crate::scenario::located::ScenarioError;
pub use crate::scenario::outcome::Outcome;
pub use crate::scenario::play::{Stage, play};
pub use crate::scenario::settings::set;
pub use crate::scenario::world::Surroundings;
#[cfg(target_os = "linux")]
pub(crate) use world::between;
