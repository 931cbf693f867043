//! Reports the progress of a job, and shows it.

use std::time::Duration;

use indicatif::style::TemplateError;
use indicatif::{ProgressBar, ProgressStyle};
use siss::StepReport;
use siss::observer::TermReport;

/// Receives the progress of a job.
pub trait Progress: Sync {
    /// A phase has begun that takes a while.
    fn phase(&self, what: &str);
    /// A step was taken.
    fn step(&self, report: &StepReport, of: usize);
    /// A line to keep on the screen.
    fn say(&self, _line: &str) {}
}

/// Tells nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: &str) {}
    fn step(&self, _: &StepReport, _: usize) {}
}

/// A progress bar for the steps, a spinner for everything else.
pub struct Bar {
    bar: ProgressBar,
    steps: ProgressStyle,
    spinner: ProgressStyle,
}

impl Bar {
    /// A bar on the screen, still without text.
    pub fn new() -> Result<Self, TemplateError> {
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self {
            bar,
            steps: ProgressStyle::with_template("{elapsed:>4} {bar:24} {pos}/{len} {msg}")?,
            spinner: ProgressStyle::with_template("{elapsed:>4} {spinner} {msg}")?,
        })
    }

    /// Removes the bar from the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn phase(&self, what: &str) {
        self.bar.set_style(self.spinner.clone());
        self.bar.set_message(what.to_owned());
    }

    fn step(&self, report: &StepReport, of: usize) {
        let loss = |term: &Option<TermReport>| {
            term.as_ref()
                .map_or("-".into(), |term| format!("{:.4}", term.mean_squared_error))
        };
        self.bar.set_style(self.steps.clone());
        self.bar.set_length(of as u64);
        self.bar.set_position(report.step + 1);
        self.bar.set_message(format!(
            "retain {} |g| {:.1}  forget {} |g| {:.1}  scale {:.3}",
            loss(&report.retain),
            report.norms.retain,
            loss(&report.forget),
            report.norms.forget,
            report.coefficients.forget,
        ));
    }

    fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }
}

/// A duration in a suitable unit, as text.
pub fn duration(seconds: f64) -> String {
    match seconds {
        _ if seconds < 90.0 => format!("{seconds:.0} s"),
        _ if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}
