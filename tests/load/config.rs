//! `config.json` and `generation_config.json`.

use crate::folder::{Folder, fixture};
use eesd::load::Checkpoint;
use eesd::model::{Geometry, Rope, RopeScaling};
use serde_json::{Value, json};

fn llama() -> Geometry {
    Geometry {
        family: "llama".into(),
        vocab_size: 512,
        hidden_size: 128,
        intermediate_size: 352,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::Default },
        windows: vec![None; 4],
        max_positions: 512,
        qk_norm: false,
        tied_head: false,
    }
}

#[test]
fn fixtures_open_with_their_geometry() {
    let long = Rope { theta: 1e6, scaling: RopeScaling::Default };
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    let narrow = || Geometry { intermediate_size: 96, ..llama() };
    let expected = [
        ("llama", llama(), 869_504),
        (
            "llama3_rope_sharded",
            Geometry { tied_head: true, rope: Rope { theta: 5e5, scaling: llama3 }, ..narrow() },
            410_752,
        ),
        ("mistral", Geometry { family: "mistral".into(), head_dim: 64, rope: long.clone(), ..narrow() }, 672_896),
        ("qwen2", Geometry { family: "qwen2".into(), tied_head: true, rope: long.clone(), ..narrow() }, 411_776),
        (
            "qwen3",
            Geometry { family: "qwen3".into(), head_dim: 64, qk_norm: true, tied_head: true, rope: long, ..narrow() },
            607_872,
        ),
    ];
    for (name, geometry, parameters) in expected {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        assert_eq!(checkpoint.name(), name);
        assert_eq!(checkpoint.geometry(), &geometry, "{name}");
        assert_eq!(checkpoint.parameters(), parameters, "{name}");
        assert_eq!(checkpoint.bytes(), 2 * parameters, "{name}: bf16");
        let weights = checkpoint.weights();
        assert_eq!(weights.layers.len(), 4);
        assert_eq!(weights.layers[0].q_bias.is_some(), name == "qwen2");
        assert_eq!(weights.layers[0].q_norm.is_some(), name == "qwen3");
        assert_eq!(weights.head.bytes.as_ptr() == weights.embed.bytes.as_ptr(), geometry.tied_head);
        assert!(checkpoint.tokenizer().is_none() && checkpoint.chat_template().unwrap().is_none());
        assert!(checkpoint.exit_blocks().unwrap().is_empty());
    }
}

