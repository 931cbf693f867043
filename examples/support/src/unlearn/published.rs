//! FID and SSCD, by networks with published weights, which the user gives by path.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use siss::burn::tensor::{Device, Tensor};
use siss::metrics::networks::{InceptionTap, InceptionV3, Sscd, SscdSize};
use siss::metrics::{Estimate, Features, PictureSimilarity, Resize, frechet_distance};
use siss::{Error, Result};

use crate::files::as_optional_text;
use crate::subject::Space;

/// Pictures described at a time, and in a trial.
const AT_A_TIME: usize = 16;
/// Fewest pictures of either side of a distance between distributions.
const FEWEST: usize = 2;

/// The options for them.
#[derive(Args, Debug, Clone, Default, Serialize)]
pub struct PublishedWeights {
    /// Measures the FID of the generated images against retained ones, before and after: the
    /// Inception network of 2015, as examples/convert_weights.py writes it.
    #[arg(long, value_name = "FILE", requires = "resize")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "as_optional_text")]
    pub inception: Option<PathBuf>,

    /// With --inception, how images are resized for it, on which the number depends: tensorflow1
    /// (torch-fidelity, the SISS paper), half_pixel (pytorch-fid), antialiased (torchmetrics from
    /// 1.8 on), pil_bicubic (clean-fid) or pil_bilinear.
    #[arg(long, value_name = "NAME", requires = "inception")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<Resize>,

    /// Measures by SSCD how similar forgotten images are to their copies, noised and denoised by
    /// the model before and after (mean of 16, as in the SISS paper): sscd_disc_mixup, as
    /// examples/convert_weights.py writes it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "as_optional_text")]
    pub sscd: Option<PathBuf>,
}

/// The networks that were asked for.
pub struct PublishedNetworks {
    inception: Option<(InceptionV3, Resize)>,
    sscd: Option<Sscd>,
}

/// How long the networks take, and what they are run on, judging from a few pictures.
#[derive(Debug, Clone, Copy, Default)]
pub struct Costs {
    /// Seconds per picture.
    inception: f64,
    sscd: f64,
    /// Seconds for the distance of two sets.
    distance: f64,
}

/// How similar pictures are to their denoised copies.
#[derive(Debug, Clone, Serialize)]
pub struct Similarity {
    /// Mean over the pictures with its interval; of a single one, over its copies.
    pub mean: Estimate,
    /// The first forgotten images, in their order.
    pub images: Vec<PictureSimilarity>,
}

impl PublishedNetworks {
    /// Reads the weights.
    ///
    /// # Errors
    /// For a missing file, and for weights of another network: names option, file and tensor.
    pub fn read(weights: &PublishedWeights, device: &Device) -> std::result::Result<Self, String> {
        let inception = read("inception", weights.inception.as_deref(), |path| {
            InceptionV3::load(path, device)
        })?;
        let sscd = read("sscd", weights.sscd.as_deref(), |path| {
            Sscd::load(path, device)
        })?;
        Ok(Self {
            inception: inception.zip(weights.resize),
            sscd,
        })
    }

    /// Refuses what cannot be measured of a model's points, or of so few images.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for SSCD with other points than pixels from −1 to 1;
    /// [`Error::OutOfRange`] for FID of fewer than two images.
    pub fn check(&self, space: &Space, samples: usize, retained: usize) -> Result<()> {
        let is_plain = matches!(space, Space::Pixels(range) if *range == [-1.0, 1.0]);
        if self.sscd.is_some() && !is_plain {
            return Err(Error::InvalidSetting {
                what: "--sscd with a model whose points are not pixels from -1 to 1".into(),
                remedy: "leave it out: the published protocol adds noise to pixels in this range",
            });
        }
        if self.inception.is_none() {
            return Ok(());
        }
        let counts = [
            ("--samples, with --inception", samples),
            ("the number of retained images, with --inception", retained),
        ];
        match counts.into_iter().find(|(_, count)| *count < FEWEST) {
            None => Ok(()),
            Some((name, count)) => Err(Error::OutOfRange {
                name,
                value: count as f64,
                requirement: "at least 2: FID compares means and covariances",
            }),
        }
    }

    pub fn has_fid(&self) -> bool {
        self.inception.is_some()
    }

    pub fn has_sscd(&self) -> bool {
        self.sscd.is_some()
    }

