//! The runs as a table in a Markdown page.

use crate::{BEFORE, RETRAINED, Run};

/// A row for each method and number of steps: means over the seeds, in the order of the file.
pub fn table(runs: &[Run]) -> String {
    let mut table = String::from(
        "| method | steps | T-shirts | of | loss at t = 100 | 250 | 400 | distance | digits' loss | rows a sample | seconds |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let Some(before) = runs.iter().find(|run| run.method == BEFORE) else {
        return table;
    };
    let mut keys: Vec<(&str, usize, usize, usize)> = Vec::new();
    for run in runs {
        let key = (run.method.as_str(), run.steps, run.batch, run.samples);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|&(method, steps, ..)| (![BEFORE, RETRAINED].contains(&method), steps));
    for (method, steps, batch, samples) in keys {
        let of_key = |run: &&Run| {
            run.method == method && (run.steps, run.batch, run.samples) == (steps, batch, samples)
        };
        let group: Vec<&Run> = runs.iter().filter(of_key).collect();
        table += &row(&group, before);
    }
    table
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
    let (rows, seconds) = match group[0].steps {
        0 => (String::new(), String::new()),
        _ => (
            format!("{:.2}", mean(|run| run.rows_per_sample)),
            format!("{:.0}", mean(|run| run.seconds)),
        ),
    };
    format!(
        "| {} | {steps} | {} | {} | {} | {} | {} | {} | {} % | {rows} | {seconds} |\n",
        group[0].method,
        tshirts.join(", "),
        group[0].samples,
        spread(|run| run.tshirt_loss_100),
        spread(|run| run.tshirt_loss_250),
        spread(|run| run.tshirt_loss_400),
        spread(|run| run.distance_to_retrained),
        changes.join(", "),
    )
}

/// Three digits, whatever the size.
fn short(value: f64) -> String {
    let decimals = if value == 0.0 {
        0
    } else {
        (2 - value.abs().log10().floor() as i32).clamp(0, 4) as usize
    };
    format!("{value:.decimals$}")
}
