//! The metrics in Prometheus' text format, version 0.0.4.

use super::{Monitor, Sample};
use crate::failure::Outcome;
use eesd::control::Controller;
use eesd::draft::Source;
use prometheus::{Gauge, GaugeVec, IntCounter, IntGauge, Opts, Registry, TextEncoder};
use serde_json::Value;
use std::time::SystemTime;

/// The metrics of one moment, all names beginning with `eesd_`. Made anew for each, so that nothing of an earlier one
/// is left, such as the state of a sequence that has ended.
struct Families(Registry);

impl Families {
    fn new() -> Outcome<Self> {
        Ok(Self(Registry::new_custom(Some("eesd".into()), None)?))
    }

    fn count(&self, name: &str, help: &str, labels: &[(&str, &str)], value: usize) -> Outcome {
        let counter = IntCounter::with_opts(options(name, help, labels))?;
        counter.inc_by(value as u64);
        Ok(self.0.register(Box::new(counter))?)
    }

    fn number(&self, name: &str, help: &str, labels: &[(&str, &str)], value: usize) -> Outcome {
        let gauge = IntGauge::with_opts(options(name, help, labels))?;
        gauge.set(value.try_into()?);
        Ok(self.0.register(Box::new(gauge))?)
    }

    fn time(&self, name: &str, help: &str, seconds: f64) -> Outcome {
        let gauge = Gauge::new(name, help)?;
        gauge.set(seconds);
        Ok(self.0.register(Box::new(gauge))?)
    }
}

fn options(name: &str, help: &str, labels: &[(&str, &str)]) -> Opts {
    Opts::new(name, help).const_labels(labels.iter().map(|&(name, value)| (name.into(), value.into())).collect())
}

impl Monitor {
    /// All metrics at a moment.
    ///
    /// # Errors
    /// If one of them is not what Prometheus takes, which would be a mistake here.
    pub(super) fn metrics(&self, sample: &Sample<'_>) -> Outcome<String> {
        let families = Families::new()?;
        self.gauges(&families, sample)?;
        counters(&families, sample)?;
        self.by_position(&families, sample)?;
        controller_state(&families, sample.controller)?;
        for histogram in self.latencies.histograms() {
            families.0.register(Box::new(histogram.clone()))?;
        }
        Ok(TextEncoder::new().encode_to_string(&families.0.gather())?)
    }

    fn gauges(&self, families: &Families, sample: &Sample<'_>) -> Outcome {
        let Sample { snapshot, written, controller, .. } = sample;
        let spec = controller.spec();
        let version = env!("CARGO_PKG_VERSION");
        let labels = [("version", version), ("model", &self.subject.model), ("device", &self.subject.device)];
        families.number("info", "What runs: 1.", &[&labels[..], &[("controller", &spec)]].concat(), 1)?;
        let begun = self.begun_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        families.time("start_time_seconds", "When the batch began, in Unix time.", begun.as_secs_f64())?;
        for (state, requests) in [
            ("waiting", snapshot.waiting),
            ("prefilling", snapshot.prefilling),
            ("decoding", snapshot.decoding),
            ("swapped_out", snapshot.swapped_out),
        ] {
            let help = "Requests that are being answered, by what they do.";
            families.number("requests", help, &[("state", state)], requests)?;
        }
        for (name, help, value) in [
            ("batch_size", "Requests side by side, at most.", self.subject.batch),
            ("requests_taken_over", "Requests whose lines were in the output already.", written.taken_over),
            ("cache_pages", "Pages of the KV cache, of 64 positions each.", snapshot.pages),
            ("cache_pages_held", "Pages that requests hold.", snapshot.pages - snapshot.free_pages),
            ("cache_pages_kept", "Pages kept for their texts, held or not.", snapshot.kept_pages),
        ] {
            families.number(name, help, &[], value)?;
        }
        Ok(())
    }

    /// Drafts under the names that other engines have for them, and by their position, from 0.
    fn by_position(&self, families: &Families, sample: &Sample<'_>) -> Outcome {
        let totals = &sample.snapshot.totals;
        families.count("spec_decode_num_draft_tokens_total", "Drafts tested.", &[], totals.drafted)?;
        families.count("spec_decode_num_accepted_tokens_total", "Drafts accepted.", &[], totals.accepted)?;
        for (position, &accepted) in self.sum.accepted_at.iter().enumerate() {
            let help = "Drafts accepted, by their position in the draft. Of requests that have ended.";
            let labels = [("position", &*position.to_string())];
            families.count("spec_decode_num_accepted_tokens_per_pos_total", help, &labels, accepted)?;
        }
        Ok(())
    }
}

fn counters(families: &Families, sample: &Sample<'_>) -> Outcome {
    let (written, totals) = (sample.written, &sample.snapshot.totals);
    for (outcome, requests) in
        [("answered", written.answered), ("failed", written.failed), ("cut_short", written.cut_short)]
    {
        let help = "Answers given, by how their requests ended.";
        families.count("requests_ended_total", help, &[("outcome", outcome)], requests)?;
    }
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
        families.count(name, help, &[], count)?;
    }
    for (source, counts) in Source::ALL.iter().zip(totals.by_source) {
        for (name, help, count) in [
            ("source_rounds_total", "Requests in all rounds, by the source that drafted for them.", counts.rounds),
            ("source_drafted_tokens_total", "Drafts tested, by their source.", counts.drafted),
            ("source_accepted_tokens_total", "Drafts accepted, by their source.", counts.accepted),
        ] {
            families.count(name, help, &[("source", source.name())], count)?;
        }
    }
    Ok(())
}

/// Every number of the controller's state.
fn controller_state(families: &Families, controller: &dyn Controller) -> Outcome {
    let mut numbers = Vec::new();
    flatten(String::new(), &controller.state(), &mut numbers);
    let help = "What the controller believes now, by its own name for it.";
    let gauges = GaugeVec::new(Opts::new("controller_state", help), &["key"])?;
    numbers.iter().for_each(|(key, value)| gauges.with_label_values(&[key]).set(*value));
    Ok(families.0.register(Box::new(gauges))?)
}

/// The numbers in a JSON value, each under the names and places that lead to it, with dots between.
fn flatten(key: String, value: &Value, numbers: &mut Vec<(String, f64)>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| flatten(below(name), value, numbers)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(place, item)| flatten(below(&place.to_string()), item, numbers));
        }
        value => numbers.extend(value.as_f64().map(|number| (key, number))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_found_wherever_they_are() {
        let state = json!({"a": 1, "b": {"c": 2.5, "d": [true, 3, {"e": -4}]}, "f": {}, "g": "5", "h": null});
        let mut numbers = Vec::new();
        flatten(String::new(), &state, &mut numbers);
        let expected = [("a", 1.0), ("b.c", 2.5), ("b.d.1", 3.0), ("b.d.2.e", -4.0)];
        assert_eq!(numbers, expected.map(|(key, number)| (key.to_owned(), number)));
    }

    #[test]
    fn names_with_quotes_and_line_breaks_are_labels_too() {
        let families = Families::new().unwrap();
        families.number("info", "What runs: 1.", &[("model", "a\"b\\c\nd")], 1).unwrap();
        let text = TextEncoder::new().encode_to_string(&families.0.gather()).unwrap();
        assert!(text.ends_with("\neesd_info{model=\"a\\\"b\\\\c\\nd\"} 1\n"), "{text}");
    }
}
