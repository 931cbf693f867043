//! The conditions of the networks of this module.

use burn::tensor::{Device, Int, Tensor};

use crate::denoiser::{Condition, as_rows};
use crate::error::{Error, Result, check_shape};
use crate::host::read_f32;

/// The classes of a class-conditional network, one per row.
///
/// # Example
/// ```
/// use siss::Condition;
/// use siss::burn::tensor::{Device, Int, Tensor};
/// use siss::models::ClassCondition;
///
/// let classes = Tensor::<1, Int>::from_data([3, 7], &Device::flex());
/// assert_eq!(ClassCondition::Labels(classes).rows(), Some(2));
/// ```
#[derive(Debug, Clone)]
pub enum ClassCondition {
    /// Labels, `[rows]`, from 0 to the number of classes − 1.
    Labels(Tensor<1, Int>),
    /// Numbers that are embedded as timesteps are, `[rows]`.
    Numbers(Tensor<1>),
    /// Embeddings of the timestep embedding's size, `[rows, size]`.
    Embeddings(Tensor<2>),
}

impl ClassCondition {
    /// What it holds, as an error names it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Labels(_) => "labels",
            Self::Numbers(_) => "numbers",
            Self::Embeddings(_) => "embeddings",
        }
    }
}

impl Condition for ClassCondition {
    fn part_rows(&self) -> Vec<usize> {
        match self {
            Self::Labels(labels) => labels.part_rows(),
            Self::Numbers(numbers) => numbers.part_rows(),
            Self::Embeddings(embeddings) => embeddings.part_rows(),
        }
    }

    fn take_rows(&self, rows: &[usize]) -> Self {
        match self {
            Self::Labels(labels) => Self::Labels(labels.take_rows(rows)),
            Self::Numbers(numbers) => Self::Numbers(numbers.take_rows(rows)),
            Self::Embeddings(embeddings) => Self::Embeddings(embeddings.take_rows(rows)),
        }
    }

    fn extended_by(self, other: Self) -> Result<Self> {
        let kinds = [self.kind(), other.kind()];
        Ok(match (self, other) {
            (Self::Labels(labels), Self::Labels(other)) => Self::Labels(labels.extended_by(other)?),
            (Self::Numbers(numbers), Self::Numbers(other)) => {
                Self::Numbers(numbers.extended_by(other)?)
            }
            (Self::Embeddings(embeddings), Self::Embeddings(other)) => {
                Self::Embeddings(embeddings.extended_by(other)?)
            }
            _ => {
                return Err(Error::InvalidSetting {
                    what: format!("one condition has {} and the other {}", kinds[0], kinds[1]),
                    remedy: "give the variant of `ClassCondition` that the network takes",
                });
            }
        })
    }

    fn to_device(self, device: &Device) -> Self {
        match self {
            Self::Labels(labels) => Self::Labels(labels.to_device(device)),
            Self::Numbers(numbers) => Self::Numbers(numbers.to_device(device)),
            Self::Embeddings(embeddings) => Self::Embeddings(embeddings.to_device(device)),
        }
    }

    fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()> {
        add(self.kind().as_bytes());
        match self {
            Self::Labels(labels) => labels.digest(add),
            Self::Numbers(numbers) => numbers.digest(add),
            Self::Embeddings(embeddings) => embeddings.digest(add),
        }
    }

    fn embedding(&self) -> Option<Tensor<2>> {
        match self {
            Self::Labels(_) | Self::Numbers(_) => None,
            Self::Embeddings(embeddings) => Some(embeddings.clone()),
        }
    }

    fn with_embedding(&self, embedding: Tensor<2>) -> Self {
        match self {
            Self::Labels(_) | Self::Numbers(_) => self.clone(),
            Self::Embeddings(_) => Self::Embeddings(embedding),
        }
    }
}

