//! Networks in the layout of diffusers.
//!
//! Each network has the parameters of its Python namesake under the same names, computes the same
//! function, and reads and writes the same folders: `config.json` next to
//! `diffusion_pytorch_model.safetensors`. [`ModelFolder`] finds these folders in a path that a user
//! gives, and the scheduler that belongs to the network.
//!
//! A network computes in the type of its weights, which are f32 when it is read. If they are
//! converted to bf16 or f16, it takes and gives numbers of other types all the same.
//!
//! With the feature `pytorch` a network also reads `diffusion_pytorch_model.bin` if there is no
//! other file: the pickle is parsed, never executed. Configurations are read strictly: a setting
//! that would change the computation and is not implemented is refused by name, never ignored.

mod autoencoder_kl;
mod clip;
mod condition;
#[cfg(all(feature = "fused", any(feature = "wgpu", feature = "cuda")))]
mod cube;
mod dit;
mod export;
#[cfg(feature = "flex-kernels")]
pub(crate) mod flex;
mod folder;
#[cfg(test)]
mod full_size;
mod index;
mod latents;
mod layers;
mod location;
mod lora;
mod note;
pub(crate) mod operation_check;
pub(crate) mod ops;
mod sd3;
mod settings;
mod single_file;
pub(crate) mod trace;
mod unet2d;
mod unet2d_condition;

pub use autoencoder_kl::{AutoencoderKl, AutoencoderKlConfig, LatentDistribution};
#[cfg(feature = "text")]
pub use clip::ClipTokenizer;
pub use clip::{ClipActivation, ClipTextConfig, ClipTextEncoder, EncodedText, PromptVariation};
pub use condition::{ClassCondition, TextCondition};
pub use dit::{Dit, DitConfig};
pub use export::{LeftOut, PipelineNetwork, save_pipeline};
#[cfg(feature = "flex-kernels")]
#[doc(hidden)]
pub use flex::use_flex_kernels;
#[cfg(feature = "metrics")]
pub(crate) use folder::safe_tensors;
pub use index::{PipelineIndex, PipelinePart};
pub use latents::LatentCache;
pub use location::ModelFolder;
pub use lora::{Lora, LoraPart};
pub use note::LoadNote;
pub use sd3::{Sd3Transformer, Sd3TransformerConfig};
pub use settings::{PerStage, Size};
pub use single_file::SingleFile;
pub use unet2d::{
    ClassEmbedType, ClassUNet2d, DownBlockType, ResampleType, TimeScaleShift, UNet2d, UNet2dConfig,
    UpBlockType,
};
pub use unet2d_condition::{
    AdditionEmbedType, ConditionDownBlockType, ConditionUpBlockType, UNet2dCondition,
    UNet2dConditionConfig,
};
