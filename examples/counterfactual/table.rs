//! The comparisons as a table and as a plot.

use siss::report::{Panel, Plot, Series};
use siss_support::probe::mean;

use crate::{Comparison, TIMESTEPS};

/// `ln(predicted / actual)` of the comparisons that `picks` selects.
fn logarithms(comparisons: &[Comparison], picks: impl Fn(&Comparison) -> bool) -> Vec<f64> {
    let picked = comparisons.iter().filter(|comparison| picks(comparison));
    picked
        .map(|comparison| (comparison.predicted / comparison.actual).ln())
        .collect()
}

/// One line per way to predict: mean |ln(predicted / actual)|, and in brackets the mean without the
/// bars.
pub fn table(comparisons: &[Comparison]) -> String {
    let mut ways: Vec<(&str, usize, &str)> = Vec::new();
    for comparison in comparisons {
        let way = (
            comparison.form.as_str(),
            comparison.retained,
            comparison.controls.as_str(),
        );
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
    let steps: Vec<String> = TIMESTEPS.iter().map(|t| format!("t = {t}")).collect();
    let mut table = format!(
        "| predicted from | retained | control points | {} | all |\n|---|---|---|{}---|\n",
        steps.join(" | "),
        "---|".repeat(TIMESTEPS.len())
    );
    let cell = |logarithms: &[f64]| {
        let sizes: Vec<f64> = logarithms.iter().map(|value| value.abs()).collect();
        format!("{:.2} ({:+.2})", mean(&sizes), mean(logarithms))
    };
    for (form, retained, controls) in ways {
        let of_way =
            |c: &Comparison| c.form == form && c.retained == retained && c.controls == controls;
        let cells: Vec<String> = TIMESTEPS
            .iter()
            .map(|&timestep| {
                cell(&logarithms(comparisons, |c| {
                    of_way(c) && c.timestep == timestep
                }))
            })
            .chain([cell(&logarithms(comparisons, of_way))])
            .collect();
        table += &format!(
            "| {form} | {retained} | {controls} | {} |\n",
            cells.join(" | ")
        );
    }
    table
}

/// Ratio of predicted to actual loss at each timestep, with one curve per kind of image, for the
/// largest number of retained points.
pub fn plot(comparisons: &[Comparison]) -> Plot {
    let most = comparisons
        .iter()
        .map(|c| c.retained)
        .max()
        .unwrap_or_default();
    // The last of the forms, which is the default of the library if all are compared.
    let form = comparisons
        .last()
        .map(|comparison| comparison.form.as_str());
    let best = |c: &Comparison| {
        Some(c.form.as_str()) == form && c.retained == most && c.controls == "unseen"
    };
    let mut kinds: Vec<&str> = Vec::new();
    for comparison in comparisons {
        if !kinds.contains(&comparison.kind.as_str()) {
            kinds.push(&comparison.kind);
        }
    }
    let panel = Panel::new("Predicted over actual loss")
        .x_label("timestep")
        .y_label("geometric mean over the images of a kind")
        .log_y()
        .reference("exact", 1.0);
    let panel = kinds.iter().fold(panel, |panel, &kind| {
        let ratio = |timestep: usize| {
            let picks = |c: &Comparison| best(c) && c.kind == kind && c.timestep == timestep;
            (timestep as f64, mean(&logarithms(comparisons, picks)).exp())
        };
        panel.series(Series::new(kind, TIMESTEPS.map(ratio)))
    });
    Plot::new().panel(panel)
}
