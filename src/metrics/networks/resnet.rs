//! Residual networks: the copy detector of SSCD, and a classifier of digits.

use std::path::Path;

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use super::layers::{Affine, Convolution, Shape, max_pool, mean_places, standardise};
use super::weights::{Loader, TensorSource, load};
use super::{IGNORED, check_channels, each_part};
use crate::data::Points;
use crate::error::{Result, check_range, check_shape};
use crate::metrics::{Features, Resize};

const EPSILON: f32 = 1e-5;

/// A block: convolutions with an activation between them, and the input or a projection of it added.
#[derive(Debug, Clone)]
struct Residual {
    line: Vec<Convolution>,
    projection: Option<Convolution>,
}

impl Residual {
    fn load(
        loader: &mut Loader<'_, '_>,
        name: &str,
        shapes: &[Shape],
        projection: Option<Shape>,
    ) -> Result<Self> {
        let mut layer = |conv: &str, norm: &str, shape| {
            let (conv, norm) = (format!("{name}.{conv}"), format!("{name}.{norm}"));
            Convolution::load(loader, &conv, &norm, shape, EPSILON)
        };
        let line = (1..)
            .zip(shapes)
            .map(|(index, &shape)| layer(&format!("conv{index}"), &format!("bn{index}"), shape));
        Ok(Self {
            line: line.collect::<Result<_>>()?,
            projection: projection
                .map(|shape| layer("downsample.0", "downsample.1", shape))
                .transpose()?,
        })
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let mut output = input.clone();
        for (index, layer) in self.line.iter().enumerate() {
            output = layer.forward(if index == 0 { output } else { relu(output) });
        }
        let shortcut = match &self.projection {
            Some(projection) => projection.forward(input),
            None => input,
        };
        relu(output + shortcut)
    }
}

/// The convolutions of a residual network: `[rows, channels, height, width]` to 1/32 of the size.
#[derive(Debug, Clone)]
struct Backbone {
    stem: Convolution,
    blocks: Vec<Residual>,
}

/// How wide the blocks of a network are.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Two 3×3.
    Basic,
    /// 1×1, 3×3 and 1×1 of four times the width; the 3×3 has the stride.
    Bottleneck,
}

impl Backbone {
    /// torchvision's layout, with a prefix.
    fn load(
        loader: &mut Loader<'_, '_>,
        prefix: &str,
        channels: usize,
        kind: Kind,
        depths: [usize; 4],
    ) -> Result<Self> {
        let stem = Shape::square(channels, 64, 7).stride(2);
        let names = [format!("{prefix}conv1"), format!("{prefix}bn1")];
        let stem = Convolution::load(loader, &names[0], &names[1], stem, EPSILON)?;
        let (mut blocks, mut inputs) = (Vec::new(), 64);
        for (layer, depth) in depths.into_iter().enumerate() {
            let width = 64 << layer;
            for block in 0..depth {
                let stride = if layer > 0 && block == 0 { 2 } else { 1 };
                let name = format!("{prefix}layer{}.{block}", layer + 1);
                let shapes = kind.shapes(inputs, width, stride);
                let outputs = shapes[shapes.len() - 1].outputs;
                let projection = Shape::square(inputs, outputs, 1).stride(stride);
                let is_needed = stride > 1 || inputs != outputs;
                let projection = is_needed.then_some(projection);
                blocks.push(Residual::load(loader, &name, &shapes, projection)?);
                inputs = outputs;
            }
        }
        Ok(Self { stem, blocks })
    }

    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let begun = max_pool(self.stem.forward_relu(input), 2, 1);
        self.blocks
            .iter()
            .fold(begun, |input, block| block.forward(input))
    }
}

impl Kind {
    fn shapes(self, inputs: usize, width: usize, stride: usize) -> Vec<Shape> {
        match self {
            Kind::Basic => vec![
                Shape::square(inputs, width, 3).stride(stride),
                Shape::square(width, width, 3),
            ],
            Kind::Bottleneck => vec![
                Shape::square(inputs, width, 1),
                Shape::square(width, width, 3).stride(stride),
                Shape::square(width, 4 * width, 1),
            ],
        }
    }
}

/// The copy detector of SSCD: a ResNet-50 whose descriptors are near each other for copies.
///
/// Weights are those of `sscd_disc_mixup`, as safetensors ([`networks`](super) says how to convert
/// them). Two pictures with a product above 0.75 are copies with a precision of 90 %, by the
/// authors' measurement.
///
/// # Reference
/// Pizzi et al. 2022, *A Self-Supervised Descriptor for Image Copy Detection*.
#[derive(Debug, Clone)]
pub struct Sscd {
    backbone: Backbone,
    embedding: Affine,
}

/// How pictures are brought to the size of [`Sscd`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SscdSize {
    /// The smaller edge to 288 pixels, with the shape kept: the protocol of the papers.
    SmallEdge288,
    /// To 320×320: different pictures can be described together.
    Square320,
}

impl SscdSize {
    fn of(self, [height, width]: [usize; 2]) -> [usize; 2] {
        const EDGE: usize = 288;
        match self {
            SscdSize::Square320 => [320, 320],
            SscdSize::SmallEdge288 if height <= width => [EDGE, EDGE * width / height.max(1)],
            SscdSize::SmallEdge288 => [EDGE * height / width.max(1), EDGE],
        }
    }
}

