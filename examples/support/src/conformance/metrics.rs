//! Cases of the metrics.

use siss::DdpmScheduler;
use siss::evaluate::DenoisingLoss;
use siss::metrics::{
    Features, KMeans, Likelihood, MembershipSignal, NoiseScale, Resize, Roc, frechet_distance,
    inception_score, kernel_distance, precision_recall,
};

use super::{Case, Computed, Result, host, relative_norm};

/// The kinds of cases in this file.
pub(super) const KINDS: [&str; 9] = [
    "fid",
    "inception_score",
    "kid",
    "kmeans",
    "membership",
    "nll",
    "precision_recall",
    "resize",
    "roc",
];

/// The distance of a tensor from its expected value, and its tolerance.
pub(super) fn error(kind: &str, name: &str, got: &[f64], expected: &[f64]) -> (f64, f64) {
    let relative = relative_norm(got, expected);
    match kind {
        "fid" | "inception_score" | "membership" => (relative, 1e-3),
        "kid" | "kmeans" if name != "expect_labels" => (relative, 1e-5),
        "nll" => (largest_difference(got, expected), 2e-2),
        "roc" => (relative, 1e-6),
        // A share is rounded to float32 in the case.
        "precision_recall" => (relative, 1e-7),
        "resize" => (largest_difference(got, expected) / 255.0, 1e-3),
        _ => (relative, 0.0),
    }
}

fn largest_difference(got: &[f64], expected: &[f64]) -> f64 {
    let pairs = got.iter().zip(expected);
    pairs
        .map(|(got, expected)| (got - expected).abs())
        .fold(0.0, f64::max)
}

impl Case {
    /// The computed values of a case of a metric, or `None` for another kind.
    pub(super) fn metric(&self, kind: &str) -> Result<Option<Computed>> {
        Ok(Some(match kind {
            "fid" => {
                let (real, generated) =
                    (self.features("features_a")?, self.features("features_b")?);
                one("expect_fid", frechet_distance(&real, &generated)?.value)
            }
            "inception_score" => self.inception_score()?,
            "kid" => {
                let (real, generated) =
                    (self.features("features_a")?, self.features("features_b")?);
                one("expect_kid", kernel_distance(&real, &generated)?.value)
            }
            "kmeans" => self.kmeans()?,
            "membership" => self.membership()?,
            "nll" => self.likelihood()?,
            "precision_recall" => self.precision_recall()?,
            "resize" => self.resize()?,
            "roc" => self.roc()?,
            _ => return Ok(None),
        }))
    }

    fn features(&self, name: &str) -> Result<Features> {
        Ok(Features::of("the case", self.tensor(name)?)?)
    }

    fn inception_score(&self) -> Result<Computed> {
        let found = inception_score(&self.features("logits")?, self.number("splits")?)?;
        Ok(vec![
            ("expect_mean".into(), vec![found.mean.value]),
            ("expect_std".into(), vec![found.deviation]),
        ])
    }

    fn kmeans(&self) -> Result<Computed> {
        let (_, centers) = &self.tensors["initial_centers"];
        let points = self.features("points")?;
        let centers = centers
            .chunks(points.dimension())
            .map(<[f64]>::to_vec)
            .collect();
        let found = KMeans::new(self.number("k")?).fit_from(&points, centers)?;
        Ok(vec![
            (
                "expect_labels".into(),
                found.labels.iter().map(|&label| label as f64).collect(),
            ),
            ("expect_centers".into(), found.centers.concat()),
            ("expect_inertia".into(), vec![found.inertia]),
        ])
    }

