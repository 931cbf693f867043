//! Naive deletion: training continues without the forgotten points.

use super::{LossInputs, LossTerms, SissLoss};
use crate::data::Side;
use crate::error::Result;

/// The ordinary denoising loss on retained points only: the baseline that every unlearning method
/// must beat.
///
/// # Reference
/// SISS (arXiv 2503.01034), "naive deletion".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NaiveDeletion;

impl<const D: usize, C> SissLoss<D, C> for NaiveDeletion {
    fn name(&self) -> &'static str {
        "naive deletion"
    }

    fn has_term(&self, side: Side) -> bool {
        side == Side::Retain
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        Ok(LossTerms {
            retain: Some(inputs.plain_term(Side::Retain, 1.0)),
            forget: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::Case;
    use super::*;
    use crate::process::PredictionType;

    #[test]
    fn only_the_retain_side_has_a_term_and_it_descends() {
        let case = Case::new(0.5);
        let terms = NaiveDeletion
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap();
        assert!(terms.forget.is_none());
        assert_eq!(terms.retain.unwrap().weights, [1.0; 4]);
    }
}
