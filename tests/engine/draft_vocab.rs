//! Exit blocks that draft from listed tokens: what they draft is what a block of the same rows drafts, by its tokens, and
//! what the whole head drafts where all other tokens are forbidden.

use crate::common::exits::{exit_after, rows_of};
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, BackendError, Chunk, Draft, Sequence};
use eesd::kv::PageId;
use eesd::load::{Checkpoint, ExitBlock, bundled_prompts};
use eesd::model::{ExitWeights, Matrix};
use eesd::sample::{Sampler, SamplingParams, VerifyMode};

const EXIT: usize = 2;
const DRAFTS: usize = 6;

struct Subject {
    checkpoint: Checkpoint,
    blocks: Vec<ExitBlock>,
    prompts: Vec<Vec<TokenId>>,
    /// What is drafted from: two of every three tokens of the first quarter, and some later ones.
    ids: Vec<TokenId>,
}

impl Subject {
    fn new() -> Self {
        let checkpoint = Checkpoint::bundled().unwrap();
        let tokenizer = checkpoint.tokenizer().unwrap();
        let prompts = bundled_prompts().iter().take(8).map(|prompt| tokenizer.encode(prompt, true).unwrap()).collect();
        let ids = (0..4096).filter(|id| if *id < 1024 { id % 3 != 1 } else { id % 10 == 7 }).collect();
        Self { blocks: checkpoint.exit_blocks().unwrap(), prompts, ids, checkpoint }
    }

    fn exit(&self) -> ExitWeights<'_> {
        exit_after(&self.checkpoint, &self.blocks, EXIT)
    }

    fn open(&self, exit: &ExitWeights<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let options =
            CpuOptions { threads: Some(1), slots: 1, context: 512, max_draft: DRAFTS, ..CpuOptions::default() };
        CpuBackend::new(self.checkpoint.geometry(), &self.checkpoint.weights(), Some(exit), &options)
    }

    /// The drafts that follow each prompt; those of a round follow `forced` where that says which they were.
    fn drafts(
        &self,
        exit: &ExitWeights<'_>,
        sampling: &SamplingParams,
        forced: Option<&[Vec<Draft>]>,
    ) -> Vec<Vec<Draft>> {
        let (mut backend, pages) = (self.open(exit).unwrap(), [0, 1, 2, 3, 4, 5, 6, 7].map(PageId));
        let sampler = Sampler::new(sampling.clone(), 4096).unwrap();
        let round = |(index, prompt): (usize, &Vec<TokenId>)| {
            let committed = prompt.len();
            backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: &prompt[..committed - 1] }]).unwrap();
            let (mut tokens, mut drafts) = (prompt.clone(), Vec::new());
            for j in 0..DRAFTS {
                let sequence = Sequence {
                    slot: 0,
                    pages: &pages,
                    tokens: &tokens,
                    committed,
                    prompt: 5,
                    proposed: 0,
                    recurrent: 0,
                    sampler: &sampler,
                };
                let draft = backend.draft(&[sequence]).unwrap()[0];
                tokens.push(forced.map_or(draft.token, |forced| forced[index][j].token));
                drafts.push(draft);
            }
            drafts
        };
        self.prompts.iter().enumerate().map(round).collect()
    }
}

/// The block with the rows of these tokens alone.
fn listing<'a>(exit: &ExitWeights<'a>, ids: &'a [TokenId]) -> ExitWeights<'a> {
    ExitWeights { head: Some(rows_of(exit.head.unwrap(), ids)), draft_ids: Some(ids), ..*exit }
}

fn bits(drafts: &[Vec<Draft>]) -> Vec<u32> {
    drafts.iter().flatten().map(|draft| draft.confidence.to_bits()).collect()
}

/// Logits do not know their tokens: the same rows as a head of the first tokens give the same confidences, to the last
/// bit, and greedily the tokens at the same places.
#[test]
fn listed_tokens_are_those_of_the_rows() {
    let subject = Subject::new();
    let exit = subject.exit();
    let listed = listing(&exit, &subject.ids);
    let greedy = SamplingParams::default();
    let found = subject.drafts(&listed, &greedy, None);
    let first = subject.drafts(&ExitWeights { draft_ids: None, ..listed }, &greedy, Some(&found));
    assert_eq!(bits(&found), bits(&first));
    let tokens = first.iter().flatten().map(|draft| subject.ids[draft.token as usize]);
    assert!(tokens.eq(found.iter().flatten().map(|draft| draft.token)));
    let late = found.iter().flatten().filter(|draft| draft.token >= 1024).count();
    assert!(late > 0, "only frequent tokens were drafted");
}

