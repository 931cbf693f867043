//! Cases of conditional networks, their folders, LoRA files, and sampling with guidance.

use std::path::PathBuf;

use siss::burn::module::Module;
use siss::burn::tensor::{Int, Tensor, TensorData};
use siss::models::{
    AutoencoderKl, ClipTextEncoder, Dit, Lora, LoraPart, Sd3Transformer, TextCondition,
    UNet2dCondition,
};
use siss::objective::{LossInputs, Siss};
use siss::sampling::{DdimConfig, DdimSampler, EulerFlowConfig, EulerFlowSampler, Guided, Sampler};
use siss::{DdpmScheduler, Denoiser, SissLoss, SissTrainer, UnlearningBatch};

use super::{
    Case, Computed, ReplaceByGradient, Result, host, parameter_named, saved_parameters,
    side_weights,
};

impl Case {
    /// The values of a case of these kinds; `None` for a kind of another file.
    pub(super) fn networks(&self, kind: &str) -> Result<Option<Computed>> {
        Ok(Some(match kind {
            "unet2d_condition" => self.unet_condition()?,
            "vae" => self.autoencoder()?,
            "clip_text" => self.text_encoder()?,
            "dit" => self.dit()?,
            "sd3_transformer" => self.sd3_transformer()?,
            "guided_sampling" => self.guided_sampling()?,
            "conditional_step" => self.conditional_step()?,
            _ => return Ok(None),
        }))
    }

    /// The tolerance of these kinds, where it is not the usual one.
    pub(super) fn network_tolerance(kind: &str) -> Option<f64> {
        matches!(kind, "guided_sampling" | "conditional_step").then_some(1e-3)
    }

    fn beside(&self, path: &str) -> PathBuf {
        let folder = self.path.parent().map(PathBuf::from).unwrap_or_default();
        folder.join(path)
    }

    /// The checkpoint's folder.
    pub(super) fn checkpoint_folder(&self) -> Result<PathBuf> {
        Ok(self.beside(self.text("checkpoint")?))
    }

    /// The network of the case, with the LoRA merged that the case names.
    fn condition_network(&self) -> Result<UNet2dCondition> {
        let unet = UNet2dCondition::load(self.checkpoint_folder()?, &self.device)?;
        match self.text("lora") {
            Ok(path) => Ok(Lora::load(self.beside(path))?.merge(unet, LoraPart::Unet)?),
            Err(_) => Ok(unet),
        }
    }

    fn timesteps(&self) -> Result<Tensor<1>> {
        self.tensor("t")
    }

    pub(super) fn labels(&self) -> Result<Tensor<1, Int>> {
        self.integers("class_labels")
    }

    fn integers<const D: usize>(&self, name: &str) -> Result<Tensor<D, Int>> {
        let (shape, values) = self
            .tensors
            .get(name)
            .ok_or_else(|| format!("there is no tensor `{name}`"))?;
        let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
        let data = TensorData::new(values, shape.clone());
        Ok(Tensor::from_data(data, &self.device))
    }

    /// The prompts, with the other parts that the case has.
    fn prompts(&self, hidden_states: &str, pooled: &str) -> Result<TextCondition> {
        let mut prompts = TextCondition::new(self.tensor(hidden_states)?);
        prompts.pooled = self.tensor(pooled).ok();
        prompts.time_ids = self.tensor("time_ids").ok();
        Ok(prompts)
    }

    fn unet_condition(&self) -> Result<Computed> {
        let unet = self.condition_network()?;
        let prompts = self.prompts("encoder_hidden_states", "text_embeds")?;
        unet.check_condition(&prompts)?;
        let output = unet.predict(self.image("x")?, self.timesteps()?, &prompts);
        Ok(vec![("expect_output".into(), host(output)?)])
    }

    fn autoencoder(&self) -> Result<Computed> {
        let autoencoder = AutoencoderKl::load(self.checkpoint_folder()?, &self.device)?;
        let image = self.image("image")?;
        let latents = autoencoder.encode(image.clone())?;
        let mut computed = vec![
            ("expect_mean".into(), host(latents.mean)?),
            ("expect_logvar".into(), host(latents.log_variance)?),
            ("expect_latent".into(), host(autoencoder.latent(image)?)?),
        ];
        let decoded = autoencoder.decode(self.image("z")?)?;
        computed.push(("expect_decoded".into(), host(decoded)?));
        Ok(computed)
    }

    fn text_encoder(&self) -> Result<Computed> {
        let encoder = ClipTextEncoder::load(self.checkpoint_folder()?, &self.device)?;
        let text = encoder.encode(self.integers("input_ids")?)?;
        let mut computed = vec![
            (
                "expect_last_hidden_state".into(),
                host(text.last_hidden_state)?,
            ),
            (
                "expect_penultimate_hidden_state".into(),
                host(text.penultimate_hidden_state)?,
            ),
        ];
        if let Some(projected) = text.projected {
            computed.push(("expect_text_embeds".into(), host(projected)?));
        }
        Ok(computed)
    }

    fn dit(&self) -> Result<Computed> {
        let dit = Dit::load(self.checkpoint_folder()?, &self.device)?;
        let output = dit.forward(self.image("x")?, self.timesteps()?, &self.labels()?);
        Ok(vec![("expect_output".into(), host(output)?)])
    }

