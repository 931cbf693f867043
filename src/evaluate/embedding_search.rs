//! The embedding under which a model knows a point best.

use std::fmt::{self, Debug};

use burn::optim::{AdamConfig, Optimizer};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::micro_batch_size;
use crate::data::finite::first_non_finite;
use crate::data::points::check_not_empty;
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, TimestepSampling, normal_noise};
use crate::error::{
    Error, Result, check_device, check_positive, check_prediction_type, check_range, check_shape,
};
use crate::host::{read_f32, select_rows, squared_norms, to_f32, vector};
use crate::parameters::as_constants;
use crate::process::{Scheduler, SchedulerExt};

const NOISE: Stream = Stream::Own("embedding search");
const EPSILON: f32 = 1e-8;

/// Searches for the embedding under which a frozen model knows a point best: an attack on a model
/// that has unlearned.
///
/// For each point `x` the embedding `c` is moved by Adam along the gradient of
///
/// ```text
/// mean over (t, ε) of ‖f(γ x + σ ε, t, c) − target‖² / d
/// ```
///
/// with `batch_size` new draws of `t` and `ε` in every step. Timesteps are spread evenly over the
/// scheduler's range. The model does not change. Each point has an embedding of its own, which does
/// not depend on the other points.
///
/// **Only a comparison says something.** Every model can be steered some way to every picture, also
/// one that never saw it. So run the search on the unlearned model and on a model that was
/// retrained without the point, from the same start, and compare losses and copies under what is
/// found.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `steps` | 50 | steps of Adam | ≥ 1 |
/// | `batch_size` | 8 | draws per point and step | ≥ 1 |
/// | `learning_rate` | 0.1 | of Adam; embeddings of CLIP have a deviation of about 1 | > 0 |
/// | `seed` | 0 | key of timesteps and noise | |
/// | `micro_batch_size` | 64 | rows run at a time; changes memory, not results | ≥ 1 |
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::evaluate::EmbeddingSearch;
///
/// # let device = Device::flex();
/// # let model = || {
/// #     let layer = LinearConfig::new(5, 3).init(&device);
/// #     FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, prompt: &Tensor<2>| {
/// #         layer.forward(Tensor::cat(vec![noisy, prompt.clone()], 1))
/// #     })
/// # };
/// # let (unlearned, retrained) = (model(), model());
/// # let forgotten = Tensor::<2>::ones([1, 3], &device);
/// # let prompt = Tensor::<2>::zeros([1, 2], &device);
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let search = EmbeddingSearch { learning_rate: 0.05, ..EmbeddingSearch::default() };
/// for model in [unlearned, retrained] {
///     let found = search.run(&model, &scheduler, &forgotten, &prompt)?;
///     println!("loss {:.3} in the last step", found.losses[49][0]);
/// }
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// The attack of *Finding DoRI*, arXiv 2507.16880, with its 50 steps, 8 draws and rate; the
/// gradient of a text embedding to find what is memorised is of Wen et al. 2024, arXiv 2407.21720.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingSearch {
    /// Steps of Adam.
    pub steps: u64,
    /// Draws per point and step.
    pub batch_size: usize,
    /// Learning rate of Adam.
    pub learning_rate: f64,
    /// Key of timesteps and noise.
    #[serde(default)]
    pub seed: u64,
    /// Rows run at a time.
    #[serde(default = "micro_batch_size")]
    pub micro_batch_size: usize,
}

impl Default for EmbeddingSearch {
    fn default() -> Self {
        Self {
            steps: 50,
            batch_size: 8,
            learning_rate: 0.1,
            seed: 0,
            micro_batch_size: micro_batch_size(),
        }
    }
}

/// What [`EmbeddingSearch`] found.
#[derive(Clone)]
#[non_exhaustive]
pub struct FoundEmbedding<C> {
    /// The condition with the embedding of the last step, one row per point.
    pub condition: C,
    /// The losses by step and point, each before the step, mean over its draws.
    pub losses: Vec<Vec<f64>>,
}

impl<C> Debug for FoundEmbedding<C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FoundEmbedding")
            .field("losses", &self.losses)
            .finish_non_exhaustive()
    }
}

