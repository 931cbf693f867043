//! How soon fine-tuning brings a forgotten point back.

use burn::tensor::Tensor;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::data::UnlearningBatch;
use crate::denoiser::{Condition, Denoiser};
use crate::draws::{Stream, keyed_rng};
use crate::error::{Error, Result, check_positive, check_range};
use crate::evaluate::DenoisingLoss;
use crate::host::select_rows;
use crate::objective::NaiveDeletion;
use crate::process::Scheduler;
use crate::trainer::SissTrainer;

/// Fine-tunes a model on data without some points, until it knows the points again.
///
/// A model that merely hides a point relearns it sooner than a model that never saw it, so run both
/// and compare: on other data, and on near duplicates of the point. Both models get the same
/// batches, timesteps and noise.
///
/// | field | [`at`](Relearning::at) | purpose | range |
/// |---|---|---|---|
/// | `loss` | given | what is measured of the points; its `micro_batch_size` is also the rows of a step that run at a time | |
/// | `steps` | 300 | most steps | ≥ 1 |
/// | `every` | 10 | steps from one measurement to the next | ≥ 1 |
/// | `batch_size` | 64 | points per step | ≥ 1 |
/// | `learning_rate` | 1e-4 | of AdamW | > 0 |
/// | `seed` | 0 | key of batches, timesteps and noise | |
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::evaluate::DenoisingLoss;
/// use siss::metrics::Relearning;
///
/// # let device = Device::flex();
/// # let model = || {
/// #     let layer = LinearConfig::new(3, 3).init(&device);
/// #     FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| layer.forward(noisy))
/// # };
/// # let (unlearned, retrained) = (model(), model());
/// # let retain = Tensor::<2>::random([20, 3], Distribution::Default, &device);
/// # let forgotten = Tensor::<2>::ones([1, 3], &device);
/// let attack = Relearning { steps: 20, ..Relearning::at(DenoisingLoss::at([250.0])) };
/// let scheduler = DdpmScheduler::linear(1000)?;
/// let level = 0.1; // the mean loss of the model before unlearning
/// for model in [unlearned, retrained] {
///     let data = (&retain, &());
///     let curve = attack.run(model, &scheduler, data, (&forgotten, &()), level)?;
///     println!("back after {:?} steps", curve.back_after);
/// }
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relearning {
    /// What is measured of the points, and how many rows run at a time, in steps too.
    pub loss: DenoisingLoss,
    /// Most steps.
    pub steps: u64,
    /// Steps from one measurement to the next.
    pub every: u64,
    /// Points per step.
    pub batch_size: usize,
    /// Learning rate of AdamW.
    pub learning_rate: f64,
    /// Key of batches, timesteps and noise.
    #[serde(default)]
    pub seed: u64,
}

/// The loss of points while a model is fine-tuned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RelearningCurve {
    /// Steps taken, and the mean loss of the points then; the first is before any step.
    pub losses: Vec<(u64, f64)>,
    /// The level at which the points count as known.
    pub level: f64,
    /// Steps after which the loss was first at or below the level, to the precision of `every`.
    pub back_after: Option<u64>,
}

impl Relearning {
    /// At most 300 steps of 64 points, measured every ten steps.
    pub fn at(loss: DenoisingLoss) -> Self {
        Self {
            loss,
            steps: 300,
            every: 10,
            batch_size: 64,
            learning_rate: 1e-4,
            seed: 0,
        }
    }

