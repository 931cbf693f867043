//! What is refused of the folders before anything is read, and what is said of the images before the first step.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use siss::burn::tensor::Tensor;
use siss::models::ModelFolder;
use siss::{DataCheck, DataFinding, NearDuplicate, PairSampler, near_duplicates};

use crate::common::checkpoint::Layout;
use crate::common::progress::Progress;
use crate::data::Data;
use crate::images::Images;
use crate::options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Creates `options.out`, and refuses folders that get into each other's way, and a model that does not work on pixels.
pub fn folders(options: &Options, model: &ModelFolder) -> Result<()> {
    let Options {
        forget,
        retain,
        control,
        out,
        ..
    } = options;
    let mut images = vec![("forget", forget), ("retain", retain)];
    images.extend(control.as_ref().map(|control| ("control", control)));
    for (option, path) in &images {
        fs::metadata(path).map_err(|error| format!("--{option} {}: {error}", path.display()))?;
    }
    fs::create_dir_all(out).map_err(|error| format!("creating {}: {error}", out.display()))?;
    for &(other, outer) in &images {
        for &(option, inner) in images.iter().chain(&[("out", out)]) {
            if option != other && lies_in(inner, outer)? {
                return Err(format!(
                    "--{option} {} lies in --{other} {}; keep them apart",
                    inner.display(),
                    outer.display()
                )
                .into());
            }
        }
    }
    unlearned_model(&out.join("model"), model.pipeline())?;
    pipeline(model)
}

fn lies_in(inner: &Path, outer: &Path) -> io::Result<bool> {
    Ok(inner.canonicalize()?.starts_with(outer.canonicalize()?))
}

/// The unlearned model must neither replace its origin nor be mixed with one of another layout.
fn unlearned_model(folder: &Path, origin: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if lies_in(origin, folder)? {
        let origin = origin.display();
        return Err(format!("--model {origin} would be overwritten; choose another --out").into());
    }
    let is_model = folder.join("model_index.json").exists();
    if is_model && Layout::of(folder) != Layout::of(origin) {
        let folder = folder.display();
        return Err(format!(
            "{folder} holds a model whose files are arranged in another way; choose another --out"
        )
        .into());
    }
    Ok(())
}

/// Refuses a pipeline whose network does not work on pixels.
fn pipeline(model: &ModelFolder) -> Result<()> {
    let (Some(path), Some(index)) = (model.index_file(), model.index()?) else {
        return Ok(());
    };
    let mut parts = index.parts.keys();
    match parts.find(|part| !["unet", "scheduler"].contains(&part.as_str())) {
        None => Ok(()),
        Some(part) => Err(format!(
            "{}: the pipeline has a `{part}`; only those of a `unet` and a `scheduler`, which work on pixels, are unlearned here",
            path.display()
        )
        .into()),
    }
}

/// Says which images are probably a mistake: almost the same on two sides, under whatever name, or in another scale.
pub fn images(
    data: &Data,
    pairs: &PairSampler<4>,
    control: &Tensor<4>,
    progress: &dyn Progress,
) -> siss::Result<()> {
    let check = DataCheck::default();
    let copy = |pair: &NearDuplicate, side: &Images, what| {
        progress.say(&format!(
            "{} is almost {}, which is to be forgotten ({:.2} of the distance of two neighbours): if it is a copy, take it out \
             of the {what} images",
            side.files[pair.retain].display(),
            data.forget.files[pair.forget].display(),
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
