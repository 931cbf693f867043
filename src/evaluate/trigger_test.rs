//! Which conditions make a model remember a point.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::DenoisingLoss;
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, check_range, check_shape};
use crate::process::Scheduler;

/// Fewest conditions to compare with.
const LEAST_CONTROLS: usize = 4;
/// The share of the best score from which on a condition counts as memorised, not as partly so.
const MEMORISED: f64 = 0.75;

/// Tests under which of some conditions a model knows a point better than under conditions that
/// have nothing to do with it.
///
/// The score of a condition `c` is by how much lower the point's loss is, as a logarithm and a mean
/// over timesteps:
///
/// ```text
/// score(c) = mean over t of ( mean over controls k of ln L(t, k) − ln L(t, c) )
/// ```
///
/// All conditions have the same noise. A condition whose score is not above that of every
/// control is [`Not`](Memory::Not) a trigger: with `n` controls, a condition that means nothing
/// passes with a probability of `1/(n + 1)`. One with at least three quarters of the best score
/// is [`Memorised`](Memory::Memorised), and the others are memorised
/// [`Partly`](Memory::Partly): candidates for prompts that generate the point for some noises
/// only, which samples show.
///
/// A model that knows the point under every condition has no triggers by this test.
///
/// # Example
/// ```
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::FnDenoiser;
/// use siss::DdpmScheduler;
/// use siss::evaluate::{DenoisingLoss, TriggerTest};
///
/// # let device = Device::flex();
/// # let layer = LinearConfig::new(5, 3).init(&device);
/// # let model = FnDenoiser::new(layer, |layer: &Linear, noisy: Tensor<2>, _, prompt: &Tensor<2>| {
/// #     layer.forward(Tensor::cat(vec![noisy, prompt.clone()], 1))
/// # });
/// # let point = Tensor::<2>::ones([1, 3], &device);
/// # let prompts = Tensor::<2>::random([3, 2], Distribution::Default, &device);
/// # let others = Tensor::<2>::random([19, 2], Distribution::Default, &device);
/// let loss = DenoisingLoss { noises: 8, ..DenoisingLoss::at([100.0, 250.0, 400.0, 600.0]) };
/// let (test, scheduler) = (TriggerTest { loss }, DdpmScheduler::linear(1000)?);
/// let triggers = test.run(&model, &scheduler, &point, &prompts, &others)?;
/// for trigger in &triggers {
///     println!("{:.2} {:?}", trigger.score, trigger.memory);
/// }
/// # assert_eq!(triggers.len(), 3);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerTest {
    /// What is measured under each condition.
    pub loss: DenoisingLoss,
}

/// How much of a point a condition brings back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// As much as the best condition, or nearly.
    Memorised,
    /// Less than that, and more than every control.
    Partly,
    /// No more than a control.
    Not,
}

/// How well a model knows a point under one condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Trigger {
    /// The losses by timestep.
    pub losses: Vec<f64>,
    /// By how much they are lower than under the controls: the mean logarithm of the ratio.
    pub score: f64,
    /// What the score means.
    pub memory: Memory,
}

impl TriggerTest {
    /// Tests conditions, in their order.
    ///
    /// # Shapes
    /// - `point`: `[1, …]`; `conditions`: `n` rows; `controls`: four rows or more, such as encoded
    ///   prompts of random words
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for several points; [`Error::OutOfRange`] for too few controls;
    /// [`Error::InvalidSetting`] for a condition without rows, and if a loss is 0 or not finite;
    /// those of [`DenoisingLoss::measure`].
    pub fn run<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        scheduler: &dyn Scheduler,
        point: &Tensor<D>,
        conditions: &M::Condition,
        controls: &M::Condition,
    ) -> Result<Vec<Trigger>> {
        let remedy = "test one point after another";
        check_shape("the list of points", &[1], &point.dims()[..1], remedy)?;
        let count = rows(controls)?;
        let requirement = "at least 4, so that one of them being the best means something";
        check_range(
            "controls",
            count as f64,
            count >= LEAST_CONTROLS,
            requirement,
        )?;
        let losses = |condition: &M::Condition| {
            let each = (0..rows(condition)?).map(|row| {
                let own = condition.take_rows(&[row]);
                let losses = self.loss.measure(model, scheduler, point, &own)?;
                check_losses(losses.concat())
            });
            each.collect::<Result<Vec<_>>>()
        };
        Ok(judged(losses(conditions)?, &losses(controls)?))
    }
}

