//! Host memory that checkpoints and data sets use temporarily, counted by the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use siss::checkpoint::model_fingerprint;
use siss::data::{DataCheck, PairStream, Pairing};
use siss::draws::{Stream, normal_noise};
use siss::{Checkpoints, DdpmScheduler, Denoiser, PairSampler, SissTrainer};

/// The system's allocator, which counts the bytes in use and their peak.
struct Counting;

static IN_USE: AtomicIsize = AtomicIsize::new(0);
static MOST: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    let now = IN_USE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    MOST.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: every call is passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // If the block moves, both blocks exist for a while.
        count(size as isize);
        count(-(layout.size() as isize));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Ensures that only one test at a time is counted.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

const MIB: isize = 1 << 20;

/// The result, and the peak of the bytes in use beyond those in use before.
fn peak<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = IN_USE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = work();
    (result, MOST.load(Ordering::Relaxed) - before)
}

/// Layers of 2 MiB each.
const WIDTH: usize = 724;
const LAYERS: usize = 30;

#[derive(Module, Debug)]
struct Deep {
    layers: Vec<Linear>,
}

impl Deep {
    fn new() -> Self {
        let layer = |_| LinearConfig::new(WIDTH, WIDTH).init(&Device::flex());
        Self {
            layers: (0..LAYERS).map(layer).collect(),
        }
    }
}

impl Denoiser<2> for Deep {
    type Condition = ();

    fn predict(&self, noisy: Tensor<2>, _: Tensor<1>, _: &()) -> Tensor<2> {
        let layers = self.layers.iter();
        layers.fold(noisy, |hidden, layer| layer.forward(hidden))
    }
}

fn points(rows: usize, elements: usize, part: u64) -> Tensor<2> {
    let (stream, device) = (Stream::Evaluation, Device::flex());
    normal_noise([rows, elements], 1, part, 0, stream, &device)
}

fn trainer(model: Deep) -> SissTrainer<Deep, 2> {
    let builder = SissTrainer::builder(model, DdpmScheduler::linear(1000).unwrap());
    builder.ema(0.99).learning_rate(1e-6).build().unwrap()
}

/// Weights of 60 MiB, their average, and 120 MiB of AdamW's state.
#[test]
fn a_checkpoint_is_written_and_read_in_little_more_memory_than_it_must() {
    let _alone = alone();
    let scratch = tempfile::tempdir().unwrap();
    let model = Deep::new();
    let weights = 4 * model.num_params() as isize;
    let mut first = trainer(model.clone());
    let pairs = PairSampler::new(points(4, WIDTH, 0), points(1, WIDTH, 1), 0).unwrap();
    first.step(pairs.batch(0, 2).unwrap()).unwrap();

    let mut checkpoints = Checkpoints::new(scratch.path()).unwrap();
    let (saved, saving) = peak(|| checkpoints.save(&mut first, &()));
    let largest = std::fs::metadata(saved.unwrap().join("optimizer.bpk"));
    let largest = largest.unwrap().len() as isize;
    assert!((2 * weights..2 * weights + MIB).contains(&largest));
    drop(first);

    let mut second = trainer(model);
    let before = IN_USE.load(Ordering::Relaxed);
    let (resumed, resuming) = peak(|| checkpoints.resume(&mut second));
    assert_eq!(resumed.unwrap().unwrap().step, 1);
    let kept = IN_USE.load(Ordering::Relaxed) - before;
    let (_, fingerprint) = peak(|| model_fingerprint(second.model()).unwrap());
    println!(
        "weights {} MiB, largest file {} MiB: saving took {} MiB, resuming {} MiB, of which {} MiB stay, a fingerprint {} MiB",
        weights / MIB,
        largest / MIB,
        saving / MIB,
        resuming / MIB,
        kept / MIB,
        fingerprint / MIB
    );
    // A few parameters of 2 MiB, regardless of their number.
    assert!(saving < 16 * MIB, "{saving}");
    assert!(fingerprint < 16 * MIB, "{fingerprint}");
    assert!(resuming - kept < largest + 16 * MIB, "{resuming} {kept}");
}

