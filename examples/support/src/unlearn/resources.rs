//! The resources that a run needs, announced before it starts.

use siss::backend::DeviceSpec;
use siss::files::path_text;
use siss::images::{Account, Images};

use crate::progress::duration;
use crate::target::{REFERENCES, Target};
use crate::unlearn::data::Data;
use crate::unlearn::evaluate::Measuring;
use crate::unlearn::job::Model;
use crate::unlearn::memory::{MemoryPlan, TooLarge, Training, peak_memory};
use crate::unlearn::options::{Options, Protocol, Settings};
use crate::way::Way;

/// The gradients of the two sides.
const GRADIENTS: usize = 2;
const BYTES_A_NUMBER: usize = 4;

/// The facts known before anything is run, one line per item.
pub fn announcement(
    options: &Options,
    settings: &Settings,
    model: &Model,
    data: &Data,
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
        "run      {}{}, {} steps of {}, learning rate {:e}{}{origin}, seed {}",
        options.method,
        match (options.method, options.target) {
            (Way::Counterfactual, _) => ", to the answers of a retrained model",
            (_, Target::Retrained) => ", to the level of a retrained model",
            (_, Target::None) => "",
        },
        options.steps,
        options.batch,
        settings.learning_rate,
        options.rate_change(),
        options.seed,
    ));
    lines
}

/// Memory of the steps beyond that of a single pass. `samples`: generated images, before or after.
pub fn of_training(options: &Options, model: &Model, data: &Data, samples: usize) -> Training {
    let stored = Stored::of(options);
    let gradient = stored.weights * model.trained as u64;
    let teacher = match options.method {
        Way::Counterfactual => gradient,
        Way::Method(_) | Way::SissToLevel => 0,
    };
    let state = stored.state * model.trained as u64;
    let shown = data.forget.len() + data.control.len() + 2 * samples;
    let later = numbers(shown * model.format.values()) + references(options, model, data);
    let on_host = options.all_devices().1.iter();
    let on_host = on_host.filter(|&&spec| spec == DeviceSpec::Flex).count();
    let measuring = state + teacher + later;
    Training {
        kept: measuring + (GRADIENTS - 1) as u64 * gradient,
        measuring,
        gradient,
        replicas: [on_host as u64, of_a_replica(stored, model)],
    }
}

/// The retained images that answers are made up of.
fn references(options: &Options, model: &Model, data: &Data) -> u64 {
    match options.method {
        Way::Counterfactual => numbers(data.retain.len().min(REFERENCES) * model.format.values()),
        Way::Method(_) | Way::SissToLevel => 0,
    }
}

/// Weights and gradients, and one of these as a vector in f32.
fn of_a_replica(stored: Stored, model: &Model) -> u64 {
    let gradients = GRADIENTS as u64 * stored.weights * model.trained as u64;
    stored.weights * model.parameters as u64 + gradients + numbers(model.trained)
}

/// Bytes per parameter.
#[derive(Debug, Clone, Copy)]
struct Stored {
    /// Of weights, and of each gradient.
    weights: u64,
    /// Of what the optimiser keeps: two moments, and the copy in f32 of weights in bf16.
    state: u64,
}

impl Stored {
    fn of(options: &Options) -> Self {
        match options.bf16_weights {
            true => Self {
                weights: 2,
                state: 12,
            },
            false => Self {
                weights: 4,
                state: 8,
            },
        }
    }
}

/// The bytes of numbers.
fn numbers(count: usize) -> u64 {
    (count * BYTES_A_NUMBER) as u64
}

/// The memory of the run and the images run at a time, in a line, and the time of the steps in
/// another, if a pass was measured.
///
/// `besides`: what is kept besides the model and the points, with its bytes.
pub fn memory(
    options: &Options,
    settings: &Settings,
    model: &Model,
    data: &Data,
    (plan, besides): (Option<&MemoryPlan>, &[(&str, u64)]),
) -> Vec<String> {
    let parts = parts(options, model, data, besides);
    let rows = settings.micro_batch.min(options.batch);
    let Some(plan) = plan else {
        return vec![format!(
            "memory   {parts}; activations of {rows} at a time (by their size) come on top, because the memory of the device is not known"
        )];
    };
    let why = match options.micro_batch {
        Some(_) => "",
        None if rows < options.wanted(model.format).most => ", the most that fit",
        None => "",
    };
    let how = match plan.measured {
        1 => "one was run to measure it".into(),
        measured => format!("1 and {measured} were run to measure it"),
    };
    let steps = plan.seconds_per_step * options.steps as f64;
    vec![
        format!(
            "memory   about {} at most, of {} that are available: {parts}; the rest for the program and activations of {rows} at a time{why} ({how})",
            bytes(plan.announced_memory_bytes),
            bytes(plan.available_memory_bytes),
        ),
        format!(
            "time     at least about {} for the steps, judging from this; checks and measurements come on top",
            duration(steps)
        ),
    ]
}

/// The time of the measurements and of the steps in a line.
pub fn measuring(
    measuring: &Measuring,
    looks: usize,
    steps: usize,
    plan: Option<&MemoryPlan>,
) -> String {
    // A resumed run checks the model as well, in the first step that it takes.
    let steps = plan.map(|plan| {
        let seconds = plan.seconds_per_step * steps as f64 + plan.checked as f64 * measuring.each;
        format!("; at least about {} for the steps", duration(seconds))
    });
    format!(
        "time     about {} to measure before, after and {looks} times on the way, {} through the model{}{}",
        duration(measuring.announced_seconds),
        images(measuring.images),
        match measuring.described {
            0 => String::new(),
            described => format!(" and {described} through the networks of FID and SSCD"),
        },
        steps.unwrap_or_default(),
    )
}

