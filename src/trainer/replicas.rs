//! Data-parallel steps: copies of the model on several devices share the rows of each term.
//!
//! Draws, weights and thinning are those of the whole batch, and each side's gradient is a sum over
//! rows, so the step is that of one device up to the order of additions.

use std::collections::HashSet;
use std::fmt::Debug;
use std::thread;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};

use super::gradients::{SideGradient, SideInputs, side_gradient};
use crate::data::UnlearningBatch;
use crate::data::side::{Side, Sides};
use crate::denoiser::{Condition, Denoiser};
use crate::error::{Error, Result, panic_text};
use crate::host::{select_rows, to_f32};
use crate::objective::{LossTerm, LossTerms};
use crate::steering::Steering;

/// Adds up one vector per device.
///
/// The trainer calls it once per term and step, with all gradients of the term in one vector of
/// f32.
pub trait Reduce: Send + Debug {
    /// Name for messages.
    fn name(&self) -> &'static str;

    /// The sum, on the device of the first part.
    ///
    /// # Shapes
    /// - each of `parts`, and the result: `[values]`; part `k` is on the `k`-th device
    ///
    /// # Errors
    /// Any error ends the step, and leaves the trainer unchanged.
    fn sum(&self, parts: Vec<Tensor<1>>) -> Result<Tensor<1>>;
}

/// Copies every vector to the first device and adds them there, in the order of the devices.
///
/// It works on every device, and gives the same bits in every run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SumOnFirst;

impl Reduce for SumOnFirst {
    fn name(&self) -> &'static str {
        "SumOnFirst"
    }

    fn sum(&self, parts: Vec<Tensor<1>>) -> Result<Tensor<1>> {
        let mut parts = parts.into_iter();
        let first = parts.next().ok_or(Error::Empty {
            what: "the list of vectors to add",
            remedy: "give one per device",
        })?;
        let device = first.device();
        Ok(parts.fold(first, |sum, part| sum + part.to_device(&device)))
    }
}

/// burn's collective sum over NVIDIA GPUs, which needs NCCL at run time.
///
/// The copies between the devices do not go through the host. No machine with two GPUs was
/// available to measure it.
#[cfg(feature = "cuda")]
#[derive(Debug)]
pub struct AllReduce {
    devices: Vec<Device>,
    /// Ends the communication when it is dropped.
    _context: burn::tensor::distributed::DistributedContext,
}

/// burn's collective sum over NVIDIA GPUs, which a build without the feature `cuda` does not have.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
pub struct AllReduce {
    never: std::convert::Infallible,
}

impl AllReduce {
    /// Starts the communication between these devices: the model's first, then the replicas'.
    ///
    /// # Errors
    /// - [`Error::InvalidSetting`] for fewer than two devices, or the same one twice
    /// - [`Error::DeviceFailed`] without NCCL, with a device that is not an NVIDIA GPU, and in a
    ///   build without the feature `cuda`
    pub fn new(devices: Vec<Device>) -> Result<Self> {
        let is_repeated = |(index, device)| devices[..index].contains(device);
        if devices.len() < 2 || devices.iter().enumerate().any(is_repeated) {
            return Err(Error::InvalidSetting {
                what: format!("{} devices, or one of them twice", devices.len()),
                remedy: "an all-reduce needs at least two devices, each once",
            });
        }
        Self::start(devices)
    }

    #[cfg(not(feature = "cuda"))]
    fn start(devices: Vec<Device>) -> Result<Self> {
        Err(Error::DeviceFailed {
            device: format!("{devices:?}"),
            reason: "this build has no NCCL; build with the feature `cuda`".into(),
        })
    }

    #[cfg(feature = "cuda")]
    fn start(devices: Vec<Device>) -> Result<Self> {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        use burn::tensor::distributed::{DistributedConfig, DistributedContext, ReduceOperation};

        let config = DistributedConfig {
            all_reduce_op: ReduceOperation::Sum,
        };
        // burn panics where the collective is not available. One sum of zeros tells.
        let probed = catch_unwind(AssertUnwindSafe(|| {
            let reduce = Self {
                _context: DistributedContext::init(devices.clone(), config),
                devices: devices.clone(),
            };
            let zeros = devices.iter().map(|device| Tensor::zeros([1], device));
            reduce.sum(zeros.collect())?;
            Ok(reduce)
        }));
        probed.unwrap_or_else(|panic| {
            Err(Error::DeviceFailed {
                device: format!("{devices:?}"),
                reason: panic_text(panic.as_ref()),
            })
        })
    }
}

