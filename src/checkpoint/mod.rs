//! Checkpoints: an interrupted run resumes as if it had never stopped.

mod manifest;
mod state;
mod store;
mod tensors;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::manifest::Manifest;
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::trainer::SissTrainer;
use crate::trainer::settings::{Settings, to_json};
use store::{Candidate, Store};

pub use crate::error::{PassedOver, SettingDifference};
pub use tensors::model_fingerprint;

/// The checkpoints of one run, in a folder of their own.
///
/// A checkpoint holds everything that a [`SissTrainer`] needs to continue: model, moving average,
/// optimiser, step, the states of clipper and objective, and a state of the program's own. The
/// draws of a step follow from its number, so **a resumed run is the same run**: on the CPU, a run
/// that is killed at any moment and resumed leaves the same bytes as one that was never
/// interrupted.
///
/// - Each checkpoint is a folder that exists completely or not at all: it is written elsewhere,
///   flushed to disk, then renamed. The previous checkpoint stays until the new one is complete.
/// - The manifest has each file's size and SHA-256. A truncated or changed checkpoint is skipped
///   and reported.
/// - The folder is locked while this value exists, if the file system supports locks
///   ([`is_locked`](Self::is_locked)): a second writer is refused.
/// - A checkpoint of a run with other settings is refused, and the differences are named.
///
/// # Example
/// ```
/// # use burn::module::Module;
/// # use burn::nn::{Linear, LinearConfig};
/// # use burn::tensor::{Device, Distribution, Tensor};
/// # use siss::{Checkpoints, DdpmScheduler, Denoiser, PairSampler, SissTrainer};
/// # #[derive(Module, Debug)]
/// # struct Model { linear: Linear }
/// # impl Denoiser<2> for Model {
/// #     type Condition = ();
/// #     fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> { self.linear.forward(noisy) }
/// # }
/// # let device = Device::flex();
/// # let model = Model { linear: LinearConfig::new(3, 3).init(&device) };
/// # let retain = Tensor::<2>::random([100, 3], Distribution::Default, &device);
/// # let forget = Tensor::<2>::ones([1, 3], &device) * 2.0;
/// # let scratch = tempfile::tempdir().unwrap();
/// # let folder = scratch.path().join("checkpoints");
/// let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?).build()?;
/// let pairs = PairSampler::new(retain, forget, 0)?;
/// let mut checkpoints = Checkpoints::new(folder)?
///     .keep(3)
///     .setting("batch", &16)?
///     .setting("pairs", &pairs.fingerprint()?)?;
/// if let Some(resumed) = checkpoints.resume(&mut trainer)? {
///     println!("resumes at step {}", resumed.step);
/// }
/// while trainer.next_step() < 20 {
///     trainer.step(pairs.batch(trainer.next_step(), 16)?)?;
///     if trainer.next_step() % 10 == 0 {
///         checkpoints.save(&mut trainer, &())?;
///     }
/// }
/// # assert_eq!(checkpoints.latest()?.unwrap().step, 20);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoints {
    store: Store,
    keep: usize,
    settings: Settings,
    /// Whether the checkpoints in the folder are known to be from this run.
    is_own: bool,
    passed_over: Vec<PassedOver>,
}

/// A complete checkpoint with intact files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of the next step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Newer checkpoints that are incomplete or damaged.
    pub passed_over: Vec<PassedOver>,
}

/// A resumed run.
#[derive(Debug, Clone, PartialEq)]
pub struct Resumed {
    /// Number of the next step.
    pub step: u64,
    state: Value,
    /// The checkpoint.
    pub path: PathBuf,
    /// Newer checkpoints that are incomplete or damaged.
    pub passed_over: Vec<PassedOver>,
}

impl Resumed {
    /// The program's own state, as it was given to [`Checkpoints::save`].
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the state in the checkpoint is not a `T`.
    pub fn state<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.state).map_err(|error| Error::InvalidFile {
            path: self.path.clone(),
            message: format!(
                "the saved program state does not have the type requested: {error}; resume with the program that saved it"
            ),
        })
    }
}

