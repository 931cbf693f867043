//! The crate's error type.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;

use crate::data::side::Side;
use crate::files::path::path_text;
use crate::process::prediction::PredictionType;
use crate::process::time::TimeRange;

/// Shorthand for a result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong, with the invalid value and what to do about it.
///
/// After an error, the object that returned it is unchanged: a trainer whose `step` fails still
/// holds the model and the optimiser state of the previous step. The exceptions are
/// [`Error::Observer`] and [`Error::TooManySkippedSteps`], which are returned after the step, and
/// an optimiser that makes parameters NaN ([`Error::NonFiniteParameter`]): its own state has
/// changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number lies outside its legal range.
    #[error("{name} is {value}; it must be {requirement}")]
    OutOfRange {
        /// Name of the setting.
        name: &'static str,
        /// The value that was given.
        value: f64,
        /// The legal range, in words.
        requirement: &'static str,
    },

    /// A timestep lies outside the scheduler's time range, or is not one of its discrete steps.
    #[error(
        "timestep {timestep} is not in the scheduler's time range {range}; draw timesteps from `Scheduler::time_range`"
    )]
    TimestepOutOfRange {
        /// The timestep that was given.
        timestep: f64,
        /// The range that the scheduler accepts.
        range: TimeRange,
    },

    /// The noise scale at a timestep is not a positive number, so nothing can be learnt there.
    #[error(
        "noise scale at timestep {timestep} is {noise_scale}; leave timesteps without noise out of the scheduler's time range"
    )]
    NoNoise {
        /// The timestep.
        timestep: f64,
        /// The scheduler's noise scale there.
        noise_scale: f64,
    },

    /// Two tensors (or lists) that belong together differ in shape.
    #[error("{what} has shape {got:?}, but {expected:?} is needed; {remedy}")]
    ShapeMismatch {
        /// Which tensor or list.
        what: &'static str,
        /// The shape that was needed.
        expected: Vec<usize>,
        /// The shape that was given.
        got: Vec<usize>,
        /// What to do.
        remedy: &'static str,
    },

    /// A batch, a data set or a list is empty.
    #[error("{what} is empty; {remedy}")]
    Empty {
        /// What is empty.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },

    /// Data contains NaN or an infinity.
    #[error("row {row} of the {side} data contains {value}; clean the data")]
    NonFiniteData {
        /// The side the row belongs to.
        side: Side,
        /// Index of the first such row.
        row: usize,
        /// The first such value.
        value: f32,
    },

    /// A point that a model is measured on contains NaN or an infinity.
    #[error("point {point} contains {value}; clean the data")]
    NonFinitePoint {
        /// Index of the first such point.
        point: usize,
        /// The first such value.
        value: f32,
    },

    /// A list of numbers contains NaN or an infinity.
    #[error("number {index} of {what} is {value}; leave it out, or find out where it comes from")]
    NonFiniteNumber {
        /// Which list.
        what: &'static str,
        /// Index of the first such number.
        index: usize,
        /// The first such number.
        value: f64,
    },

    /// A point that must be forgotten is also among the points to retain; contents are compared.
    #[error(
        "forgotten point {forget} is also retained point {retain}; remove it (and its duplicates) from the retain set"
    )]
    ForgottenPointRetained {
        /// Index in the forget set.
        forget: usize,
        /// Index in the retain set.
        retain: usize,
    },

    /// A clipper needs a gradient that the objective does not have.
    #[error("{clipper} needs the {missing} gradient, which {loss} does not have; use {remedy}")]
    IncompatibleClipper {
        /// The clipper.
        clipper: String,
        /// The objective.
        loss: String,
        /// The side without a gradient.
        missing: Side,
        /// A clipper that works with the objective.
        remedy: &'static str,
    },

    /// A setting cannot work, or two settings contradict each other.
    #[error("{what}; {remedy}")]
    InvalidSetting {
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },

    /// A model predicts something else than its scheduler's configuration, or what was computed for
    /// it, says.
    #[error(
        "the model predicts {model:?}, but {what} says {stated:?}; if the model's prediction type is wrong, correct it with `FnDenoiser::predicting`, `UNet2d::with_prediction_type` or your `Denoiser::prediction_type`"
    )]
    PredictionTypeDiffers {
        /// What the model says that it predicts.
        model: PredictionType,
        /// What disagrees.
        what: &'static str,
        /// What the model predicts according to that, or a teacher predicts itself.
        stated: PredictionType,
    },

    /// A text is not the name of a method, a clipper or another named thing.
    #[error("there is no {what} `{name}`; use {known}", known = choices(known))]
    UnknownName {
        /// The kind of thing that it should name.
        what: &'static str,
        /// The text that was given.
        name: String,
        /// Every known name; a capital letter stands for a number, as in `fixed:T`.
        known: Vec<&'static str>,
    },

    /// Something that is needed was not given.
    #[error("{owner} has no {missing}; {remedy}")]
    MissingPart {
        /// What needs it.
        owner: String,
        /// What is missing.
        missing: &'static str,
        /// What to do.
        remedy: &'static str,
    },

    /// A regular expression for parameter names cannot be parsed.
    #[error(
        "`{pattern}` is not a regular expression: {reason}; escape dots as `\\.` and brackets as `\\[`"
    )]
    InvalidPattern {
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },

    /// Two tensors that are used together, or the points and the model, are on different devices.
    #[error(
        "{what} are on {got}, but must be on {expected}; move everything to the model's device"
    )]
    DeviceMismatch {
        /// Which tensors.
        what: &'static str,
        /// The device that was needed.
        expected: String,
        /// The device that they are on.
        got: String,
    },

    /// An id names a forgotten point about which something that is needed is not known.
    #[error(
        "the forgotten point with id {id} has no {missing}; only ids below {known} have one; {remedy}"
    )]
    UnknownPoint {
        /// The id.
        id: u64,
        /// What is not known about the point.
        missing: &'static str,
        /// The number of points about which it is known.
        known: usize,
        /// What to do.
        remedy: &'static str,
    },

    /// An id belongs to one point in an earlier batch and to another in this one.
    #[error(
        "id {id} in row {row} was used for a different point before; give each forgotten point its own id with `UnlearningBatch::with_forget_ids`"
    )]
    PointChanged {
        /// The row of the batch.
        row: usize,
        /// Its id.
        id: u64,
    },

    /// No retained point may explain a point: its group has none, or only the point itself.
    #[error(
        "{what} point {point}{group} has no other retained point to explain it; give more retained points, or merge groups until each has some",
        group = group.map(|group| format!(" of group {group}")).unwrap_or_default()
    )]
    UnexplainedPoint {
        /// `forgotten` or `control`.
        what: &'static str,
        /// Its index.
        point: usize,
        /// The key of its group, if there are groups.
        group: Option<u64>,
    },

    /// The model has no parameter that receives gradients.
    #[error(
        "the model has no trainable parameter; call `Module::unfreeze` on it, or on the part to train"
    )]
    NoTrainableParameters,

    /// A parameter of the model holds NaN or an infinity: before the first step, or because the
    /// optimiser would have made it so.
    ///
    /// The trainer keeps the model of the previous step; in the second case the state of its
    /// optimiser has changed.
    #[error("parameter `{parameter}` {cause}; {remedy}")]
    NonFiniteParameter {
        /// The path of the parameter in the model.
        parameter: String,
        /// When it was found.
        cause: &'static str,
        /// What to do.
        remedy: &'static str,
    },

    /// Too many steps in a row had a loss or a gradient that is not finite.
    ///
    /// The last of them has been counted and observed; model and optimiser are unchanged by them.
    #[error(
        "{skipped} skipped: {evidence}; lower the learning rate or max_grad_norm, train in f32 or bf16 rather than f16, and check the model's output for NaN",
        skipped = match steps { 1 => "1 step was".into(), _ => format!("{steps} steps in a row were") }
    )]
    TooManySkippedSteps {
        /// The number of such steps.
        steps: u64,
        /// The number of the last step that is not finite.
        evidence: String,
    },

    /// The same parameter occurs in two places of the model.
    #[error(
        "`{again}` and `{first}` are the same parameter, and burn would train only one of them; store a shared layer once in the module and call it twice"
    )]
    SharedParameter {
        /// Its first place.
        first: String,
        /// Its second place.
        again: String,
    },

    /// While unlearning, the loss on points that are not forgotten fell.
    #[error(
        "while unlearning, the loss on points that are not forgotten fell from {before:.4} to {now:.4}: the model is still learning such points, so it was probably not trained on them in this form; check that they are prepared as for training: range of the values, size, crop, colours"
    )]
    Relearning {
        /// The loss before the first step.
        before: f64,
        /// The loss now.
        now: f64,
    },

    /// Two forward passes with the same input differ: the model has active dropout or other noise.
    #[error(
        "the model is not deterministic: {evidence}; the two gradients of an unlearning step must see the same network: set dropout to 0 or freeze those layers"
    )]
    StochasticModel {
        /// The evidence, in words.
        evidence: String,
    },

    /// A device computes gradients that differ from those of the reference device.
    #[error(
        "gradients on this device are off from those of the reference device (tolerance {tolerance:.1e} of their norm): {}; {}: the device, its driver or a feature of burn computes wrong values; train on another device (`flex` is the CPU), or build with different features of burn (`vulkan`, `autotune`, `fusion`)",
        errors_of(parameters),
        operations_off(operations)
    )]
    DeviceDisagrees {
        /// Every parameter beyond the tolerance with its difference, relative to the reference;
        /// the worst first.
        parameters: Vec<(String, f64)>,
        /// The operations that alone are beyond the tolerance in output or gradients, with their
        /// difference, the worst first. Only operations of the networks in `siss::models` are run
        /// alone.
        operations: Vec<(String, f64)>,
        /// The largest difference that is accepted.
        tolerance: f64,
    },

    /// The thread that computes on a device panicked: the device ran out of memory, or its driver
    /// failed.
    #[error(
        "the device {device} failed: {reason}; resume from the last checkpoint, without the device or with a smaller micro-batch"
    )]
    DeviceFailed {
        /// The device.
        device: String,
        /// What its thread said.
        reason: String,
    },

    /// A row's output depends on the other rows: the model has active batch normalisation, or the
    /// device computes wrong results.
    #[error(
        "the model mixes the rows of a batch: {evidence}; the two sides are run in separate groups of rows: replace batch normalisation by group normalisation, or freeze it; if the model has none, the device computes wrong results, as some GPUs do with a feature of burn: see `self_check`"
    )]
    BatchDependentModel {
        /// The evidence, in words.
        evidence: String,
    },

    /// A value read from the device could not be brought to the host.
    #[error("reading {what} back from the device failed: {message}")]
    DeviceRead {
        /// Which tensor.
        what: &'static str,
        /// The backend's message.
        message: String,
    },

    /// A device was asked for that is unknown or not compiled in.
    #[error("device `{spec}` is not available: {reason}")]
    UnknownDevice {
        /// What was asked for.
        spec: String,
        /// Why it is not available, and which devices are.
        reason: String,
    },

    /// A configuration file holds a value that this crate does not support.
    #[error("{file}: `{key}` is {value}, which is not supported; {remedy}")]
    UnsupportedConfig {
        /// The file, or what it describes.
        file: String,
        /// The key of the value.
        key: String,
        /// The value found.
        value: String,
        /// What is supported.
        remedy: String,
    },

    /// A file is not what its name or path says.
    #[error("{path}: {message}", path = path_text(path))]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        message: String,
    },

    /// Some pictures of a folder cannot be read, and all of them must be.
    #[error(
        "{path}: {count} could not be read; repair, convert or remove {them}, so that no picture is missed:{list}",
        path = path_text(path),
        count = match files.len() { 1 => "1 file".into(), count => format!("{count} files") },
        them = if files.len() == 1 { "it" } else { "them" },
        list = files.iter().map(|file| format!("\n  {file}")).collect::<String>()
    )]
    #[cfg(feature = "images")]
    UnreadFiles {
        /// The folder.
        path: PathBuf,
        /// Each file, and why it cannot be read.
        files: Vec<crate::images::unread::UnreadFile>,
    },

    /// Weights in a file do not fit the model: a tensor is missing, superfluous, misshapen, or
    /// makes the model unusable.
    #[error("{path}: {problem} tensor `{tensor}`{detail}", path = path_text(path))]
    WeightMismatch {
        /// The file.
        path: PathBuf,
        /// `missing`, `unexpected`, `duplicate`, `misshapen`, `unreadable` or `non-finite`.
        problem: &'static str,
        /// Name of the tensor, in the file's spelling.
        tensor: String,
        /// Shapes, or the reason.
        detail: String,
    },

    /// A tensor of a file is of a type that is not read, such as floats of eight bits.
    #[error(
        "{path}: tensor `{tensor}` is of type {dtype}, which is not read; convert the file to F16, in Python by `.half()` of each tensor",
        path = path_text(path)
    )]
    UnsupportedTensorType {
        /// The file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its type, as the file names it.
        dtype: String,
    },

    /// Reading or writing a file failed.
    #[error("{action} {path}: {source}", path = path_text(path))]
    Io {
        /// What was being done, as in "reading".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// Another process, or another part of this one, is writing to the folder.
    #[error(
        "{folder}: another process is writing to this folder; wait for it, stop it, or use another folder for this run",
        folder = path_text(folder)
    )]
    FolderInUse {
        /// The folder of the checkpoints or results.
        folder: PathBuf,
    },

    /// The folder holds checkpoints of a run that this one was not asked to continue.
    #[error(
        "{checkpoint} is a checkpoint of a run that this one does not continue; resume that run, or use another folder for this one",
        checkpoint = path_text(checkpoint)
    )]
    AnotherRun {
        /// The newest checkpoint there.
        checkpoint: PathBuf,
    },

    /// A trainer that has taken steps cannot resume another run.
    #[error(
        "the trainer has taken {taken}; resume with a trainer that was just built",
        taken = match steps { 1 => "1 step".into(), _ => format!("{steps} steps") }
    )]
    AlreadyStarted {
        /// How many steps it has taken.
        steps: u64,
    },

    /// A saved state does not fit the clipper, the objective or the steering that must resume from
    /// it.
    #[error(
        "the state of {what} has length {got}, but {expected} is needed; resume with the clipper, the objective and the levels of the run that was saved"
    )]
    StateMismatch {
        /// The part that the state was given to.
        what: String,
        /// The length that was needed.
        expected: usize,
        /// The length that was given.
        got: usize,
    },

    /// The state of the trainer cannot be saved in a form that can be restored exactly.
    #[error("the state cannot be saved: {reason}; {remedy}")]
    CannotSave {
        /// Why.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },

    /// A setting, a state or a condition cannot be written as JSON.
    #[error(
        "{what} cannot be written as JSON: {reason}; use numbers, strings, lists, and maps with string keys"
    )]
    NotJson {
        /// The value that cannot be written.
        what: String,
        /// Why.
        reason: String,
    },

    /// The folder has checkpoints, but none is complete and intact.
    #[error(
        "{folder}: no checkpoint is usable ({list}); restore one from a backup, or remove them to start again",
        folder = path_text(folder),
        list = list(passed_over)
    )]
    NoUsableCheckpoint {
        /// The folder of the checkpoints.
        folder: PathBuf,
        /// Each checkpoint and its defect, newest first.
        passed_over: Vec<PassedOver>,
    },

    /// A checkpoint belongs to a run with other settings or another model.
    #[error(
        "{path} belongs to another run: {list}; use the settings of that run, or start in another folder",
        path = path_text(path),
        list = list(differences)
    )]
    CheckpointDiffers {
        /// The checkpoint.
        path: PathBuf,
        /// Everything that differs.
        differences: Vec<SettingDifference>,
    },

    /// A data set could not provide its points: [`PointLoader`](crate::data::PointLoader) functions
    /// fail with this variant.
    #[error("the data could not be loaded: {0}")]
    Data(String),

    /// A picture or a plot could not be created.
    #[error("the picture could not be made: {0}")]
    Picture(String),

    /// A report of an audit lacks something, or holds something that cannot be.
    #[cfg(feature = "report")]
    #[error("{place}: {fault}")]
    InvalidReport {
        /// Which part of the report, as a path into its JSON.
        place: String,
        /// What is wrong, and what to do.
        fault: crate::report::audit::ReportFault,
    },

    /// A log of requests was changed or broke off.
    #[cfg(feature = "report")]
    #[error("{}, line {line}: {fault}", path_text(.path))]
    BrokenLog {
        /// The log.
        path: PathBuf,
        /// Number of the first such line, from 1.
        line: usize,
        /// What is wrong, and what to do.
        fault: crate::report::audit::LogFault,
    },

    /// A file that was listed is not what it was, or was not listed.
    #[cfg(feature = "report")]
    #[error("{} is not removed: {reason}; list what is left again", path_text(.path))]
    NotRemoved {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },

    /// An observer (log, plot, progress) failed.
    #[error("observer failed: {0}")]
    Observer(String),
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without a message").into()
}