    fn sd3_transformer(&self) -> Result<Computed> {
        let transformer = Sd3Transformer::load(self.checkpoint_folder()?, &self.device)?;
        let prompts = self.prompts("encoder_hidden_states", "pooled_projections")?;
        let output = transformer.forward(self.image("x")?, self.timesteps()?, &prompts);
        Ok(vec![("expect_output".into(), host(output)?)])
    }

    fn guided_sampling(&self) -> Result<Computed> {
        let scale = self.number("guidance_scale")?;
        let start = self.image("latents")?;
        let latents = match self.text("sampler")? {
            "DDIMScheduler" => {
                let mut config = self.scheduler_config()?;
                // A latent model is never clipped, and says so in its scheduler's file.
                config.clip_sample = false;
                let scheduler = DdpmScheduler::from_config(&config)?;
                let config =
                    DdimConfig::from_scheduler(&config, self.number("num_inference_steps")?);
                let sampler = DdimSampler::new(&scheduler, config)?;
                let unet = Guided::new(self.condition_network()?, scale)?;
                self.ddim_loop(&sampler, &unet, start)?
            }
            "FlowMatchEulerDiscreteScheduler" => {
                let sampler = EulerFlowSampler::new(EulerFlowConfig {
                    num_inference_steps: self.number("num_inference_steps")?,
                    shift: self.number("shift")?,
                    ..EulerFlowConfig::default()
                })?;
                let expected = self.values("sigmas")?;
                let is_near = |(one, other): (&f64, &f64)| (one - other).abs() < 1e-6;
                if !sampler.sigmas().iter().zip(expected).all(is_near) {
                    return Err(
                        format!("sigmas are {:?}, not {expected:?}", sampler.sigmas()).into(),
                    );
                }
                let transformer = Sd3Transformer::load(self.checkpoint_folder()?, &self.device)?;
                let condition = (
                    self.prompts("encoder_hidden_states", "pooled_projections")?,
                    self.prompts("unconditional_hidden_states", "unconditional_pooled")?,
                );
                let guided = Guided::new(transformer, scale)?;
                sampler.denoise(&guided, &condition, start, 0)?
            }
            other => return Err(format!("sampler `{other}` is unknown").into()),
        };
        Ok(vec![("expect_latents".into(), host(latents)?)])
    }

    /// DDIM from given latents, over the timesteps of the case.
    fn ddim_loop(
        &self,
        sampler: &DdimSampler,
        unet: &Guided<UNet2dCondition>,
        start: Tensor<4>,
    ) -> Result<Tensor<4>> {
        let condition = (
            self.prompts("encoder_hidden_states", "-")?,
            self.prompts("unconditional_hidden_states", "-")?,
        );
        let expected: Vec<usize> = self
            .values("timesteps")?
            .iter()
            .map(|&t| t as usize)
            .collect();
        if sampler.timesteps() != expected {
            return Err(
                format!("timesteps are {:?}, not {expected:?}", sampler.timesteps()).into(),
            );
        }
        let mut latents = start;
        for (index, &timestep) in expected.iter().enumerate() {
            let times = Tensor::from_data([timestep as f32], &self.device);
            let output = unet.predict(latents.clone(), times, &condition);
            let previous = expected.get(index + 1).copied();
            let kind = unet.prediction_type();
            latents = sampler.step_to(latents, output, kind, timestep, previous, None)?;
        }
        Ok(latents)
    }

    /// The two gradients of a step of SISS with a condition on each side.
    fn conditional_step(&self) -> Result<Computed> {
        let config = self.scheduler_config()?;
        let scheduler = DdpmScheduler::from_config(&config)?;
        let mut trainer = SissTrainer::builder(self.condition_network()?, scheduler.clone())
            .loss(Siss)
            .thin_below(0.0)
            .build()?;
        let batch = UnlearningBatch::with_conditions(
            self.image("x")?,
            self.image("a")?,
            self.prompts("condition_retain", "-")?,
            self.prompts("condition_forget", "-")?,
        )?;
        let draws = self.draws()?;
        let gradients = trainer.gradients(&batch, &draws)?;
        let report = gradients.report.clone();
        let mut computed: Computed = vec![
            ("expect_norm_retain".into(), vec![report.norms.retain]),
            ("expect_norm_forget".into(), vec![report.norms.forget]),
        ];
        let terms = [("retain", &report.retain), ("forget", &report.forget)];
        for (side, term) in terms {
            let loss = term.as_ref().map_or(f64::NAN, |term| term.loss.abs());
            computed.push((format!("expect_{side}_loss"), vec![loss]));
        }
        let inputs = LossInputs::new(&batch, &draws, &scheduler, config.prediction_type)?;
        computed.extend(side_weights(Siss.terms(&inputs)?));
        let network = trainer.model().clone().valid();
        // The forget gradient is recorded without the negative sign of forgetting.
        let sides = [
            ("retain", 1.0, gradients.retain),
            ("forget", -1.0, gradients.forget),
        ];
        for (side, sign, gradient) in sides {
            let gradient = network.clone().map(&mut ReplaceByGradient(gradient));
            let named = saved_parameters(|folder| gradient.save(folder))?;
            for name in self.tensors.keys() {
                if let Some(parameter) = name.strip_prefix(&format!("expect_grad_{side}.")) {
                    let values = parameter_named(&named, parameter)?;
                    let values = values.iter().map(|value| sign * value).collect();
                    computed.push((name.clone(), values));
                }
            }
        }
        Ok(computed)
    }
}
