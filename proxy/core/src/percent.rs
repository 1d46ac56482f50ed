//! Shares and limits as integers. Floats are never compared, so `0.1 + 0.2` cannot move a user.
//!
//! [`Percent`] is the share of users on new, [`Rate`] is a limit on a share of requests, and
//! [`Ratio`] is a factor between the sides. Each is an exact decimal with a fixed number of places.
//! More places are an error and are not rounded.

use std::fmt;

/// A share of users in thousandths of a percent, `0..=100_000`. It is ordered by exposure: a
/// greater value means more users on new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

impl Percent {
    /// No users.
    pub const ZERO: Self = Self(0);
    /// All users.
    pub const FULL: Self = Self(100_000);

    /// Creates a share from thousandths of a percent; `None` above 100 000.
    pub const fn from_thousandths(thousandths: u32) -> Option<Self> {
        if thousandths <= Self::FULL.0 {
            Some(Self(thousandths))
        } else {
            None
        }
    }

    /// Returns the thousandths of a percent, `0..=100_000`. This is also the first bucket that is
    /// *not* on new.
    pub const fn thousandths(self) -> u32 {
        self.0
    }

    /// Returns the share as a ratio, `0.0..=1.0`. For display and metrics only.
    pub fn as_ratio(self) -> f64 {
        f64::from(self.0) / f64::from(Self::FULL.0)
    }

    /// Parses an exact decimal such as `12.5`, from 0 to 100 with at most three decimals.
    ///
    /// # Errors
    /// Describes what is wrong with the text: not a number, too many decimals, or out of range.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        decimal(text, 3, u64::from(Self::FULL.0)).map(|thousandths| Self(thousandths as u32))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(f, u64::from(self.0), 3)
    }
}

/// A limit on a share of requests in parts per million, `0..=1_000_000`. It is written as a string
/// with a percent sign and at most four decimals, such as `"1%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u32);

impl Rate {
    /// The limit of 0 %.
    pub const NONE: Self = Self(0);

    /// Creates a limit from parts per million; `None` above one million.
    pub const fn from_ppm(ppm: u32) -> Option<Self> {
        if ppm <= 1_000_000 {
            Some(Self(ppm))
        } else {
            None
        }
    }

    /// Returns the share as a fraction, for statistics.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// Returns the limit in parts per million.
    pub const fn ppm(self) -> u32 {
        self.0
    }

    /// Parses `"1%"` or `"0.5 %"`: from 0% to 100% with at most four decimals.
    ///
    /// # Errors
    /// Describes what is wrong with the text. The percent sign is required so that `1` cannot be
    /// read as 100 %.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        let number = text
            .trim()
            .strip_suffix('%')
            .ok_or(DecimalError::NoPercentSign)?;
        decimal(number.trim_end(), 4, 1_000_000).map(|ppm| Self(ppm as u32))
    }

    /// Whether `events` of `total` are strictly more than this share. The comparison is exact: it
    /// does not divide.
    pub fn is_exceeded_by(self, events: u64, total: u64) -> bool {
        u128::from(events) * 1_000_000 > u128::from(total) * u128::from(self.0)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(f, u64::from(self.0), 4)?;
        f.write_str(" %")
    }
}

/// A factor between new and legacy in thousandths, such as `2.0` for "at most twice as many".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ratio(u32);

impl Ratio {
    /// The largest accepted factor: 1000.
    pub const MAX_THOUSANDTHS: u32 = 1_000_000;

    /// Creates a factor from thousandths. `None` below 1 (new is never required to be better than
    /// legacy) or above 1000.
    pub const fn from_thousandths(thousandths: u32) -> Option<Self> {
        if thousandths >= 1000 && thousandths <= Self::MAX_THOUSANDTHS {
            Some(Self(thousandths))
        } else {
            None
        }
    }

    /// Parses an exact decimal from 1 to 1000 with at most three decimals.
    ///
    /// # Errors
    /// Describes what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        let thousandths = decimal(text, 3, u64::from(Self::MAX_THOUSANDTHS))?;
        Self::from_thousandths(thousandths as u32).ok_or(DecimalError::OutOfRange)
    }

    /// Returns the factor as a float, for statistics.
    pub fn factor(self) -> f64 {
        f64::from(self.0) / 1e3
    }

    /// Returns the factor in thousandths.
    pub const fn thousandths(self) -> u32 {
        self.0
    }

    /// Whether the rate `new_events / new_total` is strictly more than this factor times
    /// `legacy_events / legacy_total`. The comparison is exact.
    pub fn is_exceeded_by(
        self,
        new_events: u64,
        new_total: u64,
        legacy_events: u64,
        legacy_total: u64,
    ) -> bool {
        u128::from(new_events) * u128::from(legacy_total) * 1000
            > u128::from(self.0) * u128::from(legacy_events) * u128::from(new_total)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(f, u64::from(self.0), 3)
    }
}

