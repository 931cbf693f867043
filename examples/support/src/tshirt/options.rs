//! The command line of `mnist_tshirt`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;
use siss::Method;
use siss::backend::DeviceSpec;
use siss::clipper::ClipperSpec;
use siss::draws::TimestepSampling;

use crate::audit::summary::Reporting;
use crate::digits::ASSETS;
use crate::files::{as_optional_text, as_text};
use crate::options::{at_least_one, clipper, learning_rate, number};
use crate::quick;
use crate::resume::Checkpointing;
use crate::target::Target;
use crate::way::{Way, parse_way};

/// A diffusion model of digits that also memorised one T-shirt forgets the T-shirt and keeps
/// generating digits.
///
/// Writes pictures, curves, numbers and the unlearned model into a folder. Without a flag it takes
/// two to five minutes on two CPU cores.
#[derive(Parser, Debug, Clone, Serialize)]
#[command(name = "siss", version, allow_negative_numbers = true)]
pub struct Options {
    /// Optimiser steps [default: 100; 300 with --protocol paper].
    #[arg(long)]
    #[serde(skip)]
    pub steps: Option<usize>,

    /// Pairs of a retained and a forgotten image in a step [default: 32; 64 with --protocol paper].
    #[arg(long)]
    #[serde(skip)]
    pub batch: Option<usize>,

    /// Method: counterfactual, which teaches the answers that a model retrained without the T-shirt
    /// is predicted to give; siss, siss-no-is, bernoulli, naive-deletion, neg-grad, erase-diff or
    /// re-track [default: counterfactual; siss with --target none or --protocol paper].
    #[arg(
        long,
        default_value_t,
        default_value_if("target", "none", "siss"),
        default_value_if("protocol", "paper", "siss"),
        hide_default_value = true,
        value_parser = parse_way
    )]
    pub method: Way,

    /// Where forgetting stops: at the predicted loss of a model retrained without the T-shirt, or
    /// nowhere
    /// [default: retrained; none with --protocol paper].
    #[arg(long, value_enum)]
    #[serde(skip)]
    pub target: Option<Target>,

    /// The paper's λ, of siss and bernoulli: share of noisy points drawn from the T-shirt
    /// [default: 0.5].
    #[arg(long)]
    #[serde(skip)]
    pub forget_prob: Option<f64>,

    /// How the two gradients are weighed: fraction:F (of the retain gradient's norm),
    /// fraction:F:MAX, rescale:N, clip:N, constant:S, blend:S, erase-diff:R or projected [default:
    /// the method's own; rescale:5 for SISS, No IS and Bernoulli with --protocol paper]. With one
    /// that weighs by the retain gradient (fraction, blend, erase-diff, projected), counterfactual
    /// learns the digits' noise instead of keeping the model's answers at them.
    #[arg(long)]
    #[serde(skip)]
    pub clipper: Option<ClipperSpec>,

    /// Timesteps of the steps: uniform, low-discrepancy, window:LOW..HIGH or fixed:T [default:
    /// low-discrepancy; uniform with --protocol paper].
    #[arg(long)]
    #[serde(skip)]
    pub timesteps: Option<TimestepSampling>,

    /// Rows whose weight is smaller are run seldom and weighed up, without bias; 0 runs all
    /// [default: 1; 0 with --protocol paper].
    #[arg(long)]
    #[serde(skip)]
    pub thin_below: Option<f64>,

    /// Learning rate [default: 1e-4; 5e-5 with --protocol paper].
    #[arg(long)]
    #[serde(skip)]
    pub learning_rate: Option<f64>,

    /// Seed of the run. Samples have a seed of their own, the same before and after.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,

    /// Images generated before and after, by DDIM in 25 steps.
    #[arg(long, default_value_t = 256)]
    pub samples: usize,

    /// New digits whose loss is measured.
    #[arg(long, default_value_t = 1_000, hide = true)]
    pub heldout: usize,

    /// New digits from which the target is predicted, at most.
    #[arg(long, default_value_t = 200, hide = true)]
    pub controls: usize,

    /// Settings: quick (few steps, a falling learning rate) or paper (batch 64, 300 steps, AdamW
    /// 5e-5, rescale:5, uniform timesteps, coins, no thinning).
    #[arg(long, value_enum, default_value_t)]
    pub protocol: Protocol,

    /// Where to compute: flex (CPU), wgpu or cuda:INDEX, as far as compiled in.
    #[arg(long, default_value_t)]
    pub device: DeviceSpec,

    /// The model that forgets: a diffusers folder with `unet` and `scheduler` [default: the bundled
    /// one].
    #[arg(long, value_name = "DIR")]
    #[serde(serialize_with = "as_optional_text")]
    pub checkpoint: Option<PathBuf>,

    /// Folder for everything that is written.
    #[arg(long, value_name = "DIR", default_value = "target/mnist_tshirt")]
    #[serde(serialize_with = "as_text")]
    pub out: PathBuf,

    #[command(flatten)]
    #[serde(skip)]
    pub checkpointing: Checkpointing,

    #[command(flatten)]
    #[serde(skip)]
    pub reporting: Reporting,

    /// Folder of the digits, the T-shirt and the bundled models.
    #[arg(long, value_name = "DIR", default_value = ASSETS, hide = true)]
    #[serde(skip)]
    pub assets: PathBuf,
}