/// Two sets of 64 MiB in total: the search through them holds a chunk of 1 MiB and a few numbers.
#[test]
fn a_data_set_is_looked_through_without_a_copy_of_it() {
    let _alone = alone();
    let (retain, forget) = (points(15_000, 1024, 0), points(1_384, 1024, 1));
    let (pairs, building) = peak(|| PairSampler::new(retain.clone(), forget, 0).unwrap());
    let (_, fingerprint) = peak(|| pairs.fingerprint().unwrap());
    let few = points(3, 1024, 2);
    let (_, checking) = peak(|| DataCheck::default().run(&retain, &few).unwrap());
    let (_, batch) = peak(|| pairs.batch(7, 16).unwrap());
    println!(
        "64 MiB of points: sampler {} KiB, fingerprint {} KiB, check {} KiB, batch {} KiB",
        building / 1024,
        fingerprint / 1024,
        checking / 1024,
        batch / 1024
    );
    assert!(building < 4 * MIB, "{building}");
    assert!(fingerprint < 4 * MIB, "{fingerprint}");
    assert!(checking < 8 * MIB, "{checking}");
    assert!(batch < MIB, "{batch}");
}

/// Ten million points, of which no list is created.
#[test]
fn who_meets_whom_takes_the_memory_of_a_batch() {
    let _alone = alone();
    let pairing = Pairing::new(10_000_000, 1_000, 0).unwrap();
    let (pairs, taken) = peak(|| pairing.pairs(123_456, 32).unwrap());
    assert_eq!(pairs.retain.len(), 32);
    assert!(taken < 8 * 1024, "{taken}");
}

/// 200,000 small pictures, read from a file as they are needed: memory holds the batches that are
/// ahead, in whatever step.
#[test]
fn a_stream_holds_no_more_than_the_batches_ahead() {
    const PICTURES: usize = 200_000;
    const PIXELS: usize = 64;
    const BATCH: usize = 64;
    let _alone = alone();
    let mut file = tempfile::tempfile().unwrap();
    let pixels: Vec<u8> = (0..PICTURES * PIXELS).map(|at| (at % 251) as u8).collect();
    file.write_all(&pixels).unwrap();
    drop(pixels);
    let file = Mutex::new(file);

    let load = move |numbers: &[usize]| {
        let (mut file, mut bytes) = (file.lock().unwrap(), vec![0; numbers.len() * PIXELS]);
        for (&number, bytes) in numbers.iter().zip(bytes.chunks_exact_mut(PIXELS)) {
            file.seek(SeekFrom::Start((number * PIXELS) as u64))
                .unwrap();
            file.read_exact(bytes).unwrap();
        }
        let values: Vec<f32> = bytes
            .into_iter()
            .map(|byte| f32::from(byte) / 255.0)
            .collect();
        Ok(
            Tensor::<1>::from_data(values.as_slice(), &Device::flex()).reshape([
                numbers.len(),
                1,
                8,
                8,
            ]),
        )
    };
    let pairing = Pairing::new(PICTURES, 1, 0).unwrap();
    let forget = Tensor::<4>::zeros([1, 1, 8, 8], &Device::flex());
    let mut stream = PairStream::new(pairing, forget, load).unwrap();
    let batch_bytes = (BATCH * PIXELS * 4) as isize;
    let mut used = Vec::new();
    for step in 0..PICTURES / BATCH {
        let batch = stream.batch(step as u64, BATCH).unwrap();
        drop(batch);
        if step == 20 || step + 1 == PICTURES / BATCH {
            used.push(IN_USE.load(Ordering::Relaxed));
        }
        if step == 20 {
            MOST.store(IN_USE.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
    let growth = used[1] - used[0];
    let peak = MOST.load(Ordering::Relaxed) - used[0];
    println!("a batch has {batch_bytes} bytes; grown by {growth}, at most by {peak}");
    // Six batches as bytes, numbers and tensors at once, and not the 51 MB of all pictures.
    assert!(growth < 12 * batch_bytes, "{growth}");
    assert!(peak < 40 * batch_bytes, "{peak}");
}
