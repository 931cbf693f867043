//! What a model knows of data: whether the data are prepared as it was trained on them.

mod model_check;

pub use model_check::{
    KnownMirror, ModelCheck, ModelFinding, ModelReport, Preprocessing, refuse_relearning,
};
