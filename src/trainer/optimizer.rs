//! The optimiser of a trainer.

use std::fmt;

use burn::optim::{AdamW, AdamWConfig, AdamWState, ModuleOptimizer, Optimizer};
use burn::tensor::{Device, Tensor};

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use crate::kernel::fused::{AdamWNumbers, adamw_step, is_on_cube};

/// A burn optimiser, which has no `Debug` of its own.
pub(crate) struct OpaqueOptimizer(pub(crate) ModuleOptimizer);

impl fmt::Debug for OpaqueOptimizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ModuleOptimizer")
    }
}

/// AdamW in one kernel per parameter on wgpu and CUDA, where burn's launches fourteen.
///
/// The kernel needs the feature `fused` and parameters in f32. Elsewhere, and on the CPU, it is
/// burn's [`AdamW`]. State, records and checkpoints are those of burn's, so that a run may go from
/// one to the other.
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

    /// A step by the kernel. Every tensor is on a device that has it.
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    fn step_in_one<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: AdamWState<D>,
    ) -> (Tensor<D>, AdamWState<D>) {
        let mut momentum = state.momentum;
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
        let [parameter, moment_1, moment_2] = adamw_step(tensors, numbers);
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
            let (parameter, state) = self.step_in_one(rate, parameter, gradient, state.clone());
            return (parameter, Some(state));
        }
        self.plain.step(rate, parameter, gradient, state)
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamW::to_device(state, device)
    }
}
