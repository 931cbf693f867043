//! Bad input through the public interface: each case is a typed error, none panics, and each
//! message names the value.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::module::{Module, ModuleMapper, Param, ParamGroup};
use burn::tensor::{Device, Tensor};
use siss::backend::DeviceSpec;
use siss::clipper::{ClipToNorm, ClipperSpec, ConstantScale, FractionOfRetain, RescaleToNorm};
use siss::data::{DataCheck, near_duplicates};
use siss::draws::{CoinFlip, Draws, FixedAllocation, Stream, TimestepSampling};
use siss::models::{UNet2d, UNet2dConfig};
use siss::objective::{LossInputs, ReTrack};
use siss::process::BetaSchedule;
use siss::process::{SchedulerConfig, SchedulerExt};
use siss::report::{ImageGrid, binomial_interval, quantile};
use siss::sampling::{DdimConfig, DdimSampler, DdpmConfig, DdpmSampler, Sampler, Visits};
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, Levels};
use siss::trainer::SissTrainerBuilder;
use siss::*;
use siss_support::small::{self, Mlp, device};

/// A network of one channel and two stages.
fn tiny_unet() -> Result<UNet2d> {
    let blocks = r#""block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "in_channels": 1, "out_channels": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "UpBlock2D"]"#;
    UNet2dConfig::from_json(&format!("{{{blocks}}}"), "config.json")?.init(&device())
}

/// A model with one condition per row.
#[derive(Module, Debug)]
struct Conditioned;

impl Denoiser<2> for Conditioned {
    type Condition = Tensor<2>;

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &Tensor<2>) -> Tensor<2> {
        noisy
    }
}

/// The name of the attempt, the text its message must contain, and the attempt.
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
        case("a file of no scheduler", "_class_name", || {
            SchedulerConfig::from_json("{}", "scheduler_config.json")
        }),
        case("betas as text", "`beta_start` is `\"small\"`", || {
            SchedulerConfig::from_json(
                r#"{"_class_name": "DDPMScheduler", "beta_start": "small"}"#,
                "scheduler_config.json",
            )
        }),
        case("an unknown schedule", "sigmoid", || {
            SchedulerConfig::from_json(
                r#"{"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}"#,
                "scheduler_config.json",
            )
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
            let batch = UnlearningBatch::new(points.clone(), points)?;
            LossInputs::new(&batch, &draws, &process, PredictionType::Epsilon).map(|_| ())
        }),
        case("draws past the end", "timestep 5000", || {
            let (points, draws, process) = (zeros([1, 3]), draws(vec![5000.0], 0.5)?, linear());
            let batch = UnlearningBatch::new(points.clone(), points)?;
            LossInputs::new(&batch, &draws, &process, PredictionType::Epsilon).map(|_| ())
        }),
    ]
}

