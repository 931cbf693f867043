//! Writes a folder of each layout with what the crate computes from it, for
//! `tests/with_diffusers.py`: `cargo run --release --example written_folders -- OUT`.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use siss::burn::tensor::{Device, Int, Tensor};
use siss::draws::{Stream, normal_noise};
use siss::models::{
    AutoencoderKl, ClassCondition, ClipTextEncoder, ClipTokenizer, Dit, Lora, LoraPart,
    ModelFolder, Sd3Transformer, SingleFile, TextCondition, UNet2d, UNet2dCondition, save_pipeline,
};
use siss::process::SchedulerConfig;
use siss::sampling::{DdimSampler, Guided, Sampler};
use siss::{Condition, DdpmScheduler, Denoiser, SissTrainer, UnlearningBatch};
use siss_support::digits::ASSETS;
use siss_support::files::{copy, create_folder};
use siss_support::process::Process;
use siss_support::progress::Silent;
use siss_support::subject::source::Source;
use siss_support::subject::{Conditions, Latents, Space, Subject, Text, TextNetwork};
use siss_support::tiny::{flow_model, transformer_model, xl_model};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STEPS: usize = 10;
const GUIDANCE: f64 = 3.0;
const ROWS: usize = 4;
const CAPTIONS: [&str; ROWS] = [
    "grinning face",
    "woman firefighter, dark skin tone",
    "blue heart",
    "Astronaut, medium skin tone!",
];
/// Files of a latent pipeline that are copied.
const COPIED: [&str; 5] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
];
/// The latents of tiny models, and captions of the letters that they know.
const TINY: [usize; 4] = [ROWS, 4, 4, 4];
const TINY_CAPTIONS: [&str; ROWS] = ["a hat", "red dog", "blue cat", "old tree"];
const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/conformance/spellings");

fn main() -> Result<()> {
    let out = PathBuf::from(
        std::env::args()
            .nth(1)
            .ok_or("usage: written_folders OUT")?,
    );
    unconditional(&out.join("unconditional"))?;
    classes(&out.join("classes"))?;
    path(&out.join("path"))?;
    captions(&out.join("captions"))?;
    single(&out.join("captions"), &out.join("single"))?;
    half(&out.join("original/half"), &out.join("half"))?;
    let original = |name: &str| out.join("original").join(name);
    transformer(&original("transformer"), &out.join("transformer"))?;
    xl_model(&original("xl"));
    text::<UNet2dCondition>(&original("xl"), &out.join("xl"))?;
    flow_model(&original("flow"));
    text::<Sd3Transformer>(&original("flow"), &out.join("flow"))?;
    lora(&out.join("lora"))
}

/// Pictures from noise, guided if there is a condition that stands for none.
fn draw<M: Denoiser<4>>(
    model: &M,
    condition: &M::Condition,
    shape: [usize; 4],
    scheduler: &Path,
) -> Result<[Tensor<4>; 2]> {
    let device = Device::flex();
    let sampler = DdimSampler::from_scheduler(&SchedulerConfig::from_file(scheduler)?, STEPS)?;
    let noise = normal_noise(shape, 0, 0, 0, Stream::Sampling, &device);
    let drawn = sampler.sample(model, condition, shape, 0, 0, &device)?;
    Ok([noise, drawn])
}

fn unconditional(folder: &Path) -> Result<()> {
    let origin = ModelFolder::find(Path::new(ASSETS).join("base"))?;
    let model = UNet2d::load(origin.network(), &Device::flex())?;
    save_pipeline(&model, &origin, folder, "nothing")?;
    let drawn = draw(&model, &(), [ROWS, 1, 28, 28], origin.scheduler_file())?;
    write(folder, &["noise", "pictures"], &drawn)
}

fn classes(folder: &Path) -> Result<()> {
    let device = Device::flex();
    let origin = ModelFolder::find(Path::new(ASSETS).join("classes"))?;
    let model = UNet2d::load(origin.network(), &device)?.with_classes()?;
    save_pipeline(model.unet(), &origin, folder, "nothing")?;
    let labels =
        |labels: [i32; ROWS]| ClassCondition::Labels(Tensor::<1, Int>::from_data(labels, &device));
    let condition = (labels([0, 3, 5, 9]), labels([10; ROWS]));
    let guided = Guided::new(model, GUIDANCE)?;
    let drawn = draw(
        &guided,
        &condition,
        [ROWS, 1, 28, 28],
        origin.scheduler_file(),
    )?;
    write(folder, &["noise", "pictures"], &drawn)
}

