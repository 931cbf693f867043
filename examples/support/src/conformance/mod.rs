//! Runs conformance cases: inputs with the results that PyTorch and diffusers compute from them.

mod features;
mod metrics;
mod networks;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use siss::burn::module::{Module, ModuleMapper, Param};
use siss::burn::optim::{AdamWConfig, GradientsParams};
use siss::burn::tensor::{Device, Tensor, TensorData};
use siss::clipper::{ConstantScale, FractionOfRetain, RescaleToNorm};
use siss::draws::{Draws, Stream};
use siss::kernel::weighted_squared_error;
use siss::models::{ClassCondition, UNet2d};
use siss::objective::{
    EraseDiff, LossInputs, LossTerm, LossTerms, NaiveDeletion, NegGrad, ReTrack, Siss, SissNoIs,
};
use siss::process::SchedulerConfig;
use siss::sampling::{DdimConfig, DdimSampler, DdpmConfig, DdpmSampler, Sampler};
use siss::{DdpmScheduler, GradientClipper, SissLoss, SissTrainer, UnlearningBatch};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The outcome of a case.
pub enum Outcome {
    /// The tensors were compared; holds the worst tensor, relative to its tolerance.
    Compared(Comparison),
    /// The case could not be run.
    Broken(String),
    /// The case asks for something that is not implemented.
    Skipped(String),
}

/// A tensor's distance from its expected value.
pub struct Comparison {
    pub tensor: String,
    pub error: f64,
    pub tolerance: f64,
}

impl Comparison {
    fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl Outcome {
    /// Whether all tensors agree.
    pub fn passed(&self) -> bool {
        matches!(self, Outcome::Compared(worst) if worst.passes())
    }

    /// Whether the case was left out.
    pub fn skipped(&self) -> bool {
        matches!(self, Outcome::Skipped(_))
    }

    /// `PASS|FAIL|SKIP name worst_tensor error tolerance`.
    pub fn line(&self, name: &str) -> String {
        match self {
            Outcome::Compared(worst) => {
                let word = if worst.passes() { "PASS" } else { "FAIL" };
                let Comparison {
                    tensor,
                    error,
                    tolerance,
                } = worst;
                format!("{word} {name} {tensor} {error:.2e} {tolerance:.0e}")
            }
            Outcome::Broken(message) => format!("FAIL {name} - - - {message}"),
            Outcome::Skipped(what) => format!("SKIP {name} {what} - -"),
        }
    }
}

/// The case files among `paths`: files themselves, and the `.safetensors` files directly in
/// folders.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut cases = Vec::new();
    for path in paths {
        if !path.is_dir() {
            cases.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|error| reading(path, &error))? {
            let file = entry.map_err(|error| reading(path, &error))?.path();
            if file
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                inside.push(file);
            }
        }
        inside.sort();
        cases.append(&mut inside);
    }
    Ok(cases)
}

fn reading(path: &Path, error: &std::io::Error) -> String {
    format!("reading {}: {error}", siss::files::path_text(path))
}

/// Runs one case on a device.
pub fn run(path: &Path, device: &Device) -> Outcome {
    match Case::read(path, device).and_then(|case| case.run()) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Broken(error.to_string()),
    }
}

