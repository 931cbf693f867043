//! Parameters and optimiser states as bytes, bit for bit, in burn's own format.
//!
//! burn gives each parameter an id that differs from process to process. So a file names parameters
//! by their paths, which are the same in every process, and loading assigns each value to the
//! parameter that has the path now.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup};
use burn::optim::{ModuleOptimizer, OptimizerRecord, SgdConfig};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_pack::{Bytes, Reader, Writer};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::parameters::parameters;

/// Writes the values of all parameters under their names.
///
/// One parameter at a time is brought to the host.
///
/// # Errors
/// [`Error::DeviceRead`]; [`Error::Io`]; [`Error::CannotSave`] for two parameters with the same
/// name.
pub(super) fn save_model<M: Module>(model: &M, path: &Path) -> Result<()> {
    write(Writer::new(values(model)?), path)
}

/// Loads the values written by [`save_model`] into a model.
///
/// Ids, devices and which parameters are trained stay the same.
///
/// # Errors
/// A sentence that names what does not fit.
pub(super) fn load_model<M: Module>(model: M, bytes: Bytes) -> std::result::Result<M, String> {
    let reader = Reader::from_bytes(bytes);
    let tensors = reader.and_then(Reader::into_tensors);
    let mut restore = Restore::default();
    for tensor in tensors.map_err(|error| error.to_string())? {
        let (name, dtype, shape, _, bytes) =
            tensor.into_parts().map_err(|error| error.to_string())?;
        let data = TensorData::try_from_bytes(bytes, shape, dtype)
            .map_err(|error| format!("{name}: {error}"))?;
        restore.values.insert(name, data);
    }
    let model = model.map(&mut restore);
    if let Some(name) = restore.values.keys().next() {
        restore.problems.push(format!("{name} is not in the model"));
    }
    match restore.problems.into_iter().next() {
        Some(problem) => Err(problem),
        None => Ok(model),
    }
}

/// SHA-256 of a model's parameters: names, types, shapes and values.
///
/// It is the same for the same weights in every process. Use it in reports, and to tell a resumed
/// run from another one ([`Checkpoints::setting`](crate::Checkpoints::setting)).
///
/// Reads the parameters from the device.
///
/// # Errors
/// [`Error::DeviceRead`]; [`Error::CannotSave`] for two parameters with the same name.
pub fn model_fingerprint<M: Module>(model: &M) -> Result<String> {
    let mut digest = Sha256::new();
    for tensor in values(model)? {
        let (name, dtype, shape, _, bytes) = tensor.into_parts().map_err(unread)?;
        digest.update(format!("{name} {dtype:?} {shape:?} {}\n", bytes.len()));
        digest.update(&bytes[..]);
    }
    Ok(format!("{:x}", digest.finalize()))
}

/// Writes the optimiser's state for the parameters of a model.
///
/// The state of one parameter at a time is brought to the host.
///
/// # Errors
/// [`Error::CannotSave`] if burn would not restore it exactly; [`Error::Io`].
pub(super) fn save_optimizer<M: Module>(
    optimizer: &ModuleOptimizer,
    model: &M,
    path: &Path,
) -> Result<()> {
    let states = states(optimizer, model).map_err(unsaved)?;
    check_types(states.tensors.iter().map(|tensor| tensor.dtype))?;
    write(states.into_writer(), path)
}

/// burn restores a state in the default precision of its default device.
fn check_types(types: impl Iterator<Item = DType>) -> Result<()> {
    for dtype in types.filter(|dtype| dtype.is_float() && *dtype != DType::F32) {
        let default: DType = Device::default().settings().float_dtype.into();
        if dtype != default {
            return Err(Error::CannotSave {
                reason: format!(
                    "the optimiser's is {dtype:?}, and burn would restore it as {default:?}"
                ),
                remedy: "make the precision the device's default with `Device::configure`, or train in f32",
            });
        }
    }
    Ok(())
}

