//! A [`UNet2d`] that is told classes.

use burn::module::Module;
use burn::tensor::Tensor;

use super::{ClassEmbedType, UNet2d};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result, check_shape};
use crate::models::condition::{ClassCondition, check_labels};
use crate::process::PredictionType;

/// A [`UNet2d`] with class embeddings, as a denoiser with the classes as its condition.
///
/// # Example
/// ```
/// use siss::Denoiser;
/// use siss::burn::tensor::{Device, Tensor};
/// use siss::models::{ClassCondition, DownBlockType, UNet2dConfig, UpBlockType};
///
/// let device = Device::flex();
/// let config = UNet2dConfig {
///     num_class_embeds: Some(10),
///     block_out_channels: vec![32],
///     down_block_types: vec![DownBlockType::Resnet],
///     up_block_types: vec![UpBlockType::Resnet],
///     layers_per_block: 1,
///     ..UNet2dConfig::default()
/// };
/// let unet = config.init(&device)?.with_classes()?;
/// let classes = ClassCondition::Labels(Tensor::from_data([3, 7], &device));
/// let (noisy, timesteps) = (Tensor::zeros([2, 3, 8, 8], &device), Tensor::zeros([2], &device));
/// assert_eq!(unet.predict(noisy, timesteps, &classes).dims(), [2, 3, 8, 8]);
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct ClassUNet2d {
    unet: UNet2d,
}

impl UNet2d {
    /// The network as a denoiser with classes.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the network has no class embedding.
    pub fn with_classes(self) -> Result<ClassUNet2d> {
        match self.config().has_classes() {
            true => Ok(ClassUNet2d { unet: self }),
            false => Err(Error::InvalidSetting {
                what: "the network has no class embedding".into(),
                remedy: "use it as a denoiser without a condition",
            }),
        }
    }
}

impl ClassUNet2d {
    /// The network, to be saved.
    pub fn unet(&self) -> &UNet2d {
        &self.unet
    }

    /// The network, without its classes as condition.
    pub fn into_unet(self) -> UNet2d {
        self.unet
    }
}

impl Denoiser<4> for ClassUNet2d {
    type Condition = ClassCondition;

    fn check_input(&self, shape: [usize; 4]) -> Result<()> {
        self.unet.check_shape(shape)
    }

    fn check_condition(&self, condition: &ClassCondition) -> Result<()> {
        let config = self.unet.config();
        match (config.class_embed_type, condition) {
            (None, ClassCondition::Labels(labels)) => {
                check_labels(labels, config.num_class_embeds.unwrap_or_default())
            }
            (Some(ClassEmbedType::Timestep), ClassCondition::Numbers(_)) => Ok(()),
            (Some(ClassEmbedType::Identity), ClassCondition::Embeddings(embeddings)) => {
                let [rows, size] = embeddings.dims();
                check_shape(
                    "the embeddings of classes",
                    &[rows, config.embedding_size()],
                    &[rows, size],
                    "give embeddings of the timestep embedding's size",
                )
            }
            (kind, other) => {
                let needed = match kind {
                    None => "labels",
                    Some(ClassEmbedType::Timestep) => "numbers",
                    Some(ClassEmbedType::Identity) => "embeddings",
                };
                Err(Error::InvalidSetting {
                    what: format!(
                        "the classes are given as {}, but the network takes {needed}",
                        other.kind()
                    ),
                    remedy: "give the variant of `ClassCondition` that the network takes",
                })
            }
        }
    }

    fn predict(
        &self,
        noisy: Tensor<4>,
        timesteps: Tensor<1>,
        condition: &ClassCondition,
    ) -> Tensor<4> {
        self.unet.prediction(noisy, timesteps, Some(condition))
    }

