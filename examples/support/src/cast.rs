//! The type of a module's parameters.

use siss::burn::module::{Module, ModuleMapper, Param};
use siss::burn::tensor::{FloatDType, Tensor};

/// The module with its parameters in a type. The conversion is part of the graph: gradients reach
/// the parameters as they were.
pub fn cast<M: Module>(module: M, dtype: FloatDType) -> M {
    module.map(&mut Cast(dtype))
}

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|value| value.cast(self.0))
    }
}
