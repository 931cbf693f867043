//! Pickled weights, as `torch.save` writes them.
//!
//! A pickle is a program: Python's own reader imports the functions it names and calls them. burn's
//! reader only runs the stack machine. A name stays a name. A call of one of the few functions that
//! build a tensor or a container is carried out by the reader's own code, and any other call
//! becomes a placeholder value. A hostile file can therefore be refused, but cannot run anything.
//!
//! Only the zip archives that PyTorch writes since version 1.6 are read. In these, the program is
//! an entry of its own with a known length. The length is limited because each byte of a program
//! can create a value that takes a hundred bytes.

use std::collections::BTreeMap;
use std::io::{BufReader, ErrorKind};
use std::path::Path;

use burn::store::bridge::from_pytorch;
use burn::store::pytorch_reader::{PickleError, PickleValue, PytorchError, PytorchReader};

use zip::ZipArchive;
use zip::result::ZipError;

use super::StoredTensors;
use crate::error::{Error, Result};
use crate::files::{invalid, open};

/// The only entry of a state dictionary that is not a tensor: version numbers of PyTorch's layers.
const LAYER_VERSIONS: &str = "_metadata";
/// The end of the name of the entry with the program.
const PROGRAM: &[u8] = b"data.pkl";
/// Longest program that is read.
const LONGEST_PROGRAM: u64 = 1 << 20;

/// The tensors of a state dictionary. Any other kind of entry is refused.
///
/// # Errors
/// [`Error::Io`], [`Error::InvalidFile`].
pub(super) fn tensors(path: &Path) -> Result<StoredTensors> {
    check_archive(path)?;
    let reader = PytorchReader::new(path).map_err(|error| unreadable(error, path))?;
    let tensors: StoredTensors = reader
        .into_tensors()
        .into_iter()
        .map(|(name, tensor)| (name, from_pytorch(tensor)))
        .collect();
    check_entries(&tensors, path)?;
    Ok(tensors)
}

/// Refuses a file that is not a PyTorch archive, and one whose program is longer than that of any
/// network's weights.
fn check_archive(path: &Path) -> Result<()> {
    let (file, _) = open(path)?;
    let no_archive = |error: ZipError| {
        invalid(
            path,
            format!(
                "not a file of pickled weights as PyTorch writes them since version 1.6, or a damaged one; save the model from Python with `safe_serialization=True`: {error}"
            ),
        )
    };
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(no_archive)?;
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(no_archive)?;
        if entry.name_raw().ends_with(PROGRAM) && entry.size() > LONGEST_PROGRAM {
            let message = format!(
                "its pickle has {} bytes; at most 1 MiB is read, which is enough for thousands of tensors",
                entry.size()
            );
            return Err(invalid(path, message));
        }
    }
    Ok(())
}

/// Refuses entries that are not tensors: the reader drops them, and a file of weights has no use
/// for them.
fn check_entries(tensors: &StoredTensors, path: &Path) -> Result<()> {
    let root = PytorchReader::read_pickle_data(path, None);
    let PickleValue::Dict(entries) = root.map_err(|error| unreadable(error, path))? else {
        return Ok(());
    };
    let entries = BTreeMap::from_iter(entries);
    let other = entries
        .iter()
        .find(|(name, _)| *name != LAYER_VERSIONS && !tensors.contains_key(*name));
    let Some((name, value)) = other else {
        return Ok(());
    };
    let kind = match value {
        PickleValue::Unsupported(kind) => format!("a `{kind}`, not a tensor"),
        _ => "not a tensor".into(),
    };
    let message = format!("its entry `{name}` is {kind}; save the model's state dictionary alone");
    Err(invalid(path, message))
}

