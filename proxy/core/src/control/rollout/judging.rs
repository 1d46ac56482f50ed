//! The judgement of the counts of a rollout at each tick.

use super::recent::spans;
use super::settings::RolloutSettings;
use super::trip::{Cause, SideNumbers, TickNumbers};
use super::{HISTORY, QUIET, RAISE_SUSPECT, Rollout, STRANDED_MEMORY, Shared, Stranded};
use crate::guard::availability::Word;
use crate::guard::judge::TripNumbers;
use crate::guard::judge::{Case, Finding, Observed, SHARED_LASTS};
use crate::guard::{Guard, Judged, Mode, seconds};
use crate::routing::bucket::Salt;
use crate::routing::split::RolloutRule;
use crate::side::{PerSide, Side};
use crate::stats::window::Window;
use crate::time::{Mono, Now};
use std::sync::Arc;
use std::time::Duration;

/// How users move after a rollback onto a legacy that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spilled {
    /// They go to new.
    ToNew,
    /// They are back on legacy, because it is well again.
    Back,
    /// They are back on legacy, because new fails them as well.
    Failed,
}

/// The result of judging a rollout at a tick.
pub(crate) enum Judgement {
    /// The rollout must be rolled back.
    Trip {
        /// The rule that was breached, and its numbers.
        cause: Cause,
        /// The cause as a sentence.
        sentence: String,
    },
    /// The guard would roll back if it were not a dry run. Reported once per breach.
    WouldTrip(Case),
    /// Both sides have become bad at the same time: raises are frozen.
    SharedCause(String),
    /// Both sides are no longer bad at the same time.
    SharedCauseEnded,
    /// New is worse, but legacy does not answer: users are not moved, and raises are frozen.
    NoRefuge(String),
    /// New is no longer worse, or legacy answers again.
    NoRefugeEnded,
    /// A backend must be probed to find out whether it can take users.
    Ask(Side),
    /// Users are moved after a rollback, because legacy does not answer or answers again.
    Spill(Spilled),
    /// Legacy does not carry the load after a rollback.
    Overloaded(String),
    /// New is worse, but too few users are affected for a rollback.
    TooFewUsers(String),
}

/// Returns the part of the settings that the data path needs. The percentage and the latch are left
/// out on purpose, because they change without the file.
pub fn rule_of(settings: &RolloutSettings, slot: usize) -> RolloutRule {
    RolloutRule {
        id: Arc::clone(&settings.id),
        slot,
        matches: settings.matches.clone(),
        salt: Salt::new(&settings.salt),
        keys: settings.keys.clone(),
        anonymous: settings.anonymous,
        always_new: settings.always_new.clone(),
        always_legacy: settings.always_legacy.clone(),
        backends: settings.backends.clone(),
        failover: settings.failover,
        fallback_on_404: settings.fallback_on_404.clone(),
    }
}

impl Rollout {
    /// Records the observations of one tick and returns the resulting judgements.
    pub(crate) fn tick(&mut self, now: Now, observed: &Observed<'_>) -> Vec<Judgement> {
        if self.settings.guard.mode == Mode::Threshold {
            self.judged.tick(now.mono, observed);
        }
        self.recent.tick(now.mono, observed);
        self.remember(TickNumbers {
            at: now.wall,
            sides: self
                .recent
                .all
                .map(|window| SideNumbers::of(&window.last_counts())),
        });
        if self.latch().is_some() || self.settings.guard.mode == Mode::Off {
            self.judge.skip(observed, &self.recent.recent(), now.mono);
            return self.watch_legacy(now.mono);
        }
        let finding = self.judge.tick(observed, &self.recent.recent(), now.mono);
        let mut judgements = self.thaw(now.mono);
        let breach = Guard::new(&self.settings.guard)
            .breach(self.judged_spans())
            .map(|verdict| {
                let numbers = spans(&self.judged.all).map(|span| TripNumbers::of(span));
                Finding::Worse(Case {
                    rule: verdict.rule,
                    sentence: verdict.sentence,
                    numbers,
                    legacy_changed_since: None,
                })
            });
        judgements.extend(
            breach
                .or(finding)
                .and_then(|finding| self.weigh(finding, now)),
        );
        judgements.extend(self.suspect(now.mono));
        judgements
    }

    /// Ends the freeze of raises if its cause is over.
    pub(super) fn thaw(&mut self, now: Mono) -> Vec<Judgement> {
        let before = self.effective();
        let mut judgements = Vec::new();
        if self
            .shared
            .take_if(|shared| now.since(shared.last) > SHARED_LASTS)
            .is_some()
        {
            judgements.push(Judgement::SharedCauseEnded);
        }
        if self
            .stranded
            .take_if(|stranded| now.since(stranded.last) > SHARED_LASTS)
            .is_some()
        {
            judgements.push(Judgement::NoRefugeEnded);
        }
        self.share_changed(before, now);
        judgements
    }

    /// Probes whether legacy can take users before a rollback may become necessary.
    pub(super) fn suspect(&mut self, now: Mono) -> Option<Judgement> {
        if self.settings.guard.dry_run
            || self.latch().is_some()
            || self.stranded.is_none() && !self.judge.is_suspicious()
        {
            return None;
        }
        let is_told = self.stranded.is_none() && self.judge.has_legacy_spoken(now);
        (!is_told && self.judge.legacy().ask(now)).then_some(Judgement::Ask(Side::Legacy))
    }

