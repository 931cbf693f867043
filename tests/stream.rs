//! Retained images that are streamed: from folders and tar shards, as many as no memory holds.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use image::GrayImage;
use siss::StepReport;
use siss::burn::tensor::{Device, Tensor};
use siss::data::{PairStream, Pairing, PointLoader, near_duplicates};
use siss::images::{Format, ImageFiles, ImageReader, ImageStore, Transparency};
use siss::models::{DownBlockType, UNet2dConfig, UpBlockType};
use siss_support::digits;
use siss_support::progress::Progress;
use siss_support::small::seeded;
use siss_support::unlearn::{job, options};
use tempfile::TempDir;

/// Records the lines that it receives.
#[derive(Default)]
struct Told(std::sync::Mutex<Vec<String>>);

impl Progress for Told {
    fn phase(&self, _: &str) {}
    fn step(&self, _: &StepReport, _: usize) {}
    fn say(&self, line: &str) {
        self.0.lock().unwrap().push(line.into());
    }
}

/// A network of 8x8 pixels with random weights.
fn model(folder: &Path, classes: Option<usize>) {
    let config = UNet2dConfig {
        sample_size: Some([8, 8]),
        in_channels: 1,
        out_channels: 1,
        num_class_embeds: classes,
        block_out_channels: vec![8, 8],
        down_block_types: vec![DownBlockType::Resnet; 2],
        up_block_types: vec![UpBlockType::Resnet; 2],
        layers_per_block: 1,
        norm_num_groups: 4,
        ..UNet2dConfig::default()
    };
    let network = seeded(config.init(&Device::flex()).unwrap(), 1);
    network.save(folder.join("unet")).unwrap();
    let scheduler = "scheduler/scheduler_config.json";
    fs::create_dir_all(folder.join("scheduler")).unwrap();
    fs::copy(
        Path::new(digits::ASSETS).join("base").join(scheduler),
        folder.join(scheduler),
    )
    .unwrap();
}

/// A folder `forget` with the T-shirt, a folder `retain` with digits, and a `model`.
fn workplace(digits: usize) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let assets = Path::new(digits::ASSETS);
    for folder in ["forget", "retain/more"] {
        fs::create_dir_all(place.path().join(folder)).unwrap();
    }
    model(&place.path().join("model"), None);
    let tshirt = place.path().join("forget/tshirt.png");
    fs::copy(assets.join("data/tshirt.png"), tshirt).unwrap();
    let pixels = digits::read_idx_images(&assets.join("data/digits10k-images-idx3-ubyte.gz"));
    for (index, digit) in pixels.unwrap().chunks_exact(784).take(digits).enumerate() {
        let folder = ["retain", "retain/more"][index % 2];
        let picture = GrayImage::from_raw(28, 28, digit.to_vec()).unwrap();
        picture
            .save(place.path().join(folder).join(format!("{index}.png")))
            .unwrap();
    }
    place
}

fn run(place: &Path, retain: &str, more: &str) -> Result<(job::Summary, Vec<String>), String> {
    let path = |name: &str| place.join(name).display().to_string();
    let arguments = [
        "unlearn".into(),
        format!("--model={}", path("model")),
        format!("--forget={}", path("forget")),
        format!("--retain={}", path(retain)),
    ];
    let more = more.split_whitespace().map(String::from);
    let options = options::Options::try_parse_from(arguments.into_iter().chain(more));
    let told = Told::default();
    let summary = job::run(options.map_err(|error| error.to_string())?, &told);
    let lines = told.0.into_inner().unwrap();
    Ok((summary.map_err(|error| error.to_string())?, lines))
}

/// The log of the steps and the weights of a finished run.
fn outcome(place: &Path, out: &str) -> [Vec<u8>; 2] {
    let files = [
        "metrics.jsonl",
        "model/unet/diffusion_pytorch_model.safetensors",
    ];
    files.map(|file| fs::read(place.join(out).join(file)).unwrap())
}

/// The pictures of a folder as a tar archive.
fn packed(place: &Path, folder: &str, shard: &str) {
    let mut builder = tar::Builder::new(File::create(place.join(shard)).unwrap());
    builder.append_dir_all("", place.join(folder)).unwrap();
    builder.into_inner().unwrap();
}