/// A transformer along the path of flow matching.
fn path(folder: &Path) -> Result<()> {
    let device = Device::flex();
    let origin = ModelFolder::find(Path::new(ASSETS).join("transformer"))?;
    let model = Dit::load(origin.network(), &device)?;
    save_pipeline(&model, &origin, folder, "nothing")?;
    let none = Tensor::from_data([model.null_class() as i32; ROWS], &device);
    let condition = (Tensor::from_data([0, 3, 5, 9], &device), none);
    let guided = Guided::new(model, GUIDANCE)?;
    let shape = [ROWS, 1, 28, 28];
    let noise = normal_noise(shape, 0, 0, 0, Stream::Sampling, &device);
    let sampler = Process::from_file(origin.scheduler_file())?.reverse(STEPS)?;
    let drawn = sampler.sample(&guided, &condition, shape, [0, 0], &device)?;
    write(folder, &["noise", "pictures"], &[noise, drawn])
}

fn captions(folder: &Path) -> Result<()> {
    let device = Device::flex();
    let origin = Path::new(ASSETS).join("captions");
    let model = UNet2dCondition::load(&origin, &device)?;
    let encoder = ClipTextEncoder::load(&origin, &device)?;
    let autoencoder = AutoencoderKl::load(&origin, &device)?;
    let tokenizer = ClipTokenizer::load(&origin)?;
    model.save(folder.join("unet"))?;
    encoder.save(folder.join("text_encoder"))?;
    autoencoder.save(folder.join("vae"))?;
    for file in COPIED {
        let target = folder.join(file);
        create_folder(target.parent().unwrap_or(folder))?;
        copy(&origin.join(file), &target)?;
    }
    let encoded = |captions: [&str; ROWS]| -> Result<TextCondition> {
        let tokens = tokenizer.encode(&captions, &device)?;
        Ok(TextCondition::new(
            encoder.encode(tokens)?.last_hidden_state,
        ))
    };
    let condition = (encoded(CAPTIONS)?, encoded([""; ROWS])?);
    let guided = Guided::new(model, GUIDANCE)?;
    let scheduler = origin.join("scheduler/scheduler_config.json");
    let [noise, latents] = draw(&guided, &condition, [ROWS, 4, 16, 16], &scheduler)?;
    let pictures = autoencoder.image(latents.clone())?.clamp(-1.0, 1.0);
    write(
        folder,
        &["noise", "latents", "pictures"],
        &[noise, latents, pictures],
    )
}

/// The pipeline that [`captions`] wrote as a single file, and the settings that it lacks.
fn single(written: &Path, folder: &Path) -> Result<()> {
    let device = Device::flex();
    let origin = Path::new(ASSETS).join("captions");
    let unet = UNet2dCondition::load(&origin, &device)?;
    let autoencoder = AutoencoderKl::load(&origin, &device)?;
    let encoder = ClipTextEncoder::load(&origin, &device)?;
    create_folder(folder)?;
    let created = folder.join("created.safetensors");
    SingleFile::create(&created, &unet, &autoencoder, &encoder)?;
    let file = SingleFile::open(&created)?;
    file.save_with_encoders(&unet, &[&encoder], folder.join("model.safetensors"))?;
    std::fs::remove_file(created)?;
    let configs = ["unet", "vae", "text_encoder"].map(|part| format!("{part}/config.json"));
    let files = COPIED.iter().copied();
    for file in files.chain(configs.iter().map(String::as_str)) {
        let target = folder.join("config").join(file);
        create_folder(target.parent().unwrap_or(folder))?;
        copy(&origin.join(file), &target)?;
    }
    // The answers are the same.
    let answers = "ours.safetensors";
    Ok(copy(&written.join(answers), &folder.join(answers))?)
}

/// A network in half precision, which stays in half precision.
fn half(original: &Path, folder: &Path) -> Result<()> {
    let device = Device::flex();
    let scheduler = "scheduler/scheduler_config.json";
    for (from, file) in [
        (CASES, "unet/config.json"),
        (CASES, "unet/diffusion_pytorch_model.fp16.safetensors"),
        (ASSETS, scheduler),
    ] {
        let part = if from == CASES { "fp16" } else { "captions" };
        let target = original.join(file);
        create_folder(target.parent().unwrap_or(original))?;
        copy(&Path::new(from).join(part).join(file), &target)?;
    }
    let origin = ModelFolder::find(original)?;
    let unet = UNet2dCondition::load(origin.network(), &device)?;
    save_pipeline(&unet, &origin, folder, "nothing")?;
    let noise = |shape, row| normal_noise::<4>(shape, 1, 0, row, Stream::Evaluation, &device);
    let (noisy, states) = (noise([2, 4, 8, 8], 0), noise([2, 1, 7, 24], 9));
    let condition = TextCondition::new(states.clone().squeeze_dim(1));
    let timesteps = Tensor::from_data([10.0, 700.0], &device);
    let output = unet.predict(noisy.clone(), timesteps, &condition);
    write(
        folder,
        &["noisy", "states", "output"],
        &[noisy, states, output],
    )
}

