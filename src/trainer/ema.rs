//! A moving average of the weights, separate from the weights themselves.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use crate::error::{Result, check_range};
use crate::host::to_f32;

/// The weights `w̄ ← d w̄ + (1 − d) w` after each step.
///
/// `d` is the smaller of the decay and `(1 + k) / (10 + k)` at the `k`-th step, so that a short run
/// is averaged over its last steps and not over the model that it started from.
#[derive(Debug)]
pub(crate) struct MovingAverage<M> {
    model: M,
    decay: f64,
    updates: u64,
}

impl<M: Module> MovingAverage<M> {
    /// Starts at a model, which is copied without autodiff and in f32: small steps would vanish in
    /// fewer digits. The copy is on `device`, if one is given.
    pub(crate) fn new(model: &M, decay: f64, device: Option<Device>) -> Self {
        Self {
            model: model.valid().map(&mut Start { device }),
            decay,
            updates: 0,
        }
    }

    /// Moves the average towards a model.
    pub(crate) fn update(&mut self, model: &M) {
        self.updates += 1;
        let updates = self.updates as f64;
        let decay = self.decay.min((1.0 + updates) / (10.0 + updates));
        let mut values = Values(GradientsParams::new());
        model.visit(&mut values);
        let mut towards = Towards {
            values: values.0,
            decay,
        };
        self.model = self.model.clone().map(&mut towards);
    }

    /// The average after a number of updates, as read from a checkpoint.
    pub(crate) fn restored(&self, model: M, updates: u64) -> Self {
        Self {
            model,
            decay: self.decay,
            updates,
        }
    }

    /// The number of steps that the average has followed.
    pub(crate) fn updates(&self) -> u64 {
        self.updates
    }

    /// The averaged model, plain.
    pub(crate) fn model(&self) -> &M {
        &self.model
    }
}

/// # Errors
/// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 ≤ decay < 1`.
pub(crate) fn check_decay(decay: f64) -> Result<f64> {
    let legal = (0.0..1.0).contains(&decay);
    check_range("ema_decay", decay, legal, "at least 0 and below 1")
}

/// The parameters of a plain model by their ids.
struct Values(GradientsParams);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.register(param.id, param.val().inner());
    }
}

/// Copies a model in f32, to another device if one is given.
struct Start {
    device: Option<Device>,
}

impl ModuleMapper for Start {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| match &self.device {
            Some(device) => to_f32(value.to_device(device)),
            None => to_f32(value),
        })
    }
}

struct Towards {
    values: GradientsParams,
    decay: f64,
}

impl ModuleMapper for Towards {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(value) = self.values.get::<D>(param.id) else {
            return param;
        };
        // As a difference, so that a weight that does not change is matched exactly.
        let step = 1.0 - self.decay;
        param.map(|average| {
            let value = to_f32(value.to_device(&average.device()));
            average.clone() + (value - average) * step
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};

    fn value(model: &Linear) -> f32 {
        model.weight.val().inner().into_scalar()
    }

    #[test]
    fn the_average_follows_its_recursion_and_leaves_the_model_alone() {
        let device = Device::flex();
        let linear = |weight: f32| {
            let mut linear = LinearConfig::new(1, 1).with_bias(false).init(&device);
            linear.weight = linear.weight.map(|old| old.zeros_like() + weight);
            linear
        };
        let start = linear(1.0);
        let mut moved = start.clone();
        moved.weight = moved.weight.map(|old| old + 2.0);
        for place in [None, Some(device.clone())] {
            let mut average = MovingAverage::new(&start, 0.25, place);
            let mut expected = 1.0;
            for step in 1..=5 {
                average.update(&moved);
                let decay = f64::min(0.25, f64::from(1 + step) / f64::from(10 + step));
                expected = decay * expected + (1.0 - decay) * 3.0;
                assert!((f64::from(value(average.model())) - expected).abs() < 1e-6);
            }
        }
        assert_eq!((value(&start), value(&moved)), (1.0, 3.0));
    }
}
