//! The results: one row a test, printed as Markdown, JSON, JSON lines or CSV.

use super::contender::Contender;
use super::costs::{self, Costs};
use super::grid::{self, Column};
use super::set::Set;
use super::sets::{self, Mean};
use crate::args::TableFormat;
use crate::failure::Outcome;
use crate::report;
use eesd::draft::Source;
use eesd::engine::Stats;
use serde::Serialize;
use std::collections::BTreeMap;

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
    /// The set of prompts, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// The controller, or where no exit block drafts the sources that do; `None` for prefill, which has none.
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
    /// Prompts answered.
    pub prompts: usize,
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
    /// What each source did that drafted, by its name.
    pub by_source: BTreeMap<&'static str, Share>,
    /// Speed against `off` in the same repetition, the median of all.
    pub speed_up: f64,
    /// The least of them, and the most.
    pub speed_up_least: f64,
    pub speed_up_most: f64,
    /// Speed of the one answer that did worst against the same answer of `off`, by the medians over the repetitions.
    pub slowest_answer: f64,
    /// Speed-up that the costs measured during warm-up predict for these rounds.
    pub predicted: f64,
}

/// A source's part in the rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    /// Rounds that it drafted, over all repetitions.
    rounds: usize,
    /// Its drafts that were tested.
    drafted: usize,
    /// Those that were accepted.
    accepted: usize,
    /// Part of those tested that was accepted.
    acceptance: f64,
    /// Part of all rounds that it drafted.
    share_of_rounds: f64,
}

/// The row of prefill, where it was timed.
pub fn prefill_row(speeds: &[f64], length: usize) -> Option<Row> {
    let (tokens_per_second, sd) = mean_and_sd(speeds);
    (!speeds.is_empty()).then(|| Row {
        set: None,
        controller: None,
        test: format!("pp{length}"),
        tokens_per_second,
        sd,
        repetitions: speeds.len(),
        decoding: None,
    })
}

/// A row for each contender of a set, which was measured.
pub fn rows(set: &Set, tg: usize) -> Vec<Row> {
    let Some(off) = set.contenders.first() else { return Vec::new() };
    let row = |contender: &Contender| {
        let speeds = speeds(contender);
        let (tokens_per_second, sd) = mean_and_sd(&speeds);
        Row {
            set: set.name.clone(),
            controller: Some(contender.name.clone()),
            test: format!("tg{tg}"),
            tokens_per_second,
            sd,
            repetitions: speeds.len(),
            decoding: Some(Decoding::of(contender, off, &set.costs)),
        }
    };
    set.contenders.iter().map(row).collect()
}

impl Decoding {
    fn of(contender: &Contender, off: &Contender, costs: &Costs) -> Self {
        let speeds = [contender, off].map(speeds);
        let mut ratios: Vec<f64> = speeds[0].iter().zip(&speeds[1]).map(|(speed, off)| speed / off).collect();
        ratios.sort_by(f64::total_cmp);
        let predicted = |of: &Contender| of.stats.generated as f64 / costs.predict(&of.rounds);
        let Contender { stats, .. } = contender;
        let in_all = stats.lengths.iter().sum::<usize>().max(1) as f64;
        Self {
            prompts: contender.answers.len(),
            tokens: stats.generated,
            rounds: stats.rounds as f64 / speeds[0].len().max(1) as f64,
            mean_accepted_length: stats.mean_accepted_length(),
            acceptance_by_position: stats.acceptance_by_position(),
            tested_by_position: stats.drafted_at.clone(),
            draft_lengths: stats.lengths.iter().map(|&rounds| rounds as f64 / in_all).collect(),
            by_source: by_source(stats),
            speed_up: costs::median(&mut ratios.clone()),
            speed_up_least: ratios.first().copied().unwrap_or(1.0),
            speed_up_most: ratios.last().copied().unwrap_or(1.0),
            slowest_answer: slowest_answer(&contender.answers, &off.answers),
            predicted: predicted(contender) / predicted(off),
        }
    }
}

