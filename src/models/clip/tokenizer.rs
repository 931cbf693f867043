//! The tokenizer of CLIP's text encoders.

use std::io::Read;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::files::json::python_object;
use crate::files::{invalid, open, read_configuration};

const VOCABULARY: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// The folder of the tokenizer in a pipeline.
const FOLDER: &str = "tokenizer";
/// Files that say which token pads a prompt; the first one that does counts.
const SETTINGS: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Tokens of a prompt, start and end included.
const LENGTH: usize = 77;
/// Longest file that is read: the published vocabulary has 1 MiB.
const LONGEST: u64 = 64 << 20;
/// Words, single digits, runs of other signs, and endings such as `'s`.
const PIECES: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokenizer of CLIP's text encoders: prompts to 77 token ids.
///
/// A prompt is brought into NFC, its white space to single spaces, and its letters to lower case;
/// its pieces are encoded by byte pairs. It is cut to 77 tokens with start and end, or padded with
/// the token that the folder says: `<|endoftext|>` for Stable Diffusion 1 and for the first encoder
/// of XL, `!` for version 2 and the second encoder of XL.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
}

impl ClipTokenizer {
    /// Reads `vocab.json` and `merges.txt` of a folder, or of a pipeline's folder `tokenizer`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidFile`] for a file that is longer than 64 MiB, or is not a
    /// vocabulary or a list of merges of one.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let root = folder.as_ref();
        let name = root.file_name().unwrap_or_default().to_string_lossy();
        let is_own = root.join(VOCABULARY).exists() || name.starts_with(FOLDER);
        let folder = match is_own {
            true => root.to_path_buf(),
            false => root.join(FOLDER),
        };
        let path = folder.join(VOCABULARY);
        let vocabulary = python_object(&text(&path)?)
            .map_err(|error| invalid(&path, format!("not a vocabulary: {error}")))?;
        let padding = padding(&folder)?;
        for token in [START, END, &padding] {
            if !vocabulary.get(token).is_some_and(Value::is_u64) {
                return Err(invalid(&path, format!("it has no token `{token}`")));
            }
        }
        let merges = text(&folder.join(MERGES))?;
        let merges = merges.lines().filter(|line| !line.starts_with("#version"));
        let merges: Vec<&str> = merges.filter(|line| !line.trim().is_empty()).collect();
        let settings = settings(&vocabulary, &merges, &padding);
        let tokenizer =
            Tokenizer::from_bytes(settings.to_string().as_bytes()).map_err(|error| {
                let file = folder.join(MERGES);
                invalid(
                    &file,
                    format!("the vocabulary and the merges do not fit: {error}"),
                )
            })?;
        Ok(Self { tokenizer })
    }

    /// The ids of a prompt, 77 of them.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] if the text cannot be encoded.
    pub fn ids(&self, prompt: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(prompt, true);
        let encoding = encoding.map_err(|error| Error::InvalidSetting {
            what: format!("a prompt cannot be encoded: {error}"),
            remedy: "give text of letters, numbers and signs",
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens that end a word and can be one, in the order of their ids: those of two and more
    /// letters from a to z. In the published vocabulary the frequent ones come first; some of them
    /// are endings, such as `ing`.
    pub fn words(&self) -> Vec<String> {
        let vocabulary = self.tokenizer.get_vocab(false);
        let word = |(token, id): (String, u32)| {
            let word = token.strip_suffix("</w>")?;
            let is_word = word.len() >= 2 && word.bytes().all(|byte| byte.is_ascii_lowercase());
            is_word.then(|| (id, word.to_string()))
        };
        let mut words: Vec<_> = vocabulary.into_iter().filter_map(word).collect();
        words.sort();
        words.into_iter().map(|(_, word)| word).collect()
    }

    /// The ids of prompts, for [`ClipTextEncoder::encode`](super::ClipTextEncoder::encode).
    ///
    /// # Shapes
    /// - the result: `[prompts, 77]`
    ///
    /// # Errors
    /// [`Error::Empty`] if there are none, and those of [`ids`](ClipTokenizer::ids).
    pub fn encode(&self, prompts: &[impl AsRef<str>], device: &Device) -> Result<Tensor<2, Int>> {
        if prompts.is_empty() {
            return Err(Error::Empty {
                what: "the list of prompts",
                remedy: "give at least one prompt, which may be the empty text",
            });
        }
        let mut ids = Vec::with_capacity(prompts.len() * LENGTH);
        for prompt in prompts {
            let of_prompt = self.ids(prompt.as_ref())?;
            ids.extend(of_prompt.into_iter().map(|id| id as i32));
        }
        let shape = [prompts.len(), LENGTH];
        Ok(Tensor::from_data(TensorData::new(ids, shape), device))
    }
}

/// The text of a file.
fn text(path: &Path) -> Result<String> {
    let (mut file, bytes) = open(path)?;
    if bytes > LONGEST {
        return Err(invalid(path, "it is longer than 64 MiB"));
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)
        .map_err(Error::io("reading", path))?;
    String::from_utf8(text).map_err(|_| invalid(path, "it is not UTF-8"))
}

/// The token that pads a prompt, according to the settings in the folder.
fn padding(folder: &Path) -> Result<String> {
    for name in SETTINGS {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let object = python_object(&read_configuration(&path)?)
            .map_err(|error| invalid(&path, format!("not the settings of a tokenizer: {error}")))?;
        let token = match object.get("pad_token") {
            Some(Value::Object(token)) => token.get("content"),
            other => other,
        };
        if let Some(Value::String(token)) = token {
            return Ok(token.clone());
        }
    }
    Ok(END.into())
}

/// The tokenizer in the format of `tokenizer.json`.
fn settings(vocabulary: &Map<String, Value>, merges: &[&str], padding: &str) -> Value {
    let special = |token: &str| {
        json!({
            "id": vocabulary.get(token), "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    };
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": LENGTH, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": LENGTH}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": vocabulary.get(padding), "pad_type_id": 0, "pad_token": padding
        },
        "added_tokens": [special(START), special(END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"}
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [END, vocabulary.get(END)], "cls": [START, vocabulary.get(START)],
            "trim_offsets": false, "add_prefix_space": false
        },
        "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of the letters of "a cat", in a pipeline's folder.
    fn folder(settings: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join(FOLDER);
        std::fs::create_dir(&inside).unwrap();
        let vocabulary = json!({
            "a": 0, "c": 1, "t": 2, "a</w>": 3, "t</w>": 4, "ca": 5, "cat</w>": 6, "!": 7, "!</w>": 8,
            START: 9, END: 10
        });
        std::fs::write(inside.join(VOCABULARY), vocabulary.to_string()).unwrap();
        std::fs::write(inside.join(MERGES), "#version: 0.2\nc a\nca t</w>\n").unwrap();
        std::fs::write(inside.join(SETTINGS[0]), settings).unwrap();
        folder
    }

    #[test]
    fn prompts_have_a_start_an_end_and_padding() {
        for (settings, padding) in [
            ("{}", 10),
            (r#"{"pad_token": "!"}"#, 7),
            (r#"{"pad_token": {"content": "!"}}"#, 7),
        ] {
            let tokenizer = ClipTokenizer::load(folder(settings).path()).unwrap();
            let ids = tokenizer.ids("  A\n CAT ").unwrap();
            assert_eq!(ids.len(), LENGTH);
            assert_eq!(ids[..4], [9, 3, 6, 10]);
            assert!(ids[4..].iter().all(|&id| id == padding), "{ids:?}");
        }
    }

    #[test]
    fn words_end_and_have_two_letters() {
        let tokenizer = ClipTokenizer::load(folder("{}").path()).unwrap();
        assert_eq!(tokenizer.words(), ["cat"]);
        let published = ClipTokenizer::load(published().path()).unwrap().words();
        assert!(published.len() > 20_000, "{}", published.len());
        assert_eq!(published[..2], ["the", "ing"]);
    }

    #[test]
    fn a_long_prompt_is_cut_and_keeps_its_end() {
        let tokenizer = ClipTokenizer::load(folder("{}").path()).unwrap();
        let ids = tokenizer
            .encode(&["cat ".repeat(100)], &Device::flex())
            .unwrap();
        assert_eq!(ids.dims(), [1, LENGTH]);
        let ids: Vec<i64> = ids.into_data().convert::<i64>().try_to_vec().unwrap();
        assert_eq!((ids[0], ids[1], ids[75], ids[76]), (9, 6, 6, 10));
    }

    /// The vocabulary and the merges that CLIP's own file stands for: bytes, bytes at the end of a
    /// word, the merges, and the two special tokens.
    fn published() -> tempfile::TempDir {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/clip_vocabulary");
        let file = std::fs::File::open(cases.join("bpe_simple_vocab_16e6.txt.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        let merges: Vec<&str> = text.lines().skip(1).take(49_152 - 256 - 2).collect();
        let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let bytes = (0..256).filter(printable);
        let others = (0..256u32).filter(|byte| !printable(byte)).count() as u32;
        let bytes: Vec<char> = bytes
            .chain(256..256 + others)
            .filter_map(char::from_u32)
            .collect();
        let mut tokens: Vec<String> = bytes.iter().map(char::to_string).collect();
        tokens.extend(bytes.iter().map(|byte| format!("{byte}</w>")));
        tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        tokens.extend([START, END].map(String::from));
        let ids = tokens.into_iter().enumerate();
        let vocabulary: Map<String, Value> =
            ids.map(|(id, token)| (token, Value::from(id))).collect();
        let folder = tempfile::tempdir().unwrap();
        let text = Value::Object(vocabulary).to_string();
        std::fs::write(folder.path().join(VOCABULARY), text).unwrap();
        std::fs::write(folder.path().join(MERGES), merges.join("\n")).unwrap();
        folder
    }

    /// The tokens are those of transformers' CLIP tokenizer.
    #[test]
    fn prompts_have_the_published_tokens() {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/conformance/clip_vocabulary/prompts.json");
        let cases = std::fs::read_to_string(cases).unwrap();
        let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
        assert_eq!(cases.len(), 5);
        let tokenizer = ClipTokenizer::load(published().path()).unwrap();
        for case in cases {
            let expected: Vec<u32> = serde_json::from_value(case["input_ids"].clone()).unwrap();
            let prompt = case["prompt"].as_str().unwrap();
            assert_eq!(tokenizer.ids(prompt).unwrap(), expected, "{prompt}");
        }
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        for (name, content) in [
            (VOCABULARY, "[]"),
            (VOCABULARY, "{\"a\": 1}"),
            (MERGES, "z z\n"),
            (SETTINGS[0], "{"),
        ] {
            let folder = folder("{}");
            std::fs::write(folder.path().join(FOLDER).join(name), content).unwrap();
            let error = ClipTokenizer::load(folder.path()).unwrap_err();
            assert!(matches!(error, Error::InvalidFile { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        let tokenizer = ClipTokenizer::load(folder("{}").path()).unwrap();
        let none: [&str; 0] = [];
        assert!(tokenizer.encode(&none, &Device::flex()).is_err());
    }
}
