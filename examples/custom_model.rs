//! Unlearning with a model of your own: `cargo run --release --example custom_model`. See `--help`
//! and `examples/README.md`.
//!
//! A small network is trained on tones and on many copies of one motif of square waves, which it
//! memorises. It then forgets the motif and keeps the tones, and is compared with the same network
//! trained on the tones alone. Nothing in the crate is specific to sounds or to this network. To
//! adapt the program, replace the parts under *Your model* and *Your data*, and load your weights
//! instead of training.

use std::error::Error;
use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::conv::{Conv1d, Conv1dConfig, ConvTranspose1d, ConvTranspose1dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig1d};
use burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use siss::answer::{PredictedAnswer, PredictedAnswerConfig};
use siss::checkpoint::model_fingerprint;
use siss::draws::{Stream, TimestepSampling, keyed_rng, normal_noise};
use siss::evaluate::{AnswerDistance, DenoisedDistance, DenoisingLoss};
use siss::files::path_text;
use siss::objective::Answers;
use siss::observer::{JsonLog, cut_log};
use siss::process::SchedulerExt;
use siss::rand::RngExt;
use siss::report::{Panel, Plot, Series};
use siss::sampling::{DdimConfig, DdimSampler, Sampler};
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData};
use siss::{Checkpoints, DdpmScheduler, Denoiser, PairSampler, Scheduler, SissTrainer, StepReport};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A small model of sounds memorises one of them, then unlearns it. Two minutes on two CPU cores,
/// most of them for training three models.
#[derive(Parser, Debug)]
#[command(version)]
struct Options {
    /// How the model unlearns.
    #[arg(long, value_enum, default_value_t)]
    method: Way,

    /// Optimiser steps of the unlearning.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: u64,

    /// Writes a checkpoint after every N steps of the unlearning into the output folder's
    /// `checkpoints`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: Option<u64>,

    /// Resumes from the newest checkpoint as if the run had never stopped, or starts if there is
    /// none.
    #[arg(long)]
    resume: bool,

    /// Folder for the picture and the log.
    #[arg(long, value_name = "DIR", default_value = "target/custom_model")]
    out: PathBuf,

    /// Trains for a few seconds only: shows that everything runs, not that anything is memorised or
    /// forgotten.
    #[arg(long)]
    quick: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Way {
    /// The answers that the model would give if it had never heard the motif are predicted and
    /// taught.
    #[default]
    Counterfactual,
    /// The method of the paper, which does not stop by itself.
    Siss,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("creating {}: {error}", path_text(&options.out)))?;
    let device = Device::flex();
    let scheduler = DdpmScheduler::linear(1000)?;
    let data = Data::new(&device);

    // Your model is already trained; here it is trained first.
    let steps = if options.quick { 300 } else { 4_000 };
    let train = |what: &str, sounds: &Tensor<3>, seed: u64| {
        println!("training {what}");
        let model = SoundNet::new(&device, seed);
        self::train(model, sounds, &scheduler, (steps, seed))
    };
    let model = train("the model", &data.training_set(), SEED)?;
    // What unlearning should arrive at. You would not have it, and need it only to see how near
    // you came: of two models that never heard the motif, one is the floor of the other.
    let retrained = train("a model without the motif", &data.tones, SEED + 1)?;
    let another = train("another one without it", &data.tones, SEED + 2)?;

    let measure = |model: &SoundNet| Measurement::of(model, &retrained, &data, &scheduler);
    let before = measure(&model)?;
    let (model, reports) = unlearn(model, &data, scheduler.clone(), options)?;
    let after = measure(&model)?;

    print_table(&before, &after, &measure(&another)?);
    let picture = options.out.join("sounds.svg");
    save_picture(&picture, &data, &before, &after, &reports)?;
    println!(
        "\nthe sounds before and after are in {}",
        path_text(&picture)
    );
    Ok(())
}

