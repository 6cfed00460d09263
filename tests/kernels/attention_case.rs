//! A batch in the paged cache that attention's kernels run over, and what they should make of it.

use crate::cached::{Place, Rows};
use crate::device::Device;
use crate::support::{NULL, Noise, assert_close, device, from, narrow, schedules, to, unit_roundoff, wide, widen};
use eesd::backend::KvFormat;
use eesd::backend::cuda::kernels::{Attention, AttentionForm, Format, PagedBatch, attend};

pub const PAGE: usize = 64;
const EPSILON: f32 = 1e-6;

/// Shape of a layer's attention.
#[derive(Clone, Copy)]
pub struct Layer {
    pub format: Format,
    pub kv: KvFormat,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub window: usize,
    pub qk_norm: bool,
}

/// A batch: per sequence the positions already in the cache and the new rows; and all memory.
pub struct Case {
    pub layer: Layer,
    pub sequences: Vec<(usize, usize)>,
    pub qkv: Vec<f32>,
    pub rotary: Vec<f32>,
    pub norms: [Vec<f32>; 2],
    pub table: Vec<u32>,
    pub max_pages: usize,
    pub pages: usize,
    pub k: Vec<u16>,
    pub v: Vec<u16>,
}

/// Kernels that attend: that for few rows, those for a prompt, and only the second of them, over a cache that has the rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    Split,
    Prefill,
    Filled,
}

