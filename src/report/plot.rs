//! Line plots with one or more panels, as SVG.

use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::coord::types::RangedCoordf64;
use plotters::element::{Circle, DashedPathElement, PathElement};
use plotters::prelude::{
    Cartesian2d, ChartBuilder, ChartContext, Color, CoordTranslate, DrawingArea, IntoDrawingArea,
    RGBColor, Ranged, SVGBackend, ShapeStyle, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontDesc, FontFamily, FontStyle, TextStyle};

use super::axis::{Axis, Tick};
use super::write_file;
use crate::error::{Error, Result, check_range};

/// Canvas units per pixel: plotters draws at whole units, so that one unit per pixel would make
/// curves jagged.
const UNIT: i32 = 8;
/// Usual size of a panel without its legend; in pixels, as all sizes below.
const PANEL: (i32, i32) = (640, 300);
/// Smallest and largest side of a panel.
const PANEL_SIDES: std::ops::RangeInclusive<u32> = 200..=4000;
/// Space around a panel.
const MARGIN: i32 = 12;
/// Width of the labels and the name of the y axis.
const LEFT_LABELS: i32 = 76;
/// Height of the labels and the name of the x axis.
const BOTTOM_LABELS: i32 = 44;
/// Height of a panel's title.
const TITLE_HEIGHT: i32 = 24;
/// Height of a line of the legend.
const LEGEND_HEIGHT: i32 = 20;
/// Length of the sample line in a legend.
const SWATCH: i32 = 28;
/// Space between the parts of a legend.
const LEGEND_GAP: i32 = 8;
/// Font size of a title.
const TITLE_FONT: i32 = 15;
/// Font size of other texts.
const FONT: i32 = 12;
/// Estimated width of a letter, in font sizes: the viewer chooses the font.
const LETTER: f64 = 0.56;
/// Series of at most this many points have a marker at each point.
const MARKED: usize = 30;
/// Columns of points that are drawn of a long series: about two per pixel.
const RESOLUTION: f64 = 1000.0;
/// Most panels, and most lines per panel: a guard against a canvas that viewers cannot show.
const MOST: usize = 100;

/// The palette of Okabe and Ito, which colour-blind readers can distinguish, without its yellow.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];
const TEXT: RGBColor = RGBColor(34, 34, 34);
const FRAME: RGBColor = RGBColor(102, 102, 102);
const GRID: RGBColor = RGBColor(221, 221, 221);
const FINE_GRID: RGBColor = RGBColor(242, 242, 242);
/// Dashes of the reference lines: lengths of dash and gap.
const REFERENCE_DASHES: [(i32, i32); 3] = [(8, 4), (3, 3), (14, 6)];

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Coordinate, Coordinate>>;

/// A named line through points.
///
/// The line is broken at points that cannot be drawn: NaN, infinities, numbers beyond ±1e100, and
/// non-positive numbers on a logarithmic axis. A point without neighbours is drawn as a dot.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    label: String,
    points: Vec<(f64, f64)>,
}

impl Series {
    /// The line through `points`, given as pairs of x and y, in their order.
    pub fn new(label: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self {
            label: label.into(),
            points: points.into_iter().collect(),
        }
    }
}

/// One pair of axes with its lines.
///
/// Series take the colours of Okabe and Ito's palette in order, and are dashed from the eighth on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Panel {
    title: String,
    x_label: String,
    y_label: String,
    log_y: bool,
    series: Vec<Series>,
    references: Vec<(String, f64)>,
}

