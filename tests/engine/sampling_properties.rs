//! Properties of the sampler, each against a naive reference.

use crate::sampling_reference::{ToyModel, adjusted, probabilities};
use eesd::TokenId;
use eesd::sample::{Drafted, History, Rule, Sampler, SamplingParams, Verdict, VerifyMode};
use proptest::collection::vec;
use proptest::prelude::*;

const VOCAB: usize = 12;
const PROMPT: [TokenId; 3] = [3, 1, 4];

/// Logits with many ties and a few forbidden tokens, never all of them.
fn any_logits() -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![6 => -6f32..6.0, 3 => (-3..4i8).prop_map(f32::from), 1 => Just(f32::NEG_INFINITY)];
    vec(logit, VOCAB).prop_filter("some token must be possible", |row| row.iter().any(|l| l.is_finite()))
}

/// Sampling parameters at temperature > 0, which forbid a few tokens and runs of tokens.
fn any_params() -> impl Strategy<Value = SamplingParams> {
    let filters = (
        0.05..3.0,
        prop_oneof![Just(0), 1..VOCAB + 3],
        prop_oneof![Just(1.0), 0.01..1.0],
        prop_oneof![Just(0.0), 0.0..=1.0],
    );
    let bias = prop_oneof![3 => -3f32..3.0, 1 => Just(f32::NEG_INFINITY)];
    let penalties = (
        prop_oneof![Just(1.0), 0.5..2.0],
        prop_oneof![Just(0.0), -2.0..2.0],
        prop_oneof![Just(0.0), -1.0..1.0],
        vec((0..VOCAB as TokenId, bias), 0..3),
    );
    let token = 0..VOCAB as TokenId;
    let forbidden = (vec(token.clone(), 0..3), vec(vec(token, 1..4), 0..12));
    (filters, penalties, forbidden, any::<u64>()).prop_map(|(filters, penalties, forbidden, seed)| SamplingParams {
        temperature: filters.0,
        top_k: filters.1,
        top_p: filters.2,
        min_p: filters.3,
        repetition_penalty: penalties.0,
        presence_penalty: penalties.1,
        frequency_penalty: penalties.2,
        logit_bias: penalties.3,
        suppress_tokens: forbidden.0,
        bad_words: forbidden.1,
        seed: Some(seed),
        verify: None,
        logprobs: None,
    })
}

fn any_output() -> impl Strategy<Value = Vec<TokenId>> {
    vec(0..VOCAB as TokenId, 0..6)
}

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, VOCAB).expect("parameters are in range")
}

fn with_rule(params: SamplingParams, rule: Rule) -> Sampler {
    let sampler = sampler(match rule {
        Rule::Greedy => SamplingParams { temperature: 0.0, ..params },
        Rule::Rejection => SamplingParams { verify: Some(VerifyMode::Rejection), ..params },
        Rule::Coupled => SamplingParams { verify: Some(VerifyMode::Coupled), ..params },
    });
    assert_eq!(sampler.rule(), rule);
    sampler
}

fn history(tokens: &[TokenId]) -> History<'_> {
    History { tokens, prompt: PROMPT.len() }
}

/// The prompt followed by `output`.
fn text(output: &[TokenId]) -> Vec<TokenId> {
    [&PROMPT, output].concat()
}

/// Logits `[drafts.len() + 1, VOCAB]` of a toy model along `committed` and then `drafts`.
fn rows(model: &ToyModel, committed: &[TokenId], drafts: &[TokenId]) -> Vec<f32> {
    let along = |i| model.logits(&[committed, &drafts[..i]].concat()).to_vec();
    (0..=drafts.len()).flat_map(along).collect()
}

/// Drafts as an engine would hand them over, of any origin: the rules that look at `q` get all of
/// it on the token.
fn as_drafted(tokens: &[TokenId]) -> Vec<Drafted> {
    tokens.iter().map(|&token| Drafted { token, confidence: 0.5, q: vec![(token, 1.0)] }).collect()
}

fn judge(sampler: &Sampler, model: &ToyModel, committed: &[TokenId], drafts: &[TokenId]) -> Verdict {
    let tokens = [committed, drafts].concat();
    sampler.accept(history(&tokens), &rows(model, committed, drafts), &as_drafted(drafts))
}

