//! The sentences of the judge, with the numbers in them.

use crate::guard::judge::affected::{Needed, Summary};
use std::time::Duration;

use crate::guard::judge::ladder::{LADDER, MIN_LADDER};
use crate::guard::judge::rules::{Counter, Part, RuleState};
use crate::guard::judge::targets::Baseline;
use crate::guard::judge::{Case, Judge, Test, TripNumbers};
use crate::guard::{Answer, LatencyPoint, Rule, Verdict, millis, seconds, share};
use crate::side::PerSide;
use crate::stats::users::{Class, REDIRECTS_IN_A_ROW};
use crate::stats::window::Span;
use crate::time::Mono;

/// The remark while a rule that is certain about new waits for evidence about legacy.
pub(super) const WAITING: &str =
    "legacy has had too few requests since then to tell whether it is failing, too";
/// The remark while the evidence is based on too few users to distinguish it from chance.
pub(super) const TOO_FEW_USERS: &str = "too few different users are hurt to tell it from chance: \
                                        users stay on their side, so those who always fail may be \
                                        on new by accident";
/// The remark while requests to legacy hang as well.
pub(super) const AS_LEGACY: &str =
    "legacy's requests hang as well, and new's not clearly more often";
/// The remark when requests hang, but all of them belong to one client.
pub(super) const ONE_PLACE: &str = "nearly all of them come from one client network";

/// Explains why the evidence of so few users or networks is not sufficient; `None` when there are
/// enough.
pub(super) fn too_few(summary: &Summary, needed: &Needed) -> Option<String> {
    if summary.users < needed.users {
        return Some(format!(
            "only {} hurt, {} needed (min_users)",
            users(summary.users),
            needed.users
        ));
    }
    (summary.networks < needed.networks).then(|| {
        format!(
            "{} of one client network only, two networks needed",
            users(summary.users)
        )
    })
}

pub(super) fn one_user(summary: &Summary) -> String {
    format!(
        "without the user with the most of them ({}) the evidence is not strong enough",
        whole_percent(summary.top_user)
    )
}

pub(super) fn one_network(summary: &Summary) -> String {
    format!(
        "without the client network with the most of them ({}) the evidence is not strong enough",
        whole_percent(summary.top_network)
    )
}

fn users(count: usize) -> String {
    if count == 1 {
        "1 user".to_owned()
    } else {
        format!("{count} users")
    }
}

fn whole_percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn of(events: u64, total: u64) -> String {
    format!("{events} of {total} requests ({})", share(events, total))
}

impl Judge {
    /// Returns the case that a rule makes now.
    pub(super) fn case(&self, at: usize, recent: PerSide<&Span>, now: Mono) -> Case {
        let state = &self.rules[at];
        let mut numbers = recent.map(|span| TripNumbers::of(span));
        let mut sentence = match state.rule {
            Rule::Health(_) => format!(
                "new has had no server for {}",
                seconds(now.since(self.down_since.unwrap_or(now)))
            ),
            Rule::Dead(_) => {
                let summary = self.hurt.summary(Class::Failure, self.streak_since, false);
                format!(
                    "new failed {} times in a row, {} hurt{}",
                    self.streak,
                    users(summary.users),
                    path(&summary)
                )
            }
            Rule::Hang(older_than_us) => {
                let PerSide { new, legacy } = self.hung;
                format!(
                    "{} of {} requests to new have waited for {} without an answer, {} of {} on \
                     legacy",
                    new.hung,
                    new.started,
                    millis(older_than_us),
                    legacy.hung,
                    legacy.started
                )
            }
            _ => match state.strongest() {
                Some(part) => {
                    let excursion = part.in_force().excursion();
                    numbers.new.requests = excursion.tally.all_n;
                    numbers.legacy.requests = excursion.tally.all_m;
                    match part.source {
                        Counter::Bad(Class::Failure) => {
                            (numbers.new.failed, numbers.legacy.failed) =
                                (excursion.tally.all_x, excursion.tally.all_y);
                        }
                        Counter::Bad(Class::ClientError) => {
                            (numbers.new.client_errors, numbers.legacy.client_errors) =
                                (excursion.tally.all_x, excursion.tally.all_y);
                        }
                        Counter::Bad(Class::Abort) => {
                            (numbers.new.aborts, numbers.legacy.aborts) =
                                (excursion.tally.all_x, excursion.tally.all_y);
                        }
                        Counter::Bad(Class::Redirects | Class::Slow(_))
                        | Counter::Values(_)
                        | Counter::Means
                        | Counter::Waited
                        | Counter::WaitedCompared => {}
                    }
                    self.accusation(state.rule, part, recent, now)
                }
                None => String::new(),
            },
        };
        match (state.last, &state.remark) {
            (Answer::TooFewUsers, Some(remark)) => {
                sentence.push_str(&format!("; not rolled back: {remark}"));
            }
            (Answer::SharedCause, _) => {
                sentence.push_str("; legacy is as bad, so this is not new's fault alone");
            }
            (Answer::Breach, _) if !state.parts.is_empty() => sentence.push_str(&format!(
                "; a healthy backend would do this once in {}",
                long(self.settings.false_alarm_every)
            )),
            _ => {}
        }
        Case {
            rule: state.rule,
            sentence,
            numbers,
            legacy_changed_since: self.legacy_changed_since(state, now),
        }
    }

