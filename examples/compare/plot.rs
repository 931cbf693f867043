//! Plots how the methods depend on the number of steps.

use siss::report::{Panel, Plot, Series};

use crate::{BEFORE, Run};

/// A steered run should stay below this distance.
const GOAL: f64 = 0.25;

/// The rise of the digits' loss should stay below this, in per cent.
const DIGITS_GOAL: f64 = 2.0;

/// Distance to the retrained model and rise of the digits' loss against the number of steps: means
/// over the seeds, for methods that were run with several numbers of steps.
pub fn steps(runs: &[Run]) -> Plot {
    let mut distance = Panel::new("How far from the retrained model")
        .x_label("steps")
        .y_label("distance (mean |ln|)")
        .log_y()
        .reference("goal", GOAL);
    let mut digits = Panel::new("What the digits lost, at t = 400")
        .x_label("steps")
        .y_label("rise of their loss, %")
        .log_y()
        .reference("goal", DIGITS_GOAL);
    let Some(before) = runs.iter().find(|run| run.method == BEFORE) else {
        return Plot::new().panel(distance).panel(digits);
    };
    let plain = runs.iter().filter(|run| run.steps > 0 && run.is_plain());
    let plain: Vec<&Run> = plain.collect();
    let mut methods: Vec<&str> = plain.iter().map(|run| run.method.as_str()).collect();
    methods.sort_unstable();
    methods.dedup();
    for method in methods {
        let of_method: Vec<&Run> = plain
            .iter()
            .copied()
            .filter(|run| run.method == method)
            .collect();
        let points = |value: &dyn Fn(&Run) -> f64| means(&of_method, value);
        let distances = points(&|run| run.distance_to_retrained);
        if distances.len() < 2 {
            continue;
        }
        let change = |run: &Run| 100.0 * (run.digits_loss_400 / before.digits_loss_400 - 1.0);
        distance = distance.series(Series::new(method, distances));
        digits = digits.series(Series::new(method, points(&change)));
    }
    Plot::new().panel(distance).panel(digits)
}

/// The mean of a value over the seeds, per number of steps.
fn means(runs: &[&Run], value: &dyn Fn(&Run) -> f64) -> Vec<(f64, f64)> {
    let mut steps: Vec<usize> = runs.iter().map(|run| run.steps).collect();
    steps.sort_unstable();
    steps.dedup();
    let mean = |steps: usize| {
        let values: Vec<f64> = runs
            .iter()
            .filter(|run| run.steps == steps)
            .map(|run| value(run))
            .collect();
        (
            steps as f64,
            values.iter().sum::<f64>() / values.len() as f64,
        )
    };
    steps.into_iter().map(mean).collect()
}
