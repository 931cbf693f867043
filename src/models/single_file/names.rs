//! The names of the first latent diffusion models (LDM), which single files have.

use std::collections::BTreeSet;

/// The names of a UNet's tensors, for which one has to know where its stages end in the numbering
/// of a single file.
#[derive(Debug)]
pub(in crate::models) struct UnetNames {
    /// Residual blocks of a downward stage.
    layers_per_block: usize,
    /// Upward stages that have attention, counted from the innermost one.
    up_attention: BTreeSet<usize>,
}

/// Names of a UNet's tensors outside its stages.
const UNET: [(&str, &str); 7] = [
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("add_embedding.linear_1.", "label_emb.0.0."),
    ("add_embedding.linear_2.", "label_emb.0.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
];
/// Names inside of a residual block.
const RESNET: [(&str, &str); 6] = [
    ("norm1.", "in_layers.0."),
    ("conv1.", "in_layers.2."),
    ("time_emb_proj.", "emb_layers.1."),
    ("norm2.", "out_layers.0."),
    ("conv2.", "out_layers.3."),
    ("conv_shortcut.", "skip_connection."),
];
/// Names inside of an autoencoder's attention.
const VAE_ATTENTION: [(&str, &str); 5] = [
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
];

/// Replaces the beginning of a name by the one that a table has for it.
fn replaced(name: &str, table: &[(&str, &str)]) -> Option<String> {
    let (from, to) = table.iter().find(|(from, _)| name.starts_with(from))?;
    Some(format!("{to}{}", &name[from.len()..]))
}

/// Takes `name.INDEX.` off the beginning.
fn indexed<'a>(name: &'a str, list: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = name
        .strip_prefix(list)?
        .strip_prefix('.')?
        .split_once('.')?;
    Some((index.parse().ok()?, rest))
}

impl UnetNames {
    /// Those of the UNet that has tensors of these names in diffusers.
    pub(in crate::models) fn of_tensors<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let (mut layers, mut up_attention) = (BTreeSet::new(), BTreeSet::new());
        for name in names {
            if let Some((0, rest)) = indexed(name, "down_blocks") {
                layers.extend(indexed(rest, "resnets").map(|(layer, _)| layer));
            }
            if let Some((stage, rest)) = indexed(name, "up_blocks")
                && rest.starts_with("attentions.")
            {
                up_attention.insert(stage);
            }
        }
        Self {
            layers_per_block: layers.len(),
            up_attention,
        }
    }

    /// The name in a single file, after `model.diffusion_model.`.
    pub(in crate::models) fn of(&self, name: &str) -> Option<String> {
        replaced(name, &UNET)
            .or_else(|| self.down(name))
            .or_else(|| middle(name))
            .or_else(|| self.up(name))
    }

    fn down(&self, name: &str) -> Option<String> {
        let (stage, rest) = indexed(name, "down_blocks")?;
        let first = 1 + stage * (self.layers_per_block + 1);
        if let Some((layer, rest)) = indexed(rest, "resnets") {
            let rest = replaced(rest, &RESNET)?;
            return Some(format!("input_blocks.{}.0.{rest}", first + layer));
        }
        if let Some((layer, rest)) = indexed(rest, "attentions") {
            return Some(format!("input_blocks.{}.1.{rest}", first + layer));
        }
        let rest = rest.strip_prefix("downsamplers.0.conv.")?;
        let end = first + self.layers_per_block;
        Some(format!("input_blocks.{end}.0.op.{rest}"))
    }

    fn up(&self, name: &str) -> Option<String> {
        let (stage, rest) = indexed(name, "up_blocks")?;
        let first = stage * (self.layers_per_block + 1);
        if let Some((layer, rest)) = indexed(rest, "resnets") {
            let rest = replaced(rest, &RESNET)?;
            return Some(format!("output_blocks.{}.0.{rest}", first + layer));
        }
        if let Some((layer, rest)) = indexed(rest, "attentions") {
            return Some(format!("output_blocks.{}.1.{rest}", first + layer));
        }
        let rest = rest.strip_prefix("upsamplers.0.conv.")?;
        let end = first + self.layers_per_block;
        let place = 1 + usize::from(self.up_attention.contains(&stage));
        Some(format!("output_blocks.{end}.{place}.conv.{rest}"))
    }
}

fn middle(name: &str) -> Option<String> {
    let rest = name.strip_prefix("mid_block.")?;
    if let Some((layer, rest)) = indexed(rest, "resnets") {
        let rest = replaced(rest, &RESNET)?;
        return Some(format!("middle_block.{}.{rest}", 2 * layer));
    }
    let (layer, rest) = indexed(rest, "attentions")?;
    Some(format!("middle_block.{}.{rest}", 2 * layer + 1))
}

/// The name of an autoencoder's tensor in a single file, after `first_stage_model.`.
pub(super) fn autoencoder(name: &str, stages: usize) -> Option<String> {
    if name.starts_with("quant_conv.") || name.starts_with("post_quant_conv.") {
        return Some(name.into());
    }
    let (side, rest) = name.split_once('.')?;
    let rest = replaced(
        rest,
        &[
            ("conv_norm_out.", "norm_out."),
            ("conv_in.", "conv_in."),
            ("conv_out.", "conv_out."),
        ],
    )
    .or_else(|| vae_middle(rest))
    .or_else(|| vae_stage(rest, stages))?;
    Some(format!("{side}.{rest}"))
}

fn vae_resnet(name: &str) -> String {
    name.replace("conv_shortcut.", "nin_shortcut.")
}

fn vae_middle(name: &str) -> Option<String> {
    let rest = name.strip_prefix("mid_block.")?;
    if let Some((layer, rest)) = indexed(rest, "resnets") {
        return Some(format!("mid.block_{}.{}", layer + 1, vae_resnet(rest)));
    }
    let (layer, rest) = indexed(rest, "attentions")?;
    let rest = replaced(rest, &VAE_ATTENTION)?;
    Some(format!("mid.attn_{}.{rest}", layer + 1))
}

fn vae_stage(name: &str, stages: usize) -> Option<String> {
    let (list, resampler, kind) = match name.starts_with("down_blocks.") {
        true => ("down_blocks", "downsamplers.0.", "down"),
        false => ("up_blocks", "upsamplers.0.", "up"),
    };
    let (stage, rest) = indexed(name, list)?;
    // The decoder's stages are counted from outside in a single file.
    let stage = match kind {
        "up" => stages.checked_sub(1 + stage)?,
        _ => stage,
    };
    if let Some((layer, rest)) = indexed(rest, "resnets") {
        return Some(format!("{kind}.{stage}.block.{layer}.{}", vae_resnet(rest)));
    }
    let rest = rest.strip_prefix(resampler)?;
    Some(format!("{kind}.{stage}.{kind}sample.{rest}"))
}
