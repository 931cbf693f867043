//! Computes, measures and combines the gradients of the two sides; all arithmetic over a model's
//! parameters is here.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::clipper::GradientNorms;
use crate::data::side::Sides;
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Result, check_shape};
use crate::host::{SMALL, as_column, read_f32, select_rows, squared_norms, to_f32, vector};
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
use crate::kernel::fused;
use crate::kernel::weighted_squared_error;
use crate::objective::{LossTerm, LossTerms};
use crate::steering::{Steered, Steering};

/// The gradient of one side, and the unweighted losses of the rows that made it.
#[derive(Debug, Default)]
pub(crate) struct SideGradient {
    /// Gradient of `(1/B) Σ w ‖ŷ − target‖²`; empty without a term or without rows.
    pub(crate) gradients: GradientsParams,
    /// `‖ŷ − target‖²` of each row of the term, in parts of a micro-batch, on the device.
    pub(crate) losses: Vec<Tensor<1>>,
    /// The factors by which steering changed the rows' weights, in the same parts; empty without
    /// steering.
    pub(crate) factors: Vec<Tensor<1>>,
    /// The ratios of the rows' losses to their levels, in the same parts; empty without steering.
    pub(crate) ratios: Vec<Tensor<1>>,
}

/// What the rows of a side share.
#[derive(Debug)]
pub(crate) struct SideInputs<'a, const D: usize, C> {
    pub(crate) term: &'a LossTerm<D>,
    pub(crate) condition: &'a C,
    /// Number of rows of the whole batch.
    pub(crate) batch_size: usize,
    /// Steering and the points of the batch's rows, if this is a steered forget side.
    pub(crate) steering: Option<(&'a Steering, &'a [u64])>,
}

/// Runs the rows of a term forward and backward through the model, `micro_batch` rows at a time.
pub(crate) fn side_gradient<const D: usize, M: Denoiser<D>>(
    model: &M,
    inputs: &SideInputs<'_, D, M::Condition>,
    micro_batch: usize,
) -> Result<SideGradient> {
    let mut side = SideGradient::default();
    let term = inputs.term;
    let parts = term.rows.chunks(micro_batch);
    for (rows, weights) in parts.zip(term.weights.chunks(micro_batch)) {
        let part = micro_batch_gradient(model, inputs, rows, weights)?;
        side.losses.extend(part.losses);
        side.factors.extend(part.factors);
        side.ratios.extend(part.ratios);
        side.gradients = accumulate(model, side.gradients, part.gradients);
    }
    Ok(side)
}

fn micro_batch_gradient<const D: usize, M: Denoiser<D>>(
    model: &M,
    inputs: &SideInputs<'_, D, M::Condition>,
    rows: &[usize],
    weights: &[f64],
) -> Result<SideGradient> {
    let term = inputs.term;
    let device = term.noisy.device();
    let timesteps: Vec<f64> = rows.iter().map(|&row| term.timesteps[row]).collect();
    let noisy = select_rows(&term.noisy, rows);
    let shape = noisy.dims();
    let on_device = vector(timesteps.iter().copied(), &device);
    let prediction = model.predict(noisy, on_device, &inputs.condition.take_rows(rows));
    let remedy = "the model must predict one value for every element of its input";
    check_shape("the model's prediction", &shape, &prediction.dims(), remedy)?;
    let on_device = vector(weights.iter().copied(), &device);
    let plain = prediction.clone().inner();
    let own = own_losses(inputs, rows, &plain);
    let target = target(term, rows, own.as_ref());
    let error = weighted_squared_error(plain, target, on_device, inputs.batch_size)?;
    let own = own.as_ref().unwrap_or(&error.losses);
    let steered = steer(inputs, rows, weights, &timesteps, own)?;
    let mut seed = error.seed;
    if let Some(steered) = &steered {
        seed = seed * as_column::<D>(steered.factors.clone());
    }
    let (factors, ratios) = steered.map(|it| (it.factors, it.ratios)).unzip();
    // The chain rule with the seed ∂L/∂ŷ: the graph holds the model and no part of the loss.
    let seed = seed.cast(prediction.dtype());
    let gradients = (prediction * seed).sum().backward();
    Ok(SideGradient {
        gradients: GradientsParams::from_grads(gradients, model),
        losses: vec![error.losses],
        factors: factors.into_iter().collect(),
        ratios: ratios.into_iter().collect(),
    })
}

