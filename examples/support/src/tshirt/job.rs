//! The job of `mnist_tshirt`: measure, unlearn, measure again. Run by the example's `main` and by
//! tests.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use siss::answer::PredictedAnswer;
use siss::burn::module::Module;
use siss::burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig;
use siss::burn::tensor::Tensor;
use siss::data::DataCheck;
use siss::draws::{CoinFlip, FixedAllocation};
use siss::files::{ResultFolder, path_text};
use siss::models::{ModelFolder, UNet2d, save_pipeline};
use siss::observer::Finding;
use siss::process::SchedulerConfig;
use siss::report::audit::Manifest;
use siss::steering::Levels;
use siss::{DdpmScheduler, PairSampler, SissTrainer};

use crate::audit::material::records;
use crate::audit::summary::{self, Evidence};
use crate::cases::Case;
use crate::classifier::DigitClassifier;
use crate::closeness::{CURVE, Closeness};
use crate::digits;
use crate::files;
use crate::probe::{ByTimestep, Probe};
use crate::progress::Progress;
use crate::resume::open_results;
use crate::run::{LOG, Plan, Run, Unlearned};
use crate::target::{Target, predict_answers, predict_losses};
use crate::tshirt::evaluate::{
    Copies, DENOISE_FROM, Evaluation, Examiner, TIMESTEPS, TSHIRT_DISTANCE, TSHIRT_NOISES, chunks,
};
use crate::tshirt::options::{Options, Protocol, Settings};
use crate::tshirt::pictures;
use crate::way::Way;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The results of a run, which appear in its output folder together.
pub const RESULTS: [&str; 10] = [
    "model",
    "before.png",
    "after.png",
    "denoised.png",
    "levels.svg",
    "curves.svg",
    LOG,
    "summary.json",
    "report.html",
    "report.json",
];

/// Number of times that the distance of the denoised T-shirt and its losses are measured during the
/// run.
const LOOKS: usize = 15;
/// Denoised copies and noises per such measurement.
const CURVE_COPIES: usize = 4;
const CURVE_NOISES: usize = 16;

/// Measurements between steps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Along {
    pub tshirt_denoise_l2: f64,
    pub tshirt_loss: ByTimestep,
}

/// The contents of `summary.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub before: Evaluation,
    pub after: Evaluation,
    pub retrained: Retrained,
    /// The predicted loss of a retrained model on the T-shirt, if it was the target.
    pub predicted: Option<ByTimestep>,
    pub closeness: ToRetrained,
    /// Rows run through the model per pair of images.
    pub rows_per_sample: f64,
    pub findings: Vec<Finding>,
    pub config: Config,
    pub steps: usize,
    /// Duration of the whole job.
    pub seconds: f64,
    /// Duration of the unlearning alone, as far as this process did it.
    pub unlearning_seconds: f64,
    pub device: String,
}

/// How close models are to the retrained one.
#[derive(Debug, Serialize)]
pub struct ToRetrained {
    pub before: Closeness,
    pub after: Closeness,
    /// A second retrained model, of another seed: as close as unlearning can come.
    pub another_retrained: Closeness,
}

/// The options, and the settings that follow from them.
#[derive(Debug, Serialize)]
pub struct Config {
    #[serde(flatten)]
    pub options: Options,
    #[serde(flatten)]
    pub settings: Settings,
}

/// The model that never saw the T-shirt, as the reference for the unlearned model.
#[derive(Debug, Clone, Serialize)]
pub struct Retrained {
    pub tshirt_loss: ByTimestep,
    pub tshirt_denoise_l2: f64,
    #[serde(skip)]
    pub denoised: Copies,
    #[serde(skip)]
    model: UNet2d,
}

impl Retrained {
    fn measure(examiner: &Examiner, model: UNet2d) -> siss::Result<Self> {
        let denoised = examiner.copies(&model)?;
        Ok(Self {
            tshirt_loss: examiner.tshirt_loss(&model, TSHIRT_NOISES, &CURVE)?,
            tshirt_denoise_l2: examiner.distance(&denoised[0]),
            denoised,
            model,
        })
    }