/// Loads the state written by [`save_optimizer`] into an optimiser.
///
/// [`check_optimizer`] tells whether it was restored.
///
/// # Errors
/// A sentence that says why the optimiser is not the same.
pub(super) fn load_optimizer<M: Module>(
    optimizer: ModuleOptimizer,
    model: &M,
    bytes: Bytes,
) -> std::result::Result<ModuleOptimizer, String> {
    let numbers = (0_u64..).zip(ids_by_name(model)).collect();
    let saved = States::read(bytes)?;
    let record = in_memory(saved.renumber(&numbers)?.into_writer());
    let record = record.map_err(|error| error.to_string())?;
    let record = OptimizerRecord::from_bytes(record).map_err(|error| error.to_string())?;
    // burn panics on tensors of another rank. It creates the tensors on its default device, and
    // panics too if that backend is compiled in but the device does not exist.
    let loaded = catch_unwind(AssertUnwindSafe(|| optimizer.load_record(record)));
    loaded.map_err(|_| {
        "it is not the state of this optimiser, or burn could not create its tensors on its default device; set the environment variable BURN_DEVICE to the device in use (flex, wgpu, cuda)".into()
    })
}

/// Checks that an optimiser has the state written by [`save_optimizer`], to the bit: burn skips
/// what it does not know.
///
/// # Errors
/// A sentence that says that the state differs.
pub(super) fn check_optimizer<M: Module>(
    optimizer: &ModuleOptimizer,
    model: &M,
    bytes: Bytes,
) -> std::result::Result<(), String> {
    let saved = States::read(bytes)?;
    match states(optimizer, model)?.is(saved)? {
        true => Ok(()),
        false => Err("it is not the state of this optimiser".into()),
    }
}

/// The result of three optimiser steps on a small parameter.
///
/// It identifies the optimiser's settings, which burn's optimisers do not expose.
pub(super) fn behaviour(optimizer: &ModuleOptimizer, device: &Device) -> Result<Vec<String>> {
    use burn::optim::GradientsParams;
    let value = |values: [f32; 4]| -> Tensor<2> {
        Tensor::from_data(
            TensorData::new(values.to_vec(), [2, 2]),
            (&device.clone().inner(), DType::F32),
        )
    };
    let mut optimizer = optimizer.clone();
    let mut parameter = Param::from_tensor(value([1.0, -0.5, 0.25, 2.0])).train();
    for gradient in [[0.3, -2.0, 0.0, 1e-3], [-1.0, 0.5, 0.1, 1e-3], [4.0; 4]] {
        let mut gradients = GradientsParams::new();
        gradients.register(parameter.id, value(gradient));
        parameter = optimizer.step(0.1, parameter, gradients);
    }
    let values = crate::host::read_f32(parameter.val().inner(), "the optimiser's probe")?;
    // Rounded, because devices round differently.
    Ok(values.iter().map(|value| format!("{value:.4e}")).collect())
}

fn unsaved(error: impl ToString) -> Error {
    Error::CannotSave {
        reason: error.to_string(),
        remedy: "give each parameter of the model its own name; if that does not help, run without checkpoints",
    }
}

fn unread(error: impl ToString) -> Error {
    Error::DeviceRead {
        what: "a parameter",
        message: error.to_string(),
    }
}

/// Writes a file that does not exist yet.
fn write(writer: Writer, path: &Path) -> Result<()> {
    let writer = writer.auto_extension(false).overwrite(false);
    let written = writer.write_to_file_in_place(path);
    written.map_err(|error| match error {
        burn_pack::Error::IoError(message) => {
            Error::io("writing", path)(std::io::Error::other(message))
        }
        burn_pack::Error::ValidationError(message) => unread(message),
        other => unsaved(other),
    })
}

/// The bytes of a file in memory; each is written once.
fn in_memory(writer: Writer) -> std::result::Result<Bytes, burn_pack::Error> {
    // Bytes after the last tensor do no harm.
    let size = writer.size()?.div_ceil(size_of::<u128>());
    let mut bytes = Bytes::from_elems(vec![0_u128; size]);
    writer.write_into(&mut bytes)?;
    Ok(bytes)
}

