//! The estimators of the two gradients, and their measurement.

use serde::{Deserialize, Serialize};
use siss::burn::module::{Module, ModuleVisitor, Param};
use siss::burn::optim::GradientsParams;
use siss::burn::tensor::Tensor;
use siss::draws::{CoinFlip, DrawSource, ExtraDraws, FixedAllocation, TimestepSampling};
use siss::models::UNet2d;
use siss::trainer::StepGradients;
use siss::{DdpmScheduler, Method, MixtureSampler, PairSampler, Scheduler, SissTrainer};

use crate::moments::{Moments, Spread};
use crate::{Arguments, Result};

const FORGET_PROB: f64 = 0.5;

/// A way to estimate the two gradients.
#[derive(Debug, Clone, Copy)]
pub struct Estimator {
    method: Method,
    thin_below: f64,
    coins: bool,
    timesteps: TimestepSampling,
}

/// An estimator's results: one line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    pub objective: String,
    pub draws: String,
    pub gradients: u64,
    pub batch: u64,
    pub rows_per_sample: f64,
    /// Trace of the covariance of the gradient of a batch, and squared norm of its mean.
    pub retain_trace: f64,
    pub retain_squared_mean: f64,
    pub forget_trace: f64,
    pub forget_squared_mean: f64,
    /// Ratios of the traces to those of the first estimator, and their standard errors.
    pub retain_relative: f64,
    pub retain_relative_error: f64,
    pub forget_relative: f64,
    pub forget_relative_error: f64,
}

/// Statistics of an estimator's gradients, for both sides.
#[derive(Debug, Clone)]
pub struct Measured {
    rows_per_sample: f64,
    retain: Spread,
    forget: Spread,
}

impl Estimator {
    /// The compared estimators, the reference first.
    pub fn all() -> Vec<Self> {
        use TimestepSampling::{LowDiscrepancy, Uniform};
        let estimator = |method, thin_below, coins, timesteps| Self {
            method,
            thin_below,
            coins,
            timesteps,
        };
        vec![
            estimator(Method::SissNoIs, 0.0, false, Uniform),
            estimator(Method::SissNoIs, 0.0, false, LowDiscrepancy),
            estimator(Method::Siss, 0.0, true, Uniform),
            estimator(Method::Siss, 0.0, true, LowDiscrepancy),
            estimator(Method::Siss, 0.0, false, Uniform),
            estimator(Method::Siss, 0.0, false, LowDiscrepancy),
            estimator(Method::Siss, 1.0, false, LowDiscrepancy),
            estimator(Method::Siss, 2.0, false, LowDiscrepancy),
            estimator(Method::Bernoulli, 0.0, true, Uniform),
            estimator(Method::Bernoulli, 0.0, false, LowDiscrepancy),
        ]
    }

    /// Objective and threshold.
    pub fn objective(&self) -> String {
        match self.method {
            Method::Siss => format!("SISS, τ = {}", self.thin_below),
            Method::SissNoIs => "SISS (No IS)".into(),
            _ => "Bernoulli".into(),
        }
    }

    /// How timesteps and sides are drawn.
    pub fn draws(&self) -> String {
        let sides = match (self.method, self.coins) {
            (Method::SissNoIs, _) => "",
            (_, true) => ", coins",
            (_, false) => ", fixed allocation",
        };
        format!("{}{sides}", self.timesteps)
    }

    fn sampler(&self) -> siss::Result<Box<dyn MixtureSampler>> {
        Ok(match self.coins {
            true => Box::new(CoinFlip::new(FORGET_PROB)?),
            false => Box::new(FixedAllocation::new(FORGET_PROB)?),
        })
    }

    /// Estimates the gradients of the model many times; batches and keys of the draws are the same
    /// for all estimators.
    pub fn measure(
        &self,
        model: &UNet2d,
        pairs: &PairSampler<4>,
        arguments: &Arguments,
    ) -> Result<Measured> {
        let scheduler = DdpmScheduler::linear(1000)?;
        let (range, sampler) = (scheduler.time_range(), self.sampler()?);
        let source = DrawSource {
            seed: 0,
            timestep_sampling: self.timesteps,
        };
        let mut trainer = SissTrainer::builder(model.clone(), scheduler)
            .method(self.method)
            .thin_below(self.thin_below)
            .build()?;
        let (mut retain, mut forget, mut rows) = (Moments::default(), Moments::default(), 0.0);
        let device = pairs.retain().device();
        for index in 0..arguments.gradients {
            let batch = pairs.batch(index, arguments.batch as usize)?;
            let (shape, extra) = (batch.retain().dims(), ExtraDraws::none());
            let draws = source.draw(index, shape, range, sampler.as_ref(), &extra, &device)?;
            let found: StepGradients = trainer.gradients(&batch, &draws)?;
            rows += found.report.rows_per_sample() / arguments.gradients as f64;
            retain.add(&flatten(trainer.model(), found.retain));
            forget.add(&flatten(trainer.model(), found.forget));
        }
        Ok(Measured {
            rows_per_sample: rows,
            retain: retain.spread(),
            forget: forget.spread(),
        })
    }

    /// The results of an estimator, relative to those of the first estimator.
    pub fn figures(&self, own: &Measured, first: &Measured, arguments: &Arguments) -> Figures {
        let (retain, forget) = (
            own.retain.over(&first.retain),
            own.forget.over(&first.forget),
        );
        Figures {
            objective: self.objective(),
            draws: self.draws(),
            gradients: arguments.gradients,
            batch: arguments.batch,
            rows_per_sample: own.rows_per_sample,
            retain_trace: own.retain.trace,
            retain_squared_mean: own.retain.squared_mean,
            forget_trace: own.forget.trace,
            forget_squared_mean: own.forget.squared_mean,
            retain_relative: retain.0,
            retain_relative_error: retain.1,
            forget_relative: forget.0,
            forget_relative_error: forget.1,
        }
    }
}

/// The gradients of all parameters in one list; 0 for those of a side without rows.
fn flatten(model: &UNet2d, gradients: GradientsParams) -> Vec<f32> {
    struct Flatten {
        gradients: GradientsParams,
        values: Vec<f32>,
    }
    impl ModuleVisitor for Flatten {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            match self.gradients.remove::<D>(param.id) {
                Some(gradient) => self.values.extend(gradient.into_data().iter::<f32>()),
                None => {
                    let length = self.values.len() + param.shape().num_elements();
                    self.values.resize(length, 0.0);
                }
            }
        }
    }
    let mut visitor = Flatten {
        gradients,
        values: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.values
}