/// The purpose of this crate: the model forgets `data.motif` and keeps `data.tones`.
fn unlearn(
    model: SoundNet,
    data: &Data,
    scheduler: DdpmScheduler,
    options: &Options,
) -> Result<(SoundNet, Vec<StepReport>)> {
    let steps = options.steps;
    let began_with = model_fingerprint(&model)?;
    let falling_rate = LinearLrSchedulerConfig::new(6e-4, 0.0, steps as usize);
    let log = options.out.join("steps.jsonl");
    let answers = match options.method {
        Way::Counterfactual => Some(predict_answers(&model, data, &scheduler)?),
        Way::Siss => None,
    };
    let builder = SissTrainer::builder(model, scheduler)
        .learning_rate(falling_rate.init()?)
        .seed(SEED)
        .observer(JsonLog::open(&log)?);
    let mut trainer = match answers {
        Some(answers) => {
            let clipper = answers.clipper();
            builder.loss(answers).clipper(clipper).build()?
        }
        None => builder.build()?,
    };
    let pairs = PairSampler::new(data.tones.clone(), data.motif.clone(), SEED)?;

    let mut checkpoints = Checkpoints::new(options.out.join("checkpoints"))?
        .setting("steps", &steps)?
        .setting("method", &format!("{:?}", options.method))?
        .setting("model", &began_with)?
        .setting("pairs", &pairs.fingerprint()?)?;
    match options.resume {
        false => match checkpoints.latest()? {
            Some(found) => {
                let found = path_text(found.path);
                return Err(format!("{found} is a checkpoint of an earlier run; resume it with --resume, or choose another --out").into());
            }
            None => drop(cut_log(&log, 0)?),
        },
        true => match checkpoints.resume(&mut trainer)? {
            Some(resumed) => println!("unlearning: resumes at step {}", resumed.step),
            None => println!("unlearning: no checkpoint to resume from"),
        },
    }
    while trainer.next_step() < steps {
        let report = trainer.step(pairs.batch(trainer.next_step(), 64)?)?;
        if report.step.is_multiple_of(20) {
            println!("unlearning: {report}");
        }
        // Problems are reported while something can still be done about them.
        for finding in trainer.new_findings() {
            println!("note: {finding}");
        }
        let is_due = |every: u64| trainer.next_step().is_multiple_of(every);
        if options.checkpoint_every.is_some_and(is_due) {
            checkpoints.save(&mut trainer, &())?;
        }
    }
    let lines = cut_log(&log, steps)?;
    let reports = lines.lines().map(serde_json::from_str);
    let reports = reports.collect::<std::result::Result<_, _>>()?;
    Ok((trainer.into_model(), reports))
}

/// Predicts the answers at the motif from the tones, and from others that the model has not heard.
fn predict_answers(model: &SoundNet, data: &Data, scheduler: &DdpmScheduler) -> Result<Answers<3>> {
    println!("unlearning: predicting the answers of a model that never heard the motif");
    let of = CounterfactualData::new(&data.tones, &data.controls, &data.motif);
    let losses = Counterfactual::fit(model, scheduler, of, CounterfactualConfig::default())?;
    let config = PredictedAnswerConfig::default();
    let answer = PredictedAnswer::fit(model, scheduler, &of, &losses, &config)?;
    Ok(Answers::new(answer).keeping())
}

// Your model. Replace this part with any burn module of any rank; here the rank is 3, for [batch,
// channels, samples].

const CHANNELS: usize = 16;
/// Samples that form one patch.
const PATCH: usize = 8;
const PATCHES: usize = SAMPLES / PATCH;
const WIDTH: usize = 128;
const TIME_FEATURES: usize = 32;

/// Splits a sound into patches, applies residual blocks, and joins the patches again.
#[derive(Module, Debug)]
struct SoundNet {
    encode: Conv1d,
    blocks: Vec<Block>,
    norm: GroupNorm,
    decode: ConvTranspose1d,
}

