//! The memory that the steps of a run take, measured by rehearsing micro-batches before it, and the
//! largest micro-batch that fits.

use std::error::Error;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use siss::trainer::Rehearsal;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The part of the available memory that a run takes at most: the rest is for what the allocator
/// leaves unused, and for other programs.
const USED_PART: f64 = 0.9;
/// Pause between two looks at the resident memory.
const PAUSE: Duration = Duration::from_micros(500);

/// The result of a pass, and what it took.
#[derive(Debug, Clone, Copy)]
pub struct Watched<T> {
    pub result: T,
    /// Resident memory of the process: before, and the most during the pass, in bytes.
    pub resident: [u64; 2],
    pub seconds: f64,
}

/// Rows run through the model at once as in a step.
pub type Rehearsed = Watched<Rehearsal>;

/// Memory of steps beyond that of a rehearsal, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Training {
    /// Moments, the other side's gradient, and a model before the run.
    pub kept: u64,
    /// The part of it that is held during measurements between and after the steps.
    pub measuring: u64,
    /// The gradient of a pass. Another holds their sum while a side is run in several
    /// micro-batches.
    pub gradient: u64,
    /// Further devices on the host, each of which holds as much again as a pass, and these bytes.
    pub replicas: [u64; 2],
}

impl Training {
    /// What steps take at least, from a pass over a quarter of the pixels of one image: activations
    /// grow with the pixels, attention faster.
    pub fn least(&self, quarter: &Rehearsed) -> u64 {
        let [before, peak] = quarter.resident;
        let activations = (peak - before).saturating_sub(self.gradient);
        before + self.gradient + 4 * activations + self.kept
    }
}

/// How many images are run at a time.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// At most; by `--micro-batch` if this is given.
    pub most: usize,
    /// Whether it must not be fewer.
    pub is_firm: bool,
    /// Run first to see what an image takes, because they are certain to be few.
    pub few: usize,
}

/// The peak of a run, and the micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    pub micro_batch: usize,
    /// Resident memory of the process at most, in bytes, in steps and in measurements.
    pub announced_memory_bytes: u64,
    /// Memory available to the process in total, in bytes.
    pub available_memory_bytes: u64,
    /// Images of the largest pass that was measured.
    pub measured: usize,
    /// Seconds that the passes of a step take, judging from it.
    pub seconds_per_step: f64,
    /// Images that the first step runs forward besides.
    #[serde(default)]
    pub checked: usize,
}

/// What cannot fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    pub micro_batch: usize,
    pub needed: u64,
    pub available: u64,
}

impl TooLarge {
    /// A run that does not fit with one image at a time.
    pub fn one(needed: u64, available: u64) -> Self {
        Self {
            micro_batch: 1,
            needed,
            available,
        }
    }
}

/// Plans a run. `rehearse` runs at most that many rows; `available`: bytes for the whole process.
pub fn plan(
    wanted: Wanted,
    training: Training,
    available: u64,
    mut rehearse: impl FnMut(usize) -> Result<Rehearsed>,
) -> Result<std::result::Result<MemoryPlan, TooLarge>> {
    let one = Peaks::of(&rehearse(1)?, training);
    let of_side = one.rehearsal.of_side.max(1);
    let most = wanted.most.min(of_side);
    // A row of the first pass is counted with the gradient of all parameters: more than it takes.
    let sure = (2..=most.min(wanted.few.max(2)))
        .rev()
        .find(|&rows| one.bound(rows) <= available);
    let several = match sure {
        Some(rows) => Some(Peaks::of(&rehearse(rows)?, training)),
        None => None,
    };
    let largest = several.unwrap_or(one);
    let (of_step, measured) = (largest.rehearsal.of_step, largest.rehearsal.rows);
    let peak = |rows: usize| match several {
        Some(several) => several.extended(&one, rows),
        None if rows == 1 => one.at(1, one.resident[1]),
        None => one.bound(rows),
    };
    let fits = |rows: &usize| peak(*rows) <= available;
    let least = if wanted.is_firm { most } else { 1 };
    let Some(rows) = (least..=most).rev().find(fits) else {
        return Ok(Err(TooLarge {
            micro_batch: least,
            needed: peak(least),
            available,
        }));
    };
    Ok(Ok(MemoryPlan {
        micro_batch: if rows == most { wanted.most } else { rows },
        announced_memory_bytes: peak(rows),
        available_memory_bytes: available,
        measured,
        seconds_per_step: largest.seconds * of_step as f64 / measured.max(1) as f64,
        checked: largest.rehearsal.of_check,
    }))
}

