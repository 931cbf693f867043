//! NegGrad: gradient ascent on the forgotten points.

use super::{LossInputs, LossTerms, SissLoss};
use crate::data::Side;
use crate::error::Result;

/// The denoising loss on forgotten points with its sign reversed, and no retain term: an upper
/// bound on the damage that unlearning can do.
///
/// # Reference
/// SISS (arXiv 2503.01034), "NegGrad".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NegGrad;

impl<const D: usize, C> SissLoss<D, C> for NegGrad {
    fn name(&self) -> &'static str {
        "NegGrad"
    }

    fn has_term(&self, side: Side) -> bool {
        side == Side::Forget
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        Ok(LossTerms {
            retain: None,
            forget: Some(inputs.plain_term(Side::Forget, -1.0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::Case;
    use super::*;
    use crate::process::PredictionType;

    #[test]
    fn only_the_forget_side_has_a_term_and_it_ascends() {
        let case = Case::new(0.5);
        let terms = NegGrad
            .terms(&case.inputs(PredictionType::Epsilon))
            .unwrap();
        assert!(terms.retain.is_none());
        assert_eq!(terms.forget.unwrap().weights, [-1.0; 4]);
    }
}
