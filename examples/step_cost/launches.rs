//! Counts the kernels that a step launches, by their names.

use std::collections::BTreeMap;

use serde::Serialize;

/// Launches by the kernel's name without its type parameters.
pub type Counts = BTreeMap<String, usize>;

/// The JSON line of `--launches`.
#[derive(Debug, Serialize)]
pub struct Launches {
    /// Launches of one ordinary step in a loop of plain burn.
    pub launches_plain: usize,
    /// Launches of one ordinary step of the trainer, which only has a retain term.
    pub launches_ordinary: usize,
    /// Launches of one SISS step.
    pub launches_siss: usize,
    pub plain_by_kernel: Counts,
    pub ordinary_by_kernel: Counts,
    pub siss_by_kernel: Counts,
}

impl Launches {
    pub fn new(plain: Counts, ordinary: Counts, siss: Counts) -> Self {
        Self {
            launches_plain: plain.values().sum(),
            launches_ordinary: ordinary.values().sum(),
            launches_siss: siss.values().sum(),
            plain_by_kernel: plain,
            ordinary_by_kernel: ordinary,
            siss_by_kernel: siss,
        }
    }
}

/// Runs a step and counts what it launches.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn counted(step: impl FnOnce() -> crate::Result<()>) -> crate::Result<Counts> {
    use std::sync::{Arc, Mutex};

    use burn_cubecl::cubecl::logging::{LaunchObservation, LaunchObserver};

    #[derive(Default)]
    struct Counter(Mutex<Counts>);

    impl LaunchObserver for Counter {
        fn launched(&self, kernel: &'static str) {
            if let Ok(mut counts) = self.0.lock() {
                *counts.entry(short(kernel)).or_default() += 1;
            }
        }
    }

    let counter = Arc::new(Counter::default());
    let watching = LaunchObservation::new(counter.clone());
    step()?;
    drop(watching);
    let counts = counter.0.lock().map_err(|error| error.to_string())?;
    Ok(counts.clone())
}

/// Other devices launch nothing.
#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
pub fn counted(step: impl FnOnce() -> crate::Result<()>) -> crate::Result<Counts> {
    step().map(|()| Counts::new())
}

/// A kernel's name without its path and its type parameters.
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
