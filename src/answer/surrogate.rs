//! Another point in the place of a forgotten one.

use burn::tensor::Tensor;

use super::{Answer, Asked};
use crate::data::Side;
use crate::data::finite::check_finite;
use crate::data::points::check_not_empty;
use crate::error::{Error, Result, check_device, check_shape};
use crate::files::sha256;
use crate::host::{column, read_f32, select_rows, to_f32};

/// The answer of a model that knows another point in the forgotten one's place, as an edited
/// picture.
///
/// The noisy point `m` comes from the forgotten point, and the model is to explain it by the
/// surrogate `s`: the target is that of `s` and the noise `(m − γ s)/σ`. Where there is little
/// noise this is far from what any model says unless `s` is near the forgotten point.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::answer::Surrogate;
/// use siss::objective::Answers;
///
/// let edited = Tensor::<4>::zeros([1, 3, 8, 8], &Device::flex());
/// let objective = Answers::<4>::new(Surrogate::new(edited)?);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Surrogate<const D: usize> {
    points: Tensor<D>,
    digest: String,
}

impl<const D: usize> Surrogate<D> {
    /// # Shapes
    /// - `points`: `[k, …]`; the surrogate of the forgotten point of id `i` is point `i`
    ///
    /// # Errors
    /// [`Error::Empty`]; [`Error::NonFiniteData`]; [`Error::DeviceRead`].
    pub fn new(points: Tensor<D>) -> Result<Self> {
        let points = to_f32(points.inner());
        check_not_empty(&points, "the set of surrogates")?;
        check_finite(&points, Side::Forget)?;
        let values = read_f32(points.clone(), "the surrogates")?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let digest = sha256(&bytes);
        Ok(Self { points, digest })
    }
}

impl<const D: usize, C> Answer<D, C> for Surrogate<D> {
    fn name(&self) -> &'static str {
        "surrogate"
    }

    fn points(&self) -> Option<usize> {
        Some(self.points.dims()[0])
    }

    fn settings(&self) -> String {
        format!("surrogates {}", self.digest)
    }

    fn answers(&mut self, asked: &Asked<'_, D, C>) -> Result<Tensor<D>> {
        let (shape, found) = (asked.noisy.dims(), self.points.dims());
        let remedy = "bring the surrogates to the shape of the forgotten points";
        check_shape("a surrogate", &shape[1..], &found[1..], remedy)?;
        let device = asked.noisy.device();
        check_device("surrogates", &device, &self.points.device())?;
        let rows = rows_of(asked.ids, found[0], "surrogate", GIVE_ONE_EACH)?;
        let clean = select_rows(&self.points, &rows);
        // (γ a + σ ε − γ s)/σ, without the division of a sum that cancels.
        let shift = (asked.clean.clone() - clean.clone()) * column(&asked.scales.ratios(), &device);
        Ok(asked.target(&clean, &(asked.noise.clone() + shift)))
    }
}

const GIVE_ONE_EACH: &str = "give one for every forgotten point, in the order of their ids";

/// Ids as row numbers of something that has `known` rows.
///
/// # Errors
/// [`Error::UnknownPoint`].
pub(super) fn rows_of(
    ids: &[u64],
    known: usize,
    missing: &'static str,
    remedy: &'static str,
) -> Result<Vec<usize>> {
    let row = |&id: &u64| match usize::try_from(id) {
        Ok(row) if row < known => Ok(row),
        _ => Err(Error::UnknownPoint {
            id,
            missing,
            known,
            remedy,
        }),
    };
    ids.iter().map(row).collect()
}
