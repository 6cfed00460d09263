//! The metrics in Prometheus' text format, version 0.0.4.

use super::latency::Histogram;
use super::{Monitor, Sample};
use std::fmt::Write;
use std::time::SystemTime;

/// Metrics, family by family.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP eesd_{name} {help}\n# TYPE eesd_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let label = |(name, value): &(&str, &str)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        };
        let labels: Vec<String> = labels.iter().map(label).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "eesd_{name}{labels} {}", number(value));
    }

    /// A family of one value.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A family with a value for each of a label's values.
    fn each(&mut self, name: &str, kind: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.family(name, kind, help);
        values.iter().for_each(|&(of, value)| self.sample(name, &[(label, of)], value));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let mut all = 0;
        for (bound, count) in histogram.cumulative() {
            self.sample(&format!("{name}_bucket"), &[("le", &number(bound))], count as f64);
            all = count;
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum());
        self.sample(&format!("{name}_count"), &[], all as f64);
    }
}

fn number(value: f64) -> String {
    if value == f64::INFINITY { "+Inf".into() } else { value.to_string() }
}

impl Monitor {
    /// All metrics at a moment.
    pub(super) fn metrics(&self, sample: &Sample<'_>) -> String {
        let mut text = Text::default();
        self.gauges(&mut text, sample);
        counters(&mut text, sample);
        let latencies = &self.latencies;
        for (name, help, histogram) in [
            ("queue_time_seconds", "From a request's submission to its admission.", &latencies.queue.histogram),
            (
                "time_to_first_token_seconds",
                "From a request's submission to its first token.",
                &latencies.first_token.histogram,
            ),
            (
                "time_per_output_token_seconds",
                "A request's time of decoding, divided by the tokens that it gave.",
                &latencies.per_token.histogram,
            ),
            (
                "accepted_length_tokens",
                "Of each round of each request: drafts accepted, and the token of the full model after them.",
                &latencies.accepted_length,
            ),
        ] {
            text.histogram(name, &format!("{help} Of requests that have ended."), histogram);
        }
        text.0
    }

    fn gauges(&self, text: &mut Text, sample: &Sample<'_>) {
        let Sample { snapshot, written, controller, .. } = sample;
        let spec = controller.spec();
        text.family("info", "gauge", "What runs: 1.");
        let version = env!("CARGO_PKG_VERSION");
        let labels = [("version", version), ("model", &self.subject.model), ("device", &self.subject.device)];
        text.sample("info", &[&labels[..], &[("controller", &spec)]].concat(), 1.0);
        let begun = self.begun_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        text.one("start_time_seconds", "gauge", "When the batch began, in Unix time.", begun.as_secs_f64());
        text.one("batch_size", "gauge", "Requests side by side, at most.", self.subject.batch as f64);
        let states = [
            ("waiting", snapshot.waiting),
            ("prefilling", snapshot.prefilling),
            ("decoding", snapshot.decoding),
            ("swapped_out", snapshot.swapped_out),
        ]
        .map(|(state, requests)| (state, requests as f64));
        text.each("requests", "gauge", "Requests that are being answered, by what they do.", "state", &states);
        let taken_over = "Requests whose lines were in the output already.";
        text.one("requests_taken_over", "gauge", taken_over, written.taken_over as f64);
        let held = (snapshot.pages - snapshot.free_pages) as f64;
        text.one("cache_pages", "gauge", "Pages of the KV cache, of 64 positions each.", snapshot.pages as f64);
        text.one("cache_pages_held", "gauge", "Pages that requests hold.", held);
        text.one("cache_pages_kept", "gauge", "Pages kept for their texts, held or not.", snapshot.kept_pages as f64);
        let state = controller.state();
        let numbers: Vec<(&str, f64)> = state
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((&key[..], value.as_f64()?)))
            .collect();
        if !numbers.is_empty() {
            let help = "What the controller believes now, by its own name for it.";
            text.each("controller_state", "gauge", help, "key", &numbers);
        }
    }
}

fn counters(text: &mut Text, sample: &Sample<'_>) {
    let (written, totals) = (sample.written, &sample.snapshot.totals);
    let outcomes = [("answered", written.answered), ("failed", written.failed), ("cut_short", written.cut_short)]
        .map(|(outcome, requests)| (outcome, requests as f64));
    text.each("requests_ended_total", "counter", "Lines written, by how their requests ended.", "outcome", &outcomes);
    for (name, help, count) in [
        ("prompt_tokens_total", "Tokens of the prompts admitted.", totals.prompt_tokens),
        ("prompt_tokens_reused_total", "Those of them that were found in pages kept.", totals.reused_tokens),
        ("prefilled_tokens_total", "Tokens taken in by prefill passes.", totals.prefilled_tokens),
        ("generated_tokens_total", "Tokens emitted.", totals.generated),
        ("rounds_total", "Rounds, each of all requests then decoding.", totals.rounds),
        ("request_rounds_total", "Requests in all rounds.", totals.sequences),
        ("verified_rows_total", "Rows of all verification passes: a pending token each, and the drafts.", totals.rows),
        ("draft_steps_total", "Draft steps, each of all requests then drafting.", totals.draft_steps),
        ("drafted_tokens_total", "Drafts tested.", totals.drafted),
        ("accepted_tokens_total", "Drafts accepted.", totals.accepted),
        ("preemptions_total", "Times that a request was swapped out to the host's memory.", totals.preemptions),
        ("swapped_pages_total", "Pages copied out of the cache for it.", totals.swapped_pages),
    ] {
        text.one(name, "counter", help, count as f64);
    }
}