/// The smallest ratio of an answer's time in plain decoding and its own, each the median of its repetitions.
fn slowest_answer(own: &[Vec<f64>], off: &[Vec<f64>]) -> f64 {
    let median = |seconds: &[f64]| costs::median(&mut seconds.to_vec());
    let ratios = own.iter().zip(off).filter(|(own, _)| !own.is_empty()).map(|(own, off)| median(off) / median(own));
    ratios.reduce(f64::min).unwrap_or(1.0)
}

/// The part of each source that drafted.
pub fn by_source(stats: &Stats) -> BTreeMap<&'static str, Share> {
    let of = Source::ALL.iter().zip(stats.by_source).filter(|(_, counts)| counts.rounds > 0);
    of.map(|(source, counts)| {
        let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
        let acceptance = share(counts.accepted, counts.drafted);
        let share_of_rounds = share(counts.rounds, stats.rounds);
        let (rounds, drafted, accepted) = (counts.rounds, counts.drafted, counts.accepted);
        (source.name(), Share { rounds, drafted, accepted, acceptance, share_of_rounds })
    })
    .collect()
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

/// The results in the format asked for; `means` over several sets, where there are.
///
/// # Errors
/// If they cannot be written as JSON.
pub fn print(subject: &Subject, rows: &[Row], means: &[Mean], format: TableFormat) -> Outcome<String> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Of<'a> {
        Test(&'a Row),
        Sets(&'a Mean),
    }
    #[derive(Serialize)]
    struct Record<'a> {
        #[serde(flatten)]
        subject: &'a Subject,
        #[serde(flatten)]
        of: Of<'a>,
    }
    let records = rows.iter().map(Of::Test).chain(means.iter().map(Of::Sets)).map(|of| Record { subject, of });
    Ok(match format {
        TableFormat::Md if means.is_empty() => markdown(subject, rows),
        TableFormat::Md => sets::markdown(subject, rows, means),
        TableFormat::Csv => csv(subject, rows, means),
        TableFormat::Json => serde_json::to_string_pretty(&records.collect::<Vec<_>>())? + "\n",
        TableFormat::Jsonl => {
            let lines = records.map(|record| Ok(serde_json::to_string(&record)? + "\n"));
            lines.collect::<Outcome<String>>()?
        }
    })
}

fn markdown(subject: &Subject, rows: &[Row]) -> String {
    let all = |value: String| rows.iter().map(move |_| value.clone());
    let of = |cell: &dyn Fn(&Decoding) -> String| -> Vec<String> {
        rows.iter().map(|row| row.decoding.as_ref().map(cell).unwrap_or_default()).collect()
    };
    let positions = |decoding: &Decoding| {
        let rates = &decoding.acceptance_by_position;
        report::acceptance(&rates[..rates.len().min(SHOWN_POSITIONS)])
    };
    let mut columns = vec![
        Column::words("model", all(subject.model.clone())),
        Column::numbers("size", all(report::bytes(subject.bytes))),
        Column::numbers("params", all(report::count(subject.parameters))),
        Column::words("device", all(subject.device.clone())),
        Column::words("controller", rows.iter().map(|row| row.controller.clone().unwrap_or_default())),
        Column::numbers("batch", all(subject.batch.to_string())),
        Column::words("test", rows.iter().map(|row| row.test.clone())),
        Column::numbers("t/s", rows.iter().map(|row| format!("{:.1} ± {:.1}", row.tokens_per_second, row.sd))),
        Column::numbers("rounds", of(&|decoding| format!("{:.0}", decoding.rounds))),
        Column::numbers("mean accepted", of(&|decoding| format!("{:.2}", decoding.mean_accepted_length))),
        Column::words("acceptance by position", of(&positions)),
    ];
    if rows.iter().any(|row| row.set.is_some()) {
        columns.insert(4, Column::words("set", rows.iter().map(|row| row.set.clone().unwrap_or_default())));
    }
    let shares: Vec<_> = rows.iter().map(|row| row.decoding.as_ref().map(|decoding| &decoding.by_source)).collect();
    columns.extend(source_columns(&shares));
    columns.extend([
        Column::numbers("speed-up", of(&|decoding| format!("{:.2}x", decoding.speed_up))),
        Column::numbers("predicted", of(&|decoding| format!("{:.2}x", decoding.predicted))),
        Column::numbers("slowest answer", of(&|decoding| format!("{:.2}x", decoding.slowest_answer))),
    ]);
    grid::markdown(&columns)
}

