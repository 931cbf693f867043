//! A model's parameters by name: which there are, which hold numbers that are not finite, and which
//! no gradient reaches.

use std::collections::HashSet;
use std::fmt;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Bool, DType, Int, Tensor};

use crate::error::{Error, Result};
use crate::host::{SMALL, read_f32, to_f32};
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use crate::kernel::fused;

/// A parameter of a model, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    /// Its path in the model: the names of the fields, joined by dots.
    pub name: String,
    pub id: ParamId,
    dtype: DType,
    shape: Vec<usize>,
    is_trained: bool,
}

impl Parameter {
    /// Its shape in the model.
    #[cfg(feature = "models")]
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// Type, shape, and whether it is trained.
impl fmt::Display for Parameter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        let trained = if self.is_trained { "trained" } else { "fixed" };
        write!(formatter, "{dtype} {:?}, {trained}", self.shape)
    }
}

/// A plain model whose parameters take part in autodiff without a gradient of their own.
pub(crate) fn as_constants<M: Module>(model: &M) -> M {
    struct Constants;
    impl ModuleMapper for Constants {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.autodiff().set_require_grad(false))
        }
    }
    model.valid().map(&mut Constants)
}

/// Whether what is entered is a part of the names of parameters: a variant of an enum is not, so
/// that a layer has one name whatever its kind.
pub(crate) fn has_name(container_type: &str) -> bool {
    !container_type.starts_with("Enum:")
}

/// The model's parameters, in the order of its fields.
pub(crate) fn parameters<M: Module>(model: &M) -> Vec<Parameter> {
    let mut list = List::default();
    model.visit(&mut list);
    list.found
}

#[derive(Default)]
struct List {
    path: Vec<String>,
    found: Vec<Parameter>,
}

impl List {
    fn add(&mut self, id: ParamId, dtype: DType, shape: &[usize], is_trained: bool) {
        self.found.push(Parameter {
            name: self.path.join("."),
            id,
            dtype,
            shape: shape.to_vec(),
            is_trained,
        });
    }
}

impl ModuleVisitor for List {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        if has_name(container_type) {
            self.path.push(name.into());
        }
    }

    fn exit_module(&mut self, _name: &str, container_type: &str) {
        if has_name(container_type) {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        let is_trained = value.is_require_grad();
        self.add(param.id, value.dtype(), &value.dims(), is_trained);
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        let value = param.base();
        self.add(param.id, value.dtype(), &value.dims(), false);
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        let value = param.base();
        self.add(param.id, value.dtype(), &value.dims(), false);
    }
}

/// The path of the first parameter that holds NaN or an infinity.
///
/// If all are finite, this takes one read from the device.
pub(crate) fn non_finite_parameter<M: Module>(model: &M) -> Result<Option<String>> {
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(count) = non_finite_in_kernels(model)
        && read_f32(count, "a check of the parameters")? == [0.0]
    {
        return Ok(None);
    }
    // Small parameters are checked together; only if one of them is not finite is each checked by
    // itself.
    if sums_of_zeros(model, SMALL)?.iter().all(|&sum| sum == 0.0) {
        return Ok(None);
    }
    let sums = sums_of_zeros(model, 0)?;
    let Some(position) = sums.iter().position(|&sum| sum != 0.0) else {
        return Ok(None);
    };
    let mut floats = parameters(model).into_iter().filter(|p| p.dtype.is_float());
    Ok(floats.nth(position).map(|parameter| parameter.name))
}

/// How many numbers are NaN or infinite, by kernels over groups of parameters; `None` if one has no
/// kernel.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
fn non_finite_in_kernels<M: Module>(model: &M) -> Option<Tensor<1>> {
    #[derive(Default)]
    struct Visitor {
        values: Vec<Tensor<1>>,
        misfits: usize,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            self.misfits += usize::from(!fused::is_on_cube(&value));
            self.values.push(value.flatten(0, D - 1));
        }
    }
    let mut visitor = Visitor::default();
    model.visit(&mut visitor);
    match visitor.misfits {
        0 => fused::non_finite(visitor.values),
        _ => None,
    }
}

/// Refuses a model that holds NaN or an infinity, before its effects are blamed on something else.
///
/// # Errors
/// [`Error::NonFiniteParameter`], [`Error::DeviceRead`].
pub(crate) fn check_parameters<M: Module>(model: &M) -> Result<()> {
    match non_finite_parameter(model)? {
        None => Ok(()),
        Some(parameter) => Err(Error::NonFiniteParameter {
            parameter,
            cause: "contains NaN or an infinity before the first step",
            remedy: "reload the model from undamaged files",
        }),
    }
}