    /// Returns the time since which the evidence of a limit has grown, if legacy's earlier rate is
    /// known.
    fn legacy_changed_since(&self, state: &RuleState, now: Mono) -> Option<Mono> {
        let is_errors = |rule: &&RuleState| matches!(rule.rule, Rule::ErrorsMax(_));
        let of_limit = if matches!(state.rule, Rule::Dead(_)) {
            self.rules.iter().find(is_errors)?
        } else {
            state
        };
        let (_, ever) = of_limit.parts.first()?.limit.as_ref()?;
        ever.rate(self.raised_at, now)?;
        Some(if matches!(state.rule, Rule::Dead(_)) {
            self.streak_since
        } else {
            state.strongest()?.in_force().excursion().since
        })
    }

    /// Describes a detector's evidence against new: what it is, since when, and which users were
    /// affected.
    fn accusation(&self, rule: Rule, part: &Part, recent: PerSide<&Span>, now: Mono) -> String {
        let excursion = part.in_force().excursion();
        let tally = &excursion.tally;
        if part.source == Counter::Means {
            let mean = |span: &Span| span.mean_us().map_or_else(|| "unknown".to_owned(), millis);
            let means = format!(
                "new took {} on average in the last minute, legacy {}",
                mean(recent.new),
                mean(recent.legacy)
            );
            return format!("{means}, tolerated {} times", rule.ratio());
        }
        let (Counter::Bad(class) | Counter::Values(class)) = part.source else {
            return String::new();
        };
        let summary = self.hurt.summary(class, excursion.since, rule.compares());
        // One or two bad events of the moment before may be among them.
        let hurt = summary
            .users
            .min(usize::try_from(tally.all_x).unwrap_or(usize::MAX));
        let who = if hurt == 0 {
            String::new()
        } else {
            format!(" from {}", users(hurt))
        };
        let while_ = format!("in {}", short(now.since(excursion.since)));
        let against = match (&part.alone, rule) {
            (Some(_), _) => format!(
                "legacy, when it last had traffic, {}",
                self.baseline_words(class)
            ),
            (None, Rule::Latency(LatencyPoint::Mean, _)) => format!(
                "legacy's mean is {}",
                recent
                    .legacy
                    .mean_us()
                    .map_or_else(|| "unknown".to_owned(), millis)
            ),
            (None, _) if tally.all_m == 0 => "no requests on legacy meanwhile".to_owned(),
            (None, _) => format!("legacy {} of {}", tally.all_y, tally.all_m),
        };
        let limit = limit_words(rule);
        match (rule, class) {
            (Rule::Latency(LatencyPoint::Mean, limit_us), _) => format!(
                "new took {} on average over the last minute, limit {}{who}; {against}",
                recent
                    .new
                    .mean_us()
                    .map_or_else(|| "unknown".to_owned(), millis),
                millis(limit_us)
            ),
            (_, Class::Failure) => format!(
                "new failed {}{who} {while_}{limit}, {against}{}",
                of(tally.all_x, tally.all_n),
                path(&summary)
            ),
            (_, Class::ClientError) => format!(
                "new answered 4xx to {}{who} {while_}{limit}, {against}",
                of(tally.all_x, tally.all_n)
            ),
            (_, Class::Abort) => format!(
                "clients gave up {} to new{who} {while_}{limit}, {against}",
                of(tally.all_x, tally.all_n)
            ),
            (_, Class::Redirects) => {
                let (times, row) = (
                    if tally.x == 1 {
                        "once".to_owned()
                    } else {
                        format!("{} times", tally.x)
                    },
                    REDIRECTS_IN_A_ROW,
                );
                format!(
                    "new sent users in circles {times}{who} {while_}: {row} redirects in a row \
                     and nothing else{limit}, {against}{}",
                    path(&summary)
                )
            }
            (Rule::LatencyVsLegacy(ratio), Class::Slow(step)) => {
                let limit_us = self.tracker_limits.slow.new[usize::from(step)];
                let point = LADDER
                    .get(usize::from(step))
                    .map_or(50.0, |slower| ((1.0 - slower) * 1e3).round() / 10.0);
                format!(
                    "new took more than {} ({ratio} times legacy's p{point}, at least 2 ms more) \
                     for {}{who} {while_}, {against}",
                    millis(limit_us),
                    of(tally.x, tally.all_n)
                )
            }
            (Rule::Latency(point, limit_us), _) => {
                format!(
                    "new took more than {} for {}{who} {while_}, limit {} of requests, {against}",
                    millis(limit_us),
                    of(tally.x, tally.all_n),
                    allowed(point)
                )
            }
            (_, Class::Slow(_)) => String::new(),
        }
    }

