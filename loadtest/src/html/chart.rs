//! Charts as SVG. They are drawn without scripts or external resources. Colours are classes, so the
//! page can be light or dark.
//!
//! A chart is data with two axes, and drawing is a pure function of that data. Pointing at a time
//! shows the values of all series at that time.

use crate::html::escape;
use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 26.0;

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// Equal distances mean equal differences.
    Linear,
    /// Equal distances mean equal ratios.
    Log,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// A line.
    Line,
    /// A bar at each point.
    Bars,
}

/// A named sequence of values.
#[derive(Debug, Clone)]
pub struct Series {
    /// The name in the legend.
    pub name: &'static str,
    /// The colour, as a CSS class of the page.
    pub class: &'static str,
    /// How the series is drawn.
    pub shape: Shape,
    /// The points: position and value.
    pub points: Vec<(f64, f64)>,
}

/// A time marked with a number.
#[derive(Debug, Clone)]
pub struct Mark {
    /// The position on the horizontal axis.
    pub x: f64,
    /// The number.
    pub label: String,
    /// The text shown when a reader points at the mark.
    pub words: String,
}

/// A chart with two axes.
pub struct Chart<'write> {
    /// The title.
    pub title: &'static str,
    /// The range of the horizontal axis.
    pub x: (f64, f64),
    /// The labels of the horizontal axis, as values and words. If there are none, the ticks of a
    /// linear axis are computed.
    pub x_ticks: Vec<(f64, String)>,
    /// The formatter for the values of the horizontal axis.
    pub x_words: &'write dyn Fn(f64) -> String,
    /// The scale of the vertical axis.
    pub scale: Scale,
    /// The formatter for the values of the vertical axis.
    pub y_words: &'write dyn Fn(f64) -> String,
    /// The series to draw.
    pub series: Vec<Series>,
    /// The marked times.
    pub marks: Vec<Mark>,
}

impl Chart<'_> {
    /// Draws the chart with its title and legend.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = write!(out, "<figure><figcaption><b>{}</b>", escape(self.title));
        for series in &self.series {
            let _ = write!(
                out,
                " <span class=\"key {}\">{}</span>",
                series.class,
                escape(series.name)
            );
        }
        let _ = write!(
            out,
            "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title)
        );
        if self.series.iter().all(|series| series.points.is_empty()) || self.x.1 <= self.x.0 {
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">nothing to \
                 show</text></svg></figure>",
                WIDTH / 2.0,
                HEIGHT / 2.0
            );
            return out;
        }
        let (low, high) = self.y_range();
        self.axes(&mut out, low, high);
        for mark in &self.marks {
            let x = self.place_x(mark.x);
            let _ = write!(
                out,
                "<g class=\"mark\"><line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" \
                 y2=\"{:.1}\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}</text><title>{}</title></g>",
                HEIGHT - BOTTOM,
                TOP - 6.0,
                escape(&mark.label),
                escape(&mark.words)
            );
        }
        for series in &self.series {
            self.draw(&mut out, series, low, high);
        }
        self.hovers(&mut out);
        out.push_str("</svg></figure>");
        out
    }

    fn y_range(&self) -> (f64, f64) {
        let values = || {
            self.series
                .iter()
                .flat_map(|series| series.points.iter().map(|(_, y)| *y))
                .filter(|y| y.is_finite())
        };
        let high = values().fold(0.0, f64::max);
        match self.scale {
            Scale::Linear => (
                0.0,
                if high > 0.0 {
                    ceiling(high, &ENDS)
                } else {
                    1.0
                },
            ),
            Scale::Log => {
                let low = values().filter(|y| *y > 0.0).fold(f64::INFINITY, f64::min);
                if !low.is_finite() {
                    return (1.0, 10.0);
                }
                let (bottom, top) = (
                    10_f64.powf(low.log10().floor()),
                    10_f64.powf(high.log10().ceil()),
                );
                (bottom, if top > bottom { top } else { bottom * 10.0 })
            }
        }
    }

    fn place_x(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn place_y(&self, y: f64, low: f64, high: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (y - low) / (high - low),
            Scale::Log => (y.max(low).log10() - low.log10()) / (high.log10() - low.log10()),
        };
        HEIGHT - BOTTOM - share.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&self, out: &mut String, low: f64, high: f64) {
        let ticks: Vec<f64> = match self.scale {
            Scale::Linear => (0..=4).map(|n| high * f64::from(n) / 4.0).collect(),
            Scale::Log => std::iter::successors(Some(low), |tick| Some(tick * 10.0))
                .take_while(|tick| *tick <= high * 1.01)
                .collect(),
        };
        for tick in ticks {
            let y = self.place_y(tick, low, high);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" \
                 y2=\"{y:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                escape(&(self.y_words)(tick))
            );
        }
        let x_ticks = if self.x_ticks.is_empty() {
            self.found_ticks()
        } else {
            self.x_ticks.clone()
        };
        for (x, words) in x_ticks {
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                self.place_x(x),
                HEIGHT - 8.0,
                escape(&words)
            );
        }
    }

    fn found_ticks(&self) -> Vec<(f64, String)> {
        let step = ceiling((self.x.1 - self.x.0) / 12.0, &[1.0, 2.0, 5.0, 10.0]);
        (0..=12)
            .map(|n| self.x.0 + step * f64::from(n))
            .take_while(|x| *x <= self.x.1 + step * 1e-6)
            .map(|x| (x, (self.x_words)(x)))
            .collect()
    }

    fn draw(&self, out: &mut String, series: &Series, low: f64, high: f64) {
        let places = series
            .points
            .iter()
            .filter(|(_, y)| y.is_finite() && (self.scale == Scale::Linear || *y > 0.0))
            .map(|(x, y)| (self.place_x(*x), self.place_y(*y, low, high)));
        match series.shape {
            Shape::Line => {
                let points: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let _ = match points.as_slice() {
                    [only] => {
                        let (x, y) = only.split_once(',').unwrap_or(("0", "0"));
                        write!(
                            out,
                            "<circle class=\"dot {}\" cx=\"{x}\" cy=\"{y}\" r=\"2.5\"/>",
                            series.class
                        )
                    }
                    _ => write!(
                        out,
                        "<polyline class=\"line {}\" points=\"{}\"/>",
                        series.class,
                        points.join(" ")
                    ),
                };
            }
            Shape::Bars => {
                let width = ((WIDTH - LEFT - RIGHT) / series.points.len().max(1) as f64 * 0.7)
                    .clamp(1.5, 28.0);
                let floor = HEIGHT - BOTTOM;
                for (x, y) in places.filter(|(_, y)| *y < floor) {
                    let _ = write!(
                        out,
                        "<rect class=\"bar {}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                         height=\"{:.1}\"/>",
                        series.class,
                        x - width / 2.0,
                        floor - y
                    );
                }
            }
        }
    }

    /// Adds a hover area at each point of the first series, with the values of all series.
    fn hovers(&self, out: &mut String) {
        let Some(first) = self.series.iter().max_by_key(|series| series.points.len()) else {
            return;
        };
        let width = (WIDTH - LEFT - RIGHT) / first.points.len().max(1) as f64;
        for (x, _) in &first.points {
            let mut words = (self.x_words)(*x);
            for series in &self.series {
                if let Some((_, y)) = series.points.iter().find(|(other, _)| other == x) {
                    let _ = write!(words, "\n{} {}", series.name, (self.y_words)(*y));
                }
            }
            let _ = write!(
                out,
                "<rect class=\"over\" x=\"{:.1}\" y=\"{TOP}\" width=\"{width:.1}\" \
                 height=\"{:.1}\"><title>{}</title></rect>",
                self.place_x(*x) - width / 2.0,
                HEIGHT - TOP - BOTTOM,
                escape(&words)
            );
        }
    }
}

