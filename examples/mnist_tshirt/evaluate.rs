//! What a model makes of the T-shirt and of digits it has never seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde::Serialize;
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;
use siss::report::{binomial_interval, percentile_rank, quantile};
use siss::sampling::{DdimSampler, Sampler};
use siss::{DdpmScheduler, Denoiser, Result, SchedulerExt, Stream, normal_noise};

use crate::job::Progress;

/// Timesteps at which losses are compared.
pub const TIMESTEPS: [usize; 3] = [100, 250, 400];
/// A generated image this close to the T-shirt, pixels in `[0, 1]`, is one.
pub const TSHIRT_DISTANCE: f64 = 10.0;
/// The T-shirt is noised to this timestep and denoised.
pub const DENOISE_FROM: usize = 250;
/// Images run at a time.
const CHUNK: usize = 32;
/// Noises over which the T-shirt's loss is averaged.
pub const TSHIRT_NOISES: usize = 64;
/// Denoised copies of the T-shirt.
pub const COPIES: usize = 8;
/// Samples, noises and copies are the same for every model and every run.
const EVALUATION_SEED: u64 = 20_250_301;

/// A number for each timestep.
pub type ByTimestep = BTreeMap<String, f64>;

/// A model's figures.
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
}

/// A model's figures and the pictures behind them.
pub struct Evaluated {
    pub figures: Evaluation,
    /// Generated images, `[samples, 1, 28, 28]`.
    pub generated: Tensor<4>,
    /// Denoised copies of the T-shirt, `[COPIES, 1, 28, 28]`.
    pub denoised: Tensor<4>,
}

/// Everything against which a model is measured.
pub struct Examiner {
    pub scheduler: DdpmScheduler,
    pub sampler: DdimSampler,
    pub tshirt: Tensor<4>,
    pub heldout: Tensor<4>,
    pub samples: usize,
}

impl Examiner {
    /// Measures a plain model (`model.valid()`).
    pub fn evaluate(
        &self,
        model: &UNet2d,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<Evaluated> {
        let generated = self.generate(model, name, progress)?;
        let distances = distances(&generated, &self.tshirt);
        let count = distances
            .iter()
            .filter(|&&distance| distance < TSHIRT_DISTANCE)
            .count();
        let (low, high) = binomial_interval(count as u64, self.samples as u64, 0.95)?;
        let denoised = self.denoise(model, COPIES)?;

        let mut figures = Evaluation {
            samples: self.samples,
            tshirt_count: count,
            tshirt_share: count as f64 / self.samples as f64,
            tshirt_share_interval: [low, high],
            tshirt_loss: self.tshirt_loss(model, TSHIRT_NOISES)?,
            heldout_loss: ByTimestep::new(),
            heldout_loss_p99: ByTimestep::new(),
            tshirt_loss_percentile: ByTimestep::new(),
            tshirt_denoise_l2: self.distance(&denoised),
        };
        for timestep in TIMESTEPS {
            progress.phase(&format!("digits' loss {name}, t = {timestep}"));
            let key = timestep.to_string();
            let losses = self.losses(model, &self.heldout, timestep)?;
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
    pub fn tshirt_loss(&self, model: &UNet2d, noises: usize) -> Result<ByTimestep> {
        let copies = self.tshirt.clone().repeat_dim(0, noises);
        let loss = |&timestep: &usize| {
            Ok((
                timestep.to_string(),
                mean(&self.losses(model, &copies, timestep)?),
            ))
        };
        TIMESTEPS.iter().map(loss).collect()
    }

    /// Copies of the T-shirt noised to [`DENOISE_FROM`] and denoised.
    pub fn denoise(&self, model: &UNet2d, copies: usize) -> Result<Tensor<4>> {
        let tshirts = self.tshirt.clone().repeat_dim(0, copies);
        self.sampler
            .noise_and_denoise(model, &(), tshirts, DENOISE_FROM, EVALUATION_SEED, 0)
    }

    /// Mean distance of images from the T-shirt, pixels in `[0, 1]`.
    pub fn distance(&self, images: &Tensor<4>) -> f64 {
        mean(&distances(images, &self.tshirt))
    }

    fn generate(&self, model: &UNet2d, name: &str, progress: &dyn Progress) -> Result<Tensor<4>> {
        let device = self.tshirt.device();
        let done = AtomicUsize::new(0);
        let generated = in_chunks(self.samples, |first, count| {
            progress.phase(&format!(
                "sampling {name}: {} of {}",
                done.load(Relaxed),
                self.samples
            ));
            let shape = [count, 1, 28, 28];
            let images =
                self.sampler
                    .sample(model, &(), shape, EVALUATION_SEED, first as u64, &device);
            done.fetch_add(count, Relaxed);
            images
        })?;
        Ok(Tensor::cat(generated, 0))
    }

    /// Squared error of the predicted noise for each image, mean over elements. Image `i` has the same noise at
    /// every timestep and for every model.
    fn losses(&self, model: &UNet2d, images: &Tensor<4>, timestep: usize) -> Result<Vec<f64>> {
        let device = images.device();
        let losses = in_chunks(images.dims()[0], |first, count| {
            let clean = images.clone().narrow(0, first, count);
            let shape = clean.dims();
            let noise = normal_noise(
                shape,
                EVALUATION_SEED,
                0,
                first as u64,
                Stream::Evaluation,
                &device,
            );
            let noisy =
                self.scheduler
                    .add_noise(clean, noise.clone(), &vec![timestep as f64; count])?;
            let timesteps = Tensor::full([count], timestep as f64, &device);
            let error = model.predict(noisy, timesteps, &()) - noise;
            Ok(row_means(error.clone() * error))
        })?;
        Ok(losses.concat())
    }
}

/// Runs `work(first, count)` over `0 .. total` in chunks, on all cores, and keeps their order.
fn in_chunks<T: Send>(
    total: usize,
    work: impl Fn(usize, usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let chunks = (0..total.div_ceil(CHUNK)).into_par_iter();
    chunks
        .map(|chunk| work(chunk * CHUNK, CHUNK.min(total - chunk * CHUNK)))
        .collect()
}

/// Euclidean distance of each image from the T-shirt, pixels in `[0, 1]`.
fn distances(images: &Tensor<4>, tshirt: &Tensor<4>) -> Vec<f64> {
    let difference = (images.clone() - tshirt.clone()) / 2.0;
    let pixels: usize = images.dims()[1..].iter().product();
    let squares = row_means(difference.clone() * difference);
    squares
        .into_iter()
        .map(|mean| (mean * pixels as f64).sqrt())
        .collect()
}

fn row_means(values: Tensor<4>) -> Vec<f64> {
    let means: Tensor<2> = values.flatten::<2>(1, 3).mean_dim(1);
    means.into_data().iter::<f64>().collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
