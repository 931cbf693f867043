//! Curves of a run that all methods share.

use siss::StepReport;
use siss::report::{Panel, Series};

use crate::run::StepRecord;

/// A panel whose x axis is the step.
pub fn panel(title: &str, y_label: &str) -> Panel {
    Panel::new(title).x_label("step").y_label(y_label)
}

/// Losses, gradient norms, forget scale and weights.
pub fn step_panels<A>(records: &[StepRecord<A>]) -> [Panel; 4] {
    let series = |label: &str, value: &dyn Fn(&StepReport) -> Option<f64>| {
        let reports = records.iter().map(|record| &record.report);
        let point = |report: &StepReport| Some(((report.step + 1) as f64, value(report)?));
        Series::new(label, reports.filter_map(point))
    };
    let losses = panel("Losses of the step", "squared error per element")
        .log_y()
        .series(series("retain", &|r| {
            Some(r.retain.as_ref()?.mean_squared_error)
        }))
        .series(series("forget", &|r| {
            Some(r.forget.as_ref()?.mean_squared_error)
        }));
    let norms = panel("Gradient norms", "norm")
        .log_y()
        .series(series("retain", &|r| {
            r.retain.as_ref().map(|_| r.norms.retain)
        }))
        .series(series("forget", &|r| {
            r.forget.as_ref().map(|_| r.norms.forget)
        }))
        .series(series("combined", &|r| Some(r.combined_norm)));
    let scale = panel("Forget scale", "factor of the forget gradient")
        .log_y()
        .series(series("forget scale", &|r| {
            r.forget.as_ref().map(|_| r.coefficients.forget)
        }));
    let weights = panel("Weights of the step", "weight")
        .series(series("retain, mean", &|r| {
            Some(r.retain.as_ref()?.weights.mean)
        }))
        .series(series("forget, mean", &|r| {
            Some(r.forget.as_ref()?.weights.mean)
        }))
        .series(series("rows run per sample", &|r| {
            Some(r.rows_per_sample())
        }));
    [losses, norms, scale, weights]
}

/// A value measured during the run, against the step.
pub fn along<A>(records: &[StepRecord<A>], value: impl Fn(&A) -> f64) -> Vec<(f64, f64)> {
    let point = |record: &StepRecord<A>| {
        let along = record.along.as_ref()?;
        Some(((record.report.step + 1) as f64, value(along)))
    };
    records.iter().filter_map(point).collect()
}

/// A series that begins at step 0 with the value before unlearning.
pub fn with_start(label: &str, start: f64, later: Vec<(f64, f64)>) -> Series {
    Series::new(label, std::iter::once((0.0, start)).chain(later))
}
