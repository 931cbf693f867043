#![no_main]

#[path = "../../tests/readers/mod.rs"]
mod readers;

const FILES: [&str; 4] = ["state.json", "model.bpk", "ema.bpk", "optimizer.bpk"];

// The first byte picks the file that is not as it was.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((first, bytes)) = bytes.split_first() {
        let _ = readers::checkpoint::sealed(FILES[usize::from(*first) % 4], bytes);
    }
});
