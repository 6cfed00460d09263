//! Hostile files by their numbers: some damaged, some written by rules that know what hurts.

mod jinja;
mod tokenizer;

use crate::LLAMA;
use crate::dice::Dice;
use serde_json::{Value, json};

pub use jinja::template;
pub use tokenizer::tokenizer;

/// Numbers that look random, others for each number.
fn dice(kind: u64, number: usize) -> Dice {
    let mut dice = Dice((number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ kind << 56);
    // The first ones of neighbours look alike.
    for _ in 0..8 {
        dice.roll(2);
    }
    dice
}

impl Dice {
    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    /// A number that some program does not expect.
    fn number(&mut self) -> Value {
        let power = self.roll(64);
        match self.roll(12) {
            0 => 0.into(),
            1 => (-1).into(),
            2 => u64::MAX.into(),
            3 => i64::MIN.into(),
            4 => 1e308.into(),
            5 => (-1e-320).into(),
            6 => 0.5.into(),
            7 => (self.roll(9) as u64).into(),
            8 => ((1u64 << power) - 1).into(),
            9 => ((1u64 << power) as f64 * 1.5).into(),
            _ => (1u64 << power).into(),
        }
    }
}

/// Every key that is read, and some that are refused.
const KEYS: [&str; 30] = [
    "model_type",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_hidden_layers",
    "vocab_size",
    "intermediate_size",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "hidden_act",
    "quantization_config",
    "num_experts",
    "is_causal",
    "eos_token_id",
    "bos_token_id",
    "torch_dtype",
    "architectures",
];

/// A config.json.
pub fn configuration(number: usize) -> Vec<u8> {
    let mut dice = dice(1, number);
    let original = std::fs::read(format!("{}/{LLAMA}/config.json", env!("CARGO_MANIFEST_DIR"))).unwrap();
    match dice.roll(8) {
        0 => return dice.damage(&original),
        1 | 2 => return dice.twist(&original),
        _ => {}
    }
    let mut json: Value = serde_json::from_slice(&original).unwrap();
    for _ in 0..1 + dice.roll(4) {
        let key = KEYS[dice.roll(KEYS.len())];
        json[key] = match (key, dice.roll(10)) {
            (_, 0) => dice.value(&json),
            ("layer_types", _) => vec![dice.one(&["sliding_attention", "full_attention"]); 1 << dice.roll(17)].into(),
            ("rope_scaling" | "rope_parameters", _) => rope(&mut dice),
            ("model_type", _) => dice.one(&["llama", "mistral", "qwen2", "qwen3", "mixtral"]).into(),
            ("use_sliding_window" | "attention_bias" | "mlp_bias" | "tie_word_embeddings" | "is_causal", 1..8) => {
                (dice.roll(2) == 0).into()
            }
            _ => dice.number(),
        };
    }
    dice.write(&json)
}

/// A rotary embedding with numbers of all sizes.
fn rope(dice: &mut Dice) -> Value {
    let mut json = json!({ "rope_type": dice.one(&["default", "linear", "dynamic", "llama3", "yarn", "longrope"]) });
    for key in [
        "factor",
        "rope_theta",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
    ] {
        if dice.roll(2) == 0 {
            json[key] = if dice.roll(2) == 0 { (1 + dice.roll(64)).into() } else { dice.number() };
        }
    }
    json
}
