//! Which points may explain each other.

use std::collections::HashSet;

use crate::error::{Error, Result, check_shape};

/// A key for each point: points may explain each other where their keys are the same.
///
/// A model that is conditioned on a class or a prompt knows which of the data a point belongs to, and so must the ideal denoiser that
/// stands for what could be known of the point from the others. The key is that class, or a number for that prompt. Prompts that
/// are nearly unique are to be put together by what they show: each forgotten and each control point needs retained ones of its group.
///
/// For points whose condition says nothing about them, as the empty prompt, give all the same key.
#[derive(Debug, Clone, Copy)]
pub struct Groups<'a> {
    /// Of each retained point, `[n]`.
    pub retained: &'a [u64],
    /// Of each control point, `[c]`.
    pub controls: &'a [u64],
    /// Of each forgotten point, `[k]`.
    pub forgotten: &'a [u64],
}

impl Groups<'_> {
    /// # Errors
    /// [`Error::ShapeMismatch`] unless there is a key for each point; [`Error::UnexplainedPoint`] for a control or a forgotten point
    /// without a retained one in its group.
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

/// The points of a group; all where there are no groups or none is of this one.
pub(super) fn members(keys: Option<&[u64]>, group: Option<u64>, count: usize) -> Vec<usize> {
    let is_member = |&index: &usize| keys.is_some_and(|keys| Some(keys[index]) == group);
    let found: Vec<usize> = (0..count).filter(is_member).collect();
    if found.is_empty() {
        (0..count).collect()
    } else {
        found
    }
}
