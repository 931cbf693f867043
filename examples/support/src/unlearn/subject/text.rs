//! Models of latents that are conditioned on a text: Stable Diffusion 1 and 2.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use siss::answer::OtherCondition;
use siss::burn::module::Module;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::images::{Annotations, Format, ImageFiles, Images, Transparency};
use siss::models::{
    AutoencoderKl, ClipTextEncoder, ClipTokenizer, LatentCache, LeftOut, Lora, LoraPart,
    ModelFolder, TextCondition, UNet2dCondition, UNet2dConditionConfig, save_pipeline,
};
use siss::{Condition, Denoiser, Result as SissResult};

use super::{MakePoints, Origin, Points, Result, Subject, pixels};
use crate::files;
use crate::progress::Progress;
use crate::unlearn::options::{Conditions, Options};

/// The scale that Stable Diffusion's pipeline has by default.
const GUIDANCE: f64 = 7.5;
/// The files of a LoRA in a folder of peft.
const ADAPTER: &str = "adapter_model.safetensors";
/// Numbers of a picture's colours.
const COLOURS: usize = 3;
const BYTES_A_NUMBER: usize = 4;

/// A [`UNet2dCondition`] with an autoencoder and a text encoder.
pub struct Text {
    config: UNet2dConditionConfig,
    encoder: Encoder,
    autoencoder: Autoencoder,
    prompts: Option<PathBuf>,
    /// The encoded empty prompt, one row.
    none: TextCondition,
    /// The prompt under which the model answers for one that never saw the picture.
    neighbour: (TextCondition, String),
    guidance: f64,
    lora: Option<(Lora, PathBuf)>,
}

/// The text encoder, and what it has encoded.
struct Encoder {
    tokenizer: ClipTokenizer,
    network: ClipTextEncoder,
    /// The encoded prompts, one row each, with a number.
    known: BTreeMap<String, (TextCondition, u64)>,
}

impl Encoder {
    fn read(root: &Path, lora: Option<&Lora>, device: &Device) -> Result<Self> {
        let network = ClipTextEncoder::load(root, device)?;
        // A LoRA may change the text encoder too. That part is used, not trained.
        let network = match lora {
            Some(lora) if lora.has(LoraPart::TextEncoder) => {
                lora.merge(network, LoraPart::TextEncoder)?
            }
            _ => network,
        };
        Ok(Self {
            tokenizer: ClipTokenizer::load(root)?,
            network,
            known: BTreeMap::new(),
        })
    }

    /// One row of a prompt, and its number.
    fn encode(&mut self, prompt: &str, device: &Device) -> SissResult<(TextCondition, u64)> {
        if let Some(known) = self.known.get(prompt) {
            return Ok(known.clone());
        }
        let tokens = self.tokenizer.encode(&[prompt], device)?;
        let states = self.network.valid().encode(tokens)?.last_hidden_state;
        let encoded = (TextCondition::new(states.inner()), self.known.len() as u64);
        self.known.insert(prompt.into(), encoded.clone());
        Ok(encoded)
    }
}

/// The autoencoder, with or without a folder of latents.
enum Autoencoder {
    Plain(AutoencoderKl, usize),
    Cached(LatentCache),
}

impl Autoencoder {
    fn network(&self) -> &AutoencoderKl {
        match self {
            Self::Plain(network, _) => network,
            Self::Cached(cache) => cache.autoencoder(),
        }
    }

    /// The latents of one picture: the mode, never a sample.
    fn latent(&mut self, picture: Tensor<4>) -> SissResult<Tensor<4>> {
        match self {
            Self::Plain(network, encoded) => {
                *encoded += 1;
                network.latent(picture)
            }
            Self::Cached(cache) => cache.latent(picture),
        }
    }

    /// How many times smaller latents are than pictures.
    fn reduction(&self) -> usize {
        let stages = self.network().config().block_out_channels.len();
        1 << stages.saturating_sub(1)
    }
}

