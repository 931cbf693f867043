//! Measures the cost of one optimiser step, for each objective and for an ordinary training step:
//! `cargo run --release --example step_cost -- --workload digits --batch 16`.
//!
//! Prints one JSON line. The variants take turns in each round, so that a change of the machine's
//! speed affects all of them equally; a ratio is the median of the rounds' ratios.
//! `benches/torch_step.py` prints the same for PyTorch. With `--launches` it prints how many
//! kernels a step launches on a GPU, and how many numbers one unit of a kernel adds; with
//! `--memory` and `--storage`, what steps take and where they lead.

mod launches;
mod plain;
mod report;
mod storage;
mod workload;

use std::error::Error;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use serde::Serialize;
use siss::backend::DeviceSpec;
use siss::burn::module::Module;
use siss::burn::tensor::Device;
use siss::models::use_flex_kernels;
use siss::{Method, PairSampler, SissTrainer};
use siss_support::clock::Clock;

use crate::launches::Launches;
use crate::plain::PlainTrainer;
use crate::report::Report;
use crate::storage::Storage;
use crate::workload::{Network, Workload};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Steps of each variant before the measurement: they check the model and fill the allocator.
const WARM_UP: usize = 2;

/// Measures what an optimiser step costs.
#[derive(Parser, Debug, Clone)]
pub struct Arguments {
    #[arg(long, value_enum, default_value_t = Workload::Digits)]
    workload: Workload,

    /// Pairs in a step.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Rounds; each runs every variant once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,

    #[arg(long, default_value = "flex")]
    device: DeviceSpec,

    /// First channels of the networks of colour pictures and latents [default: 128 for faces256, 64
    /// for text, else 32].
    #[arg(long)]
    width: Option<usize>,

    /// Runs the network in bf16; weights, loss and optimiser stay f32.
    #[arg(long)]
    bf16: bool,

    /// CPU threads [default: all].
    #[arg(long)]
    threads: Option<usize>,

    /// Which time is measured: wall time, or the running time of all threads together. On a
    /// machine that others use as well, with one thread, the second is the step's own time.
    #[arg(long, value_enum, default_value_t = Clock::Wall)]
    clock: Clock,

    /// Whose operations the network runs on the CPU: the crate's or burn's. With `both`, an
    /// ordinary step and a SISS step on burn's are measured in addition.
    #[arg(long, value_enum, default_value_t = Kernels::Siss)]
    kernels: Kernels,

    /// Variants, separated by commas [default: all but naive-deletion].
    #[arg(long, value_enum, value_delimiter = ',')]
    variant: Vec<Variant>,

    /// Gradient checkpointing in the trainer of the objectives.
    #[arg(long)]
    checkpointing: bool,

    /// Prints the peak memory of each variant instead, each in a process of its own.
    #[arg(long)]
    memory: bool,

    /// Prints instead how many kernels an ordinary step and a SISS step launch on a GPU, their
    /// names, and how many numbers one unit of each adds.
    #[arg(long, conflicts_with = "memory")]
    launches: bool,

    /// Prints instead, for each way to store weights and the optimiser's state, the peak memory of
    /// SISS steps and where the parameters are after them, each in a process of its own.
    #[arg(long, conflicts_with_all = ["memory", "launches"])]
    storage: bool,

