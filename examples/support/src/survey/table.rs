//! The runs as a table of a Markdown page.

use crate::probe::mean;

use super::line::{Line, RETRAINED};

/// What runs have in common that differ only in their seed.
type Key<'a> = (&'a str, usize, String, usize, usize, usize);

fn key(run: &Line) -> Key<'_> {
    let Line {
        points,
        steps,
        batch,
        samples,
        ..
    } = *run;
    (&run.case, points, run.title(), steps, batch, samples)
}

/// A row for each method, clipper and number of steps: means over the seeds, and least and most
/// where there are several.
pub fn table(runs: &[Line]) -> String {
    let mut keys: Vec<Key<'_>> = Vec::new();
    for run in runs {
        if !keys.contains(&key(run)) {
            keys.push(key(run));
        }
    }
    keys.sort_by_key(|(case, points, title, steps, ..)| {
        let is_unlearned = *steps > 0;
        (*case, *points, is_unlearned, title.clone(), *steps)
    });
    let mut table = String::from(
        "| case | points | method | steps | seeds | answer distance | at t = 100, 250, 400 | cosine | \
         denoised from 250, 400 | neighbourhood | loss distance | over the floor: answers, denoised \
         from 400, neighbourhood, loss | held-out loss, % | copies | of | \
         inception score | evenness | sliced distance | likelihood of unseen, forgotten | membership | \
         relearning | rows per sample | seconds |\n",
    );
    table += &format!("|{}\n", "---|".repeat(23));
    for of_group in keys {
        let group: Vec<&Line> = runs.iter().filter(|run| key(run) == of_group).collect();
        let is_floor = |run: &&Line| {
            run.method == RETRAINED && (run.case.as_str(), run.points) == (of_group.0, of_group.1)
        };
        let floor: Vec<&Line> = runs.iter().filter(is_floor).collect();
        table += &row(&group, &over(&group, &floor));
    }
    table
}

/// A value of a run.
type Value = fn(&Line) -> f64;

/// Distances divided by those of the other retrained models, means over runs.
fn over(group: &[&Line], floor: &[&Line]) -> String {
    let distances: [Value; 4] = [
        |run| run.answer,
        |run| run.denoised_400,
        |run| run.neighbourhood,
        |run| run.loss,
    ];
    let average = |runs: &[&Line], value: Value| {
        mean(&runs.iter().map(|run| value(run)).collect::<Vec<f64>>())
    };
    if floor.is_empty() {
        return "–".into();
    }
    let ratios = distances.map(|value| average(group, value) / average(floor, value));
    ratios.map(|ratio| format!("{ratio:.1}")).join(", ")
}

fn row(group: &[&Line], over_floor: &str) -> String {
    let values = |value: Value| group.iter().map(|run| value(run)).collect::<Vec<f64>>();
    let means = |of: &[Value], decimals: usize| {
        let means = of.iter().map(|&value| mean(&values(value)));
        let texts: Vec<String> = means.map(|mean| format!("{mean:.decimals$}")).collect();
        texts.join(", ")
    };
    let spread = |value: Value| {
        let values = values(value);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match values.len() {
            1 => format!("{least:.3}"),
            _ => format!("{:.3} ({least:.3}–{most:.3})", mean(&values)),
        }
    };
    // Of the runs that have it.
    let known = |value: fn(&Line) -> Option<f64>, decimals: usize| {
        let values: Vec<f64> = group.iter().filter_map(|run| value(run)).collect();
        match values.is_empty() {
            true => "–".into(),
            false => format!("{:.decimals$}", mean(&values)),
        }
    };
    let changes = [
        |run: &Line| run.heldout_100,
        |run: &Line| run.heldout_250,
        |run: &Line| run.heldout_400,
    ];
    let changes = changes.map(|value: Value| format!("{:+.1}", mean(&values(value))));
    let copies: Vec<String> = group.iter().map(|run| run.copies.to_string()).collect();
    let thorough = group.iter().filter(|run| run.likelihood_heldout.is_some());
    let relearning: Vec<String> = thorough
        .map(|run| (run.relearning).map_or("none".into(), |steps| steps.to_string()))
        .collect();
    let first = group[0];
    let cells = [
        first.case.clone(),
        first.points.to_string(),
        first.title(),
        first.steps.to_string(),
        group.len().to_string(),
        spread(|run| run.answer),
        means(
            &[
                |run| run.answer_100,
                |run| run.answer_250,
                |run| run.answer_400,
            ],
            2,
        ),
        means(
            &[
                |run| run.cosine_100,
                |run| run.cosine_250,
                |run| run.cosine_400,
            ],
            2,
        ),
        means(&[|run| run.denoised_250, |run| run.denoised_400], 2),
        means(&[|run| run.neighbourhood], 3),
        spread(|run| run.loss),
        over_floor.into(),
        changes.join(", "),
        copies.join(", "),
        first.samples.to_string(),
        known(|run| run.inception_score, 2),
        known(|run| run.evenness, 3),
        known(|run| run.sliced, 1),
        [
            known(|run| run.likelihood_heldout, 3),
            known(|run| run.likelihood_forgotten, 3),
        ]
        .join(", "),
        known(|run| run.membership, 3),
        relearning.join(", "),
        means(&[|run| run.rows_per_sample], 2),
        means(&[|run| run.seconds], 0),
    ];
    format!("| {} |\n", cells.join(" | "))
}
