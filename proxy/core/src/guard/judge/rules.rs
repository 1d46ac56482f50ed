//! A rule of the guard as the judge keeps it: its detectors, what they count, and the limits in
//! force.

use crate::guard::detector::{Detector, Tally, Test, log_mean};
use crate::guard::judge::ladder::LADDER;
use crate::guard::judge::trials::Users;
use crate::guard::judge::usual_rate::Ever;
use crate::guard::judge::{Observed, Waited, log_threshold};
use crate::guard::{Answer, GuardSettings, LatencyPoint, Rule};
use crate::percent::Ratio;
use crate::stats::outcome::FailureKind;
use crate::stats::users::Class;
use crate::time::Mono;

/// With fewer requests on new than this, the share of new in a tick is mostly chance. A comparison
/// then combines several ticks into one ...
const MIN_COMPARED: u64 = 8;
/// ... but no more than this number.
const MAX_PENDING_TICKS: u32 = 4;
/// A limit counts as a different one when the limit in force moves by this fraction.
const LIMIT_MOVES: f64 = 0.25;
/// How many times legacy's rate is tolerated where a limit has become a comparison.
const TOLERATED_OF_LIMIT: f64 = 2.0;
/// The minimum number of ticks for which new must be slower. A machine that stalls slows down
/// everything in flight, and by accident more on one side.
const SLOW_TICKS: f64 = 8.0;
/// The minimum number of ticks for the tail, in which a stall weighs more and the time between
/// stalls less.
const SLOW_TAIL_TICKS: f64 = 16.0;

/// Returns the index in [`crate::stats::users::TrackerLimits::slow`] of a latency that is watched
/// on the request path.
pub(super) const fn slow_index(point: LatencyPoint) -> u8 {
    match point {
        LatencyPoint::P50 => LADDER.len() as u8,
        LatencyPoint::P95 => LADDER.len() as u8 + 1,
        LatencyPoint::P99 => LADDER.len() as u8 + 2,
        LatencyPoint::Mean => LADDER.len() as u8 + 3,
    }
}

#[derive(Clone, Debug)]
pub(super) struct RuleState {
    pub(super) rule: Rule,
    pub(super) parts: Vec<Part>,
    /// A comparison that must be certain as well, where legacy has any of the events that the
    /// limit counts.
    pub(super) versus: Option<Part>,
    pub(super) waiting_since: Option<Mono>,
    pub(super) held_since: Option<Mono>,
    pub(super) held_said: bool,
    pub(super) last: Answer,
    /// The reason why the last evaluation did not trip although the evidence exists.
    pub(super) remark: Option<String>,
}

/// One detector of a rule, and what it counts.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) source: Counter,
    pub(super) detector: Detector,
    /// The substitute detector while there is no legacy to compare with.
    pub(super) alone: Option<Detector>,
    pub(super) seen: Tally,
    /// The counts that are not folded yet: comparisons wait until new has a few requests.
    pub(super) pending: Tally,
    pub(super) pending_ticks: u32,
    /// The users as trials, for each comparison and for a limit that has become one.
    pub(super) users: Option<Users>,
    /// For a limit: the limit in the file, and legacy's usual rate relative to it.
    pub(super) limit: Option<(f64, Ever)>,
    /// The raise after which the limit in force was computed.
    pub(super) followed_at: Option<Option<Mono>>,
}

/// The events that a detector counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    Bad(Class),
    Waited,
    WaitedCompared,
    Values(Class),
    /// The latencies of both sides in the tick.
    Means,
}

/// Returns the most that one tick may add to the evidence of a rule.
pub(crate) fn most_at_once(rule: Rule, log_threshold: f64) -> f64 {
    if matches!(rule, Rule::Latency(..) | Rule::LatencyVsLegacy(_)) {
        log_threshold / SLOW_TICKS
    } else {
        f64::INFINITY
    }
}

impl Counter {
    /// Whether only a request that did not fail can show what is counted.
    pub(super) fn is_of_served(self) -> bool {
        match self {
            Self::Bad(class) | Self::Values(class) => class != Class::Failure,
            Self::Means => true,
            Self::Waited | Self::WaitedCompared => false,
        }
    }

