//! Grouped-query attention of the chains of a batch, and its gradient.
//!
//! A row of step `j` (from 0) sees the keys of its segment up to where its chain starts, and those that its chain's steps
//! 1 to `j` have made; with `j = 0` that is causal attention. Queries go in blocks of rows; a block's probabilities are made
//! from `q` and `k` in the forward pass and made again in the backward pass, so that no more than one block of them is held
//! per thread.

use super::chains::Chains;
use super::gemm::{Mat, gemm};
use super::real::Real;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows of a block.
const BLOCK: usize = 128;

/// What attention needs to know of the model.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Position `p` sees `p - window + 1 ..= p`.
    pub window: Option<usize>,
}

impl Heads {
    fn q_size(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn scale<R: Real>(&self) -> R {
        R::of((self.head_dim as f64).sqrt().recip())
    }

    fn kv_head(&self, head: usize) -> usize {
        head * self.kv_heads / self.heads
    }
}

/// Keys and values `[rows, kv_heads · head_dim]`, rotated.
pub struct KeysValues<'a, R> {
    /// Keys.
    pub k: &'a [R],
    /// Values.
    pub v: &'a [R],
}

/// Gradients of keys and values, of the same shapes; they are added to.
pub struct KeysValuesMut<'a, R> {
    /// Of the keys.
    pub k: &'a mut [R],
    /// Of the values.
    pub v: &'a mut [R],
}

/// One segment's rows of a step.
struct Rows<'a, R> {
    /// Where the first chain starts.
    start: usize,
    q: &'a [R],
    /// Of the text.
    text: KeysValues<'a, R>,
    /// Of the chains' own steps, from step 1 to this one.
    own: Vec<KeysValues<'a, R>>,
}

impl<'a, R: Real> Rows<'a, R> {
    /// Keys of the text that rows `rows` see, one or another.
    fn keys(&self, heads: &Heads, rows: &Range<usize>) -> Range<usize> {
        // The row's position, less the window, plus one.
        let first =
            heads.window.map_or(0, |window| (self.start + rows.start + self.own.len() + 1).saturating_sub(window));
        let end = self.start + rows.end;
        first.min(end)..end
    }

    /// The first of a chain's own keys that its row sees.
    fn first_own(&self, heads: &Heads) -> usize {
        heads.window.map_or(0, |window| self.own.len().saturating_sub(window))
    }

    fn query(&self, heads: &Heads, rows: &Range<usize>, head: usize) -> Mat<'a, R> {
        part(self.q, rows, heads.q_size(), head, heads.head_dim)
    }

    fn key(&self, heads: &Heads, keys: &Range<usize>, head: usize) -> Mat<'a, R> {
        part(self.text.k, keys, heads.kv_size(), heads.kv_head(head), heads.head_dim)
    }

    fn value(&self, heads: &Heads, keys: &Range<usize>, head: usize) -> Mat<'a, R> {
        part(self.text.v, keys, heads.kv_size(), heads.kv_head(head), heads.head_dim)
    }

    /// Probabilities `[rows, keys + own]` of a block.
    fn probabilities(&self, heads: &Heads, rows: &Range<usize>, head: usize, into: &mut Vec<R>) {
        let keys = self.keys(heads, rows);
        let (width, scale) = (keys.len() + self.own.len(), heads.scale());
        into.clear();
        into.resize(rows.len() * width, R::default());
        gemm(scale, self.query(heads, rows, head), self.key(heads, &keys, head).t(), R::default(), into, width);
        let first_own = self.first_own(heads);
        for (row, scores) in rows.clone().zip(into.chunks_exact_mut(width)) {
            let (text, own) = scores.split_at_mut(keys.len());
            let seen = self.keys(heads, &(row..row + 1));
            // A chain that is longer than the window sees nothing of the text.
            let seen = seen.start.max(keys.start) - keys.start..seen.end.max(keys.start) - keys.start;
            text[..seen.start].fill(R::default());
            text[seen.end..].fill(R::default());
            let q = head_of(self.q, row, heads.q_size(), head, heads.head_dim);
            for (score, made) in own.iter_mut().zip(&self.own).skip(first_own) {
                *score = scale * dot(q, head_of(made.k, row, heads.kv_size(), heads.kv_head(head), heads.head_dim));
            }
            softmax([&mut text[seen], &mut own[first_own..]]);
        }
    }
}

/// Columns of one head of some rows.
fn part<'a, R: Real>(data: &'a [R], rows: &Range<usize>, width: usize, head: usize, head_dim: usize) -> Mat<'a, R> {
    Mat::strided(&data[(rows.start * width + head * head_dim).min(data.len())..], rows.len(), head_dim, width)
}

