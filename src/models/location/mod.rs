//! Finds the parts of a model from the path or name that the user gives.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use super::LoadNote;
use super::index::PipelineIndex;
use crate::error::{Error, Result};
use crate::files::{invalid, path_text, read_configuration};
use crate::process::{PredictionType, SchedulerConfig};
use crate::sampling::EulerFlowConfig;

/// The file that holds a network's configuration.
pub(super) const CONFIG: &str = "config.json";

const INDEX: &str = "model_index.json";
const SCHEDULER: &str = "scheduler_config.json";
/// The network in a pipeline's folder, or in a checkpoint of diffusers' training scripts.
pub(super) const NETWORK: &str = "unet";
/// The network in the folder of a pipeline whose network is a transformer.
pub(super) const TRANSFORMER: &str = "transformer";
/// The moving average of its weights in such a checkpoint.
const AVERAGE: &str = "unet_ema";
/// The beginning of the name of such a checkpoint.
const CHECKPOINT: &str = "checkpoint-";
/// The most names of a folder that an error lists.
const MOST_NAMED: usize = 8;

/// The places of the parts of a diffusers model: the network, the scheduler's file, and the
/// pipeline's index if there is one.
///
/// [`find`](ModelFolder::find) accepts:
///
/// | given | network | scheduler |
/// |---|---|---|
/// | a pipeline's folder | `unet`, else `unet_ema`, else `transformer` | `scheduler` |
/// | a network's folder with a scheduler in it | the folder | in it |
/// | `…/unet`, `…/unet_ema` or `…/transformer` of a pipeline | the folder | one level up |
/// | `checkpoint-500` of a training script | `unet`, else `unet_ema` | one level up |
/// | a download in the hub's cache (`models--…`) | in snapshot `main`, or the only one | there |
/// | a name on the hub, `google/ddpm-cat-256` | the same, if it has been downloaded | there |
///
/// The cache is searched for where the hub's own client keeps it: in `HF_HUB_CACHE`, in `HF_HOME`,
/// or in the user's cache. Nothing is downloaded.
///
/// # Example
/// ```no_run
/// use siss::process::SchedulerConfig;
/// use siss::models::{ModelFolder, UNet2d};
///
/// let folder = ModelFolder::find("google/ddpm-cat-256")?;
/// let scheduler = SchedulerConfig::from_file(folder.scheduler_file())?;
/// let unet = UNet2d::load(folder.network(), &siss::burn::tensor::Device::flex())?;
/// for note in folder.notes().iter().chain(unet.notes()) {
///     println!("{note}");
/// }
/// # let _ = scheduler;
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFolder {
    pipeline: PathBuf,
    network: PathBuf,
    scheduler: PathBuf,
    index: Option<PathBuf>,
    notes: Vec<LoadNote>,
}

impl ModelFolder {
    /// Finds the parts, without reading them.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no such folder; [`Error::InvalidFile`], with all places that were
    /// searched, if a part is missing or if it is not clear which one is meant.
    pub fn find(path: impl AsRef<Path>) -> Result<Self> {
        Self::find_in(path.as_ref(), hub_cache().as_deref())
    }

    fn find_in(path: &Path, cache: Option<&Path>) -> Result<Self> {
        let Network {
            root,
            folder,
            mut notes,
        } = find_network(path, cache)?;
        let bases = bases(&root, &folder);
        let scheduler = scheduler_in(&bases).map_err(|places| no_scheduler(&root, &places))?;
        if !scheduler.starts_with(&root) {
            let file = scheduler.clone();
            notes.push(LoadNote::SchedulerElsewhere { file });
        }
        let index = first_file(&bases, |base| vec![base.join(INDEX)]).ok();
        let is_part = folder.file_name().is_some_and(|name| {
            [NETWORK, AVERAGE, TRANSFORMER]
                .iter()
                .any(|part| name == *part)
        });
        let pipeline = match bases.get(1) {
            Some(parent) if root == folder && is_part && !scheduler.starts_with(&root) => parent,
            _ => &root,
        };
        Ok(Self {
            pipeline: pipeline.clone(),
            network: folder,
            scheduler,
            index,
            notes,
        })
    }

    /// The folder of network and scheduler.
    ///
    /// It is the parent of the network's folder if that is a part of a pipeline, and the network's
    /// own folder if that also holds the scheduler.
    pub fn pipeline(&self) -> &Path {
        &self.pipeline
    }

    /// The network's folder, for [`UNet2d::load`](super::UNet2d::load) and its siblings.
    pub fn network(&self) -> &Path {
        &self.network
    }

