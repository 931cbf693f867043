//! Models that are conditioned on a class.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use siss::Result as SissResult;
use siss::answer::OtherCondition;
use siss::burn::tensor::{Device, Int, Tensor};
use siss::files::path_text;
use siss::images::{Annotations, ImageFiles, Images};
use siss::models::{
    ClassCondition, ClassUNet2d, Dit, LeftOut, LoadNote, PipelineNetwork, UNet2d, save_pipeline,
};

use super::source::Source;
use super::{
    ConditionOf, Input, MakePoints, NO_STREAM, Named, Origin, Result, Space, Subject, Told,
    say_all, unconditional,
};
use crate::progress::Progress;

/// A network that is conditioned on a class.
pub trait ClassNetwork: PipelineNetwork<Condition: Debug + Sync + 'static> + Sync {
    /// The scale of guidance that its pipeline has by default.
    const GUIDANCE: f64;

    /// Reads a network's folder.
    fn read(folder: &Path, device: &Device) -> Result<Self>;

    /// The decisions made while the network was read.
    fn notes(&self) -> &[LoadNote];

    /// What it takes and predicts.
    fn input(&self) -> Input;

    /// The number of its labels.
    fn labels(&self) -> usize;

    /// The label that stands for none, if the configuration says it.
    fn null(&self) -> Option<usize>;

    /// The condition of these labels, a row for each.
    fn condition(labels: Tensor<1, Int>) -> Self::Condition;
}

impl ClassNetwork for ClassUNet2d {
    const GUIDANCE: f64 = 1.0;

    fn read(folder: &Path, device: &Device) -> Result<Self> {
        let unet = UNet2d::load(folder, device)?;
        if unet.config().class_embed_type.is_some() {
            return Err(format!(
                "{}: its `class_embed_type` takes numbers or embeddings; only a table of classes (`num_class_embeds` alone) is unlearned here",
                path_text(folder)
            )
            .into());
        }
        Ok(unet.with_classes()?)
    }

    fn notes(&self) -> &[LoadNote] {
        self.unet().notes()
    }

    fn input(&self) -> Input {
        unconditional::input(self.unet().config())
    }

    fn labels(&self) -> usize {
        self.unet().config().num_class_embeds.unwrap_or_default()
    }

    fn null(&self) -> Option<usize> {
        None
    }

    fn condition(labels: Tensor<1, Int>) -> ClassCondition {
        ClassCondition::Labels(labels)
    }
}

impl ClassNetwork for Dit {
    const GUIDANCE: f64 = 4.0;

    fn read(folder: &Path, device: &Device) -> Result<Self> {
        Ok(Self::load(folder, device)?)
    }

    fn notes(&self) -> &[LoadNote] {
        self.notes()
    }

    /// Its prediction is without the variance.
    fn input(&self) -> Input {
        let config = self.config();
        Input {
            channels: config.in_channels,
            predicted: config.in_channels,
            size: Some([config.sample_size; 2]),
        }
    }

    fn labels(&self) -> usize {
        self.null_class() + 1
    }

    fn null(&self) -> Option<usize> {
        Some(self.null_class())
    }

    fn condition(labels: Tensor<1, Int>) -> Tensor<1, Int> {
        labels
    }
}

/// What a network with classes is told of images.
pub struct Classes<N> {
    input: Input,
    space: Space,
    labels: Labels,
    /// The class of the forgotten images, if it is given.
    label: Option<usize>,
    /// The class that stands for none.
    null: Option<usize>,
    neighbour: Option<usize>,
    guidance: f64,
    network: PhantomData<fn() -> N>,
}

/// The labels of a model's network.
#[derive(Clone)]
struct Labels {
    count: usize,
    model: PathBuf,
    device: Device,
}

impl Labels {
    fn tensor(&self, labels: &[usize]) -> Tensor<1, Int> {
        let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
        Tensor::from_data(labels.as_slice(), &self.device)
    }

    /// Rejects a label that the network does not have; `what` names where it comes from.
    fn check(&self, label: usize, what: &str) -> SissResult<()> {
        match label < self.count {
            true => Ok(()),
            false => Err(siss::Error::Data(format!(
                "{what}: the label is {label}, but the classes of {} are 0 to {}",
                path_text(&self.model),
                self.count.saturating_sub(1)
            ))),
        }
    }

