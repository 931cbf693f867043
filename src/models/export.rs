//! Saves a diffusers pipeline with a new network, together with everything else that the pipeline
//! needs.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::folder::WEIGHTS;
use super::index::PipelineIndex;
use super::location::{CONFIG, ModelFolder, NETWORK, stated_prediction_type};
use super::{ClassUNet2d, Dit, Sd3Transformer, UNet2d, UNet2dCondition, folder, settings};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result, check_prediction_type};
use crate::files::json::python_object;
use crate::files::{entries, invalid, open, path_text, read_configuration, replace};
use crate::process::PredictionType;

const INDEX: &str = "model_index.json";
const CARD: &str = "readme.md";
const SCHEDULER: &str = "scheduler";
const SCHEDULER_CONFIG: &str = "scheduler_config.json";
/// The longest file that is copied if the pipeline's index does not name it; code, configurations
/// and texts are shorter.
const LONGEST_SUPPORT: u64 = 16 << 20;
/// Endings of files that are copied although the index does not name them.
const SUPPORT: [&str; 6] = ["py", "json", "txt", "md", "yaml", "yml"];
/// Beginnings of the names of such files.
const LEGAL: [&str; 4] = ["license", "licence", "notice", "copying"];
/// Endings of weight files.
const WEIGHT_FILES: [&str; 8] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "msgpack",
    "onnx",
    "h5",
];

/// A part of a model's folder that was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path in the folder of the original model.
    pub path: PathBuf,
    /// Why it was not copied.
    pub reason: &'static str,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", path_text(&self.path), self.reason)
    }
}

/// A network that [`save_pipeline`] writes: one that takes the place of a pipeline's `unet` or
/// `transformer`.
pub trait PipelineNetwork: Denoiser<4> {
    /// Whether it works alone: the pipeline of such a network needs only a scheduler besides, and
    /// its index is written if it is missing.
    const IS_ALONE: bool = false;

    /// Writes `config.json` and the weights into a folder. Each tensor has the type that it has in
    /// the folder of the original network, or f32 if no weights can be read there.
    ///
    /// # Errors
    /// Those of [`UNet2d::save`].
    fn save_like(&self, original: &Path, folder: &Path) -> Result<()>;
}

impl PipelineNetwork for UNet2d {
    const IS_ALONE: bool = true;

    fn save_like(&self, original: &Path, folder: &Path) -> Result<()> {
        folder::save_like(self, &self.config().to_json(), [original, folder])
    }
}

impl PipelineNetwork for ClassUNet2d {
    const IS_ALONE: bool = true;

    fn save_like(&self, original: &Path, folder: &Path) -> Result<()> {
        self.unet().save_like(original, folder)
    }
}

impl PipelineNetwork for UNet2dCondition {
    fn save_like(&self, original: &Path, folder: &Path) -> Result<()> {
        let config = settings::to_text(self.config());
        folder::save_like(self, &config, [original, folder])
    }
}

impl PipelineNetwork for Dit {
    fn save_like(&self, original: &Path, folder: &Path) -> Result<()> {
        let config = settings::to_text(self.config());
        folder::save_like(self, &config, [original, folder])
    }
}

impl PipelineNetwork for Sd3Transformer {
    fn save_like(&self, original: &Path, folder: &Path) -> Result<()> {
        let config = settings::to_text(self.config());
        folder::save_like(self, &config, [original, folder])
    }
}

