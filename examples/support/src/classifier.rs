//! A small classifier of digits, which judges generated ones.

use std::path::Path;

use serde::Serialize;
use siss::Result;
use siss::burn;
use siss::burn::module::Module;
use siss::burn::nn::conv::{Conv2d, Conv2dConfig};
use siss::burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use siss::burn::store::{HalfPrecisionAdapter, ModuleSnapshot, SafetensorsStore};
use siss::burn::tensor::activation::relu;
use siss::burn::tensor::{Device, Int, Tensor};
use siss::metrics::{Estimate, Features, inception_score};

use crate::digits::invalid;

/// Number of classes.
pub const CLASSES: usize = 10;
/// The weights, in the folder of the examples' files.
pub const WEIGHTS: &str = "classifier/model.safetensors";
/// Splits of the samples for the inception score, as in the paper, and the fewest samples of one.
const SPLITS: usize = 10;
const FEWEST_OF_A_SPLIT: usize = 10;
/// Images run at a time.
const ROWS: usize = 50;

/// Channels before and after each convolution, and its stride: 28×28 becomes 7×7.
const LAYERS: [([usize; 2], usize); 5] = [
    ([1, 16], 1),
    ([16, 32], 2),
    ([32, 32], 1),
    ([32, 64], 2),
    ([64, 64], 1),
];
/// Channels that are normalised together.
const GROUP: usize = 8;

/// Five convolutions, the mean over places, and a linear layer: 70,000 parameters.
#[derive(Module, Debug)]
pub struct DigitClassifier {
    convolutions: Vec<Conv2d>,
    norms: Vec<GroupNorm>,
    classes: Linear,
}

impl DigitClassifier {
    /// Fewest digits that are judged.
    pub const FEWEST: usize = SPLITS * FEWEST_OF_A_SPLIT;

    /// An untrained network.
    pub fn new(device: &Device) -> Self {
        let convolution = |(channels, stride)| {
            Conv2dConfig::new(channels, [3, 3])
                .with_stride([stride, stride])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(device)
        };
        let norm = |([_, channels], _): ([usize; 2], usize)| {
            GroupNormConfig::new(channels / GROUP, channels).init(device)
        };
        let [_, last] = LAYERS[LAYERS.len() - 1].0;
        Self {
            convolutions: LAYERS.into_iter().map(convolution).collect(),
            norms: LAYERS.into_iter().map(norm).collect(),
            classes: LinearConfig::new(last, CLASSES).init(device),
        }
    }

    /// Loads the bundled network from the folder of the examples' files.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](siss::Error::InvalidFile) if the file cannot be read or is one of
    /// another network.
    pub fn load(assets: &Path, device: &Device) -> Result<Self> {
        let path = assets.join(WEIGHTS);
        let mut network = Self::new(device);
        let mut file =
            SafetensorsStore::from_file(&path).with_from_adapter(HalfPrecisionAdapter::new());
        let loaded = network.load_from(&mut file);
        loaded.map_err(|error| invalid(&path, error.to_string()))?;
        Ok(network)
    }

    /// Writes the weights in half precision, over an existing file.
    ///
    /// # Errors
    /// [`Error::InvalidFile`](siss::Error::InvalidFile) if the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut file = SafetensorsStore::from_file(path)
            .with_to_adapter(HalfPrecisionAdapter::new())
            .overwrite(true);
        let saved = self.save_into(&mut file);
        saved.map_err(|error| invalid(path, error.to_string()))
    }

    /// The logits of digits.
    ///
    /// # Shapes
    /// - `images`: `[count, 1, 28, 28]` in `[-1, 1]`
    /// - the result: `[count, 10]`
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let layers = self.convolutions.iter().zip(&self.norms);
        let places = layers.fold(images, |input, (convolution, norm)| {
            relu(norm.forward(convolution.forward(input)))
        });
        let [count, channels, ..] = places.dims();
        let means = places
            .reshape([count as i32, channels as i32, -1])
            .mean_dim(2);
        self.classes.forward(means.squeeze_dim(2))
    }

    /// The logits of many digits, some at a time.
    ///
    /// # Errors
    /// [`Error::NonFinitePoint`](siss::Error::NonFinitePoint),
    /// [`Error::DeviceRead`](siss::Error::DeviceRead).
    pub fn logits(&self, images: &Tensor<4>) -> Result<Features> {
        let mut logits = Features::new("digit classifier, logits");
        for part in images.clone().split(ROWS, 0) {
            logits.push(self.forward(part))?;
        }
        Ok(logits)
    }

    /// Judges generated digits without those that are something else, copies for instance. Nothing
    /// is said of fewer than a hundred.
    ///
    /// # Errors
    /// Those of [`logits`](Self::logits).
    pub fn judge(&self, images: &Tensor<4>, left_out: &[bool]) -> Result<Option<Judgement>> {
        let digits = (0..).zip(left_out).filter(|(_, is_out)| !**is_out);
        let digits: Vec<i32> = digits.map(|(row, _)| row).collect();
        if digits.len() < Self::FEWEST {
            return Ok(None);
        }
        let digits = Tensor::<1, Int>::from_data(digits.as_slice(), &images.device());
        let logits = self.logits(&images.clone().select(0, digits))?;
        let inception_score = inception_score(&logits, SPLITS)?.mean;
        let mut counts = [0; CLASSES];
        for image in 0..logits.len() {
            counts[likeliest(logits.row(image))] += 1;
        }
        Ok(Some(Judgement {
            inception_score,
            evenness: evenness(&counts),
            counts,
        }))
    }
}

