use std::sync::{Arc, Mutex};

use burn::module::Module;

use super::*;
use crate::process::config::{TimestepSpacing, VarianceType};
use crate::process::{PredictionType, Scheduler, SchedulerConfig};

const KINDS: [PredictionType; 4] = [
    PredictionType::Epsilon,
    PredictionType::Sample,
    PredictionType::Velocity,
    PredictionType::FlowVelocity,
];

fn linear() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn ddim(config: DdimConfig) -> DdimSampler {
    DdimSampler::new(&linear(), config).unwrap()
}

fn ddpm(config: DdpmConfig) -> DdpmSampler {
    DdpmSampler::new(&linear(), config).unwrap()
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Knows that every clean point is `0.5`, and says so.
#[derive(Module, Debug)]
struct Oracle {
    #[module(skip)]
    kind: PredictionType,
}

impl Denoiser<2> for Oracle {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let scheduler = linear();
        let t: Vec<f32> = timesteps.into_data().try_to_vec().unwrap();
        let (gamma, sigma) = (
            scheduler.signal_scale(t[0].into()),
            scheduler.noise_scale(t[0].into()),
        );
        let clean = noisy.zeros_like() + 0.5;
        let epsilon = (noisy - clean.clone() * gamma) / sigma;
        let column = |value: f64| Tensor::<2>::full([1, 1], value, &clean.device());
        self.kind
            .target(clean.clone(), epsilon, column(gamma), column(sigma))
    }
}

fn distance_of_samples(sampler: &impl Sampler, kind: PredictionType) -> f32 {
    let model = Oracle { kind };
    let samples = sampler.sample(&model, &(), [3, 4], 1, 0, &Device::flex());
    (samples.unwrap() - 0.5).abs().max().into_scalar()
}

#[test]
fn samples_of_a_perfect_model_are_the_clean_point_in_every_prediction_type() {
    for kind in KINDS {
        for eta in [0.0, 1.0] {
            let sampler = ddim(DdimConfig {
                num_inference_steps: 25,
                eta,
                prediction_type: kind,
                ..DdimConfig::default()
            });
            let distance = distance_of_samples(&sampler, kind);
            assert!(distance < 1e-3, "DDIM {kind:?} {eta} {distance}");
        }
        for variance_type in [VarianceType::FixedSmall, VarianceType::FixedLarge] {
            let sampler = ddpm(DdpmConfig {
                num_inference_steps: 25,
                variance_type,
                prediction_type: kind,
                ..DdpmConfig::default()
            });
            let distance = distance_of_samples(&sampler, kind);
            assert!(
                distance < 1e-3,
                "DDPM {kind:?} {variance_type:?} {distance}"
            );
        }
    }
}

/// Halves what it is given, and writes down when.
#[derive(Module, Debug)]
struct Halves {
    #[module(skip)]
    visited: Arc<Mutex<Vec<f32>>>,
}

fn halves() -> Halves {
    Halves {
        visited: Default::default(),
    }
}

impl Denoiser<2> for Halves {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let first = timesteps.narrow(0, 0, 1).into_scalar::<f32>();
        self.visited.lock().unwrap().push(first);
        noisy * 0.5
    }
}

fn check_rows(sampler: &impl Sampler) {
    let (device, model) = (Device::flex(), halves());
    let all = host(sampler.sample(&model, &(), [4, 3], 9, 0, &device).unwrap());
    let tail = host(sampler.sample(&model, &(), [1, 3], 9, 3, &device).unwrap());
    assert_eq!(all[9..], tail);
    assert_ne!(all[..3], all[3..6]);
}

#[test]
fn a_row_is_the_same_in_any_batch() {
    check_rows(&ddim(DdimConfig {
        num_inference_steps: 5,
        eta: 1.0,
        clip_sample: None,
        ..DdimConfig::default()
    }));
    check_rows(&ddpm(DdpmConfig {
        num_inference_steps: 5,
        clip_sample: None,
        ..DdpmConfig::default()
    }));
}

fn check_start(sampler: &impl Sampler) {
    let model = halves();
    let clean = Tensor::<2>::zeros([2, 3], &Device::flex());
    sampler
        .noise_and_denoise(&model, &(), clean.clone(), 250, 3, 0)
        .unwrap();
    let visited = model.visited.lock().unwrap().clone();
    assert_eq!(
        visited,
        [250.0, 240.0, 200.0, 160.0, 120.0, 80.0, 40.0, 0.0]
    );
    let past_the_end = sampler.noise_and_denoise(&model, &(), clean, 1000, 3, 0);
    assert!(matches!(
        past_the_end,
        Err(Error::TimestepOutOfRange { .. })
    ));
}

