//! The range and the ticks of an axis.

use std::ops::Range;

/// Values beyond this size are not drawn: their differences would overflow.
const LARGEST: f64 = 1e100;
/// Extents below this size are treated as 0: their ticks would not be numbers.
const SMALLEST: f64 = 1e-100;
/// Space left and right of the data, as a fraction of its extent.
const MARGIN: f64 = 0.03;
/// Range of decades within which labels of log axes are written `0.01`; elsewhere `10⁻²`.
const PLAIN: Range<f64> = -3.5..4.5;

/// A labelled mark on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    /// Position in the axis' own coordinate.
    pub(super) position: f64,
    /// The text next to it.
    pub(super) label: String,
}

/// An axis that shows all the values it was made from. Its own coordinate is the value, or the
/// decimal logarithm of the value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    log: bool,
    low: f64,
    high: f64,
}

impl Axis {
    /// The axis that covers the drawable values; `[0, 1]` or one decade if there are none.
    pub(super) fn covering(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for position in values.filter_map(|value| position(value, log)) {
            (low, high) = (low.min(position), high.max(position));
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let size = low.abs().max(high.abs());
        let pad = match high - low {
            extent if extent > SMALLEST.max(1e-9 * size) => MARGIN * extent,
            _ if log => 0.5,
            _ if size > SMALLEST => 0.1 * size,
            _ => 1.0,
        };
        Self {
            log,
            low: low - pad,
            high: high + pad,
        }
    }

    /// Ends of the axis, in its own coordinate.
    pub(super) fn range(&self) -> Range<f64> {
        self.low..self.high
    }

    /// Position of a value in the axis' own coordinate; `None` if it cannot be drawn.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        position(value, self.log)
    }

    /// About `count` labelled ticks at round values.
    pub(super) fn ticks(&self, count: usize) -> Vec<Tick> {
        let ticks = match self.log {
            true => self.log_ticks(count),
            false => linear_ticks(self.low, self.high, count),
        };
        if ticks.len() > 1 || !self.log {
            return ticks;
        }
        let (low, high) = (10_f64.powf(self.low), 10_f64.powf(self.high));
        let to_axis = |tick: Tick| Tick {
            position: tick.position.log10(),
            label: tick.label,
        };
        linear_ticks(low, high, count)
            .into_iter()
            .map(to_axis)
            .collect()
    }

    /// Unlabelled ticks: the multiples of each power of ten on a log axis of few decades.
    pub(super) fn minor_ticks(&self) -> Vec<f64> {
        if !self.log || self.high - self.low > 8.0 {
            return Vec::new();
        }
        let multiples = |exponent: i32| {
            (2..=9).map(move |digit| f64::from(exponent) + f64::from(digit).log10())
        };
        self.decades(1)
            .flat_map(multiples)
            .filter(|&position| self.shows(position))
            .collect()
    }

    fn log_ticks(&self, count: usize) -> Vec<Tick> {
        let decades = self.high - self.low;
        let digits: &[i32] = match decades {
            few if few <= 1.2 => &[1, 2, 3, 5, 7],
            few if few <= 2.2 => &[1, 2, 5],
            few if few <= 3.5 => &[1, 3],
            _ => &[1],
        };
        let step = (decades / (1.5 * count.max(1) as f64)).ceil().max(1.0) as usize;
        let plain = self.low >= PLAIN.start && self.high <= PLAIN.end;
        let ticks = self.decades(step).flat_map(|exponent| {
            digits.iter().map(move |&digit| Tick {
                position: f64::from(exponent) + f64::from(digit).log10(),
                label: log_label(digit, exponent, plain),
            })
        });
        ticks.filter(|tick| self.shows(tick.position)).collect()
    }

    /// Every `step`-th exponent, from below the axis to its end.
    fn decades(&self, step: usize) -> impl Iterator<Item = i32> {
        let step = step as i32;
        let first = (self.low.floor() as i32).div_euclid(step) * step;
        (first..=self.high.floor() as i32).step_by(step as usize)
    }

    fn shows(&self, position: f64) -> bool {
        (self.low..=self.high).contains(&position)
    }
}

/// A value in an axis' own coordinate; `None` if it cannot be drawn.
fn position(value: f64, log: bool) -> Option<f64> {
    match (value.abs() <= LARGEST, log) {
        (false, _) => None,
        (true, false) => Some(value),
        (true, true) => (value > 0.0).then(|| value.log10()),
    }
}

/// Ticks at multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let rough = (high - low) / count.max(1) as f64;
    let power = rough.log10().floor();
    let digit = match rough / 10_f64.powf(power) {
        ratio if ratio < 1.5 => 1.0,
        ratio if ratio < 3.5 => 2.0,
        ratio if ratio < 7.5 => 5.0,
        _ => 10.0,
    };
    let step = digit * 10_f64.powf(power);
    let exponent = step.log10().floor() as i32;
    let largest = low.abs().max(high.abs()).log10().floor() as i32;
    let indices = (low / step).ceil() as i64..=(high / step).floor() as i64;
    let tick = |index: i64| Tick {
        position: index as f64 * step,
        label: linear_label(index as f64 * step, exponent, largest),
    };
    indices.map(tick).collect()
}

