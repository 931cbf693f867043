//! The ways in which metrics resize pictures.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::{read_f32, tensor, to_f32};

/// How pictures are brought to the size of a feature network.
///
/// The choice changes FID, KID and inception score, so there is no default, and numbers of
/// different choices are not comparable.
///
/// | variant | used by |
/// |---|---|
/// | `Tensorflow1` | torch-fidelity, torchmetrics before 1.8 and with them the SISS paper |
/// | `HalfPixel` | pytorch-fid |
/// | `Antialiased` | torchmetrics from 1.8 on |
/// | `PilBicubic` | clean-fid |
/// | `PilBilinear` | torchvision on pictures of Pillow, as for SSCD |
///
/// `Display` gives the name in `snake_case`, and `FromStr` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Resize {
    /// Bilinear, from the source position `i · in / out`.
    Tensorflow1,
    /// Bilinear, from `(i + ½) · in / out − ½`.
    HalfPixel,
    /// Bilinear, over all source pixels that a pixel covers.
    Antialiased,
    /// Bicubic over all source pixels that a pixel covers, in floats, clamped to `[0, 255]`.
    PilBicubic,
    /// Bilinear over all source pixels that a pixel covers, rounded to whole numbers after each
    /// axis.
    PilBilinear,
}

impl Resize {
    /// All ways.
    pub const ALL: [Self; 5] = [
        Self::Tensorflow1,
        Self::HalfPixel,
        Self::Antialiased,
        Self::PilBicubic,
        Self::PilBilinear,
    ];

    /// The name, in `snake_case`.
    pub fn name(self) -> &'static str {
        match self {
            Resize::Tensorflow1 => "tensorflow1",
            Resize::HalfPixel => "half_pixel",
            Resize::Antialiased => "antialiased",
            Resize::PilBicubic => "pil_bicubic",
            Resize::PilBilinear => "pil_bilinear",
        }
    }
}

impl std::fmt::Display for Resize {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

impl std::str::FromStr for Resize {
    type Err = Error;

    /// Reads the [`name`](Resize::name).
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|way| way.name() == text);
        found.ok_or_else(|| Error::UnknownName {
            what: "way of resizing",
            name: text.into(),
            known: Self::ALL.map(Self::name).into(),
        })
    }
}

impl Resize {
    /// Resizes pictures with values from 0 to 255 to `[height, width]`.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, channels, height, width]`
    ///
    /// # Errors
    /// [`Error::Empty`] for pictures or a size without pixels; [`Error::DeviceRead`].
    pub fn apply(self, pictures: Tensor<4>, [height, width]: [usize; 2]) -> Result<Tensor<4>> {
        let [_, _, from_height, from_width] = pictures.dims();
        if [height, width, from_height, from_width].contains(&0) {
            let (what, remedy) = ("a picture", "give a height and a width of at least 1");
            return Err(Error::Empty { what, remedy });
        }
        if self == Resize::PilBilinear {
            return self.as_bytes(pictures, [height, width]);
        }
        let device = pictures.device();
        let across = self.matrix(from_width, width, &device).transpose();
        let down = self.matrix(from_height, height, &device);
        let wide = to_f32(pictures).matmul(across.unsqueeze());
        let resized = down.unsqueeze().matmul(wide);
        Ok(match self {
            Resize::PilBicubic => resized.clamp(0.0, 255.0),
            _ => resized,
        })
    }

    /// The arithmetic of Pillow on bytes, on the host: floats would decide otherwise where a value
    /// is half-way between two whole numbers.
    fn as_bytes(self, pictures: Tensor<4>, [height, width]: [usize; 2]) -> Result<Tensor<4>> {
        let ([rows, channels, from_height, from_width], device) =
            (pictures.dims(), pictures.device());
        let values = read_f32(to_f32(pictures), "the pictures to resize")?;
        let bytes: Vec<i64> = values.iter().map(|value| value.round() as i64).collect();
        let (across, down) = (
            self.whole_weights(from_width, width),
            self.whole_weights(from_height, height),
        );
        let mut resized = Vec::with_capacity(rows * channels * height * width);
        for plane in bytes.chunks_exact(from_height * from_width) {
            let lines = plane.chunks_exact(from_width);
            let wide: Vec<Vec<i64>> = lines
                .map(|line| {
                    across
                        .iter()
                        .map(|pixel| sum(pixel, |at| line[at]))
                        .collect()
                })
                .collect();
            for pixel in &down {
                let line = (0..width).map(|column| sum(pixel, |at| wide[at][column]) as f32);
                resized.extend(line);
            }
        }
        Ok(tensor(resized, [rows, channels, height, width], &device))
    }

    /// For each pixel its source pixels, with their weights in units of `2⁻²²`.
    fn whole_weights(self, from: usize, to: usize) -> Vec<Vec<(usize, i64)>> {
        let whole = |(source, weight): (usize, f64)| {
            (
                source,
                (weight * f64::from(1 << WEIGHT_BITS)).round() as i64,
            )
        };
        let pixel = |pixel| {
            self.weights(pixel, from, to)
                .into_iter()
                .map(whole)
                .collect()
        };
        (0..to).map(pixel).collect()
    }

