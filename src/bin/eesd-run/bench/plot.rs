//! A picture of a benchmark in SVG: speed by controller, acceptance by draft position, draft lengths.

use super::table::{Decoding, Row, Subject};
use crate::chart::{Area, COLOURS, FAINT, INK, key, legend, mesh, text};
use crate::failure::{Failure, Outcome};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SIZE: (u32, u32) = (1500, 560);
const OFF: RGBColor = RGBColor(150, 156, 166);
/// Draft positions and lengths that are drawn.
const MOST_POSITIONS: usize = 16;
/// Drafts that must have been tested at a position before its acceptance rate says anything.
const LEAST_TESTED: usize = 20;

/// A contender's results, on one set where there are several, with its colour.
struct Bar<'a> {
    name: String,
    colour: RGBColor,
    speed: f64,
    sd: f64,
    /// Predicted speed; `None` of plain decoding.
    predicted: Option<f64>,
    /// Chooses how far to draft.
    chooses: bool,
    decoding: &'a Decoding,
}

/// The SVG's text.
///
/// # Errors
/// If the drawing library fails.
pub fn draw(subject: &Subject, rows: &[Row]) -> Outcome<String> {
    let mut svg = String::new();
    draw_into(&mut svg, subject, rows)
        .map_err(|error| Failure::failed(format!("the plot could not be drawn: {error}")))?;
    Ok(svg)
}

fn draw_into(svg: &mut String, subject: &Subject, rows: &[Row]) -> Result<(), Box<dyn std::error::Error>> {
    let mut colours = COLOURS.iter().cycle();
    let mut bars = Vec::new();
    let mut plain = 1.0;
    for row in rows {
        if let (Some(controller), Some(decoding)) = (&row.controller, &row.decoding) {
            let off = controller == "off";
            let name = row.set.as_ref().map_or_else(|| controller.clone(), |set| format!("{set}, {controller}"));
            if off {
                plain = row.tokens_per_second;
            }
            bars.push(Bar {
                name,
                colour: if off { OFF } else { *colours.next().unwrap_or(&INK) },
                speed: row.tokens_per_second,
                sd: row.sd,
                predicted: (!off).then_some(decoding.predicted * plain),
                chooses: !off && !controller.starts_with("fixed"),
                decoding,
            });
        }
    }
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let exit = subject.exit_layer.map(|n| format!(", exit after layer {n}")).unwrap_or_default();
    let title = format!("{}{exit}, batch {}, {}", subject.model, subject.batch, subject.device);
    root.draw(&Text::new(title, (24, 16), text(17, INK)))?;
    let (_, panels) = root.split_vertically(44);
    let (left, rest) = panels.split_horizontally(500);
    let (middle, right) = rest.split_horizontally(500);
    speeds(&left, &bars)?;
    acceptance(&middle, &bars)?;
    lengths(&right, &bars)?;
    root.present()?;
    Ok(())
}