#[cfg(feature = "cuda")]
impl Reduce for AllReduce {
    fn name(&self) -> &'static str {
        "AllReduce"
    }

    fn sum(&self, parts: Vec<Tensor<1>>) -> Result<Tensor<1>> {
        use burn::tensor::distributed::{ReduceOperation, all_reduce};

        let remedy = "give one vector per device that the all-reduce was made for";
        crate::error::check_shape(
            "the list of vectors to add",
            &[self.devices.len()],
            &[parts.len()],
            remedy,
        )?;
        let submitted: Vec<_> = parts
            .into_iter()
            .map(|part| all_reduce(part, ReduceOperation::Sum, self.devices.clone()))
            .collect();
        let mut sums = submitted.into_iter().map(|sum| sum.resolve());
        let first = sums.next().ok_or(Error::Empty {
            what: "the list of vectors to add",
            remedy: "give one per device",
        })?;
        // Each device's sum must be complete before its memory is used again.
        sums.for_each(drop);
        Ok(first)
    }
}

#[cfg(not(feature = "cuda"))]
impl Reduce for AllReduce {
    fn name(&self) -> &'static str {
        match self.never {}
    }

    fn sum(&self, _: Vec<Tensor<1>>) -> Result<Tensor<1>> {
        match self.never {}
    }
}

/// The devices beyond the model's own.
#[derive(Debug)]
pub(crate) struct Replicas {
    pub(crate) devices: Vec<Device>,
    pub(crate) reduce: Box<dyn Reduce>,
}

/// What one device computes in a step.
struct Share<M, const D: usize, C> {
    model: M,
    sides: Sides<Option<SideShare<D, C>>>,
}

/// The rows of a term that run on one device, and what belongs to them.
struct SideShare<const D: usize, C> {
    term: LossTerm<D>,
    condition: C,
    forget_ids: Vec<u64>,
}

impl Replicas {
    /// The gradients of both sides, with the rows of each shared out among the devices.
    ///
    /// Losses, factors and ratios are in the order of the rows, on the model's device, as are the
    /// gradients.
    pub(crate) fn sides<const D: usize, M: Denoiser<D>>(
        &self,
        model: &M,
        terms: &LossTerms<D>,
        batch: &UnlearningBatch<D, M::Condition>,
        steering: Option<&Steering>,
        micro_batch: usize,
    ) -> Result<Sides<SideGradient>> {
        let own = batch.retain.device();
        let devices: Vec<&Device> = [&own].into_iter().chain(&self.devices).collect();
        let shares = devices.iter().enumerate().map(|(index, device)| {
            let place = (index, devices.len());
            Share {
                // A replica's parameters are leaves of a graph of its own.
                model: match index {
                    0 => model.clone(),
                    _ => model.clone().fork(device),
                },
                sides: Sides {
                    retain: share(terms.retain.as_ref(), Side::Retain, batch, place, device),
                    forget: share(terms.forget.as_ref(), Side::Forget, batch, place, device),
                },
            }
        });
        let shares: Vec<_> = shares.collect();
        let batch_size = batch.batch_size();
        let computed = thread::scope(|scope| {
            let threads: Vec<_> = shares
                .into_iter()
                .map(|share| {
                    scope.spawn(move || share.gradients(batch_size, steering, micro_batch))
                })
                .collect();
            // Every thread is joined before the first failure is returned.
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.collect::<Vec<_>>()
        });
        let (mut retain, mut forget) = (Vec::new(), Vec::new());
        for (result, device) in computed.into_iter().zip(&devices) {
            let sides = result.map_err(|panic| Error::DeviceFailed {
                device: format!("{device:?}"),
                reason: panic_text(panic.as_ref()),
            })??;
            retain.push(sides.retain);
            forget.push(sides.forget);
        }
        Ok(Sides {
            retain: self.joined(model, retain, &own)?,
            forget: self.joined(model, forget, &own)?,
        })
    }

    /// The parts of a side as if one device had computed them.
    fn joined<M: Module>(
        &self,
        model: &M,
        parts: Vec<SideGradient>,
        own: &Device,
    ) -> Result<SideGradient> {
        let mut side = SideGradient::default();
        let mut gradients = Vec::new();
        let moved = |parts: Vec<Tensor<1>>| parts.into_iter().map(|part| part.to_device(own));
        for part in parts {
            side.losses.extend(moved(part.losses));
            side.factors.extend(moved(part.factors));
            side.ratios.extend(moved(part.ratios));
            gradients.push(part.gradients);
        }
        side.gradients = self.summed(model, gradients)?;
        Ok(side)
    }

    /// The sum of the devices' gradients, on the first.
    fn summed<M: Module>(
        &self,
        model: &M,
        mut gradients: Vec<GradientsParams>,
    ) -> Result<GradientsParams> {
        let present = with_gradient(model, &gradients);
        if present.is_empty() {
            return Ok(GradientsParams::new());
        }
        let own = gradients.iter_mut().zip(self.all_devices(model));
        let flat = own.map(|(gradients, device)| flatten(model, gradients, &present, &device));
        let sum = self.reduce.sum(flat.collect())?;
        Ok(unflatten(model, &sum, &present))
    }