    /// Mean over the timesteps of the curve of |ln(loss / retrained)| of the T-shirt's loss.
    pub fn distance(&self, tshirt_loss: &ByTimestep) -> f64 {
        let logs = self
            .tshirt_loss
            .iter()
            .map(|(timestep, retrained)| (tshirt_loss[timestep] / retrained).ln().abs());
        logs.sum::<f64>() / self.tshirt_loss.len() as f64
    }
}

/// Everything that a run needs, loaded and checked.
pub struct Job {
    pub options: Options,
    pub settings: Settings,
    pub examiner: Examiner,
    pub model: UNet2d,
    pub retrained: Retrained,
    another_retrained: UNet2d,
    /// The T-shirt's predicted losses at the timesteps of the curve, if they are the target.
    pub predicted: Option<ByTimestep>,
    checkpoint: ModelFolder,
    config: SchedulerConfig,
    pairs: PairSampler<4>,
    /// The levels from which that prediction was made.
    pub levels: Option<Levels>,
    /// What is taught in place of the T-shirt, with [`Way::Counterfactual`].
    pub answer: Option<PredictedAnswer<4>>,
}

impl Job {
    /// Loads the models and the data, and predicts the T-shirt's loss if it is the target.
    pub fn prepare(options: Options, progress: &dyn Progress) -> Result<Self> {
        let settings = options.settings()?;
        let device = options.device.device()?;

        progress.phase("loading");
        let base = Case::Tshirt.model(&options.assets);
        let checkpoint = ModelFolder::find(options.checkpoint.as_ref().unwrap_or(&base))?;
        let config = SchedulerConfig::from_file(checkpoint.scheduler_file())?;
        let digits = digits::load_digits(&options.assets, &device)?;
        let tshirt = digits::load_tshirt(&options.assets, &device)?;
        let heldout = options.heldout.min(digits.heldout.dims()[0]);
        let examiner = Examiner {
            probe: Probe::new(&config, chunks(options.device))?,
            tshirt: tshirt.clone(),
            heldout: digits.heldout.clone().narrow(0, 0, heldout),
            samples: options.samples,
            classifier: DigitClassifier::load(&options.assets, &device)?,
        };
        let (retrained, others) = Case::Tshirt.retrained(&options.assets);
        let retrained = UNet2d::load(retrained, &device)?;
        let another_retrained = UNet2d::load(&others[0], &device)?;
        let mut job = Self {
            retrained: Retrained::measure(&examiner, retrained)?,
            another_retrained,
            model: UNet2d::load(checkpoint.network(), &device)?,
            pairs: PairSampler::new(digits.retain, tshirt, options.seed)?,
            predicted: None,
            levels: None,
            answer: None,
            options,
            settings,
            examiner,
            checkpoint,
            config,
        };
        // Invalid settings are rejected here, before anything that takes time.
        job.pairs.pairs(0, job.settings.batch)?;
        for finding in DataCheck::default().run(job.pairs.retain(), job.pairs.forget())? {
            progress.say(&finding.to_string());
        }
        if job.settings.target == Target::Retrained {
            let controls = job.options.controls.min(digits.heldout.dims()[0]);
            job.predict(&digits.heldout.narrow(0, 0, controls), progress)?;
        }
        job.trainer(job.options.method, job.options.seed, job.levels.as_ref())?;
        Ok(job)
    }

    /// Predicts the losses that a model retrained without the T-shirt would have on it.
    fn predict(&mut self, controls: &Tensor<4>, progress: &dyn Progress) -> Result<()> {
        let (retained, tshirt) = (self.pairs.retain(), self.pairs.forget());
        let (model, config) = (&self.model, &self.config);
        let points = [retained, controls, tshirt];
        let losses = predict_losses(model, config, points, progress)?;
        if self.options.method == Way::Counterfactual {
            let answer = predict_answers(model, config, points, &losses, progress)?;
            self.answer = Some(answer);
        }
        let levels = losses.levels;
        let level = |timestep: usize| Ok((timestep.to_string(), levels.level(0, timestep as f64)?));
        self.predicted = Some(CURVE.into_iter().map(level).collect::<siss::Result<_>>()?);
        self.levels = Some(levels);
        Ok(())
    }

