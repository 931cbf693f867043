//! Bad input over the public interface: each case is a typed error, none panics, each message names the value.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use common::device;
use siss::backend::DeviceSpec;
use siss::models::{UNet2d, UNet2dConfig};
use siss::report::{ImageGrid, binomial_interval, quantile};
use siss::sampling::{DdimConfig, DdimSampler, DdpmConfig, DdpmSampler, Sampler};
use siss::schedule::BetaSchedule;
use siss::*;

/// A network of one channel and two stages.
fn tiny_unet() -> Result<UNet2d> {
    let blocks = r#""block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "in_channels": 1, "out_channels": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]"#;
    UNet2dConfig::from_json(&format!("{{{blocks}}}"), "config.json")?.init(&device())
}

/// A model with one condition a row.
#[derive(Module, Debug)]
struct Conditioned;

impl Denoiser<2> for Conditioned {
    type Condition = Tensor<2>;

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &Tensor<2>) -> Tensor<2> {
        noisy
    }
}

/// What was tried, what its message must contain, and the attempt.
type Case<'a> = (&'static str, &'static str, Box<dyn Fn() -> Result<()> + 'a>);

fn case<'a, T>(
    what: &'static str,
    says: &'static str,
    attempt: impl Fn() -> Result<T> + 'a,
) -> Case<'a> {
    (what, says, Box::new(move || attempt().map(|_| ())))
}

fn zeros<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::zeros(shape, &device())
}

fn linear() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

fn draws(timesteps: Vec<f64>, forget_prob: f64) -> Result<Draws<2>> {
    let rows = timesteps.len();
    Draws::new(timesteps, zeros([rows, 3]), vec![false; rows], forget_prob)
}

