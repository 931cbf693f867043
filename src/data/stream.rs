//! `PairStream`: batches whose retained points are loaded on threads, ahead of the steps that use
//! them.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;

use super::batch::UnlearningBatch;
use super::dropping::Dropping;
use super::pairing::Pairing;
use super::side::Side;
use crate::denoiser::Condition;
use crate::error::{Error, Result, check_range, check_shape, panic_text};
use crate::host::select_rows;

/// Loads the points with these numbers, with their conditions.
type Load<const D: usize, C> = dyn Fn(&[usize]) -> Result<(Tensor<D>, C)> + Send + Sync;

/// Pairs retained with forgotten points, where the retained ones are loaded by a function on
/// threads, some steps ahead.
///
/// The batches are those of a [`PairSampler`](crate::PairSampler) over the same points, whatever
/// the number of threads, so a resumed run continues with the same ones. At most
/// [`ahead`](Self::with_ahead) batches are in memory besides the one in use. The forgotten points
/// are few, and are a tensor.
///
/// Contents are not compared: forgotten points must not be among the retained ones.
///
/// # Example
/// ```
/// use burn::tensor::{Device, Tensor};
/// use siss::data::{PairStream, Pairing};
///
/// let device = Device::flex();
/// let forget = Tensor::<2>::ones([3, 8], &device);
/// let pairing = Pairing::new(1_000_000, 3, 0)?; // retained, forgotten, seed
/// let mut stream = PairStream::new(pairing, forget, |numbers: &[usize]| {
///     // Reads these points from files or a data base.
///     let point = |&number: &usize| Tensor::full([1, 8], number as f64 * 1e-7, &Device::flex());
///     let points = numbers.iter().map(point);
///     Ok(Tensor::cat(points.collect(), 0))
/// })?;
/// for step in 0..3 {
///     let batch = stream.batch(step, 16)?; // for `SissTrainer::step`
///     assert_eq!(batch.batch_size(), 16);
/// }
/// # Ok::<(), siss::Error>(())
/// ```
pub struct PairStream<const D: usize, C = ()> {
    pairing: Pairing,
    forget: Tensor<D>,
    forget_condition: C,
    load: Arc<Load<D, C>>,
    threads: usize,
    ahead: usize,
    /// The last step of the run.
    last: u64,
    dropping: Option<Dropping<C>>,
    /// Started by the first batch.
    workers: Option<Workers<D, C>>,
    waited: Duration,
}

/// What a worker loads: the points of a step, in the order of its rows.
struct Job {
    step: u64,
    numbers: Vec<usize>,
}

type Loaded<const D: usize, C> = (u64, Result<(Tensor<D>, C)>);

/// Threads that load the steps from a first one on, in order.
struct Workers<const D: usize, C> {
    batch_size: usize,
    /// The step whose batch is due.
    current: u64,
    /// The first step that has not been asked for.
    next: u64,
    jobs: Sender<Job>,
    results: Receiver<Loaded<D, C>>,
    /// Steps that were loaded before their turn.
    ready: HashMap<u64, Result<(Tensor<D>, C)>>,
}

impl<const D: usize> PairStream<D> {
    /// A stream for a model without a condition; `load` returns the retained points with these
    /// numbers, `[numbers.len(), …]`, on any device, and should fail with an [`Error::Data`] or an
    /// [`Error::Io`] that names the file.
    ///
    /// # Shapes
    /// - `forget`: `[k, …]`, where `pairing` has `k` forgotten points
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for another number of forgotten points.
    pub fn new(
        pairing: Pairing,
        forget: Tensor<D>,
        load: impl Fn(&[usize]) -> Result<Tensor<D>> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::with_conditions(pairing, forget, (), move |numbers: &[usize]| {
            Ok((load(numbers)?, ()))
        })
    }
}

