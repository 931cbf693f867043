//! Checks whether a device computes what another does: the gradients of one step on both.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use serde::Serialize;

use super::SissTrainer;
use super::gradients::SideGradient;
use crate::data::{Side, UnlearningBatch};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::host::{read_f32, to_f32};
#[cfg(feature = "models")]
use crate::models::operation_check::Operations;
use crate::objective::LossTerms;
use crate::parameters::parameters;

/// The share of the whole gradient's norm below which a parameter's own gradient does not count.
///
/// Where the true gradient is 0, the computed one is only rounding.
const NEGLIGIBLE: f64 = 1e-3;

/// How far the gradients of a step are from those of a reference device, each relative to the
/// reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SelfCheck {
    /// `‖g − g*‖ / ‖g*‖` of the retain gradient over all parameters; 0 without one.
    pub retain: f64,
    /// The same for the forget gradient.
    pub forget: f64,
    /// The parameter with the largest error on either side, by its path in the model.
    pub worst_parameter: String,
    /// The error of that parameter: `‖g − g*‖ / max(‖g*‖, 10⁻³ ‖whole g*‖)`.
    pub worst: f64,
    /// Every parameter with its larger error of the two sides, the worst first.
    pub parameters: Vec<(String, f64)>,
}

impl<M: Denoiser<D>, const D: usize> SissTrainer<M, D> {
    /// Compares the gradients of the next step with those that another device computes from the
    /// same noisy points, weights and parameters.
    ///
    /// Nothing is trained, and the next step is unchanged.
    ///
    /// Call it before a run on a GPU: a gradient can be wrong there although predictions are right
    /// (docs/reliability.md). The reference runs the whole batch, so on a CPU a few pairs of a
    /// large model are enough. In f32, rounding alone gives about 1e-5; the examples use a
    /// `tolerance` of 0.05. Networks in bf16 or f16, and products in TF32, differ more.
    ///
    /// # Errors
    /// [`Error::DeviceDisagrees`] names every parameter beyond the tolerance, and for the networks
    /// of `siss::models` the operations that are beyond it when run alone on random inputs;
    /// [`Error::OutOfRange`] for a tolerance that is not positive; those of
    /// [`step_with`](SissTrainer::step_with); [`Error::DeviceRead`].
    ///
    /// # Example
    /// ```
    /// # use burn::nn::{Linear, LinearConfig};
    /// # use burn::tensor::{Device, Tensor};
    /// # use siss::{DdpmScheduler, FnDenoiser, SissTrainer, UnlearningBatch};
    /// # let device = Device::flex();
    /// # let layer = LinearConfig::new(3, 3).init(&device);
    /// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy));
    /// # let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?).build()?;
    /// # let points = |value: f64| Tensor::<2>::full([4, 3], value, &device);
    /// let batch = UnlearningBatch::new(points(0.1), points(0.9))?;
    /// let check = trainer.self_check(&batch, &Device::flex(), 0.05)?;
    /// assert!(check.worst < 1e-5);
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn self_check(
        &mut self,
        batch: &UnlearningBatch<D, M::Condition>,
        reference: &Device,
        tolerance: f64,
    ) -> Result<SelfCheck> {
        if tolerance.is_nan() || tolerance <= 0.0 {
            return Err(Error::OutOfRange {
                name: "tolerance",
                value: tolerance,
                requirement: "above 0",
            });
        }
        let terms = self.next_terms(batch)?;
        let here = self.sides_of(&self.model, &terms, batch)?;
        let there = batch.clone().to_device(reference);
        let model = self.model.clone().fork(reference);
        let terms = terms.to_device(reference);
        let (there, operations) = Operations::of(|| self.sides_of(&model, &terms, &there));
        let check = compare(&model, &here, &there?)?;
        // NaN does not count as agreement.
        let is_off = |error: f64| error.is_nan() || error > tolerance;
        let off = check.parameters.iter().filter(|(_, error)| is_off(*error));
        let off: Vec<_> = off.cloned().collect();
        if off.is_empty() {
            return Ok(check);
        }
        Err(Error::DeviceDisagrees {
            parameters: off,
            operations: operations.off(&batch.retain.device(), reference, tolerance)?,
            tolerance,
        })
    }

