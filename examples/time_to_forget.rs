//! Measures the seconds from the checkpoint until none of 1,024 generated images is a T-shirt:
//! `cargo run --release --example time_to_forget`.
//!
//! Every few steps the model of a method generates the same 1,024 images. A check ends at the first
//! T-shirt, and begins where the last one ended, so that only the last check generates all images.
//! The clock runs only during the steps.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde::{Deserialize, Serialize};
use siss::burn::module::Module;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::tensor::{Device, Tensor};
use siss::models::{ModelFolder, UNet2d};
use siss::process::SchedulerConfig;
use siss::sampling::{DdimSampler, Sampler};
use siss::{DdpmScheduler, PairSampler, SissTrainer};
use siss_support::clock::Clock;
use siss_support::options::at_least_one;
use siss_support::probe::{EVALUATION_SEED, distances};
use siss_support::progress::{Bar, Progress};
use siss_support::target::{predict_answers, predict_losses};
use siss_support::way::Way;
use siss_support::{digits, lines, page};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A generated image this close to the T-shirt, with pixels in `[0, 1]`, counts as the T-shirt.
const TSHIRT_DISTANCE: f64 = 10.0;
/// Images generated at a time.
const CHUNK: usize = 32;
const DDIM_STEPS: usize = 25;

/// Measures how long each method takes to forget the T-shirt.
#[derive(Parser, Debug)]
struct Arguments {
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "siss-to-level,siss,siss-no-is,bernoulli,naive-deletion"
    )]
    methods: Vec<Way>,

    /// Steps after which a method gives up; the rate falls from 1e-4 to 0 over them.
    #[arg(long, default_value_t = 100)]
    steps: usize,

    /// Steps between two checks.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,

    #[arg(long, default_value_t = 32)]
    batch: usize,

    /// Images of a check.
    #[arg(long, default_value_t = 1024)]
    samples: usize,

    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Which time is measured: wall time, or the running time of all threads together, for a
    /// machine that others use as well.
    #[arg(long, value_enum, default_value_t = Clock::Wall)]
    clock: Clock,

    /// A line for each method; finished ones are not run again.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/results/time_to_forget.csv"
    )]
    csv: PathBuf,

    /// The page whose table is written.
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    page: PathBuf,
}

/// The result of a method: one line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    method: String,
    batch: usize,
    samples: usize,
    seed: u64,
    clock: Clock,
    /// Steps after which the method gave up, and steps between two checks.
    most_steps: usize,
    every: u32,
    /// Steps after which there was no T-shirt; `None` if there still was one at the end.
    steps: Option<usize>,
    /// Duration of these steps, or of all.
    seconds: f64,
    /// Duration of predicting the level at which forgetting stops, or the answers.
    prediction_seconds: f64,
}

impl Run {
    /// Whether this is the run that the arguments ask for.
    fn is_of(&self, method: Way, arguments: &Arguments) -> bool {
        let wanted = (
            arguments.steps,
            arguments.every,
            arguments.batch,
            arguments.samples,
            arguments.seed,
            arguments.clock,
        );
        let own = (
            self.most_steps,
            self.every,
            self.batch,
            self.samples,
            self.seed,
            self.clock,
        );
        self.method == method.name() && own == wanted
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { batch, samples, .. } = *arguments;
    at_least_one(&[
        ("steps", Some(arguments.steps)),
        ("batch", Some(batch)),
        ("samples", Some(samples)),
    ])?;
    let mut runs: Vec<Run> = lines::read(&arguments.csv)?;
    let progress = Bar::new()?;
    let trial = Trial::load(arguments)?;
    for &method in &arguments.methods {
        if runs.iter().any(|run| run.is_of(method, arguments)) {
            continue;
        }
        runs.push(trial.run(method, &progress)?);
        lines::write(&arguments.csv, &runs)?;
    }
    progress.finish();
    let table = table(&runs);
    println!("{table}");
    page::write(&arguments.page, "time to forget", &table)
}

/// The checkpoint, the data and the sampler.
struct Trial<'a> {
    arguments: &'a Arguments,
    config: SchedulerConfig,
    model: UNet2d,
    pairs: PairSampler<4>,
    heldout: Tensor<4>,
    tshirt: Tensor<4>,
    sampler: DdimSampler,
}

