//! EraseDiff: the model is taught a wrong noise for forgotten points.

use super::{LossInputs, LossTerms, SissLoss};
use crate::data::Side;
use crate::draws::{ExtraDraws, Stream};
use crate::error::Result;
use crate::process::PredictionType;

/// Retained points are learnt as usual; at noisy forgotten points the model is taught noise that is
/// uniform on `[0, 1)` instead of the true noise.
///
/// The forget term is a regression: it descends, with weight 1. This is one step of the published
/// method without an inner loop, as in the SISS code.
///
/// The wrong noise `u` is converted to the model's prediction type like any noise, with the clean
/// point `(a_t − σ u) / γ` that together with `u` explains the noisy one. Without signal (`γ = 0`,
/// zero terminal SNR) that clean point does not exist: unless the model predicts noise, such rows
/// are left out.
///
/// # Reference
/// Wu et al. 2024, *EraseDiff* (arXiv 2401.05779), as stated in SISS (arXiv 2503.01034), Appendix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EraseDiff;

impl<const D: usize, C> SissLoss<D, C> for EraseDiff {
    fn name(&self) -> &'static str {
        "EraseDiff"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn extra_draws(&self) -> ExtraDraws {
        ExtraDraws::none().uniform(Stream::Uniform)
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        let device = inputs.forget.device();
        let (signal, noise_scale) = (
            inputs.scales.signal_tensor(&device),
            inputs.scales.noise_tensor(&device),
        );
        let mut forget = inputs.plain_term(Side::Forget, 1.0);
        let uniform = inputs.draws.numbers_of(Stream::Uniform)?.clone();
        forget.own_target = Some(forget.target);
        if inputs.prediction_type == PredictionType::Epsilon {
            forget.target = uniform;
        } else {
            let clean = (forget.noisy.clone() - uniform.clone() * noise_scale) / signal;
            forget.target = inputs.target(&clean, uniform);
            forget = forget.keep_rows(|row| inputs.scales.signal[row] != 0.0);
        }
        Ok(LossTerms {
            retain: Some(inputs.plain_term(Side::Retain, 1.0)),
            forget: Some(forget),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::*;
    use burn::tensor::Tensor;

    fn case() -> (Case, Tensor<3>) {
        let mut case = Case::new(0.5);
        let uniform = case.batch.retain.clone().mul_scalar(0.1).abs();
        case.draws = case
            .draws
            .with_numbers(Stream::Uniform, uniform.clone())
            .unwrap();
        (case, uniform)
    }

    #[test]
    fn forgotten_points_regress_to_the_uniform_noise_and_descend() {
        let (case, uniform) = case();
        let terms = EraseDiff
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap();
        let forget = terms.forget.unwrap();
        assert_eq!(host(&forget.target), host(&uniform));
        assert_eq!(forget.weights, vec![1.0; 4]);
        assert_eq!(terms.retain.unwrap().weights, vec![1.0; 4]);
    }

    #[test]
    fn draws_without_uniform_numbers_are_refused() {
        let case = Case::new(0.5);
        let error = EraseDiff
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap_err();
        assert!(error.to_string().contains("with_numbers"), "{error}");
    }
}