fn schedules<'a>() -> Vec<Case<'a>> {
    vec![
        case("no timesteps", "num_timesteps is 0", || {
            DdpmScheduler::linear(0)
        }),
        case("one timestep", "num_timesteps is 1", || {
            DdpmScheduler::scaled_linear(1)
        }),
        case(
            "more timesteps than memory",
            "num_timesteps is 1000000000000",
            || DdpmScheduler::linear(1_000_000_000_000),
        ),
        case("a negative scaled beta", "beta is -0.1", || {
            BetaSchedule::ScaledLinear {
                start: -0.1,
                end: 0.1,
            }
            .betas(3)
        }),
        case(
            "a process of another kind",
            "FlowMatchEulerDiscreteScheduler",
            || {
                SchedulerConfig::from_json(
                    r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#,
                    "scheduler_config.json",
                )
            },
        ),
        case("a beta of 1", "beta is 1", || {
            BetaSchedule::Trained(vec![0.5, 1.0]).betas(2)
        }),
        case("a beta of 0", "beta is 0", || {
            BetaSchedule::Trained(vec![0.0, 0.5]).betas(2)
        }),
        case("a negative beta", "beta is -0.1", || {
            BetaSchedule::Linear {
                start: -0.1,
                end: 0.1,
            }
            .betas(3)
        }),
        case("a beta that is no number", "beta is NaN", || {
            BetaSchedule::Linear {
                start: f64::NAN,
                end: 0.1,
            }
            .betas(3)
        }),
        case("too few betas", "[3]", || {
            BetaSchedule::Trained(vec![0.1; 3]).betas(5)
        }),
        case("a timestep past the end", "timestep 1000", || {
            linear().scales(&[1000.0])
        }),
        case("a negative timestep", "timestep -1", || {
            linear().scales(&[-1.0])
        }),
        case("a timestep between steps", "timestep 0.5", || {
            linear().scales(&[0.5])
        }),
        case("a timestep that is no number", "timestep NaN", || {
            linear().scales(&[f64::NAN])
        }),
        case("flow time 0", "timestep 0", || {
            FlowMatching::default().scales(&[0.0])
        }),
        case("flow time 2", "timestep 2", || {
            FlowMatching::default().scales(&[2.0])
        }),
        case("a flow that begins at 0", "min_time is 0", || {
            FlowMatching::new(0.0)
        }),
        case("a flow that begins at 1", "min_time is 1", || {
            FlowMatching::new(1.0)
        }),
        case("noise of another shape", "[2, 4]", || {
            linear().add_noise(zeros([2, 3]), zeros([2, 4]), &[1.0, 2.0])
        }),
        case("too few timesteps", "[1]", || {
            linear().add_noise(zeros([2, 3]), zeros([2, 3]), &[1.0])
        }),
        case("not JSON", "line 1", || {
            SchedulerConfig::from_json("{", "scheduler_config.json")
        }),
        case("betas as text", "scheduler_config.json", || {
            SchedulerConfig::from_json(r#"{"beta_start": "small"}"#, "scheduler_config.json")
        }),
        case("an unknown schedule", "sigmoid", || {
            SchedulerConfig::from_json(r#"{"beta_schedule": "sigmoid"}"#, "scheduler_config.json")
        }),
        case("a file that is not there", "nowhere.json", || {
            SchedulerConfig::from_file("nowhere.json")
        }),
    ]
}

fn mixtures_and_clippers<'a>() -> Vec<Case<'a>> {
    let mut cases = vec![
        case("a fraction of 0", "fraction is 0", || {
            FractionOfRetain::new(0.0)
        }),
        case("a norm of 0", "norm is 0", || RescaleToNorm::new(0.0)),
        case("a clip at 0", "norm is 0", || ClipToNorm::new(0.0)),
        case("a scale below 0", "scale is -0.5", || {
            ConstantScale::new(-0.5)
        }),
        case("a ceiling of 0", "max_scale is 0", || {
            FractionOfRetain::default().with_max_scale(0.0)
        }),
        case("an unknown method", "`ascent`", || {
            "ascent".parse::<Method>()
        }),
        case("an unknown device", "`tpu`", || "tpu".parse::<DeviceSpec>()),
        case("a device without a number", "`cuda:`", || {
            "cuda:".parse::<DeviceSpec>()
        }),
    ];
    for (says, bad) in [
        ("is -0.1", -0.1),
        ("is 1.1", 1.1),
        ("is NaN", f64::NAN),
        ("is inf", f64::INFINITY),
    ] {
        cases.push(case("forget_prob of coins", says, move || {
            CoinFlip::new(bad)
        }));
        cases.push(case("forget_prob of an allocation", says, move || {
            FixedAllocation::new(bad)
        }));
        cases.push(case("forget_prob of draws", says, move || {
            draws(vec![1.0], bad)
        }));
    }
    for (says, bad) in [
        ("is NaN", f64::NAN),
        ("is inf", f64::INFINITY),
        ("is -1", -1.0),
    ] {
        cases.push(case("fraction", says, move || FractionOfRetain::new(bad)));
        cases.push(case("max_scale", says, move || {
            FractionOfRetain::default().with_max_scale(bad)
        }));
        cases.push(case("rescale", says, move || RescaleToNorm::new(bad)));
        cases.push(case("clip", says, move || ClipToNorm::new(bad)));
        cases.push(case("constant", says, move || ConstantScale::new(bad)));
    }
    cases
}

fn batches_and_draws<'a>() -> Vec<Case<'a>> {
    let nan = || Tensor::<2>::from_data([[0.0, f32::NAN, 0.0]], &device());
    let infinite = || Tensor::<2>::from_data([[f32::INFINITY, 0.0, 0.0]], &device());
    vec![
        case("a batch without rows", "the batch is empty", || {
            UnlearningBatch::new(zeros([0, 3]), zeros([0, 3]))
        }),
        case("a batch without elements", "the batch is empty", || {
            UnlearningBatch::new(zeros([2, 0]), zeros([2, 0]))
        }),
        case("sides of different length", "[3, 3]", || {
            UnlearningBatch::new(zeros([2, 3]), zeros([3, 3]))
        }),
        case("sides of different size", "[2, 4]", || {
            UnlearningBatch::new(zeros([2, 3]), zeros([2, 4]))
        }),
        case("too few retain conditions", "[1]", || {
            UnlearningBatch::with_conditions(
                zeros([2, 3]),
                zeros([2, 3]),
                zeros([1, 4]),
                zeros([2, 4]),
            )
        }),
        case("too many forget conditions", "[5]", || {
            UnlearningBatch::with_conditions(
                zeros([2, 3]),
                zeros([2, 3]),
                zeros([2, 4]),
                zeros([5, 4]),
            )
        }),
        case("too few ids", "[1]", || {
            UnlearningBatch::new(zeros([2, 3]), zeros([2, 3]))?.with_forget_ids(vec![1])
        }),
        case("an empty retain set", "the retain set is empty", || {
            PairSampler::new(zeros([0, 3]), zeros([1, 3]), 0)
        }),
        case("an empty forget set", "the forget set is empty", || {
            PairSampler::new(zeros([1, 3]), zeros([0, 3]), 0)
        }),
        case("sets of different shape", "[4]", || {
            PairSampler::new(zeros([2, 3]), zeros([1, 4]), 0)
        }),
        case(
            "a forgotten point that is retained",
            "retained point 0",
            || PairSampler::new(zeros([2, 3]), zeros([1, 3]), 0),
        ),
        case(
            "NaN in the retain set",
            "row 0 of the retain data contains NaN",
            move || PairSampler::new(nan(), zeros([1, 3]), 0),
        ),
        case(
            "infinity in the forget set",
            "row 0 of the forget data contains inf",
            move || PairSampler::new(zeros([1, 3]), infinite(), 0),
        ),
        case("a batch of 0 pairs", "batch_size is 0", || {
            PairSampler::new(zeros([2, 3]), zeros([1, 3]) + 1.0, 0)?.batch(0, 0)
        }),
        case("too few timesteps", "[1]", || {
            Draws::new(vec![1.0], zeros([2, 3]), vec![true; 2], 0.5)
        }),
        case("too few coins", "[1]", || {
            Draws::new(vec![1.0; 2], zeros([2, 3]), vec![true], 0.5)
        }),
        case("thinning at 1", "thinning_uniform is 1", || {
            draws(vec![1.0], 0.5)?.with_thinning_uniform(1.0)
        }),
        case("thinning below 0", "thinning_uniform is -0.1", || {
            draws(vec![1.0], 0.5)?.with_thinning_uniform(-0.1)
        }),
        case("draws for another batch", "[3, 3]", || {
            let (points, draws, process) = (zeros([2, 3]), draws(vec![1.0; 3], 0.5)?, linear());
            LossInputs::new(
                &points,
                &points,
                &[0; 2],
                &draws,
                &process,
                PredictionType::Epsilon,
            )
            .map(|_| ())
        }),
        case("draws past the end", "timestep 5000", || {
            let (points, draws, process) = (zeros([1, 3]), draws(vec![5000.0], 0.5)?, linear());
            LossInputs::new(
                &points,
                &points,
                &[0],
                &draws,
                &process,
                PredictionType::Epsilon,
            )
            .map(|_| ())
        }),
    ]
}

fn samplers<'a>() -> Vec<Case<'a>> {
    let ddim = |config| DdimSampler::new(&linear(), config);
    vec![
        case("0 sampling steps", "num_inference_steps is 0", move || {
            ddim(DdimConfig {
                num_inference_steps: 0,
                ..DdimConfig::default()
            })
        }),
        case(
            "too many sampling steps",
            "num_inference_steps is 2000",
            move || {
                ddim(DdimConfig {
                    num_inference_steps: 2000,
                    ..DdimConfig::default()
                })
            },
        ),
        case("a huge offset", "steps_offset is", move || {
            ddim(DdimConfig {
                steps_offset: usize::MAX,
                ..DdimConfig::default()
            })
        }),
        case("a stochastic step without noise", "eta is 0.5", move || {
            let sampler = ddim(DdimConfig {
                eta: 0.5,
                ..DdimConfig::default()
            })?;
            sampler.step(zeros([1, 3]), zeros([1, 3]), 500, None)
        }),
        case("an output of another shape", "[1, 4]", move || {
            ddim(DdimConfig::default())?.step(zeros([1, 3]), zeros([1, 4]), 500, None)
        }),
        case("eta above 1", "eta is 1.5", move || {
            ddim(DdimConfig {
                eta: 1.5,
                ..DdimConfig::default()
            })
        }),
        case("eta that is no number", "eta is NaN", move || {
            ddim(DdimConfig {
                eta: f64::NAN,
                ..DdimConfig::default()
            })
        }),
        case("a clamp to nothing", "clip_sample is 0", move || {
            ddim(DdimConfig {
                clip_sample: Some(0.0),
                ..DdimConfig::default()
            })
        }),
        case(
            "an offset past the end",
            "steps_offset is 1000",
            move || {
                ddim(DdimConfig {
                    steps_offset: 1000,
                    ..DdimConfig::default()
                })
            },
        ),
        case(
            "a step that goes up",
            "previous timestep is 501",
            move || {
                let points = || zeros([1, 3]);
                ddim(DdimConfig::default())?.step_to(points(), points(), 500, Some(501), None)
            },
        ),
        case(
            "more steps of DDPM than there are",
            "num_inference_steps is 1000",
            || DdpmSampler::new(&DdpmScheduler::linear(100)?, DdpmConfig::default()),
        ),
        case("a step of DDPM without noise", "timestep 500", || {
            let sampler = DdpmSampler::new(&linear(), DdpmConfig::default())?;
            sampler.step(zeros([1, 3]), zeros([1, 3]), 500, None)
        }),
        case("a variance that is learned", "learned_range", || {
            SchedulerConfig::from_json(
                r#"{"variance_type": "learned_range"}"#,
                "scheduler_config.json",
            )
        }),
        case("samples for too few conditions", "[2]", || {
            let sampler = DdpmSampler::new(&linear(), DdpmConfig::default())?;
            sampler.sample(&Conditioned, &zeros([2, 4]), [3, 3], 0, 0, &device())
        }),
        case("a step from past the end", "timestep 1000", move || {
            ddim(DdimConfig::default())?.step(zeros([1, 3]), zeros([1, 3]), 1000, None)
        }),
    ]
}

fn models_and_reports<'a>() -> Vec<Case<'a>> {
    let config = |text: &'static str| UNet2dConfig::from_json(text, "config.json");
    vec![
        case("a model that is not there", "nowhere", || {
            UNet2d::load("nowhere", &Device::flex())
        }),
        case("another class", "UNet2DConditionModel", move || {
            config(r#"{"_class_name": "UNet2DConditionModel"}"#)
        }),
        case("an unknown key", "colour", move || {
            config(r#"{"colour": "red"}"#)
        }),
        case("an unknown activation", "gelu", move || {
            config(r#"{"act_fn": "gelu"}"#)
        }),
        case("dropout", "dropout", move || config(r#"{"dropout": 0.1}"#)),
        case("a config that is not JSON", "config.json", move || {
            config("[")
        }),
        case(
            "an image of another size for the network",
            "[2, 3, 8, 8]",
            || {
                let (model, batch) = (
                    tiny_unet()?,
                    UnlearningBatch::new(zeros([2, 3, 8, 8]), zeros([2, 3, 8, 8]))?,
                );
                SissTrainer::builder(model, linear()).build()?.step(batch)
            },
        ),
        case("an image too small for the network", "[1, 1, 1, 1]", || {
            let sampler = DdimSampler::new(&linear(), DdimConfig::default())?;
            sampler.sample(&tiny_unet()?, &(), [1, 1, 1, 1], 0, 0, &device())
        }),
        case("no images", "empty", || ImageGrid::new(zeros([0, 1, 4, 4]))),
        case("two channels", "[1, 2, 4, 4]", || {
            ImageGrid::new(zeros([1, 2, 4, 4]))
        }),
        case("more successes than trials", "5", || {
            binomial_interval(5, 3, 0.95)
        }),
        case("no trials", "trials is empty", || {
            binomial_interval(0, 0, 0.95)
        }),
        case("a confidence of 1", "confidence is 1", || {
            binomial_interval(1, 3, 1.0)
        }),
        case("a quantile of nothing", "empty", || quantile(&[], 0.5)),
        case("a quantile past 1", "is 1.5", || quantile(&[1.0], 1.5)),
    ]
}

#[test]
fn bad_input_is_a_typed_error_that_names_the_value() {
    let cases = [
        schedules(),
        mixtures_and_clippers(),
        batches_and_draws(),
        samplers(),
        models_and_reports(),
    ];
    let mut wrong = Vec::new();
    let mut count = 0;
    for (what, says, attempt) in cases.into_iter().flatten() {
        count += 1;
        match catch_unwind(AssertUnwindSafe(attempt)) {
            Err(_) => wrong.push(format!("{what}: panicked")),
            Ok(Ok(())) => wrong.push(format!("{what}: accepted")),
            Ok(Err(error)) if !error.to_string().contains(says) => {
                wrong.push(format!("{what}: `{error}` does not say `{says}`"));
            }
            Ok(Err(_)) => {}
        }
    }
    println!("{count} cases of bad input");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 80);
}
