//! The figures as tables that can be pasted into a document, and as JSON with every drive.
//!
//! Ratios are taken within a round, so that a disturbance of the round affects both numbers. They
//! are given relative to each of the three well-known programs. Figures are medians with ranges. If
//! some rounds were disturbed, they are repeated over the calm rounds alone. Deliberately absent: a
//! verdict. The figures are for people.

use serde::Serialize;

use crate::peers::drive::{Drive, Quantiles};
use crate::peers::figures::Spread;
use crate::peers::memory::Held;
use crate::peers::peer::Peer;
use crate::peers::population::{PERCENT, Split};
use crate::peers::syscalls::PerRequest;

/// The rows that the others are compared with, if they take part.
const BASES: [Peer; 3] = [Peer::Minipingora, Peer::Haproxy, Peer::Nginx];

/// A row and a remark about it.
pub type Said = (Peer, String);

/// The result of the comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was run, where, and how.
    pub setting: Setting,
    /// The results of the phases that ran.
    pub phases: Vec<Phase>,
    /// The reasons why the figures do not measure what was intended. Empty is good.
    pub problems: Vec<String>,
}

/// What was run, where, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The kernel version of the machine, its processor, and its number of cores.
    pub machine: String,
    /// The rows with the versions that their programs report.
    pub versions: Vec<Said>,
    /// The rows that were left out, with the reason.
    pub skipped: Vec<Said>,
    /// The rounds, seconds, connections and cores.
    pub method: String,
}

/// The result of a phase.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "phase", rename_all = "lowercase")]
pub enum Phase {
    /// The result of driving the proxies with a load.
    Driven {
        /// The kind of load: saturation, a rate, or new connections.
        name: String,
        /// The rows, in the order of the tables.
        rows: Vec<DrivenRow>,
    },
    /// The memory of fresh proxies with idle connections.
    Memory {
        /// The rows, in the order of the tables, with one figure for each round.
        rows: Vec<(Peer, Vec<Held>)>,
    },
    /// The system calls counted by strace.
    Syscalls {
        /// The rows, in the order of the tables, with a figure or the reason why there is none.
        rows: Vec<(Peer, Result<PerRequest, String>)>,
    },
}

/// The drives of one proxy.
#[derive(Clone, Debug, Serialize)]
pub struct DrivenRow {
    /// The row of the proxy.
    pub peer: Peer,
    /// The drives, one for each round.
    pub drives: Vec<Drive>,
    /// The sides on which its users were seen over the whole run so far.
    pub split: Split,
}

impl Setting {
    /// Returns the head of the report as text.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n{}\n\n", self.machine, self.method);
        for (peer, version) in &self.versions {
            text += &format!("* {}: {version}\n", peer.name());
        }
        for (peer, why) in &self.skipped {
            text += &format!("* {}: left out, {why}\n", peer.name());
        }
        text
    }
}

impl Phase {
    /// Returns the tables of this phase as text.
    pub fn text(&self) -> String {
        match self {
            Self::Driven { name, rows } => driven_text(name, rows),
            Self::Memory { rows } => memory_text(rows),
            Self::Syscalls { rows } => syscalls_text(rows),
        }
    }

    /// Returns the reasons why the figures do not measure what was intended.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Driven { name, rows } => rows.iter().flat_map(|row| row.problems(name)).collect(),
            Self::Memory { .. } | Self::Syscalls { .. } => Vec::new(),
        }
    }

    /// Returns the open loops that did not reach their rate. This depends on time, and so on the
    /// machine.
    pub fn missed_rates(&self) -> Vec<String> {
        match self {
            Self::Driven { name, rows } => rows
                .iter()
                .filter_map(|row| row.missed_rate(name))
                .collect(),
            Self::Memory { .. } | Self::Syscalls { .. } => Vec::new(),
        }
    }
}

impl DrivenRow {
    fn problems(&self, phase: &str) -> Vec<String> {
        let name = self.peer.name();
        let failed: u64 = self.drives.iter().map(|drive| drive.failed).sum();
        let why = self
            .drives
            .iter()
            .find_map(|drive| drive.first_failure.as_deref())
            .unwrap_or("no reason is known");
        let failed =
            (failed > 0).then(|| format!("{phase}: {failed} requests of {name} failed ({why})"));
        let split = self
            .split
            .wrong()
            .map(|why| format!("{phase}: {name}: {why}"));
        failed.into_iter().chain(split).collect()
    }

