//! Trains a small model that memorises some pictures, or its twin that never saw them:
//! `cargo run --release --example pretrain`. See `--help` and `examples/README.md`.
//!
//! An ordinary training is the crate's trainer without a forget term, so it has the trainer's
//! checkpoints, average of the weights and log.

mod data;
mod fresh;
mod half;
mod options;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use siss::burn::optim::AdamWConfig;
use siss::burn::optim::lr_scheduler::composed::ComposedLrSchedulerConfig;
use siss::burn::optim::lr_scheduler::cosine::CosineAnnealingLrSchedulerConfig;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use siss::burn::tensor::Device;
use siss::evaluate::DenoisingLoss;
use siss::files::path_text;
use siss::models::{ClassUNet2d, Dit, Sd3Transformer, UNet2dCondition};
use siss::{Denoiser, Method, PairSampler, SissTrainer};
use siss_support::cases::CaseData;
use siss_support::digits::ASSETS;
use siss_support::process::Process;
use siss_support::progress::Progress;
use siss_support::subject::source::Source;
use siss_support::subject::{
    self, Classes, ConditionOf, Kind, Named, Subject, Text, Unconditional,
};

use self::data::Data;
use self::options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Steps until the learning rate is at its highest.
const WARM_UP: usize = 200;
/// A line is printed after so many steps.
const TOLD_EVERY: u64 = 100;
/// Timesteps and held-out points at which the losses of the trained model are measured.
const MEASURED: [usize; 5] = [50, 100, 250, 400, 600];
const MEASURED_POINTS: usize = 100;
/// The options for conditions.
const TAKES: &[&str] = &["null-label", "drop-condition", "prompts"];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Finds or makes the model, and trains it as the kind that it is.
fn run(options: &Options) -> Result<()> {
    options.check()?;
    let device = options.device.device()?;
    let case = match options.images {
        Some(_) => None,
        None => Some(options.case.load(Path::new(ASSETS), &device)?),
    };
    let place = tempfile::tempdir()?;
    let model = match &options.from {
        Some(folder) => folder.as_path(),
        None => {
            fresh::write(
                options,
                shape(options, case.as_ref()),
                &device,
                place.path(),
            )?;
            place.path()
        }
    };
    let conditions = options.conditions();
    let named = Named {
        option: "from",
        path: model,
        config: None,
        range: [-1.0, 1.0],
        conditions: &conditions,
        takes: TAKES,
    };
    let source = Source::find(&named)?;
    let job = Job {
        options,
        named: &named,
        source: &source,
        device: &device,
    };
    match (Kind::of(&source)?, case) {
        (Kind::Unconditional, Some(case)) => {
            job.train::<Unconditional>(|_| Ok(data::bundled(case)))
        }
        (Kind::Unconditional, None) => job.train_on_folders::<Unconditional>(),
        (Kind::Classes, _) => job.train_on_folders::<Classes<ClassUNet2d>>(),
        (Kind::Dit, _) => job.train_on_folders::<Classes<Dit>>(),
        (Kind::Text, _) => job.train_on_folders::<Text<UNet2dCondition>>(),
        (Kind::Sd3, _) => job.train_on_folders::<Text<Sd3Transformer>>(),
    }
}

/// Channels, height and width of the pictures for a new network.
fn shape(options: &Options, case: Option<&CaseData>) -> [usize; 3] {
    match case {
        Some(case) => {
            let [_, channels, height, width] = case.retain.dims();
            [channels, height, width]
        }
        None => [options.channels, options.size, options.size],
    }
}

/// A model and how it is trained.
struct Job<'a> {
    options: &'a Options,
    named: &'a Named<'a>,
    source: &'a Source,
    device: &'a Device,
}

impl Job<'_> {
    fn train_on_folders<S: Subject>(&self) -> Result<()>
    where
        ConditionOf<S>: 'static,
    {
        let model = self.source.network();
        self.train::<S>(|subject| data::of_folders(subject, self.options, model, self.device))
    }

    /// Trains the model, writes it, and measures what it knows.
    fn train<S: Subject>(
        &self,
        load: impl FnOnce(&mut S) -> Result<Data<ConditionOf<S>>>,
    ) -> Result<()>
    where
        ConditionOf<S>: 'static,
    {
        let (options, origin) = (self.options, self.source.folder());
        subject::check::<S>(self.named, origin)?;
        let (mut subject, model) = S::read(self.named, self.source, self.device, &Lines)
            .map_err(|error| subject::explained(error, origin))?;
        let process = Process::from_file(origin.scheduler_file())?;
        let data = load(&mut subject)?;
        let pairs = pairs(options, &subject, &data)?;
        let trainer = trainer(options, model, &process)?;
        let model = trained(options, trainer, &pairs)?;

        let out = options.out.as_path();
        for left in subject.save(&model, self.source, out, "")? {
            println!("{}: not copied, {}", path_text(&left.path), left.reason);
        }
        if options.from.is_none() {
            let network = self.source.network().file_name().unwrap_or_default();
            half::halve_network(&out.join(network))?;
        }
        measure(&model, &process, &data)?;
        println!("the model is in {}", path_text(out));
        Ok(())
    }
}

