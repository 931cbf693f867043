//! The quick protocol: few steps at a learning rate that falls to 0, as `mnist_tshirt` takes them.

use siss::answer::PredictedAnswer;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::tensor::Tensor;
use siss::clipper::ClipperSpec;
use siss::draws::{FixedAllocation, TimestepSampling};
use siss::models::UNet2d;
use siss::process::SchedulerConfig;
use siss::steering::Levels;
use siss::{DdpmScheduler, SissTrainer};

use crate::way::Way;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Pairs of a retained and a forgotten point in a step.
pub const BATCH: usize = 32;
/// Of the first step.
pub const LEARNING_RATE: f64 = 1e-4;
/// The usual share λ of noisy points drawn from forgotten points.
pub const FORGET_PROB: f64 = 0.5;
/// Rows whose weight is smaller are run seldom.
pub const THIN_BELOW: f64 = 1.0;

/// A run of the quick protocol.
#[derive(Debug, Clone, Copy)]
pub struct Quick<'a> {
    pub config: &'a SchedulerConfig,
    pub retained: &'a Tensor<4>,
    pub steps: usize,
    /// `None` stands for the method's own.
    pub clipper: Option<ClipperSpec>,
    /// The share λ of noisy points drawn from forgotten points.
    pub forget_prob: f64,
    pub seed: u64,
}

impl Quick<'_> {
    /// A trainer of the model, before its first step; steered if there are levels.
    ///
    /// # Errors
    /// Those of [`Way::set`] and of the trainer's builder.
    pub fn trainer(
        &self,
        model: UNet2d,
        way: Way,
        levels: Option<Levels>,
        answer: Option<PredictedAnswer<4>>,
    ) -> Result<SissTrainer<UNet2d, 4>> {
        let falling = LinearLrSchedulerConfig::new(LEARNING_RATE, 0.0, self.steps);
        let scheduler = DdpmScheduler::from_config(self.config)?;
        let builder = SissTrainer::builder(model, scheduler)
            .retained_points(self.retained.clone())
            .timestep_sampling(TimestepSampling::LowDiscrepancy)
            .sampler(FixedAllocation::new(self.forget_prob)?)
            .learning_rate(falling.init()?)
            .thin_below(THIN_BELOW)
            .seed(self.seed);
        let builder = way.set(builder, levels, answer, self.clipper)?;
        Ok(builder.build()?)
    }
}
