//! Measures how close unlearned models come to a retrained one:
//! `cargo run --release --example closeness`. See `--help` and `examples/README.md`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use siss_support::progress::Bar;
use siss_support::survey::{self, Options};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let progress = Bar::new()?;
    let table = survey::run(options, &progress)?;
    progress.finish();
    print!("{table}");
    Ok(())
}
