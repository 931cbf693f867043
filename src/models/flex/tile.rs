//! The matrix product behind convolution and attention: a tile of results is kept in registers.
//!
//! No crate offers a matrix product that is safe to call and takes its rows from arbitrary places;
//! here it takes a few lines. Because rows and factors may be anywhere, nothing has to be gathered
//! into columns first: a shifted image is read like any other.

use pulp::Simd;

/// Rows of a panel, of which a tile covers all or some.
pub(super) const ROWS: usize = 8;

/// Vectors per row of a tile.
pub(super) const VECTORS: usize = 2;

/// Columns of a strip: those of the widest tile.
pub(super) const STRIP: usize = 32;

/// Numbers per cache line.
const LINE: usize = 16;

/// A tile: as many rows as fit in the registers next to one row and one factor.
pub(super) type Tile<V, const HEIGHT: usize> = [[V; VECTORS]; HEIGHT];

/// A tile of zeros.
#[inline(always)]
pub(super) fn zeros<S: Simd, const HEIGHT: usize>(simd: S) -> Tile<S::f32s, HEIGHT> {
    [[simd.splat_f32s(0.0); VECTORS]; HEIGHT]
}

/// `tile[i] += Σₖ panel[k][part · HEIGHT + i] · source[offsets[k] ..]`.
#[inline(always)]
pub(super) fn multiply<S: Simd, const HEIGHT: usize>(
    simd: S,
    mut tile: Tile<S::f32s, HEIGHT>,
    (panel, part): (&[[f32; ROWS]], usize),
    offsets: &[usize],
    source: &[f32],
) -> Tile<S::f32s, HEIGHT> {
    for (factors, &offset) in panel.iter().zip(offsets) {
        let row = load::<S>(simd, &source[offset..]);
        let factors = &factors.as_chunks::<HEIGHT>().0[part];
        for (sums, &factor) in tile.iter_mut().zip(factors) {
            accumulate(simd, sums, factor, row);
        }
    }
    tile
}

/// `tile[i] += Σₖ source[offsets[k] + i] · panel[k][column ..]`.
#[inline(always)]
pub(super) fn multiply_shifted<S: Simd, const HEIGHT: usize>(
    simd: S,
    mut tile: Tile<S::f32s, HEIGHT>,
    panel: &[[f32; STRIP]],
    column: usize,
    offsets: &[usize],
    source: &[f32],
) -> Tile<S::f32s, HEIGHT> {
    for (line, &offset) in panel.iter().zip(offsets) {
        let row = load::<S>(simd, &line[column..]);
        let factors = &source[offset..][..HEIGHT];
        for (sums, &factor) in tile.iter_mut().zip(factors) {
            accumulate(simd, sums, factor, row);
        }
    }
    tile
}

/// `tile[i] += Σₖ streams[i][k] · matrix[k][column ..]`.
#[inline(always)]
pub(super) fn multiply_streams<S: Simd, const HEIGHT: usize>(
    simd: S,
    mut tile: Tile<S::f32s, HEIGHT>,
    streams: [&[f32]; HEIGHT],
    matrix: &[[f32; STRIP]],
    column: usize,
) -> Tile<S::f32s, HEIGHT> {
    let streams = streams.map(|stream| &stream[..matrix.len()]);
    for (k, line) in matrix.iter().enumerate() {
        let row = load::<S>(simd, &line[column..]);
        for (sums, stream) in tile.iter_mut().zip(streams) {
            accumulate(simd, sums, stream[k], row);
        }
    }
    tile
}

#[inline(always)]
fn accumulate<S: Simd>(
    simd: S,
    sums: &mut [S::f32s; VECTORS],
    factor: f32,
    row: [S::f32s; VECTORS],
) {
    let factor = simd.splat_f32s(factor);
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum = simd.mul_add_e_f32s(factor, value, *sum);
    }
}

/// The vectors at the beginning of a slice.
#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, from: &[f32]) -> [S::f32s; VECTORS] {
    let vectors = S::as_simd_f32s(&from[..VECTORS * S::F32_LANES]).0;
    let mut row = [simd.splat_f32s(0.0); VECTORS];
    row.copy_from_slice(&vectors[..VECTORS]);
    row
}

/// Writes vectors to the beginning of a slice.
#[inline(always)]
pub(super) fn store<S: Simd>(row: [S::f32s; VECTORS], to: &mut [f32]) {
    let vectors = S::as_mut_simd_f32s(&mut to[..VECTORS * S::F32_LANES]).0;
    vectors[..VECTORS].copy_from_slice(&row);
}

/// Loads a tile from some columns of a strip.
#[inline(always)]
pub(super) fn load_tile<S: Simd, const HEIGHT: usize>(
    simd: S,
    from: &[[f32; STRIP]],
    column: usize,
) -> Tile<S::f32s, HEIGHT> {
    let mut tile = zeros(simd);
    for (row, line) in tile.iter_mut().zip(from) {
        *row = load::<S>(simd, &line[column..]);
    }
    tile
}

/// Stores a tile to some columns of a strip.
#[inline(always)]
pub(super) fn store_tile<S: Simd, const HEIGHT: usize>(
    tile: Tile<S::f32s, HEIGHT>,
    to: &mut [[f32; STRIP]],
    column: usize,
) {
    for (row, line) in tile.into_iter().zip(to) {
        store::<S>(row, &mut line[column..]);
    }
}

/// Packs a matrix `[rows, depth]` into panels: some rows side by side, zeros past the last.
pub(super) fn pack_rows<const SIDE: usize>(
    matrix: &[f32],
    depth: usize,
    panels: &mut Vec<[f32; SIDE]>,
) {
    panels.clear();
    for block in matrix.chunks(SIDE * depth) {
        let start = panels.len();
        panels.resize(start + depth, [0.0; SIDE]);
        pack_panel(block, &mut panels[start..]);
    }
}

/// Packs rows, or a part of each, side by side into a panel of zeros.
pub(super) fn pack_panel<const SIDE: usize>(rows: &[f32], panel: &mut [[f32; SIDE]]) {
    let depth = panel.len();
    for (index, part) in panel.chunks_mut(LINE).enumerate() {
        for (lane, row) in rows.chunks_exact(depth).enumerate() {
            for (factors, &value) in part.iter_mut().zip(&row[index * LINE..]) {
                factors[lane] = value;
            }
        }
    }
}

/// Packs the transpose of a matrix `[depth, columns]` into panels.
pub(super) fn pack_columns(matrix: &[f32], columns: usize, panels: &mut Vec<[f32; ROWS]>) {
    panels.clear();
    for start in (0..columns).step_by(ROWS) {
        let width = ROWS.min(columns - start);
        for row in matrix.chunks_exact(columns) {
            let mut factors = [0.0; ROWS];
            factors[..width].copy_from_slice(&row[start..start + width]);
            panels.push(factors);
        }
    }
}
