//! Chooses which parameters are trained, and how much memory their graph may take.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::{GradientCheckpointingStrategy, Tensor};

use crate::error::{Error, Result};
use crate::parameters::has_name;

/// Freezes the trainable parameters outside `group`, and returns their ids.
///
/// # Errors
/// [`Error::InvalidSetting`] if the group has no trainable parameter.
pub(crate) fn freeze_outside<M: Module>(model: M, group: &ParamGroup) -> Result<(M, Vec<ParamId>)> {
    let mut outside = Outside {
        group,
        path: Vec::new(),
        ids: Vec::new(),
        inside: 0,
        example: None,
    };
    model.visit(&mut outside);
    let Outside {
        ids,
        inside,
        example,
        ..
    } = outside;
    if inside == 0 {
        let example = example.map_or("none".into(), |path| format!("`{path}`"));
        return Err(Error::InvalidSetting {
            what: format!(
                "train_only matches none of the model's {} trainable parameters (the first is {example})",
                ids.len()
            ),
            remedy: "match the names of the model's fields on the way to a parameter, joined by dots",
        });
    }
    let frozen = ParamGroup::from_ids(ids.clone());
    Ok((model.set_require_grad_group(frozen, false), ids))
}

/// Makes the parameters that [`freeze_outside`] froze trainable again.
pub(crate) fn thaw<M: Module>(model: M, frozen: &[ParamId]) -> M {
    if frozen.is_empty() {
        return model;
    }
    model.set_require_grad_group(ParamGroup::from_ids(frozen.to_vec()), true)
}

/// Sets a training model's parameters to recompute cheap operations in the backward pass instead of
/// storing them.
///
/// Other tensors of the model become plain, because burn does not let tensors of two strategies
/// meet.
pub(crate) fn checkpoint_gradients<M: Module>(model: M) -> M {
    struct Checkpointing(HashSet<ParamId>);
    impl ModuleVisitor for Checkpointing {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.val().is_require_grad() {
                self.0.insert(param.id);
            }
        }
    }
    impl ModuleMapper for Checkpointing {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let is_trained = self.0.contains(&param.id);
            param.map(|tensor| {
                tensor
                    .autodiff()
                    .with_gradient_checkpointing_strategy(GradientCheckpointingStrategy::Balanced)
                    .set_require_grad(is_trained)
            })
        }
    }
    let mut trained = Checkpointing(HashSet::new());
    model.visit(&mut trained);
    model.valid().map(&mut trained)
}

/// The trainable parameters that a group leaves out.
struct Outside<'a> {
    group: &'a ParamGroup,
    path: Vec<String>,
    ids: Vec<ParamId>,
    inside: usize,
    example: Option<String>,
}

impl ModuleVisitor for Outside<'_> {
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
        if !param.val().is_require_grad() {
            return;
        }
        let path = self.path.join(".");
        if self.group.matches(&param.id, Some(&path)) {
            self.inside += 1;
        } else {
            self.ids.push(param.id);
        }
        self.example.get_or_insert(path);
    }
}
