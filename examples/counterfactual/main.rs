//! Measures how well the loss on a point that a model never saw is predicted:
//! `cargo run --release --example counterfactual`.
//!
//! The bundled model was trained on digits alone. Its loss on several kinds of images that it never
//! saw is measured, and predicted from the digits. Writes one line per image, timestep and
//! prediction to a CSV file, a plot, and the table of a Markdown page.

mod images;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use siss::DdpmScheduler;
use siss::burn::tensor::{Device, Tensor};
use siss::models::{ModelFolder, UNet2d};
use siss::process::SchedulerConfig;
use siss::steering::{Counterfactual, CounterfactualConfig, CounterfactualData, IdealForm};
use siss_support::options::at_least_one;
use siss_support::probe::{Chunks, Probe, mean};
use siss_support::progress::{Bar, Progress};
use siss_support::{digits, lines, page};

use crate::images::Unseen;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Compares predicted with actual losses on images that the model never saw.
#[derive(Parser, Debug)]
struct Arguments {
    /// Sizes of the retained set, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "500,2000,9000")]
    retained: Vec<usize>,

    /// Control points.
    #[arg(long, default_value_t = 200)]
    controls: usize,

    /// Noises over which a loss is averaged.
    #[arg(long, default_value_t = 24)]
    noises: usize,

    /// Sizes of patches to choose from, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "3,5,7,9,13")]
    patches: Vec<usize>,

    /// Ideal denoisers, separated by commas; patches take a hundred times as long.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "whole,patches,pieces"
    )]
    forms: Vec<Form>,

    /// Images of each kind.
    #[arg(long, default_value_t = 8)]
    images: usize,

    /// The lines of all comparisons.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/results/counterfactual.csv"
    )]
    csv: PathBuf,

    /// Predicted over actual loss, by kind of image.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/results/counterfactual.svg"
    )]
    plot: PathBuf,

    /// The page whose table is written.
    #[arg(long, value_name = "FILE", default_value = "docs/results.md")]
    page: PathBuf,
}

/// Predicted and actual loss of an image at a timestep.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Comparison {
    kind: String,
    image: usize,
    retained: usize,
    controls: String,
    form: String,
    timestep: usize,
    predicted: f64,
    actual: f64,
}

/// Noises over which an error of patches is averaged: fewer, because each takes as long as many
/// noises of whole images.
const PATCH_NOISES: usize = 6;

const TIMESTEPS: [usize; 8] = [25, 50, 100, 250, 400, 600, 800, 900];

fn main() -> ExitCode {
    match validate(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn validate(arguments: &Arguments) -> Result<()> {
    let retained = arguments
        .retained
        .iter()
        .map(|&count| ("retained", Some(count)));
    let patches = arguments
        .patches
        .iter()
        .map(|&side| ("patches", Some(side)));
    let counts = [
        ("controls", Some(arguments.controls)),
        ("noises", Some(arguments.noises)),
        ("images", Some(arguments.images)),
    ];
    at_least_one(&retained.chain(patches).chain(counts).collect::<Vec<_>>())?;
    let progress = Bar::new()?;
    let trial = Trial::load(arguments)?;
    trial.check()?;
    let actual = trial.actual(&progress)?;
    let all = trial.digits.dims()[0];
    let sizes = arguments.retained.iter();
    let mut comparisons = Vec::new();
    for &form in &arguments.forms {
        let unseen = sizes.clone().map(|&count| (count, Controls::Unseen));
        for (retained, controls) in unseen.chain([(all, Controls::LeaveOneOut)]) {
            let way = Way {
                retained,
                controls,
                form,
            };
            let predicted = trial.predicted(way, &progress)?;
            comparisons.extend(trial.compare(way, &predicted, &actual)?);
        }
    }
    progress.finish();

    lines::write(&arguments.csv, &comparisons)?;
    table::plot(&comparisons).save(&arguments.plot)?;
    let table = table::table(&comparisons);
    println!("{table}");
    page::write(&arguments.page, "counterfactual", &table)
}

/// The source of the control points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controls {
    Unseen,
    /// Retained points, each left out of the data for its own prediction.
    LeaveOneOut,
}

impl Controls {
    fn name(self) -> &'static str {
        match self {
            Controls::Unseen => "unseen",
            Controls::LeaveOneOut => "left out",
        }
    }
}

/// The ideal denoiser that the prediction is based on.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Of whole images.
    Whole,
    /// Of patches around each pixel.
    Patches,
    /// Of whole images, and the model's own answers to pieces of them where it knows more.
    Pieces,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Form::Whole => "whole image",
            Form::Patches => "patches",
            Form::Pieces => "whole image, pieces",
        }
    }
}

/// A way to predict a loss.
#[derive(Debug, Clone, Copy)]
struct Way {
    /// Number of retained digits.
    retained: usize,
    controls: Controls,
    form: Form,
}

