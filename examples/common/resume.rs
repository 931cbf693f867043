//! `--checkpoint-every` and `--resume`.

use std::error::Error;
use std::path::Path;

use clap::Args;
use siss::{Checkpoints, Denoiser, PairSampler, SissTrainer, model_fingerprint};

/// How a run is protected from being ended.
#[derive(Args, Debug, Clone, Default)]
pub struct Checkpointing {
    /// Writes a checkpoint after every N steps and after the last into the output folder's `checkpoints`, and keeps the last three.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,

    /// Goes on from the newest checkpoint, as if the run had not been ended; begins where there is none. What shapes the run
    /// must be as it was; the images run at a time may change.
    #[arg(long)]
    pub resume: bool,
}

impl Checkpointing {
    /// Opens the checkpoints of a run, if it is to have any, and makes the trainer go on from the newest if it is to. `say` is told
    /// what came of it.
    pub fn begin<M: Denoiser<D>, const D: usize>(
        &self,
        trainer: &mut SissTrainer<M, D>,
        pairs: &PairSampler<D>,
        [steps, batch]: [usize; 2],
        folder: &Path,
        say: impl Fn(&str),
    ) -> Result<Option<Checkpoints>, Box<dyn Error>> {
        if self.checkpoint_every.is_none() && !self.resume {
            return Ok(None);
        }
        let mut checkpoints = Checkpoints::new(folder)?
            .setting("steps", &steps)?
            .setting("batch", &batch)?
            .setting("pairs", &pairs.fingerprint()?)?
            .setting("model", &model_fingerprint(trainer.model())?)?;
        if !self.resume {
            return match checkpoints.latest()? {
                None => Ok(Some(checkpoints)),
                Some(found) => Err(format!(
                    "{} is a checkpoint of an earlier run; go on from it by --resume, or give another --out",
                    found.path.display()
                )
                .into()),
            };
        }
        if let Some(resumed) = checkpoints.resume(trainer)? {
            for torn in &resumed.passed_over {
                say(&format!("note: checkpoint passed over: {torn}"));
            }
            say(&format!("resumed at step {}", resumed.step));
        }
        Ok(Some(checkpoints))
    }

    /// Whether a checkpoint is due after so many steps.
    pub fn is_due(&self, taken: u64, steps: u64) -> bool {
        let every = self.checkpoint_every;
        every.is_some_and(|every| taken.is_multiple_of(every) || taken == steps)
    }
}