impl Panel {
    /// A panel without lines.
    pub fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// Name of the x axis.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.x_label = label.into();
        self
    }

    /// Name of the y axis.
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.y_label = label.into();
        self
    }

    /// Makes the y axis logarithmic.
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Adds a line.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// Adds a dashed horizontal line at `y`; like the series, it counts for the range of the axis.
    pub fn reference(mut self, label: impl Into<String>, y: f64) -> Self {
        self.references.push((label.into(), y));
        self
    }

    fn draw(&self, canvas: &Canvas<'_>, width: i32) -> Result<()> {
        let margin = MARGIN * UNIT;
        let area = canvas.margin(margin, margin, margin, margin);
        draw_text(
            &area,
            &self.title,
            TITLE_FONT,
            FontStyle::Bold,
            (LEFT_LABELS * UNIT, 0),
        )?;
        let legend = self.legend(width);
        for entry in &legend {
            entry.draw(&area)?;
        }
        let top = TITLE_HEIGHT + LEGEND_HEIGHT * lines_of(&legend);
        self.draw_chart(&area.margin(top * UNIT, 0, 0, 0))
    }

    /// The legend, with as many entries per line as fit into the panel.
    fn legend(&self, panel_width: i32) -> Vec<LegendEntry<'_>> {
        let series = self.series.iter().map(|series| &series.label).enumerate();
        let series = series.map(|(index, label)| (label, Stroke::of_series(index)));
        let references = self.references.iter().map(|(label, _)| label).enumerate();
        let references = references.map(|(index, label)| (label, Stroke::of_reference(index)));
        let (mut left, mut line) = (LEFT_LABELS, 0);
        let mut entries = Vec::new();
        for (label, stroke) in series.chain(references) {
            let letters = label.chars().count().min(1000) as f64;
            let width = SWATCH + 3 * LEGEND_GAP + (letters * LETTER * f64::from(FONT)) as i32;
            if left > LEFT_LABELS && left + width > panel_width - 2 * MARGIN {
                (left, line) = (LEFT_LABELS, line + 1);
            }
            entries.push(LegendEntry {
                label,
                stroke,
                left,
                line,
            });
            left += width;
        }
        entries
    }

    fn draw_chart(&self, area: &Canvas<'_>) -> Result<()> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let references = self.references.iter().map(|&(_, y)| y);
        let x_axis = Axis::covering(points().map(|&(x, _)| x), false);
        let y_axis = Axis::covering(points().map(|&(_, y)| y).chain(references), self.log_y);
        let (x_ticks, y_ticks) = (x_axis.ticks(7), y_axis.ticks(5));
        let mut chart = ChartBuilder::on(area)
            .x_label_area_size(BOTTOM_LABELS * UNIT)
            .y_label_area_size(LEFT_LABELS * UNIT)
            .build_cartesian_2d(
                Coordinate::new(&x_axis, &x_ticks),
                Coordinate::new(&y_axis, &y_ticks),
            )
            .map_err(not_drawn)?;
        self.draw_axes(&mut chart, &x_ticks, &y_ticks)?;

        let ends = x_axis.range();
        for (index, series) in self.series.iter().enumerate() {
            let parts = drawable_parts(&series.points, &x_axis, &y_axis);
            draw_series(&chart, &parts, Stroke::of_series(index), &ends)?;
        }
        for (index, &(_, y)) in self.references.iter().enumerate() {
            if let Some(y) = y_axis.position(y) {
                let line = vec![(ends.start, y), (ends.end, y)];
                Stroke::of_reference(index).draw(chart.plotting_area(), line)?;
            }
        }
        Ok(())
    }

    fn draw_axes(
        &self,
        chart: &mut Chart<'_, '_>,
        x_ticks: &[Tick],
        y_ticks: &[Tick],
    ) -> Result<()> {
        let mut mesh = chart.configure_mesh();
        if !self.x_label.is_empty() {
            mesh.x_desc(&self.x_label);
        }
        if !self.y_label.is_empty() {
            mesh.y_desc(&self.y_label);
        }
        mesh.axis_style(stroke_style(FRAME, UNIT))
            .bold_line_style(stroke_style(GRID, UNIT))
            .light_line_style(stroke_style(FINE_GRID, UNIT))
            .set_all_tick_mark_size(4 * UNIT)
            .label_style(text_style(FONT, FontStyle::Normal))
            .axis_desc_style(text_style(FONT, FontStyle::Normal))
            .x_label_formatter(&|position| label_at(x_ticks, *position))
            .y_label_formatter(&|position| label_at(y_ticks, *position))
            .draw()
            .map_err(not_drawn)
    }
}

/// A label below the title, with a sample of its line.
struct LegendEntry<'a> {
    label: &'a str,
    stroke: Stroke,
    /// Left edge, in pixels.
    left: i32,
    line: i32,
}

impl LegendEntry<'_> {
    fn draw(&self, area: &Canvas<'_>) -> Result<()> {
        let top = TITLE_HEIGHT + LEGEND_HEIGHT * self.line;
        let middle = (top + LEGEND_HEIGHT / 2 - 4) * UNIT;
        let (left, right) = (self.left, self.left + SWATCH);
        self.stroke
            .draw(area, vec![(left * UNIT, middle), (right * UNIT, middle)])?;
        let corner = ((right + LEGEND_GAP) * UNIT, top * UNIT);
        draw_text(area, self.label, FONT, FontStyle::Normal, corner)
    }
}