    /// A trainer of the loaded model. A method is steered to levels if there are any.
    pub fn trainer(
        &self,
        method: impl Into<Way>,
        seed: u64,
        levels: Option<&Levels>,
    ) -> Result<SissTrainer<UNet2d, 4>> {
        self.trainer_of(self.model.clone(), method, seed, levels)
    }

    /// The same trainer for another model.
    pub fn trainer_of(
        &self,
        model: UNet2d,
        method: impl Into<Way>,
        seed: u64,
        levels: Option<&Levels>,
    ) -> Result<SissTrainer<UNet2d, 4>> {
        let (options, settings) = (&self.options, &self.settings);
        let scheduler = DdpmScheduler::from_config(&self.config)?;
        let mut builder = SissTrainer::builder(model, scheduler)
            .retained_points(self.pairs.retain().clone())
            .timestep_sampling(settings.timesteps)
            .thin_below(settings.thin_below)
            .seed(seed);
        let (levels, answer) = (levels.cloned(), self.answer.clone());
        builder = (method.into()).set(builder, levels, answer, settings.clipper)?;
        builder = match options.protocol {
            Protocol::Quick => {
                let (rate, steps) = (settings.learning_rate, settings.steps);
                let falling = LinearLrSchedulerConfig::new(rate, 0.0, steps);
                builder
                    .sampler(FixedAllocation::new(settings.forget_prob)?)
                    .learning_rate(falling.init()?)
            }
            Protocol::Paper => builder
                .sampler(CoinFlip::new(settings.forget_prob)?)
                .learning_rate(settings.learning_rate),
        };
        Ok(builder.build()?)
    }

    /// How close the models are to the retrained one.
    fn closeness(&self, unlearned: &UNet2d) -> siss::Result<ToRetrained> {
        let closeness = |model| self.examiner.closeness(model, &self.retrained.model);
        Ok(ToRetrained {
            before: closeness(&self.model)?,
            after: closeness(unlearned)?,
            another_retrained: closeness(&self.another_retrained)?,
        })
    }

    /// The pairs of retained and forgotten images under a seed.
    pub fn pairs(&self, seed: u64) -> PairSampler<4> {
        self.pairs.clone().with_seed(seed)
    }
}

/// Runs the job and writes everything into `options.out`.
pub fn run(options: Options, progress: &dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    options.settings()?;
    let results = open_results(&options.out, &RESULTS)?;
    let (checkpointing, out) = (&options.checkpointing, &options.out);
    checkpointing.check_earlier(&results, out, false, |line| progress.say(line))?;
    let job = Job::prepare(options, progress)?;
    let pairs = job.pairs(job.options.seed);
    let run = begin(&job, &pairs, &results, progress)?;
    let before = job.examiner.evaluate(&job.model, "before", progress)?;
    let unlearned = unlearn(&job, run)?;
    let after = job.examiner.evaluate(&unlearned.model, "after", progress)?;

    progress.phase("comparing with the retrained model");
    let closeness = job.closeness(&unlearned.model)?;

    progress.phase("writing");
    let folder = results.path();
    save_model(&job, &unlearned.model, &folder.join("model"), progress)?;
    pictures::save(&job, &folder, &before, &after, &unlearned.records)?;
    let (parameters, network) = (job.model.num_params(), job.checkpoint.network().to_owned());
    let summary = Summary {
        closeness,
        before: before.figures,
        after: after.figures,
        retrained: job.retrained,
        predicted: job.predicted,
        rows_per_sample: unlearned.rows_per_sample(),
        steps: unlearned.records.len(),
        unlearning_seconds: unlearned.seconds,
        findings: unlearned.findings,
        seconds: started.elapsed().as_secs_f64(),
        device: job.options.device.to_string(),
        config: Config {
            options: job.options,
            settings: job.settings,
        },
    };
    let text = serde_json::to_string_pretty(&summary)?;
    files::write(&folder.join("summary.json"), text)?;
    report(&summary, parameters, &network, &folder)?;
    results.publish()?;
    Ok(summary)
}