/// A column for each source that drafted in any row: the part of its drafts that was accepted, and of rounds that it
/// drafted.
pub fn source_columns(rows: &[Option<&BTreeMap<&'static str, Share>>]) -> Vec<Column> {
    let of =
        |source: &str, row: &Option<&BTreeMap<&'static str, Share>>| row.and_then(|shares| shares.get(source).cloned());
    let names = Source::ALL.iter().map(|source| source.name());
    let drafting = names.filter(|name| rows.iter().any(|row| of(name, row).is_some()));
    let cell = |share: Option<Share>| {
        share
            .map(|share| report::acceptance(&[share.acceptance, share.share_of_rounds]).replace(' ', " in "))
            .unwrap_or_default()
    };
    drafting
        .map(|name| Column::numbers(&format!("{name} accepted in rounds"), rows.iter().map(|row| cell(of(name, row)))))
        .collect()
}

fn csv(subject: &Subject, rows: &[Row], means: &[Mean]) -> String {
    let head = "model,bytes,parameters,device,controller,batch,test,tokens_per_second,sd,rounds,mean_accepted_length,\
        acceptance_by_position,speed_up,predicted,speed_up_least,speed_up_most,slowest_answer,exit_acceptance,exit_rounds,\
        lookup_acceptance,lookup_rounds,shared_acceptance,shared_rounds,set";
    let shares = |shares: Option<&BTreeMap<&'static str, Share>>| -> Vec<String> {
        let of = |source: &Source| match shares.and_then(|shares| shares.get(source.name())) {
            Some(share) => [share.acceptance, share.share_of_rounds].map(|number| number.to_string()),
            None => Default::default(),
        };
        Source::ALL.iter().flat_map(of).collect()
    };
    let first = |controller: Option<&String>, test: &str| {
        vec![
            subject.model.clone(),
            subject.bytes.to_string(),
            subject.parameters.to_string(),
            subject.device.clone(),
            controller.cloned().unwrap_or_default(),
            subject.batch.to_string(),
            test.to_owned(),
        ]
    };
    let mut table = vec![head.split(',').map(str::to_owned).collect::<Vec<String>>()];
    for row in rows {
        let decoding = row.decoding.as_ref();
        let number = |value: fn(&Decoding) -> f64| decoding.map(|d| value(d).to_string()).unwrap_or_default();
        let positions = decoding
            .map(|d| d.acceptance_by_position.iter().map(|rate| format!("{rate:.4}")).collect::<Vec<_>>().join(" "));
        let mut fields = first(row.controller.as_ref(), &row.test);
        fields.extend([
            row.tokens_per_second.to_string(),
            row.sd.to_string(),
            number(|d| d.rounds),
            number(|d| d.mean_accepted_length),
            positions.unwrap_or_default(),
            number(|d| d.speed_up),
            number(|d| d.predicted),
            number(|d| d.speed_up_least),
            number(|d| d.speed_up_most),
            number(|d| d.slowest_answer),
        ]);
        fields.extend(shares(decoding.map(|decoding| &decoding.by_source)));
        fields.push(row.set.clone().unwrap_or_default());
        table.push(fields);
    }
    for mean in means {
        let mut fields = first(Some(&mean.controller), "");
        let none = || String::new();
        let (accepted, speed_up) = (mean.mean_accepted_length.to_string(), mean.speed_up.to_string());
        fields.extend([none(), none(), none(), accepted, none(), speed_up, none(), none(), none()]);
        fields.push(mean.slowest_answer.to_string());
        fields.extend(shares(Some(&mean.by_source)));
        fields.push(mean.set.into());
        table.push(fields);
    }
    grid::csv(&table)
}
