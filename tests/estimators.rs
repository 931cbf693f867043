//! The expectations of the estimators: SISS is unbiased for every λ and τ, and converges to the
//! optimum of the data without the forgotten points.

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor};
use rand::RngExt;
use siss::clipper::ConstantScale;
use siss::draws::{CoinFlip, DrawSource, FixedAllocation, Stream, TimestepSampling, keyed_rng};
use siss::objective::{Bernoulli, LossInputs, LossTerm, Siss, SissNoIs};
use siss::process::TimeRange;
use siss::steering::Levels;
use siss::*;
use siss_support::small::*;
use siss_support::way::Way;

fn process() -> DdpmScheduler {
    DdpmScheduler::linear(1000).unwrap()
}

/// Mean of each coordinate of both gradients over many steps, and its squared standard error.
fn mean_gradients(
    loss: Box<dyn SissLoss<2>>,
    forget_prob: f64,
    thin_below: f64,
    seed: u64,
) -> Vec<(f64, f64)> {
    let sampler = CoinFlip::new(forget_prob).unwrap();
    mean_gradients_with(loss, &sampler, TimestepSampling::Uniform, thin_below, seed)
}

fn mean_gradients_with(
    loss: Box<dyn SissLoss<2>>,
    sampler: &dyn MixtureSampler,
    timestep_sampling: TimestepSampling,
    thin_below: f64,
    seed: u64,
) -> Vec<(f64, f64)> {
    const STEPS: u64 = 200;
    const ROWS: usize = 1024;
    let device = device();
    let extra = loss.extra_draws();
    // Points close enough that both sides explain many noisy points.
    let batch = batch(ROWS, 0.4, 21, &device);
    let mut trainer = SissTrainer::builder(Mlp::new(3, &device), process())
        .loss(loss)
        .thin_below(thin_below)
        .build()
        .unwrap();
    let source = DrawSource {
        seed,
        timestep_sampling,
    };
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for step in 0..STEPS {
        let draws = source
            .draw(
                step,
                [ROWS, 3],
                process().time_range(),
                sampler,
                &extra,
                &device,
            )
            .unwrap();
        let gradients = trainer.gradients(&batch, &draws).unwrap();
        let model = trainer.model();
        let both = [
            flat(model, &gradients.retain),
            flat(model, &gradients.forget),
        ]
        .concat();
        sums.resize(both.len(), (0.0, 0.0));
        for ((sum, squares), value) in sums.iter_mut().zip(both) {
            *sum += value;
            *squares += value * value;
        }
    }
    let count = STEPS as f64;
    let moments = |(sum, squares): (f64, f64)| {
        (
            sum / count,
            (squares / count - (sum / count).powi(2)) / count,
        )
    };
    sums.into_iter().map(moments).collect()
}

/// Asserts that every coordinate of two means agrees within 4 standard errors of their difference.
fn assert_agree(means: &[(f64, f64)], reference: &[(f64, f64)], case: &str) {
    assert_eq!(means.len(), reference.len());
    for ((mean, variance), (expected, expected_variance)) in means.iter().zip(reference) {
        let error = (variance + expected_variance).sqrt();
        assert!(
            (mean - expected).abs() <= 4.0 * error,
            "{case}: {mean} is not {expected} ± {error}"
        );
    }
}

/// 2 × 10⁵ draws for each of three λ and three τ, compared with as many of SISS (No IS): every
/// coordinate of both gradients is within 4 standard errors.
#[test]
fn siss_is_unbiased_for_every_lambda_and_every_thinning() {
    let reference = mean_gradients(Box::new(SissNoIs), 0.5, 0.0, 1);
    assert!(
        reference
            .iter()
            .any(|(mean, variance)| mean.abs() > 20.0 * variance.sqrt()),
        "no signal to compare"
    );
    let mut compared = 0;
    let mut seed = 2;
    for forget_prob in [0.2, 0.5, 0.8] {
        for thin_below in [0.0, 1.0, 2.0] {
            let means = mean_gradients(Box::new(Siss), forget_prob, thin_below, seed);
            seed += 1;
            assert_agree(
                &means,
                &reference,
                &format!("λ {forget_prob} τ {thin_below}"),
            );
            compared += means.len();
        }
    }
    println!("{compared} coordinates compared, 204,800 draws each");
}

