//! Networks in the layout of diffusers.
//!
//! Each network has the parameters of its Python namesake under the same names, computes the same
//! function, and reads and writes the same folders: `config.json` next to
//! `diffusion_pytorch_model.safetensors`. [`ModelFolder`] finds these folders in a path that a user
//! gives, and the scheduler that belongs to the network.
//!
//! With the feature `pytorch` a network also reads `diffusion_pytorch_model.bin` if there is no
//! other file: the pickle is parsed, never executed. Configurations are read strictly: a setting
//! that would change the computation and is not implemented is refused by name, never ignored.

mod export;
#[cfg(feature = "flex-kernels")]
pub(crate) mod flex;
mod folder;
mod index;
mod layers;
mod location;
mod note;
pub(crate) mod ops;
mod unet2d;

pub use export::{LeftOut, save_pipeline};
#[cfg(feature = "flex-kernels")]
#[doc(hidden)]
pub use flex::use_flex_kernels;
#[cfg(feature = "metrics")]
pub(crate) use folder::safe_tensors;
pub use index::{PipelineIndex, PipelinePart};
pub use location::ModelFolder;
pub use note::LoadNote;
pub use unet2d::{DownBlockType, UNet2d, UNet2dConfig, UpBlockType};