    /// The weights of the source pixels, `[to, from]`.
    fn matrix(self, from: usize, to: usize, device: &Device) -> Tensor<2> {
        let mut values = vec![0.0; to * from];
        for (pixel, row) in values.chunks_exact_mut(from).enumerate() {
            for (source, weight) in self.weights(pixel, from, to) {
                row[source] += weight as f32;
            }
        }
        tensor(values, [to, from], device)
    }

    /// The source pixels of a pixel, with their weights.
    fn weights(self, pixel: usize, from: usize, to: usize) -> Vec<(usize, f64)> {
        let (scale, pixel) = (from as f64 / to as f64, pixel as f64);
        match self {
            Resize::Tensorflow1 => between(pixel * scale, from),
            Resize::HalfPixel => between((pixel + 0.5) * scale - 0.5, from),
            Resize::Antialiased | Resize::PilBilinear => covered(pixel, scale, from, 1.0, triangle),
            Resize::PilBicubic => covered(pixel, scale, from, 2.0, cubic),
        }
    }
}

/// Bits behind the point of Pillow's weights.
const WEIGHT_BITS: u32 = 22;

/// A weighted sum of bytes, rounded half up.
fn sum(weights: &[(usize, i64)], byte: impl Fn(usize) -> i64) -> i64 {
    let sum: i64 = weights.iter().map(|&(at, weight)| weight * byte(at)).sum();
    ((sum + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS).clamp(0, 255)
}

/// The two source pixels next to a position.
fn between(position: f64, from: usize) -> Vec<(usize, f64)> {
    let position = position.clamp(0.0, (from - 1) as f64);
    let (before, share) = (position.floor() as usize, position.fract());
    let after = (before + 1).min(from - 1);
    vec![(before, 1.0 - share), (after, share)]
}

/// The source pixels under a filter that is as wide as a pixel of the coarser side.
fn covered(
    pixel: f64,
    scale: f64,
    from: usize,
    reach: f64,
    filter: impl Fn(f64) -> f64,
) -> Vec<(usize, f64)> {
    let (centre, width) = ((pixel + 0.5) * scale, scale.max(1.0));
    // Both are rounded towards 0, as Pillow and PyTorch do.
    let first = (centre - reach * width + 0.5).max(0.0) as usize;
    let end = ((centre + reach * width + 0.5) as usize).min(from);
    let weight = |source: usize| filter((source as f64 + 0.5 - centre) / width);
    let total: f64 = (first..end).map(weight).sum();
    (first..end)
        .map(|source| (source, weight(source) / total))
        .collect()
}

fn triangle(distance: f64) -> f64 {
    (1.0 - distance.abs()).max(0.0)
}

/// The cubic filter with `a = −½`.
fn cubic(distance: f64) -> f64 {
    let x = distance.abs();
    match x {
        _ if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        _ if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resized(kind: Resize, values: &[f32], width: usize) -> Vec<f32> {
        let row = tensor(values.to_vec(), [1, 1, 1, values.len()], &Device::flex());
        let found = kind.apply(row, [1, width]).unwrap();
        found.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn names_are_those_of_files_and_are_read_back() {
        for kind in Resize::ALL {
            assert_eq!(kind.to_string().parse::<Resize>().unwrap(), kind);
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
        }
        let error = "bilinear".parse::<Resize>().unwrap_err().to_string();
        assert!(error.contains("`bilinear`"), "{error}");
        assert!(error.contains("tensorflow1"), "{error}");
    }

    #[test]
    fn flat_pictures_stay_flat_and_a_size_that_fits_changes_nothing() {
        for kind in Resize::ALL {
            for width in [1, 3, 8, 40] {
                for value in resized(kind, &[7.0; 8], width) {
                    assert!((value - 7.0).abs() < 1e-4, "{kind} {width}: {value}");
                }
            }
            let same = resized(kind, &[1.0, 200.0, 30.0], 3);
            assert!((same[1] - 200.0).abs() < 1e-3, "{kind} {same:?}");
        }
    }

    /// Twice the width, worked out by hand.
    #[test]
    fn doubling_shows_where_each_kind_samples() {
        assert_eq!(
            resized(Resize::Tensorflow1, &[0.0, 8.0], 4),
            [0.0, 4.0, 8.0, 8.0]
        );
        assert_eq!(
            resized(Resize::HalfPixel, &[0.0, 8.0], 4),
            [0.0, 2.0, 6.0, 8.0]
        );
        assert_eq!(
            resized(Resize::Antialiased, &[0.0, 8.0], 4),
            [0.0, 2.0, 6.0, 8.0]
        );
        assert_eq!(
            resized(Resize::PilBilinear, &[0.0, 1.0], 4),
            [0.0, 0.0, 1.0, 1.0]
        );
        // A bicubic filter overshoots, and the result is clamped.
        assert_eq!(resized(Resize::PilBicubic, &[0.0, 255.0], 4)[0], 0.0);
    }

    #[test]
    fn halving_averages_only_with_antialiasing() {
        let values = [0.0, 0.0, 0.0, 80.0, 0.0, 0.0, 0.0, 0.0];
        assert_eq!(resized(Resize::Tensorflow1, &values, 4), [0.0; 4]);
        let smooth = resized(Resize::Antialiased, &values, 4);
        assert!(
            (smooth.iter().sum::<f32>() - 40.0).abs() < 1.0,
            "{smooth:?}"
        );
    }
}