/// Writes a network in the layout of the original model, together with the rest of that model.
///
/// The rest is the scheduler, the other parts that `model_index.json` names, code and texts at the
/// root, the licence and the model card. Contents are copied, file modes are not; links are
/// followed.
///
/// - The weights keep the types of the original's: what was fp16 stays fp16. They are one file.
/// - The scheduler's file is copied unchanged, so it must say that the model predicts what the
///   network predicts ([`Denoiser::prediction_type`]).
/// - A missing index is written for a `UNet2DModel`, with the scheduler's own class. Networks of
///   other pipelines need more parts, which only an index names, and diffusers has no pipeline of
///   such a network for flow matching.
/// - Other weights of the network, other folders and large files are not copied; they are returned
///   with the reason. Everything that the index names is copied unchanged, even a second network.
/// - The model card, or a new one, gets a section *Unlearning* with this crate's version and
///   `note`, a sentence that continues *it forgets some of its training data:*. With an empty
///   note the card is copied as it is, for a model that was changed in another way.
///
/// `folder` should be new: files in it that are not overwritten stay.
///
/// # Errors
/// [`Error::Io`] with the path; [`Error::InvalidFile`] for an invalid index;
/// [`Error::PredictionTypeDiffers`] before anything is written.
pub fn save_pipeline<N: PipelineNetwork>(
    network: &N,
    origin: &ModelFolder,
    folder: impl AsRef<Path>,
    note: &str,
) -> Result<Vec<LeftOut>> {
    let folder = folder.as_ref();
    let stated = stated_prediction_type(origin.scheduler_file())?;
    check_prediction_type(
        network.prediction_type(),
        "the pipeline's scheduler",
        stated,
    )?;
    let root = match origin.index_file().and_then(Path::parent) {
        Some(root) => root,
        None => origin.pipeline(),
    };
    let mut export = Export {
        root,
        network: origin.network(),
        part: origin.part(),
        is_flat: is_same(origin.network(), root),
        parents: Vec::new(),
        left_out: Vec::new(),
    };
    let [network_folder, scheduler_folder] = match export.is_flat {
        true => [folder.to_path_buf(), folder.to_path_buf()],
        false => [folder.join(origin.part()), folder.join(SCHEDULER)],
    };
    let index = origin.index()?;
    export.root(index.as_ref(), folder)?;
    if !export.is_flat {
        export.beside_network(&network_folder)?;
    }
    // Last, so that no copied file overwrites the new network.
    network.save_like(origin.network(), &network_folder)?;
    create(&scheduler_folder)?;
    let scheduler = origin.scheduler_file();
    copy_file(scheduler, &scheduler_folder.join(SCHEDULER_CONFIG))?;
    let has_pipeline = stated != Some(PredictionType::FlowVelocity);
    if index.is_none() && N::IS_ALONE && has_pipeline {
        let text = format!("{:#}\n", new_index(scheduler)?);
        write(&folder.join(INDEX), text.as_bytes())?;
    }
    export.card(folder, note)?;
    Ok(export.left_out)
}

/// Whether two paths lead to the same folder.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    one == other || (real(one).is_some() && real(one) == real(other))
}

/// The index of a pipeline that has only a network and a scheduler.
fn new_index(scheduler: &Path) -> Result<Value> {
    let config = python_object(&read_configuration(scheduler)?)
        .map_err(|error| invalid(scheduler, format!("not a scheduler's file: {error}")))?;
    let class = config.get("_class_name").and_then(Value::as_str);
    let class = class.unwrap_or("DDPMScheduler");
    // `DDPMPipeline` calls the scheduler without scaling its input; `DDIMPipeline` reads any
    // scheduler as DDIM.
    let pipeline = match class {
        "DDPMScheduler" | "DDPMParallelScheduler" => "DDPMPipeline",
        _ => "DDIMPipeline",
    };
    Ok(serde_json::json!({
        "_class_name": pipeline,
        "scheduler": ["diffusers", class],
        "unet": ["diffusers", "UNet2DModel"],
    }))
}

/// The copy in progress, and what was left out.
struct Export<'a> {
    /// The pipeline's folder, with the index if there is one, and the network's folder.
    root: &'a Path,
    network: &'a Path,
    /// The network's name in the pipeline.
    part: &'static str,
    /// Whether the network is at the pipeline's root.
    is_flat: bool,
    /// The folders on the path to the one that is copied, with links resolved.
    parents: Vec<PathBuf>,
    left_out: Vec<LeftOut>,
}