    fn baseline_words(&self, class: Class) -> String {
        let Some(Baseline { span, .. }) = &self.baseline else {
            return "is unknown".to_owned();
        };
        match class {
            Class::Failure => format!("failed {}", of(span.counts.failed(), span.counts.requests)),
            Class::ClientError => format!(
                "answered 4xx to {}",
                of(span.counts.client_errors, span.counts.requests)
            ),
            Class::Abort => format!(
                "was given up in {}",
                of(
                    span.counts.aborts,
                    span.counts.requests + span.counts.aborts
                )
            ),
            Class::Redirects => format!(
                "sent users in circles {} times",
                span.counts.counted[class.index()]
            ),
            Class::Slow(_) => format!(
                "had a p95 of {}",
                span.latencies
                    .quantile(0.95)
                    .map_or_else(|| "unknown".to_owned(), millis)
            ),
        }
    }

    /// Returns the present verdict of one rule.
    pub(super) fn verdict(&self, state: &RuleState, recent: PerSide<&Span>) -> Verdict {
        let (new, legacy) = (&recent.new.counts, &recent.legacy.counts);
        let rates = |what: &str, x: u64, n: u64, y: u64, m: u64| {
            format!("new {what} {}, legacy {}", of(x, n), of(y, m))
        };
        let minute = ", in the last minute";
        let base = match state.rule {
            Rule::ErrorsMax(_) | Rule::ErrorsVsLegacy(_) => format!(
                "{}{minute}",
                rates(
                    "failed",
                    new.failed(),
                    new.requests,
                    legacy.failed(),
                    legacy.requests
                )
            ),
            Rule::ClientErrorsVsLegacy(_) => format!(
                "{}{minute}",
                rates(
                    "answered 4xx to",
                    new.client_errors,
                    new.requests,
                    legacy.client_errors,
                    legacy.requests
                )
            ),
            Rule::AbortsVsLegacy(_) => format!(
                "{}{minute}",
                rates(
                    "was given up in",
                    new.aborts,
                    new.requests + new.aborts,
                    legacy.aborts,
                    legacy.requests + legacy.aborts
                )
            ),
            Rule::Latency(point, limit_us) => {
                let value =
                    |span: &Span| point.of(span).map_or_else(|| "unknown".to_owned(), millis);
                format!(
                    "new's {} is {}, limit {}, legacy's is {}{minute}",
                    point.name(),
                    value(recent.new),
                    millis(limit_us),
                    value(recent.legacy)
                )
            }
            Rule::RedirectsVsLegacy(_) => {
                "users who get five redirects in a row and nothing else".to_owned()
            }
            Rule::LatencyVsLegacy(ratio) => {
                let value = |span: &Span| {
                    span.latencies
                        .quantile(0.95)
                        .map_or_else(|| "unknown".to_owned(), millis)
                };
                format!(
                    "new's p95 is {}, legacy's {}, tolerated are {ratio} times{minute}",
                    value(recent.new),
                    value(recent.legacy)
                )
            }
            Rule::Hang(older_than_us) => {
                format!("requests that wait for more than {}", millis(older_than_us))
            }
            Rule::Health(_) => match self.down_since {
                Some(_) => "new has no server that requests are sent to".to_owned(),
                None => "new has a server that requests are sent to".to_owned(),
            },
            Rule::Dead(limit) => format!("{} failures of new in a row, limit {limit}", self.streak),
        };
        let nothing = match state.rule {
            Rule::Health(_) => None,
            _ if new.requests + new.aborts == 0 => {
                Some("no requests on new in the last minute".to_owned())
            }
            _ if !state.compares() => None,
            Rule::LatencyVsLegacy(_) if self.tracker_limits.slow.new[0] == u64::MAX => {
                Some(format!(
                    "legacy has {} latencies in the last minute, {MIN_LADDER} are needed to compare \
                 with",
                    recent.legacy.latencies.total()
                ))
            }
            Rule::LatencyVsLegacy(_) if self.warms_up().is_some() => self.warms_up().map(|left| {
                let times = match (
                    recent.new.latencies.quantile(0.95),
                    recent.legacy.latencies.quantile(0.95),
                ) {
                    (Some(new), Some(legacy)) => format!(
                        ", p95 {:.1} times legacy's",
                        new as f64 / legacy.max(1) as f64
                    ),
                    _ => String::new(),
                };
                format!(
                    "warming up after the raise, {} left{times}",
                    seconds(Duration::from_secs(left.as_secs_f64().ceil() as u64))
                )
            }),
            _ if self.alone && self.baseline.is_none() => {
                Some("legacy has no requests, and had too few before to compare with".to_owned())
            }
            _ => None,
        };
        let log = (!state.parts.is_empty()).then(|| state.log_evidence());
        let progress = self.progress(state);
        let users_progress = self.users_progress(state);
        let evidence = progress.map_or_else(String::new, |part| {
            format!(
                "; {} of the evidence that a rollback needs",
                whole_percent(part)
            )
        });
        let lenient = state
            .parts
            .first()
            .filter(|part| part.is_lenient())
            .map_or_else(String::new, |part| self.leniency(part));
        let (answer, sentence) = match (nothing, state.last, &state.remark) {
            (Some(nothing), Answer::Pass, _) => (Answer::Inconclusive, nothing),
            (_, answer, Some(remark)) => (answer, format!("{base}{lenient}{evidence}: {remark}")),
            (_, Answer::SharedCause, None) => (
                Answer::SharedCause,
                format!("{base}; both sides are bad at once"),
            ),
            (_, answer, None) => (answer, format!("{base}{lenient}{evidence}")),
        };
        let evidence_log10 = log.map(|log| (log / std::f64::consts::LN_10).max(-99.0));
        Verdict {
            rule: state.rule,
            answer,
            sentence,
            evidence_log10,
            progress,
            users_progress,
        }
    }

