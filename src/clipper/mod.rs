//! How the two gradients are weighed against each other: arithmetic on three numbers.

mod spec;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::data::Side;
use crate::error::{Result, check_positive, check_probability, check_state};
use crate::files::json::number_or_null;

pub use spec::ClipperSpec;

/// Norms of the two sides' gradients over the whole optimiser step, their inner product, and the
/// weights behind them.
///
/// The forget gradient carries its sign: for an objective that ascends, it is minus the gradient of
/// the forget loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GradientNorms {
    /// `‖g_r‖`, 0 without a retain term.
    #[serde(deserialize_with = "number_or_null")]
    pub retain: f64,
    /// `‖g_f‖`, 0 without a forget term.
    #[serde(deserialize_with = "number_or_null")]
    pub forget: f64,
    /// `⟨g_r, g_f⟩`.
    #[serde(deserialize_with = "number_or_null")]
    pub inner_product: f64,
    /// Mean `|w|` of the retain term over the batch, counting only the rows that were run: 1 in
    /// expectation for every objective of the crate, 0 in a step without a retain row.
    #[serde(default = "one")]
    pub retain_weight: f64,
    /// Mean `|w|` of the forget term, counted in the same way.
    #[serde(default = "one")]
    pub forget_weight: f64,
    /// Root mean square of the steering factors of the forget rows, weighted by `|w|`: from 0 at
    /// the level to 1 far from it, and 1 without steering.
    #[serde(default = "one")]
    pub steering: f64,
}

fn one() -> f64 {
    1.0
}

impl Default for GradientNorms {
    /// No gradients; weights and steering are 1.
    fn default() -> Self {
        Self {
            retain: 0.0,
            forget: 0.0,
            inner_product: 0.0,
            retain_weight: 1.0,
            forget_weight: 1.0,
            steering: 1.0,
        }
    }
}

impl GradientNorms {
    /// `‖c_r g_r + c_f g_f‖`.
    pub fn combined(&self, coefficients: Coefficients) -> f64 {
        let retain = coefficients.retain * self.retain;
        let forget = coefficients.forget * self.forget;
        let cross = 2.0 * coefficients.retain * coefficients.forget * self.inner_product;
        let squared = retain * retain + forget * forget + cross;
        // Rounding can make the sum negative if the gradients are opposite; a NaN stays a NaN.
        if squared < 0.0 { 0.0 } else { squared.sqrt() }
    }

    pub(crate) fn is_finite(&self) -> bool {
        self.retain.is_finite() && self.forget.is_finite() && self.inner_product.is_finite()
    }
}

/// The factors of the combination `g = c_r g_r + c_f g_f`.
///
/// Neither carries the sign of forgetting: that is in `g_f`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Coefficients {
    /// `c_r`.
    #[serde(deserialize_with = "number_or_null")]
    pub retain: f64,
    /// `c_f`, the paper's forget scale.
    #[serde(deserialize_with = "number_or_null")]
    pub forget: f64,
}

impl Coefficients {
    pub(crate) fn is_finite(&self) -> bool {
        self.retain.is_finite() && self.forget.is_finite()
    }
}

/// Chooses the coefficients of an optimiser step from the norms of its two gradients.
///
/// The norms are those of the mean gradients of the whole step, so micro-batches make no
/// difference.
pub trait GradientClipper: Send + Debug {
    /// Name for reports and messages.
    fn name(&self) -> &'static str;

    /// Whether the rule requires a gradient of this side.
    ///
    /// The trainer refuses an objective without one.
    fn needs(&self, side: Side) -> bool;

    /// The coefficients for gradients with these norms.
    ///
    /// Norms are finite; a side without a gradient has norm 0.
    ///
    /// # Errors
    /// Those of the clipper; the clippers of this crate have none.
    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients>;

    /// Name and settings as text. A resumed run must have the same.
    fn settings(&self) -> String;

    /// The state that the clipper carries from step to step, for a checkpoint.
    ///
    /// The default is empty.
    fn state(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Restores the result of [`state`](GradientClipper::state), to the bit.
    ///
    /// # Errors
    /// [`Error::StateMismatch`](crate::Error::StateMismatch) for a state that does not fit this
    /// clipper.
    fn restore(&mut self, state: &[f64]) -> Result<()> {
        check_state(self.name(), state, 0)
    }
}

impl GradientClipper for Box<dyn GradientClipper> {
    fn name(&self) -> &'static str {
        self.as_ref().name()
    }

