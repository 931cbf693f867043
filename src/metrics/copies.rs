//! Whether samples are copies of a point.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::estimate::{Estimate, check_finite_numbers};
use super::features::{Features, check_made_alike};
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, check_positive, check_range, check_shape};
use crate::host::{read_f32, squared_norms};
use crate::sampling::Sampler;

/// The share of samples whose distance from a point is at most `threshold`, with the exact
/// interval.
///
/// # Errors
/// [`Error::Empty`] without distances, [`Error::NonFiniteNumber`].
///
/// # Example
/// ```
/// use siss::metrics::share_within;
///
/// let copies = share_within("T-shirts", &[3.0, 14.0, 12.5, 13.0], 10.0)?;
/// assert_eq!(copies.value, 0.25);
/// # Ok::<(), siss::Error>(())
/// ```
pub fn share_within(name: &str, distances: &[f64], threshold: f64) -> Result<Estimate> {
    check_finite_numbers("the list of distances", distances)?;
    let within = distances
        .iter()
        .filter(|&&distance| distance <= threshold)
        .count();
    Estimate::share(
        format!("{name}, distance at most {threshold}"),
        within,
        distances.len(),
    )
}

/// The Euclidean distance of each sample from the nearest of some points.
///
/// # Errors
/// [`Error::Empty`] without samples or points;
/// [`Error::InvalidSetting`] and [`Error::ShapeMismatch`] for features that were made differently.
pub fn nearest_distances(samples: &Features, points: &Features) -> Result<Vec<f64>> {
    check_same(samples, points)?;
    let nearest = |sample: &[f32]| {
        let distances = (0..points.len()).map(|point| distance(sample, points.row(point)));
        distances.fold(f64::INFINITY, f64::min)
    };
    Ok((0..samples.len())
        .map(|row| nearest(samples.row(row)))
        .collect())
}

/// The distance of each sample from the nearest of some points, relative to how far samples of its
/// kind are from training data: `d / (factor · mean d to the nearest training points)`.
///
/// Below 1 the sample counts as a copy. The published values are 50 training points and a factor of
/// ½. Without the relation, a sample of few features is near everything.
///
/// # Errors
/// Those of [`nearest_distances`]; [`Error::OutOfRange`] unless `neighbours` is from 1 to the
/// number of training points and `factor` is positive.
///
/// # Reference
/// Carlini et al. 2023, *Extracting Training Data from Diffusion Models*, Section 5.1.
pub fn relative_distances(
    samples: &Features,
    points: &Features,
    training: &Features,
    neighbours: usize,
    factor: f64,
) -> Result<Vec<f64>> {
    check_same(samples, training)?;
    check_positive("factor", factor)?;
    let legal = (1..=training.len()).contains(&neighbours);
    let requirement = "from 1 to the number of training points";
    check_range("neighbours", neighbours as f64, legal, requirement)?;
    let mut relative = nearest_distances(samples, points)?;
    for (row, relative) in relative.iter_mut().enumerate() {
        let sample = samples.row(row);
        let all = (0..training.len()).map(|point| distance(sample, training.row(point)));
        let mut all: Vec<f64> = all.collect();
        all.select_nth_unstable_by(neighbours - 1, f64::total_cmp);
        let mean = all[..neighbours].iter().sum::<f64>() / neighbours as f64;
        *relative /= factor * mean;
    }
    Ok(relative)
}

fn check_same(samples: &Features, points: &Features) -> Result<()> {
    for (set, what) in [
        (samples, "the set of samples"),
        (points, "the set of points"),
    ] {
        if set.is_empty() {
            let remedy = "give at least one point";
            return Err(Error::Empty { what, remedy });
        }
    }
    check_made_alike(samples, points)
}

fn distance(one: &[f32], other: &[f32]) -> f64 {
    let differences = one
        .iter()
        .zip(other)
        .map(|(&a, &b)| f64::from(a) - f64::from(b));
    differences.map(|it| it * it).sum::<f64>().sqrt()
}

