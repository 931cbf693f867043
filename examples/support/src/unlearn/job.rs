//! The job of `unlearn`: measure, unlearn, measure again. Run by the example's `main` and by tests.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use siss::answer::Surrogate;
use siss::backend::DeviceSpec;
use siss::burn::module::Module;
use siss::burn::tensor::{Device, Tensor};
use siss::evaluate::refuse_relearning;
use siss::files::{ResultFolder, path_text};
use siss::images::Format;
use siss::models::{ClassUNet2d, Dit, ModelFolder, Sd3Transformer, UNet2dCondition};
use siss::observer::Finding;
use siss::process::PredictionType;
use siss::{Condition, Denoiser, PairSampler, Side, UnlearningBatch};

use crate::files::{self, as_text};
use crate::probe::{Chunks, Probe};
use crate::process::Process;
use crate::progress::Progress;
use crate::resume::{checkpoint_folder, open_results};
use crate::run::{Batches, LOG, Plan, Run};
use crate::subject::source::Source;
use crate::subject::{
    self, Classes, ConditionOf, Kind, MakePoints, NO_STREAM, Origin, Points, Subject, Text,
    Unconditional, from_range,
};
use crate::target::Target;
use crate::unlearn::checks;
use crate::unlearn::data::{Accounts, Data};
use crate::unlearn::evaluate::{Along, Evaluated, Evaluation, Examiner, ImageLoss, Measuring};
use crate::unlearn::memory::{self, MemoryPlan, Training, Wanted, available_memory, peak_memory};
use crate::unlearn::options::{Options, Settings};
use crate::unlearn::pictures;
use crate::unlearn::precision;
use crate::unlearn::predicted::{self, Predicted};
use crate::unlearn::published::{Costs, PublishedNetworks};
use crate::unlearn::report;
use crate::unlearn::resources::{self, Forecast};
use crate::unlearn::stream;
use crate::unlearn::trainer::{adding_gradients, adversary, builder, check_method};
use crate::way::Way;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The results of a run, which appear in its output folder together.
pub const RESULTS: [&str; 10] = [
    "model",
    "samples",
    "before.png",
    "after.png",
    "denoised.png",
    "curves.svg",
    LOG,
    "summary.json",
    "report.html",
    "report.json",
];
/// Most conditions of forgotten images that are shown.
const MOST_WORDS: usize = 3;
/// Most parts of the model's folder that are listed as left out.
const MOST_NAMED: usize = 10;

/// The plan of a run with checkpoints, among these: a resumed run takes the same micro-batch.
const PLAN: &str = "memory.json";
/// Number of times that losses are measured during the run.
const LOOKS: usize = 10;

/// The contents of `summary.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub before: Evaluation,
    pub after: Evaluation,
    /// What a retrained model is predicted to do, if that is the target.
    pub predicted: Option<predicted::Figures>,
    /// The criterion for near samples, and its result for the control images.
    pub near: Near,
    pub images: Vec<ForgottenImage>,
    /// Rows run through the model per pair of images.
    pub rows_per_sample: f64,
    /// Factor of the forget gradient, if it was the same in all steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forget_scale: Option<f64>,
    pub findings: Vec<Finding>,
    pub model: Model,
    pub config: Config,
    /// Number of forgotten images, without mirror images.
    pub forget_images: usize,
    /// Number of mirror images that are also forgotten.
    pub forget_mirrors: usize,
    pub retain_images: usize,
    pub control_images: usize,
    /// The accounts of the files of each folder.
    pub files: Accounts,
    /// Of the retained images, if they were not held in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<stream::Figures>,
    /// The number of images whose latents were read from the cache, and that were encoded, for a
    /// model of latents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latents: Option<[usize; 2]>,
    /// Timesteps at which losses are compared.
    pub timesteps: [usize; 3],
    pub steps: usize,
    /// Duration of the whole job.
    pub seconds: f64,
    /// Duration of the unlearning alone, as far as this process did it.
    pub unlearning_seconds: f64,
    pub measuring: Measuring,
    /// The memory that was announced, if the system reports it and the model is on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryPlan>,
    /// Peak memory of the process, if the system reports it.
    pub peak_memory_bytes: Option<u64>,
}