    fn needs(&self, side: Side) -> bool {
        self.as_ref().needs(side)
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        self.as_mut().coefficients(norms)
    }

    fn settings(&self) -> String {
        self.as_ref().settings()
    }

    fn state(&self) -> Vec<f64> {
        self.as_ref().state()
    }

    fn restore(&mut self, state: &[f64]) -> Result<()> {
        self.as_mut().restore(state)
    }
}

/// `numerator / norm`, or 0 if there is nothing to scale.
fn over_norm(numerator: f64, norm: f64) -> f64 {
    if norm > 0.0 { numerator / norm } else { 0.0 }
}

fn forget_scale(forget: f64) -> Result<Coefficients> {
    Ok(Coefficients {
        retain: 1.0,
        forget,
    })
}

/// The paper's rule and the default, with 10 %: scales the forget gradient to a fraction of the
/// retain gradient's norm, `c_f = fraction · ‖g_r‖ / ‖g_f‖`.
///
/// With steering, the fraction shrinks as the level comes near: it is multiplied by the root mean
/// square of the rows' factors ([`GradientNorms::steering`]), so that a gradient that should vanish
/// is not scaled up again.
///
/// A step with almost no retain rows has no usable `‖g_r‖`; this happens where `λ` or `1 − λ` times
/// the batch size is small. Such a step uses the running average of `‖g_r‖` over earlier steps that
/// had retain rows, for rows of weight 1, times the weight of the step's forget rows.
///
/// # Reference
/// SISS (arXiv 2503.01034), Section 4 and the descent lemma of its appendix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FractionOfRetain {
    fraction: f64,
    max_scale: Option<f64>,
    /// The running mean of `‖g_r‖` for rows of weight 1, once a step has had retain rows.
    retain_norm: Option<f64>,
}

/// A step with a smaller mean weight of the retain rows counts as one without retain rows; the
/// expectation is 1.
const LEAST_RETAIN_WEIGHT: f64 = 0.5;

/// Share of each step in the running mean of the retain gradient's norm.
const RETAIN_NORM_RATE: f64 = 0.1;

impl FractionOfRetain {
    /// Creates a rule that scales the forget gradient to `fraction` of the retain gradient's norm.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `fraction` is positive and finite.
    pub fn new(fraction: f64) -> Result<Self> {
        Ok(Self {
            fraction: check_positive("fraction", fraction)?,
            ..Self::default()
        })
    }

    /// The default of a steered run.
    ///
    /// The fraction is larger, because steering shrinks it as levels are reached: what some
    /// timesteps no longer need is available to the others.
    pub(crate) const STEERED: FractionOfRetain = FractionOfRetain {
        fraction: 0.3,
        max_scale: None,
        retain_norm: None,
    };

    /// What a regression of forgotten points to another answer takes: enough to get there in a
    /// short run, and never more than the gradient itself, so that the scale does not grow as the
    /// answer is reached.
    pub(crate) const ANSWERS: FractionOfRetain = FractionOfRetain {
        fraction: 0.3,
        max_scale: Some(1.0),
        retain_norm: None,
    };

    /// Limits the scale to `max_scale`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `max_scale` is positive and finite.
    pub fn with_max_scale(mut self, max_scale: f64) -> Result<Self> {
        self.max_scale = Some(check_positive("max_scale", max_scale)?);
        Ok(self)
    }

    /// The norm of which the forget gradient gets a fraction.
    fn reference(&mut self, norms: &GradientNorms) -> f64 {
        if norms.retain_weight >= LEAST_RETAIN_WEIGHT {
            let of_weight_one = norms.retain / norms.retain_weight;
            let known = self.retain_norm.unwrap_or(of_weight_one);
            self.retain_norm = Some(known + RETAIN_NORM_RATE * (of_weight_one - known));
            return norms.retain;
        }
        match self.retain_norm {
            Some(of_weight_one) => of_weight_one * norms.forget_weight,
            None => norms.retain,
        }
    }
}

impl Default for FractionOfRetain {
    /// 10 %, without a limit of the scale.
    fn default() -> Self {
        Self {
            fraction: 0.1,
            max_scale: None,
            retain_norm: None,
        }
    }
}

