//! What a run leaves on disk so that it can go on: one file, replaced whole.

use super::data::Document;
use super::error::DistillError;
use super::plan::TrainPlan;
use crate::TokenId;
use crate::backend::training::StudentState;
use crate::backend::training::parameters::Layout;
use crate::load::fnv1a;
use crate::load::store::{Stored, load, save};
use crate::model::Dtype;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FORMAT: &str = "eesd-training-2";
const TENSORS: [&str; 4] = ["values", "mean", "square", "best"];

/// What makes a run the same run: a snapshot of another one is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// Of the model.
    pub fingerprint: String,
    /// The exit layer `N`.
    pub exit_layer: usize,
    /// What the block began as, and what of it is trained.
    pub start: String,
    /// Of the training data.
    pub data: String,
    /// The settings.
    pub plan: TrainPlan,
}

/// A run after some of its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Updates done.
    pub step: u64,
    /// The student.
    pub state: StudentState,
    /// The best one so far on held-out text, where that has been measured.
    pub best: Option<Best>,
}

/// The student that was best on held-out text.
#[derive(Debug, Clone, PartialEq)]
pub struct Best {
    /// Updates after which it was.
    pub step: u64,
    /// The mean loss on held-out text.
    pub loss: f64,
    /// Measurements since then.
    pub since: u64,
    /// Its parameters.
    pub values: Vec<f32>,
}

impl Identity {
    /// A run that starts with these parameters and learns from these documents.
    pub fn new(fingerprint: &str, layout: &Layout, values: &[f32], documents: &[Document], plan: TrainPlan) -> Self {
        let drafted = layout.draft_vocab();
        let ids = |ids: &[TokenId]| format!(" tokens {}", digest(ids.iter().copied().flat_map(u32::to_le_bytes)));
        let listed = drafted.ids.map(ids).unwrap_or_default();
        let values = digest(values.iter().flat_map(|x| x.to_le_bytes()));
        let tokens = documents.iter().flat_map(|document| {
            let sizes = [document.prompt as u32, document.tokens.len() as u32];
            sizes.into_iter().chain(document.tokens.iter().copied()).flat_map(u32::to_le_bytes)
        });
        Self {
            fingerprint: fingerprint.to_owned(),
            exit_layer: layout.after,
            start: format!("parameters {values}, head {:?} of {}{listed}", layout.kind, drafted.size),
            data: format!("{} documents {}", documents.len(), digest(tokens)),
            plan,
        }
    }