/// One head of one row.
fn head_of<R>(data: &[R], row: usize, width: usize, head: usize, head_dim: usize) -> &[R] {
    &data[row * width + head * head_dim..][..head_dim]
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

fn add_scaled<R: Real>(to: &mut [R], by: R, from: &[R]) {
    to.iter_mut().zip(from).for_each(|(to, &from)| *to += by * from);
}

/// Of all scores together.
fn softmax<R: Real>(mut scores: [&mut [R]; 2]) {
    let max = scores.iter().flat_map(|part| part.iter()).fold(R::of(f64::NEG_INFINITY), |max, &score| max.max(score));
    scores.iter_mut().for_each(|part| R::exp_of_differences(part, max));
    let sum: R = scores.iter().flat_map(|part| part.iter().copied()).sum();
    let factor = R::of(1.0) / sum;
    scores.iter_mut().for_each(|part| part.iter_mut().for_each(|score| *score *= factor));
}

/// Blocks of the rows `0..len` of a segment.
fn blocks(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(len))
}

/// Cuts an array of `width` elements a row into the rows of each segment.
fn segments_of<'a, R>(lengths: &[usize], width: usize, mut data: &'a [R]) -> Vec<&'a [R]> {
    let cut = |&len: &usize| {
        let (mine, rest) = data.split_at(len * width);
        data = rest;
        mine
    };
    lengths.iter().map(cut).collect()
}

fn segments_of_mut<'a, R>(lengths: &[usize], width: usize, mut data: &'a mut [R]) -> Vec<&'a mut [R]> {
    let cut = |&len: &usize| {
        let (mine, rest) = std::mem::take(&mut data).split_at_mut(len * width);
        data = rest;
        mine
    };
    lengths.iter().map(cut).collect()
}

/// The segments' rows of a step with queries `q`; `own` has the keys and values of steps 1 to this one.
fn rows_of<'a, R: Real>(
    chains: &Chains,
    heads: &Heads,
    q: &'a [R],
    text: &KeysValues<'a, R>,
    own: &[KeysValues<'a, R>],
) -> Vec<Rows<'a, R>> {
    let (kv, seen) = (heads.kv_size(), chains.seen());
    let q = segments_of(&chains.counts(own.len()), heads.q_size(), q).into_iter();
    let (k, v) = (segments_of(&seen, kv, text.k), segments_of(&seen, kv, text.v));
    let text = k.into_iter().zip(v).map(|(k, v)| KeysValues { k, v });
    let mut rows: Vec<Rows<'a, R>> = chains
        .first_starts()
        .into_iter()
        .zip(q)
        .zip(text)
        .map(|((start, q), text)| Rows { start, q, text, own: Vec::new() })
        .collect();
    for (step, own) in (1..).zip(own) {
        let counts = chains.counts(step);
        let made = segments_of(&counts, kv, own.k).into_iter().zip(segments_of(&counts, kv, own.v));
        rows.iter_mut().zip(made).for_each(|(rows, (k, v))| rows.own.push(KeysValues { k, v }));
    }
    rows
}

