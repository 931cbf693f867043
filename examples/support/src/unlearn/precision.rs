//! The precision of the weights that are trained.

use siss::backend::DeviceSpec;
use siss::burn::module::Module;
use siss::burn::tensor::FloatDType;

use crate::cast::cast;
use crate::unlearn::options::Options;

/// Refuses weights in bf16 on a device that does not compute in it.
pub fn check(options: &Options) -> Result<(), String> {
    if !options.bf16_weights {
        return Ok(());
    }
    let (first, others) = options.all_devices();
    for spec in [first].into_iter().chain(others.iter().copied()) {
        refuse_without_bf16(spec, |spec| {
            let device = spec.device().map_err(|error| error.to_string())?;
            Ok(device.supports_dtype(FloatDType::BF16))
        })?;
    }
    Ok(())
}

fn refuse_without_bf16(
    spec: DeviceSpec,
    computes_in_it: impl Fn(DeviceSpec) -> Result<bool, String>,
) -> Result<(), String> {
    match computes_in_it(spec)? {
        true => Ok(()),
        false => Err(format!(
            "--bf16-weights: {spec} does not compute in bf16; leave it out"
        )),
    }
}

/// The model as it is trained.
pub fn of_training<M: Module>(model: M, options: &Options) -> M {
    match options.bf16_weights {
        true => cast(model, FloatDType::BF16),
        false => model,
    }
}

/// The model as it is read from a file, and measured and saved.
pub fn of_file<M: Module>(model: M, options: &Options) -> M {
    match options.bf16_weights {
        true => cast(model, FloatDType::F32),
        false => model,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_bf16_is_refused_by_name() {
        let error = refuse_without_bf16(DeviceSpec::Cuda(3), |_| Ok(false)).unwrap_err();
        assert!(
            error.contains("--bf16-weights") && error.contains("cuda:3"),
            "{error}"
        );
        refuse_without_bf16(DeviceSpec::Flex, |_| Ok(true)).unwrap();
    }
}