    fn entries(&self) -> BTreeMap<String, String> {
        let plan = serde_json::to_value(&self.plan).unwrap_or_default();
        let settings =
            plan.as_object().into_iter().flatten().map(|(key, value)| (format!("plan.{key}"), value.to_string()));
        [
            ("format", FORMAT.to_owned()),
            ("base_fingerprint", self.fingerprint.clone()),
            ("exit_layer", self.exit_layer.to_string()),
            ("start", self.start.clone()),
            ("data", self.data.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into_iter()
        .chain(settings)
        .collect()
    }
}

/// A short name of these bytes.
fn digest(bytes: impl Iterator<Item = u8>) -> String {
    format!("{:032x}", fnv1a(&bytes.collect::<Vec<u8>>()))
}

/// Where snapshots of one exit layer are kept.
pub fn path_in(folder: &Path, exit_layer: usize) -> PathBuf {
    folder.join(format!("exit-{exit_layer}.training"))
}

impl Snapshot {
    /// Replaces the snapshot at `path`.
    ///
    /// # Errors
    /// If it cannot be written: the old one is still there.
    pub fn save(&self, path: &Path, identity: &Identity) -> Result<(), DistillError> {
        let mut metadata = identity.entries();
        metadata.insert("step".into(), self.step.to_string());
        let StudentState { values, mean, square } = &self.state;
        let best = self.best.as_ref().map_or(&[][..], |best| &best.values);
        if let Some(Best { step, loss, since, values: _ }) = &self.best {
            let entries =
                [("best_step", step.to_string()), ("best_loss", format!("{loss:e}")), ("since", since.to_string())];
            metadata.extend(entries.map(|(key, value)| (key.to_owned(), value)));
        }
        let bytes =
            [values, mean, square, best].map(|vector| vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let tensors = TENSORS.iter().zip(&bytes).map(|(name, bytes)| {
            let shape = vec![bytes.len() / Dtype::F32.size()];
            ((*name).to_owned(), Stored { dtype: Dtype::F32.into(), shape, bytes: bytes.into() })
        });
        let tensors = tensors.collect();
        Ok(save(path, &tensors, &metadata)?)
    }

    /// The snapshot at `path`; `None` where there is none.
    ///
    /// # Errors
    /// If it is damaged, or of another run.
    pub fn load(path: &Path, identity: &Identity) -> Result<Option<Self>, DistillError> {
        let Some((metadata, vectors)) = load(path, &TENSORS)? else { return Ok(None) };
        let other = |key: &str, expected: String| DistillError::OtherRun {
            path: path.to_path_buf(),
            key: key.to_owned(),
            found: metadata.get(key).cloned().unwrap_or_else(|| "missing".into()),
            expected,
        };
        for (key, expected) in identity.entries() {
            if metadata.get(&key) != Some(&expected) {
                return Err(other(&key, expected));
            }
        }
        let step = metadata.get("step").and_then(|step| step.parse().ok()).filter(|&step| step <= identity.plan.steps);
        let step = step.ok_or_else(|| other("step", format!("at most {}", identity.plan.steps)))?;
        let [values, mean, square, best] = <[Vec<f32>; 4]>::try_from(vectors).unwrap_or_default();
        let best = if best.is_empty() {
            None
        } else {
            let known = Best::read(&metadata, best).filter(|best| best.values.len() == values.len());
            Some(known.ok_or_else(|| other("best_loss", "that of as many parameters".into()))?)
        };
        Ok(Some(Self { step, state: StudentState { values, mean, square }, best }))
    }
}

impl Best {
    fn read(metadata: &BTreeMap<String, String>, values: Vec<f32>) -> Option<Self> {
        let entry = |key: &str| metadata.get(key);
        let number = |key: &str| entry(key)?.parse().ok();
        Some(Self {
            step: number("best_step")?,
            loss: entry("best_loss")?.parse().ok()?,
            since: number("since")?,
            values,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn identity(seed: u64) -> Identity {
        let plan = TrainPlan { seed, ..TrainPlan::default() };
        Identity { fingerprint: "f".into(), exit_layer: 2, start: "s".into(), data: "d".into(), plan }
    }

    #[test]
    fn a_snapshot_comes_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_in(folder.path(), 2);
        assert_eq!(Snapshot::load(&path, &identity(0)).unwrap(), None);
        let state = StudentState {
            values: vec![1.5, f32::MIN_POSITIVE / 2.0, -0.0],
            mean: vec![f32::MAX, 3.25],
            square: vec![0.1, 7.0],
        };
        let snapshot = Snapshot { step: 77, state, best: None };
        snapshot.save(&path, &identity(0)).unwrap();
        assert_eq!(Snapshot::load(&path, &identity(0)).unwrap().as_ref(), Some(&snapshot));
        let best = Best { step: 70, loss: 0.1 + 0.2, since: 3, values: vec![0.25, -1.0, 3.0] };
        let snapshot = Snapshot { best: Some(best), ..snapshot };
        snapshot.save(&path, &identity(0)).unwrap();
        assert_eq!(Snapshot::load(&path, &identity(0)).unwrap().as_ref(), Some(&snapshot));
        let Err(error) = Snapshot::load(&path, &identity(1)) else { panic!("another run's snapshot was taken") };
        assert!(error.to_string().contains("`plan.seed` is 0, and this run has 1"), "{error}");
        let mut longer = identity(0);
        longer.plan.steps = 50;
        assert!(Snapshot::load(&path, &longer).is_err(), "past the end of a shorter run");

        let whole = fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(7) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(Snapshot::load(&path, &identity(0)).is_err(), "{len} of {} bytes", whole.len());
        }
        // A snapshot that cannot be written leaves the old one.
        fs::write(&path, &whole).unwrap();
        let nowhere = folder.path().join("missing").join("exit-2.training");
        assert!(snapshot.save(&nowhere, &identity(0)).unwrap_err().to_string().contains("missing"));
        assert_eq!(Snapshot::load(&path, &identity(0)).unwrap(), Some(snapshot));
    }
}
