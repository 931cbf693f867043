//! Pictures of a text-to-image model under variants of a prompt, memorised ones and others:
//! `cargo run --release --example prompt_variants -- --help`. See `examples/README.md`.

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use siss_support::progress::Bar;
use siss_support::variants::{self, Options};

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
    let table = variants::run(options, &progress)?;
    progress.finish();
    print!("{table}");
    Ok(())
}
