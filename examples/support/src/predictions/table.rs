//! The comparisons as tables.

use crate::probe::mean;

use super::{ALL, Comparison, MEMORISED, RETRAINED, TIMESTEPS};

/// A table of the predictors, and one of the kinds of images for all predictors together. Each
/// cell is the mean cosine and, in brackets, the mean R².
pub fn table(comparisons: &[Comparison]) -> String {
    let mut table = heading("answers, retained points");
    for key in keys(comparisons, |c| (&c.answers, c.retained)) {
        let group = picked(comparisons, |c| (&c.answers, c.retained) == key);
        table += &line(&group);
    }
    let most = comparisons.iter().filter_map(|c| c.retained).max();
    table += &format!("\n{}", heading("kind of image, answers"));
    for kind in keys(comparisons, |c| &c.kind) {
        for (answers, retained) in [(ALL, most), (MEMORISED, None), (RETRAINED, None)] {
            let group = picked(comparisons, |c| {
                c.kind == *kind && c.answers == answers && c.retained == retained
            });
            table += &row(&format!("{kind}, {answers}"), &group);
        }
    }
    table
}

/// The row of a predictor.
pub fn line(group: &[&Comparison]) -> String {
    let title = group
        .first()
        .map_or(String::new(), |first| match first.retained {
            Some(retained) => format!("{}, {retained}", first.answers),
            None => first.answers.clone(),
        });
    row(&title, group)
}

fn heading(title: &str) -> String {
    let steps: Vec<String> = TIMESTEPS.iter().map(|t| format!("t = {t}")).collect();
    format!(
        "| {title} | {} |\n|---|{}\n",
        steps.join(" | "),
        "---|".repeat(TIMESTEPS.len())
    )
}

fn row(title: &str, group: &[&Comparison]) -> String {
    let cell = |timestep: usize| {
        let of_step = group.iter().filter(|c| c.timestep == timestep);
        let (cosines, r_squared): (Vec<f64>, Vec<f64>) =
            of_step.map(|c| (c.cosine, 1.0 - c.distance)).unzip();
        format!("{:.2} ({:.2})", mean(&cosines), mean(&r_squared))
    };
    let cells: Vec<String> = TIMESTEPS.into_iter().map(cell).collect();
    format!("| {title} | {} |\n", cells.join(" | "))
}

/// The distinct keys in the order of their first appearance.
fn keys<'a, K: PartialEq>(
    comparisons: &'a [Comparison],
    key: impl Fn(&'a Comparison) -> K,
) -> Vec<K> {
    let mut keys = Vec::new();
    for comparison in comparisons {
        let key = key(comparison);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

fn picked<'a>(
    comparisons: &'a [Comparison],
    picks: impl Fn(&'a Comparison) -> bool,
) -> Vec<&'a Comparison> {
    comparisons.iter().filter(|c| picks(c)).collect()
}
