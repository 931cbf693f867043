//! The optimiser of a trainer.

use std::fmt;

use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{AdamW, AdamWConfig, AdamWState, GradientsParams, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use super::together::{self, Step};
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use crate::kernel::fused::{AdamWNumbers, is_on_cube};

/// A burn optimiser, which has no `Debug` of its own.
pub(crate) struct OpaqueOptimizer {
    pub(crate) burns: ModuleOptimizer,
    /// Whether kernels of [`FusedAdamW`] made the whole step before.
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    in_kernels: bool,
}

impl OpaqueOptimizer {
    pub(crate) fn new(burns: ModuleOptimizer) -> Self {
        Self {
            burns,
            #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
            in_kernels: false,
        }
    }

    /// Takes a step; on wgpu and CUDA, [`FusedAdamW`]'s in groups of parameters from the second.
    ///
    /// burn steps one parameter after another, and the first step shows by which optimiser.
    pub(crate) fn step<M: Module>(
        &mut self,
        rates: ModuleLearningRate,
        model: M,
        gradients: GradientsParams,
    ) -> M {
        #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
        {
            let count = gradients.len();
            let step = match self.in_kernels {
                true => together::in_groups(&mut self.burns, rates, model, gradients),
                false => together::one_by_one(&mut self.burns, rates, model, gradients),
            };
            self.in_kernels = step.in_kernels == count;
            step.model
        }
        #[cfg(not(all(feature = "fused", any(feature = "wgpu", feature = "cuda"))))]
        self.burns.step(rates, model, gradients)
    }
}

impl fmt::Debug for OpaqueOptimizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ModuleOptimizer")
    }
}

/// AdamW in one kernel on wgpu and CUDA, where burn's launches fourteen.
///
/// A trainer's step takes up to sixteen parameters per launch, from the run's second step; a step
/// of burn's `ModuleOptimizer` elsewhere, or with the state [elsewhere](super::Offloaded), takes
/// one. The kernel needs the feature `fused` and parameters in f32. Elsewhere, and on the CPU, it
/// is burn's [`AdamW`]. State, records and checkpoints are those of burn's, so that a run may go
/// from one to the other.
///
/// It is the default optimiser of a trainer, with the paper's settings: β₁ 0.95, β₂ 0.999, ε 1e-8,
/// weight decay 1e-6.
///
/// # Example
/// ```
/// use siss::burn::optim::ModuleOptimizer;
/// use siss::trainer::FusedAdamW;
///
/// let optimizer: ModuleOptimizer = FusedAdamW::new([0.9, 0.999], 1e-8, 0.01).into();
/// # let _ = optimizer;
/// ```
///
/// # Reference
/// Loshchilov and Hutter, 2019, algorithm 2.
#[derive(Clone)]
pub struct FusedAdamW {
    betas: [f32; 2],
    epsilon: f32,
    weight_decay: f32,
    plain: AdamW,
}

impl FusedAdamW {
    /// | argument | range | purpose |
    /// |---|---|---|
    /// | `betas` | from 0 to below 1 | decay of the means of gradient and squared gradient |
    /// | `epsilon` | above 0 | added to the root of the mean square |
    /// | `weight_decay` | from 0 up | share of a parameter that a step takes away, times the rate |
    #[must_use]
    pub fn new(betas: [f32; 2], epsilon: f32, weight_decay: f32) -> Self {
        let plain = AdamWConfig::new()
            .with_beta_1(betas[0])
            .with_beta_2(betas[1])
            .with_epsilon(epsilon)
            .with_weight_decay(weight_decay)
            .build();
        Self {
            betas,
            epsilon,
            weight_decay,
            plain,
        }
    }

    /// A step by the kernel, and the state after it. Every tensor is on a device that has it.
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    fn step_in_kernel<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: AdamWState<D>,
    ) -> (Tensor<D>, AdamWState<D>) {
        let (mut momentum, shape) = (state.momentum, parameter.shape());
        momentum.time += 1;
        let [correction_1, correction_2] =
            self.betas.map(|beta| 1.0 - beta.powi(momentum.time as i32));
        let numbers = AdamWNumbers {
            beta_1: self.betas[0],
            beta_2: self.betas[1],
            correction_1,
            correction_2,
            epsilon: self.epsilon,
            keep: (1.0 - rate * f64::from(self.weight_decay)) as f32,
            rate: rate as f32,
        };
        let tensors = [parameter, gradient, momentum.moment_1, momentum.moment_2];
        let step = Step {
            tensors: tensors.map(|tensor| tensor.reshape([shape.num_elements()])),
            numbers,
        };
        let outputs = together::outputs(step).map(|tensor| tensor.reshape(shape.clone()));
        let [parameter, moment_1, moment_2] = outputs;
        (momentum.moment_1, momentum.moment_2) = (moment_1, moment_2);
        (parameter, AdamWState::new(momentum))
    }
}

impl fmt::Debug for FusedAdamW {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FusedAdamW")
            .field("betas", &self.betas)
            .field("epsilon", &self.epsilon)
            .field("weight_decay", &self.weight_decay)
            .finish_non_exhaustive()
    }
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
        if let Some(state) = state.as_ref().filter(|state| {
            let momentum = &state.momentum;
            let moments = [&momentum.moment_1, &momentum.moment_2];
            let tensors = [&parameter, &gradient].into_iter().chain(moments);
            tensors.into_iter().all(is_on_cube)
        }) {
            let (parameter, state) = self.step_in_kernel(rate, parameter, gradient, state.clone());
            return (parameter, Some(state));
        }
        self.plain.step(rate, parameter, gradient, state)
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamW::to_device(state, device)
    }
}