    /// Returns the counts of this source since the start. The trials are requests, or in a
    /// comparison the appearances of users.
    pub(super) fn tally(self, observed: &Observed<'_>, compares: bool) -> Tally {
        // A limit covers all of new. Legacy is only included as far as it is comparable with new.
        let (new, legacy) = (
            if compares {
                &observed.compared.new
            } else {
                &observed.totals.new
            },
            &observed.compared.legacy,
        );
        let (of_new, of_legacy) = (&new.latencies, &legacy.latencies);
        let (new, legacy) = (&new.counts, &legacy.counts);
        let class = match self {
            Self::Bad(class) | Self::Values(class) => class,
            Self::Waited | Self::WaitedCompared | Self::Means => return Tally::default(),
        };
        let of = |all: fn(&crate::stats::window::Counts) -> u64| (all(new), all(legacy));
        let (all_x, all_y) = match class {
            Class::Failure => of(crate::stats::window::Counts::failed),
            Class::ClientError => of(|counts| counts.client_errors),
            Class::Abort => of(|counts| counts.aborts),
            Class::Redirects | Class::Slow(_) => {
                (new.counted[class.index()], legacy.counted[class.index()])
            }
        };
        let (all_n, all_m) = match class {
            Class::Failure | Class::ClientError | Class::Redirects => {
                (new.requests, legacy.requests)
            }
            // Aborted requests are not among the requests.
            Class::Abort => (new.requests + new.aborts, legacy.requests + legacy.aborts),
            Class::Slow(_) => (of_new.total(), of_legacy.total()),
        };
        let connects = if class == Class::Failure {
            new.failures[FailureKind::Connect.index()]
        } else {
            0
        };
        // The sides are compared by users, so that one busy user does not make the other side look
        // bad.
        let (n, m) = if compares {
            (new.appearances, legacy.appearances)
        } else {
            (all_n, all_m)
        };
        Tally {
            n,
            x: new.counted[class.index()],
            m,
            y: legacy.counted[class.index()],
            all_x,
            all_y,
            all_n,
            all_m,
            connects,
        }
    }
}

/// Returns waiting requests as a tally. A limit and a comparison differ in whose requests they
/// cover.
pub(super) fn waited(new: Waited, legacy: Waited) -> Tally {
    Tally {
        n: new.started,
        x: new.hung,
        m: legacy.started,
        y: legacy.hung,
        all_x: new.hung,
        all_y: legacy.hung,
        all_n: new.started,
        all_m: legacy.started,
        connects: 0,
    }
}

/// Returns a key of a rule with its limits, for the handover between processes.
pub(super) fn key_of(rule: Rule) -> String {
    format!("{rule:?}")
}

impl RuleState {
    pub(super) fn new(rule: Rule, settings: &GuardSettings, share: f64, now: Mono) -> Self {
        let part = |source, test| Part {
            source,
            detector: Detector::new(test, now).at_most(most_at_once(rule, log_threshold(settings))),
            alone: None,
            seen: Tally::default(),
            pending: Tally::default(),
            pending_ticks: 0,
            users: None,
            limit: None,
            followed_at: None,
        };
        let limit = |source, limit: f64| {
            vec![Part {
                limit: Some((limit, Ever::default())),
                ..part(source, Test::absolute(limit))
            }]
        };
        let compare = |class: Class, tolerated: f64, above| {
            let users = Users::new(class.index(), tolerated, above, share);
            Part {
                users: Some(users),
                ..part(Counter::Bad(class), Test::relative(tolerated))
            }
        };
        let relative = |class, ratio: Ratio| vec![compare(class, ratio.factor(), None)];
        let parts = match rule {
            Rule::ErrorsMax(max) => limit(Counter::Bad(Class::Failure), max.fraction()),
            Rule::ErrorsVsLegacy(ratio) => relative(Class::Failure, ratio),
            Rule::ClientErrorsVsLegacy(ratio) => relative(Class::ClientError, ratio),
            Rule::AbortsVsLegacy(ratio) => relative(Class::Abort, ratio),
            Rule::RedirectsVsLegacy(ratio) => relative(Class::Redirects, ratio),
            Rule::Latency(LatencyPoint::Mean, limit_us) => vec![part(
                Counter::Values(Class::Slow(slow_index(LatencyPoint::Mean))),
                Test::mean(limit_us as f64),
            )],
            Rule::Latency(point, _) => limit(
                Counter::Bad(Class::Slow(slow_index(point))),
                point.slower_share(),
            ),
            Rule::LatencyVsLegacy(_) => {
                let steps = LADDER.iter().enumerate().map(|(step, slower)| {
                    let part = compare(Class::Slow(step as u8), 1.0, Some(*slower));
                    let most = log_threshold(settings)
                        / if *slower < 0.05 {
                            SLOW_TAIL_TICKS
                        } else {
                            SLOW_TICKS
                        };
                    Part {
                        detector: part.detector.at_most(most),
                        ..part
                    }
                });
                steps
                    .chain([part(Counter::Means, Test::mean_vs_legacy())])
                    .collect()
            }
            Rule::Hang(_) => limit(Counter::Waited, settings.hang_limit()),
            Rule::Health(_) | Rule::Dead(_) => Vec::new(),
        };
        let versus = matches!(rule, Rule::Hang(_))
            .then(|| part(Counter::WaitedCompared, Test::relative(TOLERATED_OF_LIMIT)));
        Self {
            rule,
            parts,
            versus,
            waiting_since: None,
            held_since: None,
            held_said: false,
            last: Answer::Pass,
            remark: None,
        }
    }

