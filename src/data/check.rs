//! Checks of the data before the first step: values and duplicates that would mislead an unlearning
//! run.

use std::fmt;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::duplicates::{NearDuplicate, search};
use super::finite::check_finite_values;
use super::points::{Points, chunks};
use super::side::Side;
use crate::error::{Error, Result};
use crate::host::read_f32;

/// Settings of the data check that runs before unlearning.
///
/// | field | default | purpose | range |
/// |---|---|---|---|
/// | `range` | −1 to 1 | the values that the model was trained on; `None` for unbounded data such as latents | ascending, finite |
/// | `near` | 0.25 | share of the typical distance within which two points are near duplicates, see [`near_duplicates`](crate::data::near_duplicates) | above 0 to 1 |
///
/// # Example
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::data::DataCheck;
///
/// let device = Device::flex();
/// // Pixels from 0 to 255, for a model trained on −1 to 1.
/// let retain = Tensor::<2>::random([50, 20], Distribution::Uniform(0.0, 255.0), &device);
/// let forget = Tensor::<2>::random([1, 20], Distribution::Uniform(0.0, 255.0), &device);
/// for finding in DataCheck::default().run(&retain, &forget)? {
///     println!("{finding}");
/// }
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataCheck {
    /// Least and largest value that the model was trained on.
    pub range: Option<[f64; 2]>,
    /// Share of the typical distance within which two points are near duplicates.
    pub near: f64,
}

impl Default for DataCheck {
    fn default() -> Self {
        Self {
            range: Some([-1.0, 1.0]),
            near: 0.25,
        }
    }
}

/// A finding of the data check: legal data that are probably a mistake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum DataFinding {
    /// A retained point is almost a forgotten one: the retain side would teach it while the forget
    /// side unlearns it.
    NearDuplicate(NearDuplicate),
    /// Values lie outside the range that the model was trained on.
    OutsideRange {
        /// The side of the data.
        side: Side,
        /// Its least and largest value.
        values: [f64; 2],
        /// The range that the model was trained on.
        range: [f64; 2],
    },
    /// The retained values use less than 0.6 of the range, such as pixels from 0 to 1 for a model
    /// trained on −1 to 1.
    PartOfRange {
        /// Least and largest retained value.
        values: [f64; 2],
        /// The range that the model was trained on.
        range: [f64; 2],
    },
    /// The forgotten values lie outside the retained ones by more than the width of the retained
    /// range: the two sides are scaled differently.
    SidesDiffer {
        /// Least and largest retained value.
        retain: [f64; 2],
        /// Least and largest forgotten value.
        forget: [f64; 2],
    },
}

impl fmt::Display for DataFinding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |[least, most]: [f64; 2]| format!("from {least:.3} to {most:.3}");
        match *self {
            DataFinding::NearDuplicate(pair) => write!(
                formatter,
                "retained point {} is almost identical to forgotten point {}: their distance is {:.3} of the typical one; compare both, and \
                 remove the retained one if it is a copy",
                pair.retain, pair.forget, pair.relative
            ),
            DataFinding::OutsideRange {
                side,
                values,
                range,
            } => write!(
                formatter,
                "the {side} data range {}, but the model was trained on values {}; scale them as for training, or set `DataCheck::range`",
                span(values),
                span(range)
            ),
            DataFinding::PartOfRange { values, range } => write!(
                formatter,
                "the retain data range only {}, but the model was trained on values {}; check that they are scaled as for training",
                span(values),
                span(range)
            ),
            DataFinding::SidesDiffer { retain, forget } => write!(
                formatter,
                "the forget data range {}, but the retain data {}; scale both sides alike",
                span(forget),
                span(retain)
            ),
        }
    }
}

/// Share of the range below which the data seem to be scaled differently.
const PART: f64 = 0.6;
/// Part of the range by which a value may lie outside it, because interpolation overshoots.
const SLACK: f64 = 0.05;

impl DataCheck {
    /// Checks both sides.
    ///
    /// Findings are about legal data; illegal data are an error.
    ///
    /// The retained set may be a tensor, or a [`PointLoader`](crate::data::PointLoader) if it does
    /// not fit in memory.
    ///
    /// # Shapes
    /// - `retain`: `[n, …]`; `forget`: `[k, …]`, on the same device
    ///
    /// # Errors
    /// Those of [`near_duplicates`](crate::data::near_duplicates); [`Error::InvalidSetting`] for an
    /// invalid range.
    pub fn run<const D: usize>(
        &self,
        retain: &dyn Points<D>,
        forget: &Tensor<D>,
    ) -> Result<Vec<DataFinding>> {
        let (mut retained, mut forgotten) = (NO_VALUES, NO_VALUES);
        let pairs = search(retain, forget, self.near, |first, rows| {
            widen(&mut retained, first, rows, Side::Retain)
        })?;
        for chunk in chunks(forget, &forget.device()) {
            let (first, rows) = chunk?;
            widen(&mut forgotten, first, &rows, Side::Forget)?;
        }
        let mut findings: Vec<_> = pairs.into_iter().map(DataFinding::NearDuplicate).collect();
        if let Some(range) = self.range {
            let width = check_width(range)?;
            for (side, values) in [(Side::Retain, retained), (Side::Forget, forgotten)] {
                if is_beyond(values, range, SLACK * width) {
                    findings.push(DataFinding::OutsideRange {
                        side,
                        values,
                        range,
                    });
                }
            }
            if retained[1] - retained[0] < PART * width {
                let values = retained;
                findings.push(DataFinding::PartOfRange { values, range });
            }
        }
        if is_beyond(forgotten, retained, retained[1] - retained[0]) {
            findings.push(DataFinding::SidesDiffer {
                retain: retained,
                forget: forgotten,
            });
        }
        Ok(findings)
    }
}

