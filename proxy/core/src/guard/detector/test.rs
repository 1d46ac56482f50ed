//! The hypotheses that a detector tests.

use super::RARE;
use super::tally::Tally;

/// The definition of healthy, and the worse worlds that are looked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// Bad events on new are at most this share of the trials. The worse worlds have higher rates.
    /// Each e-value is `(r/r0)^x * ((1-r)/(1-r0))^(n-x)`.
    Absolute {
        /// The limit `r0`, above 0 and below 1.
        limit: f64,
        /// The rates that are looked for, each above the limit.
        rates: Vec<f64>,
    },
    /// Bad events on new occur at most this many times as often as on legacy in the same tick.
    /// Given their sum, their split between the sides is then at most binomial (Hoeffding 1963,
    /// theorem 4), whatever the common rate does: `(psi/rho)^x * ((1-w+w*rho)/(1-w+w*psi))^(x+y)`,
    /// where `w` is the share of new among the trials. Where no more than legacy's rate is
    /// tolerated, the mean of `psi^x` has a second bound, `(1-q+q*psi)^n`, where `q` is the bad
    /// share of the trials on both sides. The lower bound is used where bad events are rare: the
    /// split is hypergeometric, in which trials and bad events can be exchanged.
    Relative {
        /// The tolerated ratio `rho`, at least 1.
        tolerated: f64,
        /// The ratios that are looked for, each above `tolerated`.
        ratios: Vec<f64>,
    },
    /// The mean on new is at most that of legacy, for values within `0..=1`. Given all values of a
    /// tick, those of new are then drawn from them without replacement. So `exp(f*sum)` has at most
    /// the mean of as many draws with replacement (Hoeffding 1963, theorem 4): `f*sum - n*ln(mean
    /// of exp(f*value) over both sides)` with stakes `f`.
    MeanVsLegacy {
        /// The stakes, each twice the previous one.
        stakes: Vec<f64>,
    },
    /// The mean on new is at most a limit, for bounded values. The e-value is a betting martingale
    /// `prod 1 + f * (value/limit - 1)` with stakes `f` below 1 (Waudby-Smith and Ramdas 2024).
    Mean {
        /// The limit of the mean.
        limit: f64,
        /// The stakes.
        stakes: Vec<f64>,
    },
}

impl Test {
    /// Creates a test with rates above an absolute limit. The rates are evenly spread over its
    /// odds, so that they fit any limit. A limit of 0 is treated as one in a million, and a limit
    /// of 1 as a value just below 1.
    pub fn absolute(limit: f64) -> Self {
        let limit = limit.clamp(1e-6, 0.999_999);
        let odds = limit / (1.0 - limit);
        let rates = [1.5, 2.0, 5.0, 10.0, 30.0, 100.0, 900.0]
            .iter()
            .map(|times| odds * times / (1.0 + odds * times))
            .collect();
        Self::Absolute { limit, rates }
    }

    /// Creates a test with ratios above the tolerated one.
    pub fn relative(tolerated: f64) -> Self {
        let tolerated = tolerated.max(1.0);
        let ratios = [1.25, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0]
            .iter()
            .map(|times| tolerated * times)
            .collect();
        Self::Relative { tolerated, ratios }
    }

    /// Creates a test with stakes on the mean.
    pub fn mean(limit: f64) -> Self {
        Self::Mean {
            limit: limit.max(1.0),
            stakes: vec![0.02, 0.05, 0.1, 0.2, 0.4, 0.8],
        }
    }

    /// Creates a test with stakes on the mean, compared with that of legacy.
    pub fn mean_vs_legacy() -> Self {
        Self::MeanVsLegacy {
            stakes: vec![0.25, 0.5, 1.0, 2.0, 4.0, 8.0],
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Absolute { rates, .. } => rates.len(),
            Self::Relative { ratios, .. } => ratios.len(),
            Self::Mean { stakes, .. } | Self::MeanVsLegacy { stakes } => stakes.len(),
        }
    }

    /// Returns the logarithm of the e-value of component `k`.
    pub(super) fn log_e(&self, k: usize, tally: &Tally) -> f64 {
        // Counted events may belong to requests of the previous tick. The number of bad trials
        // never exceeds the number of trials.
        let n = tally.n.max(tally.x) as f64;
        let (x, y) = (tally.x as f64, tally.y as f64);
        match self {
            Self::Absolute { limit, rates } => {
                x * (rates[k] / limit).ln() + (n - x) * ((1.0 - rates[k]) / (1.0 - limit)).ln()
            }
            Self::Relative { tolerated, ratios } if x + y > 0.0 => {
                let m = tally.m.max(tally.y) as f64;
                let w = n / (n + m);
                let by_side = x * (ratios[k] / tolerated).ln()
                    + (x + y) * ((1.0 - w + w * tolerated) / (1.0 - w + w * ratios[k])).ln();
                let q = (x + y) / (n + m);
                if *tolerated > 1.0 || q > RARE {
                    return by_side;
                }
                by_side.max(x * ratios[k].ln() - n * (1.0 - q + q * ratios[k]).ln())
            }
            Self::Relative { .. } | Self::Mean { .. } | Self::MeanVsLegacy { .. } => 0.0,
        }
    }

    /// Returns the logarithm of what one bad event on new adds to component `k`.
    pub(super) fn worth(&self, k: usize, tally: &Tally) -> f64 {
        match self {
            Self::Absolute { limit, rates } => (rates[k] / limit).ln(),
            Self::Relative { tolerated, ratios } => {
                let w = tally.share_of_new();
                (ratios[k] / tolerated * (1.0 - w + w * tolerated) / (1.0 - w + w * ratios[k])).ln()
            }
            Self::Mean { .. } | Self::MeanVsLegacy { .. } => 0.0,
        }
    }
}
