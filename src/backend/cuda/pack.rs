//! Weights in the order of matrix fragments, so that a GPU thread's share of a 16 × 16 tile is one
//! 16-byte load (`cuda/common/matrix.cuh`).
//!
//! A matrix is cut into blocks of 16 rows, a block into chunks of 64 columns, a chunk into 4 steps; of a
//! step, each of 32 lanes has 8 elements. With `g = lane / 4`, `t = lane % 4` and
//! `c = 64·chunk + 16·t + 4·step` they are `[g][c], [g][c+1], [g+8][c], [g+8][c+1]`, then the same of
//! `c+2, c+3`. Rows come in twos of blocks and columns in whole chunks; what is missing is zero.

/// Columns of a chunk.
pub const CHUNK: usize = 64;
/// Rows of a block.
pub const BLOCK_ROWS: usize = 16;
/// Rows that one thread block of a kernel computes; packed matrices have a multiple of it.
pub const TILE_ROWS: usize = 32;
const ELEMENT: usize = 2;
const LANES: usize = 32;
const STEPS: usize = 4;

/// Chunks of a matrix with `columns` columns.
pub fn chunks(columns: usize) -> usize {
    columns.div_ceil(CHUNK)
}

/// Bytes of a packed block of rows.
pub fn block_bytes(columns: usize) -> usize {
    chunks(columns) * CHUNK * BLOCK_ROWS * ELEMENT
}

/// Bytes of a packed matrix.
pub fn packed_bytes(rows: usize, columns: usize) -> usize {
    rows.div_ceil(TILE_ROWS) * (TILE_ROWS / BLOCK_ROWS) * block_bytes(columns)
}

/// Packs up to 16 rows of 2-byte elements; a row that is absent or short is filled up with zeros.
///
/// # Panics
/// If there are more than 16 rows, one is longer than `columns`, or `target` is not
/// [`block_bytes`]`(columns)` long.
pub fn pack_block(target: &mut [u8], rows: &[Option<&[u8]>], columns: usize) {
    assert!(rows.len() <= BLOCK_ROWS && target.len() == block_bytes(columns));
    target.fill(0);
    for (r, row) in rows.iter().enumerate() {
        let Some(row) = row else { continue };
        assert!(row.len() <= columns * ELEMENT);
        for (column, element) in row.chunks_exact(ELEMENT).enumerate() {
            let (chunk, within) = (column / CHUNK, column % CHUNK);
            let (lane, step) = (r % 8 * 4 + within / 16, within / 4 % STEPS);
            let place = within % 4 / 2 * 4 + r / 8 * 2 + within % 2;
            let at = (((chunk * STEPS + step) * LANES + lane) * 8 + place) * ELEMENT;
            target[at..at + ELEMENT].copy_from_slice(element);
        }
    }
}

/// Packs a matrix given by its rows, as `cuda/pack_weights.cu` does on the device: the reference of its tests.
pub fn pack(rows: &[Option<&[u8]>], columns: usize) -> Vec<u8> {
    let mut packed = vec![0; packed_bytes(rows.len(), columns)];
    for (block, target) in packed.chunks_exact_mut(block_bytes(columns)).enumerate() {
        let first = (block * BLOCK_ROWS).min(rows.len());
        let end = (first + BLOCK_ROWS).min(rows.len());
        pack_block(target, &rows[first..end], columns);
    }
    packed
}

/// The order of rows of a gated MLP's first projection: 16 of the gate, the same 16 of `up`, and so on;
/// both are filled up to a multiple of 16 rows.
pub fn interleave<'a>(gate: &[&'a [u8]], up: &[&'a [u8]]) -> Vec<Option<&'a [u8]>> {
    let blocks = gate.len().div_ceil(BLOCK_ROWS);
    let of = |matrix: &[&'a [u8]], block: usize, row: usize| matrix.get(block * BLOCK_ROWS + row).copied();
    (0..blocks)
        .flat_map(|block| [gate, up].map(|matrix| (0..BLOCK_ROWS).map(move |row| of(matrix, block, row))))
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(packed: &[u8], columns: usize, row: usize, column: usize) -> u16 {
        let block = &packed[row / 16 * block_bytes(columns)..];
        // The place as a lane of `mma.m16n8k16` sees it: word 0 is (g, first two), word 1 (g + 8, first two), ...
        let lane = row % 8 * 4 + column % 64 / 16;
        let word = column % 4 / 2 * 2 + row % 16 / 8;
        let unit = (column / 64 * 4 + column / 4 % 4) * 32 + lane;
        let at = unit * 16 + word * 4 + column % 2 * 2;
        u16::from_le_bytes([block[at], block[at + 1]])
    }

    #[test]
    fn every_element_has_its_place_and_the_rest_is_zero() {
        let (rows, columns) = (37, 136);
        let matrix: Vec<Vec<u8>> = (0..rows)
            .map(|r| (0..columns).flat_map(|c| ((r * columns + c + 1) as u16).to_le_bytes()).collect())
            .collect();
        let views: Vec<_> = matrix.iter().map(|row| Some(row.as_slice())).collect();
        let packed = pack(&views, columns);
        assert_eq!(packed.len(), 64 * 192 * 2);
        let mut seen = 0u64;
        for r in 0..rows {
            for c in 0..columns {
                assert_eq!(element(&packed, columns, r, c), (r * columns + c + 1) as u16);
                seen += (r * columns + c + 1) as u64;
            }
        }
        let total: u64 = packed.chunks(2).map(|e| u64::from(u16::from_le_bytes([e[0], e[1]]))).sum();
        assert_eq!(total, seen);
    }

    #[test]
    fn gate_and_up_alternate_by_blocks() {
        let gate: Vec<[u8; 2]> = (0..20).map(|i| [i, 0]).collect();
        let up: Vec<[u8; 2]> = (0..20).map(|i| [i, 1]).collect();
        let rows = |m: &'static str| if m == "gate" { &gate } else { &up };
        let views = |m| rows(m).iter().map(|r| r.as_slice()).collect::<Vec<_>>();
        let (gate_rows, up_rows) = (views("gate"), views("up"));
        let order = interleave(&gate_rows, &up_rows);
        assert_eq!(order.len(), 64);
        assert_eq!(order[3], Some([3, 0].as_slice()));
        assert_eq!(order[16 + 3], Some([3, 1].as_slice()));
        assert_eq!(order[32 + 3], Some([19, 0].as_slice()));
        assert_eq!(order[48 + 3], Some([19, 1].as_slice()));
        assert_eq!(order[36], None);
    }
}