/// The distance of each picture from one picture, by its most different tile: the largest root mean
/// square difference of `tiles × tiles` parts.
///
/// Two pictures with the same large background are far apart by this distance. The published value
/// for pictures of 512 pixels is four tiles in each direction.
///
/// # Shapes
/// - `pictures`: `[n, channels, height, width]`; `picture`: `[1, channels, height, width]`
///
/// # Errors
/// [`Error::ShapeMismatch`] for pictures of different shapes; [`Error::OutOfRange`] if `tiles` does
/// not divide height and width; [`Error::DeviceRead`].
///
/// # Reference
/// Carlini et al. 2023, *Extracting Training Data from Diffusion Models*, Section 4.2.
pub fn tiled_distances(
    pictures: &Tensor<4>,
    picture: &Tensor<4>,
    tiles: usize,
) -> Result<Vec<f64>> {
    let [rows, channels, height, width] = pictures.dims();
    let remedy = "give one picture of the same size";
    check_shape(
        "the picture",
        &[1, channels, height, width],
        &picture.dims(),
        remedy,
    )?;
    let legal = tiles >= 1 && height.is_multiple_of(tiles) && width.is_multiple_of(tiles);
    let requirement = "a divisor of height and width";
    check_range("tiles", tiles as f64, legal, requirement)?;
    let (tall, wide) = (height / tiles, width / tiles);
    let mut largest = vec![0.0_f64; rows];
    for tile in 0..tiles * tiles {
        let (top, left) = (tile / tiles * tall, tile % tiles * wide);
        let part = |tensor: &Tensor<4>| {
            let rows = tensor.clone().narrow(2, top, tall);
            rows.narrow(3, left, wide)
        };
        let squares = squared_norms(part(pictures) - part(picture));
        let squares = read_f32(squares, "the distances of pictures")?;
        for (largest, square) in largest.iter_mut().zip(squares) {
            let mean = f64::from(square) / (channels * tall * wide) as f64;
            *largest = largest.max(mean.sqrt());
        }
    }
    Ok(largest)
}

/// How the similarity of denoised copies with their original is summed up.
///
/// The two published protocols are different quantities and do not belong into one column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyProtocol {
    /// Mean over 16 copies: the SISS paper.
    MeanOfSixteen,
    /// One copy, cut to whole pixel values: the code of ReTrack.
    Single,
}

impl CopyProtocol {
    /// Copies of each picture.
    pub fn copies(self) -> usize {
        match self {
            CopyProtocol::MeanOfSixteen => 16,
            CopyProtocol::Single => 1,
        }
    }
}

/// How similar a model's denoised copies of pictures are to the pictures, after noise injection.
///
/// A picture is noised to a timestep and denoised from there, and the unit descriptors of copy and
/// picture are multiplied: near 1 the model knows the picture.
///
/// | field | [`new`](CopySimilarity::new) | purpose |
/// |---|---|---|
/// | `protocol` | given | which copies count |
/// | `timestep` | 250 | to where pictures are noised |
/// | `seed` | 0 | key of the noise |
/// | `micro_batch_size` | 16 | copies run at a time, which changes nothing but memory |
///
/// # Reference
/// Pizzi et al. 2022, *A Self-Supervised Descriptor for Image Copy Detection* (the descriptor).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopySimilarity {
    /// Which copies count.
    pub protocol: CopyProtocol,
    /// To where pictures are noised.
    pub timestep: usize,
    /// Key of the noise.
    pub seed: u64,
    /// Copies run through the model at a time, at least 1.
    pub micro_batch_size: usize,
}

/// The similarity of one picture's copies with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PictureSimilarity {
    /// Mean over the copies that the protocol counts.
    pub value: f64,
    /// The mean with its interval over copies, if there is more than one.
    pub estimate: Option<Estimate>,
    /// The similarity of each copy, −1 to 1.
    pub copies: Vec<f64>,
}

impl CopySimilarity {
    /// The published timestep, 250, and this protocol.
    pub fn new(protocol: CopyProtocol) -> Self {
        Self {
            protocol,
            timestep: 250,
            seed: 0,
            micro_batch_size: 16,
        }
    }

