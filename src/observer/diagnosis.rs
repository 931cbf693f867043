//! The diagnosis of a run: recognises known problems from the reports of its steps.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::report::{StepOutcome, StepReport, TermReport};
use crate::files::json::exact;

/// A way in which unlearning is known to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Symptom {
    /// The retain loss climbs: what should be kept is being destroyed.
    RetainLossClimbing,
    /// The forget gradient is longer than the retain gradient after scaling.
    ForgetDominates,
    /// The forget loss has not risen.
    NothingForgotten,
    /// The forget gradient is zero or close to it.
    VanishingForgetGradient,
    /// Many steps have rows on one side only.
    OneSidedSteps,
    /// All importance weights are 0 or at their bound.
    DegenerateWeights,
    /// Steps are skipped because numbers are not finite.
    SkippedSteps,
    /// No gradient reaches some of the trained parameters.
    UntouchedParameters,
}

/// A symptom, when it was first seen, and what to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The symptom.
    pub symptom: Symptom,
    /// The step at which it was found.
    pub step: u64,
    /// The numbers behind it.
    pub evidence: String,
    /// What to do.
    pub advice: Cow<'static, str>,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "step {}: {}; {}",
            self.step, self.evidence, self.advice
        )
    }
}

/// Recognises known problems of a run and says what to do.
///
/// Each is reported once.
///
/// It compares the mean over the latest window of steps with that over the first window, so it
/// needs two windows to judge trends. While steering rests at its level, a forget loss that does
/// not rise and a forget gradient that vanishes are intended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Diagnosis {
    window: usize,
    retain: Trend,
    forget: Trend,
    /// Steering of the latest steps.
    #[serde(with = "exact")]
    steering: VecDeque<f64>,
    dominating: usize,
    vanishing: usize,
    degenerate: usize,
    one_sided: usize,
    steps: usize,
    skipped: usize,
    findings: Vec<Finding>,
    /// How many of the findings have been returned as news.
    told: usize,
}

/// Ratio of the retain loss to its start from which something is wrong.
const CLIMB: f64 = 1.5;
/// Ratio of the forget loss to its start below which nothing has been forgotten.
const FORGOTTEN: f64 = 1.1;
/// Ratio of the forget gradient's norm to the retain gradient's below which the forget gradient has
/// vanished.
const VANISHED: f64 = 1e-6;
/// Mean factor below which steering rests: the loss is within a quarter of its level, or above it.
const RESTS: f64 = 0.25;

impl Default for Diagnosis {
    /// A window of 20 steps.
    fn default() -> Self {
        Self::new(20)
    }
}

impl Diagnosis {
    /// Creates a diagnosis that judges by means over `window` steps (at least 1).
    fn new(window: usize) -> Self {
        let window = window.max(1);
        Self {
            window,
            retain: Trend::new(window),
            forget: Trend::new(window),
            steering: VecDeque::with_capacity(window),
            dominating: 0,
            vanishing: 0,
            degenerate: 0,
            one_sided: 0,
            steps: 0,
            skipped: 0,
            findings: Vec::new(),
            told: 0,
        }
    }

    /// All findings so far, in the order in which they were made.
    pub(crate) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The findings since the last call.
    ///
    /// Called after each step, it reports problems while there is still time to act.
    pub(crate) fn news(&mut self) -> &[Finding] {
        let told = std::mem::replace(&mut self.told, self.findings.len());
        // What was told may come from a file.
        self.findings.get(told..).unwrap_or_default()
    }

    /// Takes the report of the next step into account.
    pub(crate) fn look_at(&mut self, report: &StepReport) {
        self.look_at_parameters(report);
        let skipped = report.outcome == StepOutcome::SkippedNonFinite;
        self.skipped = run_length(self.skipped, skipped);
        if skipped {
            if self.skipped >= 3 {
                self.find(
                    report,
                    Symptom::SkippedSteps,
                    format!(
                        "{} steps in a row were skipped: a loss or gradient is not finite",
                        self.skipped
                    ),
                    "lower the learning rate, train in f32, and check the model's output for NaN",
                );
            }
            return;
        }
        self.look_at_steering(report);
        self.look_at_trends(report);
        self.look_at_gradients(report);
        self.look_at_weights(report);
        self.look_at_rows(report);
    }

