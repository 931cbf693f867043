//! How a model's loss on a point follows from the ideal denoiser's error there.

use crate::error::Result;
use crate::quantile::quantile;

/// Fewest control points that a line is fitted to.
const FEWEST: usize = 20;
/// Where the line begins and ends, as quantiles of the control points' errors.
const ENDS: [f64; 2] = [0.05, 0.6];

/// The loss as a function of the ideal denoiser's error, learnt from control points.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Gain {
    /// Where the network knows more than the ideal denoiser.
    Line(Line),
    /// Where it knows less: `s² L* + excess`. What it loses by being no ideal denoiser is the
    /// same for every point.
    Excess { squared_slope: f64, excess: f64 },
}

/// Loss and error in logarithms: a line among the control points, constant below them and
/// proportional above.
///
/// The error of a point whose near duplicate is retained is tiny, and a network that has seen the
/// duplicate once makes little of it. A point unlike all others is explained by none of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Line {
    /// Between 0 and 1.
    slope: f64,
    ends: [f64; 2],
    /// The logarithm of the loss where that of the error is 0, if the line went so far.
    offset: f64,
}

impl Gain {
    /// Of control points' errors and losses, whose mean is that of the result. The line is one
    /// factor for every error unless `fits_line`.
    pub(super) fn new(
        (errors, losses): (&[f64], &[f64]),
        squared_slope: f64,
        fits_line: bool,
    ) -> Result<Self> {
        let excess = mean(losses) - squared_slope * mean(errors);
        if excess > 0.0 {
            return Ok(Self::Excess {
                squared_slope,
                excess,
            });
        }
        Ok(Self::Line(match fits_line {
            true => Line::fit(errors, losses)?,
            false => Line::constant(errors, losses),
        }))
    }

    /// The loss of a point of this error; NaN if that is.
    pub(super) fn loss(&self, error: f64) -> f64 {
        match *self {
            Self::Line(line) => line.loss(error),
            Self::Excess {
                squared_slope,
                excess,
            } => squared_slope * error + excess,
        }
    }
}

impl Line {
    /// One factor for every error.
    fn constant(errors: &[f64], losses: &[f64]) -> Self {
        Self {
            slope: 1.0,
            ends: [f64::NEG_INFINITY, f64::INFINITY],
            offset: (mean(losses) / mean(errors)).ln(),
        }
    }

    /// A line through the control points, by least squares; its mean loss is theirs. With fewer
    /// than twenty of them, or where one has no error or no loss, one factor.
    fn fit(errors: &[f64], losses: &[f64]) -> Result<Self> {
        let constant = Self::constant(errors, losses);
        let positive = |values: &[f64]| values.iter().all(|&value| value > 0.0);
        if errors.len() < FEWEST || !positive(errors) || !positive(losses) {
            return Ok(constant);
        }
        let logarithms = |values: &[f64]| values.iter().map(|it| it.ln()).collect::<Vec<f64>>();
        let (x, y) = (logarithms(errors), logarithms(losses));
        let ends = [quantile(&x, ENDS[0])?, quantile(&x, ENDS[1])?];
        if ends[0] == ends[1] {
            return Ok(constant);
        }
        let line = Self {
            slope: slope(&x, &y).clamp(0.0, 1.0),
            ends,
            offset: 0.0,
        };
        let on_line: Vec<f64> = errors.iter().map(|&error| line.loss(error)).collect();
        Ok(Self {
            offset: (mean(losses) / mean(&on_line)).ln(),
            ..line
        })
    }

    fn loss(&self, error: f64) -> f64 {
        let (x, [low, high]) = (error.ln(), self.ends);
        let above = (x - high).max(0.0);
        // The ends are ordered numbers: quantiles of logarithms of positive ones.
        (self.offset + self.slope * x.clamp(low, high) + above).exp()
    }
}

/// The slope of least squares.
fn slope(x: &[f64], y: &[f64]) -> f64 {
    let (middle, height) = (mean(x), mean(y));
    let square: f64 = x.iter().map(|x| (x - middle).powi(2)).sum();
    let pairs = x.iter().zip(y);
    let product: f64 = pairs.map(|(x, y)| (x - middle) * (y - height)).sum();
    product / square
}

