//! The options `--checkpoint-every`, `--resume` and `--overwrite`.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use siss::checkpoint::model_fingerprint;
use siss::files::{ResultFolder, path_text};
use siss::trainer::Adversary;
use siss::{Checkpoints, Denoiser, SissTrainer};

use crate::files::failed;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How a run is protected from being ended, and what an earlier one left from this one.
#[derive(Args, Debug, Clone, Default)]
pub struct Checkpointing {
    /// Writes a checkpoint after every N steps and after the last into the output folder's
    /// `checkpoints`, and keeps the last three.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,

    /// Resumes from the newest checkpoint as if the run had never stopped, or starts if there is
    /// none. Settings that affect the result must be unchanged; the number of images run at a time
    /// may change.
    #[arg(long)]
    pub resume: bool,

    /// Starts over if the output folder holds an earlier run: its checkpoints are removed before
    /// the first step, and its results are replaced when those of this run are complete.
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
}

/// The folder of a run's checkpoints.
pub fn checkpoint_folder(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

/// The output folder for results with these names.
pub fn open_results(out: &Path, names: &[&str]) -> Result<ResultFolder> {
    let opened = ResultFolder::open(out, names);
    Ok(opened.map_err(|error| format!("--out {}: {error}", path_text(out)))?)
}

impl Checkpointing {
    /// Rejects a folder with an unfinished run that this run neither resumes nor overwrites, before
    /// anything takes time; if `is_strict`, also a folder with results. `say` receives a notice of
    /// what will be replaced.
    pub fn check_earlier(
        &self,
        results: &ResultFolder,
        out: &Path,
        is_strict: bool,
        say: impl Fn(&str),
    ) -> Result<()> {
        let earlier = results.earlier();
        let unfinished = newest(&checkpoint_folder(out))?;
        let (found, what) = match (&unfinished, earlier.first()) {
            (Some(path), _) => (path, "a checkpoint of an earlier run"),
            (None, Some(path)) => (path, "of an earlier run"),
            (None, None) => return Ok(()),
        };
        let is_refused = unfinished.is_some() || is_strict;
        if is_refused && !self.resume && !self.overwrite {
            return Err(format!(
                "{} is {what}; resume it with --resume, start over with --overwrite, or choose another --out",
                path_text(found)
            )
            .into());
        }
        if !earlier.is_empty() && (unfinished.is_none() || self.overwrite) {
            let names = earlier.iter().filter_map(|path| path.file_name());
            let names: Vec<_> = names.map(path_text).collect();
            say(&format!(
                "note: {} holds results of an earlier run ({}); they are replaced when this run is complete",
                path_text(out),
                names.join(", ")
            ));
        }
        Ok(())
    }

    /// Opens the checkpoints of a run, if it has any, and resumes the trainer from the newest if
    /// requested, and an adversary with it. `fingerprint` is that of the pairs. `say` receives a
    /// notice of the outcome.
    pub fn begin<M: Denoiser<D>, const D: usize>(
        &self,
        trainer: &mut SissTrainer<M, D>,
        adversary: Option<&mut Adversary<D, M::Condition>>,
        fingerprint: impl FnOnce() -> siss::Result<String>,
        [steps, batch]: [usize; 2],
        out: &Path,
        say: impl Fn(&str),
    ) -> Result<Option<Checkpoints>> {
        let folder = checkpoint_folder(out);
        if self.overwrite && newest(&folder)?.is_some() {
            Checkpoints::new(&folder)?.clear()?;
            fs::remove_dir_all(&folder).map_err(failed("removing", &folder))?;
        }
        if self.checkpoint_every.is_none() && !self.resume {
            return Ok(None);
        }
        let mut checkpoints = Checkpoints::new(folder)?
            .setting("steps", &steps)?
            .setting("batch", &batch)?
            .setting("pairs", &fingerprint()?)?
            .setting("model", &model_fingerprint(trainer.model())?)?;
        if let Some(adversary) = &adversary {
            checkpoints = checkpoints.setting("adversary", &adversary.settings())?;
        }
        if !checkpoints.is_locked() {
            say(
                "note: the file system of --out does not support locks: make sure that no other process writes there",
            );
        }
        if !self.resume {
            return Ok(Some(checkpoints));
        }
        if let Some(resumed) = checkpoints.resume(trainer)? {
            for torn in &resumed.passed_over {
                say(&format!("note: checkpoint skipped: {torn}"));
            }
            if let Some(adversary) = adversary {
                adversary.restore(&resumed.state::<Vec<u32>>()?)?;
            }
            say(&format!("resumed at step {}", resumed.step));
        }
        Ok(Some(checkpoints))
    }

    /// Whether a checkpoint is due after `taken` steps.
    pub fn is_due(&self, taken: u64, steps: u64) -> bool {
        let every = self.checkpoint_every;
        every.is_some_and(|every| taken.is_multiple_of(every) || taken == steps)
    }
}

/// The path that looks like the newest checkpoint in a folder. The folder need not exist.
fn newest(folder: &Path) -> siss::Result<Option<PathBuf>> {
    if !folder.exists() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("reading", folder))? {
        let entry = entry.map_err(failed("reading", folder))?;
        if entry.file_name().to_string_lossy().starts_with("step-") {
            found.push(entry.path());
        }
    }
    Ok(found.into_iter().max())
}
