//! Grids of pictures, as PNG.

use std::io::Cursor;
use std::path::Path;

use burn::tensor::Tensor;
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::write_file;
use crate::error::{Error, Result, check_range};

const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
/// Colour of a pixel that is NaN or infinite.
const NON_FINITE: Rgb<u8> = Rgb([255, 0, 255]);
/// Height of a title.
const TITLE: RasterHeight = RasterHeight::Size20;
/// Height of a row's or column's caption.
const CAPTION: RasterHeight = RasterHeight::Size16;
/// Space around a text.
const PADDING: usize = 4;
/// Space between two grids side by side.
const BESIDE: usize = 24;
/// Most pixels of a picture; a guard against an unintended batch size or scale.
const MOST_PIXELS: usize = 100_000_000;

/// A batch of pictures, laid out row by row on white.
///
/// Values are clamped to `[-1, 1]`; NaN and infinities turn magenta, so that a broken sample is
/// visible.
///
/// | setting | default | purpose | range |
/// |---|---|---|---|
/// | `columns` | `⌈√count⌉` | pictures per row | ≥ 1 |
/// | `scale` | 1 | side of a pixel; no interpolation | ≥ 1 |
/// | `gap` | 2 | pixels between and around pictures | |
/// | `title` | none | a line above the grid | printable ASCII |
/// | `column_captions`, `row_captions` | none | text above columns, left of rows | one each |
///
/// # Example
/// ```
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::report::ImageGrid;
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("before-after.png");
/// let before = Tensor::zeros([6, 3, 8, 8], &Device::flex());
/// let after = Tensor::ones([6, 3, 8, 8], &Device::flex());
/// let grid = |images| Ok::<_, siss::Error>(ImageGrid::new(images)?.columns(3).scale(4));
/// grid(before)?.title("before").beside(grid(after)?.title("after")).save(path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImageGrid {
    tiles: Vec<RgbImage>,
    columns: usize,
    scale: usize,
    gap: usize,
    title: Option<String>,
    column_captions: Vec<String>,
    row_captions: Vec<String>,
    beside: Vec<ImageGrid>,
}

impl ImageGrid {
    /// A grid of `images`, which are read back from their device.
    ///
    /// # Shapes
    /// - `images`: `[count, channels, height, width]` with 1 channel (grey) or 3 (RGB), in
    ///   `[-1, 1]`
    ///
    /// # Errors
    /// [`Error::Empty`] without a picture or a pixel, [`Error::ShapeMismatch`] for another number
    /// of channels, [`Error::DeviceRead`].
    pub fn new(images: Tensor<4>) -> Result<Self> {
        let [count, channels, height, width] = images.dims();
        if count * height * width == 0 {
            return Err(Error::Empty {
                what: "the batch of images",
                remedy: "a grid needs at least one image with at least one pixel",
            });
        }
        if channels != 1 && channels != 3 {
            return Err(Error::ShapeMismatch {
                what: "the batch of images",
                expected: vec![count, 3, height, width],
                got: vec![count, channels, height, width],
                remedy: "give 1 channel (grey) or 3 (RGB)",
            });
        }
        let values = images
            .try_into_vec_as::<f32>()
            .map_err(|error| Error::DeviceRead {
                what: "the batch of images",
                message: error.to_string(),
            })?;
        let tiles = values.chunks_exact(channels * height * width);
        Ok(Self {
            tiles: tiles.map(|tile| to_picture(tile, height, width)).collect(),
            columns: (count as f64).sqrt().ceil() as usize,
            scale: 1,
            gap: 2,
            title: None,
            column_captions: Vec::new(),
            row_captions: Vec::new(),
            beside: Vec::new(),
        })
    }

    /// Number of pictures per row.
    pub fn columns(mut self, columns: usize) -> Self {
        self.columns = columns;
        self
    }

    /// Side of a pixel of the pictures, in pixels of the grid.
    pub fn scale(mut self, scale: usize) -> Self {
        self.scale = scale;
        self
    }

    /// Pixels between and around the pictures.
    pub fn gap(mut self, gap: usize) -> Self {
        self.gap = gap;
        self
    }

    /// A line above the grid. Characters other than printable ASCII are shown as `?`.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Text above each column.
    pub fn column_captions<T: Into<String>>(
        mut self,
        captions: impl IntoIterator<Item = T>,
    ) -> Self {
        self.column_captions = captions.into_iter().map(Into::into).collect();
        self
    }

    /// Text left of each row.
    pub fn row_captions<T: Into<String>>(mut self, captions: impl IntoIterator<Item = T>) -> Self {
        self.row_captions = captions.into_iter().map(Into::into).collect();
        self
    }

