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

/// One step from a timestep to the next visited one.
fn step(
    sampler: &impl Sampler,
    noisy: Tensor<2>,
    model_output: Tensor<2>,
    timestep: usize,
    noise: Option<Tensor<2>>,
) -> Result<Tensor<2>> {
    let mut visited = sampler.timesteps().iter().copied();
    let previous = visited.find(|&visited| visited < timestep);
    let kind = PredictionType::Epsilon;
    sampler.step_to(noisy, model_output, kind, timestep, previous, noise)
}

fn host(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Knows that every clean point is `0.5`, and predicts accordingly.
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

    fn prediction_type(&self) -> PredictionType {
        self.kind
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
                eta,
                ..DdimConfig::new(25)
            });
            let distance = distance_of_samples(&sampler, kind);
            assert!(distance < 1e-3, "DDIM {kind:?} {eta} {distance}");
        }
        for variance_type in [VarianceType::FixedSmall, VarianceType::FixedLarge] {
            let sampler = ddpm(DdpmConfig {
                variance_type,
                ..DdpmConfig::new(25)
            });
            let distance = distance_of_samples(&sampler, kind);
            assert!(
                distance < 1e-3,
                "DDPM {kind:?} {variance_type:?} {distance}"
            );
        }
    }
}

/// Halves its input and records the timestep.
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
        visits: Visits {
            clip_sample: None,
            ..Visits::new(5)
        },
        eta: 1.0,
        ..DdimConfig::default()
    }));
    check_rows(&ddpm(DdpmConfig {
        visits: Visits {
            clip_sample: None,
            ..Visits::new(5)
        },
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
    check_start(&ddim(DdimConfig::new(25)));
    check_start(&ddpm(DdpmConfig::new(25)));
}

/// With `η = 1` DDIM is DDPM with the small variance (Song et al. 2021, section 4.1).
#[test]
fn ddim_with_all_its_noise_is_ddpm() {
    let ddim = ddim(DdimConfig {
        visits: Visits {
            clip_sample: None,
            ..Visits::new(10)
        },
        eta: 1.0,
        ..DdimConfig::default()
    });
    let ddpm = ddpm(DdpmConfig {
        visits: Visits {
            clip_sample: None,
            ..Visits::new(10)
        },
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

/// The noise of a step with a given deviation: the difference from a step without noise.
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
            variance_type,
            ..DdpmConfig::new(10)
        });
        let step = |noise: f32| {
            let points = Tensor::<2>::full([1, 1], 0.3, &Device::flex());
            let noise = points.full_like(noise);
            let output = points.zeros_like();
            let stepped = step(&sampler, points, output, 500, Some(noise)).unwrap();
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
    let without = step(&sampler, points(), points(), 0, None).unwrap();
    let with = step(&sampler, points(), points(), 0, Some(points())).unwrap();
    assert_eq!(host(without), host(with));
}

#[test]
fn a_stochastic_step_without_noise_is_refused() {
    let points = || Tensor::<2>::zeros([2, 3], &Device::flex());
    let stochastic = ddim(DdimConfig {
        eta: 0.5,
        ..DdimConfig::default()
    });
    let error = step(&stochastic, points(), points(), 500, None).unwrap_err();
    assert!(
        error.to_string().contains("eta 0.5 has no noise"),
        "{error}"
    );
    let sampler = ddpm(DdpmConfig::default());
    let error = step(&sampler, points(), points(), 500, None).unwrap_err();
    assert!(matches!(error, Error::MissingPart { .. }), "{error}");
    assert!(error.to_string().contains("timestep 500"), "{error}");
}

#[test]
fn a_step_goes_down() {
    let points = || Tensor::<2>::zeros([2, 3], &Device::flex());
    let sampler = ddim(DdimConfig::default());
    for previous in [500, 501, usize::MAX] {
        let error = sampler
            .step_to(
                points(),
                points(),
                PredictionType::Epsilon,
                500,
                Some(previous),
                None,
            )
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
    let error = step(&sampler, points(), points(), 999, None).unwrap_err();
    assert!(error.to_string().contains("999 has no signal"), "{error}");
    let trailing = DdimConfig {
        visits: Visits {
            timestep_spacing: TimestepSpacing::Trailing,
            ..Visits::new(50)
        },
        ..DdimConfig::default()
    };
    for kind in KINDS {
        let config = SchedulerConfig {
            prediction_type: kind,
            ..config.clone()
        };
        let scheduler = DdpmScheduler::from_config(&config).unwrap();
        let ddim = DdimSampler::new(&scheduler, trailing.clone()).unwrap();
        let ddpm = DdpmSampler::new(&scheduler, DdpmConfig::default()).unwrap();
        let device = Device::flex();
        let model = Oracle { kind };
        for samples in [
            ddim.sample(&model, &(), [1, 2], 0, 0, &device),
            ddpm.sample(&model, &(), [1, 2], 0, 0, &device),
        ] {
            let refused = matches!(samples, Err(Error::InvalidSetting { .. }));
            assert_eq!(refused, kind == PredictionType::Epsilon, "{kind:?}");
        }
    }
}

/// A sampler made from a scheduler file knows what the model must predict; one made by hand asks
/// the model.
#[test]
fn a_model_that_predicts_something_else_than_its_scheduler_says_is_refused() {
    let config = SchedulerConfig {
        prediction_type: PredictionType::Velocity,
        ..SchedulerConfig::default()
    };
    let (device, clean) = (Device::flex(), Tensor::<2>::zeros([2, 3], &Device::flex()));
    for kind in KINDS {
        let model = Oracle { kind };
        let ddim = DdimSampler::from_scheduler(&config, 5).unwrap();
        let ddpm = DdpmSampler::from_scheduler(&config, 5).unwrap();
        for result in [
            ddim.sample(&model, &(), [2, 3], 0, 0, &device),
            ddpm.sample(&model, &(), [2, 3], 0, 0, &device),
            ddim.noise_and_denoise(&model, &(), clean.clone(), 500, 0, 0),
        ] {
            let refused = matches!(
                result,
                Err(Error::PredictionTypeDiffers { model, stated: PredictionType::Velocity, .. }) if model == kind
            );
            assert_eq!(refused, kind != PredictionType::Velocity, "{kind:?}");
        }
        let by_hand = self::ddim(DdimConfig::new(5));
        assert!(by_hand.sample(&model, &(), [2, 3], 0, 0, &device).is_ok());
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let with = DdimConfig::default;
    for (config, says) in [
        (DdimConfig::new(0), "num_inference_steps is 0"),
        (DdimConfig::new(1001), "1001"),
        (
            DdimConfig {
                eta: -0.5,
                ..with()
            },
            "eta is -0.5",
        ),
        (
            DdimConfig {
                visits: Visits {
                    clip_sample: Some(0.0),
                    ..Visits::new(50)
                },
                ..with()
            },
            "clip_sample is 0",
        ),
        (
            DdimConfig {
                visits: Visits {
                    steps_offset: 20,
                    ..Visits::new(50)
                },
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
        visits: Visits {
            num_inference_steps: 7,
            clip_sample: None,
            timestep_spacing: TimestepSpacing::Trailing,
            steps_offset: 1,
        },
        variance_type: VarianceType::FixedLarge,
    };
    assert_eq!(DdpmConfig::from_scheduler(&scheduler, 7), expected);
    let sampler = DdpmSampler::from_scheduler(&scheduler, 7).unwrap();
    assert_eq!(sampler.config(), &expected);
}

/// The start and each step have noise of their own, and the last step ends at the clean point from
/// any timestep.
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
            .step_to(
                expected,
                output,
                PredictionType::Epsilon,
                timestep,
                previous,
                noise,
            )
            .unwrap();
    }
    let got = sampler.sample(&halves(), &(), shape, 4, 5, &device);
    assert_eq!(host(got.unwrap()), host(expected));
}

#[test]
fn a_sample_is_its_steps_with_noise_of_their_own() {
    for timestep_spacing in [TimestepSpacing::Leading, TimestepSpacing::Trailing] {
        check_steps(&ddim(DdimConfig {
            visits: Visits {
                clip_sample: None,
                timestep_spacing,
                ..Visits::new(3)
            },
            eta: 1.0,
            ..DdimConfig::default()
        }));
        check_steps(&ddpm(DdpmConfig {
            visits: Visits {
                clip_sample: None,
                timestep_spacing,
                ..Visits::new(3)
            },
            ..DdpmConfig::default()
        }));
    }
}

#[test]
fn a_visited_timestep_that_denoising_starts_from_is_visited_once() {
    let sampler = ddim(DdimConfig::new(25));
    let (model, clean) = (halves(), Tensor::<2>::zeros([2, 3], &Device::flex()));
    sampler
        .noise_and_denoise(&model, &(), clean, 120, 3, 0)
        .unwrap();
    let visited = model.visited.lock().unwrap().clone();
    assert_eq!(visited, [120.0, 80.0, 40.0, 0.0]);
}
