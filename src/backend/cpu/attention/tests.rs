//! Attention against its definition in `f64`, and against itself, cut in other ways.

use super::super::super::KvFormat;
use super::super::gemm::row_stride;
use super::super::gemm::tests::{levels, noise};
use super::*;
use crate::model::{Rope, RopeScaling};

const CONTEXT: usize = 200;

/// Six query heads on two key/value heads, of a width that fills no vector.
pub fn geometry() -> Geometry {
    Geometry {
        family: "llama".to_owned(),
        vocab_size: 16,
        hidden_size: 144,
        intermediate_size: 16,
        layers: 1,
        heads: 6,
        kv_heads: 2,
        head_dim: 24,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        windows: vec![None],
        max_positions: CONTEXT,
        qk_norm: false,
        tied_head: true,
    }
}

/// Keys and values of every position, and a cache (its pages out of order) that holds them.
struct Past {
    keys: Vec<f32>,
    values: Vec<f32>,
    pages: Vec<PageId>,
    cache: Cache,
}

impl Past {
    fn new(geometry: &Geometry, format: KvFormat) -> Self {
        let len = CONTEXT * geometry.kv_size();
        Self::of(geometry, format, noise(1, len), noise(2, len))
    }

    fn of(geometry: &Geometry, format: KvFormat, keys: Vec<f32>, values: Vec<f32>) -> Self {
        let pages = [3, 0, 2, 1].map(PageId).to_vec();
        let cache = Cache::new(geometry, format, 4).unwrap();
        for position in 0..CONTEXT {
            for head in 0..geometry.kv_heads {
                let at = (position * geometry.kv_heads + head) * geometry.head_dim;
                let range = at..at + geometry.head_dim;
                // SAFETY: one thread.
                unsafe {
                    cache.put_key(&pages, position, 1, head, &keys[range.clone()]);
                    cache.put_value(&pages, position, 1, head, &values[range]);
                }
            }
        }
        Self { keys, values, pages, cache }
    }

    /// Attention of queries `[positions][heads · head_dim]` by the backend, as spans of the given lengths.
    fn attend(&self, simd: Simd, window: Option<usize>, first: usize, queries: &[f32], cuts: &[usize]) -> Vec<f32> {
        let geometry = geometry();
        let (width, size) = (padded(geometry.head_dim), geometry.q_size());
        let rows = queries.len() / size;
        let (in_row, out_row) = (row_stride(geometry.heads * width), row_stride(size));
        let (mut spaced, mut out) = (vec![0.0; rows * in_row], vec![0.0; rows * out_row]);
        for (index, head) in queries.chunks(geometry.head_dim).enumerate() {
            let at = index / geometry.heads * in_row + index % geometry.heads * width;
            spaced[at..at + geometry.head_dim].copy_from_slice(head);
        }
        let mut row = 0;
        let spans: Vec<Span<'_>> = cuts
            .iter()
            .map(|&rows| {
                row += rows;
                Span { pages: &self.pages, start: first + row - rows, row: row - rows, rows }
            })
            .collect();
        assert_eq!(row, rows);
        let attention = Attention {
            simd,
            geometry: &geometry,
            cache: &self.cache,
            layer: 1,
            window,
            queries: Rows { at: spaced.as_ptr(), stride: in_row },
            out: Rows { at: out.as_mut_ptr(), stride: out_row },
            codes: None,
        };
        let mut scores = vec![f32::NAN; Attention::scores_len(simd, CONTEXT)];
        let (mut scaled, mut mixed) = (vec![f32::NAN; 16 * width], vec![f32::NAN; 16 * width]);
        let mut widened = vec![f32::NAN; PAGE_TOKENS * width];
        let scratch = Scratch {
            scores: scores.as_mut_ptr(),
            queries: scaled.as_mut_ptr(),
            mixed: mixed.as_mut_ptr(),
            widened: widened.as_mut_ptr(),
        };
        for unit in units(simd, &geometry, &spans, 3) {
            // SAFETY: one thread.
            unsafe { attention.compute(&spans, &unit, &scratch) };
        }
        out.chunks(out_row).flat_map(|row| row[..size].to_vec()).collect()
    }