/// The encoded prompts of a text-conditional network, one per row.
///
/// | network | `hidden_states` | `pooled` | `time_ids` |
/// |---|---|---|---|
/// | Stable Diffusion 1, 2 | yes | none | none |
/// | Stable Diffusion XL | both encoders', side by side | the second encoder's | yes |
/// | Stable Diffusion 3 | yes | both encoders', side by side | none |
///
/// Each side of a pair has its own, sizes included.
#[derive(Debug, Clone)]
pub struct TextCondition {
    /// The encoder's states, `[rows, tokens, features]`.
    pub hidden_states: Tensor<3>,
    /// The prompt as one vector, `[rows, features]`.
    pub pooled: Option<Tensor<2>>,
    /// Original height and width, top and left of the crop, target height and width, in pixels:
    /// `[rows, 6]`.
    pub time_ids: Option<Tensor<2>>,
}

impl TextCondition {
    /// Encoded prompts alone.
    ///
    /// # Shapes
    /// - `hidden_states`: `[rows, tokens, features]`
    pub fn new(hidden_states: Tensor<3>) -> Self {
        Self {
            hidden_states,
            pooled: None,
            time_ids: None,
        }
    }

    /// Adds the prompts as single vectors, `[rows, features]`.
    pub fn with_pooled(self, pooled: Tensor<2>) -> Self {
        Self {
            pooled: Some(pooled),
            ..self
        }
    }

    /// Adds the sizes of the pictures, `[rows, 6]`.
    pub fn with_time_ids(self, time_ids: Tensor<2>) -> Self {
        Self {
            time_ids: Some(time_ids),
            ..self
        }
    }

    /// Checks the number of features of a part against what a network needs.
    pub(super) fn check_features(&self, features: usize) -> Result<()> {
        let [rows, tokens, found] = self.hidden_states.dims();
        check_shape(
            "the encoded prompts",
            &[rows, tokens, features],
            &[rows, tokens, found],
            "encode the prompts with the text encoders of this model",
        )
    }

    /// Checks that a second part is there if and only if the network needs it, and its features.
    pub(super) fn check_part(
        part: Option<&Tensor<2>>,
        what: &'static str,
        features: Option<usize>,
    ) -> Result<()> {
        let remedy = "give the parts that `TextCondition` lists for this network";
        match (part, features) {
            (None, None) => Ok(()),
            (Some(part), Some(features)) => {
                let [rows, found] = part.dims();
                check_shape(what, &[rows, features], &[rows, found], remedy)
            }
            (None, Some(_)) => Err(Error::MissingPart {
                owner: "the condition of the network".into(),
                missing: what,
                remedy,
            }),
            (Some(_), None) => Err(Error::InvalidSetting {
                what: format!("the condition has {what}, which the network does not use"),
                remedy,
            }),
        }
    }
}

impl Condition for TextCondition {
    fn part_rows(&self) -> Vec<usize> {
        [
            self.hidden_states.part_rows(),
            self.pooled.part_rows(),
            self.time_ids.part_rows(),
        ]
        .concat()
    }

    fn take_rows(&self, rows: &[usize]) -> Self {
        Self {
            hidden_states: self.hidden_states.take_rows(rows),
            pooled: self.pooled.take_rows(rows),
            time_ids: self.time_ids.take_rows(rows),
        }
    }

    fn extended_by(self, other: Self) -> Result<Self> {
        Ok(Self {
            hidden_states: self.hidden_states.extended_by(other.hidden_states)?,
            pooled: self.pooled.extended_by(other.pooled)?,
            time_ids: self.time_ids.extended_by(other.time_ids)?,
        })
    }

    fn to_device(self, device: &Device) -> Self {
        Self {
            hidden_states: self.hidden_states.to_device(device),
            pooled: Condition::to_device(self.pooled, device),
            time_ids: Condition::to_device(self.time_ids, device),
        }
    }

    fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()> {
        self.hidden_states.digest(add)?;
        self.pooled.digest(add)?;
        self.time_ids.digest(add)
    }

    /// The states of the tokens.
    fn embedding(&self) -> Option<Tensor<2>> {
        Some(as_rows(self.hidden_states.clone()))
    }

    fn with_embedding(&self, embedding: Tensor<2>) -> Self {
        Self {
            hidden_states: embedding.reshape(self.hidden_states.dims()),
            ..self.clone()
        }
    }
}

