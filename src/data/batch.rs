//! The input of a step: retained and forgotten points, paired row by row.

use burn::tensor::{Device, Tensor};

use super::finite::check_finite;
use super::side::Side;
use crate::denoiser::Condition;
use crate::error::{Error, Result, check_device, check_shape};
use crate::host::to_f32;

/// The retained and the forgotten points of one optimiser step, paired row by row.
///
/// `C` is the model's condition; the two sides may have different ones.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::UnlearningBatch;
///
/// let device = Device::flex();
/// let retain = Tensor::<4>::zeros([8, 1, 28, 28], &device);
/// let forget = Tensor::<4>::ones([8, 1, 28, 28], &device);
/// let batch = UnlearningBatch::new(retain, forget)?;
/// assert_eq!(batch.batch_size(), 8);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct UnlearningBatch<const D: usize, C = ()> {
    pub(crate) retain: Tensor<D>,
    pub(crate) forget: Tensor<D>,
    pub(crate) retain_condition: C,
    pub(crate) forget_condition: C,
    pub(crate) forget_ids: Vec<u64>,
    /// Whether the ids were given; if not, every row is taken to hold point 0.
    pub(crate) has_forget_ids: bool,
}

impl<const D: usize> UnlearningBatch<D> {
    /// Pairs two batches for a model without a condition.
    ///
    /// # Shapes
    /// - `retain`, `forget`: `[batch, …]`, in the range the model was trained on (usually
    ///   `[-1, 1]`)
    ///
    /// # Errors
    /// As [`with_conditions`](UnlearningBatch::with_conditions).
    pub fn new(retain: Tensor<D>, forget: Tensor<D>) -> Result<Self> {
        Self::with_conditions(retain, forget, (), ())
    }
}

impl<const D: usize, C: Condition> UnlearningBatch<D, C> {
    /// Pairs two batches, each with the conditions of its points.
    ///
    /// # Shapes
    /// - `retain`, `forget`: `[batch, …]`; each condition: `batch` rows
    ///
    /// # Errors
    /// [`Error::Empty`] for a batch without rows or elements; [`Error::ShapeMismatch`] if the two
    /// sides or a condition differ in shape; [`Error::DeviceMismatch`].
    pub fn with_conditions(
        retain: Tensor<D>,
        forget: Tensor<D>,
        retain_condition: C,
        forget_condition: C,
    ) -> Result<Self> {
        let shape = retain.dims();
        if shape.contains(&0) {
            return Err(Error::Empty {
                what: "the batch",
                remedy: "give at least one retained and one forgotten point",
            });
        }
        let remedy = "pair each retained point with one forgotten point of its shape; repeat forgotten points";
        check_shape("the forget batch", &shape, &forget.dims(), remedy)?;
        check_device("forgotten points", &retain.device(), &forget.device())?;
        retain_condition.check_rows("the retain condition", shape[0])?;
        forget_condition.check_rows("the forget condition", shape[0])?;
        Ok(Self {
            retain: to_f32(retain.inner()),
            forget: to_f32(forget.inner()),
            retain_condition,
            forget_condition,
            forget_ids: vec![0; shape[0]],
            has_forget_ids: false,
        })
    }

    /// Sets which forgotten point each row holds, for reports and for objectives that keep a state
    /// per point.
    ///
    /// Without ids, every row is taken to hold point 0.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] unless there is one id per row.
    pub fn with_forget_ids(mut self, ids: Vec<u64>) -> Result<Self> {
        let what = "the list of ids of the forgotten points";
        check_shape(
            what,
            &[self.batch_size()],
            &[ids.len()],
            "give one id for every row",
        )?;
        self.forget_ids = ids;
        self.has_forget_ids = true;
        Ok(self)
    }

    /// Moves the batch to another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self {
            retain: self.retain.to_device(device),
            forget: self.forget.to_device(device),
            retain_condition: self.retain_condition.to_device(device),
            forget_condition: self.forget_condition.to_device(device),
            ..self
        }
    }

    /// Number of rows, the same on both sides.
    pub fn batch_size(&self) -> usize {
        self.retain.dims()[0]
    }

    /// The retained points, `[batch, …]`.
    pub fn retain(&self) -> &Tensor<D> {
        &self.retain
    }

    /// The forgotten points, `[batch, …]`.
    pub fn forget(&self) -> &Tensor<D> {
        &self.forget
    }

    /// Ids of the forgotten points, `[batch]`.
    pub fn forget_ids(&self) -> &[u64] {
        &self.forget_ids
    }

    /// The conditions of the points of a side, `batch` rows.
    pub fn condition(&self, side: Side) -> &C {
        match side {
            Side::Retain => &self.retain_condition,
            Side::Forget => &self.forget_condition,
        }
    }

    /// Finds the first NaN or infinity.
    ///
    /// It reads both sides from the device, so it is called only after a step has gone wrong.
    pub(crate) fn check_finite(&self) -> Result<()> {
        check_finite(&self.retain, Side::Retain)?;
        check_finite(&self.forget, Side::Forget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};

    fn set(first: i64, count: i64) -> Tensor<2> {
        let device = Device::flex();
        Tensor::<1, Int>::arange(first..first + count, &device)
            .float()
            .reshape([count as usize, 1])
    }

    #[test]
    fn conditions_and_ids_must_have_a_row_each() {
        let prompt = |rows: usize| Tensor::<2>::zeros([rows, 4], &Device::flex());
        assert!(
            UnlearningBatch::with_conditions(set(0, 2), set(5, 2), prompt(2), prompt(3)).is_err()
        );
        let batch =
            UnlearningBatch::with_conditions(set(0, 2), set(5, 2), prompt(2), prompt(2)).unwrap();
        assert_eq!(batch.forget_ids(), [0, 0]);
        assert!(batch.with_forget_ids(vec![1]).is_err());
    }
}