    /// Puts `other` and all grids next to it to the right of this grid, as in `before | after`.
    pub fn beside(mut self, mut other: ImageGrid) -> Self {
        let further = std::mem::take(&mut other.beside);
        self.beside.push(other);
        self.beside.extend(further);
        self
    }

    /// Writes the picture as PNG. Missing folders are created.
    ///
    /// # Errors
    /// Those of [`to_png`](Self::to_png), and [`Error::Io`] with the path.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_file(path.as_ref(), &self.to_png()?)
    }

    /// The picture as the bytes of a PNG file.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0 columns, scale 0 or a picture of more than 100 million pixels,
    /// [`Error::ShapeMismatch`] if the number of captions differs from the number of rows or
    /// columns, [`Error::Picture`] if the PNG cannot be encoded.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        let mut png = Cursor::new(Vec::new());
        let encoded = self.render()?.write_to(&mut png, ImageFormat::Png);
        encoded.map_err(|error| Error::Picture(format!("not encoded as PNG: {error}")))?;
        Ok(png.into_inner())
    }

    /// The whole picture: this grid and those next to it, with their first rows aligned.
    fn render(&self) -> Result<RgbImage> {
        let grids = || std::iter::once(self).chain(&self.beside);
        let layouts = grids().map(ImageGrid::layout).collect::<Result<Vec<_>>>()?;
        let largest = |part: fn(&Layout) -> usize| layouts.iter().map(part).max().unwrap_or(0);
        let header = largest(|layout| layout.title + layout.captions);
        let height = header.saturating_add(largest(|layout| layout.body));
        let between = BESIDE * self.beside.len();
        let add_width = |sum: usize, layout: &Layout| sum.saturating_add(layout.width);

        let mut canvas = blank(layouts.iter().fold(between, add_width), height)?;
        let mut left = 0;
        for (grid, layout) in grids().zip(&layouts) {
            grid.draw(&mut canvas, layout, left, header);
            left += layout.width + BESIDE;
        }
        Ok(canvas)
    }

    /// Positions of the parts of this grid.
    fn layout(&self) -> Result<Layout> {
        let (columns, scale) = (self.columns, self.scale);
        check_range("columns", columns as f64, columns > 0, "at least 1")?;
        check_range("scale", scale as f64, scale > 0, "at least 1")?;
        let columns = columns.min(self.tiles.len());
        let rows = self.tiles.len().div_ceil(columns);
        check_captions("column captions", &self.column_captions, columns)?;
        check_captions("row captions", &self.row_captions, rows)?;

        let (width, height) = self.tiles.first().map_or((0, 0), RgbImage::dimensions);
        let tile = [width, height].map(|side| scale.saturating_mul(side as usize));
        let line = |texts: usize, font: RasterHeight| texts.min(1) * (font.val() + PADDING);
        let cell = [
            tile[0].max(widest(&self.column_captions)),
            tile[1].max(line(self.row_captions.len(), CAPTION)),
        ];
        let margin = match widest(&self.row_captions) {
            0 => 0,
            width => width.saturating_add(PADDING),
        };
        let title = self
            .title
            .as_deref()
            .map_or(0, |title| text_width(title, TITLE));
        Ok(Layout {
            columns,
            gap: self.gap,
            tile,
            cell,
            margin,
            title: line(title, TITLE),
            captions: line(self.column_captions.len(), CAPTION),
            body: span(rows, cell[1], self.gap),
            width: span(columns, cell[0], self.gap)
                .max(title)
                .saturating_add(margin),
        })
    }

    /// Draws this grid; `left` is its left edge, `top` the upper edge of its first row.
    fn draw(&self, canvas: &mut RgbImage, layout: &Layout, left: usize, top: usize) {
        let left = left + layout.margin;
        self.draw_texts(canvas, layout, left, top);
        let [width, height] = layout.tile.map(|side| side as u32);
        for (index, picture) in self.tiles.iter().enumerate() {
            let enlarged = imageops::resize(picture, width, height, FilterType::Nearest);
            let (column, row) = (index % layout.columns, index / layout.columns);
            let x = left + layout.column(column) + (layout.cell[0] - layout.tile[0]) / 2;
            let y = top + layout.row(row) + (layout.cell[1] - layout.tile[1]) / 2;
            imageops::replace(canvas, &enlarged, x as i64, y as i64);
        }
    }

    /// Draws title and captions around the pictures, whose upper left corner is given.
    fn draw_texts(&self, canvas: &mut RgbImage, layout: &Layout, left: usize, top: usize) {
        let above = top - layout.captions;
        if let Some(text) = &self.title {
            draw_text(canvas, text, TITLE, left, above - layout.title);
        }
        for (column, text) in self.column_captions.iter().enumerate() {
            let indent = (layout.cell[0] - text_width(text, CAPTION)) / 2;
            let text_left = left + layout.column(column) + indent;
            draw_text(canvas, text, CAPTION, text_left, above);
        }
        for (row, text) in self.row_captions.iter().enumerate() {
            let text_left = left - text_width(text, CAPTION);
            let text_top = top + layout.row(row) + (layout.cell[1] - CAPTION.val()) / 2;
            draw_text(canvas, text, CAPTION, text_left, text_top);
        }
    }
}

