//! Four programs as a user writes them, each as short as possible: they compile, run small, and
//! give the result that they promise.

/// A class-conditional network of the user's own that predicts v.
mod class_conditional {
    use burn::module::Module;
    use burn::nn::conv::{Conv2d, Conv2dConfig};
    use burn::nn::{Embedding, EmbeddingConfig, PaddingConfig2d};
    use burn::tensor::activation::silu;
    use burn::tensor::{Device, Distribution, Int, Tensor};
    use siss::prelude::*;
    use siss::sampling::{DdimConfig, DdimSampler};
    use siss::{DdpmScheduler, PairSampler, PredictionType, SissTrainer};

    #[derive(Module, Debug)]
    struct ClassNet {
        first: Conv2d,
        class: Embedding,
        time: Embedding,
        last: Conv2d,
    }

    impl ClassNet {
        fn new(device: &Device) -> Self {
            let convolution = |channels| {
                let config = Conv2dConfig::new(channels, [3, 3]);
                config.with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
            };
            Self {
                first: convolution([3, 8]).init(device),
                class: EmbeddingConfig::new(10, 8).init(device),
                time: EmbeddingConfig::new(1000, 8).init(device),
                last: convolution([8, 3]).init(device),
            }
        }
    }

    impl Denoiser<4> for ClassNet {
        type Condition = Tensor<1, Int>;

        fn predict(
            &self,
            noisy: Tensor<4>,
            timesteps: Tensor<1>,
            class: &Tensor<1, Int>,
        ) -> Tensor<4> {
            let column = |ids: Tensor<1, Int>| ids.unsqueeze_dim::<2>(1);
            let class = self.class.forward(column(class.clone()));
            let time = self.time.forward(column(timesteps.int()));
            let embedding = (class + time).swap_dims(1, 2).unsqueeze_dim::<4>(3);
            self.last
                .forward(silu(self.first.forward(noisy) + embedding))
        }

        fn prediction_type(&self) -> PredictionType {
            PredictionType::Velocity
        }
    }

    #[test]
    fn a_class_conditional_network_unlearns_and_is_sampled() -> siss::Result<()> {
        let device = Device::flex();
        let model = ClassNet::new(&device);
        let retain = Tensor::random([20, 3, 8, 8], Distribution::Uniform(-1.0, 1.0), &device);
        let forget = Tensor::ones([1, 3, 8, 8], &device);
        let classes = Tensor::<1, Int>::arange(0..20, &device) % 10;
        let of_forgotten = Tensor::<1, Int>::from_ints([3], &device);

        let process = DdpmScheduler::linear(1000)?;
        let pairs = PairSampler::with_conditions(retain, forget, classes, of_forgotten, 0)?;
        let mut trainer = SissTrainer::builder(model, process.clone()).build()?;
        for step in 0..3 {
            trainer.step(pairs.batch(step, 4)?)?;
        }
        let sampler = DdimSampler::new(&process, DdimConfig::new(5))?;
        let threes = Tensor::<1, Int>::from_ints([3; 2], &device);
        let model = trainer.into_model();
        let images = sampler.sample(&model, &threes, [2, 3, 8, 8], 0, 0, &device)?;
        assert_eq!(images.dims(), [2, 3, 8, 8]);
        Ok(())
    }
}

/// Latents with a text encoder's output and its mask.
mod latents_with_text {
    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::activation::{silu, softmax};
    use burn::tensor::{Bool, Device, Distribution, Tensor};
    use siss::data::DataCheck;
    use siss::prelude::*;
    use siss::{DdpmScheduler, SissTrainer, UnlearningBatch};

    #[derive(Module, Debug)]
    struct TextNet {
        latent: Linear,
        cross_attention: Linear,
        out: Linear,
    }

    impl Denoiser<4> for TextNet {
        /// Embeddings `[rows, tokens, 16]`, and a mask of the tokens that are words,
        /// `[rows, tokens]`.
        type Condition = (Tensor<3>, Tensor<2, Bool>);

        fn predict(
            &self,
            latents: Tensor<4>,
            _: Tensor<1>,
            (text, is_word): &Self::Condition,
        ) -> Tensor<4> {
            let shape = latents.dims();
            let queries = self.latent.forward(latents.flatten::<3>(2, 3));
            let keys = self.cross_attention.forward(text.clone());
            let scores = queries.clone().matmul(keys.clone().swap_dims(1, 2));
            let padding = is_word.clone().bool_not().unsqueeze_dim::<3>(1);
            let padding = padding.expand(scores.dims());
            let attention = softmax(scores.mask_fill(padding, -1e4), 2);
            let hidden = queries + attention.matmul(keys);
            self.out.forward(silu(hidden)).reshape(shape)
        }
    }