    pub(super) fn compares(&self) -> bool {
        self.rule.compares()
    }

    /// Whether the rule compares latencies, so that it waits until new is warm.
    pub(super) fn waits_for_warmth(&self) -> bool {
        matches!(self.rule, Rule::LatencyVsLegacy(_))
    }

    /// Returns the user trials of the rule's parts, where the rule must hold for them as well.
    pub(super) fn users(&self) -> impl Iterator<Item = &Users> + Clone {
        self.parts.iter().filter_map(|part| part.users.as_ref())
    }

    /// Whether the rule is evaluated at each failure, and not only at ticks.
    pub(super) fn looks_between_ticks(&self) -> bool {
        matches!(self.rule, Rule::ErrorsMax(_) | Rule::Dead(_))
    }

    /// Restarts all user blocks with this share.
    pub(super) fn begin_users(&mut self, share: f64) {
        self.parts
            .iter_mut()
            .filter_map(|part| part.users.as_mut())
            .for_each(|users| users.begin(share));
    }

    pub(super) fn log_evidence(&self) -> f64 {
        log_mean(self.parts.iter().map(|part| part.in_force().log_evidence()))
    }

    pub(super) fn log_accusation(&self) -> f64 {
        self.parts
            .iter()
            .map(|part| part.in_force().log_accusation())
            .fold(0.0, f64::max)
    }

    pub(super) fn strongest(&self) -> Option<&Part> {
        self.parts.iter().max_by(|a, b| {
            a.in_force()
                .log_evidence()
                .total_cmp(&b.in_force().log_evidence())
        })
    }

    pub(super) fn restart(&mut self, now: Mono) {
        for part in self.parts.iter_mut().chain(&mut self.versus) {
            (part.pending, part.pending_ticks) = (Tally::default(), 0);
            part.detector.restart(now);
            if let Some(alone) = &mut part.alone {
                alone.restart(now);
            }
        }
        self.waiting_since = None;
        self.held_since = None;
        self.last = Answer::Pass;
        self.remark = None;
    }
}

impl Part {
    pub(super) fn is_relative(&self) -> bool {
        matches!(
            self.detector.test(),
            Test::Relative { .. } | Test::MeanVsLegacy { .. }
        )
    }

    /// Whether the limit in force is above the one in the file, because legacy has never met that
    /// one.
    pub(super) fn is_lenient(&self) -> bool {
        matches!((self.detector.test(), &self.limit), (Test::Absolute { limit, .. }, Some((of_file, _))) if *limit > *of_file * (1.0 + 1e-9))
    }

    /// Records the results of legacy in this tick, and sets the limit in force that follows from
    /// legacy's usual rate.
    pub(super) fn follow_legacy(
        &mut self,
        (tried, bad): (u64, u64),
        is_shared: bool,
        share: f64,
        raised_at: Option<Mono>,
        now: Mono,
    ) {
        let Some((of_file, ever)) = &mut self.limit else {
            return;
        };
        let has_ended = ever.tick(tried, bad, is_shared, now);
        if !has_ended && self.followed_at == Some(raised_at) {
            return;
        }
        self.followed_at = Some(raised_at);
        let Test::Absolute { limit, .. } = self.detector.test() else {
            return;
        };
        let wanted = ever.limit(*of_file, raised_at, now);
        if (wanted / limit - 1.0).abs() <= LIMIT_MOVES && (wanted > *of_file) == (*limit > *of_file)
        {
            return;
        }
        self.detector = self.detector.with(Test::absolute(wanted), now);
        self.users = match self.source {
            Counter::Bad(class) if wanted > *of_file => {
                Some(Users::new(class.index(), TOLERATED_OF_LIMIT, None, share))
            }
            _ => None,
        };
    }

    pub(super) fn in_force(&self) -> &Detector {
        self.alone.as_ref().unwrap_or(&self.detector)
    }

    /// Folds the counts of one tick, and begins the next tick.
    pub(super) fn tick(&mut self, tally: &Tally, now: Mono) {
        if self.is_relative() && self.alone.is_none() {
            self.pending = self.pending.plus(tally);
            self.pending_ticks += 1;
            if self.pending.n < MIN_COMPARED && self.pending_ticks < MAX_PENDING_TICKS {
                return;
            }
            self.pending_ticks = 0;
            let pending = std::mem::take(&mut self.pending);
            self.detector.fold(&pending, now);
            return;
        }
        self.fold(tally, now);
    }

    pub(super) fn fold(&mut self, tally: &Tally, now: Mono) {
        self.alone
            .as_mut()
            .unwrap_or(&mut self.detector)
            .fold(tally, now);
    }

    /// Begins the next tick with the "+ 1". While a comparison waits, its tick continues.
    pub(super) fn begin_tick(&mut self) {
        if self.pending_ticks == 0 {
            self.alone
                .as_mut()
                .unwrap_or(&mut self.detector)
                .begin_tick();
        }
    }
}
