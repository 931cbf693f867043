//! Checks which configurations are valid.

use super::{DownBlockType, UNet2dConfig, UpBlockType};
use crate::error::Result;
use crate::models::settings::{check_divides, unsupported};

const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_BLOCKS: usize = 16;

impl UNet2dConfig {
    /// Checks everything that building and running the network relies on.
    pub(super) fn validate(&self, file: &str) -> Result<()> {
        self.validate_ranges(file)?;
        self.validate_stages(file)?;
        self.validate_divisors(file)?;
        self.validate_size(file)
    }

    fn validate_size(&self, file: &str) -> Result<()> {
        let Some([height, width]) = self.sample_size else {
            return Ok(());
        };
        match self.sizes_that_work([height, width]) {
            None => Ok(()),
            Some(sizes) => {
                let value = format!("{height}x{width}");
                Err(unsupported(file, "sample_size", value, sizes))
            }
        }
    }

    /// Why a size does not work, and the nearest sizes that do; `None` if it works.
    ///
    /// Each stage but the last halves the image, and diffusers joins the doubled image with the
    /// halved one: 15 pixels become 8, and 8 become 16.
    pub(in crate::models) fn sizes_that_work(&self, size: [usize; 2]) -> Option<String> {
        let halvings = self.block_out_channels.len().saturating_sub(1);
        let unit = 1_usize << halvings.min(MAX_BLOCKS);
        let works = |side: &usize| *side > 0 && side.is_multiple_of(unit);
        if size.iter().all(works) {
            return None;
        }
        let below = size.map(|side| (side / unit).max(1).saturating_mul(unit));
        let above = size.map(|side| side.div_ceil(unit).max(1).saturating_mul(unit));
        let [below, above] = [below, above].map(|[height, width]| format!("{height}x{width}"));
        let nearest = match below == above {
            true => below,
            false => format!("{below} or {above}"),
        };
        Some(format!(
            "the network halves it {halvings} times, so height and width must be multiples of {unit}, such as {nearest}"
        ))
    }

    fn validate_ranges(&self, file: &str) -> Result<()> {
        let whole_numbers = [
            ("in_channels", self.in_channels, 1, MAX_CHANNELS),
            ("out_channels", self.out_channels, 1, MAX_CHANNELS),
            (
                "time_embedding_dim",
                self.time_embedding_dim.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
            (
                "num_class_embeds",
                self.num_class_embeds.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
            ("layers_per_block", self.layers_per_block, 1, MAX_LAYERS),
            ("downsample_padding", self.downsample_padding, 0, 1),
            ("norm_num_groups", self.norm_num_groups, 1, MAX_CHANNELS),
            (
                "attn_norm_num_groups",
                self.attn_norm_num_groups.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
            (
                "attention_head_dim",
                self.attention_head_dim.unwrap_or(1),
                1,
                MAX_CHANNELS,
            ),
        ];
        for (key, value, least, most) in whole_numbers {
            if !(least..=most).contains(&value) {
                let remedy = format!("it must be from {least} to {most}");
                return Err(unsupported(file, key, value, remedy));
            }
        }
        let numbers = [
            ("norm_eps", self.norm_eps),
            ("mid_block_scale_factor", self.mid_block_scale_factor),
        ];
        for (key, value) in numbers {
            if !(value.is_finite() && value > 0.0) {
                return Err(unsupported(
                    file,
                    key,
                    value,
                    "it must be a finite number above 0",
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.dropout) {
            let remedy = "it must be a probability, from 0 to 1";
            return Err(unsupported(file, "dropout", self.dropout, remedy));
        }
        Ok(())
    }

    fn validate_stages(&self, file: &str) -> Result<()> {
        let channels = &self.block_out_channels;
        let refuse = |remedy| {
            Err(unsupported(
                file,
                "block_out_channels",
                format!("{channels:?}"),
                remedy,
            ))
        };
        if !(1..=MAX_BLOCKS).contains(&channels.len()) {
            return refuse(format!("it must have from 1 to {MAX_BLOCKS} entries"));
        }
        if channels
            .iter()
            .any(|channels| !(1..=MAX_CHANNELS).contains(channels))
        {
            return refuse(format!("every entry must be from 1 to {MAX_CHANNELS}"));
        }
        let half = channels.first().map_or(0, |first| first / 2);
        if half <= self.freq_shift {
            let remedy = format!("it must be below {half}, half the first of block_out_channels");
            return Err(unsupported(file, "freq_shift", self.freq_shift, remedy));
        }
        let lists = [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ];
        for (key, length) in lists {
            if length != channels.len() {
                let value = format!("a list of {length}");
                let remedy = format!(
                    "block_out_channels has {} entries: make them agree",
                    channels.len()
                );
                return Err(unsupported(file, key, value, remedy));
            }
        }
        Ok(())
    }

    fn validate_divisors(&self, file: &str) -> Result<()> {
        let channels = &self.block_out_channels;
        check_divides(file, "norm_num_groups", self.norm_num_groups, channels)?;
        if let (Some(groups), true) = (
            self.attn_norm_num_groups,
            self.has_mid_block && self.add_attention,
        ) {
            let last = &channels[channels.len().saturating_sub(1)..];
            check_divides(file, "attn_norm_num_groups", groups, last)?;
        }
        match self.attention_head_dim {
            Some(size) => {
                check_divides(file, "attention_head_dim", size, &self.attended_channels())
            }
            None => Ok(()),
        }
    }

    /// Channels of every stage that has attention.
    pub(super) fn attended_channels(&self) -> Vec<usize> {
        let channels = &self.block_out_channels;
        let down = self.down_block_types.iter().zip(channels);
        let up = self.up_block_types.iter().zip(channels.iter().rev());
        let down = down.filter(|(kind, _)| **kind == DownBlockType::Attention);
        let up = up.filter(|(kind, _)| **kind == UpBlockType::Attention);
        let has_middle = self.has_mid_block && self.add_attention;
        let middle = channels.last().filter(|_| has_middle);
        let all = down
            .map(|(_, channels)| channels)
            .chain(up.map(|(_, channels)| channels));
        all.chain(middle).copied().collect()
    }
}
