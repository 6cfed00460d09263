//! What a batch came to, as JSON.

use super::{Monitor, Sample};
use crate::report;
use serde_json::{Value, json};

impl Monitor {
    /// Everything at the end; times in seconds.
    pub(super) fn summarise(&self, sample: &Sample<'_>) -> Value {
        let Sample { elapsed, snapshot, written, controller } = sample;
        let (totals, sum, latencies) = (&snapshot.totals, &self.sum, &self.latencies);
        let seconds = elapsed.as_secs_f64();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": self.subject.model,
            "device": self.subject.device,
            "batch_size": self.subject.batch,
            "seconds": seconds,
            "requests": {
                "answered": written.answered,
                "failed": written.failed,
                "cut_short": written.cut_short,
                "taken_over": written.taken_over,
            },
            "prompt_tokens": totals.prompt_tokens,
            "reused_tokens": totals.reused_tokens,
            "prefilled_tokens": totals.prefilled_tokens,
            "generated": totals.generated,
            "tokens_per_second": totals.generated as f64 / seconds.max(f64::MIN_POSITIVE),
            "rounds": totals.rounds,
            "request_rounds": totals.sequences,
            "verified_rows": totals.rows,
            "rows_per_pass": totals.rows as f64 / totals.rounds.max(1) as f64,
            "draft_steps": totals.draft_steps,
            "drafted": totals.drafted,
            "accepted": totals.accepted,
            "by_source": report::sources_json(&totals.by_source),
            "mean_accepted_length": totals.mean_accepted_length(),
            "acceptance_by_position": sum.acceptance_by_position(),
            "draft_lengths": sum.lengths,
            "preemptions": totals.preemptions,
            "swapped_pages": totals.swapped_pages,
            "cache_pages": snapshot.pages,
            "cache_pages_kept": snapshot.kept_pages,
            "queue_time_s": latencies.queue.summary(),
            "time_to_first_token_s": latencies.first_token.summary(),
            "time_per_output_token_s": latencies.per_token.summary(),
            "controller": controller.spec(),
            "controller_state": controller.state(),
        })
    }
}
