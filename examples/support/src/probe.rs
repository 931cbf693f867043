//! Runs a model over many images, always with the same noise: samples, losses, denoised copies.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use siss::backend::DeviceSpec;
use siss::burn::tensor::{Device, Tensor};
use siss::evaluate::{
    AnswerComparison, AnswerDistance, DenoisedComparison, DenoisedDistance, DenoisingLoss,
};
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::{Condition, Denoiser, Result, Scheduler};

use crate::process::{Process, Reverse};

/// Seed of samples, noises and copies: the same for every model and every run.
pub const EVALUATION_SEED: u64 = 20_250_301;
/// Steps of the sampler.
const STEPS: usize = 25;

/// Pixels run at a time where nothing is known of the memory, and most images.
const PIXELS_AT_A_TIME: usize = 1 << 16;
const MOST_AT_A_TIME: usize = 32;
/// Images with fewer pixels leave cores idle.
const SMALL_PIXELS: usize = 64 * 64;
/// Numbers of a large image: one of 64×64 in colour. A mean over such needs fewer of them.
const LARGE_IMAGE: usize = 64 * 64 * 3;
const FEWEST: usize = 4;

/// One number per timestep.
pub type ByTimestep = BTreeMap<String, f64>;

/// Number of images run at a time, and whether such chunks run on all cores in parallel.
#[derive(Debug, Clone, Copy)]
pub struct Chunks {
    pub rows: usize,
    pub in_parallel: bool,
}

impl Chunks {
    /// For pictures of a size: small ones leave cores idle, so chunks of them run in parallel.
    pub fn of_pictures(pixels: usize, device: DeviceSpec) -> Self {
        Self {
            rows: (PIXELS_AT_A_TIME / pixels).clamp(1, MOST_AT_A_TIME),
            in_parallel: pixels <= SMALL_PIXELS && device == DeviceSpec::Flex,
        }
    }

    /// Number of images that are run at once on all cores together.
    fn at_once(self) -> usize {
        match self.in_parallel {
            true => self.rows * rayon::current_num_threads(),
            false => self.rows,
        }
    }

    /// Runs `work(first, count)` on chunks of `0 .. total`, and keeps their order.
    fn run<T: Send>(
        self,
        total: usize,
        work: impl Fn(usize, usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let chunks = 0..total.div_ceil(self.rows);
        let chunk = |index| {
            let first = index * self.rows;
            work(first, self.rows.min(total - first))
        };
        if self.in_parallel {
            chunks.into_par_iter().map(chunk).collect()
        } else {
            chunks.map(chunk).collect()
        }
    }
}

/// Everything needed to run a model, except the model: its scheduler and how it is run. Models are
/// plain ones (`model.valid()`).
#[derive(Debug)]
pub struct Probe {
    process: Process,
    scheduler: Box<dyn Scheduler>,
    sampler: Reverse,
    chunks: Chunks,
}

impl Probe {
    /// A probe for a model that was trained with this scheduler.
    pub fn new(config: &SchedulerConfig, chunks: Chunks) -> Result<Self> {
        Self::of(&Process::Steps(config.clone()), chunks)
    }

    /// A probe for a model of this process.
    pub fn of(process: &Process, chunks: Chunks) -> Result<Self> {
        Ok(Self {
            process: process.clone(),
            scheduler: process.scheduler()?,
            sampler: process.reverse(STEPS)?,
            chunks,
        })
    }

    /// The process of its models.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Number of images run at a time.
    pub fn rows(&self) -> usize {
        self.chunks.rows
    }

    /// Number of images that are run at once on all cores together.
    pub fn at_once(&self) -> usize {
        self.chunks.at_once()
    }

    /// Whether several such chunks of images are run at once.
    pub fn is_parallel(&self) -> bool {
        self.chunks.in_parallel
    }

    /// Seconds that a model takes for an image, judging from as many of these as are run at once.
    pub fn seconds_per_image<M: Denoiser<4, Condition: Sync> + Sync>(
        &self,
        model: &M,
        (images, condition): (&Tensor<4>, &M::Condition),
        timestep: usize,
    ) -> Result<f64> {
        let count = images.dims()[0].min(self.chunks.at_once());
        let some = (
            &images.clone().narrow(0, 0, count),
            &take(condition, 0, count),
        );
        let began = Instant::now();
        self.losses(model, some, timestep)?;
        Ok(began.elapsed().as_secs_f64() / count as f64)
    }

    /// Number of times that a model is run to draw a sample, and to denoise from a timestep.
    pub fn calls(&self, timestep: usize) -> [usize; 2] {
        self.sampler.calls(self.process.time(timestep))
    }

    /// Draws samples from number `begin` on, `[count, channels, height, width]`, each under its row
    /// of the condition: a sample's noise depends only on its number. `progress` receives the
    /// number of samples.
    pub fn sample<M: Denoiser<4, Condition: Sync> + Sync>(
        &self,
        model: &M,
        condition: &M::Condition,
        begin: u64,
        [count, channels, height, width]: [usize; 4],
        device: &Device,
        progress: impl Fn(usize) + Sync,
    ) -> Result<Tensor<4>> {
        let done = AtomicUsize::new(0);
        let samples = self.chunks.run(count, |first, count| {
            progress(done.load(Relaxed));
            let shape = [count, channels, height, width];
            let condition = take(condition, first, count);
            let key = [EVALUATION_SEED, begin + first as u64];
            let images = self.sampler.sample(model, &condition, shape, key, device);
            done.fetch_add(count, Relaxed);
            images
        })?;
        Ok(Tensor::cat(samples, 0))
    }

