//! Causal grouped-query attention within each segment of a batch, and its gradient.
//!
//! Queries go in blocks of rows; a block's probabilities are made from `q` and `k` in the forward pass and
//! made again in the backward pass, so that no more than one block of them is held per thread.

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

    /// Keys that the queries of rows `rows` see.
    fn keys(&self, rows: &Range<usize>) -> Range<usize> {
        let first = self.window.map_or(0, |window| (rows.start + 1).saturating_sub(window));
        first..rows.end
    }
}

/// One segment's rows of the batch's arrays.
#[derive(Clone, Copy)]
struct Rows<'a, R> {
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
}

impl<'a, R: Real> Rows<'a, R> {
    fn query(&self, heads: &Heads, rows: &Range<usize>, head: usize) -> Mat<'a, R> {
        part(self.q, rows, heads.q_size(), head, heads.head_dim)
    }

    fn key(&self, heads: &Heads, rows: &Range<usize>, kv_head: usize) -> Mat<'a, R> {
        part(self.k, rows, heads.kv_size(), kv_head, heads.head_dim)
    }

    fn value(&self, heads: &Heads, rows: &Range<usize>, kv_head: usize) -> Mat<'a, R> {
        part(self.v, rows, heads.kv_size(), kv_head, heads.head_dim)
    }

    /// Probabilities `[rows, keys]` of a block.
    fn probabilities(&self, heads: &Heads, rows: &Range<usize>, head: usize, into: &mut Vec<R>) {
        let keys = heads.keys(rows);
        into.clear();
        into.resize(rows.len() * keys.len(), R::default());
        let (q, k) = (self.query(heads, rows, head), self.key(heads, &keys, head * heads.kv_heads / heads.heads));
        gemm(heads.scale(), q, k.t(), R::default(), into, keys.len());
        for (row, scores) in rows.clone().zip(into.chunks_exact_mut(keys.len())) {
            let seen = heads.keys(&(row..row + 1));
            let seen = seen.start - keys.start..seen.end - keys.start;
            scores[..seen.start].fill(R::default());
            scores[seen.end..].fill(R::default());
            softmax(&mut scores[seen]);
        }
    }
}

/// Columns of one head of some rows.
fn part<'a, R: Real>(data: &'a [R], rows: &Range<usize>, width: usize, head: usize, head_dim: usize) -> Mat<'a, R> {
    Mat::strided(&data[rows.start * width + head * head_dim..], rows.len(), head_dim, width)
}

fn softmax<R: Real>(scores: &mut [R]) {
    let max = scores.iter().fold(R::of(f64::NEG_INFINITY), |max, &score| max.max(score));
    let mut sum = R::default();
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    let factor = R::of(1.0) / sum;
    scores.iter_mut().for_each(|score| *score *= factor);
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

fn rows_of<'a, R: Real>(lengths: &[usize], heads: &Heads, q: &'a [R], k: &'a [R], v: &'a [R]) -> Vec<Rows<'a, R>> {
    let (q, kv) = (segments_of(lengths, heads.q_size(), q), heads.kv_size());
    let (k, v) = (segments_of(lengths, kv, k), segments_of(lengths, kv, v));
    q.into_iter().zip(k).zip(v).map(|((q, k), v)| Rows { q, k, v }).collect()
}

/// `out` `[rows, heads · head_dim]` from `q` of the same shape and `k`, `v` `[rows, kv_heads · head_dim]`, all
/// rotated. `lengths` are the segments' rows, one after another.
pub fn attend<R: Real>(lengths: &[usize], heads: &Heads, q: &[R], k: &[R], v: &[R], out: &mut [R]) {
    let segments = rows_of(lengths, heads, q, k, v).into_par_iter();
    segments.zip(segments_of_mut(lengths, heads.q_size(), out)).for_each(|(segment, out)| {
        let mut p = Vec::new();
        let len = out.len() / heads.q_size();
        for (rows, head) in blocks(len).flat_map(|rows| (0..heads.heads).map(move |head| (rows.clone(), head))) {
            segment.probabilities(heads, &rows, head, &mut p);
            let keys = heads.keys(&rows);
            let values = segment.value(heads, &keys, head * heads.kv_heads / heads.heads);
            let out = &mut out[rows.start * heads.q_size() + head * heads.head_dim..];
            gemm(R::of(1.0), Mat::new(&p, rows.len(), keys.len()), values, R::default(), out, heads.q_size());
        }
    });
}

/// Gradients of [`attend`] in its inputs, given that in its output; what `dq`, `dk`, `dv` held is lost.
///
/// With `dP = dout vᵀ`: `dS = P (dP - rowsum(dP P))`, `dq = scale dS k`, `dk = scale dSᵀ q`, `dv = Pᵀ dout`.
#[expect(clippy::too_many_arguments, reason = "three inputs, their gradients, and one of the output")]
pub fn attend_backward<R: Real>(
    lengths: &[usize],
    heads: &Heads,
    q: &[R],
    k: &[R],
    v: &[R],
    dout: &[R],
    dq: &mut [R],
    dk: &mut [R],
    dv: &mut [R],
) {
    let (q_size, kv_size, head_dim) = (heads.q_size(), heads.kv_size(), heads.head_dim);
    let inputs = rows_of(lengths, heads, q, k, v).into_par_iter().zip(segments_of(lengths, q_size, dout));
    let outputs = segments_of_mut(lengths, q_size, dq)
        .into_par_iter()
        .zip(segments_of_mut(lengths, kv_size, dk))
        .zip(segments_of_mut(lengths, kv_size, dv));
    inputs.zip(outputs).for_each(|((segment, dout), ((dq, dk), dv))| {
        dk.fill(R::default());
        dv.fill(R::default());
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let (one, scale) = (R::of(1.0), heads.scale::<R>());
        let len = dq.len() / q_size;
        for (rows, head) in blocks(len).flat_map(|rows| (0..heads.heads).map(move |head| (rows.clone(), head))) {
            let (keys, kv_head) = (heads.keys(&rows), head * heads.kv_heads / heads.heads);
            segment.probabilities(heads, &rows, head, &mut p);
            let (dout, width) = (part(dout, &rows, q_size, head, head_dim), keys.len());
            let kv_at = keys.start * kv_size + kv_head * head_dim;
            gemm(one, Mat::new(&p, rows.len(), width).t(), dout, one, &mut dv[kv_at..], kv_size);
            ds.clear();
            ds.resize(p.len(), R::default());
            gemm(one, dout, segment.value(heads, &keys, kv_head).t(), R::default(), &mut ds, width);
            for (ds, p) in ds.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
                let dot: R = ds.iter().zip(p).map(|(&ds, &p)| ds * p).sum();
                ds.iter_mut().zip(p).for_each(|(ds, &p)| *ds = p * (*ds - dot));
            }
            let ds = Mat::new(&ds, rows.len(), width);
            let dq = &mut dq[rows.start * q_size + head * head_dim..];
            gemm(scale, ds, segment.key(heads, &keys, kv_head), R::default(), dq, q_size);
            gemm(scale, ds.t(), segment.query(heads, &rows, head), one, &mut dk[kv_at..], kv_size);
        }
    });
}