    fn sides_of(
        &self,
        model: &M,
        terms: &LossTerms<D>,
        batch: &UnlearningBatch<D, M::Condition>,
    ) -> Result<[GradientsParams; 2]> {
        let gradients = |side: SideGradient| side.gradients;
        Ok([
            self.side(model, Side::Retain, &terms.retain, batch)
                .map(gradients)?,
            self.side(model, Side::Forget, &terms.forget, batch)
                .map(gradients)?,
        ])
    }
}

/// Without the networks of `models` no operation is known.
#[cfg(not(feature = "models"))]
struct Operations;

#[cfg(not(feature = "models"))]
impl Operations {
    fn of<T>(run: impl FnOnce() -> T) -> (T, Self) {
        (run(), Self)
    }

    fn off(&self, _: &Device, _: &Device, _: f64) -> Result<Vec<(String, f64)>> {
        Ok(Vec::new())
    }
}

/// The errors of both sides' gradients.
fn compare<M: Module>(
    model: &M,
    here: &[GradientsParams; 2],
    there: &[GradientsParams; 2],
) -> Result<SelfCheck> {
    let [retain, forget] = [0, 1].map(|side| difference(model, &here[side], &there[side]));
    let (retain, forget) = (retain?, forget?);
    let names = parameters(model).into_iter().map(|it| (it.id, it.name));
    let names: HashMap<ParamId, String> = names.collect();
    let name = |id: &ParamId| names.get(id).cloned().unwrap_or_default();
    let pairs = retain.parameters.iter().zip(&forget.parameters);
    let mut parameters: Vec<(String, f64)> = pairs
        .map(|((id, retain), (_, forget))| (name(id), worse(*retain, *forget)))
        .collect();
    // In this order NaN comes first.
    parameters.sort_by(|(_, a), (_, b)| b.abs().total_cmp(&a.abs()));
    let (worst_parameter, worst) = parameters.first().cloned().unwrap_or_default();
    Ok(SelfCheck {
        retain: retain.whole,
        forget: forget.whole,
        worst_parameter,
        worst,
        parameters,
    })
}

fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// The error of a side's gradient.
#[derive(Debug)]
struct Difference {
    whole: f64,
    /// In the order of the model's parameters.
    parameters: Vec<(ParamId, f64)>,
}

fn difference<M: Module>(
    model: &M,
    here: &GradientsParams,
    there: &GradientsParams,
) -> Result<Difference> {
    let squares = squares(model, here, there)?;
    let sum = |of: fn(&Squares) -> f64| squares.iter().map(of).sum::<f64>();
    let (difference, whole) = (sum(|part| part.difference), sum(|part| part.reference));
    let least = NEGLIGIBLE * NEGLIGIBLE * whole;
    let ratio = |difference: f64, reference: f64| match difference == 0.0 {
        true => 0.0,
        false => (difference / reference).sqrt(),
    };
    let error = |part: &Squares| ratio(part.difference, part.reference.max(least));
    Ok(Difference {
        whole: ratio(difference, whole),
        parameters: squares.iter().map(|part| (part.id, error(part))).collect(),
    })
}

/// `‖g − g*‖²` and `‖g*‖²` of a parameter.
#[derive(Debug)]
struct Squares {
    id: ParamId,
    difference: f64,
    reference: f64,
}

fn squares<M: Module>(
    model: &M,
    here: &GradientsParams,
    there: &GradientsParams,
) -> Result<Vec<Squares>> {
    struct Visitor<'a> {
        here: &'a GradientsParams,
        there: &'a GradientsParams,
        seen: HashSet<ParamId>,
        found: Vec<Result<Squares>>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.seen.insert(param.id) {
                return;
            }
            let values = |gradients: &GradientsParams| match gradients.get::<D>(param.id) {
                Some(gradient) => read_f32(to_f32(gradient), "the gradients of the self-check"),
                None => Ok(Vec::new()),
            };
            let squares = values(self.here).and_then(|here| {
                let there = values(self.there)?;
                Ok(squares_of(param.id, &here, &there))
            });
            self.found.push(squares);
        }
    }
    let mut visitor = Visitor {
        here,
        there,
        seen: HashSet::new(),
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.found.into_iter().collect()
}