    /// Squared error of the prediction for each image, mean over elements. Image `i` has the same
    /// noise at every timestep and for every model.
    pub fn losses<M: Denoiser<4, Condition: Sync> + Sync>(
        &self,
        model: &M,
        images: (&Tensor<4>, &M::Condition),
        timestep: usize,
    ) -> Result<Vec<f64>> {
        self.losses_from(0, model, images, timestep)
    }

    /// The same with the noises of images from number `begin` on.
    pub fn losses_from<M: Denoiser<4, Condition: Sync> + Sync>(
        &self,
        begin: usize,
        model: &M,
        (images, condition): (&Tensor<4>, &M::Condition),
        timestep: usize,
    ) -> Result<Vec<f64>> {
        let losses = self.chunks.run(images.dims()[0], |first, count| {
            let images = images.clone().narrow(0, first, count);
            let loss = DenoisingLoss {
                seed: EVALUATION_SEED,
                first_point: (begin + first) as u64,
                micro_batch_size: self.chunks.rows,
                ..DenoisingLoss::at([self.process.time(timestep)])
            };
            let condition = take(condition, first, count);
            loss.measure(model, self.scheduler.as_ref(), &images, &condition)
        })?;
        Ok(losses.concat().concat())
    }

    /// The loss of each image by timestep and image, mean over noises.
    pub fn mean_losses(
        &self,
        model: &UNet2d,
        images: &Tensor<4>,
        timesteps: &[usize],
        noises: usize,
    ) -> Result<Vec<Vec<f64>>> {
        let loss = DenoisingLoss {
            noises,
            seed: EVALUATION_SEED,
            micro_batch_size: self.chunks.rows,
            ..DenoisingLoss::at(self.times(timesteps))
        };
        loss.measure(model, self.scheduler.as_ref(), images, &())
    }

    /// The answers of a model at images against those of a reference, by timestep and image.
    pub fn answers(
        &self,
        [model, reference]: [&UNet2d; 2],
        images: &Tensor<4>,
        timesteps: &[usize],
        noises: usize,
    ) -> Result<Vec<Vec<AnswerComparison>>> {
        let compare = AnswerDistance {
            noises,
            micro_batch_size: self.chunks.rows,
            ..AnswerDistance::at(self.times(timesteps))
        };
        compare.measure(model, reference, self.scheduler.as_ref(), images, &())
    }

    /// Copies of images denoised by a model against those by a reference, by the timestep from
    /// which they are denoised and by image. The distances are in the unit of the images.
    pub fn denoised(
        &self,
        [model, reference]: [&UNet2d; 2],
        images: &Tensor<4>,
        timesteps: &[usize],
        noises: usize,
    ) -> Result<Vec<Vec<DenoisedComparison>>> {
        let compare = DenoisedDistance {
            noises,
            seed: EVALUATION_SEED,
            micro_batch_size: self.chunks.rows,
            ..DenoisedDistance::at(timesteps)
        };
        compare.measure(model, reference, self.sampler.ddim()?, images, &())
    }

    fn times(&self, timesteps: &[usize]) -> Vec<f64> {
        let times = timesteps.iter();
        times.map(|&timestep| self.process.time(timestep)).collect()
    }

    /// Each image, noised to a timestep and denoised from there.
    pub fn denoise<M: Denoiser<4, Condition: Sync> + Sync>(
        &self,
        model: &M,
        (images, condition): (&Tensor<4>, &M::Condition),
        timestep: usize,
    ) -> Result<Tensor<4>> {
        let denoised = self.chunks.run(images.dims()[0], |first, count| {
            let clean = images.clone().narrow(0, first, count);
            self.sampler.noise_and_denoise(
                model,
                &take(condition, first, count),
                clean,
                self.process.time(timestep),
                [EVALUATION_SEED, first as u64],
            )
        })?;
        Ok(Tensor::cat(denoised, 0))
    }
}

/// The number of images whose mean is as exact as that of `count` small ones: the mean is one over
/// all of their values.
pub fn enough(count: usize, values: usize) -> usize {
    let wanted = (count * LARGE_IMAGE).div_ceil(values.max(1));
    wanted.clamp(FEWEST.min(count), count)
}

fn take<C: Condition>(condition: &C, first: usize, count: usize) -> C {
    condition.take_rows(&(first..first + count).collect::<Vec<_>>())
}

/// Euclidean distance of each image from its counterpart, pixels in `[0, 1]`; a single counterpart
/// applies to all.
pub fn distances(images: &Tensor<4>, counterparts: &Tensor<4>) -> Vec<f64> {
    let difference = (images.clone() - counterparts.clone()) / 2.0;
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

/// The mean; NaN if there are no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_large_images_are_enough() {
        assert_eq!(enough(32, 28 * 28), 32);
        assert_eq!(enough(32, 64 * 64 * 3), 32);
        assert_eq!(enough(32, 64 * 64 * 4), 24);
        assert_eq!(enough(32, 256 * 256 * 3), 4);
        assert_eq!(enough(2, 256 * 256 * 3), 2);
    }
}