    /// The similarity of each picture's copies with it.
    ///
    /// `describe` gives the descriptors, `[n, length]`, of pictures with values from 0 to 255; they
    /// are scaled to length 1 here. Copies are clamped to that range.
    ///
    /// # Shapes
    /// - `pictures`: `[n, channels, height, width]` in `[−1, 1]`; `condition`: `n` rows
    ///
    /// # Errors
    /// Those of [`Sampler::noise_and_denoise`] and of `describe`; [`Error::OutOfRange`] for a
    /// `micro_batch_size` of 0; [`Error::ShapeMismatch`] for descriptors without a row per picture;
    /// [`Error::NonFiniteNumber`] for descriptors that have no direction.
    pub fn measure<M: Denoiser<4>>(
        &self,
        model: &M,
        sampler: &impl Sampler,
        pictures: &Tensor<4>,
        condition: &M::Condition,
        describe: impl Fn(Tensor<4>) -> Result<Tensor<2>>,
    ) -> Result<Vec<PictureSimilarity>> {
        let (count, few) = (self.protocol.copies(), self.micro_batch_size);
        check_range("micro_batch_size", few as f64, few >= 1, "at least 1")?;
        let picture = |row: usize| {
            let original = pictures.clone().narrow(0, row, 1);
            let some = |first: usize| {
                let some = few.min(count - first);
                let condition = condition.take_rows(&vec![row; some]);
                let clean = original.clone().repeat_dim(0, some);
                let (timestep, first) = (self.timestep, (row * count + first) as u64);
                sampler.noise_and_denoise(model, &condition, clean, timestep, self.seed, first)
            };
            let copies = (0..count).step_by(few).map(some);
            let copies = Tensor::cat(copies.collect::<Result<_>>()?, 0);
            let levels = |pictures: Tensor<4>| (pictures * 127.5 + 127.5).clamp(0.0, 255.0);
            let copies = match self.protocol {
                CopyProtocol::MeanOfSixteen => levels(copies),
                CopyProtocol::Single => levels(copies).floor(),
            };
            let described = directions(describe(levels(original))?, 1)?;
            let copies = directions(describe(copies)?, count)?;
            let products = copies * described;
            let similarities = read_f32(products.sum_dim(1), "the similarities of copies")?;
            self.summed_up(similarities.into_iter().map(f64::from).collect())
        };
        (0..pictures.dims()[0]).map(picture).collect()
    }

    fn summed_up(&self, copies: Vec<f64>) -> Result<PictureSimilarity> {
        check_finite_numbers("the similarities of copies", &copies)?;
        let name = format!(
            "copy similarity from timestep {}, mean of 16",
            self.timestep
        );
        Ok(PictureSimilarity {
            value: copies.iter().sum::<f64>() / copies.len() as f64,
            estimate: match self.protocol {
                CopyProtocol::MeanOfSixteen => Some(Estimate::mean(name, &copies)?),
                CopyProtocol::Single => None,
            },
            copies,
        })
    }
}

