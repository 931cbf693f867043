//! The data that a prediction is made from.

use burn::tensor::Tensor;

use super::groups::Groups;
use crate::data::finite::check_finite;
use crate::data::points::check_not_empty;
use crate::data::{Points, Side};
use crate::denoiser::Condition;
use crate::error::{Error, Result, check_device, check_shape};

/// The data of a [`Counterfactual`](crate::steering::Counterfactual): retained, control and
/// forgotten points.
///
/// For a model with a condition, also their conditions and groups.
///
/// # Example
/// ```
/// # use burn::tensor::{Device, Int, Tensor};
/// # use siss::steering::{CounterfactualData, Groups};
/// # let device = Device::flex();
/// # let (retained, controls) = (Tensor::<2>::zeros([4, 3], &device), Tensor::<2>::ones([2, 3], &device));
/// # let forgotten = Tensor::<2>::ones([1, 3], &device) * 0.5;
/// let data = CounterfactualData::new(&retained, &controls, &forgotten);
///
/// // For a model that is told the class.
/// let [of_controls, of_forgotten] = [vec![0i32, 1], vec![1]]
///     .map(|classes| Tensor::<1, Int>::from_data(classes.as_slice(), &device));
/// let data = data
///     .with_conditions(&of_controls, &of_forgotten)
///     .with_groups(Groups {
///         retained: &[0, 0, 1, 1],
///         controls: &[0, 1],
///         forgotten: &[1],
///     });
/// ```
#[derive(Debug)]
pub struct CounterfactualData<'a, const D: usize, C = ()> {
    pub(crate) retained: &'a dyn Points<D>,
    pub(crate) controls: &'a Tensor<D>,
    pub(crate) control_condition: &'a C,
    pub(crate) forgotten: &'a Tensor<D>,
    pub(super) forgotten_condition: &'a C,
    pub(crate) groups: Option<Groups<'a>>,
}

// It borrows its parts, so that conditions need not be `Copy`, as a derived implementation asks.
impl<const D: usize, C> Clone for CounterfactualData<'_, D, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<const D: usize, C> Copy for CounterfactualData<'_, D, C> {}

impl<'a, const D: usize> CounterfactualData<'a, D> {
    /// The points that the prediction is made from, for a model without a condition.
    ///
    /// The control points are of the same kind as the retained ones, and the model has never seen
    /// them. If you have none, use retained points: each is left out of its own ideal denoiser, but
    /// because the model has memorised some of it, the prediction will be too low.
    ///
    /// # Shapes
    /// - `retained`: `[n, …]`, the data without the forgotten points: a tensor, or a
    ///   [`PointLoader`](crate::data::PointLoader) for data that do not fit in memory
    /// - `controls`: `[c, …]`
    /// - `forgotten`: `[k, …]`; point `i` has id `i`
    pub fn new(
        retained: &'a dyn Points<D>,
        controls: &'a Tensor<D>,
        forgotten: &'a Tensor<D>,
    ) -> Self {
        Self {
            retained,
            controls,
            control_condition: &(),
            forgotten,
            forgotten_condition: &(),
            groups: None,
        }
    }
}

impl<'a, const D: usize, C> CounterfactualData<'a, D, C> {
    /// Adds the model's conditions at the control points, `c` rows, and at the forgotten points,
    /// `k` rows.
    ///
    /// A model with a condition needs [groups](Self::with_groups) too.
    pub fn with_conditions<Other>(
        self,
        controls: &'a Other,
        forgotten: &'a Other,
    ) -> CounterfactualData<'a, D, Other> {
        CounterfactualData {
            retained: self.retained,
            controls: self.controls,
            control_condition: controls,
            forgotten: self.forgotten,
            forgotten_condition: forgotten,
            groups: self.groups,
        }
    }

    /// Says which points may explain each other; required for a model with a condition.
    pub fn with_groups(self, groups: Groups<'a>) -> Self {
        Self {
            groups: Some(groups),
            ..self
        }
    }
}

impl<const D: usize, C: Condition> CounterfactualData<'_, D, C> {
    /// # Errors
    /// [`Error::Empty`], [`Error::ShapeMismatch`], [`Error::NonFiniteData`],
    /// [`Error::DeviceMismatch`], [`Error::MissingPart`], [`Error::UnexplainedPoint`].
    pub(crate) fn check(&self) -> Result<()> {
        self.check_points()?;
        self.check_conditions()?;
        match &self.groups {
            Some(groups) => groups.check(self.counts()),
            None if C::IS_EMPTY => Ok(()),
            None => Err(Error::MissingPart {
                owner: "the data for a model with a condition".into(),
                missing: "groups to say which points may explain each other",
                remedy: "give `CounterfactualData::with_groups`: a key for each point, such as its class",
            }),
        }
    }

    /// The numbers of retained, control and forgotten points.
    fn counts(&self) -> [usize; 3] {
        let points = [self.controls, self.forgotten].map(|points| points.dims()[0]);
        [self.retained.dims()[0], points[0], points[1]]
    }

    fn check_points(&self) -> Result<()> {
        check_not_empty(self.retained, "the retained set")?;
        let shape = self.retained.dims();
        let device = self.controls.device();
        for (what, points, side) in [
            ("the control set", self.controls, Side::Retain),
            ("the forget set", self.forgotten, Side::Forget),
        ] {
            check_not_empty(points, what)?;
            let remedy = "bring all points to the model's input shape";
            check_shape(what, &shape[1..], &points.dims()[1..], remedy)?;
            check_device("points", &device, &points.device())?;
            check_finite(points, side)?;
        }
        Ok(())
    }

    fn check_conditions(&self) -> Result<()> {
        let [_, controls, forgotten] = self.counts();
        let (control_condition, condition) = (self.control_condition, self.forgotten_condition);
        control_condition.check_rows("the control condition", controls)?;
        condition.check_rows("the condition of the forgotten points", forgotten)
    }
}
