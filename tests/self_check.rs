//! The gradients of a convolutional network on the device under test agree with those of the CPU.

use burn::tensor::Device;
use siss::draws::{Stream, normal_noise};
use siss::models::UNet2dConfig;
use siss::{DdpmScheduler, Method, SissTrainer, UnlearningBatch};
use siss_support::small;

/// A network that halves maps of 12×12 twice, to 3×3, with attention.
const CONFIG: &str = r#"{
    "in_channels": 1, "out_channels": 1, "sample_size": 12, "layers_per_block": 1,
    "block_out_channels": [16, 32, 32], "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
}"#;

#[test]
fn a_networks_gradients_are_those_of_the_cpu() {
    let device = small::device();
    let config = UNet2dConfig::from_json(CONFIG, "config.json").unwrap();
    let model = config.init(&device).unwrap();
    let points = |seed| normal_noise([4, 1, 12, 12], seed, 0, 0, Stream::Evaluation, &device);
    let batch = UnlearningBatch::new(points(1), points(2)).unwrap();
    for method in [Method::Siss, Method::NegGrad] {
        let scheduler = DdpmScheduler::linear(1000).unwrap();
        let builder = SissTrainer::builder(model.clone(), scheduler).method(method);
        let mut trainer = builder.build().unwrap();
        let check = trainer.self_check(&batch, &Device::flex(), 0.05).unwrap();
        println!("{method}: {check:?}");
        assert!(check.worst < 0.01, "{method}: {check:?}");
        let draws = trainer.draw(&batch).unwrap();
        let norms = trainer.gradients(&batch, &draws).unwrap().report.norms;
        assert!(
            norms.forget > 0.0,
            "{method}: there was nothing to compare: {norms:?}"
        );
    }
}
