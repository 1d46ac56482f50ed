//! The fault dial: the faults that a backend shows from now on.
//!
//! A dial is plain data. [`Dial::check`] names every way in which it can be wrong, so a bad
//! scenario is refused before anything has started. Faults strike single requests, either all of
//! them or a share. The exception is `refuse`: a backend that refuses has closed its listener and
//! every connection, like a process that has died.

use crate::units::UsageError;
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

use crate::backend::lock;

/// The longest latency that the dial accepts, in milliseconds: ten minutes.
const MOST_LATENCY_MS: u64 = 600_000;
/// The longest processor time per request that the dial accepts, in microseconds: ten seconds.
const MOST_WORK_US: u64 = 10_000_000;
/// The 99 % quantile of the normal distribution.
const Z_99: f64 = 2.326_347_874_040_841;

/// A setting of the fault dial. The default, `{}`, is healthy.
///
/// At most one of `status`, `hang`, `reset` and `refuse` may be set. `hang` and `refuse` cannot be
/// combined with any other fault, and `refuse` cannot be combined with `share` either.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dial {
    /// The status of the answer, 200 to 599.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The wait before anything else, in milliseconds. It is the median if `latency_p99_ms` is
    /// also given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    /// The 99th percentile of the log-normal distribution from which the wait is drawn, in
    /// milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_p99_ms: Option<u64>,
    /// The processor time spent on each request, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_us: Option<u64>,
    /// The wait before each byte of the body, in milliseconds. The body is sent byte by byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drip_ms: Option<u64>,
    /// Whether requests are never answered while their connection stays open.
    #[serde(default, skip_serializing_if = "is_false")]
    pub hang: bool,
    /// Whether the socket is closed without an answer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub reset: bool,
    /// Whether the listener and all connections are closed and new connections are refused.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refuse: bool,
    /// The share of requests that the fault strikes, 0.0 to 1.0. `None` means all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

// Serde dictates this signature: `skip_serializing_if` passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

impl Dial {
    /// Parses and checks a dial written as JSON.
    pub fn from_json(json: &[u8]) -> Result<Self, UsageError> {
        let dial: Self = serde_json::from_slice(json).map_err(|error| {
            UsageError::new(format!(
                "expected a dial such as {{\"status\":500,\"share\":0.5}}, \
                 {{\"latency_ms\":50,\"latency_p99_ms\":400}}, {{\"hang\":true}}, \
                 {{\"reset\":true}}, {{\"refuse\":true}}, {{\"drip_ms\":10}} or {{}}: {error}"
            ))
        })?;
        dial.check()?;
        Ok(dial)
    }

    /// Whether the dial is set to no fault.
    pub fn is_healthy(&self) -> bool {
        *self == Self::default()
    }