impl EmbeddingSearch {
    /// The search of an [`Adversary`](crate::trainer::Adversary): 4 steps with 4 draws.
    pub fn while_training() -> Self {
        Self {
            steps: 4,
            batch_size: 4,
            ..Self::default()
        }
    }

    /// Searches from `start`, the condition of each point.
    ///
    /// # Shapes
    /// - `points`: `[n, …]`; `start`: `n` rows
    ///
    /// # Errors
    /// - [`Error::InvalidSetting`] for a condition without an embedding, such as a label; for a
    ///   model whose output does not depend on it; and for a search that diverged
    /// - [`Error::OutOfRange`] for a setting outside its range
    /// - [`Error::Empty`] without points, [`Error::NonFinitePoint`]
    /// - [`Error::ShapeMismatch`] for a condition with another number of rows; those of the model's
    ///   [`check_input`](Denoiser::check_input) and
    ///   [`check_condition`](Denoiser::check_condition)
    /// - [`Error::PredictionTypeDiffers`], [`Error::DeviceMismatch`], [`Error::DeviceRead`]
    pub fn run<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        points: &Tensor<D>,
        start: &M::Condition,
    ) -> Result<FoundEmbedding<M::Condition>> {
        self.run_from(0, model, scheduler, points, start)
    }

    /// [`run`](Self::run) with the draws of the steps from `first_step` on.
    pub(crate) fn run_from<const D: usize, M: Denoiser<D>>(
        &self,
        first_step: u64,
        model: &M,
        scheduler: &dyn Scheduler,
        points: &Tensor<D>,
        start: &M::Condition,
    ) -> Result<FoundEmbedding<M::Condition>> {
        self.check()?;
        check_points(points)?;
        start.check_rows("the condition", points.dims()[0])?;
        let stated = scheduler.prediction_type();
        check_prediction_type(model.prediction_type(), "the scheduler", stated)?;
        model.check_input(points.dims())?;
        model.check_condition(start)?;
        if let Some(device) = model.devices().first() {
            check_device("points", device, &points.device())?;
        }
        let known = Known {
            search: self,
            model: as_constants(model),
            scheduler,
            points: to_f32(points.clone().inner()),
            start,
        };
        let mut embedding = to_f32(embedding_of(start)?.inner());
        let adam = AdamConfig::new().with_epsilon(EPSILON).build();
        let (mut state, mut losses) = (None, Vec::new());
        for step in first_step..first_step.saturating_add(self.steps) {
            let (gradient, own) = known.gradient(&embedding, step)?;
            losses.push(own);
            (embedding, state) = adam.step(self.learning_rate, embedding, gradient, state);
        }
        Ok(FoundEmbedding {
            condition: start.with_embedding(embedding),
            losses: self.means(losses, points.dims()[0])?,
        })
    }

    /// Refuses settings outside their ranges.
    pub(crate) fn check(&self) -> Result<()> {
        let (steps, rows) = (self.steps as f64, self.batch_size as f64);
        check_range("steps", steps, self.steps >= 1, "at least 1")?;
        check_range("batch_size", rows, self.batch_size >= 1, "at least 1")?;
        let size = self.micro_batch_size;
        check_range("micro_batch_size", size as f64, size >= 1, "at least 1")?;
        check_positive("learning_rate", self.learning_rate)?;
        Ok(())
    }

    /// The losses of the steps by point, from those of the rows.
    fn means(&self, losses: Vec<Tensor<1>>, points: usize) -> Result<Vec<Vec<f64>>> {
        let rows = read_f32(Tensor::cat(losses, 0), "the losses of the search")?;
        if let Some(place) = rows.iter().position(|loss| !loss.is_finite()) {
            let step = place / (points * self.batch_size);
            return Err(Error::InvalidSetting {
                what: format!(
                    "the search for an embedding diverged: a loss is {} in step {step}",
                    rows[place]
                ),
                remedy: "lower its learning_rate, and check that the model's weights are finite",
            });
        }
        let mean = |draws: &[f32]| {
            let sum: f64 = draws.iter().copied().map(f64::from).sum();
            sum / draws.len() as f64
        };
        let means: Vec<f64> = rows.chunks(self.batch_size).map(mean).collect();
        Ok(means.chunks(points).map(<[f64]>::to_vec).collect())
    }
}

