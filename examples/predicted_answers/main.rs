//! Measures how well the answers of a model that never saw an image are predicted:
//! `cargo run --release --example predicted_answers`. See `--help` and `examples/README.md`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use siss_support::predictions::{self, Options};
use siss_support::progress::Bar;

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
    let table = predictions::run(options, &progress)?;
    progress.finish();
    print!("{table}");
    Ok(())
}