/// A case file in memory.
struct Case {
    path: PathBuf,
    device: Device,
    settings: HashMap<String, String>,
    tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

/// The computed values, by the name of the expected tensor.
type Computed = Vec<(String, Vec<f64>)>;

impl Case {
    fn read(path: &Path, device: &Device) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| reading(path, &error))?;
        let (_, header) = SafeTensors::read_metadata(&bytes)?;
        let settings = header.metadata().clone().unwrap_or_default();
        let mut tensors = HashMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            let values = numbers(view.dtype(), view.data())
                .ok_or_else(|| format!("`{name}` has dtype {:?}", view.dtype()))?;
            tensors.insert(name, (view.shape().to_vec(), values));
        }
        Ok(Self {
            path: path.to_path_buf(),
            device: device.clone(),
            settings,
            tensors,
        })
    }

    fn run(&self) -> Result<Outcome> {
        let kind = self.text("kind")?;
        let computed = match kind {
            "schedule" => self.schedule()?,
            "loss" | "step" => match (kind, self.objective()?) {
                (_, None) => {
                    return Ok(Outcome::Skipped(format!("method={}", self.text("method")?)));
                }
                ("loss", Some(objective)) => self.loss(objective)?,
                (_, Some(objective)) => self.step(objective)?,
            },
            "sampler" => match self.text("sampler")? {
                "DDIMScheduler" => self.ddim()?,
                "DDPMScheduler" => self.ddpm()?,
                other => return Ok(Outcome::Skipped(format!("sampler={other}"))),
            },
            "unet2d" => self.unet()?,
            other => match self.of_another_file(other)? {
                Some(computed) => computed,
                None => return Ok(Outcome::Skipped(format!("kind={other}"))),
            },
        };
        self.compare(&computed)
    }

    /// The computed values of a kind whose file is not this one; `None` for an unknown kind.
    fn of_another_file(&self, kind: &str) -> Result<Option<Computed>> {
        if let Some(computed) = self.networks(kind)? {
            return Ok(Some(computed));
        }
        match features::KINDS.contains(&kind) {
            true => self.feature(kind).map(Some),
            false => self.metric(kind),
        }
    }

    /// Finds the worst tensor by the ratio of error to tolerance; every expected tensor must have
    /// been computed.
    fn compare(&self, computed: &Computed) -> Result<Outcome> {
        for expected in self
            .tensors
            .keys()
            .filter(|name| name.starts_with("expect_"))
        {
            if computed.iter().all(|(name, _)| name != expected) {
                return Err(format!("`{expected}` was not computed").into());
            }
        }
        let mut worst: Option<Comparison> = None;
        for (name, got) in computed {
            let Some((_, expected)) = self.tensors.get(name) else {
                continue;
            };
            if got.len() != expected.len() {
                return Err(format!(
                    "`{name}` has {} elements, expected {}",
                    got.len(),
                    expected.len()
                )
                .into());
            }
            let comparison = self.comparison(name, got, expected);
            let badness = |c: &Comparison| match c.passes() {
                true if c.tolerance > 0.0 => c.error / c.tolerance,
                true => 0.0,
                false if c.error.is_nan() => f64::INFINITY,
                false => c.error / c.tolerance,
            };
            if worst
                .as_ref()
                .is_none_or(|worst| badness(&comparison) > badness(worst))
            {
                worst = Some(comparison);
            }
        }
        worst
            .map(Outcome::Compared)
            .ok_or_else(|| "the case expects nothing".into())
    }

    fn comparison(&self, name: &str, got: &[f64], expected: &[f64]) -> Comparison {
        let (error, tolerance) = match self.settings["kind"].as_str() {
            "schedule" => self.schedule_error(got, expected),
            "step" if name.starts_with("expect_delta") => (relative_norm(got, expected), 2e-2),
            "step" if name.starts_with("expect_combined_grad") => {
                (relative_norm(got, expected), 2e-3)
            }
            "step" if name.starts_with("expect_norm") || name == "expect_scale" => {
                (relative_norm(got, expected), 1e-3)
            }
            kind if metrics::KINDS.contains(&kind) => metrics::error(kind, name, got, expected),
            "formula_weights" => (relative_norm(got, expected), 1e-7),
            _ if name == "expect_timesteps" => (relative_norm(got, expected), 0.0),
            kind => {
                let tolerance = Self::network_tolerance(kind).unwrap_or(1e-4);
                (relative_norm(got, expected), tolerance)
            }
        };
        Comparison {
            tensor: name.into(),
            error,
            tolerance,
        }
    }

    /// Worst relative error of any step, in multiples of the precision that float32 leaves. PyTorch
    /// multiplies the cosine schedule up in float32, and is off by up to 1e-4 where the last
    /// factors are differences of nearly equal numbers.
    fn schedule_error(&self, got: &[f64], expected: &[f64]) -> (f64, f64) {
        let cosine = self
            .settings
            .get("beta_schedule")
            .is_some_and(|name| name == "squaredcos_cap_v2");
        let tail = got.len() - if cosine { got.len() / 50 } else { 0 };
        let relative =
            |(got, expected): (&f64, &f64)| ((*got as f32 as f64 - expected) / expected).abs();
        let worst = |range: std::ops::Range<usize>| {
            got[range.clone()]
                .iter()
                .zip(&expected[range])
                .map(relative)
                .fold(0.0, |worst: f64, error| {
                    if error > worst || error.is_nan() {
                        error
                    } else {
                        worst
                    }
                })
        };
        let (body, last) = (worst(0..tail), worst(tail..got.len()));
        if last / 1e-4 > body / 2e-6 {
            (last, 1e-4)
        } else {
            (body, 2e-6)
        }
    }

    fn schedule(&self) -> Result<Computed> {
        let scheduler = DdpmScheduler::from_config(&self.scheduler_config()?)?;
        Ok(vec![
            ("expect_betas".into(), scheduler.betas().to_vec()),
            (
                "expect_alphas_cumprod".into(),
                scheduler.alpha_bars().to_vec(),
            ),
        ])
    }

    fn ddim(&self) -> Result<Computed> {
        let config = self.scheduler_config()?;
        let scheduler = DdpmScheduler::from_config(&config)?;
        let mut config = DdimConfig::from_scheduler(&config, self.number("num_inference_steps")?);
        config.eta = self.number("eta")?;
        let sampler = DdimSampler::new(&scheduler, config)?;
        // diffusers takes each step so far down, even if the visited timesteps are not evenly
        // spaced.
        let stride = scheduler.num_timesteps() / sampler.config().visits.num_inference_steps;
        self.sampler(&sampler, |timestep| timestep.checked_sub(stride))
    }

    fn ddpm(&self) -> Result<Computed> {
        let config = self.scheduler_config()?;
        let scheduler = DdpmScheduler::from_config(&config)?;
        let config = DdpmConfig::from_scheduler(&config, self.number("num_inference_steps")?);
        let sampler = DdpmSampler::new(&scheduler, config)?;
        self.sampler(&sampler, |timestep| {
            let mut visited = sampler.timesteps().iter().copied();
            visited.find(|&visited| visited < timestep)
        })
    }

    /// The visited timesteps, and single steps: noisy point, model output, timestep and noise give
    /// the previous point.
    fn sampler(
        &self,
        sampler: &impl Sampler,
        previous: impl Fn(usize) -> Option<usize>,
    ) -> Result<Computed> {
        let kind = self.scheduler_config()?.prediction_type;
        let timesteps = sampler.timesteps().iter().map(|&t| t as f64).collect();
        let mut computed = vec![("expect_timesteps".into(), timesteps)];
        for k in (0..).take_while(|k| self.tensors.contains_key(&format!("t_{k}"))) {
            let timestep = *self
                .values(&format!("t_{k}"))?
                .first()
                .ok_or("an empty timestep")? as usize;
            let stepped = sampler.step_to(
                self.image(&format!("x_t_{k}"))?,
                self.image(&format!("model_output_{k}"))?,
                kind,
                timestep,
                previous(timestep),
                Some(self.image(&format!("noise_{k}"))?),
            )?;
            computed.push((format!("expect_prev_{k}"), host(stepped)?));
        }
        Ok(computed)
    }

    fn unet(&self) -> Result<Computed> {
        let model = self.checkpoint()?;
        let timesteps = self.values("t")?;
        let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let timesteps = Tensor::from_data(timesteps.as_slice(), &self.device);
        let classes = self.labels().ok().map(ClassCondition::Labels);
        let output = model.forward(self.image("x")?, timesteps, classes.as_ref());
        Ok(vec![("expect_output".into(), host(output)?)])
    }

    /// The objective's terms at the recorded model outputs, without thinning.
    fn loss(&self, mut loss: Box<dyn SissLoss<4>>) -> Result<Computed> {
        let forget = self.image("a")?;
        // A case of only the forget term has no retained points.
        let retain = self.image("x").unwrap_or_else(|_| forget.clone());
        let draws = self.draws()?;
        let config = self.scheduler_config()?;
        let scheduler = DdpmScheduler::from_config(&config)?;
        let ids: Vec<u64> = (0..draws.batch_size() as u64).collect();
        let batch = UnlearningBatch::new(retain, forget)?.with_forget_ids(ids)?;
        let inputs = LossInputs::new(&batch, &draws, &scheduler, config.prediction_type)?;
        let terms = loss.terms(&inputs)?;
        let mut computed = Vec::new();
        if let Some(term) = &terms.retain {
            computed.push(("expect_m_t".into(), host(term.noisy.clone())?));
            computed.extend(self.side("retain", term)?);
        }
        if let Some(term) = &terms.forget {
            computed.extend(self.side("forget", term)?);
        }
        if self.tensors.contains_key("expect_neighbour_weight") {
            let weights = self.neighbours()?.explain(&inputs)?.weights;
            computed.push(("expect_neighbour_weight".into(), weights.concat()));
        }
        Ok(computed)
    }

    /// A side's weights, loss and gradient; recorded without the negative sign of forgetting.
    fn side(&self, side: &str, term: &LossTerm<4>) -> Result<Computed> {
        let shared = self.image("model_output");
        let output = shared.or_else(|_| self.image(&format!("model_output_{side}")))?;
        let weights: Vec<f64> = term.weights.iter().map(|weight| weight.abs()).collect();
        let on_device: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
        let on_device = Tensor::from_data(on_device.as_slice(), &self.device);
        let batch_size = weights.len();
        let error = weighted_squared_error(output, term.target.clone(), on_device, batch_size)?;
        let losses = host(error.losses)?;
        let loss = weights
            .iter()
            .zip(losses)
            .map(|(weight, loss)| weight * loss)
            .sum::<f64>()
            / batch_size as f64;
        Ok(vec![
            (format!("expect_weight_{side}"), weights),
            (format!("expect_{side}_loss"), vec![loss]),
            (format!("expect_grad_{side}"), host(error.seed)?),
        ])
    }

    /// Runs a whole optimiser step of the public trainer.
    fn step(&self, objective: Box<dyn SissLoss<4>>) -> Result<Computed> {
        let mut trainer = self.trainer(objective)?;
        let batch = UnlearningBatch::new(self.image("x")?, self.image("a")?)?;
        let draws = self.draws()?;
        let gradients = trainer.gradients(&batch, &draws)?;
        let report = gradients.report.clone();
        let before = trainer.model().clone().valid();
        let combined = gradients.combine(trainer.model(), 1.0);
        let combined = parameters(&before.clone().map(&mut ReplaceByGradient(combined)))?;
        trainer.step_with(&batch, &draws)?;
        let (before, after) = (parameters(&before)?, parameters(&trainer.into_model())?);

        let mut computed: Computed = vec![
            ("expect_norm_retain".into(), vec![report.norms.retain]),
            ("expect_norm_forget".into(), vec![report.norms.forget]),
            ("expect_norm_combined".into(), vec![report.combined_norm]),
            ("expect_scale".into(), vec![report.coefficients.forget]),
        ];
        for name in self.tensors.keys() {
            if let Some(parameter) = name.strip_prefix("expect_combined_grad.") {
                computed.push((name.clone(), parameter_named(&combined, parameter)?.clone()));
            } else if let Some(parameter) = name.strip_prefix("expect_delta.") {
                let change = parameter_named(&after, parameter)?
                    .iter()
                    .zip(parameter_named(&before, parameter)?)
                    .map(|(after, before)| after - before);
                computed.push((name.clone(), change.collect()));
            }
        }
        computed.extend(self.step_weights(&batch, &draws)?);
        Ok(computed)
    }

    fn step_weights(&self, batch: &UnlearningBatch<4>, draws: &Draws<4>) -> Result<Computed> {
        let config = self.scheduler_config()?;
        let scheduler = DdpmScheduler::from_config(&config)?;
        let inputs = LossInputs::new(batch, draws, &scheduler, config.prediction_type)?;
        let Some(mut objective) = self.objective()? else {
            return Ok(Vec::new());
        };
        Ok(side_weights(objective.terms(&inputs)?))
    }

    /// The case's objective; `None` if there is none of that name.
    fn objective(&self) -> Result<Option<Box<dyn SissLoss<4>>>> {
        Ok(match self.text("method")? {
            "siss" => Some(Box::new(Siss)),
            "siss_no_is" => Some(Box::new(SissNoIs)),
            "naive_deletion" => Some(Box::new(NaiveDeletion)),
            "neggrad" => Some(Box::new(NegGrad)),
            "erasediff" => Some(Box::new(EraseDiff)),
            "retrack" => Some(Box::new(self.neighbours()?)),
            _ => None,
        })
    }

    /// ReTrack with the neighbours given in the case.
    fn neighbours(&self) -> Result<ReTrack<4>> {
        let neighbours = self.tensor::<5>("neighbours")?;
        let of_point = |row| neighbours.clone().narrow(0, row, 1).squeeze_dim(0);
        let neighbours = (0..neighbours.dims()[0]).map(of_point).collect();
        Ok(ReTrack::from_neighbours(self.image("a")?, neighbours)?)
    }

    fn trainer(&self, objective: Box<dyn SissLoss<4>>) -> Result<SissTrainer<UNet2d, 4>> {
        let config = self.scheduler_config()?;
        let optimizer = AdamWConfig::new()
            .with_beta_1(self.number("beta1")?)
            .with_beta_2(self.number("beta2")?)
            .with_epsilon(self.number("eps")?)
            .with_weight_decay(self.number("weight_decay")?)
            .init();
        let clipper: Box<dyn GradientClipper> = match self.text("clipper")? {
            "fixed_norm" => Box::new(RescaleToNorm::new(self.number("norm")?)?),
            "ratio" => Box::new(FractionOfRetain::new(self.number("ratio")?)?),
            "none" => Box::new(ConstantScale::new(self.number("superfactor")?)?),
            other => return Err(format!("clipper `{other}` is unknown").into()),
        };
        let model = self.checkpoint()?;
        let model = model.with_prediction_type(config.prediction_type);
        let trainer = SissTrainer::builder(model, DdpmScheduler::from_config(&config)?)
            .loss(objective)
            .clipper(clipper)
            .optimizer(optimizer)
            .learning_rate(self.number::<f64>("lr")?)
            .max_grad_norm(Some(self.number("max_grad_norm")?))
            .thin_below(0.0)
            .build()?;
        Ok(trainer)
    }

    fn draws(&self) -> Result<Draws<4>> {
        let timesteps = self.values("t")?.clone();
        let from_forget = match self.tensors.get("from_forget") {
            Some((_, values)) => values.iter().map(|&value| value != 0.0).collect(),
            None => vec![false; timesteps.len()],
        };
        let forget_prob = if self.settings.contains_key("lambda") {
            self.number("lambda")?
        } else {
            0.5
        };
        let noise = self.image("noise")?;
        let draws = Draws::new(timesteps.clone(), noise.clone(), from_forget, forget_prob)?
            .with_timesteps(Stream::ForgetTimesteps, timesteps)?
            .with_numbers(Stream::ForgetNoise, noise)?;
        Ok(match self.image("uniform") {
            Ok(uniform) => draws.with_numbers(Stream::Uniform, uniform)?,
            Err(_) => draws,
        })
    }

    fn checkpoint(&self) -> Result<UNet2d> {
        Ok(UNet2d::load(self.checkpoint_folder()?, &self.device)?)
    }

    /// The scheduler configuration in the case's settings: those with the names of diffusers' keys.
    fn scheduler_config(&self) -> Result<SchedulerConfig> {
        let settings = self.settings.iter();
        let mut json: serde_json::Map<String, serde_json::Value> = settings
            .filter(|(key, _)| SCHEDULER_KEYS.contains(&key.as_str()))
            .map(|(key, value)| (key.clone(), json_value(value)))
            .collect();
        let class = self.text("sampler").unwrap_or("DDPMScheduler");
        json.insert("_class_name".into(), class.into());
        let text = serde_json::Value::Object(json).to_string();
        Ok(SchedulerConfig::from_json(
            &text,
            &siss::files::path_text(&self.path),
        )?)
    }

    fn text(&self, key: &str) -> Result<&str> {
        let value = self
            .settings
            .get(key)
            .ok_or_else(|| format!("the metadata has no `{key}`"))?;
        Ok(value)
    }

    fn number<T: std::str::FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<T> {
        let text = self.text(key)?;
        text.parse()
            .map_err(|error| format!("`{key}` is `{text}`: {error}").into())
    }

    fn values(&self, name: &str) -> Result<&Vec<f64>> {
        let (_, values) = self
            .tensors
            .get(name)
            .ok_or_else(|| format!("there is no tensor `{name}`"))?;
        Ok(values)
    }

    fn image(&self, name: &str) -> Result<Tensor<4>> {
        self.tensor(name)
    }

    fn tensor<const D: usize>(&self, name: &str) -> Result<Tensor<D>> {
        let (shape, values) = self
            .tensors
            .get(name)
            .ok_or_else(|| format!("there is no tensor `{name}`"))?;
        if shape.len() != D {
            return Err(format!("`{name}` has shape {shape:?}, expected rank {D}").into());
        }
        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        Ok(Tensor::from_data(
            TensorData::new(values, shape.clone()),
            &self.device,
        ))
    }
}

