//! What a step is given: retained and forgotten points side by side, and who meets whom.

use std::collections::HashMap;

use burn::tensor::Tensor;
use rand::seq::SliceRandom;

use crate::denoiser::{Condition, row_index};
use crate::draws::{Stream, keyed_rng};
use crate::error::{Error, Result, Side};

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
}

impl<const D: usize> UnlearningBatch<D> {
    /// Pairs two batches for a model without a condition.
    ///
    /// # Shapes
    /// - `retain`, `forget`: `[batch, …]`, in the range the model was trained on (usually `[-1, 1]`)
    ///
    /// # Errors
    /// As [`with_conditions`](UnlearningBatch::with_conditions).
    pub fn new(retain: Tensor<D>, forget: Tensor<D>) -> Result<Self> {
        Self::with_conditions(retain, forget, (), ())
    }
}

impl<const D: usize, C: Condition> UnlearningBatch<D, C> {
    /// Pairs two batches, each with what the model is conditioned on.
    ///
    /// # Shapes
    /// - `retain`, `forget`: `[batch, …]`; each condition: `batch` rows
    ///
    /// # Errors
    /// [`Error::Empty`] for a batch without rows or elements; [`Error::ShapeMismatch`] if the two sides or a
    /// condition differ in shape; [`Error::InvalidSetting`] if they are on different devices.
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
        if forget.dims() != shape {
            return Err(Error::ShapeMismatch {
                what: "the forget batch",
                expected: shape.to_vec(),
                got: forget.dims().to_vec(),
                remedy: "pair each retained point with one forgotten point of its shape; repeat forgotten points",
            });
        }
        for (what, condition) in [
            ("the retain condition", &retain_condition),
            ("the forget condition", &forget_condition),
        ] {
            if let Err(rows) = condition.check_rows(shape[0]) {
                return Err(Error::ShapeMismatch {
                    what,
                    expected: vec![shape[0]],
                    got: vec![rows],
                    remedy: "give one condition for every row",
                });
            }
        }
        if retain.device() != forget.device() {
            return Err(Error::InvalidSetting {
                what: format!(
                    "retained points are on {:?}, forgotten ones on {:?}",
                    retain.device(),
                    forget.device()
                ),
                remedy: "move both to the model's device",
            });
        }
        Ok(Self {
            retain: retain.inner(),
            forget: forget.inner(),
            retain_condition,
            forget_condition,
            forget_ids: vec![0; shape[0]],
        })
    }

    /// Says which forgotten point each row holds, for objectives that remember things about points and for reports.
    /// Without it all rows are taken to hold point 0.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] unless there is one id for every row.
    pub fn with_forget_ids(mut self, ids: Vec<u64>) -> Result<Self> {
        if ids.len() != self.batch_size() {
            return Err(Error::ShapeMismatch {
                what: "the ids of the forgotten points",
                expected: vec![self.batch_size()],
                got: vec![ids.len()],
                remedy: "give one id for every row",
            });
        }
        self.forget_ids = ids;
        Ok(self)
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

    pub(crate) fn condition(&self, side: Side) -> &C {
        match side {
            Side::Retain => &self.retain_condition,
            Side::Forget => &self.forget_condition,
        }
    }

    /// Finds the first NaN or infinity. Reads both sides from the device, so it is called when a step has
    /// gone wrong already.
    pub(crate) fn check_finite(&self) -> Result<()> {
        check_finite(&self.retain, Side::Retain)?;
        check_finite(&self.forget, Side::Forget)
    }
}

fn check_finite<const D: usize>(points: &Tensor<D>, side: Side) -> Result<()> {
    let rows = points.dims()[0];
    let values = read_f32(points.clone(), "the data")?;
    let elements = values.len() / rows.max(1);
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::NonFiniteData {
            side,
            row: index / elements.max(1),
            value: values[index],
        }),
    }
}

/// Brings a float tensor to the host.
pub(crate) fn read_f32<const D: usize>(tensor: Tensor<D>, what: &'static str) -> Result<Vec<f32>> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| Error::DeviceRead {
            what,
            message: error.to_string(),
        })
}

/// Which retained point meets which forgotten point, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs {
    /// Index into the retain set, for each row.
    pub retain: Vec<usize>,
    /// Index into the forget set, for each row.
    pub forget: Vec<usize>,
}

