// SPDX-License-Identifier: BSD-3-Clause

//! Several of a kind side by side, as a picture: bars in groups, lines, and what a thing costs by how many there are.
//!
//! Must not know what they are, nor where the picture goes.

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::ops::Range;

const FONT: &str = "sans-serif";

/// As people tell them apart who do not see all colours (the palette of Okabe and Ito): vermilion, purple, sky blue, blue.
const COLOURS: [RGBColor; 4] =
    [RGBColor(213, 94, 0), RGBColor(204, 121, 167), RGBColor(86, 180, 233), RGBColor(0, 114, 178)];

/// In pixels: the title and what tells the bars apart, each further line of it, a panel, and the names below it.
const HEAD: u32 = 70;
const LINE: u32 = 20;
const PANEL: (u32, u32) = (430, 300);
const NAMES: u32 = 50;
const VALUES: u32 = 62;

/// How values become heights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0 on.
    Linear,
    /// By decades, where one may be a hundred times another: the same ones for all in a row.
    Decades,
}

/// Bars in groups, over each other's names.
pub struct Panel {
    /// What they are.
    pub title: String,
    /// Their scale.
    pub scale: Scale,
    /// What is written after the numbers at the side: a unit.
    pub unit: &'static str,
    /// Whether each bar has its number.
    pub has_numbers: bool,
    /// The name of each group, of one line or two, and as many values as there are kinds. What is not finite has no bar.
    pub groups: Vec<(String, Vec<f64>)>,
}

impl Panel {
    fn values(&self) -> impl Iterator<Item = f64> + Clone {
        self.groups.iter().flat_map(|(_, values)| values).copied().filter(|value| value.is_finite())
    }
}

/// Panels of bars, in rows of so many, as an SVG document. `kinds` are four at most, and have a colour each: with two it is
/// the first and the last. What follows the first line of the title is smaller.
///
/// # Errors
/// It could not be drawn.
pub fn bars(title: &str, kinds: &[&str], columns: usize, panels: &[Panel]) -> Result<String, String> {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns);
    // One alone is wider.
    let width = if columns == 1 { 2 * PANEL.0 } else { PANEL.0 };
    let head = HEAD + LINE * title.lines().skip(1).count() as u32;
    let size = (width * columns as u32, head + (PANEL.1 + NAMES) * rows as u32);
    document(size, |root| {
        let (top, rest) = root.split_vertically(head);
        for (n, words) in title.lines().enumerate() {
            let at = (size.0 as i32 / 2, if n == 0 { 12 } else { 18 + LINE as i32 * n as i32 });
            top.draw(&centred(words, at, if n == 0 { 20 } else { 15 }))?;
        }
        draw_legend(&top, kinds, (head - HEAD) as i32 + 44, size.0)?;
        let areas = rest.split_evenly((rows, columns));
        for (panels, areas) in panels.chunks(columns).zip(areas.chunks(columns)) {
            // With a bit of the least bar.
            let decades = decades(panels.iter().flat_map(Panel::values).map(|value| value / 1.2));
            for (panel, area) in panels.iter().zip(areas) {
                draw_panel(root, area, kinds.len(), panel, decades.clone())?;
            }
        }
        Ok(())
    })
}

/// The colour of a kind.
fn colour(n: usize, kinds: usize) -> RGBColor {
    COLOURS[if n + 1 == kinds { COLOURS.len() - 1 } else { n }]
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn document(
    size: (u32, u32),
    draw: impl FnOnce(&Area) -> Result<(), Box<dyn Error>>,
) -> Result<String, String> {
    let mut text = String::new();
    let drawn = || -> Result<(), Box<dyn Error>> {
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root)?;
        root.present()?;
        Ok(())
    };
    drawn().map_err(|error| format!("the picture could not be drawn: {error}"))?;
    // As README shows it, it is a file of the project.
    Ok(format!("<!-- SPDX-License-Identifier: BSD-3-Clause -->\n{text}"))
}

fn text<'a>(words: &str, at: (i32, i32), size: u32, pos: Pos) -> Text<'a, (i32, i32), String> {
    let style = TextStyle::from((FONT, size).into_font()).pos(pos);
    Text::new(words.to_owned(), at, style)
}

/// Below this point, to both sides of it.
fn centred<'a>(words: &str, at: (i32, i32), size: u32) -> Text<'a, (i32, i32), String> {
    text(words, at, size, Pos::new(HPos::Center, VPos::Top))
}

