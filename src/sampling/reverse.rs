//! What the samplers share: the timesteps they visit, and what a model output stands for.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_positive, check_range, check_shape};
use crate::process::config::TimestepSpacing;
use crate::process::{DdpmScheduler, PredictionType, SchedulerConfig, SchedulerExt};

/// The settings that the samplers share: which timesteps are visited, and how the clean point that
/// is predicted there is clamped.
///
/// | field | [`new`](Visits::new) | purpose | range |
/// |---|---|---|---|
/// | `num_inference_steps` | given | steps from noise to a sample | 1 to `T` |
/// | `clip_sample` | `Some(1.0)` | clamps the predicted clean point to `[−c, c]` | > 0 |
/// | `timestep_spacing` | leading | which of the `T` steps are visited | |
/// | `steps_offset` | 0 | added to the steps if spacing is leading | all visited steps below `T` |
///
/// In a file only `num_inference_steps` is required, and `null` means `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visits {
    /// Steps from noise to a sample.
    pub num_inference_steps: usize,
    /// Half-width of the clamp of the predicted clean point, `None` for no clamp. The clamp suits
    /// images from −1 to 1; it is wrong for data without such a range, such as latents.
    #[serde(default = "range_of_images")]
    pub clip_sample: Option<f64>,
    /// Which of the training steps are visited.
    #[serde(default)]
    pub timestep_spacing: TimestepSpacing,
    /// Added to the visited steps if spacing is leading.
    #[serde(default)]
    pub steps_offset: usize,
}

fn range_of_images() -> Option<f64> {
    Some(1.0)
}

impl Visits {
    /// This many steps, evenly from the first one on, for images from −1 to 1.
    pub fn new(num_inference_steps: usize) -> Self {
        Self::from_scheduler(&SchedulerConfig::default(), num_inference_steps)
    }

    /// The settings that a diffusers scheduler configuration implies.
    pub fn from_scheduler(config: &SchedulerConfig, num_inference_steps: usize) -> Self {
        Self {
            num_inference_steps,
            clip_sample: config.clip_sample.then_some(config.clip_sample_range),
            timestep_spacing: config.timestep_spacing,
            steps_offset: config.steps_offset,
        }
    }
}

/// A process to be reversed, with the timesteps that are visited.
#[derive(Debug, Clone)]
pub(super) struct ReverseProcess {
    pub(super) scheduler: DdpmScheduler,
    /// The visited timesteps, noisiest first.
    pub(super) timesteps: Vec<usize>,
    clip_sample: Option<f64>,
}

/// A checked step: what the model output stands for, and `ᾱ` at both ends.
pub(super) struct Step<const D: usize> {
    /// The predicted clean point, clamped.
    pub(super) clean: Tensor<D>,
    /// The predicted noise.
    pub(super) epsilon: Tensor<D>,
    /// `ᾱ` at the timestep.
    pub(super) alpha_bar: f64,
    /// `ᾱ` at the previous timestep; `None` at the clean end.
    pub(super) previous_alpha_bar: Option<f64>,
}

impl ReverseProcess {
    /// # Errors
    /// [`Error::OutOfRange`] names a setting outside its range.
    pub(super) fn new(scheduler: &DdpmScheduler, visits: &Visits) -> Result<Self> {
        let (total, count) = (scheduler.num_timesteps(), visits.num_inference_steps);
        check_range(
            "num_inference_steps",
            count as f64,
            (1..=total).contains(&count),
            "from 1 to the scheduler's number of steps",
        )?;
        if let Some(range) = visits.clip_sample {
            check_positive("clip_sample", range)?;
        }
        let timesteps = inference_timesteps(total, visits);
        let noisiest = timesteps.first().copied().unwrap_or_default();
        check_range(
            "steps_offset",
            visits.steps_offset as f64,
            noisiest < total,
            "small enough that every visited step exists",
        )?;
        Ok(Self {
            scheduler: scheduler.clone(),
            timesteps,
            clip_sample: visits.clip_sample,
        })
    }

    /// What a model output stands for.
    ///
    /// # Errors
    /// Those of [`Sampler::step_to`](super::Sampler::step_to), except for missing noise.
    pub(super) fn step<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        prediction_type: PredictionType,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<&Tensor<D>>,
    ) -> Result<Step<D>> {
        let scales = self.scheduler.scales(&[timestep as f64])?;
        check_signal(&self.scheduler, prediction_type, timestep)?;
        if let Some(previous) = previous {
            let legal = previous < timestep;
            let requirement = "below the timestep of the step";
            check_range("the previous timestep", previous as f64, legal, requirement)?;
        }
        let (shape, output) = (noisy.dims(), model_output.dims());
        let remedy = "give model output and noise of the noisy batch's shape";
        check_shape("the model output", &shape, &output, remedy)?;
        if let Some(noise) = noise {
            check_shape("the noise", &shape, &noise.dims(), remedy)?;
        }

        let device = noisy.device();
        let (gamma, sigma) = (scales.signal_tensor(&device), scales.noise_tensor(&device));
        let (clean, epsilon) = prediction_type.clean_and_noise(noisy, model_output, gamma, sigma);
        let clean = match self.clip_sample {
            Some(range) => clean.clamp(-range, range),
            None => clean,
        };
        let alpha_bars = self.scheduler.alpha_bars();
        Ok(Step {
            clean,
            epsilon,
            alpha_bar: alpha_bars[timestep],
            previous_alpha_bar: previous.map(|previous| alpha_bars[previous]),
        })
    }
}

