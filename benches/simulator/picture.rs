//! The tables as a picture: grouped bars of gain over the best fixed length, a panel per cost ratio.

use crate::table::{Table, spread};
use eesd::control::ControllerSpec;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;
use std::path::Path;

/// Size of a panel, and of what is above and below all of them, in pixels.
const WIDTH: u32 = 1240;
const PANEL: u32 = 210;
const HEAD: u32 = 64;
const FOOT: u32 = 44;
/// Room for the axis at the left.
const AXIS: i32 = 64;
/// Gains drawn, in percent; bars that go further are cut.
const GAINS: (f64, f64) = (-25.0, 15.0);
/// Colours by controller; the last controller gets the strongest (Okabe and Ito's palette).
const COLOURS: [RGBColor; 7] = [
    RGBColor(190, 190, 190),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(240, 228, 66),
    RGBColor(213, 94, 0),
];
const GREY: RGBColor = RGBColor(110, 110, 110);

/// Draws the tables, all of the same streams and controllers, as SVG.
pub fn draw(path: &Path, tables: &[Table], controllers: &[ControllerSpec]) -> Result<(), Box<dyn Error>> {
    let height = HEAD + PANEL * tables.len() as u32 + FOOT;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, rest) = root.split_vertically(HEAD);
    let (panels, foot) = rest.split_vertically(PANEL * tables.len() as u32);
    legend(&head, controllers)?;
    for (area, table) in panels.split_evenly((tables.len(), 1)).iter().zip(tables) {
        panel(area, table, controllers.len())?;
    }
    if let Some(table) = tables.first() {
        names(&foot, table)?;
    }
    root.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn colour(controller: usize, controllers: usize) -> RGBColor {
    let strongest = COLOURS.len() - 1;
    COLOURS[if controller + 1 == controllers { strongest } else { controller % strongest }]
}

fn text(size: i32, colour: &RGBColor, align: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(colour).pos(Pos::new(align, VPos::Center))
}

fn legend(area: &Area<'_>, controllers: &[ControllerSpec]) -> Result<(), Box<dyn Error>> {
    let title = "Speed over the best fixed draft length in hindsight (simulated; mean and spread over seeds)";
    area.draw_text(title, &text(17, &BLACK, HPos::Left), (AXIS, 18))?;
    let mut x = AXIS;
    for (i, spec) in controllers.iter().enumerate() {
        let colour = colour(i, controllers.len());
        area.draw(&Rectangle::new([(x, 38), (x + 12, 50)], colour.filled()))?;
        let name = spec.to_string();
        area.draw_text(&name, &text(14, &BLACK, HPos::Left), (x + 18, 44))?;
        x += 46 + 8 * name.len() as i32;
    }
    Ok(())
}

fn panel(area: &Area<'_>, table: &Table, controllers: usize) -> Result<(), Box<dyn Error>> {
    let (top, bottom) = (10, PANEL as i32 - 10);
    let (low, high) = GAINS;
    let y = |gain: f64| top + ((high - gain.clamp(low, high)) / (high - low) * f64::from(bottom - top)) as i32;
    for percent in (low as i32..=high as i32).step_by(5) {
        let at = y(f64::from(percent));
        let line = if percent == 0 { BLACK.stroke_width(1) } else { RGBColor(225, 225, 225).stroke_width(1) };
        area.draw(&PathElement::new([(AXIS, at), (WIDTH as i32 - 8, at)], line))?;
        if percent % 10 == 0 {
            area.draw_text(
                &if percent == 0 { "0 %".to_string() } else { format!("{percent:+} %") },
                &text(12, &GREY, HPos::Right),
                (AXIS - 6, at),
            )?;
        }
    }
    area.draw_text(&format!("r = {}", table.costs.draft), &text(15, &BLACK, HPos::Left), (6, top + 4))?;
    for (i, row) in table.rows.iter().enumerate() {
        let (left, right) = column(i, table.rows.len());
        let width = (right - left) * 4 / 5 / controllers.max(1) as i32;
        for (c, gains) in row.gains.iter().enumerate() {
            let (mean, deviation) = spread(gains);
            let (mean, deviation) = (100.0 * mean, 100.0 * deviation);
            let x = left + c as i32 * width;
            area.draw(&Rectangle::new([(x, y(mean)), (x + width - 1, y(0.0))], colour(c, controllers).filled()))?;
            let middle = x + width / 2;
            let whisker = [(middle, y(mean - deviation)), (middle, y(mean + deviation))];
            area.draw(&PathElement::new(whisker, GREY.stroke_width(1)))?;
        }
    }
    Ok(())
}

/// Left and right edge of a stream's column.
fn column(index: usize, columns: usize) -> (i32, i32) {
    let width = (WIDTH as i32 - AXIS - 8) / columns.max(1) as i32;
    (AXIS + 6 + index as i32 * width, AXIS + 6 + (index as i32 + 1) * width)
}

/// The streams' names, long ones in two lines.
fn names(area: &Area<'_>, table: &Table) -> Result<(), Box<dyn Error>> {
    for (i, row) in table.rows.iter().enumerate() {
        let (left, right) = column(i, table.rows.len());
        let middle = (left + right) / 2 - (right - left) / 10;
        let (first, second) = match row.stream.rsplit_once(' ') {
            Some((first, second)) if row.stream.chars().count() > 11 => (first, second),
            _ => (row.stream.as_str(), ""),
        };
        area.draw_text(first, &text(12, &BLACK, HPos::Center), (middle, 10))?;
        area.draw_text(second, &text(12, &BLACK, HPos::Center), (middle, 26))?;
    }
    Ok(())
}
