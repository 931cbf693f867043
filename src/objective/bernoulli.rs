//! The Bernoulli objective: each row belongs to one side.

use super::{LossInputs, LossTerms, SissLoss};
use crate::data::Side;
use crate::error::Result;

/// A row whose noisy point is drawn from the retained point is learnt with weight `1/(1−λ)`; one
/// drawn from the forgotten point is unlearnt with weight `−1/λ`.
///
/// Both terms are means over the whole batch, so the gradient of each side has the same expectation
/// as that of [`SissNoIs`](super::SissNoIs). There is always one row per sample. A side may have no
/// rows.
///
/// [`Siss`](super::Siss) is the Rao-Blackwellised form of this objective: it averages over the
/// component that a noisy point came from.
///
/// # Reference
/// The "Bernoulli" baseline of the SISS code (arXiv 2503.01034), averaged over the whole batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bernoulli;

impl<const D: usize, C> SissLoss<D, C> for Bernoulli {
    fn name(&self) -> &'static str {
        "Bernoulli"
    }

    fn has_term(&self, _side: Side) -> bool {
        true
    }

    fn uses_mixture(&self) -> bool {
        true
    }

    fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
        let forget_prob = inputs.draws.forget_prob();
        let retain = inputs.plain_term(Side::Retain, 1.0 / (1.0 - forget_prob));
        let forget = inputs.plain_term(Side::Forget, -1.0 / forget_prob);
        let from_forget = inputs.draws.from_forget();
        Ok(LossTerms {
            retain: Some(retain.keep_rows(|row| !from_forget[row])),
            forget: Some(forget.keep_rows(|row| from_forget[row])),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_inputs::{Case, host};
    use super::super::{Siss, SissNoIs};
    use super::*;
    use crate::process::PredictionType;

    #[test]
    fn each_row_serves_the_side_it_was_drawn_from() {
        let case = Case::new(0.25);
        let inputs = case.inputs(PredictionType::Epsilon);
        let terms = Bernoulli.terms(&inputs).unwrap();
        let (retain, forget) = (terms.retain.unwrap(), terms.forget.unwrap());
        assert_eq!(
            (retain.rows, retain.weights),
            (vec![0, 2], vec![1.0 / 0.75; 2])
        );
        assert_eq!((forget.rows, forget.weights), (vec![1, 3], vec![-4.0; 2]));
        let own = SissNoIs.terms(&inputs).unwrap();
        assert_eq!(host(&forget.noisy), host(&own.forget.unwrap().noisy));
    }

    /// The weights of SISS are the expectation of the Bernoulli weights over the component, given
    /// the noisy point. At a noisy point that only one side explains, both agree.
    #[test]
    fn siss_agrees_where_one_side_explains_the_noisy_point() {
        let case = Case::new(0.5);
        let inputs = case.inputs(PredictionType::Epsilon);
        let siss = Siss.terms(&inputs).unwrap();
        // The row with the least noise, drawn from the retained side.
        assert!((siss.retain.unwrap().weights[0] - 2.0).abs() < 1e-9);
        assert!(siss.forget.unwrap().weights[0].abs() < 1e-9);
    }

    #[test]
    fn a_side_without_a_row_is_legal() {
        for forget_prob in [0.0, 1.0] {
            let mut case = Case::new(forget_prob);
            case.draws.from_forget = vec![forget_prob == 1.0; 4];
            let terms = Bernoulli
                .terms(&case.inputs(PredictionType::Epsilon))
                .unwrap();
            let (retain, forget) = (terms.retain.unwrap(), terms.forget.unwrap());
            assert_eq!(
                (retain.rows.len(), forget.rows.len()),
                if forget_prob == 0.0 { (4, 0) } else { (0, 4) }
            );
            assert!(
                retain
                    .weights
                    .iter()
                    .chain(&forget.weights)
                    .all(|weight| weight.abs() == 1.0)
            );
        }
    }
}