/// `‖ŷ − y‖²` of rows that are taught another target than their own `y`, if it is needed.
fn own_losses<const D: usize, C>(
    inputs: &SideInputs<'_, D, C>,
    rows: &[usize],
    prediction: &Tensor<D>,
) -> Option<Tensor<1>> {
    let term = inputs.term;
    let own = term.own_target.as_ref()?;
    let needed = inputs.steering.is_some() || term.boost > 0.0;
    needed.then(|| squared_norms(to_f32(prediction.clone()) - select_rows(own, rows)))
}

/// The targets of rows with these losses `L` of their own: `T + (√(1 + k (1 − L/P)) − 1) (T − y)`
/// with the term's boost `k` and the loss `P` of the target `T`, and `T` itself from `L = P` on.
fn target<const D: usize>(
    term: &LossTerm<D>,
    rows: &[usize],
    own_losses: Option<&Tensor<1>>,
) -> Tensor<D> {
    let target = select_rows(&term.target, rows);
    let boosted = term.own_target.as_ref().zip(own_losses);
    let Some((own, losses)) = boosted.filter(|_| term.boost > 0.0) else {
        return target;
    };
    let error = to_f32(target.clone()) - to_f32(select_rows(own, rows));
    let wanted = squared_norms(error.clone()).clamp_min(f32::MIN_POSITIVE);
    let missing: Tensor<1> = 1.0 - (losses.clone() / wanted).clamp_max(1.0);
    let more = (missing * term.boost + 1.0).sqrt() - 1.0f32;
    let more = error * as_column::<D>(more);
    target.clone() + more.cast(target.dtype())
}

/// The factors of a micro-batch's weights, if the side is steered, from its rows' own losses.
fn steer<const D: usize, C>(
    inputs: &SideInputs<'_, D, C>,
    rows: &[usize],
    weights: &[f64],
    timesteps: &[f64],
    own_losses: &Tensor<1>,
) -> Result<Option<Steered>> {
    let Some((steering, ids)) = inputs.steering else {
        return Ok(None);
    };
    let elements: usize = inputs.term.noisy.dims()[1..].iter().product();
    let losses = own_losses.clone() / elements as f64;
    let own_ids = rows.iter().map(|&row| ids[row]);
    let steered = steering.steer(own_ids, timesteps, weights, losses)?;
    Ok(Some(steered))
}

/// `sum + more`, parameter by parameter.
fn accumulate<M: Module>(
    model: &M,
    sum: GradientsParams,
    more: GradientsParams,
) -> GradientsParams {
    if sum.is_empty() {
        return more;
    }
    combine(model, (1.0, sum), (1.0, more))
}

