//! The job: measure, unlearn, measure again. Used by the example's `main` and by a test.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use siss::burn::module::Module;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::tensor::Tensor;
use siss::models::UNet2d;
use siss::{
    CoinFlip, DdpmScheduler, Diagnosis, Finding, FixedAllocation, Observer, PairSampler,
    SchedulerConfig, SissTrainer, StepReport,
};

use crate::common::checkpoint::{Layout, save_model, scheduler_config_path};
use crate::common::probe::{ByTimestep, Probe};
use crate::common::progress::Progress;
use crate::data;
use crate::evaluate::{CHUNKS, COPIES, Evaluation, Examiner, TIMESTEPS, TSHIRT_NOISES};
use crate::options::{Options, Protocol, Settings};
use crate::pictures;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The distance of the denoised T-shirt and its losses are measured this many times along the way.
const CHECKPOINTS: usize = 15;
/// Denoised copies and noises of each of those measurements.
const CURVE_COPIES: usize = 4;
const CURVE_NOISES: usize = 16;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    #[serde(flatten)]
    pub report: StepReport,
    /// Seconds since the first step began, measurements along the way left out.
    pub seconds: f64,
    /// Measured now and then, after the step.
    pub tshirt_denoise_l2: Option<f64>,
    /// Measured now and then, after the step.
    pub tshirt_loss: Option<ByTimestep>,
}

/// The contents of `summary.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub before: Evaluation,
    pub after: Evaluation,
    pub retrained: Retrained,
    /// Mean over the timesteps of |ln(after / retrained)| of the T-shirt's loss.
    pub distance_to_retrained: f64,
    /// Rows run through the model a pair of images.
    pub rows_per_sample: f64,
    pub findings: Vec<Finding>,
    pub config: Config,
    pub steps: usize,
    /// Of the whole job.
    pub seconds: f64,
    /// Of the unlearning alone.
    pub unlearning_seconds: f64,
    pub device: String,
}

/// What was asked for, and what it amounts to.
#[derive(Debug, Serialize)]
pub struct Config {
    #[serde(flatten)]
    pub options: Options,
    #[serde(flatten)]
    pub settings: Settings,
}

/// The model that never saw the T-shirt: what the unlearned model is compared with.
#[derive(Debug, Serialize)]
pub struct Retrained {
    pub tshirt_loss: ByTimestep,
    pub tshirt_denoise_l2: f64,
    #[serde(skip)]
    pub denoised: Tensor<4>,
}

impl Retrained {
    fn measure(examiner: &Examiner, model: &UNet2d) -> siss::Result<Self> {
        let denoised = examiner.denoise(model, COPIES)?;
        Ok(Self {
            tshirt_loss: examiner.tshirt_loss(model, TSHIRT_NOISES)?,
            tshirt_denoise_l2: examiner.distance(&denoised),
            denoised,
        })
    }
}

/// Runs the job and writes everything into `options.out`.
pub fn run(options: Options, progress: &dyn Progress) -> Result<Summary> {
    let settings = options.settings()?;
    let started = Instant::now();
    let device = options.device.device()?;
    std::fs::create_dir_all(&options.out)
        .map_err(|error| format!("creating {}: {error}", options.out.display()))?;

    progress.phase("loading");
    let base = options.assets.join("base");
    let checkpoint = options.checkpoint.clone().unwrap_or_else(|| base.clone());
    let config = SchedulerConfig::from_file(scheduler_config_path(&checkpoint))?;
    let digits = data::load_digits(&options.assets, &device)?;
    let tshirt = data::load_tshirt(&options.assets, &device)?;
    let examiner = Examiner {
        probe: Probe::new(&config, CHUNKS)?,
        tshirt: tshirt.clone(),
        heldout: digits
            .heldout
            .clone()
            .narrow(0, 0, options.heldout.min(digits.heldout.dims()[0])),
        samples: options.samples,
    };
    let model = UNet2d::load(&checkpoint, &device)?;
    let retrained = Retrained::measure(&examiner, &UNet2d::load(base.join("retrained"), &device)?)?;

    // Settings are refused here, before anything that takes time.
    let pairs = PairSampler::new(digits.retain, tshirt, options.seed)?;
    pairs.pairs(0, settings.batch)?;
    let trainer = trainer(model.clone(), &pairs, &config, &options, &settings)?;
    let before = examiner.evaluate(&model, "before", progress)?;
    let unlearned = unlearn(
        trainer,
        &pairs,
        &examiner,
        &settings,
        &options.out,
        progress,
    )?;
    let after = examiner.evaluate(&unlearned.model, "after", progress)?;

    progress.phase("writing");
    let folder = options.out.join("model");
    save_model(&unlearned.model, &checkpoint, &folder, Layout::Flat)?;
    pictures::save(
        &options.out,
        &before,
        &after,
        &examiner,
        &unlearned.records,
        &retrained,
    )?;
    let records = &unlearned.records;
    let summary = Summary {
        distance_to_retrained: distance_to_retrained(
            &after.figures.tshirt_loss,
            &retrained.tshirt_loss,
        ),
        before: before.figures,
        after: after.figures,
        retrained,
        rows_per_sample: records
            .iter()
            .map(|record| record.report.rows_per_sample())
            .sum::<f64>()
            / records.len().max(1) as f64,
        findings: unlearned.findings,
        steps: records.len(),
        seconds: started.elapsed().as_secs_f64(),
        unlearning_seconds: records.last().map_or(0.0, |record| record.seconds),
        device: options.device.to_string(),
        config: Config { options, settings },
    };
    let file = File::create(summary.config.options.out.join("summary.json"))?;
    serde_json::to_writer_pretty(file, &summary)?;
    Ok(summary)
}

