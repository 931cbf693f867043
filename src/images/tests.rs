use std::fs;
use std::io::Cursor;
use std::path::Path;

use burn::tensor::Device;
use image::codecs::gif::GifEncoder;
use image::{DynamicImage, Frame, ImageFormat, Rgba, RgbaImage};
use tempfile::TempDir;

use super::*;

const FORMAT: Format = Format {
    channels: 3,
    height: 16,
    width: 16,
    is_configured: true,
    range: [-1.0, 1.0],
    transparency: Transparency::Drop,
};

/// A picture without symmetry; each number gives a different one.
fn picture(number: u8) -> DynamicImage {
    let colour = |x, y| {
        image::Rgb([
            (16 * x + y) as u8,
            (255 - 9 * y) as u8,
            number.wrapping_mul(37),
        ])
    };
    DynamicImage::ImageRgb8(RgbImage::from_fn(16, 16, colour))
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture
        .write_to(&mut Cursor::new(&mut bytes), format)
        .unwrap();
    bytes
}

fn read(folder: &Path) -> Result<(Images, Account)> {
    Images::read_all(ImageFiles::find(folder)?, FORMAT, |_| {})
}

/// The refused files of a folder, by file name, with the reasons.
fn refused(folder: &Path) -> Vec<(String, String)> {
    match read(folder) {
        Ok(_) => Vec::new(),
        Err(Error::UnreadFiles { files, .. }) => files
            .into_iter()
            .map(|file| {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                (name.into_owned(), file.reason)
            })
            .collect(),
        Err(other) => panic!("{other}"),
    }
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    folder
}

const KINDS: [ImageFormat; 7] = super::kind::READ;

#[test]
fn pictures_are_known_by_their_content_whatever_their_name() {
    for (index, format) in KINDS.into_iter().enumerate() {
        let bytes = encoded(&picture(1), format);
        for name in ["a", "a.txt", "a.heic", "b.png", "metadata.jsonl"] {
            let folder = folder(&[(name, &bytes)]);
            let (images, _) =
                read(folder.path()).unwrap_or_else(|error| panic!("{format:?} {name}: {error}"));
            assert_eq!(images.len(), 1, "{format:?} {name}");
            if index > 1 && format != ImageFormat::Gif {
                assert_eq!(
                    images.pixels,
                    FORMAT.pixels(picture(1).into_rgb8()).unwrap().0
                );
            }
        }
    }
}

#[test]
fn everything_that_is_not_read_is_refused_at_once_and_by_name() {
    let png = encoded(&picture(1), ImageFormat::Png);
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    let files: [(&str, &[u8]); 11] = [
        ("a.png", &png),
        ("b.HEIC", heic),
        ("c.jpg", heic),
        ("d.jpg", b"<!DOCTYPE html><title>404</title>"),
        ("e.png", b""),
        ("empty", b""),
        ("f/.hidden.png", &png),
        (".trash/g.png", &png),
        ("h.png", &png[..png.len() / 2]),
        ("notes.txt", b"what I saw"),
        ("i", b"\x01\x02\x03\xff\xfe"),
    ];
    let folder = folder(&files);
    let at = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink(at("nowhere"), at("j.png")).unwrap();
    std::os::unix::fs::symlink(at("f"), at("k")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("l.png")).unwrap();
    let refused = refused(folder.path());
    let parts = [
        ("b.HEIC", "HEIC"),
        ("c.jpg", "convert it to PNG"),
        ("d.jpg", "a web page"),
        ("e.png", "empty"),
        ("empty", "empty"),
        (".hidden.png", "hidden"),
        ("g.png", "hidden"),
        ("h.png", "not read"),
        ("notes.txt", "text"),
        ("i", "not a picture"),
        ("j.png", "a broken link"),
        ("k", "link to a folder"),
        ("l.png", "socket"),
    ];
    assert_eq!(refused.len(), parts.len(), "{refused:?}");
    for (name, part) in parts {
        let found = refused.iter().find(|(found, _)| found == name);
        let (_, reason) = found.unwrap_or_else(|| panic!("{name} is missing: {refused:?}"));
        assert!(reason.contains(part), "{name}: {reason}");
    }
    let error = read(folder.path()).unwrap_err().to_string();
    assert!(
        parts.iter().all(|(name, _)| error.contains(name)),
        "{error}"
    );
}

