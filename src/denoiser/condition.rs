//! Conditions of a prediction, such as classes or prompts.

use burn::tensor::{Bool, Device, Int, Tensor};
use serde::Serialize;

use crate::data::points::chunk_rows;
use crate::error::{Error, Result, check_shape};
use crate::host::row_index;
use crate::trainer::settings::no_json;

/// The condition of a prediction: one entry per row, in one part or several.
///
/// | type | entry |
/// |---|---|
/// | `()` | none: it fits any number of rows |
/// | `Tensor<D>`, `Tensor<D, Int>`, `Tensor<D, Bool>` | a row, along dimension 0 |
/// | `Vec<T>` of a `T: Clone + Send + Serialize`, such as prompts in a `Vec<String>` | an element |
/// | tuples of 2, 3 and 4 conditions | one of each |
/// | `Option<C>` | that of `C`; `None` has no information and fits any number of rows |
///
/// The trainer runs parts of a batch, so it must be able to take some of the rows.
///
/// # Example
/// A type of your own hands each method on to its parts:
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use siss::Condition;
///
/// #[derive(Clone)]
/// struct Text {
///     embedding: Tensor<3>,
///     mask: Tensor<2, Bool>,
/// }
///
/// impl Condition for Text {
///     fn part_rows(&self) -> Vec<usize> {
///         [self.embedding.part_rows(), self.mask.part_rows()].concat()
///     }
///
///     fn take_rows(&self, rows: &[usize]) -> Self {
///         Self {
///             embedding: self.embedding.take_rows(rows),
///             mask: self.mask.take_rows(rows),
///         }
///     }
///
///     fn extended_by(self, other: Self) -> siss::Result<Self> {
///         Ok(Self {
///             embedding: self.embedding.extended_by(other.embedding)?,
///             mask: self.mask.extended_by(other.mask)?,
///         })
///     }
///
///     fn to_device(self, device: &Device) -> Self {
///         Self {
///             embedding: self.embedding.to_device(device),
///             mask: self.mask.to_device(device),
///         }
///     }
///
///     fn digest(&self, add: &mut dyn FnMut(&[u8])) -> siss::Result<()> {
///         self.embedding.digest(add)?;
///         self.mask.digest(add)
///     }
/// }
///
/// let device = Device::flex();
/// let text = Text {
///     embedding: Tensor::zeros([2, 77, 768], &device),
///     mask: Tensor::<2>::zeros([3, 77], &device).bool(),
/// };
/// let error = text.check_rows("the prompts", 2).unwrap_err();
/// assert!(error.to_string().contains("[3], but [2] is needed"));
/// ```
pub trait Condition: Clone + Send {
    /// Whether no value of the type has information about a point, such as `()`.
    ///
    /// The trainer and [`Counterfactual::fit`](crate::steering::Counterfactual::fit) check this
    /// before they explain a point by others of any class or prompt.
    const IS_EMPTY: bool = false;

    /// The number of entries of each part, in any order: one number for a tensor, none for `()`.
    fn part_rows(&self) -> Vec<usize>;

    /// The entries with these indices, in this order; an index may occur twice.
    ///
    /// The indices are below the number that [`check_rows`](Condition::check_rows) accepted.
    fn take_rows(&self, rows: &[usize]) -> Self;

    /// The entries of this condition, then those of another, for
    /// [`PairSampler::dropping`](crate::PairSampler::dropping).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for entries of another shape, or another error that says how they
    /// differ.
    fn extended_by(self, other: Self) -> Result<Self>;

    /// The same condition on another device, for
    /// [`SissTrainer::self_check`](crate::SissTrainer::self_check).
    fn to_device(self, device: &Device) -> Self;

    /// Passes every value to `add`, as bytes that are the same on every device, for
    /// [`PairSampler::fingerprint`](crate::PairSampler::fingerprint).
    ///
    /// There is no default: if a part were left out, a resumed run could differ in it unnoticed.
    ///
    /// # Errors
    /// [`Error::DeviceRead`]; for a `Vec`, [`Error::NotJson`] for an element that JSON cannot hold.
    fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()>;

    /// The part that an optimiser can search in, one row per entry: `[rows, numbers]`.
    ///
    /// `None`, the default, for a condition of labels or words, and for one of several parts that
    /// does not say which of them is meant. [`EmbeddingSearch`](crate::evaluate::EmbeddingSearch)
    /// and [`Adversary`](crate::trainer::Adversary) need it.
    fn embedding(&self) -> Option<Tensor<2>> {
        None
    }