/// The default of λ.
const FORGET_PROB: f64 = 0.5;

/// A set of defaults.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// What was measured to forget the T-shirt in few steps.
    #[default]
    Quick,
    /// What the paper ran.
    Paper,
}

/// The settings that follow from the options and their protocol.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Settings {
    pub steps: usize,
    pub batch: usize,
    pub learning_rate: f64,
    pub thin_below: f64,
    pub timesteps: TimestepSampling,
    pub target: Target,
    pub forget_prob: f64,
    /// `None` stands for the method's own.
    pub clipper: Option<ClipperSpec>,
}

impl Options {
    /// The settings: an option that is given overrides the protocol.
    pub fn settings(&self) -> Result<Settings, String> {
        let defaults = match self.protocol {
            Protocol::Quick => Settings {
                steps: 100,
                batch: quick::BATCH,
                learning_rate: quick::LEARNING_RATE,
                thin_below: quick::THIN_BELOW,
                timesteps: TimestepSampling::LowDiscrepancy,
                target: Target::Retrained,
                forget_prob: FORGET_PROB,
                clipper: None,
            },
            Protocol::Paper => Settings {
                steps: 300,
                batch: 64,
                learning_rate: 5e-5,
                thin_below: 0.0,
                timesteps: TimestepSampling::Uniform,
                target: Target::None,
                forget_prob: FORGET_PROB,
                clipper: self.paper_clipper(),
            },
        };
        let settings = Settings {
            steps: self.steps.unwrap_or(defaults.steps),
            batch: self.batch.unwrap_or(defaults.batch),
            learning_rate: self.learning_rate.unwrap_or(defaults.learning_rate),
            thin_below: self.thin_below.unwrap_or(defaults.thin_below),
            timesteps: self.timesteps.unwrap_or(defaults.timesteps),
            target: self.target.unwrap_or(defaults.target),
            forget_prob: self.forget_prob.unwrap_or(defaults.forget_prob),
            clipper: self.clipper.or(defaults.clipper),
        };
        at_least_one(&[
            ("steps", Some(settings.steps)),
            ("batch", Some(settings.batch)),
            ("samples", Some(self.samples)),
            ("heldout", Some(self.heldout)),
            ("controls", Some(self.controls)),
        ])?;
        learning_rate(Some(settings.learning_rate))?;
        clipper(settings.clipper)?;
        let (share, least) = (settings.forget_prob, settings.thin_below);
        let is_share = (0.0..=1.0).contains(&share);
        number("forget-prob", share, is_share, "a number from 0 to 1")?;
        number(
            "thin-below",
            least,
            least >= 0.0,
            "a finite number from 0 up",
        )?;
        if self.forget_prob.is_some() && !self.method.draws_mixture() {
            return Err(format!(
                "--forget-prob {share}: {} does not draw from the mixture; leave the option out, or take --method siss",
                self.method
            ));
        }
        Ok(settings)
    }

    /// The published runs rescale the forget gradient of the methods that combine ascent with
    /// learning; the other methods keep their own clipper.
    fn paper_clipper(&self) -> Option<ClipperSpec> {
        let rescaled = [Method::Siss, Method::SissNoIs, Method::Bernoulli].map(Way::Method);
        let is_rescaled = rescaled.contains(&self.method);
        is_rescaled.then_some(ClipperSpec::Rescale(5.0))
    }
}