fn unreadable(error: PytorchError, path: &Path) -> Error {
    match error {
        PytorchError::Io(source) | PytorchError::Pickle(PickleError::Io(source))
            if !matches!(
                source.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData
            ) =>
        {
            Error::io("reading", path)(source)
        }
        other => invalid(
            path,
            format!(
                "not a file of pickled weights, or a damaged one; save the model from Python with `safe_serialization=True`: {other}"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use burn::tensor::Device;

    use super::super::{CONFIG, PICKLED, WEIGHTS};
    use super::*;
    use crate::models::{UNet2d, UNet2dConfig};

    /// A network with the attention names of old files, written by PyTorch.
    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/unet_pickled")
    }

    fn fixture_bytes() -> Vec<u8> {
        std::fs::read(fixture().join(PICKLED)).unwrap()
    }

    /// A folder with the configuration of the fixture and these weights.
    fn folder(weights: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture().join(CONFIG), folder.path().join(CONFIG)).unwrap();
        std::fs::write(folder.path().join(PICKLED), weights).unwrap();
        folder
    }

    fn load(folder: &Path) -> Result<UNet2d> {
        UNet2d::load(folder, &Device::flex())
    }

    fn saved(unet: &UNet2d) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        unet.save(folder.path()).unwrap();
        std::fs::read(folder.path().join(WEIGHTS)).unwrap()
    }

    /// `{"payload": os.system("touch MARKER")}`, or only the call.
    fn malicious(marker: &Path, in_dictionary: bool) -> Vec<u8> {
        let command = format!("touch {}", marker.display());
        let length = (command.len() as u32).to_le_bytes();
        let call = [
            b"cposix\nsystem\nX",
            &length[..],
            command.as_bytes(),
            b"\x85R",
        ]
        .concat();
        let entry = [b"}X\x07\0\0\0payload", &call[..], b"s"].concat();
        let value = if in_dictionary { entry } else { call };
        archive(&[b"\x80\x02", &value[..], b"."].concat())
    }

    /// The archive that `torch.save` would make of a pickle without tensors.
    fn archive(pickle: &[u8]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file("archive/data.pkl", options).unwrap();
        std::io::Write::write_all(&mut archive, pickle).unwrap();
        archive.finish().unwrap().into_inner()
    }

    #[test]
    fn pickled_weights_are_those_of_safetensors() {
        let unet = load(&fixture()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        unet.save(folder.path()).unwrap();
        assert_eq!(saved(&load(folder.path()).unwrap()), saved(&unet));
    }

    #[test]
    fn safetensors_come_first() {
        let folder = folder(b"not read");
        load(&fixture()).unwrap().save(folder.path()).unwrap();
        assert!(load(folder.path()).is_ok());
    }

    #[test]
    fn a_call_in_a_pickle_is_refused_and_not_made() {
        let place = tempfile::tempdir().unwrap();
        let marker = place.path().join("marker");
        for (in_dictionary, says) in [(false, "found posix.system"), (true, "`payload`")] {
            let weights = malicious(&marker, in_dictionary);
            let error = load(folder(&weights).path()).unwrap_err();
            assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains("posix.system"), "{error}");
            assert!(error.contains(says), "{error}");
        }
        assert!(!marker.exists());
    }

    #[test]
    fn truncated_weights_are_an_invalid_file() {
        let bytes = fixture_bytes();
        let lengths = (0..bytes.len()).step_by(4999);
        for length in lengths.chain([1, 2, 4, 30, bytes.len() - 1]) {
            let error = load(folder(&bytes[..length]).path()).unwrap_err();
            assert!(
                matches!(error, Error::InvalidFile { .. }),
                "{length}: {error}"
            );
        }
    }

    #[test]
    fn a_damaged_value_is_found() {
        let weights = saved(&load(&fixture()).unwrap());
        let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let values = weights.tensor("conv_in.weight").unwrap().data();
        let mut bytes = fixture_bytes();
        let mut windows = bytes.windows(values.len());
        let position = windows.position(|window| window == values).unwrap();
        bytes[position] ^= 1;
        let error = load(folder(&bytes).path()).unwrap_err().to_string();
        assert!(
            error.contains("unreadable") && error.contains("conv_in.weight"),
            "{error}"
        );
    }

    #[test]
    fn a_flipped_bit_never_panics() {
        let bytes = fixture_bytes();
        let ends = (0..8000).chain(bytes.len() - 8000..bytes.len());
        for position in ends.step_by(61) {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1 << (position % 8);
            let _ = load(folder(&damaged).path());
        }
    }

    #[test]
    fn tensors_that_do_not_fit_are_named() {
        let folder = folder(&fixture_bytes());
        let config = UNet2dConfig {
            in_channels: 1,
            ..load(&fixture()).unwrap().config().clone()
        };
        std::fs::write(
            folder.path().join(CONFIG),
            serde_json::to_string(&config).unwrap(),
        )
        .unwrap();
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("misshapen") && error.contains("conv_in.weight"),
            "{error}"
        );
    }
}