/// The model, the digits and the images.
struct Trial<'a> {
    arguments: &'a Arguments,
    config: SchedulerConfig,
    model: UNet2d,
    digits: Tensor<4>,
    heldout: Tensor<4>,
    unseen: Unseen,
}

impl<'a> Trial<'a> {
    fn load(arguments: &'a Arguments) -> Result<Self> {
        let (assets, device) = (Path::new(digits::ASSETS), Device::flex());
        let digits = digits::load_digits(assets, &device)?;
        let tshirt = digits::load_tshirt(assets, &device)?;
        let folder = assets.join("base");
        Ok(Self {
            arguments,
            config: SchedulerConfig::from_file(ModelFolder::find(&folder)?.scheduler_file())?,
            model: UNet2d::load(folder.join("retrained"), &device)?,
            unseen: Unseen::new(&tshirt, &digits.heldout, arguments.images),
            digits: digits.retain,
            heldout: digits.heldout,
        })
    }

    /// Rejects numbers that exceed the data: control points come first, and the images start at the
    /// 500th unseen digit.
    fn check(&self) -> Result<()> {
        let digits = self.digits.dims()[0];
        let Arguments {
            controls,
            noises,
            images,
            ..
        } = *self.arguments;
        let least = self
            .arguments
            .retained
            .iter()
            .copied()
            .min()
            .unwrap_or_default();
        let most = self
            .arguments
            .retained
            .iter()
            .copied()
            .max()
            .unwrap_or_default();
        for (option, value, range) in [
            ("retained", least, 1..=digits),
            ("retained", most, 1..=digits),
            ("controls", controls, 1..=500),
            ("noises", noises, 1..=10_000),
            ("images", images, 1..=60),
        ] {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                return Err(
                    format!("--{option} is {value}; it must be from {low} to {high}").into(),
                );
            }
        }
        Ok(())
    }

    /// The model's loss on each image, by timestep.
    fn actual(&self, progress: &Bar) -> Result<Vec<Vec<f64>>> {
        let chunks = Chunks {
            rows: 32,
            in_parallel: true,
        };
        let probe = Probe::new(&self.config, chunks)?;
        let noises = self.arguments.noises;
        let images = &self.unseen.images;
        // Image after image, each with its noises.
        let copies: Vec<_> = (0..images.dims()[0])
            .map(|index| images.clone().narrow(0, index, 1).repeat_dim(0, noises))
            .collect();
        let copies = Tensor::cat(copies, 0);
        let mut actual = Vec::new();
        for timestep in TIMESTEPS {
            progress.phase(&format!("the model's losses, t = {timestep}"));
            let losses = probe.losses(&self.model, (&copies, &()), timestep)?;
            actual.push(losses.chunks(noises).map(mean).collect());
        }
        Ok(actual)
    }

    fn predicted(&self, way: Way, progress: &Bar) -> Result<Counterfactual> {
        let retained = self.digits.clone().narrow(0, 0, way.retained);
        let points = match way.controls {
            Controls::Unseen => &self.heldout,
            Controls::LeaveOneOut => &retained,
        };
        let controls = points.clone().narrow(0, 0, self.arguments.controls);
        let data = CounterfactualData::new(&retained, &controls, &self.unseen.images);
        let config = CounterfactualConfig {
            timesteps: Some(TIMESTEPS.map(|timestep| timestep as f64).to_vec()),
            noises: match way.form {
                Form::Whole | Form::Pieces => self.arguments.noises,
                Form::Patches => self.arguments.noises.min(PATCH_NOISES),
            },
            form: match way.form {
                Form::Whole | Form::Pieces => IdealForm::Whole,
                Form::Patches => IdealForm::Patches {
                    sizes: self.arguments.patches.clone(),
                    nearest: way.retained,
                },
            },
            pieces: way.form == Form::Pieces,
            ..CounterfactualConfig::default()
        };
        let scheduler = DdpmScheduler::from_config(&self.config)?;
        let tell = |share| {
            progress.phase(&format!(
                "predicting from {} digits, {}: {:.0} %",
                way.retained,
                way.form.name(),
                100.0 * share
            ));
        };
        let fit = Counterfactual::fit_with_progress(&self.model, &scheduler, data, config, tell)?;
        Ok(fit)
    }

    fn compare(
        &self,
        way: Way,
        predicted: &Counterfactual,
        actual: &[Vec<f64>],
    ) -> Result<Vec<Comparison>> {
        let mut comparisons = Vec::new();
        for (image, kind) in self.unseen.kinds.iter().enumerate() {
            for (at, (timestep, actual)) in TIMESTEPS.into_iter().zip(actual).enumerate() {
                comparisons.push(Comparison {
                    kind: kind.to_string(),
                    image,
                    retained: way.retained,
                    controls: way.controls.name().into(),
                    form: way.form.name().into(),
                    timestep,
                    predicted: predicted.predicted[image][at],
                    actual: actual[image],
                });
            }
        }
        Ok(comparisons)
    }
}