/// What a change of the llama fixture's configuration is refused with.
#[test]
fn configurations_are_refused_by_name() {
    let rope = |parameters: Value| json!({ "rope_parameters": parameters });
    let table = [
        (json!({"model_type": "mixtral"}), "model_type `mixtral` is not supported (supported: llama, mistral"),
        (json!({"model_type": null}), "`model_type` is null, expected llama, mistral, qwen2, qwen3"),
        (json!({"model_type": 7}), "`model_type` is 7, expected a string"),
        (json!({"num_local_experts": 8}), "mixture of experts (`num_local_experts`) is not supported"),
        (json!({"num_experts": 128}), "mixture of experts (`num_experts`)"),
        (json!({"hidden_act": "gelu"}), "hidden_act `gelu` is not supported (supported: silu)"),
        (json!({"is_causal": false}), "`is_causal`: false is not supported"),
        (json!({"is_encoder_decoder": true}), "`is_encoder_decoder` is not supported"),
        (json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` 0.5 is not supported"),
        (
            rope(json!({"rope_type": "default", "partial_rotary_factor": 0.5})),
            "`rope_parameters.partial_rotary_factor`",
        ),
        (rope(json!({"rope_type": "longrope"})), "rope type `longrope` is not supported (supported: default, linear"),
        (rope(json!({"rope_type": "linear"})), "`rope_parameters.factor` is missing, expected a number above 0"),
        (
            rope(json!({"rope_type": "linear", "factor": 0.5})),
            "`rope_parameters.factor` is 0.5, expected a number of at",
        ),
        (rope(json!({"rope_type": 3})), "`rope_parameters.rope_type` is 3, expected a string"),
        (rope(json!({"factor": 2.0})), "`rope_parameters.rope_type` is missing, expected default, linear"),
        (rope(json!("linear")), "`rope_parameters` is \"linear\", expected an object"),
        (json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "the same rotary embedding as rope_parameters"),
        (
            rope(json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})),
            "`rope_parameters.high_freq_factor` is 4, expected a number above low_freq_factor",
        ),
        (rope(json!({"rope_type": "yarn", "factor": 4, "beta_fast": -1})), "`rope_parameters.beta_fast` is -1"),
        (rope(json!({"rope_theta": 0})), "`rope_parameters.rope_theta` is 0, expected a number above 0"),
        (json!({"hidden_size": 0}), "`hidden_size` is 0, expected a whole number in 1..="),
        (json!({"hidden_size": u64::MAX}), "`hidden_size`: 18446744073709551615 (at most 1048576)"),
        (json!({"hidden_size": 1e300}), "`hidden_size` is 1e+300, expected a whole number in 1..=1048576"),
        (json!({"head_dim": 1 << 21}), "`head_dim`: 2097152 (at most 4096)"),
        (
            json!({"head_dim": null, "hidden_size": 8192, "num_attention_heads": 1, "num_key_value_heads": 1}),
            "hidden_size / num_attention_heads, where head_dim is not given: 8192 (at most 4096)",
        ),
        (
            json!({"max_position_embeddings": 1_u64 << 40}),
            "`max_position_embeddings`: 1099511627776 (at most 268435456)",
        ),
        (
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1_u64 << 40}}),
            "`rope_parameters.original_max_position_embeddings`: 1099511627776 (at most",
        ),
        (json!({"vocab_size": "512"}), "`vocab_size` is \"512\", expected a whole number in 1..="),
        (json!({"vocab_size": null}), "`vocab_size` is null, expected"),
        (json!({"num_hidden_layers": 5000}), "`num_hidden_layers`: 5000 (at most 4096)"),
        (json!({"num_key_value_heads": 3}), "`num_key_value_heads` is 3, expected a divisor of num_attention_heads, 4"),
        (json!({"head_dim": 33}), "`head_dim` is 33, expected an even number"),
        (
            json!({"head_dim": null, "num_attention_heads": 3, "num_key_value_heads": 3}),
            "a multiple of num_attention_h",
        ),
        (
            json!({"num_attention_heads": 1 << 12, "head_dim": 1 << 12}),
            "num_attention_heads · head_dim: 16777216 (at most",
        ),
        (json!({"rms_norm_eps": -1e-5}), "`rms_norm_eps` is -0.00001, expected a number above 0"),
        (json!({"tie_word_embeddings": "no"}), "`tie_word_embeddings` is \"no\", expected true or false"),
        (
            json!({"layer_types": ["full_attention"]}),
            "`layer_types` is an array of 1, expected one entry for each of the 4",
        ),
        (
            json!({"layer_types": vec!["linear_attention"; 4]}),
            "`layer_types` entry `linear_attention` is not supported",
        ),
        (json!({"layer_types": vec!["sliding_attention"; 4]}), "`sliding_window` is missing, expected a window in use"),
        (json!({"eos_token_id": "</s>"}), "`eos_token_id` is \"</s>\", expected a token below vocab_size, 512"),
    ];
    for (changes, fragment) in table {
        let folder = Folder::of("llama");
        // With a generation configuration of its own, the model's end token would not be looked at.
        folder.set("config.json", changes.clone()).write("generation_config.json", "{}");
        let message = folder.refusal();
        assert!(message.contains("config.json: ") && message.contains(fragment), "{changes}: {message}");
    }
}

#[test]
fn files_that_are_not_json_objects_are_refused() {
    for (content, fragment) in [
        ("", "config.json: not valid JSON: EOF"),
        ("[1]", "config.json: an array of 1, expected a JSON object"),
        ("{\"vocab_size\": NaN}", "config.json: not valid JSON: expected value at line 1"),
    ] {
        let folder = Folder::of("llama");
        let message = folder.write("config.json", content).refusal();
        assert!(message.contains(fragment), "{message}");
    }
    let folder = Folder::of("llama");
    std::fs::remove_file(folder.path("config.json")).unwrap();
    assert!(folder.refusal().ends_with("no config.json here"));
    std::fs::create_dir(folder.path("config.json")).unwrap();
    assert!(folder.refusal().ends_with("config.json: not a regular file"));
}

/// The geometry of the fixture after a change of its configuration.
fn geometry(name: &str, changes: Value) -> Geometry {
    let folder = Folder::of(name);
    let opened = folder.set("config.json", changes).open().unwrap_or_else(|error| panic!("{error}"));
    opened.geometry().clone()
}

#[test]
fn keys_that_are_absent_or_null_have_the_defaults_of_the_family() {
    let folder = Folder::of("llama");
    for key in ["rms_norm_eps", "rope_parameters", "head_dim", "max_position_embeddings", "tie_word_embeddings"] {
        folder.remove_key("config.json", key);
    }
    let expected = Geometry { rms_norm_eps: 1e-6, max_positions: 2048, ..llama() };
    assert_eq!(folder.open().unwrap().geometry(), &expected);
    assert_eq!(geometry("llama", json!({"head_dim": null, "rope_scaling": null, "hidden_act": "swish"})), llama());
    assert_eq!(geometry("llama", json!({"sliding_window": 16, "use_sliding_window": true})), llama());
}

#[test]
fn sliding_windows_follow_the_family() {
    let windows = |name: &str, changes: Value| geometry(name, changes).windows;
    assert_eq!(windows("mistral", json!({"sliding_window": 64})), vec![Some(64); 4]);
    let folder = Folder::of("mistral");
    folder.remove_key("config.json", "sliding_window");
    assert_eq!(folder.open().unwrap().geometry().windows, vec![Some(4096); 4]);

    let qwen = |use_it: bool| {
        let changes = json!({
            "sliding_window": 64, "use_sliding_window": use_it, "max_window_layers": 3, "layer_types": null
        });
        windows("qwen2", changes)
    };
    assert_eq!(qwen(true), [None, None, None, Some(64)]);
    assert_eq!(qwen(false), [None; 4]);
    let types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
    let mixed = json!({"sliding_window": 64, "use_sliding_window": true, "layer_types": types});
    assert_eq!(windows("qwen3", mixed), [Some(64), None, Some(64), None]);
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let scalings = [
        (json!({"factor": 2.0}), "linear", RopeScaling::Linear { factor: 2.0 }),
        (json!({"factor": 2}), "dynamic", RopeScaling::Dynamic { factor: 2.0, original_max_positions: 512 }),
        (
            json!({"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 64}),
            "llama3",
            RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 64,
            },
        ),
        (json!({"factor": 4.0, "original_max_position_embeddings": 128}), "yarn", yarn(0.1 * 4f64.ln() + 1.0)),
    ];
    for (parameters, kind, scaling) in scalings {
        let with = |name: &str, theta: Option<f64>| {
            let mut parameters = parameters.clone();
            parameters[name] = kind.into();
            if let Some(theta) = theta {
                parameters["rope_theta"] = theta.into();
            }
            parameters
        };
        let new = json!({"rope_parameters": with("rope_type", Some(5e5))});
        let old = json!({"rope_parameters": null, "rope_theta": 5e5, "rope_scaling": with("type", None)});
        let both = json!({"rope_parameters": with("rope_type", Some(5e5)), "rope_scaling": with("type", None)});
        for changes in [new, old, both] {
            let expected = Rope { theta: 5e5, scaling: scaling.clone() };
            assert_eq!(geometry("llama", changes.clone()).rope, expected, "{changes}");
        }
    }
    let outside = json!({"rope_scaling": null, "original_max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0}});
    assert_eq!(geometry("llama", outside).rope.scaling, yarn(0.1 * 4f64.ln() + 1.0));
}

fn yarn(attention_factor: f64) -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
        original_max_positions: 128,
    }
}

#[test]
fn yarn_resolves_its_attention_factor() {
    let resolved = |extra: Value| {
        let mut parameters = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
        parameters.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        geometry("llama", json!({"rope_parameters": parameters})).rope.scaling
    };
    assert_eq!(resolved(json!({"attention_factor": 1.5, "mscale": 3, "mscale_all_dim": 2})), yarn(1.5));
    let ratio = (0.1 * 0.707 * 4f64.ln() + 1.0) / (0.1 * 0.5 * 4f64.ln() + 1.0);
    assert_eq!(resolved(json!({"mscale": 0.707, "mscale_all_dim": 0.5})), yarn(ratio));
    assert_eq!(resolved(json!({"mscale": 0.707, "mscale_all_dim": 0})), yarn(0.1 * 4f64.ln() + 1.0));
    assert_eq!(resolved(json!({"factor": null})), yarn(0.1 * 4f64.ln() + 1.0), "512 / 128");
    assert_ne!(resolved(json!({"truncate": false})), yarn(0.1 * 4f64.ln() + 1.0));
}