/// Descriptors of length 1.
fn directions(descriptors: Tensor<2>, rows: usize) -> Result<Tensor<2>> {
    let [found, length] = descriptors.dims();
    let remedy = "return one descriptor for each picture";
    check_shape(
        "the list of descriptors",
        &[rows, length],
        &[found, length],
        remedy,
    )?;
    let norms = descriptors.clone().square().sum_dim(1).sqrt();
    Ok(descriptors / norms)
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{features, normal};
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use crate::denoiser::FnDenoiser;
    use crate::process::{DdpmScheduler, PredictionType};
    use crate::sampling::{DdimConfig, DdimSampler};

    #[test]
    fn distances_are_those_from_the_nearest_point() {
        let points = normal(1, 3, 4);
        let samples = features(Tensor::cat(vec![points.clone() + 0.5, normal(2, 5, 4)], 0));
        let found = nearest_distances(&samples, &features(points.clone())).unwrap();
        assert!((found[0] - 1.0).abs() < 1e-5 && found.len() == 8);
        let alone = features(points.clone().narrow(0, 0, 1));
        let found = nearest_distances(&samples, &alone).unwrap();
        assert!((found[0] - 1.0).abs() < 1e-5);
        let copies = share_within("copies", &[0.5, 1.5], 1.0).unwrap();
        assert_eq!((copies.value, copies.samples.as_slice()), (0.5, &[2][..]));
        assert!(matches!(
            share_within("none", &[], 1.0),
            Err(Error::Empty { .. })
        ));
    }

    /// A sample 1 away from the point, and 4 and 6 from the nearest training points.
    #[test]
    fn relative_distances_follow_their_definition() {
        let numbers = |values: &[f32]| {
            let count = values.len();
            let values = Tensor::<1>::from_data(values, &Device::flex());
            features(values.reshape([count, 1]))
        };
        let (samples, point) = (numbers(&[0.0, 2.0]), numbers(&[1.0]));
        let training = numbers(&[4.0, -6.0, 50.0]);
        let found = relative_distances(&samples, &point, &training, 2, 0.5).unwrap();
        assert!((found[0] - 1.0 / (0.5 * 5.0)).abs() < 1e-12);
        assert!((found[1] - 1.0 / (0.5 * 5.0)).abs() < 1e-12);
        for neighbours in [0, 4] {
            let error = relative_distances(&samples, &point, &training, neighbours, 0.5);
            assert!(matches!(
                error,
                Err(Error::OutOfRange {
                    name: "neighbours",
                    ..
                })
            ));
        }
    }

    #[test]
    fn tiles_show_a_difference_in_one_corner() {
        let device = Device::flex();
        let picture = Tensor::<4>::zeros([1, 3, 8, 8], &device);
        let corner = Tensor::<4>::ones([1, 3, 2, 2], &device);
        let changed = picture
            .clone()
            .slice_assign([0..1, 0..3, 6..8, 0..2], corner);
        let found = tiled_distances(&changed, &picture, 4).unwrap();
        assert!((found[0] - 1.0).abs() < 1e-6);
        let whole = tiled_distances(&changed, &picture, 1).unwrap();
        assert!((whole[0] - 0.25).abs() < 1e-6);
        let error = tiled_distances(&changed, &picture, 3).unwrap_err();
        assert!(
            matches!(error, Error::OutOfRange { name: "tiles", .. }),
            "{error}"
        );
    }

    /// Takes everything for one grey.
    fn grey(value: f64) -> impl Denoiser<4, Condition = ()> {
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let say = move |_: &Linear, noisy: Tensor<4>, _, _: &()| noisy * 0.0 + value;
        FnDenoiser::new(layer, say).predicting(PredictionType::Sample)
    }

    /// A descriptor of two numbers: 100 and the mean.
    fn describe(pictures: Tensor<4>) -> Result<Tensor<2>> {
        let rows = pictures.dims()[0];
        let means = pictures.reshape([rows, 12]).mean_dim(1);
        Ok(Tensor::cat(vec![means.full_like(100.0), means], 1))
    }

    #[test]
    fn similarity_is_the_cosine_of_the_descriptors_in_either_protocol() {
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let sampler = DdimSampler::new(&scheduler, DdimConfig::new(10)).unwrap();
        let picture = Tensor::<4>::full([2, 3, 2, 2], 0.5, &Device::flex());
        let cosine = |a: f64, b: f64| (1e4 + a * b) / (1e4 + a * a).sqrt() / (1e4 + b * b).sqrt();
        for (protocol, level) in [
            (CopyProtocol::MeanOfSixteen, 127.5 - 0.3 * 127.5),
            // Cut to a whole number.
            (CopyProtocol::Single, 89.0),
        ] {
            let similarity = CopySimilarity::new(protocol);
            let found = similarity
                .measure(&grey(-0.3), &sampler, &picture, &(), describe)
                .unwrap();
            let expected = cosine(191.25, level);
            assert_eq!((found.len(), found[1].copies.len()), (2, protocol.copies()));
            assert!(
                (found[1].value - expected).abs() < 1e-5,
                "{found:?} {expected}"
            );
            assert_eq!(
                found[0].estimate.is_some(),
                protocol == CopyProtocol::MeanOfSixteen
            );
        }
        let layer = LinearConfig::new(1, 1).init(&Device::flex());
        let faint = FnDenoiser::new(layer, |_: &Linear, noisy: Tensor<4>, _, _: &()| noisy * 0.3);
        let faint = faint.predicting(PredictionType::Sample);
        let copies = |micro_batch_size| {
            let similarity = CopySimilarity {
                micro_batch_size,
                ..CopySimilarity::new(CopyProtocol::MeanOfSixteen)
            };
            let found = similarity.measure(&faint, &sampler, &picture, &(), describe);
            found.unwrap().remove(1).copies
        };
        let together = copies(16);
        assert_ne!(together[0], together[15]);
        assert_eq!(copies(5), together);
        let none = CopySimilarity {
            micro_batch_size: 0,
            ..CopySimilarity::new(CopyProtocol::Single)
        };
        let error = none.measure(&grey(0.0), &sampler, &picture, &(), describe);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("micro_batch_size"), "{error}");
        let wrong = |pictures: Tensor<4>| Ok(describe(pictures)?.narrow(0, 0, 1));
        let similarity = CopySimilarity::new(CopyProtocol::MeanOfSixteen);
        let error = similarity
            .measure(&grey(0.0), &sampler, &picture, &(), wrong)
            .unwrap_err();
        assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    }
}
