#![no_main]

#[path = "../../tests/readers/mod.rs"]
mod readers;

const EXTENSIONS: [&str; 4] = ["png", "jpg", "bmp", "webp"];

// The first byte picks the format.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((first, bytes)) = bytes.split_first() {
        let _ = readers::picture(bytes, EXTENSIONS[usize::from(*first) % 4]);
    }
});
