//! The results, for people and for machines.

use super::scores::{Mean, Scores, quantiles};
use super::windows::{Reader, Windows};
use crate::settings::Model;
use serde::Serialize;

/// The parts of the divergences that the quantiles are below.
const PARTS: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

/// All results.
#[derive(Debug, Serialize)]
pub struct Report {
    file: String,
    model: String,
    device: String,
    window: usize,
    /// Windows that were read.
    windows: usize,
    /// Windows of the text: more where reading was interrupted.
    windows_of_text: usize,
    tokens_scored: usize,
    #[serde(flatten)]
    measured: Likelihood,
    reference: Option<Reference>,
}

/// How probable a model finds the text.
#[derive(Debug, Serialize)]
struct Likelihood {
    /// In nats a token.
    mean_nll: f64,
    mean_nll_error: Option<f64>,
    perplexity: f64,
    perplexity_error: Option<f64>,
}

/// How far the model is from the reference.
#[derive(Debug, Serialize)]
struct Reference {
    model: String,
    device: String,
    #[serde(flatten)]
    measured: Likelihood,
    /// In nats a token.
    mean_kl: f64,
    mean_kl_error: Option<f64>,
    kl_quantiles: Vec<Quantile>,
    max_kl: f64,
    top_1_agreement: f64,
    top_1_agreement_error: Option<f64>,
}

/// The divergence that this part of the tokens is below.
#[derive(Debug, Serialize)]
struct Quantile {
    part: f64,
    kl: f64,
}

impl Likelihood {
    fn of(numbers: &[f64]) -> Self {
        let mean = Mean::of(numbers);
        let Mean { mean: perplexity, error: perplexity_error } = mean.exp();
        Self { mean_nll: mean.mean, mean_nll_error: mean.error, perplexity, perplexity_error }
    }

    fn lines(&self, of: &str) -> [String; 2] {
        [
            line(&format!("{of}mean NLL"), &with_error(self.mean_nll, self.mean_nll_error, 5)),
            line(&format!("{of}perplexity"), &with_error(self.perplexity, self.perplexity_error, 4)),
        ]
    }
}

impl Report {
    /// Of at least one scored token of the first `read` windows of the text in `file`.
    pub fn of(
        scores: &Scores,
        windows: &Windows,
        read: usize,
        file: &str,
        model: &Model,
        reader: &Reader,
        reference: Option<(&Model, &Reader)>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            model: model.place(),
            device: reader.describe(),
            window: windows.size(),
            windows: read,
            windows_of_text: windows.count(),
            tokens_scored: scores.model.len(),
            measured: Likelihood::of(&scores.model),
            reference: reference.map(|(model, reader)| Reference::of(scores, model, reader)),
        }
    }

    /// One fact a line.
    pub fn text(&self) -> String {
        let Self { file, window, windows, windows_of_text, tokens_scored, .. } = self;
        let of = if windows < windows_of_text { format!(" of {windows_of_text}") } else { String::new() };
        let mut lines = vec![
            line("text", &format!("{file}, {windows}{of} windows of {window} tokens, the second half of each scored")),
            line("model", &format!("{} ({})", self.model, self.device)),
            line("scored", &format!("{tokens_scored} tokens")),
        ];
        lines.extend(self.measured.lines(""));
        if let Some(reference) = &self.reference {
            lines.push(line("reference", &format!("{} ({})", reference.model, reference.device)));
            lines.extend(reference.measured.lines("its "));
            lines.push(line("mean KL", &with_error(reference.mean_kl, reference.mean_kl_error, 6)));
            let percent = |share: f64| share * 100.0;
            let quantile = |Quantile { part, kl }: &Quantile| format!("{} % {kl:.6}", percent(*part));
            let quantiles = reference.kl_quantiles.iter().map(quantile).collect::<Vec<_>>().join(", ");
            lines.push(line("KL below", &format!("{quantiles}, max {:.6}", reference.max_kl)));
            let (top, error) = (percent(reference.top_1_agreement), reference.top_1_agreement_error.map(percent));
            lines.push(line("same top 1", &format!("{} %", with_error(top, error, 3))));
        }
        lines.join("\n") + "\n"
    }
}

impl Reference {
    fn of(scores: &Scores, model: &Model, reader: &Reader) -> Self {
        let kl = Mean::of(&scores.divergences);
        let agreement = Mean::of_share(scores.agreements, scores.divergences.len());
        let below = quantiles(&scores.divergences, PARTS);
        Self {
            model: model.place(),
            device: reader.describe(),
            measured: Likelihood::of(&scores.reference),
            mean_kl: kl.mean,
            mean_kl_error: kl.error,
            kl_quantiles: PARTS.iter().zip(below).map(|(&part, kl)| Quantile { part, kl }).collect(),
            max_kl: scores.divergences.iter().copied().fold(0.0, f64::max),
            top_1_agreement: agreement.mean,
            top_1_agreement_error: agreement.error,
        }
    }
}

fn line(what: &str, found: &str) -> String {
    format!("{what:<15} {found}")
}

fn with_error(mean: f64, error: Option<f64>, digits: usize) -> String {
    match error {
        Some(error) => format!("{mean:.digits$} ± {error:.digits$}"),
        None => format!("{mean:.digits$}"),
    }
}