/// A convolution over neighbouring patches, then two layers that see the whole sound and the
/// timestep.
#[derive(Module, Debug)]
struct Block {
    norm: GroupNorm,
    local: Conv1d,
    time: Linear,
    narrow: Linear,
    widen: Linear,
}

impl SoundNet {
    fn new(device: &Device, seed: u64) -> Self {
        let encode = Conv1dConfig::new(1, CHANNELS, PATCH).with_stride(PATCH);
        let decode = ConvTranspose1dConfig::new([CHANNELS, 1], PATCH).with_stride(PATCH);
        let model = Self {
            encode: encode.init(device),
            blocks: (0..3).map(|_| Block::new(device)).collect(),
            norm: GroupNormConfig::new(4, CHANNELS).init(device),
            decode: decode.init(device),
        };
        model.map(&mut RepeatableWeights {
            seed,
            name: String::new(),
            count: 0,
        })
    }
}

impl Block {
    fn new(device: &Device) -> Self {
        let local = Conv1dConfig::new(CHANNELS, CHANNELS, 3).with_padding(PaddingConfig1d::Same);
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        Self {
            norm: GroupNormConfig::new(4, CHANNELS).init(device),
            local: local.init(device),
            time: linear(TIME_FEATURES, WIDTH),
            narrow: linear(CHANNELS * PATCHES, WIDTH),
            widen: linear(WIDTH, CHANNELS * PATCHES),
        }
    }

    fn forward(&self, hidden: Tensor<3>, time: Tensor<2>) -> Tensor<3> {
        let local = silu(self.local.forward(silu(self.norm.forward(hidden.clone()))));
        let whole = self.narrow.forward(local.flatten(1, 2)) + self.time.forward(time);
        let change = self.widen.forward(silu(whole)).reshape(hidden.dims());
        hidden + change
    }
}

/// Everything that the crate requires of a model.
impl Denoiser<3> for SoundNet {
    type Condition = ();

    fn predict(&self, noisy: Tensor<3>, timesteps: Tensor<1>, _: &()) -> Tensor<3> {
        let time = sines_and_cosines(timesteps);
        let mut hidden = self.encode.forward(noisy);
        for block in &self.blocks {
            hidden = block.forward(hidden, time.clone());
        }
        self.decode.forward(silu(self.norm.forward(hidden)))
    }
}

/// The timestep embedding of DDPM, `[rows]` to `[rows, TIME_FEATURES]`.
fn sines_and_cosines(timesteps: Tensor<1>) -> Tensor<2> {
    let count = TIME_FEATURES / 2;
    let frequencies = (0..count).map(|index| 1e-4_f64.powf(index as f64 / count as f64));
    let frequencies = vector(frequencies, &timesteps.device()).unsqueeze_dim(0);
    let angles = timesteps.unsqueeze_dim::<2>(1) * frequencies;
    Tensor::cat(vec![angles.clone().sin(), angles.cos()], 1)
}

// Your data. Replace this part with tensors of the model's shape, in the range it was trained on.
// Data to keep and data to forget are separate.

/// Samples per sound.
const SAMPLES: usize = 256;
/// Number of tones in the training data, and copies of the motif among them.
const TONES: u64 = 2_000;
const COPIES: usize = 400;
/// Number of tones that no model has heard, to measure with, and of more such tones, from which
/// answers are predicted.
const NEW_TONES: u64 = 256;
const CONTROLS: u64 = 200;

struct Data {
    /// `[TONES, 1, SAMPLES]`, to be kept.
    tones: Tensor<3>,
    /// `[1, 1, SAMPLES]`, to be forgotten.
    motif: Tensor<3>,
    /// `[NEW_TONES, 1, SAMPLES]`, for measuring.
    new_tones: Tensor<3>,
    /// `[CONTROLS, 1, SAMPLES]`, for predicting.
    controls: Tensor<3>,
}

