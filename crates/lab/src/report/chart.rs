//! Plots as inline SVG: lines, stacked areas and a heat map over the events of a trace.
//!
//! A plot is drawn here, whole; the page's script only adds a cross hair with the values under the pointer. Colours are CSS
//! classes `c0`, `c1`, ..., so that the page's theme decides on them.

use super::number::{bytes, grouped, percent};
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 30.0;

/// What the numbers of a plot are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    Bytes,
    Pages,
    Blocks,
    Share,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Bytes => bytes(value as u64),
            Self::Pages | Self::Blocks => grouped(value as u64),
            Self::Share => percent(value),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Pages => "pages",
            Self::Blocks => "blocks",
            Self::Share => "share",
        }
    }

    /// A round distance between grid lines, about a quarter of `most`.
    fn step(self, most: f64) -> f64 {
        if self == Self::Share {
            // A flat curve near zero is worth a closer look than one of 0 to 100 %.
            return [0.0025, 0.005, 0.0125, 0.025, 0.05, 0.125].into_iter().find(|s| s * 4.0 >= most).unwrap_or(0.25);
        }
        let rough = (most / 4.0).max(1.0);
        let base = if self == Self::Bytes { 1024f64.powf(rough.log(1024.0).floor()) } else { 1.0 };
        let rough = rough / base;
        let ten = 10f64.powf(rough.log10().floor());
        let nice = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * ten).find(|s| *s >= rough);
        (nice.unwrap_or(rough) * base).max(1.0)
    }
}

/// How the values are drawn.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    /// A line each; the first is filled below if asked for.
    Lines { fill_first: bool },
    /// Areas on top of each other.
    Stack,
    /// A row each, shaded by the logarithm of the value.
    Heat,
}

/// One curve.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Number of its colour.
    pub(crate) colour: usize,
    pub(crate) values: Vec<f64>,
}

/// One plot.
#[derive(Debug)]
pub(crate) struct Chart<'a> {
    pub(crate) id: &'a str,
    pub(crate) title: &'a str,
    pub(crate) about: &'a str,
    pub(crate) unit: Unit,
    pub(crate) shape: Shape,
    pub(crate) series: Vec<Series>,
}

/// Text for HTML.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

struct Frame {
    first: f64,
    last: f64,
    most: f64,
}