/// Ids of the parameters in the order of their names; a parameter that two fields share occurs
/// once.
fn ids_by_name<M: Module>(model: &M) -> Vec<u64> {
    let mut parameters = parameters(model);
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    let mut ids = Vec::new();
    for parameter in parameters {
        if !ids.contains(&parameter.id.val()) {
            ids.push(parameter.id.val());
        }
    }
    ids
}

/// The contents of an optimiser's record.
///
/// All names in it have the form `{id}` or `{id}.{field}`.
#[derive(Clone, Default)]
struct States {
    tensors: Vec<burn_pack::Tensor>,
    scalars: BTreeMap<String, burn_pack::Scalar>,
    paths: BTreeMap<String, String>,
}

impl States {
    /// Reads the states from a record's bytes, which its tensors share.
    fn read(bytes: Bytes) -> std::result::Result<Self, String> {
        let reader = Reader::from_bytes(bytes).map_err(|error| error.to_string())?;
        Ok(Self {
            scalars: reader.scalars().clone(),
            paths: reader.metadata().clone(),
            tensors: reader.into_tensors().map_err(|error| error.to_string())?,
        })
    }

    /// The states of an optimiser.
    fn of(optimizer: &ModuleOptimizer) -> std::result::Result<Self, String> {
        let record = optimizer.to_record().into_bytes();
        Self::read(record.map_err(|error| error.to_string())?)
    }

    /// The same states with other ids.
    fn renumber(self, numbers: &BTreeMap<u64, u64>) -> std::result::Result<Self, String> {
        let number = |id: u64| {
            let number = numbers.get(&id).copied();
            number.ok_or_else(|| STRANGER.to_owned())
        };
        let rename = |name: &str| {
            let (id, field) = name.split_once('.').unwrap_or((name, ""));
            let id = id
                .parse()
                .map_err(|_| format!("`{name}` belongs to no parameter"))?;
            let dot = if field.is_empty() { "" } else { "." };
            Ok::<_, String>(format!("{}{dot}{field}", number(id)?))
        };
        let mut renumbered = Self::default();
        for mut tensor in self.tensors {
            let id = tensor.param_id;
            let id = id.ok_or_else(|| format!("`{}` belongs to no parameter", tensor.name))?;
            (tensor.name, tensor.param_id) = (rename(&tensor.name)?, Some(number(id)?));
            renumbered.tensors.push(tensor);
        }
        for (name, value) in self.scalars {
            renumbered.scalars.insert(rename(&name)?, value);
        }
        for (name, path) in self.paths {
            renumbered.paths.insert(rename(&name)?, path);
        }
        // burn's order is that of a hash table.
        renumbered.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(renumbered)
    }

    fn into_writer(self) -> Writer {
        let mut writer = Writer::new(self.tensors);
        for (name, value) in self.scalars {
            writer = writer.with_scalar(&name, value);
        }
        for (name, path) in self.paths {
            writer = writer.with_metadata(&name, &path);
        }
        writer
    }

