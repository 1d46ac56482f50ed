//! Maintenance: modes by which an operator closes everything or one rollout for a while, and the
//! timer that ends them.
//!
//! Maintenance is the first step of the decision order, and the only one that answers a request
//! instead of sending it to a backend. A [`MaintenanceWindow`] is an operator's decision, with a
//! reason and perhaps an end. A [`Restriction`] is the part of it that the data path needs. A
//! window of one rollout and a window of everything do not overrule each other: the stricter one
//! applies.
//!
//! The end is kept twice: on the monotonic clock for the running process, and on the wall clock for
//! records and for the next process, which must find the same end. A window whose rollout left the
//! file is kept, as a latch is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::control::plane::Actor;
use crate::guard::seconds;
use crate::routing::restriction::{Maintenance, Restriction};
use crate::time::{Mono, Now, Wall};

/// A maintenance mode that was set by an operator, as it is announced and made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaintenanceWindow {
    /// The mode, which is never [`Maintenance::Off`].
    pub mode: Maintenance,
    /// The time at which the window began.
    pub since: Wall,
    /// The time at which the window ends by itself. `None` if it has no end.
    pub until: Option<Wall>,
    /// Who set the window.
    pub actor: Actor,
    /// The reason that was given.
    pub reason: String,
}

impl MaintenanceWindow {
    /// Returns a description of the window, as the end of a sentence.
    pub(crate) fn sentence(&self) -> String {
        let lasts = self.until.map_or_else(String::new, |until| {
            format!(" for {}", lasting(length(self.since, until)))
        });
        format!(
            "maintenance is {}{lasts} by {}, {}: {}",
            self.mode.name(),
            self.actor.name,
            self.mode.meaning(),
            self.reason
        )
    }
}

/// The scope of a window: one rollout, or everything, including requests that match no rollout.
pub type Scope = Option<Arc<str>>;

/// The value that stands for everything where the name of a rollout is expected. No rollout can
/// have this name.
pub const EVERYTHING: &str = "*";

/// Returns the name of a scope for records.
pub fn scope_name(scope: &Scope) -> Arc<str> {
    scope.clone().unwrap_or_else(|| EVERYTHING.into())
}

/// Returns the name of a scope for the beginning of a sentence.
pub(crate) fn subject(scope: &Scope) -> &str {
    scope.as_deref().unwrap_or(EVERYONE)
}

/// The name of everything in a sentence.
const EVERYONE: &str = "all rollouts";

/// All windows and their timers, owned by the control plane.
#[derive(Clone, Debug, Default)]
pub(crate) struct Windows {
    everything: Option<Timed>,
    rollouts: BTreeMap<Arc<str>, Timed>,
}

#[derive(Clone, Debug)]
struct Timed {
    window: MaintenanceWindow,
    /// The end on the clock of this process. It is unknown until the first reading of that clock.
    ends: Option<Mono>,
}

impl Timed {
    fn restriction(&self) -> Restriction {
        Restriction {
            mode: self.window.mode,
            until: self.ends,
        }
    }

    fn is_over(&self, now: Mono) -> bool {
        self.ends.is_some_and(|ends| ends <= now)
    }
}

impl Windows {
    /// Restores the saved windows. Their timers run once [`Windows::resume`] has been called.
    pub(crate) fn restore(saved: impl IntoIterator<Item = (Scope, MaintenanceWindow)>) -> Self {
        let mut windows = Self::default();
        saved
            .into_iter()
            .for_each(|(scope, window)| windows.begin(scope, window, None));
        windows
    }

    /// Takes the first reading of the clock, and ends and returns the windows that expired while no
    /// process ran.
    pub(crate) fn resume(&mut self, now: Now) -> Vec<(Scope, MaintenanceWindow)> {
        for timed in self.everything.iter_mut().chain(self.rollouts.values_mut()) {
            timed.ends = timed.window.until.map(|until| {
                // A wall clock that was set back while no process ran does not make a window longer
                // than intended.
                now.mono
                    .forward(length(now.wall, until).min(length(timed.window.since, until)))
            });
        }
        self.expire(now.mono)
    }

