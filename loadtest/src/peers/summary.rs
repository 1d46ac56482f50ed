//! One table of all phases, short enough for a README. Each figure is a median. A ratio in brackets
//! is relative to `minipingora` and, after a slash, to `haproxy`.
//!
//! Figures are taken from calm drives if a row and its base have any, and otherwise from all
//! drives. A reader of a single table wants the best figure available, and the long tables show
//! what was left out.

use crate::peers::figures::Spread;
use crate::peers::memory::Held;
use crate::peers::peer::Peer;
use crate::peers::report::{DrivenRow, Figure, Over, Phase, Report, cpu, markdown, p50, p99};
use crate::peers::syscalls::PerRequest;

/// A column: its title and the cells of the rows that have one.
type Column = (String, Vec<(Peer, String)>);

/// Returns the table of all phases. It is empty if only one phase ran, whose own table is enough.
pub fn text(report: &Report) -> String {
    if report.phases.len() < 2 {
        return String::new();
    }
    let columns: Vec<Column> = report.phases.iter().flat_map(of_phase).collect();
    let titles: Vec<String> = columns.iter().map(|(title, _)| title.clone()).collect();
    let cell = |peer, (_, cells): &Column| {
        cells
            .iter()
            .find(|(of, _)| *of == peer)
            .map_or_else(|| "-".to_owned(), |(_, cell)| cell.clone())
    };
    let lines = report.setting.versions.iter().map(|&(peer, _)| {
        (
            peer.name(),
            columns.iter().map(|column| cell(peer, column)).collect(),
        )
    });
    let drives = || {
        report
            .phases
            .iter()
            .flat_map(|phase| {
                if let Phase::Driven { rows, .. } = phase {
                    &rows[..]
                } else {
                    &[]
                }
            })
            .flat_map(|row| &row.drives)
    };
    let (calm, all) = (
        drives().filter(|drive| drive.is_calm()).count(),
        drives().count(),
    );
    let mut text = format!(
        "\n### all of it: medians per request or connection, in brackets the ratio to minipingora \
         / to haproxy within each round\n\n{}",
        markdown(&titles, lines)
    );
    if all > 0 {
        text += &format!(
            "\n{calm} of {all} drives were calm. Figures are of calm drives where a row has any, \
             ratios where both have any in the same round; of all drives otherwise.\n"
        );
    }
    text
}

fn of_phase(phase: &Phase) -> Vec<Column> {
    match phase {
        Phase::Driven { name, rows } => {
            let is_open = rows
                .iter()
                .flat_map(|row| &row.drives)
                .any(|drive| drive.open.is_some());
            let column = |title: &str, decimals, figure| {
                (
                    format!("{title}, {name}"),
                    rows.iter()
                        .map(|row| (row.peer, driven(row, rows, decimals, figure)))
                        .collect(),
                )
            };
            let mut columns = vec![column("CPU µs", 1, cpu)];
            if is_open {
                columns.extend([column("p50 µs", 0, p50), column("p99 µs", 0, p99)]);
            }
            columns
        }
        Phase::Memory { rows } => memory(rows),
        Phase::Syscalls { rows } => vec![(
            "system calls".to_owned(),
            rows.iter()
                .filter_map(|(peer, counted)| Some((*peer, calls(counted.as_ref().ok()?))))
                .collect(),
        )],
    }
}

fn driven(row: &DrivenRow, rows: &[DrivenRow], decimals: usize, figure: Figure) -> String {
    let best =
        |spread: &dyn Fn(Over) -> Option<Spread>| spread(Over::Calm).or_else(|| spread(Over::All));
    let Some(own) = best(&|over| row.spread(over, figure)) else {
        return "-".to_owned();
    };
    let ratio = |to| {
        let base = rows.iter().find(|row| row.peer == to);
        best(&|over| row.ratio(base, over, figure))
            .map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.median))
    };
    format!(
        "{:.decimals$} ({} / {})",
        own.median,
        ratio(Peer::Minipingora),
        ratio(Peer::Haproxy)
    )
}

fn memory(rows: &[(Peer, Vec<Held>)]) -> Vec<Column> {
    let column = |title: String, figure: &dyn Fn(&Held) -> Option<f64>| {
        let median = |held: &Vec<Held>| {
            Spread::of(held.iter().filter_map(figure)).map(|spread| format!("{:.1}", spread.median))
        };
        (
            title,
            rows.iter()
                .filter_map(|(peer, held)| Some((*peer, median(held)?)))
                .collect(),
        )
    };
    let numbers = rows
        .iter()
        .find_map(|(_, held)| held.first())
        .map(|held| {
            held.idle
                .iter()
                .map(|idle| idle.connections)
                .collect::<Vec<_>>()
        })
        .unwrap_or_default();
    let mut columns = vec![column("RSS MiB".to_owned(), &|held| {
        Some(held.rest.rss_kib as f64 / 1024.0)
    })];
    columns.extend(numbers.iter().enumerate().map(|(at, number)| {
        column(format!("KiB/connection, {number}"), &|held| {
            held.idle.get(at).map(|idle| idle.kib_per_connection)
        })
    }));
    columns
}

fn calls(calls: &PerRequest) -> String {
    format!("{:.1}", calls.all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::drive::tests::of;
    use crate::peers::population::Split;
    use crate::peers::report::Setting;

    #[test]
    fn every_row_has_a_line_with_its_ratios() {
        let row = |peer, cpu| DrivenRow {
            peer,
            drives: vec![of(cpu, Some(cpu * 10.0))],
            split: Split {
                legacy: 3,
                new: 1,
                moved: 0,
            },
        };
        let phases = vec![
            Phase::Driven {
                name: "20000/s".to_owned(),
                rows: vec![
                    row(Peer::Minipingora, 20.0),
                    row(Peer::Cutover, 22.0),
                    row(Peer::Haproxy, 16.0),
                ],
            },
            Phase::Syscalls {
                rows: vec![(Peer::Nginx, Err("none".to_owned()))],
            },
        ];
        let versions = [Peer::Minipingora, Peer::Cutover, Peer::Haproxy, Peer::Nginx]
            .map(|peer| (peer, "1".to_owned()))
            .to_vec();
        let setting = Setting {
            machine: String::new(),
            versions,
            skipped: Vec::new(),
            method: String::new(),
        };
        let mut report = Report {
            setting,
            phases,
            problems: Vec::new(),
        };
        let all = text(&report);
        assert!(
            all.contains("22.0 (1.10 / 1.38)")
                && all.contains("220 (1.10 / 1.38)")
                && all.contains("p99 µs, 20000/s")
                && all.contains("3 of 3 drives were calm"),
            "{all}"
        );
        let nginx = all
            .lines()
            .find(|line| line.starts_with("| nginx"))
            .expect("a line");
        assert_eq!(nginx.matches(" - ").count(), 4, "{nginx}");
        report.phases.truncate(1);
        assert_eq!(text(&report), "");
    }
}
