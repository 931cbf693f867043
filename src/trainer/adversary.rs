//! Forgotten conditions that are searched for while the model is trained.

use std::fmt::{self, Debug};

use burn::tensor::{Tensor, TensorData};

use super::SissTrainer;
use crate::data::UnlearningBatch;
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, check_range, check_shape};
use crate::evaluate::{EmbeddingSearch, embedding_of};
use crate::host::read_f32;

/// Every so many rows one has the condition that was found.
const ONE_OF: u64 = 2;

/// Embeddings under which the model that is being trained still knows the forgotten points, put in
/// the place of half of the forgotten conditions.
///
/// A model can forget a point under the prompts of the run and know it under others. So every few
/// steps an [`EmbeddingSearch`] of few steps moves an embedding of each forgotten point to where
/// the current model knows the point best; the search continues where the last one stood, with new
/// moments of Adam. The rows of a batch have the plain and the found condition in turn.
///
/// It changes batches and nothing else, so it goes with every objective. What the model should
/// answer under such an embedding, the objective says: for [`Answers`](crate::objective::Answers)
/// with a [`PredictedAnswer`](crate::answer::PredictedAnswer) it is what is predicted of a model
/// that never saw the point.
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{DdpmScheduler, FnDenoiser, PairSampler, SissTrainer};
/// use siss::evaluate::EmbeddingSearch;
/// use siss::trainer::Adversary;
///
/// # let device = Device::flex();
/// # let layer = LinearConfig::new(5, 3).init(&device);
/// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, prompt: &Tensor<2>| {
/// #     layer.forward(Tensor::cat(vec![noisy, prompt.clone()], 1))
/// # });
/// # let retain = Tensor::<2>::random([20, 3], Distribution::Default, &device);
/// # let forget = Tensor::<2>::ones([1, 3], &device);
/// # let (prompts, prompt) = (Tensor::<2>::zeros([20, 2], &device), Tensor::<2>::ones([1, 2], &device));
/// let search = EmbeddingSearch::while_training();
/// let mut adversary = Adversary::new(search, 5, forget.clone(), prompt.clone())?;
/// let pairs = PairSampler::with_conditions(retain, forget, prompts, prompt, 0)?;
/// let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?).build()?;
/// for step in 0..10 {
///     let batch = adversary.confront(&trainer, pairs.batch(step, 8)?)?;
///     trainer.step(batch)?;
/// }
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// The adversarial fine-tuning of *Finding DoRI*, arXiv 2507.16880, which searches anew in every
/// step.
#[derive(Clone)]
pub struct Adversary<const D: usize, C> {
    search: EmbeddingSearch,
    every: u64,
    points: Tensor<D>,
    /// One row per forgotten point.
    found: C,
}

impl<const D: usize, C> Debug for Adversary<D, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Adversary")
            .field("search", &self.search)
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}

impl<const D: usize, C: Condition> Adversary<D, C> {
    /// Searches before every `every`-th step, beginning at the conditions of the points.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`, the forgotten points in the order of their ids; `condition`: `n` rows
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a setting outside its range; [`Error::ShapeMismatch`] for a
    /// condition with another number of rows; [`Error::InvalidSetting`] for one without an
    /// embedding, such as a label.
    pub fn new(
        search: EmbeddingSearch,
        every: u64,
        points: Tensor<D>,
        condition: C,
    ) -> Result<Self> {
        search.check()?;
        check_range("every", every as f64, every >= 1, "at least 1")?;
        condition.check_rows("the forgotten condition", points.dims()[0])?;
        embedding_of(&condition)?;
        Ok(Self {
            search,
            every,
            points,
            found: condition,
        })
    }

    /// Puts what was found in the place of half of the forgotten conditions, after a search if one
    /// is due before the trainer's next step.
    ///
    /// # Errors
    /// [`Error::UnknownPoint`] for an id without a point, and those of [`EmbeddingSearch::run`].
    pub fn confront<M: Denoiser<D, Condition = C>>(
        &mut self,
        trainer: &SissTrainer<M, D>,
        batch: UnlearningBatch<D, C>,
    ) -> Result<UnlearningBatch<D, C>> {
        let step = trainer.next_step();
        if step.is_multiple_of(self.every) {
            let first = (step / self.every).wrapping_mul(self.search.steps);
            let (model, scheduler) = (trainer.model(), trainer.scheduler());
            let search = &self.search;
            let found = search.run_from(first, model, scheduler, &self.points, &self.found)?;
            self.found = found.condition;
        }
        self.replace(step, batch)
    }

    fn replace(
        &self,
        step: u64,
        mut batch: UnlearningBatch<D, C>,
    ) -> Result<UnlearningBatch<D, C>> {
        let (rows, known) = (batch.batch_size(), self.points.dims()[0]);
        let row = |(row, &id): (usize, &u64)| {
            // In a batch of one row every second step has it.
            if !(row as u64 + step).is_multiple_of(ONE_OF) {
                return Ok(row);
            }
            match usize::try_from(id) {
                Ok(point) if point < known => Ok(rows + point),
                _ => Err(Error::UnknownPoint {
                    id,
                    missing: "embedding",
                    known,
                    remedy: "give the adversary every forgotten point, in the order of their ids",
                }),
            }
        };
        let taken = batch.forget_ids.iter().enumerate().map(row);
        let taken = taken.collect::<Result<Vec<_>>>()?;
        let all = batch.forget_condition.extended_by(self.found.clone())?;
        batch.forget_condition = all.take_rows(&taken);
        Ok(batch)
    }