    #[test]
    fn only_the_attention_to_the_text_is_trained() -> siss::Result<()> {
        let device = Device::flex();
        let linear = |sizes: [usize; 2]| LinearConfig::new(sizes[0], sizes[1]).init(&device);
        let model = TextNet {
            latent: linear([16, 8]),
            cross_attention: linear([16, 8]),
            out: linear([8, 16]),
        };
        let random =
            |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let text = |rows: usize| {
            let embeddings = random([rows, 5, 16, 1]).squeeze_dim::<3>(3);
            let is_word = Tensor::<2, Bool>::from_data([[true, true, true, false, false]], &device);
            (embeddings, is_word.expand([rows, 5]))
        };
        let (retain, forget) = (random([12, 4, 4, 4]), random([1, 4, 4, 4]));
        // Latents are not bounded, unlike pixels.
        let check = DataCheck {
            range: None,
            ..DataCheck::default()
        };
        assert!(check.run(&retain, &forget)?.is_empty());

        let before = model.latent.weight.val();
        let mut trainer = SissTrainer::builder(model, DdpmScheduler::scaled_linear(1000)?)
            .train_only_matching(r"^cross_attention\.")?
            .micro_batch_size(2)
            .gradient_checkpointing(true)
            .build()?;
        for _ in 0..3 {
            let forget = forget.clone().repeat_dim(0, 4);
            let batch = UnlearningBatch::with_conditions(
                retain.clone().narrow(0, 0, 4),
                forget,
                text(4),
                text(4),
            )?;
            trainer.step(batch)?;
        }
        let after = trainer.into_model().latent.weight.val();
        after.into_data().assert_eq(&before.into_data(), true);
        Ok(())
    }
}

/// An objective of the user's own in one file: concept ablation.
///
/// For a forgotten point, the model learns the frozen model's prediction under the retained point's
/// condition, with noise of its own.
mod own_objective {
    use burn::module::Module;
    use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
    use burn::tensor::{Device, Int, Tensor};
    use siss::clipper::ConstantScale;
    use siss::draws::{ExtraDraws, Stream};
    use siss::evaluate::DenoisingLoss;
    use siss::objective::{LossInputs, LossTerm, LossTerms};
    use siss::prelude::*;
    use siss::{DdpmScheduler, PairSampler, Result, Side, SissLoss, SissTrainer};

    const NOISE: Stream = Stream::Own("concept ablation: noise");

    #[derive(Debug)]
    struct ConceptAblation;

    impl<const D: usize, C> SissLoss<D, C> for ConceptAblation {
        fn name(&self) -> &'static str {
            "concept ablation"
        }

        fn has_term(&self, _: Side) -> bool {
            true
        }

        fn uses_teacher(&self) -> bool {
            true
        }

        fn extra_draws(&self) -> ExtraDraws {
            ExtraDraws::none().normal(NOISE)
        }

