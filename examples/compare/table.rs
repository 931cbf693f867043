//! Tables of the runs for a Markdown page.

use crate::{BATCH, BEFORE, RETRAINED, Run};

/// One row per method and number of steps: means over the seeds, in the order of the file.
pub fn methods(runs: &[Run]) -> String {
    table(runs, Run::is_plain)
}

/// The same table for runs with other options, another batch or another number of images, or with
/// further training.
pub fn variations(runs: &[Run]) -> String {
    table(runs, |run| !run.is_plain())
}

/// The properties shared by runs that differ only in their seed.
type Key<'a> = (&'a str, &'a str, usize, usize, usize, usize);

fn key(run: &Run) -> Key<'_> {
    let (method, with) = (run.method.as_str(), run.with.as_str());
    let Run {
        steps,
        afterwards,
        batch,
        samples,
        ..
    } = *run;
    (method, with, steps, afterwards, batch, samples)
}

fn table(runs: &[Run], belongs: impl Fn(&Run) -> bool) -> String {
    // Runs from before there was a classifier have no score.
    let is_judged = runs.iter().any(|run| run.inception_score.is_some());
    let mut heading = String::from(
        "| method | steps | T-shirts | of | loss at t = 100 | 250 | 400 | distance | digits' loss | rows per sample |",
    );
    if is_judged {
        heading += " inception score | evenness |";
    }
    let columns = heading.matches(" |").count();
    let mut table = format!("{heading}\n|{}\n", "---|".repeat(columns));
    let Some(before) = runs.iter().find(|run| run.method == BEFORE) else {
        return table;
    };
    let mut keys: Vec<Key<'_>> = Vec::new();
    for run in runs.iter().filter(|run| belongs(run)) {
        if !keys.contains(&key(run)) {
            keys.push(key(run));
        }
    }
    keys.sort_by_key(|&(method, with, steps, ..)| {
        (![BEFORE, RETRAINED].contains(&method), with, steps)
    });
    for of_group in keys {
        let group: Vec<&Run> = runs.iter().filter(|run| key(run) == of_group).collect();
        table += &row(&group, before);
        if is_judged {
            table += &judged(&group);
        }
        table += "\n";
    }
    table
}

/// The method, and how its runs differ from the others.
fn title(run: &Run) -> String {
    let mut title = run.method.clone();
    if !run.with.is_empty() {
        title += &format!(", `{}`", run.with);
    }
    if run.batch != BATCH {
        title += &format!(", batches of {}", run.batch);
    }
    if run.afterwards > 0 {
        title += &format!(", then {} steps on digits", run.afterwards);
    }
    title
}

fn row(group: &[&Run], before: &Run) -> String {
    let values =
        |value: fn(&Run) -> f64| -> Vec<f64> { group.iter().map(|&run| value(run)).collect() };
    let mean = |value: fn(&Run) -> f64| values(value).iter().sum::<f64>() / group.len() as f64;
    let spread = |value: fn(&Run) -> f64| {
        let values = values(value);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match values.len() {
            1 => short(least),
            _ => format!("{} ({}–{})", short(mean(value)), short(least), short(most)),
        }
    };
    let changes = [
        mean(|run| run.digits_loss_100) / before.digits_loss_100,
        mean(|run| run.digits_loss_250) / before.digits_loss_250,
        mean(|run| run.digits_loss_400) / before.digits_loss_400,
    ];
    let changes = changes.map(|ratio| format!("{:+.1}", 100.0 * (ratio - 1.0)));
    let tshirts: Vec<String> = group.iter().map(|run| run.tshirts.to_string()).collect();
    let steps = match group[0].steps {
        0 => "".into(),
        steps => steps.to_string(),
    };
    let rows = match group[0].steps {
        0 => String::new(),
        _ => format!("{:.2}", mean(|run| run.rows_per_sample)),
    };
    format!(
        "| {} | {steps} | {} | {} | {} | {} | {} | {} | {} % | {rows} |",
        title(group[0]),
        tshirts.join(", "),
        group[0].samples,
        spread(|run| run.tshirt_loss_100),
        spread(|run| run.tshirt_loss_250),
        spread(|run| run.tshirt_loss_400),
        spread(|run| run.distance_to_retrained),
        changes.join(", "),
    )
}

/// Inception score, with the widest of its intervals, and evenness: means over the runs that have
/// them.
fn judged(group: &[&Run]) -> String {
    let values = |value: fn(&Run) -> Option<f64>| -> Vec<f64> {
        group.iter().filter_map(|run| value(run)).collect()
    };
    let [scores, lows, highs, evenness] = [
        values(|run| run.inception_score),
        values(|run| run.inception_low),
        values(|run| run.inception_high),
        values(|run| run.evenness),
    ];
    if scores.is_empty() {
        return " – | – |".into();
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let low = lows.into_iter().fold(f64::INFINITY, f64::min);
    let high = highs.into_iter().fold(f64::NEG_INFINITY, f64::max);
    format!(
        " {:.2} ({low:.2}–{high:.2}) | {:.3} |",
        mean(&scores),
        mean(&evenness)
    )
}

/// Three significant digits, whatever the magnitude.
fn short(value: f64) -> String {
    let decimals = if value == 0.0 {
        0
    } else {
        (2 - value.abs().log10().floor() as i32).clamp(0, 4) as usize
    };
    format!("{value:.decimals$}")
}
