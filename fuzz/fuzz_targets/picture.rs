#![no_main]

use siss_support::readers;

// The first byte picks the ending of the name; what a picture is, its content says.
const ENDINGS: [&str; 4] = ["png", "tif", "heic", "txt"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((first, bytes)) = bytes.split_first() {
        let _ = readers::picture(bytes, ENDINGS[usize::from(*first) % 4]);
    }
});
