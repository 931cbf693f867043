//! PairSampler: batches from two sets.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use burn::tensor::Tensor;
use sha2::{Digest, Sha256};

use super::batch::UnlearningBatch;
use super::finite::check_finite_values;
use super::pairing::{Pairing, Pairs};
use super::points::{check_not_empty, chunks};
use super::side::Side;
use crate::denoiser::Condition;
use crate::error::{Error, Result, check_device, check_shape};
use crate::host::{read_f32, select_rows, to_f32};

/// Pairs retained with forgotten points, the same pairs for the same (seed, step).
///
/// Who meets whom is as in [`Pairing`], which is the way for sets that do not fit the memory.
#[derive(Debug, Clone)]
pub struct PairSampler<const D: usize> {
    retain: Tensor<D>,
    forget: Tensor<D>,
    pairing: Pairing,
}

impl<const D: usize> PairSampler<D> {
    /// A sampler over two data sets held as tensors; batches come on their device.
    ///
    /// Reads both sets once, in chunks, to compare their contents. Points that are almost the same are legal here:
    /// [`DataCheck`](crate::data::DataCheck) finds them.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`, the data without the forgotten points; `forget`: `[k, …]`
    ///
    /// # Errors
    /// [`Error::Empty`] or [`Error::ShapeMismatch`]; [`Error::NonFiniteData`];
    /// [`Error::ForgottenPointRetained`] if a forgotten point is in the retain set, value by value.
    pub fn new(retain: Tensor<D>, forget: Tensor<D>, seed: u64) -> Result<Self> {
        let pairing = Pairing::new(retain.dims()[0], forget.dims()[0], seed)?;
        check_not_empty(&retain, "the retain set")?;
        check_not_empty(&forget, "the forget set")?;
        let remedy = "bring both sets to the model's input shape";
        check_shape(
            "a forgotten point",
            &retain.dims()[1..],
            &forget.dims()[1..],
            remedy,
        )?;
        check_device("forgotten points", &retain.device(), &forget.device())?;
        let (retain, forget) = (to_f32(retain.inner()), to_f32(forget.inner()));
        refuse_common_points(&retain, &forget)?;
        Ok(Self {
            retain,
            forget,
            pairing,
        })
    }

    /// The same sets, which are shared, met in the order of another seed.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.pairing = self.pairing.with_seed(seed);
        self
    }

    /// The retain set, `[n, …]`.
    pub fn retain(&self) -> &Tensor<D> {
        &self.retain
    }

    /// The forget set, `[k, …]`.
    pub fn forget(&self) -> &Tensor<D> {
        &self.forget
    }

    /// SHA-256 of the seed, the shapes and the values of both sets: who meets whom in every step. A run that is resumed must
    /// have the same ([`Checkpoints::setting`](crate::Checkpoints::setting)).
    ///
    /// Reads both sets from their device.
    ///
    /// # Errors
    /// [`Error::DeviceRead`].
    pub fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        digest.update(self.pairing.seed().to_le_bytes());
        for set in [&self.retain, &self.forget] {
            digest.update(format!("{:?}\n", set.dims()));
            for chunk in chunks(set, &set.device()) {
                for value in read_f32(chunk?.1, "the data")? {
                    digest.update(value.to_le_bytes());
                }
            }
        }
        Ok(format!("{:x}", digest.finalize()))
    }

    /// The indices that meet in optimiser step `step`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `batch_size` is from 1 to 1,000,000.
    pub fn pairs(&self, step: u64, batch_size: usize) -> Result<Pairs> {
        self.pairing.pairs(step, batch_size)
    }

    /// The batch of optimiser step `step`, with the indices of the forgotten points as their ids.
    ///
    /// # Errors
    /// As [`pairs`](PairSampler::pairs).
    pub fn batch(&self, step: u64, batch_size: usize) -> Result<UnlearningBatch<D>> {
        self.batch_with_conditions(step, batch_size, &(), &())
    }

    /// The same for a model with a condition: each point's own goes with it.
    ///
    /// # Shapes
    /// - `retain_condition`: a row for each point of the retain set; `forget_condition`: likewise
    ///
    /// # Errors
    /// As [`pairs`](PairSampler::pairs); [`Error::ShapeMismatch`] if a condition has not a row for each point.
    pub fn batch_with_conditions<C: Condition>(
        &self,
        step: u64,
        batch_size: usize,
        retain_condition: &C,
        forget_condition: &C,
    ) -> Result<UnlearningBatch<D, C>> {
        let pairs = self.pairs(step, batch_size)?;
        let conditions = |what, condition: &C, set: &Tensor<D>, rows: &[usize]| {
            let points = set.dims()[0];
            let found = condition.check_rows(points).err().unwrap_or(points);
            check_shape(
                what,
                &[points],
                &[found],
                "give one condition for every point of the set",
            )?;
            Ok(condition.select(rows))
        };
        UnlearningBatch::with_conditions(
            select_rows(&self.retain, &pairs.retain),
            select_rows(&self.forget, &pairs.forget),
            conditions(
                "the retain condition",
                retain_condition,
                &self.retain,
                &pairs.retain,
            )?,
            conditions(
                "the forget condition",
                forget_condition,
                &self.forget,
                &pairs.forget,
            )?,
        )?
        .with_forget_ids(pairs.forget_ids())
    }
}