/// Held in memory, streamed from a folder, streamed from a shard and searched: the same log and the
/// same weights, also if the run is resumed.
#[test]
fn a_streamed_run_is_the_run_in_memory() {
    let place = workplace(60);
    let place = place.path();
    packed(place, "retain", "retain.tar");
    let budget = "--steps 4 --batch 26 --samples 1 --augment flip --method siss --target none --checkpoint-every 2";
    let to = |out: &str, more: &str| format!("{budget} --out={} {more}", place.join(out).display());
    let (held, _) = run(place, "retain", &to("held", "")).unwrap();
    assert!(held.stream.is_none());
    let expected = outcome(place, "held");
    for (out, retain, more) in [
        ("folder", "retain", "--stream"),
        ("shard", "retain.tar", "--stream --skip-broken"),
        ("search", "retain", "--stream --search"),
    ] {
        let (summary, lines) = run(place, retain, &to(out, more)).unwrap();
        let stream = summary.stream.unwrap();
        assert_eq!(
            (stream.retained, stream.sample, stream.skipped),
            (104, 104, 0)
        );
        assert_eq!(summary.retain_images, 52);
        assert!(
            lines.iter().any(|line| line.starts_with("stream")),
            "{lines:?}"
        );
        assert!(outcome(place, out) == expected, "{out}");
    }
    fs::remove_dir_all(place.join("folder/checkpoints/step-0000000004")).unwrap();
    run(place, "retain", &to("folder", "--stream --resume")).unwrap();
    assert!(outcome(place, "folder") == expected, "resumed");
    fs::remove_file(place.join("retain/0.png")).unwrap();
    fs::remove_dir_all(place.join("folder/checkpoints/step-0000000004")).unwrap();
    let error = run(place, "retain", &to("folder", "--stream --resume")).unwrap_err();
    assert!(error.contains("pairs"), "{error}");
}

