//! What a student needs of the model: its norm and head, which turn last hidden states into what the model says, and its
//! embeddings, which recurrent steps read.

use super::gemm::{Mat, gemm};
use super::norm::rms_norm;
use super::parameters::{Head, Layout};
use super::real::Real;
use crate::TokenId;
use crate::model::ModelWeights;

/// Copies of the model's tensors in the student's numbers.
pub struct ModelSide<R> {
    epsilon: f64,
    /// `[hidden]`.
    pub norm: Vec<R>,
    /// Rows of the drafted tokens; empty where the student's head is this one.
    pub head: Vec<R>,
    /// `[vocabulary, hidden]`, each row normalised; empty where nothing is recurrent.
    pub embeddings: Vec<R>,
}

impl<R: Real> ModelSide<R> {
    /// For a block of this layout. `epsilon` is that of the model's norms.
    pub fn new(model: &ModelWeights<'_>, layout: &Layout, epsilon: f64) -> Self {
        let hidden = model.head.cols;
        let wide = |row: &[f32]| row.iter().map(|&x| R::of(x.into())).collect::<Vec<R>>();
        let drafted = layout.draft_vocab();
        let mut row = vec![0.0; hidden];
        let mut head = Vec::new();
        for column in (0..drafted.size).filter(|_| layout.kind != Head::Shared) {
            model.head.dequantise_row(drafted.token(column) as usize, &mut row);
            head.extend(wide(&row));
        }
        let mut embeddings = Vec::new();
        if layout.recurrent.is_some() {
            let mut rows = Vec::new();
            for token in 0..model.embed.rows {
                model.embed.dequantise_row(token, &mut row);
                rows.extend(wide(&row));
            }
            embeddings.resize(rows.len(), R::default());
            rms_norm(&rows, &vec![R::of(1.0); hidden], epsilon, &mut embeddings);
        }
        Self { epsilon, norm: wide(&model.norm.to_f32()), head, embeddings }
    }

    /// The logits `[rows, drafted tokens]` of last hidden states `[rows, hidden]`; `shared` is the head of a student that
    /// shares the model's.
    pub fn logits(&self, last: &[f32], shared: &[R]) -> Vec<R> {
        let hidden = self.norm.len();
        let last: Vec<R> = last.iter().map(|&x| R::of(x.into())).collect();
        let mut normed = vec![R::default(); last.len()];
        rms_norm(&last, &self.norm, self.epsilon, &mut normed);
        let head = if self.head.is_empty() { shared } else { &self.head };
        let (rows, vocab) = (last.len() / hidden, head.len() / hidden);
        let mut logits = vec![R::default(); rows * vocab];
        let head = Mat::new(head, vocab, hidden);
        gemm(R::of(1.0), Mat::new(&normed, rows, hidden), head.t(), R::default(), &mut logits, vocab);
        logits
    }

    /// The embedding of a token, normalised.
    pub fn embedding(&self, token: TokenId) -> &[R] {
        let hidden = self.norm.len();
        &self.embeddings[token as usize * hidden..][..hidden]
    }
}