    /// The same condition with another embedding, of the shape of
    /// [`embedding`](Condition::embedding).
    ///
    /// The default is the condition unchanged.
    fn with_embedding(&self, embedding: Tensor<2>) -> Self {
        let _ = embedding;
        self.clone()
    }

    /// The number of entries of the first part that has one; `None` if any number of rows fits, as
    /// for `()`.
    fn rows(&self) -> Option<usize> {
        self.part_rows().first().copied()
    }

    /// Checks that every part has one entry for each of `rows` rows; `what` names the condition in
    /// the error.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] with both numbers.
    fn check_rows(&self, what: &'static str, rows: usize) -> Result<()> {
        self.part_rows()
            .into_iter()
            .try_for_each(|found| check_shape(what, &[rows], &[found], REMEDY))
    }
}

const REMEDY: &str = "give one entry for every row, in each part of the condition";

impl Condition for () {
    const IS_EMPTY: bool = true;

    fn part_rows(&self) -> Vec<usize> {
        Vec::new()
    }

    fn take_rows(&self, _rows: &[usize]) -> Self {}

    fn extended_by(self, _other: Self) -> Result<Self> {
        Ok(())
    }

    fn to_device(self, _device: &Device) -> Self {}

    fn digest(&self, _add: &mut dyn FnMut(&[u8])) -> Result<()> {
        Ok(())
    }
}

/// A tensor with values of `$value` on the host. All three kinds are read in chunks of rows.
macro_rules! tensor_condition {
    ($($tensor:ty: $value:ty {$($embedding:item)*}),*) => {$(
        impl<const D: usize> Condition for $tensor {
            fn part_rows(&self) -> Vec<usize> {
                vec![self.dims()[0]]
            }

            fn take_rows(&self, rows: &[usize]) -> Self {
                self.clone().select(0, row_index(rows, &self.device()))
            }

            fn extended_by(self, other: Self) -> Result<Self> {
                let remedy = "make both from the same classes, or with the same encoder";
                check_shape("an entry of a condition", &self.dims()[1..], &other.dims()[1..], remedy)?;
                Ok(Self::cat(vec![self, other], 0))
            }

            fn to_device(self, device: &Device) -> Self {
                Self::to_device(self, device)
            }

            fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()> {
                let shape = self.dims();
                add(format!("{shape:?}\n").as_bytes());
                let chunk = chunk_rows(shape[1..].iter().product(), &self.device());
                for first in (0..shape[0]).step_by(chunk) {
                    let rows = self.clone().narrow(0, first, chunk.min(shape[0] - first));
                    let data = rows.try_into_data().map_err(|error| Error::DeviceRead {
                        what: "a condition",
                        message: error.to_string(),
                    })?;
                    let bytes = data.iter::<$value>().flat_map(|value| value.to_le_bytes());
                    add(&bytes.collect::<Vec<u8>>());
                }
                Ok(())
            }

            $($embedding)*
        }
    )*};
}

tensor_condition!(
    Tensor<D>: f32 {
        fn embedding(&self) -> Option<Tensor<2>> {
            Some(as_rows(self.clone()))
        }

        fn with_embedding(&self, embedding: Tensor<2>) -> Self {
            embedding.reshape(self.dims())
        }
    },
    Tensor<D, Int>: i64 {},
    Tensor<D, Bool>: u8 {}
);

/// Everything but the rows in one dimension.
pub(crate) fn as_rows<const D: usize>(tensor: Tensor<D>) -> Tensor<2> {
    let shape = tensor.dims();
    tensor.reshape([shape[0], shape[1..].iter().product()])
}

impl<T: Clone + Send + Serialize> Condition for Vec<T> {
    fn part_rows(&self) -> Vec<usize> {
        vec![self.len()]
    }

    fn take_rows(&self, rows: &[usize]) -> Self {
        rows.iter().map(|&row| self[row].clone()).collect()
    }

    fn extended_by(mut self, other: Self) -> Result<Self> {
        self.extend(other);
        Ok(self)
    }

    fn to_device(self, _device: &Device) -> Self {
        self
    }

    fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()> {
        add(format!("[{}]\n", self.len()).as_bytes());
        for entry in self {
            add(&serde_json::to_vec(entry).map_err(|error| no_json("a condition", error))?);
            add(b"\n");
        }
        Ok(())
    }
}

