//! How many numbers one unit of a kernel adds one after another.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// By kernel of this crate, how many numbers one of its units adds one after another, at most.
pub type SerialSums = BTreeMap<&'static str, usize>;

thread_local! {
    /// What [`serial_sums`] gathers, while it runs something.
    static GATHERED: RefCell<Option<SerialSums>> = const { RefCell::new(None) };
}

/// Notes how many numbers a unit adds in a launch; 0 for a kernel that adds none.
pub(crate) fn note(kernel: &'static str, length: usize) {
    GATHERED.with_borrow_mut(|gathered| {
        if let Some(sums) = gathered {
            let longest = sums.entry(kernel).or_default();
            *longest = (*longest).max(length);
        }
    });
}

/// Runs something, and returns with its result the longest serial sums of the kernels of this crate
/// that this thread launches meanwhile, on wgpu and CUDA.
///
/// A sum takes a GPU as long as its busiest unit, however many units there are, and rounding errors
/// grow with that length. Not in the result are burn's kernels, kernels that burn's fusion launches
/// later, and the last step of many sums, in which the units of a cube add their results by halves.
///
/// # Range
/// Numbers per unit; 0 for a kernel that adds nothing.
///
/// # Example
/// ```no_run
/// use burn::tensor::{Device, Tensor};
/// use siss::backend::DeviceSpec;
/// use siss::kernel::{serial_sums, weighted_squared_error};
///
/// let device = "wgpu".parse::<DeviceSpec>()?.device()?;
/// let ones = Tensor::<2>::ones([4, 1000], &device);
/// let weights = Tensor::<1>::ones([4], &device);
/// let (_, sums) = serial_sums(|| weighted_squared_error(ones.clone(), ones, weights, 4));
/// assert_eq!(sums["squared_errors"], 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn serial_sums<T>(run: impl FnOnce() -> T) -> (T, SerialSums) {
    let outer = GATHERED.replace(Some(SerialSums::new()));
    let result = run();
    let sums = GATHERED.replace(outer).unwrap_or_default();
    for (&kernel, &length) in &sums {
        note(kernel, length);
    }
    (result, sums)
}
