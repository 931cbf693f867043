//! What the samplers have in common: the timesteps they visit, and what a model output stands for.

use burn::tensor::Tensor;

use crate::error::{Error, Result, check_positive, check_range, check_shape};
use crate::process::config::TimestepSpacing;
use crate::process::{DdpmScheduler, PredictionType, SchedulerExt};

/// The settings that every sampler has.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) num_inference_steps: usize,
    pub(super) clip_sample: Option<f64>,
    pub(super) prediction_type: PredictionType,
    pub(super) timestep_spacing: TimestepSpacing,
    pub(super) steps_offset: usize,
}

/// A process that is gone down.
#[derive(Debug, Clone)]
pub(super) struct ReverseProcess {
    pub(super) scheduler: DdpmScheduler,
    /// The visited timesteps, noisiest first.
    pub(super) timesteps: Vec<usize>,
    settings: Settings,
}

/// A step, checked: what the model output stands for, and `ᾱ` at both ends.
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
    /// [`Error::OutOfRange`] names a setting outside its range; [`Error::InvalidSetting`] where a timestep without signal
    /// would be visited with a model that predicts noise.
    pub(super) fn new(scheduler: &DdpmScheduler, settings: Settings) -> Result<Self> {
        let (total, count) = (scheduler.num_timesteps(), settings.num_inference_steps);
        check_range(
            "num_inference_steps",
            count as f64,
            (1..=total).contains(&count),
            "from 1 to the scheduler's number of steps",
        )?;
        if let Some(range) = settings.clip_sample {
            check_positive("clip_sample", range)?;
        }
        let timesteps = inference_timesteps(total, &settings);
        let noisiest = timesteps.first().copied().unwrap_or_default();
        check_range(
            "steps_offset",
            settings.steps_offset as f64,
            noisiest < total,
            "small enough that every visited step exists",
        )?;
        let process = Self {
            scheduler: scheduler.clone(),
            timesteps,
            settings,
        };
        for &timestep in &process.timesteps {
            process.check_signal(timestep)?;
        }
        Ok(process)
    }

    /// The noisiest visited timestep below `timestep`.
    pub(super) fn visited_below(&self, timestep: usize) -> Option<usize> {
        let mut visited = self.timesteps.iter().copied();
        visited.find(|&visited| visited < timestep)
    }

    /// What a model output stands for.
    ///
    /// # Errors
    /// Those of [`Sampler::step_to`](super::Sampler::step_to), but for missing noise.
    pub(super) fn step<const D: usize>(
        &self,
        noisy: Tensor<D>,
        model_output: Tensor<D>,
        timestep: usize,
        previous: Option<usize>,
        noise: Option<&Tensor<D>>,
    ) -> Result<Step<D>> {
        let scales = self.scheduler.scales(&[timestep as f64])?;
        self.check_signal(timestep)?;
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
        let kind = self.settings.prediction_type;
        let (clean, epsilon) = kind.clean_and_noise(noisy, model_output, gamma, sigma);
        let clean = match self.settings.clip_sample {
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

    /// Refuses a predicted noise where there is no signal: it says nothing about the clean point.
    fn check_signal(&self, timestep: usize) -> Result<()> {
        let alpha_bar = self.scheduler.alpha_bars().get(timestep);
        let has_signal = alpha_bar.is_none_or(|&alpha_bar| alpha_bar > 0.0);
        if has_signal || self.settings.prediction_type != PredictionType::Epsilon {
            return Ok(());
        }
        Err(Error::InvalidSetting {
            what: format!(
                "timestep {timestep} has no signal, so a predicted noise says nothing about the clean point"
            ),
            remedy: "use a model that predicts Sample or Velocity, or a schedule without zero terminal SNR",
        })
    }
}

/// diffusers' `set_timesteps`, noisiest first.
fn inference_timesteps(total: usize, settings: &Settings) -> Vec<usize> {
    let count = settings.num_inference_steps;
    match settings.timestep_spacing {
        TimestepSpacing::Leading => {
            let stride = total / count;
            let visited = (0..count).rev();
            visited
                .map(|index| (index * stride).saturating_add(settings.steps_offset))
                .collect()
        }
        TimestepSpacing::Trailing => {
            // As NumPy's `arange(T, 0, −T/n)` counts: by the difference of its first two numbers, which is rounded, so that
            // halves fall as there. Where rounding gives it one number more, that one is below 0.
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

/// As NumPy rounds.
fn round_half_even(value: f64) -> usize {
    value.round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visited_timesteps_are_those_of_diffusers() {
        let visited = |timestep_spacing, num_inference_steps| {
            let settings = Settings {
                num_inference_steps,
                clip_sample: None,
                prediction_type: PredictionType::Epsilon,
                timestep_spacing,
                steps_offset: 0,
            };
            inference_timesteps(1000, &settings)
        };
        assert_eq!(visited(TimestepSpacing::Leading, 3), [666, 333, 0]);
        assert_eq!(visited(TimestepSpacing::Trailing, 3), [999, 666, 332]);
        assert_eq!(visited(TimestepSpacing::Linspace, 3), [999, 500, 0]);
        assert_eq!(visited(TimestepSpacing::Linspace, 1), [0]);
    }

    /// Of every count, for several T, folded into a number for each T by
    /// ```python
    /// for n in range(1, T + 1):
    ///     for t in np.round(np.arange(T, 0, -T / n)) - 1:
    ///         if t >= 0: h = (h * 31 + int(t)) % 2**64
    /// ```
    /// with NumPy 2; diffusers has the same line. At 48 steps of 1,000 halves fall to the other side without its rounding.
    #[test]
    fn trailing_timesteps_are_numpys_for_every_count() {
        let visited = |total, num_inference_steps| {
            let settings = Settings {
                num_inference_steps,
                clip_sample: None,
                prediction_type: PredictionType::Epsilon,
                timestep_spacing: TimestepSpacing::Trailing,
                steps_offset: 0,
            };
            inference_timesteps(total, &settings)
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
}