/// `out` `[rows, heads · head_dim]` of the step after `own.len()` others, from its `q` of the same shape, the keys and
/// values of the text, and those of the chains' own steps, that step's among them.
pub fn attend<R: Real>(
    chains: &Chains,
    heads: &Heads,
    q: &[R],
    text: &KeysValues<'_, R>,
    own: &[KeysValues<'_, R>],
    out: &mut [R],
) {
    let segments = rows_of(chains, heads, q, text, own).into_par_iter();
    segments.zip(segments_of_mut(&chains.counts(own.len()), heads.q_size(), out)).for_each(|(segment, out)| {
        let (mut p, q_size) = (Vec::new(), heads.q_size());
        let len = out.len() / q_size;
        for (rows, head) in blocks(len).flat_map(|rows| (0..heads.heads).map(move |head| (rows.clone(), head))) {
            segment.probabilities(heads, &rows, head, &mut p);
            let keys = segment.keys(heads, &rows);
            let width = keys.len() + segment.own.len();
            let seen = Mat::strided(&p, rows.len(), keys.len(), width);
            let first = rows.start * q_size + head * heads.head_dim;
            gemm(R::of(1.0), seen, segment.value(heads, &keys, head), R::default(), &mut out[first..], q_size);
            for (row, p) in rows.zip(p.chunks_exact(width)) {
                let out = &mut out[row * q_size + head * heads.head_dim..][..heads.head_dim];
                for (&p, made) in p[keys.len()..].iter().zip(&segment.own) {
                    add_scaled(out, p, head_of(made.v, row, heads.kv_size(), heads.kv_head(head), heads.head_dim));
                }
            }
        }
    });
}

/// Gradients of [`attend`] in its inputs, given that in its output: what `dq` held is lost; `dkeys`, of the keys and values
/// of the text and then of the chains' own steps, are added to.
///
/// With `dP = dout vᵀ`: `dS = P (dP - rowsum(dP P))`, `dq = scale dS k`, `dk = scale dSᵀ q`, `dv = Pᵀ dout`.
#[expect(clippy::too_many_arguments, reason = "inputs, their gradients, and one of the output")]
pub fn attend_backward<R: Real>(
    chains: &Chains,
    heads: &Heads,
    q: &[R],
    text: &KeysValues<'_, R>,
    own: &[KeysValues<'_, R>],
    dout: &[R],
    dq: &mut [R],
    dkeys: &mut [KeysValuesMut<'_, R>],
) {
    let (q_size, kv_size, head_dim) = (heads.q_size(), heads.kv_size(), heads.head_dim);
    let (counts, seen) = (chains.counts(own.len()), chains.seen());
    let inputs = rows_of(chains, heads, q, text, own).into_par_iter().zip(segments_of(&counts, q_size, dout));
    let mut dkv: Vec<Vec<KeysValuesMut<'_, R>>> = seen.iter().map(|_| Vec::new()).collect();
    for (step, made) in dkeys.iter_mut().enumerate() {
        let lengths = if step == 0 { seen.clone() } else { chains.counts(step) };
        let (k, v) = (segments_of_mut(&lengths, kv_size, made.k), segments_of_mut(&lengths, kv_size, made.v));
        dkv.iter_mut().zip(k).zip(v).for_each(|((of, k), v)| of.push(KeysValuesMut { k, v }));
    }
    let outputs = segments_of_mut(&counts, q_size, dq).into_par_iter().zip(dkv);
    inputs.zip(outputs).for_each(|((segment, dout), (dq, mut dkv))| {
        let Some((dtext, dsteps)) = dkv.split_first_mut() else { return };
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let (one, scale) = (R::of(1.0), heads.scale::<R>());
        let len = dq.len() / q_size;
        for (rows, head) in blocks(len).flat_map(|rows| (0..heads.heads).map(move |head| (rows.clone(), head))) {
            let (keys, kv_head) = (segment.keys(heads, &rows), heads.kv_head(head));
            segment.probabilities(heads, &rows, head, &mut p);
            let (dblock, width) = (part(dout, &rows, q_size, head, head_dim), keys.len() + segment.own.len());
            let kv_at = (keys.start * kv_size + kv_head * head_dim).min(dtext.v.len());
            let seen = Mat::strided(&p, rows.len(), keys.len(), width);
            gemm(one, seen.t(), dblock, one, &mut dtext.v[kv_at..], kv_size);
            ds.clear();
            ds.resize(p.len(), R::default());
            gemm(one, dblock, segment.value(heads, &keys, head).t(), R::default(), &mut ds, width);
            let own = |data, row| head_of(data, row, kv_size, kv_head, head_dim);
            for ((row, ds), p) in rows.clone().zip(ds.chunks_exact_mut(width)).zip(p.chunks_exact(width)) {
                let drow = head_of(dout, row, q_size, head, head_dim);
                ds[keys.len()..].iter_mut().zip(&segment.own).for_each(|(ds, made)| *ds = dot(drow, own(made.v, row)));
                let sum = dot(ds, p);
                ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - sum));
            }
            let of_text = Mat::strided(&ds, rows.len(), keys.len(), width);
            let first = rows.start * q_size + head * head_dim;
            gemm(scale, of_text, segment.key(heads, &keys, head), R::default(), &mut dq[first..], q_size);
            gemm(scale, of_text.t(), segment.query(heads, &rows, head), one, &mut dtext.k[kv_at..], kv_size);
            for ((row, ds), p) in rows.zip(ds.chunks_exact(width)).zip(p.chunks_exact(width)) {
                let (at, from) = (row * kv_size + kv_head * head_dim, row * q_size + head * head_dim);
                let (q, drow) = (&segment.q[from..][..head_dim], &dout[from..][..head_dim]);
                let own_scores = ds[keys.len()..].iter().zip(&p[keys.len()..]);
                for (((&ds, &p), made), dmade) in own_scores.zip(&segment.own).zip(&mut *dsteps) {
                    add_scaled(&mut dq[from..][..head_dim], scale * ds, own(made.k, row));
                    add_scaled(&mut dmade.k[at..][..head_dim], scale * ds, q);
                    add_scaled(&mut dmade.v[at..][..head_dim], p, drow);
                }
            }
        }
    });
}
