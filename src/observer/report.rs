//! The report of an optimiser step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clipper::{Coefficients, GradientNorms};
use crate::files::json::number_or_null;
use crate::objective::LossTerm;

/// Whether a step changed the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// The gradients have been computed and not used yet; occurs only in
    /// [`StepGradients`](crate::trainer::StepGradients).
    Pending,
    /// The optimiser was applied.
    Applied,
    /// A loss, a norm or a gradient was NaN or infinite: model and optimiser are unchanged.
    SkippedNonFinite,
}

/// What happened in one optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Number of the step, from 0.
    pub step: u64,
    /// Whether the model was changed.
    pub outcome: StepOutcome,
    /// Rows of the batch.
    pub batch_size: usize,
    /// The retain term, if the objective has one.
    pub retain: Option<TermReport>,
    /// The forget term, if the objective has one.
    pub forget: Option<TermReport>,
    /// Norms of the two gradients and their inner product.
    pub norms: GradientNorms,
    /// The factors of the combination; `coefficients.forget` is the forget scale.
    pub coefficients: Coefficients,
    /// Norm of the combined gradient before the global clip.
    #[serde(deserialize_with = "number_or_null")]
    pub combined_norm: f64,
    /// Factor of the global clip, at most 1.
    pub clip_factor: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// The paths of the trained parameters to which neither side gave a gradient.
    ///
    /// Determined in step 0, and empty in all other steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_gradient: Vec<String>,
}

/// One side of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TermReport {
    /// Rows that went through the model, after thinning.
    pub rows: usize,
    /// `(1/B) Σ |w| ‖ŷ − target‖²`, summed over elements: the objective's term without its sign.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Mean squared error per element, rows weighted by `|w|`; NaN if there are no rows.
    #[serde(deserialize_with = "number_or_null")]
    pub mean_squared_error: f64,
    /// The weights before thinning.
    pub weights: WeightSummary,
    /// Mean factor of steering, rows weighted by `|w|`: 1 forgets at full strength, 0 rests at the
    /// level, below 0 returns to it.
    ///
    /// `None` without steering.
    #[serde(default)]
    pub steering: Option<f64>,
}

/// The weights of a term before thinning, without their sign.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightSummary {
    /// Mean of `|w|`.
    #[serde(deserialize_with = "number_or_null")]
    pub mean: f64,
    /// Largest `|w|`.
    #[serde(deserialize_with = "number_or_null")]
    pub max: f64,
    /// `(Σ|w|)² / Σw²`: the number of equally weighted rows that they correspond to.
    #[serde(deserialize_with = "number_or_null")]
    pub effective_rows: f64,
    /// Share of rows whose weight is within 1 % of its bound, or of 0; `None` for weights without a
    /// bound.
    pub degenerate_share: Option<f64>,
    /// Whether the rows are unlearnt: their weights are negative.
    pub ascends: bool,
}

impl WeightSummary {
    pub(crate) fn of<const D: usize>(term: &LossTerm<D>) -> Self {
        let sizes = || term.weights.iter().map(|weight| weight.abs());
        let count = term.weights.len().max(1) as f64;
        let (sum, squares): (f64, f64) =
            sizes().fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
        let at_an_end = |bound: f64| {
            let ends = sizes().filter(|w| *w >= 0.99 * bound || *w <= 0.01 * bound);
            ends.count() as f64 / count
        };
        Self {
            mean: sum / count,
            max: sizes().fold(0.0, f64::max),
            effective_rows: if squares > 0.0 {
                sum * sum / squares
            } else {
                0.0
            },
            degenerate_share: term.weight_bound.map(at_an_end),
            ascends: term.weights.iter().any(|&weight| weight < 0.0),
        }
    }
}

impl TermReport {
    /// The report of a thinned term.
    ///
    /// `weights` are those before thinning, `losses` the `‖ŷ − target‖²` of its rows, `factors`
    /// those of steering, if there are any.
    pub(crate) fn of<const D: usize>(
        term: &LossTerm<D>,
        weights: WeightSummary,
        losses: &[f32],
        factors: &[f32],
    ) -> Self {
        let shape = term.noisy.dims();
        let (batch_size, elements) = (shape[0], shape[1..].iter().product::<usize>());
        let sizes = term.weights.iter().map(|weight| weight.abs());
        let total: f64 = sizes.clone().sum();
        let weighted = |values: &[f32]| -> f64 {
            let products = sizes.clone().zip(values);
            products.map(|(size, &value)| size * f64::from(value)).sum()
        };
        let sum = weighted(losses);
        let is_steered = !factors.is_empty() && total > 0.0;
        Self {
            rows: term.rows.len(),
            loss: sum / batch_size as f64,
            mean_squared_error: sum / (total * elements as f64),
            steering: is_steered.then(|| weighted(factors) / total),
            weights,
        }
    }
}