/// Writes the report, if it was asked for.
fn report(summary: &Summary, parameters: usize, network: &Path, folder: &Path) -> Result<()> {
    let Config { options, .. } = &summary.config;
    if !options.reporting.report {
        return Ok(());
    }
    let (before, after) = (&summary.before, &summary.after);
    let at = |of: fn(&Evaluation) -> &ByTimestep| {
        summary::by_timestep(TIMESTEPS, [of(before), of(after)])
    };
    let closeness = &summary.closeness;
    let closeness = [
        &closeness.before,
        &closeness.after,
        &closeness.another_retrained,
    ];
    let retained = options.assets.join(digits::DIGITS);
    let unlearned = summary::written_network(folder);
    let evidence = Evidence {
        name: match &options.checkpoint {
            Some(checkpoint) => path_text(checkpoint),
            None => "the bundled model of digits, which memorised a picture".into(),
        },
        parameters,
        networks: [network, &unlearned],
        items: records(&Manifest::of(options.assets.join(digits::TSHIRT))?),
        retained: &retained,
        retained_count: digits::NUM_RETAIN,
        retained_description: "handwritten digits of 28×28 pixels (MNIST)".into(),
        controls: options.heldout,
        samples: before.samples,
        copies: [before.tshirt_count, after.tshirt_count],
        copies_rule: format!("an L2 distance below {TSHIRT_DISTANCE}, pixels from 0 to 1"),
        ranks: at(|it| &it.tshirt_loss_percentile),
        denoised: [before.tshirt_denoise_l2, after.tshirt_denoise_l2],
        denoised_retrained: Some(summary.retrained.tshirt_denoise_l2),
        answers: Some(closeness.map(|it| it.answer_distance)),
        quality: at(|it| &it.heldout_loss),
        judged: before
            .digits
            .clone()
            .zip(after.digits.clone())
            .map(<[_; 2]>::from),
        fid: None,
        similarity: None,
        worst: None,
        charts: Vec::new(),
    };
    let repeated = (options.seed, summary.device.as_str());
    summary::write(
        evidence,
        &options.reporting,
        &summary.config,
        repeated,
        folder,
    )
}

/// Saves the unlearned model, with the files that lie next to the network of the loaded model.
fn save_model(job: &Job, model: &UNet2d, folder: &Path, progress: &dyn Progress) -> Result<()> {
    let (options, settings) = (&job.options, &job.settings);
    let note = format!(
        "by the example `mnist_tshirt` with the method `{}`; {} steps of {}, learning rate {:e}, seed {}.",
        options.method, settings.steps, settings.batch, settings.learning_rate, options.seed
    );
    let left_out = save_pipeline(model, &job.checkpoint, folder, &note)?;
    // Of the bundled folder only the retrained model is left out, which needs no note.
    if options.checkpoint.is_some() {
        for left_out in left_out {
            progress.say(&format!(
                "note: not in the unlearned model's folder: {left_out}"
            ));
        }
    }
    Ok(())
}

/// Sets up or resumes the run.
fn begin<'a>(
    job: &'a Job,
    pairs: &'a PairSampler<4>,
    results: &ResultFolder,
    progress: &'a dyn Progress,
) -> Result<Run<'a, Along>> {
    let Options { method, seed, .. } = job.options;
    let trainer = job.trainer(method, seed, job.levels.as_ref())?;
    let plan = Plan {
        steps: job.settings.steps,
        batch: job.settings.batch,
        looks: LOOKS,
    };
    let Options {
        checkpointing, out, ..
    } = &job.options;
    let folders = [out.as_path(), &results.path()];
    Run::begin(trainer, None, pairs, plan, checkpointing, folders, progress)
}

fn unlearn(job: &Job, run: Run<Along>) -> Result<Unlearned<Along>> {
    let look = |model: &UNet2d| {
        let denoised = job.examiner.denoise(model, DENOISE_FROM, CURVE_COPIES)?;
        Ok(Along {
            tshirt_denoise_l2: job.examiner.distance(&denoised),
            tshirt_loss: job.examiner.tshirt_loss(model, CURVE_NOISES, &TIMESTEPS)?,
        })
    };
    run.finish(look, |_| {})
}
