//! Devices by name, and the types that an application needs to share its own GPU with the crate.
//!
//! A program that creates its own `burn::tensor::Device` needs nothing from this module.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use crate::error::{Error, Result, choices};
use crate::text::serde_as_text;

/// Device and set-up types of the wgpu backend, for running on a device that the application has
/// opened: see `init_device` and `WgpuSetup`.
#[cfg(feature = "wgpu")]
pub use burn_wgpu::{RuntimeOptions, WgpuDevice, WgpuSetup, graphics, init_device, init_setup};

/// The device type of the CUDA backend.
#[cfg(feature = "cuda")]
pub use burn_cuda::CudaDevice;

/// A device by name, for configuration files and command lines: `flex`, `wgpu`, `cuda:0`.
///
/// A program must name its device; the crate does not choose one from the backends that are
/// compiled in.
///
/// # Example
/// ```
/// use siss::backend::DeviceSpec;
///
/// let device = "flex".parse::<DeviceSpec>()?.device()?;
/// assert!("tpu".parse::<DeviceSpec>().is_err());
/// # Ok::<(), siss::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The CPU, in pure Rust.
    #[default]
    Flex,
    /// The GPU that wgpu prefers, or the software driver if there is no GPU.
    Wgpu,
    /// An NVIDIA GPU by its index.
    Cuda(usize),
}

impl DeviceSpec {
    /// Opens the device.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`] if the device's feature is not compiled in. Missing hardware is
    /// noticed only when the first tensor is created: burn panics then.
    pub fn device(self) -> Result<Device> {
        match self {
            #[cfg(feature = "flex")]
            DeviceSpec::Flex => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            DeviceSpec::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda(index) => Ok(Device::cuda(index)),
            #[allow(
                unreachable_patterns,
                reason = "reached where a backend is not compiled in"
            )]
            missing => Err(Error::UnknownDevice {
                spec: missing.to_string(),
                reason: format!(
                    "build with the feature `{}`; this build has: {}",
                    missing.feature(),
                    compiled_in().join(", ")
                ),
            }),
        }
    }

    fn feature(self) -> &'static str {
        match self {
            DeviceSpec::Flex => "flex",
            DeviceSpec::Wgpu => "wgpu",
            DeviceSpec::Cuda(_) => "cuda",
        }
    }
}

/// Whether this is burn's CPU backend, with or without autodiff.
pub(crate) fn is_flex(device: &Device) -> bool {
    matches!(DeviceSpec::Flex.device(), Ok(flex) if flex == *device)
}

fn compiled_in() -> Vec<&'static str> {
    [
        ("flex", cfg!(feature = "flex")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("cuda", cfg!(feature = "cuda")),
    ]
    .into_iter()
    .filter_map(|(name, compiled)| compiled.then_some(name))
    .collect()
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Cuda(index) => write!(formatter, "cuda:{index}"),
            other => formatter.write_str(other.feature()),
        }
    }
}

/// How a device is written, and the function that reads it.
type Form = (&'static str, fn(&str) -> Option<DeviceSpec>);

const FORMS: [Form; 4] = [
    ("flex", |text| (text == "flex").then_some(DeviceSpec::Flex)),
    ("wgpu", |text| (text == "wgpu").then_some(DeviceSpec::Wgpu)),
    ("cuda", |text| {
        (text == "cuda").then_some(DeviceSpec::Cuda(0))
    }),
    ("cuda:INDEX", |text| {
        let index = text.strip_prefix("cuda:")?.parse().ok()?;
        Some(DeviceSpec::Cuda(index))
    }),
];

impl FromStr for DeviceSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = FORMS.iter().find_map(|(_, read)| read(text));
        found.ok_or_else(|| Error::UnknownDevice {
            spec: text.into(),
            reason: format!("use {}", choices(&FORMS.map(|(form, _)| form))),
        })
    }
}

serde_as_text!(DeviceSpec);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for spec in [DeviceSpec::Flex, DeviceSpec::Wgpu, DeviceSpec::Cuda(3)] {
            assert_eq!(spec.to_string().parse::<DeviceSpec>().unwrap(), spec);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(json, format!("\"{spec}\""));
            assert_eq!(serde_json::from_str::<DeviceSpec>(&json).unwrap(), spec);
            // The message for an unknown name lists the known ones.
            let error = "tpu".parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains(spec.feature()), "{error}");
        }
        for bad in ["", "tpu", "cuda:", "cuda:x", "flex:0"] {
            let error = bad.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_device_that_is_not_compiled_in_says_which_feature_it_needs() {
        let error = DeviceSpec::Cuda(0).device().unwrap_err().to_string();
        assert!(
            error.contains("cuda:0") && error.contains("feature `cuda`"),
            "{error}"
        );
    }
}