fn rows(condition: &impl Condition) -> Result<usize> {
    condition.rows().ok_or_else(|| Error::InvalidSetting {
        what: "the condition says nothing of any point".into(),
        remedy: "test models with a condition",
    })
}

/// Losses that have a logarithm.
fn check_losses(losses: Vec<f64>) -> Result<Vec<f64>> {
    match losses
        .iter()
        .find(|loss| !(loss.is_finite() && **loss > 0.0))
    {
        None => Ok(losses),
        Some(loss) => Err(Error::InvalidSetting {
            what: format!("a loss of the point is {loss}"),
            remedy: "check that the model's weights are finite, and that it is not constant",
        }),
    }
}

/// Scores, and what they mean, from losses by condition and timestep.
fn judged(losses: Vec<Vec<f64>>, controls: &[Vec<f64>]) -> Vec<Trigger> {
    let mean_log = |losses: &[f64]| {
        let logarithms = losses.iter().map(|loss| loss.ln());
        logarithms.sum::<f64>() / losses.len() as f64
    };
    let of_controls: Vec<f64> = controls.iter().map(|own| mean_log(own)).collect();
    let usual = of_controls.iter().sum::<f64>() / of_controls.len() as f64;
    let lowest = of_controls.iter().copied().fold(f64::INFINITY, f64::min);
    let best_control = usual - lowest;
    let scores: Vec<f64> = losses.iter().map(|own| usual - mean_log(own)).collect();
    let best = scores.iter().copied().fold(0.0, f64::max);
    let memory = |score: f64| match score {
        score if score <= best_control => Memory::Not,
        score if score >= MEMORISED * best => Memory::Memorised,
        _ => Memory::Partly,
    };
    let found = losses.into_iter().zip(scores);
    let trigger = |(losses, score)| Trigger {
        losses,
        score,
        memory: memory(score),
    };
    found.map(trigger).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoiser::FnDenoiser;
    use crate::process::DdpmScheduler;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    /// Zero is the best prompt, and the farther away a prompt is, the larger are the losses.
    #[test]
    fn the_order_of_the_scores_is_that_of_the_losses() {
        let device = Device::flex();
        let layer = LinearConfig::new(3, 3).init(&device);
        let model = FnDenoiser::new(
            layer,
            |_: &Linear, noisy: Tensor<2>, _, prompt: &Tensor<2>| noisy + prompt.clone(),
        );
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let loss = DenoisingLoss {
            noises: 4,
            ..DenoisingLoss::at([500.0, 900.0])
        };
        let test = TriggerTest { loss };
        let point = Tensor::<2>::zeros([1, 3], &device);
        let prompts = |sizes: &[f32]| {
            let column = Tensor::<1>::from_data(sizes, &device).reshape([sizes.len(), 1]);
            column.repeat_dim(1, 3)
        };
        let controls = prompts(&[8.0, 9.0, 10.0, 11.0]);
        let asked = prompts(&[3.0, 0.0, 9.5]);
        let run = |asked: &Tensor<2>, controls: &Tensor<2>, points: &Tensor<2>| {
            test.run(&model, &scheduler, points, asked, controls)
        };
        let found = run(&asked, &controls, &point).unwrap();
        let memory: Vec<_> = found.iter().map(|it| it.memory).collect();
        assert_eq!(memory, [Memory::Partly, Memory::Memorised, Memory::Not]);
        assert!(found[1].score > found[0].score && found[0].score > 0.0);
        assert_eq!(found[0].losses.len(), 2);
        assert!(run(&asked, &prompts(&[1.0, 2.0, 3.0]), &point).is_err());
        assert!(run(&asked, &controls, &point.repeat_dim(0, 2)).is_err());
    }

    #[test]
    fn without_a_score_above_the_controls_nothing_is_memorised() {
        let controls = [0.1, 0.2, 0.3, 0.4].map(|loss| vec![loss]);
        let found = judged(vec![vec![0.1], vec![0.3]], &controls);
        assert!(found.iter().all(|it| it.memory == Memory::Not));
    }
}