/// `c_r g_r + c_f g_f`, parameter by parameter.
///
/// Consumes both gradients, so that the memory of one is freed on the way.
pub(crate) fn combine<M: Module>(
    model: &M,
    retain: (f64, GradientsParams),
    forget: (f64, GradientsParams),
) -> GradientsParams {
    struct Combine {
        retain: (f64, GradientsParams),
        forget: (f64, GradientsParams),
        /// Sums that kernels made, flat.
        sums: HashMap<ParamId, Tensor<1>>,
        combined: GradientsParams,
    }
    impl ModuleVisitor for Combine {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(sum) = self.sums.remove(&param.id) {
                self.combined
                    .register::<D>(param.id, sum.reshape(param.shape()));
                return;
            }
            let scaled = |(scale, gradients): &mut (f64, GradientsParams)| {
                let gradient = gradients.remove::<D>(param.id)?;
                Some(if *scale == 1.0 {
                    gradient
                } else {
                    gradient * *scale
                })
            };
            let sum = match (scaled(&mut self.retain), scaled(&mut self.forget)) {
                (Some(retain), Some(forget)) => retain + forget,
                (Some(one), None) | (None, Some(one)) => one,
                (None, None) => return,
            };
            self.combined.register::<D>(param.id, sum);
        }
    }
    let mut visitor = Combine {
        retain,
        forget,
        sums: HashMap::new(),
        combined: GradientsParams::new(),
    };
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    {
        let (retain, forget) = (&mut visitor.retain, &mut visitor.forget);
        visitor.sums = sums_in_kernels(model, retain, forget);
    }
    model.visit(&mut visitor);
    visitor.combined
}

/// The sums for parameters with gradients on both sides that kernels take, removed from both; all
/// of one side, if the other is empty.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
fn sums_in_kernels<M: Module>(
    model: &M,
    retain: &mut (f64, GradientsParams),
    forget: &mut (f64, GradientsParams),
) -> HashMap<ParamId, Tensor<1>> {
    struct Pairs<'a> {
        sides: [Option<&'a mut GradientsParams>; 2],
        ids: Vec<ParamId>,
        pairs: Vec<[Tensor<1>; 2]>,
    }
    impl ModuleVisitor for Pairs<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let on_cube = |side: &&mut GradientsParams| {
                let gradient = side.get::<D>(param.id);
                gradient.is_some_and(|gradient| fused::is_on_cube(&gradient))
            };
            if !self.sides.iter().flatten().all(on_cube) {
                return;
            }
            let sides = self.sides.iter_mut().flatten();
            let gradients = sides.filter_map(|side| side.remove::<D>(param.id));
            let flat: Vec<_> = gradients
                .map(|gradient| gradient.flatten(0, D - 1))
                .collect();
            if let (Some(first), Some(last)) = (flat.first(), flat.last()) {
                self.ids.push(param.id);
                self.pairs.push([first.clone(), last.clone()]);
            }
        }
    }
    // Of a single side `g`, the sum is `c g + 0 g`.
    let scales = [retain.0, forget.0];
    let (scales, sides) = match (retain.1.is_empty(), forget.1.is_empty()) {
        (false, false) => (scales, [Some(&mut retain.1), Some(&mut forget.1)]),
        (false, true) => ([scales[0], 0.0], [Some(&mut retain.1), None]),
        _ => ([scales[1], 0.0], [Some(&mut forget.1), None]),
    };
    // One side times 1 needs no kernel.
    if scales == [1.0, 0.0] && sides[1].is_none() {
        return HashMap::new();
    }
    let mut visitor = Pairs {
        sides,
        ids: Vec::new(),
        pairs: Vec::new(),
    };
    model.visit(&mut visitor);
    let sums = fused::scaled_sums(visitor.pairs, scales[0], scales[1]);
    visitor.ids.into_iter().zip(sums).collect()
}

/// The results of one read from the device: the losses of each side's rows, and the norms.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// `‖ŷ − target‖²` of each row of a term.
    pub(crate) losses: Sides<Vec<f32>>,
    /// The factor of each row of a steered forget term.
    pub(crate) factors: Vec<f32>,
    /// The ratio of the loss to the level for each row of a steered forget term.
    pub(crate) ratios: Vec<f32>,
    pub(crate) norms: GradientNorms,
}

impl Measured {
    pub(crate) fn is_finite(&self) -> bool {
        let mut losses = self.losses.retain.iter().chain(&self.losses.forget);
        self.norms.is_finite() && losses.all(|loss| loss.is_finite())
    }

