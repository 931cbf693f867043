//! An optimiser whose state waits on another device between the steps.

use burn::module::ParamGroup;
use burn::optim::{DynOptimizer, DynState, ModuleOptimizer, Optimizer, StateSink, StateSource};
use burn::tensor::Device;
use burn::tensor::kind::BridgeTensor;

#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use super::together::by_itself;

/// Keeps an optimiser's state on another device than the model, in most cases the host's.
///
/// The state of one parameter at a time comes to the model's device for the parameter's update and
/// goes back, so the update is the same to the bit. Records and checkpoints are those of the
/// optimiser itself; what is read from one goes to that device at once.
///
/// A trainer's default optimiser is kept so by
/// [`optimizer_state_device`](super::SissTrainerBuilder::optimizer_state_device); this is for
/// others.
///
/// # Example
/// ```
/// use siss::burn::optim::ModuleOptimizer;
/// use siss::burn::tensor::Device;
/// use siss::trainer::{FusedAdamW, Offloaded};
///
/// let adam = FusedAdamW::new([0.9, 0.999], 1e-8, 0.01);
/// let optimizer: ModuleOptimizer = Offloaded::new(adam, Device::flex()).into();
/// # let _ = optimizer;
/// ```
///
/// # Reference
/// Ren et al., ZeRO-Offload, 2021, which also computes the update on the host.
#[derive(Debug, Clone)]
pub struct Offloaded<O> {
    optimizer: O,
    device: Device,
}

impl<O: Optimizer> Offloaded<O> {
    /// Keeps the state of `optimizer` on `device`.
    #[must_use]
    pub fn new(optimizer: O, device: Device) -> Self {
        Self {
            optimizer,
            device: device.inner(),
        }
    }
}

/// For all parameters.
impl<O: Optimizer> From<Offloaded<O>> for ModuleOptimizer {
    fn from(offloaded: Offloaded<O>) -> Self {
        // burn takes the first optimiser of a module by `Optimizer`, which has no say in where a
        // state is read to; a group's may.
        let first = Self::from(offloaded.optimizer.clone());
        first.with_group(ParamGroup::all(), offloaded, None)
    }
}

/// burn moves a state to the parameter's device before a step.
impl<O: Optimizer> DynOptimizer for Offloaded<O> {
    fn step_dyn(
        &self,
        rank: usize,
        rate: f64,
        parameter: BridgeTensor,
        gradient: BridgeTensor,
        state: Option<DynState>,
    ) -> (BridgeTensor, Option<DynState>) {
        let step = || {
            self.optimizer
                .step_dyn(rank, rate, parameter, gradient, state)
        };
        let (parameter, state) = by_itself(step);
        let state = state.map(|state| self.optimizer.to_device_dyn(state, &self.device));
        (parameter, state)
    }

    fn to_device_dyn(&self, state: DynState, device: &Device) -> DynState {
        self.optimizer.to_device_dyn(state, device)
    }

    fn state_flatten(&self, prefix: &str, state: &DynState, out: &mut StateSink) {
        self.optimizer.state_flatten(prefix, state, out);
    }

    fn state_unflatten(
        &self,
        rank: usize,
        prefix: &str,
        source: &mut StateSource,
        _: &Device,
    ) -> Option<DynState> {
        self.optimizer
            .state_unflatten(rank, prefix, source, &self.device)
    }
}

/// Only kernels take parameters together.
#[cfg(not(all(feature = "fused", any(feature = "wgpu", feature = "cuda"))))]
fn by_itself<T>(step: impl FnOnce() -> T) -> T {
    step()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{Module, Param};
    use burn::optim::{GradientsParams, RecordState};
    use burn::tensor::Tensor;

    /// Makes every number of a parameter that of the moves of its state so far.
    #[derive(Clone)]
    struct Travelling;

    #[derive(Clone, Default)]
    struct Moves(f64);

    /// A state that is read to a device with autodiff counts from 100.
    impl RecordState for Moves {
        fn state_flatten(&self, _: &str, _: &mut StateSink) {}

        fn state_unflatten(_: &str, _: &mut StateSource, device: &Device) -> Option<Self> {
            Some(Self(if device.is_autodiff() { 100.0 } else { 0.0 }))
        }
    }

    impl Optimizer for Travelling {
        type State<const D: usize> = Moves;

        fn step<const D: usize>(
            &self,
            _: f64,
            parameter: Tensor<D>,
            _: Tensor<D>,
            state: Option<Moves>,
        ) -> (Tensor<D>, Option<Moves>) {
            let moves = state.unwrap_or_default();
            (parameter.zeros_like() + moves.0, Some(moves))
        }

        fn to_device<const D: usize>(state: Moves, _: &Device) -> Moves {
            Moves(state.0 + 1.0)
        }
    }

    fn moves(optimizer: &mut ModuleOptimizer, parameter: Param<Tensor<2>>) -> f64 {
        let mut gradients = GradientsParams::new();
        gradients.register(parameter.id, parameter.val().inner());
        let parameter = optimizer.step(0.1, parameter, gradients);
        f64::from(parameter.val().inner().into_scalar::<f32>())
    }

    #[test]
    fn a_state_goes_away_after_each_step_and_is_read_to_its_place() {
        let value = Tensor::<2>::ones([1, 1], &Device::flex());
        let parameter = Param::from_tensor(value).train();
        let mut plain = ModuleOptimizer::from(Travelling);
        // No device with autodiff can be given to `new`: here it stands for a second device.
        let mut away = ModuleOptimizer::from(Offloaded {
            optimizer: Travelling,
            device: Device::flex().autodiff(),
        });
        for step in 0..3 {
            let there = moves(&mut plain, parameter.clone());
            let there_and_back = moves(&mut away, parameter.clone());
            assert_eq!(
                (there, there_and_back),
                (f64::from(step), 2.0 * f64::from(step))
            );
        }
        let record = away.to_record();
        let mut read = away.load_record(record);
        assert_eq!(moves(&mut read, parameter), 101.0);
    }
}
