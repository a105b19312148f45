// SPDX-License-Identifier: BSD-3-Clause

//! What a thing costs by how many there are, as a picture: whether it stays the same.
//!
//! Must not know what it is, nor where the picture goes.

use crate::picture::thousands;
use plotters::prelude::*;

/// In pixels, of one.
const SIZE: (u32, u32) = (460, 320);

const FONT: &str = "sans-serif";

/// Those of the bars.
const COLOURS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0)];

/// A line: its name, and its points.
pub type Line = (&'static str, Vec<(f64, f64)>);

/// Pictures side by side, each with a title and one or two lines, as an SVG document. How many there are, to the right, is
/// logarithmic; what one costs begins at nothing. One without a point is left out.
///
/// # Errors
/// There is not a point, or it could not be drawn.
pub fn draw(all: &[(&str, &[Line])]) -> Result<String, String> {
    let mut text = String::new();
    let mut all = all.to_vec();
    all.retain(|(_, lines)| lines.iter().any(|(_, points)| !points.is_empty()));
    if all.is_empty() {
        return Err("there is nothing to be drawn".to_owned());
    }
    all_of(&mut text, &all).map_err(|error| format!("the picture could not be drawn: {error}"))?;
    // As a document shows it, it is a file of the project.
    Ok(format!("<!-- SPDX-License-Identifier: BSD-3-Clause -->\n{text}"))
}

fn all_of(text: &mut String, all: &[(&str, &[Line])]) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, (SIZE.0 * all.len() as u32, SIZE.1)).into_drawing_area();
    area.fill(&WHITE)?;
    for (place, (title, lines)) in area.split_evenly((1, all.len())).iter().zip(all) {
        let points = || lines.iter().flat_map(|(_, points)| points);
        let most = points().map(|point| point.1).fold(1.0, f64::max) * 1.25;
        let most_number = points().map(|point| point.0).fold(1e4, f64::max);
        let least_number = points().map(|point| point.0).fold(most_number / 10.0, f64::min);
        let mut chart = ChartBuilder::on(place)
            .caption(*title, (FONT, 16))
            .margin(14)
            .margin_right(34)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d((least_number..most_number).log_scale(), 0.0..most)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .label_style((FONT, 13))
            .x_desc("connections that linger")
            .x_label_formatter(&|number| thousands(*number))
            .y_label_formatter(&|value| thousands(*value))
            .draw()?;
        for ((name, points), colour) in lines.iter().zip(COLOURS) {
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
    }
    area.present()?;
    Ok(())
}