    /// Checks whether legacy can carry its users after a rollback by the guard.
    pub(super) fn watch_legacy(&mut self, now: Mono) -> Vec<Judgement> {
        let Some(aftermath) = self.aftermath.as_mut() else {
            return Vec::new();
        };
        let legacy = &self.recent.all.legacy;
        let counts = self.recent.all.map(Window::last_counts);
        aftermath.watch(
            self.judge.legacy(),
            PerSide {
                legacy: &counts.legacy,
                new: &counts.new,
            },
            legacy.last_latencies(),
            now,
        )
    }

    /// Judges failures only, after a failure has just happened or legacy has answered a probe.
    pub(crate) fn wake(&mut self, now: Now, observed: &Observed<'_>) -> Vec<Judgement> {
        if self.latch().is_some() || self.settings.guard.mode == Mode::Off {
            return Vec::new();
        }
        let finding = self.judge.wake(observed, spans(&self.recent.all), now.mono);
        let mut judgements: Vec<Judgement> = finding
            .and_then(|finding| self.weigh(finding, now))
            .into_iter()
            .collect();
        if judgements
            .iter()
            .any(|judgement| matches!(judgement, Judgement::Trip { .. }))
        {
            // The failures that were decisive are those since the last tick.
            let sides = PerSide::from_fn(|side| {
                SideNumbers::of(&self.recent.all[side].since_last(&observed.totals[side]))
            });
            self.remember(TickNumbers {
                at: now.wall,
                sides,
            });
        }
        judgements.extend(self.suspect(now.mono));
        judgements
    }

    pub(super) fn remember(&mut self, tick: TickNumbers) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(tick);
    }

    /// Decides what a finding leads to, given the settings and recent changes.
    pub(super) fn weigh(&mut self, finding: Finding, now: Now) -> Option<Judgement> {
        match finding {
            Finding::TooFewUsers(case) => Some(Judgement::TooFewUsers(case.sentence)),
            Finding::Worse(case) => self.act_on(case, now),
            Finding::StillShared => {
                if let Some(shared) = &mut self.shared {
                    shared.last = now.mono;
                }
                None
            }
            Finding::Shared(mut case) => {
                let raised_at = self
                    .raised_at
                    .filter(|raised_at| now.mono.since(*raised_at) < RAISE_SUSPECT);
                // A raise is undone if legacy has become worse after it and can take the users
                // back.
                let is_undone = |raised_at: &Mono| {
                    case.legacy_changed_since
                        .is_some_and(|since| since >= *raised_at)
                };
                if let Some(raised_at) = raised_at.filter(is_undone)
                    && self.legacy_word(now.mono) == Word::Alive
                {
                    let ago = seconds(Duration::from_secs(now.mono.since(raised_at).as_secs()));
                    case.sentence.push_str(&format!(
                        ". Rolled back all the same, because the share was raised {ago} ago"
                    ));
                    return self.act_on(case, now);
                }
                let frozen = self.effective();
                let was_known = self
                    .shared
                    .replace(Shared {
                        frozen,
                        last: now.mono,
                        sentence: case.sentence.clone(),
                    })
                    .is_some();
                (!was_known).then_some(Judgement::SharedCause(case.sentence))
            }
        }
    }

    pub(super) fn act_on(&mut self, case: Case, now: Now) -> Option<Judgement> {
        if self.settings.guard.dry_run {
            self.judge.forget(case.rule, now.mono);
            let said = self.dry_run_breach.replace(now.mono);
            let is_news = said.is_none_or(|at| now.mono.since(at) > QUIET);
            return is_news.then_some(Judgement::WouldTrip(case));
        }
        let is_back = match &self.stranded {
            Some(stranded) => self.judge.legacy().is_back_since(stranded.since),
            None => true,
        };
        match self.legacy_word(now.mono) {
            Word::Alive if is_back => Some(Judgement::Trip {
                cause: Cause::Guard {
                    rule: case.rule.name().to_owned(),
                    numbers: case.numbers,
                },
                sentence: case.sentence,
            }),
            // The rule will still be certain when the answer arrives.
            Word::Unknown => self
                .ask_legacy(now.mono)
                .then_some(Judgement::Ask(Side::Legacy)),
            Word::Alive | Word::Dead => self.strand(case, now.mono),
        }
    }

    /// Records that new is worse and legacy cannot take its users, so that users are not moved.
    /// After a while, only later evidence decides whether new is still worse.
    pub(super) fn strand(&mut self, case: Case, now: Mono) -> Option<Judgement> {
        let (frozen, was) = (self.effective(), self.stranded.take());
        let since = was.as_ref().map_or(now, |stranded| stranded.since);
        if now.since(since) > STRANDED_MEMORY {
            self.judge.forget(case.rule, now);
        }
        self.stranded = Some(Stranded {
            frozen,
            since,
            last: now,
            sentence: case.sentence.clone(),
        });
        was.is_none().then_some(Judgement::NoRefuge(case.sentence))
    }

    /// Returns the spans that the rules of mode `threshold` judge: all users of new for a limit,
    /// and the compared users for a comparison.
    pub(super) fn judged_spans(&self) -> Judged<'_> {
        Judged {
            all: spans(&self.judged.all),
            compared: spans(&self.judged.compared),
        }
    }
}
