//! What a prediction is conditioned on.

use burn::tensor::{Device, Int, Tensor};

use crate::host::row_index;

/// What a prediction is conditioned on, one entry a row.
///
/// The trainer runs parts of a batch, so it must be able to take some of the rows.
pub trait Condition: Clone + Send {
    /// Whether it says nothing of a point, as `()`. What looks at points of one class alone asks for it.
    const IS_EMPTY: bool = false;

    /// The rows with these indices, in this order; an index may come twice. Called with indices below the number that
    /// [`check_rows`](Condition::check_rows) accepted.
    fn select(&self, rows: &[usize]) -> Self;

    /// Whether there is one entry for each of `rows` rows; `()` fits any number.
    ///
    /// # Errors
    /// The number of entries that there are instead.
    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize>;

    /// The same on another device, for [`SissTrainer::self_check`](crate::SissTrainer::self_check).
    fn to_device(self, device: &Device) -> Self;
}

impl Condition for () {
    const IS_EMPTY: bool = true;

    fn select(&self, _rows: &[usize]) -> Self {}

    fn check_rows(&self, _rows: usize) -> std::result::Result<(), usize> {
        Ok(())
    }

    fn to_device(self, _device: &Device) -> Self {}
}

impl<const D: usize> Condition for Tensor<D> {
    fn select(&self, rows: &[usize]) -> Self {
        Tensor::select(self.clone(), 0, row_index(rows, &self.device()))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        check_count(self.dims()[0], rows)
    }

    fn to_device(self, device: &Device) -> Self {
        Tensor::to_device(self, device)
    }
}

impl<const D: usize> Condition for Tensor<D, Int> {
    fn select(&self, rows: &[usize]) -> Self {
        Tensor::select(self.clone(), 0, row_index(rows, &self.device()))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        check_count(self.dims()[0], rows)
    }

    fn to_device(self, device: &Device) -> Self {
        Tensor::to_device(self, device)
    }
}

impl<A: Condition, B: Condition> Condition for (A, B) {
    const IS_EMPTY: bool = A::IS_EMPTY && B::IS_EMPTY;

    fn select(&self, rows: &[usize]) -> Self {
        (self.0.select(rows), self.1.select(rows))
    }

    fn check_rows(&self, rows: usize) -> std::result::Result<(), usize> {
        self.0.check_rows(rows)?;
        self.1.check_rows(rows)
    }

    fn to_device(self, device: &Device) -> Self {
        (self.0.to_device(device), self.1.to_device(device))
    }
}

fn check_count(found: usize, rows: usize) -> std::result::Result<(), usize> {
    if found == rows { Ok(()) } else { Err(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn conditions_select_rows_in_order() {
        let device = Device::flex();
        let prompt = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let class = Tensor::<1, Int>::from_data([7, 8, 9], &device);
        let condition = ((), (prompt, class));
        assert_eq!(condition.check_rows(3), Ok(()));
        assert_eq!(condition.check_rows(2), Err(3));
        let uneven = (
            Tensor::<1>::zeros([3], &device),
            Tensor::<1>::zeros([4], &device),
        );
        assert_eq!(uneven.check_rows(3), Err(4));
        let ((), (prompt, class)) = condition.select(&[2, 0]);
        assert_eq!(
            prompt.into_data().try_to_vec::<f32>().unwrap(),
            [5.0, 6.0, 1.0, 2.0]
        );
        assert_eq!(class.into_data().iter::<i64>().collect::<Vec<_>>(), [9, 7]);
    }
}