    /// The settings, which must be the same when a run is resumed.
    pub fn settings(&self) -> String {
        let (every, search) = (self.every, &self.search);
        format!(
            "every {every} steps, {} of {} draws at {:e}, seed {}",
            search.steps, search.batch_size, search.learning_rate, search.seed
        )
    }

    /// The embeddings found so far, for a checkpoint: the bits of their numbers, row after row.
    ///
    /// # Errors
    /// [`Error::DeviceRead`].
    pub fn state(&self) -> Result<Vec<u32>> {
        let values = read_f32(embedding_of(&self.found)?, "the embeddings")?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    }

    /// Restores the result of [`state`](Adversary::state), to the bit.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for another number of numbers.
    pub fn restore(&mut self, state: &[u32]) -> Result<()> {
        let embedding = embedding_of(&self.found)?;
        let shape = embedding.dims();
        let remedy = "resume with the conditions of the run that was saved";
        let expected = [shape.iter().product()];
        check_shape("the embeddings", &expected, &[state.len()], remedy)?;
        let values: Vec<f32> = state.iter().copied().map(f32::from_bits).collect();
        let restored = Tensor::from_data(TensorData::new(values, shape), &embedding.device());
        self.found = self.found.with_embedding(restored);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::FnDenoiser;
    use crate::process::DdpmScheduler;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    fn trainer(device: &Device) -> SissTrainer<impl Denoiser<2, Condition = Tensor<2>>, 2> {
        let layer = LinearConfig::new(2, 3).init(device);
        let model = FnDenoiser::new(
            layer,
            |layer: &Linear, noisy: Tensor<2>, _, prompt: &Tensor<2>| {
                noisy + layer.forward(prompt.clone())
            },
        );
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        SissTrainer::builder(model, scheduler).build().unwrap()
    }

    fn search() -> EmbeddingSearch {
        EmbeddingSearch {
            steps: 2,
            ..EmbeddingSearch::default()
        }
    }

    fn batch(ids: Vec<u64>, device: &Device) -> UnlearningBatch<2, Tensor<2>> {
        let rows = ids.len();
        let points = Tensor::<2>::ones([rows, 3], device);
        let prompts = Tensor::<2>::zeros([rows, 2], device);
        let batch =
            UnlearningBatch::with_conditions(points.clone(), points, prompts.clone(), prompts);
        batch.unwrap().with_forget_ids(ids).unwrap()
    }

    fn forgotten(batch: &UnlearningBatch<2, Tensor<2>>) -> Vec<f32> {
        batch.forget_condition.to_data().try_to_vec().unwrap()
    }

    #[test]
    fn every_second_row_has_what_was_found_for_its_point() {
        let device = Device::flex();
        let points = Tensor::<2>::ones([2, 3], &device);
        let prompts = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
        let mut adversary = Adversary::new(search(), 3, points, prompts).unwrap();
        let plain = batch(vec![1, 1, 0, 0], &device);
        let replaced = adversary.replace(0, plain.clone()).unwrap();
        assert_eq!(
            forgotten(&replaced),
            [3.0, 4.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0]
        );
        let replaced = adversary.replace(1, plain.clone()).unwrap();
        assert_eq!(
            forgotten(&replaced),
            [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0]
        );
        let kept: Vec<f32> = replaced.retain_condition.to_data().try_to_vec().unwrap();
        assert_eq!(kept, [0.0; 8]);

        let before = adversary.state().unwrap();
        let mut trainer = trainer(&device);
        let confronted = adversary.confront(&trainer, plain.clone()).unwrap();
        let found = adversary.state().unwrap();
        assert_ne!(found, before);
        trainer.step(confronted).unwrap();
        // No search is due before the second step.
        adversary.confront(&trainer, plain).unwrap();
        assert_eq!(adversary.state().unwrap(), found);
        adversary.restore(&before).unwrap();
        assert_eq!(adversary.state().unwrap(), before);
        assert!(adversary.restore(&before[1..]).is_err());
    }

    #[test]
    fn an_adversary_that_could_not_search_is_refused() {
        let device = Device::flex();
        let points = Tensor::<2>::ones([2, 3], &device);
        let prompts = |rows: usize| Tensor::<2>::zeros([rows, 2], &device);
        assert!(Adversary::new(search(), 0, points.clone(), prompts(2)).is_err());
        assert!(Adversary::new(search(), 1, points.clone(), prompts(3)).is_err());
        let words = vec![String::new(); 2];
        assert!(Adversary::new(search(), 1, points.clone(), words).is_err());
        let adversary = Adversary::new(search(), 1, points, prompts(2)).unwrap();
        let error = adversary.replace(0, batch(vec![2], &device)).unwrap_err();
        assert!(
            matches!(error, Error::UnknownPoint { id: 2, .. }),
            "{error}"
        );
    }
}
