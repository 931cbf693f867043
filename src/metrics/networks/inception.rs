//! The Inception network of FID.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::layers::{Affine, Convolution, Shape, max_pool, mean_around, mean_places};
use super::weights::{Loader, TensorSource, load};
use super::{IGNORED, check_channels, each_part};
use crate::data::Points;
use crate::error::Result;
use crate::metrics::{Features, Resize};

/// The Inception v3 of the original FID: torch-fidelity's `inception-v3-compat`.
///
/// It is not torchvision's network: average pools leave out the border, the last block has a maximum
/// pool, there are 1008 classes. Weights are those of TensorFlow's 2015 model, as safetensors
/// ([`networks`](super) says how to convert them).
///
/// # Example
/// ```no_run
/// use burn::tensor::{Device, Tensor};
/// use siss::metrics::networks::{InceptionTap, InceptionV3};
/// use siss::metrics::{Resize, frechet_distance};
///
/// let device = Device::flex();
/// let network = InceptionV3::load("inception.safetensors", &device)?;
/// # let (real, generated) = (Tensor::<4>::zeros([2, 3, 8, 8], &device), Tensor::<4>::zeros([2, 3, 8, 8], &device));
/// let features = |pictures: &Tensor<4>| {
///     network.features(pictures, InceptionTap::Pool2048, Resize::Tensorflow1)
/// };
/// println!("{}", frechet_distance(&features(&real)?, &features(&generated)?)?);
/// # Ok::<(), siss::Error>(())
/// ```
///
/// # Reference
/// Szegedy et al. 2016, *Rethinking the Inception Architecture for Computer Vision*; Heusel et al.
/// 2017 (FID); torch-fidelity 0.4 (the variant).
#[derive(Debug, Clone)]
pub struct InceptionV3 {
    stem: Vec<Convolution>,
    blocks: Vec<Block>,
    classes: Affine,
}

/// Where features are taken from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InceptionTap {
    /// After the first maximum pool, 64 features.
    Pool64,
    /// After the second maximum pool, 192 features.
    Pool192,
    /// Before the auxiliary classifier of the original, 768 features.
    Pool768,
    /// After the last pool, 2048 features: FID, KID, precision and recall.
    Pool2048,
    /// The 1008 logits without bias: inception score.
    LogitsUnbiased,
    /// The 1008 logits.
    Logits,
}

impl InceptionTap {
    fn name(self) -> &'static str {
        match self {
            InceptionTap::Pool64 => "64",
            InceptionTap::Pool192 => "192",
            InceptionTap::Pool768 => "768",
            InceptionTap::Pool2048 => "2048",
            InceptionTap::LogitsUnbiased => "logits_unbiased",
            InceptionTap::Logits => "logits",
        }
    }
}

/// A branch of a block: convolutions one after the other, then perhaps two side by side.
#[derive(Debug, Clone)]
struct Branch {
    line: Vec<Convolution>,
    fork: Vec<Convolution>,
}

impl Branch {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let trunk = self
            .line
            .iter()
            .fold(input, |input, layer| layer.forward_relu(input));
        match self.fork.is_empty() {
            true => trunk,
            false => {
                let ends = self
                    .fork
                    .iter()
                    .map(|layer| layer.forward_relu(trunk.clone()));
                Tensor::cat(ends.collect(), 1)
            }
        }
    }
}

/// What a block does to its input besides convolutions.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pool {
    /// The mean around each place, then a convolution.
    Mean,
    /// The maximum around each place, then a convolution.
    Max,
    /// The maximum of every other place.
    Halve,
}

/// A block of branches whose outputs are joined; the pool's comes last.
#[derive(Debug, Clone)]
struct Block {
    branches: Vec<Branch>,
    pool: Pool,
    after_pool: Vec<Convolution>,
}

impl Block {
    fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        let pooled = match self.pool {
            Pool::Mean => mean_around(input.clone()),
            Pool::Max => max_pool(input.clone(), 1, 1),
            Pool::Halve => max_pool(input.clone(), 2, 0),
        };
        let mut outputs: Vec<_> = self
            .branches
            .iter()
            .map(|it| it.forward(input.clone()))
            .collect();
        outputs.push(
            self.after_pool
                .iter()
                .fold(pooled, |input, layer| layer.forward_relu(input)),
        );
        Tensor::cat(outputs, 1)
    }
}

const EPSILON: f32 = 1e-3;

/// Loads the convolutions of a block by their names.
struct BlockLoader<'a, 'b, 'c> {
    loader: &'a mut Loader<'b, 'c>,
    block: &'a str,
}

impl<'a, 'b, 'c> BlockLoader<'a, 'b, 'c> {
    fn new(loader: &'a mut Loader<'b, 'c>, block: &'a str) -> Self {
        Self { loader, block }
    }

