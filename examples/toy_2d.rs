//! Unlearning where the correct result is known: `cargo run --release --example toy_2d`.
//!
//! A small network learns six Gaussians in the plane, then forgets one of them. The ideal denoiser
//! of the other five has a closed form, which the unlearned network should approach.

use std::{error::Error, f32::consts::TAU, path::PathBuf};

use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Distribution, Int, Tensor};
use burn::{module::Module, optim::lr_scheduler::linear::LinearLrSchedulerConfig};
use clap::Parser;
use siss::report::ImageGrid;
use siss::sampling::{DdimConfig, DdimSampler, Sampler};
use siss::{DdpmScheduler, Denoiser, Method, PairSampler, SissTrainer};

/// Component k is N(μ_k, s² I), with the μ_k on a circle. Component 0 is forgotten.
const COMPONENTS: usize = 6;
const RADIUS: f32 = 0.7;
const SPREAD: f32 = 0.09;

/// A small network forgets one of six Gaussians. Takes about 15 seconds on two CPU cores.
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value = "target/toy_2d.png")]
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Options { seed, out } = Options::parse();
    let device = Device::flex();
    device.seed(seed); // burn's random numbers: initial weights, data, training
    let process = DdpmScheduler::linear(1000)?;
    let forget = points(0);
    let retain = Tensor::cat((1..COMPONENTS).map(points).collect(), 0);
    let all = Tensor::cat(vec![forget.clone(), retain.clone()], 0);

    // Settings that are not given here have the crate's defaults.
    let run = |model, data: [&Tensor<2>; 2], method, rate, steps| -> Result<Net, Box<dyn Error>> {
        let pairs = PairSampler::new(data[0].clone(), data[1].clone(), 0)?;
        let falling_rate = LinearLrSchedulerConfig::new(rate, 0.0, steps as usize).init()?;
        let builder = SissTrainer::builder(model, process.clone()).method(method);
        let mut trainer = builder.learning_rate(falling_rate).build()?;
        for step in 0..steps {
            trainer.step(pairs.batch(step, 256)?)?;
        }
        Ok(trainer.into_model())
    };

    // Naive deletion is ordinary training on the retained points; here these are all points.
    let layer = |sizes: &[usize]| LinearConfig::new(sizes[0], sizes[1]).init(&device);
    let layers = [18, 128, 128, 128, 2].windows(2).map(layer).collect();
    let net = Net { layers };
    let before = run(net, [&all, &centre(0)], Method::NaiveDeletion, 4e-3, 4000)?;
    let model = before.clone();
    let after = run(model, [&retain, &forget], Method::Siss, 1e-3, 500)?;

    // Samples of the three models from the same noise.
    let exact = Exact {
        centres: Tensor::cat((1..COMPONENTS).map(centre).collect(), 0).unsqueeze(),
        alpha_bars: Tensor::<1>::from_data(process.alpha_bars(), &device).unsqueeze_dims(&[1, 2]),
    };
    let mut config = DdimConfig::new(50);
    config.visits.clip_sample = None; // these points are not pixels
    let sampler = DdimSampler::new(&process, config)?;
    let samples = [
        sampler.sample(&before, &(), [2000, 2], seed, 0, &device)?,
        sampler.sample(&after, &(), [2000, 2], seed, 0, &device)?,
        sampler.sample(&exact, &(), [2000, 2], seed, 0, &device)?,
    ];
    println!("samples in     before   after   exact");
    for k in 0..COMPONENTS {
        let share = |samples: &Tensor<2>| {
            let distances = (samples.clone() - centre(k)).square().sum_dim(1).sqrt();
            let inside = distances.lower_elem(3.5 * SPREAD).float();
            inside.mean().into_scalar::<f32>() * 100.0
        };
        let [before, after, exact] = samples.each_ref().map(share);
        println!("component {k} {before:>7.1} % {after:>5.1} % {exact:>5.1} %");
    }
    let pictures = Tensor::cat(samples.iter().map(picture).collect(), 0);
    let (grid, names) = (ImageGrid::new(pictures)?, ["before", "after", "exact"]);
    Ok(grid.columns(3).scale(2).column_captions(names).save(out)?)
}

/// μ_k, as a row.
fn centre(k: usize) -> Tensor<2> {
    let (sin, cos) = (TAU * k as f32 / COMPONENTS as f32).sin_cos();
    Tensor::from_data([[RADIUS * cos, RADIUS * sin]], &Device::flex())
}

/// 200 points of a component.
fn points(k: usize) -> Tensor<2> {
    let spread = Distribution::Normal(0.0, SPREAD.into());
    Tensor::<2>::random([200, 2], spread, &Device::flex()) + centre(k)
}

/// The ideal denoiser without component 0. At m = γx + σε its output is, with v = γ²s² + σ²,
/// E[ε | m] = σ Σ_k p_k (m − γμ_k) / v, where p = softmax_k(−‖m − γμ_k‖² / 2v).
#[derive(Module, Debug)]
struct Exact {
    centres: Tensor<3>,    // μ_k: [1, components, elements]
    alpha_bars: Tensor<3>, // γ² = 1 − σ² of each timestep: [timesteps, 1, 1]
}

impl Denoiser<2> for Exact {
    type Condition = ();
    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let gamma2 = self.alpha_bars.clone().select(0, timesteps.int());
        let sigma2 = -gamma2.clone() + 1.0;
        let v = gamma2.clone() * SPREAD.powi(2) + sigma2.clone();
        let offsets = noisy.unsqueeze_dim(1) - gamma2.sqrt() * self.centres.clone();
        let p = softmax(-offsets.clone().square().sum_dim(2) / (v.clone() * 2.0), 1);
        (sigma2.sqrt() * p * offsets / v).sum_dim(1).squeeze_dim(1)
    }
}

/// The network: passes point and timestep, the latter as sines and cosines, through four layers.
#[derive(Module, Debug)]
struct Net {
    layers: Vec<Linear>,
}

impl Denoiser<2> for Net {
    type Condition = ();
    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let angle = timesteps.unsqueeze_dim::<2>(1) * (TAU / 4000.0);
        let angles = Tensor::cat((0..8).map(|k| angle.clone() * 2f32.powi(k)).collect(), 1);
        let input = Tensor::cat(vec![noisy, angles.clone().sin(), angles.cos()], 1);
        let next = |hidden, layer: &Linear| layer.forward(silu(hidden));
        let first = self.layers[0].forward(input);
        self.layers[1..].iter().fold(first, next)
    }
}

/// An image with one dot per sample, white on black.
fn picture(samples: &Tensor<2>) -> Tensor<4> {
    let pixels = Tensor::<1, Int>::arange(-70..70, &Device::flex()).float();
    let pixels: Tensor<2> = pixels.unsqueeze();
    let dots = |axis, scale: f64| {
        let at = samples.clone().narrow(1, axis, 1) * scale;
        (at - pixels.clone()).abs().lower_elem(0.5).float()
    };
    (dots(1, -64.0).transpose().matmul(dots(0, 64.0)) * 2.0 - 1.0).unsqueeze()
}
