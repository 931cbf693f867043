//! Which points may explain each other.

use std::collections::HashSet;

use crate::error::{Error, Result, check_shape};

/// A key for each point: points may explain each other if their keys are equal.
///
/// A model that is conditioned on a class or a prompt knows which part of the data a point belongs
/// to. The ideal denoiser, which stands for the most that the other points tell, must know it too.
/// The key is the class, or a number for the prompt. Group prompts that are nearly unique by what
/// they show, because each forgotten and each control point needs retained ones in its group.
///
/// If the condition says nothing about the points, such as an empty prompt, give all of them the
/// same key.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// Keys of the retained points, `[n]`.
    pub retained: &'a [u64],
    /// Keys of the control points, `[c]`.
    pub controls: &'a [u64],
    /// Keys of the forgotten points, `[k]`.
    pub forgotten: &'a [u64],
}

impl Groups<'_> {
    /// # Errors
    /// [`Error::ShapeMismatch`] unless there is one key per point; [`Error::UnexplainedPoint`] for
    /// a control or a forgotten point without a retained one in its group.
    pub(super) fn check(&self, [retained, controls, forgotten]: [usize; 3]) -> Result<()> {
        for (what, keys, count) in [
            ("the groups of the retained points", self.retained, retained),
            ("the groups of the control points", self.controls, controls),
            (
                "the groups of the forgotten points",
                self.forgotten,
                forgotten,
            ),
        ] {
            check_shape(what, &[count], &[keys.len()], "give a key for every point")?;
        }
        let known: HashSet<u64> = self.retained.iter().copied().collect();
        for (what, keys) in [("control", self.controls), ("forgotten", self.forgotten)] {
            if let Some(index) = keys.iter().position(|key| !known.contains(key)) {
                return Err(Error::UnexplainedPoint {
                    what,
                    point: index,
                    group: Some(keys[index]),
                });
            }
        }
        Ok(())
    }
}

/// The points of a group; all of them if there are no groups or no point is of this one.
pub(super) fn members(keys: Option<&[u64]>, group: Option<u64>, count: usize) -> Vec<usize> {
    let is_member = |&index: &usize| keys.is_some_and(|keys| Some(keys[index]) == group);
    let found: Vec<usize> = (0..count).filter(is_member).collect();
    if found.is_empty() {
        (0..count).collect()
    } else {
        found
    }
}