#[test]
fn litter_and_companions_are_counted_and_a_reader_goes_on() {
    let png = encoded(&picture(1), ImageFormat::Png);
    let other = encoded(&picture(2), ImageFormat::Png);
    let folder = folder(&[
        ("a.png", &png),
        ("a.txt", b"a cat"),
        ("a.png.json", b"{}"),
        ("metadata.jsonl", b"{\"file_name\": \"a.png\"}"),
        ("README.md", b"# Cats"),
        (".DS_Store", b"\0\0\0\x01Bud1"),
        ("._a.png", b"\0\x05\x16\x07\0\x02\0\0"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ("desktop.ini", b"[.ShellClassInfo]"),
        (".cache/huggingface/x.lock", b""),
    ]);
    let (images, account) = read(folder.path()).unwrap();
    assert_eq!(
        (images.len(), account.companions.len(), account.litter),
        (1, 4, 5)
    );
    let lines = account.lines().join("\n");
    assert!(
        lines.contains("4 files skipped that go with pictures"),
        "{lines}"
    );
    assert!(
        lines.contains("5 hidden files skipped that are not pictures"),
        "{lines}"
    );

    // A copy of the same picture is left out, and unread files are counted and named.
    let at = |name: &str| folder.path().join(name);
    fs::write(at("b.png"), &png).unwrap();
    fs::write(at("c.png"), &other).unwrap();
    fs::write(at("d.png"), &other[..60]).unwrap();
    fs::write(at("e.jpg"), "text").unwrap();
    let found = ImageFiles::find(folder.path()).unwrap();
    let mut reader = ImageReader::new(found, FORMAT).without(&images);
    let kept = reader.read(10, |_| {});
    assert_eq!(kept.files(), [at("c.png")]);
    let account = reader.account();
    assert_eq!(
        (account.read, account.copies_taken_out, account.unread.len()),
        (1, 2, 2)
    );
    let json = serde_json::to_value(account).unwrap();
    assert_eq!(json["unread"]["count"], 2);
    assert_eq!(
        json["unread"]["first"][0]["path"],
        at("d.png").to_string_lossy().as_ref()
    );
}

/// As many pictures as needed are read, however many cannot be read.
#[test]
fn a_reader_makes_up_for_what_cannot_be_read() {
    let pictures: Vec<_> = (0..9)
        .map(|number| encoded(&picture(number), ImageFormat::Png))
        .collect();
    let names: Vec<_> = (0..9).map(|number| format!("{number}.png")).collect();
    let files: Vec<(&str, &[u8])> = (0..9)
        .map(|n| {
            (
                names[n].as_str(),
                if n % 2 == 0 {
                    &pictures[n][..50]
                } else {
                    &pictures[n][..]
                },
            )
        })
        .collect();
    let folder = folder(&files);
    let mut reader = ImageReader::new(ImageFiles::find(folder.path()).unwrap(), FORMAT);
    assert_eq!(reader.read(3, |_| {}).len(), 3);
    assert_eq!(reader.account().unread.len(), 3);
    assert_eq!(reader.read(3, |_| {}).len(), 1);
    assert_eq!(reader.account().unread.len(), 5);
}

#[test]
fn files_of_another_set_are_taken_out_through_links_too() {
    let png = encoded(&picture(1), ImageFormat::Png);
    let folder = folder(&[
        ("train/cat/a.png", &png),
        ("train/dog/b.png", &png),
        ("train/c.png", &png),
    ]);
    let at = |name: &str| folder.path().join(name);
    std::os::unix::fs::symlink(at("train"), at("same")).unwrap();
    std::os::unix::fs::symlink(at("train/cat/a.png"), at("train/dog/link.png")).unwrap();
    let taken = |other: &str| {
        let mut all = ImageFiles::find(&at("same")).unwrap();
        let taken = all.take_out(&ImageFiles::find(&at(other)).unwrap());
        (taken, all.pictures.len())
    };
    assert_eq!(taken("train/cat"), (2, 2));
    assert_eq!(taken("train/cat/a.png"), (2, 2));
    assert_eq!(taken("train/dog/link.png"), (2, 2));
    assert_eq!(taken("train/dog"), (3, 1));
    assert_eq!(taken("train"), (4, 0));
}

/// Wherever a file of any kind is cut off, it is refused, or nothing of the picture is lost.
#[test]
fn a_cut_file_is_never_filled_in() {
    for format in KINDS {
        for colours in [
            picture(3),
            DynamicImage::ImageLuma8(picture(4).into_luma8()),
        ] {
            let colours = match format {
                // The GIF encoder takes only colours.
                ImageFormat::Gif => colours.into_rgb8().into(),
                _ => colours,
            };
            let bytes = encoded(&colours, format);
            let whole = folder(&[("a", &bytes)]);
            let whole = read(whole.path()).unwrap().0.pixels;
            let cut = tempfile::tempdir().unwrap();
            let path = cut.path().join("a.png");
            let mut refused = 0;
            let end = bytes.len() - 40;
            let lengths: Vec<usize> = (0..end).step_by(3).chain(end..bytes.len()).collect();
            for &length in &lengths {
                fs::write(&path, &bytes[..length]).unwrap();
                match read(cut.path()) {
                    Ok((images, _)) => assert!(
                        images.pixels == whole,
                        "{format:?} cut at {length} of {} is read as another picture",
                        bytes.len()
                    ),
                    Err(_) => refused += 1,
                }
            }
            assert!(
                refused > lengths.len() / 2,
                "{format:?}: {refused} of {}",
                lengths.len()
            );
        }
    }
}

#[test]
fn a_jpeg_with_more_after_its_end_is_read() {
    let mut bytes = encoded(&picture(3), ImageFormat::Jpeg);
    let whole = folder(&[("a.jpg", &bytes)]);
    let whole = read(whole.path()).unwrap().0.pixels;
    bytes.extend(b"\0\0\xff\xe1 something that a camera adds \xff");
    let longer = folder(&[("a.jpg", &bytes)]);
    assert_eq!(read(longer.path()).unwrap().0.pixels, whole);
}

#[test]
fn of_several_pictures_in_a_file_none_is_forgotten_in_silence() {
    let mut animation = Vec::new();
    let frame = |number| Frame::new(picture(number).into_rgba8());
    GifEncoder::new(&mut animation)
        .encode_frames([frame(1), frame(2)])
        .unwrap();
    let animated = folder(&[("a.gif", &animation)]);
    let refused = refused(animated.path());
    assert!(refused[0].1.contains("several pictures"), "{refused:?}");
    // Of a file to keep, the first picture is read, as in PIL, and counted.
    let mut reader = ImageReader::new(ImageFiles::find(animated.path()).unwrap(), FORMAT);
    let single = folder(&[(
        "a.gif",
        &encoded(
            &DynamicImage::ImageRgba8(picture(1).into_rgba8()),
            ImageFormat::Gif,
        ),
    )]);
    assert_eq!(reader.read(1, |_| {}).len(), 1);
    assert_eq!(reader.account().first_of_several, 1);
    assert_eq!(read(single.path()).unwrap().0.len(), 1);
}

/// As in PIL's `convert("RGB")`, the underlying colours remain.
#[test]
fn transparency_is_dropped_or_laid_over_a_ground() {
    let clear = RgbaImage::from_pixel(16, 16, Rgba([200, 100, 0, 51]));
    let palette = {
        // A palette of two colours, the second transparent.
        let mut bytes = Vec::new();
        let picture = RgbaImage::from_fn(16, 16, |x, _| match x < 8 {
            true => Rgba([10, 20, 30, 255]),
            false => Rgba([0, 0, 0, 0]),
        });
        DynamicImage::ImageRgba8(picture)
            .write_to(&mut Cursor::new(&mut bytes), ImageFormat::Gif)
            .unwrap();
        bytes
    };
    let clear = encoded(&DynamicImage::ImageRgba8(clear), ImageFormat::Png);
    for (transparency, first, line) in [
        (Transparency::Drop, [200, 100, 0], "dropped"),
        // One fifth of the colour.
        (Transparency::White, [244, 224, 204], "over white"),
        (Transparency::Black, [40, 20, 0], "over black"),
    ] {
        let format = Format {
            transparency,
            ..FORMAT
        };
        let folder = folder(&[("a.png", &clear), ("b.gif", &palette)]);
        let found = ImageFiles::find(folder.path()).unwrap();
        let (images, account) = Images::read_all(found, format, |_| {}).unwrap();
        let planes = [0, 256, 512].map(|at| images.pixels[at]);
        assert_eq!(planes, first);
        assert_eq!(account.transparent, 2);
        assert!(account.lines()[0].contains(line), "{:?}", account.lines());
        assert_eq!(
            transparency.to_string().parse::<Transparency>().unwrap(),
            transparency
        );
    }
}

#[test]
fn mirror_images_stand_beside_their_originals_and_symmetric_ones_have_none() {
    let symmetric = RgbImage::from_fn(16, 16, |x, y| {
        image::Rgb([(x * (15 - x)) as u8, y as u8, 9])
    });
    let folder = folder(&[
        ("a.png", &encoded(&picture(1), ImageFormat::Png)),
        (
            "b.png",
            &encoded(&DynamicImage::ImageRgb8(symmetric), ImageFormat::Png),
        ),
        ("c.png", &encoded(&picture(2), ImageFormat::Png)),
        ("d.png", &encoded(&picture(2).fliph(), ImageFormat::Png)),
    ]);
    let images = read(folder.path()).unwrap().0.with_mirrors();
    assert_eq!(images.mirrored(), [false, true, false, false, false]);
    let expected = FORMAT.pixels(picture(1).fliph().into_rgb8()).unwrap().0;
    assert_eq!(images.pixels[768..2 * 768], expected);
    assert!(images.name(1).starts_with("the mirror image of"));
    assert_eq!(images.mirrors(), 1);
}

#[test]
fn black_and_white_are_the_ends_of_the_range() {
    let grey = |value| image::Rgb([value; 3]);
    let ends = RgbImage::from_fn(16, 16, |x, _| if x < 8 { grey(0) } else { grey(255) });
    let folder = folder(&[(
        "a.png",
        &encoded(&DynamicImage::ImageRgb8(ends), ImageFormat::Png),
    )]);
    for range in [[-1.0, 1.0], [0.0, 1.0], [-0.5, 0.5], [-0.42, 2.82]] {
        let format = Format { range, ..FORMAT };
        let found = ImageFiles::find(folder.path()).unwrap();
        let (images, _) = Images::read_all(found, format, |_| {}).unwrap();
        let values: Vec<f64> = images.all(&Device::flex()).into_data().iter().collect();
        assert!((values[0] - range[0]).abs() < 1e-6 && (values[8] - range[1]).abs() < 1e-6);
    }
}

#[test]
fn only_images_of_the_same_size_are_appended() {
    let place = folder(&[("a.png", &encoded(&picture(1), ImageFormat::Png))]);
    let (mut images, _) = read(place.path()).unwrap();
    let (before, same) = (images.len(), images.clone());
    images.append(&same).unwrap();
    assert_eq!(
        (images.len(), images.name(before)),
        (2 * before, same.name(0))
    );
    let wide = Format {
        width: 2 * FORMAT.width,
        ..FORMAT
    };
    let found = ImageFiles::find(place.path()).unwrap();
    let (wide, _) = Images::read_all(found, wide, |_| {}).unwrap();
    let error = images.append(&wide).unwrap_err();
    assert!(matches!(error, Error::ShapeMismatch { .. }), "{error}");
    assert_eq!(images.len(), 2 * before);
}