/// A sample is near a forgotten image if its distance is below half the median distance of the
/// control images to that image.
#[derive(Debug, Serialize)]
pub struct Near {
    /// Mean over the forgotten images.
    pub distance: f64,
    /// Number of control images that are near.
    pub controls: usize,
}

/// The results for one forgotten image.
#[derive(Debug, Serialize)]
pub struct ForgottenImage {
    #[serde(serialize_with = "as_text")]
    pub file: PathBuf,
    /// Whether it is the mirror image of the picture in the file.
    pub mirrored: bool,
    /// Its class or its caption, for a model with a condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    pub before: ImageLoss,
    pub after: ImageLoss,
    /// The loss at which forgetting stops, if that is predicted.
    pub predicted: Option<f64>,
}

/// The options, and the settings that follow from them.
#[derive(Debug, Serialize)]
pub struct Config {
    #[serde(flatten)]
    pub options: Options,
    #[serde(flatten)]
    pub settings: Settings,
}

/// The model before unlearning.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    pub parameters: usize,
    /// Number of parameters that are trained.
    pub trained: usize,
    #[serde(flatten)]
    pub format: Format,
    #[serde(flatten)]
    pub process: Process,
}

/// Runs the job and writes everything into `options.out`, where all results appear at the end.
pub fn run(options: Options, progress: &dyn Progress) -> Result<Summary> {
    let started = Instant::now();
    options.check()?;
    precision::check(&options)?;
    check_method(&options, &options.all_devices().0.device()?)?;
    let source = Source::find(&options.named())?;
    checks::folders(&options, source.folder())?;
    match Kind::of(&source)? {
        Kind::Unconditional => run_on::<Unconditional>(options, &source, started, progress),
        Kind::Classes => run_on::<Classes<ClassUNet2d>>(options, &source, started, progress),
        Kind::Dit => run_on::<Classes<Dit>>(options, &source, started, progress),
        Kind::Text => run_on::<Text<UNet2dCondition>>(options, &source, started, progress),
        Kind::Sd3 => run_on::<Text<Sd3Transformer>>(options, &source, started, progress),
    }
}