impl Data {
    fn new(device: &Device) -> Self {
        Self {
            tones: sounds((0..TONES).map(tone), device),
            motif: sounds([motif()], device),
            new_tones: sounds((TONES..TONES + NEW_TONES).map(tone), device),
            controls: sounds(
                (0..CONTROLS).map(|index| tone(TONES + NEW_TONES + index)),
                device,
            ),
        }
    }

    /// The training data of the model: the tones, and many copies of the motif.
    fn training_set(&self) -> Tensor<3> {
        let copies = self.motif.clone().repeat_dim(0, COPIES);
        Tensor::cat(vec![self.tones.clone(), copies], 0)
    }
}

/// A sinusoid of random frequency, phase and amplitude.
fn tone(index: u64) -> Vec<f32> {
    let mut random = keyed_rng(SEED, 0, index, Stream::Evaluation);
    let cycles = random.random_range(2.0..10.0);
    let phase = random.random_range(0.0..TAU);
    let amplitude = random.random_range(0.4..0.9);
    let angle = |sample: usize| TAU * cycles * sample as f64 / SAMPLES as f64 + phase;
    (0..SAMPLES)
        .map(|sample| (amplitude * angle(sample).sin()) as f32)
        .collect()
}

/// A motif of eight notes, as square waves.
fn motif() -> Vec<f32> {
    let half_periods = [16, 8, 32, 8, 16, 4, 4, 32];
    let is_high = |sample: usize| (sample / half_periods[sample / 32]).is_multiple_of(2);
    (0..SAMPLES)
        .map(|sample| if is_high(sample) { 0.9 } else { -0.9 })
        .collect()
}

fn sounds(sounds: impl IntoIterator<Item = Vec<f32>>, device: &Device) -> Tensor<3> {
    let values: Vec<f32> = sounds.into_iter().flatten().collect();
    let count = values.len() / SAMPLES;
    Tensor::from_data(TensorData::new(values, [count, 1, SAMPLES]), device)
}

// Training from scratch with burn alone: a regression on the noise. With a trained model you do not
// need this part.

/// Key of all random numbers: the program does the same on every run.
const SEED: u64 = 0;

fn train(
    model: SoundNet,
    set: &Tensor<3>,
    scheduler: &DdpmScheduler,
    (steps, seed): (u64, u64),
) -> Result<SoundNet> {
    const BATCH: usize = 32;
    let (device, size) = (set.device(), set.dims()[0] as i64);
    let mut optimizer = AdamWConfig::new().init();
    let mut model = model.train();
    for step in 0..steps {
        let mut random = keyed_rng(seed, step, 0, Stream::Pairs);
        let rows: Vec<i64> = (0..BATCH).map(|_| random.random_range(0..size)).collect();
        let rows = Tensor::<1, Int>::from_data(rows.as_slice(), &device);
        let clean = set.clone().select(0, rows);

        let range = scheduler.time_range();
        let timesteps = TimestepSampling::LowDiscrepancy.timesteps(range, BATCH, seed, step);
        let noise = normal_noise(clean.dims(), seed, step, 0, Stream::Noise, &device);
        let noisy = scheduler.add_noise(clean, noise.clone(), &timesteps)?;

        let predicted = model.predict(noisy, vector(timesteps, &device), &());
        let loss = (predicted - noise).square().mean();
        if step % 500 == 0 {
            let loss = loss.clone().into_scalar::<f32>();
            println!("training: step {step} of {steps}, loss {loss:.4}");
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let rate = 4e-3 * (1.0 - step as f64 / steps as f64);
        model = optimizer.step(rate, model, gradients);
    }
    Ok(model.valid())
}

/// Initial weights from the crate's keyed noise. burn's own weights come from a random generator
/// per device.
struct RepeatableWeights {
    seed: u64,
    name: String,
    count: u64,
}

impl ModuleMapper for RepeatableWeights {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.name = name.into();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.count += 1;
        param.map(|value| match self.name.as_str() {
            "weight" => {
                let (shape, device) = (value.dims(), value.device());
                // burn stores a linear layer's inputs first and a convolution's last.
                let inputs: usize = match shape.as_slice() {
                    [inputs, _] => *inputs,
                    shape => shape[1..].iter().product(),
                };
                let noise =
                    normal_noise(shape, self.seed, self.count, 0, Stream::Evaluation, &device);
                noise / (inputs as f64).sqrt()
            }
            "bias" => value.zeros_like(),
            _ => value,
        })
    }
}