    fn layer(&mut self, name: &str, shape: Shape) -> Result<Convolution> {
        let name = match self.block {
            "" => name.to_owned(),
            block => format!("{block}.{name}"),
        };
        let (layer, norm) = (format!("{name}.conv"), format!("{name}.bn"));
        Convolution::load(self.loader, &layer, &norm, shape, EPSILON)
    }

    fn line<const N: usize>(&mut self, layers: [(&str, Shape); N]) -> Result<Branch> {
        let line = layers
            .into_iter()
            .map(|(name, shape)| self.layer(name, shape));
        Ok(Branch {
            line: line.collect::<Result<_>>()?,
            fork: Vec::new(),
        })
    }

    fn finish(&mut self, branches: Vec<Branch>, pool: Pool, after: Option<Shape>) -> Result<Block> {
        let after_pool = after.map(|shape| self.layer("branch_pool", shape));
        Ok(Block {
            branches,
            pool,
            after_pool: after_pool.into_iter().collect::<Result<_>>()?,
        })
    }

    /// 35×35: 1×1, 5×5, twice 3×3.
    fn a(&mut self, inputs: usize, pooled: usize) -> Result<Block> {
        let branches = vec![
            self.line([("branch1x1", Shape::square(inputs, 64, 1))])?,
            self.line([
                ("branch5x5_1", Shape::square(inputs, 48, 1)),
                ("branch5x5_2", Shape::square(48, 64, 5)),
            ])?,
            self.line([
                ("branch3x3dbl_1", Shape::square(inputs, 64, 1)),
                ("branch3x3dbl_2", Shape::square(64, 96, 3)),
                ("branch3x3dbl_3", Shape::square(96, 96, 3)),
            ])?,
        ];
        self.finish(branches, Pool::Mean, Some(Shape::square(inputs, pooled, 1)))
    }

    /// From 35×35 to 17×17.
    fn b(&mut self) -> Result<Block> {
        let halving = |inputs, outputs| {
            Shape::square(inputs, outputs, 3)
                .stride(2)
                .without_padding()
        };
        let branches = vec![
            self.line([("branch3x3", halving(288, 384))])?,
            self.line([
                ("branch3x3dbl_1", Shape::square(288, 64, 1)),
                ("branch3x3dbl_2", Shape::square(64, 96, 3)),
                ("branch3x3dbl_3", halving(96, 96)),
            ])?,
        ];
        self.finish(branches, Pool::Halve, None)
    }

    /// 17×17: 1×1, 7×7 and twice 7×7 in parts.
    fn c(&mut self, middle: usize) -> Result<Block> {
        let (row, column) = ([1, 7], [7, 1]);
        let branches = vec![
            self.line([("branch1x1", Shape::square(768, 192, 1))])?,
            self.line([
                ("branch7x7_1", Shape::square(768, middle, 1)),
                ("branch7x7_2", Shape::oblong(middle, middle, row)),
                ("branch7x7_3", Shape::oblong(middle, 192, column)),
            ])?,
            self.line([
                ("branch7x7dbl_1", Shape::square(768, middle, 1)),
                ("branch7x7dbl_2", Shape::oblong(middle, middle, column)),
                ("branch7x7dbl_3", Shape::oblong(middle, middle, row)),
                ("branch7x7dbl_4", Shape::oblong(middle, middle, column)),
                ("branch7x7dbl_5", Shape::oblong(middle, 192, row)),
            ])?,
        ];
        self.finish(branches, Pool::Mean, Some(Shape::square(768, 192, 1)))
    }

    /// From 17×17 to 8×8.
    fn d(&mut self) -> Result<Block> {
        let halving = |outputs| Shape::square(192, outputs, 3).stride(2).without_padding();
        let branches = vec![
            self.line([
                ("branch3x3_1", Shape::square(768, 192, 1)),
                ("branch3x3_2", halving(320)),
            ])?,
            self.line([
                ("branch7x7x3_1", Shape::square(768, 192, 1)),
                ("branch7x7x3_2", Shape::oblong(192, 192, [1, 7])),
                ("branch7x7x3_3", Shape::oblong(192, 192, [7, 1])),
                ("branch7x7x3_4", halving(192)),
            ])?,
        ];
        self.finish(branches, Pool::Halve, None)
    }

    /// 8×8: 1×1, and 3×3 that end in two halves.
    fn e(&mut self, inputs: usize, pool: Pool) -> Result<Block> {
        let mut single = self.line([("branch3x3_1", Shape::square(inputs, 384, 1))])?;
        single.fork = self.fork("branch3x3_2")?;
        let mut double = self.line([
            ("branch3x3dbl_1", Shape::square(inputs, 448, 1)),
            ("branch3x3dbl_2", Shape::square(448, 384, 3)),
        ])?;
        double.fork = self.fork("branch3x3dbl_3")?;
        let branches = vec![
            self.line([("branch1x1", Shape::square(inputs, 320, 1))])?,
            single,
            double,
        ];
        self.finish(branches, pool, Some(Shape::square(inputs, 192, 1)))
    }