    /// Ends and returns the windows that have expired.
    pub(crate) fn expire(&mut self, now: Mono) -> Vec<(Scope, MaintenanceWindow)> {
        let everything = self
            .everything
            .take_if(|timed| timed.is_over(now))
            .map(|timed| (None, timed.window));
        let rollouts = self
            .rollouts
            .extract_if(.., |_, timed| timed.is_over(now))
            .map(|(id, timed)| (Some(id), timed.window));
        everything.into_iter().chain(rollouts).collect()
    }

    /// Begins a window and replaces an existing one of the same scope.
    pub(crate) fn begin(&mut self, scope: Scope, window: MaintenanceWindow, ends: Option<Mono>) {
        let timed = Timed { window, ends };
        match scope {
            None => self.everything = Some(timed),
            Some(id) => drop(self.rollouts.insert(id, timed)),
        }
    }

    /// Ends a window if there is one.
    pub(crate) fn end(&mut self, scope: &Scope) -> Option<MaintenanceWindow> {
        let timed = match scope {
            None => self.everything.take(),
            Some(id) => self.rollouts.remove(id),
        };
        timed.map(|timed| timed.window)
    }

    /// Whether a rollout has a window of its own.
    pub(crate) fn has(&self, rollout: &str) -> bool {
        self.rollouts.contains_key(rollout)
    }

    /// Returns the restriction in force for a rollout, or for requests that match none.
    pub(crate) fn restriction(&self, rollout: Option<&str>) -> Restriction {
        let everything = self
            .everything
            .as_ref()
            .map(Timed::restriction)
            .unwrap_or_default();
        let own = rollout
            .and_then(|id| self.rollouts.get(id))
            .map(Timed::restriction)
            .unwrap_or_default();
        own.stricter(everything)
    }

    /// Returns the window in force for a rollout, or for requests that match none, and whether it
    /// applies to everything.
    pub(crate) fn governing(&self, rollout: Option<&str>) -> Option<(&MaintenanceWindow, bool)> {
        let own = rollout
            .and_then(|id| self.rollouts.get(id))
            .map(|timed| (timed, false));
        let everything = self.everything.as_ref().map(|timed| (timed, true));
        let in_force = self.restriction(rollout);
        own.into_iter()
            .chain(everything)
            .find(|(timed, _)| timed.restriction() == in_force)
            .map(|(timed, of_everything)| (&timed.window, of_everything))
    }

    /// Returns all windows, as they are made durable.
    pub(crate) fn standings(&self) -> Vec<(Scope, MaintenanceWindow)> {
        let everything = self
            .everything
            .iter()
            .map(|timed| (None, timed.window.clone()));
        everything
            .chain(
                self.rollouts
                    .iter()
                    .map(|(id, timed)| (Some(Arc::clone(id)), timed.window.clone())),
            )
            .collect()
    }

    /// Describes what stays closed although this scope has just been opened, as the end of a
    /// sentence. The text is empty when nothing stays closed.
    pub(crate) fn what_stays(&self, opened: &Scope) -> String {
        let told = |id: &str, timed: &Timed| {
            format!(
                "{id} stay{} {}",
                if id == EVERYONE { "" } else { "s" },
                timed.window.mode.name()
            )
        };
        let stay: Vec<String> = match opened {
            None => self
                .rollouts
                .iter()
                .map(|(id, timed)| told(id, timed))
                .collect(),
            Some(_) => self
                .everything
                .iter()
                .map(|timed| told(EVERYONE, timed))
                .collect(),
        };
        if stay.is_empty() {
            String::new()
        } else {
            format!("; {}", stay.join(", "))
        }
    }
}

/// Returns the time between two moments of the wall clock; zero when the second is earlier.
pub(crate) fn length(from: Wall, to: Wall) -> Duration {
    Duration::from_millis(
        u64::try_from(to.as_millis().saturating_sub(from.as_millis())).unwrap_or_default(),
    )
}