/// Horizontal bars: tokens per second, a whisker of one standard deviation, the speed-up beside it.
fn speeds(area: &Area<'_>, bars: &[Bar<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let fastest = bars.iter().map(|bar| bar.speed + bar.sd).fold(1.0, f64::max);
    let n = bars.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption("Speed: measured, and ◇ predicted", text(16, INK))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(150)
        .build_cartesian_2d(0.0..fastest * 1.22, n..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .x_desc("tokens per second")
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(FAINT)
        .label_style(text(13, INK))
        .draw()?;
    for (i, bar) in bars.iter().enumerate() {
        let y = i as f64;
        chart.draw_series([Rectangle::new([(0.0, y + 0.18), (bar.speed, y + 0.82)], bar.colour.filled())])?;
        let whisker = vec![(bar.speed - bar.sd, y + 0.5), (bar.speed + bar.sd, y + 0.5)];
        chart.draw_series([PathElement::new(whisker, INK.stroke_width(2))])?;
        let name = text(13, INK).pos(Pos::new(HPos::Right, VPos::Center));
        let gain = text(13, INK).pos(Pos::new(HPos::Left, VPos::Center));
        chart.draw_series([EmptyElement::at((0.0, y + 0.5)) + Text::new(bar.name.clone(), (-8, 0), name)])?;
        if let Some(predicted) = bar.predicted {
            let diamond = vec![(0, -6), (6, 0), (0, 6), (-6, 0)];
            chart.draw_series([EmptyElement::at((predicted, y + 0.5))
                + Polygon::new(diamond.clone(), WHITE.filled())
                + PathElement::new([diamond, vec![(0, -6)]].concat(), INK.stroke_width(1))])?;
        }
        let beside = (bar.speed + bar.sd).max(bar.predicted.unwrap_or(0.0));
        let label = format!("{:.2}x", bar.decoding.speed_up);
        chart.draw_series([EmptyElement::at((beside, y + 0.5)) + Text::new(label, (12, 0), gain)])?;
    }
    Ok(())
}

/// Lines: which part of the drafts tested at a position was accepted, where enough were tested.
fn acceptance(area: &Area<'_>, bars: &[Bar<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let points = |bar: &Bar<'_>| -> Vec<(f64, f64)> {
        let tested = bar.decoding.tested_by_position.iter().take_while(|&&tested| tested >= LEAST_TESTED);
        let rates = bar.decoding.acceptance_by_position.iter().zip(tested).take(MOST_POSITIONS);
        rates.enumerate().map(|(i, (&rate, _))| (i as f64 + 1.0, rate)).collect()
    };
    let lines: Vec<(&Bar<'_>, Vec<(f64, f64)>)> = bars.iter().map(|bar| (bar, points(bar))).collect();
    let positions = lines.iter().map(|(_, points)| points.len()).max().unwrap_or(1).max(1);
    let mut chart = ChartBuilder::on(area)
        .caption("Acceptance by draft position", text(16, INK))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.5..positions as f64 + 0.5, 0.0..1.05)?;
    mesh(&mut chart, "draft position", "accepted", positions)?;
    for (bar, points) in lines.iter().filter(|(_, points)| !points.is_empty()) {
        chart.draw_series(LineSeries::new(points.clone(), bar.colour.stroke_width(2)))?;
        chart
            .draw_series(points.iter().map(|&point| Circle::new(point, 3, bar.colour.filled())))?
            .label(bar.name.clone())
            .legend(key(bar.colour));
    }
    legend(&mut chart, SeriesLabelPosition::LowerLeft)
}

/// Bars side by side: which part of the rounds drafted how many tokens, for controllers that choose.
fn lengths(area: &Area<'_>, bars: &[Bar<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let choosing: Vec<&Bar<'_>> = bars.iter().filter(|bar| bar.chooses).collect();
    let shown = if choosing.is_empty() { bars.iter().collect() } else { choosing };
    let longest = shown.iter().map(|bar| bar.decoding.draft_lengths.len()).max().unwrap_or(1).min(MOST_POSITIONS + 1);
    let highest = shown.iter().flat_map(|bar| &bar.decoding.draft_lengths).copied().fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Draft lengths chosen", text(16, INK))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.5..longest as f64 - 0.5, 0.0..highest * 1.1)?;
    mesh(&mut chart, "drafts in a round", "share of rounds", longest)?;
    let width = 0.84 / shown.len() as f64;
    for (i, bar) in shown.iter().enumerate() {
        let left = -0.42 + i as f64 * width;
        let rectangles = bar.decoding.draft_lengths.iter().take(longest).enumerate().map(|(k, &share)| {
            let x = k as f64 + left;
            Rectangle::new([(x, 0.0), (x + width, share)], bar.colour.filled())
        });
        chart.draw_series(rectangles)?.label(bar.name.clone()).legend(key(bar.colour));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}