    fn missed_rate(&self, phase: &str) -> Option<String> {
        let late = self
            .drives
            .iter()
            .filter(|drive| !drive.has_reached_its_rate())
            .count();
        (late > 0).then(|| {
            format!(
                "{phase}: {} did not get its rate in {late} of {}",
                self.peer.name(),
                counted(self.drives.len())
            )
        })
    }
}

/// A function that computes the figure of a column from a drive.
pub(super) type Figure = fn(&Drive) -> Option<f64>;

enum Column {
    Own {
        title: &'static str,
        decimals: usize,
        figure: Figure,
    },
    Ratio {
        title: &'static str,
        to: Peer,
        figure: Figure,
    },
}

pub(super) fn cpu(drive: &Drive) -> Option<f64> {
    Some(drive.cpu_us_per_request)
}

fn latency(drive: &Drive) -> Option<Quantiles> {
    drive.open.as_ref()?.latency_us
}

pub(super) fn p50(drive: &Drive) -> Option<f64> {
    latency(drive).map(|latency| latency.p50)
}

pub(super) fn p99(drive: &Drive) -> Option<f64> {
    latency(drive).map(|latency| latency.p99)
}

/// Returns a column of ratios to each base that takes part.
fn ratios(rows: &[DrivenRow], title: &'static str, bases: &[Peer], figure: Figure) -> Vec<Column> {
    let takes_part = |base: &&Peer| rows.iter().any(|row| row.peer == **base);
    bases
        .iter()
        .filter(takes_part)
        .map(|&to| Column::Ratio { title, to, figure })
        .collect()
}

fn columns(rows: &[DrivenRow]) -> Vec<Column> {
    let own = |title, decimals, figure| Column::Own {
        title,
        decimals,
        figure,
    };
    let mut columns = vec![own("CPU µs/request", 1, cpu)];
    columns.extend(ratios(rows, "CPU", &BASES, cpu));
    columns.push(own("requests/s", 0, |drive| {
        Some(drive.requests_per_second)
    }));
    columns.push(own("busy %", 0, |drive| Some(drive.busy * 100.0)));
    columns.push(own("lost %", 0, |drive| {
        drive.lost.map(|lost| lost * 100.0)
    }));
    columns.push(own("load busy %", 0, |drive| Some(drive.load_busy * 100.0)));
    columns
}

fn latency_columns(rows: &[DrivenRow]) -> Vec<Column> {
    let own = |title, figure| Column::Own {
        title,
        decimals: 0,
        figure,
    };
    let mut columns = vec![
        own("p50 µs", p50),
        own("p90 µs", |drive| latency(drive).map(|latency| latency.p90)),
        own("p99 µs", p99),
    ];
    columns.push(own("p99.9 µs", |drive| {
        latency(drive).map(|latency| latency.p99_9)
    }));
    columns.extend(ratios(rows, "p50", &BASES[..2], p50));
    columns.extend(ratios(rows, "p99", &BASES[..2], p99));
    columns.push(own("load late, p99 µs", |drive| {
        drive.open.as_ref()?.lateness_us.map(|late| late.p99)
    }));
    columns
}

/// The drives that a table covers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    All,
    Calm,
}

fn driven_text(name: &str, rows: &[DrivenRow]) -> String {
    let is_open = rows
        .iter()
        .flat_map(|row| &row.drives)
        .any(|drive| drive.open.is_some());
    let mut text = format!(
        "\n### {name}: {} loop, {}\n\n",
        if is_open { "open" } else { "closed" },
        counted(
            rows.iter()
                .map(|row| row.drives.len())
                .min()
                .unwrap_or_default()
        )
    );
    text += &tables(rows, Over::All);
    let drives = || rows.iter().flat_map(|row| &row.drives);
    if !drives().any(Drive::is_calm) {
        text += "\nNo drive was calm: in each the proxy lost more than 5 % of its core to other \
                 work, did not get its rate, or the load was late. Read the rows of the same \
                 program for how much is chance.\n";
    } else if !drives().all(Drive::is_calm) {
        text += "\nThe same of the calm drives, in which the proxy lost at most 5 % of its core \
                 to other work and got its rate in time; ratios where both were calm:\n\n";
        text += &tables(rows, Over::Calm);
    }
    text
}

