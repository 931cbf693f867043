//! Transformer blocks in which pixels and prompt attend to each other (MMDiT).

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::Sd3TransformerConfig;
use crate::models::layers::{FeedForward, Modulation, adaptive_norm};
use crate::models::ops::{self, Activation};

/// diffusers' `JointTransformerBlock`. In the last one the prompt is only read.
#[derive(Module, Debug)]
pub(super) struct JointBlock {
    norm1: Modulation,
    norm1_context: Modulation,
    attn: JointAttention,
    ff: FeedForward,
    ff_context: Option<FeedForward>,
}

#[derive(Module, Debug)]
struct JointAttention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    add_q_proj: Linear,
    add_k_proj: Linear,
    add_v_proj: Linear,
    to_out: Vec<Linear>,
    to_add_out: Option<Linear>,
    #[module(skip)]
    heads: usize,
}

impl JointAttention {
    fn new(config: &Sd3TransformerConfig, is_last: bool, device: &Device) -> Self {
        let channels = config.channels();
        let linear = || LinearConfig::new(channels, channels).init(device);
        Self {
            to_q: linear(),
            to_k: linear(),
            to_v: linear(),
            add_q_proj: linear(),
            add_k_proj: linear(),
            add_v_proj: linear(),
            to_out: vec![linear()],
            to_add_out: (!is_last).then(linear),
            heads: config.num_attention_heads,
        }
    }

    /// Attention over pixels and prompt together; the prompt's part only if it is used further.
    ///
    /// # Shapes
    /// - `features` and its result: `[rows, channels, positions]`
    /// - `context` and its result: `[rows, channels, tokens]`
    fn forward(&self, features: Tensor<3>, context: Tensor<3>) -> (Tensor<3>, Option<Tensor<3>>) {
        let (positions, tokens) = (features.dims()[2], context.dims()[2]);
        let both = |pixels: &Linear, prompt: &Linear| {
            let pixels = ops::project(pixels, features.clone());
            Tensor::cat(vec![pixels, ops::project(prompt, context.clone())], 2)
        };
        let query = both(&self.to_q, &self.add_q_proj);
        let key = both(&self.to_k, &self.add_k_proj);
        let value = both(&self.to_v, &self.add_v_proj);
        let attended = ops::attend(query, key, value, self.heads);
        let of_features = attended.clone().narrow(2, 0, positions);
        let of_features = self
            .to_out
            .iter()
            .fold(of_features, |features, layer| ops::project(layer, features));
        let of_context = self
            .to_add_out
            .as_ref()
            .map(|layer| ops::project(layer, attended.narrow(2, positions, tokens)));
        (of_features, of_context)
    }
}

impl JointBlock {
    pub(super) fn new(config: &Sd3TransformerConfig, is_last: bool, device: &Device) -> Self {
        let channels = config.channels();
        let feed_forward = || FeedForward::new(channels, Activation::GeluTanh, device);
        Self {
            norm1: Modulation::new(channels, 6, device),
            norm1_context: Modulation::new(channels, if is_last { 2 } else { 6 }, device),
            attn: JointAttention::new(config, is_last, device),
            ff: feed_forward(),
            ff_context: (!is_last).then(feed_forward),
        }
    }

    /// # Shapes
    /// - `features`: `[rows, channels, positions]`; `context`: `[rows, channels, tokens]`
    /// - `told`: `[rows, channels]`
    pub(super) fn forward(
        &self,
        features: Tensor<3>,
        context: Tensor<3>,
        told: &Tensor<2>,
    ) -> (Tensor<3>, Tensor<3>) {
        let pixels: [Tensor<3>; 6] = self.norm1.forward(told);
        let [shift, scale, ..] = pixels.clone();
        let normed = adaptive_norm(features.clone(), scale, shift);
        let Some(feed_context) = &self.ff_context else {
            let [scale, shift] = self.norm1_context.forward(told);
            let prompt = adaptive_norm(context.clone(), scale, shift);
            let (attended, _) = self.attn.forward(normed, prompt);
            return (finish(features, attended, pixels, &self.ff), context);
        };
        let prompt: [Tensor<3>; 6] = self.norm1_context.forward(told);
        let [shift, scale, ..] = prompt.clone();
        let normed_context = adaptive_norm(context.clone(), scale, shift);
        let (attended, of_context) = self.attn.forward(normed, normed_context);
        let features = finish(features, attended, pixels, &self.ff);
        let context = match of_context {
            Some(of_context) => finish(context, of_context, prompt, feed_context),
            None => context,
        };
        (features, context)
    }
}

/// Adds what attention found and what the feed-forward layer makes of it, each through its gate.
fn finish(
    features: Tensor<3>,
    attended: Tensor<3>,
    [_, _, gate, shift, scale, gate_after]: [Tensor<3>; 6],
    feed_forward: &FeedForward,
) -> Tensor<3> {
    let features = features + attended * gate;
    let hidden = feed_forward.forward(adaptive_norm(features.clone(), scale, shift));
    features + hidden * gate_after
}
