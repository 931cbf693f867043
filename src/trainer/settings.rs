//! The settings that shape a run, by name; a resumed run must agree with them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::TrainerConfig;
use crate::error::{Error, Result, SettingDifference};
use crate::files::sha256;
use crate::process::{PredictionType, Scheduler, TimeRange};
use crate::steering::Steering;

/// Fields of [`TrainerConfig`] that a resumed run may change, because they do not change its steps.
///
/// They say how much memory a step takes, and when a run that fails repeatedly is given up.
const FREE: [&str; 3] = [
    "gradient_checkpointing",
    "max_skipped_steps",
    "micro_batch_size",
];

/// The settings that shape a run, by name: two runs with the same settings take the same steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    values: BTreeMap<String, Value>,
    /// The defaults of the configuration's fields: a version of the crate without a field runs as
    /// if the field had its default.
    defaults: BTreeMap<String, Value>,
}

impl Settings {
    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.values.insert(name.into(), value.into());
    }

    pub(crate) fn add_all(&mut self, others: &Settings) {
        self.values.extend(others.values.clone());
        self.defaults.extend(others.defaults.clone());
    }

    pub(crate) fn add_config(&mut self, config: &TrainerConfig) -> Result<()> {
        self.values.extend(fields(config)?);
        self.defaults.extend(fields(&TrainerConfig::default())?);
        Ok(())
    }

    /// Adds the forward process, by its scales at eleven times.
    ///
    /// The scales are rounded to `f32`, as on the device, because the last digits in `f64` depend
    /// on the platform's mathematics.
    pub(crate) fn add_process(&mut self, scheduler: &dyn Scheduler) {
        let range = scheduler.time_range();
        let scales = (0..=10_usize).map(|part| {
            let time = match range {
                TimeRange::Discrete { num_timesteps } => {
                    (part * num_timesteps.saturating_sub(1) / 10) as f64
                }
                TimeRange::Continuous { min, max } => min + (max - min) * part as f64 / 10.0,
            };
            let (signal, noise) = (scheduler.signal_scale(time), scheduler.noise_scale(time));
            Value::from(format!("{} {}", signal as f32, noise as f32))
        });
        self.add("scheduler.scales", scales.collect::<Vec<_>>());
        self.add("scheduler.time_range", range.to_string());
    }

    /// Adds what the model predicts.
    pub(crate) fn add_prediction_type(&mut self, prediction_type: PredictionType) -> Result<()> {
        let name = to_json("the prediction type", &prediction_type)?;
        self.add("prediction_type", name);
        Ok(())
    }

    pub(crate) fn add_steering(&mut self, steering: Option<&Steering>) -> Result<()> {
        let Some(steering) = steering else {
            return Ok(());
        };
        let levels = to_json("the levels", steering.levels())?;
        self.add("steering.levels", sha256(levels.to_string().as_bytes()));
        self.add("steering.rule", steering.rule().settings());
        Ok(())
    }

    /// The settings that differ, by name. A setting that one side lacks has its default there.
    pub(crate) fn differences(&self, now: &Settings) -> Vec<SettingDifference> {
        let names: BTreeSet<_> = self.values.keys().chain(now.values.keys()).collect();
        let effective = |settings: &Settings, other: &Settings, name: &String| {
            let value = settings.values.get(name);
            value.or_else(|| other.defaults.get(name)).cloned()
        };
        let differs = names
            .into_iter()
            .filter(|name| effective(self, now, name) != effective(now, self, name));
        differs
            .map(|name| SettingDifference {
                setting: name.clone(),
                saved: self.values.get(name).map(text),
                now: now.values.get(name).map(text),
            })
            .collect()
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// The fields of a configuration that a resumed run must not change.
fn fields(config: &TrainerConfig) -> Result<Map<String, Value>> {
    let Value::Object(mut fields) = to_json("the configuration", config)? else {
        return Ok(Map::new());
    };
    fields.retain(|name, _| !FREE.contains(&name.as_str()));
    Ok(fields)
}

pub(crate) fn to_json(what: &str, value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| no_json(what, error))
}