    /// Adds to the norms the weights of the terms that they belong to, after thinning.
    pub(crate) fn weigh<const D: usize>(&mut self, terms: &LossTerms<D>, batch_size: usize) {
        let sizes = |term: &LossTerm<D>| term.weights.iter().map(|w| w.abs()).collect::<Vec<_>>();
        let mean = |sizes: &[f64]| sizes.iter().sum::<f64>() / batch_size as f64;
        if let Some(term) = &terms.retain {
            self.norms.retain_weight = mean(&sizes(term));
        }
        let Some(term) = &terms.forget else { return };
        let sizes = sizes(term);
        self.norms.forget_weight = mean(&sizes);
        if !self.factors.is_empty() && self.norms.forget_weight > 0.0 {
            let squares = self.factors.iter().map(|&factor| f64::from(factor).powi(2));
            let weighted: Vec<f64> = sizes.iter().zip(squares).map(|(w, f)| w * f).collect();
            self.norms.steering = (mean(&weighted) / self.norms.forget_weight).sqrt();
        }
    }
}

/// Brings losses and norms to the host, in one read.
pub(crate) fn measure<M: Module>(model: &M, sides: &Sides<SideGradient>) -> Result<Measured> {
    let Sides { retain, forget } = sides;
    let products = gradient_products(model, &retain.gradients, &forget.gradients);
    let num_products = products.as_ref().map_or(0, |products| products.dims()[0]);
    let rows = retain.losses.iter().chain(&forget.losses);
    let rows = rows.chain(&forget.factors).chain(&forget.ratios).cloned();
    let parts: Vec<Tensor<1>> = rows.chain(products).collect();
    if parts.is_empty() {
        return Ok(Measured::default());
    }
    let mut retain_losses = read_f32(Tensor::cat(parts, 0), "losses and gradient norms")?;
    let products = retain_losses.split_off(retain_losses.len() - num_products);
    let count = |parts: &[Tensor<1>]| parts.iter().map(|part| part.dims()[0]).sum();
    let mut forget_losses = retain_losses.split_off(count(&retain.losses));
    let mut factors = forget_losses.split_off(count(&forget.losses));
    let ratios = factors.split_off(count(&forget.factors));
    let product = |index: usize| products.get(index).copied().map_or(0.0, f64::from);
    Ok(Measured {
        losses: Sides {
            retain: retain_losses,
            forget: forget_losses,
        },
        factors,
        ratios,
        norms: GradientNorms {
            retain: product(0).sqrt(),
            forget: product(1).sqrt(),
            inner_product: product(2),
            ..GradientNorms::default()
        },
    })
}

/// `‖g_r‖²`, `‖g_f‖²` and `⟨g_r, g_f⟩` over all parameters, on the device, `[3]`; `None` if there
/// is no gradient.
pub(crate) fn gradient_products<M: Module>(
    model: &M,
    retain: &GradientsParams,
    forget: &GradientsParams,
) -> Option<Tensor<1>> {
    struct Visitor<'a> {
        retain: &'a GradientsParams,
        forget: &'a GradientsParams,
        /// The parameters visited so far: a parameter that is visited twice counts once.
        seen: HashSet<ParamId>,
        /// Small gradients that both sides have.
        small: [Vec<Tensor<1>>; 2],
        products: Products,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let retain = self.retain.get::<D>(param.id).map(to_f32);
            let forget = self.forget.get::<D>(param.id).map(to_f32);
            if (retain.is_none() && forget.is_none()) || !self.seen.insert(param.id) {
                return;
            }
            match (retain, forget) {
                (Some(retain), Some(forget)) if retain.shape().num_elements() < SMALL => {
                    self.small[0].push(retain.flatten(0, D - 1));
                    self.small[1].push(forget.flatten(0, D - 1));
                }
                (retain, forget) => self.products.add(retain, forget),
            }
        }
    }
    #[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
    if let Some(products) = products_in_kernels(model, retain, forget) {
        return Some(products);
    }
    let mut visitor = Visitor {
        retain,
        forget,
        seen: HashSet::new(),
        small: Default::default(),
        products: Products::default(),
    };
    model.visit(&mut visitor);
    if !visitor.small[0].is_empty() {
        let [retain, forget] = visitor.small.map(|parts| Some(Tensor::cat(parts, 0)));
        visitor.products.add(retain, forget);
    }
    visitor.products.joined()
}

