//! Data sets that are read in chunks, whether or not they fit in memory.

use std::fmt::{self, Debug};
use std::ops::Range;

use burn::tensor::{Device, Tensor};

use crate::backend;
use crate::error::{Error, Result, check_device, check_shape};
use crate::host::to_f32;

/// The points of a data set, by index: a tensor, or a [`PointLoader`] for a set that does not fit
/// in memory.
///
/// Functions that read a whole set take it as this trait. They ask for a few rows at a time, in
/// order, and drop them again. A set may be read more than once.
pub trait Points<const D: usize>: Debug {
    /// `[n, …]`: the number of points, and the shape of each point.
    fn dims(&self) -> [usize; D];

    /// The points with these indices, `[rows.len(), …]`; every call must return the same points.
    ///
    /// # Errors
    /// The set's own, as [`Error::Data`].
    fn load(&self, rows: Range<usize>) -> Result<Tensor<D>>;
}

impl<const D: usize> Points<D> for Tensor<D> {
    fn dims(&self) -> [usize; D] {
        Tensor::dims(self)
    }

    fn load(&self, rows: Range<usize>) -> Result<Tensor<D>> {
        Ok(self.clone().narrow(0, rows.start, rows.len()))
    }
}

/// Points that a function loads when they are needed: from files, or from a memory larger than the
/// device's.
///
/// # Example
/// A set on the CPU that is checked on another device:
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use siss::data::{PointLoader, near_duplicates};
///
/// let device = Device::flex(); // or a GPU
/// let set = Tensor::<2>::random([1000, 20], Distribution::Default, &Device::flex());
/// let copy = set.clone().narrow(0, 7, 1).to_device(&device);
/// let retain = PointLoader::new([1000, 20], |rows| {
///     let points = set.clone().narrow(0, rows.start, rows.len());
///     Ok(points.to_device(&device))
/// });
/// assert_eq!(near_duplicates(&retain, &copy, 0.25)?[0].retain, 7);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Clone)]
pub struct PointLoader<const D: usize, F> {
    dims: [usize; D],
    load: F,
}

impl<const D: usize, F: Fn(Range<usize>) -> Result<Tensor<D>>> PointLoader<D, F> {
    /// Creates a set of shape `dims`, `[n, …]`, whose rows `r` are loaded by `load(r)`.
    ///
    /// `load` should fail with an [`Error::Data`] or an [`Error::Io`].
    pub fn new(dims: [usize; D], load: F) -> Self {
        Self { dims, load }
    }
}

impl<const D: usize, F> Debug for PointLoader<D, F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PointLoader({:?})", self.dims)
    }
}

impl<const D: usize, F: Fn(Range<usize>) -> Result<Tensor<D>>> Points<D> for PointLoader<D, F> {
    fn dims(&self) -> [usize; D] {
        self.dims
    }

    fn load(&self, rows: Range<usize>) -> Result<Tensor<D>> {
        (self.load)(rows)
    }
}

/// Checks that a set has points and that they have elements.
///
/// # Errors
/// [`Error::Empty`] for a set without points or elements.
pub(crate) fn check_not_empty<const D: usize>(
    points: &dyn Points<D>,
    what: &'static str,
) -> Result<()> {
    if points.dims().contains(&0) {
        return Err(Error::Empty {
            what,
            remedy: "give at least one point",
        });
    }
    Ok(())
}

/// Loads some rows of a set, detached from autodiff and in f32.
///
/// # Errors
/// The set's own; [`Error::ShapeMismatch`] and [`Error::DeviceMismatch`] for points of another
/// shape or device.
pub(crate) fn load<const D: usize>(
    points: &dyn Points<D>,
    rows: Range<usize>,
    device: &Device,
) -> Result<Tensor<D>> {
    let mut shape = points.dims();
    shape[0] = rows.len();
    let loaded = points.load(rows)?;
    let remedy = "return exactly the requested points, with the announced shape";
    check_shape("the loaded points", &shape, &loaded.dims(), remedy)?;
    check_device("loaded points", device, &loaded.device())?;
    Ok(to_f32(loaded.inner()))
}

/// Iterates over a set in chunks of a few rows, as [`load`] returns them: the index of the first
/// row, and the rows.
pub(crate) fn chunks<'a, const D: usize>(
    points: &'a dyn Points<D>,
    device: &'a Device,
) -> impl Iterator<Item = Result<(usize, Tensor<D>)>> + 'a {
    let shape = points.dims();
    let count = shape[0];
    let chunk = chunk_rows(shape[1..].iter().product(), device);
    (0..count).step_by(chunk).map(move |first| {
        let rows = first..count.min(first + chunk);
        Ok((first, load(points, rows, device)?))
    })
}

/// Elements per chunk: on the CPU few enough to stay in a cache, on a GPU enough to keep it busy.
const ELEMENTS_ON_CPU: usize = 1 << 18;
const ELEMENTS_ON_GPU: usize = 1 << 24;

/// Rows per chunk, for points of this many elements.
pub(crate) fn chunk_rows(elements: usize, device: &Device) -> usize {
    let of_chunk = match backend::is_flex(device) {
        true => ELEMENTS_ON_CPU,
        false => ELEMENTS_ON_GPU,
    };
    (of_chunk / elements.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::{Stream, normal_noise};
    use std::cell::RefCell;

    fn set(rows: usize) -> Tensor<2> {
        normal_noise([rows, 1024], 1, 0, 0, Stream::Noise, &Device::flex())
    }

    /// More rows than fit in two chunks; the last chunk is short.
    #[test]
    fn chunks_are_the_set_in_order_whether_it_is_a_tensor_or_loaded() {
        let device = Device::flex();
        let rows = 2 * ELEMENTS_ON_CPU / 1024 + 3;
        let set = set(rows);
        let asked = RefCell::new(Vec::new());
        let loader = PointLoader::new([rows, 1024], |rows: Range<usize>| {
            asked.borrow_mut().push(rows.clone());
            set.load(rows)
        });
        let sources: [&dyn Points<2>; 2] = [&set, &loader];
        for source in sources {
            let parts: Vec<_> = chunks(source, &device).map(Result::unwrap).collect();
            let firsts: Vec<_> = parts.iter().map(|(first, _)| *first).collect();
            assert_eq!(firsts, [0, 256, 512]);
            let joined = Tensor::cat(parts.into_iter().map(|(_, part)| part).collect(), 0);
            assert_eq!(joined.into_data(), set.clone().into_data());
        }
        assert_eq!(asked.into_inner(), [0..256, 256..512, 512..515]);
    }

    #[test]
    fn points_that_are_not_those_announced_are_refused() {
        let device = Device::flex();
        let short = PointLoader::new([5, 1024], |_| Ok(set(3)));
        let error = chunks(&short, &device).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("[3, 1024]"), "{error}");
        let torn = PointLoader::<2, _>::new([5, 3], |_| Err(Error::Data("torn".into())));
        let error = chunks(&torn, &device).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("torn"), "{error}");
        let none = PointLoader::new([0, 3], |_| Ok(set(1)));
        assert!(check_not_empty(&none, "the set").is_err());
    }
}