/// All defaults together, which make rows depend on each other: fixed allocation, low-discrepancy
/// timesteps, τ = 1.
#[test]
fn the_defaults_are_unbiased_together() {
    let reference = mean_gradients(Box::new(SissNoIs), 0.5, 0.0, 41);
    for (seed, forget_prob) in [(42, 0.5), (43, 0.3)] {
        let sampler = FixedAllocation::new(forget_prob).unwrap();
        let policy = TimestepSampling::LowDiscrepancy;
        let means = mean_gradients_with(Box::new(Siss), &sampler, policy, 1.0, seed);
        assert_agree(&means, &reference, &format!("λ {forget_prob}"));
    }
}

/// Bernoulli: one row per sample, the same expectation.
#[test]
fn bernoulli_is_unbiased() {
    let reference = mean_gradients(Box::new(SissNoIs), 0.5, 0.0, 51);
    for (seed, forget_prob) in [(52, 0.5), (53, 0.2)] {
        let means = mean_gradients(Box::new(Bernoulli), forget_prob, 1.0, seed);
        assert_agree(&means, &reference, &format!("λ {forget_prob}"));
    }
}

/// Thinning alone is also unbiased for SISS (No IS), where all weights are 1.
#[test]
fn thinning_is_unbiased_without_importance_weights() {
    let (exact, thinned) = (
        mean_gradients(Box::new(SissNoIs), 0.5, 0.0, 31),
        mean_gradients(Box::new(SissNoIs), 0.5, 3.0, 32),
    );
    assert_agree(&thinned, &exact, "τ 3");
}

/// Compares the gradient of each side with central differences of its weighted loss, in 200 random
/// coordinates.
#[test]
fn gradients_agree_with_finite_differences() {
    let device = device();
    let batch = batch(8, 0.4, 5, &device)
        .with_forget_ids((0..8).collect())
        .unwrap();
    let mut checked = 0;
    for (case, way) in Way::methods().into_iter().enumerate() {
        let builder = SissTrainer::builder(Mlp::new(7, &device), process());
        let mut trainer = with_method(builder, way, batch.retain())
            .thin_below(0.0)
            .seed(case as u64)
            .build()
            .unwrap();
        let draws = trainer.draw(&batch).unwrap();
        let gradients = trainer.gradients(&batch, &draws).unwrap();
        let scheduler = process();
        let kind = PredictionType::Epsilon;
        let inputs = LossInputs::new(&batch, &draws, &scheduler, kind).unwrap();
        let mut loss = way.method().unwrap().loss(Some(batch.retain())).unwrap();
        let terms = loss.terms(&inputs).unwrap();
        for (term, gradient) in [
            (terms.retain, &gradients.retain),
            (terms.forget, &gradients.forget),
        ] {
            let Some(term) = term else { continue };
            let gradient = flat(trainer.model(), gradient);
            let size = norm(&gradient) / (gradient.len() as f64).sqrt();
            let mut rng = keyed_rng(case as u64, 0, 0, Stream::Evaluation);
            for _ in 0..200 {
                let index = rng.random_range(0..gradient.len());
                let step = 4e-3;
                let loss =
                    |shift| weighted_loss(&nudged(trainer.model(), index, shift), &term, &device);
                // Combining two differences cancels the third-order error.
                let slope = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
                let expected = (4.0 * slope(step) - slope(2.0 * step)) / 3.0;
                let error = (gradient[index] - expected).abs() / expected.abs().max(size);
                assert!(
                    error < 1e-3,
                    "{way} coordinate {index}: {} is not {expected}",
                    gradient[index]
                );
                checked += 1;
            }
        }
    }
    println!("{checked} coordinates checked");
}

