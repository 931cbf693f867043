#![no_main]

use siss_support::readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = readers::grey_png(bytes);
});
