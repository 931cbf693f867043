//! Every case under `tests/conformance` agrees with PyTorch and diffusers.

use std::path::PathBuf;

use siss_support::conformance;
use siss_support::small::device;

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
    assert!(passed >= 37, "only {passed} cases were found");
}
