// SPDX-License-Identifier: BSD-3-Clause

//! Two of a kind side by side, as a picture.
//!
//! Must not know what they are, nor where the picture goes.

use plotters::prelude::*;

/// In pixels.
const SIZE: (u32, u32) = (760, 360);

const FONT: &str = "sans-serif";

/// Vermilion and blue, as people tell them apart who do not see all colours (the palette of Okabe and Ito).
const COLOURS: [RGBColor; 2] = [RGBColor(213, 94, 0), RGBColor(0, 114, 178)];

/// Bars, two for each name, as an SVG document; as one may be a hundred times the other their scale is logarithmic, and each has its
/// number.
///
/// # Errors
/// It could not be drawn.
pub fn bars(title: &str, of: [&str; 2], all: &[(&str, [f64; 2])]) -> Result<String, String> {
    let mut text = String::new();
    draw(&mut text, title, of, all).map_err(|error| format!("the picture could not be drawn: {error}"))?;
    // As README shows it, it is a file of the project.
    Ok(format!("<!-- SPDX-License-Identifier: BSD-3-Clause -->\n{text}"))
}

fn draw(
    text: &mut String,
    title: &str,
    of: [&str; 2],
    all: &[(&str, [f64; 2])],
) -> Result<(), Box<dyn std::error::Error>> {
    // Decades that have all of them, and a bit of each bar.
    let values = || all.iter().flat_map(|(_, values)| *values).filter(|&value| value > 0.0);
    let least = 10f64.powf(values().fold(1.0, f64::min).log10().floor());
    let most = 10f64.powf(values().fold(10.0, f64::max).log10().ceil() + 0.3);
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(35)
        .y_label_area_size(60)
        .build_cartesian_2d(0f64..all.len() as f64, (least..most).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 14))
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    for (n, of) in of.into_iter().enumerate() {
        let left = |group: usize| group as f64 + 0.16 + 0.34 * n as f64;
        let colour = COLOURS[n];
        chart
            .draw_series(all.iter().enumerate().map(|(group, (_, values))| {
                let value = values[n].max(least);
                Rectangle::new([(left(group), least), (left(group) + 0.32, value)], colour.filled())
            }))?
            .label(of)
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 14, y + 6)], colour.filled()));
        chart.draw_series(all.iter().enumerate().map(|(group, (_, values))| {
            let digits = if values[n] < 100.0 { 1 } else { 0 };
            let number = format!("{:.digits$}", values[n]);
            let style = (FONT, 14).into_text_style(&area).pos(CENTRE_BOTTOM);
            Text::new(number, (left(group) + 0.16, values[n].max(least) * 1.06), style)
        }))?;
    }
    let (width, height) = (f64::from(SIZE.0) - 60.0 - 24.0, SIZE.1 as i32 - 30);
    for (group, (name, _)) in all.iter().enumerate() {
        let middle = 72.0 + width * (group as f64 + 0.49) / all.len() as f64;
        let style = (FONT, 15).into_text_style(&area).pos(CENTRE_TOP);
        area.draw(&Text::new((*name).to_owned(), (middle as i32, height), style))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .margin(8)
        .label_font((FONT, 14))
        .draw()?;
    area.present()?;
    Ok(())
}

const CENTRE_BOTTOM: plotters::style::text_anchor::Pos = plotters::style::text_anchor::Pos {
    h_pos: plotters::style::text_anchor::HPos::Center,
    v_pos: plotters::style::text_anchor::VPos::Bottom,
};
const CENTRE_TOP: plotters::style::text_anchor::Pos = plotters::style::text_anchor::Pos {
    h_pos: plotters::style::text_anchor::HPos::Center,
    v_pos: plotters::style::text_anchor::VPos::Top,
};
