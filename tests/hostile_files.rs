//! Hostile files: each is refused with a typed error, within 5 s and 512 MiB, in a process of its
//! own. Files with random changes cause no panic and do not hang.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::{BufReader, Cursor, Write};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flate2::{Compression, write::GzEncoder, write::ZlibEncoder};
use siss::DdpmScheduler;
use siss::burn::tensor::Device;
use siss::draws::{Stream, keyed_rng};
use siss::models::{UNet2d, UNet2dConfig};
use siss::process::SchedulerConfig;
use siss::rand::RngExt;
use siss::steering::Levels;
use siss_support::readers::checkpoint;
use siss_support::{digits, readers};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

const SECONDS: u64 = 5;
const MEBIBYTES: u64 = 512;
/// Tells a child which reader to use and which folder to read.
const CASE: &str = "SISS_HOSTILE_CASE";

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const PICKLED: &str = "diffusion_pytorch_model.bin";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";

/// The part of a case's folder that is read.
#[derive(Debug, Clone, Copy)]
enum Reader {
    /// The folder, with `UNet2d::load`.
    Network,
    /// `scheduler_config.json`.
    Scheduler,
    /// `levels.json`, as `Levels`.
    Levels,
    /// `images.gz`, the digits of the main example.
    Idx,
    /// `tshirt.png`, the image of the main example.
    GreyPng,
    /// The pictures of the folder.
    Images,
}

const READERS: [Reader; 6] = [
    Reader::Network,
    Reader::Scheduler,
    Reader::Levels,
    Reader::Idx,
    Reader::GreyPng,
    Reader::Images,
];

/// Reads, and returns the kind and text of the error.
fn attempt(reader: Reader, folder: &Path) -> Result<(), String> {
    let kind = |error: siss::Error| {
        let debug = format!("{error:?}");
        let name = debug.split([' ', '(', '{']).next().unwrap_or_default();
        format!("{name}: {error}")
    };
    match reader {
        Reader::Network => UNet2d::load(folder, &Device::flex())
            .map(|_| ())
            .map_err(kind),
        Reader::Scheduler => SchedulerConfig::from_file(folder.join("scheduler_config.json"))
            .and_then(|config| DdpmScheduler::from_config(&config))
            .map(|_| ())
            .map_err(kind),
        Reader::Levels => {
            let file = BufReader::new(File::open(folder.join("levels.json")).unwrap());
            serde_json::from_reader::<_, Levels>(file)
                .map(|_| ())
                .map_err(|error| format!("Json: {error}"))
        }
        Reader::Idx => digits::read_idx_images(&folder.join("images.gz"))
            .map(|_| ())
            .map_err(kind),
        Reader::GreyPng => digits::read_grey_png(&folder.join("tshirt.png"))
            .map(|_| ())
            .map_err(kind),
        Reader::Images => readers::pictures(folder).map_err(kind),
    }
}

/// A hostile folder: its content, its reader, and a part of the error message.
struct Case {
    name: &'static str,
    reader: Reader,
    says: &'static str,
    make: Box<dyn Fn(&Path)>,
}

fn case(
    name: &'static str,
    reader: Reader,
    says: &'static str,
    make: impl Fn(&Path) + 'static,
) -> Case {
    let make = Box::new(make);
    Case {
        name,
        reader,
        says,
        make,
    }
}

fn write(path: PathBuf, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).unwrap();
}

/// A network's folder with these weights.
fn with_weights(
    name: &'static str,
    says: &'static str,
    weights: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    case(name, Reader::Network, says, move |folder| {
        write(folder.join("config.json"), readers::CONFIG);
        write(folder.join(WEIGHTS), weights());
    })
}

/// A safetensors file with a header and `values` bytes of values.
fn tensors(header: impl AsRef<[u8]>, values: usize) -> Vec<u8> {
    let header = header.as_ref();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header, &vec![0; values]].concat()
}

fn entry(name: &str, dtype: &str, shape: &str, first: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{first},{end}]}}"#)
}

