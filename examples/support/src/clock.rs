//! A clock that measures wall time or the running time of the process.

use std::error::Error;
use std::sync::OnceLock;
use std::time::Instant;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Which time is measured.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    Wall,
    /// Time for which the process's threads were running, from Linux.
    Cpu,
}

impl Clock {
    /// Seconds since a fixed point in time.
    pub fn now(self) -> Result<f64> {
        static BEGAN: OnceLock<Instant> = OnceLock::new();
        match self {
            Clock::Wall => Ok(BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64()),
            Clock::Cpu => cpu_seconds(),
        }
    }
}

fn cpu_seconds() -> Result<f64> {
    let mut nanoseconds = 0;
    let reading = |error| format!("reading /proc/self/task, which Linux has: {error}");
    for task in std::fs::read_dir("/proc/self/task").map_err(reading)? {
        // Running time, waiting time, number of slices.
        let line = std::fs::read_to_string(task.map_err(reading)?.path().join("schedstat"));
        let line = line.map_err(reading)?;
        let running = line.split(' ').next().unwrap_or_default();
        nanoseconds += running.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}