fn run_on<S: Subject>(
    options: Options,
    source: &Source,
    started: Instant,
    progress: &dyn Progress,
) -> Result<Summary>
where
    ConditionOf<S>: 'static,
{
    let origin = source.folder();
    subject::check::<S>(&options.named(), origin)?;
    let device = options.all_devices().0.device()?;
    let networks = PublishedNetworks::read(&options.published, &device)?;
    let (out, checkpointing) = (&options.out, &options.checkpointing);
    let results = open_results(out, &RESULTS)?;
    checkpointing.check_earlier(&results, out, true, |line| progress.say(line))?;

    progress.phase("loading");
    for note in origin.notes() {
        progress.say(&note.to_string());
    }
    let (mut subject, unet) = S::read(&options.named(), source, &device, progress)
        .map_err(|error| subject::explained(error, origin))?;
    let process = process(origin, &subject, &unet, progress)?;
    if options.streaming.stream && !subject.space().is_pixels() {
        return Err(NO_STREAM.into());
    }
    let mut data = Data::load(&options, &subject, progress)?;
    let parameters = unet.num_params();
    let model = Model {
        parameters,
        trained: subject.trained(parameters),
        format: data.format(),
        process,
    };
    let sizes = [model.parameters, model.trained];
    let mut settings = options.settings(sizes, model.format)?;
    networks.check(subject.space(), settings.samples, data.retain.len())?;
    let [channels, height, width] = subject.space().shape(subject.input(), model.format);
    unet.check_input([1, channels, height, width])?;
    let kept = subject::kept(&subject, model.format, data.count());
    for line in resources::announcement(&options, &settings, &model, &data) {
        progress.say(&line);
    }
    let training = resources::of_training(&options, &model, &data, settings.samples);
    refuse_too_large(training, &options)?;

    // Invalid settings are rejected here, before anything that takes time.
    let maker = maker(&subject, &mut data, &options, &device, progress)?;
    let [forget, retain, control] = points(&mut subject, &data, &device, progress)?;
    let words = forget.words.clone();
    if let Some(line) = conditions(&subject, [&forget, &retain, &control]) {
        progress.say(&line);
    }
    let pairs = pairs(&subject, &retain, &forget, &options)?;
    pairs.pairs(0, options.batch)?;
    let batches = match (&data.stream, maker) {
        (Some(stream), Some(maker)) => {
            stream.batches(&subject, maker, &forget, &options, &pairs)?
        }
        _ => Batches::Held(&pairs),
    };
    unet.check_condition(pairs.condition(Side::Forget))?;
    let fit = plan(&unet, &pairs, training, (&model, &options), progress)?;
    progress.phase("measuring the memory of a measurement");
    let probe = Probe::of(&model.process, chunks(&options, &settings, model.format))?;
    let retained = few_retained(&data, settings.samples, &device);
    let shown = (&control, &retained);
    let (costs, seen) = rehearse_measuring(
        (&subject, &unet),
        (&probe, settings.samples),
        shown,
        &networks,
    )?;
    let fit = fit.zip(seen);
    let fit = fit.map(|(fit, seen)| fit.with_measuring(seen, training, probe.is_parallel()));
    if let Some(fit) = &fit {
        settings.micro_batch = fit.micro_batch;
    }
    let known = (fit.as_ref(), &kept[..]);
    for line in resources::memory(&options, &settings, &model, &data, known) {
        progress.say(&line);
    }
    progress.phase("looking for copies");
    checks::images(
        &data,
        &pairs,
        &control.points,
        subject.space().range(),
        progress,
    )?;
    progress.phase("checking whether the model knows the images");
    let asked = (&options, &settings);
    let process = &model.process;
    let whose = (&subject, &unet);
    let is_trained = checks::model(whose, process, &data, &pairs, &control, asked, progress)?;
    let predicted = match options.target {
        Target::Retrained => {
            let (way, points) = (options.method, [&retain, &control, &forget]);
            Some(Predicted::new(way, whose, process, points, progress)?)
        }
        Target::None => None,
    };
    drop(retain);
    let range = model.format.range;
    let pictures =
        [&data.forget, &data.control].map(|images| from_range(&images.all(&device), range));
    let mut examiner = Examiner::new(
        &subject,
        probe,
        [forget, control],
        pictures,
        settings.samples,
        process.num_timesteps(),
    )?;
    let figures = predicted.as_ref().map(|predicted| examiner.of(predicted));
    let figures = figures.transpose()?.flatten();
    let (levels, answer) = match predicted {
        Some(Predicted { levels, answer }) => (levels, answer),
        None => (None, None),
    };
    let trainer = builder(
        precision::of_training(unet.clone(), &options),
        pairs.retain().clone(),
        (levels, answer),
        process,
        (&options, &settings),
    )?;
    let trainer = adding_gradients(trainer, &options, progress)?.build()?;

    let plan = Plan {
        steps: options.steps,
        batch: options.batch,
        looks: LOOKS,
    };
    let folders = [out.as_path(), &results.path()];
    let adversary = adversary(&options, &settings, &pairs)?;
    let run = Run::begin(
        trainer,
        adversary,
        batches,
        plan,
        checkpointing,
        folders,
        progress,
    )?;

    if let Some(fit) = fit.filter(|_| checkpointing.checkpoint_every.is_some()) {
        let text = serde_json::to_string_pretty(&fit)?;
        files::write(&checkpoint_folder(out).join(PLAN), text)?;
    }

    let looks = run.looks();
    let saved = options.save_samples.unwrap_or(0);
    let published = (&networks, &costs, retained.dims()[0]);
    let mut measuring = examiner.measuring(&unet, (1 + looks, saved), published)?;
    let left = options.steps.saturating_sub(run.taken());
    progress.say(&resources::measuring(&measuring, looks, left, fit.as_ref()));
    let began = Instant::now();
    examiner.add_published(networks, &retained, progress)?;
    drop(retained);
    let before = examiner.evaluate(&unet, "before", progress)?;
    let save_samples = |model: &S::Model, evaluated: &Evaluated, name: &str| {
        let folder = results.path().join("samples").join(name);
        save_samples(&examiner, model, evaluated, &options, &folder, progress)
    };
    save_samples(&unet, &before, "before")?;
    let mut forecast = Forecast::new(&options, began.elapsed().as_secs_f64());
    let start = examiner.look(&unet)?;
    measuring.seconds = began.elapsed().as_secs_f64();
    drop(unet);
    let look = |model: &S::Model| {
        let along = examiner.look(model)?;
        if is_trained {
            let losses = |along: &Along| along.control_loss.values().copied().collect::<Vec<_>>();
            refuse_relearning(&losses(&start), &losses(&along))?;
        }
        Ok(along)
    };
    let took = |seconds| {
        if let Some(line) = forecast.after_step(seconds) {
            progress.say(&line);
        }
    };
    let mut unlearned = run.finish(look, took).map_err(stream::with_remedy)?;
    unlearned.model = precision::of_file(unlearned.model, &options);

    let began = Instant::now();
    let after = examiner.evaluate(&unlearned.model, "after", progress)?;
    save_samples(&unlearned.model, &after, "after")?;
    measuring.seconds += unlearned.looking + began.elapsed().as_secs_f64();
    progress.phase("writing");
    save_model(
        (&subject, &unlearned.model),
        source,
        &options,
        &settings,
        &results,
        progress,
    )?;
    let (folder, records) = (results.path(), &unlearned.records);
    let (curves, predicted) = ((&records[..], &start), figures.as_ref());
    pictures::save(&folder, &before, &after, &examiner, curves, predicted)?;
    let summary = Summary {
        near: Near {
            distance: examiner.near_distance(),
            controls: examiner.near_controls(),
        },
        images: forgotten_images(&data, &words, [&before, &after], figures.as_ref()),
        latents: subject.space().cached(),
        predicted: figures,
        before: before.figures,
        after: after.figures,
        rows_per_sample: unlearned.rows_per_sample(),
        forget_scale: unlearned.forget_scale(),
        forget_images: data.forget.len() - data.forget.mirrors(),
        forget_mirrors: data.forget.mirrors(),
        retain_images: data.trained_on()[0],
        control_images: data.control.len(),
        files: data.accounts(),
        stream: data
            .stream
            .as_ref()
            .map(|stream| stream.figures(&data, unlearned.waited, unlearned.seconds)),
        timesteps: examiner.timesteps,
        steps: unlearned.records.len(),
        seconds: started.elapsed().as_secs_f64(),
        unlearning_seconds: unlearned.seconds,
        measuring,
        findings: unlearned.findings,
        memory: fit,
        peak_memory_bytes: peak_memory(),
        model,
        config: Config { options, settings },
    };
    let text = serde_json::to_string_pretty(&summary)?;
    files::write(&folder.join("summary.json"), text)?;
    report::write(&summary, source, &folder)?;
    results.publish()?;
    Ok(summary)
}