/// Number of lines of a legend.
fn lines_of(legend: &[LegendEntry<'_>]) -> i32 {
    legend.last().map_or(0, |entry| entry.line + 1)
}

/// Panels in one or more columns, drawn as SVG.
///
/// # Example
/// ```
/// use siss::report::{Panel, Plot, Series};
///
/// let retain = Series::new("retain", (1..=50).map(|step| (f64::from(step), 0.06)));
/// let points = (1..=50).map(|step| (f64::from(step), 0.001 * f64::from(step)));
/// let forget = Series::new("forget", points);
/// let panel = Panel::new("Denoising loss").x_label("step").y_label("loss").log_y();
/// let panel = panel.series(retain).series(forget).reference("retrained", 0.3);
/// let svg = Plot::new().panel(panel).to_svg()?;
/// assert!(svg.contains("retrained"));
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    panels: Vec<Panel>,
    columns: usize,
    panel_size: (i32, i32),
}

impl Default for Plot {
    fn default() -> Self {
        Self::new()
    }
}

impl Plot {
    /// A plot without panels, in one column.
    pub fn new() -> Self {
        Self {
            panels: Vec::new(),
            columns: 1,
            panel_size: PANEL,
        }
    }

    /// Adds a panel; panels are placed row by row.
    pub fn panel(mut self, panel: Panel) -> Self {
        self.panels.push(panel);
        self
    }

    /// Number of panels per row (default 1).
    pub fn columns(mut self, columns: usize) -> Self {
        self.columns = columns;
        self
    }

    /// Width and height of a panel without its legend, in pixels (default 640 and 300).
    ///
    /// # Errors
    /// [`to_svg`](Self::to_svg) refuses sides below 200 or above 4,000.
    pub fn panel_size(mut self, [width, height]: [u32; 2]) -> Self {
        let side = |side: u32| i32::try_from(side).unwrap_or(i32::MAX);
        self.panel_size = (side(width), side(height));
        self
    }

