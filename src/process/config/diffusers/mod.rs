//! Reads the `scheduler_config.json` of diffusers.
//!
//! Its classes share their keys, but differ in what an absent key means. Only some of them describe
//! the process of this crate.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{SchedulerConfig, TimestepSpacing, VarianceType};
use crate::error::Result;
use crate::files::invalid;
use crate::files::json::python_object;
use crate::files::refusals::Refusals;
use crate::process::beta::BetaSchedule;
use crate::process::prediction::PredictionType;

/// A class's defaults for keys that its file lacks.
#[derive(Debug, Clone, Copy)]
struct Class {
    beta_schedule: &'static str,
    beta_ends: [f64; 2],
    clip_sample: bool,
    timestep_spacing: &'static str,
    /// Whether the last step goes to `ᾱ = 1`, by `set_alpha_to_one` or by a last σ of 0.
    ends_clean: bool,
    /// Whether the class has `rescale_betas_zero_snr`.
    rescales: bool,
}

const DDPM: Class = Class {
    beta_schedule: "linear",
    beta_ends: [1e-4, 0.02],
    clip_sample: true,
    timestep_spacing: "leading",
    ends_clean: true,
    rescales: true,
};
const PNDM: Class = Class {
    clip_sample: false,
    ends_clean: false,
    rescales: false,
    ..DDPM
};
const EULER: Class = Class {
    clip_sample: false,
    timestep_spacing: "linspace",
    ..DDPM
};
const LMS: Class = Class {
    rescales: false,
    ..EULER
};
const DEIS: Class = Class {
    ends_clean: false,
    ..LMS
};
const HEUN: Class = Class {
    beta_ends: [8.5e-4, 0.012],
    ..LMS
};
const LCM: Class = Class {
    beta_schedule: "scaled_linear",
    beta_ends: [8.5e-4, 0.012],
    clip_sample: false,
    ..DDPM
};

/// The classes whose process is `x_t = √ᾱ_t x + √(1 − ᾱ_t) ε` over whole timesteps, as in diffusers
/// 0.42.
const CLASSES: [(&str, Class); 21] = [
    ("DDPMScheduler", DDPM),
    ("DDPMParallelScheduler", DDPM),
    ("DDIMScheduler", DDPM),
    ("DDIMParallelScheduler", DDPM),
    ("DDIMInverseScheduler", DDPM),
    ("PNDMScheduler", PNDM),
    ("EulerDiscreteScheduler", EULER),
    ("EulerAncestralDiscreteScheduler", EULER),
    ("DPMSolverMultistepScheduler", EULER),
    ("UniPCMultistepScheduler", EULER),
    ("LMSDiscreteScheduler", LMS),
    ("DPMSolverSinglestepScheduler", LMS),
    ("DPMSolverMultistepInverseScheduler", LMS),
    ("DEISMultistepScheduler", DEIS),
    ("SASolverScheduler", DEIS),
    ("HeunDiscreteScheduler", HEUN),
    ("DPMSolverSDEScheduler", HEUN),
    ("KDPM2DiscreteScheduler", HEUN),
    ("KDPM2AncestralDiscreteScheduler", HEUN),
    ("LCMScheduler", LCM),
    ("TCDScheduler", LCM),
];

/// Keys that concern how a diffusers sampler reverses the process, not the process itself.
const OF_SAMPLERS: [&str; 30] = [
    "algorithm_type",
    "corrector_order",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "eta",
    "euler_at_final",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "noise_sampler_seed",
    "original_inference_steps",
    "predict_x0",
    "predictor_order",
    "sample_max_value",
    "set_alpha_to_zero",
    "shift_terminal",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "tau_func",
    "tensor_format",
    "time_shift_type",
    "timestep_scaling",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
];

/// Reads the text of the file; `file` names it in errors.
pub(super) fn read(text: &str, file: &str) -> Result<SchedulerConfig> {
    let object = python_object(text).map_err(|error| {
        let message = format!("not a diffusers scheduler configuration: {error}");
        invalid(file.as_ref(), message)
    })?;
    let mut keys = Keys {
        object,
        refusals: Refusals::of(file),
    };
    let Some(class) = keys.class() else {
        // Without the class, nothing is known about the other keys.
        keys.refusals.into_result()?;
        return Err(invalid(file.as_ref(), "it has no `_class_name`"));
    };
    let config = keys.config(&class);
    let ends = keys.sigma_ends();
    keys.refuse_what_is_left();
    if let Some(ends) = ends {
        keys.check_sigma_ends(ends, &config);
    }
    keys.refusals.into_result()?;
    Ok(config)
}

/// The keys that have not been read yet.
struct Keys<'a> {
    object: Map<String, Value>,
    refusals: Refusals<'a>,
}