/// `(1/B) Σ w ‖ŷ − target‖²`, summed on the host in f64.
fn weighted_loss(model: &Mlp, term: &LossTerm<2>, device: &Device) -> f64 {
    let timesteps: Vec<f32> = term.timesteps.iter().map(|&t| t as f32).collect();
    let prediction = host(
        model
            .predict(
                term.noisy.clone(),
                Tensor::from_data(timesteps.as_slice(), device),
                &(),
            )
            .inner(),
    );
    let target = host(term.target.clone());
    let squares: Vec<f64> = prediction
        .iter()
        .zip(&target)
        .map(|(p, t)| (p - t).powi(2))
        .collect();
    let rows: Vec<f64> = squares.chunks(3).map(|row| row.iter().sum()).collect();
    let weighted = term
        .rows
        .iter()
        .zip(&term.weights)
        .map(|(&row, weight)| weight * rows[row]);
    weighted.sum::<f64>() / rows.len() as f64
}

/// A denoiser that is linear in the noisy point, the same for each element.
#[derive(Module, Debug)]
struct Affine {
    layer: Linear,
}

impl Affine {
    fn new([slope, offset]: [f64; 2], device: &Device) -> Self {
        let mut layer = LinearConfig::new(1, 1).init(device);
        layer.weight = Param::from_tensor(Tensor::from_data([[slope as f32]], device));
        let offset = Tensor::from_data([offset as f32], device);
        layer.bias = Some(Param::from_tensor(offset));
        Self { layer }
    }
}

impl Denoiser<2> for Affine {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        let shape = noisy.dims();
        let elements = noisy.reshape([shape[0] * shape[1], 1]);
        self.layer.forward(elements).reshape(shape)
    }
}

/// A process of one timestep.
#[derive(Debug)]
struct OneStep;

impl Scheduler for OneStep {
    fn time_range(&self) -> TimeRange {
        TimeRange::Discrete { num_timesteps: 1 }
    }

    fn signal_scale(&self, _: f64) -> f64 {
        0.8
    }

    fn noise_scale(&self, _: f64) -> f64 {
        0.6
    }
}

/// The best affine prediction of the noise in `m = γx + σε` for points with the mean and variance
/// of `points`, which minimises the denoising loss: slope `σ / (γ² s² + σ²)`, offset
/// `−slope · γ μ`.
fn optimum(points: &[f64]) -> [f64; 2] {
    let count = points.len() as f64;
    let mean = points.iter().sum::<f64>() / count;
    let variance = points.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    let (gamma, sigma) = (OneStep.signal_scale(0.0), OneStep.noise_scale(0.0));
    let slope = sigma / (gamma * gamma * variance + sigma * sigma);
    [slope, -slope * gamma * mean]
}

/// The paper's Eq. 4, up to a constant factor: with x from X *including* A and the forget gradient
/// scaled by k/n, SISS converges to the optimum of X ∖ A.
#[test]
fn siss_lands_on_the_optimum_of_the_retained_points() {
    let device = device();
    let retained = [-1.0, -0.6, -0.3, -0.1, 0.0, 0.2, 0.3, 0.7];
    let forgotten = [1.6, 2.0];
    let all: Vec<f64> = retained.iter().chain(&forgotten).copied().collect();
    let (with, without) = (optimum(&all), optimum(&retained));

    let share = forgotten.len() as f64 / all.len() as f64;
    let steps = 600;
    let falling = burn::optim::lr_scheduler::linear::LinearLrSchedulerConfig::new(0.1, 0.0, steps);
    let mut trainer = SissTrainer::builder(Affine::new(with, &device), OneStep)
        .clipper(ConstantScale::new(share).unwrap())
        .optimizer(SgdConfig::new().init())
        .learning_rate(falling.init().unwrap())
        .max_grad_norm(None)
        .build()
        .unwrap();
    for step in 0..steps as u64 {
        let mut rng = keyed_rng(17, step, 0, Stream::Pairs);
        let mut pick = |points: &[f64]| -> Vec<f64> {
            (0..1000)
                .map(|_| points[rng.random_range(0..points.len())])
                .collect()
        };
        let (x, a) = (
            scalars(&pick(&all), &device),
            scalars(&pick(&forgotten), &device),
        );
        trainer.step(UnlearningBatch::new(x, a).unwrap()).unwrap();
    }
    let landed = parameters(&trainer.into_model());
    for (landed, (without, with)) in landed.iter().zip(without.iter().zip(&with)) {
        println!(
            "landed on {landed:.4}, optimum without the forgotten points {without:.4}, with them {with:.4}"
        );
        assert!((landed - without).abs() < 0.05 * (with - without).abs());
    }
}