    fn likelihood(&self) -> Result<Computed> {
        let settings = Likelihood {
            noise_scale: match self.text("std")? {
                "discrete" => NoiseScale::Discrete,
                _ => NoiseScale::Continuous,
            },
            beta_min: self.number("beta_min")?,
            beta_max: self.number("beta_max")?,
            num_timesteps: self.number("num_train_timesteps")?,
            first_time: self.number("t_eps")?,
            relative_tolerance: self.number("rtol")?,
            absolute_tolerance: self.number("atol")?,
            bits_offset: self.number("bits_offset")?,
            ..Likelihood::default()
        };
        let (points, probe) = (self.image("x")?, self.image("rademacher")?);
        let found =
            settings.measure_with(&self.checkpoint()?, &points, &(), |_, _, _| probe.clone())?;
        // Rounding in f32 can change a step's acceptance, but hardly their number.
        let (evaluations, expected) = (found[0].evaluations[0], self.number::<usize>("nfe")?);
        if evaluations.abs_diff(expected) > expected / 10 {
            return Err(format!("{evaluations} evaluations, expected {expected}").into());
        }
        Ok(one("expect_bits_per_dim", found[0].bits_per_dimension))
    }

    fn membership(&self) -> Result<Computed> {
        let scheduler = DdpmScheduler::from_config(&self.scheduler_config()?)?;
        let (model, points) = (self.checkpoint()?, self.image("x")?);
        let timestep: usize = self.number("timestep")?;
        let signals = [
            ("expect_sima", MembershipSignal::Sima { timestep }),
            ("expect_pia", MembershipSignal::Pia { timestep }),
            ("expect_pian", MembershipSignal::Pian { timestep }),
            (
                "expect_secmi",
                MembershipSignal::SecMi {
                    timestep: self.number("secmi_timestep")?,
                    stride: self.number("secmi_stride")?,
                },
            ),
        ];
        let mut computed = Vec::new();
        for (name, signal) in signals {
            let scores = signal.measure(&model, &scheduler, &points, &())?;
            computed.push((name.into(), scores));
        }
        let noise = self.image("noise")?;
        let losses = DenoisingLoss::at([timestep as f64]).measure_with(
            &model,
            &scheduler,
            &points,
            &(),
            |[rows, ..], first, _| noise.clone().narrow(0, first as usize, rows),
        )?;
        computed.push(("expect_loss".into(), losses.concat()));
        Ok(computed)
    }

    fn precision_recall(&self) -> Result<Computed> {
        let (real, generated) = (self.features("real")?, self.features("generated")?);
        let found = precision_recall(&real, &generated, self.number("k")?)?;
        Ok(vec![
            ("expect_precision".into(), vec![found.precision.value]),
            ("expect_recall".into(), vec![found.recall.value]),
        ])
    }

    /// The cases hold every 13th row and column.
    fn resize(&self) -> Result<Computed> {
        let (pictures, size) = (self.image("image")?, self.number("size")?);
        let kinds = [
            Resize::Tensorflow1,
            Resize::HalfPixel,
            Resize::Antialiased,
            Resize::PilBicubic,
        ];
        let mut computed = Vec::new();
        for kind in kinds {
            let resized = kind.apply(pictures.clone(), [size, size])?;
            let [rows, channels, ..] = resized.dims();
            let values = host(resized)?;
            let mut kept = Vec::new();
            for plane in values.chunks(size * size).take(rows * channels) {
                for row in plane.chunks(size).step_by(13) {
                    kept.extend(row.iter().step_by(13));
                }
            }
            computed.push((format!("expect_{kind}"), kept));
        }
        Ok(computed)
    }

    fn roc(&self) -> Result<Computed> {
        let roc = Roc::new(self.values("members")?, self.values("nonmembers")?)?;
        let (mut rates, mut intervals) = (Vec::new(), Vec::new());
        for &rate in self.values("false_positive_rates")? {
            // The rates are rounded to float32 in the case.
            let rate = (rate * 1e6).round() / 1e6;
            let found = roc.at_false_positive_rate(rate)?.true_positives;
            rates.push(found.value);
            intervals.extend([found.low, found.high]);
        }
        Ok(vec![
            ("expect_auc".into(), vec![roc.area().value]),
            ("expect_tpr".into(), rates),
            ("expect_tpr_interval".into(), intervals),
        ])
    }
}

fn one(name: &str, value: f64) -> Computed {
    vec![(name.into(), vec![value])]
}