/// The process of the model. Latents have no range, so its sampler must not clamp them.
fn process<S: Subject>(
    origin: &ModelFolder,
    subject: &S,
    model: &S::Model,
    progress: &dyn Progress,
) -> Result<Process> {
    let process = Process::from_file(origin.scheduler_file())?;
    check_prediction(&process, model.prediction_type(), origin)?;
    if subject.space().is_pixels() {
        return Ok(process);
    }
    let (process, is_changed) = process.without_clamp();
    if is_changed {
        progress.say("note: the scheduler's file asks for samples to be clamped (`clip_sample`), which is wrong for latents and is not done here");
    }
    Ok(process)
}

/// Rejects a model whose network cannot say what its process asks for.
fn check_prediction(
    process: &Process,
    predicted: PredictionType,
    origin: &ModelFolder,
) -> Result<()> {
    match process.prediction_type() == predicted {
        true => Ok(()),
        false => Err(format!(
            "{}: the network predicts {predicted:?}, but the models of this scheduler {:?}; give the scheduler that the model was trained with",
            path_text(origin.scheduler_file()),
            process.prediction_type()
        )
        .into()),
    }
}

/// What makes points of the images of a stream, if there is one. Searches them, if requested.
fn maker<S: Subject>(
    subject: &S,
    data: &mut Data,
    options: &Options,
    device: &Device,
    progress: &dyn Progress,
) -> Result<Option<MakePoints<ConditionOf<S>>>> {
    let Some(stream) = data.stream.clone() else {
        return Ok(None);
    };
    let maker = subject.maker(&data.found.retain, device)?;
    if options.streaming.search {
        let forget = data.forget.all(device);
        let nearest = stream.search(&maker, data, &forget, progress)?;
        data.retain.append(&nearest)?;
    }
    Ok(Some(maker))
}

