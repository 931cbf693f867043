//! The results as a table for a Markdown page.

use crate::estimator::Figures;

/// One row per estimator: the ratio of the variance of a batch's gradient to that of the first
/// estimator, as measured and at equal cost, which is the ratio times the rows; and the ratio of
/// the forget gradient's variance to the squared norm of its mean.
pub fn table(figures: &[Figures]) -> String {
    let mut table = String::from(
        "| objective | draws | rows per sample | retain: variance | at equal cost | forget: variance | at equal cost | divided by the squared mean |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let squares = figures.iter().map(|line| line.forget_squared_mean);
    let squared_mean = squares.sum::<f64>() / figures.len().max(1) as f64;
    for line in figures {
        let cost = line.rows_per_sample / figures[0].rows_per_sample;
        table += &format!(
            "| {} | {} | {:.2} | {:.2} ± {:.2} | {:.2} | {:.2} ± {:.2} | {:.2} | {:.2} |\n",
            line.objective,
            line.draws,
            line.rows_per_sample,
            line.retain_relative,
            line.retain_relative_error,
            cost * line.retain_relative,
            line.forget_relative,
            line.forget_relative_error,
            cost * line.forget_relative,
            line.forget_trace / squared_mean,
        );
    }
    table
}