/// Classes come from folders, or from members of a shard; some are dropped.
#[test]
fn a_streamed_run_of_a_model_with_classes_is_the_run_in_memory() {
    let place = workplace(0);
    let place = place.path();
    model(&place.join("model"), Some(4));
    let digits = workplace(60);
    let mut builder = tar::Builder::new(File::create(place.join("shard-0.tar")).unwrap());
    for number in 0..60 {
        let folder = ["retain", "retain/more"][number % 2];
        let digit = digits.path().join(folder).join(format!("{number}.png"));
        let class = (number % 3).to_string();
        let kept = place
            .join("retain")
            .join(&class)
            .join(format!("{number:02}.png"));
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::copy(&digit, kept).unwrap();
        // Sorted as in the folders.
        let name = format!("{class}-{number:02}");
        builder
            .append_path_with_name(&digit, format!("{name}.png"))
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(class.len() as u64);
        builder
            .append_data(&mut header, format!("{name}.cls"), class.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap();
    let budget = "--steps 4 --batch 13 --samples 1 --method siss --target none --label 1 --null-label 3 --drop-condition 0.3";
    let to = |out: &str, more: &str| format!("{budget} --out={} {more}", place.join(out).display());
    run(place, "retain", &to("held", "")).unwrap();
    let expected = outcome(place, "held");
    for (out, retain) in [("folder", "retain"), ("shard", "shard-{0..0}.tar")] {
        let (summary, _) = run(place, retain, &to(out, "--stream")).unwrap();
        assert_eq!(summary.stream.unwrap().retained, 52);
        assert!(outcome(place, out) == expected, "{out}");
    }
}

/// Refused with the file and the remedy, or passed over and counted.
#[test]
fn broken_images_of_a_stream_are_refused_or_counted_as_asked() {
    let place = workplace(60);
    let place = place.path();
    for number in [3, 8] {
        let folder = ["retain", "retain/more"][number % 2];
        fs::write(
            place.join(folder).join(format!("{number}.png")),
            "no picture",
        )
        .unwrap();
    }
    let out = format!(
        "--steps 1 --batch 2 --samples 1 --method siss --target none --stream --out={}",
        place.join("out").display()
    );
    let error = run(place, "retain", &out).unwrap_err();
    assert!(
        error.contains("text, not a picture") && error.contains("--skip-broken"),
        "{error}"
    );
    let (summary, _) = run(place, "retain", &format!("{out} --skip-broken")).unwrap();
    assert_eq!(summary.files.retain.unread.len(), 2);
    let stream = summary.stream.unwrap();
    assert!(
        stream.skipped == 2 && stream.sample < stream.retained,
        "{stream:?}"
    );
    let summary = fs::read_to_string(place.join("out/summary.json")).unwrap();
    assert!(summary.contains("\"skipped\": 2"), "{summary}");
}

/// Copies that the sample lacks are found by a search, and the program says what leaving it out
/// costs.
#[test]
fn a_search_finds_copies_that_the_sample_lacks() {
    let place = workplace(1300);
    let place = place.path();
    let mut copy = image::open(place.join("forget/tshirt.png"))
        .unwrap()
        .into_luma8();
    let centre = copy.get_pixel(14, 14).0[0];
    copy.put_pixel(14, 14, image::Luma([centre ^ 32]));
    copy.save(place.join("retain/zzz.png")).unwrap();
    let budget = "--steps 1 --batch 2 --samples 1 --method siss --target none --stream --overwrite";
    let to = |more: &str| format!("{budget} --out={} {more}", place.join("out").display());
    let (_, lines) = run(place, "retain", &to("")).unwrap();
    let cost = lines
        .iter()
        .find(|line| line.contains("--search compares all"));
    assert!(
        cost.is_some_and(|line| line.contains("a chance of")),
        "{lines:?}"
    );
    let (summary, lines) = run(place, "retain", &to("--search")).unwrap();
    let copy = lines
        .iter()
        .find(|line| line.contains("zzz.png is almost identical"));
    assert!(
        copy.is_some_and(|line| line.contains("tshirt.png")),
        "{lines:?}"
    );
    assert!(summary.stream.unwrap().searched);
}

/// Height and width of the pictures of the large set: they fill a block of a tar archive.
const SIDE: usize = 22;
const PICTURES: usize = 200_000;
const SHARDS: usize = 10;

/// The pixels of a picture of the large set: its number, in the first four.
fn pixels(number: usize) -> Vec<u8> {
    let mut pixels = vec![0; SIDE * SIDE];
    pixels[..4].copy_from_slice(&(number as u32).to_le_bytes());
    pixels
        .iter_mut()
        .skip(4)
        .enumerate()
        .for_each(|(at, pixel)| {
            let mixed = ((at + 1) * number) as u32;
            let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x9e37_79b9);
            *pixel = ((mixed ^ (mixed >> 13)).wrapping_mul(0x85eb_ca6b) >> 24) as u8;
        });
    pixels
}

/// Shards of grey pictures, `shard-0.tar` and so on.
fn large_set() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    for shard in 0..SHARDS {
        let file = File::create(place.path().join(format!("shard-{shard}.tar"))).unwrap();
        let mut builder = tar::Builder::new(BufWriter::new(file));
        for number in (shard..PICTURES).step_by(SHARDS) {
            let bytes = [
                format!("P5 {SIDE} {SIDE} 255\n").into_bytes(),
                pixels(number),
            ]
            .concat();
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder
                .append_data(&mut header, format!("{number:06}.pgm"), &bytes[..])
                .unwrap();
        }
        builder.into_inner().unwrap().flush().unwrap();
    }
    place
}

fn store(pattern: PathBuf) -> ImageStore {
    let format = Format {
        channels: 1,
        height: SIDE,
        width: SIDE,
        is_configured: true,
        range: [0.0, 255.0],
        transparency: Transparency::Drop,
    };
    let found = ImageFiles::find(&pattern).unwrap();
    found.check_folders().unwrap();
    ImageReader::new(found, format).into_store()
}

/// The memory that the process has, in bytes, where the system reports it.
fn resident() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(
        1024 * line
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<usize>()
            .ok()?,
    )
}

fn numbers(points: &Tensor<4>) -> Vec<u32> {
    let rows = points.dims()[0];
    let first = points.clone().reshape([rows, SIDE * SIDE]).narrow(1, 0, 4);
    let bytes: Vec<u8> = first
        .into_data()
        .iter::<f32>()
        .map(|value| value.round() as u8)
        .collect();
    bytes
        .chunks_exact(4)
        .map(|number| u32::from_le_bytes(number.try_into().unwrap()))
        .collect()
}

