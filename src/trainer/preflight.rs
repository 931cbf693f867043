//! Checks made once, before the first step: that the model can be trained by two separate
//! gradients.

use std::collections::HashMap;

use burn::module::{Flag, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Tensor};

use crate::data::{Side, UnlearningBatch};
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result};
use crate::host::{read_f32, to_f32, vector};
use crate::objective::LossTerm;
use crate::parameters::check_parameters;

/// Times that the same two rows are run again.
const REPEATS: usize = 3;
/// Rows that the check runs forward: two, again and again, and one of them alone.
pub(crate) const ROWS: usize = 2 * (1 + REPEATS) + 1;

/// Refuses a model that cannot be trained by two separate gradients.
///
/// That is a model without trainable parameters, with one that is not finite or held twice, with
/// active dropout, or with active batch normalisation.
///
/// Layers are recognised by their training flags and by their effect: rows of `term` are run
/// several times, and once without their neighbour. A network whose last layer is zero hides the
/// effect.
pub(crate) fn check_model<const D: usize, M: Denoiser<D>>(
    model: &M,
    batch: &UnlearningBatch<D, M::Condition>,
    term: &LossTerm<D>,
) -> Result<()> {
    let layers = TrainingLayers::of(model);
    if !layers.has_trainable_parameter {
        return Err(Error::NoTrainableParameters);
    }
    check_parameters(model)?;
    if let Some((first, again)) = &layers.shared {
        return Err(Error::SharedParameter {
            first: first.clone(),
            again: again.clone(),
        });
    }
    if let Some(layer) = layers
        .active
        .iter()
        .find(|layer| layer.contains("BatchNorm"))
    {
        return Err(Error::BatchDependentModel {
            evidence: format!("`{layer}` is active"),
        });
    }
    let condition = batch.condition(Side::Retain);
    let untracked = untracked(model);
    let predict = |input: &Tensor<D>| {
        let rows = vec![0; input.dims()[0]];
        let timesteps = vector(rows.iter().map(|_| term.timesteps[0]), &input.device());
        untracked
            .predict(input.clone(), timesteps, &condition.take_rows(&rows))
            .inner()
    };
    let row = term.noisy.clone().narrow(0, 0, 1);
    let pair = Tensor::cat(vec![row.clone(), -row.clone()], 0);
    let first = predict(&pair);
    check_repeats(&first, || predict(&pair), &layers)?;
    check_alone(&first, predict(&row), &layers)
}

/// The model as it trains, dropout included, but without a graph.
///
/// Otherwise burn would keep the graphs of the probes until the first backward pass.
fn untracked<M: Module>(model: &M) -> M {
    struct Untracked;
    impl ModuleMapper for Untracked {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|weights| weights.set_require_grad(false))
        }
    }
    model.clone().map(&mut Untracked)
}

/// The relative difference from which two outputs count as different.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 | DType::F32 | DType::Flex32 => 5e-3,
        _ => 5e-2,
    }
}

/// The same input must give the same output.
///
/// Small networks can draw the same dropout mask twice, but hardly four times.
fn check_repeats<const D: usize>(
    first: &Tensor<D>,
    again: impl Fn() -> Tensor<D>,
    layers: &TrainingLayers,
) -> Result<()> {
    for _ in 0..REPEATS {
        let difference = relative_difference(first, again())?;
        if difference > tolerance(first.dtype()) {
            return Err(Error::StochasticModel {
                evidence: format!(
                    "two forward passes of the same input differ by {difference:.1e} of their norm{}",
                    layers.described()
                ),
            });
        }
    }
    Ok(())
}

/// A row must give the same output alone and together with another row.
fn check_alone<const D: usize>(
    pair: &Tensor<D>,
    alone: Tensor<D>,
    layers: &TrainingLayers,
) -> Result<()> {
    let beside_another = pair.clone().narrow(0, 0, 1);
    let difference = relative_difference(&beside_another, alone)?;
    if difference > tolerance(pair.dtype()) {
        return Err(Error::BatchDependentModel {
            evidence: format!(
                "a row's output changes by {difference:.1e} of its norm if another row is added{}",
                layers.described()
            ),
        });
    }
    Ok(())
}

/// `‖a − b‖ / ‖a‖`; NaN for outputs that are not finite, which the step itself will report.
fn relative_difference<const D: usize>(a: &Tensor<D>, b: Tensor<D>) -> Result<f64> {
    let a = to_f32(a.clone());
    let difference = a.clone() - to_f32(b);
    let squares = Tensor::cat(
        vec![
            (difference.clone() * difference).sum(),
            (a.clone() * a).sum(),
        ],
        0,
    );
    let squares = read_f32(squares, "the probe of the model")?;
    Ok((f64::from(squares[0]) / f64::from(squares[1]).max(f64::MIN_POSITIVE)).sqrt())
}

/// Layers that behave differently while training, found by their flags.
#[derive(Default)]
struct TrainingLayers {
    /// Name of each field on the path, and the type of the module that holds it.
    path: Vec<(String, String)>,
    active: Vec<String>,
    has_trainable_parameter: bool,
    /// The place of each trainable parameter, and two places that hold the same one.
    places: HashMap<ParamId, String>,
    shared: Option<(String, String)>,
}

impl TrainingLayers {
    fn of<M: Module>(model: &M) -> Self {
        let mut layers = TrainingLayers::default();
        model.visit(&mut layers);
        layers
    }

    fn described(&self) -> String {
        if self.active.is_empty() {
            return String::new();
        }
        format!(
            " (layers with an active training flag: {})",
            self.active.join(", ")
        )
    }
}

impl ModuleVisitor for TrainingLayers {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push((name.into(), container_type.into()));
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.val().is_require_grad() {
            return;
        }
        self.has_trainable_parameter = true;
        let names: Vec<&str> = self.path.iter().map(|(name, _)| name.as_str()).collect();
        let place = names.join(".");
        if let Some(first) = self.places.insert(param.id, place.clone()) {
            self.shared.get_or_insert((first, place));
        }
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        // The innermost name is that of the flag itself; its container is the layer that it belongs
        // to.
        if let (true, Some(((_, kind), layers))) = (flag.is_enabled(), self.path.split_last()) {
            let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
            let kind = kind.strip_prefix("Struct:").unwrap_or(kind);
            self.active.push(format!("{} ({kind})", names.join(".")));
        }
    }
}
