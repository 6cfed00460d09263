//! Under which parameters and biases each row of a round is judged.
//!
//! The kernels know parameters and a list of biases by one number. Each sequence has one, its index. Where something is
//! forbidden at some positions only, rows of a verification may have other biases than the first one: these get numbers of
//! their own, after those of the sequences, with the same parameters.

use super::inbox::Kind;
use super::kernels::Params;
use crate::TokenId;
use crate::backend::Sequence;
use crate::sample::{History, Sampler};

/// All parameters and biases of a pass, by number.
pub struct Views<'a> {
    samplers: Vec<&'a Sampler>,
    biases: Vec<Vec<(TokenId, f32)>>,
    /// By sequence, by row: its number. Of a draft pass the one row.
    rows: Vec<Vec<usize>>,
}

impl<'a> Views<'a> {
    /// Those of a pass over these sequences.
    pub fn new(kind: Kind, batch: &[Sequence<'a>]) -> Self {
        let first = |sequence: &Sequence<'_>| match kind {
            Kind::Verify => sequence.committed,
            _ => sequence.tokens.len(),
        };
        let mut views = Self {
            samplers: batch.iter().map(|sequence| sequence.sampler).collect(),
            biases: batch.iter().map(|sequence| biases(sequence, first(sequence))).collect(),
            rows: Vec::with_capacity(batch.len()),
        };
        for (index, sequence) in batch.iter().enumerate() {
            let mut rows = vec![index];
            let (first, further) = (first(sequence), sequence.tokens.len() - first(sequence));
            if sequence.sampler.biases_stay(history(sequence, first), further) {
                rows.resize(1 + further, index);
            }
            for row in rows.len()..=further {
                let (before, here) = (rows[row - 1], biases(sequence, first + row));
                if here == views.biases[before] {
                    rows.push(before);
                } else {
                    rows.push(views.biases.len());
                    views.samplers.push(sequence.sampler);
                    views.biases.push(here);
                }
            }
            views.rows.push(rows);
        }
        views
    }

    /// How many there are, at least one for each sequence.
    pub fn count(&self) -> usize {
        self.samplers.len()
    }

    /// The number of a sequence's row.
    pub fn of_row(&self, sequence: usize, row: usize) -> usize {
        self.rows[sequence][row]
    }

    /// Whether logits have to be adjusted at all, and if so, how many biases there are.
    pub fn adjusted(&self) -> Option<usize> {
        let biases = self.biases.iter().map(Vec::len).sum();
        let penalties = self.samplers.iter().any(|sampler| sampler.params().has_penalties());
        (penalties || biases > 0).then_some(biases)
    }

    /// The parameters, by number.
    pub fn params(&self) -> impl Iterator<Item = Params> {
        self.samplers.iter().map(|sampler| Params::new(sampler))
    }

    /// The lists of biases, by number.
    pub fn biases(&self) -> &[Vec<(TokenId, f32)>] {
        &self.biases
    }
}

fn history<'a>(sequence: &Sequence<'a>, len: usize) -> History<'a> {
    History { tokens: &sequence.tokens[..len], prompt: sequence.prompt }
}

/// The biases where the token after the first `len` ones is decided.
fn biases(sequence: &Sequence<'_>, len: usize) -> Vec<(TokenId, f32)> {
    sequence.sampler.biases(history(sequence, len)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::SamplingParams;

    #[test]
    fn rows_share_a_number_while_their_biases_are_the_same() {
        let none = f32::NEG_INFINITY;
        let sampler = |bad_words| {
            let params = SamplingParams { logit_bias: vec![(1, 2.0)], bad_words, ..SamplingParams::default() };
            Sampler::new(params, 10).unwrap()
        };
        let (plain, words) = (sampler(vec![vec![9]]), sampler(vec![vec![4, 5]]));
        let least = sampler(vec![]).forbidding_among_first(2, vec![7]);
        let tokens = [0, 3, 4, 4, 6];
        let sequence = |sampler| Sequence {
            slot: 0,
            pages: &[],
            tokens: &tokens,
            committed: 2,
            prompt: 2,
            proposed: 0,
            recurrent: 0,
            sampler,
        };
        let batch = [sequence(&plain), sequence(&words), sequence(&least)];

        let verify = Views::new(Kind::Verify, &batch);
        let rows = |sequence| (0..4).map(|row| verify.of_row(sequence, row)).collect::<Vec<_>>();
        assert_eq!([rows(0), rows(1), rows(2)], [[0, 0, 0, 0], [1, 3, 3, 4], [2, 2, 5, 5]]);
        let lists: Vec<&[(TokenId, f32)]> = verify.biases().iter().map(|list| &list[1..]).collect();
        assert_eq!(lists, [&[(9, none)][..], &[], &[(7, none)], &[(5, none)], &[], &[]]);
        assert_eq!((verify.count(), verify.params().count(), verify.adjusted()), (6, 6, Some(9)));

        // A draft pass has one row for each sequence: the one after all its drafts.
        let draft = Views::new(Kind::Draft, &batch);
        assert_eq!((draft.count(), draft.biases()[2].len(), draft.of_row(2, 0)), (3, 1, 2));
    }

    #[test]
    fn logits_are_adjusted_where_somebody_asks_for_it() {
        let adjusted = |sampler: &Sampler| {
            let plain = Sampler::new(SamplingParams::default(), 10).unwrap();
            let sequence = |sampler| Sequence {
                slot: 0,
                pages: &[],
                tokens: &[1, 2],
                committed: 2,
                prompt: 1,
                proposed: 0,
                recurrent: 0,
                sampler,
            };
            Views::new(Kind::Verify, &[sequence(&plain), sequence(sampler)]).adjusted()
        };
        let sampler = |params| Sampler::new(params, 10).unwrap();
        assert_eq!(adjusted(&sampler(SamplingParams::default())), None);
        assert_eq!(adjusted(&sampler(SamplingParams { presence_penalty: 1.0, ..Default::default() })), Some(0));
        assert_eq!(adjusted(&sampler(SamplingParams { suppress_tokens: vec![4, 5], ..Default::default() })), Some(2));
        let least = |count| sampler(SamplingParams::default()).forbidding_among_first(count, vec![3]);
        assert_eq!((adjusted(&least(2)), adjusted(&least(1))), (Some(1), None), "one token of output there is");
    }
}
