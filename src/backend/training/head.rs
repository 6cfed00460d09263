//! The block's norm and head on what the steps of chains leave, and their losses and gradients.

use super::chains::{Chains, Draft};
use super::gemm::{Mat, gemm};
use super::layer::{Frame, Inputs};
use super::loss::{LossOptions, LossSum, Losses, Scratch, Taught, lose};
use super::parameters::Head;
use super::real::Real;
use super::{Position, Targets, TeacherBatch};
use rayon::prelude::*;
use std::ops::Range;

/// Student logits held at a time: enough rows that packing the head for a product costs little beside it.
const LOGITS: usize = 16 << 20;

impl<R: Real> Frame<R> {
    /// The losses of a batch whose residual streams after the layer are `outs`, `[rows, hidden]` of each step. With a
    /// `gradient`, adds that of the norm and of a trained head to it, and returns those of `outs`.
    ///
    /// Positions go in pieces, each with the drafts of all steps for it, so that what the teacher says there is made once.
    pub fn head(
        &self,
        values: &[R],
        batch: &TeacherBatch,
        chains: &Chains,
        options: &LossOptions,
        outs: &[&[R]],
        mut gradient: Option<&mut [R]>,
    ) -> (Losses, Vec<Vec<R>>) {
        let (layout, one) = (&self.layout, R::of(1.0));
        let [vocab, hidden] = layout.head.shape;
        let head = Mat::new(&values[layout.head.range.clone()], vocab, hidden);
        let mut total = Losses::of_steps(outs.len());
        let mut douts: Vec<Vec<R>> = match gradient {
            Some(_) => outs.iter().map(|out| vec![R::default(); out.len()]).collect(),
            None => Vec::new(),
        };
        let drafts = chains.drafts(batch, outs.len());
        for piece in pieces(&drafts, (LOGITS / vocab).max(1)) {
            let drafts = &drafts[piece.clone()];
            let of_piece = || drafts.iter().flatten();
            let x: Vec<R> =
                of_piece().flat_map(|draft| &outs[draft.step][draft.row * hidden..][..hidden]).copied().collect();
            let (normed, factors) = self.norm(values, &layout.norm, &x);
            let rows = factors.len();
            let mut logits = vec![R::default(); rows * vocab];
            gemm(one, Mat::new(&normed, rows, hidden), head.t(), R::default(), &mut logits, vocab);
            let losses = self.lose(values, batch, piece, drafts, options, &mut logits);
            for (draft, loss) in of_piece().zip(losses.iter().flatten()) {
                total.steps[draft.step].add(loss);
            }
            let Some(gradient) = gradient.as_deref_mut() else { continue };
            let dlogits = Mat::new(&logits, rows, vocab);
            let mut dnormed = vec![R::default(); normed.len()];
            gemm(one, dlogits, head, R::default(), &mut dnormed, hidden);
            if layout.kind == Head::Trained {
                let dhead = &mut gradient[layout.head.range.clone()];
                gemm(one, dlogits.t(), Mat::new(&normed, rows, hidden), one, dhead, hidden);
            }
            let mut dx = vec![R::default(); x.len()];
            let inputs = Inputs { x, normed, factors };
            self.norm_backward(values, &layout.norm, &inputs, &dnormed, Some(&mut dx), gradient);
            for (draft, dx) in of_piece().zip(dx.chunks_exact(hidden)) {
                douts[draft.step][draft.row * hidden..][..hidden].copy_from_slice(dx);
            }
        }
        (total, douts)
    }

    /// The losses of some positions' drafts, one position after another; turns their logits into gradients.
    fn lose(
        &self,
        values: &[R],
        batch: &TeacherBatch,
        piece: Range<usize>,
        drafts: &[Vec<Draft>],
        options: &LossOptions,
        logits: &mut [R],
    ) -> Vec<Vec<LossSum>> {
        let (drafted, [vocab, hidden]) = (self.layout.draft_vocab(), self.layout.head.shape);
        let recomputed = match (&batch.targets, &self.model) {
            (Targets::States(states), Some(model)) => {
                let last = &states.last[piece.start * hidden..piece.end * hidden];
                model.logits(last, &values[self.layout.head.range.clone()])
            }
            _ => Vec::new(),
        };
        let teach = |taught: &mut Taught<R>, index: usize| match &batch.targets {
            Targets::Logits(logits) => {
                let all = logits.len() / batch.scored.len().max(1);
                taught.whole(&logits[(piece.start + index) * all..][..all], drafted, options);
            }
            Targets::States(states) => {
                let rest = (states.log_totals[piece.start + index], states.likeliest[piece.start + index]);
                let logits = &recomputed[index * vocab..][..vocab];
                taught.part(logits, (vocab < states.vocab).then_some(rest), options);
            }
        };
        let mut left = logits;
        let mut rows: Vec<(usize, &Position, &mut [R])> = Vec::with_capacity(drafts.len());
        for (index, (position, drafts)) in batch.scored[piece.clone()].iter().zip(drafts).enumerate() {
            let (mine, rest) = std::mem::take(&mut left).split_at_mut(drafts.len() * vocab);
            left = rest;
            rows.push((index, position, mine));
        }
        let lose = |(taught, scratch): &mut (Taught<R>, Scratch<R>),
                    (index, position, rows): (_, &Position, &mut [R])| {
            teach(taught, index);
            let Position { token, weight, .. } = *position;
            let rows = rows.chunks_exact_mut(vocab);
            rows.map(|student| lose(student, taught, token, weight, drafted, options, scratch)).collect()
        };
        rows.into_par_iter().map_init(Default::default, lose).collect()
    }
}

/// Cuts positions into pieces of at most `most` drafts, or of one position.
fn pieces(drafts: &[Vec<Draft>], most: usize) -> Vec<Range<usize>> {
    let (mut pieces, mut start, mut held) = (Vec::new(), 0, 0);
    for (index, drafts) in drafts.iter().enumerate() {
        if held > 0 && held + drafts.len() > most {
            pieces.push(start..index);
            (start, held) = (index, 0);
        }
        held += drafts.len();
    }
    if start < drafts.len() {
        pieces.push(start..drafts.len());
    }
    pieces
}
