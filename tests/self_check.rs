//! The gradients of a convolutional network on the device under test agree with those of the CPU,
//! and so do an average of the weights and an optimiser's state that are kept there.

use burn::module::{Module, list_param_ids};
use burn::tensor::Device;
use siss::draws::{Stream, normal_noise};
use siss::models::UNet2dConfig;
use siss::{DdpmScheduler, Method, SissTrainer, UnlearningBatch};
use siss_support::small;

/// A network that halves its maps twice, with attention.
fn config(size: usize) -> String {
    format!(
        r#"{{
    "in_channels": 1, "out_channels": 1, "sample_size": {size}, "layers_per_block": 1,
    "block_out_channels": [16, 32, 32], "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
}}"#
    )
}

/// Maps of 12, 6 and 3 pixels; of 28, 14 and 7, where an enlargement by rounded divisions fails; of
/// 20, 10 and 5, with an odd size at the end.
#[test]
fn a_networks_gradients_are_those_of_the_cpu() {
    let device = small::device();
    for (size, rows) in [(12, 4), (28, 2), (20, 2)] {
        let config = UNet2dConfig::from_json(&config(size), "config.json").unwrap();
        let model = config.init(&device).unwrap();
        let shape = [rows, 1, size, size];
        let points = |seed| normal_noise(shape, seed, 0, 0, Stream::Evaluation, &device);
        let batch = UnlearningBatch::new(points(1), points(2)).unwrap();
        for method in [Method::Siss, Method::NegGrad] {
            let what = format!("{method}, {size} pixels");
            let scheduler = DdpmScheduler::linear(1000).unwrap();
            let builder = SissTrainer::builder(model.clone(), scheduler).method(method);
            let mut trainer = builder.build().unwrap();
            let check = trainer.self_check(&batch, &Device::flex(), 0.05).unwrap();
            let (worst, name) = (check.worst, &check.worst_parameter);
            println!("{what}: `{name}` is farthest off, by {worst:.1e}");
            assert!(worst < 0.01, "{what}: {check:?}");
            assert_eq!(
                check.parameters.len(),
                list_param_ids(&model).len(),
                "{what}"
            );
            let draws = trainer.draw(&batch).unwrap();
            let norms = trainer.gradients(&batch, &draws).unwrap().report.norms;
            let compared = norms.forget > 0.0;
            assert!(compared, "{what}: there was nothing to compare: {norms:?}");
        }
    }
}

/// The same bits where the device is the CPU.
#[test]
fn a_run_with_average_and_optimisers_state_on_the_host_is_that_of_the_device() {
    let device = small::device();
    let start = small::Mlp::new(1, &device);
    let averaged = |host: Option<Device>| {
        let mut builder = SissTrainer::builder(start.clone(), DdpmScheduler::linear(1000).unwrap())
            .learning_rate(1e-2)
            .ema(0.9);
        if let Some(host) = host {
            builder = builder.ema_device(host.clone());
            builder = builder.optimizer_state_device(host);
        }
        let mut trainer = builder.build().unwrap();
        for seed in 0..6 {
            let batch = small::batch(8, 0.5, seed, &device);
            trainer.step(batch).unwrap();
        }
        trainer.ema_model().unwrap()
    };
    let (here, on_host) = (averaged(None), averaged(Some(Device::flex())));
    assert_eq!(on_host.devices(), [Device::flex()]);
    let [here, on_host] = [here, on_host].map(|model| small::parameters(&model));
    let moved = small::norm(&small::difference(&here, &small::parameters(&start)));
    let off = small::norm(&small::difference(&here, &on_host));
    assert!(moved > 0.0);
    match device == Device::flex() {
        true => assert_eq!(here, on_host),
        false => assert!(off < 1e-6 * moved, "{off:e} of {moved:e}"),
    }
}
