//! The table of many short requests under change: every controller against plain decoding, and against the fixed lengths that
//! are best from one change to the next.

use crate::simulator::requests::{Case, Change, Pass, Verdict};
use crate::table::{in_parallel, spread};
use eesd::control::ControllerSpec;

/// Requests at a time.
const SLOTS: [usize; 2] = [1, 4];

/// Plays the table and writes it in Markdown. A cell is the speed over plain decoding's, that over the best fixed lengths', and
/// the requests after which it was back at 95 % of the best after a change, and the rounds these took: the most over all changes
/// and seeds.
pub fn markdown(controllers: &[ControllerSpec], seeds: &[u64], change: &str) -> String {
    let changes: Vec<Change> = Change::ALL.into_iter().filter(|c| c.name().contains(change)).collect();
    let mut cases: Vec<Case> = Vec::new();
    for pass in Pass::ALL {
        for slots in SLOTS {
            for &change in &changes {
                cases.extend(seeds.iter().map(|&seed| Case { change, pass, slots, seed }));
            }
        }
    }
    let played = in_parallel(cases.len(), |index| {
        let played = cases[index].prepare();
        let verdicts: Vec<Verdict> = controllers.iter().map(|spec| played.judge(spec.build().as_mut())).collect();
        (played.best_lengths(), verdicts)
    });
    let mut rows = played.chunks(seeds.len());
    let mut text = String::new();
    for pass in Pass::ALL {
        for slots in SLOTS {
            text += &format!("| {}, {slots} at a time | best lengths", pass.name());
            controllers.iter().for_each(|spec| text += &format!(" | {spec}"));
            text += &format!(" |\n|---|---{}|\n", "|---".repeat(controllers.len()));
            for (change, row) in changes.iter().zip(rows.by_ref()) {
                let lengths: Vec<String> = row[0].0.iter().map(usize::to_string).collect();
                text += &format!("| {} | {}", change.name(), lengths.join(", "));
                for controller in 0..controllers.len() {
                    let verdicts: Vec<&Verdict> = row.iter().map(|(_, verdicts)| &verdicts[controller]).collect();
                    text += &format!(" | {}", cell(&verdicts));
                }
                text += " |\n";
            }
            text += "\n";
        }
    }
    text
}

fn cell(verdicts: &[&Verdict]) -> String {
    let mean = |value: fn(&Verdict) -> f64| spread(&verdicts.iter().map(|v| value(v)).collect::<Vec<f64>>()).0;
    let backs = || verdicts.iter().flat_map(|verdict| &verdict.recoveries).map(|recovery| recovery.back);
    let slowest = backs().flatten().max().unwrap_or_default();
    let back = match (backs().any(|back| back.is_none()), slowest) {
        (true, _) => "never".to_owned(),
        (_, (0, 0)) => "at once".to_owned(),
        (_, (requests, rounds)) => format!("{requests} ({rounds})"),
    };
    format!("{:.2}×, {:+.1} %, {back}", mean(|v| v.of_plain), 100.0 * (mean(|v| v.of_best) - 1.0))
}
