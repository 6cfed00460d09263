//! Tensors by the names that they have in GGUF files and in Hugging Face's.

use super::super::error::short;

/// Tensors outside of layers.
const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Modules of a layer, which have a `.weight` and perhaps a `.bias`.
const INNER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const STORED_LAYERS: &str = "blk.";
const LAYERS: &str = "model.layers.";

/// Hugging Face's name of a tensor; what has none there keeps its own.
pub(in super::super) fn name(stored: &str) -> String {
    let outer = OUTER.iter().find(|(from, _)| *from == stored).map(|(_, to)| (*to).to_owned());
    outer.or_else(|| inner(stored, STORED_LAYERS, LAYERS, |(from, to)| (from, to))).unwrap_or_else(|| stored.to_owned())
}

/// A tensor's name as the file has it, by Hugging Face's name, cut to what an error shows.
pub(in super::super) fn stored_name(name: &str) -> String {
    let outer = OUTER.iter().find(|(_, from)| *from == name).map(|(to, _)| (*to).to_owned());
    short(
        outer
            .or_else(|| inner(name, LAYERS, STORED_LAYERS, |(to, from)| (from, to)))
            .unwrap_or_else(|| name.to_owned()),
    )
}

/// The name of a layer's tensor in the other spelling, by the prefixes of both and the pairs of their modules' names.
fn inner<'n>(
    name: &str,
    from_layers: &str,
    to_layers: &str,
    pair: impl Fn((&'n str, &'n str)) -> (&'n str, &'n str),
) -> Option<String> {
    let (layer, rest) = name.strip_prefix(from_layers)?.split_once('.')?;
    // Numbers that both spell alike, so that no two names become one.
    layer.parse::<u32>().ok().filter(|number| number.to_string() == layer)?;
    let (module, kind) = rest.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let (_, to) = INNER.iter().copied().map(pair).find(|(from, _)| *from == module)?;
    Some(format!("{to_layers}{layer}.{to}.{kind}"))
}

/// Whether architecture `llama` stores a tensor's rows as pairs of a head's halves: queries and keys, and their biases.
pub(in super::super) fn is_paired(name: &str) -> bool {
    [".self_attn.q_proj.", ".self_attn.k_proj."].iter().any(|module| name.contains(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_counterparts_both_ways() {
        for (stored, hugging_face) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.12.ffn_norm.weight", "model.layers.12.post_attention_layernorm.weight"),
            ("blk.3.attn_k_norm.weight", "model.layers.3.self_attn.k_norm.weight"),
        ] {
            assert_eq!(name(stored), hugging_face);
            assert_eq!(stored_name(hugging_face), stored);
        }
        for stranger in ["blk.01.attn_q.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q", "blk.x.attn_q.weight", ""]
        {
            assert_eq!((name(stranger), stored_name(stranger)), (stranger.to_owned(), stranger.to_owned()));
        }
        assert!(is_paired(&name("blk.1.attn_k.bias")) && !is_paired(&name("blk.1.attn_k_norm.weight")));
    }
}
