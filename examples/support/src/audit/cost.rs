//! How long the tests take, announced before they begin.

use siss::Result;

use crate::audit::attacks::{DENOISED_FROM, SIGNALS, TIMESTEPS, copies};
use crate::audit::closeness::REPETITIONS;
use crate::audit::material::Material;
use crate::audit::options::Options;
use crate::audit::returns::{self, WEIGHTS};
use crate::closeness::CURVE;
use crate::process::Process;
use crate::progress::duration;
use crate::subject::Subject;

/// A step of training takes so many forward passes: its own, and twice as much for the gradients.
const PASSES_OF_TRAINING: usize = 3;

/// What all tests run through the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Images, in forward passes without a gradient.
    pub forward: usize,
    /// Images of training steps, if no model learns its items sooner.
    pub trained: usize,
}

impl Cost {
    /// Of an audit that also tests some earlier items again.
    pub fn of<S: Subject>(material: &Material<S>, options: &Options, earlier: usize) -> Self {
        let of = Sizes::of(material, options);
        let forward = [
            of.pictures(),
            of.losses(),
            of.signals(&material.process),
            of.answers(),
            of.relearning(),
            2 * TIMESTEPS.len() * of.noises * earlier,
        ];
        Self {
            forward: forward.into_iter().sum(),
            trained: returns::DATA.len()
                * of.trained
                * options.relearning_steps as usize
                * returns::BATCH,
        }
    }

    /// Seconds, judging from a pass of some controls.
    pub fn seconds<S: Subject>(&self, material: &Material<S>) -> Result<f64> {
        let controls = (&material.controls.points, &material.controls.condition);
        let (probe, model) = (&material.probe, &material.models.after);
        let each = probe.seconds_per_image(model, controls, DENOISED_FROM)?;
        Ok(each * (self.forward + PASSES_OF_TRAINING * self.trained) as f64)
    }

    /// The line that announces it.
    pub fn line(&self, seconds: f64) -> String {
        format!(
            "time     about {} for the tests: {} images through a model, and {} in training steps",
            duration(seconds),
            self.forward,
            self.trained
        )
    }
}

/// The numbers that the cost follows from.
struct Sizes {
    items: usize,
    controls: usize,
    noises: usize,
    samples: usize,
    /// Models that every test runs, and further ones that never saw the items.
    models: usize,
    others: usize,
    /// Models that are taught the items again.
    trained: usize,
    /// Measurements while a model is taught.
    looks: usize,
    /// Passes per image: two with guidance.
    guided: usize,
    /// Calls of the model to draw a sample, and to denoise an item.
    calls: [usize; 2],
}

impl Sizes {
    fn of<S: Subject>(material: &Material<S>, options: &Options) -> Self {
        let retrained = usize::from(material.models.retrained.is_some());
        Self {
            items: material.items(),
            controls: material.controls.count(),
            noises: options.noises,
            samples: options.samples,
            models: 2 + retrained,
            others: material.models.another.len(),
            trained: 1 + retrained,
            looks: returns::looks(options.relearning_steps),
            guided: match material.subject.guidance() {
                Some(_) => 2,
                None => 1,
            },
            calls: material.probe.calls(DENOISED_FROM),
        }
    }

    /// Samples, denoised copies, and samples of the pair of old and new model.
    fn pictures(&self) -> usize {
        let [sampling, denoising] = self.calls;
        let denoised = (self.models + self.others) * copies(self.items) * self.items * denoising;
        let of_pairs = WEIGHTS.len() * returns::of_pair(self.samples, self.items) * 2;
        self.guided * (denoised + sampling * (self.models * self.samples + of_pairs))
    }

    /// Losses of the tests and of the chart over the timesteps.
    fn losses(&self) -> usize {
        let ranked = self.models * TIMESTEPS.len() * (self.items + self.controls);
        let of_others = self.others * TIMESTEPS.len() * self.items;
        self.noises * (ranked + of_others + self.models * CURVE.len() * self.items)
    }

    fn signals(&self, process: &Process) -> usize {
        let calls = match process {
            Process::Steps(_) => SIGNALS.iter().map(|(_, _, it)| it.calls()).sum(),
            Process::Flow(_) => 0,
        };
        self.models * calls * (self.items + self.controls)
    }

    /// Four comparisons of two models each.
    fn answers(&self) -> usize {
        let pairs = if self.others > 0 { 4 } else { 0 };
        2 * pairs * REPETITIONS as usize * self.noises * TIMESTEPS.len() * self.items
    }

