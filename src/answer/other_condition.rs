//! The frozen model's answer under another condition.

use std::fmt::{self, Debug};

use burn::tensor::Tensor;
use sha2::{Digest, Sha256};

use super::surrogate::rows_of;
use super::{Answer, Asked};
use crate::denoiser::Condition;
use crate::error::{Error, Result};

/// The answer of the model before the run under another condition: a neighbouring class, a prompt
/// that is not memorised, or the empty one.
///
/// It is right where the model memorised the pair of point and condition, not the point by itself.
///
/// # Example
/// ```
/// use siss::answer::OtherCondition;
/// use siss::objective::Answers;
///
/// let prompts = vec!["a portrait of a woman".to_string()];
/// let objective = Answers::<4, Vec<String>>::new(OtherCondition::given(prompts, 1)?);
/// let objective = Answers::<4, Vec<String>>::new(OtherCondition::of_retained()?);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Clone)]
pub struct OtherCondition<C> {
    /// One row per forgotten id; `None` for that of the retained points.
    given: Option<(C, usize)>,
    digest: String,
}

impl<C: Condition> OtherCondition<C> {
    /// Under these conditions, `points` rows: the forgotten point of id `i` is answered under row
    /// `i`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]; [`Error::InvalidSetting`] for a condition that says nothing, as
    /// `()`; those of [`Condition::digest`].
    pub fn given(condition: C, points: usize) -> Result<Self> {
        check_not_unconditional::<C>()?;
        condition.check_rows("the other condition", points)?;
        let mut hash = Sha256::new();
        condition.digest(&mut |bytes| hash.update(bytes))?;
        Ok(Self {
            given: Some((condition, points)),
            digest: format!("{:x}", hash.finalize()),
        })
    }

    /// Under the condition of the retained point that the batch pairs each forgotten point with.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a condition that says nothing, as `()`.
    pub fn of_retained() -> Result<Self> {
        check_not_unconditional::<C>()?;
        Ok(Self {
            given: None,
            digest: "of the retained points".into(),
        })
    }
}

fn check_not_unconditional<C: Condition>() -> Result<()> {
    match C::IS_EMPTY {
        false => Ok(()),
        true => Err(Error::InvalidSetting {
            what: "the model has no condition, so there is no other one to answer under".into(),
            remedy: "use `PredictedAnswer` or `Surrogate`",
        }),
    }
}

impl<C> Debug for OtherCondition<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OtherCondition({})", self.digest)
    }
}

impl<const D: usize, C: Condition> Answer<D, C> for OtherCondition<C> {
    fn name(&self) -> &'static str {
        "other condition"
    }

    fn uses_teacher(&self) -> bool {
        true
    }

    fn settings(&self) -> String {
        format!("other condition {}", self.digest)
    }

    fn answers(&mut self, asked: &Asked<'_, D, C>) -> Result<Tensor<D>> {
        let (noisy, timesteps) = (asked.noisy.clone(), &asked.timesteps);
        let Some((condition, points)) = &self.given else {
            return asked.teacher(noisy, timesteps, &asked.retain_condition);
        };
        let remedy = "give one for every forgotten point, in the order of their ids";
        let rows = rows_of(asked.ids, *points, "other condition", remedy)?;
        asked.teacher(noisy, timesteps, &condition.take_rows(&rows))
    }
}
