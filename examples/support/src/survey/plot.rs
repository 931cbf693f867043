//! Plots how close the methods come over the steps, and what it costs.

use siss::report::{Panel, Plot, Series};

use crate::probe::mean;

use super::line::{BEFORE, Line, RETRAINED};

/// For each case and number of forgotten points, the answer distance and the held-out loss against
/// the number of steps: means over the seeds.
pub fn plot(runs: &[Line]) -> Plot {
    let mut requests: Vec<(&str, usize)> = Vec::new();
    for run in runs {
        let request = (run.case.as_str(), run.points);
        if !requests.contains(&request) {
            requests.push(request);
        }
    }
    let panels = requests.into_iter().flat_map(|(case, points)| {
        let of_request = |run: &&Line| (run.case.as_str(), run.points) == (case, points);
        let runs: Vec<&Line> = runs.iter().filter(of_request).collect();
        panels(&format!("{case}, {points} forgotten"), &runs)
    });
    panels.fold(Plot::new().columns(2), Plot::panel)
}

fn panels(title: &str, runs: &[&Line]) -> [Panel; 2] {
    let panel = |what: &str| Panel::new(format!("{title}: {what}")).x_label("steps");
    let mut distance = panel("how far from a retrained model")
        .y_label("answer distance")
        .log_y();
    let mut heldout = panel("what is lost, at t = 400").y_label("rise of the held-out loss, %");
    let of_model = |name: &str| runs.iter().find(|run| run.method == name);
    for (name, label) in [(BEFORE, "before"), (RETRAINED, "another retrained model")] {
        if let Some(run) = of_model(name) {
            distance = distance.reference(label, run.answer);
        }
    }
    for (label, runs) in curves(runs) {
        let points = |start: Option<f64>, value: fn(&Line) -> f64| {
            let start = start.map(|value| (0.0, value));
            Series::new(label.clone(), start.into_iter().chain(means(&runs, value)))
        };
        let before = of_model(BEFORE).map(|run| run.answer);
        distance = distance.series(points(before, |run| run.answer));
        heldout = heldout.series(points(Some(0.0), |run| run.heldout_400));
    }
    [distance, heldout]
}

/// The runs of each method with its settings.
fn curves<'a>(runs: &[&'a Line]) -> Vec<(String, Vec<&'a Line>)> {
    let mut curves: Vec<(String, Vec<&Line>)> = Vec::new();
    for &run in runs.iter().filter(|run| run.is_unlearned()) {
        let label = run.title();
        match curves.iter_mut().find(|(known, _)| *known == label) {
            Some((_, runs)) => runs.push(run),
            None => curves.push((label, vec![run])),
        }
    }
    curves
}

/// The mean of a value over the seeds, by number of steps.
fn means(runs: &[&Line], value: fn(&Line) -> f64) -> Vec<(f64, f64)> {
    let mut steps: Vec<usize> = runs.iter().map(|run| run.steps).collect();
    steps.sort_unstable();
    steps.dedup();
    let of_steps = |steps: usize| {
        let runs = runs.iter().filter(|run| run.steps == steps);
        let values: Vec<f64> = runs.map(|run| value(run)).collect();
        (steps as f64, mean(&values))
    };
    steps.into_iter().map(of_steps).collect()
}
