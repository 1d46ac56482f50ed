//! Times of the last appearance, stored in a few bits.

use super::{PERIOD_TICKS, TICK};
use crate::time::Mono;
use std::sync::atomic::{AtomicU32, Ordering};

/// The number of bits of a tick in a stamp: about two hours.
pub(super) const STAMP_BITS: u32 = 15;

pub(super) const STAMP_MASK: u16 = (1 << STAMP_BITS) - 1;

/// Returns a tick in the form that the tables keep. Zero is "never".
pub(super) fn stamp_of(at: Mono) -> u16 {
    (tick_of(at) as u16 & STAMP_MASK).max(1)
}

/// Returns the number of ticks from one stamp to a later one. Requests are stamped with a time just
/// before they end, while other threads continue. A stamp that is slightly ahead therefore counts
/// as now.
pub(super) const fn age(now: u16, stamp: u16) -> u16 {
    let ticks = now.wrapping_sub(stamp) & STAMP_MASK;
    if ticks > STAMP_MASK - 1_000 { 0 } else { ticks }
}

/// Whether a cell of a table was stamped in the last [`USER_PERIOD`].
pub(super) fn is_recent(stamp: u16, now: u16) -> bool {
    stamp != 0 && age(now, stamp) <= PERIOD_TICKS
}

/// Returns the tick that contains a moment.
pub fn tick_of(at: Mono) -> u64 {
    at.as_micros() / TICK.as_micros() as u64
}

/// Adds one to a cell of (start of its period, count), unless it already holds `most`.
pub(super) fn take(cell: &AtomicU32, now: u16, most: u16) -> bool {
    let mut was = cell.load(Ordering::Relaxed);
    loop {
        let (start, count) = ((was >> 16) as u16, was as u16);
        let next = if count == 0 || now.wrapping_sub(start) >= PERIOD_TICKS {
            u32::from(now) << 16 | 1
        } else if count < most {
            was + 1
        } else {
            return false;
        };
        match cell.compare_exchange_weak(was, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(found) => was = found,
        }
    }
}

/// Reduces a path to a place in the program: at most three segments, without segments that look
/// like an id.
pub(super) fn place(path: &str) -> Box<str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut place = String::new();
    for segment in path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .take(3)
    {
        place.push('/');
        let is_id = segment.len() > 40
            || segment
                .bytes()
                .any(|byte| byte.is_ascii_digit() || byte.is_ascii_control());
        place.push_str(if is_id { "*" } else { segment });
    }
    if place.is_empty() {
        place.push('/');
    }
    place.into()
}