/// The products by kernels over groups of parameters; `None` if a gradient has no kernel, or if
/// only one side has a gradient of some parameter.
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
fn products_in_kernels<M: Module>(
    model: &M,
    retain: &GradientsParams,
    forget: &GradientsParams,
) -> Option<Tensor<1>> {
    struct Visitor<'a> {
        sides: [&'a GradientsParams; 2],
        seen: HashSet<ParamId>,
        fits: bool,
        flat: [Vec<Tensor<1>>; 2],
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let gradients = self.sides.map(|side| side.get::<D>(param.id));
            if gradients.iter().all(Option::is_none) || !self.seen.insert(param.id) {
                return;
            }
            let [Some(retain), Some(forget)] = gradients else {
                self.fits = false;
                return;
            };
            self.fits &= fused::is_on_cube(&retain) && fused::is_on_cube(&forget);
            self.flat[0].push(retain.flatten(0, D - 1));
            self.flat[1].push(forget.flatten(0, D - 1));
        }
    }
    // Of a side without gradients, the products are those of the other times 0.
    let (sides, factors) = match (retain.is_empty(), forget.is_empty()) {
        (true, _) => ([forget; 2], Some([0.0, 1.0, 0.0])),
        (_, true) => ([retain; 2], Some([1.0, 0.0, 0.0])),
        _ => ([retain, forget], None),
    };
    let mut visitor = Visitor {
        sides,
        seen: HashSet::new(),
        fits: true,
        flat: Default::default(),
    };
    model.visit(&mut visitor);
    let [retain, forget] = visitor.flat;
    if !visitor.fits {
        return None;
    }
    let products = fused::gradient_products(retain, forget)?;
    Some(match factors {
        Some(factors) => {
            let factors = vector(factors, &products.device());
            products * factors
        }
        None => products,
    })
}

/// Sums of `g_r²`, `g_f²` and `g_r g_f`; `None` if there was nothing to add.
#[derive(Default)]
struct Products([Option<Tensor<1>>; 3]);

impl Products {
    fn add<const D: usize>(&mut self, retain: Option<Tensor<D>>, forget: Option<Tensor<D>>) {
        let pairs = [(&retain, &retain), (&forget, &forget), (&retain, &forget)];
        for (sum, pair) in self.0.iter_mut().zip(pairs) {
            let (Some(a), Some(b)) = pair else { continue };
            let product = (a.clone() * b.clone()).sum();
            *sum = Some(match sum.take() {
                Some(sum) => sum + product,
                None => product,
            });
        }
    }

