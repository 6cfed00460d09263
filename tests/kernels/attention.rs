//! `attention`, `prefill_attention`, `append`: against float64 softmax attention, and against each
//! other bit for bit: rows one at a time, all at once, as a prefill, cut anywhere.

use crate::device::Device;
use crate::support::{
    FORMATS, NULL, Noise, assert_close, bits, device, from, narrow, schedules, to, unit_roundoff, wide, widen,
};
use eesd::backend::cuda::kernels::{Attention, AttentionForm, Format, PagedBatch, attend};

const PAGE: usize = 64;
const EPSILON: f32 = 1e-6;

/// Shape of a layer's attention.
#[derive(Clone, Copy)]
struct Layer {
    format: Format,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: usize,
    qk_norm: bool,
}

/// A batch: per sequence the positions already in the cache and the new rows; and all memory.
struct Case {
    layer: Layer,
    sequences: Vec<(usize, usize)>,
    qkv: Vec<f32>,
    rotary: Vec<f32>,
    norms: [Vec<f32>; 2],
    table: Vec<u32>,
    max_pages: usize,
    k: Vec<u16>,
    v: Vec<u16>,
}

impl Case {
    fn new(layer: Layer, sequences: &[(usize, usize)], seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let Layer { format, heads, kv_heads, head_dim, .. } = layer;
        let rows: usize = sequences.iter().map(|s| s.1).sum();
        let longest = sequences.iter().map(|s| s.0 + s.1).max().unwrap();
        let max_pages = longest.div_ceil(PAGE);
        let pages = sequences.len() * max_pages + 2;
        let mut order: Vec<u32> = (0..pages as u32).collect();
        for i in (1..pages).rev() {
            order.swap(i, noise.word() as usize % (i + 1));
        }
        let rotary = (0..longest)
            .flat_map(|p| (0..head_dim / 2).map(move |i| p as f64 * 10000f64.powf(-2.0 * i as f64 / head_dim as f64)))
            .flat_map(|angle| [angle.cos() as f32, angle.sin() as f32])
            .collect();
        let mut case = Self {
            layer,
            sequences: sequences.to_vec(),
            qkv: noise.floats(rows * (heads + 2 * kv_heads) * head_dim, 2.0),
            rotary,
            norms: [noise.floats(head_dim, 1.5), noise.floats(head_dim, 1.5)],
            table: order[..sequences.len() * max_pages].to_vec(),
            max_pages,
            k: noise.numbers(format, pages * kv_heads * PAGE * head_dim, 2.0),
            v: noise.numbers(format, pages * kv_heads * PAGE * head_dim, 2.0),
        };
        // Whatever lies past a sequence's rows must not be read.
        let not_a_number = narrow(format, f64::NAN);
        for (s, &(start, rows)) in sequences.iter().enumerate() {
            for (position, kv_head) in (start + rows..max_pages * PAGE).flat_map(|p| (0..kv_heads).map(move |h| (p, h)))
            {
                let at = case.at(s, position, kv_head);
                case.k[at..at + head_dim].fill(not_a_number);
                case.v[at..at + head_dim].fill(not_a_number);
            }
        }
        case
    }

    fn width(&self) -> usize {
        (self.layer.heads + 2 * self.layer.kv_heads) * self.layer.head_dim
    }

    fn at(&self, sequence: usize, position: usize, kv_head: usize) -> usize {
        let page = self.table[sequence * self.max_pages + position / PAGE] as usize;
        ((page * self.layer.kv_heads + kv_head) * PAGE + position % PAGE) * self.layer.head_dim
    }

    fn first_row(&self, sequence: usize) -> usize {
        self.sequences[..sequence].iter().map(|s| s.1).sum()
    }