    fn prediction_type(&self) -> PredictionType {
        self.unet.prediction_type
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::models::{DownBlockType, TimeScaleShift, UNet2dConfig, UpBlockType};

    fn config() -> UNet2dConfig {
        UNet2dConfig {
            block_out_channels: vec![8],
            down_block_types: vec![DownBlockType::Resnet],
            up_block_types: vec![UpBlockType::Resnet],
            layers_per_block: 1,
            norm_num_groups: 4,
            attention_head_dim: None,
            ..UNet2dConfig::default()
        }
    }

    fn difference(unet: &ClassUNet2d, one: &ClassCondition, other: &ClassCondition) -> f32 {
        let device = Device::flex();
        unet.check_condition(one).unwrap();
        let predict = |condition: &ClassCondition| {
            let noisy = Tensor::ones([2, 3, 4, 4], &device);
            unet.predict(noisy, Tensor::from_data([1.0, 5.0], &device), condition)
        };
        (predict(one) - predict(other)).abs().sum().into_scalar()
    }

    #[test]
    fn every_kind_of_class_changes_the_prediction() {
        let device = Device::flex();
        let labels = |values: [i32; 2]| ClassCondition::Labels(Tensor::from_data(values, &device));
        let numbers =
            |values: [f32; 2]| ClassCondition::Numbers(Tensor::from_data(values, &device));
        let embeddings =
            |value: f32| ClassCondition::Embeddings(Tensor::full([2, 32], value, &device));
        for (kind, classes, one, other) in [
            (None, Some(4), labels([0, 1]), labels([0, 3])),
            (
                Some(ClassEmbedType::Timestep),
                None,
                numbers([0.0, 1.0]),
                numbers([0.0, 9.0]),
            ),
            (
                Some(ClassEmbedType::Identity),
                None,
                embeddings(0.0),
                embeddings(1.0),
            ),
        ] {
            let config = UNet2dConfig {
                class_embed_type: kind,
                num_class_embeds: classes,
                ..config()
            };
            let unet = config.init(&device).unwrap().with_classes().unwrap();
            assert!(difference(&unet, &one, &other) > 1e-3, "{kind:?}");
            assert_eq!(difference(&unet, &one, &one), 0.0);
            assert!(unet.unet().check_condition(&()).is_err());
        }
    }

    #[test]
    fn classes_of_another_kind_are_refused_by_name() {
        let device = Device::flex();
        let config = UNet2dConfig {
            num_class_embeds: Some(4),
            ..config()
        };
        let unet = config.init(&device).unwrap().with_classes().unwrap();
        let numbers = ClassCondition::Numbers(Tensor::zeros([2], &device));
        let error = unet.check_condition(&numbers).unwrap_err().to_string();
        assert!(
            error.contains("numbers") && error.contains("labels"),
            "{error}"
        );
        let beyond = ClassCondition::Labels(Tensor::from_data([0, 4], &device));
        let error = unet.check_condition(&beyond).unwrap_err().to_string();
        assert!(error.contains("label 4"), "{error}");
        let plain = UNet2dConfig {
            num_class_embeds: None,
            ..config
        };
        assert!(plain.init(&device).unwrap().with_classes().is_err());
    }

    #[test]
    fn a_variance_is_a_part_of_the_output_and_not_of_the_prediction() {
        let device = Device::flex();
        let config = UNet2dConfig {
            out_channels: 6,
            resnet_time_scale_shift: TimeScaleShift::ScaleShift,
            ..config()
        };
        let unet = config.init(&device).unwrap();
        let noisy = Tensor::ones([1, 3, 4, 4], &device);
        let timesteps = Tensor::from_data([3.0], &device);
        let output = unet.forward(noisy.clone(), timesteps.clone(), None);
        let prediction = unet.predict(noisy, timesteps, &());
        assert_eq!(output.dims(), [1, 6, 4, 4]);
        let rest = output.narrow(1, 0, 3) - prediction;
        assert_eq!(rest.abs().sum().into_scalar::<f32>(), 0.0);
    }
}