    fn fork(&mut self, name: &str) -> Result<Vec<Convolution>> {
        Ok(vec![
            self.layer(&format!("{name}a"), Shape::oblong(384, 384, [1, 3]))?,
            self.layer(&format!("{name}b"), Shape::oblong(384, 384, [3, 1]))?,
        ])
    }
}

impl InceptionV3 {
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
        let plain =
            |inputs, outputs, kernel| Shape::square(inputs, outputs, kernel).without_padding();
        let stem = [
            ("Conv2d_1a_3x3", plain(3, 32, 3).stride(2)),
            ("Conv2d_2a_3x3", plain(32, 32, 3)),
            ("Conv2d_2b_3x3", Shape::square(32, 64, 3)),
            ("Conv2d_3b_1x1", plain(64, 80, 1)),
            ("Conv2d_4a_3x3", plain(80, 192, 3)),
        ];
        let stem = stem.map(|(name, shape)| BlockLoader::new(&mut loader, "").layer(name, shape));
        let blocks = vec![
            BlockLoader::new(&mut loader, "Mixed_5b").a(192, 32)?,
            BlockLoader::new(&mut loader, "Mixed_5c").a(256, 64)?,
            BlockLoader::new(&mut loader, "Mixed_5d").a(288, 64)?,
            BlockLoader::new(&mut loader, "Mixed_6a").b()?,
            BlockLoader::new(&mut loader, "Mixed_6b").c(128)?,
            BlockLoader::new(&mut loader, "Mixed_6c").c(160)?,
            BlockLoader::new(&mut loader, "Mixed_6d").c(160)?,
            BlockLoader::new(&mut loader, "Mixed_6e").c(192)?,
            BlockLoader::new(&mut loader, "Mixed_7a").d()?,
            BlockLoader::new(&mut loader, "Mixed_7b").e(1280, Pool::Mean)?,
            BlockLoader::new(&mut loader, "Mixed_7c").e(2048, Pool::Max)?,
        ];
        Ok(Self {
            stem: stem.into_iter().collect::<Result<_>>()?,
            blocks,
            classes: Affine::load(&mut loader, "fc", [2048, 1008])?,
        })
    }

    /// The features of pictures at one tap.
    ///
    /// # Shapes
    /// - `pictures`: `[rows, 3, height, width]`, whole values from 0 to 255 as in a file
    /// - the result: `[rows, features]`
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) unless there are three channels;
    /// [`Error::Empty`](crate::Error::Empty) for pictures without pixels.
    pub fn forward(
        &self,
        pictures: Tensor<4>,
        tap: InceptionTap,
        resize: Resize,
    ) -> Result<Tensor<2>> {
        /// Blocks up to the tap of 768 features.
        const MIDDLE: usize = 8;
        check_channels(pictures.dims())?;
        let resized = resize.apply(pictures, [299, 299])?;
        let line = |input, layers: &[Convolution]| {
            layers
                .iter()
                .fold(input, |input, layer| layer.forward_relu(input))
        };
        let blocks = |input, blocks: &[Block]| {
            blocks
                .iter()
                .fold(input, |input, block| block.forward(input))
        };
        let found = max_pool(line((resized - 128.0) / 128.0, &self.stem[..3]), 2, 0);
        if tap == InceptionTap::Pool64 {
            return Ok(mean_places(found));
        }
        let found = max_pool(line(found, &self.stem[3..]), 2, 0);
        if tap == InceptionTap::Pool192 {
            return Ok(mean_places(found));
        }
        let found = blocks(found, &self.blocks[..MIDDLE]);
        if tap == InceptionTap::Pool768 {
            return Ok(mean_places(found));
        }
        let found = mean_places(blocks(found, &self.blocks[MIDDLE..]));
        Ok(match tap {
            InceptionTap::LogitsUnbiased => self.classes.without_bias(found),
            InceptionTap::Logits => self.classes.forward(found),
            _ => found,
        })
    }

    /// The features of a set of pictures, 16 at a time.
    ///
    /// # Shapes
    /// - `pictures`: `[n, 3, height, width]`, whole values from 0 to 255 as in a file
    ///
    /// # Errors
    /// Those of [`forward`](InceptionV3::forward) and of the set;
    /// [`Error::NonFinitePoint`](crate::Error::NonFinitePoint),
    /// [`Error::DeviceRead`](crate::Error::DeviceRead).
    pub fn features(
        &self,
        pictures: &dyn Points<4>,
        tap: InceptionTap,
        resize: Resize,
    ) -> Result<Features> {
        let name = format!("inception-v3-compat, {}, {resize}", tap.name());
        each_part(name, pictures, |part| self.forward(part, tap, resize))
    }
}
