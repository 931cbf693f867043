//! Counts the kernels that a step launches, by their names, and how many numbers one unit of a
//! kernel adds one after another.

use std::collections::BTreeMap;

use serde::Serialize;

/// A number for each kernel, by its name without type parameters.
pub type ByKernel = BTreeMap<String, usize>;

/// What one step launched.
#[derive(Debug, Default)]
pub struct Step {
    /// Launches.
    launches: ByKernel,
    /// The longest sum of one unit.
    serial: ByKernel,
}

/// The JSON line of `--launches`.
#[derive(Debug, Serialize)]
pub struct Launches {
    /// Launches of one ordinary step in a loop of plain burn.
    pub launches_plain: usize,
    /// Launches of one ordinary step of the trainer, which only has a retain term.
    pub launches_ordinary: usize,
    /// Launches of one SISS step.
    pub launches_siss: usize,
    /// The most numbers that one unit adds one after another in the trainer's two steps.
    pub longest_serial: usize,
    /// Kernels of these two of which that number is not known.
    pub unknown_serial: Vec<String>,
    pub serial_by_kernel: ByKernel,
    pub plain_by_kernel: ByKernel,
    pub ordinary_by_kernel: ByKernel,
    pub siss_by_kernel: ByKernel,
}

impl Launches {
    pub fn new(plain: Step, ordinary: Step, siss: Step) -> Self {
        let mut serial = ordinary.serial;
        for (kernel, length) in siss.serial {
            let longest = serial.entry(kernel).or_default();
            *longest = length.max(*longest);
        }
        let launched = ordinary.launches.keys().chain(siss.launches.keys());
        let mut unknown: Vec<_> = launched
            .filter(|kernel| !serial.contains_key(*kernel))
            .cloned()
            .collect();
        unknown.sort();
        unknown.dedup();
        Self {
            launches_plain: plain.launches.values().sum(),
            launches_ordinary: ordinary.launches.values().sum(),
            launches_siss: siss.launches.values().sum(),
            longest_serial: serial.values().copied().max().unwrap_or(0),
            unknown_serial: unknown,
            serial_by_kernel: serial,
            plain_by_kernel: plain.launches,
            ordinary_by_kernel: ordinary.launches,
            siss_by_kernel: siss.launches,
        }
    }
}

/// Kernels of burn in the trainer's steps of `digits` with batch 4, and by their sources how many
/// numbers one of their units adds.
///
/// An enlargement's gradient is a sum over two pixels, on each axis. The sum that the backward pass
/// begins with is one of 3,136 numbers by 1,024 units, in vectors of at most four.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
const BURNS: [(&str, usize); 10] = [
    ("copy_kernel::CopyKernel", 0),
    ("copy_kernel_pack::CopyKernelPack", 0),
    ("full_kernel::FullKernel", 0),
    ("kernel_binop::KernelBinop", 0),
    ("kernel_scalar_binop::KernelScalarBinop", 0),
    ("reduce_kernel::ReduceKernel", 2),
    ("select_kernel::SelectKernel", 0),
    ("shared_sum_kernel::SharedSumKernel", 4),
    ("slice_assign_kernel::SliceAssignKernel", 0),
    ("unary_float::UnaryFloat", 0),
];

/// Runs a step and notes what it launches.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn observed(step: impl FnOnce() -> crate::Result<()>) -> crate::Result<Step> {
    use std::sync::{Arc, Mutex};

    use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};
    #[cfg(feature = "fused")]
    use siss::kernel::serial_sums;

    /// Without the feature the crate has no kernels.
    #[cfg(not(feature = "fused"))]
    fn serial_sums<T>(step: impl FnOnce() -> T) -> (T, BTreeMap<&'static str, usize>) {
        (step(), BTreeMap::new())
    }

    #[derive(Default)]
    struct Counter(Mutex<ByKernel>);

    impl LaunchObserver for Counter {
        fn launched(&self, kernel: &'static str) {
            if let Ok(mut counts) = self.0.lock() {
                *counts.entry(short(kernel)).or_default() += 1;
            }
        }
    }

    let counter = Arc::new(Counter::default());
    let watching = LaunchObservation::new(counter.clone());
    let (done, own) = serial_sums(step);
    done?;
    drop(watching);
    let launches = counter.0.lock().map_err(|error| error.to_string())?.clone();
    let serial = launches.keys().filter_map(|kernel| {
        let own = own.get(function(kernel).as_str()).copied();
        let burns = BURNS.iter().find(|(name, _)| name == kernel);
        Some((kernel.clone(), own.or(burns.map(|&(_, length)| length))?))
    });
    Ok(Step {
        serial: serial.collect(),
        launches,
    })
}

/// Other devices launch nothing.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub fn observed(step: impl FnOnce() -> crate::Result<()>) -> crate::Result<Step> {
    step().map(|()| Step::default())
}

/// A kernel's name without its path, except the last module, and its type parameters.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn short(kernel: &str) -> String {
    let path = kernel.split('<').next().unwrap_or(kernel);
    let mut parts = path.rsplit("::");
    let last = parts.next().unwrap_or(path);
    match parts.next() {
        Some(module) => format!("{module}::{last}"),
        None => last.into(),
    }
}

/// The function that a kernel was made of: `norm::ChannelSums` of `channel_sums`.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn function(kernel: &str) -> String {
    let name = kernel.rsplit("::").next().unwrap_or(kernel);
    let mut function = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !function.is_empty() {
            function.push('_');
        }
        function.extend(letter.to_lowercase());
    }
    function
}