    /// Runs rows `from..to` (of each sequence's new ones) on the cache `k`, `v`; their outputs go to `out`. Returns what
    /// was noted of the pages, and whether anything was.
    fn run(
        &self,
        on: &Device,
        split: bool,
        cache: &mut (Vec<u16>, Vec<u16>),
        part: (usize, usize),
        out: &mut [u16],
    ) -> (Vec<u32>, u32) {
        let Layer { format, heads, kv_heads, head_dim, window, qk_norm } = self.layer;
        let stride = heads * head_dim;
        let parts: Vec<_> = self
            .sequences
            .iter()
            .enumerate()
            .map(|(s, &(start, rows))| {
                (s, start + part.0.min(rows), self.first_row(s) + part.0.min(rows), part.1.min(rows) - part.0.min(rows))
            })
            .collect();
        let mut row_begin = vec![0i32];
        let (mut qkv, mut starts) = (Vec::new(), Vec::new());
        for &(_, start, first, rows) in &parts {
            qkv.extend_from_slice(&self.qkv[first * self.width()..][..rows * self.width()]);
            starts.push(start as i32);
            row_begin.push(row_begin.last().unwrap() + rows as i32);
        }
        let most_rows = parts.iter().map(|p| p.3).max().unwrap();
        let chunks = (self.max_pages * PAGE).div_ceil(Attention::CHUNK_TOKENS as usize);
        let tiles = Attention::row_tiles(most_rows, heads, kv_heads);
        let batch = parts.len();
        let mut partial = vec![f32::NAN; Attention::partial_bytes(batch, kv_heads, tiles, chunks, head_dim) / 4];
        let mut arrived = vec![0u32; batch * kv_heads * tiles];
        let pages = self.k.len() / (kv_heads * PAGE * head_dim);
        let (mut noted, mut any_noted) = (vec![0u32; 2 * pages], vec![0u32]);
        let mut results = vec![narrow(format, f64::NAN); qkv.len() / self.width() * stride];
        let arguments = Attention {
            batch: PagedBatch {
                row_begin: from(&row_begin),
                start: from(&starts),
                block_table: from(&self.table),
                max_pages: self.max_pages as i32,
                padding: 0,
            },
            qkv: from(&qkv),
            k_cache: to(&mut cache.0),
            v_cache: to(&mut cache.1),
            rotary: from(&self.rotary),
            q_norm: if qk_norm { from(&self.norms[0]) } else { NULL },
            k_norm: if qk_norm { from(&self.norms[1]) } else { NULL },
            epsilon: EPSILON,
            scale: (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32,
            heads: heads as i32,
            kv_heads: kv_heads as i32,
            window: window as i32,
            row_tiles: tiles as i32,
            out: to(&mut results),
            stride: stride as i32,
            padding: 0,
            partial: to(&mut partial),
            arrived: to(&mut arrived),
            non_finite: to(&mut noted),
            any_non_finite: to(&mut any_noted),
        };
        let launch = |form| {
            // SAFETY: buffers of the sizes that the kernels' head comments state.
            unsafe { attend(on, format, form, batch, head_dim, &arguments) }.unwrap();
        };
        if split {
            launch(AttentionForm::Split { chunks });
        } else {
            launch(AttentionForm::Append { rows: most_rows });
            launch(AttentionForm::Prefill);
        }
        assert!(arrived.iter().all(|&count| count == 0), "counters are left at zero");
        for (i, &(_, _, first, rows)) in parts.iter().enumerate() {
            let begin = row_begin[i] as usize;
            out[first * stride..][..rows * stride].copy_from_slice(&results[begin * stride..][..rows * stride]);
        }
        (noted, any_noted[0])
    }

    /// Cache and outputs after all rows, cut at `cuts`; all of them are finite.
    fn results(&self, on: &Device, split: bool, cuts: &[usize]) -> (Vec<u16>, (Vec<u16>, Vec<u16>)) {
        let most = self.sequences.iter().map(|s| s.1).max().unwrap();
        let mut out = vec![0; self.first_row(self.sequences.len()) * self.layer.heads * self.layer.head_dim];
        let mut cache = (self.k.clone(), self.v.clone());
        let ends = cuts.iter().copied().filter(|&cut| cut < most).chain([most]);
        let mut from = 0;
        for end in ends {
            let (noted, any) = self.run(on, split, &mut cache, (from, end), &mut out);
            assert!(any == 0 && noted.iter().all(|&bits| bits == 0), "finite numbers were noted");
            from = end;
        }
        (out, cache)
    }

    /// One head's numbers after norm, rotation and rounding.
    fn rotated(&self, row: usize, head: usize, position: usize, norm: &[f32]) -> Vec<f64> {
        let d = self.layer.head_dim;
        let source: Vec<f64> = self.qkv[row * self.width() + head * d..][..d].iter().map(|&x| x.into()).collect();
        let mean = source.iter().map(|x| x * x).sum::<f64>() / d as f64;
        let factor = (mean + f64::from(EPSILON)).sqrt().recip();
        let normed = |i: usize| if self.layer.qk_norm { source[i] * factor * f64::from(norm[i]) } else { source[i] };
        let turned = |i: usize| {
            let pair = i % (d / 2);
            let [cos, sin] = [0, 1].map(|part| f64::from(self.rotary[(position * d / 2 + pair) * 2 + part]));
            let (x, y) = (normed(pair), normed(pair + d / 2));
            if i < d / 2 { x * cos - y * sin } else { y * cos + x * sin }
        };
        (0..d).map(|i| widen(self.layer.format, narrow(self.layer.format, turned(i)))).collect()
    }

    /// Attention of every row and head in float64, over keys and values as the cache rounds them.
    fn expected(&self) -> Vec<f64> {
        let Layer { format, heads, kv_heads, head_dim: d, window, .. } = self.layer;
        let mut out = Vec::new();
        for (s, &(start, rows)) in self.sequences.iter().enumerate() {
            for row in 0..rows {
                let position = start + row;
                let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
                for head in 0..heads {
                    let kv_head = head / (heads / kv_heads);
                    let q = self.rotated(self.first_row(s) + row, head, position, &self.norms[0]);
                    let key = |p: usize| match p.checked_sub(start) {
                        Some(new) => self.rotated(self.first_row(s) + new, heads + kv_head, p, &self.norms[1]),
                        None => self.k[self.at(s, p, kv_head)..][..d].iter().map(|&e| widen(format, e)).collect(),
                    };
                    let value = |p: usize, i: usize| match p.checked_sub(start) {
                        Some(new) => {
                            let at = (self.first_row(s) + new) * self.width() + (heads + kv_heads + kv_head) * d + i;
                            f64::from(self.qkv[at])
                        }
                        None => widen(format, self.v[self.at(s, p, kv_head) + i]),
                    };
                    let dot = |p| key(p).iter().zip(&q).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt();
                    let scores: Vec<f64> = (first..=position).map(dot).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    out.extend(
                        (0..d).map(|i| weights.iter().zip(first..).map(|(w, p)| w * value(p, i)).sum::<f64>() / total),
                    );
                }
            }
        }
        out
    }

    /// Values are below 2: weights and values are rounded once each, and the result. A key or query
    /// that falls on the other side of a rounding moves a score by little more.
    fn check_values(&self, out: &[u16]) {
        let tolerance = 2.0 * 3.0 * unit_roundoff(self.layer.format);
        for (i, (&found, expected)) in out.iter().zip(self.expected()).enumerate() {
            assert_close(widen(self.layer.format, found), expected, tolerance, || format!("element {i}"));
        }
    }

    /// All ways of cutting and launching agree, under all orders of threads.
    fn check_bits(&self) {
        let reference = self.results(&device(0), true, &(1..16).collect::<Vec<_>>());
        self.check_values(&reference.0);
        for on in schedules() {
            for (split, cuts) in [(true, &[][..]), (true, &[5]), (false, &[]), (false, &[3, 11])] {
                let (out, cache) = self.results(&on, split, cuts);
                assert_eq!(wide(&out), wide(&reference.0), "split {split}, cuts {cuts:?}, seed {}", on.seed());
                assert!(cache == reference.1, "cache: split {split}, cuts {cuts:?}");
            }
        }
    }
}

fn layer(format: Format, heads: usize, kv_heads: usize, head_dim: usize) -> Layer {
    Layer { format, heads, kv_heads, head_dim, window: 0, qk_norm: false }
}

#[test]
fn every_head_dim_and_format() {
    for (i, head_dim) in [32, 64, 80, 96, 128, 256].into_iter().enumerate() {
        for format in FORMATS {
            let layer = Layer { qk_norm: i % 2 == 0, ..layer(format, 4, 2, head_dim) };
            let case = Case::new(layer, &[(70, 3), (0, 1)], i as u64);
            let (out, cache) = case.results(&device(2), true, &[]);
            case.check_values(&out);
            let prefill = case.results(&device(3), false, &[]);
            assert_eq!(wide(&out), wide(&prefill.0), "head_dim {head_dim}");
            assert!(cache == prefill.1);
        }
    }
}

#[test]
fn grouped_heads_over_several_chunks() {
    Case::new(layer(FORMATS[0], 6, 2, 64), &[(250, 16), (0, 5), (511, 2), (700, 1)], 20).check_bits();
}

/// More tiles of queries than a block has, one with few, past several chunks.
#[test]
fn many_rows_of_a_prompt() {
    Case::new(layer(FORMATS[0], 4, 2, 64), &[(200, 150), (0, 70), (300, 1)], 25).check_bits();
    let layer = Layer { window: 90, ..layer(FORMATS[1], 3, 1, 80) };
    Case::new(layer, &[(500, 100)], 26).check_bits();
}

#[test]
fn sliding_window_and_norms() {
    let layer = Layer { window: 100, qk_norm: true, ..layer(FORMATS[1], 4, 4, 32) };
    Case::new(layer, &[(190, 16), (600, 7), (3, 9)], 21).check_bits();
}

#[test]
fn many_heads_share_one() {
    Case::new(layer(FORMATS[0], 16, 1, 32), &[(260, 9)], 22).check_bits();
}

/// The rotation and the norm of keys, seen in the cache: bit-exact inputs would need the GPU's own
/// arithmetic, so the tolerance is one rounding.
#[test]
fn appended_keys_are_rotated() {
    let layer = Layer { qk_norm: true, ..layer(FORMATS[1], 2, 1, 80) };
    let case = Case::new(layer, &[(60, 9)], 23);
    let (_, (k, v)) = case.results(&device(1), true, &[]);
    for row in 0..9 {
        let at = case.at(0, 60 + row, 0);
        let expected = case.rotated(row, 2, 60 + row, &case.norms[1]);
        for (i, expected) in expected.iter().enumerate() {
            let tolerance = 2.0 * unit_roundoff(layer.format) * expected.abs() + 1e-6;
            assert_close(widen(layer.format, k[at + i]), *expected, tolerance, || format!("key {row}, {i}"));
            let value = case.qkv[row * case.width() + 3 * 80 + i];
            assert_eq!(v[at + i], narrow(layer.format, value.into()));
        }
    }
    assert!(bits(&case.qkv).iter().all(|&b| !f32::from_bits(b).is_nan()));
}

/// One row's key and another one's value are not finite: as those of refused drafts may be.
#[test]
fn rows_that_are_not_finite_spoil_no_other_and_are_noted() {
    for (format, broken) in FORMATS.into_iter().zip([f32::NAN, f32::INFINITY]) {
        let layer = Layer { window: 40, ..layer(format, 4, 2, 32) };
        let clean = Case::new(layer, &[(250, 12), (30, 4)], 24);
        let mut case = Case::new(layer, &[(250, 12), (30, 4)], 24);
        // Positions 256 (its key, of head 1) and 259 (its value, of head 0) of the first sequence.
        for (row, head) in [(6, layer.heads + 1), (9, layer.heads + layer.kv_heads)] {
            let at = row * case.width() + head * layer.head_dim + 5;
            case.qkv[at] = broken;
        }
        let page = case.table[256 / PAGE] as usize;
        let expected = clean.results(&device(0), true, &[]).0;
        let row_of = layer.heads * layer.head_dim;
        for on in schedules() {
            for split in [true, false] {
                let (mut cache, mut out) = ((case.k.clone(), case.v.clone()), vec![0; expected.len()]);
                let (noted, any) = case.run(&on, split, &mut cache, (0, 12), &mut out);
                assert_eq!(any, 1);
                let words: Vec<_> = noted.iter().enumerate().filter(|(_, bits)| **bits != 0).collect();
                assert_eq!(words, [(2 * page, &(1 << 0 | 1 << 3))], "split {split}");
                // The six rows before them, and the other sequence.
                assert_eq!(wide(&out[..6 * row_of]), wide(&expected[..6 * row_of]), "split {split}");
                assert_eq!(wide(&out[12 * row_of..]), wide(&expected[12 * row_of..]), "split {split}");
                let head = |cache: &[u16], position, kv_head| cache[case.at(0, position, kv_head)..][..32].to_vec();
                let finite = |row: Vec<u16>| row.into_iter().all(|number| widen(format, number).is_finite());
                assert!(finite(head(&cache.0, 256, 1)) && finite(head(&cache.1, 259, 0)));
            }
        }
    }
}
