//! SISS: subtracted importance sampled scores.

use super::mixture::importance_weights;
use super::{LossInputs, LossTerm, LossTerms, SissLoss};
use crate::data::Side;
use crate::error::Result;
use crate::host::read_f32;

/// SISS, the paper's objective.
///
/// Both terms use the same noisy point `m`, drawn from the defensive mixture of the two sides, each
/// with its importance weight:
///
/// ```text
///   w_x ‖ε_θ(m) − (m − γx)/σ‖²
/// − w_a ‖ε_θ(m) − (m − γa)/σ‖²
/// ```
///
/// The factors `n/(n−k)` and `(1+s) k/(n−k)` of the paper are left to the
/// [`GradientClipper`](crate::GradientClipper).
///
/// # Reference
/// SISS (arXiv 2503.01034), Eq. 6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Siss;

impl<const D: usize, C> SissLoss<D, C> for Siss {
    fn name(&self) -> &'static str {
        "SISS"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn uses_mixture(&self) -> bool {
        true
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        let draws = inputs.draws;
        let points = inputs.mixture(draws.from_forget())?;
        let log_ratios = read_f32(points.log_ratio, "the log-ratios of the mixture")?;
        let weights: Vec<_> = log_ratios
            .iter()
            .map(|&log_ratio| importance_weights(f64::from(log_ratio), draws.forget_prob))
            .collect();

        let term = |target, weights, bound| {
            let timesteps = draws.timesteps.clone();
            LossTerm::new(points.noisy.clone(), timesteps, target, weights).with_weight_bound(bound)
        };
        Ok(LossTerms {
            retain: Some(term(
                inputs.target(inputs.retain, points.retain_noise.clone()),
                weights.iter().map(|weight| weight.retain).collect(),
                1.0 / (1.0 - draws.forget_prob),
            )),
            forget: Some(term(
                inputs.target(inputs.forget, points.forget_noise.clone()),
                weights.iter().map(|weight| -weight.forget).collect(),
                1.0 / draws.forget_prob,
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::*;
    use crate::process::{PredictionType, Scheduler};

    /// The definition of the weights: the density divided by that of the mixture, in f64.
    #[test]
    fn weights_are_the_densities_over_the_mixture() {
        for forget_prob in [0.25, 0.5, 0.9] {
            let case = Case::new(forget_prob);
            let terms = Siss.terms(&case.inputs(PredictionType::Epsilon)).unwrap();
            let (retain, forget) = (terms.retain.unwrap(), terms.forget.unwrap());
            let (x, a, m) = (
                host(case.batch.retain()),
                host(case.batch.forget()),
                host(&retain.noisy),
            );
            for row in 0..4 {
                let t = case.draws.timesteps()[row];
                let (gamma, sigma) = (
                    case.scheduler.signal_scale(t),
                    case.scheduler.noise_scale(t),
                );
                let log_density = |clean: &[f32]| -> f64 {
                    (row * 6..row * 6 + 6)
                        .map(|i| {
                            -(m[i] as f64 - gamma * clean[i] as f64).powi(2) / (2.0 * sigma * sigma)
                        })
                        .sum()
                };
                let delta = log_density(&a) - log_density(&x);
                let expected = 1.0 / ((1.0 - forget_prob) * (-delta).exp() + forget_prob);
                assert!(
                    (forget.weights[row] + expected).abs() <= 1e-3 * expected,
                    "{} {expected}",
                    forget.weights[row]
                );
                let sum =
                    (1.0 - forget_prob) * retain.weights[row] - forget_prob * forget.weights[row];
                assert!((sum - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn targets_explain_the_same_noisy_point_in_every_prediction_type() {
        let case = Case::new(0.5);
        for kind in [
            PredictionType::Epsilon,
            PredictionType::Velocity,
            PredictionType::Sample,
        ] {
            let terms = Siss.terms(&case.inputs(kind)).unwrap();
            for (term, clean) in [
                (terms.retain.unwrap(), case.batch.retain()),
                (terms.forget.unwrap(), case.batch.forget()),
            ] {
                let (m, target, clean) = (host(&term.noisy), host(&term.target), host(clean));
                for row in 0..4 {
                    let t = term.timesteps[row];
                    let (gamma, sigma) = (
                        case.scheduler.signal_scale(t) as f32,
                        case.scheduler.noise_scale(t) as f32,
                    );
                    for i in row * 6..row * 6 + 6 {
                        let noise = (m[i] - gamma * clean[i]) / sigma;
                        let expected = match kind {
                            PredictionType::Sample => clean[i],
                            PredictionType::Velocity => gamma * noise - sigma * clean[i],
                            _ => noise,
                        };
                        assert!(
                            (target[i] - expected).abs() < 2e-3 * (1.0 + expected.abs()),
                            "{kind:?} {row}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_ends_of_lambda_have_one_unbounded_side() {
        let case = Case::new(0.0);
        let terms = Siss.terms(&case.inputs(PredictionType::Epsilon)).unwrap();
        let retain = terms.retain.unwrap();
        assert!(retain.weights.iter().all(|&weight| weight == 1.0));
        assert_eq!(
            (retain.weight_bound, terms.forget.unwrap().weight_bound),
            (Some(1.0), None)
        );
    }
}