/// The embedding of a condition.
///
/// # Errors
/// [`Error::InvalidSetting`] if it has none.
pub(crate) fn embedding_of(condition: &impl Condition) -> Result<Tensor<2>> {
    condition.embedding().ok_or_else(|| Error::InvalidSetting {
        what: "the condition has no embedding that an optimiser could change".into(),
        remedy: "give the encoded prompts as a tensor or a `TextCondition`; labels cannot be searched",
    })
}

fn check_points<const D: usize>(points: &Tensor<D>) -> Result<()> {
    check_not_empty(points, "the set of points")?;
    let values = read_f32(points.clone(), "the points")?;
    match first_non_finite(&values, 0, points.dims()[0]) {
        None => Ok(()),
        Some((point, value)) => Err(Error::NonFinitePoint { point, value }),
    }
}

/// What stays the same while the embeddings move.
struct Known<'a, M: Denoiser<D>, const D: usize> {
    search: &'a EmbeddingSearch,
    model: M,
    scheduler: &'a dyn Scheduler,
    points: Tensor<D>,
    start: &'a M::Condition,
}

impl<M: Denoiser<D>, const D: usize> Known<'_, M, D> {
    /// The gradient of each point's mean loss, `[points, numbers]`, and the losses of the rows:
    /// point after point with its draws.
    fn gradient(&self, embedding: &Tensor<2>, step: u64) -> Result<(Tensor<2>, Tensor<1>)> {
        let draws = self.search.batch_size;
        let (range, even) = (
            self.scheduler.time_range(),
            TimestepSampling::LowDiscrepancy,
        );
        let timesteps = even.timesteps(range, draws, self.search.seed, step);
        let rows: Vec<usize> = (0..self.points.dims()[0] * draws).collect();
        let (mut sum, mut losses) = (embedding.zeros_like(), Vec::new());
        for rows in rows.chunks(self.search.micro_batch_size) {
            let leaf = embedding.clone().autodiff().require_grad();
            let own = self.losses(&leaf, rows, &timesteps, step)?;
            losses.push(own.clone().inner());
            // Without a path from the embedding there is nothing to run backward.
            if !own.is_tracked() {
                return Err(unused());
            }
            let mut gradients = (own.sum() / draws as f64).backward();
            let gradient = leaf.grad_remove(&mut gradients);
            sum = sum + gradient.ok_or_else(unused)?;
        }
        Ok((sum, Tensor::cat(losses, 0)))
    }

    /// The loss of rows with consecutive numbers.
    fn losses(
        &self,
        embedding: &Tensor<2>,
        rows: &[usize],
        timesteps: &[f64],
        step: u64,
    ) -> Result<Tensor<1>> {
        let draws = self.search.batch_size;
        let points: Vec<usize> = rows.iter().map(|row| row / draws).collect();
        let times: Vec<f64> = rows.iter().map(|row| timesteps[row % draws]).collect();
        let clean = select_rows(&self.points, &points);
        let (shape, device) = (clean.dims(), clean.device());
        let (seed, first_row) = (self.search.seed, rows[0] as u64);
        let noise = normal_noise(shape, seed, step, first_row, NOISE, &device);
        let scales = self.scheduler.scales(&times)?;
        let own = self.start.take_rows(&points);
        let own = own.with_embedding(select_rows(embedding, &points));
        let noisy = scales.noisy(&clean, &noise);
        let output = self.model.predict(noisy, vector(times, &device), &own);
        let target = scales.target(self.model.prediction_type(), &clean, &noise);
        let remedy = "the model must predict one value for every element";
        check_shape("the model's prediction", &shape, &output.dims(), remedy)?;
        let elements: usize = shape[1..].iter().product();
        Ok(squared_norms(to_f32(output) - target) / elements as f64)
    }
}

