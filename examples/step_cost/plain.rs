//! An ordinary training step in plain burn, as the baseline for a step of unlearning.

use rand::RngExt;
use siss::burn::module::{Module, ModuleVisitor, Param};
use siss::burn::optim::{GradientsParams, ModuleOptimizer};
use siss::burn::tensor::{Distribution, Tensor};
use siss::process::SchedulerExt;
use siss::rand;
use siss::trainer::FusedAdamW;
use siss::{DdpmScheduler, Denoiser};

use crate::workload::Network;

const LEARNING_RATE: f64 = 5e-6;
const MAX_GRAD_NORM: f64 = 1.0;

/// A trainer with one forward pass, one backward pass, a clip of the whole gradient, and `AdamW`.
pub struct PlainTrainer {
    model: Network,
    optimizer: ModuleOptimizer,
    scheduler: DdpmScheduler,
}

impl PlainTrainer {
    pub fn new(model: Network, scheduler: DdpmScheduler) -> Self {
        Self {
            model: model.train(),
            // The kernel of a trainer, with burn's numbers.
            optimizer: FusedAdamW::new([0.9, 0.999], 1e-5, 1e-4).into(),
            scheduler,
        }
    }

    pub fn step(&mut self, clean: Tensor<4>) -> siss::Result<()> {
        let (shape, device) = (clean.dims(), clean.device());
        let mut rng = rand::rng();
        let timesteps: Vec<f64> = (0..shape[0])
            .map(|_| rng.random_range(0..1000).into())
            .collect();
        let noise = Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let noisy = self.scheduler.add_noise(clean, noise.clone(), &timesteps)?;
        let on_device = Tensor::from_data(&timesteps[..], &device);
        let error = self.model.predict(noisy, on_device, &()) - noise;
        let loss = (error.clone() * error).sum() / shape[0] as f64;
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        let gradients = clip(&self.model, gradients);
        self.model = self
            .optimizer
            .step(LEARNING_RATE, self.model.clone(), gradients);
        Ok(())
    }
}

/// Scales the gradient down to at most [`MAX_GRAD_NORM`], without a read from the device.
fn clip(model: &Network, gradients: GradientsParams) -> GradientsParams {
    let mut norm = SquaredNorm {
        gradients: &gradients,
        small: Vec::new(),
        sums: Vec::new(),
    };
    model.visit(&mut norm);
    if norm.small.is_empty() && norm.sums.is_empty() {
        return gradients;
    }
    if !norm.small.is_empty() {
        norm.sums.push(Tensor::cat(norm.small, 0).square().sum());
    }
    let squared = Tensor::cat(norm.sums, 0).sum();
    let mut scale = Scale {
        factor: (squared.sqrt().recip() * MAX_GRAD_NORM).clamp_max(1.0),
        gradients,
        scaled: GradientsParams::new(),
    };
    model.visit(&mut scale);
    scale.scaled
}

/// Gradients of fewer elements are laid side by side, as a trainer does.
const SMALL: usize = 1 << 12;

struct SquaredNorm<'a> {
    gradients: &'a GradientsParams,
    small: Vec<Tensor<1>>,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else {
            return;
        };
        if gradient.shape().num_elements() < SMALL {
            self.small.push(gradient.flatten(0, D - 1));
        } else {
            self.sums.push(gradient.square().sum());
        }
    }
}

struct Scale {
    factor: Tensor<1>,
    gradients: GradientsParams,
    scaled: GradientsParams,
}

impl ModuleVisitor for Scale {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let factor = self.factor.clone().reshape([1; D]);
            self.scaled.register::<D>(param.id, gradient * factor);
        }
    }
}