    /// Fine-tunes a model on `data` until the mean loss of `points` is at or below `level`.
    ///
    /// # Shapes
    /// - `data`: `[n, …]` with `n` rows of the condition; `points`: `[k, …]` with `k` rows
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a setting outside its range; [`Error::Empty`] without data; those
    /// of [`DenoisingLoss::measure`] and of [`SissTrainer::step`].
    pub fn run<const D: usize, M: Denoiser<D>>(
        &self,
        model: M,
        scheduler: &(impl Scheduler + Clone + 'static),
        (data, data_condition): (&Tensor<D>, &M::Condition),
        (points, condition): (&Tensor<D>, &M::Condition),
        level: f64,
    ) -> Result<RelearningCurve> {
        self.check(data.dims()[0])?;
        data_condition.check_rows("the condition of the data", data.dims()[0])?;
        let mut trainer = SissTrainer::builder(model, scheduler.clone())
            .loss(NaiveDeletion)
            .learning_rate(self.learning_rate)
            .micro_batch_size(self.loss.micro_batch_size)
            .seed(self.seed)
            .build()?;
        let mut curve = RelearningCurve {
            losses: Vec::new(),
            level,
            back_after: None,
        };
        let mut step = 0;
        loop {
            let loss = self
                .loss
                .measure(trainer.model(), scheduler, points, condition)?;
            let values: Vec<f64> = loss.concat();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            curve.losses.push((step, mean));
            if mean <= level {
                curve.back_after = Some(step);
            }
            if mean <= level || step >= self.steps {
                return Ok(curve);
            }
            for _ in 0..self.every.min(self.steps - step) {
                trainer.step(self.batch(data, data_condition, step)?)?;
                step += 1;
            }
        }
    }

    fn check(&self, points: usize) -> Result<()> {
        if points == 0 {
            let (what, remedy) = ("the data to fine-tune on", "give at least one point");
            return Err(Error::Empty { what, remedy });
        }
        check_positive("learning_rate", self.learning_rate)?;
        check_range("steps", self.steps as f64, self.steps >= 1, "at least 1")?;
        check_range("every", self.every as f64, self.every >= 1, "at least 1")?;
        let (size, legal) = (self.batch_size as f64, self.batch_size >= 1);
        check_range("batch_size", size, legal, "at least 1")?;
        Ok(())
    }

    /// Random points of a step. The objective has no forget term and does not read that side.
    fn batch<const D: usize, C: Condition>(
        &self,
        data: &Tensor<D>,
        condition: &C,
        step: u64,
    ) -> Result<UnlearningBatch<D, C>> {
        let mut rng = keyed_rng(self.seed, step, 0, Stream::Own("points of relearning"));
        let count = data.dims()[0];
        let rows = (0..self.batch_size).map(|_| rng.random_range(0..count));
        let rows: Vec<usize> = rows.collect();
        let (points, condition) = (select_rows(data, &rows), condition.take_rows(&rows));
        UnlearningBatch::with_conditions(points.clone(), points, condition.clone(), condition)
    }
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::normal;
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    use crate::denoiser::FnDenoiser;
    use crate::process::DdpmScheduler;

    fn model(seed: u64) -> impl Denoiser<2, Condition = ()> {
        let device = Device::flex();
        device.seed(seed);
        let layer = LinearConfig::new(3, 3).init(&device);
        FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, _: &()| {
            layer.forward(noisy)
        })
    }

    fn attack() -> Relearning {
        Relearning {
            steps: 60,
            every: 20,
            batch_size: 8,
            learning_rate: 0.02,
            ..Relearning::at(DenoisingLoss {
                noises: 8,
                ..DenoisingLoss::at([400.0])
            })
        }
    }

    #[test]
    fn training_on_the_point_brings_it_back_and_the_level_decides_when() {
        let (scheduler, point) = (DdpmScheduler::linear(1000).unwrap(), normal(1, 1, 3));
        let run = |level: f64| {
            let data = (&point, &());
            attack()
                .run(model(3), &scheduler, data, data, level)
                .unwrap()
        };
        let never = run(0.0);
        let steps: Vec<u64> = never.losses.iter().map(|(step, _)| *step).collect();
        assert_eq!((steps, never.back_after), (vec![0, 20, 40, 60], None));
        assert!(never.losses[3].1 < never.losses[0].1, "{never:?}");
        // A level between the second and the third measurement.
        let level = 0.5 * (never.losses[1].1 + never.losses[2].1);
        let found = run(level);
        assert_eq!((found.back_after, found.losses.len()), (Some(40), 3));
        assert_eq!(found.losses, never.losses[..3]);
        assert_eq!(run(f64::MAX).back_after, Some(0));
    }

    #[test]
    fn fewer_rows_at_a_time_find_the_same() {
        let (scheduler, point) = (DdpmScheduler::linear(1000).unwrap(), normal(1, 1, 3));
        let losses = |micro_batch_size| {
            let mut attack = attack();
            attack.loss.micro_batch_size = micro_batch_size;
            let data = (&point, &());
            let found = attack.run(model(3), &scheduler, data, data, 0.0);
            found.unwrap().losses
        };
        for (few, all) in losses(3).iter().zip(&losses(64)) {
            assert!((few.1 / all.1 - 1.0).abs() < 1e-5, "{few:?} {all:?}");
        }
    }

    #[test]
    fn settings_that_train_nothing_are_refused() {
        let (scheduler, point) = (DdpmScheduler::linear(1000).unwrap(), normal(1, 1, 3));
        let none = Tensor::zeros([0, 3], &Device::flex());
        let run = |attack: Relearning, data: &Tensor<2>| {
            let data = (data, &());
            attack
                .run(model(3), &scheduler, data, (&point, &()), 0.0)
                .unwrap_err()
        };
        let still = Relearning {
            every: 0,
            ..attack()
        };
        assert!(matches!(
            run(still, &point),
            Error::OutOfRange { name: "every", .. }
        ));
        assert!(matches!(run(attack(), &none), Error::Empty { .. }));
    }
}
