//! Cases of the networks that make features of pictures, with weights by formula.

use siss::metrics::Resize;
use siss::metrics::networks::{
    ClipIqa, InceptionTap, InceptionV3, ResNet18, Sscd, SscdSize, formula_weights,
};

use super::{Case, Computed, Result, host};

/// The kinds of cases in this file.
pub(super) const KINDS: [&str; 5] = [
    "clip_iqa",
    "formula_weights",
    "inception_features",
    "resnet18",
    "sscd",
];

fn source(name: &str, shape: &[usize]) -> siss::Result<Vec<f32>> {
    Ok(formula_weights(name, shape))
}

impl Case {
    /// The computed values of a case of one of [`KINDS`].
    pub(super) fn feature(&self, kind: &str) -> Result<Computed> {
        match kind {
            "clip_iqa" => self.clip_iqa(),
            "inception_features" => self.inception_features(),
            "resnet18" => {
                let network = ResNet18::from_tensors(&mut source, 1, 10, &self.device)?;
                let logits = network.forward(self.image("x")?)?;
                Ok(vec![("expect_logits".into(), host(logits)?)])
            }
            "sscd" => self.sscd(),
            _ => Ok(formula()),
        }
    }

    fn inception_features(&self) -> Result<Computed> {
        let network = InceptionV3::from_tensors(&mut source, &self.device)?;
        let taps = [
            ("expect_64", InceptionTap::Pool64),
            ("expect_192", InceptionTap::Pool192),
            ("expect_768", InceptionTap::Pool768),
            ("expect_2048", InceptionTap::Pool2048),
            ("expect_logits_unbiased", InceptionTap::LogitsUnbiased),
            ("expect_logits", InceptionTap::Logits),
        ];
        let mut computed = Vec::new();
        for (name, tap) in taps {
            let features = network.forward(self.image("image")?, tap, Resize::Tensorflow1)?;
            computed.push((name.into(), host(features)?));
        }
        Ok(computed)
    }

    fn sscd(&self) -> Result<Computed> {
        let network = Sscd::from_tensors(&mut source, &self.device)?;
        let picture = self
            .tensor::<3>("image")?
            .permute([2, 0, 1])
            .unsqueeze::<4>();
        let describe =
            |size| -> Result<Vec<f64>> { host(network.describe(picture.clone(), size)?) };
        Ok(vec![
            ("expect_resize288".into(), describe(SscdSize::SmallEdge288)?),
            ("expect_skew320".into(), describe(SscdSize::Square320)?),
        ])
    }

    fn clip_iqa(&self) -> Result<Computed> {
        let network = ClipIqa::from_tensors(&mut source, &self.device)?;
        let ids: Vec<i64> = self
            .values("input_ids")?
            .iter()
            .map(|&id| id as i64)
            .collect();
        let (prompts, _) = ids.as_chunks::<77>();
        let prompts: [[i64; 77]; 2] = prompts.try_into()?;
        if prompts != ClipIqa::PROMPTS {
            return Err("the prompts are not the published ones".into());
        }
        let picture = self.image("image")? * 255.0;
        let quality = network.quality(picture.clone(), &prompts)?;
        Ok(vec![
            (
                "expect_image_features".into(),
                host(network.picture_features(picture)?)?,
            ),
            (
                "expect_text_features".into(),
                host(network.text_features(&prompts))?,
            ),
            ("expect_quality".into(), host(quality)?),
        ])
    }
}

fn formula() -> Computed {
    let tensors: [(&str, &str, &[usize]); 3] = [
        ("expect_weight", "conv1.weight", &[2, 3]),
        ("expect_norm", "bn1.weight", &[4]),
        ("expect_bias", "fc.bias", &[4]),
    ];
    let values = |(expected, name, shape): (&str, &str, &[usize])| {
        let values = formula_weights(name, shape).into_iter().map(f64::from);
        (expected.to_owned(), values.collect())
    };
    tensors.map(values).into()
}
