//! What pictures have in common: fonts, colours, axes and keys.

use plotters::coord::Shift;
use plotters::prelude::*;

const FONT: &str = "sans-serif";
pub const INK: RGBColor = RGBColor(40, 44, 52);
pub const FAINT: RGBColor = RGBColor(225, 228, 232);
/// Colours that people with colour-blindness tell apart (Okabe and Ito), and two more.
pub const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 94, 240),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 0),
];

/// A part of a picture.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A chart while it is drawn.
pub type Panel<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// Axes with their titles; whole numbers on the one below.
pub fn mesh(chart: &mut Panel<'_, '_>, x: &str, y: &str, ticks: usize) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(ticks.min(10))
        .y_labels(6)
        .x_label_formatter(&|x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() })
        .y_label_formatter(&|y| format!("{y:.1}"))
        .x_desc(x)
        .y_desc(y)
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(FAINT)
        .label_style(text(13, INK))
        .draw()?;
    Ok(())
}

/// A square of a colour, for a legend.
pub fn key<'b>(colour: RGBColor) -> impl Fn((i32, i32)) -> Rectangle<(i32, i32)> + 'b {
    move |(x, y)| Rectangle::new([(x + 2, y - 5), (x + 14, y + 5)], colour.filled())
}

/// The legend of all series that have a label.
pub fn legend<'b>(chart: &mut Panel<'b, 'b>, position: SeriesLabelPosition) -> Result<(), Box<dyn std::error::Error>> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(text(13, INK))
        .draw()?;
    Ok(())
}

/// A style of text.
pub fn text(size: u32, colour: RGBColor) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour)
}