/// Pairs retained with forgotten points, the same pairs for the same (seed, step).
///
/// Each set is gone through in shuffled epochs: every point is used once before any is used again. The pairs
/// of a step follow from its number alone, so a resumed run needs nothing but the step.
#[derive(Debug, Clone)]
pub struct PairSampler<const D: usize> {
    retain: Tensor<D>,
    forget: Tensor<D>,
    seed: u64,
}

impl<const D: usize> PairSampler<D> {
    /// A sampler over two data sets held as tensors; batches come on their device.
    ///
    /// Reads both sets once, to compare their contents.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`, the data without the forgotten points; `forget`: `[k, …]`
    ///
    /// # Errors
    /// [`Error::Empty`] or [`Error::ShapeMismatch`]; [`Error::NonFiniteData`];
    /// [`Error::ForgottenPointRetained`] if a forgotten point is in the retain set, value by value.
    pub fn new(retain: Tensor<D>, forget: Tensor<D>, seed: u64) -> Result<Self> {
        for (what, set) in [("the retain set", &retain), ("the forget set", &forget)] {
            if set.dims().contains(&0) {
                return Err(Error::Empty {
                    what,
                    remedy: "give at least one point",
                });
            }
        }
        if retain.dims()[1..] != forget.dims()[1..] {
            return Err(Error::ShapeMismatch {
                what: "a forgotten point",
                expected: retain.dims()[1..].to_vec(),
                got: forget.dims()[1..].to_vec(),
                remedy: "bring both sets to the model's input shape",
            });
        }
        check_finite(&retain, Side::Retain)?;
        check_finite(&forget, Side::Forget)?;
        refuse_common_points(&retain, &forget)?;
        Ok(Self {
            retain,
            forget,
            seed,
        })
    }

    /// The indices that meet in optimiser step `step`.
    ///
    /// # Errors
    /// [`Error::Empty`] for `batch_size = 0`.
    pub fn pairs(&self, step: u64, batch_size: usize) -> Result<Pairs> {
        if batch_size == 0 {
            return Err(Error::Empty {
                what: "the batch",
                remedy: "set a batch size of at least 1",
            });
        }
        let first = u128::from(step) * batch_size as u128;
        Ok(Pairs {
            retain: shuffled_epochs(self.retain.dims()[0], first, batch_size, self.seed, 0),
            forget: shuffled_epochs(self.forget.dims()[0], first, batch_size, self.seed, 1),
        })
    }

    /// The batch of optimiser step `step`, with the indices of the forgotten points as their ids.
    ///
    /// # Errors
    /// [`Error::Empty`] for `batch_size = 0`.
    pub fn batch(&self, step: u64, batch_size: usize) -> Result<UnlearningBatch<D>> {
        let pairs = self.pairs(step, batch_size)?;
        let take = |set: &Tensor<D>, rows: &[usize]| {
            let index = row_index(rows, &set.device());
            Tensor::select(set.clone(), 0, index)
        };
        UnlearningBatch::new(
            take(&self.retain, &pairs.retain),
            take(&self.forget, &pairs.forget),
        )?
        .with_forget_ids(pairs.forget.iter().map(|&index| index as u64).collect())
    }
}

/// Positions `first .. first + count` of an endless sequence of shuffled passes over `0 .. size`.
fn shuffled_epochs(size: usize, first: u128, count: usize, seed: u64, set: u64) -> Vec<usize> {
    let mut epoch_order: Option<(u64, Vec<usize>)> = None;
    (first..first + count as u128)
        .map(|position| {
            let epoch = (position / size as u128) as u64;
            let order = match epoch_order.take() {
                Some((current, order)) if current == epoch => order,
                _ => shuffled(size, seed, epoch, set),
            };
            let index = order[(position % size as u128) as usize];
            epoch_order = Some((epoch, order));
            index
        })
        .collect()
}

fn shuffled(size: usize, seed: u64, epoch: u64, set: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..size).collect();
    order.shuffle(&mut keyed_rng(seed, epoch, set, Stream::Pairs));
    order
}

