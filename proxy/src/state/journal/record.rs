//! One line of the journal.

use crate::clock;
use crate::status::{TripStatus, percent};
use cutover_core::control::maintenance::EVERYTHING;
use cutover_core::control::plane::{Announcement, Change};
use serde::{Deserialize, Serialize};

/// A record of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The time of the change, in RFC 3339.
    pub at: String,
    /// The rollout; `*` for a change that concerns all of them.
    pub rollout: String,
    /// The kind of change: started, added, removed, percent, settings, rollback, rearm,
    /// `dry_run_breach`, `shared_cause`, `shared_cause_ended`, held, maintenance.
    pub change: String,
    /// Who made the change.
    pub actor: String,
    /// The source of the change: file, cli, ui, api, guard, start, timer.
    pub source: String,
    /// The reason for the change.
    pub reason: String,
    /// The whole change in one sentence.
    pub sentence: String,
    /// The share of users on new after a change to one rollout.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub effective_percent: Option<f64>,
    /// The share requested before, for a changed percentage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_percent: Option<f64>,
    /// The share requested after the change, for a changed percentage.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_percent: Option<f64>,
    /// The trip that forced a rollback.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trip: Option<TripStatus>,
    /// The mode after the change, for changed maintenance.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub maintenance: Option<String>,
    /// The time at which maintenance ends automatically, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<String>,
    /// The SHA-256 of the previous line, in hex.
    #[serde(default)]
    pub previous: String,
}

impl Record {
    /// Creates the record of an announcement. Its place in the chain is set when it is appended.
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

    /// Whether the record concerns this rollout. A record about all rollouts concerns each of them.
    pub fn tells_of(&self, rollout: &str) -> bool {
        self.rollout == rollout || self.rollout == EVERYTHING
    }
}