/// Sizes of the parts of one grid, in pixels; pairs are width, height.
struct Layout {
    columns: usize,
    gap: usize,
    tile: [usize; 2],
    /// A picture with the space that its captions need.
    cell: [usize; 2],
    /// Width of the row captions.
    margin: usize,
    /// Height of the title.
    title: usize,
    /// Height of the column captions.
    captions: usize,
    /// Height of the rows with their gaps.
    body: usize,
    /// Width of everything.
    width: usize,
}

impl Layout {
    /// Left edge of a column, from the left of the pictures.
    fn column(&self, index: usize) -> usize {
        self.gap + index * (self.cell[0] + self.gap)
    }

    /// Upper edge of a row, from the top of the pictures.
    fn row(&self, index: usize) -> usize {
        self.gap + index * (self.cell[1] + self.gap)
    }
}

/// Length of `count` cells with a gap before, between and after them.
fn span(count: usize, cell: usize, gap: usize) -> usize {
    cell.saturating_add(gap)
        .saturating_mul(count)
        .saturating_add(gap)
}

/// Checks that there are no captions, or one per row or column.
fn check_captions(what: &'static str, captions: &[String], needed: usize) -> Result<()> {
    if captions.is_empty() || captions.len() == needed {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        what,
        expected: vec![needed],
        got: vec![captions.len()],
        remedy: "give one caption per column or row, or none",
    })
}

/// A white picture.
fn blank(width: usize, height: usize) -> Result<RgbImage> {
    let pixels = width.saturating_mul(height);
    let name = "the picture's number of pixels";
    let requirement = "at most 100 million: take fewer images or a smaller scale";
    check_range(name, pixels as f64, pixels <= MOST_PIXELS, requirement)?;
    Ok(RgbImage::from_pixel(
        width as u32,
        height as u32,
        BACKGROUND,
    ))
}

/// An image, stored channel after channel, as a picture.
fn to_picture(values: &[f32], height: usize, width: usize) -> RgbImage {
    let area = height * width;
    let channels = values.len() / area;
    RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let place = y as usize * width + x as usize;
        let colour = [0, 1, 2].map(|channel| values[channel.min(channels - 1) * area + place]);
        match colour.iter().all(|value| value.is_finite()) {
            true => Rgb(colour.map(to_byte)),
            false => NON_FINITE,
        }
    })
}