    /// Whether two are the same, to the bit.
    ///
    /// One tensor of each is held at a time.
    fn is(self, other: Self) -> std::result::Result<bool, String> {
        let is_like = self.scalars == other.scalars && self.paths == other.paths;
        if !is_like || self.tensors.len() != other.tensors.len() {
            return Ok(false);
        }
        for pair in self.tensors.into_iter().zip(other.tensors) {
            let parts =
                |tensor: burn_pack::Tensor| tensor.into_parts().map_err(|error| error.to_string());
            if parts(pair.0)? != parts(pair.1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

const STRANGER: &str = "it has a parameter that the model does not have";

/// The states of an optimiser, with ids replaced by the numbers of the model's parameters.
///
/// Each tensor is brought to the host only when it is needed.
fn states<M: Module>(
    optimizer: &ModuleOptimizer,
    model: &M,
) -> std::result::Result<States, String> {
    let ids = ids_by_name(model);
    let others = without(
        optimizer,
        ParamGroup::from_ids(ids.iter().map(|&id| id.into()).collect()),
    );
    let others = States::of(&others)?;
    if !(others.scalars.is_empty() && others.tensors.is_empty()) {
        return Err(STRANGER.into());
    }
    let mut all = States::default();
    for (id, number) in ids.into_iter().zip(0_u64..) {
        let its_own = ParamGroup::from_ids(vec![id.into()]);
        let optimizer = without(optimizer, ParamGroup::all().exclude(its_own));
        let numbers = BTreeMap::from([(id, number)]);
        let read = move || States::of(&optimizer)?.renumber(&numbers);
        let states = read()?;
        all.scalars.extend(states.scalars);
        all.paths.extend(states.paths);
        let read = Arc::new(read);
        let tensors = states.tensors.into_iter();
        all.tensors
            .extend(tensors.map(|tensor| later(tensor, read.clone())));
    }
    all.tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// An optimiser without the state of a group of parameters.
///
/// The state of the others is shared, not copied.
fn without(optimizer: &ModuleOptimizer, group: ParamGroup) -> ModuleOptimizer {
    // burn drops the state of a group that is given to another optimiser.
    let another = SgdConfig::new().build();
    optimizer.clone().with_group(group, another, None)
}

/// A tensor that is dropped now, and read again when it is needed.
fn later(
    tensor: burn_pack::Tensor,
    read: Arc<impl Fn() -> std::result::Result<States, String> + Send + Sync + 'static>,
) -> burn_pack::Tensor {
    let (name, length) = (tensor.name.clone(), tensor.byte_len());
    let bytes = move || {
        let states = read().map_err(burn_pack::Error::ValidationError)?;
        let mut tensors = states.tensors.into_iter();
        let found = tensors.find(|tensor| tensor.name == name);
        let found = found.ok_or_else(|| burn_pack::Error::TensorNotFound(name.clone()))?;
        found.into_bytes()
    };
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    burn_pack::Tensor::deferred(name, tensor.dtype, shape, tensor.param_id, length, bytes)
}

/// All parameters, in the order of their names.
///
/// A float tensor is brought to the host only when it is needed.
fn values<M: Module>(model: &M) -> Result<Vec<burn_pack::Tensor>> {
    let mut collect = Collect::default();
    model.visit(&mut collect);
    match collect.problem {
        Some(problem) => Err(problem),
        None => Ok(collect.values.into_values().collect()),
    }
}

/// The names on the path to a parameter.
#[derive(Default)]
struct Names(Vec<String>);

impl Names {
    fn name(&self) -> String {
        self.0.join(".")
    }
}

/// Visitors and mappers collect the names in the same way.
macro_rules! follow_names {
    () => {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.0.push(name.into());
        }

        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.0.pop();
        }
    };
}

#[derive(Default)]
struct Collect {
    path: Names,
    values: BTreeMap<String, burn_pack::Tensor>,
    problem: Option<Error>,
}

impl Collect {
    fn add(&mut self, tensor: burn_pack::Tensor) {
        let name = tensor.name.clone();
        if self.values.insert(name, tensor).is_some() {
            let name = self.path.name();
            self.problem = Some(unsaved(format!("two parameters are called `{name}`")));
        }
    }

    /// Adds a float tensor of a plain type, whose number of bytes is known before it is read.
    fn add_later<const D: usize>(&mut self, value: Tensor<D>) {
        let (dtype, shape) = (value.dtype(), value.shape());
        let length = shape.num_elements() * dtype.size();
        let read = move || {
            let data = value.clone().try_into_data();
            let data =
                data.map_err(|error| burn_pack::Error::ValidationError(error.to_string()))?;
            Ok(data.into_parts().0)
        };
        let name = self.path.name();
        self.add(burn_pack::Tensor::deferred(
            name, dtype, shape, None, length, read,
        ));
    }

    fn add_now<E: ToString>(&mut self, data: std::result::Result<TensorData, E>) {
        let name = self.path.name();
        match data {
            Err(error) => self.problem = Some(unread(format!("{name}: {}", error.to_string()))),
            Ok(data) => {
                let (bytes, shape, dtype) = data.into_parts();
                self.add(burn_pack::Tensor::new(name, dtype, shape, None, bytes));
            }
        }
    }
}

impl ModuleVisitor for Collect {
    follow_names!();

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base().inner();
        match value.dtype() {
            DType::F64 | DType::F32 | DType::F16 | DType::BF16 => self.add_later(value),
            _ => self.add_now(value.try_into_data()),
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.add_now(param.base().inner().try_into_data());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.add_now(param.base().inner().try_into_data());
    }
}

#[derive(Default)]
struct Restore {
    path: Names,
    values: BTreeMap<String, TensorData>,
    problems: Vec<String>,
}

impl Restore {
    /// Takes the saved values of the current parameter, or `None` if the parameter has them
    /// already: it then also keeps its memory layout.
    fn take<E: ToString>(&mut self, now: std::result::Result<TensorData, E>) -> Option<TensorData> {
        let name = self.path.name();
        let problem = match (self.values.remove(&name), now) {
            (None, _) => format!("{name} is not in the checkpoint"),
            (_, Err(error)) => format!("{name}: {}", error.to_string()),
            (Some(saved), Ok(now)) => {
                if saved.shape() == now.shape() && saved.dtype() == now.dtype() {
                    let is_there = saved.as_bytes() == now.as_bytes();
                    return (!is_there).then_some(saved);
                }
                let describe = |data: &TensorData| format!("{:?} {:?}", data.dtype(), data.shape());
                format!(
                    "{name} is {} in the checkpoint and {} in the model",
                    describe(&saved),
                    describe(&now)
                )
            }
        };
        self.problems.push(problem);
        None
    }
}

impl ModuleMapper for Restore {
    follow_names!();

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(data) = self.take(param.base().inner().try_into_data()) else {
            return param;
        };
        param.map(|old| {
            let dtype = data.dtype();
            let value = Tensor::from_data(data, (&old.device().inner(), dtype));
            match old.gradient_checkpointing_strategy() {
                None => value,
                Some(strategy) => value
                    .autodiff()
                    .with_gradient_checkpointing_strategy(strategy)
                    .set_require_grad(old.is_require_grad()),
            }
        })
    }

    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        match self.take(param.base().inner().try_into_data()) {
            None => param,
            Some(data) => param.map(|old| {
                let dtype = data.dtype();
                Tensor::from_data(data, (&old.device(), dtype))
            }),
        }
    }

    fn map_bool<const D: usize>(
        &mut self,
        param: Param<Tensor<D, Bool>>,
    ) -> Param<Tensor<D, Bool>> {
        match self.take(param.base().inner().try_into_data()) {
            None => param,
            Some(data) => param.map(|old| Tensor::from_data(data, &old.device())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::ParamId;
    use burn::nn::{Linear, LinearConfig};
    use burn::optim::{AdamWConfig, GradientsParams};
    use burn::tensor::{Distribution, FloatDType};

    #[derive(Module, Debug)]
    struct Two {
        first: Linear,
        second: Linear,
        steps: Param<Tensor<1, Int>>,
    }

    /// The contents of a file that `write` writes.
    fn written(write: impl FnOnce(&Path) -> Result<()>) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path)?;
        Ok(std::fs::read(path).unwrap())
    }

    fn save_model<M: Module>(model: &M) -> Result<Vec<u8>> {
        written(|path| super::save_model(model, path))
    }

    fn save_optimizer<M: Module>(optimizer: &ModuleOptimizer, model: &M) -> Result<Vec<u8>> {
        written(|path| super::save_optimizer(optimizer, model, path))
    }

    /// Bytes as the manifest reads them.
    fn in_room(bytes: &[u8]) -> Bytes {
        let mut room = super::super::manifest::room(bytes.len()).unwrap();
        room.extend_from_byte_slice(bytes);
        room
    }

    fn load_model<M: Module>(model: M, bytes: Vec<u8>) -> std::result::Result<M, String> {
        super::load_model(model, in_room(&bytes))
    }

    fn load_optimizer<M: Module>(
        optimizer: ModuleOptimizer,
        model: &M,
        bytes: Vec<u8>,
    ) -> std::result::Result<ModuleOptimizer, String> {
        let loaded = super::load_optimizer(optimizer, model, in_room(&bytes))?;
        check_optimizer(&loaded, model, in_room(&bytes)).map(|()| loaded)
    }

    /// The same weights in every call, with other ids.
    fn two() -> Two {
        let device = Device::flex();
        let linear = |scale: f32| {
            let linear = LinearConfig::new(3, 2).init(&device);
            linear.map(&mut Scaled(scale))
        };
        Two {
            first: linear(1.0),
            second: linear(-2.0),
            steps: Param::initialized(ParamId::new(), Tensor::from_data([1, 2, 3], &device)),
        }
    }

    struct Scaled(f32);
    impl ModuleMapper for Scaled {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| {
                let count = value.shape().num_elements();
                let numbers: Vec<f32> = (0..count).map(|i| self.0 * (i as f32 + 0.1)).collect();
                Tensor::from_data(TensorData::new(numbers, value.shape()), &value.device())
            })
        }
    }