impl Text {
    /// Reads a pipeline.
    pub fn load(
        conditions: &Conditions,
        origin: &ModelFolder,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, UNet2dCondition)> {
        let root = origin.pipeline();
        let lora = match &conditions.lora {
            Some(path) => Some((Lora::load(path)?, path.clone())),
            None => None,
        };
        let factors = lora.as_ref().map(|(lora, _)| lora);
        let mut encoder = Encoder::read(root, factors, device)?;
        let autoencoder = AutoencoderKl::load(root, device)?;
        let unet = UNet2dCondition::load(origin.network(), device)?;
        let notes = [unet.notes(), autoencoder.notes(), encoder.network.notes()];
        for note in notes.concat() {
            progress.say(&note.to_string());
        }
        let config = unet.config().clone();
        check(&config, &autoencoder, &path_text(origin.network()))?;
        let unet = match factors {
            Some(lora) => lora.attach(unet, LoraPart::Unet)?,
            None => unet,
        };
        let (none, _) = encoder.encode("", device)?;
        unet.check_condition(&none)?;
        let neighbour = conditions.neighbour_prompt.clone().unwrap_or_default();
        let (encoded, _) = encoder.encode(&neighbour, device)?;
        let autoencoder = match &conditions.cache {
            Some(folder) => Autoencoder::Cached(LatentCache::open(autoencoder, folder)?),
            None => Autoencoder::Plain(autoencoder, 0),
        };
        let text = Self {
            config,
            encoder,
            autoencoder,
            prompts: conditions.prompts.clone(),
            none,
            neighbour: (encoded, neighbour),
            guidance: conditions.guidance.unwrap_or(GUIDANCE),
            lora,
        };
        Ok((text, unet))
    }

    /// One row of a prompt.
    pub fn encoded(&mut self, prompt: &str, device: &Device) -> SissResult<TextCondition> {
        Ok(self.encoder.encode(prompt, device)?.0)
    }

    /// One row for each prompt.
    pub fn encoded_all(
        &mut self,
        prompts: &[String],
        device: &Device,
    ) -> SissResult<TextCondition> {
        let rows = prompts.iter().map(|prompt| {
            let encoded = self.encoded(prompt, device)?;
            Ok(encoded.hidden_states)
        });
        let rows = rows.collect::<SissResult<Vec<_>>>()?;
        Ok(TextCondition::new(Tensor::cat(rows, 0)))
    }

    /// The latent of one picture.
    pub fn latent(&mut self, picture: Tensor<4>) -> SissResult<Tensor<4>> {
        Ok(self.autoencoder.latent(picture)?.inner())
    }

    /// The words of the tokenizer's vocabulary.
    pub fn words(&self) -> Vec<String> {
        self.encoder.tokenizer.words()
    }

    /// The height and width of pictures; those to forget determine it if the model does not.
    fn size(&self, found: &ImageFiles) -> (Option<[usize; 2]>, bool) {
        let reduction = self.autoencoder.reduction();
        let latent = self.config.sample_size.map(|size| size.sides());
        let configured = latent.map(|sides| sides.map(|side| side.saturating_mul(reduction)));
        (
            configured.or_else(|| found.first_size()),
            configured.is_some(),
        )
    }

    /// The format of the pictures of the model in a folder.
    pub fn picture_format(
        &self,
        found: &ImageFiles,
        transparency: Transparency,
        model: &Path,
    ) -> Result<Format> {
        let (size, is_configured) = self.size(found);
        let [height, width] = size.unwrap_or([1, 1]);
        pixels::check_size([height, width], &path_text(model))?;
        Ok(Format {
            channels: COLOURS,
            height,
            width,
            is_configured,
            range: [-1.0, 1.0],
            transparency,
        })
    }
}

impl Subject for Text {
    type Model = UNet2dCondition;

