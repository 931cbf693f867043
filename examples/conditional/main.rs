//! Unlearning in models with a condition: `cargo run --release --example conditional -- classes`,
//! `transformer` or `captions`. See `--help` and `examples/README.md`.

mod captions;
mod classes;
mod folders;
mod job;
mod measure;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use siss::models::{ClassUNet2d, Dit};
use siss_support::digits::ASSETS;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A model with a condition forgets a picture that it memorised under one label or caption.
#[derive(Parser)]
struct Options {
    /// What is generated, and by which model
    case: Case,
    /// Optimiser steps
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Pairs per step
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Highest learning rate; it falls to 0
    #[arg(long, default_value_t = 1e-4)]
    learning_rate: f64,
    /// Of the run; the samples have a seed of their own
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Forgets the picture also under embeddings that are searched for before every N-th step
    /// (captions)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    adversarial: Option<u64>,
    /// Samples of each forgotten condition
    #[arg(long, default_value_t = 16)]
    samples: usize,
    /// The folder of models and data
    #[arg(long, default_value = ASSETS)]
    assets: PathBuf,
    /// The folder to write [default: target/CASE]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Writes the pictures into folders for `unlearn` (`forget`, `retain`, `control`), and does
    /// nothing else
    #[arg(long, value_name = "DIR")]
    pictures: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Case {
    /// Digits by class: a U-Net that predicts the noise
    Classes,
    /// Digits by class: a transformer along the path of flow matching
    Transformer,
    /// Faces and people by caption: a latent text-to-image model
    Captions,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.case {
        Case::Classes => classes::run::<ClassUNet2d>(&options, "classes"),
        Case::Transformer => classes::run::<Dit>(&options, "transformer"),
        Case::Captions => captions::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn out(&self) -> PathBuf {
        let folder = match self.case {
            Case::Classes => "target/classes",
            Case::Transformer => "target/transformer",
            Case::Captions => "target/captions",
        };
        self.out.clone().unwrap_or_else(|| folder.into())
    }
}