fn counted(rounds: usize) -> String {
    if rounds == 1 {
        "1 round".to_owned()
    } else {
        format!("{rounds} rounds")
    }
}

fn tables(rows: &[DrivenRow], over: Over) -> String {
    let mut text = table(rows, over, &columns(rows));
    if rows
        .iter()
        .flat_map(|row| &row.drives)
        .any(|drive| drive.open.is_some())
    {
        text.push('\n');
        text += &table(rows, over, &latency_columns(rows));
    }
    text
}

fn table(rows: &[DrivenRow], over: Over, columns: &[Column]) -> String {
    let titles = columns.iter().map(|column| match column {
        Column::Own { title, .. } => (*title).to_owned(),
        Column::Ratio { title, to, .. } => format!("{title} to {}", to.name()),
    });
    let titles: Vec<String> = titles
        .chain([
            format!("on new % (of {PERCENT})"),
            "failed".to_owned(),
            "rounds".to_owned(),
        ])
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = columns.iter().map(|column| cell(column, row, rows, over));
        let share = row
            .split
            .percent()
            .map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}"));
        let of_row = || {
            row.drives
                .iter()
                .filter(|drive| over == Over::All || drive.is_calm())
        };
        let failed: u64 = of_row().map(|drive| drive.failed).sum();
        (
            row.peer.name(),
            cells
                .chain([share, failed.to_string(), of_row().count().to_string()])
                .collect(),
        )
    });
    markdown(&titles, lines)
}

fn cell(column: &Column, row: &DrivenRow, rows: &[DrivenRow], over: Over) -> String {
    let (spread, decimals) = match column {
        Column::Own {
            decimals, figure, ..
        } => (row.spread(over, *figure), *decimals),
        Column::Ratio { to, figure, .. } => (
            row.ratio(rows.iter().find(|row| row.peer == *to), over, *figure),
            2,
        ),
    };
    spread.map_or_else(|| "-".to_owned(), |spread| spread.text(decimals))
}

impl DrivenRow {
    /// Returns the spread of a figure over the drives.
    pub(super) fn spread(&self, over: Over, figure: Figure) -> Option<Spread> {
        Spread::of(
            self.drives
                .iter()
                .filter(|drive| over == Over::All || drive.is_calm())
                .filter_map(figure),
        )
    }

    /// Returns the spread of the ratios of a figure to that of another row, round by round.
    pub(super) fn ratio(&self, base: Option<&Self>, over: Over, figure: Figure) -> Option<Spread> {
        let pairs = self
            .drives
            .iter()
            .zip(&base?.drives)
            .filter(|(own, base)| over == Over::All || (own.is_calm() && base.is_calm()));
        Spread::of(pairs.filter_map(|(own, base)| {
            Some(figure(own)? / figure(base).filter(|base| *base > 0.0)?)
        }))
    }
}

fn memory_text(rows: &[(Peer, Vec<Held>)]) -> String {
    let numbers: Vec<usize> = rows
        .iter()
        .find_map(|(_, held)| held.first())
        .map(|held| held.idle.iter().map(|idle| idle.connections).collect())
        .unwrap_or_default();
    let per_connection = numbers
        .iter()
        .map(|number| format!("KiB per idle connection, {number}"));
    let titles: Vec<String> = ["RSS at rest, MiB".to_owned(), "PSS at rest, MiB".to_owned()]
        .into_iter()
        .chain(per_connection)
        .collect();
    let mib = |kib: u64| kib as f64 / 1024.0;
    let lines = rows.iter().map(|(peer, held)| {
        let spread = |figure: &dyn Fn(&Held) -> f64, decimals| {
            Spread::of(held.iter().map(figure))
                .map_or_else(|| "-".to_owned(), |spread| spread.text(decimals))
        };
        let mut cells = vec![
            spread(&|held| mib(held.rest.rss_kib), 1),
            spread(&|held| mib(held.rest.pss_kib), 1),
        ];
        cells.extend(
            (0..numbers.len()).map(|at| spread(&|held| held.idle[at].kib_per_connection, 2)),
        );
        (peer.name(), cells)
    });
    format!(
        "\n### memory: {}, a fresh proxy in each\n\n{}",
        counted(
            rows.iter()
                .map(|(_, held)| held.len())
                .min()
                .unwrap_or_default()
        ),
        markdown(&titles, lines)
    )
}