    /// The three in one tensor, zeros for those that are missing.
    fn joined(self) -> Option<Tensor<1>> {
        let zero = self.0.iter().flatten().next()?.zeros_like();
        let sums = self.0.map(|sum| sum.unwrap_or_else(|| zero.clone()));
        Some(Tensor::cat(sums.to_vec(), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Shared {
        first: Linear,
        again: Linear,
        other: Linear,
    }

    fn model() -> (Shared, GradientsParams, GradientsParams) {
        let device = Device::flex();
        let first = LinearConfig::new(2, 1).with_bias(false).init(&device);
        let other = LinearConfig::new(1, 1).with_bias(false).init(&device);
        let model = Shared {
            again: first.clone(),
            first,
            other,
        };
        let (mut retain, mut forget) = (GradientsParams::new(), GradientsParams::new());
        retain.register(
            model.first.weight.id,
            Tensor::<2>::from_data([[3.0], [4.0]], &device),
        );
        forget.register(
            model.first.weight.id,
            Tensor::<2>::from_data([[1.0], [-1.0]], &device),
        );
        forget.register(
            model.other.weight.id,
            Tensor::<2>::from_data([[2.0]], &device),
        );
        (model, retain, forget)
    }

    #[test]
    fn products_count_a_shared_parameter_once_and_missing_gradients_as_zero() {
        let (model, retain, forget) = model();
        let products = gradient_products(&model, &retain, &forget).unwrap();
        assert_eq!(
            products.into_data().try_to_vec::<f32>().unwrap(),
            [25.0, 6.0, -1.0]
        );
        let none = GradientsParams::new();
        let products = gradient_products(&model, &none, &forget).unwrap();
        assert_eq!(
            products.into_data().try_to_vec::<f32>().unwrap(),
            [0.0, 6.0, 0.0]
        );
        assert!(gradient_products(&model, &none, &GradientsParams::new()).is_none());
    }

    /// Rows whose own losses are none, a quarter, all and more of the target's, which is 4.
    #[test]
    fn a_target_is_stronger_the_less_of_its_loss_a_row_has() {
        let device = Device::flex();
        let rows = |rows: [[f32; 2]; 4]| Tensor::<2>::from_data(rows, &device);
        let own = rows([[1.0, 1.0]; 4]);
        let given = rows([[3.0, 1.0], [1.0, -1.0], [1.0, 3.0], [3.0, 1.0]]);
        let losses = Tensor::<1>::from_data([0.0, 1.0, 4.0, 9.0], &device);
        let term = |boost: f64| {
            LossTerm::new(own.clone(), vec![100.0; 4], given.clone(), vec![1.0; 4])
                .with_own_target(own.clone())
                .with_boost(boost)
        };
        let of = |term: &LossTerm<2>| {
            let target = target(term, &[0, 1, 2, 3], Some(&losses));
            target.into_data().try_to_vec::<f32>().unwrap()
        };
        let given = given.clone().into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(of(&term(0.0)), given);
        let boosted = of(&term(3.0));
        assert_eq!(boosted[..2], [5.0, 1.0]);
        let expected = 1.0 - 2.0 * f32::sqrt(1.0 + 3.0 * 0.75);
        assert!((boosted[3] - expected).abs() < 1e-5, "{boosted:?}");
        assert_eq!(boosted[4..], given[4..]);
    }

    #[test]
    fn large_and_small_gradients_count_alike() {
        let device = Device::flex();
        let layer = LinearConfig::new(80, 64).init(&device);
        let bias = layer.bias.as_ref().unwrap().id;
        let gradients = |value: f64| {
            let mut gradients = GradientsParams::new();
            gradients.register(layer.weight.id, Tensor::<2>::full([80, 64], value, &device));
            gradients.register(bias, Tensor::<1>::full([64], 2.0 * value, &device));
            gradients
        };
        assert!((64..80 * 64).contains(&SMALL), "one of each kind");
        let products = gradient_products(&layer, &gradients(0.5), &gradients(-2.0)).unwrap();
        // The weight has 80 · 64 elements; the bias counts as four per element.
        let count = 80.0 * 64.0 + 4.0 * 64.0;
        assert_eq!(
            products.into_data().try_to_vec::<f32>().unwrap(),
            [0.25 * count, 4.0 * count, -count]
        );
    }

    #[test]
    fn combine_scales_and_adds_each_parameter() {
        let (model, retain, forget) = model();
        let mut sum = combine(&model, (1.0, retain), (-2.0, forget));
        let first = sum.remove::<2>(model.first.weight.id).unwrap();
        assert_eq!(first.into_data().try_to_vec::<f32>().unwrap(), [1.0, 6.0]);
        let other = sum.remove::<2>(model.other.weight.id).unwrap();
        assert_eq!(other.into_data().try_to_vec::<f32>().unwrap(), [-4.0]);
    }
}
