//! The report as a table for readers at a terminal.

use crate::driver::{Arrivals, Protocol};
use crate::report::{Report, Share, TABLE_EXAMPLES};
use std::fmt;

/// Formats a time in microseconds in the most readable unit.
pub fn readable(microseconds: u64) -> String {
    let value = microseconds as f64;
    if microseconds < 1_000 {
        format!("{microseconds}us")
    } else if microseconds < 1_000_000 {
        format!("{:.2}ms", value / 1e3)
    } else {
        format!("{:.2}s", value / 1e6)
    }
}

/// Formats the report as a table.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        writeln!(
            formatter,
            "{:<15}{} {}{}{}{}: {} per second ({}) for {}, {} users by {}, {} connections, seed {}",
            "plan",
            plan.method,
            plan.target,
            plan.path,
            if plan.body_bytes > 0 {
                format!(" with {} bytes", plan.body_bytes)
            } else {
                String::new()
            },
            match plan.protocol {
                Protocol::H1 => "",
                Protocol::H2 => " by HTTP/2",
            },
            plan.rate,
            match plan.arrivals {
                Arrivals::Constant => "constant",
                Arrivals::Poisson => "Poisson",
            },
            readable(plan.duration_ms.saturating_mul(1_000)),
            plan.users,
            plan.key,
            plan.connections,
            plan.seed
        )?;
        writeln!(
            formatter,
            "{:<15}{} finished, {} sent, {:.1} sent per second{}",
            "requests",
            self.requests.finished,
            self.requests.sent,
            self.requests.sent_per_second,
            if self.requests.stopped_early {
                " (stopped early)"
            } else {
                ""
            }
        )?;
        writeln!(
            formatter,
            "{:<15}p50 {}, p90 {}, p99 {}, p99.9 {}, max {} (from the intended start, {} requests)",
            "latency",
            readable(self.latency.p50_us),
            readable(self.latency.p90_us),
            readable(self.latency.p99_us),
            readable(self.latency.p999_us),
            readable(self.latency.max_us),
            self.latency.count
        )?;
        for (label, lateness, meaning) in [
            (
                "lateness",
                &self.release_lateness,
                "of the generator itself",
            ),
            ("", &self.send_lateness, "with the wait for a connection"),
        ] {
            writeln!(
                formatter,
                "{label:<15}p50 {}, p99 {}, max {} ({meaning})",
                readable(lateness.p50_us),
                readable(lateness.p99_us),
                readable(lateness.max_us)
            )?;
        }
        let statuses: Vec<String> = self
            .statuses
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        writeln!(
            formatter,
            "{:<15}{}",
            "statuses",
            if statuses.is_empty() {
                "none".to_owned()
            } else {
                statuses.join(", ")
            }
        )?;
        let kinds = self.failures.kinds();
        writeln!(
            formatter,
            "{:<15}{} requests{}{kinds}, {} users hurt",
            "failures",
            self.failures.requests,
            if kinds.is_empty() { "" } else { ": " },
            self.failures.users_hurt
        )?;
        writeln!(
            formatter,
            "{:<15}legacy {}, new {}, unnamed {} (and {} with an error), by {}",
            "sides",
            self.sides.legacy,
            self.sides.new,
            self.sides.unnamed,
            self.sides.unnamed_errors,
            self.sides.header
        )?;
        self.write_stickiness(formatter)?;
        self.write_hash(formatter)?;
        for (label, share) in [
            ("users on new", &self.shares.users),
            ("answers on new", &self.shares.requests),
        ] {
            writeln!(formatter, "{label:<15}{share}")?;
        }
        for segment in self.segments.iter().filter(|_| self.segments.len() > 1) {
            writeln!(
                formatter,
                "{:<15}{:.1}s to {:.1}s: {}",
                "",
                segment.from_ms / 1e3,
                segment.to_ms / 1e3,
                segment.requests
            )?;
        }
        if let Some(blast) = &self.blast_radius {
            writeln!(
                formatter,
                "{:<15}{:.1}ms from the first failed answer (at {:.1}ms) to the last answer \
                 served by new ({}); last failed answer at {:.1}ms",
                "blast radius",
                blast.duration_ms,
                blast.first_failure_ms,
                blast
                    .last_new_ms
                    .map_or("none".to_owned(), |last| format!("at {last:.1}ms")),
                blast.last_failure_ms
            )?;
            if let Some(since) = &blast.since_fault {
                writeln!(
                    formatter,
                    "{:<15}since the fault at {:.1}ms: {} bad answers to {} users, {:.1}ms to the \
                     last request on new ({} requests after it)",
                    "",
                    since.fault_ms,
                    since.bad_answers,
                    since.users_hurt,
                    since.time_to_zero_ms,
                    since.requests_after
                )?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn write_stickiness(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = &self.stickiness;
        writeln!(
            formatter,
            "{:<15}{} of {} users on more than one side ({} seen more than once)",
            "stickiness", found.users_on_both_sides, found.users_seen, found.users_seen_again
        )?;
        if found.switches == 0 {
            return Ok(());
        }
        writeln!(
            formatter,
            "{:<15}{} switches: legacy->new {}, new->legacy {}, overlapping {}",
            "", found.switches, found.legacy_to_new, found.new_to_legacy, found.overlapping
        )?;
        writeln!(
            formatter,
            "{:<15}first switch of a user: legacy->new {}, new->legacy {}, overlapping {}",
            "",
            found.users_first_to_new,
            found.users_first_to_legacy,
            found.users_first_overlapping
        )?;
        writeln!(
            formatter,
            "{:<15}{} switches of {} users are explained by no step",
            "", found.unexplained, found.users_unexplained
        )?;
        for switch in found.examples.iter().take(TABLE_EXAMPLES) {
            writeln!(
                formatter,
                "{:<15}  {} {} at {:.1}ms{}",
                "",
                switch.user,
                switch.direction,
                switch.at_ms,
                if switch.overlapping {
                    " (overlapping)"
                } else {
                    ""
                }
            )?;
        }
        Ok(())
    }

    fn write_hash(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(check) = &self.hash else {
            return writeln!(
                formatter,
                "{:<15}not checked (needs --salt and --percent)",
                "hash"
            );
        };
        writeln!(
            formatter,
            "{:<15}{} of {} answers from the wrong side, to {} users",
            "hash", check.wrong_answers, check.checked, check.wrong_users
        )?;
        for wrong in check.examples.iter().take(TABLE_EXAMPLES) {
            writeln!(
                formatter,
                "{:<15}  {} (bucket {}) expected {}, found {} at {:.1}ms",
                "", wrong.user, wrong.bucket, wrong.expected, wrong.found, wrong.at_ms
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Share {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(measured), Some((low, high))) = (self.measured, self.interval) else {
            return formatter.write_str("none seen");
        };
        write!(
            formatter,
            "{:.3}% ({} of {}), 99.9% interval {:.3}% to {:.3}%",
            measured * 100.0,
            self.on_new,
            self.total,
            low * 100.0,
            high * 100.0
        )?;
        if let (Some(expected), Some(inside)) = (self.expected, self.expected_in_interval) {
            write!(
                formatter,
                ", expected {:.3}% {}",
                expected * 100.0,
                if inside { "inside" } else { "OUTSIDE" }
            )?;
        }
        Ok(())
    }
}
