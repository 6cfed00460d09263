//! The model inside the binary: `models/pycode-4m`.

use super::LoadError;
use super::source::{Files, Source};

#[cfg(feature = "bundled-model")]
macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m/", $name)).as_slice())
    };
}

/// The files as they were compiled in, by name.
#[cfg(feature = "bundled-model")]
const FILES: Option<Files> = Some(&[
    file!("config.json"),
    file!("generation_config.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
    file!("model.safetensors"),
    file!("exit-1.safetensors"),
    file!("exit-2.safetensors"),
    file!("exit-3.safetensors"),
]);
#[cfg(not(feature = "bundled-model"))]
const FILES: Option<Files> = None;

/// The files of the bundled model.
pub(super) fn source() -> Result<Source, LoadError> {
    FILES.map(|files| Source::Embedded { name: NAME, files }).ok_or(LoadError::NotBundled)
}

/// The bundled model's exit layer that gains most.
pub const BUNDLED_EXIT: usize = 2;

/// The bundled model's name.
pub(super) const NAME: &str = "pycode-4m";

/// The prompts that the bundled model is shown and measured with, `prompts.jsonl`.
#[cfg(feature = "bundled-model")]
pub fn bundled_prompts() -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        prompt: String,
    }
    let lines = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m/prompts.jsonl"));
    let parse = |line| serde_json::from_str::<Line>(line).expect("the bundled prompts are valid JSON lines").prompt;
    lines.lines().map(parse).collect()
}
