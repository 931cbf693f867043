//! The readers of foreign files, each as a function of bytes.
//!
//! They serve the fuzz targets of `fuzz`, and `tests/hostile_files.rs`, which runs them without a
//! fuzzer. A typed error counts as success; a panic does not.

pub mod checkpoint;

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use flate2::{Compression, write::GzEncoder};
use safetensors::SafeTensors;
use siss::burn::tensor::Device;
use siss::images::{Format, ImageFiles, Images, Transparency};
use siss::models::{PipelineIndex, UNet2d, UNet2dConfig};
use siss::process::SchedulerConfig;
use siss::steering::Levels;
use siss::{DdpmScheduler, Result};

use crate::digits;

/// A network of two stages and a few thousand parameters, with attention.
pub const CONFIG: &str = r#"{"block_out_channels": [4, 8], "norm_num_groups": 2, "layers_per_block": 1, "in_channels": 1, "out_channels": 1,
    "attention_head_dim": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}"#;

/// Reads diffusers' `scheduler_config.json` from text, and builds the schedule that it describes.
pub fn scheduler_config(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    let config = SchedulerConfig::from_json(&text, "scheduler_config.json")?;
    DdpmScheduler::from_config(&config).map(|_| ())
}

/// Reads diffusers' `config.json`, and builds the network without its parameters.
pub fn unet_config(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    let config = UNet2dConfig::from_json(&text, "config.json")?;
    config.init(&Device::flex()).map(|_| ())
}

/// Loads a folder with these weights in safetensors.
pub fn safetensors(bytes: &[u8]) -> Result<()> {
    load(CONFIG, "diffusion_pytorch_model.safetensors", bytes)
}

/// The index of a network's weights in two parts, as diffusers writes it.
pub fn index_of_parts() -> Vec<u8> {
    parts().0.clone()
}

/// Loads a folder with this index and the parts that a valid index names.
pub fn weight_index(bytes: &[u8]) -> Result<()> {
    let folder = scratch();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("config.json"), CONFIG).unwrap();
    std::fs::write(at("diffusion_pytorch_model.safetensors.index.json"), bytes).unwrap();
    for (name, part) in PARTS.iter().zip(&parts().1) {
        std::fs::write(at(name), part).unwrap();
    }
    UNet2d::load(folder.path(), &Device::flex()).map(|_| ())
}

const PARTS: [&str; 2] = [
    "diffusion_pytorch_model-00001-of-00002.safetensors",
    "diffusion_pytorch_model-00002-of-00002.safetensors",
];

/// A valid index and its parts, created once.
fn parts() -> &'static (Vec<u8>, [Vec<u8>; 2]) {
    static MADE: OnceLock<(Vec<u8>, [Vec<u8>; 2])> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = scratch();
        let network = UNet2dConfig::from_json(CONFIG, "config.json").unwrap();
        network
            .init(&Device::flex())
            .unwrap()
            .save(folder.path())
            .unwrap();
        let whole = folder.path().join("diffusion_pytorch_model.safetensors");
        let whole = std::fs::read(whole).unwrap();
        let whole = SafeTensors::deserialize(&whole).unwrap();
        let mut map = serde_json::Map::new();
        let mut halves = [Vec::new(), Vec::new()];
        for (index, (name, tensor)) in whole.iter().enumerate() {
            map.insert(name.into(), PARTS[index % 2].into());
            halves[index % 2].push((name, tensor));
        }
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        let halves = halves.map(|half| safetensors::serialize(half, None).unwrap());
        (index.to_string().into_bytes(), halves)
    })
}

/// Reads diffusers' `model_index.json`.
pub fn pipeline_index(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    PipelineIndex::from_json(&text, "model_index.json").map(|_| ())
}

/// Loads a folder with these pickled weights and the configuration of the network that PyTorch
/// wrote.
pub fn pickle(bytes: &[u8]) -> Result<()> {
    let config = include_str!("../../../../tests/conformance/unet_pickled/config.json");
    load(config, "diffusion_pytorch_model.bin", bytes)
}

/// Reads the levels of a steered run from JSON.
pub fn levels(bytes: &[u8]) -> std::result::Result<(), serde_json::Error> {
    let levels: Levels = serde_json::from_slice(bytes)?;
    for id in 0..levels.values().len() as u64 {
        let level = levels.level(id, 500.0).unwrap_or(f64::NAN);
        assert!(level >= 0.0, "a level of {level}");
    }
    Ok(())
}

/// Reads the IDX file of digits. The bytes are compressed with gzip first, because its checksum
/// would hide the content from a fuzzer.
pub fn idx(bytes: &[u8]) -> Result<()> {
    let folder = scratch();
    let path = folder.path().join("images.gz");
    let mut wrapped = GzEncoder::new(Vec::new(), Compression::fast());
    wrapped.write_all(bytes).unwrap();
    std::fs::write(&path, wrapped.finish().unwrap()).unwrap();
    digits::read_idx_images(&path).map(|_| ())
}

/// The format in which pictures are read.
pub const FORMAT: Format = Format {
    channels: 3,
    height: 64,
    width: 64,
    is_configured: true,
    range: [-1.0, 1.0],
    transparency: Transparency::White,
};

/// Reads a folder of pictures.
pub fn pictures(folder: &Path) -> Result<()> {
    Images::read_all(ImageFiles::find(folder)?, FORMAT, |_| {}).map(|_| ())
}

/// Reads a picture, recognised by its content.
pub fn picture(bytes: &[u8], extension: &str) -> Result<()> {
    let folder = scratch();
    let path = folder.path().join("picture").with_extension(extension);
    std::fs::write(&path, bytes).unwrap();
    pictures(folder.path())
}

/// Reads a picture as the main example reads its own.
pub fn grey_png(bytes: &[u8]) -> Result<()> {
    let folder = scratch();
    let path = folder.path().join("tshirt.png");
    std::fs::write(&path, bytes).unwrap();
    digits::read_grey_png(&path).map(|_| ())
}

fn load(config: &str, name: &str, weights: &[u8]) -> Result<()> {
    let folder = scratch();
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    std::fs::write(folder.path().join(name), weights).unwrap();
    UNet2d::load(folder.path(), &Device::flex()).map(|_| ())
}

/// A temporary folder, in memory if possible.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}
