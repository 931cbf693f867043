//! Networks whose weights are in bf16 compute in it, and take and give numbers in f32.

use burn::tensor::{DType, Device, FloatDType, Int, Tensor};
use siss::Denoiser;
use siss::draws::{Stream, normal_noise};
use siss::models::{
    ClassCondition, Dit, Sd3Transformer, TextCondition, UNet2d, UNet2dCondition,
    UNet2dConditionConfig,
};
use siss_support::cast::cast;

fn numbers<const D: usize>(shape: [usize; D], seed: u64) -> Tensor<D> {
    normal_noise(shape, seed, 0, 0, Stream::Evaluation, &Device::flex())
}

/// Numbers in bf16 have eight binary digits; a network adds up the errors of its layers.
fn assert_near_in_bf16<M: Denoiser<4>>(
    name: &str,
    model: M,
    [channels, height, width]: [usize; 3],
    condition: &M::Condition,
) {
    let noisy = numbers([2, channels, height, width], 1);
    let timesteps = Tensor::<1>::from_data([40.0, 700.0], &Device::flex());
    let values = |model: &M| {
        let output = model.predict(noisy.clone(), timesteps.clone(), condition);
        assert_eq!(output.dtype(), DType::F32, "{name}");
        output.into_data().iter::<f64>().collect::<Vec<f64>>()
    };
    let wide = values(&model);
    let narrow = values(&cast(model, FloatDType::BF16));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|it| it * it).sum::<f64>().sqrt();
    let apart = norm(&mut wide.iter().zip(&narrow).map(|(a, b)| a - b));
    let apart = apart / norm(&mut wide.iter().copied());
    println!("{name}: {apart:.1e}");
    assert!(apart > 1e-4 && apart < 5e-2, "{name}: {apart}");
}

fn load<M>(folder: &str, load: impl Fn(String, &Device) -> siss::Result<M>) -> M {
    load(format!("tests/conformance/{folder}"), &Device::flex()).unwrap()
}

#[test]
fn every_network_takes_and_gives_f32_with_weights_in_bf16() {
    let classes = Tensor::<1, Int>::from_data([1, 2], &Device::flex());
    let unet = load("unet_tshirt_tiny", UNet2d::load);
    let channels = unet.config().in_channels;
    assert_near_in_bf16("UNet2d", unet, [channels, 28, 28], &());

    let unet = load("unet2d_class", |folder, device| {
        UNet2d::load(folder, device)?.with_classes()
    });
    let channels = unet.unet().config().in_channels;
    let labels = ClassCondition::Labels(classes.clone());
    assert_near_in_bf16("ClassUNet2d", unet, [channels, 16, 16], &labels);

    let dit = load("dit_tiny", Dit::load);
    assert_near_in_bf16("Dit", dit, [4, 8, 8], &classes);

    let prompts = || TextCondition::new(numbers([2, 5, 24], 2));
    let unet = load("sd2_tiny", UNet2dCondition::load);
    assert_near_in_bf16("UNet2dCondition", unet, [4, 16, 16], &prompts());

    let transformer = load("sd3_tiny", Sd3Transformer::load);
    let pooled = prompts().with_pooled(numbers([2, 20], 3));
    assert_near_in_bf16("Sd3Transformer", transformer, [8, 16, 16], &pooled);
}

/// Pooled prompt and sizes go to one embedding.
#[test]
fn the_second_part_of_a_condition_is_converted_as_well() {
    let file = "tests/conformance/sd2_tiny/unet/config.json";
    let text = std::fs::read_to_string(file).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["addition_embed_type"] = "text_time".into();
    json["addition_time_embed_dim"] = 8.into();
    json["projection_class_embeddings_input_dim"] = (20 + 6 * 8).into();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, json.to_string()).unwrap();
    let config = UNet2dConditionConfig::from_file(&file).unwrap();
    let unet = config.init(&Device::flex()).unwrap();
    let prompts = TextCondition::new(numbers([2, 5, 24], 2))
        .with_pooled(numbers([2, 20], 3))
        .with_time_ids(numbers([2, 6], 4) * 100.0);
    assert_near_in_bf16("UNet2dCondition with sizes", unet, [4, 16, 16], &prompts);
}