impl Checkpoints {
    /// Opens the checkpoints in `folder`, which is created if it does not exist.
    ///
    /// The last three are kept unless [`keep`](Self::keep) says otherwise.
    ///
    /// # Errors
    /// [`Error::FolderInUse`] if another writer uses the folder; [`Error::Io`].
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self {
            store: Store::open(folder.into())?,
            keep: 3,
            settings: Settings::default(),
            is_own: false,
            passed_over: Vec::new(),
        })
    }

    /// Keeps the last `count` checkpoints (at least 1).
    pub fn keep(mut self, count: usize) -> Self {
        self.keep = count.max(1);
        self
    }

    /// Adds a setting of the program's own that must be the same when the run is resumed.
    ///
    /// Use it for everything that the trainer cannot know, such as the batch size, the data
    /// ([`PairSampler::fingerprint`](crate::PairSampler::fingerprint)) and the model that the run
    /// began with ([`model_fingerprint`]).
    ///
    /// # Errors
    /// [`Error::NotJson`] if the value cannot be written as JSON.
    pub fn setting(mut self, name: &str, value: &impl Serialize) -> Result<Self> {
        let value = to_json(name, value)?;
        self.settings.add(format!("program.{name}"), value);
        Ok(self)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.store.folder()
    }

    /// Whether other writers are locked out.
    ///
    /// Some file systems, mostly network ones, have no locks: there you must make sure that only
    /// one process writes.
    pub fn is_locked(&self) -> bool {
        self.store.is_locked()
    }

    /// The newest checkpoint that is complete and intact; every byte of it is checked.
    ///
    /// `None` in a folder without checkpoints.
    ///
    /// # Errors
    /// [`Error::NoUsableCheckpoint`] if there are checkpoints and none is intact; [`Error::Io`] if
    /// the folder cannot be read.
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        Ok(self.find()?.map(|(_, found)| found))
    }

    fn find(&self) -> Result<Option<(Manifest, Checkpoint)>> {
        let mut passed_over = Vec::new();
        for Candidate { step, path } in self.store.candidates()? {
            let reason = match Manifest::verify(&path) {
                Ok(manifest) if manifest.step == step => {
                    let found = Checkpoint {
                        step,
                        path,
                        passed_over,
                    };
                    return Ok(Some((manifest, found)));
                }
                Ok(manifest) => format!("belongs to step {}", manifest.step),
                Err(reason) => reason,
            };
            passed_over.push(PassedOver { path, reason });
        }
        if passed_over.is_empty() {
            return Ok(None);
        }
        Err(Error::NoUsableCheckpoint {
            folder: self.folder().into(),
            passed_over,
        })
    }

    /// Writes a checkpoint of the trainer between two steps, with a state of the program's own, and
    /// removes the checkpoints that are no longer kept.
    ///
    /// When this returns, the checkpoint is on disk. The numbers in `state` come back to the bit,
    /// except NaN and infinities, which JSON cannot hold; [`f64::to_bits`] carries these.
    ///
    /// # Errors
    /// [`Error::AnotherRun`] if the folder holds checkpoints that [`resume`](Checkpoints::resume)
    /// was not asked to continue; [`Error::CannotSave`] for a state that could not be restored
    /// exactly; [`Error::NotJson`]; [`Error::Io`], after which the earlier checkpoints are still
    /// there; [`Error::DeviceRead`]; those of an observer.
    pub fn save<M: Denoiser<D>, const D: usize>(
        &mut self,
        trainer: &mut SissTrainer<M, D>,
        state: &impl Serialize,
    ) -> Result<PathBuf> {
        self.check_own()?;
        trainer.persist_observers()?;
        let program = to_json("the program's state", state)?;
        let files = state::save(trainer, self.settings.clone(), program)?;
        let path = self.store.write(trainer.next_step(), files)?;
        self.passed_over.retain(|bad| bad.path != path);
        self.prune(trainer.next_step())?;
        Ok(path)
    }

    /// Removes all checkpoints in the folder, so that another run can begin there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(&mut self) -> Result<()> {
        for candidate in self.store.candidates()? {
            self.store.remove(&candidate.path)?;
        }
        Ok(())
    }

    /// Refuses to mix a new run with one whose checkpoints are in the folder.
    fn check_own(&mut self) -> Result<()> {
        if let (false, Some(newest)) = (self.is_own, self.store.candidates()?.first()) {
            return Err(Error::AnotherRun {
                checkpoint: newest.path.clone(),
            });
        }
        self.is_own = true;
        Ok(())
    }

    /// Removes all but the last of the checkpoints up to a step.
    ///
    /// Incomplete or damaged ones do not count.
    fn prune(&mut self, step: u64) -> Result<()> {
        let candidates = self.store.candidates()?.into_iter();
        let (bad, whole): (Vec<_>, Vec<_>) = candidates
            .filter(|candidate| candidate.step <= step)
            .partition(|candidate| {
                self.passed_over
                    .iter()
                    .any(|bad| bad.path == candidate.path)
            });
        for candidate in whole.iter().skip(self.keep).chain(&bad) {
            self.store.remove(&candidate.path)?;
        }
        Ok(())
    }

    /// Makes a newly built trainer and its observers continue from the newest intact checkpoint.
    ///
    /// Returns `None` if there is no checkpoint: the run starts from the beginning.
    ///
    /// # Errors
    /// [`Error::CheckpointDiffers`] if the checkpoint belongs to another configuration or another
    /// model; [`Error::NoUsableCheckpoint`] if there are checkpoints and none is intact;
    /// [`Error::AlreadyStarted`] for a trainer that has taken steps; [`Error::InvalidFile`] or
    /// [`Error::Io`]; those of an observer. The trainer is then unchanged.
    pub fn resume<M: Denoiser<D>, const D: usize>(
        &mut self,
        trainer: &mut SissTrainer<M, D>,
    ) -> Result<Option<Resumed>> {
        if trainer.next_step() != 0 {
            return Err(Error::AlreadyStarted {
                steps: trainer.next_step(),
            });
        }
        let Some((manifest, found)) = self.find()? else {
            trainer.rewind_observers(0)?;
            self.is_own = true;
            return Ok(None);
        };
        let settings = self.settings.clone();
        let restored = state::prepare(trainer, settings, &found.path, &manifest)?;
        let state = restored.apply(trainer)?;
        self.passed_over.clone_from(&found.passed_over);
        self.is_own = true;
        Ok(Some(Resumed {
            step: found.step,
            state,
            path: found.path,
            passed_over: found.passed_over,
        }))
    }
}