/// Prints what is told while a model is read.
struct Lines;

impl Progress for Lines {
    fn phase(&self, _: &str) {}

    fn step(&self, _: &siss::StepReport, _: usize) {}

    fn say(&self, line: &str) {
        println!("{line}");
    }
}

/// The training data as the retained side of pairs. A pair has a point to forget as well; without a
/// forget term it is never run, so any other will do.
fn pairs<S: Subject>(
    options: &Options,
    subject: &S,
    data: &Data<ConditionOf<S>>,
) -> Result<PairSampler<4, ConditionOf<S>>> {
    let training = data.training(options.copies())?;
    let [count, channels, height, width] = training.points.dims();
    println!("{count} points of {channels}x{height}x{width}");
    let unused = data.heldout.first(1);
    let pairs = PairSampler::with_conditions(
        training.points,
        unused.points,
        training.condition,
        unused.condition,
        options.seed,
    )?;
    match subject.none() {
        Some(none) if options.drop_condition > 0.0 => {
            Ok(pairs.dropping(options.drop_condition, none)?)
        }
        _ => Ok(pairs),
    }
}

fn trainer<M: Denoiser<4, Condition: 'static>>(
    options: &Options,
    model: M,
    process: &Process,
) -> Result<SissTrainer<M, 4>> {
    let optimizer = AdamWConfig::new().with_weight_decay(1e-4).init();
    let builder = SissTrainer::builder(model, process.scheduler()?)
        .method(Method::NaiveDeletion)
        .optimizer(optimizer)
        .timestep_sampling(process.timesteps())
        .learning_rate(learning_rate(options)?)
        .ema(options.ema)
        .seed(options.seed);
    Ok(builder.build()?)
}

/// Takes all steps; returns the average of the weights.
fn trained<M: Denoiser<4, Condition: 'static>>(
    options: &Options,
    mut trainer: SissTrainer<M, 4>,
    pairs: &PairSampler<4, M::Condition>,
) -> Result<M> {
    let amount = [options.steps as usize, options.batch];
    let (checkpointing, out) = (&options.checkpointing, options.out.as_path());
    let fingerprint = || pairs.fingerprint();
    let say = |line: &str| println!("{line}");
    let mut checkpoints = checkpointing.begin(&mut trainer, None, fingerprint, amount, out, say)?;
    let (mut loss, mut counted) = (0.0, 0);
    while trainer.next_step() < options.steps {
        let report = trainer.step(pairs.batch(trainer.next_step(), options.batch)?)?;
        loss += (report.retain.as_ref()).map_or(0.0, |term| term.mean_squared_error);
        counted += 1;
        let taken = trainer.next_step();
        if taken.is_multiple_of(TOLD_EVERY) || taken == options.steps {
            println!("step {taken}: loss {:.4}", loss / f64::from(counted));
            (loss, counted) = (0.0, 0);
        }
        if let Some(checkpoints) = &mut checkpoints
            && checkpointing.is_due(taken, options.steps)
        {
            checkpoints.save(&mut trainer, &())?;
        }
    }
    let average = trainer.ema_model();
    Ok(average.unwrap_or_else(|| trainer.model().clone()))
}

/// Rises for some steps, then falls to a fiftieth along a cosine.
fn learning_rate(options: &Options) -> Result<ModuleLrScheduler> {
    let steps = options.steps as usize;
    let rise = LinearLrSchedulerConfig::new(1.0 / WARM_UP as f64, 1.0, WARM_UP.min(steps));
    let rate = options.learning_rate;
    let fall = CosineAnnealingLrSchedulerConfig::new(rate, steps).with_min_lr(0.02 * rate);
    let product = ComposedLrSchedulerConfig::new().linear(rise).cosine(fall);
    Ok(product.init()?)
}

/// Prints the losses of the trained model on what it memorised and on what it never saw.
fn measure<M: Denoiser<4>>(model: &M, process: &Process, data: &Data<M::Condition>) -> Result<()> {
    let scheduler = process.scheduler()?;
    let unseen = data.heldout.count().min(MEASURED_POINTS);
    let unseen = data.heldout.first(unseen);
    let loss = DenoisingLoss::at(MEASURED.map(|timestep| process.time(timestep)));
    for (name, of) in [("to memorise", &data.memorise), ("held out", &unseen)] {
        let losses = loss.measure(&model.valid(), &scheduler, &of.points, &of.condition)?;
        for (timestep, losses) in MEASURED.iter().zip(&losses) {
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            println!("loss of the pictures {name}, t = {timestep}: {mean:.4}");
        }
    }
    Ok(())
}