impl Export<'_> {
    fn leave_out(&mut self, path: &Path, reason: &'static str) {
        let path = path.strip_prefix(self.root).unwrap_or(path);
        self.left_out.push(LeftOut {
            path: path.into(),
            reason,
        });
    }

    /// Copies the files at the root of the model's folder, and the parts that the index names.
    fn root(&mut self, index: Option<&PipelineIndex>, to: &Path) -> Result<()> {
        let (root, network) = (self.root, self.network);
        let is_flat = self.is_flat;
        let mut parts = parts(index, self.part);
        create(to)?;
        for path in entries(root)? {
            let name = path.file_name().unwrap_or_default();
            let target = to.join(name);
            let lower = name.to_string_lossy().to_lowercase();
            match self.kind(&path)? {
                None => {}
                Some(Kind::Folder) if parts.remove(lower_or(name, &lower)) => {
                    self.folder(&path, &target, |_| true)?;
                }
                Some(Kind::Folder) if !is_flat && is_same(&path, network) => {}
                Some(Kind::Folder) if !lower.starts_with('.') && has_code(&path)? => {
                    self.folder(&path, &target, is_code)?;
                }
                Some(Kind::Folder)
                    if [NETWORK, self.part].iter().any(|it| lower.starts_with(it)) =>
                {
                    self.leave_out(&path, "weights from before the unlearning");
                }
                Some(Kind::Folder) => self.leave_out(&path, "not a part of the pipeline"),
                Some(Kind::File(_)) if lower == CARD => {}
                Some(Kind::File(_)) if is_flat && [CONFIG, WEIGHTS].contains(&lower.as_str()) => {}
                Some(Kind::File(bytes)) => self.support(&path, &lower, bytes, &target)?,
            }
        }
        for name in parts.iter().filter(|&&part| part != SCHEDULER) {
            self.leave_out(&root.join(name), "named in model_index.json but missing");
        }
        Ok(())
    }

    /// Copies the files in the network's own folder, except its configuration and its weights.
    fn beside_network(&mut self, to: &Path) -> Result<()> {
        create(to)?;
        for path in entries(self.network)? {
            let name = path.file_name().unwrap_or_default();
            let lower = name.to_string_lossy().to_lowercase();
            match self.kind(&path)? {
                None => {}
                Some(Kind::Folder) => self.leave_out(&path, "not a part of the pipeline"),
                Some(Kind::File(_)) if [CONFIG, WEIGHTS].contains(&lower.as_str()) => {}
                Some(Kind::File(bytes)) => self.support(&path, &lower, bytes, &to.join(name))?,
            }
        }
        Ok(())
    }

    /// Copies a small file of code, configuration or text; others are left out.
    fn support(&mut self, path: &Path, lower: &str, bytes: u64, target: &Path) -> Result<()> {
        let ends = |endings: &[&str]| {
            let (_, ending) = lower.rsplit_once('.').unwrap_or_default();
            endings.contains(&ending)
        };
        let is_support = lower == ".gitattributes"
            || (!lower.starts_with('.') && ends(&SUPPORT))
            || LEGAL.iter().any(|beginning| lower.starts_with(beginning));
        if ends(&WEIGHT_FILES) || lower.ends_with(".index.json") {
            self.leave_out(path, "weights from before the unlearning");
        } else if !is_support {
            self.leave_out(path, "not a part of the pipeline");
        } else if bytes > LONGEST_SUPPORT {
            self.leave_out(
                path,
                "longer than 16 MiB, and not named by model_index.json",
            );
        } else {
            copy_file(path, target)?;
        }
        Ok(())
    }

    /// Copies the wanted files of a folder and of its subfolders.
    fn folder(&mut self, from: &Path, to: &Path, is_wanted: fn(&Path) -> bool) -> Result<()> {
        let real = from.canonicalize().map_err(Error::io("reading", from))?;
        if self.parents.contains(&real) {
            self.leave_out(from, "a link to a folder that it is in");
            return Ok(());
        }
        self.parents.push(real);
        create(to)?;
        for path in entries(from)? {
            let target = to.join(path.file_name().unwrap_or_default());
            match self.kind(&path)? {
                None => {}
                Some(Kind::Folder) => self.folder(&path, &target, is_wanted)?,
                Some(Kind::File(_)) if is_wanted(&path) => copy_file(&path, &target)?,
                Some(Kind::File(_)) => self.leave_out(&path, "not a part of the pipeline"),
            }
        }
        self.parents.pop();
        Ok(())
    }

    /// What is at a path, or at the end of a link; `None` if it is left out.
    fn kind(&mut self, path: &Path) -> Result<Option<Kind>> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Some(Kind::Folder)),
            Ok(metadata) if metadata.is_file() => Ok(Some(Kind::File(metadata.len()))),
            Ok(_) => {
                self.leave_out(path, "not an ordinary file");
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::NotFound || is_link(path) => {
                self.leave_out(path, "a broken link");
                Ok(None)
            }
            Err(error) => Err(Error::io("reading", path)(error)),
        }
    }

    /// Writes the model card, with a section about the unlearning.
    fn card(&mut self, folder: &Path, note: &str) -> Result<()> {
        let mut paths = entries(self.root)?.into_iter();
        let found = paths.find(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().to_lowercase() == CARD
        });
        let (mut card, mut name) = (Vec::new(), "README.md".into());
        if let Some(path) = found.filter(|path| path.is_file()) {
            let (mut file, bytes) = open(&path)?;
            if bytes > LONGEST_SUPPORT {
                self.leave_out(&path, "longer than 16 MiB");
            } else {
                io::Read::read_to_end(&mut file, &mut card).map_err(Error::io("reading", &path))?;
                name = path.file_name().unwrap_or_default().to_owned();
            }
        }
        if note.is_empty() {
            return match card.is_empty() {
                true => Ok(()),
                false => write(&folder.join(name), &card),
            };
        }
        if !card.is_empty() {
            card.extend(if card.ends_with(b"\n") { "\n" } else { "\n\n" }.bytes());
        }
        let version = env!("CARGO_PKG_VERSION");
        card.extend(
            format!(
                "## Unlearning\n\nThe weights of this model were changed with siss {version} so that it forgets some of its training \
                 data: {note}\n\nEverything else on this page describes the model before that.\n"
            )
            .bytes(),
        );
        write(&folder.join(name), &card)
    }
}

