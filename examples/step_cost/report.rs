//! The JSON line with the results.

use serde::Serialize;
use siss::backend::DeviceSpec;
use siss_support::clock::Clock;

use crate::workload::Workload;
use crate::{Arguments, Kernels, Runner, Variant};

/// Medians in seconds, medians of the rounds' ratios, and the conditions of the measurement.
#[derive(Debug, Serialize)]
pub struct Report {
    plain: Option<f64>,
    siss: Option<f64>,
    siss_exact: Option<f64>,
    siss_no_is: Option<f64>,
    bernoulli: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    naive_deletion: Option<f64>,
    siss_over_plain: Option<f64>,
    siss_exact_over_plain: Option<f64>,
    no_is_over_plain: Option<f64>,
    bernoulli_over_plain: Option<f64>,
    /// Rows per pair that SISS ran, mean over the rounds.
    rows_per_sample: Option<f64>,
    exact_rows_per_sample: Option<f64>,
    /// The same steps with burn's operations.
    #[serde(flatten)]
    on_burn: Option<OnBurn>,
    workload: Workload,
    batch: u32,
    runs: u32,
    bf16: bool,
    clock: Clock,
    kernels: Kernels,
    checkpointing: bool,
    /// Size of one gradient of all parameters.
    gradient_mib: f64,
    /// Peak resident memory of this process; `None` if the system does not report it.
    peak_mib: Option<f64>,
    threads: usize,
    device: DeviceSpec,
}

#[derive(Debug, Serialize)]
struct OnBurn {
    plain_burn: Option<f64>,
    siss_burn: Option<f64>,
    plain_over_burn: Option<f64>,
    siss_over_burn: Option<f64>,
}

impl Report {
    pub fn new(arguments: &Arguments, runners: &[Runner], parameters: usize) -> Self {
        let runner = |variant| runners.iter().find(|runner| runner.variant == variant);
        let seconds = |variant| Some(rounded(median(&runner(variant)?.seconds), 5));
        let ratio = |above, below| {
            let pairs = runner(above)?.seconds.iter().zip(&runner(below)?.seconds);
            let ratios: Vec<f64> = pairs.map(|(above, below)| above / below).collect();
            Some(rounded(median(&ratios), 3))
        };
        let over_plain = |variant| ratio(variant, Variant::Plain);
        let rows = |variant| {
            let rows = &runner(variant)?.rows;
            Some(rounded(rows.iter().sum::<f64>() / rows.len() as f64, 3))
        };
        let has_burn = runners.iter().any(|runner| runner.variant.on_burn());
        Self {
            plain: seconds(Variant::Plain),
            siss: seconds(Variant::Siss),
            siss_exact: seconds(Variant::SissExact),
            siss_no_is: seconds(Variant::SissNoIs),
            bernoulli: seconds(Variant::Bernoulli),
            naive_deletion: seconds(Variant::NaiveDeletion),
            siss_over_plain: over_plain(Variant::Siss),
            siss_exact_over_plain: over_plain(Variant::SissExact),
            no_is_over_plain: over_plain(Variant::SissNoIs),
            bernoulli_over_plain: over_plain(Variant::Bernoulli),
            rows_per_sample: rows(Variant::Siss),
            exact_rows_per_sample: rows(Variant::SissExact),
            on_burn: has_burn.then(|| OnBurn {
                plain_burn: seconds(Variant::PlainBurn),
                siss_burn: seconds(Variant::SissBurn),
                plain_over_burn: ratio(Variant::Plain, Variant::PlainBurn),
                siss_over_burn: ratio(Variant::Siss, Variant::SissBurn),
            }),
            workload: arguments.workload,
            batch: arguments.batch,
            runs: arguments.runs,
            bf16: arguments.bf16,
            clock: arguments.clock,
            kernels: arguments.kernels,
            checkpointing: arguments.checkpointing,
            gradient_mib: rounded(4.0 * parameters as f64 / MEBI, 1),
            peak_mib: peak_memory().map(|bytes| rounded(bytes / MEBI, 1)),
            threads: rayon::current_num_threads(),
            device: arguments.device,
        }
    }
}

pub const MEBI: f64 = 1_048_576.0;

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

pub fn rounded(value: f64, decimals: i32) -> f64 {
    let unit = 10f64.powi(decimals);
    (value * unit).round() / unit
}

/// Peak resident memory in bytes, from Linux.
pub fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024.0 * kibibytes)
}
