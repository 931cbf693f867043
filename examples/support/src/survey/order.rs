//! In which order points are forgotten.

use std::ops::Range;

use clap::ValueEnum;

/// How many requests the points come in.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One request for all points.
    Together,
    /// One request after another, each to the model that the one before it left. Neither the
    /// points of earlier requests nor what was predicted of them is left.
    InTurn,
    /// The same, except that the points of earlier requests are forgotten again with each new one.
    Replay,
}

impl Order {
    /// The points that each request is the first one for, `of_each` where they come in turn, at
    /// least 1; of the last request the rest.
    pub fn requests(self, points: usize, of_each: usize) -> Vec<Range<usize>> {
        let of_each = match self {
            Order::Together => points.max(1),
            Order::InTurn | Order::Replay => of_each,
        };
        let firsts = (0..points).step_by(of_each);
        firsts
            .map(|first| first..points.min(first + of_each))
            .collect()
    }

    /// The points that are in the forget set of a request.
    pub fn forgotten(self, new: &Range<usize>) -> Range<usize> {
        match self {
            Order::Together | Order::InTurn => new.clone(),
            Order::Replay => 0..new.end,
        }
    }

    /// Ends the name of a method.
    pub fn suffix(self, of_each: usize) -> String {
        let groups = match of_each {
            1 => String::new(),
            _ => format!(" by {of_each}"),
        };
        match self {
            Order::Together => String::new(),
            Order::InTurn => format!(" in turn{groups}"),
            Order::Replay => format!(" in turn{groups} with replay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_one_request_and_replay_repeats_the_earlier_ones() {
        let forgotten = |order: Order, of_each: usize| {
            let requests = order.requests(3, of_each).into_iter();
            let forgotten = requests.map(|new| order.forgotten(&new));
            let ends = forgotten.map(|points| [points.start, points.end]);
            ends.collect::<Vec<_>>()
        };
        assert_eq!(forgotten(Order::Together, 1), [[0, 3]]);
        assert_eq!(forgotten(Order::Together, 2), [[0, 3]]);
        assert_eq!(forgotten(Order::InTurn, 1), [[0, 1], [1, 2], [2, 3]]);
        assert_eq!(forgotten(Order::InTurn, 2), [[0, 2], [2, 3]]);
        assert_eq!(forgotten(Order::Replay, 1), [[0, 1], [0, 2], [0, 3]]);
        assert_eq!(forgotten(Order::Replay, 2), [[0, 2], [0, 3]]);
    }
}