/// Points are told apart by a number each, and compared value by value where it is the same.
fn refuse_common_points<const D: usize>(retain: &Tensor<D>, forget: &Tensor<D>) -> Result<()> {
    let mut forgotten: HashMap<u64, Vec<usize>> = HashMap::new();
    for_each_point(forget, Side::Forget, |index, point| {
        let alike = forgotten.entry(fingerprint(point)).or_default();
        alike.push(index);
        Ok(())
    })?;
    for_each_point(retain, Side::Retain, |index, point| {
        for &alike in forgotten.get(&fingerprint(point)).into_iter().flatten() {
            let other = read_f32(forget.clone().narrow(0, alike, 1), "the data")?;
            // As numbers: −0 and 0 are the same colour.
            if point == other {
                return Err(Error::ForgottenPointRetained {
                    forget: alike,
                    retain: index,
                });
            }
        }
        Ok(())
    })
}

/// Shows all points of a set in order, a chunk of them on the host at a time.
///
/// # Errors
/// [`Error::NonFiniteData`] names the first NaN or infinity.
fn for_each_point<const D: usize>(
    set: &Tensor<D>,
    side: Side,
    mut look: impl FnMut(usize, &[f32]) -> Result<()>,
) -> Result<()> {
    for chunk in chunks(set, &set.device()) {
        let (first, rows) = chunk?;
        let count = rows.dims()[0];
        let values = read_f32(rows, "the data")?;
        check_finite_values(&values, first, count, side)?;
        for (index, point) in (first..).zip(values.chunks_exact(values.len() / count)) {
            look(index, point)?;
        }
    }
    Ok(())
}

/// A number that points with the same values have in common, and hardly any others.
fn fingerprint(point: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for value in point {
        // Adding 0 makes −0 the bits of 0.
        hasher.write_u32((value + 0.0).to_bits());
    }
    hasher.finish()
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
    fn a_sampler_can_begin_anywhere_and_its_fingerprint_says_whether_it_is_the_same() {
        let sampler = || PairSampler::new(set(0, 10), set(100, 3), 5).unwrap();
        let whole = sampler();
        let steps: Vec<Pairs> = (0..50).map(|step| whole.pairs(step, 7).unwrap()).collect();
        for step in [49, 3, 31, 0, 48] {
            assert_eq!(sampler().pairs(step, 7).unwrap(), steps[step as usize]);
        }
        let fingerprint = |sampler: PairSampler<2>| sampler.fingerprint().unwrap();
        assert_eq!(fingerprint(sampler()), fingerprint(whole));
        for other in [
            sampler().with_seed(6),
            PairSampler::new(set(0, 11), set(100, 3), 5).unwrap(),
            PairSampler::new(set(0, 10), set(101, 3), 5).unwrap(),
            PairSampler::new(set(0, 10).reshape([5, 2]), set(100, 4).reshape([2, 2]), 5).unwrap(),
        ] {
            assert_ne!(fingerprint(sampler()), fingerprint(other));
        }
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
    fn a_batch_holds_the_conditions_of_its_pairs() {
        // Each point is its own condition.
        let (retain, forget) = (set(0, 10), set(100, 3));
        let sampler = PairSampler::new(retain.clone(), forget.clone(), 5).unwrap();
        let batch = sampler
            .batch_with_conditions(2, 4, &retain, &forget)
            .unwrap();
        for (side, points) in [
            (Side::Retain, batch.retain()),
            (Side::Forget, batch.forget()),
        ] {
            let [condition, points] =
                [batch.condition(side), points].map(|rows| rows.to_data().try_to_vec::<f32>());
            assert_eq!(condition.unwrap(), points.unwrap());
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

    /// Several chunks, the copy in the last of them, and two forgotten points that are the same.
    #[test]
    fn a_copy_is_found_in_whatever_chunk_it_is() {
        let retain = set(0, 600_000);
        let forget = Tensor::cat(vec![set(-5, 1), set(599_999, 1), set(599_999, 1)], 0);
        let error = PairSampler::new(retain.clone(), forget.clone(), 0).unwrap_err();
        assert!(
            matches!(
                error,
                Error::ForgottenPointRetained {
                    forget: 1,
                    retain: 599_999
                }
            ),
            "{error}"
        );
        let apart = retain.narrow(0, 0, 599_999);
        assert!(PairSampler::new(apart.clone(), forget.clone(), 0).is_ok());
        let torn = Tensor::cat(vec![apart, set(0, 1) / 0.0], 0);
        let error = PairSampler::new(torn, forget, 0).unwrap_err();
        assert!(
            matches!(error, Error::NonFiniteData { row: 599_999, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_fingerprint_tells_which_set_a_point_is_in() {
        let fingerprint = |retain: Tensor<2>, forget: Tensor<2>| {
            let sampler = PairSampler::new(retain, forget, 5).unwrap();
            sampler.fingerprint().unwrap()
        };
        assert_ne!(
            fingerprint(set(0, 9), set(9, 4)),
            fingerprint(set(0, 10), set(10, 3))
        );
    }
}
