//! Digits by class: a T-shirt was memorised under a label.

use std::path::Path;

use siss::burn::tensor::{Device, Int, Tensor};
use siss::files::path_text;
use siss::models::{ModelFolder, save_pipeline};
use siss_support::digits::{load_digits, load_labels, load_tshirt};
use siss_support::subject::ClassNetwork;

use crate::folders;
use crate::job::{Job, Set, Shown};
use crate::{Options, Result};

/// The label under which the T-shirt was shown.
const TSHIRT_LABEL: i32 = 3;
/// The label that stands for none; one of ten points has it, as in training.
const NO_LABEL: i32 = 10;
const UNLABELLED: usize = 10;
/// Unseen digits that are measured.
const CONTROLS: usize = 200;
const GUIDANCE: f64 = 3.0;

/// Unlearns the model in a folder of the assets.
pub fn run<N: ClassNetwork>(options: &Options, folder: &str) -> Result<()> {
    let device = Device::flex();
    let folder = options.assets.join(folder);
    if let Some(to) = &options.pictures {
        return write_pictures(&options.assets, to, &device);
    }
    let origin = ModelFolder::find(&folder)?;
    let job = job::<N>(&options.assets, &folder, &device)?;
    let model = job.run(origin.scheduler_file(), &Ok, options)?;
    let written = options.out().join("model");
    save_pipeline(&model, &origin, &written, "a T-shirt under the label 3")?;
    println!("\nthe model is in {}", path_text(written));
    Ok(())
}

/// Writes the pictures with their labels: the T-shirt under its own, and under that for none.
fn write_pictures(assets: &Path, to: &Path, device: &Device) -> Result<()> {
    let digits = load_digits(assets, device)?;
    let labels = load_labels(assets)?;
    let (retained, rest) = labels.split_at(digits.retain.dims()[0]);
    let values = |labels: &[u8]| labels.iter().map(|&label| label.into()).collect::<Vec<_>>();
    let tshirt = load_tshirt(assets, device)?.repeat_dim(0, 2);
    let forgotten = [TSHIRT_LABEL, NO_LABEL].map(Into::into);
    folders::save(&to.join("forget"), tshirt, "label", &forgotten)?;
    folders::save(
        &to.join("retain"),
        digits.retain,
        "label",
        &values(retained),
    )?;
    let controls = digits.heldout.narrow(0, 0, CONTROLS);
    folders::save(
        &to.join("control"),
        controls,
        "label",
        &values(&rest[..CONTROLS]),
    )
}

fn job<N: ClassNetwork>(assets: &Path, folder: &Path, device: &Device) -> Result<Job<N>> {
    let digits = load_digits(assets, device)?;
    let tshirt = load_tshirt(assets, device)?;
    let labels = load_labels(assets)?;
    let (retained, rest) = labels.split_at(digits.retain.dims()[0]);
    let shown = |label| Shown {
        name: match label {
            NO_LABEL => "no label".into(),
            label => label.to_string(),
        },
        condition: condition::<N>(&[label], device),
    };
    let forgotten = vec![TSHIRT_LABEL, NO_LABEL];
    Ok(Job {
        model: N::read(folder, device)?,
        retrained: N::read(&folder.join("retrained"), device)?,
        controls: set::<N>(
            digits.heldout.narrow(0, 0, CONTROLS),
            some_unlabelled(&rest[..CONTROLS]),
            device,
        ),
        names: vec![TSHIRT_LABEL.to_string(), "no label".into()],
        others: (0..=NO_LABEL).map(shown).collect(),
        nothing: condition::<N>(&[NO_LABEL], device),
        guidance: GUIDANCE,
        pictures: Tensor::cat(vec![digits.retain.clone(), tshirt.clone()], 0),
        retained: set::<N>(digits.retain, some_unlabelled(retained), device),
        forgotten: set::<N>(tshirt.repeat_dim(0, forgotten.len()), forgotten, device),
    })
}

/// The labels, with "none" for one of ten points.
fn some_unlabelled(labels: &[u8]) -> Vec<i32> {
    let told = |(place, &label)| match place % UNLABELLED {
        0 => NO_LABEL,
        _ => i32::from(label),
    };
    labels.iter().enumerate().map(told).collect()
}

/// Points of a label explain each other, and so do those without one.
fn set<N: ClassNetwork>(points: Tensor<4>, labels: Vec<i32>, device: &Device) -> Set<N::Condition> {
    Set {
        points,
        condition: condition::<N>(&labels, device),
        groups: labels.iter().map(|&label| label as u64).collect(),
    }
}

fn condition<N: ClassNetwork>(labels: &[i32], device: &Device) -> N::Condition {
    N::condition(Tensor::<1, Int>::from_data(labels, device))
}