    /// Checks that the combination of faults is meaningful.
    pub fn check(&self) -> Result<(), UsageError> {
        if let Some(status) = self.status
            && !(200..=599).contains(&status)
        {
            return Err(UsageError::new(format!(
                "expected a status from 200 to 599, found {status}"
            )));
        }
        for (name, value, most) in [
            ("latency_ms", self.latency_ms, MOST_LATENCY_MS),
            ("latency_p99_ms", self.latency_p99_ms, MOST_LATENCY_MS),
            ("drip_ms", self.drip_ms, MOST_LATENCY_MS),
            ("work_us", self.work_us, MOST_WORK_US),
        ] {
            if let Some(value) = value
                && value > most
            {
                return Err(UsageError::new(format!(
                    "expected {name} of at most {most}, found {value}"
                )));
            }
        }
        if let Some(p99) = self.latency_p99_ms
            && self.latency_ms.is_none_or(|p50| p50 == 0 || p50 > p99)
        {
            return Err(UsageError::new(
                "expected latency_ms above 0 and at most latency_p99_ms beside it",
            ));
        }
        let endings: Vec<&str> = [
            (self.status.is_some(), "status"),
            (self.hang, "hang"),
            (self.reset, "reset"),
            (self.refuse, "refuse"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
        if endings.len() > 1 {
            return Err(UsageError::new(format!(
                "expected at most one of status, hang, reset and refuse, found {}",
                endings.join(" and ")
            )));
        }
        let delays = [
            (self.latency_ms.is_some(), "latency_ms"),
            (self.work_us.is_some(), "work_us"),
            (self.drip_ms.is_some(), "drip_ms"),
        ];
        for (alone, name) in [(self.hang, "hang"), (self.refuse, "refuse")] {
            if let Some((_, beside)) = delays.iter().find(|(set, _)| *set)
                && alone
            {
                return Err(UsageError::new(format!(
                    "expected {name} alone, found {beside} beside it"
                )));
            }
        }
        if let Some(share) = self.share {
            if self.refuse {
                return Err(UsageError::new(
                    "expected refuse alone, found share beside it: a listener is open or closed",
                ));
            }
            if !(0.0..=1.0).contains(&share) {
                return Err(UsageError::new(format!(
                    "expected a share from 0.0 to 1.0, found {share}"
                )));
            }
            if endings.is_empty() && delays.iter().all(|(set, _)| !set) {
                return Err(UsageError::new(
                    "expected a fault beside share (status, latency_ms, work_us, drip_ms, hang or \
                     reset), found none",
                ));
            }
        }
        Ok(())
    }

    /// Draws the latency of one request.
    pub(super) fn draw_latency(&self, random: &mut impl Rng) -> Duration {
        let median = self.latency_ms.unwrap_or(0) as f64 / 1e3;
        let Some(p99) = self.latency_p99_ms else {
            return Duration::from_secs_f64(median);
        };
        let spread = ((p99 as f64 / 1e3) / median).ln() / Z_99;
        // The Box-Muller transform: 1 - u is in (0, 1], so its logarithm is finite.
        let normal = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt()
            * (std::f64::consts::TAU * random.random::<f64>()).cos();
        Duration::try_from_secs_f64(median * (spread * normal).exp())
            .unwrap_or(Duration::MAX)
            .min(Duration::from_millis(MOST_LATENCY_MS))
    }
}

/// A handle that sets the dial of a running backend. Clones set the same dial.
#[derive(Debug, Clone, Default)]
pub struct DialHandle(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    dial: Mutex<Dial>,
    /// Whether connections are to be refused, and whether they are refused now.
    refuse: watch::Sender<bool>,
    refused: watch::Sender<bool>,
}

impl DialHandle {
    /// Sets the dial for all requests that arrive from now on. An invalid dial changes nothing.
    pub fn set(&self, dial: Dial) -> Result<(), UsageError> {
        dial.check()?;
        *lock(&self.0.dial) = dial;
        self.0.refuse.send_replace(dial.refuse);
        Ok(())
    }

    /// Sets the dial and returns once the listener is closed or open, as the dial requires.
    pub async fn turn(&self, dial: Dial) -> Result<(), UsageError> {
        self.set(dial)?;
        // The sender is owned by this handle.
        let _ = self
            .0
            .refused
            .subscribe()
            .wait_for(|refused| *refused == *self.0.refuse.borrow())
            .await;
        Ok(())
    }

    /// Returns the current setting.
    pub fn get(&self) -> Dial {
        *lock(&self.0.dial)
    }

    pub(super) fn refusals(&self) -> watch::Receiver<bool> {
        self.0.refuse.subscribe()
    }

    pub(super) fn refused(&self, refused: bool) {
        self.0.refused.send_replace(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::{Dial, DialHandle};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn every_documented_dial_round_trips_through_json() {
        for json in [
            r#"{"status":500,"share":1.0}"#,
            r#"{"status":503,"latency_ms":50}"#,
            r#"{"latency_ms":50}"#,
            r#"{"latency_ms":50,"latency_p99_ms":400}"#,
            r#"{"latency_ms":50,"share":0.1}"#,
            r#"{"work_us":500,"drip_ms":10}"#,
            r#"{"hang":true}"#,
            r#"{"reset":true}"#,
            r#"{"refuse":true}"#,
            "{}",
        ] {
            let dial = Dial::from_json(json.as_bytes()).expect(json);
            assert_eq!(serde_json::to_string(&dial).expect("json"), json);
            assert_eq!(dial.is_healthy(), json == "{}");
        }
    }

    #[test]
    fn an_invalid_dial_is_refused_with_what_was_expected() {
        for (json, expected) in [
            ("", "expected a dial such as"),
            ("[1]", "expected a dial such as"),
            (r#"{"statsu":500}"#, "unknown field `statsu`"),
            (r#"{"status":"500"}"#, "invalid type"),
            (
                r#"{"status":99}"#,
                "expected a status from 200 to 599, found 99",
            ),
            (r#"{"latency_ms":600001}"#, "at most 600000, found 600001"),
            (r#"{"latency_ms":-1}"#, "invalid value"),
            (r#"{"latency_p99_ms":5}"#, "expected latency_ms above 0"),
            (
                r#"{"latency_ms":9,"latency_p99_ms":5}"#,
                "at most latency_p99_ms",
            ),
            (r#"{"work_us":10000001}"#, "at most 10000000"),
            (
                r#"{"status":500,"share":1.5}"#,
                "from 0.0 to 1.0, found 1.5",
            ),
            (r#"{"share":0.5}"#, "expected a fault beside share"),
            (r#"{"hang":true,"reset":true}"#, "found hang and reset"),
            (r#"{"hang":true,"latency_ms":1}"#, "expected hang alone"),
            (r#"{"refuse":true,"drip_ms":1}"#, "expected refuse alone"),
            (r#"{"refuse":true,"share":0.5}"#, "expected refuse alone"),
        ] {
            let message = Dial::from_json(json.as_bytes())
                .expect_err(json)
                .to_string();
            assert!(message.contains(expected), "{json}: {message}");
        }
    }

    #[test]
    fn an_invalid_dial_leaves_the_dial_unchanged() {
        let handle = DialHandle::default();
        let good = Dial {
            status: Some(503),
            ..Dial::default()
        };
        handle.set(good).expect("a good dial");
        let wrong = Dial {
            status: Some(1),
            ..Dial::default()
        };
        assert!(handle.set(wrong).is_err());
        assert_eq!(handle.get(), good);
    }

    #[test]
    fn drawn_latencies_match_the_median_and_the_tail_of_the_dial() {
        let dial = Dial {
            latency_ms: Some(20),
            latency_p99_ms: Some(200),
            ..Dial::default()
        };
        let mut random = StdRng::seed_from_u64(1);
        let mut drawn: Vec<f64> = (0..10_000)
            .map(|_| dial.draw_latency(&mut random).as_secs_f64() * 1e3)
            .collect();
        drawn.sort_by(f64::total_cmp);
        assert!((19.0..21.0).contains(&drawn[5_000]), "{}", drawn[5_000]);
        assert!((170.0..235.0).contains(&drawn[9_900]), "{}", drawn[9_900]);
    }
}