/// The ends of an axis, times a power of ten. Their quarters are easy to read.
const ENDS: [f64; 7] = [1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0];

/// Returns the next higher of these numbers times a power of ten.
fn ceiling(value: f64, numbers: &[f64]) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    numbers
        .iter()
        .map(|step| step * power)
        .find(|step| *step >= value * 0.999_999)
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::{Chart, ENDS, Mark, Scale, Series, Shape, ceiling};

    fn chart(scale: Scale, points: Vec<(f64, f64)>) -> String {
        let words = |value: f64| format!("{value:.0}");
        Chart {
            title: "a < b",
            x: (0.0, 10.0),
            x_ticks: Vec::new(),
            x_words: &words,
            scale,
            y_words: &words,
            series: vec![Series {
                name: "one & two",
                class: "c1",
                shape: Shape::Line,
                points,
            }],
            marks: vec![Mark {
                x: 5.0,
                label: "1".to_owned(),
                words: "<script>".to_owned(),
            }],
        }
        .svg()
    }

    #[test]
    fn a_chart_escapes_all_words_and_contains_no_nan() {
        for scale in [Scale::Linear, Scale::Log] {
            for points in [
                vec![],
                vec![(1.0, 0.0)],
                vec![(1.0, 5.0)],
                vec![(0.0, 1.0), (10.0, 1_000.0)],
                vec![(0.0, f64::NAN), (3.0, f64::INFINITY), (4.0, 3.0)],
            ] {
                let svg = chart(scale, points);
                assert!(
                    svg.contains("a &lt; b") && svg.contains("one &amp; two"),
                    "{svg}"
                );
                let drawn = svg.split("<rect class=\"over\"").next().expect("a part");
                assert!(
                    !drawn.contains("NaN") && !drawn.contains("inf") && !drawn.contains("<script"),
                    "{svg}"
                );
            }
        }
    }

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, end) in [
            (1.0, 1.0),
            (1.1, 2.0),
            (2.1, 2.5),
            (31.0, 40.0),
            (99.0, 100.0),
            (0.03, 0.04),
        ] {
            assert!(
                (ceiling(value, &ENDS) - end).abs() < 1e-9,
                "{value}: {}",
                ceiling(value, &ENDS)
            );
        }
    }
}
