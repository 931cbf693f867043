//! AdamW for groups of parameters, although burn's optimisers step one after another.
//!
//! A group's kernel needs the tensors of parameters that burn has not come to. So a step runs
//! twice: first on a copy of the optimiser, where [`FusedAdamW`](super::FusedAdamW) only gathers
//! the tensors, and then on the optimiser itself, where it hands out what the kernels made of them.
//! Copies share their tensors.

use std::cell::RefCell;
use std::collections::VecDeque;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;

use crate::kernel::fused::{AdamWNumbers, GROUP, adamw_steps};

/// Most elements of a group of several parameters: the old and the new moments of a group are in
/// memory together.
const GROUP_ELEMENTS: usize = 1 << 22;

/// One parameter's step.
pub(super) struct Step {
    /// Parameter, gradient and both moments, `[elements]`; a kernel takes them.
    pub(super) tensors: [Tensor<1>; 4],
    pub(super) numbers: AdamWNumbers,
}

impl Step {
    fn elements(&self) -> usize {
        self.tensors[0].dims()[0]
    }

    /// Whether one launch can take both.
    fn goes_with(&self, other: &Self) -> bool {
        self.numbers == other.numbers && self.tensors[0].device() == other.tensors[0].device()
    }
}

/// A step of a whole model.
pub(super) struct ModelStep<M> {
    pub(super) model: M,
    /// Parameters that kernels stepped.
    pub(super) in_kernels: usize,
}

/// What a step of [`FusedAdamW`](super::FusedAdamW) on this thread does.
enum Mode {
    /// Launches the kernel; the number of launches so far.
    Alone(usize),
    /// Keeps the tensors.
    Gather(VecDeque<Step>),
    HandOut {
        gathered: VecDeque<Step>,
        ready: VecDeque<[Tensor<1>; 3]>,
        /// Results handed out so far.
        count: usize,
    },
}

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Alone(0)) };
}

/// Ends a mode, even if the optimiser panics.
struct EndOfMode;

impl Drop for EndOfMode {
    fn drop(&mut self) {
        MODE.replace(Mode::Alone(0));
    }
}

/// Runs `work` in a mode; returns what became of it as well.
fn within<T>(mode: Mode, work: impl FnOnce() -> T) -> (T, Mode) {
    MODE.replace(mode);
    let _end = EndOfMode;
    let done = work();
    (done, MODE.replace(Mode::Alone(0)))
}

/// A step that launches a kernel for each parameter.
pub(super) fn one_by_one<M: Module>(
    optimizer: &mut ModuleOptimizer,
    rates: ModuleLearningRate,
    model: M,
    gradients: GradientsParams,
) -> ModelStep<M> {
    let (model, mode) = within(Mode::Alone(0), || optimizer.step(rates, model, gradients));
    let in_kernels = match mode {
        Mode::Alone(launches) => launches,
        _ => 0,
    };
    ModelStep { model, in_kernels }
}

/// The step of a parameter that is not to be taken together with others: it is never gathered, and
/// does not count as one that could be.
pub(super) fn by_itself<T>(step: impl FnOnce() -> T) -> T {
    within(Mode::Alone(0), step).0
}

/// A step that launches a kernel for each group of parameters.
pub(super) fn in_groups<M: Module>(
    optimizer: &mut ModuleOptimizer,
    rates: ModuleLearningRate,
    model: M,
    gradients: GradientsParams,
) -> ModelStep<M> {
    let (_, mode) = within(Mode::Gather(VecDeque::new()), || {
        let gradients = shared(&model, &gradients);
        let mut copy = optimizer.clone();
        copy.step(rates.clone(), model.clone(), gradients)
    });
    let mode = match mode {
        Mode::Gather(gathered) => Mode::HandOut {
            gathered,
            ready: VecDeque::new(),
            count: 0,
        },
        other => other,
    };
    let (model, mode) = within(mode, || optimizer.step(rates, model, gradients));
    let in_kernels = match mode {
        Mode::HandOut { count, .. } => count,
        _ => 0,
    };
    ModelStep { model, in_kernels }
}

/// The same gradients once more, without a copy of their values.
fn shared<M: Module>(model: &M, gradients: &GradientsParams) -> GradientsParams {
    struct Share<'a> {
        gradients: &'a GradientsParams,
        shared: GradientsParams,
    }
    impl ModuleVisitor for Share<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(param.id) {
                self.shared.register::<D>(param.id, gradient);
            }
        }
    }
    let mut visitor = Share {
        gradients,
        shared: GradientsParams::new(),
    };
    model.visit(&mut visitor);
    visitor.shared
}

/// The new parameter and moments of a step; the old ones where they are only gathered.
pub(super) fn outputs(step: Step) -> [Tensor<1>; 3] {
    MODE.with_borrow_mut(|mode| match mode {
        Mode::Gather(gathered) => {
            let [parameter, _, moment_1, moment_2] = step.tensors.clone();
            gathered.push_back(step);
            [parameter, moment_1, moment_2]
        }
        Mode::HandOut {
            gathered,
            ready,
            count,
        } => {
            if ready.is_empty() {
                ready.extend(launch(next_group(gathered)));
            }
            *count += 1;
            // Both passes visit the same parameters in the same order.
            ready.pop_front().unwrap_or_else(|| alone(step))
        }
        Mode::Alone(launches) => {
            *launches += 1;
            alone(step)
        }
    })
}

/// The first steps that one launch takes.
fn next_group(gathered: &mut VecDeque<Step>) -> Vec<Step> {
    let mut group: Vec<Step> = gathered.pop_front().into_iter().collect();
    let mut elements = group.iter().map(Step::elements).sum::<usize>();
    while let (Some(first), Some(next)) = (group.first(), gathered.front()) {
        elements += next.elements();
        if group.len() == GROUP || elements > GROUP_ELEMENTS || !first.goes_with(next) {
            break;
        }
        group.extend(gathered.pop_front());
    }
    group
}

fn launch(group: Vec<Step>) -> Vec<[Tensor<1>; 3]> {
    let Some(numbers) = group.first().map(|step| step.numbers) else {
        return Vec::new();
    };
    let tensors = group.into_iter().map(|step| step.tensors).collect();
    adamw_steps(tensors, numbers).collect()
}

fn alone(step: Step) -> [Tensor<1>; 3] {
    let unchanged = {
        let [parameter, _, moment_1, moment_2] = step.tensors.clone();
        [parameter, moment_1, moment_2]
    };
    launch(vec![step]).pop().unwrap_or(unchanged)
}