/// Maps `[-1, 1]` onto `0, …, 255`.
fn to_byte(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

/// Width of a line of text and the space after it.
fn text_width(text: &str, font: RasterHeight) -> usize {
    let character = get_raster_width(FontWeight::Regular, font);
    character
        .saturating_mul(text.chars().count())
        .saturating_add(PADDING)
}

/// Width of the longest caption.
fn widest(captions: &[String]) -> usize {
    captions
        .iter()
        .map(|caption| text_width(caption, CAPTION))
        .max()
        .unwrap_or(0)
}

/// Writes a line in black, with `?` for characters that the font lacks.
fn draw_text(canvas: &mut RgbImage, text: &str, font: RasterHeight, left: usize, top: usize) {
    let glyph = |character| get_raster(character, FontWeight::Regular, font);
    let width = get_raster_width(FontWeight::Regular, font);
    let glyphs = text
        .chars()
        .filter_map(|character| glyph(character).or_else(|| glyph('?')));
    for (index, raster) in glyphs.enumerate() {
        for (row, line) in raster.rows().enumerate() {
            for (column, &ink) in line.iter().enumerate() {
                let (x, y) = (left + index * width + column, top + row);
                if let Some(pixel) = canvas.get_pixel_mut_checked(x as u32, y as u32) {
                    *pixel = Rgb([255 - ink; 3]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn images(values: Vec<f32>, shape: [usize; 4]) -> Tensor<4> {
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn grey(level: u8) -> Rgb<u8> {
        Rgb([level; 3])
    }

    /// Two pictures of one pixel, black and white.
    fn two_pixels() -> ImageGrid {
        ImageGrid::new(images(vec![-1.0, 1.0], [2, 1, 1, 1]))
            .unwrap()
            .columns(2)
    }

    #[test]
    fn pixels_are_where_and_what_they_should_be() {
        let values = vec![-1.0, 0.0, 1.0, 5.0, -5.0, 0.5];
        let grid = ImageGrid::new(images(values, [3, 1, 1, 2])).unwrap();
        let picture = grid.columns(2).gap(1).scale(3).render().unwrap();
        assert_eq!(picture.dimensions(), (1 + 2 * (6 + 1), 1 + 2 * (3 + 1)));
        let expected = [
            (0, 0, 255),
            (1, 1, 0),
            (3, 3, 0),
            (4, 1, 128),
            (6, 3, 128),
            (7, 2, 255),
            (8, 1, 255),
            (13, 3, 255),
            (1, 5, 0),
            (6, 7, 191),
            (8, 5, 255),
        ];
        for (x, y, level) in expected {
            assert_eq!(picture.get_pixel(x, y), &grey(level), "at {x}, {y}");
        }
    }

    #[test]
    fn channels_become_colours_and_broken_pixels_magenta() {
        let values = vec![
            1.0,
            f32::NAN,
            0.0,
            -1.0,
            -1.0,
            0.0,
            0.0,
            0.0,
            f32::NEG_INFINITY,
        ];
        let grid = ImageGrid::new(images(values, [1, 3, 1, 3])).unwrap().gap(0);
        let picture = grid.render().unwrap();
        let pixels: Vec<_> = picture.pixels().copied().collect();
        assert_eq!(pixels, [Rgb([255, 0, 128]), NON_FINITE, NON_FINITE]);
    }

    #[test]
    fn grids_stand_side_by_side_with_their_first_rows_level() {
        let plain = two_pixels().gap(1);
        let titled = two_pixels().gap(1).title("x");
        let alone = titled.render().unwrap();
        let both = plain.beside(titled).render().unwrap();
        let header = (TITLE.val() + PADDING) as u32;
        let right = 5 + BESIDE as u32;
        assert_eq!(both.dimensions(), (right + alone.width(), header + 3));
        assert_eq!(both.get_pixel(1, header + 1), &grey(0));
        assert_eq!(both.get_pixel(right + 1, header + 1), &grey(0));
        let moved = imageops::crop_imm(&both, right, 0, alone.width(), alone.height());
        assert_eq!(moved.to_image(), alone);
    }

    #[test]
    fn captions_leave_ink_and_move_the_pictures() {
        let grid = two_pixels()
            .gap(0)
            .column_captions(["a", "b"])
            .row_captions(["long row"]);
        let picture = grid.title("ab é").render().unwrap();
        let (margin, header) = (
            text_width("long row", CAPTION) + PADDING,
            TITLE.val() + CAPTION.val() + 2 * PADDING,
        );
        let inked = |left: usize, top: usize, width: usize, height: usize| {
            let part = imageops::crop_imm(
                &picture,
                left as u32,
                top as u32,
                width as u32,
                height as u32,
            );
            part.to_image().pixels().any(|pixel| pixel.0[0] < 128)
        };
        assert!(inked(margin, 0, 20, TITLE.val()), "title");
        assert!(
            inked(margin, TITLE.val() + PADDING, 12, CAPTION.val()),
            "column caption"
        );
        assert!(inked(PADDING, header, margin, CAPTION.val()), "row caption");
    }

    #[test]
    fn unusable_batches_and_settings_are_refused() {
        let new = |shape: [usize; 4]| ImageGrid::new(Tensor::zeros(shape, &Device::flex()));
        assert!(matches!(new([0, 1, 2, 2]), Err(Error::Empty { .. })));
        assert!(matches!(new([1, 1, 0, 2]), Err(Error::Empty { .. })));
        assert!(matches!(
            new([1, 2, 2, 2]),
            Err(Error::ShapeMismatch { .. })
        ));
        let out_of_range = [
            two_pixels().columns(0),
            two_pixels().scale(0),
            two_pixels().scale(usize::MAX),
        ];
        for grid in out_of_range {
            assert!(matches!(grid.render(), Err(Error::OutOfRange { .. })));
        }
        let mismatched = two_pixels().column_captions(["one"]);
        assert!(matches!(
            mismatched.render(),
            Err(Error::ShapeMismatch { .. })
        ));
    }

    #[test]
    fn files_are_written_with_their_folders_and_failures_name_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/grid.png");
        two_pixels().save(&path).unwrap();
        let read = image::open(&path).unwrap().to_rgb8();
        assert_eq!(read, two_pixels().render().unwrap());
        let error = two_pixels().save(path.join("below.png")).unwrap_err();
        assert!(
            matches!(error, Error::Io { .. }) && error.to_string().contains("grid.png"),
            "{error}"
        );
    }
}
