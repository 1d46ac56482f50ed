//! Scenarios: a whole story in a file, played against a proxy, with what has to come out of it.
//!
//! `file` is what is written, `world` what is started, `steps` what happens meanwhile, `play` puts
//! them together, `expect` judges, `outcome` is what there is to report. Nothing in here knows
//! Cutover: its command line, its file and its admin API stand in the scenario files.

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
