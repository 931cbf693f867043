//! The quality score of CLIP-IQA.

use std::path::Path;

use burn::tensor::activation::{gelu, relu, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::layers::{Affine, Convolution, Shape, mean_squares, standardise};
use super::weights::{Loader, TensorSource, load};
use super::{IGNORED, check_channels, each_part};
use crate::data::Points;
use crate::error::Result;
use crate::metrics::Features;

/// CLIP `RN50`, which compares pictures with a good and a bad prompt.
///
/// The positional embedding of the picture's last layer is left out, so pictures keep their size.
/// Names are those of `open_clip`; weights are OpenAI's, as safetensors ([`networks`](super) says
/// how to convert them). The quality of a picture is `softmax(100 ⟨f, [good, bad]⟩)₀`.
///
/// # Reference
/// Wang et al. 2023, *Exploring CLIP for Assessing the Look and Feel of Images*; Radford et al. 2021
/// (CLIP).
#[derive(Debug, Clone)]
pub struct ClipIqa {
    picture: PictureEncoder,
    text: TextEncoder,
}

const EPSILON: f32 = 1e-5;
/// Numbers of the published model.
const WIDTH: usize = 512;
const HEADS: usize = 8;
const LAYERS: usize = 12;
const VOCABULARY: usize = 49_408;
const TOKENS: usize = 77;
const FEATURES: usize = 1024;
const PICTURE_HEADS: usize = 32;
const PICTURE_WIDTH: usize = 2048;

impl ClipIqa {
    /// The token ids of the prompts `Good photo.` and `Bad photo.` of CLIP's vocabulary, padded with
    /// 0.
    pub const PROMPTS: [[i64; TOKENS]; 2] = [prompt(886), prompt(2103)];

    /// Reads the network from a file of safetensors.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile),
    /// [`Error::WeightMismatch`](crate::Error::WeightMismatch).
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let [training] = IGNORED;
        let ignored = [
            training,
            "attnpool.positional_embedding",
            "logit_scale",
            "attn_mask",
        ];
        load(path.as_ref(), &ignored, |source| {
            Self::from_tensors(source, device)
        })
    }

    /// Makes the network of tensors from any source.
    ///
    /// # Errors
    /// Those of the source; [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for too few or
    /// too many values.
    pub fn from_tensors(source: &mut TensorSource<'_>, device: &Device) -> Result<Self> {
        let mut loader = Loader::new(source, device);
        Ok(Self {
            picture: PictureEncoder::load(&mut loader)?,
            text: TextEncoder::load(&mut loader)?,
        })
    }

    /// Features of pictures, of length 1.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, 3, height, width]`, values from 0 to 255; the result: `[rows, 1024]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) unless there are three channels.
    pub fn picture_features(&self, pictures: Tensor<4>) -> Result<Tensor<2>> {
        check_channels(pictures.dims())?;
        let mean = [0.481_454_66, 0.457_827_5, 0.408_210_73];
        let deviation = [0.268_629_54, 0.261_302_6, 0.275_777_1];
        Ok(unit(
            self.picture.forward(standardise(pictures, mean, deviation)),
        ))
    }

    /// Features of prompts, of length 1, from their token ids: begin, words, end, and any padding.
    ///
    /// # Shapes
    /// - `tokens`: `[prompts][77]`; the result: `[prompts, 1024]`
    pub fn text_features(&self, tokens: &[[i64; TOKENS]]) -> Tensor<2> {
        unit(self.text.forward(tokens))
    }

    /// The quality of pictures, 0 to 1, by two prompts: a good one and a bad one.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, 3, height, width]`, values from 0 to 255; the result: `[rows, 1]`
    ///
    /// # Errors
    /// Those of [`picture_features`](ClipIqa::picture_features).
    pub fn quality(&self, pictures: Tensor<4>, prompts: &[[i64; TOKENS]; 2]) -> Result<Tensor<2>> {
        let (pictures, prompts) = (
            self.picture_features(pictures)?,
            self.text_features(prompts),
        );
        let products = pictures.matmul(prompts.transpose()) * 100.0;
        Ok(softmax(products, 1).narrow(1, 0, 1))
    }

    /// The quality of a set of pictures by the published prompts, 16 at a time: one number each.
    ///
    /// # Errors
    /// Those of [`quality`](ClipIqa::quality) and of the set;
    /// [`Error::NonFinitePoint`](crate::Error::NonFinitePoint),
    /// [`Error::DeviceRead`](crate::Error::DeviceRead).
    pub fn qualities(&self, pictures: &dyn Points<4>) -> Result<Features> {
        let prompts = self.text_features(&Self::PROMPTS);
        each_part("clip-iqa, good photo, bad photo".into(), pictures, |part| {
            let products = self
                .picture_features(part)?
                .matmul(prompts.clone().transpose());
            Ok(softmax(products * 100.0, 1).narrow(1, 0, 1))
        })
    }
}

/// A word between the beginning, `photo.` and the end.
const fn prompt(word: i64) -> [i64; TOKENS] {
    let mut tokens = [0; TOKENS];
    tokens[0] = 49_406;
    tokens[1] = word;
    tokens[2] = 1125;
    tokens[3] = 269;
    tokens[4] = 49_407;
    tokens
}

