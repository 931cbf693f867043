//! The numbers of the next step, drawn on threads of their own while a GPU works on this one.

use std::thread::{self, JoinHandle};

use rand::RngExt;
use rand_distr::{Distribution, StandardNormal, StandardUniform};

use super::{Stream, keyed_rng};

/// A number for each element of a batch, and all that they depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block<const D: usize> {
    pub shape: [usize; D],
    pub seed: u64,
    pub step: u64,
    /// Row `i` of the batch has the key of row `first_row + i`.
    pub first_row: u64,
    pub stream: Stream,
}

impl<const D: usize> Block<D> {
    /// Draws them: uniform in `[0, 1)` for [`Stream::Uniform`], else standard normal.
    pub fn draw(&self) -> Vec<f32> {
        match self.stream {
            Stream::Uniform => self.of(StandardUniform),
            _ => self.normal(),
        }
    }

    /// Draws standard normal ones, whatever the stream.
    pub fn normal(&self) -> Vec<f32> {
        self.of(StandardNormal)
    }

    fn of(&self, distribution: impl Distribution<f32> + Copy) -> Vec<f32> {
        let elements: usize = self.shape[1..].iter().product();
        let mut values = Vec::with_capacity(self.shape[0] * elements);
        for row in (self.first_row..).take(self.shape[0]) {
            let rng = keyed_rng(self.seed, self.step, row, self.stream);
            values.extend(rng.sample_iter(distribution).take(elements));
        }
        values
    }
}

/// Blocks of the step that comes next, one for each stream.
///
/// Numbers have keys: what was drawn ahead is what would be drawn now, and what does not fit, after a change of the batch
/// or of the step, is left.
#[derive(Debug, Default)]
pub(crate) struct DrawnAhead<const D: usize> {
    blocks: Vec<(Block<D>, JoinHandle<Vec<f32>>)>,
}

impl<const D: usize> DrawnAhead<D> {
    /// The numbers of a block. Those of the step after it are begun.
    pub fn take(&mut self, block: Block<D>) -> Vec<f32> {
        let of_stream = |(ahead, _): &(Block<D>, _)| ahead.stream == block.stream;
        let position = self.blocks.iter().position(of_stream);
        let ahead = position.map(|position| self.blocks.swap_remove(position));
        let drawn = ahead.filter(|(ahead, _)| *ahead == block);
        let values = drawn.and_then(|(_, thread)| thread.join().ok());

        let step = block.step.wrapping_add(1);
        let next = Block { step, ..block };
        let name = "siss: draws".to_owned();
        // Without a thread the next step draws its numbers itself.
        if let Ok(thread) = thread::Builder::new().name(name).spawn(move || next.draw()) {
            self.blocks.push((next, thread));
        }
        values.unwrap_or_else(|| block.draw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(shape: [usize; 2], step: u64, stream: Stream) -> Block<2> {
        let (seed, first_row) = (7, 0);
        Block {
            shape,
            seed,
            step,
            first_row,
            stream,
        }
    }

    /// Other batches, steps out of order, a second stream: the numbers are always those of the key.
    #[test]
    fn numbers_drawn_ahead_are_those_of_their_key() {
        let mut ahead = DrawnAhead::default();
        let (wide, narrow) = ([4, 300], [2, 300]);
        let steps = [(0, wide), (1, wide), (2, narrow), (3, wide), (9, wide)];
        for (step, shape) in steps.into_iter().chain([(9, wide), (10, wide)]) {
            for stream in [Stream::Noise, Stream::ForgetNoise, Stream::Uniform] {
                let block = block(shape, step, stream);
                assert_eq!(ahead.take(block), block.draw(), "{block:?}");
            }
        }
    }

    #[test]
    fn the_next_step_finds_its_numbers_drawn() {
        let mut ahead = DrawnAhead::default();
        let first = block([2, 3], 0, Stream::Noise);
        ahead.take(first);
        assert_eq!(ahead.blocks.len(), 1);
        let (next, thread) = ahead.blocks.pop().unwrap();
        assert_eq!(next, Block { step: 1, ..first });
        assert_eq!(thread.join().unwrap(), next.draw());
        // Marked numbers come out again: they are taken, and not drawn anew.
        let marked = thread::spawn(|| vec![0.0; 6]);
        ahead.blocks.push((next, marked));
        assert_eq!(ahead.take(next), [0.0; 6]);
        assert_eq!(ahead.blocks.len(), 1);
    }
}