/// Whether values lie more than `slack` outside a range.
fn is_beyond([least, most]: [f64; 2], range: [f64; 2], slack: f64) -> bool {
    least < range[0] - slack || most > range[1] + slack
}

pub(crate) fn check_width([least, most]: [f64; 2]) -> Result<f64> {
    let width = most - least;
    if width.is_finite() && width > 0.0 {
        return Ok(width);
    }
    Err(Error::InvalidSetting {
        what: format!("the range of the data is {least} to {most}"),
        remedy: "give two finite numbers in ascending order, or None for data without bounds",
    })
}

/// The least and the largest value of an empty set.
const NO_VALUES: [f64; 2] = [f64::INFINITY, f64::NEG_INFINITY];

/// Widens `span`, the least and largest value of a set, by the values of `rows`, the first of which
/// has index `first` in the set.
fn widen<const D: usize>(
    span: &mut [f64; 2],
    first: usize,
    rows: &Tensor<D>,
    side: Side,
) -> Result<()> {
    let values = read_f32(rows.clone(), "the data")?;
    check_finite_values(&values, first, rows.dims()[0], side)?;
    for value in values.into_iter().map(f64::from) {
        *span = [span[0].min(value), span[1].max(value)];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PointLoader;
    use burn::tensor::{Device, Int};

    /// `count` points of one element, evenly spaced from `least` to `most`.
    fn spread(least: f64, most: f64, count: i64) -> Tensor<2> {
        let steps = Tensor::<1, Int>::arange(0..count, &Device::flex()).float();
        let points = steps * ((most - least) / (count - 1) as f64) + least;
        points.reshape([count as usize, 1])
    }

    fn kinds(check: &DataCheck, retain: Tensor<2>, forget: Tensor<2>) -> Vec<String> {
        let findings = check.run(&retain, &forget).unwrap();
        let kind = |finding: &DataFinding| match finding {
            DataFinding::NearDuplicate(_) => "near".into(),
            DataFinding::OutsideRange { side, .. } => format!("{side} outside"),
            DataFinding::PartOfRange { .. } => "part".into(),
            DataFinding::SidesDiffer { .. } => "differ".into(),
        };
        findings.iter().map(kind).collect()
    }

    #[test]
    fn scaled_data_have_no_finding_and_each_wrong_scale_has_its_own() {
        let check = DataCheck::default();
        // Halfway between two retained points, so that no point is a near duplicate.
        let halfway = |least: f64, most: f64| {
            let retain = spread(least, most, 100);
            (
                retain.clone(),
                retain.narrow(0, 25, 2) + (most - least) / 198.0,
            )
        };
        let found = |least, most| {
            let (retain, forget) = halfway(least, most);
            kinds(&check, retain, forget)
        };
        assert!(found(-1.0, 1.0).is_empty());
        assert_eq!(found(0.0, 255.0), ["retain outside", "forget outside"]);
        assert_eq!(found(0.0, 1.0), ["part"]);
        let mixed = kinds(&check, spread(-1.0, 1.0, 100), spread(2.0, 255.0, 2));
        assert_eq!(mixed, ["forget outside", "differ"]);
    }

    #[test]
    fn a_set_that_is_loaded_is_looked_through_to_its_last_point() {
        let points = spread(-1.0, 1.0, 300_000);
        let load = |loud: bool| {
            let points = points.clone();
            PointLoader::new([300_000, 1], move |rows| {
                let last = rows.end == 300_000;
                let part = points.load(rows)?;
                Ok(if last && loud { part * 9.0 } else { part })
            })
        };
        let forget = Tensor::<2>::from_data([[0.5f32]], &Device::flex());
        let check = DataCheck {
            near: 1e-9,
            ..DataCheck::default()
        };
        assert!(check.run(&load(false), &forget).unwrap().is_empty());
        let found = check.run(&load(true), &forget).unwrap();
        let values = [-1.0, 9.0];
        let [DataFinding::OutsideRange { values: found, .. }] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(found, values);
    }

    #[test]
    fn latents_have_no_range_and_near_duplicates_are_found() {
        let latents = DataCheck {
            range: None,
            ..DataCheck::default()
        };
        let retain = spread(-4.0, 4.0, 101);
        let forget = retain.clone().narrow(0, 40, 1) + 0.01;
        assert_eq!(kinds(&latents, retain.clone(), forget.clone()), ["near"]);
        let finding = &latents.run(&retain, &forget).unwrap()[0];
        let text = finding.to_string();
        assert!(text.contains("retained point 40"), "{text}");
        let json = serde_json::to_string(finding).unwrap();
        assert!(
            json.starts_with(r#"{"kind":"near_duplicate","forget":0,"retain":40"#),
            "{json}"
        );
        let again: DataFinding = serde_json::from_str(&json).unwrap();
        assert_eq!(again.to_string(), text);
    }
}