/// The forgotten, the retained and the control points.
fn points<S: Subject>(
    subject: &mut S,
    data: &Data,
    device: &Device,
    progress: &dyn Progress,
) -> Result<[Points<ConditionOf<S>>; 3]> {
    let mut points = |images, found, is_forgotten| {
        let origin = Origin {
            found,
            is_forgotten,
            device,
        };
        subject::points(subject, images, &origin, progress)
    };
    Ok([
        points(&data.forget, &data.found.forget, true)?,
        points(&data.retain, &data.found.retain, false)?,
        points(&data.control, &data.found.control, false)?,
    ])
}

/// As many retained images as are generated, if there are, with values from −1 to 1.
fn few_retained(data: &Data, samples: usize, device: &Device) -> Tensor<4> {
    let count = data.retain.len().min(samples);
    let images = data.retain.tensor(0..count, device);
    from_range(&images, data.format().range)
}

/// What the model is told of the images, in a line; nothing for a model without a condition.
fn conditions<S: Subject>(
    subject: &S,
    [forget, retain, control]: [&Points<ConditionOf<S>>; 3],
) -> Option<String> {
    let own: BTreeSet<&String> = forget.words.iter().collect();
    let all: BTreeSet<&String> = [retain, control]
        .iter()
        .flat_map(|set| &set.words)
        .collect();
    let named: Vec<_> = own
        .iter()
        .take(MOST_WORDS)
        .map(|words| format!("`{words}`"))
        .collect();
    let guidance = match subject.guidance() {
        Some((scale, _)) => format!("with guidance {scale}"),
        None => "without guidance".into(),
    };
    (!own.is_empty()).then(|| {
        format!(
            "told     forgotten: {}{}; {} different for the others; pictures are generated {guidance}",
            named.join(", "),
            if own.len() > MOST_WORDS { ", …" } else { "" },
            all.len(),
        )
    })
}

/// Pairs with the conditions of both sides, of which some are dropped if requested.
fn pairs<S: Subject>(
    subject: &S,
    retain: &Points<ConditionOf<S>>,
    forget: &Points<ConditionOf<S>>,
    options: &Options,
) -> siss::Result<PairSampler<4, ConditionOf<S>>> {
    let pairs = PairSampler::with_conditions(
        retain.points.clone(),
        forget.points.clone(),
        retain.condition.clone(),
        forget.condition.clone(),
        options.seed,
    )?;
    match subject.none() {
        Some(none) if options.conditions.drop_condition > 0.0 => {
            pairs.dropping(options.conditions.drop_condition, none)
        }
        _ => Ok(pairs),
    }
}

/// Refuses a run whose weights, moments and gradients alone do not fit, before anything is run.
fn refuse_too_large(training: Training, options: &Options) -> Result<()> {
    let (Some(available), Some(resident)) = (available(options), memory::resident_memory()) else {
        return Ok(());
    };
    let needed = resident + training.kept + training.gradient;
    let too_large = memory::TooLarge::one(needed, available);
    match too_large.needed > available {
        true => Err(resources::refusal(&too_large, options).into()),
        false => Ok(()),
    }
}