        fn terms(&mut self, inputs: &LossInputs<'_, D, C>) -> Result<LossTerms<D>> {
            let (noise, timesteps) = (inputs.draws.numbers_of(NOISE)?, inputs.draws.timesteps());
            let noisy = inputs.scales.noisy(inputs.forget, noise);
            let target = inputs.teacher(noisy.clone(), timesteps, inputs.retain_condition)?;
            let weights = vec![1.0; timesteps.len()];
            let own_target = inputs.target(inputs.forget, noise.clone());
            let forget = LossTerm::new(noisy, timesteps.to_vec(), target, weights)
                .with_own_target(own_target)
                // If nothing of the point is left in the noise, there is nothing to ablate.
                .keep_rows(|row| inputs.scales.signal[row] > 0.05);
            Ok(LossTerms {
                retain: Some(inputs.plain_term(Side::Retain, 1.0)),
                forget: Some(forget),
            })
        }
    }

    #[derive(Module, Debug)]
    struct Net {
        layer: Linear,
        class: Embedding,
    }

    impl Denoiser<2> for Net {
        type Condition = Tensor<1, Int>;

        fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, class: &Tensor<1, Int>) -> Tensor<2> {
            let class = self.class.forward(class.clone().unsqueeze_dim::<2>(1));
            self.layer.forward(noisy) + class.squeeze_dim::<2>(1)
        }
    }

    #[test]
    fn a_forgotten_class_gets_the_answer_of_the_other() -> Result<()> {
        let device = Device::flex();
        device.seed(1);
        let model = Net {
            layer: LinearConfig::new(3, 3).init(&device),
            class: EmbeddingConfig::new(2, 3).init(&device),
        };
        let classes = |class: i64, rows: usize| Tensor::<1, Int>::full([rows], class, &device);
        let retain = Tensor::<2>::random([40, 3], burn::tensor::Distribution::Default, &device);
        let forget = Tensor::<2>::ones([2, 3], &device) * 2.0;
        let pairs =
            PairSampler::with_conditions(retain, forget.clone(), classes(0, 40), classes(1, 2), 0)?;
        let process = DdpmScheduler::linear(1000)?;
        let answer = |model: &Net, class| {
            let times = Tensor::zeros([2], &device);
            model.predict(forget.clone(), times, &classes(class, 2))
        };
        let wanted = answer(&model, 0);
        let distance = |model: &Net| {
            let difference: Tensor<2> = answer(model, 1) - wanted.clone();
            difference.square().mean().into_scalar::<f32>()
        };
        let before = distance(&model);
        let mut trainer = SissTrainer::builder(model, process.clone())
            .loss(ConceptAblation)
            .train_only_matching(r"^class\.")?
            .clipper(ConstantScale::new(1.0)?)
            .learning_rate(0.05)
            .build()?;
        for step in 0..100 {
            trainer.step(pairs.batch(step, 16)?)?;
        }
        let after = trainer.into_model();
        let left = distance(&after);
        assert!(left < 0.1 * before, "{before} to {left}");
        // The number to compare before and after.
        let loss = DenoisingLoss::at([200.0, 600.0]);
        let losses = loss.measure(&after, &process, &forget, &classes(1, 2))?;
        assert_eq!((losses.len(), losses[0].len()), (2, 2));
        Ok(())
    }
}

/// A run that is interrupted and resumes.
mod resume {
    use std::path::Path;

    use burn::module::Module;
    use burn::nn::{Linear, LinearConfig};
    use burn::tensor::{Device, Distribution, Tensor};
    use siss::checkpoint::model_fingerprint;
    use siss::observer::JsonLog;
    use siss::prelude::*;
    use siss::{Checkpoints, DdpmScheduler, PairSampler, Result, SissTrainer};

    #[derive(Module, Debug)]
    struct Net {
        layer: Linear,
    }

    impl Denoiser<2> for Net {
        type Condition = ();

        fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
            self.layer.forward(noisy)
        }
    }

    /// The whole program: it resumes if there is a checkpoint. `stop` stands for the interruption.
    fn unlearn(model: Net, data: [&Tensor<2>; 2], folder: &Path, stop: u64) -> Result<Net> {
        let pairs = PairSampler::new(data[0].clone(), data[1].clone(), 0)?;
        let mut checkpoints = Checkpoints::new(folder.join("checkpoints"))?
            .setting("model", &model_fingerprint(&model)?)?
            .setting("pairs", &pairs.fingerprint()?)?;
        let mut trainer = SissTrainer::builder(model, DdpmScheduler::linear(1000)?)
            .observer(JsonLog::open(folder.join("steps.jsonl"))?)
            .build()?;
        checkpoints.resume(&mut trainer)?;
        while trainer.next_step() < stop {
            trainer.step(pairs.batch(trainer.next_step(), 8)?)?;
            if trainer.next_step().is_multiple_of(5) {
                checkpoints.save(&mut trainer, &())?;
            }
        }
        Ok(trainer.into_model())
    }

    #[test]
    fn an_interrupted_run_is_the_run() -> Result<()> {
        let device = Device::flex();
        let model = Net {
            layer: LinearConfig::new(3, 3).init(&device),
        };
        let retain = Tensor::<2>::random([50, 3], Distribution::Default, &device);
        let forget = Tensor::<2>::ones([1, 3], &device) * 2.0;
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = |folder: &Path, stop| unlearn(model.clone(), [&retain, &forget], folder, stop);
        let expected = run(whole.path(), 20)?;
        run(parts.path(), 13)?;
        let resumed = run(parts.path(), 20)?;
        assert_eq!(model_fingerprint(&resumed)?, model_fingerprint(&expected)?);
        let log = |folder: &Path| std::fs::read(folder.join("steps.jsonl")).unwrap();
        assert_eq!(log(parts.path()), log(whole.path()));
        Ok(())
    }
}
