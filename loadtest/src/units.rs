//! Values as users write them on a command line: durations, percentages, rates.
//!
//! Every parser is a plain function from text to value. Its error says what was expected and what
//! was found, and the command line prints it unchanged. Deliberately absent: compound durations
//! ("1m30s") and decimals in durations, which have an exact spelling in a smaller unit anyway.

use std::fmt;
use std::time::Duration;

/// An invalid value from the caller, with a message that says what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// Creates an error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Parses a duration such as `250ms`, `5s`, `2m` or `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, UsageError> {
    let wrong = || {
        UsageError::new(format!(
            "expected a whole number and a unit (ms, s, m or h), such as \"250ms\" or \"5s\", \
             found {text:?}"
        ))
    };
    let unit_at = text
        .find(|character: char| !character.is_ascii_digit())
        .ok_or_else(wrong)?;
    let (digits, unit) = text.split_at(unit_at);
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let milliseconds_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(milliseconds_per_unit)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

/// Parses a duration like [`parse_duration`], and refuses zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, UsageError> {
    match parse_duration(text)? {
        Duration::ZERO => Err(UsageError::new(format!(
            "expected a duration above zero, found {text:?}"
        ))),
        duration => Ok(duration),
    }
}

/// Parses a rate in requests per second: a decimal above 0, at most one million.
pub fn parse_rate(text: &str) -> Result<f64, UsageError> {
    text.parse::<f64>()
        .ok()
        .filter(|rate| rate.is_finite() && *rate > 0.0 && *rate <= 1_000_000.0)
        .ok_or_else(|| {
            UsageError::new(format!(
                "expected requests per second, above 0 and at most 1000000, found {text:?}"
            ))
        })
}

/// A percentage with at most three decimal places, stored exactly as thousandths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent {
    thousandths: u32,
}

impl Percent {
    /// 0 %.
    pub const ZERO: Self = Self { thousandths: 0 };

    /// Parses `25`, `12.5`, `0.125`, each with or without a trailing `%`.
    pub fn parse(text: &str) -> Result<Self, UsageError> {
        let wrong = || {
            UsageError::new(format!(
                "expected a percentage from 0 to 100 with at most three decimal places, such as \
                 \"25\" or \"0.125\", found {text:?}"
            ))
        };
        let number = text.strip_suffix('%').unwrap_or(text);
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty()
            || whole.len() > 3
            || decimals.is_empty()
            || decimals.len() > 3
            || !digits_only(whole)
            || !digits_only(decimals)
        {
            return Err(wrong());
        }
        let whole: u32 = whole.parse().map_err(|_| wrong())?;
        let decimals: u32 = format!("{decimals:0<3}").parse().map_err(|_| wrong())?;
        let thousandths = whole * 1_000 + decimals;
        if thousandths > 100_000 {
            return Err(wrong());
        }
        Ok(Self { thousandths })
    }

    /// Returns the thousandths of a percent, 0 to 100000.
    pub fn thousandths(self) -> u32 {
        self.thousandths
    }

    /// Returns the percentage as a share, 0.0 to 1.0.
    pub fn as_share(self) -> f64 {
        f64::from(self.thousandths) / 100_000.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:03}", self.thousandths % 1_000);
        let decimals = decimals.trim_end_matches('0');
        let whole = self.thousandths / 1_000;
        if decimals.is_empty() {
            write!(formatter, "{whole}")
        } else {
            write!(formatter, "{whole}.{decimals}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Percent, parse_duration, parse_positive_duration, parse_rate};
    use std::time::Duration;

    #[test]
    fn durations_are_a_whole_number_and_a_unit() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("0s", 0),
            ("5s", 5_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds))
            );
        }
    }

    #[test]
    fn an_invalid_duration_reports_what_was_expected_and_found() {
        for text in [
            "",
            "5",
            "ms",
            "5 s",
            "-5s",
            "1.5s",
            "5d",
            "5S",
            "+5s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            let message = parse_duration(text).expect_err(text).to_string();
            assert!(message.contains("such as \"250ms\""), "{message}");
            assert!(message.contains(&format!("found {text:?}")), "{message}");
        }
    }

    #[test]
    fn a_positive_duration_refuses_zero() {
        assert!(parse_positive_duration("0ms").is_err());
        assert_eq!(parse_positive_duration("1ms"), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn rates_are_above_zero_and_bounded() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for text in ["0", "-1", "NaN", "inf", "1000001", "many"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_are_exact_to_three_places() {
        for (text, thousandths, shown) in [
            ("0", 0, "0"),
            ("25", 25_000, "25"),
            ("0.1%", 100, "0.1"),
            ("0.125", 125, "0.125"),
            ("12.50", 12_500, "12.5"),
            ("99.999", 99_999, "99.999"),
            ("100", 100_000, "100"),
        ] {
            let percent = Percent::parse(text).expect(text);
            assert_eq!(percent.thousandths(), thousandths, "{text}");
            assert_eq!(percent.to_string(), shown);
        }
    }

    #[test]
    fn an_invalid_percentage_is_refused() {
        for text in [
            "", "%", ".5", "5.", "-1", "+1", "100.001", "101", "0.0001", "1e1", "2000", "25%%",
            "1,5",
        ] {
            assert!(Percent::parse(text).is_err(), "{text}");
        }
    }
}