/// What the classifier finds in generated digits.
#[derive(Debug, Clone, Serialize)]
pub struct Judgement {
    /// Mean over ten splits, at most 10, with the interval over the splits. It depends on the
    /// number of samples: only scores of as many can be compared.
    pub inception_score: Estimate,
    /// How many were taken for each digit.
    pub counts: [usize; CLASSES],
    /// Entropy of these counts divided by that of even ones: 1 if every class is as frequent, 0 if
    /// there is only one.
    pub evenness: f64,
}

/// The class with the largest logit.
pub fn likeliest(logits: &[f32]) -> usize {
    let largest = |best: usize, class: usize| match logits[class] > logits[best] {
        true => class,
        false => best,
    };
    (0..logits.len()).fold(0, largest)
}

fn evenness(counts: &[usize; CLASSES]) -> f64 {
    let total = counts.iter().sum::<usize>().max(1) as f64;
    let shares = counts.iter().map(|&count| count as f64 / total);
    let entropy: f64 = (shares.filter(|&share| share > 0.0))
        .map(|share| share * share.recip().ln())
        .sum();
    entropy / (CLASSES as f64).ln()
}

#[cfg(test)]
mod tests {
    use siss::Error;

    use super::*;
    use crate::digits::{ASSETS, NUM_RETAIN, load_digits, load_labels};

    #[test]
    fn the_bundled_classifier_knows_digits_that_it_was_not_trained_on() {
        let (assets, device) = (Path::new(ASSETS), Device::flex());
        let digits = load_digits(assets, &device).unwrap().heldout;
        let labels = load_labels(assets).unwrap();
        let classifier = DigitClassifier::load(assets, &device).unwrap();

        let logits = classifier.logits(&digits).unwrap();
        let is_right =
            |&(place, &label): &(usize, &u8)| likeliest(logits.row(place)) == usize::from(label);
        let right = labels[NUM_RETAIN..]
            .iter()
            .enumerate()
            .filter(is_right)
            .count();
        assert!(right >= 985, "{right} of 1,000");

        let judge = |digits: &Tensor<4>| {
            let none_left_out = vec![false; digits.dims()[0]];
            classifier.judge(digits, &none_left_out).unwrap()
        };
        let judged = judge(&digits).unwrap();
        let score = &judged.inception_score;
        assert!((8.8..=10.0).contains(&score.value), "{score}");
        assert!(
            score.low < score.value && score.value < score.high,
            "{score}"
        );
        assert_eq!(score.samples, [1_000]);
        assert!(judged.evenness > 0.99, "{judged:?}");
        assert_eq!(judged.counts.iter().sum::<usize>(), 1_000);

        // One digit a hundred times is of one class, and tells nothing of others.
        let one = digits.clone().narrow(0, 0, 1).repeat_dim(0, 100);
        let judged = judge(&one).unwrap();
        assert!(
            (judged.inception_score.value - 1.0).abs() < 1e-6,
            "{judged:?}"
        );
        assert_eq!(judged.evenness.to_string(), "0");
        assert!(judge(&digits.clone().narrow(0, 0, 99)).is_none());

        let is_zero: Vec<bool> = labels[NUM_RETAIN..]
            .iter()
            .map(|&label| label == 0)
            .collect();
        let judged = classifier.judge(&digits, &is_zero).unwrap().unwrap();
        assert!(
            judged.counts[0] <= 2 && judged.evenness < 0.96,
            "{judged:?}"
        );
    }

    #[test]
    fn what_was_saved_is_loaded_and_other_files_are_refused() {
        let device = Device::flex();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS);
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let network = DigitClassifier::new(&device);
        network.save(&path).unwrap();
        network.save(&path).unwrap();
        let loaded = DigitClassifier::load(folder.path(), &device).unwrap();
        let images = Tensor::ones([2, 1, 28, 28], &device) * 0.5;
        let [before, after] = [network, loaded].map(|it| it.logits(&images).unwrap());
        for (before, after) in before.row(1).iter().zip(after.row(1)) {
            assert!((before - after).abs() < 1e-2, "{before} {after}");
        }

        std::fs::write(&path, "no weights").unwrap();
        let error = DigitClassifier::load(folder.path(), &device).unwrap_err();
        assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
    }

    #[test]
    fn counts_are_even_or_not() {
        assert!((evenness(&[3; CLASSES]) - 1.0).abs() < 1e-12);
        let mut counts = [0; CLASSES];
        (counts[2], counts[7]) = (4, 4);
        assert!((evenness(&counts) - std::f64::consts::LOG10_2).abs() < 1e-12);
    }
}