/// Refuses a label that is not a row of the table of classes.
///
/// # Errors
/// [`Error::OutOfRange`], [`Error::DeviceRead`].
pub(super) fn check_labels(labels: &Tensor<1, Int>, classes: usize) -> Result<()> {
    let values = read_f32(labels.clone().float(), "the class labels")?;
    let legal = |label: &f32| (0.0..classes as f32).contains(label);
    match values.iter().find(|label| !legal(label)) {
        None => Ok(()),
        Some(&label) => Err(Error::InvalidSetting {
            what: format!("class label {label} is not among the network's {classes} classes"),
            remedy: "give labels from 0 to the number of classes − 1",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(device: &Device) -> TextCondition {
        let hidden = Tensor::<1, Int>::arange(0..12, device).float();
        TextCondition::new(hidden.reshape([3, 2, 2]))
            .with_pooled(Tensor::from_data([[1.0], [2.0], [3.0]], device))
    }

    fn bytes(condition: &impl Condition) -> Vec<u8> {
        let mut bytes = Vec::new();
        let add = &mut |part: &[u8]| bytes.extend_from_slice(part);
        condition.digest(add).unwrap();
        bytes
    }

    #[test]
    fn rows_are_taken_of_every_part() {
        let taken = text(&Device::flex()).take_rows(&[2, 0]);
        let hidden: Vec<f32> = taken
            .hidden_states
            .clone()
            .into_data()
            .try_to_vec()
            .unwrap();
        let pooled: Vec<f32> = taken
            .pooled
            .clone()
            .unwrap()
            .into_data()
            .try_to_vec()
            .unwrap();
        assert_eq!(hidden, [8.0, 9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(pooled, [3.0, 1.0]);
        assert_eq!(taken.part_rows(), [2, 2]);
    }

    #[test]
    fn conditions_are_joined_part_by_part_and_only_with_their_like() {
        let device = Device::flex();
        let whole = text(&device);
        let joined = whole
            .take_rows(&[0])
            .extended_by(whole.take_rows(&[1, 2]))
            .unwrap();
        assert_eq!(bytes(&joined), bytes(&whole));
        let mut other = whole.clone();
        other.pooled = None;
        assert!(other.extended_by(whole.clone()).is_err());
        let short = TextCondition::new(Tensor::zeros([1, 1, 2], &device));
        let plain = TextCondition::new(whole.hidden_states);
        assert!(
            plain
                .extended_by(short)
                .unwrap_err()
                .to_string()
                .contains("[1, 2]")
        );
        let labels = ClassCondition::Labels(Tensor::from_data([1, 2], &device));
        let numbers = ClassCondition::Numbers(Tensor::from_data([1.0, 2.0], &device));
        let error = labels.extended_by(numbers).unwrap_err().to_string();
        assert!(
            error.contains("labels") && error.contains("numbers"),
            "{error}"
        );
    }

    #[test]
    fn every_part_counts_in_the_digest() {
        let device = Device::flex();
        let plain = bytes(&text(&device));
        let mut other = text(&device);
        other.pooled = None;
        assert_ne!(bytes(&other), plain);
        let sized = text(&device).with_time_ids(Tensor::zeros([3, 6], &device));
        assert_ne!(bytes(&sized), plain);
        let labels = ClassCondition::Labels(Tensor::from_data([1, 2], &device));
        let numbers = ClassCondition::Numbers(Tensor::from_data([1.0, 2.0], &device));
        assert_ne!(bytes(&labels), bytes(&numbers));
    }

    #[test]
    fn labels_outside_the_table_are_refused_with_their_value() {
        let labels = |values: [i32; 2]| Tensor::from_data(values, &Device::flex());
        assert!(check_labels(&labels([0, 9]), 10).is_ok());
        for bad in [-1, 10] {
            let error = check_labels(&labels([3, bad]), 10).unwrap_err().to_string();
            assert!(error.contains(&format!("label {bad} ")), "{error}");
        }
    }
}