fn refuse_common_points<const D: usize>(retain: &Tensor<D>, forget: &Tensor<D>) -> Result<()> {
    let elements: usize = retain.dims()[1..].iter().product();
    // Adding 0 makes −0 and 0, which are the same colour, the same bits.
    let bits = |set: &Tensor<D>| -> Result<Vec<u32>> {
        let values = read_f32(set.clone(), "the data")?;
        Ok(values.iter().map(|value| (value + 0.0).to_bits()).collect())
    };
    let (retain, forget) = (bits(retain)?, bits(forget)?);
    let forgotten: HashMap<&[u32], usize> = forget
        .chunks_exact(elements)
        .enumerate()
        .map(|(index, point)| (point, index))
        .collect();
    for (index, point) in retain.chunks_exact(elements).enumerate() {
        if let Some(&forget) = forgotten.get(point) {
            return Err(Error::ForgottenPointRetained {
                forget,
                retain: index,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int};
    use std::collections::HashSet;

    fn set(first: i64, count: i64) -> Tensor<2> {
        let device = Device::flex();
        Tensor::<1, Int>::arange(first..first + count, &device)
            .float()
            .reshape([count as usize, 1])
    }

    #[test]
    fn every_point_is_used_once_an_epoch_and_pairs_repeat() {
        let sampler = PairSampler::new(set(0, 10), set(100, 3), 5).unwrap();
        let steps: Vec<Pairs> = (0..10)
            .map(|step| sampler.pairs(step, 4).unwrap())
            .collect();
        let retained: Vec<usize> = steps
            .iter()
            .flat_map(|pairs| pairs.retain.clone())
            .collect();
        for epoch in retained.chunks(10) {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 10);
        }
        assert_ne!(retained[..10], retained[10..20]);
        let forgotten: Vec<usize> = steps
            .iter()
            .flat_map(|pairs| pairs.forget.clone())
            .collect();
        for epoch in forgotten[..39].chunks(3) {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 3);
        }
        assert_eq!(sampler.pairs(7, 4).unwrap(), steps[7]);
    }

    #[test]
    fn a_batch_holds_the_points_of_its_pairs() {
        let sampler = PairSampler::new(set(0, 10), set(100, 3), 5).unwrap();
        let (pairs, batch) = (sampler.pairs(2, 4).unwrap(), sampler.batch(2, 4).unwrap());
        let retain = batch.retain().to_data().try_to_vec::<f32>().unwrap();
        let forget = batch.forget().to_data().try_to_vec::<f32>().unwrap();
        for row in 0..4 {
            assert_eq!(retain[row], pairs.retain[row] as f32);
            assert_eq!(forget[row], 100.0 + pairs.forget[row] as f32);
            assert_eq!(batch.forget_ids()[row], pairs.forget[row] as u64);
        }
    }

    #[test]
    fn a_forgotten_point_among_the_retained_is_refused() {
        let error = PairSampler::new(set(0, 10), set(7, 1), 0).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ForgottenPointRetained {
                    forget: 0,
                    retain: 7
                }
            ),
            "{error}"
        );
        let device = Device::flex();
        let zero = Tensor::<2>::from_data([[0.0f32]], &device);
        let minus_zero = Tensor::<2>::from_data([[-0.0f32]], &device);
        assert!(PairSampler::new(zero, minus_zero, 0).is_err());
    }

    #[test]
    fn empty_misshapen_and_non_finite_data_are_refused() {
        let device = Device::flex();
        let empty = Tensor::<2>::zeros([0, 1], &device);
        assert!(matches!(
            PairSampler::new(empty.clone(), set(0, 1), 0),
            Err(Error::Empty { .. })
        ));
        assert!(matches!(
            UnlearningBatch::new(empty.clone(), empty),
            Err(Error::Empty { .. })
        ));
        let wide = Tensor::<2>::zeros([2, 2], &device);
        let error = PairSampler::new(set(0, 5), wide.clone(), 0).unwrap_err();
        assert!(error.to_string().contains("[2]"), "{error}");
        assert!(UnlearningBatch::new(set(0, 2), wide).is_err());
        let nan = Tensor::<2>::from_data([[1.0], [f32::NAN]], &device);
        let error = PairSampler::new(set(0, 5), nan.clone(), 0).unwrap_err();
        assert!(
            matches!(
                error,
                Error::NonFiniteData {
                    side: Side::Forget,
                    row: 1,
                    ..
                }
            ),
            "{error}"
        );
        assert!(
            PairSampler::new(set(0, 5), set(9, 1), 0)
                .unwrap()
                .pairs(0, 0)
                .is_err()
        );
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
