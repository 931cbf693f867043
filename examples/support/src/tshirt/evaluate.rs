//! Measures a model on the T-shirt and on digits it has never seen.

use serde::Serialize;
use siss::Result;
use siss::backend::DeviceSpec;
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;
use siss::report::{binomial_interval, percentile_rank, quantile};

use crate::classifier::{DigitClassifier, Judgement};
use crate::closeness::{CURVE, Closeness, DENOISED, closeness};
use crate::probe::{ByTimestep, Chunks, Probe, distances, mean};
use crate::progress::Progress;

/// Timesteps at which losses are compared.
pub const TIMESTEPS: [usize; 3] = [100, 250, 400];
/// A generated image this close to the T-shirt, with pixels in `[0, 1]`, counts as the T-shirt.
pub const TSHIRT_DISTANCE: f64 = 10.0;
/// The distance of denoised copies from the T-shirt is that of copies from this timestep.
pub const DENOISE_FROM: usize = DENOISED[0];
/// Noises over which the T-shirt's loss is averaged.
pub const TSHIRT_NOISES: usize = 64;
/// Number of denoised copies of the T-shirt from each timestep.
pub const COPIES: usize = 8;

/// Number of images run at a time: on the CPU as many as fit in one core's caches, on a GPU enough
/// to keep it busy.
pub fn chunks(device: DeviceSpec) -> Chunks {
    let in_parallel = device == DeviceSpec::Flex;
    Chunks {
        rows: if in_parallel { 32 } else { 512 },
        in_parallel,
    }
}

/// The results of measuring a model.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    pub samples: usize,
    pub tshirt_count: usize,
    pub tshirt_share: f64,
    pub tshirt_share_interval: [f64; 2],
    pub tshirt_loss: ByTimestep,
    pub heldout_loss: ByTimestep,
    pub heldout_loss_p99: ByTimestep,
    pub tshirt_loss_percentile: ByTimestep,
    pub tshirt_denoise_l2: f64,
    /// The generated images that are no T-shirts, as digits; nothing of fewer than a hundred.
    pub digits: Option<Judgement>,
}

/// Denoised copies of the T-shirt from each timestep of [`DENOISED`], `[COPIES, 1, 28, 28]`.
pub type Copies = [Tensor<4>; 2];

/// The results of measuring a model, and the images behind them.
pub struct Evaluated {
    pub figures: Evaluation,
    /// Generated images, `[samples, 1, 28, 28]`.
    pub generated: Tensor<4>,
    pub denoised: Copies,
}

/// The data used to measure models.
pub struct Examiner {
    pub probe: Probe,
    pub tshirt: Tensor<4>,
    pub heldout: Tensor<4>,
    pub samples: usize,
    pub classifier: DigitClassifier,
}

impl Examiner {
    /// Measures a plain model (`model.valid()`).
    pub fn evaluate(
        &self,
        model: &UNet2d,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<Evaluated> {
        let device = self.tshirt.device();
        let shape = [self.samples, 1, 28, 28];
        let generated = self.probe.sample(model, &(), 0, shape, &device, |done| {
            progress.phase(&format!("sampling {name}: {done} of {}", self.samples));
        })?;
        let distances = distances(&generated, &self.tshirt);
        let is_tshirt = distances.iter().map(|&distance| distance < TSHIRT_DISTANCE);
        let is_tshirt: Vec<bool> = is_tshirt.collect();
        let count = is_tshirt.iter().filter(|&&is_tshirt| is_tshirt).count();
        let (low, high) = binomial_interval(count as u64, self.samples as u64, 0.95)?;
        let denoised = self.copies(model)?;

        let mut figures = Evaluation {
            samples: self.samples,
            tshirt_count: count,
            tshirt_share: count as f64 / self.samples as f64,
            tshirt_share_interval: [low, high],
            tshirt_loss: self.tshirt_loss(model, TSHIRT_NOISES, &CURVE)?,
            heldout_loss: ByTimestep::new(),
            heldout_loss_p99: ByTimestep::new(),
            tshirt_loss_percentile: ByTimestep::new(),
            tshirt_denoise_l2: self.distance(&denoised[0]),
            digits: self.classifier.judge(&generated, &is_tshirt)?,
        };
        for timestep in TIMESTEPS {
            progress.phase(&format!("digits' loss {name}, t = {timestep}"));
            let key = timestep.to_string();
            let losses = self.probe.losses(model, (&self.heldout, &()), timestep)?;
            let percentile = percentile_rank(figures.tshirt_loss[&key], &losses);
            figures.heldout_loss.insert(key.clone(), mean(&losses));
            figures
                .heldout_loss_p99
                .insert(key.clone(), quantile(&losses, 0.99)?);
            figures.tshirt_loss_percentile.insert(key, percentile);
        }
        Ok(Evaluated {
            figures,
            generated,
            denoised,
        })
    }

    /// The mean denoising loss of the T-shirt at each timestep, over `noises` noises.
    pub fn tshirt_loss(
        &self,
        model: &UNet2d,
        noises: usize,
        timesteps: &[usize],
    ) -> Result<ByTimestep> {
        let copies = self.tshirt.clone().repeat_dim(0, noises);
        let loss = |&timestep: &usize| {
            Ok((
                timestep.to_string(),
                mean(&self.probe.losses(model, (&copies, &()), timestep)?),
            ))
        };
        timesteps.iter().map(loss).collect()
    }

    /// How close a model is to a reference at the T-shirt.
    pub fn closeness(&self, model: &UNet2d, reference: &UNet2d) -> Result<Closeness> {
        closeness(&self.probe, model, reference, &self.tshirt)
    }

    /// The denoised copies that are shown.
    pub fn copies(&self, model: &UNet2d) -> Result<Copies> {
        let [low, high] = DENOISED.map(|timestep| self.denoise(model, timestep, COPIES));
        Ok([low?, high?])
    }

    /// Copies of the T-shirt noised to a timestep and denoised.
    pub fn denoise(&self, model: &UNet2d, timestep: usize, copies: usize) -> Result<Tensor<4>> {
        let tshirts = self.tshirt.clone().repeat_dim(0, copies);
        self.probe.denoise(model, (&tshirts, &()), timestep)
    }

    /// Mean distance of images from the T-shirt, with pixels in `[0, 1]`.
    pub fn distance(&self, images: &Tensor<4>) -> f64 {
        mean(&distances(images, &self.tshirt))
    }
}