/// The mean of a list.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Errors over three decades, and their losses.
    fn controls(loss: impl Fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
        let errors: Vec<f64> = (0..41)
            .map(|at| 10f64.powf(-3.0 + 0.075 * f64::from(at)))
            .collect();
        let losses = errors.iter().map(|&error| loss(error)).collect();
        (errors, losses)
    }

    #[test]
    fn a_line_is_constant_below_the_control_points_and_proportional_above() {
        let (errors, losses) = controls(|error| 0.7 * error.powf(0.4));
        let gain = Line::fit(&errors, &losses).unwrap();
        assert!((gain.slope - 0.4).abs() < 1e-12);
        let on_line: Vec<f64> = errors.iter().map(|&error| gain.loss(error)).collect();
        assert!((mean(&on_line) / mean(&losses) - 1.0).abs() < 1e-12);
        let ratio = |one: f64, other: f64| gain.loss(one) / gain.loss(other);
        // The ends are at 10^(−3 + 3 · 0.05) and 10^(−3 + 3 · 0.6).
        assert!((ratio(1e-2, 5e-2) - f64::powf(0.2, 0.4)).abs() < 1e-12);
        assert_eq!(ratio(1e-9, 1e-3), 1.0);
        assert_eq!(gain.loss(0.0), gain.loss(1e-9));
        assert!((ratio(40.0, 4.0) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn a_loss_that_is_proportional_has_one_factor() {
        let (errors, losses) = controls(|error| 3.0 * error);
        let factor = Line::constant(&errors, &losses);
        let line = Line::fit(&errors, &losses).unwrap();
        for error in [0.01, 0.1, 5.0] {
            assert!((factor.loss(error) / (3.0 * error) - 1.0).abs() < 1e-12);
            // The lowest twentieth is not proportional.
            assert!((line.loss(error) / (3.0 * error) - 1.0).abs() < 1e-3);
        }
        assert!(factor.loss(f64::NAN).is_nan() && line.loss(f64::NAN).is_nan());
        assert_eq!(factor.loss(0.0), 0.0);
    }

    #[test]
    fn a_line_is_not_steeper_than_one_and_never_falls() {
        for (power, slope) in [(1.6, 1.0), (-0.5, 0.0)] {
            let (errors, losses) = controls(|error| error.powf(power));
            assert_eq!(Line::fit(&errors, &losses).unwrap().slope, slope);
        }
    }

    #[test]
    fn of_few_or_equal_control_points_there_is_one_factor() {
        let (errors, losses) = controls(|error| error.powf(0.4));
        let few = (&errors[..FEWEST - 1], &losses[..FEWEST - 1]);
        assert_eq!(
            Line::fit(few.0, few.1).unwrap(),
            Line::constant(few.0, few.1)
        );
        let same = vec![0.2; 30];
        assert_eq!(
            Line::fit(&same, &losses[..30]).unwrap(),
            Line::constant(&same, &losses[..30])
        );
        let unexplained = [&[0.0; 1], &errors[1..]].concat();
        let factor = Line::constant(&unexplained, &losses);
        assert_eq!(Line::fit(&unexplained, &losses).unwrap(), factor);
    }

    /// The mean error is 2, so the ideal denoiser's loss is 6 with `s² = 3`.
    #[test]
    fn a_network_that_knows_less_than_the_ideal_denoiser_loses_an_excess() {
        let errors = [1.0, 2.0, 3.0];
        let gain = Gain::new((&errors, &[6.0, 8.0, 10.0]), 3.0, true).unwrap();
        assert_eq!(gain.loss(0.0), 2.0);
        assert_eq!(gain.loss(20.0), 62.0);
        assert!(gain.loss(f64::NAN).is_nan());

        let losses = [3.0, 6.0, 8.0];
        let gain = Gain::new((&errors, &losses), 3.0, true).unwrap();
        assert_eq!(gain, Gain::Line(Line::constant(&errors, &losses)));
    }

    #[test]
    fn a_line_is_fitted_only_if_asked_for() {
        let (errors, losses) = controls(|error| 0.7 * error.powf(0.4));
        let gain = |fits_line| Gain::new((&errors, &losses), 1e3, fits_line).unwrap();
        assert_eq!(gain(true), Gain::Line(Line::fit(&errors, &losses).unwrap()));
        assert_eq!(gain(false), Gain::Line(Line::constant(&errors, &losses)));
    }
}