/// What the unlearning leaves.
struct Unlearned {
    model: UNet2d,
    records: Vec<StepRecord>,
    findings: Vec<Finding>,
}

fn unlearn(
    mut trainer: SissTrainer<UNet2d, 4>,
    pairs: &PairSampler<4>,
    examiner: &Examiner,
    settings: &Settings,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Unlearned> {
    let Settings { steps, batch, .. } = *settings;
    let mut log = BufWriter::new(File::create(out.join("metrics.jsonl"))?);
    let mut diagnosis = Diagnosis::default();
    let mut records: Vec<StepRecord> = Vec::with_capacity(steps);
    let mut seconds = 0.0;
    let every = steps.div_ceil(CHECKPOINTS).max(1);
    for step in 0..steps {
        let began = Instant::now();
        let report = trainer.step(pairs.batch(step as u64, batch)?)?;
        seconds += began.elapsed().as_secs_f64();
        progress.step(&report, steps);
        diagnosis.observe(&report)?;

        let look = (step + 1) % every == 0 || step + 1 == steps;
        let measured = look
            .then(|| measure_along(trainer.model(), examiner))
            .transpose()?;
        let (tshirt_denoise_l2, tshirt_loss) = measured.unzip();
        let record = StepRecord {
            report,
            seconds,
            tshirt_denoise_l2,
            tshirt_loss,
        };
        writeln!(log, "{}", serde_json::to_string(&record)?)?;
        log.flush()?;
        records.push(record);
    }
    Ok(Unlearned {
        model: trainer.into_model(),
        records,
        findings: diagnosis.findings().to_vec(),
    })
}

/// The T-shirt's distance and losses, with few noises.
fn measure_along(model: &UNet2d, examiner: &Examiner) -> siss::Result<(f64, ByTimestep)> {
    let plain = model.valid();
    let distance = examiner.distance(&examiner.denoise(&plain, CURVE_COPIES)?);
    Ok((distance, examiner.tshirt_loss(&plain, CURVE_NOISES)?))
}

fn trainer(
    model: UNet2d,
    pairs: &PairSampler<4>,
    config: &SchedulerConfig,
    options: &Options,
    settings: &Settings,
) -> Result<SissTrainer<UNet2d, 4>> {
    let mut builder = SissTrainer::builder(model, DdpmScheduler::from_config(config)?)
        .method(options.method)
        .retained_points(pairs.retain().clone())
        .timestep_sampling(settings.timesteps)
        .prediction_type(config.prediction_type)
        .thin_below(settings.thin_below)
        .seed(options.seed);
    if let Some(clipper) = settings.clipper {
        builder = builder.clipper(clipper.build()?);
    }
    builder = match options.protocol {
        Protocol::Quick => {
            let falling = LinearLrSchedulerConfig::new(settings.learning_rate, 0.0, settings.steps);
            builder
                .sampler(FixedAllocation::new(options.forget_prob)?)
                .learning_rate(falling.init()?)
        }
        Protocol::Paper => builder
            .sampler(CoinFlip::new(options.forget_prob)?)
            .learning_rate(settings.learning_rate),
    };
    Ok(builder.build()?)
}

fn distance_to_retrained(after: &ByTimestep, retrained: &ByTimestep) -> f64 {
    let logs = retrained
        .iter()
        .map(|(timestep, retrained)| (after[timestep] / retrained).ln().abs());
    logs.sum::<f64>() / TIMESTEPS.len() as f64
}
