//! The text encoders of a pipeline: what a network is told of a prompt.

use std::collections::BTreeMap;

use siss::Result as SissResult;
use siss::burn::module::Module;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::models::{
    ClipTextEncoder, ClipTokenizer, EncodedText, LoadNote, Lora, LoraPart, ModelFolder,
    TextCondition,
};

use super::Result;
use super::source::Source;
use crate::files;

/// The tokenizer and the encoder of each place in a pipeline.
const PLACES: [[&str; 2]; 2] = [
    ["tokenizer", "text_encoder"],
    ["tokenizer_2", "text_encoder_2"],
];
/// The third encoder of Stable Diffusion 3, and the number of its tokens.
const T5: &str = "text_encoder_3";
const T5_TOKENS: usize = 256;
const LORA_PARTS: [LoraPart; 2] = [LoraPart::TextEncoder, LoraPart::TextEncoder2];

/// How encoded prompts are put together.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// Stable Diffusion 1 and 2: the states after the last layer of one encoder.
    One,
    /// Stable Diffusion XL: the states before the last layer of two encoders, side by side, the
    /// second one's projection, and the sizes of a picture that is as high and wide as this and was
    /// neither resized nor cropped.
    Two([usize; 2]),
    /// Stable Diffusion 3: the states before the last layer of two encoders, side by side and
    /// padded with zeros to this many features, and both projections. Zeros stand for the tokens of
    /// the third encoder, as in its pipeline without that encoder.
    Three(usize),
}

impl Layout {
    fn encoders(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two(_) | Self::Three(_) => 2,
        }
    }
}

/// The text encoders, and what they have encoded.
pub struct Encoders {
    layout: Layout,
    towers: Vec<Tower>,
    /// The encoded prompts, one row each, with a number.
    known: BTreeMap<String, (TextCondition, u64)>,
    /// The condition that stands for none, one row.
    none: TextCondition,
}

/// An encoder and its tokenizer.
struct Tower {
    tokenizer: ClipTokenizer,
    network: ClipTextEncoder,
}

impl Tower {
    fn read(source: &Source, place: usize, lora: Option<&Lora>, device: &Device) -> Result<Self> {
        let [tokenizer, encoder] = PLACES[place];
        let network = source.text_encoder(place, encoder, device)?;
        let part = LORA_PARTS[place];
        // A LoRA may change the text encoders too. That part is used, not trained.
        let network = match lora {
            Some(lora) if lora.has(part) => lora.merge(network, part)?,
            _ => network,
        };
        Ok(Self {
            tokenizer: ClipTokenizer::load(source.folder().pipeline().join(tokenizer))?,
            network,
        })
    }

    fn encode(&self, prompt: &str, device: &Device) -> SissResult<EncodedText> {
        let tokens = self.tokenizer.encode(&[prompt], device)?;
        self.network.valid().encode(tokens)
    }
}

impl Encoders {
    /// Reads those of a pipeline.
    pub fn read(
        source: &Source,
        layout: Layout,
        lora: Option<&Lora>,
        device: &Device,
    ) -> Result<Self> {
        let origin = source.folder();
        check_count(origin, layout)?;
        let towers = (0..layout.encoders()).map(|place| Tower::read(source, place, lora, device));
        let towers = towers.collect::<Result<Vec<_>>>()?;
        let empty = combine(layout, &towers, "", device)?;
        let none = match layout {
            Layout::Two(_) if is_none_zero(origin)? => zeros(&empty),
            Layout::One | Layout::Two(_) | Layout::Three(_) => empty,
        };
        Ok(Self {
            layout,
            towers,
            known: BTreeMap::new(),
            none,
        })
    }

    /// The decisions made while they were read.
    pub fn notes(&self) -> Vec<LoadNote> {
        let notes = self.towers.iter().map(|tower| tower.network.notes());
        notes.flatten().cloned().collect()
    }

    /// A note on an encoder of the pipeline that is not used, if there is one.
    pub fn unused(&self, origin: &ModelFolder) -> Result<Option<String>> {
        let index = origin.index()?;
        let is_there = index.is_some_and(|index| index.parts.contains_key(T5));
        Ok(is_there.then(|| {
            format!("note: the third text encoder (`{T5}`, T5) is not used: zeros stand for its tokens, as in the pipeline without it")
        }))
    }

    /// The number of parameters.
    pub fn num_params(&self) -> usize {
        let towers = self.towers.iter();
        towers.map(|tower| tower.network.num_params()).sum()
    }

