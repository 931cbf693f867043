//! What the unlearning cost the rest.

use siss::Result;
use siss::metrics::Estimate;
use siss::report::audit::{Figure, Measured, Unit};

use crate::audit::attacks::{Losses, Scores, TIMESTEPS};

/// The loss of pictures that no model saw, before and after, at each timestep.
pub fn quality(losses: &Losses) -> Result<Vec<Figure>> {
    let mean = |scores: &Scores| {
        Ok(Measured::from(&Estimate::mean(
            "loss of unseen pictures",
            &scores.controls,
        )?))
    };
    let figure = |(index, timestep): (usize, usize)| {
        let name = format!("mean loss of unseen pictures, t = {timestep}");
        let retrained = losses
            .retrained
            .as_ref()
            .map(|it| mean(&it[index]))
            .transpose()?;
        let figure = Figure::new(name, Unit::named(""), mean(&losses.after[index])?);
        Ok(figure
            .before(mean(&losses.before[index])?)
            .retrained(retrained))
    };
    TIMESTEPS.into_iter().enumerate().map(figure).collect()
}
