//! What is checked once, before the first step: that the model can be trained by two separate gradients.

use burn::module::{Flag, Module, ModuleVisitor, Param};
use burn::tensor::{DType, FloatDType, Tensor};

use crate::batch::{UnlearningBatch, read_f32};
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, Side};
use crate::gradients::host_vector;
use crate::loss::LossTerm;

/// Refuses a model without trainable parameters, with active dropout or with active batch normalisation.
///
/// Layers are recognised by their training flags, and by what they do: rows of `term` are run several times, and once
/// without their neighbour. A network whose last layer is zero hides what it does.
pub(crate) fn check_model<const D: usize, M: Denoiser<D>>(
    model: &M,
    batch: &UnlearningBatch<D, M::Condition>,
    term: &LossTerm<D>,
) -> Result<()> {
    let layers = TrainingLayers::of(model);
    if !layers.has_trainable_parameter {
        return Err(Error::NoTrainableParameters);
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

    let row = term.noisy.clone().narrow(0, 0, 1);
    let pair = Tensor::cat(vec![row.clone(), -row.clone()], 0);
    let condition = batch.condition(Side::Retain);
    let predict = |input: Tensor<D>, rows: &[usize]| {
        let timesteps = rows.iter().map(|_| term.timesteps[0]);
        let timesteps = host_vector(timesteps, &input.device());
        model
            .predict(input, timesteps, &condition.select(rows))
            .inner()
    };
    let first = predict(pair.clone(), &[0, 0]);
    // Small networks can roll the same dice twice, but hardly four times.
    let mut difference: f64 = 0.0;
    for _ in 0..3 {
        difference = difference.max(relative_difference(&first, predict(pair.clone(), &[0, 0]))?);
    }
    let tolerance = match first.dtype() {
        DType::F64 | DType::F32 | DType::Flex32 => 5e-3,
        _ => 5e-2,
    };
    if difference > tolerance {
        return Err(Error::StochasticModel {
            evidence: format!(
                "two forward passes of the same input differ by {difference:.1e} of their norm{}",
                layers.described()
            ),
        });
    }
    let beside_another = first.narrow(0, 0, 1);
    let difference = relative_difference(&beside_another, predict(row, &[0]))?;
    if difference > tolerance {
        return Err(Error::BatchDependentModel {
            evidence: format!(
                "a row's output changes by {difference:.1e} of its norm with the row beside it{}",
                layers.described()
            ),
        });
    }
    Ok(())
}

/// `‖a − b‖ / ‖a‖`; NaN for outputs that are no numbers, which the step itself will report.
fn relative_difference<const D: usize>(a: &Tensor<D>, b: Tensor<D>) -> Result<f64> {
    let a = a.clone().cast(FloatDType::F32);
    let difference = a.clone() - b.cast(FloatDType::F32);
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
    /// Name of each field on the way, and the type of the module it is a field of.
    path: Vec<(String, String)>,
    active: Vec<String>,
    has_trainable_parameter: bool,
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
        self.has_trainable_parameter |= param.val().is_require_grad();
    }

    fn visit_flag(&mut self, flag: &Param<Flag>) {
        // The innermost name is the flag's own; its container is the layer that it belongs to.
        if let (true, Some(((_, kind), layers))) = (flag.is_enabled(), self.path.split_last()) {
            let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
            let kind = kind.strip_prefix("Struct:").unwrap_or(kind);
            self.active.push(format!("{} ({kind})", names.join(".")));
        }
    }
}
