//! The parsing of quantities with units, as people write them: durations ("250ms", "30s", "48h")
//! and sizes ("64KiB", "100MiB").
//!
//! `humantime` is not used, because the messages are part of this program's interface, and one
//! number with one unit is enough. Combinations ("1h30m") and decimals ("1.5s") are refused with
//! the spelling to use instead, so that one duration has one spelling.

use std::time::Duration;

/// The longest accepted duration: ten years of 365 days.
pub const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The description of a duration in messages.
pub(crate) const DURATION_SHAPE: &str =
    "a duration such as \"250ms\", \"30s\", \"5m\", \"48h\" or \"7d\"";

/// The description of a size in messages.
pub(crate) const SIZE_SHAPE: &str = "a size such as \"64KiB\", \"10MB\" or a whole number of bytes";

const DURATION_UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Parses a whole number with a unit `ms`, `s`, `m`, `h` or `d`: `"250ms"`, `"30s"`, `"5m"`,
/// `"48h"`, `"7d"`. Zero is a duration; the longest is [`MAX_DURATION`].
///
/// # Errors
/// Says what was expected and what was found, in one lower-case sentence without the name of the
/// key.
///
/// ```
/// # use std::time::Duration;
/// assert_eq!(cutover_config::parse_duration("48h"), Ok(Duration::from_secs(48 * 3600)));
/// assert!(cutover_config::parse_duration("48").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected {DURATION_SHAPE}, found {text:?}");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let Some(&(_, millis)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(match unit {
            "" => format!("{}: the unit is missing", expected()),
            _ => format!(
                "{}: one whole number and one unit of ms, s, m, h, d",
                expected()
            ),
        });
    };
    let millis = number.checked_mul(millis).ok_or_else(|| too_long(text))?;
    let duration = Duration::from_millis(millis);
    if duration <= MAX_DURATION {
        Ok(duration)
    } else {
        Err(too_long(text))
    }
}

fn too_long(text: &str) -> String {
    format!("expected a duration of at most 10 years, found {text:?}")
}

/// Parses a size in bytes: a whole number with an optional unit, `"64KiB"`, `"10MB"`, `"512"`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let expected = || format!("expected {SIZE_SHAPE}, found {text:?}");
    let (number, unit) = split(text).ok_or_else(expected)?;
    let bytes = match SIZE_UNITS.iter().find(|(name, _)| *name == unit) {
        Some(&(_, bytes)) => bytes,
        None if unit.is_empty() => 1,
        None => {
            return Err(format!(
                "{}: the units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB",
                expected()
            ));
        }
    };
    number
        .checked_mul(bytes)
        .ok_or_else(|| format!("expected a size below 16 EiB, found {text:?}"))
}

/// Splits a text into a whole number and the part after it. `None` without a leading digit. A
/// number too large for 64 bits saturates, and every limit refuses it.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return None;
    }
    Some((
        number.parse().unwrap_or(u64::MAX),
        unit.strip_prefix(' ').unwrap_or(unit),
    ))
}

/// Writes a duration as it would be written in the file, with the largest unit that divides it.
pub(crate) fn write_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, size) = DURATION_UNITS
        .iter()
        .rev()
        .find(|(_, size)| millis != 0 && millis.is_multiple_of(*size))
        .copied()
        .unwrap_or(("s", 1_000));
    format!("{}{unit}", millis / size)
}

/// Writes a size as it would be written in the file, with the largest binary unit that divides it.
pub(crate) fn write_size(bytes: u64) -> String {
    let units = [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    let (unit, size) = units
        .into_iter()
        .find(|(_, size)| bytes != 0 && bytes.is_multiple_of(*size))
        .unwrap_or(("B", 1));
    format!("{}{unit}", bytes / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_one_whole_number_and_one_unit() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("48h", 172_800_000),
            ("7d", 604_800_000),
            ("30 s", 30_000),
            ("3650d", 315_360_000_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
    }

    #[test]
    fn an_ambiguous_duration_is_refused() {
        for text in [
            "",
            "s",
            "30",
            "1.5s",
            "1h30m",
            "-1s",
            "30 seconds",
            "30S",
            "1w",
            " 30s",
            "3651d",
            "99999999999999999999s",
            "18446744073709551615d",
            "½s",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        assert_eq!(
            parse_duration("30").expect_err("no unit"),
            "expected a duration such as \"250ms\", \"30s\", \"5m\", \"48h\" or \"7d\", found \
             \"30\": the unit is missing"
        );
    }

    #[test]
    fn a_size_accepts_decimal_and_binary_units() {
        for (text, bytes) in [
            ("512", 512),
            ("0B", 0),
            ("64KiB", 65_536),
            ("100MiB", 104_857_600),
            ("10MB", 10_000_000),
            ("1 GiB", 1 << 30),
            ("2TB", 2_000_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "64kib", "64K", "1.5MiB", "-1", "99999999TiB"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_written_quantity_parses_to_itself() {
        for millis in [0, 1, 250, 1_000, 90_000, 300_000, 172_800_000, 604_800_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse_duration(&write_duration(duration)), Ok(duration));
        }
        for bytes in [0, 1, 1_000, 65_536, 104_857_600, 1 << 40] {
            assert_eq!(parse_size(&write_size(bytes)), Ok(bytes));
        }
        assert_eq!(write_duration(Duration::from_secs(172_800)), "2d");
    }
}