impl MemoryPlan {
    /// The same with measurements, which were rehearsed from `before` bytes to `peak`;
    /// `in_parallel` if on several threads.
    pub fn with_measuring(
        self,
        [before, peak]: [u64; 2],
        training: Training,
        in_parallel: bool,
    ) -> Self {
        let steps = self.announced_memory_bytes;
        Self {
            announced_memory_bytes: match in_parallel {
                // Each thread has a heap of its own for small tensors, and keeps what they leave.
                true => steps + peak.saturating_sub(before),
                false => steps.max(peak + training.measuring),
            },
            ..self
        }
    }
}

/// The peaks of steps that follow from a rehearsal.
#[derive(Debug, Clone, Copy)]
struct Peaks {
    rehearsal: Rehearsal,
    resident: [u64; 2],
    seconds: f64,
    training: Training,
}

impl Peaks {
    fn of(rehearsed: &Rehearsed, training: Training) -> Self {
        Self {
            rehearsal: rehearsed.result,
            resident: rehearsed.resident,
            seconds: rehearsed.seconds,
            training,
        }
    }

    /// The peak of steps whose passes of `rows` rows reach `pass` bytes.
    fn at(&self, rows: usize, pass: u64) -> u64 {
        let sum = if rows < self.rehearsal.of_side {
            self.training.gradient
        } else {
            0
        };
        let [replicas, kept] = self.training.replicas;
        let grown = pass.saturating_sub(self.resident[0]);
        pass + self.training.kept + sum + replicas * (grown + kept)
    }

    /// More than `rows` rows take, from one row.
    fn bound(&self, rows: usize) -> u64 {
        let [before, peak] = self.resident;
        self.at(rows, before + rows as u64 * peak.saturating_sub(before))
    }

    /// The peak of `rows` rows on the line through `one` row and these.
    fn extended(&self, one: &Self, rows: usize) -> u64 {
        let further = (self.rehearsal.rows - 1).max(1) as f64;
        let slope = self.resident[1].saturating_sub(one.resident[1]) as f64 / further;
        let pass = self.resident[1] as f64 + slope * (rows as f64 - self.rehearsal.rows as f64);
        self.at(rows, pass.max(0.0) as u64)
    }
}

/// Runs a pass, and watches the memory of the process meanwhile; `None` if the system does not
/// report it.
pub fn watched<T>(pass: impl FnOnce() -> siss::Result<T>) -> siss::Result<Option<Watched<T>>> {
    let Some(before) = resident_memory() else {
        return Ok(None);
    };
    let (is_done, began) = (AtomicBool::new(false), Instant::now());
    let (result, peak) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = before;
            while !is_done.load(Relaxed) {
                peak = peak.max(resident_memory().unwrap_or(0));
                thread::sleep(PAUSE);
            }
            peak
        });
        let result = pass();
        is_done.store(true, Relaxed);
        (result, watch.join().unwrap_or(before))
    });
    Ok(Some(Watched {
        result: result?,
        resident: [before, peak],
        seconds: began.elapsed().as_secs_f64(),
    }))
}

/// Bytes that this process may hold in total: what it holds, and most of what is free. `None` if
/// the system does not report it.
pub fn available_memory() -> Option<u64> {
    let free = status("/proc/meminfo", "MemAvailable:")?;
    let free = free.min(free_of_group().unwrap_or(u64::MAX));
    Some(resident_memory()? + (USED_PART * free as f64) as u64)
}

