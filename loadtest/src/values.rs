//! The deserialisation of the values of a scenario file. It uses the parsers of the command line
//! and their error messages.

use crate::driver::{Protocol, UserKey};
use crate::units::{Percent, UsageError, parse_duration};
use http::uri::PathAndQuery;
use http::{HeaderName, Method};
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::time::Duration;

fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, UsageError>,
) -> Result<T, D::Error> {
    parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Deserialises a duration such as "250ms".
pub(crate) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    text(deserializer, parse_duration)
}

/// Deserialises an optional duration.
pub(crate) fn some_duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// Deserialises where a request carries its user.
pub(crate) fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UserKey, D::Error> {
    text(deserializer, str::parse)
}

/// Deserialises a path with its query.
pub(crate) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathAndQuery, D::Error> {
    text(deserializer, parse_path)
}

/// Parses a path with its query.
pub fn parse_path(text: &str) -> Result<PathAndQuery, UsageError> {
    text.parse()
        .ok()
        .filter(|_| text.starts_with('/'))
        .ok_or_else(|| UsageError::new(format!("expected a path such as \"/\", found {text:?}")))
}

/// Deserialises the name of a header.
pub(crate) fn header<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HeaderName, D::Error> {
    text(deserializer, |text| {
        text.parse()
            .map_err(|_| UsageError::new(format!("expected the name of a header, found {text:?}")))
    })
}

/// Deserialises a method.
pub(crate) fn method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Method, D::Error> {
    text(deserializer, parse_method)
}

/// Parses a method such as GET.
pub fn parse_method(text: &str) -> Result<Method, UsageError> {
    text.parse()
        .map_err(|_| UsageError::new(format!("expected a method such as GET, found {text:?}")))
}

/// Deserialises a protocol.
pub(crate) fn protocol<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
    text(deserializer, str::parse)
}

/// Deserialises a percentage, given as a number or as text.
pub(crate) fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Percent, D::Error> {
    struct Reader;

    impl Visitor<'_> for Reader {
        type Value = Percent;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a percentage from 0 to 100 with at most three decimal places")
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<Percent, E> {
            Percent::parse(&value.to_string())
                .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<Percent, E> {
            Percent::parse(&value.to_string())
                .map_err(|_| E::invalid_value(Unexpected::Float(value), &self))
        }

        fn visit_str<E: Error>(self, value: &str) -> Result<Percent, E> {
            Percent::parse(value).map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Reader)
}

/// Deserialises an optional percentage.
pub(crate) fn some_percent<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Percent>, D::Error> {
    percent(deserializer).map(Some)
}

/// A value that placeholders are filled with: text, or a number as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Variable {
    /// Text.
    Text(String),
    /// A whole number.
    Whole(i64),
    /// A number.
    Number(f64),
    /// A boolean.
    Flag(bool),
}

impl fmt::Display for Variable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => formatter.write_str(text),
            Self::Whole(number) => write!(formatter, "{number}"),
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Flag(flag) => write!(formatter, "{flag}"),
        }
    }
}
