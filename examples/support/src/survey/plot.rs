//! Plots how close the methods come, and what it costs.

use siss::report::{Panel, Plot, Series};

use crate::probe::mean;

use super::line::{BEFORE, Line, RETRAINED};

/// A rise of the held-out loss, in per cent, beyond which a run is named and not drawn.
const FARTHEST: f64 = 10.0;

/// For each case and number of forgotten points, the answer distance and the held-out loss against
/// the number of steps: means over the seeds.
pub fn steps(runs: &[Line]) -> Plot {
    let panels = requests(runs)
        .into_iter()
        .flat_map(|(title, runs)| panels(&title, &runs));
    panels.fold(Plot::new().columns(2), Plot::panel)
}

/// For each case and number of forgotten points, the answer distance of each run against its
/// held-out loss, of methods with settings of their own: a run is better than another that is above
/// it and to its right. `None` where nothing was unlearned.
pub fn costs(runs: &[Line]) -> Option<Plot> {
    let of_own = |run: &&Line| run.title() == run.method;
    let requests = requests(runs).into_iter().filter_map(|(title, runs)| {
        let runs: Vec<&Line> = runs.into_iter().filter(of_own).collect();
        let is_run = runs.iter().any(|run| run.is_unlearned());
        is_run.then(|| cost(&title, &runs))
    });
    let plot = requests.fold(None, |plot: Option<Plot>, panel| {
        Some(plot.unwrap_or_default().panel(panel))
    });
    plot.map(|plot| plot.columns(2))
}

/// The runs of each case and number of forgotten points.
fn requests(runs: &[Line]) -> Vec<(String, Vec<&Line>)> {
    let mut requests: Vec<(String, Vec<&Line>)> = Vec::new();
    for run in runs {
        let title = format!("{}, {} forgotten", run.case, run.points);
        match requests.iter_mut().find(|(known, _)| *known == title) {
            Some((_, runs)) => runs.push(run),
            None => requests.push((title, vec![run])),
        }
    }
    requests
}

fn cost(title: &str, runs: &[&Line]) -> Panel {
    let mut panel = Panel::new(title)
        .x_label("rise of the held-out loss at t = 400, %")
        .y_label("answer distance")
        .log_y();
    for (label, runs) in curves(runs) {
        let (near, far): (Vec<&Line>, Vec<&Line>) =
            runs.iter().partition(|run| run.heldout_400 <= FARTHEST);
        let label = match far.iter().map(|run| run.heldout_400).reduce(f64::max) {
            Some(most) => format!("{label} (up to {most:+.0} %, not drawn)"),
            None => label,
        };
        // Between two runs there is no line.
        let gap = (f64::NAN, f64::NAN);
        let points = near
            .iter()
            .flat_map(|run| [(run.heldout_400, run.answer), gap]);
        panel = panel.series(Series::new(label, points));
    }
    with_references(panel, runs)
}

/// A line at the answer distance of the models that were not unlearned: of retrained ones the mean.
fn with_references(panel: Panel, runs: &[&Line]) -> Panel {
    let names = [(BEFORE, "before"), (RETRAINED, "other retrained models")];
    names.into_iter().fold(panel, |panel, (name, label)| {
        let runs = runs.iter().filter(|run| run.method == name);
        let answers: Vec<f64> = runs.map(|run| run.answer).collect();
        match answers.is_empty() {
            true => panel,
            false => panel.reference(label, mean(&answers)),
        }
    })
}

fn panels(title: &str, runs: &[&Line]) -> [Panel; 2] {
    let panel = |what: &str| Panel::new(format!("{title}: {what}")).x_label("steps");
    let distance = panel("how far from a retrained model");
    let mut distance = with_references(distance.y_label("answer distance").log_y(), runs);
    let mut heldout = panel("what is lost, at t = 400").y_label("rise of the held-out loss, %");
    let before = runs.iter().find(|run| run.method == BEFORE);
    let before = before.map(|run| run.answer);
    for (label, runs) in curves(runs) {
        let points = |start: Option<f64>, value: fn(&Line) -> f64| {
            let start = start.map(|value| (0.0, value));
            Series::new(label.clone(), start.into_iter().chain(means(&runs, value)))
        };
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use siss::backend::DeviceSpec;

    use super::super::Options;
    use super::super::line::Measured;
    use super::*;

    #[test]
    fn runs_that_cost_too_much_are_named() {
        let words = "closeness --methods siss,erase-diff --steps 5 --seeds 0,1";
        let settings = Options::parse_from(words.split_whitespace()).settings(1);
        let measured = Measured {
            answer: 0.5,
            ..Measured::default()
        };
        let line = |setting| Line::of(setting, DeviceSpec::Flex, &measured);
        let mut runs: Vec<Line> = settings.iter().map(line).collect();
        assert_eq!((runs[5].method.as_str(), runs.len()), ("siss", 7));
        let svg = |runs: &[Line]| costs(runs).unwrap().to_svg().unwrap();
        let dots = |runs: &[Line]| svg(runs).matches("<circle").count();
        assert_eq!(dots(&runs), 4);
        runs[5].heldout_400 = 358.2;
        assert_eq!(dots(&runs), 3);
        runs[6].clipper = "fraction:0.5:1".into();
        assert_eq!(dots(&runs), 2);
        let svg = svg(&runs);
        assert_eq!(costs(&runs[..3]), None);
        assert!(svg.contains("siss (up to +358 %, not drawn)"), "{svg}");
    }
}