/// The loss of an affine model on a point whose elements all equal `a`: with `m = γa + σε` the
/// residual is `s γ a + o + (s σ − 1) ε`.
fn affine_loss(model: &Affine, a: f64) -> f64 {
    let [slope, offset] = parameters(model).try_into().unwrap();
    let (gamma, sigma) = (OneStep.signal_scale(0.0), OneStep.noise_scale(0.0));
    (slope * gamma * a + offset).powi(2) + (slope * sigma - 1.0).powi(2)
}

/// One affine model for rows whose mean is below a threshold, and another for rows above it. It can
/// forget a distant point without losing anything else, like a large network.
#[derive(Module, Debug)]
struct Gated {
    near: Affine,
    far: Affine,
}

impl Denoiser<2> for Gated {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()) -> Tensor<2> {
        let is_far = noisy.clone().mean_dim(1).greater_elem(0.9);
        let is_far = is_far.expand(noisy.dims());
        let near = self.near.predict(noisy.clone(), timesteps.clone(), &());
        near.mask_where(is_far, self.far.predict(noisy, timesteps, &()))
    }
}

/// Steered from below and from above, the loss on the forgotten point reaches its level and stays
/// there for any number of steps; without a level it keeps rising.
#[test]
fn steered_forgetting_lands_on_its_level_and_stays() {
    const ELEMENTS: usize = 256;
    let device = device();
    let (retained, forgotten, level) = ([-0.9, -0.5, -0.1, 0.3, 0.6, 0.7], 1.6, 0.5);
    let levels = || Levels::new(vec![0.0, 999.0], vec![vec![level; 2]]).unwrap();
    let points = |values: &[f64]| scalars(values, &device).repeat_dim(1, ELEMENTS);
    let rows: Vec<f64> = retained.repeat(4);
    let (gamma, sigma) = (OneStep.signal_scale(0.0), OneStep.noise_scale(0.0));
    // A prediction of the noise in `γa + σε` that is exact at the forgotten point.
    let memorised = [1.0 / sigma, -gamma * forgotten / sigma];

    for (start, is_steered) in [(memorised, true), ([1.0, -0.3], true), (memorised, false)] {
        let model = Gated {
            near: Affine::new([1.2, 0.1], &device),
            far: Affine::new(start, &device),
        };
        let mut builder = SissTrainer::builder(model, OneStep)
            .optimizer(SgdConfig::new().init())
            // The loss is a sum over elements.
            .learning_rate(0.05 / ELEMENTS as f64)
            .max_grad_norm(None);
        if is_steered {
            builder = builder.steering(Steering::new(levels()));
        }
        let mut trainer = builder.build().unwrap();
        let ratio = |model: &Gated| affine_loss(&model.far, forgotten) / level;
        let mut ratios = vec![ratio(trainer.model())];
        for step in 1..=3000 {
            let forget = points(&[forgotten; 24]);
            let batch = UnlearningBatch::new(points(&rows), forget).unwrap();
            trainer.step(batch).unwrap();
            if step % 500 == 0 {
                ratios.push(ratio(trainer.model()));
            }
        }
        println!("steered: {is_steered}; loss over level {ratios:.3?}");
        let off = |ratio: &f64| (ratio - 1.0).abs();
        assert!(off(&ratios[0]) > 0.3, "{ratios:?}");
        let landed = &ratios[4..];
        if is_steered {
            assert!(landed.iter().all(|ratio| off(ratio) < 0.15), "{ratios:?}");
        } else {
            assert!(landed.iter().all(|&ratio| ratio > 2.0), "{ratios:?}");
        }
    }
}
