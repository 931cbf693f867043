//! Unlearning where the right answer is known: `cargo run --release --example toy_2d`.
//!
//! A small network learns six Gaussians in the plane, then forgets one of them. The ideal denoiser
//! of the other five has a closed form: it is where unlearning should arrive.

use std::{error::Error, f32::consts::TAU, ops::Range, path::PathBuf};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, lr_scheduler::linear::LinearLrSchedulerConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Distribution, Int, Tensor};
use clap::Parser;
use siss::report::ImageGrid;
use siss::sampling::{DdimConfig, DdimSampler, Sampler};
use siss::{DdpmScheduler, Denoiser, PairSampler, SchedulerExt, SissTrainer};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Component k is N(μ_k, s² I), with the μ_k on a circle. Component 0 is forgotten.
const COMPONENTS: usize = 6;
const RADIUS: f32 = 0.7;
const SPREAD: f32 = 0.09;
const BATCH: usize = 256;
const NORMAL: Distribution = Distribution::Normal(0.0, 1.0);

#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value_t = 500)]
    steps: u64,
    #[arg(long, default_value = "target/toy_2d.png")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let Options { seed, steps, out } = Options::parse();
    let device = Device::flex();
    device.seed(seed); // burn's random numbers: initial weights, data, training
    let process = DdpmScheduler::linear(1000)?;
    let (forget, retain) = (points(0..1), points(1..COMPONENTS));
    let data = Tensor::cat(vec![forget.clone(), retain.clone()], 0);
    let before = train(data, &process)?;

    // The unlearning: what is not set here has the crate's defaults.
    let pairs = PairSampler::new(retain.clone(), forget, seed)?;
    let falling_rate = LinearLrSchedulerConfig::new(1e-3, 0.0, steps as usize).init()?;
    let trainer = SissTrainer::builder(before.clone(), process.clone());
    let mut trainer = trainer.learning_rate(falling_rate).seed(seed).build()?;
    for step in 0..steps {
        trainer.step(pairs.batch(step, BATCH)?)?;
    }
    let after = trainer.into_model();

    // Samples of the three models from the same noise.
    let exact = Exact {
        centres: Tensor::cat((1..COMPONENTS).map(centre).collect(), 0),
        alpha_bars: Tensor::from_data(process.alpha_bars(), &device),
    };
    let sampler = DdimSampler::new(&process, DdimConfig::default())?;
    let samples = [
        sampler.sample(&before, &(), [2000, 2], seed, 0, &device)?,
        sampler.sample(&after, &(), [2000, 2], seed, 0, &device)?,
        sampler.sample(&exact, &(), [2000, 2], seed, 0, &device)?,
    ];
    println!("samples in                      before    after    exact");
    for k in 0..COMPONENTS {
        let share = |samples| inside(samples, k).mean().into_scalar::<f32>() * 100.0;
        let [before, after, exact] = samples.each_ref().map(share);
        println!("component {k} {before:>24.1} % {after:>6.1} % {exact:>6.1} %");
    }
    let pictures = Tensor::cat(samples.iter().map(picture).collect(), 0);
    let grid = ImageGrid::new(pictures)?.columns(3);
    grid.column_captions(["before", "after", "exact"])
        .save(out)?;

    // The mean of (answer − exact answer)² at noisy points of the five components.
    println!("squared distance from the exact answer");
    let noise = retain.random_like(NORMAL);
    for t in [50.0, 100.0, 200.0, 400.0, 800.0] {
        let times = vec![t; retain.dims()[0]];
        let noisy = process.add_noise(retain.clone(), noise.clone(), &times)?;
        let times = Tensor::<1>::from_data(times.as_slice(), &device);
        let answer = exact.predict(noisy.clone(), times.clone(), &());
        let distance = |model: &Net| {
            let difference = model.predict(noisy.clone(), times.clone(), &()) - answer.clone();
            difference.square().mean().into_scalar::<f32>()
        };
        println!(
            "  t = {t:<23} {:>8.4} {:>8.4}",
            distance(&before),
            distance(&after)
        );
    }
    Ok(())
}