/// In one row, in the middle.
fn draw_legend(head: &Area, kinds: &[&str], top: i32, width: u32) -> Result<(), Box<dyn Error>> {
    const LETTER: f64 = 7.5; // about as wide as one is; the font is the reader's
    const SQUARE: i32 = 14;
    let each: Vec<_> = kinds.iter().map(|kind| (kind.len() as f64 * LETTER) as i32 + SQUARE + 30).collect();
    let mut left = (width as i32 - each.iter().sum::<i32>()) / 2 + 15;
    for (n, (kind, room)) in kinds.iter().zip(each).enumerate() {
        let square = [(left, top), (left + SQUARE, top + SQUARE)];
        head.draw(&Rectangle::new(square, colour(n, kinds.len()).filled()))?;
        head.draw(&text(
            kind,
            (left + SQUARE + 6, top + SQUARE / 2),
            15,
            Pos::new(HPos::Left, VPos::Center),
        ))?;
        left += room;
    }
    Ok(())
}

fn draw_panel(
    root: &Area,
    area: &Area,
    kinds: usize,
    panel: &Panel,
    decades: Range<f64>,
) -> Result<(), Box<dyn Error>> {
    let most = panel.values().fold(f64::MIN_POSITIVE, f64::max);
    let width = 0f64..panel.groups.len() as f64;
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(&panel.title, (FONT, 16))
        .margin_right(12)
        .x_label_area_size(NAMES)
        .y_label_area_size(VALUES);
    // The two are of different types.
    match panel.scale {
        Scale::Linear => {
            let mut chart = builder.build_cartesian_2d(width, 0f64..most * 1.12)?;
            draw_bars(root, &mut chart, 0.0, kinds, panel)
        }
        Scale::Decades => {
            let least = decades.start;
            let mut chart = builder.build_cartesian_2d(width, decades.log_scale())?;
            draw_bars(root, &mut chart, least, kinds, panel)
        }
    }
}

/// From a whole decade on, up to where there is room for a number above the highest.
fn decades(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let values = values.filter(|&value| value > 0.0);
    let least = values.clone().fold(f64::INFINITY, f64::min).min(1e9);
    let most = values.fold(least, f64::max);
    10f64.powf(least.log10().floor())..most * 2.0
}

fn draw_bars<Y: Ranged<ValueType = f64> + ValueFormatter<f64>>(
    root: &Area,
    chart: &mut ChartContext<SVGBackend, Cartesian2d<RangedCoordf64, Y>>,
    least: f64,
    kinds: usize,
    panel: &Panel,
) -> Result<(), Box<dyn Error>> {
    const ROOM: f64 = 0.84; // of a group for its bars
    let bar = ROOM / kinds as f64;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13))
        .y_label_formatter(&|value| format!("{}{}", thousands(*value), panel.unit))
        .draw()?;
    for (group, (name, values)) in panel.groups.iter().enumerate() {
        for (n, &value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let left = group as f64 + (1.0 - ROOM) / 2.0 + bar * n as f64;
            let value = value.max(least);
            let corners = [(left + bar * 0.04, least), (left + bar * 0.96, value)];
            chart.draw_series([Rectangle::new(corners, colour(n, kinds).filled())])?;
            if panel.has_numbers {
                let (x, y) = chart.plotting_area().map_coordinate(&(left + bar / 2.0, value));
                let above = Pos::new(HPos::Center, VPos::Bottom);
                root.draw(&text(&short(value), (x, y - 3), 13, above))?;
            }
        }
        let (x, y) = chart.plotting_area().map_coordinate(&(group as f64 + 0.5, least));
        for (line, words) in name.lines().enumerate() {
            root.draw(&centred(words, (x, y + 8 + 17 * line as i32), 14))?;
        }
    }
    Ok(())
}