    /// Runs each network on a few of these pictures, with values from −1 to 1, as the measurements
    /// do.
    pub fn trial(&self, pictures: &Tensor<4>) -> Result<Costs> {
        let count = pictures.dims()[0].min(AT_A_TIME);
        let few = pictures.clone().narrow(0, 0, count);
        let mut costs = Costs::default();
        let began = Instant::now();
        if let Some(features) = self.features(&few)? {
            costs.inception = began.elapsed().as_secs_f64() / count as f64;
            let began = Instant::now();
            frechet_distance(&features, &features)?;
            costs.distance = began.elapsed().as_secs_f64();
        }
        if let Some(sscd) = &self.sscd {
            let began = Instant::now();
            // The features are read, and so they are there.
            sscd.features(&levels(&few), SscdSize::SmallEdge288)?;
            costs.sscd = began.elapsed().as_secs_f64() / count as f64;
        }
        Ok(costs)
    }

    /// The features of pictures with values from −1 to 1, for FID.
    pub fn features(&self, pictures: &Tensor<4>) -> Result<Option<Features>> {
        let Some((network, resize)) = &self.inception else {
            return Ok(None);
        };
        let features = network.features(&levels(pictures), InceptionTap::Pool2048, *resize);
        features.map(Some)
    }

    /// The descriptors of pictures with values from 0 to 255, if SSCD was asked for.
    pub fn describe(&self) -> Option<impl Fn(Tensor<4>) -> Result<Tensor<2>> + '_> {
        let sscd = self.sscd.as_ref()?;
        Some(|pictures| sscd.describe(colours(pictures), SscdSize::SmallEdge288))
    }
}

impl Costs {
    /// Seconds that the networks take for FID of two sets of samples, and for SSCD of pictures and
    /// their copies, before and after.
    pub fn seconds(&self, [retained, samples]: [usize; 2], described: usize) -> f64 {
        let fid = self.inception * (retained + 2 * samples) as f64 + 2.0 * self.distance;
        fid + 2.0 * self.sscd * described as f64
    }
}

impl Similarity {
    /// # Errors
    /// Those of [`Estimate::mean`].
    pub fn of(images: Vec<PictureSimilarity>) -> Result<Self> {
        let values: Vec<f64> = images.iter().map(|image| image.value).collect();
        let own = images.first().and_then(|image| image.estimate.clone());
        let mean = match own {
            Some(own) if images.len() == 1 => own,
            Some(own) => Estimate::mean(format!("{}, mean of images", own.name), &values)?,
            None => Estimate::mean("copy similarity, mean of images", &values)?,
        };
        Ok(Self { mean, images })
    }
}

fn read<T>(
    option: &str,
    path: Option<&Path>,
    load: impl FnOnce(&Path) -> Result<T>,
) -> std::result::Result<Option<T>, String> {
    let network = path.map(load).transpose();
    network.map_err(|error| format!("--{option}: {error}"))
}

/// Pictures with values from −1 to 1 as files hold them: whole values from 0 to 255, in colour.
fn levels(pictures: &Tensor<4>) -> Tensor<4> {
    let levels = (pictures.clone().clamp(-1.0, 1.0) + 1.0) * 127.5;
    colours(levels.round())
}

/// A single channel three times.
fn colours(pictures: Tensor<4>) -> Tensor<4> {
    match pictures.dims()[1] {
        1 => pictures.repeat_dim(1, 3),
        _ => pictures,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_images_have_an_interval_over_images() {
        let image = |copies: [f64; 2]| {
            let estimate = Estimate::mean("copy similarity", &copies).unwrap();
            let json = serde_json::json!({
                "value": estimate.value, "estimate": estimate, "copies": copies
            });
            serde_json::from_value::<PictureSimilarity>(json).unwrap()
        };
        let [first, second] = [[0.2, 0.4], [0.8, 0.8]].map(image);
        let one = Similarity::of(vec![first.clone()]).unwrap();
        assert_eq!(Some(&one.mean), first.estimate.as_ref());
        let two = Similarity::of(vec![first, second]).unwrap().mean;
        assert!((two.value - 0.55).abs() < 1e-12, "{two}");
        assert_eq!(two.samples, [2]);
        assert!(two.name.ends_with("mean of images"), "{two}");
    }

    #[test]
    fn grey_pictures_are_described_as_files_hold_them() {
        let pictures = Tensor::<1>::from_data([-1.2_f32, -1.0, 0.001, 2.0], &Device::flex());
        let found = levels(&pictures.reshape([1, 1, 2, 2]));
        assert_eq!(found.dims(), [1, 3, 2, 2]);
        let values: Vec<f32> = found.into_data().iter().collect();
        assert_eq!(values, [0.0, 0.0, 128.0, 255.0].repeat(3));
    }

    #[test]
    fn costs_are_counted_for_both_models() {
        let costs = Costs {
            inception: 1.0,
            sscd: 10.0,
            distance: 100.0,
        };
        assert_eq!(costs.seconds([3, 4], 17), 3.0 + 8.0 + 200.0 + 340.0);
    }
}