fn safetensors() -> Vec<Case> {
    vec![
        with_weights("a header of 2^64 - 1 bytes", "18446744073709551615", || {
            [&u64::MAX.to_le_bytes()[..], b"{}"].concat()
        }),
        with_weights("a header longer than the file", "1000 bytes", || {
            [&1000u64.to_le_bytes()[..], &[b' '; 999]].concat()
        }),
        with_weights("a header of 99 MB of spaces", "8 MiB", || {
            tensors([vec![b' '; 99_000_000], b"{}".to_vec()].concat(), 0)
        }),
        with_weights("a header of 8 MB of spaces", "missing tensor", || {
            tensors([b"{}".to_vec(), vec![b' '; 8_000_000]].concat(), 0)
        }),
        with_weights(
            "a header nested 4 million deep",
            "not describe tensors",
            || tensors(vec![b'['; 4_000_000], 0),
        ),
        with_weights(
            "a nested value under a name",
            "not describe tensors",
            || tensors([br#"{"a":"#.to_vec(), vec![b'['; 1_000_000]].concat(), 0),
        ),
        with_weights(
            "a list of 4 million numbers as an entry",
            "not describe tensors",
            || {
                let list = ["{\"a\":[", &"0,".repeat(4_000_000 - 10), "0]}"].concat();
                tensors(list, 0)
            },
        ),
        with_weights("100,000 entries of nothing", "missing tensor", || {
            let entries: Vec<String> = (0..100_000)
                .map(|index| entry(&format!("{index}"), "F32", "0", 0, 0))
                .collect();
            tensors(format!("{{{}}}", entries.join(",")), 0)
        }),
        with_weights("two tensors that overlap", "not describe tensors", || {
            let header = [entry("a", "F32", "2", 0, 8), entry("b", "F32", "2", 4, 12)];
            tensors(format!("{{{}}}", header.join(",")), 12)
        }),
        with_weights("a hole between two tensors", "not describe tensors", || {
            let header = [entry("a", "F32", "1", 0, 4), entry("b", "F32", "1", 8, 12)];
            tensors(format!("{{{}}}", header.join(",")), 12)
        }),
        with_weights(
            "an empty tensor inside another",
            "not describe tensors",
            || {
                let header = [entry("a", "F32", "2", 0, 8), entry("b", "F32", "0", 4, 4)];
                tensors(format!("{{{}}}", header.join(",")), 8)
            },
        ),
        with_weights("a shape beyond 64 bits", "not describe tensors", || {
            let shape = "4294967296,4294967296,4294967296";
            tensors(format!("{{{}}}", entry("a", "F32", shape, 0, 8)), 8)
        }),
        with_weights(
            "a shape whose bits are beyond 64",
            "not describe tensors",
            || {
                let shape = "2305843009213693952";
                tensors(format!("{{{}}}", entry("a", "F64", shape, 0, 0)), 0)
            },
        ),
        with_weights(
            "offsets at the end of 64 bits",
            "not describe tensors",
            || {
                let header = entry("a", "F32", "1", u64::MAX - 4, u64::MAX);
                tensors(format!("{{{header}}}"), 4)
            },
        ),
        with_weights("a negative offset", "not describe tensors", || {
            let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}"#;
            tensors(header, 4)
        }),
        with_weights("a name that comes twice", "not a safetensors file", || {
            let header = [entry("a", "F32", "1", 0, 4), entry("a", "F32", "1", 4, 8)];
            tensors(format!("{{{}}}", header.join(",")), 8)
        }),
        with_weights(
            "a gigabyte promised, four bytes there",
            "1000000000",
            || {
                let header = entry("a", "U8", "1000000000", 0, 1_000_000_000);
                tensors(format!("{{{header}}}"), 4)
            },
        ),
        with_weights("values that no tensor has", "the file has 100", || {
            tensors(format!("{{{}}}", entry("a", "F32", "1", 0, 4)), 100)
        }),
        with_weights("a type of a byte", "F8_E4M3", || {
            tensors(format!("{{{}}}", entry("a", "F8_E4M3", "2", 0, 2)), 2)
        }),
        with_weights("a type of half a byte", "F4, which is not read", || {
            tensors(format!("{{{}}}", entry("a", "F4", "2", 0, 1)), 1)
        }),
        with_weights("a type that is none", "PICKLE, which is not read", || {
            tensors(format!("{{{}}}", entry("a", "PICKLE", "1", 0, 4)), 4)
        }),
        with_weights("a tensor of 100,000 dimensions", "missing tensor", || {
            let shape = vec!["1"; 100_000].join(",");
            tensors(format!("{{{}}}", entry("a", "F32", &shape, 0, 4)), 4)
        }),
        with_weights("a name of 7 MB", "missing tensor", || {
            let name = "x".repeat(7_000_000);
            tensors(format!("{{{}}}", entry(&name, "F32", "1", 0, 4)), 4)
        }),
        with_weights("a type whose name has 7 MB", "which is not read", || {
            let dtype = "x".repeat(7_000_000);
            tensors(format!("{{{}}}", entry("a", &dtype, "1", 0, 4)), 4)
        }),
        with_weights("metadata of 8 MB", "missing tensor", || {
            let text = "x".repeat(8_000_000);
            tensors(format!(r#"{{"__metadata__":{{"a":"{text}"}}}}"#), 0)
        }),
        with_weights("an empty file", "it has 0 bytes", Vec::new),
        with_weights("a terabyte of holes", "not a safetensors file", Vec::new).with(|folder| {
            let file = File::create(folder.join(WEIGHTS)).unwrap();
            // Some file systems do not support this size.
            let _ = file.set_len(1 << 40);
        }),
        with_weights(
            "an endless device for weights",
            "not an ordinary file",
            Vec::new,
        )
        .with(|folder| {
            fs::remove_file(folder.join(WEIGHTS)).unwrap();
            symlink("/dev/zero", folder.join(WEIGHTS)).unwrap();
        }),
        with_weights(
            "a pipe that nobody writes to",
            "not an ordinary file",
            Vec::new,
        )
        .with(|folder| {
            fs::remove_file(folder.join(WEIGHTS)).unwrap();
            pipe(&folder.join(WEIGHTS));
        }),
        with_weights("a folder for weights", "not an ordinary file", Vec::new).with(|folder| {
            fs::remove_file(folder.join(WEIGHTS)).unwrap();
            fs::create_dir(folder.join(WEIGHTS)).unwrap();
        }),
        with_weights("a link to itself", "Io", Vec::new).with(|folder| {
            fs::remove_file(folder.join(WEIGHTS)).unwrap();
            symlink(WEIGHTS, folder.join(WEIGHTS)).unwrap();
        }),
        // Shards are not read, so an index cannot lead out of the folder.
        with_weights("an index of shards that leads out", WEIGHTS, Vec::new).with(|folder| {
            fs::remove_file(folder.join(WEIGHTS)).unwrap();
            let index = r#"{"weight_map": {"conv_in.weight": "../../../../etc/passwd"}}"#;
            write(folder.join(format!("{WEIGHTS}.index.json")), index);
        }),
    ]
}

impl Case {
    /// The same case with a later change of the folder.
    fn with(self, more: impl Fn(&Path) + 'static) -> Self {
        let make = self.make;
        Case {
            make: Box::new(move |folder| {
                make(folder);
                more(folder);
            }),
            ..self
        }
    }
}

fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

/// A network's folder with this configuration and no values.
fn with_config(
    name: &'static str,
    says: &'static str,
    config: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    case(name, Reader::Network, says, move |folder| {
        write(folder.join("config.json"), config());
        write(folder.join(WEIGHTS), tensors("{}", 0));
    })
}

fn with_scheduler(
    name: &'static str,
    says: &'static str,
    config: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    case(name, Reader::Scheduler, says, move |folder| {
        write(folder.join("scheduler_config.json"), config());
    })
}

fn with_levels(
    name: &'static str,
    says: &'static str,
    text: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    case(name, Reader::Levels, says, move |folder| {
        write(folder.join("levels.json"), text());
    })
}

/// A scheduler's configuration with these keys.
fn scheduler(keys: &str) -> Vec<u8> {
    format!(r#"{{"_class_name": "DDPMScheduler", {keys}}}"#).into_bytes()
}

/// A network's folder with this index of weights in parts, and the parts that a valid index names.
fn with_index(
    name: &'static str,
    says: &'static str,
    index: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    case(name, Reader::Network, says, move |folder| {
        write(folder.join("config.json"), readers::CONFIG);
        write(folder.join(INDEX), index());
        for part in ["a.safetensors", "b.safetensors"] {
            write(folder.join(part), tensors("{}", 0));
        }
    })
}

fn indices() -> Vec<Case> {
    let map = |map: &str| format!(r#"{{"metadata": {{}}, "weight_map": {{{map}}}}}"#).into_bytes();
    vec![
        with_index("an index of 100 MB", "1 MiB", || vec![b' '; 100_000_000]),
        with_index("an index nested 500,000 deep", "index", || {
            [b"{\"weight_map\":".to_vec(), vec![b'['; 500_000]].concat()
        }),
        with_index(
            "an index that leads out of its folder",
            "same folder",
            move || map(r#""conv_in.bias": "../../../etc/passwd""#),
        ),
        with_index(
            "an index that leads to the root",
            "same folder",
            move || map(r#""conv_in.bias": "/etc/a.safetensors""#),
        ),
        with_index("an index of 10,000 parts", "at most 256", move || {
            let places = (0..10_000).map(|index| format!(r#""t{index}": "p{index}.safetensors""#));
            map(&places.collect::<Vec<_>>().join(","))
        }),
        with_index(
            "an index of parts that are not there",
            "not there",
            move || {
                let places = (0..200).map(|index| format!(r#""t{index}": "p{index}.safetensors""#));
                map(&places.collect::<Vec<_>>().join(","))
            },
        ),
        with_index("an index that names itself", "same folder", move || {
            map(&format!(r#""conv_in.bias": "{INDEX}""#))
        }),
        with_index(
            "an index of tensors that no part has",
            "missing tensor",
            move || map(r#""conv_in.bias": "a.safetensors""#),
        ),
        with_index(
            "an index with a place of a megabyte",
            "same folder",
            move || map(&format!(r#""conv_in.bias": "{}""#, "x".repeat(1_000_000))),
        ),
        with_index("a pipe for a part", "not an ordinary file", move || {
            map(r#""conv_in.bias": "c.safetensors""#)
        })
        .with(|folder| pipe(&folder.join("c.safetensors"))),
        with_index("a pipe for an index", "not an ordinary file", Vec::new).with(|folder| {
            fs::remove_file(folder.join(INDEX)).unwrap();
            pipe(&folder.join(INDEX));
        }),
        with_index(
            "a part that has what another has",
            "duplicate tensor",
            move || map(r#""x": "a.safetensors", "y": "b.safetensors""#),
        )
        .with(|folder| {
            let both = [entry("x", "F32", "1", 0, 4), entry("y", "F32", "1", 4, 8)].join(",");
            for part in ["a.safetensors", "b.safetensors"] {
                write(folder.join(part), tensors(format!("{{{both}}}"), 8));
            }
        }),
    ]
}

fn configurations() -> Vec<Case> {
    let network = |changes: &str| {
        let config = readers::CONFIG.trim_end_matches('}');
        format!("{config}, {changes}}}").into_bytes()
    };
    let stages = |kind: &str| vec![format!("\"{kind}\""); 16].join(",");
    vec![
        with_config("a configuration of 100 MB of numbers", "1 MiB", || {
            ["{\"sample_size\":[", &"0,".repeat(50_000_000), "0]}"]
                .concat()
                .into_bytes()
        }),
        with_config("a configuration of 1 MB of numbers", "sample_size", || {
            ["{\"sample_size\":[", &"0,".repeat(500_000), "0]}"]
                .concat()
                .into_bytes()
        }),
        with_config(
            "a configuration nested 500,000 deep",
            "configuration",
            || [b"{\"sample_size\":".to_vec(), vec![b'['; 500_000]].concat(),
        ),
        with_config("a configuration of zeros", "configuration", || {
            vec![0; 1 << 20]
        }),
        with_config("a configuration that is no text", "UTF-8", || {
            vec![0xff; 100]
        }),
        with_config("more channels than 64 bits", "in_channels", move || {
            network(r#""in_channels": 18446744073709551616"#)
        }),
        with_config("channels of 1e999", "configuration", move || {
            network(r#""in_channels": 1e999"#)
        }),
        with_config("no channels at all", "block_out_channels", || {
            br#"{"block_out_channels": [], "down_block_types": [], "up_block_types": []}"#.to_vec()
        }),
        with_config("ten thousand layers", "layers_per_block", move || {
            network(r#""layers_per_block": 10000"#)
        }),
        // Valid, but the parameters would take four terabytes.
        with_config(
            "the largest network that there may be",
            "missing tensor",
            move || {
                let channels = vec!["65536"; 16].join(",");
                let (down, up) = (stages("AttnDownBlock2D"), stages("AttnUpBlock2D"));
                format!(
                r#"{{"block_out_channels": [{channels}], "layers_per_block": 256, "time_embedding_dim": 65536,
                "down_block_types": [{down}], "up_block_types": [{up}]}}"#
            )
            .into_bytes()
            },
        ),
        with_config("a key of a megabyte", "unknown", || {
            format!(r#"{{"{}": 1}}"#, "x".repeat(1_000_000)).into_bytes()
        }),
        with_config("a class that runs code", "_class_name", move || {
            network(r#""_class_name": "os.system""#)
        }),
        with_config(
            "a pipe for a configuration",
            "not an ordinary file",
            Vec::new,
        )
        .with(|folder| {
            fs::remove_file(folder.join("config.json")).unwrap();
            pipe(&folder.join("config.json"));
        }),
        with_config(
            "an endless device for a configuration",
            "not an ordinary file",
            Vec::new,
        )
        .with(|folder| {
            fs::remove_file(folder.join("config.json")).unwrap();
            symlink("/dev/zero", folder.join("config.json")).unwrap();
        }),
        with_scheduler("a schedule of 100 MB", "1 MiB", || vec![b' '; 100_000_000]),
        with_scheduler("a schedule nested 500,000 deep", "configuration", || {
            [b"{\"trained_betas\":".to_vec(), vec![b'['; 500_000]].concat()
        }),
        with_scheduler("10^18 timesteps", "num_timesteps", || {
            scheduler(r#""num_train_timesteps": 1000000000000000000"#)
        }),
        with_scheduler("100,000 betas for 1,000 steps", "100000", || {
            let betas = "0.1,".repeat(99_999);
            scheduler(&format!(r#""trained_betas": [{betas}0.1]"#))
        }),
        with_scheduler("betas that end at 1e308", "beta", || {
            scheduler(r#""beta_end": 1e308"#)
        }),
        with_scheduler("a schedule that is none", "beta_schedule", || {
            scheduler(r#""beta_schedule": "__import__('os')""#)
        }),
        with_scheduler("a pipe for a schedule", "not an ordinary file", Vec::new).with(|folder| {
            fs::remove_file(folder.join("scheduler_config.json")).unwrap();
            pipe(&folder.join("scheduler_config.json"));
        }),
        with_scheduler(
            "a schedule whose name has a megabyte",
            "beta_schedule",
            || {
                let name = "x".repeat(1_000_000);
                scheduler(&format!(r#""beta_schedule": "{name}""#))
            },
        ),
        with_scheduler("a schedule of 10,000 unknown keys", "unknown", || {
            let keys = (0..10_000).map(|index| format!(r#""key of no use {index}": 1"#));
            scheduler(&keys.collect::<Vec<_>>().join(","))
        }),
        with_scheduler("a schedule of 100,000 words of Python", "unknown", || {
            scheduler(&format!(r#""x": [{}NaN]"#, "-Infinity  ,".repeat(80_000)))
        }),
        with_scheduler(
            "a schedule in the place of which Git left a pointer",
            "git lfs pull",
            || b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".to_vec(),
        ),
        with_levels("levels nested a million deep", "invalid type", || {
            [b"{\"timesteps\":".to_vec(), vec![b'['; 1_000_000]].concat()
        }),
        with_levels("ten million points without a level", "levels", || {
            let points = "[],".repeat(10_000_000 - 1);
            format!(r#"{{"timesteps":[0,1],"levels":[{points}[]]}}"#).into_bytes()
        }),
        with_levels("a level of 1e999", "out of range", || {
            br#"{"timesteps":[0,1],"levels":[[1e999,1]]}"#.to_vec()
        }),
        with_levels("a level below 0", "level", || {
            br#"{"timesteps":[0,1],"levels":[[-1,1]]}"#.to_vec()
        }),
        with_levels(
            "own losses of another number of points",
            "own losses",
            || br#"{"timesteps":[0,1],"levels":[[1,1]],"own_losses":[[1,1],[1,1]]}"#.to_vec(),
        ),
        with_levels("a process at too few timesteps", "scales", || {
            br#"{"timesteps":[0,1],"levels":[[1,1]],
                "origin":{"prediction_type":"epsilon","signal_scales":[1],"noise_scales":[]}}"#
                .to_vec()
        }),
        with_levels("a key that is none", "unknown field", || {
            br#"{"timesteps":[0,1],"levels":[],"__reduce__":["os.system"]}"#.to_vec()
        }),
    ]
}

/// A zip archive with these entries, given as names and contents.
fn archive(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, content) in entries {
        archive.start_file(*name, options).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

/// The folder of the network that PyTorch wrote, with its pickled weights replaced.
fn with_pickled(
    name: &'static str,
    says: &'static str,
    weights: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    case(name, Reader::Network, says, move |folder| {
        let config = include_str!("conformance/unet_pickled/config.json");
        write(folder.join("config.json"), config);
        write(folder.join(PICKLED), weights());
    })
}

/// The same folder with this pickle in a PyTorch archive.
fn with_pickle(
    name: &'static str,
    says: &'static str,
    pickle: impl Fn() -> Vec<u8> + 'static,
) -> Case {
    with_pickled(name, says, move || {
        archive(&[("a/data.pkl", &pickle())], CompressionMethod::Deflated)
    })
}

const CALL: &[u8] = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R.";

fn pickles() -> Vec<Case> {
    vec![
        with_pickle("a call of os.system", "posix.system", || CALL.to_vec()),
        with_pickle("a call of eval", "builtins.eval", || {
            b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R.".to_vec()
        }),
        with_pickled("a bare pickle", "Zip archive", || CALL.to_vec()),
        with_pickled("100 MB of a bare pickle", "Zip archive", || {
            vec![b']'; 100_000_000]
        }),
        with_pickle("100 MB of empty lists, compressed 1:1000", "1 MiB", || {
            [b"\x80\x02".to_vec(), vec![b']'; 100_000_000]].concat()
        }),
        with_pickle(
            "a million empty lists",
            "not a file of pickled weights",
            || [b"\x80\x02".to_vec(), vec![b']'; (1 << 20) - 2]].concat(),
        ),
        with_pickle(
            "a million empty dictionaries",
            "not a file of pickled weights",
            || [b"\x80\x02".to_vec(), vec![b'}'; (1 << 20) - 2]].concat(),
        ),
        with_pickle("a million marks", "not a file of pickled weights", || {
            [b"\x80\x02".to_vec(), vec![b'('; (1 << 20) - 2]].concat()
        }),
        with_pickle("lists in lists, a million deep", "nesting", || {
            let nested = [vec![b']'; 500_000], vec![b'a'; 499_999]].concat();
            [b"\x80\x02".to_vec(), nested, b".".to_vec()].concat()
        }),
        // Each line doubles the one before.
        with_pickle("a memo bomb", "memo bomb", || {
            let mut pickle = b"\x80\x02]q\0".to_vec();
            for level in 1..60u8 {
                pickle.extend([
                    b']',
                    b'(',
                    b'h',
                    level - 1,
                    b'h',
                    level - 1,
                    b'e',
                    b'q',
                    level,
                ]);
            }
            pickle.push(b'.');
            pickle
        }),
        with_pickle("a million copies of one text", "memo bomb", || {
            let text = "x".repeat(60_000);
            let length = (text.len() as u32).to_le_bytes();
            let copies = b"h\0".repeat(400_000);
            [
                b"\x80\x02X",
                &length[..],
                text.as_bytes(),
                b"q\0",
                &copies,
                b".",
            ]
            .concat()
        }),
        with_pickle(
            "a text of 2^64 - 1 bytes",
            "not a file of pickled weights",
            || [b"\x80\x04\x8d", &u64::MAX.to_le_bytes()[..], b"x."].concat(),
        ),
        with_pickle("a number of 4 GB", "not a file of pickled weights", || {
            [b"\x80\x02\x8b", &u32::MAX.to_le_bytes()[..], b"x."].concat()
        }),
        with_pickle(
            "no program at all",
            "not a file of pickled weights",
            Vec::new,
        ),
        with_pickled("an archive without a program", "data.pkl", || {
            archive(&[("a/other", b"x")], CompressionMethod::Stored)
        }),
        with_pickled("an archive that leads out", "data.pkl", || {
            archive(&[("../../etc/passwd", b"x")], CompressionMethod::Stored)
        }),
        with_pickled("100,000 entries", "not a file of pickled weights", || {
            let names: Vec<String> = (0..60_000).map(|index| format!("a/{index}")).collect();
            let mut entries: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), &b""[..])).collect();
            entries.push(("a/data.pkl", b"\x80\x02}"));
            archive(&entries, CompressionMethod::Stored)
        }),
        with_pickled(
            "a program that says it is short",
            "not a file of pickled weights",
            || {
                // The length in the directory at the end of the archive, which the reader uses.
                let program = [b"\x80\x02".to_vec(), vec![b']'; 10_000_000]].concat();
                let mut bytes = archive(&[("a/data.pkl", &program)], CompressionMethod::Deflated);
                let length = (program.len() as u32).to_le_bytes();
                while let Some(at) = bytes.windows(4).position(|window| window == length) {
                    bytes[at..at + 4].copy_from_slice(&100u32.to_le_bytes());
                }
                bytes
            },
        ),
        with_pickled(
            "an archive cut in half",
            "not a file of pickled weights",
            || {
                let whole = include_bytes!("conformance/unet_pickled/diffusion_pytorch_model.bin");
                whole[..whole.len() / 2].to_vec()
            },
        ),
        with_pickled(
            "a pipe for pickled weights",
            "not an ordinary file",
            Vec::new,
        )
        .with(|folder| {
            fs::remove_file(folder.join(PICKLED)).unwrap();
            pipe(&folder.join(PICKLED));
        }),
    ]
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn idx_header(count: u32, height: u32, width: u32) -> Vec<u8> {
    let fields = [0x0803, count, height, width];
    fields
        .iter()
        .flat_map(|field| field.to_be_bytes())
        .collect()
}

/// A PNG chunk with its checksum.
fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let checked = [&kind[..], content].concat();
    let mut sum = flate2::Crc::new();
    sum.update(&checked);
    let length = (content.len() as u32).to_be_bytes();
    [&length[..], &checked, &sum.sum().to_be_bytes()].concat()
}

fn png(width: u32, height: u32, depth: u8, colour: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&size[..], &[depth, colour, 0, 0, 0]].concat();
    let end = chunk(b"IEND", b"");
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunks.concat(),
        end,
    ]
    .concat()
}

fn deflated(length: usize) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0; length]).unwrap();
    encoder.finish().unwrap()
}

fn pictures() -> Vec<Case> {
    let idx = |name, says, content: fn() -> Vec<u8>| {
        case(name, Reader::Idx, says, move |folder| {
            write(folder.join("images.gz"), content());
        })
    };
    let grey = |name, says, content: fn() -> Vec<u8>| {
        case(name, Reader::GreyPng, says, move |folder| {
            write(folder.join("tshirt.png"), content());
        })
    };
    let images = |name, says, file: &'static str, content: fn() -> Vec<u8>| {
        case(name, Reader::Images, says, move |folder| {
            write(folder.join(file), content());
        })
    };
    vec![
        idx("four billion images", "4294967295 images", || {
            gzipped(&idx_header(u32::MAX, 28, 28))
        }),
        idx(
            "ten images, then 300 MB of zeros",
            "continues after",
            || gzipped(&[idx_header(10, 28, 28), vec![0; 300_000_000]].concat()),
        ),
        idx("images of four billion rows", "4294967295", || {
            gzipped(&idx_header(1, u32::MAX, u32::MAX))
        }),
        idx("fewer pixels than promised", "ends after", || {
            gzipped(&[idx_header(100_000, 28, 28), vec![0; 100]].concat())
        }),
        idx("no archive", "Io", || vec![0; 1000]),
        grey("65,535 x 65,535 pixels", "tshirt.png", || {
            png(65_535, 65_535, 8, 0, &[chunk(b"IDAT", &deflated(1000))])
        }),
        grey("2^31 x 2^31 pixels", "tshirt.png", || {
            png(1 << 31, 1 << 31, 8, 0, &[])
        }),
        grey("no pixels", "tshirt.png", || png(0, 0, 8, 0, &[])),
        grey("28 x 28 pixels that are not there", "tshirt.png", || {
            png(28, 28, 8, 0, &[chunk(b"IDAT", &deflated(100))])
        }),
        grey("a chunk of 2^31 bytes", "tshirt.png", || {
            let mut bytes = png(28, 28, 8, 0, &[]);
            bytes[33..37].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
            bytes
        }),
        images("100,000 x 100,000 pixels", "UnreadFiles", "a.png", || {
            png(100_000, 100_000, 8, 2, &[chunk(b"IDAT", &deflated(1000))])
        }),
        images("16,384 x 16,384 pixels", "16384x16384", "a.png", || {
            png(16_384, 16_384, 8, 2, &[chunk(b"IDAT", &deflated(1000))])
        }),
        images(
            "8,192 x 8,192 pixels of 8 bytes",
            "UnreadFiles",
            "a.png",
            || png(8_192, 8_192, 16, 6, &[chunk(b"IDAT", &deflated(1 << 29))]),
        ),
        images(
            "a text chunk of 300 MB, compressed 1:1000",
            "UnreadFiles",
            "a.png",
            || {
                let text = [b"Comment\0\0".to_vec(), deflated(300_000_000)].concat();
                png(
                    64,
                    64,
                    8,
                    2,
                    &[chunk(b"zTXt", &text), chunk(b"IDAT", &deflated(1))],
                )
            },
        ),
        images(
            "a colour profile of 300 MB, compressed 1:1000",
            "UnreadFiles",
            "a.png",
            || {
                let profile = [b"p\0\0".to_vec(), deflated(300_000_000)].concat();
                png(
                    64,
                    64,
                    8,
                    2,
                    &[chunk(b"iCCP", &profile), chunk(b"IDAT", &deflated(1))],
                )
            },
        ),
        images(
            "a JPEG of 65,535 x 65,535 pixels",
            "UnreadFiles",
            "a.jpg",
            || {
                let mut bytes = b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03".to_vec();
                bytes.extend(b"\x01\x11\0\x02\x11\0\x03\x11\0\xff\xd9");
                bytes
            },
        ),
        images(
            "a BMP of 2^31 pixels a side",
            "UnreadFiles",
            "a.bmp",
            || {
                let mut bytes = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
                bytes.extend(i32::MAX.to_le_bytes());
                bytes.extend(i32::MAX.to_le_bytes());
                bytes.extend(b"\x01\0\x18\0\0\0\0\0");
                bytes.extend([0; 20]);
                bytes
            },
        ),
        images(
            "a WebP of 16,384 x 16,384 pixels",
            "UnreadFiles",
            "a.webp",
            || {
                let mut bytes = b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".to_vec();
                bytes.extend(b"\xff\x3f\0\xff\x3f\0");
                bytes
            },
        ),
        images("another kind of file", "UnreadFiles", "a.png", || {
            CALL.to_vec()
        }),
        images(
            "a GIF of 65,535 x 65,535 pixels",
            "UnreadFiles",
            "a.gif",
            || {
                let mut bytes = b"GIF89a\xff\xff\xff\xff\x80\0\0RGBrgb".to_vec();
                bytes.extend(b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x44\x0a\0;");
                bytes
            },
        ),
        images(
            "a PPM of 65,535 x 1,000,000 pixels",
            "UnreadFiles",
            "a.ppm",
            || b"P6 65535 1000000 255\n".to_vec(),
        ),
        images(
            "a TIFF whose directories go in a circle",
            "UnreadFiles",
            "a.tif",
            || {
                let mut bytes = b"II*\0\x08\0\0\0\x01\0\0\x01\x04\0\x01\0\0\0".to_vec();
                bytes.extend(b"\x04\0\0\0\x08\0\0\0");
                bytes
            },
        ),
        images("a TIFF of 2^32 entries", "UnreadFiles", "a.tif", || {
            b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\xff\xff\xff\xff".to_vec()
        }),
        case(
            "a folder that is linked into itself",
            Reader::Images,
            "a link to a folder",
            |folder| {
                symlink(folder, folder.join("again")).unwrap();
            },
        ),
        case(
            "an endless device for an image",
            Reader::Images,
            "neither a file nor a folder",
            |folder| {
                symlink("/dev/zero", folder.join("a.png")).unwrap();
            },
        ),
    ]
}

/// The report of a child on a case.
struct Outcome {
    refusal: Result<(), String>,
    took: Duration,
    peak_mebibytes: u64,
}

/// Reads a folder in a child of this process, which is stopped after four times the allowed time,
/// and whose memory is limited.
fn in_a_child(reader: Reader, folder: &Path) -> Result<Outcome, String> {
    let own = std::env::current_exe().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 8388608; exec \"$0\" \"$@\""])
        .arg(own)
        .args(["hostile_files_are_refused", "--exact", "--nocapture"])
        .env(CASE, format!("{reader:?}:{}", folder.display()))
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > Duration::from_secs(4 * SECONDS) {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err("it did not come to an end".into());
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("OUTCOME\t"));
    let Some(line) = line else {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {errors}", output.status));
    };
    let mut fields = line.splitn(3, '\t');
    let mut field = || fields.next().unwrap_or_default();
    let (micros, kibibytes) = (field().parse().unwrap(), field().parse::<u64>().unwrap());
    let refusal = match field() {
        "" => Ok(()),
        text => Err(text.to_string()),
    };
    Ok(Outcome {
        refusal,
        took: Duration::from_micros(micros),
        peak_mebibytes: kibibytes >> 10,
    })
}

/// The part of the child: reports one case in one line.
fn report_case(case: &str) {
    let (name, folder) = case.split_once(':').unwrap();
    let is_named = |reader: &Reader| format!("{reader:?}") == name;
    let reader = READERS.into_iter().find(is_named).unwrap();
    let began = Instant::now();
    let refusal = attempt(reader, Path::new(folder)).err().unwrap_or_default();
    let took = began.elapsed().as_micros();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.unwrap().trim().trim_end_matches(" kB");
    let refusal = refusal.replace(['\n', '\t'], " ");
    // Messages are for people, and a pipe holds only 64 kB.
    assert!(refusal.len() < 2000, "a message of {} bytes", refusal.len());
    println!("\nOUTCOME\t{took}\t{peak}\t{refusal}");
}

#[test]
fn hostile_files_are_refused() {
    if let Ok(case) = std::env::var(CASE) {
        return report_case(&case);
    }
    let kinds = [
        safetensors(),
        configurations(),
        indices(),
        pickles(),
        pictures(),
    ];
    let cases: Vec<Case> = kinds.into_iter().flatten().collect();
    let mut failures = Vec::new();
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for case in &cases {
        let folder = tempfile::tempdir().unwrap();
        (case.make)(folder.path());
        let problem = match in_a_child(case.reader, folder.path()) {
            Err(end) => Some(end),
            Ok(outcome) => {
                slowest = slowest.max(outcome.took);
                largest = largest.max(outcome.peak_mebibytes);
                println!(
                    "{:>6} ms {:>4} MiB  {}",
                    outcome.took.as_millis(),
                    outcome.peak_mebibytes,
                    case.name
                );
                match &outcome.refusal {
                    Ok(()) => Some("it was accepted".into()),
                    Err(text) if !text.contains(case.says) => Some(text.clone()),
                    Err(_) if outcome.took > Duration::from_secs(SECONDS) => {
                        Some(format!("it took {:?}", outcome.took))
                    }
                    Err(_) if outcome.peak_mebibytes > MEBIBYTES => {
                        Some(format!("it took {} MiB", outcome.peak_mebibytes))
                    }
                    Err(_) => None,
                }
            }
        };
        failures.extend(problem.map(|problem| format!("{}: {problem}", case.name)));
    }
    println!(
        "{} hostile files, the slowest refused in {slowest:?}, at most {largest} MiB",
        cases.len()
    );
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(cases.len() >= 80);
}

/// Found by a fuzzer: burn panics on a state whose rank is given twice.
#[test]
fn an_optimisers_state_of_two_ranks_is_refused() {
    let bytes = include_bytes!("../fuzz/seeds/checkpoint/optimizer_of_two_ranks");
    let refused = checkpoint::sealed("optimizer.bpk", &bytes[1..]);
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("not the state of this optimiser"), "{text}");
}

/// A target of the next test: its name, valid bytes, and the reader.
type Target = (&'static str, Vec<u8>, fn(&[u8]) -> bool);

fn targets() -> Vec<Target> {
    let folder = tempfile::tempdir().unwrap();
    let config = UNet2dConfig::from_json(readers::CONFIG, "config.json").unwrap();
    let network = config.init(&Device::flex()).unwrap();
    network.save(folder.path()).unwrap();
    let read = |name| fs::read(folder.path().join(name)).unwrap();
    let scheduler = br#"{"_class_name": "DDPMScheduler", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
        "clip_sample": true, "num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "leading",
        "trained_betas": null, "variance_type": "fixed_small", "rescale_betas_zero_snr": false}"#;
    let pipeline = br#"{"_class_name": "DDPMPipeline", "_diffusers_version": "0.42.1", "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"], "safety_checker": [null, null]}"#;
    let levels = br#"{"timesteps":[0,250,1000],"levels":[[0.1,0.2,0.9],[1e-3,2,3]],"own_losses":[[0.1,0.1,0.9],[0,2,3]],
        "origin":{"prediction_type":"epsilon","signal_scales":[1,0.7,0],"noise_scales":[0,0.7,1]}}"#;
    let pickled = include_bytes!("conformance/unet_pickled/diffusion_pytorch_model.bin");
    let tshirt = include_bytes!("../examples/assets/data/tshirt.png");
    let idx = [idx_header(2, 28, 28), vec![7; 2 * 784]].concat();
    let part = |name: &str| checkpoint::sound()[name].clone();
    vec![
        ("network configuration", read("config.json"), |bytes| {
            readers::unet_config(bytes).is_ok()
        }),
        ("scheduler configuration", scheduler.to_vec(), |bytes| {
            readers::scheduler_config(bytes).is_ok()
        }),
        ("safetensors", read(WEIGHTS), |bytes| {
            readers::safetensors(bytes).is_ok()
        }),
        ("index of weights", readers::index_of_parts(), |bytes| {
            readers::weight_index(bytes).is_ok()
        }),
        ("index of a pipeline", pipeline.to_vec(), |bytes| {
            readers::pipeline_index(bytes).is_ok()
        }),
        ("pickle", pickled.to_vec(), |bytes| {
            readers::pickle(bytes).is_ok()
        }),
        ("levels", levels.to_vec(), |bytes| {
            readers::levels(bytes).is_ok()
        }),
        ("idx", idx, |bytes| readers::idx(bytes).is_ok()),
        ("grey png", tshirt.to_vec(), |bytes| {
            readers::grey_png(bytes).is_ok()
        }),
        ("picture", tshirt.to_vec(), |bytes| {
            readers::picture(bytes, "png").is_ok()
        }),
        ("manifest", part("manifest.json"), |bytes| {
            checkpoint::manifest(bytes).is_ok()
        }),
        ("state, digest right", part("state.json"), |bytes| {
            checkpoint::sealed("state.json", bytes).is_ok()
        }),
        ("model, digest right", part("model.bpk"), |bytes| {
            checkpoint::sealed("model.bpk", bytes).is_ok()
        }),
        ("average, digest right", part("ema.bpk"), |bytes| {
            checkpoint::sealed("ema.bpk", bytes).is_ok()
        }),
        ("optimiser, digest right", part("optimizer.bpk"), |bytes| {
            checkpoint::sealed("optimizer.bpk", bytes).is_ok()
        }),
    ]
}

/// Makes one to four changes: bytes, bits, numbers set to extreme values, pieces removed,
/// duplicated or cut off. The ends of a file, where headers and directories are, change more often
/// than the middle.
fn mutated(bytes: &[u8], rng: &mut impl siss::rand::Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        let near = length.min(4096);
        let at = match rng.random_range(0..4) {
            0 => rng.random_range(0..length),
            1 => length - 1 - rng.random_range(0..near),
            _ => rng.random_range(0..near),
        };
        let piece = at..(at + rng.random_range(1..64)).min(length);
        match rng.random_range(0..8) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes[piece].fill([0, 0xff, b'9', b'['][rng.random_range(0..4)]),
            3 => drop(bytes.drain(piece)),
            4 => bytes.truncate(at),
            5 => {
                let again = bytes[piece].to_vec();
                bytes.splice(at..at, again);
            }
            6 => {
                let number =
                    [u64::MAX, 1 << 63, 1 << 32, 1 << 31, 0, 65_536][rng.random_range(0..6)];
                let end = (at + 8).min(length);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            _ => {
                let text = [
                    "1e999",
                    "-1",
                    "99999999999999999999",
                    "null",
                    "{}",
                    "[]",
                    "\"\"",
                ];
                bytes.splice(at..at, text[rng.random_range(0..7)].bytes());
            }
        }
    }
    bytes
}

/// At least 300 changed files of each kind, or as many as fit in a minute with `SISS_SOAK=1`.
#[test]
fn files_changed_at_random_never_panic_and_never_hang() {
    let soak = std::env::var_os("SISS_SOAK").map(|_| Duration::from_secs(60));
    for (index, (name, sound, read)) in targets().into_iter().enumerate() {
        assert!(read(&sound), "{name}: the sound file is refused");
        let (began, mut runs, mut accepted) = (Instant::now(), 0, 0);
        while runs < 400 || soak.is_some_and(|time| began.elapsed() < time) {
            let mut rng = keyed_rng(9, runs, index as u64, Stream::Evaluation);
            let bytes = mutated(&sound, &mut rng);
            let started = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
            let took = started.elapsed();
            if outcome.is_err() || took > Duration::from_secs(SECONDS) {
                let kept = std::env::temp_dir().join(format!("siss-{index}-{runs}"));
                fs::write(&kept, &bytes).unwrap();
                panic!(
                    "{name}, change {runs}: {took:?}, kept as {}",
                    kept.display()
                );
            }
            accepted += usize::from(outcome.unwrap());
            runs += 1;
        }
        println!(
            "{name}: {runs} changed files, {accepted} of them still sound, {:?}",
            began.elapsed()
        );
    }
}
