// SPDX-License-Identifier: BSD-3-Clause

//! Latencies as a picture: which share of the requests was answered within which time.
//!
//! Must not know how the times came about, nor where the picture goes.

use crate::latency::Latencies;
use plotters::prelude::*;

/// In pixels.
const SIZE: (u32, u32) = (900, 500);

const FONT: &str = "sans-serif";

/// Blue, vermilion, green and purple, as people tell them apart who do not see all colours (the
/// palette of Okabe and Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// The curves, each with its name, as an SVG document.
///
/// # Errors
/// There is nothing to draw.
pub fn svg(title: &str, curves: &[(String, &Latencies)]) -> Result<String, String> {
    let curves: Vec<_> = curves.iter().map(|(name, latencies)| (name, points(latencies))).collect();
    let all = || curves.iter().flat_map(|(_, points)| points);
    let most = |from: f64, value: fn(&(f64, f64)) -> f64| all().map(value).fold(from, f64::max);
    let least = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    if least.is_infinite() {
        return Err("there is nothing to plot: no response was complete".to_owned());
    }
    // Whole decades upwards, so that the highest line has its label.
    let width = 10f64.powf(most(10.0, |point| point.0).log10().ceil());
    let height = 10f64.powf(most(least * 1.01, |point| point.1).log10().ceil());
    let depth = 10f64.powf(least.log10().floor()).min(height / 10.0);
    let mut text = String::new();
    draw(&mut text, title, (width, depth..height), &curves)
        .map_err(|error| format!("the plot could not be drawn: {error}"))?;
    Ok(text)
}

type Points = Vec<(f64, f64)>;

/// The times in milliseconds over how many requests there are for each that took longer: from 1 (all
/// of them did) over 100 (one of a hundred) upwards. So the slowest have as much room as the others.
fn points(latencies: &Latencies) -> Points {
    // What takes less than a microsecond has no logarithm.
    latencies.curve().into_iter().map(|(ms, one_of)| (one_of, ms.max(0.001))).collect()
}

fn draw(
    text: &mut String,
    title: &str,
    (width, heights): (f64, std::ops::Range<f64>),
    curves: &[(&String, Points)],
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, (FONT, 18))
        .margin(12)
        .margin_right(40) // half of the last label
        .x_label_area_size(45)
        .y_label_area_size(75)
        .build_cartesian_2d((1f64..width).log_scale(), heights.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style((FONT, 14))
        .x_desc("requests answered within that time")
        .y_desc("milliseconds since the request was due")
        .x_label_formatter(&|one_of| share(*one_of))
        .y_label_formatter(&|ms| format!("{ms}"))
        .draw()?;
    for (number, (name, points)) in curves.iter().enumerate() {
        let style = COLOURS[number % COLOURS.len()].stroke_width(2);
        let none = if points.is_empty() { " (no response)" } else { "" };
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(format!("{name}{none}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .margin(15)
        .label_font((FONT, 14))
        .draw()?;
    area.present()?;
    Ok(())
}

/// All but one of so many, in percent.
fn share(one_of: f64) -> String {
    let percent = (1.0 - 1.0 / one_of) * 100.0;
    // Enough digits for the nines, and no more.
    let digits = (one_of.log10().round() as usize).saturating_sub(2);
    format!("{percent:.digits$} %")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_labels_of_the_decades() {
        for (one_of, label) in
            [(1.0, "0 %"), (10.0, "90 %"), (100.0, "99 %"), (1e3, "99.9 %"), (1e4, "99.99 %")]
        {
            assert_eq!(share(one_of), label);
        }
    }

    #[test]
    fn nothing_is_no_picture() {
        let none = Latencies::default();
        let error = svg("a title", &[("clients".to_owned(), &none)]).unwrap_err();
        assert!(error.contains("nothing to plot"), "{error}");
    }

    #[test]
    fn one_time_and_many_are_a_picture_with_their_names() {
        let mut one = Latencies::default();
        one.add(Duration::ZERO);
        let mut many = Latencies::default();
        (1..1000).for_each(|n| many.add(Duration::from_millis(n)));
        let none = Latencies::default();
        let curves = [("one", &one), ("many", &many), ("none", &none)];
        let svg = svg("http://h/?<&>", &curves.map(|(name, times)| (name.to_owned(), times))).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for text in ["one", "many", "none (no response)", "99 %", "http://h/?&lt;&amp;&gt;"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
    }
}
