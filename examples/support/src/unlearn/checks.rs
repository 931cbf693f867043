//! Checks of the folders before anything is read, and of the images before the first step.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use siss::burn::tensor::Tensor;
use siss::data::{DataCheck, DataFinding, NearDuplicate, near_duplicates};
use siss::evaluate::{ModelCheck, ModelFinding};
use siss::files::path_text;
use siss::images::{Images, is_shard_pattern};
use siss::models::ModelFolder;
use siss::{Condition, PairSampler, Side};

use crate::files::failed;
use crate::probe::enough;
use crate::process::Process;
use crate::progress::Progress;
use crate::resume::checkpoint_folder;
use crate::subject::{ConditionOf, Points, Subject};
use crate::unlearn::data::Data;
use crate::unlearn::job::RESULTS;
use crate::unlearn::options::{Augment, Options, Settings};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Rejects folders that are missing or conflict with each other. Creates nothing.
pub fn folders(options: &Options, model: &ModelFolder) -> Result<()> {
    let Options {
        forget,
        retain,
        control,
        out,
        model: file,
        ..
    } = options;
    let mut images = vec![("forget", forget), ("retain", retain)];
    images.extend(control.as_ref().map(|control| ("control", control)));
    images.extend(file.is_file().then_some(("model", file)));
    for (option, path) in &images {
        if is_shard_pattern(path) {
            continue;
        }
        fs::metadata(path).map_err(|error| format!("--{option} {}: {error}", path_text(path)))?;
    }
    for &(other, outer) in &images {
        if lies_in(out, outer)? {
            return Err(format!(
                "--out {} lies in --{other} {}; keep them apart",
                path_text(out),
                path_text(outer)
            )
            .into());
        }
    }
    output(out, &images, model.pipeline())
}

/// Rejects an unsuitable output folder, and one in which other files would be lost.
fn output(out: &Path, images: &[(&str, &PathBuf)], model: &Path) -> Result<()> {
    let name = path_text(out);
    if out.exists() && !out.is_dir() {
        return Err(format!("--out {name} is not a folder").into());
    }
    let images = images
        .iter()
        .map(|&(option, path)| (option, path.as_path()));
    for (option, path) in images.chain([("model", model)]) {
        if lies_in(out, path)? {
            let path = path_text(path);
            return Err(format!("--out {name} lies in --{option} {path}; keep them apart").into());
        }
        let replaced = RESULTS.iter().map(|result| out.join(result));
        for result in replaced.chain([checkpoint_folder(out)]) {
            if lies_in(path, &result)? {
                let path = path_text(path);
                return Err(format!(
                    "--{option} {path} would be overwritten; choose another --out"
                )
                .into());
            }
        }
    }
    Ok(())
}

fn lies_in(inner: &Path, outer: &Path) -> siss::Result<bool> {
    Ok(resolved(inner)?.starts_with(resolved(outer)?))
}

/// A path without links and dots. The path need not exist.
fn resolved(path: &Path) -> siss::Result<PathBuf> {
    let path = std::path::absolute(path).map_err(failed("finding", path))?;
    let Some(known) = path.ancestors().find(|known| known.exists()) else {
        return Ok(path);
    };
    let rest = path.strip_prefix(known).unwrap_or(Path::new(""));
    let known = known.canonicalize().map_err(failed("finding", known))?;
    Ok(known.join(rest))
}

/// Reports images that are probably a mistake: almost the same image on two sides, under any name,
/// or at another scale.
///
/// `range`: the values of black and white in the points, if these are pictures.
pub fn images<C: Condition>(
    data: &Data,
    pairs: &PairSampler<4, C>,
    control: &Tensor<4>,
    range: Option<[f64; 2]>,
    progress: &dyn Progress,
) -> siss::Result<()> {
    let check = DataCheck {
        range,
        ..DataCheck::default()
    };
    let copy = |pair: &NearDuplicate, side: &Images, what| {
        progress.say(&format!(
            "{} is almost identical to {}, which is to be forgotten ({:.2} of the distance of two neighbours): if it is a copy, remove it \
             from the {what} images",
            side.name(pair.retain),
            data.forget.name(pair.forget),
            pair.relative
        ));
    };
    for finding in check.run(pairs.retain(), pairs.forget())? {
        match &finding {
            DataFinding::NearDuplicate(pair) => copy(pair, &data.retain, "retained"),
            other => progress.say(&other.to_string()),
        }
    }
    for pair in near_duplicates(control, pairs.forget(), check.near)? {
        copy(&pair, &data.control, "control");
    }
    Ok(())
}

/// Rejects images that do not look as in the model's training, and reports whether the model has
/// been trained at all.
///
/// Also reports whether the model knows the mirror images of the images to forget.
pub fn model<S: Subject>(
    (subject, model): (&S, &S::Model),
    process: &Process,
    data: &Data,
    pairs: &PairSampler<4, ConditionOf<S>>,
    control: &Points<ConditionOf<S>>,
    (options, settings): (&Options, &Settings),
    progress: &dyn Progress,
) -> Result<bool> {
    let defaults = ModelCheck::default();
    let check = ModelCheck {
        range: subject.space().range(),
        points: enough(defaults.points, pairs.retain().dims()[1..].iter().product()),
        micro_batch_size: settings.measured_at_a_time,
        ..defaults
    };
    let scheduler = process.scheduler()?;
    let scheduler = scheduler.as_ref();
    let report = check.run(
        model,
        scheduler,
        pairs.retain(),
        pairs.condition(Side::Retain),
    )?;
    let finding = report.and_then(|report| report.finding);
    match &finding {
        Some(ModelFinding::OtherPreprocessing { given, better, .. }) => {
            let found = finding
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default();
            let is_range_alone = !better.is_inverted && !better.are_channels_reversed;
            let remedy = match better.range {
                [low, high] if is_range_alone => {
                    format!("give --range {}", range_text([low, high]))
                }
                range if range == given.range => "prepare the images as for its training".into(),
                [low, high] => format!(
                    "prepare the images as for its training, and give --range {}",
                    range_text([low, high])
                ),
            };
            return Err(format!("{}: {found}; {remedy}", path_text(&options.model)).into());
        }
        Some(other) => progress.say(&format!("note: {other}")),
        None => {}
    }
    // Latents of mirrored pictures are not mirrored latents.
    if options.augment == Augment::None && subject.space().range().is_some() {
        let forget = (pairs.forget(), pairs.condition(Side::Forget));
        let control = (&control.points, &control.condition);
        let known = check.known_mirrors(model, scheduler, forget, control)?;
        if let Some(first) = known.first() {
            progress.say(&format!(
                "note: the model knows the mirror image of {} of the images to forget as well as the image ({}: loss {:.4}, mirrored \
                 {:.4}, control images {:.4}), so it was probably trained with random flips; give --augment flip to forget both",
                known.len(),
                data.forget.name(first.forget),
                first.loss,
                first.mirror_loss,
                first.control_loss,
            ));
        }
    }
    Ok(!matches!(finding, Some(ModelFinding::Untrained { .. })))
}

/// A range in the form of the option, rounded.
fn range_text(range: [f64; 2]) -> String {
    let [low, high] = range.map(|value| (value * 1e4).round() / 1e4);
    format!("{low}:{high}")
}
