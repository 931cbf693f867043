//! The files of the main example load, and broken ones are refused.

use std::io::Write;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use image::{DynamicImage, RgbImage};
use siss::Error;
use siss::burn::tensor::{Device, Tensor};
use siss_support::digits;

fn values(images: Tensor<4>) -> Vec<f32> {
    images.try_into_vec_as::<f32>().unwrap()
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
}

#[test]
fn the_digits_are_complete_in_range_and_alike_in_both_parts() {
    let digits = digits::load_digits(Path::new(digits::ASSETS), &Device::flex()).unwrap();
    assert_eq!(digits.retain.dims(), [9_000, 1, 28, 28]);
    assert_eq!(digits.heldout.dims(), [1_000, 1, 28, 28]);
    let (retain, heldout) = (values(digits.retain), values(digits.heldout));
    assert!((mean(&retain) - -0.737_638_6).abs() < 1e-5);
    assert!((mean(&heldout) - -0.738_737_9).abs() < 1e-5);
    let images = || retain.chunks_exact(784).chain(heldout.chunks_exact(784));
    for image in images() {
        let lowest = image.iter().copied().fold(f32::INFINITY, f32::min);
        let highest = image.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(lowest == -1.0 && (0.99..=1.0).contains(&highest));
    }
}

#[test]
fn no_digit_is_there_twice() {
    let digits = digits::load_digits(Path::new(digits::ASSETS), &Device::flex()).unwrap();
    let (retain, heldout) = (values(digits.retain), values(digits.heldout));
    let images = retain.chunks_exact(784).chain(heldout.chunks_exact(784));
    let bits = images.map(|image| {
        image
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    });
    assert_eq!(bits.collect::<std::collections::HashSet<_>>().len(), 10_000);
}

/// The literals come from image 1 of Fashion-MNIST's training file.
#[test]
fn the_tshirt_is_the_one_of_the_paper() {
    let tshirt = digits::load_tshirt(Path::new(digits::ASSETS), &Device::flex()).unwrap();
    assert_eq!(tshirt.dims(), [1, 1, 28, 28]);
    let tshirt = values(tshirt);
    assert!((mean(&tshirt) - -0.153_681_5).abs() < 1e-6);
    assert!((tshirt[14 * 28 + 14] - (204.0 / 127.5 - 1.0)).abs() < 1e-6);
    assert_eq!(tshirt.iter().copied().fold(f32::INFINITY, f32::min), -1.0);
    assert_eq!(
        tshirt.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        1.0
    );
}

/// An IDX file with the given header fields, followed by `pixels` bytes.
fn idx(header: [u32; 4], pixels: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_be_bytes).collect();
    bytes.extend((0..pixels).map(|index| index as u8));
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The error for a file with these bytes, which must name the file.
fn refusal<T: std::fmt::Debug>(bytes: &[u8], read: fn(&Path) -> siss::Result<T>) -> Error {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file-under-test");
    std::fs::write(&path, bytes).unwrap();
    let error = read(&path).unwrap_err();
    assert!(error.to_string().contains("file-under-test"), "{error}");
    error
}

#[test]
fn sound_idx_files_are_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("digits.gz");
    std::fs::write(&path, gzip(&idx([0x803, 2, 28, 28], 1_568))).unwrap();
    let pixels = digits::read_idx_images(&path).unwrap();
    assert!(pixels.len() == 1_568 && pixels[5] == 5 && pixels[300] == 44);
}

#[test]
fn idx_files_with_other_headers_or_lengths_are_refused() {
    let cases = [
        ([0x801, 2, 28, 28], 1_568, "0x00000801"),
        ([0x803, 2, 28, 27], 1_568, "28x27"),
        ([0x803, 2, 32, 28], 1_568, "32x28"),
        ([0x803, 2, 28, 28], 1_567, "ends after 1567"),
        ([0x803, 2, 28, 28], 1_569, "continues after"),
        ([0x803, 100_001, 28, 28], 0, "at most 100000"),
        ([0x803, u32::MAX, 28, 28], 0, "at most 100000"),
    ];
    for (header, pixels, reason) in cases {
        let error = refusal(&gzip(&idx(header, pixels)), digits::read_idx_images);
        let expected = matches!(error, Error::InvalidFile { .. });
        assert!(expected && error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn damaged_gzip_is_refused() {
    let sound = gzip(&idx([0x803, 2, 28, 28], 1_568));
    let mut flipped = sound.clone();
    let checksum = sound.len() - 8;
    flipped[checksum] ^= 1;
    let followed = [sound.as_slice(), b"garbage"].concat();
    let files: [&[u8]; 6] = [
        b"",
        b"not gzip",
        &sound[..9],
        &sound[..sound.len() - 4],
        &flipped,
        &followed,
    ];
    for (index, file) in files.into_iter().enumerate() {
        let error = refusal(file, digits::read_idx_images);
        assert!(matches!(error, Error::Io { .. }), "file {index}: {error}");
    }
}

#[test]
fn a_file_with_another_number_of_digits_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let path = folder.path().join("data/digits10k-images-idx3-ubyte.gz");
    std::fs::write(path, gzip(&idx([0x803, 2, 28, 28], 1_568))).unwrap();
    let error = digits::load_digits(folder.path(), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("2 digits, not 10000"), "{error}");
}

#[test]
fn pngs_of_another_kind_are_refused() {
    let png = |picture: DynamicImage| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    };
    let sound = png(DynamicImage::new_luma8(28, 28));
    let files = [
        png(DynamicImage::ImageRgb8(RgbImage::new(28, 28))),
        png(DynamicImage::new_luma8(28, 27)),
        png(DynamicImage::new_luma8(29, 28)),
        png(DynamicImage::new_luma16(28, 28)),
        sound[..sound.len() / 2].to_vec(),
        b"GIF89a".to_vec(),
    ];
    for (index, file) in files.iter().enumerate() {
        let error = refusal(file, digits::read_grey_png);
        assert!(
            matches!(error, Error::InvalidFile { .. }),
            "file {index}: {error}"
        );
    }
    assert!(matches!(
        digits::read_grey_png(Path::new("no-such-file.png")),
        Err(Error::Io { .. })
    ));
}
