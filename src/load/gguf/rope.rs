//! The rotary embedding of a GGUF file: `rope.freq_base`, `rope.scaling.*`, and divisors of frequencies as a tensor.

use super::super::tensors::Tensors;
use super::super::{LoadError, limits};
use super::config::Keys;
use crate::model::{Rope, RopeScaling};

/// The tensor with a divisor for each pair's frequency.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

const DEFAULT_THETA: f64 = 10_000.0;

/// The rotary embedding that the metadata describe; takes its tensor, where there is one.
pub(super) fn parse(
    keys: &Keys<'_>,
    tensors: &mut Tensors,
    head_dim: usize,
    max_positions: usize,
) -> Result<Rope, LoadError> {
    if let Some(dimensions) = keys.size("rope.dimension_count", limits::HEAD_DIM)?.filter(|&count| count != head_dim) {
        let what = format!("`{}` {dimensions} with heads of {head_dim}", keys.name("rope.dimension_count"));
        return Err(LoadError::unsupported(keys.metadata.path(), what, "rotation of whole heads"));
    }
    let theta = keys.number("rope.freq_base")?.unwrap_or(DEFAULT_THETA);
    if theta <= 1.0 {
        return Err(keys.wrong("rope.freq_base", "a number above 1"));
    }
    let scaling = scaling(keys, max_positions)?;
    let scaling = match (tensors.take_numbers(DIVISORS, head_dim / 2)?, scaling) {
        (None, scaling) => scaling,
        (Some(divisors), RopeScaling::Default) => self::divisors(keys, theta, &divisors)?,
        (Some(_), _) => {
            let what = format!("`{DIVISORS}` and `{}` together", keys.name("rope.scaling.type"));
            return Err(LoadError::unsupported(keys.metadata.path(), what, "one of them"));
        }
    };
    Ok(Rope { theta, scaling })
}

fn scaling(keys: &Keys<'_>, max_positions: usize) -> Result<RopeScaling, LoadError> {
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    // The older key of the linear scaling; 0 stands for none in both.
    let key = if keys.has("rope.scaling.factor") { "rope.scaling.factor" } else { "rope.scale_linear" };
    let factor = keys.number(key)?.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    if factor < 1.0 {
        return Err(keys.wrong(key, "a number of at least 1"));
    }
    match kind {
        "none" => Ok(RopeScaling::Default),
        "linear" if factor == 1.0 => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => yarn(keys, factor, max_positions),
        other => {
            let what = format!("`{}` `{other}`", keys.name("rope.scaling.type"));
            Err(LoadError::unsupported(keys.metadata.path(), what, "none, linear, yarn"))
        }
    }
}

fn yarn(keys: &Keys<'_>, factor: f64, max_positions: usize) -> Result<RopeScaling, LoadError> {
    let number = |key: &str| keys.number(&format!("rope.scaling.{key}"));
    let positive = |key: &str| match number(key)? {
        Some(number) if number <= 0.0 => Err(keys.wrong(&format!("rope.scaling.{key}"), "a number above 0")),
        number => Ok(number),
    };
    if let Some(mix) = number("yarn_ext_factor")?.filter(|&mix| mix != 1.0 && mix != -1.0) {
        let what = format!("`{}` {mix}", keys.name("rope.scaling.yarn_ext_factor"));
        return Err(LoadError::unsupported(keys.metadata.path(), what, "1"));
    }
    let beta_fast = positive("yarn_beta_fast")?.unwrap_or(32.0);
    let beta_slow = positive("yarn_beta_slow")?.unwrap_or(1.0);
    if beta_fast <= beta_slow {
        return Err(keys.wrong("rope.scaling.yarn_beta_fast", "a number above yarn_beta_slow"));
    }
    let temperature = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
    let of_all = number("yarn_log_multiplier")?.map_or(1.0, temperature);
    let attention_factor = positive("yarn_attn_factor")?.unwrap_or(temperature(1.0) / of_all);
    let attention_factor = attention_factor * positive("attn_factor")?.unwrap_or(1.0);
    if !(attention_factor > 0.0 && attention_factor.is_finite()) {
        let key = "rope.scaling.yarn_log_multiplier";
        return Err(keys.wrong(key, "a number that makes the attention factor one above 0"));
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        attention_factor,
        truncate: true,
        original_max_positions: keys
            .size("rope.scaling.original_context_length", limits::POSITIONS)?
            .unwrap_or(max_positions),
    })
}

/// The scaling that divides frequencies by these numbers. Where they are Llama 3's, as far as f32 tells, it is called
/// that: its frequencies are more exact, and exit blocks for the model fit it in either form.
fn divisors(keys: &Keys<'_>, theta: f64, divisors: &[f32]) -> Result<RopeScaling, LoadError> {
    if let Some(at) = divisors.iter().position(|&divisor| !(divisor > 0.0 && divisor.is_finite())) {
        return Err(LoadError::Tensor {
            path: keys.metadata.path().to_path_buf(),
            tensor: DIVISORS.into(),
            found: format!("{} at {at}", divisors[at]),
            expected: "numbers above 0".into(),
        });
    }
    let all_ones = divisors.iter().all(|&divisor| divisor == 1.0);
    let factor = f64::from(divisors.last().copied().unwrap_or(1.0));
    // What all published models have.
    let (low_freq_factor, high_freq_factor, original_max_positions) = (1.0, 4.0, 8192);
    let llama3 = |pair: usize| {
        let turn = theta.powf(-(pair as f64) / divisors.len() as f64);
        let rotations = original_max_positions as f64 * turn / std::f64::consts::TAU;
        let kept = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
        1.0 / ((1.0 - kept) / factor + kept)
    };
    let near = |(pair, &divisor): (usize, &f32)| (f64::from(divisor) / llama3(pair) - 1.0).abs() < 1e-5;
    Ok(if all_ones {
        RopeScaling::Default
    } else if factor >= 1.0 && divisors.iter().enumerate().all(near) {
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }
    } else {
        RopeScaling::Divisors(divisors.iter().map(|&divisor| divisor.into()).collect())
    })
}