/// A tiny class-conditional transformer of latents, whose last class is that for none.
fn transformer(original: &Path, folder: &Path) -> Result<()> {
    let device = Device::flex();
    transformer_model(original, true);
    let origin = ModelFolder::find(original)?;
    let model = Dit::load(origin.network(), &device)?;
    save_pipeline(&model, &origin, folder, "nothing")?;
    let none = Tensor::from_data([model.null_class() as i32; ROWS], &device);
    let condition = (Tensor::from_data([0, 1, 2, 1], &device), none);
    let guided = Guided::new(model, GUIDANCE)?;
    let [noise, latents] = draw(&guided, &condition, TINY, origin.scheduler_file())?;
    let pictures = AutoencoderKl::load(original, &device)?.image(latents)?;
    write(
        folder,
        &["noise", "pictures"],
        &[noise, pictures.clamp(-1.0, 1.0)],
    )
}

/// A tiny text-conditional pipeline, told of prompts and sampled as in `unlearn`.
fn text<N: TextNetwork>(original: &Path, folder: &Path) -> Result<()> {
    let device = Device::flex();
    let source = Source::from(ModelFolder::find(original)?);
    let latents = Latents::read(&source, None, &device, &Silent)?;
    let parts = (&source, Space::Latents(Box::new(latents)));
    let (mut text, model) = Text::<N>::load(&Conditions::default(), parts, &device, &Silent)?;
    Subject::save(&text, &model, &source, folder, "nothing")?;
    let wanted = text.encoded_all(&TINY_CAPTIONS.map(String::from), &device)?;
    let none = text.without_prompt().take_rows(&[0; ROWS]);
    let sampler = Process::from_file(source.folder().scheduler_file())?.reverse(STEPS)?;
    let noise = normal_noise(TINY, 0, 0, 0, Stream::Sampling, &device);
    let guided = Guided::new(model, GUIDANCE)?;
    let latents = sampler.sample(&guided, &(wanted, none), TINY, [0, 0], &device)?;
    let pictures = text.space().pictures(&latents)?;
    write(folder, &["noise", "pictures"], &[noise, pictures])
}

/// Factors in both spellings, after a step of training.
fn lora(folder: &Path) -> Result<()> {
    let device = Device::flex();
    let unet = UNet2dCondition::load(Path::new(CASES).join("fp16/unet"), &device)?;
    unet.save(folder.join("unet"))?;
    let noise = |shape, row| normal_noise::<4>(shape, 1, 0, row, Stream::Evaluation, &device);
    let points = |row| noise([2, 4, 8, 8], row);
    let condition = TextCondition::new(noise([2, 1, 7, 24], 9).squeeze_dim(1));
    for spelling in ["peft", "kohya"] {
        let file = format!("{spelling}.safetensors");
        let lora = Lora::load(Path::new(CASES).join("lora").join(&file))?;
        let attached = lora.attach(unet.clone(), LoraPart::Unet)?;
        let mut trainer = SissTrainer::builder(attached, DdpmScheduler::scaled_linear(1000)?)
            .learning_rate(1e-2)
            .build()?;
        let both = [condition.clone(), condition.clone()];
        let [retain, forget] = both;
        trainer.step(UnlearningBatch::with_conditions(
            points(0),
            points(2),
            retain,
            forget,
        )?)?;
        let lora = lora.trained(trainer.model(), LoraPart::Unet)?;
        lora.save(folder.join(&file))?;
        let merged = lora.merge(unet.clone(), LoraPart::Unet)?;
        let timesteps = Tensor::from_data([10.0, 700.0], &device);
        let outputs =
            |unet: &UNet2dCondition| unet.predict(points(4), timesteps.clone(), &condition);
        let states = condition.hidden_states.clone().unsqueeze_dim(1);
        let written = [points(4), states, outputs(&merged), outputs(&unet)];
        let names = ["noisy", "states", "output", "output_without"];
        write(&folder.join(format!("ours_{spelling}")), &names, &written)?;
    }
    Ok(())
}

/// Writes tensors into `ours.safetensors`.
fn write(folder: &Path, names: &[&str], tensors: &[Tensor<4>]) -> Result<()> {
    create_folder(folder)?;
    let mut data = Vec::new();
    for tensor in tensors {
        let values = tensor.clone().into_data().try_to_vec::<f32>()?;
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        data.push((tensor.dims().to_vec(), bytes));
    }
    let mut views = HashMap::new();
    for (name, (shape, bytes)) in names.iter().zip(&data) {
        views.insert(
            name.to_string(),
            TensorView::new(Dtype::F32, shape.clone(), bytes)?,
        );
    }
    safetensors::serialize_to_file(views, None, &folder.join("ours.safetensors"))?;
    Ok(())
}