fn samplers<'a>() -> Vec<Case<'a>> {
    let ddim = |config| DdimSampler::new(&linear(), config);
    vec![
        case("0 sampling steps", "num_inference_steps is 0", move || {
            ddim(DdimConfig::new(0))
        }),
        case(
            "too many sampling steps",
            "num_inference_steps is 2000",
            move || ddim(DdimConfig::new(2000)),
        ),
        case("a huge offset", "steps_offset is", move || {
            ddim(DdimConfig {
                visits: Visits {
                    steps_offset: usize::MAX,
                    ..Visits::new(50)
                },
                ..DdimConfig::default()
            })
        }),
        case(
            "a stochastic step without noise",
            "eta 0.5 has no noise",
            move || {
                let sampler = ddim(DdimConfig {
                    eta: 0.5,
                    ..DdimConfig::default()
                })?;
                sampler.step_to(
                    zeros([1, 3]),
                    zeros([1, 3]),
                    PredictionType::Epsilon,
                    500,
                    Some(400),
                    None,
                )
            },
        ),
        case("an output of another shape", "[1, 4]", move || {
            ddim(DdimConfig::default())?.step_to(
                zeros([1, 3]),
                zeros([1, 4]),
                PredictionType::Epsilon,
                500,
                Some(400),
                None,
            )
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
                visits: Visits {
                    clip_sample: Some(0.0),
                    ..Visits::new(50)
                },
                ..DdimConfig::default()
            })
        }),
        case(
            "an offset past the end",
            "steps_offset is 1000",
            move || {
                ddim(DdimConfig {
                    visits: Visits {
                        steps_offset: 1000,
                        ..Visits::new(50)
                    },
                    ..DdimConfig::default()
                })
            },
        ),
        case(
            "a step that goes up",
            "previous timestep is 501",
            move || {
                let points = || zeros([1, 3]);
                ddim(DdimConfig::default())?.step_to(
                    points(),
                    points(),
                    PredictionType::Epsilon,
                    500,
                    Some(501),
                    None,
                )
            },
        ),
        case(
            "more steps of DDPM than there are",
            "num_inference_steps is 1000",
            || DdpmSampler::new(&DdpmScheduler::linear(100)?, DdpmConfig::default()),
        ),
        case("a step of DDPM without noise", "timestep 500", || {
            let sampler = DdpmSampler::new(&linear(), DdpmConfig::default())?;
            sampler.step_to(
                zeros([1, 3]),
                zeros([1, 3]),
                PredictionType::Epsilon,
                500,
                Some(400),
                None,
            )
        }),
        case("a variance that is learned", "learned_range", || {
            SchedulerConfig::from_json(
                r#"{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}"#,
                "scheduler_config.json",
            )
        }),
        case("samples for too few conditions", "[2]", || {
            let sampler = DdpmSampler::new(&linear(), DdpmConfig::default())?;
            sampler.sample(&Conditioned, &zeros([2, 4]), [3, 3], 0, 0, &device())
        }),
        case("a step from past the end", "timestep 1000", move || {
            ddim(DdimConfig::default())?.step_to(
                zeros([1, 3]),
                zeros([1, 3]),
                PredictionType::Epsilon,
                1000,
                Some(400),
                None,
            )
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
        case("dropout above 1", "`dropout` is `1.5`", move || {
            config(r#"{"dropout": 1.5}"#)
        }),
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
        case("an image too small for the network", "1x1 pixels", || {
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

/// Builds a trainer of the small model.
fn built(
    change: impl Fn(SissTrainerBuilder<Mlp, 2>) -> SissTrainerBuilder<Mlp, 2>,
) -> Result<SissTrainer<Mlp, 2>> {
    change(SissTrainer::builder(Mlp::new(1, &device()), linear())).build()
}

fn timesteps_and_trainers<'a>() -> Vec<Case<'a>> {
    let window = |low, high| TimestepSampling::Window { low, high };
    let mut cases: Vec<Case> = vec![
        case("an average of all", "ema_decay is 1", || {
            built(|builder| builder.ema(1.0))
        }),
        case("a negative average", "ema_decay is -0.5", || {
            built(|builder| builder.ema(-0.5))
        }),
        case("no parameter to train", "none of the model's 4", || {
            built(|builder| builder.train_only(ParamGroup::from_predicate("decoder")))
        }),
        case("no retained points to search", "re-track", || {
            built(|builder| builder.method(Method::ReTrack))
        }),
        case("retained points without one", "is empty", || {
            built(|builder| {
                builder
                    .method(Method::ReTrack)
                    .retained_points(zeros([0, 3]))
            })
        }),
        case("a level for another point", "id 7", || {
            let levels = Levels::new(vec![0.0, 999.0], vec![vec![1.0; 2]])?;
            let batch = small::batch(2, 0.5, 1, &device()).with_forget_ids(vec![7, 7])?;
            built(|builder| builder.steering(Steering::new(levels.clone())))?.step(batch)
        }),
    ];
    for (says, sampling) in [
        ("timestep 1000", TimestepSampling::Fixed(1000.0)),
        ("timestep 0.5", TimestepSampling::Fixed(0.5)),
        ("timestep NaN", TimestepSampling::Fixed(f64::NAN)),
        ("timestep -1", window(-1.0, 5.0)),
        ("timestep 1000", window(0.0, 1001.0)),
        ("is 5", window(5.0, 5.0)),
        ("is 5.5", window(5.2, 5.5)),
        ("is inf", window(0.0, f64::INFINITY)),
        ("is NaN", window(0.0, f64::NAN)),
    ] {
        cases.push(case("timesteps that there are not", says, move || {
            built(|builder| builder.timestep_sampling(sampling))
        }));
    }
    for (says, text) in [
        ("`even`", "even"),
        ("`window:1`", "window:1"),
        ("`window:1..b`", "window:1..b"),
        ("`fixed:x`", "fixed:x"),
    ] {
        cases.push(case("timesteps as text", says, move || {
            text.parse::<TimestepSampling>()
        }));
    }
    for (says, text) in [
        ("`soft:1`", "soft:1"),
        ("`fraction`", "fraction"),
        ("`fraction:0.1:4x`", "fraction:0.1:4x"),
        ("`clip:1:2`", "clip:1:2"),
    ] {
        cases.push(case("a clipper as text", says, move || {
            text.parse::<ClipperSpec>()
        }));
    }
    for (says, text) in [
        ("fraction is 0", "fraction:0"),
        ("max_scale is -1", "fraction:0.1:-1"),
        ("share is 2", "blend:2"),
        ("rate is 0", "erase-diff:0"),
    ] {
        cases.push(case("a clipper's number", says, move || {
            text.parse::<ClipperSpec>()?.build()
        }));
    }
    cases
}

/// Makes all parameters NaN.
struct ToNan;

impl ModuleMapper for ToNan {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value * f32::NAN)
    }
}

fn neighbours_and_levels<'a>() -> Vec<Case<'a>> {
    let ones = |rows: usize| zeros([rows, 3]) + 1.0;
    let fit = move |retained: Tensor<2>, controls: Tensor<2>, config: CounterfactualConfig| {
        let forgotten = ones(1);
        let data = CounterfactualData::new(&retained, &controls, &forgotten);
        Counterfactual::fit(&Mlp::new(1, &device()), &linear(), data, config)
    };
    let config = CounterfactualConfig::default;
    vec![
        case("no retained points", "is empty", || {
            ReTrack::new(zeros([0, 3]))
        }),
        case("no neighbour", "neighbour_count is 0", || {
            ReTrack::new(zeros([4, 3]))?.with_neighbour_count(0)
        }),
        case(
            "more neighbours than points",
            "neighbour_count is 5",
            || ReTrack::new(zeros([4, 3]))?.with_neighbour_count(5),
        ),
        case("no neighbours given", "is empty", || {
            ReTrack::from_neighbours(zeros([1, 3]), vec![])
        }),
        case("neighbours of another size", "[2, 4]", || {
            ReTrack::from_neighbours(zeros([1, 3]), vec![zeros([2, 4])])
        }),
        case("neighbours of one point too few", "[1]", || {
            ReTrack::from_neighbours(zeros([2, 3]), vec![zeros([2, 3])])
        }),
        case("draws without uniform numbers", "with_numbers", || {
            let draws = draws(vec![1.0], 0.5)?;
            draws.numbers_of(Stream::Uniform).cloned()
        }),
        case(
            "draws without those of the forget term",
            "with_timesteps",
            || {
                let draws = draws(vec![1.0], 0.5)?;
                let timesteps = draws.timesteps_of(Stream::ForgetTimesteps);
                timesteps.map(|_| ())
            },
        ),
        case("forget noise of another shape", "[1, 4]", || {
            draws(vec![1.0], 0.5)?.with_numbers(Stream::ForgetNoise, zeros([1, 4]))
        }),
        case("too many forget timesteps", "[2]", || {
            draws(vec![1.0], 0.5)?.with_timesteps(Stream::ForgetTimesteps, vec![1.0; 2])
        }),
        case("uniform numbers of another shape", "[2, 3]", || {
            draws(vec![1.0], 0.5)?.with_numbers(Stream::Uniform, zeros([2, 3]))
        }),
        case("a level at one timestep", "is 1;", || {
            Levels::new(vec![1.0], vec![])
        }),
        case("timesteps that fall", "is 1;", || {
            Levels::new(vec![2.0, 1.0], vec![])
        }),
        case("a level of 0", "a level is 0", || {
            Levels::new(vec![1.0, 2.0], vec![vec![0.0; 2]])
        }),
        case("a level too few", "[1]", || {
            Levels::new(vec![1.0, 2.0], vec![vec![1.0]])
        }),
        case("no data to predict from", "is empty", move || {
            fit(zeros([0, 3]), ones(2), config())
        }),
        case("control points of another size", "[5]", move || {
            fit(ones(3), zeros([2, 5]), config())
        }),
        case(
            "a model that is not finite, before its data are blamed",
            "parameter `",
            move || {
                let (retained, controls, forgotten) = (zeros([3, 3]), ones(2), ones(1));
                let data = CounterfactualData::new(&retained, &controls, &forgotten);
                let model = Mlp::new(3, &device()).map(&mut ToNan);
                Counterfactual::fit(&model, &linear(), data, config())
            },
        ),
        case(
            "control points that are retained",
            "forgotten point 0 is also retained point 0",
            move || fit(ones(2), ones(2), config()),
        ),
        case("data that is not finite", "NaN", move || {
            fit(ones(2) * f64::NAN, ones(2), config())
        }),
        case("no noise to average over", "noises is 0", move || {
            fit(
                ones(2),
                zeros([2, 3]),
                CounterfactualConfig {
                    noises: 0,
                    ..config()
                },
            )
        }),
        case("a grid past the end", "timestep 1000", move || {
            let timesteps = Some(vec![0.0, 1000.0]);
            fit(
                ones(2),
                zeros([2, 3]),
                CounterfactualConfig {
                    timesteps,
                    ..config()
                },
            )
        }),
    ]
}

fn data_checks<'a>() -> Vec<Case<'a>> {
    let points = |rows: usize| Tensor::<2>::ones([rows, 3], &device());
    let mut cases: Vec<Case> = [
        (0.0, "within is 0"),
        (-0.5, "within is -0.5"),
        (1.5, "within is 1.5"),
        (f64::NAN, "within is NaN"),
        (f64::INFINITY, "within is inf"),
    ]
    .into_iter()
    .map(|(within, says)| {
        case("a share that is none", says, move || {
            near_duplicates(&points(2), &points(1), within)
        })
    })
    .collect();
    for (range, says) in [
        ([1.0, -1.0], "1 to -1"),
        ([0.5, 0.5], "0.5 to 0.5"),
        ([f64::NAN, 1.0], "NaN to 1"),
        ([f64::NEG_INFINITY, 1.0], "-inf to 1"),
    ] {
        cases.push(case("a range that is none", says, move || {
            let check = DataCheck {
                range: Some(range),
                ..DataCheck::default()
            };
            check.run(&points(2), &points(1))
        }));
    }
    cases.extend([
        case("points of another size", "[4]", move || {
            near_duplicates(&points(2), &zeros([1, 4]), 0.5)
        }),
        case("no retained points", "the retain set is empty", move || {
            near_duplicates(&points(0), &points(1), 0.5)
        }),
        case(
            "no forgotten points",
            "the forget set is empty",
            move || DataCheck::default().run(&points(1), &points(0)),
        ),
        case("a forgotten NaN", "row 0 of the forget data", move || {
            near_duplicates(&points(2), &(points(1) * f64::NAN), 0.5)
        }),
        case(
            "a retained infinity",
            "row 2 of the retain data",
            move || {
                let infinite = points(1) * f64::INFINITY;
                near_duplicates(&Tensor::cat(vec![points(2), infinite], 0), &points(1), 0.5)
            },
        ),
        case("no step to skip", "max_skipped_steps is 0", || {
            SissTrainer::builder(Mlp::new(1, &device()), linear())
                .max_skipped_steps(0)
                .build()
        }),
    ]);
    cases
}

#[test]
fn bad_input_is_a_typed_error_that_names_the_value() {
    let cases = [
        schedules(),
        mixtures_and_clippers(),
        batches_and_draws(),
        samplers(),
        models_and_reports(),
        timesteps_and_trainers(),
        neighbours_and_levels(),
        data_checks(),
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
    assert!(count >= 150);
}

/// Every error that a program may want to react to has its own variant, with the values as fields.
#[test]
fn errors_can_be_told_apart_without_reading_their_text() {
    let levels = Levels::new(vec![1.0, 2.0], vec![vec![0.5; 2]; 3]).unwrap();
    assert!(matches!(
        levels.level(3, 1.0),
        Err(Error::UnknownPoint {
            id: 3,
            known: 3,
            missing: "level",
            ..
        })
    ));
    let grouped = ReTrack::new(zeros([4, 3])).unwrap();
    assert!(matches!(
        grouped.with_groups(vec![1, 1, 2, 2], vec![2, 7]),
        Err(Error::UnexplainedPoint {
            point: 1,
            group: Some(7),
            ..
        })
    ));
    assert!(matches!(
        draws(vec![1.0], 0.5).unwrap().numbers_of(Stream::Uniform),
        Err(Error::MissingPart {
            missing: "numbers",
            ..
        })
    ));
    let restored = ConstantScale::new(1.0).unwrap().restore(&[1.0, 2.0]);
    assert!(matches!(
        restored,
        Err(Error::StateMismatch {
            expected: 0,
            got: 2,
            ..
        })
    ));
    for (what, name, parsed) in [
        ("method", "ascent", "ascent".parse::<Method>().err()),
        ("clipper", "soft:1", "soft:1".parse::<ClipperSpec>().err()),
        (
            "timestep sampling",
            "even",
            "even".parse::<TimestepSampling>().err(),
        ),
    ] {
        let Some(Error::UnknownName {
            what: found,
            name: text,
            known,
        }) = parsed
        else {
            panic!("{what} was read from {name}");
        };
        assert_eq!((found, text.as_str()), (what, name));
        assert!(known.len() >= 4);
    }
    assert!(matches!(
        siss::evaluate::refuse_relearning(&[1.0, 2.0], &[1.0, 0.2]),
        Err(Error::Relearning {
            before: 2.0,
            now: 0.2
        })
    ));
}
