//! The figures as a table in a Markdown page.

use crate::estimator::Figures;

/// A row for each estimator. Variances are over the squared norm of the mean, which all estimators share; at equal cost,
/// they are multiplied by the rows and divided by the first estimator's.
pub fn table(figures: &[Figures]) -> String {
    let mut table = String::from(
        "| objective | draws | rows a sample | retain: variance | at equal cost | forget: variance | at equal cost |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for line in figures {
        let first = &figures[0];
        let cost = line.rows_per_sample / first.rows_per_sample;
        table += &format!(
            "| {} | {} | {:.2} | {:.1} ± {:.1} | {:.2} | {:.1} ± {:.1} | {:.2} |\n",
            line.objective,
            line.draws,
            line.rows_per_sample,
            line.retain_trace / line.retain_squared_mean,
            line.retain_error / line.retain_squared_mean,
            cost * line.retain_trace / first.retain_trace,
            line.forget_trace / line.forget_squared_mean,
            line.forget_error / line.forget_squared_mean,
            cost * line.forget_trace / first.forget_trace,
        );
    }
    table
}