    const PARTS: &'static [&'static str] = &[
        "unet",
        "scheduler",
        "vae",
        "text_encoder",
        "tokenizer",
        "feature_extractor",
        "image_processor",
        "safety_checker",
        "requires_safety_checker",
    ];
    /// Latents are encoded, which takes the device of the model.
    const STREAMS: bool = false;
    const OPTIONS: &'static [&'static str] = &[
        "prompts",
        "neighbour-prompt",
        "guidance",
        "drop-condition",
        "adversarial",
        "cache",
        "lora",
    ];

    fn read(
        options: &Options,
        origin: &ModelFolder,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, UNet2dCondition)> {
        if options.range != [-1.0, 1.0] {
            return Err("--range: autoencoders take pictures from -1 to 1; leave it out".into());
        }
        Self::load(&options.conditions, origin, device, progress)
    }

    fn format(&self, found: &ImageFiles, options: &Options) -> Result<Format> {
        self.picture_format(found, options.transparency, &options.model)
    }

    fn shape(&self, format: Format) -> [usize; 3] {
        let reduction = self.autoencoder.reduction();
        let channels = self.config.in_channels;
        [
            channels,
            format.height / reduction,
            format.width / reduction,
        ]
    }

    fn range(&self) -> Option<[f64; 2]> {
        None
    }

    fn trained(&self, all: usize) -> usize {
        match &self.lora {
            Some((lora, _)) => lora.num_params(LoraPart::Unet),
            None => all,
        }
    }

    fn kept(&self, format: Format, images: usize) -> Vec<(&'static str, u64)> {
        let bytes = |numbers: usize| (numbers * BYTES_A_NUMBER) as u64;
        let latents: usize = self.shape(format).iter().product();
        let [_, tokens, features] = self.none.hidden_states.dims();
        vec![
            ("the text encoder", bytes(self.encoder.network.num_params())),
            (
                "the autoencoder",
                bytes(self.autoencoder.network().num_params()),
            ),
            ("latents", bytes(images * latents)),
            ("encoded prompts", bytes(images * tokens * features)),
        ]
    }

    fn points(
        &mut self,
        images: &Images,
        origin: &Origin<'_>,
        progress: &dyn Progress,
    ) -> Result<Points<TextCondition>> {
        let mut annotations = Annotations::of(origin.found)?;
        if let Some(prompts) = &self.prompts {
            annotations.add(prompts)?;
        }
        let captions = images.files().iter().map(|file| annotations.caption(file));
        let words = captions.collect::<SissResult<Vec<_>>>()?;
        let mut keys = Vec::with_capacity(words.len());
        let mut states = Vec::with_capacity(words.len());
        for prompt in &words {
            let (encoded, key) = self.encoder.encode(prompt, origin.device)?;
            states.push(encoded.hidden_states);
            keys.push(key);
        }
        let mut latents = Vec::with_capacity(images.len());
        for index in 0..images.len() {
            progress.phase(&format!("encoding images: {index} of {}", images.len()));
            let picture = images.tensor(index..index + 1, origin.device);
            latents.push(self.autoencoder.latent(picture)?.inner());
        }
        Ok(Points {
            points: Tensor::cat(latents, 0),
            condition: TextCondition::new(Tensor::cat(states, 0)),
            keys,
            words,
        })
    }

    /// One after another, because decoding takes the most memory of all.
    fn maker(&self, _: &ImageFiles, _: &Device) -> Result<MakePoints<TextCondition>> {
        Err("--stream is for models of pixels; the latents of these images are held in memory, or fewer steps take fewer images".into())
    }

    fn pictures(&self, points: &Tensor<4>) -> SissResult<Tensor<4>> {
        let network = self.autoencoder.network();
        let rows = 0..points.dims()[0];
        let pictures = rows.map(|row| {
            let picture = network.image(points.clone().narrow(0, row, 1))?;
            Ok(picture.inner().clamp(-1.0, 1.0))
        });
        Ok(Tensor::cat(pictures.collect::<SissResult<Vec<_>>>()?, 0))
    }

    fn guidance(&self) -> Option<(f64, TextCondition)> {
        (self.guidance != 1.0).then(|| (self.guidance, self.none.clone()))
    }

    fn none(&self) -> Option<TextCondition> {
        Some(self.none.clone())
    }

    fn other(&self, count: usize) -> SissResult<(OtherCondition<TextCondition>, String)> {
        let (encoded, prompt) = &self.neighbour;
        let words = match prompt.as_str() {
            "" => "the empty prompt".into(),
            prompt => format!("the prompt `{prompt}`"),
        };
        let rows = encoded.take_rows(&vec![0; count]);
        Ok((OtherCondition::given(rows, count)?, words))
    }

    fn cached(&self) -> Option<[usize; 2]> {
        Some(match &self.autoencoder {
            Autoencoder::Plain(_, encoded) => [0, *encoded],
            Autoencoder::Cached(cache) => [cache.read(), cache.encoded()],
        })
    }

    fn save(
        &self,
        model: &UNet2dCondition,
        origin: &ModelFolder,
        folder: &Path,
        note: &str,
    ) -> SissResult<Vec<LeftOut>> {
        let Some((lora, path)) = &self.lora else {
            return save_pipeline(model, origin, folder, note);
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

/// Rejects networks that do not fit together or belong to another pipeline.
fn check(unet: &UNet2dConditionConfig, autoencoder: &AutoencoderKl, network: &str) -> Result<()> {
    let config = autoencoder.config();
    if unet.addition_embed_type.is_some() {
        return Err(format!(
            "{network}: its `addition_embed_type` is that of Stable Diffusion XL, which has two text encoders; only versions 1 and 2 are unlearned here"
        )
        .into());
    }
    let (channels, out, latent) = (unet.in_channels, unet.out_channels, config.latent_channels);
    if channels != latent || out != latent || config.in_channels != COLOURS {
        return Err(format!(
            "{network}: the network takes {channels} channels and predicts {out}, and the autoencoder makes {latent} of {} colours; only networks \
             that take and predict the latents of RGB pictures are unlearned here, and none for inpainting",
            config.in_channels
        )
        .into());
    }
    Ok(())
}