fn syscalls_text(rows: &[(Peer, Result<PerRequest, String>)]) -> String {
    let titles = ["all", "receives", "sends", "waits", "others"].map(str::to_owned);
    let lines = rows.iter().map(|(peer, counted)| {
        let cells = match counted {
            Ok(calls) => {
                let others: Vec<String> = calls
                    .others
                    .iter()
                    .map(|(name, calls)| format!("{name} {calls:.2}"))
                    .collect();
                let number = |calls: f64| format!("{calls:.2}");
                vec![
                    number(calls.all),
                    number(calls.receives),
                    number(calls.sends),
                    number(calls.waits),
                    others.join(", "),
                ]
            }
            Err(why) => vec![
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                why.replace('|', "/"),
            ],
        };
        (peer.name(), cells)
    });
    format!(
        "\n### system calls per request, under strace\n\n{}",
        markdown(&titles, lines)
    )
}

/// Formats a Markdown table that is also aligned for a terminal.
pub(super) fn markdown<'a>(
    titles: &[String],
    lines: impl Iterator<Item = (&'a str, Vec<String>)>,
) -> String {
    let head: Vec<String> = ["proxy".to_owned()]
        .into_iter()
        .chain(titles.iter().cloned())
        .collect();
    let lines: Vec<Vec<String>> = lines
        .map(|(name, cells)| [name.to_owned()].into_iter().chain(cells).collect())
        .collect();
    let length = |text: &String| text.chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|at| {
            lines
                .iter()
                .chain([&head])
                .filter_map(|line| line.get(at))
                .map(length)
                .max()
                .unwrap_or_default()
        })
        .collect();
    let row = |cells: &[String]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(at, (cell, width))| {
                let space = " ".repeat(width - length(cell));
                if at == 0 {
                    format!("{cell}{space}")
                } else {
                    format!("{space}{cell}")
                }
            });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(at, width)| {
        if at == 0 {
            "-".repeat(*width)
        } else {
            format!("{}:", "-".repeat(width - 1))
        }
    });
    let rule = format!("| {} |\n", rule.collect::<Vec<_>>().join(" | "));
    [row(&head), rule]
        .into_iter()
        .chain(lines.iter().map(|line| row(line)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::drive::tests::of;

    const SPLIT: Split = Split {
        legacy: 7_500,
        new: 2_500,
        moved: 0,
    };

    fn row(peer: Peer, drives: Vec<Drive>) -> DrivenRow {
        DrivenRow {
            peer,
            drives,
            split: SPLIT,
        }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // In one round both run at half the speed. The ratio of medians would be 1.5, but within
        // each round it is 1.1.
        let base = row(
            Peer::Minipingora,
            vec![of(10.0, None), of(20.0, None), of(10.0, None)],
        );
        let cutover = row(
            Peer::Cutover,
            vec![of(11.0, None), of(22.0, None), of(15.0, None)],
        );
        let ratio = cutover
            .ratio(Some(&base), Over::All, cpu)
            .expect("three rounds");
        assert!(
            (ratio.median - 1.1).abs() < 1e-9 && (ratio.max - 1.5).abs() < 1e-9,
            "{ratio:?}"
        );
    }

    #[test]
    fn open_loop_tables_have_ratios_to_the_bases_that_take_part() {
        let rows = vec![
            row(Peer::Minipingora, vec![of(20.0, Some(400.0))]),
            row(Peer::Cutover, vec![of(22.0, Some(500.0))]),
        ];
        let text = Phase::Driven {
            name: "rate".to_owned(),
            rows,
        }
        .text();
        for part in [
            "### rate: open loop, 1 round\n",
            "CPU to minipingora",
            "p99 to minipingora",
            " 1.10 |",
            " 1.25 |",
            "25.0",
        ] {
            assert!(text.contains(part), "expected {part:?} in\n{text}");
        }
        assert!(
            !text.contains("haproxy") && !text.contains("The same of"),
            "{text}"
        );
        let widths: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.chars().count())
            .collect();
        assert_eq!((widths[0], widths[4]), (widths[3], widths[7]), "{text}");
    }

    #[test]
    fn disturbed_drives_are_left_out_of_the_second_table_and_its_ratios() {
        let disturbed = || Drive {
            lost: Some(0.5),
            ..of(99.0, None)
        };
        let base = row(
            Peer::Minipingora,
            vec![of(10.0, None), disturbed(), of(20.0, None)],
        );
        let cutover = row(
            Peer::Cutover,
            vec![of(11.0, None), of(11.0, None), disturbed()],
        );
        assert_eq!(
            cutover
                .ratio(Some(&base), Over::Calm, cpu)
                .map(|ratio| ratio.text(1)),
            Some("1.1".to_owned())
        );
        let text = Phase::Driven {
            name: "saturation".to_owned(),
            rows: vec![base, cutover],
        }
        .text();
        assert!(
            text.contains("20.0 (10.0..99.0)")
                && text.contains("The same of the calm drives")
                && text.contains("15.0 (10.0..20.0)"),
            "{text}"
        );
        let none = Phase::Driven {
            name: "saturation".to_owned(),
            rows: vec![row(Peer::Minipingora, vec![disturbed()])],
        }
        .text();
        assert!(none.contains("No drive was calm"), "{none}");
        let all = Phase::Driven {
            name: "saturation".to_owned(),
            rows: vec![row(Peer::Minipingora, vec![of(1.0, None)])],
        }
        .text();
        assert!(!all.contains("calm"), "{all}");
    }

    #[test]
    fn failures_moves_and_a_missed_rate_are_problems() {
        let fine = Phase::Driven {
            name: "rate".to_owned(),
            rows: vec![row(Peer::Nginx, vec![of(10.0, Some(5.0))])],
        };
        assert_eq!(
            (fine.problems(), fine.missed_rates()),
            (Vec::new(), Vec::new())
        );
        let failed = Drive {
            failed: 3,
            first_failure: Some("reset".to_owned()),
            requests_per_second: 10.0,
            ..of(10.0, Some(5.0))
        };
        let bad = Phase::Driven {
            name: "rate".to_owned(),
            rows: vec![DrivenRow {
                split: Split { moved: 2, ..SPLIT },
                ..row(Peer::Nginx, vec![failed])
            }],
        };
        let problems = [bad.problems(), bad.missed_rates()].concat().join("\n");
        for part in [
            "3 requests of nginx failed (reset)",
            "nginx did not get its rate in 1 of 1 round",
            "nginx: 2 times a user",
        ] {
            assert!(problems.contains(part), "expected {part:?} in\n{problems}");
        }
    }

    #[test]
    fn memory_and_system_calls_have_separate_tables() {
        use crate::peers::memory::Idle;
        use crate::peers::process::Memory;
        let held = |kib| Held {
            rest: Memory {
                rss_kib: 10_240,
                pss_kib: 5_120,
            },
            idle: vec![Idle {
                connections: 1_000,
                kib_per_connection: kib,
            }],
        };
        let text = Phase::Memory {
            rows: vec![(Peer::Haproxy, vec![held(1.0), held(1.5), held(1.25)])],
        }
        .text();
        assert!(
            text.contains("KiB per idle connection, 1000")
                && text.contains("1.25 (1.00..1.50)")
                && text.contains(" 10.0 |"),
            "{text}"
        );
        let calls = PerRequest {
            all: 5.0,
            receives: 2.0,
            sends: 2.0,
            waits: 0.1,
            others: [("getpeername".to_owned(), 1.0)].into(),
        };
        let text = Phase::Syscalls {
            rows: vec![
                (Peer::Cutover, Ok(calls)),
                (Peer::Nginx, Err("not allowed".to_owned())),
            ],
        }
        .text();
        assert!(
            text.contains("getpeername 1.00") && text.contains("not allowed"),
            "{text}"
        );
    }
}