/// μ_k, as a row.
fn centre(k: usize) -> Tensor<2> {
    let (sin, cos) = (TAU * k as f32 / COMPONENTS as f32).sin_cos();
    Tensor::from_data([[RADIUS * cos, RADIUS * sin]], &Device::flex())
}

/// 200 points of each component.
fn points(components: Range<usize>) -> Tensor<2> {
    let noise = || Tensor::<2>::random([200, 2], NORMAL, &Device::flex()) * SPREAD;
    Tensor::cat(components.map(|k| noise() + centre(k)).collect(), 0)
}

/// The ideal denoiser. At m = γx + σε it answers E[ε | m] = σ Σ_k p_k (m − γμ_k) / v, with
/// v = γ²s² + σ² and p = softmax_k(−‖m − γμ_k‖² / 2v).
#[derive(Module, Debug)]
struct Exact {
    centres: Tensor<2>,
    alpha_bars: Tensor<1>, // γ² of each timestep; σ² = 1 − γ²
}

impl Denoiser<2> for Exact {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let gamma2 = self.alpha_bars.clone().select(0, timesteps.int());
        let gamma2: Tensor<3> = gamma2.unsqueeze_dims(&[1, 2]); // [rows, components, elements]
        let sigma2: Tensor<3> = -gamma2.clone() + 1.0;
        let v = gamma2.clone() * SPREAD.powi(2) + sigma2.clone();
        let offsets = noisy.unsqueeze_dim(1) - gamma2.sqrt() * self.centres.clone().unsqueeze();
        let p = softmax(-offsets.clone().square().sum_dim(2) / (v.clone() * 2.0), 1);
        (sigma2.sqrt() * p * offsets / v).sum_dim(1).squeeze_dim(1)
    }
}

/// The network: point and timestep, the latter as sines and cosines, through four layers.
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
        self.layers[1..]
            .iter()
            .fold(self.layers[0].forward(input), next)
    }
}

/// Ordinary training: a regression on the noise.
fn train(data: Tensor<2>, process: &DdpmScheduler) -> Result<Net> {
    let device = data.device();
    let layer = |sizes: &[usize]| LinearConfig::new(sizes[0], sizes[1]).init(&device);
    let layers = [18, 128, 128, 128, 2].windows(2).map(layer).collect();
    let (mut model, mut optimizer) = (Net { layers }.train(), AdamWConfig::new().init());
    for step in 0..4000 {
        let below = |end| Tensor::<1>::random([BATCH], Distribution::Uniform(0.0, end), &device);
        let clean = data.clone().select(0, below(data.dims()[0] as f64).int());
        let (noise, times) = (clean.random_like(NORMAL), below(1000.0).floor());
        let noisy = process.add_noise(clean, noise.clone(), &times.clone().try_into_vec_as()?)?;
        let loss = (model.predict(noisy, times, &()) - noise).square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(4e-3 * (1.0 - f64::from(step) / 4000.0), model, gradients);
    }
    Ok(model.valid())
}

/// 1 for samples within 3.5 standard deviations of a component's mean, else 0.
fn inside(samples: &Tensor<2>, k: usize) -> Tensor<2> {
    let distances = (samples.clone() - centre(k)).square().sum_dim(1).sqrt();
    distances.lower_elem(3.5 * SPREAD).float()
}

/// A dot for each sample: orange in the forgotten component, blue elsewhere.
fn picture(samples: &Tensor<2>) -> Tensor<4> {
    let pixels = Tensor::<1, Int>::arange(0..280, &Device::flex()).float() / 127.0 - 1.1;
    let dot = |at: Tensor<2>| (-((at - pixels.clone().unsqueeze()) / 0.009).square()).exp();
    let [x, y] = [0, 1].map(|axis| samples.clone().narrow(1, axis, 1));
    let ink = |weights| dot(-y.clone()).transpose().matmul(dot(x.clone()) * weights);
    let (orange, all) = (ink(inside(samples, 0)), ink(x.ones_like()));
    let red = all.clone() - orange.clone();
    Tensor::stack::<3>(vec![red * -2.0 + 1.0, -all + 1.0, orange * -2.0 + 1.0], 0).unsqueeze()
}