impl Frame {
    fn x(&self, event: f64) -> f64 {
        LEFT + (event - self.first) / (self.last - self.first).max(1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.most.max(f64::MIN_POSITIVE) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Chart<'_> {
    /// The figure with its caption. `events` are the places of the values, `phases` names and places of what began there.
    pub(crate) fn figure(&self, events: &[f64], phases: &[(f64, String)]) -> String {
        self.figure_over(events, phases, "events")
    }

    /// As [`figure`](Self::figure), with another name for what runs along the axis.
    pub(crate) fn figure_over(&self, events: &[f64], phases: &[(f64, String)], axis: &str) -> String {
        let most = match self.shape {
            Shape::Lines { .. } | Shape::Heat => {
                self.series.iter().flat_map(|s| &s.values).fold(0.0, |a: f64, b| a.max(*b))
            }
            Shape::Stack => (0..events.len())
                .map(|n| self.series.iter().filter_map(|s| s.values.get(n)).sum::<f64>())
                .fold(0.0, f64::max),
        };
        let step = self.unit.step(most);
        let most = if self.unit == Unit::Share { step * 4.0 } else { ((most / step).ceil() * step).max(step) };
        let frame =
            Frame { first: events.first().copied().unwrap_or(0.0), last: events.last().copied().unwrap_or(1.0), most };
        let mut svg = String::new();
        let _ = write!(
            svg,
            r#"<figure id="{id}"><figcaption><h2>{title}</h2><p>{about}</p>{legend}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" data-chart="{id}" data-unit="{unit}">"#,
            id = self.id,
            title = escape(self.title),
            about = escape(self.about),
            legend = self.legend(),
            unit = self.unit.name(),
        );
        if self.shape == Shape::Heat {
            self.heat(&mut svg, &frame, events);
        } else {
            self.grid(&mut svg, &frame, step);
            self.curves(&mut svg, &frame, events);
        }
        self.axis(&mut svg, &frame, phases, axis);
        svg.push_str("</svg></figure>\n");
        svg
    }

    fn legend(&self) -> String {
        if self.shape == Shape::Heat {
            return r#"<p class="legend"><span class="ramp"></span>few → many blocks, logarithmic</p>"#.into();
        }
        let mut out = String::from(r#"<p class="legend">"#);
        for s in &self.series {
            let _ = write!(out, r#"<span><i class="c{}"></i>{}</span>"#, s.colour, escape(&s.name));
        }
        out.push_str("</p>");
        out
    }

    fn grid(&self, svg: &mut String, frame: &Frame, step: f64) {
        let mut value = 0.0;
        while value <= frame.most * 1.001 {
            let y = frame.y(value);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" x2="{x2}" y1="{y:.1}" y2="{y:.1}"/><text x="{tx}" y="{ty:.1}" class="end">{label}</text>"#,
                x2 = WIDTH - RIGHT,
                tx = LEFT - 8.0,
                ty = y + 4.0,
                label = self.unit.show(value),
            );
            value += step;
        }
    }

    fn axis(&self, svg: &mut String, frame: &Frame, phases: &[(f64, String)], axis: &str) {
        for n in 0..=4 {
            let event = frame.first + (frame.last - frame.first) * f64::from(n) / 4.0;
            let class = match n {
                0 => "start",
                4 => "end",
                _ => "middle",
            };
            let unit = if n == 4 { format!(" {axis}") } else { String::new() };
            let _ = write!(
                svg,
                r#"<text x="{x:.1}" y="{y}" class="{class}">{label}{unit}</text>"#,
                x = frame.x(event),
                y = HEIGHT - 10.0,
                label = grouped(event as u64),
            );
        }
        // Names that would run into each other are left to the pointer.
        let mut free_from = f64::MIN;
        for (event, name) in phases {
            let x = frame.x(*event);
            let name = name.strip_prefix("phase ").unwrap_or(name);
            let width = 6.5 * name.chars().count() as f64 + 8.0;
            // One near the right edge stands before its line.
            let (class, tx, from) = if x + width > WIDTH { ("end", x - 4.0, x - width) } else { ("start", x + 4.0, x) };
            let label = if from >= free_from {
                free_from = from + width;
                format!(r#"<text x="{tx:.1}" y="16" class="{class}">{}</text>"#, escape(name))
            } else {
                String::new()
            };
            let _ = write!(
                svg,
                r#"<line class="phase" x1="{x:.1}" x2="{x:.1}" y1="8" y2="{y}"><title>{title}</title></line>{label}"#,
                y = HEIGHT - BOTTOM,
                title = escape(name),
            );
        }
    }

    fn curves(&self, svg: &mut String, frame: &Frame, events: &[f64]) {
        let mut below = vec![0.0; events.len()];
        for (nth, s) in self.series.iter().enumerate() {
            let top: Vec<f64> = match self.shape {
                Shape::Stack => s.values.iter().zip(&below).map(|(v, b)| v + b).collect(),
                _ => s.values.clone(),
            };
            let mut line = String::new();
            for (event, value) in events.iter().zip(&top) {
                let c = if line.is_empty() { 'M' } else { 'L' };
                let _ = write!(line, "{c}{:.1} {:.1}", frame.x(*event), frame.y(*value));
            }
            let filled =
                matches!(self.shape, Shape::Stack) || (nth == 0 && self.shape == Shape::Lines { fill_first: true });
            if filled {
                let mut area = line.clone();
                for (event, value) in events.iter().zip(&below).rev() {
                    let _ = write!(area, "L{:.1} {:.1}", frame.x(*event), frame.y(*value));
                }
                let _ = write!(svg, r#"<path class="area c{}" d="{area}Z"/>"#, s.colour);
            }
            let _ = write!(svg, r#"<path class="line c{}" d="{line}"/>"#, s.colour);
            if self.shape == Shape::Stack {
                below = top;
            }
        }
    }

    fn heat(&self, svg: &mut String, frame: &Frame, events: &[f64]) {
        let rows = self.series.len().max(1) as f64;
        let height = (HEIGHT - TOP - BOTTOM) / rows;
        for (row, s) in self.series.iter().enumerate() {
            let y = TOP + (rows - 1.0 - row as f64) * height;
            let _ = write!(
                svg,
                r#"<text x="{}" y="{:.1}" class="end">{}</text>"#,
                LEFT - 8.0,
                y + height / 2.0 + 4.0,
                escape(&s.name)
            );
            // Neighbours of the same shade are one rectangle.
            let shade = |v: f64| (v.ln_1p() / frame.most.ln_1p().max(1e-9) * 20.0).round();
            let mut at = 0;
            while let (Some(start), Some(value)) = (events.get(at), s.values.get(at)) {
                let level = shade(*value);
                let mut next = at + 1;
                while s.values.get(next).is_some_and(|v| shade(*v) == level) {
                    next += 1;
                }
                let end = events.get(next).copied().unwrap_or(frame.last);
                if level > 0.0 {
                    let (x, x2) = (frame.x(*start), frame.x(end));
                    let _ = write!(
                        svg,
                        r#"<rect class="heat" x="{x:.1}" y="{y:.1}" width="{w:.1}" height="{h:.1}" fill-opacity="{o:.2}"/>"#,
                        w = (x2 - x).max(0.3),
                        h = height - 1.0,
                        o = 0.08 + level / 20.0 * 0.92,
                    );
                }
                at = next;
            }
        }
    }

    /// The values, for the script.
    pub(crate) fn data(&self) -> serde_json::Value {
        let series: Vec<_> = self
            .series
            .iter()
            .map(|s| {
                let values: Vec<f64> = s.values.iter().map(|v| (v * 1000.0).round() / 1000.0).collect();
                serde_json::json!({ "name": s.name, "values": values })
            })
            .collect();
        serde_json::json!({ "unit": self.unit.name(), "series": series })
    }
}
