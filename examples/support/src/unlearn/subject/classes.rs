//! Models of pixels that are conditioned on a class.

use std::path::{Path, PathBuf};

use siss::Result as SissResult;
use siss::answer::OtherCondition;
use siss::burn::tensor::{Device, Int, Tensor};
use siss::files::path_text;
use siss::images::{Annotations, Format, ImageFiles, Images};
use siss::models::{
    ClassCondition, ClassUNet2d, LeftOut, ModelFolder, UNet2d, UNet2dConfig, save_pipeline,
};

use super::{MakePoints, Origin, Points, Result, Subject, from_range, pixels};
use crate::progress::Progress;
use crate::unlearn::options::Options;

/// A [`UNet2d`] with class embeddings.
pub struct Classes {
    config: UNet2dConfig,
    model: PathBuf,
    range: [f64; 2],
    device: Device,
    /// The class of the forgotten images, if it is given.
    label: Option<usize>,
    /// The class that stands for none.
    null: Option<usize>,
    neighbour: Option<usize>,
    guidance: f64,
}

impl Classes {
    fn labels(&self, labels: &[usize]) -> ClassCondition {
        condition(labels, &self.device)
    }

    fn count(&self) -> usize {
        self.config.num_class_embeds.unwrap_or_default()
    }

    /// Rejects a label that the network does not have; `what` names where it comes from.
    fn check(&self, label: usize, what: &str) -> Result<()> {
        Ok(check(label, self.count(), &self.model, what)?)
    }
}

fn condition(labels: &[usize], device: &Device) -> ClassCondition {
    let labels: Vec<i32> = labels.iter().map(|&label| label as i32).collect();
    ClassCondition::Labels(Tensor::<1, Int>::from_data(labels.as_slice(), device))
}

fn check(label: usize, count: usize, model: &Path, what: &str) -> SissResult<()> {
    match label < count {
        true => Ok(()),
        false => Err(siss::Error::Data(format!(
            "{what}: the label is {label}, but the classes of {} are 0 to {}",
            path_text(model),
            count.saturating_sub(1)
        ))),
    }
}

impl Subject for Classes {
    type Model = ClassUNet2d;

    const PARTS: &'static [&'static str] = pixels::PARTS;
    const OPTIONS: &'static [&'static str] = &[
        "label",
        "null-label",
        "neighbour-label",
        "guidance",
        "drop-condition",
    ];

    fn read(
        options: &Options,
        origin: &ModelFolder,
        device: &Device,
        progress: &dyn Progress,
    ) -> Result<(Self, ClassUNet2d)> {
        let unet = UNet2d::load(origin.network(), device)?;
        for note in unet.notes() {
            progress.say(&note.to_string());
        }
        let config = unet.config().clone();
        if config.class_embed_type.is_some() {
            return Err(format!(
                "{}: its `class_embed_type` takes numbers or embeddings; only a table of classes (`num_class_embeds` alone) is unlearned here",
                path_text(origin.network())
            )
            .into());
        }
        let conditions = &options.conditions;
        let classes = Self {
            config,
            model: options.model.clone(),
            range: options.range,
            device: device.clone(),
            label: conditions.label,
            null: conditions.null_label,
            neighbour: conditions.neighbour_label,
            guidance: conditions.guidance.unwrap_or(1.0),
        };
        for (option, label) in [
            ("label", classes.label),
            ("null-label", classes.null),
            ("neighbour-label", classes.neighbour),
        ] {
            if let Some(label) = label {
                classes.check(label, &format!("--{option}"))?;
            }
        }
        if classes.null.is_none() && (classes.guidance != 1.0 || conditions.drop_condition > 0.0) {
            return Err("--guidance and --drop-condition need the class that stands for none: give --null-label".into());
        }
        Ok((classes, unet.with_classes()?))
    }

    fn format(&self, found: &ImageFiles, options: &Options) -> Result<Format> {
        pixels::format(&self.config, found, options)
    }

    fn range(&self) -> Option<[f64; 2]> {
        Some(self.range)
    }

    fn points(
        &mut self,
        images: &Images,
        origin: &Origin<'_>,
        _: &dyn Progress,
    ) -> Result<Points<ClassCondition>> {
        let annotations = Annotations::of(origin.found)?;
        let given = self.label.filter(|_| origin.is_forgotten);
        let mut labels = Vec::with_capacity(images.len());
        for file in images.files() {
            let label = match given {
                Some(label) => label,
                None => annotations.label(file)?,
            };
            self.check(label, &path_text(file))?;
            labels.push(label);
        }
        Ok(Points {
            points: images.all(origin.device),
            condition: self.labels(&labels),
            keys: labels.iter().map(|&label| label as u64).collect(),
            words: labels
                .iter()
                .map(|label| format!("class {label}"))
                .collect(),
        })
    }

    fn maker(&self, found: &ImageFiles, device: &Device) -> Result<MakePoints<ClassCondition>> {
        let annotations = Annotations::of(found)?;
        let (device, count, model) = (device.clone(), self.count(), self.model.clone());
        Ok(Box::new(move |images| {
            let label = |file: &PathBuf| {
                let label = annotations.label(file)?;
                check(label, count, &model, &path_text(file))?;
                Ok(label)
            };
            let labels = images
                .files()
                .iter()
                .map(label)
                .collect::<SissResult<Vec<_>>>()?;
            Ok((images.all(&device), condition(&labels, &device)))
        }))
    }

    fn pictures(&self, points: &Tensor<4>) -> SissResult<Tensor<4>> {
        Ok(from_range(points, self.range))
    }

    fn guidance(&self) -> Option<(f64, ClassCondition)> {
        let none = self.none().filter(|_| self.guidance != 1.0)?;
        Some((self.guidance, none))
    }

    fn none(&self) -> Option<ClassCondition> {
        self.null.map(|null| self.labels(&[null]))
    }

    fn other(&self, count: usize) -> SissResult<(OtherCondition<ClassCondition>, String)> {
        match self.neighbour.or(self.null) {
            Some(label) => Ok((
                OtherCondition::given(self.labels(&vec![label; count]), count)?,
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
        model: &ClassUNet2d,
        origin: &ModelFolder,
        folder: &Path,
        note: &str,
    ) -> SissResult<Vec<LeftOut>> {
        save_pipeline(model, origin, folder, note)
    }
}