    /// Explains that a higher limit is in force, because legacy has never met the one in the file.
    fn leniency(&self, part: &Part) -> String {
        let (Test::Absolute { limit, .. }, Some((of_file, ever))) =
            (part.detector.test(), &part.limit)
        else {
            return String::new();
        };
        let rate = ever
            .rate(self.raised_at, self.looked_at)
            .unwrap_or(limit / 2.0);
        let percent = |rate: f64| format!("{} %", (rate * 1e3).round() / 10.0);
        format!(
            "; legacy has {} as ever, so {} is judged as {}",
            percent(rate),
            percent(*of_file),
            percent(*limit)
        )
    }
}

fn path(summary: &Summary) -> String {
    summary
        .path
        .as_ref()
        .map_or_else(String::new, |(path, part)| {
            format!(", {} of them on {path}", whole_percent(*part))
        })
}

fn limit_words(rule: Rule) -> String {
    match rule {
        Rule::ErrorsMax(max) => format!(", limit {max}"),
        Rule::ErrorsVsLegacy(ratio)
        | Rule::ClientErrorsVsLegacy(ratio)
        | Rule::AbortsVsLegacy(ratio)
        | Rule::RedirectsVsLegacy(ratio) => {
            format!(", tolerated {ratio} times legacy")
        }
        _ => String::new(),
    }
}

fn allowed(point: LatencyPoint) -> String {
    whole_percent(point.slower_share())
}

/// Formats a short time for people: `15 ms`, `0.4 s`, `12 s`.
fn short(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 0.1 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{seconds:.0} s")
    }
}

/// Formats a long time for people: `30 days`, `12 hours`.
pub(crate) fn long(duration: std::time::Duration) -> String {
    let hours = duration.as_secs() / 3600;
    match hours {
        0..=1 => format!("{} minutes", duration.as_secs() / 60),
        2..=47 => format!("{hours} hours"),
        _ => format!("{} days", hours / 24),
    }
}
