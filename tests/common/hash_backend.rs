//! A backend with no arithmetic for tests of the engine: logits are a hash of the text so far, and the
//! "cache" remembers which token each position was computed from, so that a round that leaves a hole,
//! reads a stale row or writes into a page it does not own is caught where it happens.

use eesd::TokenId;
use eesd::backend::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, SavedPages, Sequence};
use eesd::control::Way;
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::model::{Geometry, Rope, RopeScaling};
use eesd::sample::{Drafted, History, Verdict};

/// Layer groups of the cache that must be complete: model layers before and after the exit, exit layer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cell {
    first: Option<TokenId>,
    last: Option<TokenId>,
    exit: Option<TokenId>,
}

/// The checking backend; see the module.
pub struct HashBackend {
    geometry: Geometry,
    limits: Limits,
    /// Chance, in 256ths, that the draft's logits are the target's.
    agreement: u64,
    cells: Vec<Cell>,
    drafted: Vec<Vec<Drafted>>,
    logits: Vec<Vec<f32>>,
    /// By slot, after a verification: the last position that was right.
    verified: Vec<Option<usize>>,
    /// Its exit block is a recurrent one, whose later drafts are others.
    pub recurrent: bool,
    /// A round's first draft is made from what the round before left, too.
    pub continues: bool,
    /// Judges what was proposed as if the exit block had drawn it: wrong, for tests of tests.
    pub proposals_are_samples: bool,
}

impl HashBackend {
    pub fn new(vocab: usize, limits: Limits, agreement: u64) -> Self {
        let geometry = Geometry {
            family: "hash".into(),
            vocab_size: vocab,
            hidden_size: 1,
            intermediate_size: 1,
            layers: 2,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 1e4, scaling: RopeScaling::Default },
            windows: vec![None; 2],
            max_positions: limits.context,
            qk_norm: false,
            tied_head: true,
        };
        let cells = vec![Cell::default(); limits.pages * PAGE_TOKENS];
        let drafted = vec![Vec::new(); limits.slots];
        let logits = vec![Vec::new(); limits.slots];
        let verified = vec![None; limits.slots];
        let (recurrent, continues, proposals_are_samples) = (false, false, false);
        Self {
            geometry,
            limits,
            agreement,
            cells,
            drafted,
            logits,
            verified,
            recurrent,
            continues,
            proposals_are_samples,
        }
    }

    /// The target's logits after `tokens`.
    pub fn target(vocab: usize, tokens: &[TokenId]) -> Vec<f32> {
        let seed = tokens.iter().rev().take(8).fold(1, |h, &t| mix(h ^ u64::from(t)));
        (0..vocab as u64).map(|v| (mix(seed ^ v << 32) % 1000) as f32 / 100.0).collect()
    }

    fn draft_logits(&self, way: Way, tokens: &[TokenId]) -> Vec<f32> {
        let target = Self::target(self.geometry.vocab_size, tokens);
        let luck = tokens.iter().rev().take(3).fold(7 + way as u64, |h, &t| mix(h ^ u64::from(t))) % 256;
        if luck < self.agreement { target } else { target.into_iter().rev().collect() }
    }

    fn cell(&mut self, pages: &[PageId], position: usize) -> &mut Cell {
        &mut self.cells[pages[position / PAGE_TOKENS].0 as usize * PAGE_TOKENS + position % PAGE_TOKENS]
    }

    /// Every position before `end` must be complete, with the K and V of these tokens.
    fn check_before(&mut self, pages: &[PageId], tokens: &[TokenId], end: usize, whole: bool) {
        for (position, &token) in tokens[..end].iter().enumerate() {
            let cell = *self.cell(pages, position);
            let some = Some(token);
            assert!(cell.first == some && cell.exit == some, "position {position} of token {token} holds {cell:?}");
            assert!(!whole || cell.last == some, "position {position} of token {token} holds {cell:?}");
        }
    }

    /// Recurrent drafts: nothing of the model's comes into the cache, and of the exit layer what is the round's alone.
    fn draft_without_layers(&mut self, way: Way, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        assert!(self.recurrent);
        for s in batch {
            let position = s.tokens.len() - 1;
            self.check_before(s.pages, s.tokens, s.tokens.len() - s.fresh(), false);
            *self.cell(s.pages, position) = Cell::default();
        }
        self.draft_from(way, batch)
    }

    /// A draft for each sequence, whose rows are in the cache.
    fn draft_from(&mut self, way: Way, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        let mut drafts = Vec::new();
        for s in batch {
            self.check_before(s.pages, s.tokens, s.committed - 1, true);
            assert_eq!(s.proposed, 0, "nothing can be drafted from a proposed token");
            if s.drafted() == 0 {
                self.drafted[s.slot].clear();
            }
            assert!(s.drafted() == self.drafted[s.slot].len() && s.drafted() < self.limits.max_draft);
            let logits = self.draft_logits(way, s.tokens);
            let drafted = s.sampler.draft(History { tokens: s.tokens, prompt: s.prompt }, s.drafted(), &logits, None);
            drafts.push(Draft { token: drafted.token, confidence: drafted.confidence });
            self.drafted[s.slot].push(drafted);
        }
        Ok(drafts)
    }
}

fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ x >> 32
}

impl Backend for HashBackend {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn exit_layer(&self) -> Option<usize> {
        Some(1)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn describe(&self) -> String {
        "hash".into()
    }

    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        for chunk in batch {
            for (i, &token) in chunk.tokens.iter().enumerate() {
                *self.cell(chunk.pages, chunk.start + i) =
                    Cell { first: Some(token), last: Some(token), exit: Some(token) };
            }
        }
        Ok(())
    }

    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        let cells = pages.iter().flat_map(|page| &self.cells[page.0 as usize * PAGE_TOKENS..][..PAGE_TOKENS]);
        // 0 for nothing, else the token's number and one more.
        let layers = cells.flat_map(|cell| [cell.first, cell.last, cell.exit]);
        let bytes = layers.flat_map(|layer| layer.map_or(0, |token| token + 1).to_le_bytes()).collect();
        Ok(SavedPages::new(pages.len(), bytes))
    }

    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        assert_eq!(saved.pages(), pages.len());
        let layer = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap()).checked_sub(1);
        let mut cells = saved.bytes().chunks_exact(12).map(|bytes| Cell {
            first: layer(&bytes[..4]),
            last: layer(&bytes[4..8]),
            exit: layer(&bytes[8..]),
        });
        for page in pages {
            self.cells[page.0 as usize * PAGE_TOKENS..][..PAGE_TOKENS].fill_with(|| cells.next().unwrap());
        }
        Ok(())
    }

    fn is_recurrent(&self) -> bool {
        self.recurrent
    }

    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        for s in batch {
            assert!(s.drafted() > 0 || !self.continues, "a first draft that continues nothing");
            let fresh = s.tokens.len() - s.fresh();
            self.check_before(s.pages, s.tokens, fresh, false);
            for (position, &token) in s.tokens.iter().enumerate().skip(fresh) {
                *self.cell(s.pages, position) = Cell { first: Some(token), last: None, exit: Some(token) };
            }
        }
        self.draft_from(Way::FirstLayers, batch)
    }

    fn draft_recurrently(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        assert!(batch.iter().all(|s| s.sampled() > 0), "a recurrent draft begins with a draft");
        self.draft_without_layers(Way::Recurrent, batch)
    }

    fn continues(&self) -> bool {
        self.continues
    }

    fn draft_continued(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        for s in batch {
            assert_eq!(s.drafted(), 0, "a round's first draft");
            let before = self.verified[s.slot].take();
            assert_eq!(before.map(|position| position + 2), Some(s.committed), "a round before this one");
        }
        self.draft_without_layers(Way::Continued, batch)
    }

    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        let mut verdicts = Vec::new();
        for s in batch {
            if s.sampled() == 0 {
                self.drafted[s.slot].clear();
            }
            let last = s.tokens.len() - 1;
            assert!(last < self.limits.context, "position {last} is outside the context");
            self.check_before(s.pages, s.tokens, s.committed - 1, true);
            // Only rows that were drafted from have been through the first layers, and not all of them.
            self.check_before(s.pages, s.tokens, s.tokens.len() - s.fresh(), false);
            assert_eq!(self.drafted[s.slot].len(), s.sampled());
            for position in s.committed - 1..=last {
                let token = s.tokens[position];
                *self.cell(s.pages, position) = Cell { first: Some(token), last: Some(token), exit: Some(token) };
            }
            let rows = s.committed..=s.tokens.len();
            let vocab = self.geometry.vocab_size;
            let logits: Vec<f32> = rows.flat_map(|n| Self::target(vocab, &s.tokens[..n])).collect();
            let history = History { tokens: s.tokens, prompt: s.prompt };
            for (i, &token) in s.tokens.iter().enumerate().skip(s.committed + s.sampled()) {
                let history = History { tokens: &s.tokens[..i], prompt: s.prompt };
                let sample = || {
                    s.sampler.draft(
                        history,
                        i - s.committed,
                        &self.draft_logits(Way::FirstLayers, history.tokens),
                        None,
                    )
                };
                let wrong = self.proposals_are_samples.then(|| Drafted { token, ..sample() });
                self.drafted[s.slot].push(wrong.unwrap_or_else(|| Drafted::certain(token)));
            }
            let verdict = s.sampler.accept(history, &logits, &self.drafted[s.slot]);
            self.verified[s.slot] = Some(s.committed - 1 + verdict.accepted);
            verdicts.push(verdict);
            self.logits[s.slot] = logits;
        }
        Ok(verdicts)
    }

    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        Ok(self.logits[slot].clone())
    }

    fn evaluate(&mut self, chunk: &Chunk<'_>, _tap: usize) -> Result<Evaluation, BackendError> {
        self.prefill(&[*chunk])?;
        let vocab = self.geometry.vocab_size;
        let logits = (1..=chunk.tokens.len()).flat_map(|n| Self::target(vocab, &chunk.tokens[..n])).collect();
        Ok(Evaluation { logits, hidden: vec![0.0; chunk.tokens.len()] })
    }
}