impl Keys<'_> {
    fn class(&mut self) -> Option<Class> {
        let value = self.object.remove("_class_name").unwrap_or(Value::Null);
        let known = CLASSES.iter().find(|(name, _)| value == *name);
        if known.is_none() {
            let names: Vec<_> = CLASSES
                .iter()
                .map(|(name, _)| name.trim_end_matches("Scheduler"))
                .collect();
            let remedy = format!(
                "only schedulers with a discrete process given by betas are read ({}): give the one that the model was trained with, \
                 or implement `siss::Scheduler` for another kind of process (`siss::FlowMatching` implements flow matching)",
                names.join(", ")
            );
            self.refusals.add("_class_name", value, remedy);
        }
        known.map(|&(_, class)| class)
    }

    fn config(&mut self, class: &Class) -> SchedulerConfig {
        let default = SchedulerConfig::default();
        let config = SchedulerConfig {
            num_timesteps: self.take("num_train_timesteps", default.num_timesteps),
            beta_schedule: self.beta_schedule(class),
            zero_terminal_snr: self.zero_terminal_snr(class),
            prediction_type: self.prediction_type(),
            clip_sample: self.flag("clip_sample", class.clip_sample),
            clip_sample_range: self.take("clip_sample_range", default.clip_sample_range),
            timestep_spacing: self.timestep_spacing(class),
            steps_offset: self.take("steps_offset", default.steps_offset),
            set_alpha_to_one: self.ends_clean(class),
            variance_type: self.variance_type(),
        };
        self.refuse_other_processes();
        config
    }

    fn beta_schedule(&mut self, class: &Class) -> BetaSchedule {
        let [start, end] = class.beta_ends;
        let start = self.take("beta_start", start);
        let end = self.take("beta_end", end);
        let name = self.take("beta_schedule", class.beta_schedule.to_string());
        if let Some(betas) = self.take("trained_betas", None) {
            return BetaSchedule::Trained(betas);
        }
        match name.as_str() {
            "linear" => BetaSchedule::Linear { start, end },
            "scaled_linear" => BetaSchedule::ScaledLinear { start, end },
            "squaredcos_cap_v2" => BetaSchedule::SquaredCosine,
            other => {
                let remedy = "linear, scaled_linear, squaredcos_cap_v2 and trained_betas are read";
                self.refuse_text("beta_schedule", other, remedy);
                BetaSchedule::linear()
            }
        }
    }

    fn zero_terminal_snr(&mut self, class: &Class) -> bool {
        const KEY: &str = "rescale_betas_zero_snr";
        let rescales = self.flag(KEY, false);
        if rescales && !class.rescales {
            let remedy = "its class has no such setting and does not change the betas: give the scheduler that the model was trained with";
            self.refusals.add(KEY, true, remedy);
        }
        rescales
    }

    /// Before version 0.10, `"predict_epsilon": false` marked a model that predicts the clean
    /// point.
    fn prediction_type(&mut self) -> PredictionType {
        let name: Option<String> = self.take("prediction_type", None);
        let predicts_clean = self.take("predict_epsilon", None) == Some(false);
        match name.as_deref() {
            None if predicts_clean => PredictionType::Sample,
            Some("sample") => PredictionType::Sample,
            Some(other) if predicts_clean => {
                let remedy = format!(
                    "it says that the model predicts the clean point, but `prediction_type` says {other}: keep only the right one"
                );
                self.refusals.add("predict_epsilon", false, remedy);
                PredictionType::Sample
            }
            None | Some("epsilon") => PredictionType::Epsilon,
            Some("v_prediction") => PredictionType::Velocity,
            Some(other) => {
                let remedy = "epsilon, sample and v_prediction are read";
                self.refuse_text("prediction_type", other, remedy);
                PredictionType::Epsilon
            }
        }
    }

    fn timestep_spacing(&mut self, class: &Class) -> TimestepSpacing {
        let default = class.timestep_spacing.to_string();
        match self.take("timestep_spacing", default).as_str() {
            "leading" => TimestepSpacing::Leading,
            "trailing" => TimestepSpacing::Trailing,
            "linspace" => TimestepSpacing::Linspace,
            other => {
                let remedy = "leading, trailing and linspace are read";
                self.refuse_text("timestep_spacing", other, remedy);
                TimestepSpacing::Leading
            }
        }
    }

    /// Samplers that count in σ end at 0, or at the σ of the first step.
    fn ends_clean(&mut self, class: &Class) -> bool {
        let set_alpha_to_one: Option<bool> = self.take("set_alpha_to_one", None);
        let last: Option<String> = self.take("final_sigmas_type", None);
        match last.as_deref() {
            None => set_alpha_to_one.unwrap_or(class.ends_clean),
            Some("zero") => set_alpha_to_one.unwrap_or(true),
            Some("sigma_min") => set_alpha_to_one.unwrap_or(false),
            Some(other) => {
                self.refuse_text("final_sigmas_type", other, "zero and sigma_min are read");
                class.ends_clean
            }
        }
    }

    fn variance_type(&mut self) -> VarianceType {
        // It is null in the files of other samplers.
        let name: Option<String> = self.take("variance_type", None);
        match name.as_deref() {
            // exp(½ ln variance), which the second one has, is the deviation of the first.
            None | Some("fixed_small" | "fixed_small_log") => VarianceType::FixedSmall,
            Some("fixed_large") => VarianceType::FixedLarge,
            Some(other) => {
                let remedy = "fixed_small and fixed_large are read; models that learn the variance are not supported";
                self.refuse_text("variance_type", other, remedy);
                VarianceType::FixedSmall
            }
        }
    }

    /// Refuses keys by which a class with betas has another process after all.
    fn refuse_other_processes(&mut self) {
        if self.flag("thresholding", false) {
            let remedy = "dynamic thresholding is not implemented: samples would not be those of this model's pipeline";
            self.refusals.add("thresholding", true, remedy);
        }
        if self.flag("use_flow_sigmas", false) {
            let remedy = "it makes the process flow matching instead of the one given by the betas: use `siss::FlowMatching` with the model";
            self.refusals.add("use_flow_sigmas", true, remedy);
        }
        let kind = self.take("timestep_type", "discrete".to_string());
        if kind != "discrete" {
            let remedy = "the model takes numbers other than whole timesteps: implement `siss::Scheduler` for its process";
            self.refuse_text("timestep_type", &kind, remedy);
        }
        if let Some(value) = self.take("snr_shift_scale", None::<Value>) {
            let remedy = "a shift of the signal-to-noise ratio is not implemented: implement `siss::Scheduler` for the shifted process";
            self.refusals.add("snr_shift_scale", value, remedy);
        }
        if let Some(value) = self.take("timestep_values", None::<Value>) {
            let remedy = "timesteps given one by one are not implemented";
            self.refusals.add("timestep_values", value, remedy);
        }
    }

    /// The smallest and largest `σ = √((1 − ᾱ) / ᾱ)` that a sampler visits, if the file says so.
    fn sigma_ends(&mut self) -> Option<[Option<f64>; 2]> {
        let ends = [self.take("sigma_min", None), self.take("sigma_max", None)];
        ends.iter().any(Option::is_some).then_some(ends)
    }

    /// Refuses ends outside the process, which belong to another one; within it they only say how
    /// far a sampler goes.
    fn check_sigma_ends(&mut self, ends: [Option<f64>; 2], config: &SchedulerConfig) {
        // Betas out of range cause an error of their own when they are used.
        let Ok(alpha_bars) = config.alpha_bars() else {
            return;
        };
        let sigma = |alpha_bar: &f64| ((1.0 - alpha_bar) / alpha_bar).sqrt();
        let least = alpha_bars.first().map_or(0.0, sigma);
        let most = alpha_bars.last().map_or(0.0, sigma);
        // Files hold rounded values.
        let of_process = 0.99 * least..=1.01 * most;
        for (key, end) in ["sigma_min", "sigma_max"].into_iter().zip(ends) {
            if let Some(end) = end.filter(|end| !of_process.contains(end)) {
                let remedy = format!(
                    "the betas give a σ from {least:.3} to {most:.3}, so this is a different process: implement `siss::Scheduler` for it"
                );
                self.refusals.add(key, end, remedy);
            }
        }
    }

    fn refuse_what_is_left(&mut self) {
        for (key, value) in &self.object {
            let is_private = key.starts_with('_');
            if !is_private && !OF_SAMPLERS.contains(&key.as_str()) {
                self.refusals.add_unknown(key, value);
            }
        }
    }

    /// The value of a key, or the meaning of its absence.
    fn take<T: DeserializeOwned>(&mut self, key: &str, absent: T) -> T {
        let Some(value) = self.object.remove(key) else {
            return absent;
        };
        match T::deserialize(&value) {
            Ok(read) => read,
            Err(error) => {
                let remedy = format!("the value cannot be read: {error}");
                self.refusals.add(key, value, remedy);
                absent
            }
        }
    }

    /// A yes or no; null means no in Python.
    fn flag(&mut self, key: &str, absent: bool) -> bool {
        match self.object.get(key) {
            Some(_) => self.take(key, None).unwrap_or(false),
            None => absent,
        }
    }

    fn refuse_text(&mut self, key: &str, value: &str, remedy: &str) {
        self.refusals.add(key, format!("\"{value}\""), remedy);
    }
}

#[cfg(test)]
mod tests;
