//! Several sets of prompts: a row for each, and what they come to together.

use super::grid::{self, Column};
use super::set::Set;
use super::table::{Decoding, Row, Share, Subject, by_source, source_columns};
use eesd::engine::Stats;
use serde::Serialize;
use std::collections::BTreeMap;

/// The last row's name.
const MEAN: &str = "geometric mean";

/// How a contender did on all sets that were measured.
#[derive(Debug, Serialize)]
pub struct Mean {
    /// `geometric mean`.
    pub set: &'static str,
    /// As in the sets' rows.
    pub controller: String,
    /// The geometric mean over the sets.
    pub mean_accepted_length: f64,
    /// What each source did in all sets together.
    pub by_source: BTreeMap<&'static str, Share>,
    /// The geometric mean over the sets.
    pub speed_up: f64,
    /// The slowest of all sets.
    pub slowest_answer: f64,
}

/// Of each contender but plain decoding.
pub fn means(sets: &[Set], rows: &[Row]) -> Vec<Mean> {
    let drafting = sets.first().map_or(&[][..], |set| &set.contenders).iter().enumerate();
    let drafting = drafting.filter(|(_, contender)| !contender.is_plain());
    let mean = |(place, contender): (usize, &super::contender::Contender)| {
        let is_its = |row: &&Row| row.controller.as_ref() == Some(&contender.name);
        let measured: Vec<&Decoding> = rows.iter().filter(is_its).filter_map(|row| row.decoding.as_ref()).collect();
        let mut stats = Stats::default();
        sets.iter().for_each(|set| stats.add(&set.contenders[place].stats));
        Mean {
            set: MEAN,
            controller: contender.name.clone(),
            mean_accepted_length: geometric(measured.iter().map(|decoding| decoding.mean_accepted_length)),
            by_source: by_source(&stats),
            speed_up: geometric(measured.iter().map(|decoding| decoding.speed_up)),
            slowest_answer: measured.iter().map(|decoding| decoding.slowest_answer).fold(f64::INFINITY, f64::min),
        }
    };
    drafting.map(mean).collect()
}

fn geometric(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    (values.map(f64::ln).sum::<f64>() / count).exp()
}

/// A line of the table: a set, or all of them.
struct Line<'a> {
    set: &'a str,
    controller: &'a str,
    prompts: String,
    plain: String,
    speed: String,
    accepted: f64,
    by_source: &'a BTreeMap<&'static str, Share>,
    speed_up: String,
    slowest: f64,
}

/// For each contender a line a set, and the mean.
pub fn markdown(subject: &Subject, rows: &[Row], means: &[Mean]) -> String {
    let speed = |row: &Row| format!("{:.1} ± {:.1}", row.tokens_per_second, row.sd);
    let plain = |set: &Option<String>| {
        let of_set = rows.iter().find(|row| row.set == *set && row.controller.as_deref() == Some("off"));
        of_set.map(speed).unwrap_or_default()
    };
    let mut lines = Vec::new();
    for mean in means {
        for row in rows.iter().filter(|row| row.controller.as_ref() == Some(&mean.controller)) {
            let (Some(set), Some(decoding)) = (&row.set, &row.decoding) else { continue };
            let Decoding { speed_up, speed_up_least, speed_up_most, .. } = decoding;
            lines.push(Line {
                set,
                controller: &mean.controller,
                prompts: decoding.prompts.to_string(),
                plain: plain(&row.set),
                speed: speed(row),
                accepted: decoding.mean_accepted_length,
                by_source: &decoding.by_source,
                speed_up: format!("{speed_up:.2}x ({speed_up_least:.2} to {speed_up_most:.2})"),
                slowest: decoding.slowest_answer,
            });
        }
        lines.push(Line {
            set: mean.set,
            controller: &mean.controller,
            prompts: String::new(),
            plain: String::new(),
            speed: String::new(),
            accepted: mean.mean_accepted_length,
            by_source: &mean.by_source,
            speed_up: format!("{:.2}x", mean.speed_up),
            slowest: mean.slowest_answer,
        });
    }
    let all = |value: &str| lines.iter().map(|_| value.to_owned()).collect::<Vec<_>>();
    let of = |cell: &dyn Fn(&Line<'_>) -> String| lines.iter().map(cell).collect::<Vec<_>>();
    let mut columns = vec![
        Column::words("model", all(&subject.model)),
        Column::words("device", all(&subject.device)),
        Column::numbers("batch", all(&subject.batch.to_string())),
        Column::words("set", of(&|line| line.set.into())),
        Column::numbers("prompts", of(&|line| line.prompts.clone())),
        Column::words("drafts", of(&|line| line.controller.into())),
        Column::numbers("plain t/s", of(&|line| line.plain.clone())),
        Column::numbers("t/s", of(&|line| line.speed.clone())),
        Column::numbers("tokens a round", of(&|line| format!("{:.2}", line.accepted))),
    ];
    columns.extend(source_columns(&lines.iter().map(|line| Some(line.by_source)).collect::<Vec<_>>()));
    columns.push(Column::numbers("speed-up", of(&|line| line.speed_up.clone())));
    columns.push(Column::numbers("slowest answer", of(&|line| format!("{:.2}x", line.slowest))));
    grid::markdown(&columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_doubles_come_to_one() {
        assert!((geometric([0.5, 2.0, 1.0].into_iter()) - 1.0).abs() < 1e-12);
        assert!((geometric([2.0, 8.0].into_iter()) - 4.0).abs() < 1e-12);
    }
}