impl<const D: usize, C: Condition + 'static> PairStream<D, C> {
    /// A stream whose points have conditions; `load` returns those of the retained points too.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for another number of forgotten points or conditions than `pairing`
    /// has.
    pub fn with_conditions(
        pairing: Pairing,
        forget: Tensor<D>,
        forget_condition: C,
        load: impl Fn(&[usize]) -> Result<(Tensor<D>, C)> + Send + Sync + 'static,
    ) -> Result<Self> {
        let forgotten = pairing.forgotten();
        check_shape(
            "the forget set",
            &[forgotten],
            &[forget.dims()[0]],
            "give the points that the pairing counts",
        )?;
        forget_condition.check_rows("the forget condition", forgotten)?;
        Ok(Self {
            pairing,
            forget,
            forget_condition,
            load: Arc::new(load),
            threads: 2,
            ahead: 4,
            last: u64::MAX,
            dropping: None,
            workers: None,
            waited: Duration::ZERO,
        })
    }

    /// Sets the number of threads that load, 2 by default; each loads a whole batch.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is from 1 to 1,024.
    pub fn with_threads(mut self, threads: usize) -> Result<Self> {
        let legal = (1..=1024).contains(&threads);
        check_range("threads", threads as f64, legal, "from 1 to 1,024")?;
        (self.threads, self.workers) = (threads, None);
        Ok(self)
    }

    /// Sets how many batches are loaded before they are asked for, 4 by default.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless it is from 1 to 1,024.
    pub fn with_ahead(mut self, ahead: usize) -> Result<Self> {
        let legal = (1..=1024).contains(&ahead);
        check_range("ahead", ahead as f64, legal, "from 1 to 1,024")?;
        (self.ahead, self.workers) = (ahead, None);
        Ok(self)
    }

    /// Sets the number of steps of the run, after which nothing is loaded ahead.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn with_steps(mut self, steps: u64) -> Result<Self> {
        check_range("steps", steps as f64, steps > 0, "at least 1")?;
        (self.last, self.workers) = (steps - 1, None);
        Ok(self)
    }

    /// Replaces conditions by `none` with this probability, as
    /// [`PairSampler::dropping`](crate::PairSampler::dropping), and the same ones.
    ///
    /// # Errors
    /// As there.
    pub fn dropping(mut self, probability: f64, none: C) -> Result<Self> {
        let like = self.forget_condition.take_rows(&[0]);
        self.dropping = Some(Dropping::new(probability, none, like)?);
        Ok(self)
    }

    /// The batch of optimiser step `step`, with the indices of the forgotten points as ids.
    ///
    /// Steps in order find their batch loaded. Any other step, or another size, starts anew.
    ///
    /// # Errors
    /// Those of `load`, at the step whose points it could not load, and later steps can still be
    /// asked for; [`Error::Data`] if it panics; [`Error::ShapeMismatch`] if it returns another
    /// number of points or conditions than it was asked for, or points of another shape than the
    /// forgotten ones; [`Error::OutOfRange`] as [`Pairing::pairs`].
    pub fn batch(&mut self, step: u64, batch_size: usize) -> Result<UnlearningBatch<D, C>> {
        let pairs = self.pairing.pairs(step, batch_size)?;
        let (retain, condition) = self.loaded(step, batch_size)?;
        let mut shape = self.forget.dims();
        shape[0] = batch_size;
        let remedy = "return exactly the requested points, in the shape of the forgotten ones";
        check_shape("the loaded points", &shape, &retain.dims(), remedy)?;
        condition.check_rows("the loaded conditions", batch_size)?;
        let device = retain.device();
        let forget = select_rows(&self.forget, &pairs.forget).to_device(&device);
        let forget_condition = self.forget_condition.take_rows(&pairs.forget);
        let forget_condition = forget_condition.to_device(&device);
        let [condition, forget_condition] = match &self.dropping {
            Some(dropping) => {
                let key = [self.pairing.seed(), step];
                [
                    dropping.apply(condition, batch_size, Side::Retain, key)?,
                    dropping.apply(forget_condition, batch_size, Side::Forget, key)?,
                ]
            }
            None => [condition, forget_condition],
        };
        UnlearningBatch::with_conditions(retain, forget, condition, forget_condition)?
            .with_forget_ids(pairs.forget_ids())
    }

    /// The time that calls of [`batch`](Self::batch) have waited for points so far.
    ///
    /// If it is more than a few percent of the run, more threads help.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    fn loaded(&mut self, step: u64, batch_size: usize) -> Result<(Tensor<D>, C)> {
        let continues =
            |workers: &Workers<D, C>| workers.batch_size == batch_size && workers.current == step;
        let workers = match self.workers.take().filter(continues) {
            Some(workers) => workers,
            None => Workers::start(&self.load, self.threads, step, batch_size)?,
        };
        let workers = self.workers.insert(workers);
        let last = step
            .saturating_add(self.ahead as u64)
            .min(self.last.max(step));
        workers.ask_until(&self.pairing, last)?;
        let began = Instant::now();
        let loaded = workers.take(step);
        self.waited += began.elapsed();
        loaded
    }
}