impl Error {
    /// Wraps an I/O error with its path: `.map_err(Error::io("reading", path))`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

/// Lists names with their errors.
fn errors_of(errors: &[(String, f64)]) -> String {
    let texts = errors
        .iter()
        .map(|(name, error)| format!("`{name}` by {error:.1e}"));
    list(&texts.collect::<Vec<_>>())
}

fn operations_off(operations: &[(String, f64)]) -> String {
    match operations {
        [] => "no single operation was found to be off by itself".into(),
        operations => format!(
            "operations that are off by themselves: {}",
            errors_of(operations)
        ),
    }
}

/// Lists the first few of many things.
fn list<T: std::fmt::Display>(things: &[T]) -> String {
    const SHOWN: usize = 5;
    let shown = things.iter().take(SHOWN).map(ToString::to_string);
    let mut text = shown.collect::<Vec<_>>().join("; ");
    if things.len() > SHOWN {
        text += &format!("; and {} more", things.len() - SHOWN);
    }
    text
}

/// Joins names to `a, b or c`.
pub(crate) fn choices(names: &[&str]) -> String {
    match names {
        [] => "nothing".into(),
        [name] => (*name).into(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// Checks that a setting is finite and legal; the message repeats its value and the requirement.
pub(crate) fn check_range(
    name: &'static str,
    value: f64,
    legal: bool,
    requirement: &'static str,
) -> Result<f64> {
    if value.is_finite() && legal {
        Ok(value)
    } else {
        Err(Error::OutOfRange {
            name,
            value,
            requirement,
        })
    }
}

/// Checks a shape or a number of rows.
pub(crate) fn check_shape(
    what: &'static str,
    expected: &[usize],
    got: &[usize],
    remedy: &'static str,
) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        what,
        expected: expected.to_vec(),
        got: got.to_vec(),
        remedy,
    })
}

/// Checks that two tensors that are used together are on the same device.
pub(crate) fn check_device(
    what: &'static str,
    expected: &burn::tensor::Device,
    got: &burn::tensor::Device,
) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::DeviceMismatch {
        what,
        expected: format!("{expected:?}"),
        got: format!("{got:?}"),
    })
}

