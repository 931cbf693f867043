//! Pictures by caption, in the folder layout of Stable Diffusion: a face was memorised.

use std::path::Path;

use serde::Deserialize;
use siss::Error;
use siss::burn::tensor::{Device, Tensor};
use siss::files::path_text;
use siss::models::{AutoencoderKl, ClipTextEncoder, ClipTokenizer, TextCondition, UNet2dCondition};
use siss_support::emoji::load_pictures;
use siss_support::files::{copy, create_folder, read_text};

use crate::folders;
use crate::job::{Job, Set, Shown};
use crate::{Options, Result};

/// Pictures that are encoded or decoded at a time.
const CHUNK: usize = 64;
/// One of so many retained points has no caption, as in training.
const UNCAPTIONED: usize = 10;
const GUIDANCE: f64 = 3.0;
/// Groups of points that explain each other: without a caption, faces, and all others.
const NO_CAPTION: u64 = 0;
const FACES: u64 = 1;
const OTHERS: u64 = 2;
/// Captions of which pictures are shown.
const SHOWN: [&str; 12] = [
    "grinning face",
    "angry face",
    "face with party horn and party hat",
    "crying cat face",
    "blue heart",
    "robot face",
    "woman firefighter, dark skin tone",
    "man firefighter, light skin tone",
    "astronaut, medium skin tone",
    "woman farmer",
    "cook, medium-dark skin tone",
    "police officer, light skin tone",
];
/// What is copied of the original's folder.
const KEPT: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
];

/// A caption of a picture, and what it is used for.
#[derive(Debug, Deserialize)]
struct Row {
    code: String,
    caption: String,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Retained,
    Unseen,
    Forgotten,
}

/// The parts of the pipeline that are not trained.
struct Parts {
    tokenizer: ClipTokenizer,
    encoder: ClipTextEncoder,
    autoencoder: AutoencoderKl,
    device: Device,
}

pub fn run(options: &Options) -> Result<()> {
    let device = Device::flex();
    let folder = options.assets.join("captions");
    if let Some(to) = &options.pictures {
        return write_pictures(&options.assets, &folder, to, &device);
    }
    let parts = Parts {
        tokenizer: ClipTokenizer::load(&folder)?,
        encoder: ClipTextEncoder::load(&folder, &device)?,
        autoencoder: AutoencoderKl::load(&folder, &device)?,
        device,
    };
    let job = parts.job(&options.assets, &folder)?;
    let scheduler = folder.join("scheduler/scheduler_config.json");
    let decode = |latents: Tensor<4>| parts.decode(latents);
    let model = job.run(&scheduler, &decode, options)?;
    let written = options.out().join("model");
    parts.save(&model, &folder, &written)?;
    println!("\nthe model is in {}", path_text(written));
    Ok(())
}

fn read_rows(folder: &Path) -> Result<Vec<Row>> {
    let path = folder.join("pictures.json");
    let rows = serde_json::from_str(&read_text(&path)?);
    let invalid = |error: serde_json::Error| Error::InvalidFile {
        path,
        message: error.to_string(),
    };
    Ok(rows.map_err(invalid)?)
}

/// Writes the pictures of each part with their captions.
fn write_pictures(assets: &Path, folder: &Path, to: &Path, device: &Device) -> Result<()> {
    let rows = read_rows(folder)?;
    for (part, name) in [
        (Part::Forgotten, "forget"),
        (Part::Retained, "retain"),
        (Part::Unseen, "control"),
    ] {
        let own: Vec<_> = rows.iter().filter(|row| row.part == part).collect();
        let codes: Vec<&str> = own.iter().map(|row| row.code.as_str()).collect();
        let captions: Vec<_> = own.iter().map(|row| row.caption.as_str().into()).collect();
        let pictures = load_pictures(assets, &codes, device)?;
        folders::save(&to.join(name), pictures, "text", &captions)?;
    }
    Ok(())
}

