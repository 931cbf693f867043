//! Peak memory and result of steps for each way to store weights and the optimiser's state.

use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;
use siss::SissTrainer;
use siss::burn::module::Module;
use siss::burn::tensor::{Device, FloatDType};
use siss_support::cast::cast;
use siss_support::small::{difference, norm, parameters};

use crate::report::{MEBI, peak_memory, rounded};
use crate::workload::Network;
use crate::{Arguments, Result, WARM_UP, limit_threads, own_arguments, prepare};

/// A learning rate at which bf16 rounds most of the steps away: the default.
const LEARNING_RATE: f64 = 5e-5;

/// How weights and the optimiser's state are stored.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Storage {
    /// All in f32 on one device.
    F32,
    /// The same with the optimiser's state on the host.
    F32Away,
    /// All in bf16.
    Bf16,
    /// Weights in bf16, with copies and moments in f32.
    Bf16Master,
    /// The same with copies and moments on the host.
    Bf16MasterAway,
}

impl Storage {
    fn dtype(self) -> FloatDType {
        match self {
            Self::F32 | Self::F32Away => FloatDType::F32,
            Self::Bf16 | Self::Bf16Master | Self::Bf16MasterAway => FloatDType::BF16,
        }
    }

    fn has_master(self) -> bool {
        matches!(self, Self::Bf16Master | Self::Bf16MasterAway)
    }

    fn is_away(self) -> bool {
        matches!(self, Self::F32Away | Self::Bf16MasterAway)
    }

    /// Its name as an argument.
    fn name(self) -> String {
        let name = self.to_possible_value();
        name.map_or_else(String::new, |name| name.get_name().into())
    }
}

/// What a process found.
#[derive(Debug, Serialize)]
struct Stored {
    storage: Storage,
    steps: usize,
    /// Peak resident memory of the process; `None` if the system does not report it.
    peak_mib: Option<f64>,
    /// Norm of the change of all parameters.
    moved: f64,
    /// Norm of the difference from the parameters that are trained in f32, as a part of the norm of
    /// their change.
    off: f64,
}

/// Measures each way in a process of its own; returns a JSON line for each.
pub fn all(arguments: &Arguments) -> Result<String> {
    let lines = Storage::value_variants().iter().map(|storage| {
        let output = Command::new(std::env::current_exe()?)
            .args(own_arguments())
            .args(["--stored", &storage.name()])
            .output()?;
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout)?.trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into()),
        }
    });
    let lines: Vec<String> = lines.collect::<Result<_>>()?;
    let gradient = rounded(
        4.0 * prepare(arguments, &Device::flex())?.0.num_params() as f64 / MEBI,
        1,
    );
    Ok(format!(
        "{{\"gradient_mib\":{gradient}}}\n{}",
        lines.join("\n")
    ))
}

/// Measures one way in this process; returns a JSON line.
pub fn one(arguments: &Arguments, storage: Storage) -> Result<String> {
    limit_threads(arguments)?;
    let begin = start(arguments)?;
    let trained = train(arguments, &begin, storage)?;
    let peak = peak_memory();
    // After the peak was read: the comparison takes memory of its own.
    let expected = train(arguments, &begin, Storage::F32)?;
    let begin = parameters(&begin);
    let moved = |to: &[f64]| norm(&difference(to, &begin));
    let off = norm(&difference(&trained, &expected)) / moved(&expected);
    let stored = Stored {
        storage,
        steps: WARM_UP + arguments.runs as usize,
        peak_mib: peak.map(|bytes| rounded(bytes / MEBI, 0)),
        moved: rounded(moved(&trained), 4),
        off: rounded(off, 4),
    };
    Ok(serde_json::to_string(&stored)?)
}

/// The network at weights that are numbers in bf16, so that every run begins at the same.
fn start(arguments: &Arguments) -> Result<Network> {
    let device = arguments.device.device()?;
    device.seed(0);
    let (network, _) = prepare(arguments, &device)?;
    Ok(cast(cast(network, FloatDType::BF16), FloatDType::F32))
}

/// The parameters after the steps.
fn train(arguments: &Arguments, begin: &Network, storage: Storage) -> Result<Vec<f64>> {
    let (_, pairs) = prepare(arguments, &arguments.device.device()?)?;
    let network = Network {
        bf16: storage.dtype() == FloatDType::BF16,
        ..cast(begin.clone(), storage.dtype())
    };
    let mut builder = SissTrainer::builder(network, arguments.workload.scheduler()?)
        .learning_rate(LEARNING_RATE)
        .master_weights(storage.has_master());
    if storage.is_away() {
        builder = builder.optimizer_state_device(Device::flex());
    }
    let mut trainer = builder.build()?;
    for step in 0..WARM_UP + arguments.runs as usize {
        trainer.step(pairs.batch(step as u64, arguments.batch as usize)?)?;
    }
    Ok(parameters(&trainer.into_model()))
}
