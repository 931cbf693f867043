//! SISS without importance sampling.

use super::{LossInputs, LossTerms, SissLoss};
use crate::data::Side;
use crate::error::Result;

/// A regression for each side at its own noisy points, with the same timesteps and noise; the
/// weights are 1 and −1.
///
/// It costs two rows per sample, where [`Siss`](super::Siss) costs little more than one, and has
/// the same expectation.
///
/// # Reference
/// SISS (arXiv 2503.01034), Eq. 4 and "SISS (No IS)".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SissNoIs;

impl<const D: usize, C> SissLoss<D, C> for SissNoIs {
    fn name(&self) -> &'static str {
        "SISS (No IS)"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        Ok(LossTerms {
            retain: Some(inputs.plain_term(Side::Retain, 1.0)),
            forget: Some(inputs.plain_term(Side::Forget, -1.0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::*;
    use crate::process::{PredictionType, SchedulerExt};

    #[test]
    fn each_side_has_its_own_noisy_point_and_the_drawn_noise_as_target() {
        let case = Case::new(0.5);
        let terms = SissNoIs
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap();
        for (term, clean, weight) in [
            (terms.retain.unwrap(), case.batch.retain(), 1.0),
            (terms.forget.unwrap(), case.batch.forget(), -1.0),
        ] {
            let noisy = case
                .scheduler
                .add_noise(
                    clean.clone(),
                    case.draws.noise().clone(),
                    case.draws.timesteps(),
                )
                .unwrap();
            assert_eq!(host(&term.noisy), host(&noisy));
            assert_eq!(host(&term.target), host(case.draws.noise()));
            assert_eq!(term.weights, [weight; 4]);
            assert_eq!(term.rows, [0, 1, 2, 3]);
        }
    }
}