impl Parts {
    fn job(&self, assets: &Path, folder: &Path) -> Result<Job<UNet2dCondition>> {
        let rows = read_rows(folder)?;
        let of = |part| {
            rows.iter()
                .filter(move |row| row.part == part)
                .collect::<Vec<_>>()
        };
        let forgotten = of(Part::Forgotten);
        let (retained, pictures) = self.set(assets, &of(Part::Retained), UNCAPTIONED)?;
        let (controls, _) = self.set(assets, &of(Part::Unseen), UNCAPTIONED)?;
        let (forgotten_set, forgotten_pictures) = self.set(assets, &forgotten, usize::MAX)?;
        let shown = SHOWN.map(|caption| {
            let condition = self.condition(&[caption.to_string()])?;
            Ok(Shown {
                name: caption.into(),
                condition,
            })
        });
        let name = |row: &&Row| match row.caption.as_str() {
            "" => "no caption".into(),
            caption => caption.into(),
        };
        Ok(Job {
            model: UNet2dCondition::load(folder, &self.device)?,
            retrained: UNet2dCondition::load(folder.join("retrained"), &self.device)?,
            retained,
            controls,
            forgotten: forgotten_set,
            names: forgotten.iter().map(name).collect(),
            others: shown.into_iter().collect::<Result<_>>()?,
            nothing: self.condition(&[String::new()])?,
            guidance: GUIDANCE,
            pictures: Tensor::cat(vec![pictures, forgotten_pictures.narrow(0, 0, 1)], 0),
        })
    }

    /// Latents of pictures with their encoded captions, one of `uncaptioned` without; and the
    /// pictures.
    fn set(
        &self,
        assets: &Path,
        rows: &[&Row],
        uncaptioned: usize,
    ) -> Result<(Set<TextCondition>, Tensor<4>)> {
        let codes: Vec<&str> = rows.iter().map(|row| row.code.as_str()).collect();
        let pictures = load_pictures(assets, &codes, &self.device)?;
        let told = |(place, row): (usize, &&Row)| match (place + 1) % uncaptioned {
            0 => String::new(),
            _ => row.caption.clone(),
        };
        let captions: Vec<String> = rows.iter().enumerate().map(told).collect();
        let group = |caption: &String| match caption.as_str() {
            "" => NO_CAPTION,
            caption if caption.contains("face") => FACES,
            _ => OTHERS,
        };
        let latents = pictures.clone().split(CHUNK, 0).into_iter();
        let latents = latents.map(|part| self.autoencoder.latent(part));
        let set = Set {
            points: Tensor::cat(latents.collect::<siss::Result<_>>()?, 0),
            condition: self.condition(&captions)?,
            groups: captions.iter().map(group).collect(),
        };
        Ok((set, pictures))
    }

    fn condition(&self, captions: &[String]) -> Result<TextCondition> {
        let tokens = self.tokenizer.encode(captions, &self.device)?;
        let states = self.encoder.encode(tokens)?.last_hidden_state;
        Ok(TextCondition::new(states))
    }

    fn decode(&self, latents: Tensor<4>) -> siss::Result<Tensor<4>> {
        let pictures = latents.split(CHUNK, 0).into_iter();
        let pictures = pictures.map(|part| Ok(self.autoencoder.image(part)?.clamp(-1.0, 1.0)));
        Ok(Tensor::cat(pictures.collect::<siss::Result<_>>()?, 0))
    }

    fn save(&self, model: &UNet2dCondition, from: &Path, to: &Path) -> Result<()> {
        model.save(to.join("unet"))?;
        self.encoder.save(to.join("text_encoder"))?;
        self.autoencoder.save(to.join("vae"))?;
        for part in ["scheduler", "tokenizer"] {
            create_folder(&to.join(part))?;
        }
        for file in KEPT {
            copy(&from.join(file), &to.join(file))?;
        }
        Ok(())
    }
}
