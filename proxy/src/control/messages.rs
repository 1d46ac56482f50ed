//! Carries out the messages to the control loop.

use super::report::{recent_quantiles, status_of};
use super::takeover::Role;
use super::{Control, Waiting};
use crate::clock;
use crate::shared::control_handle::{Applied, IfRevision, Message, Refusal, Tripped};
use crate::shared::recorder::{SlotTotals, UNMATCHED, slot_of};
use crate::shared::report::{Measured, Report};
use crate::status::{ConfigStatus, Status};
use cutover_core::{Command, CommandError, Effect, Event, Side};
use std::sync::Arc;

impl Control {
    pub(super) async fn take(&mut self, message: Message) {
        match message {
            Message::Settings {
                common,
                restart_needed,
                actor,
                reason,
                reply,
            } => {
                let rollouts = common.settings.rollouts.clone();
                self.common = common;
                let event = Event::Settings {
                    rollouts,
                    actor,
                    reason,
                };
                let effects = self.plane.on(event, clock::now()).unwrap_or_default();
                self.set_tracker_limits();
                let durable = self.carry_out(effects).await;
                self.accepted(restart_needed);
                self.journal_written().await;
                let _ = reply.send(Applied {
                    revision: self.plane.revision(),
                    durable,
                });
            }
            Message::Rejected { problems } => {
                // Each different set of problems is reported once.
                if self.config.problems.as_ref() != Some(&problems) {
                    tracing::error!(file = %self.config.file, problems, "the file cannot be used; the last good one stays in force");
                }
                self.config.last_reload_successful = false;
                self.config.problems = Some(problems);
            }
            Message::Waiting { files } => self.config.waiting_for = files,
            Message::Reserve { if_revision, reply } => {
                let answer = self.expect(Some(&if_revision));
                self.is_reserved = answer.is_ok();
                let _ = reply.send(answer);
            }
            Message::Release => self.is_reserved = false,
            Message::Command {
                rollout,
                command,
                actor,
                reason,
                if_revision,
                reply,
            } => {
                let event = Event::Command {
                    rollout: &rollout,
                    command,
                    actor: actor.clone(),
                    reason: reason.clone(),
                };
                match self.obey(event, if_revision.clone()).await {
                    Err(Refusal::Command(CommandError::MustAsk { id })) => {
                        self.ask(&id, Side::Legacy);
                        self.waiting.push(Waiting {
                            rollout,
                            command,
                            actor,
                            reason,
                            if_revision,
                            asked: 1,
                            reply,
                        });
                    }
                    done => {
                        let _ = reply.send(done);
                    }
                }
            }
            Message::Maintenance {
                wish,
                actor,
                reason,
                if_revision,
                reply,
            } => {
                let event = Event::Maintenance {
                    rollout: wish.rollout.as_deref(),
                    mode: wish.mode,
                    lasts: wish.lasts,
                    actor,
                    reason,
                };
                let _ = reply.send(self.obey(event, if_revision).await);
            }
            Message::Report(reply) => {
                self.reader.read();
                let _ = reply.send(self.report());
            }
            Message::Pulse(reply) => drop(reply.send(())),
            Message::HandOver { trips, reply } => {
                let _ = reply.send(self.hand_over(trips).await);
            }
            Message::TakeBack => {
                self.role = Role::Leads;
                self.disk.take_back();
                // Decisions made in the meantime are saved also.
                let split = self.plane.split();
                self.carry_out(vec![
                    Effect::Persist(self.plane.standings()),
                    Effect::Publish(split),
                ])
                .await;
            }
            Message::Lead { lead, acknowledged } => self.follow(lead, acknowledged),
            Message::Tripped {
                tripped:
                    Tripped {
                        rollout,
                        trip,
                        actor,
                        reason,
                    },
                reply,
            } => {
                // This command is never refused.
                let effects = self
                    .plane
                    .on(
                        Event::Tripped {
                            rollout: &rollout,
                            trip,
                            actor,
                            reason,
                        },
                        clock::now(),
                    )
                    .unwrap_or_default();
                self.carry_out(effects).await;
                let _ = reply.send(());
            }
        }
    }

    /// Refuses a caller that has seen another revision, and a caller that names the revision that
    /// is being changed.
    pub(super) fn expect(&self, if_revision: Option<&[u64]>) -> Result<(), Refusal> {
        let found = self.plane.revision();
        match if_revision {
            Some(expected) if self.is_reserved || !expected.contains(&found) => {
                Err(Refusal::Revision {
                    expected: expected.to_vec(),
                    found,
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Carries out a command, if nothing has changed since the caller read the status.
    pub(super) async fn obey(
        &mut self,
        event: Event<'_>,
        if_revision: IfRevision,
    ) -> Result<Applied, Refusal> {
        self.expect(if_revision.as_deref())?;
        // A command that stops harm never waits. Every other command is left to the process that
        // takes over.
        let stops_harm = matches!(
            event,
            Event::Command {
                command: Command::Rollback { .. },
                ..
            }
        );
        if matches!(self.role, Role::Follows { .. }) && !stops_harm {
            return Err(Refusal::HandingOver);
        }
        let effects = self.plane.on(event, clock::now())?;
        self.set_tracker_limits();
        let durable = self.carry_out(effects).await;
        self.journal_written().await;
        Ok(Applied {
            revision: self.plane.revision(),
            durable,
        })
    }

    pub(super) fn accepted(&mut self, restart_needed: Vec<&'static str>) {
        let digest = self.common.settings.digest.clone();
        if !restart_needed.is_empty() {
            tracing::warn!(
                keys = restart_needed.join(", "),
                "these keys changed in the file but need a restart; the running values stay"
            );
        }
        for warning in &self.common.settings.warnings {
            tracing::warn!(file = %self.config.file, %warning, "the file has a warning");
        }
        tracing::info!(file = %self.config.file, digest, rollouts = self.common.settings.rollouts.len(), revision = self.plane.revision(), "the file is in force");
        let (file, waiting_for) = (
            std::mem::take(&mut self.config.file),
            std::mem::take(&mut self.config.waiting_for),
        );
        self.config = ConfigStatus {
            file,
            digest,
            last_reload_successful: true,
            last_success_at: clock::rfc3339(clock::wall()),
            problems: None,
            restart_needed: restart_needed.into_iter().map(str::to_owned).collect(),
            waiting_for,
        };
    }

    pub(super) fn report(&self) -> Report {
        let nothing = SlotTotals::default();
        let totals = |slot: usize| self.reader.slot(slot_of(slot)).unwrap_or(&nothing);
        let unmatched = self
            .reader
            .slot(UNMATCHED)
            .cloned()
            .unwrap_or_else(SlotTotals::default);
        Report {
            status: Status {
                journal: self.disk.journal_note(),
                ..status_of(
                    &self.plane,
                    &self.published.load().split,
                    self.config.clone(),
                    self.disk.is_durable(),
                    &unmatched,
                    totals,
                )
            },
            measured: self
                .plane
                .rollouts()
                .iter()
                .map(|rollout| Measured {
                    totals: totals(rollout.slot()).clone(),
                    recent_quantiles: recent_quantiles(rollout),
                })
                .collect(),
            unmatched,
            common: Arc::clone(&self.common),
            rollbacks: self
                .rollbacks
                .iter()
                .map(|((rollout, label), count)| (Arc::clone(rollout), label.clone(), *count))
                .collect(),
        }
    }
}