#[test]
fn noising_and_denoising_starts_at_the_timestep_asked_for() {
    check_start(&ddim(DdimConfig {
        num_inference_steps: 25,
        ..DdimConfig::default()
    }));
    check_start(&ddpm(DdpmConfig {
        num_inference_steps: 25,
        ..DdpmConfig::default()
    }));
}

/// With `η = 1` DDIM is DDPM with the small variance (Song et al. 2021, section 4.1).
#[test]
fn ddim_with_all_its_noise_is_ddpm() {
    let ddim = ddim(DdimConfig {
        num_inference_steps: 10,
        eta: 1.0,
        clip_sample: None,
        ..DdimConfig::default()
    });
    let ddpm = ddpm(DdpmConfig {
        num_inference_steps: 10,
        clip_sample: None,
        ..DdpmConfig::default()
    });
    let device = Device::flex();
    let one = host(ddim.sample(&halves(), &(), [2, 3], 4, 0, &device).unwrap());
    let other = host(ddpm.sample(&halves(), &(), [2, 3], 4, 0, &device).unwrap());
    for (one, other) in one.iter().zip(other) {
        let tolerance = 1e-4 * one.abs().max(1.0);
        assert!((one - other).abs() < tolerance, "{one} {other}");
    }
}

/// The noise in a step with a given deviation: what it adds to a step without noise.
#[test]
fn both_variances_are_those_of_their_definition() {
    let alpha_bars = linear().alpha_bars().to_vec();
    let (now, before) = (alpha_bars[500], alpha_bars[400]);
    let beta = 1.0 - now / before;
    for (variance_type, expected) in [
        (
            VarianceType::FixedSmall,
            (1.0 - before) / (1.0 - now) * beta,
        ),
        (VarianceType::FixedLarge, beta),
    ] {
        let sampler = ddpm(DdpmConfig {
            num_inference_steps: 10,
            variance_type,
            ..DdpmConfig::default()
        });
        let step = |noise: f32| {
            let points = Tensor::<2>::full([1, 1], 0.3, &Device::flex());
            let noise = points.full_like(noise);
            let output = points.zeros_like();
            let stepped = sampler.step(points, output, 500, Some(noise)).unwrap();
            f64::from(stepped.into_scalar::<f32>())
        };
        let variance = (step(1.0) - step(0.0)).powi(2);
        assert!(
            (variance / expected - 1.0).abs() < 1e-5,
            "{variance_type:?}"
        );
    }
}

#[test]
fn the_step_from_timestep_0_adds_no_noise() {
    let points = || Tensor::<2>::full([1, 2], 0.3, &Device::flex());
    let sampler = ddpm(DdpmConfig::default());
    let without = sampler.step(points(), points(), 0, None).unwrap();
    let with = sampler.step(points(), points(), 0, Some(points())).unwrap();
    assert_eq!(host(without), host(with));
}

#[test]
fn a_stochastic_step_without_noise_is_refused() {
    let points = || Tensor::<2>::zeros([2, 3], &Device::flex());
    let stochastic = ddim(DdimConfig {
        eta: 0.5,
        ..DdimConfig::default()
    });
    let error = stochastic.step(points(), points(), 500, None).unwrap_err();
    assert!(
        error.to_string().contains("eta 0.5 has no noise"),
        "{error}"
    );
    let sampler = ddpm(DdpmConfig::default());
    let error = sampler.step(points(), points(), 500, None).unwrap_err();
    assert!(matches!(error, Error::MissingPart { .. }), "{error}");
    assert!(error.to_string().contains("timestep 500"), "{error}");
}

