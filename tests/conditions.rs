//! Conditions under which unlearning would go wrong are refused or flagged before, or right after,
//! the first step.

use std::path::Path;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use siss::data::{DataCheck, DataFinding, near_duplicates};
use siss::draws::{Stream, normal_noise};
use siss::*;
use siss_support::digits;
use siss_support::small::*;

fn digits() -> Tensor<4> {
    digits::load_digits(Path::new(digits::ASSETS), &Device::flex())
        .unwrap()
        .retain
}

fn relative(retain: &Tensor<4>, forget: Tensor<4>) -> Option<(usize, f64)> {
    let found = near_duplicates(retain, &forget, 0.25).unwrap();
    found.first().map(|pair| (pair.retain, pair.relative))
}

/// Copies of a retained digit that were saved again in common ways: each is found, at the digit it
/// was made from.
#[test]
fn copies_of_a_retained_image_are_found() {
    let retain = digits();
    let noise = |seed| normal_noise([1, 1, 28, 28], seed, 0, 0, Stream::Evaluation, &device());
    type Copy = (&'static str, fn(Tensor<4>, Tensor<4>) -> Tensor<4>);
    let copies: [Copy; 6] = [
        ("the same", |image, _| image),
        ("rounded to 16 greys", |image, _| {
            ((image + 1.0) * 7.5).round() / 7.5 - 1.0
        }),
        ("noise of 3 %", |image, noise| image + noise * 0.06),
        ("brighter by 5 %", |image, _| (image * 1.1).clamp(-1.0, 1.0)),
        ("darker by 10 %", |image, _| (image + 1.0) * 0.9 - 1.0),
        ("less contrast by 5 %", |image, _| image * 0.95),
    ];
    let mut worst = 0.0f64;
    for row in [0, 4_321, 8_999] {
        for (name, copy) in copies {
            let image = retain.clone().narrow(0, row, 1);
            let found = relative(&retain, copy(image, noise(row as u64)));
            let (at, relative) = found.unwrap_or_else(|| panic!("{name} of {row} was not found"));
            assert_eq!(at, row, "{name}");
            worst = worst.max(relative);
        }
    }
    println!("18 copies found, the farthest at {worst:.2} of the typical distance");
}

/// Among digits that no model has seen, none is a copy, and the T-shirt does not resemble a digit.
#[test]
fn images_that_are_no_copies_are_not_flagged() {
    let digits = digits::load_digits(Path::new(digits::ASSETS), &Device::flex()).unwrap();
    let forget = digits.heldout.narrow(0, 0, 300);
    let flagged = near_duplicates(&digits.retain, &forget, 0.25).unwrap();
    let points: std::collections::BTreeSet<_> = flagged.iter().map(|pair| pair.forget).collect();
    println!("{} of 300 digits flagged: {flagged:?}", points.len());
    assert!(points.is_empty());
    let tshirt = digits::load_tshirt(Path::new(digits::ASSETS), &Device::flex()).unwrap();
    assert_eq!(
        DataCheck::default().run(&digits.retain, &tshirt).unwrap(),
        []
    );
}

/// An exact copy under another name is refused; an approximate copy is flagged with both numbers.
#[test]
fn a_forgotten_point_on_the_retain_side_is_refused_or_flagged() {
    let retain = normal_noise([40, 6], 1, 0, 0, Stream::Evaluation, &device());
    let copied = retain.clone().narrow(0, 11, 1);
    let error = PairSampler::<2>::new(retain.clone(), copied.clone(), 0).unwrap_err();
    assert!(
        matches!(
            error,
            Error::ForgottenPointRetained {
                forget: 0,
                retain: 11
            }
        ),
        "{error}"
    );
    let almost = copied + 1e-3;
    assert!(PairSampler::new(retain.clone(), almost.clone(), 0).is_ok());
    let latents = DataCheck {
        range: None,
        ..DataCheck::default()
    };
    let findings = latents.run(&retain, &almost).unwrap();
    let [DataFinding::NearDuplicate(pair)] = findings[..] else {
        panic!("{findings:?}")
    };
    assert_eq!((pair.forget, pair.retain), (0, 11));
    assert!((pair.distance - 1e-3).abs() < 1e-5, "{pair:?}");
}

/// A model with a layer that `predict` does not use.
#[derive(Module, Debug)]
struct Forgetful {
    used: Linear,
    forgotten: Linear,
}

impl Denoiser<2> for Forgetful {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        self.used.forward(noisy)
    }
}

#[test]
fn parameters_that_no_gradient_reaches_are_named_after_the_first_step() {
    let linear = || LinearConfig::new(3, 3).init(&device());
    let model = Forgetful {
        used: linear(),
        forgotten: linear(),
    };
    let points = batch(8, 0.5, 1, &device());
    let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000).unwrap())
        .build()
        .unwrap();
    let report = trainer.step(points.clone()).unwrap();
    assert_eq!(
        report.without_gradient,
        ["forgotten.weight", "forgotten.bias"]
    );
    let json = serde_json::to_string(&report).unwrap();
    assert!(
        json.contains(r#""without_gradient":["forgotten.weight""#),
        "{json}"
    );
    let report = trainer.step(points.clone()).unwrap();
    assert!(report.without_gradient.is_empty());
    assert!(!serde_json::to_string(&report).unwrap().contains("without"));
    let finding = trainer.findings()[0].to_string();
    assert!(
        finding.contains("2 of the trained parameters") && finding.contains("`forgotten.weight`"),
        "{finding}"
    );
    // Frozen parameters are supposed to have no gradient.
    let model = trainer.into_model();
    let frozen = Forgetful {
        forgotten: model.forgotten.freeze(),
        used: model.used,
    };
    let mut trainer = SissTrainer::builder(frozen, DdpmScheduler::linear(1000).unwrap())
        .build()
        .unwrap();
    assert!(trainer.step(points).unwrap().without_gradient.is_empty());
}

/// Empty sides, wherever points are passed in.
#[test]
fn an_empty_side_is_refused() {
    let points = |rows: usize| Tensor::<2>::ones([rows, 3], &device());
    let check = DataCheck::default();
    let refusals = [
        PairSampler::new(points(0), points(2), 0).map(|_| ()),
        PairSampler::new(points(2), points(0), 0).map(|_| ()),
        UnlearningBatch::new(points(0), points(0)).map(|_| ()),
        check.run(&points(0), &points(2)).map(|_| ()),
        check.run(&points(2), &points(0)).map(|_| ()),
        near_duplicates(&points(2), &points(0), 0.5).map(|_| ()),
    ];
    for refusal in refusals {
        let error = refusal.unwrap_err();
        assert!(matches!(error, Error::Empty { .. }), "{error}");
    }
}
