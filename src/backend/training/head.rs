//! The block's norm and head on the positions that count, and their losses and gradients.

use super::TeacherBatch;
use super::gemm::{Mat, gemm};
use super::layer::Frame;
use super::loss::{LossOptions, LossSum, Scratch, lose};
use super::norm::rms_norm_backward;
use super::parameters::Head;
use super::real::Real;
use rayon::prelude::*;

/// Student logits held at a time.
const LOGITS: usize = 4 << 20;

impl<R: Real> Frame<R> {
    /// The losses of a batch whose residual stream after the layer is `out` `[rows, hidden]`. With a `gradient`, adds
    /// that of the norm and of a trained head to it, and returns that of `out`.
    pub fn head(
        &self,
        values: &[R],
        batch: &TeacherBatch,
        options: &LossOptions,
        out: &[R],
        mut gradient: Option<&mut [R]>,
    ) -> (LossSum, Vec<R>) {
        let (layout, one) = (&self.layout, R::of(1.0));
        let ([vocab, hidden], drafted) = (layout.head.shape, layout.draft_vocab());
        let teacher_vocab = batch.logits.len() / batch.scored.len().max(1);
        let head = Mat::new(&values[layout.head.range.clone()], vocab, hidden);
        let mut total = LossSum::default();
        let mut dout = if gradient.is_some() { vec![R::default(); out.len()] } else { Vec::new() };
        let rows = (LOGITS / vocab).max(1);
        for (piece, scored) in batch.scored.chunks(rows).enumerate() {
            let stream: Vec<R> = scored.iter().flat_map(|s| &out[s.row * hidden..][..hidden]).copied().collect();
            let (normed, factors) = self.norm(values, &layout.norm, &stream);
            let mut logits = vec![R::default(); scored.len() * vocab];
            gemm(one, Mat::new(&normed, scored.len(), hidden), head.t(), R::default(), &mut logits, vocab);
            let teachers = &batch.logits[piece * rows * teacher_vocab..];
            let losses: Vec<LossSum> = logits
                .par_chunks_exact_mut(vocab)
                .zip(teachers.par_chunks_exact(teacher_vocab))
                .zip(scored)
                .map_init(Scratch::default, |scratch, ((student, teacher), position)| {
                    lose(student, teacher, position.token, position.weight, drafted, options, scratch)
                })
                .collect();
            losses.iter().for_each(|loss| total.add(loss));
            let Some(gradient) = gradient.as_deref_mut() else { continue };
            let dlogits = Mat::new(&logits, scored.len(), vocab);
            let mut dnormed = vec![R::default(); normed.len()];
            gemm(one, dlogits, head, R::default(), &mut dnormed, hidden);
            if layout.kind == Head::Trained {
                let dhead = &mut gradient[layout.head.range.clone()];
                gemm(one, dlogits.t(), Mat::new(&normed, scored.len(), hidden), one, dhead, hidden);
            }
            let mut dstream = vec![R::default(); stream.len()];
            let weight = &values[layout.norm.range.clone()];
            let dweight = &mut gradient[layout.norm.range.clone()];
            rms_norm_backward(&stream, weight, &factors, &dnormed, Some(&mut dstream), dweight);
            for (position, dstream) in scored.iter().zip(dstream.chunks_exact(hidden)) {
                dout[position.row * hidden..][..hidden].copy_from_slice(dstream);
            }
        }
        (total, dout)
    }
}
