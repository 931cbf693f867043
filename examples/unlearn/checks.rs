//! What is refused of the folders before anything is read, and what is said of the images before the first step.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value};
use siss::burn::tensor::Tensor;
use siss::{DataCheck, DataFinding, NearDuplicate, PairSampler, near_duplicates};

use crate::common::checkpoint::Layout;
use crate::common::progress::Progress;
use crate::data::Data;
use crate::images::Images;
use crate::options::Options;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Creates `options.out`, and refuses folders that get into each other's way.
pub fn folders(options: &Options) -> Result<()> {
    let Options {
        model,
        forget,
        retain,
        control,
        out,
        ..
    } = options;
    let mut images = vec![("forget", forget), ("retain", retain)];
    images.extend(control.as_ref().map(|control| ("control", control)));
    for (option, path) in images.iter().chain(&[("model", model)]) {
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
    unlearned_model(&out.join("model"), model)?;
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
fn pipeline(model: &Path) -> Result<()> {
    let path = model.join("model_index.json");
    if !path.exists() {
        return Ok(());
    }
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let index: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| format!("{}: not a pipeline's index: {error}", path.display()))?;
    let is_known = |key: &str| key.starts_with('_') || ["unet", "scheduler"].contains(&key);
    match index
        .iter()
        .find(|(key, value)| value.is_array() && !is_known(key))
    {
        None => Ok(()),
        Some((key, _)) => Err(format!(
            "{}: the pipeline has a `{key}`; only those of a `unet` and a `scheduler`, which work on pixels, are unlearned here",
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
