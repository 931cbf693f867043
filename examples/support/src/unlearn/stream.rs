//! Retained images that are decoded ahead of the steps, instead of being held in memory.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;
use siss::burn::tensor::Tensor;
use siss::data::{DataCheck, NearDuplicate, PairStream, Pairing, PointLoader, near_duplicates};
use siss::files::path_text;
use siss::images::{ImageStore, Images};

use crate::progress::{Progress, duration};
use crate::run::Batches;
use crate::subject::{ConditionOf, MakePoints, Points, Subject};
use crate::unlearn::data::Data;
use crate::unlearn::options::Options;
use crate::unlearn::resources::images;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Retained images, in numbers of 4 bytes, above which they are streamed: 2 GiB.
pub const MOST_HELD: usize = 1 << 29;
/// Most images that `--search` adds to the sample.
pub const MOST_NEAREST: usize = 250;
/// Most threads that decode.
const MOST_THREADS: usize = 8;
/// Batches that each thread has in memory.
const BATCHES_PER_THREAD: usize = 2;

/// The retained images of a run that are not held in memory. A sample of them is.
#[derive(Debug, Clone)]
pub struct RetainStream {
    pub store: Arc<ImageStore>,
    /// Seconds that decoding one image took, mean over the sample.
    pub seconds_per_image: f64,
    /// Whether all images were compared with those to forget.
    pub is_searched: bool,
}

/// What `summary.json` says of a stream.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Retained images that the steps draw from, with mirror images.
    pub retained: usize,
    /// Those that stand for all in predictions and comparisons.
    pub sample: usize,
    /// Images that were passed over because they could not be read.
    pub skipped: usize,
    /// Whether all images were compared with those to forget.
    pub searched: bool,
    /// Seconds that steps waited for images, and their share of the time of the steps.
    pub waited_seconds: f64,
    pub waited_share: f64,
}

impl RetainStream {
    /// What the user should know before the run: what the sample stands for, and what leaving out
    /// the rest costs.
    pub fn lines(&self, data: &Data) -> Vec<String> {
        let (all, sample) = (self.store.len(), data.retain.len());
        let mut lines = vec![format!(
            "stream   {} are decoded ahead of the steps by {} threads, not held in memory",
            images(all),
            threads()
        )];
        if all > sample {
            lines.push(format!(
                "         a sample of {sample}, drawn at random, stands for all where levels and answers are predicted, neighbours are looked \
                 for and copies of the images to forget are named"
            ));
        }
        if all > sample && !self.is_searched {
            lines.push(format!(
                "         so an almost identical copy of an image to forget is named with a chance of {:.1} %, while it is trained on all the \
                 same; --search compares all images once, in about {}, and adds the nearest ones to the sample",
                100.0 * sample as f64 / all as f64,
                duration(self.seconds_per_image * all as f64 / threads() as f64),
            ));
        }
        lines
    }

    /// Number of images without mirror images, and of mirror images.
    pub fn counts(&self) -> [usize; 2] {
        let originals = self.store.pictures();
        [originals, self.store.len() - originals]
    }

    /// Bytes of the images that are decoded ahead.
    pub fn bytes_ahead(&self, batch: usize) -> u64 {
        (ahead() * batch * self.store.format().values() * size_of::<f32>()) as u64
    }

    /// Compares all images with those to forget in one pass. Names the copies, and returns the
    /// nearest other images that the sample lacks, at most [`MOST_NEAREST`].
    pub fn search<C>(
        &self,
        points: &MakePoints<C>,
        data: &Data,
        forget: &Tensor<4>,
        progress: &dyn Progress,
    ) -> Result<Images> {
        let mut dims = forget.dims();
        dims[0] = self.store.len();
        let all = PointLoader::new(dims, |rows: std::ops::Range<usize>| {
            progress.phase(&format!("comparing images: {} of {}", rows.start, dims[0]));
            Ok(points(&self.decoded(&rows.collect::<Vec<_>>())?)?.0)
        });
        // Within the typical distance: nearer than the neighbours of other images.
        let mut found = near_duplicates(&all, forget, 1.0)?;
        found.sort_by(|a, b| a.relative.total_cmp(&b.relative));
        let mut nearest = self.store.load(&[])?;
        let held = data.retain.files().iter().zip(data.retain.mirrored());
        let mut known: HashSet<_> = held
            .map(|(file, &mirrored)| (file.clone(), mirrored))
            .collect();
        for pair in found {
            // The nearest come first: there is nothing more to name or to add.
            if nearest.len() >= MOST_NEAREST && pair.relative > DataCheck::default().near {
                break;
            }
            let image = self.store.load(&[pair.retain])?;
            if pair.relative <= DataCheck::default().near {
                progress.say(&copy(&pair, &image, data));
            }
            let is_new = known.insert((image.files()[0].clone(), image.mirrored()[0]));
            if is_new && nearest.len() < MOST_NEAREST {
                nearest.append(&image)?;
            }
        }
        progress.say(&format!(
            "search   {} compared with those to forget; {} nearer than neighbours usually are, added to the sample",
            images(dims[0]),
            images(nearest.len())
        ));
        Ok(nearest)
    }