impl StepReport {
    /// Rows run per sample: 1 for a training step, 2 for two forward passes per sample.
    pub fn rows_per_sample(&self) -> f64 {
        let rows = |term: &Option<TermReport>| term.as_ref().map_or(0, |term| term.rows);
        (rows(&self.retain) + rows(&self.forget)) as f64 / self.batch_size as f64
    }

    /// The first number of a skipped step that is not finite, in words.
    pub(crate) fn not_finite(&self) -> String {
        let loss = |term: &Option<TermReport>| term.as_ref().map_or(0.0, |term| term.loss);
        let numbers = [
            ("the retain loss", loss(&self.retain)),
            ("the forget loss", loss(&self.forget)),
            ("the retain gradient's norm", self.norms.retain),
            ("the forget gradient's norm", self.norms.forget),
            (
                "the inner product of the gradients",
                self.norms.inner_product,
            ),
        ];
        match numbers.iter().find(|(_, value)| !value.is_finite()) {
            Some((name, value)) => format!("{name} is {value}"),
            None => "the clipper's scales are not finite".into(),
        }
    }
}

impl fmt::Display for StepReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "step {}", self.step)?;
        for (name, term, norm) in [
            ("retain", &self.retain, self.norms.retain),
            ("forget", &self.forget, self.norms.forget),
        ] {
            if let Some(term) = term {
                write!(
                    formatter,
                    "  {name} mse {:.4} |g| {norm:.3} rows {}",
                    term.mean_squared_error, term.rows
                )?;
            }
        }
        if self.forget.is_some() {
            write!(formatter, "  forget scale {:.4}", self.coefficients.forget)?;
        }
        if let Some(steering) = self.forget.as_ref().and_then(|term| term.steering) {
            write!(formatter, "  steering {steering:+.3}")?;
        }
        if self.outcome == StepOutcome::SkippedNonFinite {
            write!(formatter, "  SKIPPED: {}", self.not_finite())?;
        }
        Ok(())
    }
}

/// A report for the tests of those who read it.
#[cfg(test)]
pub(super) mod example {
    use super::*;

    fn term(loss: f64) -> TermReport {
        TermReport {
            rows: 8,
            loss: 10.0 * loss,
            mean_squared_error: loss,
            weights: WeightSummary {
                mean: 1.0,
                max: 2.0,
                effective_rows: 6.0,
                degenerate_share: Some(0.5),
                ascends: true,
            },
            steering: None,
        }
    }

    pub fn report(step: u64, retain: f64, forget: f64) -> StepReport {
        StepReport {
            step,
            outcome: StepOutcome::Applied,
            batch_size: 8,
            retain: Some(term(retain)),
            forget: Some(term(forget)),
            norms: GradientNorms {
                retain: 1.0,
                forget: 1.0,
                ..GradientNorms::default()
            },
            coefficients: Coefficients {
                retain: 1.0,
                forget: 0.1,
            },
            combined_norm: 1.0,
            clip_factor: 1.0,
            learning_rate: 1e-4,
            without_gradient: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};

    /// Two of the four rows of a batch, with five elements each.
    #[test]
    fn rows_count_by_the_size_of_their_weights() {
        let zeros = Tensor::<2>::zeros([4, 5], &Device::flex());
        let term = LossTerm::new(zeros.clone(), vec![0.0; 4], zeros, vec![-1.0, -2.0]);
        let term = term.with_weight_bound(3.0);
        let weights = WeightSummary::of(&term);
        assert_eq!((weights.mean, weights.max), (1.5, 2.0));
        assert!((weights.effective_rows - 9.0 / 5.0).abs() < 1e-12);
        assert_eq!(weights.degenerate_share, Some(0.0));
        assert!(weights.ascends);

        let report = TermReport::of(&term, weights, &[9.0, 18.0], &[1.0, -1.0]);
        assert_eq!(report.rows, 2);
        // 1 · 9 + 2 · 18, divided by the batch size, and by the sum of the weights times the
        // elements.
        assert_eq!((report.loss, report.mean_squared_error), (11.25, 3.0));
        let steering = report.steering.unwrap();
        assert!((steering + 1.0 / 3.0).abs() < 1e-12, "{steering}");
    }
}