/// The parts of the memory that follow from the sizes of model and images.
fn parts(options: &Options, model: &Model, data: &Data, besides: &[(&str, u64)]) -> String {
    let kept = [&data.forget, &data.retain, &data.control];
    let kept = numbers(kept.into_iter().map(Images::len).sum::<usize>() * model.format.values());
    let explaining = match references(options, model, data) {
        0 => String::new(),
        size => format!("; {} for those that answers are made up of", bytes(size)),
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
            bytes(of_a_replica(Stored::of(options), model))
        ),
    };
    format!(
        "{}{replicas}; {} for the images{explaining}{besides}",
        of_parameters(options, model),
        bytes(kept),
    )
}

/// What the parameters take on the device of the model, and elsewhere.
fn of_parameters(options: &Options, model: &Model) -> String {
    let stored = Stored::of(options);
    let (what, copies) = match options.method {
        Way::Counterfactual => ("weights before and now", 2),
        Way::Method(_) | Way::SissToLevel => ("weights", 1),
    };
    let [all, trained] = [model.parameters, model.trained].map(|count| count as u64);
    let weights = stored.weights * (all + (copies - 1) * trained);
    let gradients = GRADIENTS as u64 * stored.weights * trained;
    let state = stored.state * trained;
    let (what, kept) = match options.bf16_weights {
        true => (format!("{what} in bf16"), "two moments and a copy in f32"),
        false => (what.into(), "two moments"),
    };
    // On the host itself there is nothing to save.
    if options.moments_on_host && options.all_devices().0 != DeviceSpec::Flex {
        return format!(
            "{} for {what}, two gradients and {kept} of one parameter at a time, with {} of the host's for those of all",
            bytes(weights + gradients),
            bytes(state),
        );
    }
    let list = match options.bf16_weights {
        true => format!("two gradients, {kept}"),
        false => "two moments and two gradients".into(),
    };
    format!("{} for {what}, {list}", bytes(weights + gradients + state))
}

/// The error for a run that does not fit, with the ways to make it smaller.
pub fn refusal(too_large: &TooLarge, options: &Options) -> String {
    let &TooLarge {
        micro_batch,
        needed,
        available,
    } = too_large;
    let mut remedies = Vec::new();
    if micro_batch > 1 {
        remedies.push("a smaller --micro-batch");
    }
    if !options.recompute {
        remedies.push("--recompute, which stores fewer activations");
    }
    let conditions = &options.conditions;
    if conditions.lora.is_none() && conditions.lora_rank.is_none() {
        remedies.push("--lora-rank, which trains few parameters, for a model that takes it");
    }
    remedies.push("smaller images, or more memory");
    format!(
        "the run would take about {} with {} at a time, but {} are available; take {}",
        bytes(needed),
        images(micro_batch),
        bytes(available),
        remedies.join("; or ")
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use siss::images::{Format, Transparency};
    use siss::process::SchedulerConfig;

    use crate::process::Process;

    #[test]
    fn what_the_parameters_take_is_announced_where_it_is() {
        let model = Model {
            parameters: 100_000_000,
            trained: 50_000_000,
            format: Format {
                height: 64,
                width: 64,
                channels: 3,
                is_configured: true,
                range: [-1.0, 1.0],
                transparency: Transparency::default(),
            },
            process: Process::Steps(SchedulerConfig::default()),
        };
        let said = |more: &str| {
            let words = format!("unlearn --model m --forget f --retain r --out o {more}");
            let options = Options::try_parse_from(words.split_whitespace()).unwrap();
            of_parameters(&options, &model)
        };
        let everything = "1.2 GB for weights, two moments and two gradients";
        let method = "--method siss";
        assert_eq!(said(&format!("{method} --device wgpu")), everything);
        assert_eq!(said(&format!("{method} --moments-on-host")), everything);
        let split = said(&format!("{method} --device wgpu --moments-on-host"));
        assert!(
            split.starts_with("800 MB for weights, two gradients"),
            "{split}"
        );
        assert!(
            split.ends_with("with 400 MB of the host's for those of all"),
            "{split}"
        );
        // 2 bytes of 100 million weights, 4 of 50 million in gradients, 12 of them in the state.
        let narrow = said(&format!("{method} --bf16-weights"));
        let state = "two gradients, two moments and a copy in f32";
        assert_eq!(narrow, format!("1.0 GB for weights in bf16, {state}"));
        let narrow = said(&format!(
            "{method} --bf16-weights --device wgpu --moments-on-host"
        ));
        assert!(narrow.starts_with("400 MB for weights in bf16"), "{narrow}");
        assert!(
            narrow.ends_with("with 600 MB of the host's for those of all"),
            "{narrow}"
        );
        let answers = said("--device wgpu --moments-on-host");
        assert!(
            answers.starts_with("1.0 GB for weights before and now"),
            "{answers}"
        );
    }

    #[test]
    fn a_refusal_names_the_remedies_that_are_left() {
        let refused = |more: &str, micro_batch| {
            let words = format!("unlearn --model m --forget f --retain r --out o {more}");
            let options = Options::try_parse_from(words.split_whitespace()).unwrap();
            let too_large = TooLarge {
                micro_batch,
                needed: 30_000_000_000,
                available: 16_000_000_000,
            };
            refusal(&too_large, &options)
        };
        let text = refused("--micro-batch 4", 4);
        for part in [
            "30.0 GB with 4 images",
            "16.0 GB",
            "smaller --micro-batch",
            "--recompute",
            "--lora",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = refused("--recompute --lora l.safetensors", 1);
        for part in ["--micro-batch", "--recompute", "--lora"] {
            assert!(!text.contains(part), "{part}: {text}");
        }
    }
}
