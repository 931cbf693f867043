//! The optimiser of a trainer.

use std::fmt;

use burn::optim::ModuleOptimizer;

/// A burn optimiser, which has no `Debug` of its own.
pub(crate) struct OpaqueOptimizer(pub(crate) ModuleOptimizer);

impl fmt::Debug for OpaqueOptimizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ModuleOptimizer")
    }
}
