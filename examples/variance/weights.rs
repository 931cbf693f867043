//! Importance weights at every timestep: their variance, their effective share, and the number of
//! rows that run.

use serde::Serialize;
use siss::burn::tensor::Tensor;
use siss::draws::{Stream, normal_noise};
use siss::objective::survivors;
use siss::objective::{importance_weights, mixture_points};
use siss::process::SchedulerExt;
use siss::report::{Panel, Plot, Series};
use siss::{DdpmScheduler, PairSampler, Scheduler};

use crate::Result;

const FORGET_PROB: f64 = 0.5;
/// Without thinning, weights below this fraction of the largest are left out.
const NEGLIGIBLE: f64 = 1e-6;
/// Distance between the timesteps of the plot, and of the data that are not bundled.
const STRIDE: usize = 10;
const NUM_TIMESTEPS: usize = 1000;

/// The weights at one timestep: one line of the file; means over the two sides.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    data: &'static str,
    source: &'static str,
    timestep: usize,
    /// `Var w`; `E w = 1`.
    variance: f64,
    /// `(E w)² / E w²`: the fraction of equally weighted rows that would be as effective.
    effective_share: f64,
    /// Rows per sample without thinning, and at `τ = 1`.
    rows_exact: f64,
    rows_thinned: f64,
}

const MEASURED: &str = "measured";
const CLOSED_FORM: &str = "closed form";
const DIGITS: &str = "digits and T-shirt";

/// The curves of the bundled data, measured and from the closed form, and of other data from the
/// closed form.
pub fn curves(pairs: &PairSampler<4>, count: usize) -> Result<Vec<Point>> {
    let linear = DdpmScheduler::linear(NUM_TIMESTEPS)?;
    let latent = DdpmScheduler::scaled_linear(NUM_TIMESTEPS)?;
    let retain = pairs.retain().clone().narrow(0, 0, count);
    let forget = pairs.forget().clone().repeat_dim(0, count);
    let difference = retain.clone() - forget.clone();
    let squares: Tensor<4> = difference.square().sum_dims(&[1, 2, 3]);
    let squares = squares.into_data();
    let distances: Vec<f64> = squares.iter::<f64>().map(f64::sqrt).collect();

    let mut points = Vec::new();
    for timestep in 0..NUM_TIMESTEPS {
        points.push(measured(&linear, &retain, &forget, timestep)?);
        points.push(closed_form(DIGITS, &linear, &distances, timestep));
    }
    for (data, scheduler, distance) in [
        ("colour 32×32", &linear, 45.0),
        ("faces 256×256", &linear, 310.0),
        ("latents", &latent, 181.0),
    ] {
        let timesteps = (0..NUM_TIMESTEPS).step_by(STRIDE);
        points.extend(timesteps.map(|t| closed_form(data, scheduler, &[distance], t)));
    }
    Ok(points)
}

/// Measures weights from the crate's own draws: half of the rows come from each side.
fn measured(
    scheduler: &DdpmScheduler,
    retain: &Tensor<4>,
    forget: &Tensor<4>,
    timestep: usize,
) -> Result<Point> {
    let (shape, device) = (retain.dims(), retain.device());
    let rows = shape[0];
    let from_forget: Vec<bool> = (0..rows).map(|row| row % 2 == 1).collect();
    let scales = scheduler.scales(&vec![timestep as f64; rows])?;
    let noise = normal_noise(shape, 0, timestep as u64, 0, Stream::Noise, &device);
    let points = mixture_points(retain.clone(), forget.clone(), noise, &scales, &from_forget)?;
    let log_ratios = points.log_ratio.into_data();
    let weights: Vec<_> = log_ratios
        .iter::<f64>()
        .map(|log_ratio| importance_weights(log_ratio, FORGET_PROB))
        .collect();
    let sides = [
        weights.iter().map(|weight| weight.retain).collect(),
        weights.iter().map(|weight| weight.forget).collect(),
    ];
    let mean = |value: &dyn Fn(&Vec<f64>) -> f64| sides.iter().map(value).sum::<f64>() / 2.0;
    let moment = |weights: &Vec<f64>, power| {
        weights.iter().map(|weight| weight.powi(power)).sum::<f64>() / rows as f64
    };
    let share = |weights: &Vec<f64>| moment(weights, 1).powi(2) / moment(weights, 2);
    let run = |thin_below: f64| {
        let survive = |weights: &Vec<f64>| survivors(weights, thin_below, 0.5).positions.len();
        mean(&|weights| 2.0 * survive(weights) as f64 / rows as f64)
    };
    Ok(Point {
        data: DIGITS,
        source: MEASURED,
        timestep,
        variance: rounded(mean(&|w| moment(w, 2) - moment(w, 1).powi(2))),
        effective_share: rounded(mean(&share)),
        rows_exact: rounded(run(0.0)),
        rows_thinned: rounded(run(1.0)),
    })
}