impl<const D: usize, C: Condition + 'static> Workers<D, C> {
    fn start(
        load: &Arc<Load<D, C>>,
        threads: usize,
        first: u64,
        batch_size: usize,
    ) -> Result<Self> {
        let (jobs, waiting) = channel();
        let (done, results) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let (load, waiting, done) = (Arc::clone(load), Arc::clone(&waiting), done.clone());
            let thread = thread::Builder::new().name("siss-stream".into());
            thread
                .spawn(move || work(load.as_ref(), &waiting, &done))
                .map_err(|error| Error::Data(format!("starting a thread to load data: {error}")))?;
        }
        Ok(Self {
            batch_size,
            current: first,
            next: first,
            jobs,
            results,
            ready: HashMap::new(),
        })
    }

    /// Asks for all steps up to `last` that have not been asked for.
    fn ask_until(&mut self, pairing: &Pairing, last: u64) -> Result<()> {
        while self.next <= last {
            let (step, numbers) = (self.next, pairing.pairs(self.next, self.batch_size)?.retain);
            self.jobs.send(Job { step, numbers }).map_err(|_| gone())?;
            self.next += 1;
        }
        Ok(())
    }

    /// Waits for the points of the current step.
    fn take(&mut self, step: u64) -> Result<(Tensor<D>, C)> {
        self.current += 1;
        loop {
            if let Some(loaded) = self.ready.remove(&step) {
                return loaded;
            }
            let (done, loaded) = self.results.recv().map_err(|_| gone())?;
            self.ready.insert(done, loaded);
        }
    }
}

/// Loads until nobody asks any more.
fn work<const D: usize, C>(
    load: &Load<D, C>,
    waiting: &Mutex<Receiver<Job>>,
    done: &Sender<Loaded<D, C>>,
) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(Job { step, numbers }) = job else {
            return;
        };
        let loaded = catch_unwind(AssertUnwindSafe(|| load(&numbers)));
        let loaded = loaded.unwrap_or_else(|panic| {
            let reason = panic_text(panic.as_ref());
            Err(Error::Data(format!(
                "loading the points of step {step} panicked: {reason}"
            )))
        });
        if done.send((step, loaded)).is_err() {
            return;
        }
    }
}

fn gone() -> Error {
    Error::Data("the threads that load data have ended; ask for the step again".into())
}

