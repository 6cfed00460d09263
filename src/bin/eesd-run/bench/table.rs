//! The results: one row a test, printed as Markdown, JSON, JSON lines or CSV.

use super::contender::Contender;
use super::costs::{self, Costs, Round};
use crate::args::TableFormat;
use crate::failure::{Failure, Outcome};
use crate::report;
use serde::Serialize;

/// Draft positions that the Markdown table shows.
const SHOWN_POSITIONS: usize = 6;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Subject {
    /// The model's name.
    pub model: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Its parameters.
    pub parameters: u64,
    /// The device, in the backend's words.
    pub device: String,
    /// `N` of the exit block.
    pub exit_layer: Option<usize>,
    /// Prompts side by side.
    pub batch: usize,
}

/// One test's result.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The controller; `None` for prefill, which has none.
    pub controller: Option<String>,
    /// `pp` or `tg` and the number of tokens.
    pub test: String,
    /// Tokens per second, mean over the repetitions.
    pub tokens_per_second: f64,
    /// Standard deviation over the repetitions.
    pub sd: f64,
    /// Repetitions that count.
    pub repetitions: usize,
    /// What decoding did.
    #[serde(flatten)]
    pub decoding: Option<Decoding>,
}

/// The part of a row that only decoding has.
#[derive(Debug, Clone, Serialize)]
pub struct Decoding {
    /// Tokens generated, over all repetitions.
    pub tokens: usize,
    /// Rounds in one repetition, on average.
    pub rounds: f64,
    /// 1 + accepted / rounds.
    pub mean_accepted_length: f64,
    /// Acceptance rate of tested drafts, by draft position.
    pub acceptance_by_position: Vec<f64>,
    /// Drafts tested at each position.
    pub tested_by_position: Vec<usize>,
    /// Share of rounds that drafted 0, 1, 2, … tokens.
    pub draft_lengths: Vec<f64>,
    /// Speed against `off` in the same repetition, the median of all.
    pub speed_up: f64,
    /// Speed-up that the costs measured during warm-up predict for these rounds.
    pub predicted: f64,
}

/// A row of prefill where it was timed, then a row a contender.
///
/// # Errors
/// If nothing was measured.
pub fn rows(contenders: &[Contender], costs: &Costs, prefill: &[f64], pp: usize, tg: usize) -> Outcome<Vec<Row>> {
    let off = contenders.first().filter(|off| off.stats.generated > 0);
    let off = off.ok_or_else(|| Failure::failed("interrupted before anything was measured"))?;
    let prefill_row = (!prefill.is_empty()).then(|| {
        let (tokens_per_second, sd) = mean_and_sd(prefill);
        Row {
            controller: None,
            test: format!("pp{pp}"),
            tokens_per_second,
            sd,
            repetitions: prefill.len(),
            decoding: None,
        }
    });
    let off_speeds = speeds(off);
    let off_predicted = off.stats.generated as f64 / costs.predict(&off.rounds);
    let decoding = contenders.iter().map(|contender| {
        let speeds = speeds(contender);
        let (tokens_per_second, sd) = mean_and_sd(&speeds);
        let mut ratios: Vec<f64> = speeds.iter().zip(&off_speeds).map(|(speed, off)| speed / off).collect();
        let stats = &contender.stats;
        let predicted = stats.generated as f64 / costs.predict(&contender.rounds);
        Row {
            controller: Some(contender.spec.to_string()),
            test: format!("tg{tg}"),
            tokens_per_second,
            sd,
            repetitions: speeds.len(),
            decoding: Some(Decoding {
                tokens: stats.generated,
                rounds: stats.rounds as f64 / speeds.len() as f64,
                mean_accepted_length: stats.mean_accepted_length(),
                acceptance_by_position: stats.acceptance_by_position(),
                tested_by_position: stats.drafted_at.clone(),
                draft_lengths: draft_lengths(&contender.rounds),
                speed_up: costs::median(&mut ratios),
                predicted: predicted / off_predicted,
            }),
        }
    });
    Ok(prefill_row.into_iter().chain(decoding).collect())
}