    /// The label of each file.
    fn of(&self, files: &[PathBuf], annotations: &Annotations) -> SissResult<Vec<usize>> {
        let label = |file: &PathBuf| {
            let label = annotations.label(file)?;
            self.check(label, &path_text(file))?;
            Ok(label)
        };
        files.iter().map(label).collect()
    }
}

impl<N: ClassNetwork> Subject for Classes<N> {
    type Model = N;

    const PARTS: &'static [&'static str] = unconditional::PARTS;
    const OPTIONS: &'static [&'static str] = &[
        "label",
        "null-label",
        "neighbour-label",
        "guidance",
        "drop-condition",
    ];

    fn read(
        named: &Named<'_>,
        source: &Source,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, N)> {
        let network = N::read(source.network(), device)?;
        say_all(network.notes(), progress);
        let conditions = named.conditions;
        let null = conditions.null_label.or(network.null());
        let guidance = conditions.guidance.unwrap_or(N::GUIDANCE);
        if null.is_none() && (guidance != 1.0 || conditions.drop_condition > 0.0) {
            let options = match named.takes.contains(&"drop-condition") {
                true => "--guidance and --drop-condition need",
                false => "--guidance needs",
            };
            return Err(
                format!("{options} the class that stands for none: give --null-label").into(),
            );
        }
        let classes = Self {
            input: network.input(),
            space: Space::read(named, source, device, progress)?,
            labels: Labels {
                count: network.labels(),
                model: named.path.into(),
                device: device.clone(),
            },
            label: conditions.label,
            null,
            neighbour: conditions.neighbour_label,
            guidance,
            network: PhantomData,
        };
        for (option, label) in [
            ("--label", classes.label),
            ("--null-label", classes.null),
            ("--neighbour-label", classes.neighbour),
        ] {
            if let Some(label) = label {
                classes.labels.check(label, option)?;
            }
        }
        Ok((classes, network))
    }

    fn space(&self) -> &Space {
        &self.space
    }

    fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }

    fn input(&self) -> Input {
        self.input
    }

    fn told(&mut self, images: &Images, origin: &Origin<'_>) -> Result<Told<ConditionOf<Self>>> {
        let files = images.files();
        let labels = match self.label.filter(|_| origin.is_forgotten) {
            Some(label) => vec![label; files.len()],
            None => self.labels.of(files, &Annotations::of(origin.found)?)?,
        };
        Ok(Told {
            condition: N::condition(self.labels.tensor(&labels)),
            keys: labels.iter().map(|&label| label as u64).collect(),
            words: labels
                .iter()
                .map(|label| format!("class {label}"))
                .collect(),
        })
    }

    fn maker(&self, found: &ImageFiles, device: &Device) -> Result<MakePoints<ConditionOf<Self>>> {
        if !self.space.is_pixels() {
            return Err(NO_STREAM.into());
        }
        let annotations = Annotations::of(found)?;
        let (labels, device) = (self.labels.clone(), device.clone());
        Ok(Box::new(move |images| {
            let condition = N::condition(labels.tensor(&labels.of(images.files(), &annotations)?));
            Ok((images.all(&device), condition))
        }))
    }

    fn guidance(&self) -> Option<(f64, ConditionOf<Self>)> {
        let none = self.none().filter(|_| self.guidance != 1.0)?;
        Some((self.guidance, none))
    }

    fn none(&self) -> Option<ConditionOf<Self>> {
        self.null
            .map(|null| N::condition(self.labels.tensor(&[null])))
    }

    fn other(&self, count: usize) -> SissResult<(OtherCondition<ConditionOf<Self>>, String)> {
        match self.neighbour.or(self.null) {
            Some(label) => Ok((
                OtherCondition::given(
                    N::condition(self.labels.tensor(&vec![label; count])),
                    count,
                )?,
                format!("class {label}"),
            )),
            None => Ok((
                OtherCondition::of_retained()?,
                "the classes of retained images".into(),
            )),
        }
    }

    fn save(
        &self,
        model: &N,
        source: &Source,
        folder: &Path,
        note: &str,
    ) -> SissResult<Vec<LeftOut>> {
        save_pipeline(model, source.folder(), folder, note)
    }
}