impl<const D: usize, C> fmt::Debug for PairStream<D, C> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PairStream")
            .field("pairing", &self.pairing)
            .field("threads", &self.threads)
            .field("ahead", &self.ahead)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{PairSampler, Side};
    use burn::tensor::{Device, Int};
    use std::sync::atomic::{AtomicUsize, Ordering};

    const RETAINED: usize = 50;

    fn points(numbers: &[usize]) -> Tensor<2> {
        let values: Vec<i32> = numbers.iter().map(|&number| number as i32).collect();
        let values = Tensor::<1, Int>::from_data(values.as_slice(), &Device::flex());
        values.float().reshape([numbers.len(), 1])
    }

    fn forget() -> Tensor<2> {
        points(&[100, 101, 102])
    }

    fn pairing() -> Pairing {
        Pairing::new(RETAINED, 3, 5).unwrap()
    }

    fn values(batch: &UnlearningBatch<2, Tensor<2>>) -> Vec<f32> {
        let parts = [batch.retain(), batch.forget()];
        let conditions = [Side::Retain, Side::Forget].map(|side| batch.condition(side));
        let all = parts.into_iter().chain(conditions).cloned().collect();
        Tensor::cat(all, 0).into_data().try_to_vec().unwrap()
    }

    /// Whatever the number of threads and of batches ahead, from any first step, also if the size
    /// of a batch changes.
    #[test]
    fn a_stream_has_the_batches_of_a_sampler() {
        let all: Vec<usize> = (0..RETAINED).collect();
        let conditions = [points(&all) + 0.5, forget() + 0.5];
        let [retain_condition, forget_condition] = conditions.clone();
        let sampler = PairSampler::with_conditions(
            points(&all),
            forget(),
            retain_condition,
            forget_condition,
            5,
        );
        let none = || points(&[7]);
        let sampler = sampler.unwrap().dropping(0.3, none()).unwrap();
        for (threads, ahead) in [(1, 1), (2, 4), (8, 3)] {
            let load = |numbers: &[usize]| Ok((points(numbers), points(numbers) + 0.5));
            let [_, condition] = conditions.clone();
            let stream = PairStream::with_conditions(pairing(), forget(), condition, load);
            let mut stream = stream.unwrap().with_threads(threads).unwrap();
            stream = stream.with_ahead(ahead).unwrap();
            stream = stream.dropping(0.3, none()).unwrap();
            let steps = [
                (0, 7),
                (1, 7),
                (2, 7),
                (2, 7),
                (9, 7),
                (10, 4),
                (11, 4),
                (3, 4),
            ];
            for (step, batch_size) in steps {
                let (found, expected) = (
                    stream.batch(step, batch_size).unwrap(),
                    sampler.batch(step, batch_size).unwrap(),
                );
                assert_eq!(values(&found), values(&expected), "step {step}");
                assert_eq!(found.forget_ids(), expected.forget_ids());
            }
        }
    }

    /// The batches of the next steps are loaded before anybody asks, and no more than were
    /// announced.
    #[test]
    fn batches_are_loaded_ahead_and_no_further() {
        let (started, loads) = channel();
        let started = Mutex::new(started);
        let mut stream = PairStream::new(pairing(), forget(), move |numbers: &[usize]| {
            started.lock().unwrap().send(()).unwrap();
            Ok(points(numbers))
        });
        stream = stream.unwrap().with_ahead(3);
        let mut stream = stream.unwrap();
        stream.batch(0, 4).unwrap();
        let patience = Duration::from_secs(60);
        for load in 0..4 {
            assert!(loads.recv_timeout(patience).is_ok(), "load {load}");
        }
        assert!(loads.recv_timeout(Duration::from_millis(50)).is_err());
        stream.batch(1, 4).unwrap();
        assert!(loads.recv_timeout(patience).is_ok());
    }

    #[test]
    fn nothing_is_loaded_for_steps_after_the_last() {
        let (started, loads) = channel();
        let started = Mutex::new(started);
        let stream = PairStream::new(pairing(), forget(), move |numbers: &[usize]| {
            started.lock().unwrap().send(()).unwrap();
            Ok(points(numbers))
        });
        let mut stream = stream.unwrap().with_steps(3).unwrap();
        (0..3).for_each(|step| drop(stream.batch(step, 4).unwrap()));
        drop(stream);
        assert_eq!(loads.iter().count(), 3);
    }

    #[test]
    fn a_step_that_cannot_be_loaded_fails_alone_and_can_be_asked_for_again() {
        let calls = AtomicUsize::new(0);
        let stream = PairStream::new(pairing(), forget(), move |numbers: &[usize]| {
            match calls.fetch_add(1, Ordering::SeqCst) {
                1 => Err(Error::Data("cat.jpg is cut".into())),
                2 => panic!("no such disk"),
                3 => Ok(points(&numbers[1..])),
                _ => Ok(points(numbers)),
            }
        });
        let mut stream = stream.unwrap().with_threads(1).unwrap();
        stream.batch(0, 4).unwrap();
        for (step, expected) in [(1, "cat.jpg is cut"), (2, "no such disk"), (3, "[4, 1]")] {
            let error = stream.batch(step, 4).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(stream.batch(4, 4).unwrap().batch_size(), 4);
        assert_eq!(stream.batch(1, 4).unwrap().batch_size(), 4);
    }

    #[test]
    fn sets_and_settings_that_do_not_fit_are_refused() {
        let load = |numbers: &[usize]| Ok(points(numbers));
        assert!(
            PairStream::new(pairing(), forget(), load)
                .unwrap()
                .with_steps(0)
                .is_err()
        );
        let error = PairStream::new(pairing(), points(&[100]), load).unwrap_err();
        assert!(error.to_string().contains("[1], but [3]"), "{error}");
        let stream = || PairStream::new(pairing(), forget(), load).unwrap();
        assert!(stream().with_threads(0).is_err());
        assert!(stream().with_ahead(0).is_err());
        assert!(stream().batch(0, 0).is_err());
    }
}