impl GradientClipper for FractionOfRetain {
    fn name(&self) -> &'static str {
        "FractionOfRetain"
    }

    fn needs(&self, side: Side) -> bool {
        side == Side::Retain
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        let share = self.fraction * norms.steering * self.reference(norms);
        let scale = over_norm(share, norms.forget);
        forget_scale(scale.min(self.max_scale.unwrap_or(f64::INFINITY)))
    }

    fn settings(&self) -> String {
        let name = self.name();
        let max_scale = self.max_scale.map(|scale| format!(", max_scale {scale}"));
        format!(
            "{name}, fraction {}{}",
            self.fraction,
            max_scale.unwrap_or_default()
        )
    }

    /// The running mean of the retain gradient's norm, once there is one.
    fn state(&self) -> Vec<f64> {
        self.retain_norm.into_iter().collect()
    }

    fn restore(&mut self, state: &[f64]) -> Result<()> {
        // Before the first step there is no norm yet.
        check_state(self.name(), state, state.len().min(1))?;
        self.retain_norm = state.first().copied();
        Ok(())
    }
}

/// Rescales the forget gradient to a fixed norm, `c_f = norm / ‖g_f‖`: the rule that the published
/// code calls clipping.
///
/// The paper's runs use 500 (CelebA-HQ), 5 (T-shirt) and 750 (Stable Diffusion). With steering, the
/// norm shrinks like the fraction of [`FractionOfRetain`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RescaleToNorm {
    norm: f64,
}

impl RescaleToNorm {
    /// Creates a rule that rescales the forget gradient to `norm`.
    ///
    /// A suitable norm depends on the reduction of the loss: in this crate, a sum over elements and
    /// a mean over the batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `norm` is positive and finite.
    pub fn new(norm: f64) -> Result<Self> {
        Ok(Self {
            norm: check_positive("norm", norm)?,
        })
    }
}

impl GradientClipper for RescaleToNorm {
    fn name(&self) -> &'static str {
        "RescaleToNorm"
    }

    fn needs(&self, _side: Side) -> bool {
        false
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        forget_scale(over_norm(self.norm * norms.steering, norms.forget))
    }

    fn settings(&self) -> String {
        format!("{}, norm {}", self.name(), self.norm)
    }
}

/// A clip in the usual sense: a forget gradient longer than `norm` is scaled down to it; a shorter
/// one is unchanged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipToNorm {
    norm: f64,
}

impl ClipToNorm {
    /// Creates a rule that clips the forget gradient at `norm`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `norm` is positive and finite.
    pub fn new(norm: f64) -> Result<Self> {
        Ok(Self {
            norm: check_positive("norm", norm)?,
        })
    }
}

impl GradientClipper for ClipToNorm {
    fn name(&self) -> &'static str {
        "ClipToNorm"
    }

    fn needs(&self, _side: Side) -> bool {
        false
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        forget_scale(over_norm(self.norm, norms.forget).min(1.0))
    }

    fn settings(&self) -> String {
        format!("{}, norm {}", self.name(), self.norm)
    }
}

/// Uses the same factor in every step: the superfactor of the published code.
///
/// The paper's Eq. 4, up to a common factor, is `(1+s) k/n` with `x` from all data, or `s k/(n−k)`
/// with `x` from the data without the forgotten points.
#[doc(alias = "superfactor")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ConstantScale {
    scale: f64,
}

impl ConstantScale {
    /// The forget gradient unchanged.
    pub(crate) const UNSCALED: ConstantScale = ConstantScale { scale: 1.0 };

    /// What a regression of forgotten points to another answer takes if retained points keep
    /// theirs: a twentieth for each, because the term is their mean, and never more than the
    /// gradient itself.
    pub(crate) fn keeping(points: usize) -> ConstantScale {
        ConstantScale {
            scale: (0.05 * points as f64).min(1.0),
        }
    }

    /// Creates a rule that scales the forget gradient by `scale`; 0 switches forgetting off.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `scale` is finite and at least 0.
    pub fn new(scale: f64) -> Result<Self> {
        let legal = scale >= 0.0;
        Ok(Self {
            scale: crate::error::check_range(
                "scale",
                scale,
                legal,
                "a finite number from 0 up; the forgetting's sign is in its gradient",
            )?,
        })
    }
}

