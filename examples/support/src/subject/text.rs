//! Models that are conditioned on a text: Stable Diffusion.

use std::ffi::OsStr;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use siss::answer::OtherCondition;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Annotations, Images};
use siss::models::{
    LeftOut, LoadNote, Lora, LoraPart, PipelineNetwork, Sd3Transformer, TextCondition,
    UNet2dCondition, save_pipeline,
};
use siss::{Condition, Result as SissResult};

use super::encoders::{Encoders, Layout};
use super::source::Source;
use super::{Conditions, Input, Named, Origin, Result, Space, Subject, Told, say_all};
use crate::files;
use crate::progress::Progress;

/// The files of a LoRA in a folder of peft.
const ADAPTER: &str = "adapter_model.safetensors";
/// The file of a new LoRA, as diffusers writes it, and the layers that get factors there by
/// default.
const NEW_LORA: &str = "pytorch_lora_weights.safetensors";
const NEW_LORA_LAYERS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

/// A network that is conditioned on a text.
pub trait TextNetwork: PipelineNetwork<Condition = TextCondition> + Sync {
    /// The parts of its pipelines.
    const PARTS: &'static [&'static str];
    /// The options for conditions that it has a use for.
    const OPTIONS: &'static [&'static str];
    /// The scale of guidance that its pipeline has by default.
    const GUIDANCE: f64;

    /// Reads the network.
    fn read(source: &Source, device: &Device) -> SissResult<Self>;

    /// Writes it as it came, with everything else of the original.
    fn save(&self, source: &Source, folder: &Path, note: &str) -> SissResult<Vec<LeftOut>>;

    /// The decisions made while the network was read.
    fn notes(&self) -> &[LoadNote];

    /// What it takes and predicts.
    fn input(&self) -> Input;

    /// What it is told of a prompt, for pictures of a size; `folder` names it in errors.
    fn layout(&self, size: Option<[usize; 2]>, folder: &Path) -> Result<Layout>;
}

impl TextNetwork for UNet2dCondition {
    const PARTS: &'static [&'static str] = &[
        "unet",
        "scheduler",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "feature_extractor",
        "image_processor",
        "safety_checker",
        "requires_safety_checker",
    ];
    const OPTIONS: &'static [&'static str] = &[
        "prompts",
        "neighbour-prompt",
        "guidance",
        "drop-condition",
        "adversarial",
        "lora",
        "lora-rank",
    ];
    const GUIDANCE: f64 = 7.5;

    fn read(source: &Source, device: &Device) -> SissResult<Self> {
        source.unet(device)
    }

    fn save(&self, source: &Source, folder: &Path, note: &str) -> SissResult<Vec<LeftOut>> {
        source.save_unet(self, folder, note)
    }

    fn notes(&self) -> &[LoadNote] {
        self.notes()
    }

    fn input(&self) -> Input {
        let config = self.config();
        Input {
            channels: config.in_channels,
            predicted: config.out_channels,
            size: config.sample_size.map(|size| size.sides()),
        }
    }

    fn layout(&self, size: Option<[usize; 2]>, folder: &Path) -> Result<Layout> {
        match (self.config().addition_embed_type, size) {
            (None, _) => Ok(Layout::One),
            (Some(_), Some(size)) => Ok(Layout::Two(size)),
            (Some(_), None) => Err(format!(
                "{}: its configuration has no `sample_size`, and the network is told the size of pictures; add the side of the latents that it was trained on",
                path_text(folder)
            )
            .into()),
        }
    }
}

impl TextNetwork for Sd3Transformer {
    const PARTS: &'static [&'static str] = &[
        "transformer",
        "scheduler",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    ];
    const OPTIONS: &'static [&'static str] = &[
        "prompts",
        "neighbour-prompt",
        "guidance",
        "drop-condition",
        "adversarial",
    ];
    const GUIDANCE: f64 = 7.0;

    fn read(source: &Source, device: &Device) -> SissResult<Self> {
        Self::load(source.network(), device)
    }

    fn save(&self, source: &Source, folder: &Path, note: &str) -> SissResult<Vec<LeftOut>> {
        save_pipeline(self, source.folder(), folder, note)
    }

    fn notes(&self) -> &[LoadNote] {
        self.notes()
    }

    fn input(&self) -> Input {
        let config = self.config();
        Input {
            channels: config.in_channels,
            predicted: config.out_channels,
            size: Some([config.sample_size; 2]),
        }
    }

    fn layout(&self, _: Option<[usize; 2]>, _: &Path) -> Result<Layout> {
        Ok(Layout::Three(self.config().joint_attention_dim))
    }
}

/// What a network with prompts is told of images, and the autoencoder of its latents.
pub struct Text<N> {
    input: Input,
    space: Space,
    encoders: Encoders,
    prompts: Option<PathBuf>,
    /// The prompt under which the model answers for one that never saw the picture, and its words.
    neighbour: (TextCondition, String),
    guidance: f64,
    lora: Option<(Lora, PathBuf)>,
    network: PhantomData<fn() -> N>,
}