    /// One row of the condition that stands for none: the encoded empty prompt, or zeros if the
    /// pipeline says so.
    pub fn none(&self) -> &TextCondition {
        &self.none
    }

    /// The words of the first tokenizer's vocabulary.
    pub fn words(&self) -> Vec<String> {
        let first = self.towers.first();
        first.map_or_else(Vec::new, |tower| tower.tokenizer.words())
    }

    /// One row of a prompt, and its number.
    pub fn encode(&mut self, prompt: &str, device: &Device) -> SissResult<(TextCondition, u64)> {
        if let Some(known) = self.known.get(prompt) {
            return Ok(known.clone());
        }
        let condition = combine(self.layout, &self.towers, prompt, device)?;
        let encoded = (condition, self.known.len() as u64);
        self.known.insert(prompt.into(), encoded.clone());
        Ok(encoded)
    }
}

/// Rejects a pipeline with more text encoders than its network is told of.
fn check_count(origin: &ModelFolder, layout: Layout) -> Result<()> {
    let (Some(path), Some(index)) = (origin.index_file(), origin.index()?) else {
        return Ok(());
    };
    let mut others = PLACES[layout.encoders()..].iter();
    match others.find(|[_, encoder]| index.parts.contains_key(*encoder)) {
        None => Ok(()),
        Some([_, encoder]) => Err(format!(
            "{}: the pipeline has a `{encoder}`, of which its network is told nothing: give the folder of a whole pipeline, with its own network",
            path_text(path)
        )
        .into()),
    }
}

/// One row of a prompt.
fn combine(
    layout: Layout,
    towers: &[Tower],
    prompt: &str,
    device: &Device,
) -> SissResult<TextCondition> {
    let encoded = towers.iter().map(|tower| tower.encode(prompt, device));
    let encoded = encoded.collect::<SissResult<Vec<_>>>()?;
    Ok(match layout {
        Layout::One => {
            let states = encoded.into_iter().map(|it| it.last_hidden_state.inner());
            TextCondition::new(Tensor::cat(states.collect(), 2))
        }
        Layout::Two([height, width]) => {
            let (height, width) = (height as f32, width as f32);
            let sizes = Tensor::from_data([[height, width, 0.0, 0.0, height, width]], device);
            with_pooled(penultimate(&encoded), &encoded[1..]).with_time_ids(sizes)
        }
        Layout::Three(features) => {
            let states = penultimate(&encoded);
            let [rows, tokens, found] = states.dims();
            let padding = Tensor::zeros([rows, tokens, features.saturating_sub(found)], device);
            let states = Tensor::cat(vec![states, padding], 2);
            let of_third = Tensor::zeros([rows, T5_TOKENS, states.dims()[2]], device);
            with_pooled(Tensor::cat(vec![states, of_third], 1), &encoded)
        }
    })
}

/// The states before the last layer of each encoder, side by side.
fn penultimate(encoded: &[EncodedText]) -> Tensor<3> {
    let states = encoded.iter();
    let states = states.map(|it| it.penultimate_hidden_state.clone().inner());
    Tensor::cat(states.collect(), 2)
}

/// A condition with the projections of these encoders, side by side, as far as they have them.
fn with_pooled(states: Tensor<3>, encoded: &[EncodedText]) -> TextCondition {
    let pooled = encoded.iter().filter_map(|it| it.projected.clone());
    let pooled: Vec<_> = pooled.map(Tensor::inner).collect();
    let condition = TextCondition::new(states);
    match pooled.is_empty() {
        true => condition,
        false => condition.with_pooled(Tensor::cat(pooled, 1)),
    }
}

/// The same without a prompt: zeros, and the same sizes.
fn zeros(condition: &TextCondition) -> TextCondition {
    TextCondition {
        hidden_states: condition.hidden_states.zeros_like(),
        pooled: condition.pooled.as_ref().map(Tensor::zeros_like),
        time_ids: condition.time_ids.clone(),
    }
}

/// Whether zeros stand for no prompt, which is so unless the index says otherwise.
fn is_none_zero(origin: &ModelFolder) -> Result<bool> {
    let Some(index) = origin.index_file() else {
        return Ok(true);
    };
    let index: serde_json::Value = serde_json::from_str(&files::read_text(index)?)?;
    let said = index.get("force_zeros_for_empty_prompt");
    Ok(said.and_then(serde_json::Value::as_bool).unwrap_or(true))
}