fn vector(values: impl IntoIterator<Item = f64>, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    Tensor::from_data(values.as_slice(), device)
}

// Measurements of the models, with the same noise.

const TIMESTEPS: [usize; 3] = [100, 250, 400];
/// Number of generated sounds.
const GENERATED: usize = 128;

struct Measurement {
    /// Mean squared error of the predicted noise at each of `TIMESTEPS`.
    motif_loss: [f64; 3],
    tones_loss: [f64; 3],
    /// How far the answers at the motif are from the retrained model's, at each of `TIMESTEPS`: the
    /// power of the difference over that of the retrained model's error.
    answers: [f64; 3],
    /// L2 between copies of the motif denoised from each of `TIMESTEPS`, to the retrained model's.
    denoised: [f64; 3],
    /// Number of generated sounds that are the motif.
    recalled: usize,
    /// The generated sound closest to the motif.
    nearest: Vec<f32>,
    /// The motif and a new tone, noised to the second of `TIMESTEPS` and denoised.
    denoised_motif: Vec<f32>,
    denoised_tone: Vec<f32>,
}

impl Measurement {
    fn of(
        model: &SoundNet,
        retrained: &SoundNet,
        data: &Data,
        scheduler: &DdpmScheduler,
    ) -> Result<Self> {
        let sampler = DdimSampler::new(scheduler, DdimConfig::new(25))?;
        let answers = AnswerDistance::at(TIMESTEPS.map(|timestep| timestep as f64)).measure(
            model,
            retrained,
            scheduler,
            &data.motif,
            &(),
        )?;
        let denoised = DenoisedDistance::at(TIMESTEPS).measure(
            model,
            retrained,
            &sampler,
            &data.motif,
            &(),
        )?;
        let shape = [GENERATED, 1, SAMPLES];
        let generated = sampler.sample(model, &(), shape, SEED, 0, &data.motif.device())?;
        // A sample is the motif if ‖sample − motif‖ is below half of ‖motif‖: no tone comes that
        // close to it.
        let norms = |sounds: Tensor<3>| values(sounds.square().sum_dim(2).sqrt());
        let distances = norms(generated.clone() - data.motif.clone())?;
        let limit = norms(data.motif.clone())?[0] / 2.0;
        let nearest = (0..GENERATED).min_by(|&a, &b| distances[a].total_cmp(&distances[b]));

        let denoise = |clean: Tensor<3>| {
            let denoised = sampler.noise_and_denoise(model, &(), clean, TIMESTEPS[1], SEED, 0);
            values(denoised?)
        };
        Ok(Self {
            motif_loss: losses(model, &data.motif, 64, scheduler)?,
            tones_loss: losses(model, &data.new_tones, 1, scheduler)?,
            answers: [0, 1, 2].map(|index| answers[index][0].distance),
            denoised: [0, 1, 2].map(|index| denoised[index][0].to_reference),
            recalled: distances
                .iter()
                .filter(|&&distance| distance < limit)
                .count(),
            nearest: values(generated.narrow(0, nearest.unwrap_or(0), 1))?,
            denoised_motif: denoise(data.motif.clone())?,
            denoised_tone: denoise(data.new_tones.clone().narrow(0, 0, 1))?,
        })
    }
}

