//! Every case under `tests/conformance` agrees with PyTorch and diffusers.

use std::path::PathBuf;

use siss::burn::tensor::Device;
use siss_support::conformance;
use siss_support::small::device;

/// Cases of hundreds of evaluations of a network that other cases have too: on a software driver
/// they take longer than all others together.
const ON_THE_CPU_ALONE: [&str; 2] = ["nll_continuous_std", "nll_discrete_std"];

/// Cases under `tests/conformance`. Whoever adds one counts it here.
const CARRIED: usize = 54;

#[test]
fn all_cases_agree() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let device = device();
    let cases = conformance::find(&[folder]).unwrap();
    assert_eq!(cases.len(), CARRIED);
    let (mut passed, mut left_out) = (0, 0);
    let mut failures = Vec::new();
    for path in cases {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if device != Device::flex() && ON_THE_CPU_ALONE.contains(&name.as_str()) {
            left_out += 1;
            continue;
        }
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
    assert_eq!(passed + left_out, CARRIED);
    let by_design = if device == Device::flex() {
        0
    } else {
        ON_THE_CPU_ALONE.len()
    };
    assert_eq!(left_out, by_design);
}
