//! Under which parameters, biases and mask each row of a round is judged.
//!
//! The kernels know parameters, a list of biases and a mask by one number. Each sequence has one, its index. Where something
//! is forbidden at some positions only, rows of a verification may have other biases, or, under a constraint, another mask than
//! the first one: these get numbers of their own, after those of the sequences, with the same parameters.

use super::inbox::Kind;
use super::kernels::Params;
use crate::TokenId;
use crate::backend::Sequence;
use crate::constrain::TokenSet;
use crate::sample::{History, Sampler};
use std::sync::Arc;

/// All parameters, biases and masks of a pass, by number.
pub struct Views<'a> {
    views: Vec<View<'a>>,
    /// By sequence, by row: its number. Of a draft pass the one row.
    rows: Vec<Vec<usize>>,
}

/// What one number stands for.
struct View<'a> {
    sampler: &'a Sampler,
    biases: Vec<(TokenId, f32)>,
    /// The tokens that a constraint allows; `None`: all.
    mask: Option<Arc<TokenSet>>,
}

impl<'a> View<'a> {
    /// Where the token after the first `len` ones is decided.
    fn new(sequence: &Sequence<'a>, len: usize) -> Self {
        let (sampler, history) = (sequence.sampler, history(sequence, len));
        let mask = sampler.guide().and_then(|mut guide| guide.allowed(history.output()));
        Self { sampler, biases: sampler.biases(history).collect(), mask }
    }

    /// Whether another one of the same request is this one too.
    fn is(&self, other: &Self) -> bool {
        self.biases == other.biases && self.mask == other.mask
    }
}

impl<'a> Views<'a> {
    /// Those of a pass over these sequences.
    pub fn new(kind: Kind, batch: &[Sequence<'a>]) -> Self {
        let first = |sequence: &Sequence<'_>| match kind {
            Kind::Verify => sequence.committed,
            _ => sequence.tokens.len(),
        };
        let mut views: Vec<View<'a>> = batch.iter().map(|sequence| View::new(sequence, first(sequence))).collect();
        let mut of_rows = Vec::with_capacity(batch.len());
        for (index, sequence) in batch.iter().enumerate() {
            let mut rows = vec![index];
            let (first, further) = (first(sequence), sequence.tokens.len() - first(sequence));
            if sequence.sampler.biases_stay(history(sequence, first), further) {
                rows.resize(1 + further, index);
            }
            for row in rows.len()..=further {
                let (before, here) = (rows[row - 1], View::new(sequence, first + row));
                if here.is(&views[before]) {
                    rows.push(before);
                } else {
                    rows.push(views.len());
                    views.push(here);
                }
            }
            of_rows.push(rows);
        }
        Self { views, rows: of_rows }
    }

    /// How many there are, at least one for each sequence.
    pub fn count(&self) -> usize {
        self.views.len()
    }

    /// The number of a sequence's row.
    pub fn of_row(&self, sequence: usize, row: usize) -> usize {
        self.rows[sequence][row]
    }

    /// Whether logits have to be adjusted at all, and if so, how many biases there are.
    pub fn adjusted(&self) -> Option<usize> {
        let biases = self.biases().map(<[_]>::len).sum();
        let penalties = self.views.iter().any(|view| view.sampler.params().has_penalties());
        (penalties || biases > 0 || self.masked()).then_some(biases)
    }

    /// Whether a constraint takes tokens away from anybody.
    pub fn masked(&self) -> bool {
        self.views.iter().any(|view| view.mask.is_some())
    }

    /// The parameters, by number.
    pub fn params(&self) -> impl Iterator<Item = Params> {
        self.views.iter().map(|view| Params::new(view.sampler))
    }

    /// The lists of biases, by number.
    pub fn biases(&self) -> impl Iterator<Item = &[(TokenId, f32)]> {
        self.views.iter().map(|view| &view.biases[..])
    }

    /// Writes the masks, by number, each into so many words; what is behind them stays.
    pub fn write_masks(&self, masks: &mut [u32], words: usize) {
        for (mask, view) in masks.chunks_exact_mut(words).zip(&self.views) {
            match &view.mask {
                Some(allowed) => allowed.write_to(mask),
                None => mask.fill(u32::MAX),
            }
        }
    }
}

