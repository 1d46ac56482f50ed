//! One line of the journal.

use crate::clock;
use crate::status::{TripStatus, percent};
use cutover_core::control::maintenance::EVERYTHING;
use cutover_core::control::plane::{Announcement, Change};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339.
    pub at: String,
    /// Which rollout; `*` for a change that concerns all of them.
    pub rollout: String,
    /// What: started, added, removed, percent, settings, rollback, rearm, `dry_run_breach`,
    /// `shared_cause`, `shared_cause_ended`, held, maintenance.
    pub change: String,
    /// Who.
    pub actor: String,
    /// Through which door: file, cli, ui, api, guard, start, timer.
    pub source: String,
    /// Why.
    pub reason: String,
    /// All of it in one sentence.
    pub sentence: String,
    /// The share of users on new from then on; of a change to one rollout.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub effective_percent: Option<f64>,
    /// The share asked for before, for a changed percentage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_percent: Option<f64>,
    /// The share asked for from then on, for a changed percentage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_percent: Option<f64>,
    /// What forced a rollback.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trip: Option<TripStatus>,
    /// The mode from then on, for a changed maintenance.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub maintenance: Option<String>,
    /// When it ends by itself, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// SHA-256 of the line before, in hex.
    #[serde(default)]
    pub previous: String,
}

impl Record {
    /// The record of an announcement; its place in the chain comes when it is appended.
    pub fn new(announcement: &Announcement) -> Self {
        let mut record = Self {
            at: clock::rfc3339(announcement.at),
            rollout: announcement.rollout.to_string(),
            change: announcement.change.name().to_owned(),
            actor: announcement.actor.name.clone(),
            source: announcement.actor.source.name().to_owned(),
            reason: announcement.reason.clone(),
            sentence: announcement.sentence.clone(),
            effective_percent: announcement.effective.map(percent),
            from_percent: None,
            to_percent: None,
            trip: None,
            maintenance: None,
            until: None,
            previous: String::new(),
        };
        match &announcement.change {
            Change::Percent { from, to } => {
                (record.from_percent, record.to_percent) =
                    (Some(percent(*from)), Some(percent(*to)));
            }
            Change::RolledBack(trip) => record.trip = Some(TripStatus::new(trip)),
            Change::Maintenance { mode, until } => {
                (record.maintenance, record.until) =
                    (Some(mode.name().to_owned()), until.map(clock::rfc3339));
            }
            Change::Started
            | Change::Added
            | Change::Removed
            | Change::Settings
            | Change::Rearmed
            | Change::DryRunBreach
            | Change::SharedCause
            | Change::SharedCauseEnded
            | Change::NoRefuge
            | Change::NoRefugeEnded
            | Change::Spilled
            | Change::SpillEnded
            | Change::LegacyOverloaded
            | Change::Held => {}
        }
        record
    }

    /// Whether it tells of this rollout; what concerns all tells of each.
    pub fn tells_of(&self, rollout: &str) -> bool {
        self.rollout == rollout || self.rollout == EVERYTHING
    }
}