impl<N: TextNetwork> Text<N> {
    /// Reads a pipeline, with the points of its pictures.
    pub fn load(
        conditions: &Conditions,
        (source, space): (&Source, Space),
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, N)> {
        let network = N::read(source, device)?;
        say_all(network.notes(), progress);
        let lora = match (&conditions.lora, conditions.lora_rank) {
            (Some(path), _) => Some((Lora::load(path)?, path.clone())),
            (None, Some(rank)) => {
                let new = Lora::new(&network, LoraPart::Unet, &NEW_LORA_LAYERS, rank, 0);
                Some((new.map_err(of_rank)?, NEW_LORA.into()))
            }
            (None, None) => None,
        };
        let factors = lora.as_ref().map(|(lora, _)| lora);
        let input = network.input();
        let layout = network.layout(space.picture_size(input), source.folder().network())?;
        let mut encoders = Encoders::read(source, layout, factors, device)?;
        say_all(&encoders.notes(), progress);
        if let Some(note) = encoders.unused(source.folder())? {
            progress.say(&note);
        }
        network.check_condition(encoders.none())?;
        let network = match factors {
            Some(lora) => lora.attach(network, LoraPart::Unet)?,
            None => network,
        };
        let neighbour = match conditions.neighbour_prompt.as_deref() {
            None | Some("") => (encoders.none().clone(), "the empty prompt".into()),
            Some(prompt) => (
                encoders.encode(prompt, device)?.0,
                format!("the prompt `{prompt}`"),
            ),
        };
        let text = Self {
            input,
            space,
            encoders,
            prompts: conditions.prompts.clone(),
            neighbour,
            guidance: conditions.guidance.unwrap_or(N::GUIDANCE),
            lora,
            network: PhantomData,
        };
        Ok((text, network))
    }

    /// One row of the condition that stands for none.
    pub fn without_prompt(&self) -> &TextCondition {
        self.encoders.none()
    }

    /// One row of a prompt.
    pub fn encoded(&mut self, prompt: &str, device: &Device) -> SissResult<TextCondition> {
        Ok(self.encoders.encode(prompt, device)?.0)
    }

    /// One row for each prompt, of which there is at least one.
    pub fn encoded_all(
        &mut self,
        prompts: &[String],
        device: &Device,
    ) -> SissResult<TextCondition> {
        let rows = prompts.iter().map(|prompt| self.encoded(prompt, device));
        Ok(rows_of(rows.collect::<SissResult<Vec<_>>>()?))
    }

    /// The words of the tokenizer's vocabulary.
    pub fn words(&self) -> Vec<String> {
        self.encoders.words()
    }

    /// The captions of images.
    fn captions(&self, images: &Images, origin: &Origin<'_>) -> Result<Vec<String>> {
        let mut annotations = Annotations::of(origin.found)?;
        if let Some(prompts) = &self.prompts {
            annotations.add(prompts)?;
        }
        let captions = images.files().iter().map(|file| annotations.caption(file));
        Ok(captions.collect::<SissResult<Vec<_>>>()?)
    }
}

fn of_rank(error: siss::Error) -> String {
    format!("--lora-rank: {error}")
}

/// Rows below each other.
fn rows_of(rows: Vec<TextCondition>) -> TextCondition {
    let all = |part: fn(&TextCondition) -> Option<Tensor<2>>| {
        let parts: Option<Vec<_>> = rows.iter().map(part).collect();
        parts.map(|parts| Tensor::cat(parts, 0))
    };
    let states = rows.iter().map(|row| row.hidden_states.clone());
    TextCondition {
        hidden_states: Tensor::cat(states.collect(), 0),
        pooled: all(|row| row.pooled.clone()),
        time_ids: all(|row| row.time_ids.clone()),
    }
}

impl<N: TextNetwork> Subject for Text<N> {
    type Model = N;

    const PARTS: &'static [&'static str] = N::PARTS;
    const OPTIONS: &'static [&'static str] = N::OPTIONS;

    fn read(
        named: &Named<'_>,
        source: &Source,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, N)> {
        let space = Space::read(named, source, device, progress)?;
        Self::load(named.conditions, (source, space), device, progress)
    }

    fn space(&self) -> &Space {
        &self.space
    }

    fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }

    fn input(&self) -> Input {
        self.input
    }

    fn trained(&self, all: usize) -> usize {
        match &self.lora {
            Some((lora, _)) => lora.num_params(LoraPart::Unet),
            None => all,
        }
    }

    fn kept(&self, images: usize) -> Vec<(&'static str, usize)> {
        let [_, tokens, features] = self.encoders.none().hidden_states.dims();
        vec![
            ("the text encoder", self.encoders.num_params()),
            ("encoded prompts", images * tokens * features),
        ]
    }

    fn told(&mut self, images: &Images, origin: &Origin<'_>) -> Result<Told<TextCondition>> {
        let words = self.captions(images, origin)?;
        let encode = |prompt: &String| self.encoders.encode(prompt, origin.device);
        let encoded = words.iter().map(encode).collect::<SissResult<Vec<_>>>()?;
        let (rows, keys) = encoded.into_iter().unzip();
        Ok(Told {
            condition: rows_of(rows),
            keys,
            words,
        })
    }

    fn guidance(&self) -> Option<(f64, TextCondition)> {
        (self.guidance != 1.0).then(|| (self.guidance, self.encoders.none().clone()))
    }

    fn none(&self) -> Option<TextCondition> {
        Some(self.encoders.none().clone())
    }

    fn other(&self, count: usize) -> SissResult<(OtherCondition<TextCondition>, String)> {
        let (encoded, words) = &self.neighbour;
        let rows = encoded.take_rows(&vec![0; count]);
        Ok((OtherCondition::given(rows, count)?, words.clone()))
    }

    fn save(
        &self,
        model: &N,
        source: &Source,
        folder: &Path,
        note: &str,
    ) -> SissResult<Vec<LeftOut>> {
        let Some((lora, path)) = &self.lora else {
            return model.save(source, folder, note);
        };
        files::create_folder(folder)?;
        let trained = lora.trained(model, LoraPart::Unet)?;
        let name: &OsStr = match path.is_dir() {
            true => ADAPTER.as_ref(),
            false => path.file_name().unwrap_or(ADAPTER.as_ref()),
        };
        trained.save(folder.join(name))?;
        Ok(Vec::new())
    }
}
