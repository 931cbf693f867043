//! `PairSampler`: batches from a retained and a forgotten set.

use burn::tensor::Tensor;
use sha2::{Digest, Sha256};

use super::batch::UnlearningBatch;
use super::common::refuse_common_points;
use super::dropping::Dropping;
use super::pairing::{Pairing, Pairs};
use super::points::check_not_empty;
use super::side::Side;
use crate::denoiser::Condition;
use crate::error::{Result, check_device, check_shape};
use crate::host::{select_rows, to_f32};

/// Pairs retained with forgotten points; the same (seed, step) always gives the same pairs.
///
/// The pairs are those of [`Pairing`]; use that for sets that do not fit in memory. `C` is the
/// model's condition: each point keeps its own.
#[derive(Debug, Clone)]
pub struct PairSampler<const D: usize, C = ()> {
    retain: Tensor<D>,
    forget: Tensor<D>,
    retain_condition: C,
    forget_condition: C,
    pairing: Pairing,
    dropping: Option<Dropping<C>>,
}

impl<const D: usize> PairSampler<D> {
    /// Creates a sampler over two data sets held as tensors, for a model without a condition.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`, the data without the forgotten points; `forget`: `[k, …]`
    ///
    /// # Errors
    /// As [`with_conditions`](PairSampler::with_conditions).
    pub fn new(retain: Tensor<D>, forget: Tensor<D>, seed: u64) -> Result<Self> {
        Self::with_conditions(retain, forget, (), (), seed)
    }
}