/// Two digits, or all that are before the point; of nearly one, which is written as one, no more than of one.
fn short(value: f64) -> String {
    let digits = match value {
        9.95.. => 0,
        0.995.. => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

/// A line, and what it is called.
pub struct Line {
    /// Its name.
    pub name: String,
    /// Where it goes.
    pub points: Vec<(f64, f64)>,
    /// Which of the colours it has; there are four.
    pub colour: usize,
    /// Whether it is dashed.
    pub is_dashed: bool,
}

/// Lines, as an SVG document; both scales are logarithmic. `x` and `y` say what these are.
///
/// # Errors
/// It could not be drawn.
pub fn lines(title: &str, x: &str, y: &str, lines: &[Line]) -> Result<String, String> {
    document((760, 420), |root| {
        let points = || lines.iter().flat_map(|line| line.points.iter().copied());
        let widths = decades(points().map(|point| point.0));
        let mut chart = ChartBuilder::on(root)
            .caption(title, (FONT, 20))
            .margin(12)
            .margin_right(30)
            .x_label_area_size(50)
            .y_label_area_size(70)
            .build_cartesian_2d(widths.log_scale(), decades(points().map(|point| point.1)).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 14))
            .axis_desc_style((FONT, 15))
            .x_desc(x)
            .y_desc(y)
            .x_label_formatter(&|value| thousands(*value))
            .y_label_formatter(&|value| thousands(*value))
            .draw()?;
        for line in lines {
            let style = COLOURS[line.colour % COLOURS.len()].stroke_width(2);
            let points = line.points.iter().copied();
            let drawn = if line.is_dashed {
                chart.draw_series(DashedLineSeries::new(points.clone(), 6, 4, style))?
            } else {
                chart.draw_series(LineSeries::new(points.clone(), style))?
            };
            // Three dashes, or as many times the whole.
            let dashes = if line.is_dashed { [(0, 6), (9, 15), (18, 24)] } else { [(0, 24); 3] };
            drawn.label(&line.name).legend(move |at| {
                let [a, b, c] = dashes.map(|(from, to)| PathElement::new(vec![(from, 0), (to, 0)], style));
                EmptyElement::at(at) + a + b + c
            });
            chart.draw_series(points.map(|point| Circle::new(point, 3, style.filled())))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .margin(12)
            .legend_area_size(34)
            .label_font((FONT, 15))
            .draw()?;
        Ok(())
    })
}

/// A line over how many there are: its name, and its points.
pub type Course = (&'static str, Vec<(f64, f64)>);

/// What a thing costs by how many there are, whether it stays the same: pictures side by side, each with a title and one or
/// two lines, below the title of all, as an SVG document. `number`, what there are so many of, is logarithmic; what one costs
/// begins at nothing. One without a point is left out.
///
/// # Errors
/// There is not a point, or it could not be drawn.
pub fn courses(title: &str, number: &str, all: &[(&str, &[Course])]) -> Result<String, String> {
    /// In pixels, of one.
    const SIZE: (u32, u32) = (460, 320);
    let mut all = all.to_vec();
    all.retain(|(_, lines)| lines.iter().any(|(_, points)| !points.is_empty()));
    if all.is_empty() {
        return Err("there is nothing to be drawn".to_owned());
    }
    const TITLE: u32 = 36;
    let width = SIZE.0 * all.len() as u32;
    document((width, TITLE + SIZE.1), |root| {
        let (top, rest) = root.split_vertically(TITLE);
        top.draw(&centred(title, (width as i32 / 2, 12), 20))?;
        for (area, (title, lines)) in rest.split_evenly((1, all.len())).iter().zip(&all) {
            draw_courses(area, title, number, lines)?;
        }
        Ok(())
    })
}

fn draw_courses(area: &Area, title: &str, number: &str, lines: &[Course]) -> Result<(), Box<dyn Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let most = points().map(|point| point.1).fold(1.0, f64::max) * 1.25;
    let most_number = points().map(|point| point.0).fold(1e4, f64::max);
    let least_number = points().map(|point| point.0).fold(most_number / 10.0, f64::min);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 16))
        .margin(14)
        .margin_right(34)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d((least_number..most_number).log_scale(), 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 13))
        .x_desc(number)
        .x_label_formatter(&|number| thousands(*number))
        .y_label_formatter(&|value| thousands(*value))
        .draw()?;
    // The last of the colours first, lingerd's.
    for ((name, points), colour) in lines.iter().zip([COLOURS[3], COLOURS[0]]) {
        let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        if !name.is_empty() {
            drawn
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
        chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    }
    if lines.iter().any(|(name, _)| !name.is_empty()) {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.8))
            .margin(8)
            .label_font((FONT, 13))
            .draw()?;
    }
    Ok(())
}

/// With a comma for thousands. What an axis has is a sum, and may be a hair's breadth beside a whole number.
pub fn thousands(value: f64) -> String {
    let rounded = (value * 1e3).round() / 1e3;
    if rounded.fract() != 0.0 {
        return format!("{rounded:.3}").trim_end_matches('0').to_owned();
    }
    let value = rounded;
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_the_digits_that_it_needs() {
        let written = [0.5, 2.0000000000000004, 1.999_999_9, 100.0, 1e6].map(thousands);
        assert_eq!(written, ["0.5", "2", "2", "100", "1,000,000"]);
        assert_eq!([0.214, 0.999, 1.04, 9.97, 99.9].map(short), ["0.21", "1.0", "1.0", "10", "100"]);
    }
}