/// The memory that is available to a run, if it is on the CPU and the system reports it.
fn available(options: &Options) -> Option<u64> {
    let is_on_cpu = options.all_devices().0 == DeviceSpec::Flex;
    is_on_cpu.then(available_memory).flatten()
}

/// Rehearses micro-batches, to announce the memory of the run and to take the largest that fits; a
/// resumed run takes that of the run before, if it fits. `None` if memory is not known.
fn plan<M: Denoiser<4, Condition: 'static>>(
    unet: &M,
    pairs: &PairSampler<4, M::Condition>,
    training: Training,
    (model, options): (&Model, &Options),
    progress: &dyn Progress,
) -> Result<Option<MemoryPlan>> {
    let Some(available) = available(options) else {
        return Ok(None);
    };
    progress.phase("measuring the memory of a step");
    // The rows of a step are those of the method; steering and answers do not change them.
    let rehearsed = Options {
        method: Way::Method(options.method.method().unwrap_or_default()),
        clipper: None,
        devices: None,
        ..options.clone()
    };
    let settings = rehearsed.settings([model.parameters, model.trained], model.format)?;
    let mut trainer = builder(
        precision::of_training(unet.clone(), options),
        pairs.retain().clone(),
        (None, None::<Surrogate<4>>),
        &model.process,
        (&rehearsed, &settings),
    )?
    .build()?;
    let batch = pairs.batch(0, options.batch)?;
    let mut rehearse = |batch: &UnlearningBatch<4, M::Condition>, rows| -> Result<_> {
        let seen = memory::watched(|| trainer.rehearse(batch, rows))?;
        seen.ok_or_else(|| "the system does not report the memory of this program".into())
    };
    let least = match quarter(unet, &batch)? {
        Some(quarter) => training.least(&rehearse(&quarter, 1)?),
        None => 0,
    };
    if least > available {
        let too_large = memory::TooLarge::one(least, available);
        return Err(resources::refusal(&too_large, options).into());
    }
    let rehearse = |rows| rehearse(&batch, rows);
    let wanted = wanted(options, model.format)?;
    match memory::plan(wanted, training, available, rehearse)? {
        Ok(plan) => Ok(Some(plan)),
        Err(too_large) => Err(resources::refusal(&too_large, options).into()),
    }
}

/// Runs what the measurements run at a time, on control points and on retained pictures: the model,
/// what makes a picture of a point, and the networks of FID and SSCD. Returns what these cost, and
/// the memory before and at most, if the system reports it.
fn rehearse_measuring<S: Subject>(
    (subject, model): (&S, &S::Model),
    (probe, samples): (&Probe, usize),
    (control, retained): (&Points<ConditionOf<S>>, &Tensor<4>),
    networks: &PublishedNetworks,
) -> siss::Result<(Costs, Option<[u64; 2]>)> {
    let most = samples.max(control.count());
    let rows = 0..most.min(probe.at_once());
    let rows: Vec<usize> = rows.map(|row| row % control.count()).collect();
    let Points {
        points, condition, ..
    } = control.rows(&rows);
    let middle = probe.process().num_timesteps() / 2;
    let pass = || {
        probe.seconds_per_image(model, (&points, &condition), middle)?;
        subject.space().pictures(&points.clone().narrow(0, 0, 1))?;
        networks.trial(retained)
    };
    Ok(match memory::watched(pass)? {
        Some(seen) => (seen.result, Some(seen.resident)),
        None => (pass()?, None),
    })
}