impl Sscd {
    /// Reads the network from a file of safetensors.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile),
    /// [`Error::WeightMismatch`](crate::Error::WeightMismatch).
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        load(path.as_ref(), &IGNORED, |source| {
            Self::from_tensors(source, device)
        })
    }

    /// Makes the network of tensors from any source.
    ///
    /// # Errors
    /// Those of the source; [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for too few or
    /// too many values.
    pub fn from_tensors(source: &mut TensorSource<'_>, device: &Device) -> Result<Self> {
        let mut loader = Loader::new(source, device);
        let depths = [3, 4, 6, 3];
        Ok(Self {
            backbone: Backbone::load(&mut loader, "backbone.", 3, Kind::Bottleneck, depths)?,
            embedding: Affine::load(&mut loader, "embeddings.1", [2048, 512])?,
        })
    }

    /// The descriptors of pictures, of length 1.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, 3, height, width]`, whole values from 0 to 255 as in a file
    /// - the result: `[rows, 512]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) unless there are three channels;
    /// [`Error::Empty`](crate::Error::Empty) for pictures without pixels.
    pub fn describe(&self, pictures: Tensor<4>, size: SscdSize) -> Result<Tensor<2>> {
        let [_, _, height, width] = check_channels(pictures.dims())?;
        let resized = Resize::PilBilinear.apply(pictures, size.of([height, width]))?;
        let input = standardise(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        // The generalised mean with the exponent 3.
        let found = self.backbone.forward(input).clamp_min(1e-6);
        let pooled = mean_places(found.powf_scalar(3.0)).powf_scalar(1.0 / 3.0);
        let described = self.embedding.forward(pooled);
        let norms = described.clone().square().sum_dim(1).sqrt();
        Ok(described / norms)
    }

    /// The descriptors of a set of pictures, 16 at a time.
    ///
    /// # Errors
    /// Those of [`describe`](Sscd::describe) and of the set;
    /// [`Error::NonFinitePoint`](crate::Error::NonFinitePoint),
    /// [`Error::DeviceRead`](crate::Error::DeviceRead).
    pub fn features(&self, pictures: &dyn Points<4>, size: SscdSize) -> Result<Features> {
        let size_name = match size {
            SscdSize::SmallEdge288 => "small edge 288",
            SscdSize::Square320 => "320 × 320",
        };
        let name = format!("sscd, {size_name}");
        each_part(name, pictures, |part| self.describe(part, size))
    }
}

/// A ResNet-18 with torchvision's layout: a classifier of small pictures, as of digits.
#[derive(Debug, Clone)]
pub struct ResNet18 {
    channels: usize,
    backbone: Backbone,
    classes: Affine,
}

impl ResNet18 {
    /// Reads the network from a file of safetensors, for pictures of some channels and classes.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile),
    /// [`Error::WeightMismatch`](crate::Error::WeightMismatch),
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) without channels or classes.
    pub fn load(
        path: impl AsRef<Path>,
        channels: usize,
        classes: usize,
        device: &Device,
    ) -> Result<Self> {
        load(path.as_ref(), &IGNORED, |source| {
            Self::from_tensors(source, channels, classes, device)
        })
    }

    /// Makes the network of tensors from any source.
    ///
    /// # Errors
    /// Those of the source; [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for too few or
    /// too many values; [`Error::OutOfRange`](crate::Error::OutOfRange) without channels or classes.
    pub fn from_tensors(
        source: &mut TensorSource<'_>,
        channels: usize,
        classes: usize,
        device: &Device,
    ) -> Result<Self> {
        for (name, count) in [("channels", channels), ("classes", classes)] {
            check_range(name, count as f64, count >= 1, "at least 1")?;
        }
        let mut loader = Loader::new(source, device);
        Ok(Self {
            channels,
            backbone: Backbone::load(&mut loader, "", channels, Kind::Basic, [2; 4])?,
            classes: Affine::load(&mut loader, "fc", [512, classes])?,
        })
    }

    /// The logits of pictures, in the range that the classifier was trained on.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, channels, height, width]`; the result: `[rows, classes]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for another number of channels.
    pub fn forward(&self, pictures: Tensor<4>) -> Result<Tensor<2>> {
        let [_, channels, ..] = pictures.dims();
        let remedy = "give pictures like those of the classifier's training";
        check_shape(
            "the channels of a picture",
            &[self.channels],
            &[channels],
            remedy,
        )?;
        Ok(self
            .classes
            .forward(mean_places(self.backbone.forward(pictures))))
    }

    /// The logits of a set of pictures, 16 at a time.
    ///
    /// # Errors
    /// Those of [`forward`](ResNet18::forward) and of the set;
    /// [`Error::NonFinitePoint`](crate::Error::NonFinitePoint),
    /// [`Error::DeviceRead`](crate::Error::DeviceRead).
    pub fn features(&self, pictures: &dyn Points<4>) -> Result<Features> {
        each_part("resnet18, logits".into(), pictures, |part| {
            self.forward(part)
        })
    }
}