pub(crate) fn no_json(what: &str, error: serde_json::Error) -> Error {
    Error::NotJson {
        what: what.into(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{DdpmScheduler, FlowMatching};

    #[test]
    pub(crate) fn differences_name_the_setting_and_both_values() {
        let mut saved = Settings::default();
        saved.add_config(&TrainerConfig::default()).unwrap();
        saved.add("sampler", "CoinFlip");
        let text = serde_json::to_string(&saved).unwrap();
        let read: Settings = serde_json::from_str(&text).unwrap();
        assert!(read.differences(&saved).is_empty());
        let mut now = saved.clone();
        now.add("seed", 7);
        now.add("batch", 32);
        now.values.remove("sampler");
        let texts: Vec<_> = saved
            .differences(&now)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                "batch was absent and is 32",
                "sampler was CoinFlip and is absent",
                "seed was 0 and is 7"
            ]
        );
    }

    /// A checkpoint of a version with one field less, and of one with one more.
    #[test]
    fn a_field_that_one_version_does_not_have_is_at_its_default_there() {
        let with = |name: &str, value: i32, default: i32| {
            let mut settings = Settings::default();
            settings.add_config(&TrainerConfig::default()).unwrap();
            settings.add(name, value);
            settings.defaults.insert(name.into(), default.into());
            settings
        };
        let texts = |saved: &Settings, now: &Settings| -> Vec<String> {
            let differences = saved.differences(now);
            differences.iter().map(ToString::to_string).collect()
        };
        let mut without = Settings::default();
        without.add_config(&TrainerConfig::default()).unwrap();
        let (default, set) = (with("new", 3, 3), with("new", 4, 3));
        assert!(texts(&without, &default).is_empty());
        assert!(texts(&default, &without).is_empty());
        assert_eq!(texts(&without, &set), ["new was absent and is 4"]);
        assert_eq!(texts(&set, &without), ["new was 4 and is absent"]);
        // Both have the field, so its default does not matter.
        assert!(texts(&with("new", 4, 4), &set).is_empty());
        assert_eq!(texts(&with("new", 4, 4), &default), ["new was 4 and is 3"]);
    }

    #[test]
    fn what_a_resumed_run_may_change_are_fields_of_the_configuration() {
        let all = to_json("", &TrainerConfig::default()).unwrap();
        for name in FREE {
            assert!(all.get(name).is_some(), "{name}");
        }
        let compared = fields(&TrainerConfig::default()).unwrap();
        assert_eq!(compared.len() + FREE.len(), all.as_object().unwrap().len());
    }

    #[test]
    fn processes_are_told_apart() {
        let settings = |scheduler: &dyn Scheduler| {
            let mut settings = Settings::default();
            settings.add_process(scheduler);
            settings
        };
        let linear = settings(&DdpmScheduler::linear(1000).unwrap());
        assert_eq!(linear, settings(&DdpmScheduler::linear(1000).unwrap()));
        for other in [
            settings(&DdpmScheduler::linear(999).unwrap()),
            settings(&FlowMatching::default()),
        ] {
            assert!(!linear.differences(&other).is_empty());
        }
    }

    /// The same signal with the noise of another process.
    #[derive(Debug)]
    struct Louder(DdpmScheduler);

    impl Scheduler for Louder {
        fn time_range(&self) -> TimeRange {
            self.0.time_range()
        }

        fn signal_scale(&self, timestep: f64) -> f64 {
            self.0.signal_scale(timestep)
        }

        fn noise_scale(&self, timestep: f64) -> f64 {
            2.0 * self.0.noise_scale(timestep)
        }
    }

    #[test]
    fn processes_are_told_apart_by_their_noise_alone() {
        let linear = DdpmScheduler::linear(1000).unwrap();
        let (mut quiet, mut loud) = (Settings::default(), Settings::default());
        quiet.add_process(&linear);
        loud.add_process(&Louder(linear));
        assert_eq!(quiet.differences(&loud).len(), 1);
    }
}