/// Share of rounds, each sequence of a batch having its own, that drafted 0, 1, 2, … tokens.
fn draft_lengths(rounds: &[Round]) -> Vec<f64> {
    let mut counts: Vec<f64> = Vec::new();
    for &drafts in rounds.iter().flat_map(|round| &round.drafts) {
        counts.resize(counts.len().max(drafts + 1), 0.0);
        counts[drafts] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    counts.iter().map(|count| count / total).collect()
}

/// Tokens per second of each repetition in which anything was finished.
fn speeds(contender: &Contender) -> Vec<f64> {
    let repetitions = contender.repetitions.iter().filter(|(tokens, _)| *tokens > 0);
    repetitions.map(|(tokens, seconds)| *tokens as f64 / seconds).collect()
}

fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

/// The results in the format asked for.
///
/// # Errors
/// If they cannot be written as JSON.
pub fn print(subject: &Subject, rows: &[Row], format: TableFormat) -> Outcome<String> {
    #[derive(Serialize)]
    struct Record<'a> {
        #[serde(flatten)]
        subject: &'a Subject,
        #[serde(flatten)]
        row: &'a Row,
    }
    let records = rows.iter().map(|row| Record { subject, row });
    Ok(match format {
        TableFormat::Md => markdown(subject, rows),
        TableFormat::Csv => csv(subject, rows),
        TableFormat::Json => serde_json::to_string_pretty(&records.collect::<Vec<_>>())? + "\n",
        TableFormat::Jsonl => {
            let lines = records.map(|record| Ok(serde_json::to_string(&record)? + "\n"));
            lines.collect::<Outcome<String>>()?
        }
    })
}

fn markdown(subject: &Subject, rows: &[Row]) -> String {
    let titles = [
        "model",
        "size",
        "params",
        "device",
        "controller",
        "batch",
        "test",
        "t/s",
        "rounds",
        "mean accepted",
        "acceptance by position",
        "speed-up",
        "predicted",
    ];
    let numeric = |i: usize| matches!(i, 1 | 2 | 5 | 7..=9 | 11 | 12);
    let mut table = vec![titles.map(str::to_owned)];
    table.extend(rows.iter().map(|row| cells(subject, row)));
    let width = |i: usize| table.iter().map(|cells| cells[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &[String; 13]| {
        let padded = cells.iter().enumerate().map(|(i, cell)| {
            let width = widths[i];
            if numeric(i) { format!(" {cell:>width$} |") } else { format!(" {cell:<width$} |") }
        });
        format!("|{}\n", padded.collect::<String>())
    };
    let rule: String = (0..titles.len())
        .map(|i| {
            if numeric(i) {
                format!(" {}: |", "-".repeat(widths[i] - 1))
            } else {
                format!(" {} |", "-".repeat(widths[i]))
            }
        })
        .collect();
    let mut text = line(&table[0]) + "|" + &rule + "\n";
    table[1..].iter().for_each(|cells| text += &line(cells));
    text
}

fn cells(subject: &Subject, row: &Row) -> [String; 13] {
    let [rounds, accepted, positions, speed_up, predicted] =
        row.decoding.as_ref().map_or_else(Default::default, |decoding| {
            let shown = &decoding.acceptance_by_position[..decoding.acceptance_by_position.len().min(SHOWN_POSITIONS)];
            [
                format!("{:.0}", decoding.rounds),
                format!("{:.2}", decoding.mean_accepted_length),
                report::acceptance(shown),
                format!("{:.2}x", decoding.speed_up),
                format!("{:.2}x", decoding.predicted),
            ]
        });
    [
        subject.model.clone(),
        report::bytes(subject.bytes),
        report::count(subject.parameters),
        subject.device.clone(),
        row.controller.clone().unwrap_or_default(),
        subject.batch.to_string(),
        row.test.clone(),
        format!("{:.1} ± {:.1}", row.tokens_per_second, row.sd),
        rounds,
        accepted,
        positions,
        speed_up,
        predicted,
    ]
}

fn csv(subject: &Subject, rows: &[Row]) -> String {
    let mut text = String::from(
        "model,bytes,parameters,device,controller,batch,test,tokens_per_second,sd,rounds,mean_accepted_length,\
         acceptance_by_position,speed_up,predicted\n",
    );
    for row in rows {
        let decoding = row.decoding.as_ref();
        let number = |value: fn(&Decoding) -> f64| decoding.map(|d| value(d).to_string()).unwrap_or_default();
        let positions = decoding
            .map(|d| d.acceptance_by_position.iter().map(|rate| format!("{rate:.4}")).collect::<Vec<_>>().join(" "));
        let fields = [
            subject.model.clone(),
            subject.bytes.to_string(),
            subject.parameters.to_string(),
            subject.device.clone(),
            row.controller.clone().unwrap_or_default(),
            subject.batch.to_string(),
            row.test.clone(),
            row.tokens_per_second.to_string(),
            row.sd.to_string(),
            number(|d| d.rounds),
            number(|d| d.mean_accepted_length),
            positions.unwrap_or_default(),
            number(|d| d.speed_up),
            number(|d| d.predicted),
        ];
        let quoted = fields.iter().map(|field| {
            if field.contains([',', '"', '\n']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.clone() }
        });
        text += &(quoted.collect::<Vec<_>>().join(",") + "\n");
    }
    text
}
