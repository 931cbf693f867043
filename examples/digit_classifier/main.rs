//! Trains the classifier that judges generated digits:
//! `cargo run --release --example digit_classifier`. See `--help` and `examples/README.md`.

mod distort;

use std::error::Error;
use std::f64::consts::PI;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use siss::burn::module::Module;
use siss::burn::nn::loss::CrossEntropyLossConfig;
use siss::burn::optim::{AdamWConfig, GradientsParams};
use siss::burn::tensor::{Device, Int, Tensor};
use siss::draws::{Stream, keyed_rng};
use siss::files::path_text;
use siss::rand::RngExt;
use siss_support::classifier::{DigitClassifier, WEIGHTS, likeliest};
use siss_support::digits::{ASSETS, NUM_RETAIN, load_digits, load_labels};
use siss_support::files;
use siss_support::options::{at_least_one, learning_rate};

use self::distort::{SIDE, distorted};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A line is printed after so many steps.
const TOLD_EVERY: u64 = 100;

/// A small classifier learns the first 9,000 bundled digits, moved and turned a little, and is
/// tested on the last 1,000.
#[derive(Parser, Debug)]
#[command(version)]
struct Options {
    /// Optimiser steps.
    #[arg(long, default_value_t = 6_000)]
    steps: u64,

    /// Digits in a step.
    #[arg(long, default_value_t = 64)]
    batch: usize,

    /// Of the first step; it falls to 0 along a cosine.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,

    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// The file of the weights.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/digit_classifier/model.safetensors"
    )]
    out: PathBuf,

    /// Folder of the digits.
    #[arg(long, value_name = "DIR", default_value = ASSETS, hide = true)]
    assets: PathBuf,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    at_least_one(&[
        ("steps", Some(options.steps as usize)),
        ("batch", Some(options.batch)),
    ])?;
    learning_rate(Some(options.learning_rate))?;
    let device = Device::flex();
    let digits = load_digits(&options.assets, &device)?;
    let labels = load_labels(&options.assets)?;
    let (known, unseen) = labels.split_at(NUM_RETAIN);

    let network = train(options, &digits.retain, known, &device)?;
    let wrong = mistakes(&network, &digits.heldout, unseen)?;
    let share = 100.0 - 100.0 * wrong.len() as f64 / unseen.len() as f64;
    println!(
        "of {} digits held out, {share:.1} % are right",
        unseen.len()
    );
    for (place, label, taken_for) in wrong {
        println!("  number {place}: a {label} taken for a {taken_for}");
    }
    if let Some(folder) = options.out.parent() {
        files::create_folder(folder)?;
    }
    network.save(&options.out)?;
    println!(
        "the weights are in {}; bundled: {WEIGHTS}",
        path_text(&options.out)
    );
    Ok(())
}

fn train(
    options: &Options,
    digits: &Tensor<4>,
    labels: &[u8],
    device: &Device,
) -> Result<DigitClassifier> {
    let pixels: Vec<f32> = digits.clone().into_data().try_to_vec()?;
    device.seed(options.seed);
    let mut network = DigitClassifier::new(device).train();
    let mut optimizer = AdamWConfig::new().with_weight_decay(1e-2).init();
    let loss = CrossEntropyLossConfig::new().init(&device.clone().autodiff());
    let mut total = 0.0;
    for step in 0..options.steps {
        let mut random = keyed_rng(options.seed, step, 0, Stream::Own("digit classifier"));
        let (mut images, mut classes) = (Vec::new(), Vec::new());
        for _ in 0..options.batch {
            let row = random.random_range(0..labels.len());
            images.extend(distorted(
                &pixels[row * SIDE * SIDE..][..SIDE * SIDE],
                &mut random,
            ));
            classes.push(i32::from(labels[row]));
        }
        let images = Tensor::<1>::from_data(images.as_slice(), &device.clone().autodiff());
        let images = images.reshape([options.batch, 1, SIDE, SIDE]);
        let classes = Tensor::<1, Int>::from_data(classes.as_slice(), &device.clone().autodiff());
        let loss = loss.forward(network.forward(images), classes);
        total += f64::from(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(rate(options, step), network, gradients);

        let taken = step + 1;
        if taken.is_multiple_of(TOLD_EVERY) {
            println!("step {taken}: loss {:.4}", total / TOLD_EVERY as f64);
            total = 0.0;
        }
    }
    Ok(network.valid())
}

fn rate(options: &Options, step: u64) -> f64 {
    let share = step as f64 / options.steps as f64;
    options.learning_rate * (1.0 + (PI * share).cos()) / 2.0
}

/// The digits that are taken for others: number, label, class.
fn mistakes(
    network: &DigitClassifier,
    digits: &Tensor<4>,
    labels: &[u8],
) -> Result<Vec<(usize, u8, usize)>> {
    let logits = network.logits(digits)?;
    let found = labels.iter().enumerate();
    let found = found.map(|(place, &label)| (place, label, likeliest(logits.row(place))));
    Ok(found
        .filter(|&(_, label, class)| class != usize::from(label))
        .collect())
}
