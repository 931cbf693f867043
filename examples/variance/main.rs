//! Measures the effect of thinning, fixed allocation and low-discrepancy timesteps on the variance
//! of the two gradients, and where importance weights matter:
//! `cargo run --release --example variance`.
//!
//! Each estimator estimates the bundled model's gradients many times, from separate batches and
//! draws. Writes one line per estimator to a CSV file, and the table of a Markdown page; and the
//! weights' variance at every timestep, measured and from the closed form, to another CSV file and
//! a plot.

mod estimator;
mod moments;
mod table;
mod weights;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use siss::PairSampler;
use siss::burn::tensor::Device;
use siss::models::UNet2d;
use siss_support::progress::{Bar, Progress};
use siss_support::{digits, lines, page};

use crate::estimator::{Estimator, Figures};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures the variance of the gradients.
#[derive(Parser, Debug)]
pub struct Arguments {
    /// Gradients of each estimator.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=100_000))]
    gradients: u64,

    /// Pairs in a gradient.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=4096))]
    batch: u64,

    /// Pairs whose weights are measured at each timestep.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=9000))]
    pairs: u64,

    /// Where CSV files and plot are written.
    #[arg(long, value_name = "DIR", default_value = "docs/results")]
    out: PathBuf,

    /// The page whose table is written.
    #[arg(long, value_name = "FILE", default_value = "docs/performance.md")]
    page: PathBuf,
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
    let (assets, device) = (Path::new(digits::ASSETS), Device::flex());
    let model = UNet2d::load(assets.join("base"), &device)?;
    let digits = digits::load_digits(assets, &device)?.retain;
    let pairs = PairSampler::new(digits, digits::load_tshirt(assets, &device)?, 0)?;

    let progress = Bar::new()?;
    progress.phase("weights");
    let curves = weights::curves(&pairs, arguments.pairs as usize)?;
    lines::write(&arguments.out.join("weights.csv"), &curves)?;
    weights::plot(&curves).save(arguments.out.join("weights.svg"))?;

    let figures = measure_all(&model, &pairs, arguments, &progress)?;
    lines::write(&arguments.out.join("variance.csv"), &figures)?;
    progress.finish();
    let table = table::table(&figures);
    println!("{table}");
    page::write(&arguments.page, "variance", &table)
}

fn measure_all(
    model: &UNet2d,
    pairs: &PairSampler<4>,
    arguments: &Arguments,
    progress: &Bar,
) -> Result<Vec<Figures>> {
    let (mut all, mut first) = (Vec::new(), None);
    for estimator in Estimator::all() {
        let (objective, draws) = (estimator.objective(), estimator.draws());
        progress.phase(&format!("{objective}, {draws}"));
        let measured = estimator.measure(model, pairs, arguments)?;
        let first = first.get_or_insert(measured.clone());
        all.push(estimator.figures(&measured, first, arguments));
    }
    Ok(all)
}