/// A value with as many digits as steps of `10^step` need, next to values of size `10^largest`.
fn linear_label(value: f64, step: i32, largest: i32) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let text = if largest < 6 && step >= -5 {
        format!("{value:.*}", (-step).max(0) as usize)
    } else {
        let mantissa = value / 10_f64.powi(largest);
        format!(
            "{mantissa:.*}×10{}",
            (largest - step).max(0) as usize,
            superscript(largest)
        )
    };
    text.replace('-', "−")
}

/// `digit · 10^exponent`.
fn log_label(digit: i32, exponent: i32, plain: bool) -> String {
    match (plain, digit) {
        (true, _) => {
            let value = f64::from(digit) * 10_f64.powi(exponent);
            format!("{value:.*}", (-exponent).max(0) as usize)
        }
        (false, 1) => format!("10{}", superscript(exponent)),
        (false, _) => format!("{digit}×10{}", superscript(exponent)),
    }
}

/// An integer in superscript digits.
fn superscript(number: i32) -> String {
    let raise = |character| match character {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '4' => '⁴',
        '5' => '⁵',
        '6' => '⁶',
        '7' => '⁷',
        '8' => '⁸',
        '9' => '⁹',
        _ => '⁰',
    };
    number.to_string().chars().map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(values: &[f64], log: bool) -> Vec<String> {
        let ticks = Axis::covering(values.iter().copied(), log).ticks(5);
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        assert_eq!(
            labels(&[0.0, 100.0], false),
            ["0", "20", "40", "60", "80", "100"]
        );
        assert_eq!(
            labels(&[-0.21, 0.19], false),
            ["−0.2", "−0.1", "0", "0.1", "0.2"]
        );
        assert_eq!(
            labels(&[0.0, 2e-7], false),
            ["0", "0.5×10⁻⁷", "1.0×10⁻⁷", "1.5×10⁻⁷", "2.0×10⁻⁷"]
        );
        assert_eq!(
            labels(&[-3e6, 5e6], false),
            ["−2×10⁶", "0", "2×10⁶", "4×10⁶"]
        );
    }

    #[test]
    fn log_ticks_are_decades_and_their_parts() {
        assert_eq!(
            labels(&[1e-6, 1e-2], true),
            ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²"]
        );
        assert_eq!(
            labels(&[0.01, 100.0], true),
            ["0.01", "0.1", "1", "10", "100"]
        );
        assert_eq!(
            labels(&[0.02, 0.21], true),
            ["0.02", "0.03", "0.05", "0.07", "0.1", "0.2"]
        );
        assert_eq!(
            labels(&[1e-40, 1e40], true),
            ["10⁻³⁶", "10⁻²⁴", "10⁻¹²", "10⁰", "10¹²", "10²⁴", "10³⁶"]
        );
    }

    #[test]
    fn a_log_axis_within_a_decade_has_linear_ticks() {
        assert_eq!(
            labels(&[4.1, 4.6], true),
            ["4.1", "4.2", "4.3", "4.4", "4.5", "4.6"]
        );
    }

    #[test]
    fn degenerate_values_give_an_axis_all_the_same() {
        let cases: [&[f64]; 7] = [
            &[],
            &[f64::NAN, f64::INFINITY],
            &[0.0; 3],
            &[7.0],
            &[f64::MIN_POSITIVE, 0.0],
            &[1e100, -1e100, f64::MAX],
            &[1.0, 1.0 + f64::EPSILON],
        ];
        for values in cases {
            for log in [false, true] {
                let ticks = Axis::covering(values.iter().copied(), log).ticks(5);
                assert!(
                    (2..12).contains(&ticks.len()),
                    "{values:?}, log {log}: {ticks:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn ticks_are_few_distinct_and_on_the_axis(
            values in prop::collection::vec(-8.0_f64..8.0, 1..5), log: bool, sign in prop::sample::select(vec![-1.0, 1.0]),
        ) {
            let values: Vec<f64> = values.iter().map(|exponent| sign * 10_f64.powf(*exponent)).collect();
            let axis = Axis::covering(values.iter().copied(), log);
            let ticks = axis.ticks(5);
            let mut labels: Vec<_> = ticks.iter().map(|tick| &tick.label).collect();
            labels.sort();
            labels.dedup();
            prop_assert_eq!(labels.len(), ticks.len());
            prop_assert!((2..=12).contains(&ticks.len()), "{:?}", ticks);
            let slack = 1e-9 * (axis.high - axis.low);
            let shown = axis.low - slack..=axis.high + slack;
            prop_assert!(ticks.iter().all(|tick| shown.contains(&tick.position)));
            prop_assert!(values.iter().filter_map(|&value| axis.position(value)).all(|at| axis.shows(at)));
        }
    }
}
