//! Images laid out so that every tap of a kernel reads them as one run of numbers.

use std::ops::Range;

use super::tile::ROWS;

/// Images are stacked up to this many numbers per channel.
const STACK: usize = 128;

/// The layout of an image with its padding.
///
/// Output position `(y, x)` has the index `y · pitch + x`, and the tap `(dy, dx)` reads the number
/// at a fixed distance from that index, whatever the position. A convolution thus becomes a product
/// of the weights with shifted copies of the image, and the copies need not be made. Numbers at `x`
/// beyond the output's width are computed but not used.
///
/// Where the stride is above 1, the padded image is split into `stride²` smaller ones, so that
/// successive positions of a tap are adjacent. Where the stride is 1, the padding right of a row is
/// also the padding left of the next, and the padding below an image is also that above the next.
///
/// Small images are stacked, one below another, so that a run is long enough for vectors. The
/// positions between the last of one image and the first of the next are not used either.
#[derive(Debug, Clone)]
pub(super) struct Planes {
    /// Channels, height and width of the image.
    image: [usize; 3],
    /// Position of the image in the padded image.
    leading: [usize; 2],
    /// Distance between neighbouring numbers in the padded image: 1, except for gradients of
    /// strided convolutions.
    spacing: [usize; 2],
    /// Distance between neighbouring positions.
    stride: [usize; 2],
    /// Distance from a number to the one below it.
    pub(super) pitch: usize,
    /// Numbers of one of the smaller images, and distance from one image to the next.
    pub(super) plane: usize,
    /// Lines of padding below an image that are shared with the next.
    shared: usize,
    /// Images per stack.
    pub(super) images: usize,
}

impl Planes {
    /// The layout of an image in a padded image of `padded` numbers, read with a stride.
    pub(super) fn new(
        image: [usize; 3],
        leading: [usize; 2],
        padded: [usize; 2],
        spacing: [usize; 2],
        stride: [usize; 2],
    ) -> Self {
        let shared = [0, 1].map(|axis| {
            let end = leading[axis] + (image[axis + 1] - 1) * spacing[axis] + 1;
            let trailing = padded[axis] - end;
            if stride[axis] == 1 {
                leading[axis].min(trailing)
            } else {
                0
            }
        });
        let pitch = padded[1].div_ceil(stride[1]) - shared[1];
        Self {
            image,
            leading,
            spacing,
            stride,
            pitch,
            plane: (padded[0].div_ceil(stride[0]) - shared[0]) * pitch,
            shared: shared[0],
            images: 1,
        }
    }

    /// The same layout for a stack of at most `most` images.
    pub(super) fn stacked(mut self, most: usize) -> Self {
        self.images = (STACK / self.plane).min(most).max(1);
        self
    }

    /// The index that a tap of a channel reads for the first position.
    pub(super) fn offset(&self, channel: usize, tap: [usize; 2]) -> usize {
        let [down, across] = self.stride;
        let phase = (channel * down + tap[0] % down) * across + tap[1] % across;
        phase * self.plane * self.images + tap[0] / down * self.pitch + tap[1] / across
    }

    /// Zeros for a whole stack, because padding is never written. A tile may read past the end.
    pub(super) fn empty(&self) -> Vec<f32> {
        let planes = self.image[0] * self.stride[0] * self.stride[1];
        let end = (self.shared + 1) * self.pitch + ROWS;
        vec![0.0; planes * self.plane * self.images + end]
    }

    /// Writes the images of a stack to their places.
    pub(super) fn fill(&self, images: &[f32], planes: &mut [f32]) {
        let size = self.image.iter().product();
        for (index, image) in images.chunks_exact(size).enumerate() {
            self.fill_one(image, &mut planes[index * self.plane..]);
        }
    }

    fn fill_one(&self, image: &[f32], planes: &mut [f32]) {
        let [_, height, width] = self.image;
        let contiguous = self.spacing[1] == 1 && self.stride[1] == 1;
        for (index, row) in image.chunks_exact(width).enumerate() {
            let (channel, y) = (index / height, index % height);
            let y = self.leading[0] + y * self.spacing[0];
            if contiguous {
                let start = self.offset(channel, [y, self.leading[1]]);
                planes[start..start + width].copy_from_slice(row);
                continue;
            }
            for first in 0..self.stride[1].min(width) {
                let x = self.leading[1] + first * self.spacing[1];
                let places = planes[self.offset(channel, [y, x])..].iter_mut();
                let numbers = row[first..].iter().step_by(self.stride[1]);
                for (place, number) in places.step_by(self.spacing[1]).zip(numbers) {
                    *place = *number;
                }
            }
        }
    }

    /// The first position of a line of the outputs, where each output has `height` lines.
    pub(super) fn line(&self, height: usize, line: usize) -> usize {
        line / height * self.plane + line % height * self.pitch
    }

    /// The range from the first position of some lines of the outputs to the last.
    pub(super) fn positions(&self, output: [usize; 2], lines: Range<usize>) -> Range<usize> {
        let [height, width] = output;
        self.line(height, lines.start)..self.line(height, lines.end - 1) + width
    }
}