    /// The plot as the text of an SVG file.
    ///
    /// # Errors
    /// [`Error::Empty`] without a panel, [`Error::OutOfRange`] for 0 columns, more than 100 panels,
    /// more than 100 lines in one panel or a panel of an impossible size, [`Error::Picture`] if
    /// plotters fails.
    pub fn to_svg(&self) -> Result<String> {
        let count = self.panels.len();
        if count == 0 {
            return Err(Error::Empty {
                what: "the plot",
                remedy: "add a panel",
            });
        }
        check_range(
            "columns",
            self.columns as f64,
            self.columns > 0,
            "at least 1",
        )?;
        check_range(
            "the number of panels",
            count as f64,
            count <= MOST,
            "at most 100",
        )?;
        for panel in &self.panels {
            let lines = panel.series.len() + panel.references.len();
            check_range(
                "the number of lines in a panel",
                lines as f64,
                lines <= MOST,
                "at most 100",
            )?;
        }
        let (panel_width, panel_height) = self.panel_size;
        for side in [panel_width, panel_height] {
            let legal = u32::try_from(side).is_ok_and(|side| PANEL_SIDES.contains(&side));
            let requirement = "from 200 to 4,000 pixels";
            check_range("the side of a panel", f64::from(side), legal, requirement)?;
        }
        let columns = self.columns.min(count);
        let rows = count.div_ceil(columns);
        let legends = self
            .panels
            .iter()
            .map(|panel| lines_of(&panel.legend(panel_width)));
        let panel_height = panel_height + LEGEND_HEIGHT * legends.max().unwrap_or(0);
        let (width, height) = (panel_width * columns as i32, panel_height * rows as i32);

        let mut svg = String::new();
        let size = ((width * UNIT) as u32, (height * UNIT) as u32);
        let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        canvas.fill(&WHITE).map_err(not_drawn)?;
        for (panel, area) in self.panels.iter().zip(canvas.split_evenly((rows, columns))) {
            panel.draw(&area, panel_width)?;
        }
        canvas.present().map_err(not_drawn)?;
        drop(canvas);
        let drawn_size = format!(r#"width="{}" height="{}""#, size.0, size.1);
        let shown_size = format!(r#"width="{width}" height="{height}" stroke-linejoin="round""#);
        Ok(svg.replacen(&drawn_size, &shown_size, 1))
    }

    /// Writes the plot as an SVG file. Missing folders are created.
    ///
    /// # Errors
    /// Those of [`to_svg`](Plot::to_svg), and [`Error::Io`] with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_file(path.as_ref(), self.to_svg()?.as_bytes())
    }
}

/// An axis in the form that plotters needs, with our ticks as its key points.
struct Coordinate {
    range: Range<f64>,
    ticks: Vec<f64>,
    minor_ticks: Vec<f64>,
}

impl Coordinate {
    fn new(axis: &Axis, ticks: &[Tick]) -> Self {
        Self {
            range: axis.range(),
            ticks: ticks.iter().map(|tick| tick.position).collect(),
            minor_ticks: axis.minor_ticks(),
        }
    }
}

impl Ranged for Coordinate {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => self.minor_ticks.clone(),
            false => self.ticks.clone(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// The style of a line.
#[derive(Clone, Copy)]
struct Stroke {
    colour: RGBColor,
    /// Width in canvas units.
    width: i32,
    /// Length of the dashes and of the gaps between them; `None` for a solid line.
    dash: Option<(i32, i32)>,
}

impl Stroke {
    fn of_series(index: usize) -> Self {
        let dashed = (index / PALETTE.len()) % 2 == 1;
        Self {
            colour: PALETTE[index % PALETTE.len()],
            width: 3 * UNIT / 2,
            dash: dashed.then_some((6, 3)),
        }
    }

    fn of_reference(index: usize) -> Self {
        Self {
            colour: TEXT,
            width: UNIT,
            dash: Some(REFERENCE_DASHES[index % REFERENCE_DASHES.len()]),
        }
    }

    /// Draws a line through the points.
    fn draw<T: CoordTranslate>(
        self,
        area: &DrawingArea<SVGBackend<'_>, T>,
        points: Vec<T::From>,
    ) -> Result<()>
    where
        T::From: Clone + 'static,
    {
        let style = stroke_style(self.colour, self.width);
        match self.dash {
            None => area.draw(&PathElement::new(points, style)),
            Some((length, gap)) => area.draw(&DashedPathElement::new(
                points,
                length * UNIT,
                gap * UNIT,
                style,
            )),
        }
        .map_err(not_drawn)
    }
}

/// Draws the connected parts of a series, with markers if it has few points.
fn draw_series(
    chart: &Chart<'_, '_>,
    parts: &[Vec<(f64, f64)>],
    stroke: Stroke,
    x_range: &Range<f64>,
) -> Result<()> {
    let area = chart.plotting_area();
    let marked = parts.iter().map(Vec::len).sum::<usize>() <= MARKED;
    for part in parts {
        if marked || part.len() == 1 {
            for &point in part {
                let circle = Circle::new(point, 3 * UNIT, stroke.colour.filled());
                area.draw(&circle).map_err(not_drawn)?;
            }
        }
        if part.len() > 1 {
            stroke.draw(area, thinned(part, x_range))?;
        }
    }
    Ok(())
}

/// The runs of neighbouring points that can be drawn, in the coordinates of the axes.
fn drawable_parts(points: &[(f64, f64)], x_axis: &Axis, y_axis: &Axis) -> Vec<Vec<(f64, f64)>> {
    let place = |&(x, y): &(f64, f64)| Some((x_axis.position(x)?, y_axis.position(y)?));
    let placed: Vec<_> = points.iter().map(place).collect();
    let runs = placed.split(Option::is_none).filter(|run| !run.is_empty());
    runs.map(|run| run.iter().copied().flatten().collect())
        .collect()
}

/// The points that are visible: of successive points in the same column, the first, the last, the
/// lowest and the highest.
fn thinned(points: &[(f64, f64)], x_range: &Range<f64>) -> Vec<(f64, f64)> {
    let column = |x: f64| ((x - x_range.start) / (x_range.end - x_range.start) * RESOLUTION) as i64;
    let mut kept = Vec::new();
    for group in points.chunk_by(|left, right| column(left.0) == column(right.0)) {
        let indices = || 0..group.len();
        let by_height = |&left: &usize, &right: &usize| group[left].1.total_cmp(&group[right].1);
        let ends = [Some(0), group.len().checked_sub(1)];
        let extremes = [indices().min_by(by_height), indices().max_by(by_height)];
        let mut chosen: Vec<usize> = ends.into_iter().chain(extremes).flatten().collect();
        chosen.sort_unstable();
        chosen.dedup();
        kept.extend(chosen.into_iter().map(|index| group[index]));
    }
    kept
}

/// The label of the tick at the position that plotters asks for.
fn label_at(ticks: &[Tick], position: f64) -> String {
    let tick = ticks.iter().find(|tick| tick.position == position);
    tick.map(|tick| tick.label.clone()).unwrap_or_default()
}

fn stroke_style(colour: RGBColor, width: i32) -> ShapeStyle {
    colour.stroke_width(width as u32)
}

fn text_style(size: i32, style: FontStyle) -> TextStyle<'static> {
    /// plotters' SVG backend divides sizes by this.
    const DIVISOR: f64 = 1.24;
    let font = FontDesc::new(
        FontFamily::SansSerif,
        f64::from(size * UNIT) * DIVISOR,
        style,
    );
    TextStyle::from(font).color(&TEXT)
}

/// Writes a line of text with its upper left corner at a given position.
fn draw_text(
    area: &Canvas<'_>,
    text: &str,
    size: i32,
    style: FontStyle,
    corner: (i32, i32),
) -> Result<()> {
    let style = text_style(size, style).pos(Pos::new(HPos::Left, VPos::Top));
    area.draw_text(text, &style, corner).map_err(not_drawn)
}

fn not_drawn(error: impl Display) -> Error {
    Error::Picture(format!("the plot could not be drawn: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(label: &str, y: impl Fn(f64) -> f64) -> Series {
        Series::new(
            label,
            (0..=100).map(|step| (f64::from(step), y(f64::from(step)))),
        )
    }

    /// The `points="…"` of the lines drawn in a given colour.
    fn polylines(svg: &str, colour: RGBColor) -> Vec<Vec<(f64, f64)>> {
        let RGBColor(red, green, blue) = colour;
        let stroke = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
        let drawn = svg
            .lines()
            .filter(|line| line.starts_with("<polyline") && line.contains(&stroke));
        let points = drawn.filter_map(|line| line.split("points=\"").nth(1)?.split('"').next());
        let parse = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        points
            .map(|list| list.split_whitespace().map(parse).collect())
            .collect()
    }

    /// The texts of the picture.
    fn texts(svg: &str) -> Vec<&str> {
        let lines: Vec<_> = svg.lines().collect();
        let opened = lines.windows(2).filter(|pair| pair[0].starts_with("<text"));
        opened.map(|pair| pair[1]).collect()
    }

    #[test]
    fn every_text_is_in_the_picture() {
        let panel = Panel::new("Title <1>")
            .x_label("step")
            .y_label("loss & more")
            .log_y();
        let panel = panel
            .series(line("retain", |_| 0.01))
            .series(line("forget", |step| 1e-3 + step));
        let second = Panel::new("Second").series(line("third", |step| step));
        let svg = Plot::new()
            .panel(panel.reference("limit", 0.5))
            .panel(second)
            .to_svg()
            .unwrap();
        let expected = [
            "Title &lt;1&gt;",
            "step",
            "loss &amp; more",
            "retain",
            "forget",
            "limit",
            "Second",
            "third",
            "0.01",
            "0.1",
            "1",
            "10",
            "100",
            "0",
            "20",
            "80",
        ];
        for text in expected {
            assert!(
                texts(&svg).contains(&text),
                "{text} is not in {:?}",
                texts(&svg)
            );
        }
    }

    #[test]
    fn a_line_goes_where_its_values_say() {
        let rising = Panel::new("").series(line("a", |step| step));
        let svg = Plot::new().panel(rising).to_svg().unwrap();
        let lines = polylines(&svg, PALETTE[0]);
        let line = lines.last().unwrap();
        assert_eq!(line.len(), 101);
        assert!(
            line.windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1)
        );
        let (first, middle, last) = (line[0], line[50], line[100]);
        assert!((first.0 + last.0 - 2.0 * middle.0).abs() <= 2.0);
        assert!((first.1 + last.1 - 2.0 * middle.1).abs() <= 2.0);
    }

    #[test]
    fn values_that_cannot_be_drawn_leave_gaps() {
        let gaps = [10.0, 60.0];
        let holed = |gap: f64| {
            line("a", move |step| {
                if gaps.contains(&step) {
                    gap
                } else {
                    1.0 + step
                }
            })
        };
        for (gap, log) in [
            (f64::NAN, false),
            (f64::INFINITY, false),
            (0.0, true),
            (-1.0, true),
        ] {
            let panel = Panel {
                log_y: log,
                ..Panel::new("")
            }
            .series(holed(gap));
            let lines = polylines(&Plot::new().panel(panel).to_svg().unwrap(), PALETTE[0]);
            let lengths: Vec<_> = lines.iter().map(Vec::len).collect();
            assert_eq!(lengths, [2, 10, 49, 40], "the legend's and three parts");
        }
    }

    #[test]
    fn a_lone_point_is_a_dot_and_short_series_have_markers() {
        let circles = |count: i32| {
            let points = (0..count).map(|x| (f64::from(x), 1.0));
            let panel = Panel::new("").series(Series::new("a", points));
            Plot::new()
                .panel(panel)
                .to_svg()
                .unwrap()
                .matches("<circle")
                .count()
        };
        assert_eq!([1, 5, 31].map(circles), [1, 5, 0]);
    }

    #[test]
    fn series_without_values_or_extent_are_drawn_all_the_same() {
        let lists: [&[(f64, f64)]; 5] = [
            &[],
            &[(f64::NAN, f64::NAN)],
            &[(3.0, 0.0)],
            &[(0.0, 5.0), (1.0, 5.0)],
            &[
                (0.0, f64::MAX),
                (1.0, f64::MIN),
                (2.0, 1e100),
                (3.0, -1e100),
            ],
        ];
        for points in lists {
            for log_y in [false, true] {
                let series = Series::new("a", points.iter().copied());
                let panel = Panel {
                    log_y,
                    ..Panel::new("b")
                }
                .series(series)
                .reference("c", f64::NAN);
                let svg = Plot::new().panel(panel).to_svg().unwrap();
                assert!(
                    svg.ends_with("</svg>\n") && !svg.contains("NaN"),
                    "{points:?}"
                );
            }
        }
    }

    #[test]
    fn long_series_are_thinned_and_keep_their_peaks() {
        let points =
            (0..200_000).map(|step| (f64::from(step), f64::from(u8::from(step == 77_777))));
        let points: Vec<_> = points.collect();
        let kept = thinned(&points, &(0.0..200_000.0));
        assert!(kept.len() <= 4 * RESOLUTION as usize);
        assert!(
            kept.contains(&(77_777.0, 1.0)) && kept.windows(2).all(|pair| pair[0].0 < pair[1].0)
        );
        assert_eq!(
            (kept[0], kept[kept.len() - 1]),
            (points[0], points[199_999])
        );
    }

    #[test]
    fn series_differ_in_colour_or_dashes() {
        let looks: Vec<_> = (0..14)
            .map(Stroke::of_series)
            .map(|stroke| (stroke.colour, stroke.dash))
            .collect();
        let different = |(index, look)| looks[..index].iter().all(|earlier| earlier != look);
        assert!(looks.iter().enumerate().all(different));
    }

    #[test]
    fn panels_fill_the_columns() {
        let plot = |columns: usize| {
            let panels = (0..3).map(|index| Panel::new(format!("panel {index}")));
            panels
                .fold(Plot::new().columns(columns), Plot::panel)
                .to_svg()
        };
        let size = |width: i32, height: i32| {
            format!(
                "width=\"{}\" height=\"{}\"",
                width * PANEL.0,
                height * PANEL.1
            )
        };
        assert!(plot(1).unwrap().contains(&size(1, 3)));
        assert!(plot(2).unwrap().contains(&size(2, 2)));
        assert!(plot(9).unwrap().contains(&size(3, 1)));
        assert!(matches!(plot(0), Err(Error::OutOfRange { .. })));
        assert!(matches!(Plot::new().to_svg(), Err(Error::Empty { .. })));
    }

    #[test]
    fn panels_grow_with_their_legend_and_too_many_lines_are_refused() {
        let plot = |count: usize| {
            let series =
                (0..count).map(|index| line(&format!("a long label of series {index}"), |_| 1.0));
            Plot::new()
                .panel(series.fold(Panel::new("crowded"), Panel::series))
                .to_svg()
        };
        let svg = plot(100).unwrap();
        assert!(texts(&svg).contains(&"a long label of series 99"));
        assert!(svg.contains(&format!("height=\"{}\"", PANEL.1 + 50 * LEGEND_HEIGHT)));
        assert!(matches!(plot(101), Err(Error::OutOfRange { .. })));
    }

    #[test]
    fn an_unwritable_path_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let plot = Plot::new().panel(Panel::new("a"));
        plot.save(folder.path().join("b/c.svg")).unwrap();
        let error = plot.save(folder.path().join("b/c.svg/d.svg")).unwrap_err();
        assert!(
            matches!(error, Error::Io { .. }) && error.to_string().contains("c.svg"),
            "{error}"
        );
    }
}
