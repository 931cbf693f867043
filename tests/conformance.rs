//! Every case under `tests/conformance` agrees with PyTorch and diffusers.

use std::path::PathBuf;

use siss::backend::DeviceSpec;
use siss_support::conformance;

/// `SISS_TEST_DEVICE` chooses another device than the CPU, as in `wgpu`.
fn device() -> burn::tensor::Device {
    let spec = std::env::var("SISS_TEST_DEVICE").unwrap_or_else(|_| "flex".into());
    spec.parse::<DeviceSpec>().unwrap().device().unwrap()
}

#[test]
fn all_cases_agree() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let device = device();
    let mut passed = 0;
    let mut failures = Vec::new();
    for path in conformance::find(&[folder]).unwrap() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let outcome = conformance::run(&path, &device);
        let line = outcome.line(&name);
        println!("{line}");
        assert!(!outcome.skipped(), "{name} is carried and must run");
        if outcome.passed() {
            passed += 1;
        } else {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(passed >= 24, "only {passed} cases were found");
}