/// Penalties, biases, filters and random numbers go by tokens: the whole head draws the same where a bias forbids it all
/// other tokens.
#[test]
fn the_whole_head_draws_the_same_from_listed_tokens() {
    let subject = Subject::new();
    let exit = subject.exit();
    let listed = listing(&exit, &subject.ids);
    let off = SamplingParams::default;
    let warm = |verify| SamplingParams { temperature: 0.9, seed: Some(11), verify: Some(verify), ..off() };
    let (coupled, rejecting) = (warm(VerifyMode::Coupled), warm(VerifyMode::Rejection));
    let bias = vec![(9, 2.0), (10, f32::NEG_INFINITY), (1027, 3.0), (1, 5.0)];
    let settings = [
        off(),
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.7, logit_bias: bias.clone(), ..off() },
        SamplingParams { top_k: 30, frequency_penalty: 0.5, ..coupled.clone() },
        SamplingParams { top_p: 0.9, repetition_penalty: 1.2, logit_bias: bias, ..rejecting.clone() },
        SamplingParams { min_p: 0.02, presence_penalty: -0.4, ..rejecting },
        coupled,
    ];
    let mut tokens = Vec::new();
    for sampling in settings {
        let found = subject.drafts(&listed, &sampling, None);
        let mut forbidding = sampling.clone();
        let others = (0..4096).filter(|id| subject.ids.binary_search(id).is_err());
        forbidding.logit_bias.extend(others.map(|id| (id, f32::NEG_INFINITY)));
        let expected = subject.drafts(&exit, &forbidding, None);
        let of = |drafts: &[Vec<Draft>]| drafts.iter().flatten().map(|draft| draft.token).collect::<Vec<_>>();
        assert_eq!(of(&found), of(&expected), "{sampling:?}");
        assert!(found.iter().flatten().all(|draft| subject.ids.binary_search(&draft.token).is_ok()));
        tokens.extend(of(&found));
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert!(tokens.len() > 20, "hardly anything was drafted: {tokens:?}");
}

/// Where every token that could be drafted is forbidden, the first one is drafted: one that is in the list.
#[test]
fn forbidding_everything_drafts_the_first_of_the_list() {
    let subject = Subject::new();
    let exit = subject.exit();
    let ids = [77, 300, 4000];
    let listed = listing(&exit, &ids);
    let logit_bias: Vec<_> = ids.iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
    for (temperature, verify) in [(0.0, None), (1.0, Some(VerifyMode::Coupled)), (1.0, Some(VerifyMode::Rejection))] {
        let sampling =
            SamplingParams { temperature, verify, logit_bias: logit_bias.clone(), ..SamplingParams::default() };
        let drafts = subject.drafts(&listed, &sampling, None);
        assert!(drafts.iter().flatten().all(|draft| draft.token == 77), "{verify:?}");
    }
}

#[test]
fn lists_that_backends_could_not_go_by_are_refused() {
    let subject = Subject::new();
    let exit = subject.exit();
    let head = |rows| Some(Matrix { rows, bytes: &exit.head.unwrap().bytes[..rows * 192 * 2], ..exit.head.unwrap() });
    for (head, ids, why) in [
        (head(3), &[1, 2][..], "draft_ids has 2 tokens (expected 3, one for each row of the head)"),
        (head(3), &[1, 3, 2], "draft_ids has token 2 after token 3, at 2 (expected ascending tokens, each once)"),
        (head(2), &[1, 4096], "draft_ids has token 4096, at 1 (expected tokens below 4096)"),
        (None, &[1, 2], "draft_ids without a head (expected the lm_head whose rows they name)"),
    ] {
        let error = subject.open(&ExitWeights { head, draft_ids: Some(ids), ..exit }).err().unwrap();
        assert_eq!(error, BackendError::Exit(why.into()));
    }
}
