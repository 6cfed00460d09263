//! A batch as the device is told of it: which rows chains start at, what they read there, and what they draft.

use super::host::Host;
use super::memory::Workspace;
use crate::backend::BackendError;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::kernels::{Flash, RowTile};
use crate::backend::training::chains::{Chains, Draft};
use crate::backend::training::parameters::Layout;
use crate::backend::training::{States, TeacherBatch};
use crate::model::Geometry;
use bytemuck::cast_slice;
use std::borrow::Cow;
use std::ops::Range;

/// Positions whose logits are on the device together, and the drafts for them.
pub struct Piece {
    pub positions: Range<usize>,
    pub drafts: Range<usize>,
}

/// What is queued with a batch.
///
/// Every chain takes part in every step, so that a chain is the same row in all of them; one that has run over the end of its
/// text stays at the last row, and nothing that it drafts there counts.
pub struct Told {
    /// Rows of the text, up to the last one that a chain sees.
    pub text: usize,
    pub chains: usize,
    pub query_tiles: usize,
    pub key_tiles: usize,
    pub pieces: Vec<Piece>,
    /// What counts, position after position: its position and its step.
    pub drafts: Vec<(usize, usize)>,
}

impl Told {
    /// Queues the copy of a batch, which has been checked.
    ///
    /// # Errors
    /// If the device fails.
    pub fn tell<D: Driver>(
        host: &mut Host<D>,
        work: &Workspace,
        batch: &TeacherBatch,
        states: &States,
        layout: &Layout,
        geometry: &Geometry,
    ) -> Result<Self, BackendError> {
        let chains = Chains::new(batch);
        let steps = work.steps.len();
        let [query_tiles, key_tiles]: [Vec<RowTile>; 2] =
            Flash::tiles(&chains.seen(), &chains.first_starts(), geometry.head_dim);
        let positions: Vec<i32> = chains.seen_positions().into_iter().map(|position| position as i32).collect();
        let starts: Vec<u32> = chains.starts().into_iter().map(|row| row as u32).collect();
        let (mut chain_positions, mut tokens): (Vec<i32>, Vec<u32>) = (Vec::new(), Vec::new());
        for step in 0..steps {
            for (row, position) in chains.places(step) {
                chain_positions.push(position as i32);
                tokens.extend((step > 0).then(|| batch.tokens[row]));
            }
        }

        let drafts = chains.drafts(batch, steps);
        let (mut rows, mut drafted, mut counted): (Vec<u32>, Vec<u32>, Vec<(usize, usize)>) = Default::default();
        let mut pieces = Vec::new();
        for positions in (0..drafts.len()).step_by(work.piece).map(|first| first..drafts.len().min(first + work.piece))
        {
            let before = counted.len();
            for position in positions.clone() {
                // The chain that drafts it in its first step starts there, and the others before.
                let first = drafts[position].first().map_or(0, |draft| draft.row);
                for &Draft { step, .. } in &drafts[position] {
                    rows.push((step * work.rows + first - step) as u32);
                    drafted.push((position - positions.start) as u32);
                    counted.push((position, step));
                }
            }
            pieces.push(Piece { positions, drafts: before..counted.len() });
        }
        let vocab = layout.draft_vocab();
        let column = |token| vocab.column(token).map_or(u32::MAX, |column| column as u32);
        let columns: Vec<u32> = batch.scored.iter().map(|position| column(position.token)).collect();
        let likeliest: Vec<u32> = states.likeliest.iter().map(|&token| column(token)).collect();
        let weights: Vec<f64> = batch.scored.iter().map(|position| position.weight).collect();
        let hidden = seen(batch, &chains, geometry.hidden_size);

        let inbox = &work.inbox;
        host.tell(
            inbox,
            &[
                (inbox.positions, cast_slice(&positions)),
                (inbox.chain_positions, cast_slice(&chain_positions)),
                (inbox.tokens, cast_slice(&tokens)),
                (inbox.starts, cast_slice(&starts)),
                (inbox.query_tiles, cast_slice(&query_tiles)),
                (inbox.key_tiles, cast_slice(&key_tiles)),
                (inbox.drafts, cast_slice(&rows)),
                (inbox.drafted, cast_slice(&drafted)),
                (inbox.columns, cast_slice(&columns)),
                (inbox.likeliest, cast_slice(&likeliest)),
                (inbox.log_totals, cast_slice(&states.log_totals)),
                (inbox.weights, cast_slice(&weights)),
                (inbox.hidden, cast_slice(&hidden)),
                (inbox.last, cast_slice(&states.last)),
            ],
        )?;
        Ok(Self {
            text: positions.len(),
            chains: starts.len(),
            query_tiles: query_tiles.len(),
            key_tiles: key_tiles.len(),
            pieces,
            drafts: counted,
        })
    }
}

/// `h_N` of the rows that chains see.
fn seen<'a>(batch: &'a TeacherBatch, chains: &Chains, width: usize) -> Cow<'a, [f32]> {
    if chains.seen() == batch.lengths {
        return Cow::Borrowed(&batch.hidden);
    }
    chains.seen_rows().flat_map(|row| &batch.hidden[row * width..][..width]).copied().collect()
}
