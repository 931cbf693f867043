//! Reads checkpoints from bytes: a manifest, or another file with a manifest that contains its
//! digest.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};
use siss::burn::nn::{Linear, LinearConfig};
use siss::burn::tensor::{Device, Tensor};
use siss::{
    Checkpoints, DdpmScheduler, Denoiser, FnDenoiser, Result, SissTrainer, UnlearningBatch,
};

use super::scratch;

const MANIFEST: &str = "manifest.json";
const FOLDER: &str = "step-0000000002";
const STEPS: u64 = 2;

/// The files of a checkpoint, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The files of a valid checkpoint, from a trainer with momenta and a moving average after two
/// steps.
pub fn sound() -> &'static Files {
    static SOUND: OnceLock<Files> = OnceLock::new();
    SOUND.get_or_init(|| {
        let folder = scratch();
        let mut trainer = trainer();
        for _ in 0..STEPS {
            let points = |value: f64| Tensor::<2>::full([4, 3], value, &Device::flex());
            let batch = UnlearningBatch::new(points(0.0), points(1.0)).unwrap();
            trainer.step(batch).unwrap();
        }
        let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
        let path = checkpoints.save(&mut trainer, &()).unwrap();
        assert!(path.ends_with(FOLDER));
        let files = fs::read_dir(path).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        });
        files.collect()
    })
}

/// Resumes from a valid checkpoint whose manifest is replaced by these bytes.
pub fn manifest(bytes: &[u8]) -> Result<()> {
    let mut files = sound().clone();
    files.insert(MANIFEST.into(), bytes.into());
    resume(&files)
}

/// Resumes from a checkpoint with one file replaced, and a manifest with the digest of the
/// replacement.
pub fn sealed(name: &str, bytes: &[u8]) -> Result<()> {
    let mut files = sound().clone();
    files.remove(MANIFEST);
    files.insert(name.into(), bytes.into());
    files.insert(MANIFEST.into(), seal(&files).into_bytes());
    resume(&files)
}

fn resume(files: &Files) -> Result<()> {
    let scratch = scratch();
    let folder = scratch.path().join(FOLDER);
    fs::create_dir(&folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let mut trainer = trainer();
    let resumed = Checkpoints::new(scratch.path())?.resume(&mut trainer)?;
    assert_eq!(resumed.map(|resumed| resumed.step), Some(STEPS));
    assert_eq!(trainer.next_step(), STEPS);
    Ok(())
}

/// A manifest as the library writes it: with the digest of each file, and of itself without that
/// digest.
fn seal(files: &Files) -> String {
    let mut records = String::new();
    for (name, bytes) in files {
        let comma = if records.is_empty() { "" } else { "," };
        let (length, digest) = (bytes.len(), sha256(bytes));
        let record = format!(
            "{comma}\n    \"{name}\": {{\n      \"bytes\": {length},\n      \"sha256\": \"{digest}\"\n    }}"
        );
        records.push_str(&record);
    }
    let text = |digest: &str| {
        format!(
            "{{\n  \"format\": 2,\n  \"step\": {STEPS},\n  \"files\": {{{records}\n  }},\n  \"sha256\": \"{digest}\"\n}}\n"
        )
    };
    text(&sha256(text("").as_bytes()))
}

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

fn trainer() -> SissTrainer<impl Denoiser<2, Condition = ()>, 2> {
    let device = Device::flex();
    let layer = LinearConfig::new(4, 3).init(&device);
    let predict = |layer: &Linear, noisy: Tensor<2>, timesteps: Tensor<1>, _: &()| {
        let time = timesteps.unsqueeze_dim(1) / 1000.0;
        layer.forward(Tensor::cat(vec![noisy, time], 1))
    };
    let model = FnDenoiser::new(layer, predict);
    let builder = SissTrainer::builder(model, DdpmScheduler::linear(1000).unwrap());
    builder.ema(0.99).build().unwrap()
}