/// In an epoch of steps every picture comes once, in an order that the seed determines; memory does
/// not grow, and steps do not wait.
#[test]
fn two_hundred_thousand_pictures_take_no_memory_and_no_time() {
    let place = large_set();
    let before = resident();
    let store = Arc::new(store(
        place
            .path()
            .join(format!("shard-{{0..{}}}.tar", SHARDS - 1)),
    ));
    assert_eq!(store.len(), PICTURES);
    println!("listing them: {before:?} to {:?} bytes", resident());
    let device = Device::flex();
    let forget = Tensor::<4>::ones([2, 1, SIDE, SIDE], &device) * 255;
    let stream = |seed| {
        let (store, device) = (Arc::clone(&store), device.clone());
        let load = move |numbers: &[usize]| Ok(store.load(numbers)?.all(&device));
        let pairing = Pairing::new(PICTURES, 2, seed).unwrap();
        PairStream::new(pairing, forget.clone(), load).unwrap()
    };

    let batch = 500;
    let mut whole = stream(1);
    let mut seen = vec![false; PICTURES];
    let mut order = Vec::new();
    let (mut first, mut most) = (None, 0);
    for step in 0..(PICTURES / batch) as u64 {
        let found = numbers(whole.batch(step, batch).unwrap().retain());
        for &number in &found {
            assert!(
                !std::mem::replace(&mut seen[number as usize], true),
                "{number}"
            );
        }
        if step < 3 {
            order.push(found);
        }
        if step >= 10 {
            first = first.or_else(resident);
            most = most.max(resident().unwrap_or(0));
        }
    }
    assert!(seen.iter().all(|&seen| seen));
    // In memory the set takes 387 MB.
    if let Some(first) = first {
        assert!(most < first + (32 << 20), "{first} to {most} bytes");
    }

    // Another stream of the same seed, entered at a later step, as by a resumed run.
    assert_eq!(
        numbers(stream(1).batch(2, batch).unwrap().retain()),
        order[2]
    );
    assert_ne!(
        numbers(stream(2).batch(2, batch).unwrap().retain()),
        order[2]
    );

    // Steps of 16 pairs that take 30 ms, a tenth of a step of the smallest bundled model.
    let (mut steps, began) = (stream(3), Instant::now());
    for step in 0..50 {
        steps.batch(step, 16).unwrap();
        sleep(Duration::from_millis(30));
    }
    let share = steps.waited().as_secs_f64() / began.elapsed().as_secs_f64();
    println!(
        "{first:?} to {most} bytes; steps waited {:.2} % of their time",
        100.0 * share
    );
    assert!(share < 0.05, "{share}");

    copies_are_found_in_one_pass(&store);
}

/// One pass over the large set finds the copies and takes no more memory.
fn copies_are_found_in_one_pass(store: &ImageStore) {
    let device = Device::flex();
    let copy = |number: usize| {
        let pixels: Vec<f32> = pixels(number).into_iter().map(f32::from).collect();
        Tensor::<1>::from_data(pixels.as_slice(), &device).reshape([1, 1, SIDE, SIDE])
    };
    // Shards come one after the other.
    let place_of = |number: usize| number % SHARDS * (PICTURES / SHARDS) + number / SHARDS;
    let forget = Tensor::cat(vec![copy(123_456) + 1, copy(7)], 0);
    let before = resident();
    let all = PointLoader::new([PICTURES, 1, SIDE, SIDE], |rows: std::ops::Range<usize>| {
        Ok(store.load(&rows.collect::<Vec<_>>())?.all(&device))
    });
    let found = near_duplicates(&all, &forget, 0.25).unwrap();
    let pairs: Vec<_> = found
        .iter()
        .map(|pair| (pair.forget, pair.retain))
        .collect();
    assert!(
        pairs.contains(&(0, place_of(123_456))) && pairs.contains(&(1, place_of(7))),
        "{pairs:?}"
    );
    if let (Some(before), Some(after)) = (before, resident()) {
        assert!(after < before + (96 << 20), "{before} to {after} bytes");
    }
}