    /// The name of the network's part in a pipeline: `transformer` if its folder is called so, and
    /// `unet` otherwise.
    pub(super) fn part(&self) -> &'static str {
        let is_transformer = self
            .network
            .file_name()
            .is_some_and(|name| name == TRANSFORMER);
        if is_transformer { TRANSFORMER } else { NETWORK }
    }

    /// The scheduler's file, for
    /// [`SchedulerConfig::from_file`](crate::process::SchedulerConfig::from_file).
    pub fn scheduler_file(&self) -> &Path {
        &self.scheduler
    }

    /// The pipeline's `model_index.json`, if there is one.
    pub fn index_file(&self) -> Option<&Path> {
        self.index.as_deref()
    }

    /// Reads the pipeline's index, if there is one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidFile`].
    pub fn index(&self) -> Result<Option<PipelineIndex>> {
        self.index
            .as_ref()
            .map(PipelineIndex::from_file)
            .transpose()
    }

    /// The decisions made during the search.
    pub fn notes(&self) -> &[LoadNote] {
        &self.notes
    }
}

/// A network that was found.
#[derive(Debug)]
pub(super) struct Network {
    /// The folder that was given, or that of a snapshot.
    pub(super) root: PathBuf,
    /// The network's own folder.
    pub(super) folder: PathBuf,
    pub(super) notes: Vec<LoadNote>,
}

/// The network of a folder or of a name on the hub.
pub(super) fn network(path: &Path) -> Result<Network> {
    find_network(path, hub_cache().as_deref())
}

/// The folder of a part of a pipeline other than its UNet: the one that was given, or the one of
/// this name in it.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`].
pub(super) fn part(path: &Path, name: &str) -> Result<PathBuf> {
    let root = root(path, hub_cache().as_deref())?;
    let inside = root.join(name);
    let mut places = [root.clone(), inside].into_iter();
    let found = places.find(|folder| folder.join(CONFIG).is_file());
    found.ok_or_else(|| {
        let message = format!("there is no {CONFIG} or {name}/{CONFIG} in it");
        invalid(&root, message)
    })
}

/// The file of the scheduler that belongs to a network, if there is one.
pub(super) fn scheduler(root: &Path, folder: &Path) -> Option<PathBuf> {
    scheduler_in(&bases(root, folder)).ok()
}

/// What the model predicts according to a scheduler's file; `None` for an unsupported scheduler.
///
/// # Errors
/// [`Error::Io`]; [`Error::InvalidFile`] for a file that is not a scheduler's.
pub(super) fn stated_prediction_type(scheduler: &Path) -> Result<Option<PredictionType>> {
    if EulerFlowConfig::is_of_file(scheduler)? {
        return Ok(Some(PredictionType::FlowVelocity));
    }
    match SchedulerConfig::from_file(scheduler) {
        Ok(config) => Ok(Some(config.prediction_type)),
        Err(Error::UnsupportedConfig { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Folders that may hold a part of a model.
fn bases(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut bases = vec![root.to_path_buf(), folder.to_path_buf()];
    bases.extend(above(root));
    bases.dedup();
    bases
}

/// The scheduler's file, or all the places that were searched without success.
fn scheduler_in(bases: &[PathBuf]) -> std::result::Result<PathBuf, Vec<PathBuf>> {
    first_file(bases, |base| {
        vec![base.join("scheduler").join(SCHEDULER), base.join(SCHEDULER)]
    })
}

fn find_network(path: &Path, cache: Option<&Path>) -> Result<Network> {
    let root = root(path, cache)?;
    let mut notes = Vec::new();
    if root != path {
        let folder = root.clone();
        notes.push(LoadNote::Snapshot { folder });
    }
    let [network, average, transformer] =
        [NETWORK, AVERAGE, TRANSFORMER].map(|name| root.join(name));
    let is_network = |folder: &&PathBuf| folder.join(CONFIG).exists();
    let places = [&root, &network, &average, &transformer];
    let Some(folder) = places.into_iter().find(is_network).cloned() else {
        return Err(no_network(&root));
    };
    if folder == network && is_network(&&average) {
        let taken = folder.clone();
        notes.push(LoadNote::AverageBeside { taken, average });
    }
    Ok(Network {
        root,
        folder,
        notes,
    })
}

/// The folder that was given, or the snapshot of a download.
fn root(path: &Path, cache: Option<&Path>) -> Result<PathBuf> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let Some(name) = hub_name(path) else {
                return Err(Error::io("reading", path)(error));
            };
            return downloaded(path, &name, cache);
        }
        Err(error) => return Err(Error::io("reading", path)(error)),
    };
    if !metadata.is_dir() {
        return Err(invalid(path, "it is a file; give the folder that it is in"));
    }
    let snapshots = path.join("snapshots");
    if path.file_name().is_some_and(|name| name == "snapshots") {
        snapshot(path)
    } else if snapshots.is_dir() && !path.join(CONFIG).exists() && !path.join(NETWORK).exists() {
        snapshot(&snapshots)
    } else {
        Ok(path.into())
    }
}

/// A hub name such as `google/ddpm-cat-256`, also from the address of its page.
fn hub_name(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let pages = ["https://huggingface.co/", "https://hf.co/"];
    let name = pages.iter().find_map(|page| text.strip_prefix(page));
    let name = name.unwrap_or(text).trim_end_matches('/');
    let (owner, model) = name.split_once('/')?;
    let is_legal = |part: &str| {
        let is_legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(is_legal)
    };
    (is_legal(owner) && is_legal(model)).then(|| name.into())
}

/// Where the client of the hub keeps what it downloads.
fn hub_cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let variable = |name| set(name).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(variable("HF_HOME")?.join("hub")))
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface/hub")))
}