#[test]
fn a_step_goes_down() {
    let points = || Tensor::<2>::zeros([2, 3], &Device::flex());
    let sampler = ddim(DdimConfig::default());
    for previous in [500, 501, usize::MAX] {
        let error = sampler
            .step_to(points(), points(), 500, Some(previous), None)
            .unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn a_predicted_noise_without_signal_is_refused() {
    let config = SchedulerConfig {
        zero_terminal_snr: true,
        ..SchedulerConfig::default()
    };
    let scheduler = DdpmScheduler::from_config(&config).unwrap();
    let points = || Tensor::<2>::zeros([2, 3], &Device::flex());
    let sampler = DdimSampler::new(&scheduler, DdimConfig::default()).unwrap();
    let error = sampler.step(points(), points(), 999, None).unwrap_err();
    assert!(error.to_string().contains("999 has no signal"), "{error}");
    assert!(DdpmSampler::new(&scheduler, DdpmConfig::default()).is_err());
    for kind in KINDS {
        let trailing = DdimConfig {
            timestep_spacing: TimestepSpacing::Trailing,
            prediction_type: kind,
            ..DdimConfig::default()
        };
        let refused = DdimSampler::new(&scheduler, trailing).is_err();
        assert_eq!(refused, kind == PredictionType::Epsilon, "{kind:?}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let with = DdimConfig::default;
    for (config, says) in [
        (
            DdimConfig {
                num_inference_steps: 0,
                ..with()
            },
            "num_inference_steps is 0",
        ),
        (
            DdimConfig {
                num_inference_steps: 1001,
                ..with()
            },
            "1001",
        ),
        (
            DdimConfig {
                eta: -0.5,
                ..with()
            },
            "eta is -0.5",
        ),
        (
            DdimConfig {
                clip_sample: Some(0.0),
                ..with()
            },
            "clip_sample is 0",
        ),
        (
            DdimConfig {
                steps_offset: 20,
                ..with()
            },
            "steps_offset is 20",
        ),
    ] {
        let error = DdimSampler::new(&linear(), config).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn the_settings_of_a_scheduler_are_taken_over() {
    let scheduler = SchedulerConfig {
        prediction_type: PredictionType::Velocity,
        clip_sample: false,
        timestep_spacing: TimestepSpacing::Trailing,
        steps_offset: 1,
        variance_type: VarianceType::FixedLarge,
        ..SchedulerConfig::default()
    };
    let expected = DdpmConfig {
        num_inference_steps: 7,
        variance_type: VarianceType::FixedLarge,
        clip_sample: None,
        prediction_type: PredictionType::Velocity,
        timestep_spacing: TimestepSpacing::Trailing,
        steps_offset: 1,
    };
    assert_eq!(DdpmConfig::from_scheduler(&scheduler, 7), expected);
}

/// The start and each step have noise of their own, and the last step ends at the clean point wherever it begins.
fn check_steps(sampler: &impl Sampler) {
    let (device, shape) = (Device::flex(), [2, 3]);
    let noise = |step| normal_noise(shape, 4, step, 5, Stream::Sampling, &device);
    let path = sampler.timesteps();
    let mut expected: Tensor<2> = noise(0);
    for (index, &timestep) in path.iter().enumerate() {
        let output = expected.clone() * 0.5;
        let previous = path.get(index + 1).copied();
        let noise = Some(noise(1 + index as u64));
        expected = sampler
            .step_to(expected, output, timestep, previous, noise)
            .unwrap();
    }
    let got = sampler.sample(&halves(), &(), shape, 4, 5, &device);
    assert_eq!(host(got.unwrap()), host(expected));
}

#[test]
fn a_sample_is_its_steps_with_noise_of_their_own() {
    for timestep_spacing in [TimestepSpacing::Leading, TimestepSpacing::Trailing] {
        check_steps(&ddim(DdimConfig {
            num_inference_steps: 3,
            eta: 1.0,
            clip_sample: None,
            timestep_spacing,
            ..DdimConfig::default()
        }));
        check_steps(&ddpm(DdpmConfig {
            num_inference_steps: 3,
            clip_sample: None,
            timestep_spacing,
            ..DdpmConfig::default()
        }));
    }
}

#[test]
fn a_visited_timestep_that_denoising_starts_from_is_visited_once() {
    let sampler = ddim(DdimConfig {
        num_inference_steps: 25,
        ..DdimConfig::default()
    });
    let (model, clean) = (halves(), Tensor::<2>::zeros([2, 3], &Device::flex()));
    sampler
        .noise_and_denoise(&model, &(), clean, 120, 3, 0)
        .unwrap();
    let visited = model.visited.lock().unwrap().clone();
    assert_eq!(visited, [120.0, 80.0, 40.0, 0.0]);
}