/// `Σ 0·p`, which is 0 if all numbers are finite and NaN otherwise.
///
/// One sum for each parameter of at least `together` elements, in the model's order, and last one
/// sum for all smaller parameters.
fn sums_of_zeros<M: Module>(model: &M, together: usize) -> Result<Vec<f32>> {
    struct Zeros {
        together: usize,
        small: Vec<Tensor<1>>,
        sums: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Zeros {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            if value.shape().num_elements() < self.together {
                self.small.push(to_f32(value).flatten(0, D - 1));
            } else {
                self.sums.push(to_f32((value * 0.0).sum()));
            }
        }
    }
    let mut zeros = Zeros {
        together,
        small: Vec::new(),
        sums: Vec::new(),
    };
    model.visit(&mut zeros);
    if !zeros.small.is_empty() {
        let small = Tensor::cat(zeros.small, 0);
        zeros.sums.push((small * 0.0).sum());
    }
    if zeros.sums.is_empty() {
        return Ok(Vec::new());
    }
    read_f32(Tensor::cat(zeros.sums, 0), "a check of the parameters")
}

/// The paths of the trained parameters without a gradient from either side.
pub(crate) fn without_gradient<M: Module>(
    model: &M,
    retain: &GradientsParams,
    forget: &GradientsParams,
) -> Vec<String> {
    struct Reached<'a> {
        gradients: [&'a GradientsParams; 2],
        ids: HashSet<ParamId>,
    }
    impl ModuleVisitor for Reached<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut sides = self.gradients.iter();
            if sides.any(|side| side.get::<D>(param.id).is_some()) {
                self.ids.insert(param.id);
            }
        }
    }
    let mut reached = Reached {
        gradients: [retain, forget],
        ids: HashSet::new(),
    };
    model.visit(&mut reached);
    let is_untouched = |p: &Parameter| p.is_trained && !reached.ids.contains(&p.id);
    let untouched = parameters(model).into_iter().filter(is_untouched);
    untouched.map(|parameter| parameter.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::{Device, FloatDType};

    #[derive(Module, Debug)]
    struct Two {
        /// Not a float: it has a name, but is not among the numbers that are checked.
        seen: Param<Tensor<1, Int>>,
        first: Linear,
        second: Linear,
    }

    fn two(second_weight: f32) -> Two {
        let device = Device::flex();
        let mut second = LinearConfig::new(1, 1).with_bias(false).init(&device);
        second.weight = Param::from_tensor(Tensor::from_data([[second_weight]], &device));
        let first = LinearConfig::new(2, 3).init(&device);
        let seen = Tensor::from_data([7], &device);
        Two {
            seen: Param::initialized(ParamId::new(), seen),
            first,
            second,
        }
    }

    #[test]
    fn the_parameter_that_is_not_finite_is_named() {
        for value in [1.0, -0.0, f32::MAX, f32::MIN_POSITIVE] {
            assert_eq!(non_finite_parameter(&two(value)).unwrap(), None, "{value}");
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let found = non_finite_parameter(&two(value).train()).unwrap();
            assert_eq!(found.as_deref(), Some("second.weight"), "{value}");
        }
    }

    #[test]
    fn half_precision_is_checked_in_its_own_range() {
        for (value, is_finite) in [(65_504.0, true), (70_000.0, false)] {
            let mut model = two(value);
            model.second.weight = model
                .second
                .weight
                .map(|weight| weight.cast(FloatDType::F16));
            let found = non_finite_parameter(&model).unwrap();
            assert_eq!(found.is_none(), is_finite, "{value}");
        }
    }

    #[test]
    fn trained_parameters_without_a_gradient_are_named() {
        let model = two(1.0).train();
        let weight = |id: ParamId| {
            let mut gradients = GradientsParams::new();
            gradients.register(id, Tensor::<2>::zeros([2, 3], &Device::flex()));
            gradients
        };
        let retain = weight(model.first.weight.id);
        let none = GradientsParams::new();
        let untouched = without_gradient(&model, &retain, &none);
        assert_eq!(untouched, ["first.bias", "second.weight"]);
        assert_eq!(without_gradient(&model, &none, &retain), untouched);
        // Frozen parameters need no gradient.
        let mut model = model;
        model.second = model.second.no_grad();
        assert_eq!(without_gradient(&model, &retain, &none), ["first.bias"]);
    }
}