    /// The same for one way, in this process.
    #[arg(long, value_enum, hide = true)]
    stored: Option<Storage>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernels {
    Siss,
    Burn,
    Both,
}

/// What is measured.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// An ordinary training step.
    Plain,
    /// SISS with the defaults.
    Siss,
    /// SISS without thinning.
    SissExact,
    SissNoIs,
    Bernoulli,
    /// An ordinary training step by the trainer, whose only term is the retained points'.
    NaiveDeletion,
    /// An ordinary training step on burn's operations.
    PlainBurn,
    /// SISS on burn's operations.
    SissBurn,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Siss => "siss",
            Variant::SissExact => "siss-exact",
            Variant::SissNoIs => "siss-no-is",
            Variant::Bernoulli => "bernoulli",
            Variant::NaiveDeletion => "naive-deletion",
            Variant::PlainBurn => "plain-burn",
            Variant::SissBurn => "siss-burn",
        }
    }

    fn on_burn(self) -> bool {
        matches!(self, Variant::PlainBurn | Variant::SissBurn)
    }

    /// Method and thinning threshold; `None` for an ordinary step.
    fn objective(self) -> Option<(Method, f64)> {
        match self {
            Variant::Plain | Variant::PlainBurn => None,
            Variant::Siss | Variant::SissBurn => Some((Method::Siss, 1.0)),
            Variant::SissExact => Some((Method::Siss, 0.0)),
            Variant::SissNoIs => Some((Method::SissNoIs, 1.0)),
            Variant::Bernoulli => Some((Method::Bernoulli, 1.0)),
            Variant::NaiveDeletion => Some((Method::NaiveDeletion, 1.0)),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let line = match &arguments {
        Arguments {
            stored: Some(storage),
            ..
        } => storage::one(&arguments, *storage),
        Arguments { storage: true, .. } => storage::all(&arguments),
        Arguments { memory: true, .. } => memory(&arguments),
        Arguments { launches: true, .. } => count_launches(&arguments),
        _ => measure(&arguments),
    };
    match line {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    fn variants(&self) -> Vec<Variant> {
        let wanted = |variant: &Variant| match self.variant.is_empty() {
            true if *variant == Variant::NaiveDeletion => false,
            true => !variant.on_burn() || self.kernels == Kernels::Both,
            false => self.variant.contains(variant),
        };
        let all = Variant::value_variants().iter().copied();
        all.filter(wanted).collect()
    }
}

/// One variant's trainer, its times, and the rows per sample of its steps.
pub struct Runner {
    pub variant: Variant,
    trainer: Trainer,
    pub seconds: Vec<f64>,
    pub rows: Vec<f64>,
}

enum Trainer {
    Plain(Box<PlainTrainer>),
    Unlearning(Box<SissTrainer<Network, 4>>),
}

impl Runner {
    fn new(variant: Variant, network: &Network, arguments: &Arguments) -> Result<Self> {
        let (network, scheduler) = (network.clone(), arguments.workload.scheduler()?);
        let trainer = match variant.objective() {
            None => Trainer::Plain(Box::new(PlainTrainer::new(network, scheduler))),
            Some((method, thin_below)) => {
                let builder = SissTrainer::builder(network, scheduler)
                    .method(method)
                    .thin_below(thin_below)
                    .gradient_checkpointing(arguments.checkpointing);
                Trainer::Unlearning(Box::new(builder.learning_rate(5e-6).build()?))
            }
        };
        Ok(Self {
            variant,
            trainer,
            seconds: Vec::new(),
            rows: Vec::new(),
        })
    }

    /// Runs one step, from taking the batch to the last operation on the device.
    fn step(&mut self, pairs: &PairSampler<4>, round: usize, arguments: &Arguments) -> Result<()> {
        let device = pairs.retain().device();
        use_flex_kernels(arguments.kernels != Kernels::Burn && !self.variant.on_burn());
        device.sync()?;
        let began = arguments.clock.now()?;
        let batch = pairs.batch(round as u64, arguments.batch as usize)?;
        let rows = match &mut self.trainer {
            Trainer::Plain(trainer) => {
                trainer.step(batch.retain().clone())?;
                1.0
            }
            Trainer::Unlearning(trainer) => trainer.step(batch)?.rows_per_sample(),
        };
        device.sync()?;
        if round >= WARM_UP {
            self.seconds.push(arguments.clock.now()? - began);
            self.rows.push(rows);
        }
        Ok(())
    }
}

/// Measures the times of all variants; returns a JSON line.
fn measure(arguments: &Arguments) -> Result<String> {
    limit_threads(arguments)?;
    let device = arguments.device.device()?;
    let (network, pairs) = prepare(arguments, &device)?;
    let variants = arguments.variants().into_iter();
    let mut runners = variants
        .map(|variant| Runner::new(variant, &network, arguments))
        .collect::<Result<Vec<_>>>()?;
    for round in 0..WARM_UP + arguments.runs as usize {
        for runner in &mut runners {
            runner.step(&pairs, round, arguments)?;
        }
    }
    let report = Report::new(arguments, &runners, network.num_params());
    Ok(serde_json::to_string(&report)?)
}

fn limit_threads(arguments: &Arguments) -> Result<()> {
    if let Some(threads) = arguments.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()?;
    }
    Ok(())
}

/// Counts the launches of an ordinary step and a SISS step; returns a JSON line.
fn count_launches(arguments: &Arguments) -> Result<String> {
    let device = arguments.device.device()?;
    let (network, pairs) = prepare(arguments, &device)?;
    let count = |variant| -> Result<_> {
        let mut runner = Runner::new(variant, &network, arguments)?;
        for round in 0..WARM_UP {
            runner.step(&pairs, round, arguments)?;
        }
        launches::observed(|| runner.step(&pairs, WARM_UP, arguments))
    };
    let launches = Launches::new(
        count(Variant::Plain)?,
        count(Variant::NaiveDeletion)?,
        count(Variant::Siss)?,
    );
    Ok(serde_json::to_string(&launches)?)
}

fn prepare(arguments: &Arguments, device: &Device) -> Result<(Network, PairSampler<4>)> {
    let (unet, [channels, height, width]) = arguments.workload.network(arguments.width, device)?;
    let shape = [arguments.batch as usize, channels, height, width];
    let bf16 = arguments.bf16;
    let network = Network { unet, bf16 };
    Ok((network, arguments.workload.pairs(shape, device)?))
}

/// Measures the peak memory of each variant; returns a JSON line. The high-water mark of a process
/// never falls, so each variant has its own process.
fn memory(arguments: &Arguments) -> Result<String> {
    let mut peaks = serde_json::Map::new();
    for variant in arguments.variants() {
        let output = Command::new(std::env::current_exe()?)
            .args(own_arguments())
            .args(["--variant", variant.name()])
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        peaks.insert(
            format!("{}_mib", variant.name()),
            report["peak_mib"].clone(),
        );
        peaks.insert("gradient_mib".into(), report["gradient_mib"].clone());
    }
    Ok(serde_json::to_string(&peaks)?)
}

/// This process's arguments, except those that select the variants and the kind of measurement.
fn own_arguments() -> Vec<String> {
    let mut own = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--variant" => drop(arguments.next()),
            "--memory" | "--storage" => {}
            other if other.starts_with("--variant=") => {}
            _ => own.push(argument),
        }
    }
    own
}
