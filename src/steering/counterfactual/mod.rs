//! The loss that a model would have on a point it had never seen, predicted without training one.

mod caps;
mod config;
mod data;
mod fit;
mod form;
mod gain;
mod grid;
mod groups;
mod ideal;
mod in_pieces;
mod linear;
mod local;
mod probe;
#[cfg(test)]
mod tests;

pub use config::CounterfactualConfig;
pub use data::CounterfactualData;
pub use fit::Counterfactual;
pub use form::IdealForm;
pub use groups::Groups;
