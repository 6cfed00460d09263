//! The log of a run: a line of JSON for each update, for plots and for comparing runs.

use super::error::DistillError;
use super::trainer::StepReport;
use crate::backend::training::loss::{LossSum, Losses};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A log that is written line by line.
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Goes on with the log of a run that has done `step` updates: lines of later ones, which are about to be done
    /// again, and a line that was cut off are taken out.
    ///
    /// # Errors
    /// If the file cannot be read or written, or holds something else.
    pub fn open(path: &Path, step: u64) -> Result<Self, DistillError> {
        let io = |source| DistillError::Io { path: path.to_path_buf(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let (mut kept, mut line, mut reader) = (0, Vec::new(), BufReader::new(&file));
        loop {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line).map_err(io)?;
            let whole = line.ends_with(b"\n");
            let number = serde_json::from_slice::<Value>(&line).ok().and_then(|line| line["step"].as_u64());
            match number {
                Some(number) if whole && number <= step => kept += bytes as u64,
                None if whole => {
                    let found = format!("{:.60}", String::from_utf8_lossy(&line).trim_end());
                    let expected = format!("a line of metrics in {}", path.display());
                    return Err(DistillError::Option { option: "metrics", found, expected });
                }
                _ => break,
            }
        }
        file.set_len(kept).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Adds a line. `seconds` is what the update took, the only field that differs between equal runs.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, report: &StepReport, seconds: f64) -> Result<(), DistillError> {
        let StepReport { step, losses, rate, norm, tokens, held_out } = report;
        let mut line = json!({ "step": step, "rate": rate, "norm": norm, "tokens": tokens, "seconds": seconds });
        line["train"] = means(losses);
        if let Some(held_out) = held_out {
            line["held_out"] = means(held_out);
        }
        let written = writeln!(self.file, "{line}");
        written.map_err(|source| DistillError::Io { path: self.path.clone(), source })
    }
}

/// Means by their names: of all steps together, and of each where there are several.
fn means(losses: &Losses) -> Value {
    let named = |sums: &LossSum| {
        let LossSum { weight: _, loss, divergence, overlap, agreement } = sums.mean();
        json!({ "loss": loss, "divergence": divergence, "overlap": overlap, "agreement": agreement })
    };
    let mut means = named(&losses.all());
    if losses.steps.len() > 1 {
        means["steps"] = losses.steps.iter().map(named).collect();
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn report(step: u64) -> StepReport {
        let sums = LossSum { weight: 2.0, loss: 2.0 / step as f64, ..LossSum::default() };
        let losses = Losses { steps: vec![sums; if step == 4 { 2 } else { 1 }] };
        let held_out = (step == 3).then(|| losses.clone());
        StepReport { step, losses, rate: 0.1, norm: 2.0, tokens: 7, held_out }
    }

    #[test]
    fn a_log_goes_on_where_the_run_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let write = |from: u64, to: u64| {
            let mut metrics = Metrics::open(&path, from - 1).unwrap();
            (from..=to).for_each(|step| metrics.add(&report(step), 0.5).unwrap());
        };
        write(1, 5);
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(whole.lines().count(), 5);
        assert!(whole.lines().nth(2).unwrap().contains("held_out"));
        let line = |step: usize| serde_json::from_str::<Value>(whole.lines().nth(step - 1).unwrap()).unwrap();
        assert_eq!((&line(5)["train"]["loss"], &line(5)["train"]["steps"]), (&json!(0.2), &Value::Null));
        assert_eq!(line(4)["train"]["steps"][1]["loss"], 0.25);
        write(3, 5);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole, "lines past the snapshot are done again");
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        write(5, 5);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole, "a line that was cut off is written again");
        write(1, 5);
        assert_eq!(fs::read_to_string(&path).unwrap(), whole, "a run from the beginning");
        fs::write(&path, "something else\n").unwrap();
        let Err(error) = Metrics::open(&path, 1) else { panic!("a file of something else was taken") };
        assert!(error.to_string().contains("something else"), "{error}");
    }
}