/// The closed form: integrals over the standard normal variable that determines the weights at a
/// given distance (docs/maths.md, section 6), averaged over the distances of the pairs.
fn closed_form(
    data: &'static str,
    scheduler: &DdpmScheduler,
    distances: &[f64],
    timestep: usize,
) -> Point {
    let time = timestep as f64;
    let ratio = scheduler.signal_scale(time) / scheduler.noise_scale(time);
    let (mut square, mut exact, mut thinned) = (0.0, 0.0, 0.0);
    let (nodes, heaviest) = (gaussian_nodes(), 1.0 / FORGET_PROB);
    for distance in distances {
        let length = ratio * distance;
        for &(standard, density) in &nodes {
            // δ = Δξ ∓ Δ²/2, depending on whether the noisy point comes from x or from a.
            for side in [-0.5, 0.5] {
                let log_ratio = length * standard + side * length * length;
                let weights = importance_weights(log_ratio, FORGET_PROB);
                for weight in [weights.retain, weights.forget] {
                    let mass = density / (4.0 * distances.len() as f64);
                    square += mass * weight * weight;
                    exact += mass * f64::from(weight >= NEGLIGIBLE * heaviest);
                    thinned += mass * weight.min(1.0);
                }
            }
        }
    }
    Point {
        data,
        source: CLOSED_FORM,
        timestep,
        variance: rounded(square - 1.0),
        effective_share: rounded(1.0 / square),
        rows_exact: rounded(2.0 * exact),
        rows_thinned: rounded(2.0 * thinned),
    }
}

/// Nodes and probabilities of a standard normal variable, for integration.
fn gaussian_nodes() -> Vec<(f64, f64)> {
    let spacing = 1.0 / 16.0;
    let density = |x: f64| spacing * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let nodes = (-128..=128).map(|index| f64::from(index) * spacing);
    nodes.map(|x| (x, density(x))).collect()
}

fn rounded(value: f64) -> f64 {
    (value * 1e5).round() / 1e5
}

/// Variance, effective share and rows against the timestep.
pub fn plot(points: &[Point]) -> Plot {
    let series = |label: &str, data: &str, source: &str, value: fn(&Point) -> f64| {
        let picked = points.iter().filter(|point| {
            (point.data, point.source) == (data, source) && point.timestep.is_multiple_of(STRIDE)
        });
        Series::new(
            label,
            picked.map(|point| (point.timestep as f64, value(point))),
        )
    };
    let over_data = |title: &str, name: &str, value: fn(&Point) -> f64| {
        let panel = Panel::new(title).x_label("timestep").y_label(name);
        let panel = panel.series(series("digits, measured", DIGITS, MEASURED, value));
        let others = ["colour 32×32", "faces 256×256", "latents"];
        [DIGITS]
            .into_iter()
            .chain(others)
            .fold(panel, |panel, data| {
                panel.series(series(data, data, CLOSED_FORM, value))
            })
    };
    type Value = fn(&Point) -> f64;
    let rows: [(&str, &str, Value); 4] = [
        ("exact, measured", MEASURED, |point| point.rows_exact),
        ("exact", CLOSED_FORM, |point| point.rows_exact),
        ("τ = 1, measured", MEASURED, |point| point.rows_thinned),
        ("τ = 1", CLOSED_FORM, |point| point.rows_thinned),
    ];
    let panel = Panel::new("Rows of digits that are run")
        .x_label("timestep")
        .y_label("rows per sample");
    let panel = rows
        .into_iter()
        .fold(panel, |panel, (label, source, value)| {
            panel.series(series(label, DIGITS, source, value))
        });
    Plot::new()
        .panel(over_data(
            "Variance of the importance weights",
            "variance",
            |point| point.variance,
        ))
        .panel(over_data(
            "What a weighted row is worth",
            "effective share",
            |point| point.effective_share,
        ))
        .panel(panel)
        .columns(1)
}