impl<C: Condition> Condition for Option<C> {
    // `None` alone has no information, and only a value shows whether it is `None`.
    const IS_EMPTY: bool = C::IS_EMPTY;

    fn part_rows(&self) -> Vec<usize> {
        self.as_ref().map_or_else(Vec::new, C::part_rows)
    }

    fn take_rows(&self, rows: &[usize]) -> Self {
        self.as_ref().map(|condition| condition.take_rows(rows))
    }

    fn extended_by(self, other: Self) -> Result<Self> {
        match (self, other) {
            (Some(condition), Some(other)) => Ok(Some(condition.extended_by(other)?)),
            (None, None) => Ok(None),
            _ => Err(Error::InvalidSetting {
                what: "one of two conditions has a part that the other has not".into(),
                remedy: "give both the same parts",
            }),
        }
    }

    fn to_device(self, device: &Device) -> Self {
        self.map(|condition| condition.to_device(device))
    }

    fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()> {
        add(&[u8::from(self.is_some())]);
        self.as_ref()
            .map_or(Ok(()), |condition| condition.digest(add))
    }
}

macro_rules! tuple_condition {
    ($($part:ident $index:tt),*) => {
        impl<$($part: Condition),*> Condition for ($($part,)*) {
            const IS_EMPTY: bool = $($part::IS_EMPTY)&&*;

            fn part_rows(&self) -> Vec<usize> {
                [$(self.$index.part_rows()),*].concat()
            }

            fn take_rows(&self, rows: &[usize]) -> Self {
                ($(self.$index.take_rows(rows),)*)
            }

            fn extended_by(self, other: Self) -> Result<Self> {
                Ok(($(self.$index.extended_by(other.$index)?,)*))
            }

            fn to_device(self, device: &Device) -> Self {
                ($(self.$index.to_device(device),)*)
            }

            fn digest(&self, add: &mut dyn FnMut(&[u8])) -> Result<()> {
                $(self.$index.digest(add)?;)*
                Ok(())
            }
        }
    };
}

