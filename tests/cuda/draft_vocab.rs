//! Exit blocks that draft from listed tokens: the drafts of the same rows as a head of the first tokens, by their tokens,
//! and those of the whole head where all other tokens are forbidden; with them all is written that the model writes.

use crate::exits::rows_of;
use crate::support::{Subject, engine, on_device, options, run, table, tokens};
use eesd::TokenId;
use eesd::backend::{Chunk, Draft, Sequence};
use eesd::engine::Request;
use eesd::model::ExitWeights;
use eesd::sample::{Sampler, SamplingParams, VerifyMode};

/// A round of some drafts after each of some prompts.
fn drafts(
    subject: &Subject,
    exit: &ExitWeights<'_>,
    sampling: &SamplingParams,
    (prompts, count): (usize, usize),
) -> Vec<Draft> {
    let mut backend = on_device(subject.geometry(), &subject.checkpoint.weights(), Some(exit), &options(1));
    let sampler = Sampler::new(sampling.clone(), subject.geometry().vocab_size).unwrap();
    let pages = table(0, 64);
    let round = |index: usize| {
        let mut tokens = subject.text(index as u64, 4 + 4 * index);
        let committed = tokens.len();
        backend.prefill(&[Chunk { pages: pages.pages(), start: 0, tokens: &tokens[..committed - 1] }]).unwrap();
        let mut drafts = Vec::new();
        for _ in 0..count {
            let pages = pages.pages();
            let sequence = Sequence {
                slot: 0,
                pages,
                tokens: &tokens,
                committed,
                prompt: 3,
                proposed: 0,
                recurrent: 0,
                sampler: &sampler,
            };
            let draft = backend.draft(&[sequence]).unwrap()[0];
            tokens.push(draft.token);
            drafts.push(draft);
        }
        drafts
    };
    (0..prompts).flat_map(round).collect()
}

fn drafted(drafts: &[Draft]) -> Vec<TokenId> {
    drafts.iter().map(|draft| draft.token).collect()
}

#[test]
fn listed_tokens_are_those_of_the_rows() {
    let subject = Subject::fixture("mistral");
    let listed = subject.exit(3);
    let (first, ids) = (ExitWeights { draft_ids: None, ..listed }, listed.draft_ids.unwrap());
    let greedy = SamplingParams::default();
    let [found, expected] = [&listed, &first].map(|exit| drafts(&subject, exit, &greedy, (12, 1)));
    let bits = |drafts: &[Draft]| drafts.iter().map(|draft| draft.confidence.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&found), bits(&expected));
    let named: Vec<TokenId> = drafted(&expected).into_iter().map(|column| ids[column as usize]).collect();
    assert_eq!(drafted(&found), named);
    assert_ne!(drafted(&found), drafted(&expected));
}

#[test]
fn the_whole_head_draws_the_same_from_listed_tokens() {
    let subject = Subject::fixture("llama");
    let weights = subject.checkpoint.weights();
    let vocab = subject.geometry().vocab_size as TokenId;
    let ids: Vec<TokenId> = (0..vocab).filter(|id| id % 3 != 1 && id % 11 != 4).collect();
    let whole = ExitWeights::from_model(&weights, 2, 3);
    let listed = ExitWeights { head: Some(rows_of(weights.head, &ids)), draft_ids: Some(&ids), ..whole };
    let off = SamplingParams::default;
    let warm = |verify| SamplingParams { temperature: 0.9, seed: Some(11), verify: Some(verify), ..off() };
    let (coupled, rejecting) = (warm(VerifyMode::Coupled), warm(VerifyMode::Rejection));
    let penalised = |sampling| SamplingParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.5,
        logit_bias: vec![(9, 2.0), (11, f32::NEG_INFINITY), (300, 1.0), (1, 5.0)],
        ..sampling
    };
    let mut seen = Vec::new();
    for sampling in [
        off(),
        penalised(off()),
        SamplingParams { top_k: 30, ..coupled.clone() },
        penalised(SamplingParams { top_p: 0.9, ..coupled }),
        SamplingParams { min_p: 0.02, ..rejecting.clone() },
        penalised(rejecting),
    ] {
        let mut forbidding = sampling.clone();
        let others = (0..vocab).filter(|id| ids.binary_search(id).is_err());
        forbidding.logit_bias.extend(others.map(|id| (id, f32::NEG_INFINITY)));
        let found = drafted(&drafts(&subject, &listed, &sampling, (4, 5)));
        assert_eq!(found, drafted(&drafts(&subject, &whole, &forbidding, (4, 5))), "{sampling:?}");
        seen.extend(found);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 20, "hardly anything was drafted: {seen:?}");
    // And where all of them are forbidden, it is the first of the list that is drafted.
    let logit_bias: Vec<_> = ids.iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
    let nothing = drafts(&subject, &listed, &SamplingParams { logit_bias, ..off() }, (2, 2));
    assert!(drafted(&nothing).iter().all(|&token| token == ids[0]));
}

/// Rows of weights keep no trace of a round in which everything was forbidden, or of another request: the same request
/// after others gives the same tokens, and greedy and coupled ones those of plain decoding.
#[test]
fn requests_with_a_list_write_what_the_model_writes() {
    let subject = Subject::fixture("qwen2");
    let ids = subject.exit(3).draft_ids.unwrap();
    let request = |seed: u64, verify, temperature, logit_bias: Vec<(TokenId, f32)>| {
        let sampling =
            SamplingParams { temperature, seed: Some(seed), verify: Some(verify), logit_bias, ..Default::default() };
        Request { sampling, ..Request::new(subject.text(seed, 12), 12) }
    };
    let forbidding: Vec<_> = ids.iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
    let exact = [
        request(1, VerifyMode::Coupled, 1.0, vec![]),
        request(2, VerifyMode::Coupled, 0.7, forbidding.clone()),
        request(3, VerifyMode::Coupled, 0.0, vec![(ids[7], 2.0)]),
    ];
    let rejecting = [
        request(4, VerifyMode::Rejection, 1.0, vec![]),
        request(5, VerifyMode::Rejection, 1.0, forbidding),
        request(4, VerifyMode::Rejection, 1.0, vec![]),
    ];
    let mut plain = engine(subject.cuda(Some(3), &options(1)), "off");
    let mut drafting = engine(subject.cuda(Some(3), &options(1)), "fixed:3");
    let expected = run(&mut plain, &exact, 1);
    assert_eq!(tokens(&run(&mut drafting, &exact, 1)), tokens(&expected));
    let found = run(&mut drafting, &rejecting, 1);
    // By rejection requests of one seed draw each for itself, by their numbers: the last one here is the sixth.
    let mut fresh = engine(subject.cuda(Some(3), &options(1)), "fixed:3");
    let alone = run(&mut fresh, &vec![rejecting[0].clone(); exact.len() + rejecting.len()], 1);
    assert_eq!(found[2].tokens, alone[exact.len() + rejecting.len() - 1].tokens);
    assert!(found[1].tokens.iter().all(|token| ids.binary_search(token).is_err()), "a forbidden token was written");
    assert_eq!(found[1].stats.accepted(), 0);
}