    fn trained(mut model: Two, optimizer: &mut ModuleOptimizer, steps: u64) -> Two {
        let device = Device::flex();
        for step in 0..steps {
            let x: Tensor<2> = crate::draws::normal_noise(
                [4, 3],
                1,
                step,
                0,
                crate::draws::Stream::Noise,
                &device,
            );
            let loss = (model.first.forward(x.clone()) * model.second.forward(x)).sum();
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(0.01, model, gradients);
        }
        model
    }

    #[test]
    fn a_model_and_its_optimizer_go_on_in_another_process_as_if_nothing_had_been() {
        for optimizer in [
            AdamWConfig::new().init() as ModuleOptimizer,
            SgdConfig::new().init(),
        ] {
            let mut first = optimizer.clone();
            let model = trained(two().train(), &mut first, 3);
            let (weights, state) = (
                save_model(&model).unwrap(),
                save_optimizer(&first, &model).unwrap(),
            );
            // Other ids, as in another process.
            let restored = load_model(two().train(), weights.clone()).unwrap();
            assert_ne!(parameters(&restored)[0].id, parameters(&model)[0].id);
            let mut second = load_optimizer(optimizer.clone(), &restored, state.clone()).unwrap();
            assert_eq!(save_model(&restored).unwrap(), weights);
            assert_eq!(save_optimizer(&second, &restored).unwrap(), state);

            let (model, restored) = (
                trained(model, &mut first, 3),
                trained(restored, &mut second, 3),
            );
            assert_eq!(save_model(&restored).unwrap(), save_model(&model).unwrap());
            assert_eq!(
                save_optimizer(&second, &restored).unwrap(),
                save_optimizer(&first, &model).unwrap()
            );
        }
    }