/// Returns the moment `duration` after another.
pub(crate) fn after(from: Wall, duration: Duration) -> Wall {
    Wall::from_millis(
        from.as_millis()
            .saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)),
    )
}

/// Formats a duration for people, in the largest unit that divides it: `2 h`, `10 min`, `90 s`.
pub fn lasting(duration: Duration) -> String {
    match duration.as_secs() {
        whole if duration.subsec_nanos() != 0 || whole == 0 => seconds(duration),
        whole if whole % 3_600 == 0 => format!("{} h", whole / 3_600),
        whole if whole % 60 == 0 => format!("{} min", whole / 60),
        whole => format!("{whole} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Treatment;

    fn window(mode: Maintenance, until: Option<i64>) -> MaintenanceWindow {
        MaintenanceWindow {
            mode,
            since: Wall::from_millis(1_000),
            until: until.map(Wall::from_millis),
            actor: Actor::file(),
            reason: "CHG-7".to_owned(),
        }
    }

    fn at(mono_s: u64, wall_ms: i64) -> Now {
        Now {
            mono: Mono::from_micros(mono_s * 1_000_000),
            wall: Wall::from_millis(wall_ms),
        }
    }

    #[test]
    fn read_only_passes_reads_and_other_modes_pass_nothing() {
        for (mode, reading, writing) in [
            (Maintenance::Off, Treatment::Pass, Treatment::Pass),
            (Maintenance::ReadOnly, Treatment::Pass, Treatment::Refuse),
            (Maintenance::Hold, Treatment::Hold, Treatment::Hold),
            (Maintenance::Full, Treatment::Refuse, Treatment::Refuse),
        ] {
            assert_eq!(
                (mode.treats(true), mode.treats(false)),
                (reading, writing),
                "{}",
                mode.name()
            );
            assert_eq!(Maintenance::of_name(mode.name()), Some(mode));
        }
        assert_eq!(Maintenance::of_name("readonly"), None);
    }

    #[test]
    fn the_stricter_window_applies_and_of_equals_the_later_end() {
        let restriction = |mode, until: Option<u64>| Restriction {
            mode,
            until: until.map(Mono::from_micros),
        };
        let ordered = [
            Restriction::default(),
            restriction(Maintenance::ReadOnly, Some(9)),
            restriction(Maintenance::ReadOnly, None),
            restriction(Maintenance::Hold, Some(1)),
            restriction(Maintenance::Hold, Some(2)),
            restriction(Maintenance::Full, Some(1)),
        ];
        for (milder, stricter) in ordered.iter().zip(&ordered[1..]) {
            assert_eq!(
                (milder.stricter(*stricter), stricter.stricter(*milder)),
                (*stricter, *stricter)
            );
        }
    }

    #[test]
    fn a_restored_window_ends_on_time_and_is_never_extended() {
        let saved = || [(None, window(Maintenance::Full, Some(61_000)))];
        let mut windows = Windows::restore(saved());
        assert_eq!(windows.resume(at(0, 31_000)), []);
        assert_eq!(
            windows.restriction(None).remaining(Mono::default()),
            Some(Duration::from_secs(30))
        );
        assert_eq!(windows.expire(Mono::from_micros(29_999_999)), []);
        assert_eq!(windows.expire(Mono::from_micros(30_000_000)).len(), 1);

        assert_eq!(
            Windows::restore(saved()).resume(at(0, 61_000)).len(),
            1,
            "it was over before the start"
        );

        let mut set_back = Windows::restore(saved());
        assert_eq!(set_back.resume(at(0, -1_000_000_000)), []);
        assert_eq!(
            set_back.restriction(None).remaining(Mono::default()),
            Some(Duration::from_secs(60))
        );
    }

    #[test]
    fn a_duration_is_formatted_in_the_largest_unit_that_fits() {
        for (seconds, text) in [(7_200, "2 h"), (600, "10 min"), (90, "90 s"), (0, "0 s")] {
            assert_eq!(lasting(Duration::from_secs(seconds)), text);
        }
        assert_eq!(lasting(Duration::from_millis(1_500)), "1500 ms");
    }
}
