//! Notes about how a model was found and read.

use std::fmt;
use std::path::PathBuf;

use crate::files::path_text;

/// A decision that was made while a model was found and read, for a program to report to its user.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum LoadNote {
    /// One of several snapshots of a download was chosen.
    Snapshot {
        /// The folder of the snapshot.
        folder: PathBuf,
    },
    /// A checkpoint holds the weights and their moving average, and the weights were chosen.
    AverageBeside {
        /// The network that was chosen.
        taken: PathBuf,
        /// The other one.
        average: PathBuf,
    },
    /// A single file holds the weights and their moving average, and the weights were taken.
    AverageInside {
        /// The file.
        file: PathBuf,
    },
    /// The scheduler is not in the given folder.
    SchedulerElsewhere {
        /// Its file.
        file: PathBuf,
    },
    /// Nothing says what the network predicts, and the noise was assumed.
    NoiseAssumed {
        /// The scheduler's file, if there is one; it is of a scheduler that is not supported.
        scheduler: Option<PathBuf>,
    },
    /// One of several files with weights was read, or the only one is not a plain file but a
    /// variant or in parts.
    Weights {
        /// The file, or the index of its parts.
        read: PathBuf,
        /// Names of the others, which were not read.
        passed_over: Vec<String>,
    },
    /// All names of tensors began with the prefix of a PyTorch wrapper, which was removed.
    Prefix {
        /// The removed prefix.
        prefix: String,
    },
    /// The network was trained with dropout, and runs without it.
    Dropout {
        /// The probability in its configuration, which is kept.
        probability: f64,
    },
}

impl fmt::Display for LoadNote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadNote::Snapshot { folder } => {
                write!(formatter, "the model is the snapshot {}", path_text(folder))
            }
            LoadNote::AverageBeside { taken, average } => write!(
                formatter,
                "the network is {}; the moving average of its weights is next to it; to unlearn that one, give {}",
                path_text(taken),
                path_text(average)
            ),
            LoadNote::AverageInside { file } => write!(
                formatter,
                "{} also holds the moving average of the weights; the weights themselves were taken",
                path_text(file)
            ),
            LoadNote::SchedulerElsewhere { file } => {
                write!(formatter, "the scheduler is {}", path_text(file))
            }
            LoadNote::NoiseAssumed { scheduler } => {
                match scheduler {
                    None => formatter.write_str("the network is without its scheduler's file")?,
                    Some(file) => {
                        write!(formatter, "{} is not supported", path_text(file))?;
                    }
                }
                formatter.write_str(
                    ", so that it is assumed to predict the noise; `UNet2d::with_prediction_type` says what it predicts",
                )
            }
            LoadNote::Weights { read, passed_over } => {
                write!(formatter, "the weights are those of {}", path_text(read))?;
                match passed_over.as_slice() {
                    [] => Ok(()),
                    others => write!(formatter, ", not those of {}", others.join(", ")),
                }
            }
            LoadNote::Prefix { prefix } => write!(
                formatter,
                "all names of tensors began with `{prefix}`, which was removed"
            ),
            LoadNote::Dropout { probability } => write!(
                formatter,
                "the network was trained with a dropout of {probability} and runs without it; its configuration keeps it"
            ),
        }
    }
}