    /// The same by definition.
    fn reference(&self, window: Option<usize>, position: usize, queries: &[f32]) -> Vec<f64> {
        let geometry = geometry();
        let dim = geometry.head_dim;
        let begin = window.map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for head in 0..geometry.heads {
            let at = |t: usize| (t * geometry.kv_heads + head / geometry.group()) * dim;
            let dot = |t: usize| -> f64 {
                let pairs = queries[head * dim..][..dim].iter().zip(&self.keys[at(t)..][..dim]);
                pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum()
            };
            let weights: Vec<f64> = (begin..=position).map(|t| (dot(t) / (dim as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..dim {
                let value = |t: usize| f64::from(self.values[at(t) + i]);
                out.push((begin..=position).zip(&weights).map(|(t, weight)| weight * value(t)).sum::<f64>() / total);
            }
        }
        out
    }
}

#[test]
fn attention_is_what_it_is_defined_to_be_however_it_is_cut() {
    let geometry = geometry();
    // What 8 bits may take a number off by: half a step of keys and values below 1, twice.
    let kept = [(Past::new(&geometry, KvFormat::Full), 1e-5), (Past::new(&geometry, KvFormat::Eight), 0.03)];
    for (window, (past, tolerance)) in
        [None, Some(1), Some(40), Some(100)].into_iter().flat_map(|w| kept.iter().map(move |k| (w, k)))
    {
        for (first, rows) in [(0, 5), (60, 9), (130, 64)] {
            let queries: Vec<f32> = noise(9, rows * geometry.q_size()).iter().map(|x| 3.0 * x).collect();
            let whole = past.attend(Simd::detect(), window, first, &queries, &[rows]);
            for row in 0..rows {
                let part = row * geometry.q_size()..(row + 1) * geometry.q_size();
                let expected = past.reference(window, first + row, &queries[part.clone()]);
                for (found, expected) in whole[part].iter().zip(expected) {
                    assert!(
                        (f64::from(*found) - expected).abs() < *tolerance,
                        "row {row}: {found} (expected {expected})"
                    );
                }
            }
            let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for simd in levels() {
                for cuts in [vec![rows], vec![1; rows], vec![2, rows - 2]] {
                    let found = past.attend(simd, window, first, &queries, &cuts);
                    assert_eq!(bits(&found), bits(&whole), "{simd}, window {window:?}, {rows} rows cut {cuts:?}");
                }
            }
        }
    }
}

#[test]
fn positions_that_are_not_finite_touch_no_query_that_does_not_see_them() {
    let geometry = geometry();
    let len = CONTEXT * geometry.kv_size();
    let (mut keys, mut values) = (noise(1, len), noise(2, len));
    // The first position is out of sight of the later ones by the window, the others are in the future.
    for (position, number) in [(70, f32::NAN), (140, f32::INFINITY), (141, f32::NAN)] {
        keys[position * geometry.kv_size()] = number;
        values[(position + 1) * geometry.kv_size() - 1] = number;
    }
    let queries = noise(9, 12 * geometry.q_size());
    let bits = |numbers: &[f32]| numbers[..9 * geometry.q_size()].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for format in [KvFormat::Full, KvFormat::Eight] {
        let clean = Past::new(&geometry, format);
        let spoilt = Past::of(&geometry, format, keys.clone(), values.clone());
        for (simd, cuts) in levels().flat_map(|simd| [(simd, vec![12]), (simd, vec![4, 8])]) {
            // Rows 131 to 142; the first nine see neither 140 nor 141, and with this window 131 sees 71 on.
            let [found, expected] = [&spoilt, &clean].map(|past| past.attend(simd, Some(61), 131, &queries, &cuts));
            assert_eq!(bits(&found), bits(&expected), "{simd}, {format}, cut {cuts:?}");
        }
        let noted = spoilt.cache.non_finite();
        let seen = |&position: &usize| noted.first(&spoilt.pages, position..position + 1).is_some();
        // Layer 1 of a model of one layer is the exit's: it changes no answer.
        assert_eq!((0..CONTEXT).find(seen), None);
    }
}