fn unused() -> Error {
    Error::InvalidSetting {
        what: "the model's output does not depend on the embedding of its condition".into(),
        remedy: "search only in models that use their condition",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::FnDenoiser;
    use crate::process::DdpmScheduler;
    use burn::nn::{Initializer, Linear, LinearConfig};
    use burn::tensor::Device;

    /// A model that takes its condition for the noise, less what of the point shines through.
    fn model(device: &Device) -> impl Denoiser<2, Condition = Tensor<2>> {
        let half = Initializer::Constant { value: 0.5 };
        let layer = LinearConfig::new(3, 3).with_initializer(half).init(device);
        FnDenoiser::new(
            layer,
            |layer: &Linear, noisy: Tensor<2>, _, prompt: &Tensor<2>| {
                noisy + layer.forward(prompt.clone())
            },
        )
    }

    fn points(rows: usize, device: &Device) -> Tensor<2> {
        Tensor::<2>::ones([rows, 3], device) * 2.0
    }

    fn search() -> EmbeddingSearch {
        EmbeddingSearch {
            steps: 60,
            learning_rate: 0.2,
            ..EmbeddingSearch::default()
        }
    }

    #[test]
    fn the_loss_falls_and_points_do_not_depend_on_each_other() {
        let device = Device::flex();
        let (model, scheduler) = (model(&device), DdpmScheduler::linear(1000).unwrap());
        let start = Tensor::zeros([2, 3], &device);
        let both = search().run(&model, &scheduler, &points(2, &device), &start);
        let both = both.unwrap();
        assert_eq!((both.losses.len(), both.losses[0].len()), (60, 2));
        let late = |point: usize| both.losses[50..].iter().map(|it| it[point]).sum::<f64>() / 10.0;
        for point in 0..2 {
            let first = both.losses[0][point];
            assert!(late(point) < 0.8 * first, "{first} {}", late(point));
        }
        let one = start.clone().narrow(0, 0, 1);
        let alone = search().run(&model, &scheduler, &points(1, &device), &one);
        let alone = alone.unwrap();
        let difference = alone.condition - both.condition.narrow(0, 0, 1);
        assert!(difference.abs().max().into_scalar::<f32>() < 1e-4);
        assert_eq!(
            start.into_data(),
            Tensor::<2>::zeros([2, 3], &device).into_data()
        );
    }

    #[test]
    fn the_rows_at_a_time_change_nothing() {
        let device = Device::flex();
        let (model, scheduler) = (model(&device), DdpmScheduler::linear(1000).unwrap());
        let start = Tensor::zeros([2, 3], &device);
        let run = |micro_batch_size| {
            let search = EmbeddingSearch {
                steps: 5,
                micro_batch_size,
                ..search()
            };
            let found = search.run(&model, &scheduler, &points(2, &device), &start);
            found.unwrap().condition
        };
        let difference = run(64) - run(3);
        assert!(difference.abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn what_cannot_be_searched_is_refused() {
        let device = Device::flex();
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let start = Tensor::zeros([1, 3], &device);
        let points = points(1, &device);
        let without = |change: fn(&mut EmbeddingSearch)| {
            let mut search = search();
            change(&mut search);
            search
                .run(&model(&device), &scheduler, &points, &start)
                .unwrap_err()
                .to_string()
        };
        assert!(without(|it| it.steps = 0).contains("steps is 0"));
        assert!(without(|it| it.batch_size = 0).contains("batch_size is 0"));
        assert!(without(|it| it.learning_rate = 0.0).contains("learning_rate is 0"));
        assert!(without(|it| it.learning_rate = 1e30).contains("diverged"));

        let layer = || LinearConfig::new(3, 3).init(&device);
        let deaf = FnDenoiser::new(
            layer(),
            |layer: &Linear, noisy: Tensor<2>, _, _: &Tensor<2>| layer.forward(noisy),
        );
        let error = search()
            .run(&deaf, &scheduler, &points, &start)
            .unwrap_err();
        assert!(error.to_string().contains("does not depend"), "{error}");
        let words = FnDenoiser::new(
            layer(),
            |layer: &Linear, noisy: Tensor<2>, _, _: &Vec<String>| layer.forward(noisy),
        );
        let prompt = vec!["a hat".to_string()];
        let error = search()
            .run(&words, &scheduler, &points, &prompt)
            .unwrap_err();
        assert!(error.to_string().contains("no embedding"), "{error}");
        let error = search().run(
            &model(&device),
            &scheduler,
            &points,
            &start.repeat_dim(0, 2),
        );
        assert!(matches!(error, Err(Error::ShapeMismatch { .. })));
    }
}