impl GradientClipper for ConstantScale {
    fn name(&self) -> &'static str {
        "ConstantScale"
    }

    fn needs(&self, _side: Side) -> bool {
        false
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        let has_forget_gradient = norms.forget > 0.0;
        forget_scale(if has_forget_gradient { self.scale } else { 0.0 })
    }

    fn settings(&self) -> String {
        format!("{}, scale {}", self.name(), self.scale)
    }
}

/// A convex combination, `g = (1−s) g_r + s g_f`: for objectives that regress forgotten points to
/// another target.
///
/// # Reference
/// ReTrack (arXiv 2509.13007), whose `λ` is the share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Blend {
    share: f64,
}

impl Blend {
    /// ReTrack's share for MNIST and CelebA.
    pub(crate) const PUBLISHED: Blend = Blend { share: 0.005 };

    /// Creates a rule that gives the forget gradient the share `share`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `0 ≤ share ≤ 1`.
    pub fn new(share: f64) -> Result<Self> {
        Ok(Self {
            share: check_probability("share", share)?,
        })
    }
}

impl GradientClipper for Blend {
    fn name(&self) -> &'static str {
        "Blend"
    }

    fn needs(&self, side: Side) -> bool {
        side == Side::Retain
    }

    fn coefficients(&mut self, _norms: &GradientNorms) -> Result<Coefficients> {
        Ok(Coefficients {
            retain: 1.0 - self.share,
            forget: self.share,
        })
    }

    fn settings(&self) -> String {
        format!("{}, share {}", self.name(), self.share)
    }
}

/// Gradient surgery: if the two gradients oppose each other, each is projected onto the other's
/// normal plane; then they are added.
///
/// # Reference
/// Yu et al. 2020, *Gradient Surgery for Multi-Task Learning*; for unlearning, Ko et al. 2024
/// (NeurIPS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Projected;

impl GradientClipper for Projected {
    fn name(&self) -> &'static str {
        "Projected"
    }

    fn settings(&self) -> String {
        self.name().into()
    }

    fn needs(&self, side: Side) -> bool {
        side == Side::Retain
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        // g_r − (⟨g_r, g_f⟩ / ‖g_f‖²) g_f + g_f − (⟨g_r, g_f⟩ / ‖g_r‖²) g_r
        let conflict = norms.inner_product.min(0.0);
        Ok(Coefficients {
            retain: 1.0 - over_norm(conflict, norms.retain.powi(2)),
            forget: 1.0 - over_norm(conflict, norms.forget.powi(2)),
        })
    }
}

/// The rule of the EraseDiff baseline, `c_f = max(η − ⟨g_r, g_f⟩ / ‖g_f‖², 0)`: adds just enough of
/// the forget gradient for the step to descend on the forget term at a rate `η`.
///
/// # Reference
/// EraseDiff (arXiv 2401.05779) as the SISS code runs it; its `η` is 1e-3, for Stable Diffusion
/// 1e-2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EraseDiffRule {
    rate: f64,
}

impl EraseDiffRule {
    pub(crate) const PUBLISHED: EraseDiffRule = EraseDiffRule { rate: 1e-3 };

    /// Creates the rule with the rate `η`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) unless `rate` is positive and finite.
    pub fn new(rate: f64) -> Result<Self> {
        Ok(Self {
            rate: check_positive("rate", rate)?,
        })
    }
}