impl<const D: usize, C: Condition> PairSampler<D, C> {
    /// Creates a sampler over two data sets held as tensors, each with the conditions of its
    /// points.
    ///
    /// Batches are on the device of the sets.
    ///
    /// Reads both sets once, in chunks, to compare their contents. Points that are almost the same
    /// are legal here: [`DataCheck`](crate::data::DataCheck) finds them. The comparison ignores
    /// conditions: a point with two conditions is one point.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`, the data without the forgotten points; `retain_condition`: `n` rows
    /// - `forget`: `[k, …]`; `forget_condition`: `k` rows
    ///
    /// # Errors
    /// [`Error::Empty`](crate::Error::Empty);
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch), also for a condition without a row
    /// for each point; [`Error::DeviceMismatch`](crate::Error::DeviceMismatch);
    /// [`Error::NonFiniteData`](crate::Error::NonFiniteData);
    /// [`Error::ForgottenPointRetained`](crate::Error::ForgottenPointRetained) if a forgotten point
    /// is in the retain set, value by value.
    ///
    /// # Example
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use siss::PairSampler;
    ///
    /// let device = Device::flex();
    /// let (retain, forget) = (Tensor::<2>::zeros([3, 8], &device), Tensor::ones([1, 8], &device));
    /// let prompts = ["a dog", "a cat", "a hat"].map(String::from).to_vec();
    /// let face = vec!["a face".into()];
    /// let pairs = PairSampler::with_conditions(retain, forget, prompts, face, 0)?;
    /// assert_eq!(pairs.batch(0, 16)?.batch_size(), 16);
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn with_conditions(
        retain: Tensor<D>,
        forget: Tensor<D>,
        retain_condition: C,
        forget_condition: C,
        seed: u64,
    ) -> Result<Self> {
        let counts = [retain.dims()[0], forget.dims()[0]];
        let pairing = Pairing::new(counts[0], counts[1], seed)?;
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
        retain_condition.check_rows("the retain condition", counts[0])?;
        forget_condition.check_rows("the forget condition", counts[1])?;
        let (retain, forget) = (to_f32(retain.inner()), to_f32(forget.inner()));
        refuse_common_points(&retain, &forget)?;
        Ok(Self {
            retain,
            forget,
            retain_condition,
            forget_condition,
            pairing,
            dropping: None,
        })
    }

    /// The same sampler with another seed; the sets are shared.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.pairing = self.pairing.with_seed(seed);
        self
    }

    /// Replaces conditions by `none`, such as the null class or the encoded empty prompt, with this
    /// probability, as in the training of a model for classifier-free guidance.
    ///
    /// It is decided for each row of a batch and each side by itself, by a number keyed by seed,
    /// step, side and row.
    ///
    /// # Shapes
    /// - `none`: one row
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) for an invalid probability;
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for more than one row, or those of
    /// [`Condition::extended_by`].
    ///
    /// # Example
    /// ```
    /// use burn::tensor::{Device, Tensor};
    /// use siss::{PairSampler, Side};
    ///
    /// let device = Device::flex();
    /// let (retain, forget) = (Tensor::<2>::zeros([3, 8], &device), Tensor::ones([1, 8], &device));
    /// let prompts = ["a dog", "a cat", "a hat"].map(String::from).to_vec();
    /// let face = vec!["a face".to_string()];
    /// let pairs = PairSampler::with_conditions(retain, forget, prompts, face, 0)?
    ///     .dropping(0.1, vec![String::new()])?;
    /// let batch = pairs.batch(0, 1000)?;
    /// let dropped = batch.condition(Side::Forget).iter().filter(|prompt| prompt.is_empty());
    /// assert!((70..130).contains(&dropped.count()));
    /// # Ok::<(), siss::Error>(())
    /// ```
    pub fn dropping(mut self, probability: f64, none: C) -> Result<Self> {
        let like = self.retain_condition.take_rows(&[0]);
        self.dropping = Some(Dropping::new(probability, none, like)?);
        Ok(self)
    }

    /// The retain set, `[n, …]`.
    pub fn retain(&self) -> &Tensor<D> {
        &self.retain
    }

    /// The forget set, `[k, …]`.
    pub fn forget(&self) -> &Tensor<D> {
        &self.forget
    }

    /// The conditions of the points of a side, `n` or `k` rows.
    pub fn condition(&self, side: Side) -> &C {
        match side {
            Side::Retain => &self.retain_condition,
            Side::Forget => &self.forget_condition,
        }
    }

    /// SHA-256 of the seed and of the shapes, values and conditions of both sets.
    ///
    /// These determine which points are paired in every step, and with which condition. A resumed
    /// run must have the same fingerprint ([`Checkpoints::setting`](crate::Checkpoints::setting)).
    ///
    /// Reads both sets and their conditions from their device.
    ///
    /// # Errors
    /// [`Error::DeviceRead`](crate::Error::DeviceRead), and the errors of [`Condition::digest`].
    pub fn fingerprint(&self) -> Result<String> {
        let mut digest = Sha256::new();
        digest.update(self.pairing.seed().to_le_bytes());
        for set in [&self.retain, &self.forget] {
            set.digest(&mut |bytes| digest.update(bytes))?;
        }
        for condition in [&self.retain_condition, &self.forget_condition] {
            condition.digest(&mut |bytes| digest.update(bytes))?;
        }
        if let Some(dropping) = &self.dropping {
            dropping.digest(&mut |bytes| digest.update(bytes))?;
        }
        Ok(format!("{:x}", digest.finalize()))
    }

    /// The indices that are paired in optimiser step `step`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `batch_size` is from 1 to 1,000,000.
    pub fn pairs(&self, step: u64, batch_size: usize) -> Result<Pairs> {
        self.pairing.pairs(step, batch_size)
    }

    /// The batch of optimiser step `step`: each point with its condition, and the indices of the
    /// forgotten points as their ids.
    ///
    /// # Errors
    /// As [`pairs`](PairSampler::pairs).
    pub fn batch(&self, step: u64, batch_size: usize) -> Result<UnlearningBatch<D, C>> {
        let pairs = self.pairs(step, batch_size)?;
        UnlearningBatch::with_conditions(
            select_rows(&self.retain, &pairs.retain),
            select_rows(&self.forget, &pairs.forget),
            self.conditions(Side::Retain, &pairs.retain, step)?,
            self.conditions(Side::Forget, &pairs.forget, step)?,
        )?
        .with_forget_ids(pairs.forget_ids())
    }

    /// The conditions of some points of a side, except those that are dropped.
    fn conditions(&self, side: Side, points: &[usize], step: u64) -> Result<C> {
        let own = self.condition(side).take_rows(points);
        match &self.dropping {
            Some(dropping) => dropping.apply(own, points.len(), side, [self.pairing.seed(), step]),
            None => Ok(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
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
        let (retain_condition, forget_condition) = (retain.clone(), forget.clone());
        let sampler =
            PairSampler::with_conditions(retain, forget, retain_condition, forget_condition, 5)
                .unwrap();
        let batch = sampler.batch(2, 4).unwrap();
        for (side, points) in [
            (Side::Retain, batch.retain()),
            (Side::Forget, batch.forget()),
        ] {
            let [condition, points] =
                [batch.condition(side), points].map(|rows| rows.to_data().try_to_vec::<f32>());
            assert_eq!(condition.unwrap(), points.unwrap());
        }
    }

    /// 10,000 rows of a probability of 0.2 are within four standard deviations, 0.004 each.
    #[test]
    fn conditions_are_dropped_as_often_as_asked_for_and_the_same_in_every_run() {
        let sampler = |probability| {
            let sampler =
                PairSampler::with_conditions(set(0, 10), set(100, 3), set(0, 10), set(100, 3), 5);
            let none = Tensor::from_data([[-1.0]], &Device::flex());
            sampler.unwrap().dropping(probability, none).unwrap()
        };
        let conditions = |sampler: &PairSampler<2, Tensor<2>>, step, side| {
            let batch = sampler.batch(step, 5000).unwrap();
            batch.condition(side).to_data().try_to_vec::<f32>().unwrap()
        };
        let some = sampler(0.2);
        let [retain, forget] = [Side::Retain, Side::Forget].map(|side| conditions(&some, 3, side));
        let all = [retain.clone(), forget.clone()].concat();
        let share = all.iter().filter(|&&value| value == -1.0).count() as f64 / 10_000.0;
        assert!((0.184..0.216).contains(&share), "{share}");
        // Others are unchanged, and the sides are independent of each other.
        let plain = conditions(&sampler(0.0), 3, Side::Retain);
        assert!(
            retain
                .iter()
                .zip(&plain)
                .all(|(now, own)| now == own || *now == -1.0)
        );
        let both = retain
            .iter()
            .zip(&forget)
            .filter(|(a, b)| **a == -1.0 && **b == -1.0)
            .count();
        assert!((140..260).contains(&both), "{both}");
        assert_eq!(conditions(&sampler(0.2), 3, Side::Retain), retain);
        assert_ne!(conditions(&some, 4, Side::Forget), forget);
        assert!(
            conditions(&sampler(1.0), 0, Side::Forget)
                .iter()
                .all(|value| *value == -1.0)
        );
        let fingerprint = |probability| sampler(probability).fingerprint().unwrap();
        assert_ne!(fingerprint(0.2), fingerprint(0.1));
    }

    #[test]
    fn what_cannot_stand_for_a_condition_is_refused() {
        let sampler =
            || PairSampler::with_conditions(set(0, 2), set(5, 2), set(0, 2), set(5, 2), 0).unwrap();
        for probability in [-0.1, 1.1, f64::NAN] {
            assert!(sampler().dropping(probability, set(0, 1)).is_err());
        }
        assert!(sampler().dropping(0.1, set(0, 2)).is_err());
        assert!(sampler().dropping(0.1, set(0, 1).repeat_dim(1, 2)).is_err());
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

    /// Several chunks, a copy in the last of them, and two identical forgotten points.
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

    #[test]
    fn a_fingerprint_tells_conditions_and_their_sides_apart() {
        let fingerprint = |retain: [i32; 2], forget: [i32; 2]| {
            let [retain, forget] = [retain, forget]
                .map(|classes| Tensor::<1, Int>::from_data(classes, &Device::flex()));
            let sampler = PairSampler::with_conditions(set(0, 2), set(5, 2), retain, forget, 5);
            sampler.unwrap().fingerprint().unwrap()
        };
        let own = fingerprint([1, 2], [3, 4]);
        assert_eq!(own, fingerprint([1, 2], [3, 4]));
        for (retain, forget) in [([2, 1], [3, 4]), ([1, 2], [3, 5]), ([3, 4], [1, 2])] {
            assert_ne!(own, fingerprint(retain, forget));
        }
    }

    #[test]
    fn a_condition_without_a_row_for_each_point_is_refused_at_once() {
        let prompts = |count| vec![String::new(); count];
        let build = |retain, forget| {
            let (retain, forget) = (prompts(retain), prompts(forget));
            PairSampler::with_conditions(set(0, 5), set(9, 2), retain, forget, 0)
        };
        assert!(build(5, 2).is_ok());
        for (retain, forget, found) in [(4, 2, "[4], but [5]"), (5, 3, "[3], but [2]")] {
            let error = build(retain, forget).unwrap_err();
            assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
            assert!(error.to_string().contains(found), "{error}");
        }
    }
}
