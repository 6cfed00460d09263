//! The block's norm and head on what the steps of the chains leave, their losses, and the gradients in them. Mirrors `head` of
//! the processor's code.

use super::batch::Piece;
use super::launches::{NULL, Normed, at};
use super::pass::{Done, Pass};
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::training::{DistillLoss, PositionLoss};
use crate::backend::training::loss::LossOptions;
use crate::backend::training::parameters::Head;

impl<D: Driver> Pass<'_, D> {
    /// The losses of all drafts for some positions and, where `learn`, the gradients of norm and head and in the steps'
    /// outputs.
    pub fn head(&self, piece: &Piece, options: &LossOptions, learn: bool) -> Done {
        let (work, layout, count) = (self.work, self.layout, piece.drafts.len());
        let [vocab, hidden] = layout.head.shape;
        self.teach(piece)?;
        let index = at::<u32>(work.inbox.drafts, piece.drafts.start);
        let stream = Normed { x: work.steps[0].out.wide, index, rows: count, factors: work.head_factors };
        self.norm(stream, self.values(&layout.norm), hidden, work.head_normed.wide)?;
        self.narrow(work.head_normed, count * hidden)?;
        let (normed, head) = ((work.head_normed.factor, hidden), (self.factor(&layout.head), hidden));
        let whole = vocab == self.geometry.vocab_size;
        let dense = |(at, stride): (_, usize), transposed| (at, stride, transposed);
        self.multiply([count, vocab, hidden], dense(normed, false), dense(head, true), (work.logits.wide, vocab), 0.0)?;
        let first = piece.positions.start;
        let loss = DistillLoss {
            student: work.logits.wide,
            teacher: work.teacher,
            positions: at::<u32>(work.inbox.drafted, piece.drafts.start),
            log_totals: if whole { NULL } else { at::<f32>(work.inbox.log_totals, first) },
            likeliest: if whole { NULL } else { at::<u32>(work.inbox.likeliest, first) },
            columns: at::<u32>(work.inbox.columns, first),
            weights: at::<f64>(work.inbox.weights, first),
            losses: at::<PositionLoss>(work.losses, piece.drafts.start),
            soft: options.soft,
            temperature: options.temperature,
            hard: options.hard,
            variation: options.variation,
            vocab: vocab as i32,
            gradient: learn.into(),
            rows: count as u32,
            padding: 0,
        };
        // SAFETY: as promised to the pass.
        unsafe { loss.launch(self.on) }?;
        if !learn {
            return Ok(());
        }
        self.narrow(work.logits, count * vocab)?;
        let dlogits = (work.logits.factor, vocab);
        if layout.kind == Head::Trained {
            let dhead = (self.gradient(&layout.head), hidden);
            self.multiply([vocab, hidden, count], dense(dlogits, true), dense(normed, false), dhead, 1.0)?;
        }
        self.multiply([count, hidden, vocab], dense(dlogits, false), dense(head, false), (work.dhead, hidden), 0.0)?;
        self.norm_backward(stream, &layout.norm, work.dhead, work.steps[0].dout, false)
    }

    /// The teacher's logits of the drafted tokens, from its last hidden states.
    fn teach(&self, piece: &Piece) -> Done {
        let (work, layout, count) = (self.work, self.layout, piece.positions.len());
        let [vocab, hidden] = layout.head.shape;
        let x = at::<f32>(work.inbox.last, piece.positions.start * hidden);
        // What the student's own norm makes next has the same place.
        let last = Normed { x, index: NULL, rows: count, factors: work.head_factors };
        self.norm(last, self.parameters.model_norm, hidden, work.head_normed.wide)?;
        self.narrow(work.head_normed, count * hidden)?;
        let head = if layout.kind == Head::Shared { self.factor(&layout.head) } else { self.parameters.model_head };
        let (normed, to) = (work.head_normed.factor, (work.teacher, vocab));
        self.multiply([count, vocab, hidden], (normed, hidden, false), (head, hidden, true), to, 0.0)
    }
}
