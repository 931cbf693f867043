//! Compares the crate with reference results of PyTorch and diffusers: `conformance PATH...`, where
//! each path is a case file or a folder of them.
//!
//! Prints one line per case, `PASS|FAIL|SKIP name worst_tensor error tolerance`, and the counts;
//! exits with 1 on any failure.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use siss::backend::DeviceSpec;
use siss_support::conformance;

/// Runs conformance cases and compares each tensor with its expected value.
#[derive(Parser)]
struct Arguments {
    /// Case files, or folders of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,

    /// Where to compute: flex, wgpu or cuda:INDEX.
    #[arg(long, default_value_t)]
    device: DeviceSpec,
}

fn main() -> ExitCode {
    match check(Arguments::parse()) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let device = arguments.device.device()?;
    let (mut passed, mut failed) = (0, 0);
    let cases = conformance::find(&arguments.paths)?;
    if cases.is_empty() {
        return Err("there is no case in these folders".into());
    }
    for path in cases {
        let outcome = conformance::run(&path, &device);
        passed += usize::from(outcome.passed());
        failed += usize::from(!outcome.passed() && !outcome.skipped());
        let name = path.file_stem().unwrap_or(path.as_os_str());
        println!("{}", outcome.line(&name.to_string_lossy()));
    }
    println!("{passed} passed, {failed} failed");
    Ok(if failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
