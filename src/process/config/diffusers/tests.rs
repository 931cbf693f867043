use super::*;

fn read(text: &str) -> Result<SchedulerConfig> {
    SchedulerConfig::from_json(text, "scheduler_config.json")
}

/// A file of a class with these keys.
fn of(class: &str, keys: &str) -> Result<SchedulerConfig> {
    let comma = if keys.is_empty() { "" } else { ", " };
    read(&format!(r#"{{"_class_name": "{class}"{comma}{keys}}}"#))
}

fn refusal(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn the_file_of_diffusers_is_read() {
    let config = of(
        "DDPMScheduler",
        r#""beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false,
           "steps_offset": 1, "variance_type": "fixed_large", "_diffusers_version": "0.42.1""#,
    )
    .unwrap();
    assert_eq!(config.beta_schedule, BetaSchedule::scaled_linear());
    assert_eq!((config.clip_sample, config.steps_offset), (false, 1));
    assert_eq!(config.variance_type, VarianceType::FixedLarge);
}

/// For each class: schedule, clip, spacing, and whether it ends at ᾱ = 1. From the signatures and
/// the last σ in diffusers 0.42.1.
#[test]
fn absent_keys_have_the_defaults_of_their_class() {
    use TimestepSpacing::{Leading, Linspace};
    let linear = BetaSchedule::linear();
    let low = BetaSchedule::Linear {
        start: 0.00085,
        end: 0.012,
    };
    let scaled = BetaSchedule::scaled_linear();
    let expected = [
        ("DDPMScheduler", &linear, true, Leading, true),
        ("DDPMParallelScheduler", &linear, true, Leading, true),
        ("DDIMScheduler", &linear, true, Leading, true),
        ("DDIMParallelScheduler", &linear, true, Leading, true),
        ("DDIMInverseScheduler", &linear, true, Leading, true),
        ("PNDMScheduler", &linear, false, Leading, false),
        ("LMSDiscreteScheduler", &linear, false, Linspace, true),
        ("EulerDiscreteScheduler", &linear, false, Linspace, true),
        (
            "EulerAncestralDiscreteScheduler",
            &linear,
            false,
            Linspace,
            true,
        ),
        ("HeunDiscreteScheduler", &low, false, Linspace, true),
        (
            "DPMSolverMultistepScheduler",
            &linear,
            false,
            Linspace,
            true,
        ),
        (
            "DPMSolverMultistepInverseScheduler",
            &linear,
            false,
            Linspace,
            true,
        ),
        (
            "DPMSolverSinglestepScheduler",
            &linear,
            false,
            Linspace,
            true,
        ),
        ("DPMSolverSDEScheduler", &low, false, Linspace, true),
        ("UniPCMultistepScheduler", &linear, false, Linspace, true),
        ("DEISMultistepScheduler", &linear, false, Linspace, false),
        ("SASolverScheduler", &linear, false, Linspace, false),
        ("KDPM2DiscreteScheduler", &low, false, Linspace, true),
        (
            "KDPM2AncestralDiscreteScheduler",
            &low,
            false,
            Linspace,
            true,
        ),
        ("LCMScheduler", &scaled, false, Leading, true),
        ("TCDScheduler", &scaled, false, Leading, true),
    ];
    assert_eq!(expected.len(), CLASSES.len());
    for (class, schedule, clip, spacing, ends_clean) in expected {
        let config = of(class, "").unwrap();
        assert_eq!(config.beta_schedule, *schedule, "{class}");
        assert_eq!(config.clip_sample, clip, "{class}");
        assert_eq!(config.timestep_spacing, spacing, "{class}");
        assert_eq!(config.set_alpha_to_one, ends_clean, "{class}");
        let same = SchedulerConfig {
            beta_schedule: schedule.clone(),
            clip_sample: clip,
            timestep_spacing: spacing,
            set_alpha_to_one: ends_clean,
            ..SchedulerConfig::default()
        };
        assert_eq!(config, same, "{class}");
    }
    let unset = r#""variance_type": null, "trained_betas": null"#;
    assert_eq!(
        of("DDPMScheduler", unset).unwrap(),
        SchedulerConfig::default()
    );
}

/// As diffusers saves them: -Infinity is Python's spelling.
#[test]
fn files_of_fast_samplers_are_the_process_of_their_betas() {
    let config = of(
        "DPMSolverMultistepScheduler",
        r#""algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
        "dynamic_thresholding_ratio": 0.995, "euler_at_final": false, "final_sigmas_type": "zero", "flow_shift": 1.0,
        "lambda_min_clipped": -Infinity, "lower_order_final": true, "num_train_timesteps": 1000, "prediction_type": "epsilon",
        "rescale_betas_zero_snr": false, "sample_max_value": 1.0, "solver_order": 2, "solver_type": "midpoint",
        "steps_offset": 0, "thresholding": false, "time_shift_type": "exponential", "timestep_spacing": "linspace",
        "trained_betas": null, "use_beta_sigmas": false, "use_dynamic_shifting": false, "use_exponential_sigmas": false,
        "use_flow_sigmas": false, "use_karras_sigmas": true, "use_lu_lambdas": false, "variance_type": null"#,
    )
    .unwrap();
    let expected = SchedulerConfig {
        clip_sample: false,
        timestep_spacing: TimestepSpacing::Linspace,
        ..SchedulerConfig::default()
    };
    assert_eq!(config, expected);
    let ends_at_first = r#""final_sigmas_type": "sigma_min""#;
    assert!(
        !of("UniPCMultistepScheduler", ends_at_first)
            .unwrap()
            .set_alpha_to_one
    );
    // Stable Diffusion's file: DDIM would use these settings, and PNDM has none of them.
    let config = of(
        "PNDMScheduler",
        r#""beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": false,
        "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null"#,
    );
    assert_eq!(config.unwrap().beta_schedule, BetaSchedule::scaled_linear());
}

#[test]
fn other_classes_are_refused_by_name() {
    for class in [
        "FlowMatchEulerDiscreteScheduler",
        "UnCLIPScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "DDPMWuerstchenScheduler",
        "AmusedScheduler",
        "KarrasVeScheduler",
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CosineDPMSolverMultistepScheduler",
        "ScoreSdeVpScheduler",
        "ScoreSdeVeScheduler",
        "IPNDMScheduler",
        "VQDiffusionScheduler",
        "SCMScheduler",
        "CMStochasticIterativeScheduler",
        "StableDiffusionPipeline",
        "ddpmscheduler",
        "DDPMSchedulerX",
        "",
    ] {
        let error = of(class, "").unwrap_err().to_string();
        let named = format!("`_class_name` is `\"{class}\"`");
        assert!(
            error.contains(&named) && error.contains("siss::Scheduler"),
            "{error}"
        );
    }
    for text in [
        "{}",
        r#"{"hello": 1}"#,
        r#"{"_class_name": null}"#,
        r#"{"_class_name": ["DDPMScheduler"]}"#,
    ] {
        let error = refusal(text);
        assert!(error.contains("_class_name"), "{error}");
    }
}

#[test]
fn what_changes_the_process_is_refused_by_name() {
    for (class, key, value) in [
        ("DDPMScheduler", "beta_schedule", "\"sigmoid\""),
        ("DDPMScheduler", "beta_schedule", "null"),
        ("DDPMScheduler", "beta_start", "\"small\""),
        ("DDPMScheduler", "beta_end", "NaN"),
        ("DDPMScheduler", "num_train_timesteps", "-1"),
        ("DDPMScheduler", "trained_betas", "\"a\""),
        ("DDPMScheduler", "prediction_type", "\"flow_prediction\""),
        ("DDPMScheduler", "timestep_spacing", "\"other\""),
        ("DDPMScheduler", "thresholding", "true"),
        ("DDPMScheduler", "variance_type", "\"learned_range\""),
        ("DDPMScheduler", "variance_type", "\"fixed_large_log\""),
        ("DDPMScheduler", "timestep_values", "[1,2]"),
        ("DDPMScheduler", "predict_epsilon", "\"no\""),
        ("DDIMScheduler", "snr_shift_scale", "3.0"),
        ("DDIMScheduler", "snr_shift_scale", "1.0"),
        ("PNDMScheduler", "rescale_betas_zero_snr", "true"),
        ("EulerDiscreteScheduler", "timestep_type", "\"continuous\""),
        ("EulerDiscreteScheduler", "sigma_max", "700.0"),
        ("EulerDiscreteScheduler", "sigma_min", "0.002"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "\"one\""),
        ("UniPCMultistepScheduler", "use_flow_sigmas", "true"),
        ("UniPCMultistepScheduler", "sigma_max", "Infinity"),
        ("UniPCMultistepScheduler", "sigma_max", "-1.0"),
        ("DDPMScheduler", "shift", "3.0"),
        ("DDPMScheduler", "log_snr_shift", "true"),
    ] {
        let error = of(class, &format!("\"{key}\": {value}"))
            .unwrap_err()
            .to_string();
        let value = value.trim_matches('"').trim_end_matches(".0");
        assert!(
            error.contains(&format!("`{key}`")) && error.contains(value),
            "{error}"
        );
    }
}

#[test]
fn all_that_is_refused_is_named_at_once() {
    let error = of(
        "DDPMScheduler",
        r#""shift": 1, "base_shift": 2, "thresholding": true, "variance_type": "learned""#,
    )
    .unwrap_err()
    .to_string();
    for key in [
        "`shift`",
        "`base_shift`",
        "`thresholding`",
        "`variance_type`",
    ] {
        assert!(error.contains(key), "{error}");
    }
}

/// A sampler may begin and end anywhere within the process. Stable Diffusion's ends, as published.
#[test]
fn sigma_ends_of_the_process_are_read() {
    let betas = r#""beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012"#;
    for ends in [
        r#""sigma_min": 0.0292, "sigma_max": 14.6146"#,
        r#""sigma_min": 0.1, "sigma_max": null"#,
    ] {
        assert!(of("EulerDiscreteScheduler", &format!("{betas}, {ends}")).is_ok());
    }
    let wide = format!(r#"{betas}, "sigma_max": 15.0"#);
    assert!(of("EulerDiscreteScheduler", &wide).is_err());
}

#[test]
fn the_old_key_of_the_prediction_is_read() {
    let kind = |keys: &str| of("DDPMScheduler", keys).map(|config| config.prediction_type);
    for (keys, expected) in [
        (r#""predict_epsilon": false"#, PredictionType::Sample),
        (r#""predict_epsilon": true"#, PredictionType::Epsilon),
        (
            r#""predict_epsilon": false, "prediction_type": "sample""#,
            PredictionType::Sample,
        ),
        (
            r#""predict_epsilon": true, "prediction_type": "v_prediction""#,
            PredictionType::Velocity,
        ),
    ] {
        assert_eq!(kind(keys).unwrap(), expected, "{keys}");
    }
    let both = r#""predict_epsilon": false, "prediction_type": "v_prediction""#;
    let error = kind(both).unwrap_err().to_string();
    assert!(
        error.contains("predict_epsilon") && error.contains("v_prediction"),
        "{error}"
    );
}