impl Case {
    pub fn new(layer: Layer, sequences: &[(usize, usize)], seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let Layer { heads, kv_heads, head_dim, .. } = layer;
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
            pages,
            k: layer.rows().unwritten(pages),
            v: layer.rows().unwritten(pages),
        };
        // Whatever lies past these must not be read.
        for (s, &(start, _)) in sequences.iter().enumerate() {
            for (position, kv_head) in (0..start).flat_map(|p| (0..kv_heads).map(move |h| (p, h))) {
                let at = case.at(s, position, kv_head);
                layer.rows().write(&mut case.k, at, &noise.floats(head_dim, 2.0));
                layer.rows().write(&mut case.v, at, &noise.floats(head_dim, 2.0));
            }
        }
        case
    }

    pub fn width(&self) -> usize {
        (self.layer.heads + 2 * self.layer.kv_heads) * self.layer.head_dim
    }

    pub fn at(&self, sequence: usize, position: usize, kv_head: usize) -> Place {
        let page = self.table[sequence * self.max_pages + position / PAGE] as usize;
        Place { page, kv_head, row: position % PAGE }
    }

    fn first_row(&self, sequence: usize) -> usize {
        self.sequences[..sequence].iter().map(|s| s.1).sum()
    }

    /// Runs rows `from..to` (of each sequence's new ones) on the cache `k`, `v`; their outputs go to `out`. Returns what
    /// was noted of the pages, and whether anything was.
    pub fn run(
        &self,
        on: &Device,
        way: Way,
        cache: &mut (Vec<u16>, Vec<u16>),
        part: (usize, usize),
        out: &mut [u16],
    ) -> (Vec<u32>, u32) {
        let Layer { format, kv, heads, kv_heads, head_dim, window, qk_norm } = self.layer;
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
        let (mut noted, mut any_noted) = (vec![0u32; 2 * self.pages], vec![0u32]);
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
            unsafe { attend(on, (format, kv), form, batch, head_dim, &arguments) }.unwrap();
        };
        if way == Way::Prefill {
            launch(AttentionForm::Append { rows: most_rows });
        }
        launch(if way == Way::Split { AttentionForm::Split { chunks } } else { AttentionForm::Prefill });
        assert!(arrived.iter().all(|&count| count == 0), "counters are left at zero");
        for (i, &(_, _, first, rows)) in parts.iter().enumerate() {
            let begin = row_begin[i] as usize;
            out[first * stride..][..rows * stride].copy_from_slice(&results[begin * stride..][..rows * stride]);
        }
        (noted, any_noted[0])
    }

    /// Cache and outputs after all rows, cut at `cuts`; all of them are finite.
    pub fn results(&self, on: &Device, way: Way, cuts: &[usize]) -> (Vec<u16>, (Vec<u16>, Vec<u16>)) {
        let most = self.sequences.iter().map(|s| s.1).max().unwrap();
        let mut out = vec![0; self.first_row(self.sequences.len()) * self.layer.heads * self.layer.head_dim];
        let mut cache = (self.k.clone(), self.v.clone());
        let ends = cuts.iter().copied().filter(|&cut| cut < most).chain([most]);
        let mut from = 0;
        for end in ends {
            let (noted, any) = self.run(on, way, &mut cache, (from, end), &mut out);
            assert!(any == 0 && noted.iter().all(|&bits| bits == 0), "finite numbers were noted");
            from = end;
        }
        (out, cache)
    }

    /// One head's numbers after norm and rotation.
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
        (0..d).map(turned).collect()
    }

    /// The cache has the rows' keys and values, as far as it keeps them.
    fn check_cache(&self, (k, v): &(Vec<u16>, Vec<u16>)) {
        let Layer { format, heads, kv_heads, head_dim: d, .. } = self.layer;
        let kept = self.layer.rows();
        for (s, &(start, rows)) in self.sequences.iter().enumerate() {
            for (row, kv_head) in (0..rows).flat_map(|row| (0..kv_heads).map(move |head| (row, head))) {
                let (of_text, at) = (self.first_row(s) + row, self.at(s, start + row, kv_head));
                let key = self.rotated(of_text, heads + kv_head, start + row, &self.norms[1]);
                let tolerances = kept.tolerances(&key, unit_roundoff(format));
                for ((found, expected), tolerance) in kept.read(k, at).into_iter().zip(key).zip(tolerances) {
                    assert_close(found, expected, tolerance, || format!("key {row} of sequence {s}, head {kv_head}"));
                }
                // Nothing comes before a value is rounded: it is there to the bit.
                let value = &self.qkv[of_text * self.width() + (heads + kv_heads + kv_head) * d..][..d];
                let mut expected = v.clone();
                kept.write(&mut expected, at, value);
                assert!(expected == *v, "value {row} of sequence {s}, head {kv_head}");
            }
        }
    }

    /// Attention of every row and head in float64, over keys and values as the cache has them.
    fn expected(&self, (k, v): &(Vec<u16>, Vec<u16>)) -> Vec<f64> {
        let Layer { format, heads, kv_heads, head_dim: d, window, .. } = self.layer;
        let mut out = Vec::new();
        for (s, &(start, rows)) in self.sequences.iter().enumerate() {
            let read = |cache: &[u16], kv_head: usize| {
                (0..start + rows).map(|p| self.layer.rows().read(cache, self.at(s, p, kv_head))).collect()
            };
            let all: Vec<[Vec<Vec<f64>>; 2]> = (0..kv_heads).map(|head| [read(k, head), read(v, head)]).collect();
            for row in 0..rows {
                let position = start + row;
                let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
                for head in 0..heads {
                    let [keys, values] = &all[head / (heads / kv_heads)];
                    let q = self.rotated(self.first_row(s) + row, head, position, &self.norms[0]);
                    let q: Vec<f64> = q.into_iter().map(|x| widen(format, narrow(format, x))).collect();
                    let dot = |p: usize| keys[p].iter().zip(&q).map(|(k, q)| k * q).sum::<f64>() / (d as f64).sqrt();
                    let scores: Vec<f64> = (first..=position).map(dot).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let weighed = |i: usize| weights.iter().zip(first..).map(|(w, p)| w * values[p][i]).sum::<f64>();
                    out.extend((0..d).map(|i| weighed(i) / total));
                }
            }
        }
        out
    }

    /// Values are below 2: weights and values are rounded once each, and the result. A query
    /// that falls on the other side of a rounding moves a score by little more.
    pub fn check_values(&self, out: &[u16], cache: &(Vec<u16>, Vec<u16>)) {
        self.check_cache(cache);
        let tolerance = 2.0 * 3.0 * unit_roundoff(self.layer.format);
        for (i, (&found, expected)) in out.iter().zip(self.expected(cache)).enumerate() {
            assert_close(widen(self.layer.format, found), expected, tolerance, || format!("element {i}"));
        }
    }

    /// All ways of cutting and launching agree, under all orders of threads.
    pub fn check_bits(&self) {
        let reference = self.results(&device(0), Way::Split, &(1..16).collect::<Vec<_>>());
        self.check_values(&reference.0, &reference.1);
        for on in schedules() {
            let ways = [(Way::Split, &[][..]), (Way::Split, &[5]), (Way::Prefill, &[]), (Way::Prefill, &[3, 11])];
            for (way, cuts) in ways {
                let (out, cache) = self.results(&on, way, cuts);
                assert_eq!(wide(&out), wide(&reference.0), "{way:?}, cuts {cuts:?}, seed {}", on.seed());
                assert!(cache == reference.1, "cache: {way:?}, cuts {cuts:?}");
            }
        }
    }
}

impl Layer {
    pub fn rows(&self) -> Rows {
        Rows { format: self.format, kv: self.kv, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }
}

pub fn layer(format: Format, heads: usize, kv_heads: usize, head_dim: usize) -> Layer {
    Layer { format, kv: KvFormat::Full, heads, kv_heads, head_dim, window: 0, qk_norm: false }
}