/// Checks that a model predicts what something else says that it does, if that says anything.
pub(crate) fn check_prediction_type(
    model: PredictionType,
    what: &'static str,
    stated: Option<PredictionType>,
) -> Result<()> {
    match stated {
        Some(stated) if stated != model => Err(Error::PredictionTypeDiffers {
            model,
            what,
            stated,
        }),
        _ => Ok(()),
    }
}

/// Checks that a probability-like setting lies in `[0, 1]`.
pub(crate) fn check_probability(name: &'static str, value: f64) -> Result<f64> {
    check_range(
        name,
        value,
        (0.0..=1.0).contains(&value),
        "a number from 0 to 1",
    )
}

/// Checks that a setting is a positive finite number.
pub(crate) fn check_positive(name: &'static str, value: f64) -> Result<f64> {
    check_range(name, value, value > 0.0, "a finite number above 0")
}

/// Checks the length of a state.
pub(crate) fn check_state(what: &str, state: &[f64], expected: usize) -> Result<()> {
    if state.len() == expected {
        return Ok(());
    }
    Err(Error::StateMismatch {
        what: what.into(),
        expected,
        got: state.len(),
    })
}

/// A checkpoint that is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.file_name().unwrap_or_default();
        write!(formatter, "{}: {}", path_text(name), self.reason)
    }
}

/// A setting that differs from its value when the checkpoint was written.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingDifference {
    /// Its name: a field of [`TrainerConfig`](crate::TrainerConfig), a part of the trainer, a
    /// parameter of the model, or a setting that the program added.
    pub setting: String,
    /// The value in the checkpoint, as text: strings as they are, anything else as JSON.
    ///
    /// `None` if the checkpoint has no value.
    pub saved: Option<String>,
    /// The value now, in the same form.
    pub now: Option<String>,
}

impl fmt::Display for SettingDifference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [saved, now] =
            [&self.saved, &self.now].map(|value| value.as_deref().unwrap_or("absent"));
        write!(formatter, "{} was {saved} and is {now}", self.setting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_as_a_sentence() {
        assert_eq!(choices(&["a"]), "a");
        assert_eq!(choices(&["a", "b"]), "a or b");
        assert_eq!(choices(&["a", "b", "c"]), "a, b or c");
    }
}