    fn find(
        &mut self,
        report: &StepReport,
        symptom: Symptom,
        evidence: String,
        advice: &'static str,
    ) {
        if self
            .findings
            .iter()
            .all(|finding| finding.symptom != symptom)
        {
            self.findings.push(Finding {
                symptom,
                step: report.step,
                evidence,
                advice: advice.into(),
            });
        }
    }

    fn look_at_trends(&mut self, report: &StepReport) {
        if let Some(ratio) = self.retain.update(report.retain.as_ref())
            && ratio > CLIMB
        {
            self.find(
                report,
                Symptom::RetainLossClimbing,
                format!("the retain loss is {ratio:.2} times its initial value"),
                "the forget term dominates: lower the learning rate, the forget scale (FractionOfRetain, RescaleToNorm) or the number of steps",
            );
        }
        let ascends = report
            .forget
            .as_ref()
            .is_some_and(|term| term.weights.ascends);
        if let Some(ratio) = self.forget.update(report.forget.as_ref())
            && ascends
            && !self.rests()
            && self.forget.steps >= self.window.saturating_mul(5)
            && ratio < FORGOTTEN
        {
            self.find(
                report,
                Symptom::NothingForgotten,
                format!("after {} steps the forget loss is {ratio:.2} times its initial value", self.forget.steps),
                "raise the learning rate or the forget scale, and check that the model was trained on the forgotten points in this form (same size, same pixel range)",
            );
        }
    }

    /// Keeps the steering factor of a step, if it has one.
    fn look_at_steering(&mut self, report: &StepReport) {
        if let Some(factor) = report.forget.as_ref().and_then(|term| term.steering) {
            if self.steering.len() == self.window {
                self.steering.pop_front();
            }
            self.steering.push_back(factor);
        }
    }

    /// Whether the latest steps were steered and had little left to do.
    fn rests(&self) -> bool {
        let mean = self.steering.iter().sum::<f64>() / self.steering.len() as f64;
        mean < RESTS
    }

    fn look_at_gradients(&mut self, report: &StepReport) {
        let scaled = report.coefficients.forget * report.norms.forget;
        let both = report.retain.is_some() && report.forget.is_some();
        let kept = report.coefficients.retain * report.norms.retain;
        self.dominating = run_length(self.dominating, both && scaled > kept);
        if self.dominating >= self.window {
            self.find(
                report,
                Symptom::ForgetDominates,
                format!("the scaled forget gradient ({scaled:.3}) was longer than the retain gradient ({kept:.3}) for {} steps", self.window),
                "lower the forget scale; FractionOfRetain(0.1) keeps it at a tenth",
            );
        }
        let vanished = both && report.norms.forget <= VANISHED * report.norms.retain;
        let rests = |term: &TermReport| term.steering.is_some_and(|factor| factor < RESTS);
        let rests = report.forget.as_ref().is_some_and(rests);
        // A step without forget rows has no gradient to judge by.
        if report.forget.as_ref().is_none_or(|term| term.rows > 0) {
            self.vanishing = run_length(self.vanishing, vanished && !rests);
        }
        if self.vanishing >= self.window.min(5) {
            self.find(
                report,
                Symptom::VanishingForgetGradient,
                format!("the forget gradient's norm is {:.1e}, the retain gradient's {:.1e}", report.norms.forget, report.norms.retain),
                "a clipper that rescales would amplify noise: use a forget_prob away from 0, or a max_scale",
            );
        }
    }

    /// Finds batches so small that thinning leaves only one side: a clipper that compares the two
    /// gradients has nothing to compare.
    fn look_at_rows(&mut self, report: &StepReport) {
        let (Some(retain), Some(forget)) = (&report.retain, &report.forget) else {
            return;
        };
        self.steps += 1;
        self.one_sided += usize::from(retain.rows == 0 || forget.rows == 0);
        if self.steps >= self.window && 2 * self.one_sided > self.steps {
            self.find(
                report,
                Symptom::OneSidedSteps,
                format!("{} of {} steps had rows on one side only", self.one_sided, self.steps),
                "use larger batches (micro_batch_size bounds the memory): a step with rows on one side only has no second gradient to compare with, and FractionOfRetain falls back on the average of earlier steps",
            );
        }
    }

    fn look_at_parameters(&mut self, report: &StepReport) {
        let Some(first) = report.without_gradient.first() else {
            return;
        };
        let (evidence, advice) = match report.without_gradient.len() {
            1 => (
                format!("no gradient reaches 1 of the trained parameters, `{first}`"),
                "it will not change: use its layer in `predict`, or freeze it if that is intended",
            ),
            count => (
                format!("no gradient reaches {count} of the trained parameters, such as `{first}`"),
                "they will not change: use their layers in `predict`, or freeze them if that is intended",
            ),
        };
        self.find(report, Symptom::UntouchedParameters, evidence, advice);
    }