    /// Images that are decoded on all threads.
    fn decoded(&self, numbers: &[usize]) -> siss::Result<Images> {
        let part = numbers.len().div_ceil(threads()).max(1);
        let parts: siss::Result<Vec<Images>> = numbers
            .par_chunks(part)
            .map(|numbers| self.store.load(numbers))
            .collect();
        let mut all = self.store.load(&[])?;
        for part in &parts? {
            all.append(part)?;
        }
        Ok(all)
    }

    /// The batches of the steps; `sample`: the pairs of the sample.
    pub fn batches<'a, S: Subject>(
        &self,
        subject: &S,
        points: MakePoints<ConditionOf<S>>,
        forget: &Points<ConditionOf<S>>,
        options: &Options,
        sample: &'a siss::PairSampler<4, ConditionOf<S>>,
    ) -> siss::Result<Batches<'a, ConditionOf<S>>>
    where
        ConditionOf<S>: 'static,
    {
        let pairing = Pairing::new(self.store.len(), forget.count(), options.seed)?;
        let store = Arc::clone(&self.store);
        let load = move |numbers: &[usize]| points(&store.load(numbers)?);
        let (points, condition) = (forget.points.clone(), forget.condition.clone());
        let mut stream = PairStream::with_conditions(pairing, points, condition, load)?
            .with_threads(threads())?
            .with_ahead(ahead())?
            .with_steps(options.steps as u64)?;
        let drop = options.conditions.drop_condition;
        if let Some(none) = subject.none().filter(|_| drop > 0.0) {
            stream = stream.dropping(drop, none)?;
        }
        Ok(Batches::Stream {
            stream: Box::new(stream),
            sample,
            files: self.store.fingerprint(),
        })
    }

    /// The figures of a finished run, whose steps took `seconds`.
    pub fn figures(&self, data: &Data, waited: f64, seconds: f64) -> Figures {
        let before = data.found.retain.unread.len();
        Figures {
            retained: self.store.len(),
            sample: data.retain.len(),
            skipped: self.store.account().unread.len() - before,
            searched: self.is_searched,
            waited_seconds: waited,
            waited_share: if seconds > 0.0 { waited / seconds } else { 0.0 },
        }
    }
}

fn copy(pair: &NearDuplicate, image: &Images, data: &Data) -> String {
    format!(
        "{} is almost identical to {}, which is to be forgotten ({:.2} of the distance of two neighbours): if it is a copy, remove it from \
         the retained images",
        image.name(0),
        data.forget.name(pair.forget),
        pair.relative
    )
}

/// Measures how long an image takes to decode.
pub fn timed(
    store: &ImageStore,
    count: usize,
    progress: impl FnMut(usize),
) -> Result<(Images, f64)> {
    let began = Instant::now();
    let sample = store.first(count, progress).map_err(with_remedy)?;
    let seconds = began.elapsed().as_secs_f64() / sample.len().max(1) as f64;
    Ok((sample, seconds))
}

/// Says how to do without images that cannot be read.
pub fn with_remedy(error: impl Into<Box<dyn Error>>) -> Box<dyn Error> {
    let error = error.into();
    match error.downcast_ref() {
        Some(siss::Error::UnreadFiles { path, .. }) => format!(
            "{error}\nor pass over such images of {} with --skip-broken; a run with checkpoints is continued with --resume",
            path_text(path)
        )
        .into(),
        _ => error,
    }
}

fn threads() -> usize {
    available_parallelism()
        .map_or(1, usize::from)
        .min(MOST_THREADS)
}

fn ahead() -> usize {
    BATCHES_PER_THREAD * threads()
}