/// What a control group leaves to its processes, as in a container (Linux, version 2).
fn free_of_group() -> Option<u64> {
    let number = |name: &str| {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    Some(number("max")?.saturating_sub(number("current")?))
}

/// Resident memory of the process, in bytes (Linux).
pub fn resident_memory() -> Option<u64> {
    status("/proc/self/status", "VmRSS:")
}

/// Peak memory of the process, in bytes (Linux).
pub fn peak_memory() -> Option<u64> {
    status("/proc/self/status", "VmHWM:")
}

/// A size in a file of the system that has one in kibibytes per line.
fn status(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kibibytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAINING: Training = Training {
        kept: 300,
        measuring: 200,
        gradient: 100,
        replicas: [0, 0],
    };

    /// A model of 1,000 bytes with a gradient of 100, and 50 bytes per row.
    fn planned(
        most: usize,
        is_firm: bool,
        available: u64,
    ) -> (Vec<usize>, Option<MemoryPlan>, u64) {
        let wanted = Wanted {
            most,
            is_firm,
            few: 4,
        };
        let mut passes = Vec::new();
        let plan = plan(wanted, TRAINING, available, |rows| {
            let rows = rows.min(10);
            passes.push(rows);
            Ok(Rehearsed {
                result: Rehearsal {
                    rows,
                    of_side: 10,
                    of_step: 20,
                    of_check: 9,
                },
                resident: [1000, 1100 + 50 * rows as u64],
                seconds: 1.0,
            })
        });
        match plan.unwrap() {
            Ok(plan) => (passes, Some(plan), plan.announced_memory_bytes),
            Err(refused) => (passes, None, refused.needed),
        }
    }

    #[test]
    fn the_largest_micro_batch_that_fits_is_taken_and_not_more_than_the_step_has() {
        // All ten rows of a side at once need no sum of gradients.
        let (passes, plan, peak) = planned(16, false, 10_000);
        assert_eq!((passes, peak), (vec![1, 4], 1100 + 10 * 50 + 300));
        assert_eq!(plan.unwrap().micro_batch, 16);
        // 1,100 + 300 + 100 + 50 r ≤ 1,860
        let (passes, plan, peak) = planned(16, false, 1860);
        assert_eq!((passes, peak), (vec![1, 3], 1850));
        assert_eq!(plan.unwrap().micro_batch, 7);
        let (_, plan, peak) = planned(2, true, 1700);
        assert_eq!((plan.unwrap().micro_batch, peak), (2, 1600));
    }

    #[test]
    fn measurements_are_announced_with_what_is_held_meanwhile() {
        let (_, plan, peak) = planned(16, false, 10_000);
        let with = |resident, in_parallel| {
            let plan = plan
                .unwrap()
                .with_measuring(resident, TRAINING, in_parallel);
            plan.announced_memory_bytes
        };
        assert_eq!(with([1000, 1500], false), peak);
        assert_eq!(with([1000, 5000], false), 5000 + TRAINING.measuring);
        assert_eq!(with([1000, 1500], true), peak + 500);
    }

    #[test]
    fn what_does_not_fit_is_refused_after_one_row() {
        let (passes, plan, needed) = planned(16, false, 1500);
        assert_eq!((passes, plan, needed), (vec![1], None, 1550));
        let (_, plan, needed) = planned(8, true, 1860);
        assert_eq!((plan, needed), (None, 1900));
    }

    #[test]
    fn a_quarter_of_the_pixels_takes_a_quarter_of_the_activations() {
        let rehearsal = Rehearsal {
            rows: 1,
            of_side: 1,
            of_step: 2,
            of_check: 9,
        };
        let quarter = |resident| Rehearsed {
            result: rehearsal,
            resident,
            seconds: 1.0,
        };
        assert_eq!(
            TRAINING.least(&quarter([1000, 1100 + 50])),
            1000 + 100 + 200 + 300
        );
        assert_eq!(TRAINING.least(&quarter([1000, 1000])), 1000 + 100 + 300);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_pass_holds_is_seen() {
        const HELD: u64 = 256 << 20;
        // The system counts pages per processor and adds them up late, and other tests of this
        // process come and go.
        const UNCERTAIN: u64 = 64 << 20;
        let seen = watched(|| {
            let held = vec![1_u8; HELD as usize];
            thread::sleep(Duration::from_millis(50));
            assert_eq!(held.iter().map(|&byte| u64::from(byte)).sum::<u64>(), HELD);
            Ok(Rehearsal {
                rows: 1,
                of_side: 1,
                of_step: 2,
                of_check: 9,
            })
        });
        let [before, peak] = seen.unwrap().unwrap().resident;
        let held = HELD - UNCERTAIN..HELD + UNCERTAIN;
        assert!(held.contains(&(peak - before)), "{before} {peak}");
        let available = available_memory().unwrap();
        assert!(available > resident_memory().unwrap());
        assert!(peak_memory().unwrap() + UNCERTAIN >= peak);
    }
}
