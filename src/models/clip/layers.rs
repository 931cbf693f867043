//! The layers of a text encoder.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{Device, Int, Tensor};

use super::{ClipActivation, ClipTextConfig};
use crate::host::tensor;
use crate::models::ops;

/// Stands for −∞ in the mask, as in transformers: the largest negative number of f32.
const MASKED: f32 = f32::MIN;

#[derive(Module, Debug)]
pub(super) struct TextModel {
    embeddings: Embeddings,
    encoder: Encoder,
    final_layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct Embeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

#[derive(Module, Debug)]
struct Encoder {
    layers: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    self_attn: CausalAttention,
    layer_norm2: LayerNorm,
    mlp: FeedForward,
}

/// Attention of each token to itself and the tokens before it.
#[derive(Module, Debug)]
struct CausalAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    #[module(skip)]
    heads: usize,
}

#[derive(Module, Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    activation: ClipActivation,
}

impl TextModel {
    pub(super) fn new(config: &ClipTextConfig, device: &Device) -> Self {
        let size = config.hidden_size;
        let table = |rows| EmbeddingConfig::new(rows, size).init(device);
        let layer = |_| Layer::new(config, device);
        Self {
            embeddings: Embeddings {
                token_embedding: table(config.vocab_size),
                position_embedding: table(config.max_position_embeddings),
            },
            encoder: Encoder {
                layers: (0..config.num_hidden_layers).map(layer).collect(),
            },
            final_layer_norm: norm(config, device),
        }
    }

    /// The last state, normalised, and the state before the last layer.
    ///
    /// # Shapes
    /// - `tokens`: `[rows, tokens]`; each state: `[rows, tokens, features]`
    pub(super) fn forward(&self, tokens: Tensor<2, Int>) -> [Tensor<3>; 2] {
        let count = tokens.dims()[1];
        let device = tokens.device();
        let positions = self.embeddings.position_embedding.weight.val();
        let positions = positions.narrow(0, 0, count).unsqueeze::<3>();
        let mut state = self.embeddings.token_embedding.forward(tokens) + positions;
        let mask = causal_mask(count, &device);
        let mut penultimate = state.clone();
        for layer in &self.encoder.layers {
            penultimate = state.clone();
            state = layer.forward(state, &mask);
        }
        [self.final_layer_norm.forward(state), penultimate]
    }
}

/// 0 where a token may attend, and a large negative number elsewhere: `[1, 1, tokens, tokens]`.
fn causal_mask(tokens: usize, device: &Device) -> Tensor<4> {
    let value = |index: usize| {
        let (query, key) = (index / tokens, index % tokens);
        if key > query { MASKED } else { 0.0 }
    };
    let values = (0..tokens * tokens).map(value).collect();
    tensor(values, [1, 1, tokens, tokens], device)
}

fn norm(config: &ClipTextConfig, device: &Device) -> LayerNorm {
    LayerNormConfig::new(config.hidden_size)
        .with_epsilon(config.layer_norm_eps)
        .init(device)
}

impl Layer {
    fn new(config: &ClipTextConfig, device: &Device) -> Self {
        let (size, hidden) = (config.hidden_size, config.intermediate_size);
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        Self {
            layer_norm1: norm(config, device),
            self_attn: CausalAttention {
                q_proj: linear(size, size),
                k_proj: linear(size, size),
                v_proj: linear(size, size),
                out_proj: linear(size, size),
                heads: config.num_attention_heads,
            },
            layer_norm2: norm(config, device),
            mlp: FeedForward {
                fc1: linear(size, hidden),
                fc2: linear(hidden, size),
                activation: config.hidden_act,
            },
        }
    }

    fn forward(&self, state: Tensor<3>, mask: &Tensor<4>) -> Tensor<3> {
        let normed = self.layer_norm1.forward(state.clone());
        let state = state + self.self_attn.forward(normed, mask);
        let normed = self.layer_norm2.forward(state.clone());
        state + self.mlp.forward(normed)
    }
}

impl CausalAttention {
    fn forward(&self, state: Tensor<3>, mask: &Tensor<4>) -> Tensor<3> {
        let [rows, tokens, size] = state.dims();
        let head = size / self.heads;
        let split = |layer: &Linear| {
            let projected = layer.forward(state.clone());
            projected
                .reshape([rows, tokens, self.heads, head])
                .swap_dims(1, 2)
        };
        let query = split(&self.q_proj).mul_scalar((head as f64).sqrt().recip());
        let (key, value) = (split(&self.k_proj), split(&self.v_proj));
        let weights = softmax(query.matmul(key.transpose()) + mask.clone(), 3);
        let attended = weights.matmul(value).swap_dims(1, 2);
        self.out_proj
            .forward(attended.reshape([rows, tokens, size]))
    }
}

impl FeedForward {
    fn forward(&self, state: Tensor<3>) -> Tensor<3> {
        let hidden = self.fc1.forward(state);
        self.fc2.forward(match self.activation {
            ClipActivation::Gelu => ops::gelu(hidden),
            // Hendrycks and Gimpel 2016: x σ(1.702 x).
            ClipActivation::QuickGelu => hidden.clone() * sigmoid(hidden.mul_scalar(1.702)),
        })
    }
}