impl<'a> Trial<'a> {
    fn load(arguments: &'a Arguments) -> Result<Self> {
        let (assets, device) = (Path::new(digits::ASSETS), Device::flex());
        let folder = assets.join("base");
        let config = SchedulerConfig::from_file(ModelFolder::find(&folder)?.scheduler_file())?;
        let digits = digits::load_digits(assets, &device)?;
        let tshirt = digits::load_tshirt(assets, &device)?;
        Ok(Self {
            arguments,
            model: UNet2d::load(folder, &device)?,
            pairs: PairSampler::new(digits.retain, tshirt.clone(), arguments.seed)?,
            heldout: digits.heldout,
            tshirt,
            sampler: DdimSampler::from_scheduler(&config, DDIM_STEPS)?,
            config,
        })
    }

    fn run(&self, method: Way, progress: &Bar) -> Result<Run> {
        let Arguments {
            steps,
            every,
            batch,
            samples,
            seed,
            clock,
            ..
        } = *self.arguments;
        let began = clock.now()?;
        let mut trainer = self.trainer(method, progress)?;
        let prediction_seconds = match method.is_predicted() {
            true => clock.now()? - began,
            false => 0.0,
        };
        let (mut seconds, mut start, mut taken) = (0.0, 0, None);
        for step in 0..steps {
            let began = clock.now()?;
            let report = trainer.step(self.pairs.batch(step as u64, batch)?)?;
            seconds += clock.now()? - began;
            progress.step(&report, steps);
            let is_check = (step + 1) % every as usize == 0 || step + 1 == steps;
            if !is_check {
                continue;
            }
            progress.phase(&format!("{method}: sampling after {} steps", step + 1));
            match self.tshirt_chunk(&trainer.model().valid(), start)? {
                Some(chunk) => start = chunk,
                None => {
                    taken = Some(step + 1);
                    break;
                }
            }
        }
        Ok(Run {
            method: method.name().into(),
            batch,
            samples,
            seed,
            clock,
            most_steps: steps,
            every,
            steps: taken,
            seconds,
            prediction_seconds,
        })
    }

    /// A trainer, with what its method needs to have predicted.
    fn trainer(&self, method: Way, progress: &Bar) -> Result<SissTrainer<UNet2d, 4>> {
        let points = [self.pairs.retain(), &self.heldout, &self.tshirt];
        let (model, config) = (&self.model, &self.config);
        let losses = match method.is_predicted() {
            true => Some(predict_losses(model, config, points, progress)?),
            false => None,
        };
        let answer = match &losses {
            Some(losses) if method == Way::Counterfactual => {
                Some(predict_answers(model, config, points, losses, progress)?)
            }
            _ => None,
        };
        let scheduler = DdpmScheduler::from_config(config)?;
        let falling = LinearLrSchedulerConfig::new(1e-4, 0.0, self.arguments.steps);
        let builder = SissTrainer::builder(model.clone(), scheduler)
            .retained_points(self.pairs.retain().clone())
            .learning_rate(falling.init()?)
            .seed(self.arguments.seed);
        let levels = losses.map(|losses| losses.levels);
        Ok(method.set(builder, levels, answer, None)?.build()?)
    }

    /// The first chunk that contains a T-shirt, searching from chunk `start` to the end and then
    /// from the beginning.
    fn tshirt_chunk(&self, model: &UNet2d, start: usize) -> Result<Option<usize>> {
        let device = self.tshirt.device();
        let samples = self.arguments.samples;
        let chunks = samples.div_ceil(CHUNK);
        for chunk in (0..chunks).map(|index| (start + index) % chunks) {
            let first = chunk * CHUNK;
            let shape = [CHUNK.min(samples - first), 1, 28, 28];
            let images =
                self.sampler
                    .sample(model, &(), shape, EVALUATION_SEED, first as u64, &device)?;
            let mut distances = distances(&images, &self.tshirt).into_iter();
            if distances.any(|distance| distance < TSHIRT_DISTANCE) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }
}

fn table(runs: &[Run]) -> String {
    let mut table = String::from(
        "| method | steps to 0 T-shirts | of | clock | seconds of the steps | predicting | total |\n|---|---|---|---|---|---|---|\n",
    );
    for run in runs {
        let steps = match run.steps {
            Some(steps) => steps.to_string(),
            None => format!("not in {}", run.most_steps),
        };
        table += &format!(
            "| {} | {steps} | {} | {:?} | {:.0} | {:.0} | {:.0} |\n",
            run.method,
            run.samples,
            run.clock,
            run.seconds,
            run.prediction_seconds,
            run.seconds + run.prediction_seconds,
        );
    }
    table
}