    /// Measurements before, and while models are taught.
    fn relearning(&self) -> usize {
        (2 + returns::DATA.len() * self.trained * self.looks) * self.noises * self.items
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use clap::Parser;
    use siss::answer::OtherCondition;
    use siss::burn::module::{Module, Param};
    use siss::burn::tensor::{Device, Tensor};
    use siss::images::{Format, Images, Transparency};
    use siss::models::LeftOut;
    use siss::process::SchedulerConfig;
    use siss::report::audit::Manifest;
    use siss::{Denoiser, burn};

    use super::*;
    use crate::audit::job;
    use crate::audit::material::{Models, records};
    use crate::audit::options::Command;
    use crate::cases::{Case, CaseData};
    use crate::probe::{Chunks, Probe};
    use crate::progress::{Progress, Silent};
    use crate::request::Copies;
    use crate::subject::source::Source;
    use crate::subject::{Input, Named, Origin, Points, Space, Told};

    /// Images that went through a [`Counted`].
    static IMAGES: AtomicUsize = AtomicUsize::new(0);
    /// Images that a trainer runs before its first step.
    const OF_CHECK: usize = 9;

    /// Predicts a multiple of what it is shown, and counts.
    #[derive(Module, Debug)]
    struct Counted {
        factor: Param<Tensor<1>>,
    }

    impl Counted {
        fn new(factor: f32) -> Self {
            Self {
                factor: Param::from_data([factor], &Device::flex()),
            }
        }
    }

    impl Denoiser<4> for Counted {
        type Condition = ();

        fn predict(&self, noisy: Tensor<4>, _: Tensor<1>, _: &()) -> Tensor<4> {
            IMAGES.fetch_add(noisy.dims()[0], Relaxed);
            noisy * self.factor.val().reshape([1, 1, 1, 1])
        }
    }

    /// A subject of such models.
    struct Counting(Space);

    type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

    impl Subject for Counting {
        type Model = Counted;

        const PARTS: &'static [&'static str] = &[];
        const OPTIONS: &'static [&'static str] = &[];

        fn read(
            _: &Named<'_>,
            _: &Source,
            _: &Device,
            _: &dyn Progress,
        ) -> Result<(Self, Counted)> {
            Err("it is not read".into())
        }

        fn space(&self) -> &Space {
            &self.0
        }

        fn space_mut(&mut self) -> &mut Space {
            &mut self.0
        }

        fn input(&self) -> Input {
            Input {
                channels: 1,
                predicted: 1,
                size: None,
            }
        }

        fn told(&mut self, _: &Images, _: &Origin<'_>) -> Result<Told<()>> {
            Err("it is told nothing".into())
        }

        fn other(&self, _: usize) -> siss::Result<(OtherCondition<()>, String)> {
            Ok((OtherCondition::of_retained()?, String::new()))
        }

        fn save(&self, _: &Counted, _: &Source, _: &Path, _: &str) -> siss::Result<Vec<LeftOut>> {
            Ok(Vec::new())
        }
    }

    fn points(count: usize) -> Points<()> {
        let range = siss::burn::tensor::Distribution::Uniform(-1.0, 1.0);
        Points {
            points: Tensor::random([count, 1, 4, 4], range, &Device::flex()),
            condition: (),
            keys: vec![0; count],
            words: Vec::new(),
        }
    }

    fn material(folder: &Path) -> Material<Counting> {
        let config = SchedulerConfig::default();
        let chunks = Chunks {
            rows: 8,
            in_parallel: true,
        };
        let items = points(2);
        let data = CaseData {
            retain: points(5).points,
            heldout: points(5).points,
            forget: items.points.clone(),
        };
        let file = folder.join("item");
        std::fs::write(&file, "item").unwrap();
        let manifest = Manifest::of(&file).unwrap();
        Material {
            subject: Counting(Space::Pixels([-1.0, 1.0])),
            models: Models {
                before: Counted::new(1.0),
                after: Counted::new(-1.0),
                retrained: Some(Counted::new(-0.9)),
                another: vec![Counted::new(-0.8), Counted::new(-0.7)],
                places: [file.clone(), file],
            },
            probe: Probe::new(&config, chunks).unwrap(),
            process: Process::Steps(config),
            pictures: items.points.clone(),
            items,
            altered: points(10),
            records: records(&manifest),
            controls: points(7),
            retain: points(5),
            retained: 5,
            format: Format {
                channels: 1,
                height: 4,
                width: 4,
                is_configured: true,
                range: [-1.0, 1.0],
                transparency: Transparency::Drop,
            },
            manifest,
            description: "random".into(),
            name: "a model that counts".into(),
            copies: Copies::of(Case::Digits, &data),
            copies_rule: "none".into(),
            classifier: None,
            unlearning: Default::default(),
        }
    }

    /// Without a twin, with one and with two: what the tests run is what was counted.
    #[test]
    fn what_is_announced_is_what_runs() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = "audit --samples 41 --noises 3 --relearning-steps 25";
        let command = Command::try_parse_from(arguments.split(' ')).unwrap();
        let mut material = material(folder.path());
        for (retrained, others) in [(true, 2), (true, 1), (true, 0), (false, 0)] {
            material.models.another.truncate(others);
            if !retrained {
                material.models.retrained = None;
            }
            let cost = Cost::of(&material, &command.options, 0);
            IMAGES.store(0, Relaxed);
            job::audit(&material, &command.options, &Silent).unwrap();
            let checks = 2 * (1 + usize::from(retrained)) * OF_CHECK;
            let ran = IMAGES.load(Relaxed) - checks;
            assert_eq!(ran, cost.forward + cost.trained, "{retrained} {others}");
            assert!(cost.seconds(&material).unwrap() > 0.0);
        }
        let again = |earlier| Cost::of(&material, &command.options, earlier).forward;
        // Three noises at three timesteps of two models.
        assert_eq!(again(2) - again(0), 2 * 3 * 3 * 2);
    }
}
