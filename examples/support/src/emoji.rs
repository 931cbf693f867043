//! Loads the colour pictures to keep and the four faces to forget.

use std::path::Path;

use image::DynamicImage;
use serde::Deserialize;
use siss::Result;
use siss::burn::tensor::{Device, Tensor, TensorData};
use siss::draws::{Stream, keyed_rng};
use siss::rand::seq::SliceRandom;

use crate::digits::{decode_png, invalid};
use crate::files::read_text;

const SHEET: &str = "data/emoji32.png";
const CAPTIONS: &str = "data/emoji32.json";
/// Pictures in a row of the sheet.
const COLUMNS: usize = 64;
/// Height and width of a picture.
const SIDE: usize = 32;
const CHANNELS: usize = 3;
/// The faces to forget: with a cowboy hat, of a clown, of a robot, of a genie.
const FACES: [&str; 4] = ["1f920", "1f921", "1f916", "1f9de"];
/// Pictures that no model has seen.
const NUM_HELDOUT: usize = 100;

/// Colour emoji on white.
///
/// # Shapes
/// - all: `[count, 3, 32, 32]` in `[-1, 1]`
#[derive(Debug)]
pub struct Emoji {
    /// What all models were trained on.
    pub retain: Tensor<4>,
    /// A hundred pictures that no model has seen, none of them one of several skin tones.
    pub heldout: Tensor<4>,
    /// The four faces to forget.
    pub faces: Tensor<4>,
}

/// What is said of a picture of the sheet.
#[derive(Debug, Deserialize)]
struct Caption {
    code: String,
    skin_tone: Option<String>,
}

/// Loads the pictures from the folder of the example's files.
///
/// # Errors
/// [`Error::Io`](siss::Error::Io) if a file cannot be read;
/// [`Error::InvalidFile`](siss::Error::InvalidFile) if it is not that sheet, or its captions.
pub fn load_emoji(assets: &Path, device: &Device) -> Result<Emoji> {
    let captions = read_captions(assets)?;
    let faces = find(assets, &captions, &FACES)?;
    let variants: Vec<&str> = (captions.iter())
        .filter(|caption| caption.skin_tone.is_some())
        .filter_map(|caption| caption.code.split('-').next())
        .collect();
    let mut single: Vec<usize> = (0..captions.len())
        .filter(|place| !faces.contains(place))
        .filter(|&place| {
            let code = &captions[place].code;
            !variants.contains(&code.split('-').next().unwrap_or(code))
        })
        .collect();
    single.shuffle(&mut keyed_rng(0, 0, 0, Stream::Evaluation));
    single.truncate(NUM_HELDOUT);
    single.sort_unstable();
    let retain: Vec<usize> = (0..captions.len())
        .filter(|place| !faces.contains(place) && single.binary_search(place).is_err())
        .collect();

    let sheet = read_sheet(&assets.join(SHEET), captions.len())?;
    let pictures = |places: &[usize]| to_tensor(&sheet, places, device);
    Ok(Emoji {
        retain: pictures(&retain),
        heldout: pictures(&single),
        faces: pictures(&faces),
    })
}

/// Loads the pictures with these codes, `[codes, 3, 32, 32]` in `[-1, 1]`.
///
/// # Errors
/// Those of [`load_emoji`], and [`Error::InvalidFile`](siss::Error::InvalidFile) for a code that
/// the sheet does not have.
pub fn load_pictures(
    assets: &Path,
    codes: &[impl AsRef<str>],
    device: &Device,
) -> Result<Tensor<4>> {
    let captions = read_captions(assets)?;
    let places = find(assets, &captions, codes)?;
    let sheet = read_sheet(&assets.join(SHEET), captions.len())?;
    Ok(to_tensor(&sheet, &places, device))
}

fn read_captions(assets: &Path) -> Result<Vec<Caption>> {
    let path = assets.join(CAPTIONS);
    serde_json::from_str(&read_text(&path)?).map_err(|error| invalid(&path, error.to_string()))
}

/// The places of pictures in the sheet.
fn find(assets: &Path, captions: &[Caption], codes: &[impl AsRef<str>]) -> Result<Vec<usize>> {
    let places = codes.iter().map(|code| {
        let code = code.as_ref();
        let place = captions.iter().position(|caption| caption.code == code);
        place.ok_or_else(|| invalid(&assets.join(CAPTIONS), format!("it has no picture {code}")))
    });
    places.collect()
}

/// Pictures of the sheet, `[places, 3, 32, 32]`.
fn to_tensor(sheet: &[u8], places: &[usize], device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (places.iter())
        .flat_map(|&place| picture(sheet, place))
        .collect();
    let shape = [places.len(), CHANNELS, SIDE, SIDE];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The pixels of the sheet, row by row, if it has room for so many pictures.
fn read_sheet(path: &Path, pictures: usize) -> Result<Vec<u8>> {
    let [width, height] = [COLUMNS, pictures.div_ceil(COLUMNS)].map(|count| count * SIDE);
    match decode_png(path, [height, width])? {
        DynamicImage::ImageRgb8(sheet) => Ok(sheet.into_raw()),
        other => Err(invalid(
            path,
            format!("it has pixels of {:?}, not of RGB8", other.color()),
        )),
    }
}

/// The values of a picture, channel after channel, with `0, …, 255` mapped onto `[-1, 1]`.
fn picture(sheet: &[u8], place: usize) -> impl Iterator<Item = f32> {
    let (row, column) = (place / COLUMNS * SIDE, place % COLUMNS * SIDE);
    let pixel = move |index: usize| {
        let (channel, place) = (index / (SIDE * SIDE), index % (SIDE * SIDE));
        let (y, x) = (row + place / SIDE, column + place % SIDE);
        f32::from(sheet[(y * COLUMNS * SIDE + x) * CHANNELS + channel]) / 127.5 - 1.0
    };
    (0..CHANNELS * SIDE * SIDE).map(pixel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digits::ASSETS;

    #[test]
    fn the_sheet_is_divided_into_what_is_kept_held_out_and_forgotten() {
        let emoji = load_emoji(Path::new(ASSETS), &Device::flex()).unwrap();
        assert_eq!(emoji.faces.dims(), [4, 3, 32, 32]);
        assert_eq!(emoji.heldout.dims(), [100, 3, 32, 32]);
        assert_eq!(emoji.retain.dims(), [3216 - 104, 3, 32, 32]);
        let values: Vec<f32> = emoji.faces.into_data().try_to_vec().unwrap();
        assert_eq!(values[0], 1.0, "a white corner");
        let mean = |face: usize, channel: usize| {
            let plane = &values[(face * 3 + channel) * 1024..][..1024];
            plane.iter().sum::<f32>() / 1024.0
        };
        // The cowboy is yellow and brown, the genie blue.
        assert!(mean(0, 0) > mean(0, 2) + 0.2 && mean(3, 2) > mean(3, 0) + 0.05);
        assert!(values.iter().all(|value| (-1.0..=1.0).contains(value)));
    }
}
