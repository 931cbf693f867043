//! The resources that a run needs, announced before it starts.

use std::fs;

use siss::backend::DeviceSpec;
use siss::files::path_text;
use siss::images::{Account, Images};

use crate::progress::duration;
use crate::target::{REFERENCES, Target};
use crate::unlearn::data::Data;
use crate::unlearn::job::Model;
use crate::unlearn::options::{Options, Protocol, Settings};
use crate::way::Way;

/// Numbers per trained parameter besides the weight: the two moments of AdamW and the gradients of
/// the two sides.
const NUMBERS_OF_TRAINING: usize = 4;
/// The same on a further device: the gradients, and one of them as a vector.
const NUMBERS_OF_A_REPLICA: usize = 3;
const BYTES_A_NUMBER: usize = 4;

/// The facts known before the first measurement, one line per item.
///
/// `kept`: what is kept besides the model and the points, with its bytes.
pub fn announcement(
    options: &Options,
    settings: &Settings,
    model: &Model,
    data: &Data,
    kept: &[(&str, u64)],
) -> Vec<String> {
    let format = model.format;
    let size = format!("{}x{}", format.height, format.width);
    let colour = if format.channels == 1 { "grey" } else { "RGB" };
    let (forget, [trained, mirrored]) = (data.forget.len(), data.trained_on());
    let pairs = options.steps.saturating_mul(options.batch);
    let mut lines = vec![
        format!(
            "model    {}: {:.1} million parameters, images of {size} in {colour}, {} timesteps, predicts {}",
            path_text(&options.model),
            model.parameters as f64 / 1e6,
            model.process.num_timesteps(),
            name(&model.process.prediction_type()),
        ),
        format!(
            "forget   {}: {}{}",
            path_text(&options.forget),
            images(forget - data.forget.mirrors()),
            mirrors(data.forget.mirrors())
        ),
    ];
    let files = &data.accounts;
    lines.extend(said(&files.forget));
    lines.push(format!(
        "retain   {}: {} of {}{} to train on",
        path_text(&options.retain),
        trained,
        images(data.retain_found),
        mirrors(mirrored)
    ));
    lines.extend(data.stream.iter().flat_map(|stream| stream.lines(data)));
    lines.extend(said(&files.retain));
    lines.push(format!(
        "control  {}: {} to compare with, never trained on here{}",
        path_text(options.control.as_ref().unwrap_or(&options.retain)),
        images(data.control.len()),
        match options.control {
            Some(_) => "",
            None => "; better: images that the model was never trained on (--control)",
        },
    ));
    lines.extend(files.control.iter().flat_map(said));
    if forget > pairs {
        lines.push(format!(
            "         {} of {} {} only {pairs} of the images to forget: take more steps",
            counted(options.steps, "step"),
            counted(options.batch, "pair"),
            if options.steps == 1 {
                "covers"
            } else {
                "cover"
            },
        ));
    }
    let origin = match options.learning_rate {
        None if options.protocol == Protocol::Quick => " (by the model's size)",
        _ => "",
    };
    lines.push(format!(
        "run      {}{}, {} steps of {}, {} at a time, learning rate {:e}{}{origin}, seed {}",
        options.method,
        match (options.method, options.target) {
            (Way::Counterfactual, _) => ", to the answers of a retrained model",
            (_, Target::Retrained) => ", to the level of a retrained model",
            (_, Target::None) => "",
        },
        options.steps,
        options.batch,
        settings.micro_batch.min(options.batch),
        settings.learning_rate,
        options.rate_change(),
        options.seed,
    ));
    lines.push(memory(options, model, data, kept));
    lines
}

/// What is kept during the run. Answers take the model before it, and retained images on the host.
fn memory(options: &Options, model: &Model, data: &Data, besides: &[(&str, u64)]) -> String {
    let images = |count: usize| (count * model.format.values() * BYTES_A_NUMBER) as u64;
    let weights = |copies: usize, of_training: usize| {
        let numbers = model.parameters * copies + model.trained * of_training;
        (numbers * BYTES_A_NUMBER) as u64
    };
    let kept = [&data.forget, &data.retain, &data.control];
    let kept = images(kept.into_iter().map(Images::len).sum());
    let (what, copies, explaining) = match options.method {
        Way::Counterfactual => {
            let used = images(data.retain.len().min(REFERENCES));
            let explaining = format!("; {} for those that answers are made up of", bytes(used));
            ("weights before and now", 2, explaining)
        }
        Way::Method(_) | Way::SissToLevel => ("weights", 1, String::new()),
    };
    let ahead = data
        .stream
        .iter()
        .map(|stream| ("images decoded ahead", stream.bytes_ahead(options.batch)));
    let besides = besides
        .iter()
        .copied()
        .chain(ahead)
        .map(|(what, size)| format!("; {} for {what}", bytes(size)));
    let besides: String = besides.collect();
    let replicas = match options.all_devices().1.len() {
        0 => String::new(),
        count => format!(
            ", on each of {count} further devices {} for weights and gradients",
            bytes(weights(1, NUMBERS_OF_A_REPLICA))
        ),
    };
    format!(
        "memory   {} for {what}, two moments and two gradients{replicas}; {} for the images{explaining}{besides}; activations come on top",
        bytes(weights(copies, NUMBERS_OF_TRAINING)),
        bytes(kept),
    )
}

/// The account of a folder's files, as lines below the folder's line.
fn said(account: &Account) -> Vec<String> {
    let lines = account.lines().into_iter();
    lines.map(|line| format!("         {line}")).collect()
}

fn mirrors(count: usize) -> String {
    match count {
        0 => String::new(),
        1 => " and its mirror image".into(),
        _ => format!(" and {count} mirror images"),
    }
}

/// Predicts how long the run will take, from the first measurement and the first two steps.
pub struct Forecast {
    steps: usize,
    measuring: f64,
    took: Vec<f64>,
    is_on_cpu: bool,
}

impl Forecast {
    /// A forecast for a run whose first measurement took `measuring_seconds`.
    pub fn new(options: &Options, measuring_seconds: f64) -> Self {
        Self {
            steps: options.steps,
            measuring: measuring_seconds,
            took: Vec::new(),
            is_on_cpu: options.all_devices().0 == DeviceSpec::Flex,
        }
    }

    /// The forecast, returned once, after the second step. The first step is slower because it also
    /// checks the model.
    pub fn after_step(&mut self, seconds: f64) -> Option<String> {
        self.took.push(seconds);
        let &[first, second] = &self.took[..] else {
            return None;
        };
        let total = first + second * (self.steps - 1) as f64;
        let memory = match peak_memory().filter(|_| self.is_on_cpu) {
            Some(peak) => format!("; {} of memory at most so far", bytes(peak)),
            None => String::new(),
        };
        Some(format!(
            "time     {} steps, about {}, judging from the first two; then about {} to measure again{memory}\n",
            self.steps,
            duration(total),
            duration(self.measuring),
        ))
    }
}

/// Peak memory of the process, if the system reports it (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kibibytes)
}

/// A size in decimal units, as text.
pub fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        small if small < 1e9 => format!("{:.0} MB", small / 1e6),
        large => format!("{:.1} GB", large / 1e9),
    }
}

/// A number of images in words.
pub fn images(count: usize) -> String {
    counted(count, "image")
}

fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// The name of a value in JSON.
fn name(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value)
        .unwrap_or_default()
        .trim_matches('"')
        .into()
}
