//! Digits moved, turned and scaled a little.

use siss::rand::{Rng, RngExt};

/// Height and width of a digit.
pub const SIDE: usize = 28;
/// The value of the ground.
const BLACK: f32 = -1.0;
/// Pixels, radians and parts of the size, at most.
const SHIFT: f32 = 2.0;
const ANGLE: f32 = 0.2;
const SCALE: f32 = 0.1;

/// Another picture of the same digit: each pixel is interpolated from where it comes from.
pub fn distorted(digit: &[f32], random: &mut impl Rng) -> Vec<f32> {
    let angle = random.random_range(-ANGLE..ANGLE);
    let scale = random.random_range(1.0 - SCALE..1.0 + SCALE);
    let [down, right] = [(); 2].map(|()| random.random_range(-SHIFT..SHIFT));
    let (sine, cosine) = (scale * angle.sin(), scale * angle.cos());
    let middle = (SIDE as f32 - 1.0) / 2.0;
    let mut picture = Vec::with_capacity(SIDE * SIDE);
    for row in 0..SIDE {
        for column in 0..SIDE {
            let (y, x) = (row as f32 - middle, column as f32 - middle);
            let from_row = middle + cosine * y - sine * x + down;
            let from_column = middle + sine * y + cosine * x + right;
            picture.push(between(digit, from_row, from_column));
        }
    }
    picture
}

/// Bilinear interpolation; black outside.
fn between(digit: &[f32], row: f32, column: f32) -> f32 {
    let pixel = |row: f32, column: f32| {
        let is_inside = |at: f32| (0.0..SIDE as f32).contains(&at);
        match is_inside(row) && is_inside(column) {
            true => digit[row as usize * SIDE + column as usize],
            false => BLACK,
        }
    };
    let (top, left) = (row.floor(), column.floor());
    let (down, right) = (row - top, column - left);
    let above = (1.0 - right) * pixel(top, left) + right * pixel(top, left + 1.0);
    let below = (1.0 - right) * pixel(top + 1.0, left) + right * pixel(top + 1.0, left + 1.0);
    (1.0 - down) * above + down * below
}
