//! An optimiser that updates a copy of the parameters in f32, where those of the model are too
//! coarse for small steps.

use burn::optim::{Optimizer, RecordState, StateSink, StateSource, join_path};
use burn::tensor::{DType, Device, FloatDType, Tensor};

/// Keeps parameters in bf16 or f16 a second time in f32, and updates these.
///
/// A number in bf16 has eight binary digits, so a step of less than a part in five hundred of it is
/// rounded away. The copy takes every step, and the parameter is the copy rounded: it follows once
/// the steps add up. The optimiser's own state is in f32 too, because its gradients are converted.
///
/// Parameters of other types are updated as they are. The copy starts at the parameter's first
/// step, is part of the optimiser's state, and is saved with it.
///
/// A trainer's default optimiser becomes one by
/// [`master_weights`](super::SissTrainerBuilder::master_weights); this is for others.
///
/// # Example
/// ```
/// use siss::burn::optim::ModuleOptimizer;
/// use siss::trainer::{FusedAdamW, MasterWeights};
///
/// let adam = FusedAdamW::new([0.9, 0.999], 1e-8, 0.01);
/// let optimizer: ModuleOptimizer = MasterWeights::new(adam).into();
/// # let _ = optimizer;
/// ```
///
/// # Reference
/// Micikevicius et al., Mixed Precision Training, 2018, section 3.1.
#[derive(Debug, Clone)]
pub struct MasterWeights<O> {
    optimizer: O,
}

impl<O: Optimizer> MasterWeights<O> {
    /// Updates copies in f32 by `optimizer`.
    #[must_use]
    pub fn new(optimizer: O) -> Self {
        Self { optimizer }
    }
}

impl<O: Optimizer> Optimizer for MasterWeights<O> {
    type State<const D: usize> = MasterState<O::State<D>, D>;

    fn step<const D: usize>(
        &self,
        rate: f64,
        parameter: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let dtype = parameter.dtype();
        let (master, own) = match state {
            Some(state) => (state.master, state.own),
            None => (widened(parameter), None),
        };
        let (master, own) = self.optimizer.step(rate, master, widened(gradient), own);
        let parameter = match master.dtype() == dtype {
            true => master.clone(),
            false => master.clone().cast(dtype),
        };
        (parameter, Some(MasterState { master, own }))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        MasterState {
            master: state.master.to_device(device),
            own: state.own.map(|own| O::to_device(own, device)),
        }
    }
}

/// The copy of a parameter, and the state of the optimiser that updates it.
#[derive(Debug, Clone)]
pub struct MasterState<S, const D: usize> {
    master: Tensor<D>,
    own: Option<S>,
}

const MASTER: &str = "master";
const OWN: &str = "own";

impl<S: RecordState, const D: usize> RecordState for MasterState<S, D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, MASTER, self.master.to_data());
        if let Some(own) = &self.own {
            own.state_flatten(&join_path(prefix, OWN), out);
        }
    }

    fn state_unflatten(prefix: &str, source: &mut StateSource, device: &Device) -> Option<Self> {
        let master = source.take_tensor(prefix, MASTER)?;
        let dtype = master.dtype();
        let prefix = join_path(prefix, OWN);
        let own = match source.has_under(&prefix) {
            true => Some(S::state_unflatten(&prefix, source, device)?),
            false => None,
        };
        Some(Self {
            master: Tensor::from_data(master, (device, dtype)),
            own,
        })
    }
}

/// Converts bf16 and f16 to f32.
fn widened<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::BF16 | DType::F16 => tensor.cast(FloatDType::F32),
        _ => tensor,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{Module, Param};
    use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};

    fn ones(dtype: FloatDType) -> Tensor<2> {
        Tensor::<2>::ones([1, 2], &Device::flex()).cast(dtype)
    }

    /// A parameter of ones after steps of `rate`.
    fn stepped(
        optimizer: &mut ModuleOptimizer,
        mut parameter: Param<Tensor<2>>,
        (rate, steps): (f64, usize),
    ) -> Param<Tensor<2>> {
        for _ in 0..steps {
            let mut gradients = GradientsParams::new();
            gradients.register(parameter.id, parameter.val().inner().ones_like());
            parameter = optimizer.step(rate, parameter, gradients);
        }
        parameter
    }

    fn number(parameter: &Param<Tensor<2>>) -> f32 {
        parameter
            .val()
            .inner()
            .into_data()
            .iter::<f32>()
            .next()
            .unwrap()
    }

    /// Below 1, numbers in bf16 are 2⁻⁸ apart, and a change of less than 2⁻⁹ is rounded away.
    #[test]
    fn steps_that_are_too_small_for_the_parameter_add_up() {
        let (sgd, rate) = (SgdConfig::new().build(), 2f64.powi(-11));
        let begin = |dtype| Param::from_tensor(ones(dtype)).train();
        let (mut plain, mut with) = (
            ModuleOptimizer::from(sgd.clone()),
            ModuleOptimizer::from(MasterWeights::new(sgd)),
        );
        let stuck = stepped(&mut plain, begin(FloatDType::BF16), (rate, 16));
        assert_eq!(number(&stuck), 1.0);
        let moved = stepped(&mut with, begin(FloatDType::BF16), (rate, 3));
        assert_eq!(number(&moved), 1.0);
        let moved = stepped(&mut with, moved, (rate, 13));
        assert_eq!(number(&moved), 1.0 - 2f32.powi(-7));
        assert_eq!(moved.val().dtype(), DType::BF16);

        let wide = stepped(&mut with, begin(FloatDType::F64), (rate, 16));
        assert_eq!(wide.val().dtype(), DType::F64);
        assert_eq!(number(&wide), 1.0 - 2f32.powi(-7));
    }

    #[test]
    fn the_copy_is_read_from_a_record_with_every_bit() {
        let sgd = SgdConfig::new().build();
        let begin = Param::from_tensor(ones(FloatDType::BF16)).train();
        let mut whole = ModuleOptimizer::from(MasterWeights::new(sgd.clone()));
        let part = stepped(&mut whole, begin, (1e-4, 5));
        let record = whole.to_record();
        let mut resumed = ModuleOptimizer::from(MasterWeights::new(sgd)).load_record(record);
        let whole = stepped(&mut whole, part.clone(), (1e-4, 40));
        let resumed = stepped(&mut resumed, part.clone(), (1e-4, 40));
        let bits = |parameter: &Param<Tensor<2>>| parameter.val().inner().into_data();
        assert_eq!(bits(&whole), bits(&resumed));
        assert_ne!(number(&whole), number(&part));
    }
}
