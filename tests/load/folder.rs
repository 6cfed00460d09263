//! Model folders made for one test: a fixture's files, changed.

use eesd::load::{Checkpoint, LoadError};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The folder of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name)
}

/// A copy of a fixture that may be changed.
pub struct Folder(TempDir);

impl Folder {
    pub fn of(name: &str) -> Self {
        Self::copy(&fixture(name))
    }

    /// A copy of a quantised fixture.
    pub fn quantised(name: &str) -> Self {
        Self::copy(&fixture("../hf-quantised").join(name))
    }

    fn copy(fixture: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(fixture).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "expected.safetensors" {
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
            }
        }
        Self(folder)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    pub fn open(&self) -> Result<Checkpoint, LoadError> {
        Checkpoint::open(self.0.path())
    }

    /// The message with which the folder is refused.
    pub fn refusal(&self) -> String {
        self.open().err().expect("the folder should be refused").to_string()
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(file), content).unwrap();
        self
    }

    pub fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }

    /// Puts the keys of `changes` into a JSON file, over what is there.
    pub fn set(&self, file: &str, changes: Value) -> &Self {
        let mut json = self.json(file);
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        self.write(file, json.to_string())
    }

    /// Changes a value of `quantization_config`; `path` is a JSON pointer within it.
    pub fn announce(&self, path: &str, value: Value) {
        let mut config = self.json("config.json");
        let (around, key) = path.rsplit_once('/').unwrap();
        config["quantization_config"].pointer_mut(around).unwrap()[key] = value;
        self.write("config.json", config.to_string());
    }

    pub fn remove_key(&self, file: &str, key: &str) -> &Self {
        let mut json = self.json(file);
        json.as_object_mut().unwrap().remove(key);
        self.write(file, json.to_string())
    }

    /// Rewrites a safetensors file after `change`.
    pub fn change_tensors(&self, file: &str, change: impl FnOnce(&mut Tensors)) -> &Self {
        let mut tensors = Tensors::read(&self.path(file));
        change(&mut tensors);
        self.write(file, tensors.to_bytes())
    }
}

/// The tensors of a safetensors file, owned.
pub struct Tensors(pub Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let owned = |(name, view): (&str, TensorView<'_>)| {
            (name.to_string(), view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        let mut tensors: Vec<_> = file.iter().map(owned).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        Self(tensors)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let views = self
            .0
            .iter()
            .map(|(name, dtype, shape, data)| (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    pub fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        self.0.push((name.into(), dtype, shape.to_vec(), vec![0; bytes]));
    }

    /// The bytes of a tensor.
    pub fn bytes(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.0.iter_mut().find(|tensor| tensor.0 == name).unwrap().3
    }

    /// Adds a copy of a tensor under another name.
    pub fn copy(&mut self, from: &str, to: &str) {
        let (_, dtype, shape, bytes) = self.0.iter().find(|tensor| tensor.0 == from).unwrap().clone();
        self.0.push((to.into(), dtype, shape, bytes));
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|tensor| tensor.0 != name);
    }
}
