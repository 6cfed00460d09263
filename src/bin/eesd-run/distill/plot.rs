//! Pictures of a run: loss curves, acceptance by exit layer, speed by exit layer.

use super::sweep::Speed;
use super::training::Trained;
use crate::chart::{Area, COLOURS, INK, key, legend, mesh, text};
use crate::failure::{Failure, Outcome};
use eesd::backend::training::loss::LossSum;
use plotters::prelude::*;

const SIZE: (u32, u32) = (1500, 480);
/// Points of a loss curve: each is the mean of its share of the updates.
const POINTS: usize = 200;

/// The SVG's text.
///
/// # Errors
/// If the drawing library fails.
pub fn draw(model: &str, blocks: &[Trained], speeds: &[Speed]) -> Outcome<String> {
    let mut svg = String::new();
    draw_into(&mut svg, model, blocks, speeds)
        .map_err(|error| Failure::failed(format!("the plot could not be drawn: {error}")))?;
    Ok(svg)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_into(svg: &mut String, model: &str, blocks: &[Trained], speeds: &[Speed]) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    root.draw(&Text::new(format!("{model}: distillation of exit blocks"), (24, 16), text(17, INK)))?;
    let (_, panels) = root.split_vertically(44);
    let (left, rest) = panels.split_horizontally(500);
    let (middle, right) = rest.split_horizontally(500);
    losses(&left, blocks)?;
    acceptance(&middle, blocks)?;
    speed(&right, speeds)?;
    root.present()?;
    Ok(())
}

/// Lines: the divergence from the teacher while training; dots: on held-out text.
fn losses(area: &Area<'_>, blocks: &[Trained]) -> Drawn {
    let lines: Vec<Vec<(f64, f64)>> = blocks.iter().map(|block| smoothed(&block.curve)).collect();
    let of_held_out = |block: &Trained| -> Vec<(f64, f64)> {
        block.held_out.iter().map(|(step, means)| (*step as f64, means.divergence)).collect()
    };
    let points = || lines.iter().flatten().copied().chain(blocks.iter().flat_map(of_held_out));
    let last = points().map(|(step, _)| step).fold(1.0, f64::max);
    let highest = points().map(|(_, loss)| loss).fold(0.1, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("KL from the teacher: — training, ● held out", text(16, INK))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, 0.0..highest * 1.05)?;
    mesh(&mut chart, "update", "nats", 6)?;
    for ((block, line), &colour) in blocks.iter().zip(lines).zip(COLOURS.iter().cycle()) {
        chart.draw_series(of_held_out(block).into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(format!("exit after {}", block.n))
            .legend(key(colour));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// Means over equal shares of the updates.
fn smoothed(curve: &[(u64, LossSum)]) -> Vec<(f64, f64)> {
    let share = curve.len().div_ceil(POINTS).max(1);
    let mean = |points: &[(u64, LossSum)]| {
        let n = points.len() as f64;
        let step = points.iter().map(|(step, _)| *step as f64).sum::<f64>() / n;
        (step, points.iter().map(|(_, means)| means.divergence).sum::<f64>() / n)
    };
    curve.chunks(share).map(mean).collect()
}

/// What each block reaches on held-out text.
fn acceptance(area: &Area<'_>, blocks: &[Trained]) -> Drawn {
    type Figure = fn(&LossSum) -> f64;
    let series: [(&str, Figure); 2] =
        [("top-1 agreement", |means| means.agreement), ("mean 1 - TV", |means| means.overlap)];
    let points = |of: fn(&LossSum) -> f64| -> Vec<(f64, f64)> {
        blocks.iter().filter_map(|block| Some((block.n as f64, of(&block.reached.as_ref()?.first().mean())))).collect()
    };
    by_layer(area, "Acceptance on held-out text", "share", &series.map(|(name, of)| (name, points(of))))
}

/// What each block gains here.
fn speed(area: &Area<'_>, speeds: &[Speed]) -> Drawn {
    let points =
        |of: fn(&Speed) -> f64| -> Vec<(f64, f64)> { speeds.iter().map(|speed| (speed.n as f64, of(speed))).collect() };
    let series = [
        ("predicted, best fixed length", points(|speed| speed.best.1)),
        ("measured, that length", points(|speed| speed.fixed)),
        ("measured, goodput-ts", points(|speed| speed.adaptive)),
    ];
    by_layer(area, "Speed against plain decoding", "times", &series)
}

/// Lines over exit layers.
fn by_layer(area: &Area<'_>, caption: &str, unit: &str, series: &[(&str, Vec<(f64, f64)>)]) -> Drawn {
    let points = || series.iter().flat_map(|(_, points)| points);
    let (first, last) = points().fold((f64::MAX, f64::MIN), |(first, last), &(n, _)| (first.min(n), last.max(n)));
    let range = if first <= last { first - 0.5..last + 0.5 } else { 0.5..1.5 };
    let highest = points().map(|&(_, y)| y).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(caption, text(16, INK))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(range, 0.0..highest * 1.1)?;
    mesh(&mut chart, "exit layer", unit, 10)?;
    for ((name, points), &colour) in series.iter().zip(&COLOURS) {
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        chart
            .draw_series(points.iter().map(|&point| Circle::new(point, 4, colour.filled())))?
            .label(*name)
            .legend(key(colour));
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}