/// Refuses a predicted noise at a timestep without signal: it says nothing about the clean point.
pub(super) fn check_signal(
    scheduler: &DdpmScheduler,
    prediction_type: PredictionType,
    timestep: usize,
) -> Result<()> {
    let alpha_bar = scheduler.alpha_bars().get(timestep);
    let has_signal = alpha_bar.is_none_or(|&alpha_bar| alpha_bar > 0.0);
    if has_signal || prediction_type != PredictionType::Epsilon {
        return Ok(());
    }
    Err(Error::InvalidSetting {
        what: format!(
            "timestep {timestep} has no signal, so predicted noise says nothing about the clean point"
        ),
        remedy: "use a model that predicts Sample or Velocity, or a schedule without zero terminal SNR",
    })
}

/// The timesteps of diffusers' `set_timesteps`, noisiest first.
fn inference_timesteps(total: usize, visits: &Visits) -> Vec<usize> {
    let count = visits.num_inference_steps;
    match visits.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = total / count;
            let visited = (0..count).rev();
            visited
                .map(|index| (index * stride).saturating_add(visits.steps_offset))
                .collect()
        }
        TimestepSpacing::Trailing => {
            // Counts like NumPy's `arange(T, 0, −T/n)`: by the difference of its first two numbers,
            // which is rounded, so that halves fall to the same side. Where rounding gives NumPy
            // one more number, that number is below 0.
            let total = total as f64;
            let stride = total / count as f64;
            let difference = (total - stride) - total;
            let visited = (0..count).map(|index| total + index as f64 * difference);
            visited.map(|end| round_half_even(end) - 1).collect()
        }
        TimestepSpacing::Linspace => {
            let stride = (total - 1) as f64 / (count - 1).max(1) as f64;
            let visited = (0..count).rev();
            visited
                .map(|index| round_half_even(index as f64 * stride))
                .collect()
        }
    }
}

/// Rounds as NumPy does.
fn round_half_even(value: f64) -> usize {
    value.round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visited_timesteps_are_those_of_diffusers() {
        let visited = |timestep_spacing, num_inference_steps| {
            let visits = Visits {
                timestep_spacing,
                ..Visits::new(num_inference_steps)
            };
            inference_timesteps(1000, &visits)
        };
        assert_eq!(visited(TimestepSpacing::Leading, 3), [666, 333, 0]);
        assert_eq!(visited(TimestepSpacing::Trailing, 3), [999, 666, 332]);
        assert_eq!(visited(TimestepSpacing::Linspace, 3), [999, 500, 0]);
        assert_eq!(visited(TimestepSpacing::Linspace, 1), [0]);
    }

    /// For each of several T, the timesteps of every count, folded into one number by
    /// ```python
    /// for n in range(1, T + 1):
    ///     for t in np.round(np.arange(T, 0, -T / n)) - 1:
    ///         if t >= 0: h = (h * 31 + int(t)) % 2**64
    /// ```
    /// with NumPy 2; diffusers has the same line. Without NumPy's rounding, halves fall to the
    /// other side at T = 1,000 and 48 steps.
    #[test]
    fn trailing_timesteps_are_numpys_for_every_count() {
        let visited = |total, num_inference_steps| {
            let visits = Visits {
                timestep_spacing: TimestepSpacing::Trailing,
                ..Visits::new(num_inference_steps)
            };
            inference_timesteps(total, &visits)
        };
        assert_eq!(
            visited(1000, 48)[..16],
            [
                999, 978, 957, 936, 916, 895, 874, 853, 832, 811, 791, 770, 749, 728, 707, 686
            ]
        );
        for (total, expected) in [
            (10, 5_451_920_276_060_717_830),
            (64, 11_231_788_499_489_540_732),
            (100, 5_587_409_879_355_795_574),
            (250, 7_890_252_562_538_162_382),
            (500, 12_467_947_333_048_096_662),
            (999, 3_958_055_937_400_317_532),
            (1000, 15_666_598_794_695_653_972),
            (1024, 16_263_569_293_175_904_940),
            (2000, 18_413_222_451_806_413_540_u64),
        ] {
            let timesteps = (1..=total).flat_map(|count| visited(total, count));
            let folded = timesteps.fold(0_u64, |sum, timestep| {
                sum.wrapping_mul(31).wrapping_add(timestep as u64)
            });
            assert_eq!(folded, expected, "T = {total}");
        }
    }

    #[test]
    fn a_file_says_how_many_steps_and_nothing_unknown() {
        let read = |text: &str| serde_json::from_str::<Visits>(text);
        let few = read(r#"{"num_inference_steps": 7}"#).unwrap();
        assert_eq!(few, Visits::new(7));
        assert_eq!(few.clip_sample, Some(1.0));
        let unclamped = read(r#"{"num_inference_steps": 7, "clip_sample": null}"#).unwrap();
        assert_eq!(unclamped.clip_sample, None);
        assert!(read("{}").is_err());
        assert!(read(r#"{"num_inference_steps": 7, "clip": 2}"#).is_err());
    }
}