/// A gradient that only one device has is compared with zeros.
fn squares_of(id: ParamId, here: &[f32], there: &[f32]) -> Squares {
    let number = |values: &[f32], index: usize| values.get(index).map_or(0.0, |&v| f64::from(v));
    let count = here.len().max(there.len());
    let square = |of: &dyn Fn(usize) -> f64| (0..count).map(|index| of(index).powi(2)).sum();
    Squares {
        id,
        difference: square(&|index| number(here, index) - number(there, index)),
        reference: square(&|index| number(there, index)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::denoiser::FnDenoiser;
    use crate::process::DdpmScheduler;
    use crate::trainer::Method;
    use burn::nn::{Linear, LinearConfig};

    fn batch() -> UnlearningBatch<2> {
        let points = |value: f64| Tensor::<2>::full([4, 3], value, &Device::flex());
        UnlearningBatch::new(points(0.1), points(0.9)).unwrap()
    }

    /// A model whose output changes after two passes, as if the second device computed something
    /// else.
    fn trainer(factor: f64) -> SissTrainer<impl Denoiser<2, Condition = ()>, 2> {
        let layer = LinearConfig::new(3, 3).init(&Device::flex());
        let passes = Arc::new(AtomicUsize::new(0));
        let model = FnDenoiser::new(layer, move |layer: &Linear, noisy: Tensor<2>, _, _: &()| {
            // Two sides on this device, then two on the other.
            match passes.fetch_add(1, Relaxed) < 2 {
                true => layer.forward(noisy),
                false => layer.forward(noisy) * factor,
            }
        });
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let builder = SissTrainer::builder(model, scheduler).method(Method::SissNoIs);
        builder.build().unwrap()
    }

    #[test]
    fn a_device_agrees_with_itself_to_the_bit() {
        let check = trainer(1.0).self_check(&batch(), &Device::flex(), 0.05);
        let check = check.unwrap();
        assert_eq!((check.retain, check.forget, check.worst), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_device_that_computes_something_else_is_refused_by_name() {
        let error = trainer(1.3).self_check(&batch(), &Device::flex(), 0.05);
        let Err(Error::DeviceDisagrees { parameters, .. }) = error else {
            panic!("{error:?}");
        };
        let [(first, more), (second, less)] = &parameters[..] else {
            panic!("both parameters are off: {parameters:?}");
        };
        let mut names = [&**first, &**second];
        names.sort_unstable();
        assert_eq!(names, ["bias", "weight"]);
        assert!(more >= less && *less > 0.1, "{parameters:?}");
    }

    #[test]
    fn numbers_that_are_none_are_no_agreement() {
        let error = trainer(f64::NAN).self_check(&batch(), &Device::flex(), 0.05);
        assert!(
            matches!(&error, Err(Error::DeviceDisagrees { parameters, .. }) if parameters[0].1.is_nan()),
            "{error:?}"
        );
    }

    /// The step after the check equals the step without it.
    #[test]
    fn the_next_step_is_what_it_would_have_been() {
        let layer = LinearConfig::new(3, 3).init(&Device::flex());
        let run = |check: bool| {
            let model = FnDenoiser::new(
                layer.clone(),
                |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy),
            );
            let scheduler = DdpmScheduler::linear(1000).unwrap();
            let builder = SissTrainer::builder(model, scheduler).method(Method::EraseDiff);
            let mut trainer = builder.build().unwrap();
            if check {
                trainer.self_check(&batch(), &Device::flex(), 0.05).unwrap();
            }
            trainer.step(batch()).unwrap()
        };
        assert_eq!(run(true), run(false));
    }

    #[test]
    fn a_tolerance_of_nothing_is_refused() {
        for tolerance in [0.0, -1.0, f64::NAN] {
            let error = trainer(1.0).self_check(&batch(), &Device::flex(), tolerance);
            assert!(matches!(error, Err(Error::OutOfRange { .. })), "{error:?}");
        }
    }
}