impl GradientClipper for EraseDiffRule {
    fn name(&self) -> &'static str {
        "EraseDiffRule"
    }

    fn needs(&self, side: Side) -> bool {
        side == Side::Retain
    }

    fn coefficients(&mut self, norms: &GradientNorms) -> Result<Coefficients> {
        if norms.forget == 0.0 {
            return forget_scale(0.0);
        }
        forget_scale((self.rate - norms.inner_product / norms.forget.powi(2)).max(0.0))
    }

    fn settings(&self) -> String {
        format!("{}, rate {}", self.name(), self.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_combined_norm_follows_from_three_numbers() {
        let norms = GradientNorms {
            retain: 5.0,
            forget: 6f64.sqrt(),
            inner_product: -1.0,
            ..GradientNorms::default()
        };
        // ‖(3, 4, 0) − 2 (1, −1, 2)‖ = ‖(1, 6, −4)‖
        let combined = norms.combined(Coefficients {
            retain: 1.0,
            forget: -2.0,
        });
        assert!((combined - 53f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_clipper_goes_on_from_its_state_and_refuses_another_ones() {
        let norms = |retain, retain_weight| GradientNorms {
            retain,
            forget: 1.0,
            retain_weight,
            ..GradientNorms::default()
        };
        let mut first = FractionOfRetain::default();
        first.coefficients(&norms(1.0 / 3.0, 1.0)).unwrap();
        let mut second: Box<dyn GradientClipper> = Box::new(FractionOfRetain::default());
        second.restore(&first.state()).unwrap();
        assert_eq!(second.state(), first.state());
        let later = norms(0.0, 0.0);
        let expected = first.coefficients(&later).unwrap();
        assert!(expected.forget > 0.0);
        assert_eq!(second.coefficients(&later).unwrap(), expected);

        second.restore(&[]).unwrap();
        assert!(second.state().is_empty());
        let error = second.restore(&[1.0, 2.0]).unwrap_err();
        assert!(error.to_string().contains("FractionOfRetain"), "{error}");
        assert!(Projected.restore(&[1.0]).is_err());
    }

    /// Batches of one row, retained and forgotten in turn, each with weight 2.
    #[test]
    fn a_step_without_retain_rows_takes_a_fraction_of_what_the_others_had() {
        let mut clipper = FractionOfRetain::default();
        let only = |retain: f64, forget: f64| GradientNorms {
            retain,
            forget,
            retain_weight: if retain > 1e-9 { 2.0 } else { 0.0 },
            forget_weight: if forget > 1e-9 { 2.0 } else { 0.0 },
            ..GradientNorms::default()
        };
        // Before the first retain row there is no norm to take a fraction of.
        assert_eq!(clipper.coefficients(&only(0.0, 5.0)).unwrap().forget, 0.0);
        assert_eq!(clipper.coefficients(&only(6.0, 0.0)).unwrap().forget, 0.0);
        let share = |clipper: &mut FractionOfRetain, forget: f64| {
            clipper.coefficients(&only(0.0, forget)).unwrap().forget * forget
        };
        // 3 for rows of weight 1; the forget rows have weight 2.
        assert!((share(&mut clipper, 5.0) - 0.1 * 3.0 * 2.0).abs() < 1e-12);
        // A retain gradient of almost no weight counts as none.
        let mut vanishing = only(1e-12, 5.0);
        vanishing.retain_weight = 1e-12;
        let scale = clipper.coefficients(&vanishing).unwrap().forget;
        assert!((scale * 5.0 - 0.6).abs() < 1e-12);
        // The mean follows later steps.
        for _ in 0..200 {
            clipper.coefficients(&only(60.0, 0.0)).unwrap();
        }
        assert!((share(&mut clipper, 0.25) - 6.0).abs() < 1e-6);
    }

    /// At the level the factors are small, whatever the norm of the gradient.
    #[test]
    fn the_fraction_shrinks_with_the_steering_factors() {
        let at = |clipper: &mut dyn GradientClipper, steering| {
            let norms = GradientNorms {
                retain: 10.0,
                forget: 4.0,
                steering,
                ..GradientNorms::default()
            };
            clipper.coefficients(&norms).unwrap().forget * norms.forget
        };
        let mut clippers: [(Box<dyn GradientClipper>, f64); 2] = [
            (Box::new(FractionOfRetain::default()), 1.0),
            (Box::new(RescaleToNorm::new(5.0).unwrap()), 5.0),
        ];
        for (clipper, norm) in &mut clippers {
            for steering in [1.0, 0.2, 0.0] {
                let applied = at(clipper.as_mut(), steering);
                assert!((applied - steering * *norm).abs() < 1e-12, "{applied}");
            }
        }
    }

    fn scale(clipper: &mut dyn GradientClipper, retain: f64, forget: f64) -> f64 {
        let norms = GradientNorms {
            retain,
            forget,
            ..GradientNorms::default()
        };
        let coefficients = clipper.coefficients(&norms).unwrap();
        assert_eq!(coefficients.retain, 1.0);
        coefficients.forget
    }

    /// Norms spread evenly over the orders of magnitude: a uniform draw would hardly ever be below
    /// a clipper's norm.
    fn norms() -> impl Strategy<Value = f64> {
        (-6.0..6.0f64).prop_map(|exponent| 10f64.powf(exponent))
    }

    proptest! {
        #[test]
        fn each_clipper_keeps_its_promise(retain in norms(), forget in norms()) {
            let near = |got: f64, expected: f64| (got - expected).abs() <= 1e-12 * expected;
            prop_assert!(near(scale(&mut FractionOfRetain::default(), retain, forget) * forget, 0.1 * retain));
            prop_assert!(near(scale(&mut RescaleToNorm::new(5.0).unwrap(), retain, forget) * forget, 5.0));
            let clipped = scale(&mut ClipToNorm::new(5.0).unwrap(), retain, forget);
            prop_assert!(near(clipped * forget, forget.min(5.0)) && clipped <= 1.0);
            prop_assert_eq!(scale(&mut ConstantScale::new(0.3).unwrap(), retain, forget), 0.3);
            let mut bounded = FractionOfRetain::new(0.5).unwrap().with_max_scale(2.0).unwrap();
            prop_assert!(near(scale(&mut bounded, retain, forget), (0.5 * retain / forget).min(2.0)));
        }
    }

    proptest! {
        #[test]
        fn surgery_leaves_neither_side_worse(retain in 0.1..10.0f64, forget in 0.1..10.0f64, cosine in -1.0..1.0f64) {
            let norms = GradientNorms { retain, forget, inner_product: cosine * retain * forget, ..GradientNorms::default() };
            let c = Projected.coefficients(&norms).unwrap();
            // ⟨g, g_r⟩ and ⟨g, g_f⟩ of the combination.
            let along_retain = c.retain * retain * retain + c.forget * norms.inner_product;
            let along_forget = c.retain * norms.inner_product + c.forget * forget * forget;
            prop_assert!(along_retain >= -1e-9 && along_forget >= -1e-9);
            if cosine >= 0.0 {
                prop_assert_eq!((c.retain, c.forget), (1.0, 1.0));
            }
        }

        #[test]
        fn erase_diff_descends_on_the_forget_term_at_its_rate(retain in 0.1..10.0f64, forget in 0.1..10.0f64, cosine in -1.0..1.0f64) {
            let norms = GradientNorms { retain, forget, inner_product: cosine * retain * forget, ..GradientNorms::default() };
            let c = EraseDiffRule::new(0.5).unwrap().coefficients(&norms).unwrap();
            let along_forget = c.retain * norms.inner_product + c.forget * forget * forget;
            prop_assert!(along_forget >= 0.5 * forget * forget - 1e-9 && c.forget >= 0.0);
        }
    }

    #[test]
    fn a_blend_is_convex() {
        let c = Blend::new(0.3)
            .unwrap()
            .coefficients(&GradientNorms::default())
            .unwrap();
        assert_eq!((c.retain, c.forget), (0.7, 0.3));
        assert!(Blend::new(1.5).is_err());
    }

    #[test]
    fn no_forget_gradient_gives_scale_zero() {
        let mut clippers: [Box<dyn GradientClipper>; 4] = [
            Box::new(FractionOfRetain::default()),
            Box::new(RescaleToNorm::new(5.0).unwrap()),
            Box::new(ClipToNorm::new(5.0).unwrap()),
            Box::new(ConstantScale::new(1.0).unwrap()),
        ];
        for clipper in &mut clippers {
            assert_eq!(scale(clipper, 3.0, 0.0), 0.0, "{}", clipper.name());
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_with_their_value() {
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            for error in [
                FractionOfRetain::new(bad).unwrap_err(),
                FractionOfRetain::default().with_max_scale(bad).unwrap_err(),
                RescaleToNorm::new(bad).unwrap_err(),
                ClipToNorm::new(bad).unwrap_err(),
                ConstantScale::new(bad).unwrap_err(),
            ] {
                assert!(error.to_string().contains(&format!("is {bad}")), "{error}");
            }
        }
        assert!(RescaleToNorm::new(0.0).is_err());
        assert!(ConstantScale::new(0.0).is_ok());
    }

    #[test]
    fn opposite_gradients_combine_to_nothing_and_what_is_no_number_stays_none() {
        let combined = |inner_product| {
            let norms = GradientNorms {
                retain: 0.1,
                forget: 0.1,
                inner_product,
                ..GradientNorms::default()
            };
            norms.combined(Coefficients {
                retain: 1.0,
                forget: 1.0,
            })
        };
        // Rounding makes the square negative.
        assert_eq!(combined(-0.01 - 1e-12), 0.0);
        assert!(combined(f64::NAN).is_nan());
    }
}