fn history<'a>(sequence: &Sequence<'a>, len: usize) -> History<'a> {
    History { tokens: &sequence.tokens[..len], prompt: sequence.prompt }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constrain::{Constraint, Walk};
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
        let lists: Vec<&[(TokenId, f32)]> = verify.biases().map(|list| &list[1..]).collect();
        assert_eq!(lists, [&[(9, none)][..], &[], &[(7, none)], &[(5, none)], &[], &[]]);
        assert_eq!((verify.count(), verify.params().count(), verify.adjusted()), (6, 6, Some(9)));

        // A draft pass has one row for each sequence: the one after all its drafts.
        let draft = Views::new(Kind::Draft, &batch);
        assert_eq!((draft.count(), draft.biases().nth(2).map(<[_]>::len), draft.of_row(2, 0)), (3, Some(1), 2));
    }

    /// After `n` tokens of an answer token `n / 2` may come, and nothing after four.
    #[derive(Debug)]
    struct Pairs;

    impl Constraint for Pairs {
        fn start(&self) -> Box<dyn Walk> {
            Box::new(Pairing(0))
        }
    }

    impl std::fmt::Display for Pairs {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("pairs")
        }
    }

    struct Pairing(TokenId);

    impl Walk for Pairing {
        fn push(&mut self, token: TokenId) -> Result<bool, String> {
            let may = self.0 < 4 && token == self.0 / 2;
            self.0 += TokenId::from(may);
            Ok(may)
        }

        fn pop(&mut self, tokens: usize) -> Result<(), String> {
            self.0 -= tokens as TokenId;
            Ok(())
        }

        fn allowed(&mut self) -> Result<TokenSet, String> {
            Ok(if self.0 < 4 { TokenSet::of(&[self.0 / 2]) } else { TokenSet::default() })
        }

        fn may_end(&mut self) -> Result<bool, String> {
            Ok(self.0 == 4)
        }

        fn accepts(&mut self, tokens: &[TokenId]) -> Result<usize, String> {
            Ok(tokens.len())
        }

        fn forced(&mut self) -> Vec<TokenId> {
            Vec::new()
        }
    }

    #[test]
    fn rows_have_the_masks_of_their_places() {
        let plain = Sampler::new(SamplingParams::default(), 70).unwrap();
        let bound = || plain.clone().constrained(Arc::new(Pairs), vec![69]);
        let (whole, astray) = (bound(), bound());
        let (kept, refused) = ([9, 0, 0, 1, 1], [9, 0, 5, 1]);
        let sequence = |sampler, tokens| Sequence {
            slot: 0,
            pages: &[],
            tokens,
            committed: 1,
            prompt: 1,
            proposed: 0,
            recurrent: 0,
            sampler,
        };
        let batch = [sequence(&whole, &kept[..]), sequence(&plain, &kept[..2]), sequence(&astray, &refused[..])];

        let verify = Views::new(Kind::Verify, &batch);
        let rows = |sequence, count| (0..count).map(|row| verify.of_row(sequence, row)).collect::<Vec<_>>();
        // Of two places after a refused token nobody asks: all is allowed there, as after an answer that is complete.
        assert_eq!((rows(0, 5), rows(1, 2), rows(2, 4)), (vec![0, 0, 3, 3, 4], vec![1, 1], vec![2, 2, 5, 5]));
        assert_eq!((verify.adjusted(), verify.masked()), (Some(0), true));
        let mut masks = vec![7; 7 * 3];
        verify.write_masks(&mut masks, 3);
        let masks: Vec<&[u32]> = masks.chunks(3).collect();
        let all = &[u32::MAX; 3][..];
        assert_eq!(masks, [&[1, 0, 0][..], all, &[1, 0, 0], &[2, 0, 0], all, all, &[7, 7, 7]]);

        assert!(!Views::new(Kind::Verify, &batch[1..2]).masked());
        let draft = Views::new(Kind::Draft, &[sequence(&whole, &kept[..4])]);
        let mut mask = [0; 3];
        draft.write_masks(&mut mask, 3);
        assert_eq!((draft.count(), mask), (1, [2, 0, 0]));
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
