//! Drawing from a model: DDIM, and noising to a timestep and denoising from there.

mod ddim;

pub use ddim::{DdimConfig, DdimSampler};
