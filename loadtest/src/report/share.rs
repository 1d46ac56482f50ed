//! Measured shares and their certainty.

use serde::Serialize;

/// The two-sided 99.9 % quantile of the normal distribution.
pub const Z_99_9: f64 = 3.290_526_731_491_926;

/// The shares on new.
#[derive(Debug, Clone, Serialize)]
pub struct Shares {
    /// The share of the users that were seen, each counted by its last answer.
    pub users: Share,
    /// The share of the answers that named a side.
    pub requests: Share,
}

/// A measured share with its interval.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    /// The number on new.
    pub on_new: u64,
    /// The total number.
    pub total: u64,
    /// The ratio of `on_new` to `total`. `None` if the total is 0.
    pub measured: Option<f64>,
    /// The 99.9 % Wilson interval of the true share. `None` if the total is 0.
    pub interval: Option<(f64, f64)>,
    /// The expected share, if salt and percentage are known.
    pub expected: Option<f64>,
    /// Whether the expected share lies in the interval.
    pub expected_in_interval: Option<bool>,
}

impl Share {
    pub(super) fn new(on_new: u64, total: u64, expected: Option<f64>) -> Self {
        let interval = wilson_interval(on_new, total, Z_99_9);
        Self {
            on_new,
            total,
            measured: (total > 0).then(|| on_new as f64 / total as f64),
            interval,
            expected,
            expected_in_interval: expected
                .zip(interval)
                .map(|(expected, (low, high))| (low..=high).contains(&expected)),
        }
    }
}

/// Returns Wilson's interval for a share of `successes` in `trials`, or `None` without trials.
///
/// It was chosen over the textbook interval because it also holds at shares near 0 and 1, where a
/// cutover spends its first and its last days.
pub fn wilson_interval(successes: u64, trials: u64, z: f64) -> Option<(f64, f64)> {
    if trials == 0 || successes > trials {
        return None;
    }
    let count = trials as f64;
    let share = successes as f64 / count;
    let z_squared = z * z;
    let denominator = 1.0 + z_squared / count;
    let centre = (share + z_squared / (2.0 * count)) / denominator;
    let half_width = z / denominator
        * (share * (1.0 - share) / count + z_squared / (4.0 * count * count)).sqrt();
    // The ends are exact here. Computed ends would be off by a rounding error.
    let low = if successes == 0 {
        0.0
    } else {
        centre - half_width
    };
    let high = if successes == trials {
        1.0
    } else {
        centre + half_width
    };
    Some((low, high))
}