fn unit(features: Tensor<2>) -> Tensor<2> {
    let norms = features.clone().square().sum_dim(1).sqrt();
    features / norms
}

/// A block of CLIP's residual network: strides are averages before a convolution.
#[derive(Debug, Clone)]
struct Bottleneck {
    line: [Convolution; 3],
    projection: Option<Convolution>,
    stride: usize,
}

impl Bottleneck {
    fn load(
        loader: &mut Loader<'_, '_>,
        name: &str,
        inputs: usize,
        width: usize,
        stride: usize,
    ) -> Result<Self> {
        let mut layer = |conv: &str, norm: &str, shape| {
            let (conv, norm) = (format!("{name}.{conv}"), format!("{name}.{norm}"));
            Convolution::load(loader, &conv, &norm, shape, EPSILON)
        };
        let outputs = 4 * width;
        let is_projected = stride > 1 || inputs != outputs;
        Ok(Self {
            line: [
                layer("conv1", "bn1", Shape::square(inputs, width, 1))?,
                layer("conv2", "bn2", Shape::square(width, width, 3))?,
                layer("conv3", "bn3", Shape::square(width, outputs, 1))?,
            ],
            projection: is_projected
                .then(|| {
                    layer(
                        "downsample.0",
                        "downsample.1",
                        Shape::square(inputs, outputs, 1),
                    )
                })
                .transpose()?,
            stride,
        })
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let [first, second, third] = &self.line;
        let strided = |input| match self.stride {
            1 => input,
            stride => mean_squares(input, stride),
        };
        let output = second.forward_relu(first.forward_relu(input.clone()));
        let output = third.forward(strided(output));
        let shortcut = match &self.projection {
            Some(projection) => projection.forward(strided(input)),
            None => input,
        };
        relu(output + shortcut)
    }
}

#[derive(Debug, Clone)]
struct PictureEncoder {
    stem: Vec<Convolution>,
    blocks: Vec<Bottleneck>,
    query: Affine,
    key: Affine,
    value: Affine,
    output: Affine,
}

impl PictureEncoder {
    fn load(loader: &mut Loader<'_, '_>) -> Result<Self> {
        let stem = [
            Shape::square(3, 32, 3).stride(2),
            Shape::square(32, 32, 3),
            Shape::square(32, 64, 3),
        ];
        let stem = (1..).zip(stem).map(|(index, shape)| {
            let names = [format!("visual.conv{index}"), format!("visual.bn{index}")];
            Convolution::load(loader, &names[0], &names[1], shape, EPSILON)
        });
        let stem = stem.collect::<Result<_>>()?;
        let (mut blocks, mut inputs) = (Vec::new(), 64);
        for (layer, depth) in [3, 4, 6, 3].into_iter().enumerate() {
            let width = 64 << layer;
            for block in 0..depth {
                let stride = if layer > 0 && block == 0 { 2 } else { 1 };
                let name = format!("visual.layer{}.{block}", layer + 1);
                blocks.push(Bottleneck::load(loader, &name, inputs, width, stride)?);
                inputs = 4 * width;
            }
        }
        let mut projection = |part: &str, outputs| {
            Affine::load(
                loader,
                &format!("visual.attnpool.{part}"),
                [PICTURE_WIDTH, outputs],
            )
        };
        Ok(Self {
            stem,
            blocks,
            query: projection("q_proj", PICTURE_WIDTH)?,
            key: projection("k_proj", PICTURE_WIDTH)?,
            value: projection("v_proj", PICTURE_WIDTH)?,
            output: projection("c_proj", FEATURES)?,
        })
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<2> {
        let begun = self
            .stem
            .iter()
            .fold(input, |input, layer| layer.forward_relu(input));
        let begun = mean_squares(begun, 2);
        let found = self
            .blocks
            .iter()
            .fold(begun, |input, block| block.forward(input));
        let [rows, channels, height, width] = found.dims();
        let places = found
            .reshape([rows, channels, height * width])
            .swap_dims(1, 2);
        // The mean of the places looks at itself and at the places.
        let mean = places.clone().mean_dim(1);
        let places = Tensor::cat(vec![mean.clone(), places], 1);
        let (key, value) = (
            self.key.forward_places(places.clone()),
            self.value.forward_places(places),
        );
        let query = self.query.forward_places(mean);
        let attended = attend(query, key, value, PICTURE_HEADS, None);
        self.output.forward(attended.reshape([rows, channels]))
    }
}

/// Attention of several heads; `mask` is added to the products.
///
/// # Shapes
/// - `query` and the result: `[rows, places, width]`; `key`, `value`: `[rows, sources, width]`
fn attend(
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    heads: usize,
    mask: Option<Tensor<2>>,
) -> Tensor<3> {
    let [rows, places, width] = query.dims();
    let size = width / heads;
    let split = |features: Tensor<3>| {
        let [_, places, _] = features.dims();
        features
            .reshape([rows, places, heads, size])
            .swap_dims(1, 2)
    };
    let products = split(query).matmul(split(key).transpose()) / (size as f64).sqrt();
    let products = match mask {
        Some(mask) => products + mask.unsqueeze(),
        None => products,
    };
    let attended = softmax(products, 3).matmul(split(value));
    attended.swap_dims(1, 2).reshape([rows, places, width])
}

/// Normalisation over the features of each place.
#[derive(Debug, Clone)]
struct LayerNorm {
    gain: Tensor<1>,
    offset: Tensor<1>,
}

impl LayerNorm {
    fn load(loader: &mut Loader<'_, '_>, name: &str) -> Result<Self> {
        Ok(Self {
            gain: loader.tensor(&format!("{name}.weight"), [WIDTH])?,
            offset: loader.tensor(&format!("{name}.bias"), [WIDTH])?,
        })
    }

    fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        let centred = input.clone() - input.mean_dim(2);
        let variance = centred.clone().square().mean_dim(2);
        let scaled = centred / (variance + f64::from(EPSILON)).sqrt();
        scaled * self.gain.clone().unsqueeze() + self.offset.clone().unsqueeze()
    }
}

/// A layer of the text encoder.
#[derive(Debug, Clone)]
struct TextLayer {
    before_attention: LayerNorm,
    inputs: Affine,
    output: Affine,
    before_widening: LayerNorm,
    widen: Affine,
    narrow: Affine,
}

impl TextLayer {
    fn load(loader: &mut Loader<'_, '_>, name: &str) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        let before_attention = LayerNorm::load(loader, &part("ln_1"))?;
        let weight = loader.tensor(&part("attn.in_proj_weight"), [3 * WIDTH, WIDTH])?;
        let bias = loader.tensor(&part("attn.in_proj_bias"), [3 * WIDTH])?;
        Ok(Self {
            before_attention,
            inputs: Affine::new(weight, bias),
            output: Affine::load(loader, &part("attn.out_proj"), [WIDTH, WIDTH])?,
            before_widening: LayerNorm::load(loader, &part("ln_2"))?,
            widen: Affine::load(loader, &part("mlp.c_fc"), [WIDTH, 4 * WIDTH])?,
            narrow: Affine::load(loader, &part("mlp.c_proj"), [4 * WIDTH, WIDTH])?,
        })
    }

    fn forward(&self, input: Tensor<3>, mask: Tensor<2>) -> Tensor<3> {
        let inputs = self
            .inputs
            .forward_places(self.before_attention.forward(input.clone()));
        let part = |index: usize| inputs.clone().narrow(2, index * WIDTH, WIDTH);
        let attended = attend(part(0), part(1), part(2), HEADS, Some(mask));
        let input = input + self.output.forward_places(attended);
        let widened = gelu(
            self.widen
                .forward_places(self.before_widening.forward(input.clone())),
        );
        input + self.narrow.forward_places(widened)
    }
}

#[derive(Debug, Clone)]
struct TextEncoder {
    words: Tensor<2>,
    places: Tensor<2>,
    layers: Vec<TextLayer>,
    last: LayerNorm,
    projection: Tensor<2>,
}

impl TextEncoder {
    fn load(loader: &mut Loader<'_, '_>) -> Result<Self> {
        let layers = (0..LAYERS)
            .map(|layer| TextLayer::load(loader, &format!("transformer.resblocks.{layer}")));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self {
            layers,
            words: loader.tensor("token_embedding.weight", [VOCABULARY, WIDTH])?,
            places: loader.tensor("positional_embedding", [TOKENS, WIDTH])?,
            last: LayerNorm::load(loader, "ln_final")?,
            projection: loader.tensor("text_projection", [WIDTH, FEATURES])?,
        })
    }

    fn forward(&self, tokens: &[[i64; TOKENS]]) -> Tensor<2> {
        let device = self.words.device();
        let prompts = tokens.len();
        let ids: Vec<i64> = tokens.concat();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [prompts * TOKENS]), &device);
        let words = self
            .words
            .clone()
            .select(0, ids)
            .reshape([prompts, TOKENS, WIDTH]);
        let mask = later_tokens_hidden(&device);
        let begun = words + self.places.clone().unsqueeze();
        let layers = self.layers.iter();
        let found = self
            .last
            .forward(layers.fold(begun, |input, layer| layer.forward(input, mask.clone())));
        // The end has the largest id.
        let ends = tokens.iter().enumerate().map(|(prompt, ids)| {
            let largest = ids.iter().copied().max().unwrap_or_default();
            let end = ids.iter().position(|&id| id == largest).unwrap_or_default();
            found
                .clone()
                .narrow(0, prompt, 1)
                .narrow(1, end, 1)
                .reshape([1, WIDTH])
        });
        Tensor::cat(ends.collect(), 0).matmul(self.projection.clone())
    }
}

/// A mask under which a token does not see those that follow it.
fn later_tokens_hidden(device: &Device) -> Tensor<2> {
    let value = |index: usize| match index % TOKENS > index / TOKENS {
        true => f32::NEG_INFINITY,
        false => 0.0,
    };
    let values = (0..TOKENS * TOKENS).map(value).collect();
    crate::host::tensor(values, [TOKENS, TOKENS], device)
}
