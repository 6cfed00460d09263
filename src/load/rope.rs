//! The rotary embedding of a configuration, in both spellings: `rope_scaling` beside `rope_theta`,
//! and `rope_parameters`. Defaults as in `modeling_rope_utils` of Hugging Face transformers 5.

use super::json::Object;
use super::{LoadError, limits};
use crate::model::{Rope, RopeScaling};

const TYPES: &str = "default, linear, dynamic, llama3, yarn";
const DEFAULT_THETA: f64 = 10_000.0;

/// The rotary embedding that the configuration's root object describes.
pub(super) fn parse(root: &Object<'_>, head_dim: usize, max_positions: usize) -> Result<Rope, LoadError> {
    refuse_partial(root)?;
    let mut outer_theta = theta(root)?;
    let mut ropes = Vec::new();
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(parameters) = root.object(key)? {
            refuse_partial(&parameters)?;
            let theta = theta(&parameters)?.or(outer_theta).unwrap_or(DEFAULT_THETA);
            ropes.push(Rope { theta, scaling: scaling(root, &parameters, head_dim, max_positions)? });
            // `rope_scaling`, where it only repeats the other for older readers, has no base of its own.
            outer_theta = outer_theta.or(Some(theta));
        }
    }
    match ropes.as_slice() {
        [new, old] if new != old => Err(root.wrong("rope_scaling", "the same rotary embedding as rope_parameters")),
        [rope, ..] => Ok(rope.clone()),
        [] => Ok(Rope { theta: outer_theta.unwrap_or(DEFAULT_THETA), scaling: RopeScaling::Default }),
    }
}

fn theta(object: &Object<'_>) -> Result<Option<f64>, LoadError> {
    match object.positive("rope_theta")? {
        Some(theta) if theta <= 1.0 => Err(object.wrong("rope_theta", "a number above 1")),
        theta => Ok(theta),
    }
}

fn refuse_partial(object: &Object<'_>) -> Result<(), LoadError> {
    match object.number("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => {
            let what = format!("`{}` {factor}", object.name("partial_rotary_factor"));
            Err(LoadError::unsupported(object.path(), what, "rotation of whole heads"))
        }
        _ => Ok(()),
    }
}

fn scaling(
    root: &Object<'_>,
    parameters: &Object<'_>,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeScaling, LoadError> {
    let Some(kind) = parameters.text("rope_type")?.or(parameters.text("type")?) else {
        let plain = parameters.keys().all(|key| ["rope_theta", "partial_rotary_factor"].contains(&key));
        return if plain { Ok(RopeScaling::Default) } else { Err(parameters.wrong("rope_type", TYPES)) };
    };
    let required = |key: &str| parameters.positive(key)?.ok_or_else(|| parameters.wrong(key, "a number above 0"));
    let stretch = || match required("factor")? {
        factor if factor >= 1.0 => Ok(factor),
        _ => Err(parameters.wrong("factor", "a number of at least 1")),
    };
    let original = || {
        let inside = parameters.size("original_max_position_embeddings", limits::POSITIONS)?;
        Ok(inside.or(root.size("original_max_position_embeddings", limits::POSITIONS)?).unwrap_or(max_positions))
    };
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: stretch()? }),
        // The base grows by a power of `head_dim / (head_dim - 2)`.
        "dynamic" if head_dim <= 2 => Err(parameters.wrong("rope_type", "default, for heads of 2 features")),
        "dynamic" => Ok(RopeScaling::Dynamic { factor: stretch()?, original_max_positions: max_positions }),
        "llama3" => {
            let (low_freq_factor, high_freq_factor) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if high_freq_factor <= low_freq_factor {
                return Err(parameters.wrong("high_freq_factor", "a number above low_freq_factor"));
            }
            let (factor, original_max_positions) = (stretch()?, original()?);
            Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions })
        }
        "yarn" => yarn(parameters, original()?, max_positions),
        other => Err(LoadError::unsupported(parameters.path(), format!("rope type `{other}`"), TYPES)),
    }
}

fn yarn(parameters: &Object<'_>, original: usize, max_positions: usize) -> Result<RopeScaling, LoadError> {
    let factor = parameters.positive("factor")?.unwrap_or(max_positions as f64 / original as f64);
    if factor < 1.0 {
        return Err(parameters.wrong("factor", "a number of at least 1"));
    }
    // Zero means "not given" for these, as it does in transformers.
    let given = |key: &str| Ok(parameters.number(key)?.filter(|&x| x != 0.0));
    let beta_fast = given("beta_fast")?.unwrap_or(32.0);
    let beta_slow = given("beta_slow")?.unwrap_or(1.0);
    if !(beta_slow > 0.0 && beta_fast > beta_slow) {
        return Err(parameters.wrong("beta_fast", "a number above beta_slow, and both above 0"));
    }
    let temperature = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let attention_factor = match (parameters.positive("attention_factor")?, given("mscale")?, given("mscale_all_dim")?)
    {
        (Some(attention_factor), ..) => attention_factor,
        (None, Some(mscale), Some(all)) => temperature(mscale) / temperature(all),
        (None, ..) => temperature(1.0),
    };
    if !(attention_factor > 0.0 && attention_factor.is_finite()) {
        return Err(parameters.wrong("mscale", "a value that makes the attention factor a number above 0"));
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        attention_factor,
        truncate: parameters.flag("truncate")?.unwrap_or(true),
        original_max_positions: original,
    })
}