    fn look_at_weights(&mut self, report: &StepReport) {
        let share = report
            .forget
            .as_ref()
            .and_then(|term| term.weights.degenerate_share);
        self.degenerate = run_length(self.degenerate, share == Some(1.0));
        if self.degenerate >= self.window {
            self.find(
                report,
                Symptom::DegenerateWeights,
                format!("all importance weights were 0 or at their bound for {} steps", self.window),
                "harmless: the points lie so far apart that each noisy point belongs to one side, and SISS is the Bernoulli objective here",
            );
        }
    }
}

/// Counts consecutive steps.
fn run_length(before: usize, goes_on: bool) -> usize {
    if goes_on { before + 1 } else { 0 }
}

/// A side's loss at the start of the run and now.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Trend {
    window: usize,
    steps: usize,
    /// Mean of the first window; empty before the first step.
    #[serde(with = "exact")]
    start: Vec<f64>,
    #[serde(with = "exact")]
    latest: VecDeque<f64>,
}

impl Trend {
    fn new(window: usize) -> Self {
        Self {
            window,
            steps: 0,
            start: Vec::new(),
            latest: VecDeque::with_capacity(window),
        }
    }

    /// Mean of the latest window divided by that of the first, once there are two windows.
    fn update(&mut self, term: Option<&TermReport>) -> Option<f64> {
        let loss = term?.mean_squared_error;
        if !loss.is_finite() {
            return None;
        }
        self.steps += 1;
        if self.latest.len() == self.window {
            self.latest.pop_front();
        }
        self.latest.push_back(loss);
        let mean = self.latest.iter().sum::<f64>() / self.latest.len() as f64;
        if self.steps <= self.window {
            self.start = vec![mean];
        }
        let start = self.start.first().copied().unwrap_or_default();
        (self.steps >= self.window.saturating_mul(2) && start > 0.0).then(|| mean / start)
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::example::report;
    use super::*;
    use crate::clipper::Coefficients;

    fn symptoms(reports: impl Iterator<Item = StepReport>) -> Vec<Symptom> {
        let mut diagnosis = Diagnosis::new(5);
        for report in reports {
            diagnosis.look_at(&report);
        }
        diagnosis
            .findings()
            .iter()
            .map(|finding| finding.symptom)
            .collect()
    }

    #[test]
    fn a_healthy_run_has_no_symptom() {
        assert!(
            symptoms((0..100).map(|step| report(step, 0.03, 0.01 + 0.001 * step as f64)))
                .is_empty()
        );
    }

    #[test]
    fn each_way_to_go_wrong_is_recognised_once() {
        let rising = |step: u64| 0.01 + 0.001 * step as f64;
        let climbing = (0..100).map(|step| report(step, rising(step), rising(step)));
        assert_eq!(symptoms(climbing), [Symptom::RetainLossClimbing]);

        let nothing = (0..100).map(|step| report(step, 0.03, 0.01));
        assert_eq!(symptoms(nothing), [Symptom::NothingForgotten]);

        let dominating = (0..100).map(|step| {
            let mut report = report(step, 0.03, rising(step));
            report.coefficients.forget = 2.0;
            report
        });
        assert_eq!(symptoms(dominating), [Symptom::ForgetDominates]);

        let vanishing = (0..100).map(|step| {
            let mut report = report(step, 0.03, rising(step));
            report.norms.forget = 1e-9;
            report
        });
        assert_eq!(symptoms(vanishing), [Symptom::VanishingForgetGradient]);

        let degenerate = (0..100).map(|step| {
            let mut report = report(step, 0.03, rising(step));
            if let Some(term) = &mut report.forget {
                term.weights.degenerate_share = Some(1.0);
            }
            report
        });
        assert_eq!(symptoms(degenerate), [Symptom::DegenerateWeights]);

        let one_sided = (0..100).map(|step| {
            let mut report = report(step, 0.03, rising(step));
            if let Some(term) = &mut report.forget {
                term.rows = usize::from(step % 3 == 0);
            }
            report
        });
        assert_eq!(symptoms(one_sided), [Symptom::OneSidedSteps]);

        let skipped = (0..100).map(|step| {
            let mut report = report(step, f64::NAN, f64::NAN);
            report.outcome = StepOutcome::SkippedNonFinite;
            report
        });
        assert_eq!(symptoms(skipped), [Symptom::SkippedSteps]);

        let untouched = (0..100).map(|step| {
            let mut report = report(step, 0.03, rising(step));
            if step == 0 {
                report.without_gradient = vec!["first.bias".into()];
            }
            report
        });
        assert_eq!(symptoms(untouched), [Symptom::UntouchedParameters]);
    }

    #[test]
    fn a_finding_says_when_what_and_what_to_do() {
        let mut diagnosis = Diagnosis::new(1);
        for step in 0..6 {
            diagnosis.look_at(&report(step, 0.03, 0.01));
        }
        let text = diagnosis.findings()[0].to_string();
        assert!(text.starts_with("step 4: after 5 steps"), "{text}");
        assert!(text.contains("raise the learning rate"), "{text}");
    }

    /// The same report with a mean steering factor.
    fn steered(mut report: StepReport, factor: f64) -> StepReport {
        if let Some(term) = &mut report.forget {
            term.steering = Some(factor);
        }
        report
    }

    #[test]
    fn a_steered_run_at_its_level_has_no_symptom_and_one_that_stays_below_it_has() {
        let run = |factor: fn(u64) -> f64, norm: f64| {
            symptoms((0..100).map(|step| {
                let mut report = steered(report(step, 0.03, 0.01), factor(step));
                report.norms.forget = norm;
                report
            }))
        };
        // The run starts at its level or reaches it early, and stays; it is above it; it moves
        // around it.
        for at_rest in [
            |_| 0.0,
            |step: u64| if step < 5 { 1.0 } else { 0.1 },
            |_| -0.5,
            |step: u64| [0.9, -0.9][step as usize % 2],
        ] {
            assert_eq!(run(at_rest, 1.0), [], "at rest");
        }
        // A rule that stops has a gradient of 0.
        assert_eq!(run(|_| 0.0, 0.0), []);
        assert_eq!(run(|_| 0.8, 1.0), [Symptom::NothingForgotten]);
        let both = [Symptom::VanishingForgetGradient, Symptom::NothingForgotten];
        assert_eq!(run(|_| 0.8, 0.0), both);
    }

    /// Steps without a forget row are one-sided; they are no sign of a vanishing gradient.
    #[test]
    fn a_gradient_without_rows_has_not_vanished() {
        let rising = |step: u64| 0.01 + 0.001 * step as f64;
        let without_rows = (0..100).map(|step| {
            let mut report = report(step, 0.03, rising(step));
            if let Some(term) = &mut report.forget {
                (term.rows, term.mean_squared_error) = (0, f64::NAN);
            }
            report.norms.forget = 0.0;
            report
        });
        assert_eq!(symptoms(without_rows), [Symptom::OneSidedSteps]);
    }

    #[test]
    fn a_finding_is_news_once() {
        let mut diagnosis = Diagnosis::new(1);
        let mut told = Vec::new();
        for step in 0..40 {
            diagnosis.look_at(&report(step, 0.03, 0.01));
            let news = diagnosis.news().iter();
            told.extend(news.map(|finding| (step, finding.symptom)));
        }
        assert_eq!(told, [(4, Symptom::NothingForgotten)]);
        assert_eq!(diagnosis.findings().len(), 1);
    }

    /// The retain loss doubles before the run stops, and stays there. A checkpoint restores the
    /// observations, so the resumed run has the same findings at the same steps as an uninterrupted
    /// one.
    #[test]
    fn a_diagnosis_survives_a_resume() {
        let reports: Vec<_> = (0..60)
            .map(|step| report(step, if step < 22 { 0.01 } else { 0.02 }, 0.01))
            .collect();
        let mut whole = Diagnosis::new(5);
        for report in &reports {
            whole.look_at(report);
        }
        assert_eq!(whole.findings().len(), 2);
        for next_step in [0, 3, 23, 30, 59] {
            let mut before = Diagnosis::new(5);
            for report in &reports[..next_step] {
                before.look_at(report);
            }
            let saved = serde_json::to_string(&before).unwrap();
            let mut resumed: Diagnosis = serde_json::from_str(&saved).unwrap();
            for report in &reports[next_step..] {
                resumed.look_at(report);
            }
            assert_eq!(resumed.findings(), whole.findings(), "{next_step}");
        }
    }

    /// A state that no run can have, as a file made to do harm may hold.
    #[test]
    fn a_diagnosis_from_a_file_is_not_trusted() {
        let mut value = serde_json::to_value(Diagnosis::new(5)).unwrap();
        value["told"] = 7.into();
        value["window"] = usize::MAX.into();
        let mut diagnosis: Diagnosis = serde_json::from_value(value).unwrap();
        assert_eq!(diagnosis.news(), []);
        diagnosis.look_at(&report(0, 0.03, 0.01));
        assert_eq!(diagnosis.news(), []);
    }

    /// The step at which a symptom is found, with windows of five steps.
    fn found_at(symptom: Symptom, reports: impl Iterator<Item = StepReport>) -> Option<u64> {
        let mut diagnosis = Diagnosis::new(5);
        for report in reports {
            diagnosis.look_at(&report);
        }
        let mut findings = diagnosis.findings().iter();
        let found = findings.find(|finding| finding.symptom == symptom);
        found.map(|finding| finding.step)
    }

    #[test]
    fn a_trend_compares_the_latest_window_with_the_mean_of_the_first() {
        let climbing = |loss: fn(u64) -> f64| {
            let reports = (0..60).map(move |step| report(step, loss(step), 1.0));
            found_at(Symptom::RetainLossClimbing, reports)
        };
        // Values with a mean of 1 over the first window, though no step need have the value 1.
        fn first(step: u64) -> f64 {
            [0.2, 1.8][step as usize % 2]
        }
        assert_eq!(
            climbing(|step| if step < 4 { first(step) } else { 1.4 }),
            None
        );
        // After two windows, although three steps of 2 in a window would be enough.
        assert_eq!(climbing(|step| if step < 5 { 1.0 } else { 2.0 }), Some(9));
        assert_eq!(climbing(|step| if step < 50 { 1.0 } else { 2.0 }), Some(52));

        let nothing = |loss: fn(u64) -> f64, ascends: bool| {
            let reports = (0..60).map(move |step| {
                let mut report = report(step, 1.0, loss(step));
                if let Some(term) = &mut report.forget {
                    term.weights.ascends = ascends;
                }
                report
            });
            found_at(Symptom::NothingForgotten, reports)
        };
        assert_eq!(nothing(|_| 1.0, true), Some(24));
        assert_eq!(nothing(|_| 1.0, false), None);
        assert_eq!(nothing(|step| if step < 5 { 1.0 } else { 1.2 }, true), None);
    }

    #[test]
    fn a_symptom_of_single_steps_is_found_at_its_bound_and_not_before() {
        let found = |symptom, change: fn(u64, &mut StepReport)| {
            let reports = (0..60).map(move |step| {
                let mut report = report(step, 1.0, 1.0);
                change(step, &mut report);
                report
            });
            found_at(symptom, reports)
        };
        // Scaled gradients are compared, in consecutive steps.
        let dominates = Symptom::ForgetDominates;
        assert_eq!(
            found(dominates, |_, report| report.coefficients = Coefficients {
                retain: 0.4,
                forget: 0.5,
            }),
            Some(4)
        );
        assert_eq!(
            found(dominates, |_, report| report.norms.forget = 5.0),
            None
        );
        let interrupted = found(dominates, |step, report| {
            report.coefficients.forget = if step % 5 == 4 { 0.1 } else { 2.0 };
        });
        assert_eq!(interrupted, None);

        let vanishing = Symptom::VanishingForgetGradient;
        assert_eq!(
            found(vanishing, |_, report| report.norms.forget = 1e-9),
            Some(4)
        );
        let both = found(vanishing, |_, report| {
            (report.norms.retain, report.norms.forget) = (1e-9, 1e-9);
        });
        assert_eq!(both, None);

        // More than half of the steps, on either side.
        let without_rows = |symptom, odd_alone| match odd_alone {
            true => found(symptom, |step, report| {
                if let (Some(term), 1) = (&mut report.retain, step % 2) {
                    term.rows = 0;
                }
            }),
            false => found(symptom, |_, report| {
                if let Some(term) = &mut report.retain {
                    term.rows = 0;
                }
            }),
        };
        assert_eq!(without_rows(Symptom::OneSidedSteps, true), None);
        assert_eq!(without_rows(Symptom::OneSidedSteps, false), Some(4));

        let skipped = found(Symptom::SkippedSteps, |_, report| {
            report.outcome = StepOutcome::SkippedNonFinite;
        });
        assert_eq!(skipped, Some(2));
    }
}