    #[test]
    fn the_state_of_another_optimizer_or_model_is_refused() {
        let mut adam: ModuleOptimizer = AdamWConfig::new().init();
        let model = trained(two().train(), &mut adam, 1);
        let state = save_optimizer(&adam, &model).unwrap();
        let plain: ModuleOptimizer = SgdConfig::new().init();
        let error = load_optimizer(plain, &model, state.clone()).err().unwrap();
        assert!(error.contains("not the state"), "{error}");
        let other = LinearConfig::new(3, 2).init(&Device::flex());
        let fresh: ModuleOptimizer = AdamWConfig::new().init();
        let error = load_optimizer(fresh, &other, state).err().unwrap();
        assert!(error.contains("does not have"), "{error}");
    }

    #[test]
    fn weights_of_another_shape_type_or_name_are_refused_by_name() {
        let device = Device::flex();
        let linear = |inputs| LinearConfig::new(inputs, 2).init(&device);
        let saved = save_model(&linear(3)).unwrap();
        let error = load_model(linear(4), saved.clone()).unwrap_err();
        assert!(error.contains("weight is F32"), "{error}");
        let error = load_model(two(), saved.clone()).unwrap_err();
        assert!(
            error.contains("first.weight is not in the checkpoint"),
            "{error}"
        );
        let without = LinearConfig::new(3, 2).with_bias(false).init(&device);
        let error = load_model(without, saved).unwrap_err();
        assert!(error.contains("bias is not in the model"), "{error}");
    }