/// `‖got − expected‖ / ‖expected‖`.
fn relative_norm(got: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| value * value).sum::<f64>().sqrt()
    };
    let difference = norm(
        &mut got
            .iter()
            .zip(expected)
            .map(|(got, expected)| got - expected),
    );
    let size = norm(&mut expected.iter().copied());
    if size > 0.0 {
        difference / size
    } else {
        difference
    }
}

/// Settings of a case that are keys of a scheduler configuration.
const SCHEDULER_KEYS: [&str; 12] = [
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "steps_offset",
    "timestep_spacing",
    "variance_type",
];

/// Converts Python's spelling of a value to JSON.
fn json_value(text: &str) -> serde_json::Value {
    match text {
        "True" => true.into(),
        "False" => false.into(),
        "None" => serde_json::Value::Null,
        _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
    }
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f64>> {
    fn all<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|&chunk| read(chunk))
            .collect()
    }
    match dtype {
        Dtype::F32 => Some(all(bytes, |chunk| f32::from_le_bytes(chunk).into())),
        Dtype::F64 => Some(all(bytes, f64::from_le_bytes)),
        Dtype::I64 => Some(all(bytes, |chunk| i64::from_le_bytes(chunk) as f64)),
        Dtype::U8 | Dtype::BOOL => Some(all(bytes, |[byte]| byte.into())),
        _ => None,
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>> {
    let values = tensor
        .into_data()
        .try_to_vec::<f32>()
        .map_err(|error| format!("{error:?}"))?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// Replaces parameters by their gradients, so that these can be written with the names and layout
/// of diffusers.
struct ReplaceByGradient(GradientsParams);

impl ModuleMapper for ReplaceByGradient {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let gradient = self.0.remove::<D>(param.id);
        param.map(|value| gradient.unwrap_or_else(|| value.zeros_like()))
    }
}

fn parameter_named<'a>(
    parameters: &'a HashMap<String, Vec<f64>>,
    name: &str,
) -> Result<&'a Vec<f64>> {
    let found = parameters.get(name);
    found.ok_or_else(|| format!("the network has no parameter `{name}`").into())
}

/// A network's parameters with the names and layout of diffusers.
fn parameters(model: &UNet2d) -> Result<HashMap<String, Vec<f64>>> {
    saved_parameters(|folder| model.save(folder))
}

/// The parameters that a network writes into a folder.
fn saved_parameters(
    save: impl FnOnce(&Path) -> siss::Result<()>,
) -> Result<HashMap<String, Vec<f64>>> {
    let folder = tempfile::tempdir()?;
    save(folder.path())?;
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&path).map_err(|error| reading(&path, &error))?;
    let mut parameters = HashMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
        let values = numbers(view.dtype(), view.data()).ok_or("a parameter is not f32")?;
        parameters.insert(name, values);
    }
    Ok(parameters)
}

/// The weights of the rows on both sides, without the negative sign of forgetting.
fn side_weights(terms: LossTerms<4>) -> Computed {
    let sizes = |term: Option<LossTerm<4>>| -> Vec<f64> {
        term.map(|term| term.weights.iter().map(|weight| weight.abs()).collect())
            .unwrap_or_default()
    };
    vec![
        ("expect_weight_retain".into(), sizes(terms.retain)),
        ("expect_weight_forget".into(), sizes(terms.forget)),
    ]
}