/// `count` tokens by rounds that draft the given runs of tokens, over and over.
fn generate(sampler: &Sampler, model: &ToyModel, drafts: &[Vec<TokenId>], count: usize) -> Vec<TokenId> {
    let mut tokens = PROMPT.to_vec();
    for drafts in drafts.iter().cycle() {
        if tokens.len() >= PROMPT.len() + count {
            break;
        }
        let verdict = judge(sampler, model, &tokens, drafts);
        tokens.extend(&drafts[..verdict.accepted]);
        tokens.push(verdict.next);
    }
    tokens[PROMPT.len()..][..count].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn q_is_the_reference_distribution(params in any_params(), output in any_output(), logits in any_logits()) {
        let tokens = text(&output);
        let expected = probabilities(&params, history(&tokens), &logits);
        prop_assume!(!expected[0].is_nan()); // biases forbade everything: see `forbidding_everything`
        let drafted = with_rule(params, Rule::Rejection).draft(history(&tokens), 0, &logits, None);
        let support: Vec<_> = (0..VOCAB as TokenId).filter(|&t| expected[t as usize] > 0.0).collect();
        prop_assert_eq!(drafted.q.iter().map(|e| e.0).collect::<Vec<_>>(), support);
        for &(token, q) in &drafted.q {
            prop_assert!((q - expected[token as usize]).abs() < 1e-12);
        }
        prop_assert!((drafted.q.iter().map(|e| e.1).sum::<f64>() - 1.0).abs() < 1e-12);
        prop_assert!(drafted.q.iter().any(|e| e.0 == drafted.token));
    }

    #[test]
    fn emitted_tokens_are_in_the_targets_support(
        params in any_params(), output in any_output(), seed in any::<u64>(),
        drafts in vec((0..VOCAB as TokenId, any_logits()), 0..4),
    ) {
        let model = ToyModel::new(seed, VOCAB, 4.0);
        let committed = text(&output);
        let mut tokens = committed.clone();
        let mut drafted = Vec::new();
        for (j, (token, logits)) in drafts.iter().enumerate() {
            // A draft model of its own, and now and then a token that it would not have drawn.
            let mut draft = with_rule(params.clone(), Rule::Rejection).draft(history(&tokens), j, logits, None);
            if token % 3 == 0 {
                draft.token = *token;
            }
            tokens.push(draft.token);
            drafted.push(draft);
        }
        let logits = rows(&model, &committed, &tokens[committed.len()..]);
        for rule in [Rule::Rejection, Rule::Coupled] {
            let verdict = with_rule(params.clone(), rule).accept(history(&tokens), &logits, &drafted);
            let emitted = [&tokens[committed.len()..][..verdict.accepted], &[verdict.next]].concat();
            for (i, &token) in emitted.iter().enumerate() {
                let past = &tokens[..committed.len() + i];
                let p = probabilities(&params, history(past), model.logits(past));
                prop_assert!(p[0].is_nan() || p[token as usize] > 0.0);
            }
        }
    }

    #[test]
    fn greedy_is_the_argmax_token_by_token(
        params in any_params(), seed in any::<u64>(), drafts in vec(vec(0..VOCAB as TokenId, 0..5), 1..5),
    ) {
        let model = ToyModel::new(seed, VOCAB, 4.0);
        let mut expected = PROMPT.to_vec();
        for _ in 0..12 {
            let logits = adjusted(&params, history(&expected), model.logits(&expected));
            let best = (0..VOCAB).reduce(|a, b| if logits[b] > logits[a] { b } else { a });
            expected.push(best.unwrap_or(0) as TokenId);
        }
        let greedy = with_rule(params, Rule::Greedy);
        // Random drafts are mostly wrong; the expected text itself is a draft that never is.
        let right = [expected[PROMPT.len()..][..5].to_vec(), expected[PROMPT.len()..].to_vec()];
        prop_assert_eq!(&generate(&greedy, &model, &drafts, 12), &expected[PROMPT.len()..]);
        prop_assert_eq!(&generate(&greedy, &model, &right[..1], 5), &right[0]);
        prop_assert_eq!(judge(&greedy, &model, &PROMPT, &right[1]).accepted, 12);
    }

    #[test]
    fn coupled_text_does_not_depend_on_the_draft(
        params in any_params(), seed in any::<u64>(), drafts in vec(vec(0..VOCAB as TokenId, 0..5), 1..5),
    ) {
        let model = ToyModel::new(seed, VOCAB, 4.0);
        let coupled = with_rule(params, Rule::Coupled);
        let plain = generate(&coupled, &model, &[vec![]], 12);
        prop_assert_eq!(&generate(&coupled, &model, &drafts, 12), &plain);
        prop_assert_eq!(judge(&coupled, &model, &PROMPT, &plain).accepted, 12);
        // A draft model that is the target drafts exactly that text.
        let mut tokens = PROMPT.to_vec();
        for j in 0..12 {
            tokens.push(coupled.draft(history(&tokens), j, model.logits(&tokens), None).token);
        }
        prop_assert_eq!(&tokens[PROMPT.len()..], &plain);
    }

    #[test]
    fn draws_do_not_depend_on_the_order_of_a_batch(
        params in any_params(), seeds in vec(any::<u64>(), 2..6), turn in any::<usize>(), model in any::<u64>(),
    ) {
        let model = ToyModel::new(model, VOCAB, 4.0);
        let draft_model = model.approximation(1, 1.0);
        let requests: Vec<_> = seeds
            .iter()
            .map(|&seed| with_rule(SamplingParams { seed: Some(seed), ..params.clone() }, Rule::Rejection))
            .collect();
        // One round of every request, started from request `first` on.
        let round = |first: usize| {
            let mut answers = vec![None; requests.len()];
            for i in 0..requests.len() {
                let at = (first + i) % requests.len();
                let draft = requests[at].draft(history(&PROMPT), 0, draft_model.logits(&PROMPT), None);
                let tokens = text(&[draft.token]);
                let logits = rows(&model, &PROMPT, &[draft.token]);
                answers[at] = Some((draft.token, requests[at].accept(history(&tokens), &logits, &[draft])));
            }
            answers
        };
        prop_assert_eq!(round(0), round(turn % requests.len()));
    }

    #[test]
    fn logprobs_are_the_raw_log_softmax(params in any_params(), logits in any_logits(), n in 0..VOCAB) {
        let sampler = sampler(SamplingParams { logprobs: Some(n), ..params });
        let verdict = sampler.accept(history(&PROMPT), &logits, &[]);
        let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        let exact = |token: TokenId| f64::from(logits[token as usize]) - total;
        let [found] = &verdict.logprobs[..] else { panic!("one token, one entry") };
        if logits[verdict.next as usize].is_finite() {
            prop_assert!((f64::from(found.logprob) - exact(verdict.next)).abs() < 1e-5);
        }
        let mut order: Vec<TokenId> = (0..VOCAB as TokenId).filter(|&t| logits[t as usize].is_finite()).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        order.truncate(n);
        prop_assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), order);
        for &(token, logprob) in &found.top {
            prop_assert!((f64::from(logprob) - exact(token)).abs() < 1e-5);
            prop_assert!(logprob < 0.0 || logprob.to_bits() == 0);
        }
    }
}

#[test]
fn forbidding_everything_yields_token_0() {
    let forbidden = vec![f32::NEG_INFINITY; VOCAB];
    let params = SamplingParams { temperature: 1.0, logprobs: Some(3), seed: Some(1), ..Default::default() };
    for rule in [Rule::Greedy, Rule::Rejection, Rule::Coupled] {
        let sampler = with_rule(params.clone(), rule);
        let draft = sampler.draft(history(&PROMPT), 0, &forbidden, None);
        assert_eq!((draft.token, draft.confidence), (0, 1.0));
        let verdict = sampler.accept(history(&text(&[0])), &[&forbidden[..], &[f32::NAN; VOCAB]].concat(), &[draft]);
        assert_eq!((verdict.accepted, verdict.next), (1, 0));
    }
}