tuple_condition!(A 0, B 1);
tuple_condition!(A 0, B 1, C 2);
tuple_condition!(A 0, B 1, C 2, E 3);

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(condition: &impl Condition) -> Vec<u8> {
        let mut bytes = Vec::new();
        condition
            .digest(&mut |part| bytes.extend_from_slice(part))
            .unwrap();
        bytes
    }

    fn classes(values: &[i32]) -> Tensor<1, Int> {
        Tensor::from_data(values, &Device::flex())
    }

    fn prompts(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    /// What must hold for every condition of three different rows.
    fn check_three_rows<C: Condition>(condition: &C) {
        assert_eq!(condition.rows(), Some(3));
        condition.check_rows("the classes", 3).unwrap();
        let error = condition.check_rows("the classes", 5).unwrap_err();
        let Error::ShapeMismatch {
            what,
            expected,
            got,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(
            (*what, &expected[..], &got[..]),
            ("the classes", &[5][..], &[3][..])
        );
        assert_eq!(digest(&condition.take_rows(&[0, 1, 2])), digest(condition));
        let joined = condition
            .take_rows(&[0, 1])
            .extended_by(condition.take_rows(&[2]));
        assert_eq!(digest(&joined.unwrap()), digest(condition));
        let turned = condition.take_rows(&[2, 0, 1]);
        assert_ne!(digest(&turned), digest(condition));
        assert_eq!(digest(&turned.take_rows(&[1, 2, 0])), digest(condition));
        assert_eq!(condition.take_rows(&[1, 1, 1, 0]).rows(), Some(4));
        let moved = condition.clone().to_device(&Device::flex());
        assert_eq!(digest(&moved), digest(condition));
        let own = C::IS_EMPTY;
        assert!(!own);
    }

    #[test]
    fn every_kind_of_condition_takes_rows_and_has_its_values_in_the_digest() {
        let device = Device::flex();
        let embedding = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let class = classes(&[7, 8, 9]);
        let mask =
            Tensor::<2, Bool>::from_data([[true, false], [false, false], [true, true]], &device);
        let prompt = prompts(&["a dog", "a cat", "a hat"]);
        check_three_rows(&embedding);
        check_three_rows(&class);
        check_three_rows(&mask);
        check_three_rows(&prompt);
        check_three_rows(&vec![0.5, 1.5, 2.5]);
        check_three_rows(&Some(class.clone()));
        check_three_rows(&((), class.clone()));
        check_three_rows(&(embedding.clone(), class.clone(), mask.clone()));
        check_three_rows(&(prompt, embedding, Some(class), (mask, ())));
    }

    #[test]
    fn rows_are_taken_in_order() {
        let device = Device::flex();
        let embedding = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
        let condition = (embedding, classes(&[7, 8, 9]), prompts(&["a", "b", "c"]));
        let (embedding, class, prompt) = condition.take_rows(&[2, 0]);
        assert_eq!(
            embedding.into_data().try_to_vec::<f32>().unwrap(),
            [5.0, 6.0, 1.0, 2.0]
        );
        assert_eq!(class.into_data().iter::<i64>().collect::<Vec<_>>(), [9, 7]);
        assert_eq!(prompt, ["c", "a"]);
    }

    #[test]
    fn parts_that_disagree_are_refused_with_both_numbers() {
        let three = || classes(&[1, 2, 3]);
        let four = || classes(&[1, 2, 3, 4]);
        let errors = [
            (three(), four()).check_rows("the prompts", 3),
            (three(), three(), Some(four())).check_rows("the prompts", 3),
            (three(), (), (three(), four()), ()).check_rows("the prompts", 3),
            (Some(three()), prompts(&["", "", "", ""])).check_rows("the prompts", 3),
        ];
        for error in errors.map(Result::unwrap_err) {
            assert!(
                matches!(&error, Error::ShapeMismatch { expected, got, .. }
                    if *expected == [3] && *got == [4]),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains("the prompts has shape [4], but [3]"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_says_nothing_fits_any_number_of_rows() {
        fn is_empty<C: Condition>(_: &C) -> bool {
            C::IS_EMPTY
        }
        let absent: Option<Tensor<1, Int>> = None;
        for rows in [1, 7] {
            ().check_rows("nothing", rows).unwrap();
            absent.check_rows("nothing", rows).unwrap();
            ((), None::<()>, ()).check_rows("nothing", rows).unwrap();
        }
        assert_eq!(
            (().rows(), absent.rows(), ((), ()).rows()),
            (None, None, None)
        );
        assert!(absent.take_rows(&[4, 2]).is_none());
        assert!(is_empty(&()) && is_empty(&((), ())) && is_empty(&((), None::<()>, (), ())));
        // A model with an optional condition has a condition.
        assert!(!is_empty(&absent) && !is_empty(&((), absent)));
    }

    #[test]
    fn only_real_numbers_are_an_embedding() {
        let states = Tensor::<3>::ones([2, 3, 4], &Device::flex());
        let embedding = states.embedding().unwrap();
        assert_eq!(embedding.dims(), [2, 12]);
        let doubled = states.with_embedding(embedding * 2.0);
        assert_eq!(digest(&doubled), digest(&(states.clone() * 2.0)));
        assert!(classes(&[1, 2]).embedding().is_none());
        assert!(prompts(&["a", "b"]).embedding().is_none());
        assert!(().embedding().is_none());
    }

    #[test]
    fn digests_tell_conditions_of_the_same_numbers_apart() {
        let different = [
            digest(&None::<Tensor<1, Int>>),
            digest(&Some(classes(&[1, 2]))),
            digest(&classes(&[1, 2])),
            digest(&classes(&[1, 2]).reshape([2, 1])),
            digest(&(classes(&[1]), classes(&[2]))),
            digest(&prompts(&["ab", "c"])),
            digest(&prompts(&["a", "bc"])),
            digest(&(prompts(&["ab"]), prompts(&["c"]))),
        ];
        for (index, one) in different.iter().enumerate() {
            assert!(!different[index + 1..].contains(one), "{index}");
        }
    }

    /// More rows than a chunk holds: the digest is that of the rows in order.
    #[test]
    fn a_large_tensor_is_digested_in_chunks() {
        let rows = 2 * chunk_rows(1, &Device::flex()) + 3;
        let values: Vec<i64> = (0..rows as i64).collect();
        let condition = Tensor::<1, Int>::arange(0..rows as i64, &Device::flex());
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let mut parts = 0;
        condition.digest(&mut |_| parts += 1).unwrap();
        assert_eq!(parts, 4);
        assert_eq!(
            digest(&condition),
            [format!("[{rows}]\n").into_bytes(), bytes].concat()
        );
    }
}
