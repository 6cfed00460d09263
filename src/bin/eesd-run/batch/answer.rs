//! Answers as lines of their own: a line for each sample, written as soon as it is finished.

use super::job::{Job, Row};
use crate::report;
use eesd::engine::{Completion, Finish, Stats};
use eesd::load::Tokenizer;
use eesd::model::Scheme;
use serde_json::{Value, json};

/// The line of a finished sample, of a model that was quantised so.
pub fn answer<'j>(
    job: &'j Job,
    sample: usize,
    completion: &Completion,
    tokenizer: Option<&Tokenizer>,
    quantised: Option<Scheme>,
) -> Row<'j> {
    let mut row = head(job, sample);
    let mut add = |key: &str, value: Value| row.keys.insert(key.into(), value);
    if let Finish::StopString(stop) = &completion.finish {
        add("stop", stop.as_str().into());
    }
    add("text", completion.text.as_str().into());
    add("tokens", completion.tokens.as_slice().into());
    add("finish", completion.finish.name().into());
    if let Some(seed) = completion.seed {
        add("seed", seed.into());
    }
    let mut stats = statistics(&completion.stats);
    if let Some(scheme) = quantised {
        stats["quantized"] = scheme.to_string().into();
    }
    add("stats", stats);
    if !completion.logprobs.is_empty() {
        let spelling = |token| tokenizer.and_then(|tokenizer| tokenizer.token(token));
        let entry = |token: u32, logprob: f32| json!({"token": token, "spelling": spelling(token), "logprob": logprob});
        let logprobs = completion.tokens.iter().zip(&completion.logprobs).map(|(&token, logprobs)| {
            let mut own = entry(token, logprobs.logprob);
            own["top"] = logprobs.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            own
        });
        add("logprobs", logprobs.collect());
    }
    row
}

/// The line of a sample that has no answer.
pub fn error<'j>(job: &'j Job, sample: usize, error: &str) -> Row<'j> {
    let mut row = head(job, sample);
    row.keys.insert("error".into(), error.into());
    row
}

fn head(job: &Job, sample: usize) -> Row<'_> {
    match job.samples {
        1 => job.row(json!({"index": job.index})),
        _ => job.row(json!({"index": job.index, "sample": sample})),
    }
}

/// Counts and times for machines; times in seconds.
fn statistics(stats: &Stats) -> Value {
    json!({
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "generated": stats.generated,
        "rounds": stats.rounds,
        "drafted": stats.drafted(),
        "accepted": stats.accepted(),
        "by_source": report::sources_json(&stats.by_source),
        "mean_accepted_length": stats.mean_accepted_length(),
        "acceptance_by_position": stats.acceptance_by_position(),
        "draft_lengths": stats.lengths,
        "tokens_per_second": stats.tokens_per_second(),
        "preemptions": stats.preemptions,
        "queued_s": stats.queued.as_secs_f64(),
        "first_token_s": stats.first_token.as_secs_f64(),
        "prefill_s": stats.prefill.as_secs_f64(),
        "decode_s": stats.decode.as_secs_f64(),
        "draft_s": stats.draft.as_secs_f64(),
        "verify_s": stats.verify.as_secs_f64(),
    })
}