/// The reason why a text is not a decimal of the required kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecimalError {
    /// The text does not consist of digits with at most one point.
    NotANumber,
    /// The text has more decimals than the type keeps.
    TooManyDecimals {
        /// The number of decimals that are kept.
        at_most: usize,
    },
    /// The value is outside the range of the type.
    OutOfRange,
    /// The rate has no percent sign.
    NoPercentSign,
}

impl fmt::Display for DecimalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotANumber => f.write_str("not a decimal number"),
            Self::TooManyDecimals { at_most } => write!(f, "more than {at_most} decimals"),
            Self::OutOfRange => f.write_str("out of range"),
            Self::NoPercentSign => f.write_str("the percent sign is missing"),
        }
    }
}

impl std::error::Error for DecimalError {}

/// Parses `digits[.digits]` as an integer count of `10^-places`, at most `max`.
fn decimal(text: &str, places: usize, max: u64) -> Result<u64, DecimalError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty()
        || !digits_only(whole)
        || !digits_only(fraction)
        || (text.contains('.') && fraction.is_empty())
    {
        return Err(DecimalError::NotANumber);
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > places {
        return Err(DecimalError::TooManyDecimals { at_most: places });
    }
    let mut value: u64 = 0;
    let padding = std::iter::repeat_n(b'0', places - fraction.len());
    for digit in whole.bytes().chain(fraction.bytes()).chain(padding) {
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or(DecimalError::OutOfRange)?;
    }
    if value <= max {
        Ok(value)
    } else {
        Err(DecimalError::OutOfRange)
    }
}

/// Writes an integer count of `10^-places` without trailing zeros.
fn write_decimal(f: &mut fmt::Formatter<'_>, value: u64, places: u32) -> fmt::Result {
    let unit = 10u64.pow(places);
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return write!(f, "{whole}");
    }
    let digits = format!("{fraction:0width$}", width = places as usize);
    write!(f, "{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_is_parsed_exactly_to_the_thousandth() {
        for (text, thousandths) in [
            ("0", 0),
            ("0.001", 1),
            ("0.125", 125),
            ("12.5", 12_500),
            ("5.0", 5_000),
            ("99.999", 99_999),
            ("100", 100_000),
            ("100.000", 100_000),
        ] {
            assert_eq!(
                Percent::parse(text).map(Percent::thousandths),
                Ok(thousandths),
                "{text}"
            );
        }
    }

    #[test]
    fn a_percent_that_would_need_rounding_is_rejected() {
        for (text, error) in [
            ("0.0005", DecimalError::TooManyDecimals { at_most: 3 }),
            ("100.001", DecimalError::OutOfRange),
            ("101", DecimalError::OutOfRange),
            ("99999999999999999999999", DecimalError::OutOfRange),
            ("", DecimalError::NotANumber),
            (".5", DecimalError::NotANumber),
            ("5.", DecimalError::NotANumber),
            ("-1", DecimalError::NotANumber),
            ("1e1", DecimalError::NotANumber),
            ("5%", DecimalError::NotANumber),
            ("1.2.3", DecimalError::NotANumber),
        ] {
            assert_eq!(Percent::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_displayed_value_parses_to_itself() {
        for thousandths in [0, 1, 10, 100, 125, 1_000, 12_500, 99_999, 100_000] {
            let percent = Percent(thousandths);
            assert_eq!(Percent::parse(&percent.to_string()), Ok(percent));
        }
        assert_eq!(Percent(12_500).to_string(), "12.5");
        assert_eq!(Rate(10_000).to_string(), "1 %");
        assert_eq!(Ratio(1_500).to_string(), "1.5");
    }

    #[test]
    fn a_rate_needs_its_percent_sign() {
        assert_eq!(Rate::parse("1%").map(Rate::ppm), Ok(10_000));
        assert_eq!(Rate::parse("0.05 %").map(Rate::ppm), Ok(500));
        assert_eq!(Rate::parse("1"), Err(DecimalError::NoPercentSign));
        assert_eq!(Rate::parse("101%"), Err(DecimalError::OutOfRange));
    }

    #[test]
    fn a_limit_is_exceeded_only_strictly_above_it() {
        let one_percent = Rate(10_000);
        assert!(!one_percent.is_exceeded_by(1, 100));
        assert!(one_percent.is_exceeded_by(2, 100));
        assert!(one_percent.is_exceeded_by(10_001, 1_000_000));
        assert!(!one_percent.is_exceeded_by(0, 0));
        let twice = Ratio(2_000);
        assert!(!twice.is_exceeded_by(4, 100, 2, 100));
        assert!(twice.is_exceeded_by(5, 100, 2, 100));
        assert!(twice.is_exceeded_by(1, 100, 0, 100));
    }
}