fn downloaded(path: &Path, name: &str, cache: Option<&Path>) -> Result<PathBuf> {
    let folder = format!("models--{}", name.replace('/', "--"));
    let place = cache.map(|cache| cache.join(folder));
    if let Some(place) = place.as_ref().filter(|place| place.is_dir()) {
        return snapshot(&place.join("snapshots"));
    }
    let place = place.map_or(String::new(), |place| {
        format!(
            ", and as a model of the hub it is not in {}",
            path_text(place)
        )
    });
    let message = format!(
        "there is no such folder{place}; download it with `hf download {name} --local-dir DIR` (`huggingface-cli download` in older versions), \
         and give DIR"
    );
    Err(invalid(path, message))
}

/// The snapshot `main` of a download, or the only one.
fn snapshot(snapshots: &Path) -> Result<PathBuf> {
    let revisions = names(snapshots)?;
    let main = snapshots.parent().map(|model| model.join("refs/main"));
    let main = main.and_then(|file| read_configuration(&file).ok());
    let main = main.as_deref().map(str::trim);
    // Only names in this folder count, so the contents of the file cannot lead elsewhere.
    let is_main = |revision: &&String| Some(revision.as_str()) == main;
    match (revisions.iter().find(is_main), revisions.as_slice()) {
        (Some(main), _) => Ok(snapshots.join(main)),
        (None, [only]) => Ok(snapshots.join(only)),
        (None, []) => {
            let message = "no snapshot is in it: the download has not ended; run it again";
            Err(invalid(snapshots, message))
        }
        (None, several) => {
            let message = format!(
                "several snapshots are in it and refs/main names none of them; give one: {}",
                listed(several)
            );
            Err(invalid(snapshots, message))
        }
    }
}

/// The parent folder, and its parent if the first one is a checkpoint.
fn above(root: &Path) -> Vec<PathBuf> {
    let parent = |folder: &Path| match folder.components().next_back() {
        Some(Component::Normal(_)) if folder.parent() == Some(Path::new("")) => Some(".".into()),
        Some(Component::Normal(_)) => folder.parent().map(Path::to_path_buf),
        _ => folder.canonicalize().ok()?.parent().map(Path::to_path_buf),
    };
    let mut above: Vec<_> = parent(root).into_iter().collect();
    if let Some(parent_folder) = above.first().cloned() {
        let name = parent_folder.file_name().map(|name| name.to_string_lossy());
        if name.is_some_and(|name| name.starts_with(CHECKPOINT)) {
            above.extend(parent(&parent_folder));
        }
    }
    above
}

/// The first existing file, or all the places that were searched.
fn first_file(
    bases: &[PathBuf],
    places: impl Fn(&Path) -> Vec<PathBuf>,
) -> std::result::Result<PathBuf, Vec<PathBuf>> {
    let places: Vec<_> = bases.iter().flat_map(|base| places(base)).collect();
    match places.iter().find(|place| place.exists()) {
        Some(place) => Ok(place.clone()),
        None => Err(places),
    }
}

fn no_scheduler(root: &Path, places: &[PathBuf]) -> Error {
    let places: Vec<_> = places.iter().map(path_text).collect();
    Error::InvalidFile {
        path: root.into(),
        message: format!(
            "the network's scheduler is in none of these: {}; put the scheduler_config.json that it was trained with into one of them \
             (in Python `scheduler.save_pretrained(folder)`), or give the folder of the whole pipeline",
            places.join(", ")
        ),
    }
}

fn no_network(root: &Path) -> Error {
    let names = match names(root) {
        Ok(names) => names,
        Err(error) => return error,
    };
    let checkpoints: Vec<_> = names
        .iter()
        .filter(|name| name.starts_with(CHECKPOINT))
        .cloned()
        .collect();
    let remedy = match (names.is_empty(), checkpoints.as_slice()) {
        (true, _) => "it is empty".into(),
        (_, []) => format!(
            "it holds {}; give a pipeline's folder, or the network's",
            listed(&names)
        ),
        (_, checkpoints) => format!("give one of its checkpoints: {}", listed(checkpoints)),
    };
    let message = format!(
        "no network is in it: there is no {CONFIG}, {NETWORK}/{CONFIG}, {AVERAGE}/{CONFIG} or {TRANSFORMER}/{CONFIG}; {remedy}"
    );
    invalid(root, message)
}

/// The names in a folder, sorted.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || {
        let entries = fs::read_dir(folder)?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    read().map_err(Error::io("reading", folder))
}

/// The first of the names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let mut text = names[..names.len().min(MOST_NAMED)].join(", ");
    if names.len() > MOST_NAMED {
        text += &format!(" and {} more", names.len() - MOST_NAMED);
    }
    text
}

#[cfg(test)]
mod tests;