/// The mean loss of some sounds at each of `TIMESTEPS`, each sound under so many noises.
fn losses(
    model: &SoundNet,
    sounds: &Tensor<3>,
    noises: usize,
    scheduler: &DdpmScheduler,
) -> Result<[f64; 3]> {
    let loss = DenoisingLoss {
        noises,
        seed: SEED,
        ..DenoisingLoss::at(TIMESTEPS.map(|timestep| timestep as f64))
    };
    let by_timestep = loss.measure(model, scheduler, sounds, &())?;
    let mean = |index: usize| {
        let of_sounds: &[f64] = &by_timestep[index];
        of_sounds.iter().sum::<f64>() / of_sounds.len() as f64
    };
    Ok([0, 1, 2].map(mean))
}

fn values(sounds: Tensor<3>) -> Result<Vec<f32>> {
    Ok(sounds.try_into_vec_as::<f32>()?)
}

fn print_table(before: &Measurement, after: &Measurement, another: &Measurement) {
    println!(
        "\n{:<38} {:>8} {:>8} {:>17}",
        "", "before", "after", "another retrained"
    );
    let rows = |what: &str, of: fn(&Measurement) -> [f64; 3]| {
        let values = [before, after, another].map(of);
        for (index, timestep) in TIMESTEPS.iter().enumerate() {
            let [before, after, another] = values.map(|values| values[index]);
            let name = format!("{what}, t = {timestep}");
            println!("{name:<38} {before:>8.4} {after:>8.4} {another:>17.4}");
        }
    };
    rows("answers at the motif", |it| it.answers);
    rows("copies of the motif", |it| it.denoised);
    rows("loss of the motif", |it| it.motif_loss);
    rows(&format!("loss of {NEW_TONES} new tones"), |it| {
        it.tones_loss
    });
    let name = format!("motifs among {GENERATED} generated sounds");
    let [before, after, another] = [before, after, another].map(|it| it.recalled);
    println!("{name:<38} {before:>8} {after:>8} {another:>17}");
}

fn save_picture(
    path: &Path,
    data: &Data,
    before: &Measurement,
    after: &Measurement,
    reports: &[StepReport],
) -> Result<()> {
    let wave = |label: &str, sound: &[f32]| {
        let points = sound.iter().enumerate();
        Series::new(label, points.map(|(x, &y)| (x as f64, f64::from(y))))
    };
    let panel = |title: String, name: &str, original: Tensor<3>, before: &[f32], after: &[f32]| {
        Ok::<_, Box<dyn Error>>(
            Panel::new(title)
                .x_label("sample")
                .series(wave(name, &values(original)?))
                .series(wave("before", before))
                .series(wave("after", after)),
        )
    };
    let motif = || data.motif.clone();
    let tone = data.new_tones.clone().narrow(0, 0, 1);
    let from = format!("noised to t = {} and denoised", TIMESTEPS[1]);
    Plot::new()
        .columns(2)
        .panel(panel(
            format!("The motif, {from}"),
            "the motif",
            motif(),
            &before.denoised_motif,
            &after.denoised_motif,
        )?)
        .panel(panel(
            format!("A new tone, {from}"),
            "the tone",
            tone,
            &before.denoised_tone,
            &after.denoised_tone,
        )?)
        .panel(panel(
            format!("Of {GENERATED} generated sounds the nearest to the motif"),
            "the motif",
            motif(),
            &before.nearest,
            &after.nearest,
        )?)
        .panel(loss_panel(reports))
        .save(path)?;
    Ok(())
}

fn loss_panel(reports: &[StepReport]) -> Panel {
    let curve = |label: &str, forget: bool| {
        let points = reports.iter().map(|report| {
            let term = if forget {
                &report.forget
            } else {
                &report.retain
            };
            let loss = term
                .as_ref()
                .map_or(f64::NAN, |term| term.mean_squared_error);
            (report.step as f64, loss)
        });
        Series::new(label, points)
    };
    Panel::new("Denoising loss while unlearning")
        .x_label("step")
        .log_y()
        .series(curve("tones", false))
        .series(curve("motif", true))
}
