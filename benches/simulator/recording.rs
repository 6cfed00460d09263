//! The format of recorded traces: one text a line.

/// What was drafted along one text.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Recording {
    /// Line of `models/pycode-4m/prompts.jsonl` that the text continues, from 0.
    pub prompt: usize,
    /// Confidence of the draft at each position of the model's own greedy text.
    pub confidence: Vec<f32>,
    /// Per position, `1` where the draft is the model's own token, else `0`.
    pub accepted: String,
}