    /// The devices of the model and of its replicas.
    fn all_devices<M: Module>(&self, model: &M) -> Vec<Device> {
        let own = model.devices().into_iter().next();
        own.into_iter().chain(self.devices.clone()).collect()
    }
}

impl<M: Denoiser<D>, const D: usize> Share<M, D, M::Condition> {
    fn gradients(
        self,
        batch_size: usize,
        steering: Option<&Steering>,
        micro_batch: usize,
    ) -> Result<Sides<SideGradient>> {
        let gradient = |share: Option<SideShare<D, M::Condition>>, steering: Option<&Steering>| {
            let Some(share) = share else {
                return Ok(SideGradient::default());
            };
            let inputs = SideInputs {
                term: &share.term,
                condition: &share.condition,
                batch_size,
                steering: steering.map(|steering| (steering, share.forget_ids.as_slice())),
            };
            side_gradient(&self.model, &inputs, micro_batch)
        };
        Ok(Sides {
            retain: gradient(self.sides.retain, None)?,
            forget: gradient(self.sides.forget, steering)?,
        })
    }
}

/// The rows of a term that fall to device `index` of `count`, moved there; `None` without any.
fn share<const D: usize, C: Condition>(
    term: Option<&LossTerm<D>>,
    side: Side,
    batch: &UnlearningBatch<D, C>,
    (index, count): (usize, usize),
    device: &Device,
) -> Option<SideShare<D, C>> {
    let term = term?;
    let rows = term.rows.len();
    let mine = rows * index / count..rows * (index + 1) / count;
    let chosen = &term.rows[mine.clone()];
    if chosen.is_empty() {
        return None;
    }
    let moved = |tensor: &Tensor<D>| select_rows(tensor, chosen).to_device(device);
    let share = LossTerm {
        rows: (0..chosen.len()).collect(),
        noisy: moved(&term.noisy),
        timesteps: chosen.iter().map(|&row| term.timesteps[row]).collect(),
        target: moved(&term.target),
        weights: term.weights[mine].to_vec(),
        weight_bound: term.weight_bound,
        own_target: term.own_target.as_ref().map(moved),
        boost: term.boost,
    };
    let ids = batch.forget_ids();
    Some(SideShare {
        term: share,
        condition: batch.condition(side).take_rows(chosen).to_device(device),
        forget_ids: chosen.iter().map(|&row| ids[row]).collect(),
    })
}

/// The parameters that have a gradient on any device, in the order of the model.
fn with_gradient<M: Module>(model: &M, gradients: &[GradientsParams]) -> Vec<ParamId> {
    struct Visitor<'a> {
        gradients: &'a [GradientsParams],
        seen: HashSet<ParamId>,
        found: Vec<ParamId>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let has = |gradients: &GradientsParams| gradients.get::<D>(param.id).is_some();
            if self.gradients.iter().any(has) && self.seen.insert(param.id) {
                self.found.push(param.id);
            }
        }
    }
    let mut visitor = Visitor {
        gradients,
        seen: HashSet::new(),
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// The gradients of these parameters end to end, in f32, with zeros for those that are missing.
fn flatten<M: Module>(
    model: &M,
    gradients: &mut GradientsParams,
    present: &[ParamId],
    device: &Device,
) -> Tensor<1> {
    struct Visitor<'a> {
        gradients: &'a mut GradientsParams,
        left: HashSet<ParamId>,
        device: &'a Device,
        parts: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.left.remove(&param.id) {
                return;
            }
            let gradient = self.gradients.remove::<D>(param.id).map(to_f32);
            let count = param.lazy_shape().num_elements();
            self.parts.push(match gradient {
                Some(gradient) => gradient.flatten(0, D - 1),
                None => crate::host::tensor(vec![0.0; count], [count], self.device),
            });
        }
    }
    let mut visitor = Visitor {
        gradients,
        left: present.iter().copied().collect(),
        device,
        parts: Vec::new(),
    };
    model.visit(&mut visitor);
    Tensor::cat(visitor.parts, 0)
}

/// The reverse of [`flatten`].
fn unflatten<M: Module>(model: &M, flat: &Tensor<1>, present: &[ParamId]) -> GradientsParams {
    struct Visitor<'a> {
        flat: &'a Tensor<1>,
        left: HashSet<ParamId>,
        start: usize,
        gradients: GradientsParams,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if !self.left.remove(&param.id) {
                return;
            }
            let value = param.val();
            let count = value.shape().num_elements();
            let part = self.flat.clone().narrow(0, self.start, count);
            let gradient: Tensor<D> = part.reshape(value.dims()).cast(value.dtype());
            self.gradients.register::<D>(param.id, gradient);
            self.start += count;
        }
    }
    let mut visitor = Visitor {
        flat,
        left: present.iter().copied().collect(),
        start: 0,
        gradients: GradientsParams::new(),
    };
    model.visit(&mut visitor);
    visitor.gradients
}