/// The kinds of entries, which are copied in different ways.
enum Kind {
    Folder,
    /// With its length in bytes.
    File(u64),
}

/// The names of the folders of a pipeline, except the network's.
fn parts<'a>(index: Option<&'a PipelineIndex>, network: &str) -> BTreeSet<&'a str> {
    let named = index.into_iter().flat_map(|index| index.parts.keys());
    let mut parts: BTreeSet<_> = named.map(String::as_str).collect();
    parts.insert(SCHEDULER);
    parts.remove(network);
    parts
}

/// The name itself if it is text.
fn lower_or<'a>(name: &'a std::ffi::OsStr, lower: &'a str) -> &'a str {
    name.to_str().unwrap_or(lower)
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

fn is_code(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "py")
}

fn has_code(folder: &Path) -> Result<bool> {
    Ok(entries(folder)?.iter().any(|path| is_code(path)))
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("creating", folder))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(bytes))
}

/// Copies the contents of a file, without its mode.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let (mut file, _) = open(from)?;
    replace(to, |copy| io::copy(&mut file, copy).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{DownBlockType, UNet2dConfig, UpBlockType};
    use burn::module::Module;
    use burn::tensor::Device;

    fn network() -> UNet2d {
        let config = UNet2dConfig {
            block_out_channels: vec![4],
            down_block_types: vec![DownBlockType::Resnet],
            up_block_types: vec![UpBlockType::Resnet],
            layers_per_block: 1,
            norm_num_groups: 2,
            attention_head_dim: None,
            sample_size: Some([4, 4]),
            ..UNet2dConfig::default()
        };
        config.init(&Device::flex()).unwrap()
    }

    fn put(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The files below a folder, with `/` between the parts of a path.
    fn listed(folder: &Path) -> Vec<String> {
        fn collect(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for path in entries(folder).unwrap() {
                if path.is_dir() {
                    collect(&path, root, found);
                } else {
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    found.push(name.replace('\\', "/"));
                }
            }
        }
        let mut found = Vec::new();
        collect(folder, folder, &mut found);
        found.sort();
        found
    }

    const SCHEDULER_TEXT: &str =
        r#"{"_class_name": "DDIMScheduler", "lower_order_final": -Infinity}"#;

    /// A model's folder with these files, saved with a new network.
    fn saved(model: &[(&str, &str)]) -> (tempfile::TempDir, Vec<String>, Vec<String>) {
        let place = tempfile::tempdir().unwrap();
        let (origin, to) = (place.path().join("model"), place.path().join("new"));
        for (name, text) in model {
            put(&origin, name, text);
        }
        let origin = ModelFolder::find(&origin).unwrap();
        let left = save_pipeline(&network(), &origin, &to, "by a test.").unwrap();
        let left = left
            .iter()
            .map(|left| left.path.display().to_string())
            .collect();
        let files = listed(&to);
        (place, files, left)
    }

    #[test]
    fn what_the_index_names_goes_along_and_the_rest_is_named() {
        let index = r#"{"_class_name": ["pipeline", "Mine"], "unet": ["my_unet", "MyUnet"], "scheduler": ["diffusers", "DDIMScheduler"],
            "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [null, null], "image_encoder": ["transformers", "CLIP"],
            "../outside": ["diffusers", "X"], "scale": 2.0}"#;
        let (place, files, left) = saved(&[
            ("model_index.json", index),
            ("unet/config.json", "{}"),
            ("unet/diffusion_pytorch_model.safetensors", "old"),
            ("unet/diffusion_pytorch_model.bin", "old"),
            ("unet/diffusion_pytorch_model.safetensors.index.json", "{}"),
            ("unet/my_unet.py", "code"),
            ("unet/checkpoint-5/model.safetensors", "old"),
            ("scheduler/scheduler_config.json", SCHEDULER_TEXT),
            ("vae/config.json", "{}"),
            (
                "vae/deep/er/diffusion_pytorch_model.safetensors",
                "weights of another part",
            ),
            ("pipeline.py", "code"),
            ("blocks/__init__.py", ""),
            ("blocks/data.bin", "x"),
            ("README.md", "# Card"),
            ("License.txt", "mine"),
            ("NOTICE", "mine"),
            ("labels.json", "{}"),
            (".gitattributes", "*.bin"),
            (".git/HEAD", "ref"),
            (
                "checkpoint-500/unet/diffusion_pytorch_model.safetensors",
                "old",
            ),
            ("optimizer.bin", "state"),
            ("events.out.tfevents", "log"),
            ("../outside/secret", "not of this folder"),
        ]);
        let expected = [
            ".gitattributes",
            "License.txt",
            "NOTICE",
            "README.md",
            "blocks/__init__.py",
            "labels.json",
            "model_index.json",
            "pipeline.py",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/my_unet.py",
            "vae/config.json",
            "vae/deep/er/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(files, expected);
        let expected = [
            "../outside",
            ".git",
            "blocks/data.bin",
            "checkpoint-500",
            "events.out.tfevents",
            "image_encoder",
            "optimizer.bin",
            "unet/checkpoint-5",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ];
        let mut left = left;
        left.sort();
        assert_eq!(left, expected);
        let new = place.path().join("new");
        assert_eq!(fs::read_to_string(new.join(INDEX)).unwrap(), index);
        let card = fs::read_to_string(new.join("README.md")).unwrap();
        assert!(card.starts_with("# Card\n\n## Unlearning\n"), "{card}");
        assert!(card.contains("by a test."), "{card}");
        UNet2d::load(&new, &Device::flex()).unwrap();
    }

    /// A pipeline keeps its prediction type, and does not accept a network that predicts something
    /// else.
    #[test]
    fn the_scheduler_says_what_the_network_predicts() {
        let place = tempfile::tempdir().unwrap();
        let (origin, new) = (place.path().join("model"), place.path().join("new"));
        let scheduler = r#"{"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}"#;
        put(&origin, "scheduler/scheduler_config.json", scheduler);
        put(&origin, "unet/config.json", "{}");
        let folder = ModelFolder::find(&origin).unwrap();
        let error = save_pipeline(&network(), &folder, &new, "").unwrap_err();
        assert!(
            matches!(
                error,
                Error::PredictionTypeDiffers {
                    model: PredictionType::Epsilon,
                    stated: PredictionType::Velocity,
                    ..
                }
            ),
            "{error}"
        );
        assert!(!new.exists());
        let network = network().with_prediction_type(PredictionType::Velocity);
        save_pipeline(&network, &folder, &new, "").unwrap();
        for path in [new.clone(), new.join("unet")] {
            let read = UNet2d::load(path, &Device::flex()).unwrap();
            assert_eq!(read.prediction_type(), PredictionType::Velocity);
            assert_eq!(read.valid().prediction_type(), PredictionType::Velocity);
            assert_eq!(read.notes(), []);
        }
    }

    #[test]
    fn a_flat_folder_stays_flat_and_gets_an_index_and_a_card() {
        let (place, files, left) = saved(&[
            ("config.json", "{}"),
            ("diffusion_pytorch_model.fp16.bin", "old"),
            ("scheduler_config.json", SCHEDULER_TEXT),
            ("unet_ema/config.json", "{}"),
        ]);
        let expected = [
            "README.md",
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "model_index.json",
            "scheduler_config.json",
        ];
        assert_eq!(files, expected);
        assert_eq!(left, ["diffusion_pytorch_model.fp16.bin", "unet_ema"]);
        let new = place.path().join("new");
        let text = fs::read_to_string(new.join(INDEX)).unwrap();
        let index: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(index["_class_name"], "DDIMPipeline");
        assert_eq!(index["scheduler"][1], "DDIMScheduler");
        let card = fs::read_to_string(new.join("README.md")).unwrap();
        assert!(card.starts_with("## Unlearning\n"), "{card}");
    }

    /// The network of the moving average takes the place of the other one.
    #[test]
    fn another_folder_than_unet_becomes_unet() {
        let place = tempfile::tempdir().unwrap();
        for name in ["unet", "unet_ema"] {
            put(place.path(), &format!("model/{name}/config.json"), "{}");
            put(place.path(), &format!("model/{name}/{WEIGHTS}"), "old");
        }
        let scheduler = "model/scheduler/scheduler_config.json";
        put(place.path(), scheduler, SCHEDULER_TEXT);
        let (model, new) = (place.path().join("model"), place.path().join("new"));
        let origin = ModelFolder::find(model.join("unet_ema")).unwrap();
        let left = save_pipeline(&network(), &origin, &new, "").unwrap();
        let left: Vec<_> = left.iter().map(ToString::to_string).collect();
        assert_eq!(left, ["unet (weights from before the unlearning)"]);
        UNet2d::load(new.join("unet"), &Device::flex()).unwrap();
        assert!(!new.join("unet_ema").exists());
    }

    /// For a model that was changed in another way; and diffusers has no pipeline for its process.
    #[test]
    fn without_a_note_the_card_stays_and_a_network_of_a_path_gets_no_index() {
        let place = tempfile::tempdir().unwrap();
        let path = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#;
        for (name, text) in [
            ("model/README.md", "# Card"),
            ("model/unet/config.json", "{}"),
            ("model/scheduler/scheduler_config.json", path),
        ] {
            put(place.path(), name, text);
        }
        let (model, new) = (place.path().join("model"), place.path().join("new"));
        let origin = ModelFolder::find(model).unwrap();
        let network = network().with_prediction_type(PredictionType::FlowVelocity);
        save_pipeline(&network, &origin, &new, "").unwrap();
        assert_eq!(fs::read_to_string(new.join("README.md")).unwrap(), "# Card");
        let expected = [
            "README.md",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        ];
        assert_eq!(listed(&new), expected);
    }

    #[test]
    fn a_new_index_has_the_schedulers_class() {
        let place = tempfile::tempdir().unwrap();
        for (class, pipeline) in [
            ("DDPMScheduler", "DDPMPipeline"),
            ("PNDMScheduler", "DDIMPipeline"),
        ] {
            let text = format!(r#"{{"lambda": -Infinity, "_class_name": "{class}"}}"#);
            put(place.path(), "scheduler_config.json", &text);
            let index = new_index(&place.path().join("scheduler_config.json")).unwrap();
            assert_eq!(index["_class_name"], pipeline);
            assert_eq!(index["scheduler"][1], class);
        }
        put(place.path(), "scheduler_config.json", "[]");
        assert!(new_index(&place.path().join("scheduler_config.json")).is_err());
    }

    /// As in the hub's cache: every file is a link. Links that lead nowhere, or in a circle, are
    /// named.
    #[cfg(unix)]
    #[test]
    fn links_are_followed_or_named() {
        use std::os::unix::fs::symlink;
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for (blob, text) in [
            ("blobs/a", r#"{"vae": ["diffusers", "X"]}"#),
            ("blobs/b", SCHEDULER_TEXT),
            ("blobs/c", "{}"),
            ("elsewhere/vae/config.json", "{}"),
        ] {
            put(place.path(), blob, text);
        }
        fs::create_dir_all(at("model/unet")).unwrap();
        fs::create_dir_all(at("model/scheduler")).unwrap();
        for (target, link) in [
            ("blobs/a", "model/model_index.json"),
            ("blobs/b", "model/scheduler/scheduler_config.json"),
            ("blobs/c", "model/unet/config.json"),
            ("blobs/c", "model/LICENSE"),
            ("elsewhere/vae", "model/vae"),
            ("elsewhere", "elsewhere/vae/round"),
            ("nowhere", "model/NOTICE"),
            ("nowhere", "elsewhere/vae/weights.bin"),
        ] {
            symlink(at(target), at(link)).unwrap();
        }
        let origin = ModelFolder::find(at("model")).unwrap();
        let left = save_pipeline(&network(), &origin, at("new"), "by a test.").unwrap();
        let left: Vec<_> = left.iter().map(ToString::to_string).collect();
        let expected = [
            "NOTICE (a broken link)",
            "vae/round/vae (a link to a folder that it is in)",
            "vae/weights.bin (a broken link)",
        ];
        assert_eq!(left, expected);
        let expected = [
            "LICENSE",
            "README.md",
            "model_index.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
        ];
        assert_eq!(listed(&at("new")), expected);
        for path in listed(&at("new")) {
            assert!(!is_link(&at("new").join(path)));
        }
    }
}