/// A quarter of a batch's images, if the model takes them: a pass over one shows that a whole one
/// cannot fit, before the memory is used up.
fn quarter<M: Denoiser<4>>(
    unet: &M,
    batch: &UnlearningBatch<4, M::Condition>,
) -> Result<Option<UnlearningBatch<4, M::Condition>>> {
    let [_, channels, height, width] = batch.retain().dims();
    let shape = [1, channels, height / 2, width / 2];
    if shape.contains(&0) || unet.check_input(shape).is_err() {
        return Ok(None);
    }
    let part = |points: &Tensor<4>| points.clone().slice(shape.map(|side| 0..side));
    let first = |side| batch.condition(side).take_rows(&[0]);
    let quarter = UnlearningBatch::with_conditions(
        part(batch.retain()),
        part(batch.forget()),
        first(Side::Retain),
        first(Side::Forget),
    )?;
    Ok(Some(quarter))
}

/// The micro-batch that is wanted: that of the run which is resumed, unless another is requested.
fn wanted(options: &Options, format: Format) -> Result<Wanted> {
    let mut wanted = options.wanted(format);
    let before = checkpoint_folder(&options.out).join(PLAN);
    if options.checkpointing.resume && !wanted.is_firm && before.exists() {
        let plan: MemoryPlan = serde_json::from_str(&files::read_text(&before)?)
            .map_err(|error| format!("{}: {error}", path_text(&before)))?;
        wanted.most = plan.micro_batch.max(1);
    }
    Ok(wanted)
}

/// Saves the first generated images as single files, if requested.
fn save_samples<S: Subject>(
    examiner: &Examiner<'_, S>,
    model: &S::Model,
    evaluated: &Evaluated,
    options: &Options,
    folder: &Path,
    progress: &dyn Progress,
) -> Result<()> {
    let Some(count) = options.save_samples else {
        return Ok(());
    };
    let done = |done| progress.phase(&format!("saving samples: {done} of {count}"));
    let save = |first, images| pictures::single(folder, first, images, count);
    Ok(examiner.each_sample(model, &evaluated.generated, count, done, save)?)
}

/// Saves the unlearned model as it came: a folder with everything else of the original, or a file.
fn save_model<S: Subject>(
    (subject, model): (&S, &S::Model),
    source: &Source,
    options: &Options,
    settings: &Settings,
    results: &ResultFolder,
    progress: &dyn Progress,
) -> Result<()> {
    let target = match (options.target, options.method) {
        (Target::Retrained, Way::Counterfactual) => {
            ", to the answers that a model retrained without them is predicted to give"
        }
        (Target::Retrained, _) => {
            ", to the loss that a model retrained without them is predicted to have"
        }
        (Target::None, _) => "",
    };
    let note = format!(
        "by the example `unlearn` with the method `{}`{target}; {} steps of {}, learning rate {:e}{}, seed {}.",
        options.method,
        options.steps,
        options.batch,
        settings.learning_rate,
        options.rate_change(),
        options.seed
    );
    let folder = results.path().join("model");
    let left_out = subject.save(model, source, &folder, &note)?;
    for left_out in left_out.iter().take(MOST_NAMED) {
        progress.say(&format!(
            "note: not in the unlearned model's folder: {left_out}"
        ));
    }
    if left_out.len() > MOST_NAMED {
        let more = left_out.len() - MOST_NAMED;
        progress.say(&format!("note: and {more} more"));
    }
    Ok(())
}

/// The number of images run at a time in measurements.
fn chunks(options: &Options, settings: &Settings, format: Format) -> Chunks {
    Chunks {
        rows: settings.measured_at_a_time,
        ..Chunks::of_pictures(format.height * format.width, options.all_devices().0)
    }
}

fn forgotten_images(
    data: &Data,
    words: &[String],
    [before, after]: [&Evaluated; 2],
    predicted: Option<&predicted::Figures>,
) -> Vec<ForgottenImage> {
    let measured = before.each.iter().zip(&after.each);
    let forget = &data.forget;
    let images = forget.files().iter().zip(forget.mirrored()).zip(measured);
    images
        .enumerate()
        .map(
            |(id, ((file, &mirrored), (&before, &after)))| ForgottenImage {
                file: file.clone(),
                mirrored,
                condition: words.get(id).cloned(),
                before,
                after,
                predicted: predicted.and_then(|predicted| predicted.each.get(id).copied()),
            },
        )
        .collect()
}
