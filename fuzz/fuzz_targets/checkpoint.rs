#![no_main]

use siss_support::readers;

const FILES: [&str; 4] = ["state.json", "model.bpk", "ema.bpk", "optimizer.bpk"];

// The library catches what burn panics at in an optimiser's state, which libFuzzer's hook would take for a crash. A panic
// that is not caught still is one.
static QUIET: std::sync::Once = std::sync::Once::new();

// The first byte picks the file that is not as it was.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    if let Some((first, bytes)) = bytes.split_first() {
        let _ = readers::checkpoint::sealed(FILES[usize::from(*first) % 4], bytes);
    }
});