    #[test]
    fn every_bit_of_f32_bf16_and_f16_comes_back() {
        let device = Device::flex();
        for dtype in [FloatDType::F32, FloatDType::BF16, FloatDType::F16] {
            let random = || {
                let value = Tensor::<2>::random([8, 8], Distribution::Default, &device);
                Param::from_tensor(value.cast(dtype))
            };
            let (saved, other) = (random(), random());
            let bytes = save_model(&saved).unwrap();
            let loaded = load_model(other.train(), bytes.clone()).unwrap();
            assert!(loaded.val().is_require_grad());
            assert_eq!(save_model(&loaded).unwrap(), bytes);
            assert_eq!(
                model_fingerprint(&loaded).unwrap(),
                model_fingerprint(&saved).unwrap()
            );
        }
    }

    #[test]
    fn a_state_that_burn_would_restore_in_another_precision_is_refused_when_it_is_saved() {
        let device = Device::flex();
        let value = || Tensor::<2>::ones([2, 2], &device).cast(FloatDType::BF16);
        let parameter = Param::from_tensor(value()).train();
        let mut gradients = GradientsParams::new();
        gradients.register(parameter.id, value());
        let mut optimizer: ModuleOptimizer = AdamWConfig::new().init();
        let parameter = optimizer.step(0.1, parameter, gradients);
        let error = save_optimizer(&optimizer, &parameter).unwrap_err();
        assert!(error.to_string().contains("BF16"), "{error}");
    }

    #[test]
    fn optimizers_are_told_apart_by_what_they_do() {
        let device = Device::flex();
        let behaviour = |optimizer: ModuleOptimizer| behaviour(&optimizer, &device).unwrap();
        let adam = AdamWConfig::new();
        assert_eq!(behaviour(adam.init()), behaviour(adam.init()));
        for other in [
            adam.clone().with_beta_1(0.8).init(),
            adam.clone().with_beta_2(0.9).init(),
            adam.clone().with_weight_decay(0.1).init(),
            adam.clone().with_epsilon(0.1).init(),
            SgdConfig::new().init(),
        ] {
            assert_ne!(behaviour(adam.init()), behaviour(other));
        }
    }

    #[test]
    fn weights_of_another_type_are_refused_by_name() {
        let device = Device::flex();
        let linear = || LinearConfig::new(3, 2).init(&device);
        struct Narrow;
        impl ModuleMapper for Narrow {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|value| value.cast(FloatDType::BF16))
            }
        }
        let saved = save_model(&linear().map(&mut Narrow)).unwrap();
        let error = load_model(linear(), saved).unwrap_err();
        assert!(error.contains("is BF16"), "{error}");
    }

    #[test]
    fn fingerprints_tell_shapes_apart() {
        let value = Tensor::<2>::ones([4, 6], &Device::flex());
        let fingerprint = |value: Tensor<2>| model_fingerprint(&Param::from_tensor(value)).unwrap();
        assert_ne!(fingerprint(value.clone()), fingerprint(value.transpose()));
    }
}
