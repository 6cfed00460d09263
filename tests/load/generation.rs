//! `generation_config.json`, and the tokens that end an answer.

use crate::folder::Folder;
use crate::tokenizer::sentencepiece;
use eesd::load::Checkpoint;
use serde_json::{Value, json};

/// The llama fixture, whose `eos_token_id` is 2 in both files, with another generation configuration.
fn open(settings: &Value) -> Checkpoint {
    let folder = Folder::of("llama");
    folder.write("generation_config.json", settings.to_string()).open().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn generation_defaults_come_from_their_file_then_from_the_configuration() {
    let folder = Folder::of("llama");
    let settings = json!({
        "bos_token_id": 5, "eos_token_id": [7, 8, 9], "do_sample": true, "temperature": 0.6, "top_k": 0,
        "top_p": 0.9, "min_p": null, "repetition_penalty": 1.1, "max_length": 4096
    });
    let opened = folder.write("generation_config.json", settings.to_string()).open().unwrap();
    let generation = opened.generation();
    assert_eq!((generation.begin_token, generation.end_tokens.as_slice()), (Some(5), [7, 8, 9].as_slice()));
    assert_eq!((generation.sample, generation.temperature, generation.top_k), (Some(true), Some(0.6), Some(0)));
    assert_eq!((generation.top_p, generation.min_p, generation.repetition_penalty), (Some(0.9), None, Some(1.1)));

    std::fs::remove_file(folder.path("generation_config.json")).unwrap();
    folder.set("config.json", json!({"eos_token_id": [2, 3]}));
    let opened = folder.open().unwrap();
    assert_eq!(opened.generation().end_tokens, [2, 3]);
    assert_eq!((opened.generation().begin_token, opened.generation().sample), (Some(1), None));
}

#[test]
fn settings_that_the_engine_has_are_read() {
    let opened = open(&json!({
        "stop_strings": ["</a>", "\n\n"], "suppress_tokens": [3, 4], "bad_words_ids": [[5], [6, 7]],
        "max_new_tokens": 64, "min_new_tokens": 2.0, "top_p": 1, "top_k": 40.0
    }));
    let generation = opened.generation();
    assert_eq!(generation.stop_strings, ["</a>", "\n\n"]);
    assert_eq!(generation.suppress_tokens, [3, 4]);
    assert_eq!(generation.bad_words, [vec![5], vec![6, 7]]);
    assert_eq!((generation.max_new_tokens, generation.min_new_tokens), (Some(64), Some(2)));
    assert_eq!((generation.top_p, generation.top_k), (Some(1.0), Some(40)));
    assert!(opened.notes().is_empty(), "{:?}", opened.notes());

    assert_eq!(open(&json!({"stop_strings": "END"})).generation().stop_strings, ["END"]);
    assert_eq!(open(&json!({"suppress_tokens": 9})).generation().suppress_tokens, [9]);
    let nothing = open(&json!({"stop_strings": null, "suppress_tokens": [], "bad_words_ids": null, "top_k": null}));
    assert!(nothing.generation().stop_strings.is_empty() && nothing.notes().is_empty(), "{:?}", nothing.notes());
    assert_eq!(open(&json!({"do_sample": true, "temperature": 0})).generation().sampling().temperature, 0.0);
}

/// The notes of a folder that opens in spite of a setting.
#[test]
fn values_out_of_range_are_noted_and_left_out() {
    let table = [
        (json!({"eos_token_id": -1}), "`eos_token_id` has -1, expected tokens below vocab_size, 512: ignored"),
        (json!({"eos_token_id": [2, 512, 1e30]}), "`eos_token_id` has 512 and 1 more, expected tokens below"),
        (json!({"bos_token_id": -1}), "`bos_token_id` has -1, expected tokens below"),
        (json!({"bos_token_id": u64::MAX}), "`bos_token_id` has 18446744073709551615, expected tokens below"),
        (json!({"suppress_tokens": [-1, 3]}), "`suppress_tokens` has -1, expected tokens below"),
        (json!({"bad_words_ids": [[3, 512], [4]]}), "`bad_words_ids` has 512, expected tokens below"),
        (json!({"bad_words_ids": [[]]}), "`bad_words_ids` has an empty run of tokens: ignored"),
        (json!({"eos_token_id": 2, "bad_words_ids": [[2], [2, 3]]}), "`bad_words_ids` has the end token 2, without"),
        (json!({"stop_strings": ["", "a"]}), "`stop_strings` has an empty string: ignored"),
        (json!({"top_k": -1}), "`top_k` is -1, expected a whole number, at least 0: ignored"),
        (json!({"temperature": -0.5}), "`temperature` is -0.5, expected a finite number, at least 0: ignored"),
        (json!({"top_p": 0}), "`top_p` is 0, expected a number above 0, at most 1: ignored"),
        (json!({"top_p": 1.5}), "`top_p` is 1.5, expected a number above 0, at most 1: ignored"),
        (json!({"min_p": -0.1}), "`min_p` is -0.1, expected a number from 0 to 1: ignored"),
        (json!({"repetition_penalty": 0}), "`repetition_penalty` is 0, expected a finite number above 0: ignored"),
        (json!({"max_new_tokens": 0}), "`max_new_tokens` is 0, expected a whole number, at least 1: ignored"),
        (json!({"min_new_tokens": -3}), "`min_new_tokens` is -3, expected a whole number, at least 0: ignored"),
    ];
    for (settings, fragment) in table {
        let opened = open(&settings);
        let [note] = opened.notes() else { panic!("{settings}: {:?}", opened.notes()) };
        assert!(note.starts_with(&format!("generation_config.json: {fragment}")), "{settings}: {note}");
        let generation = opened.generation();
        // As if the key were not there: config.json has them too.
        assert_eq!((generation.begin_token, generation.end_tokens.as_slice()), (Some(1), [2].as_slice()), "{settings}");
        assert!(generation.suppress_tokens.iter().eq(settings.get("suppress_tokens").map(|_| &3)), "{settings}");
        assert!(generation.bad_words.iter().all(|run| *run == [4] || *run == [2, 3]), "{settings}");
        generation.sampling().check(512).unwrap();
    }
    let folder = Folder::of("llama");
    folder.write("generation_config.json", "{}").set("config.json", json!({"eos_token_id": -1, "bos_token_id": 512}));
    let opened = folder.open().unwrap();
    assert_eq!((opened.generation().begin_token, opened.generation().end_tokens.len()), (None, 0));
    assert!(opened.notes().iter().all(|note| note.starts_with("config.json: `")) && opened.notes().len() == 2);
}

#[test]
fn values_of_the_wrong_type_are_refused_by_their_key() {
    for (settings, fragment) in [
        (json!({"temperature": "hot"}), "`temperature` is \"hot\", expected a number"),
        (json!({"do_sample": 1}), "`do_sample` is 1, expected true or false"),
        (json!({"top_k": "all"}), "`top_k` is \"all\", expected a whole number, at least 0"),
        (json!({"top_k": 1.5}), "`top_k` is 1.5, expected a whole number"),
        (json!({"eos_token_id": "</s>"}), "`eos_token_id` is \"</s>\", expected a token below vocab_size, 512"),
        (json!({"eos_token_id": [2, [3]]}), "`eos_token_id` is an array of 2, expected a token below"),
        (json!({"stop_strings": [1]}), "`stop_strings` is an array of 1, expected a string or a list of strings"),
        (json!({"suppress_tokens": {"a": 1}}), "`suppress_tokens` is an object, expected a token below"),
        (json!({"bad_words_ids": [3]}), "`bad_words_ids` is an array of 1, expected a list of lists of tokens"),
        (json!({"bad_words_ids": "x"}), "`bad_words_ids` is \"x\", expected an array"),
        (json!({"max_new_tokens": true}), "`max_new_tokens` is true, expected a whole number, at least 1"),
    ] {
        let message = Folder::of("llama").write("generation_config.json", settings.to_string()).refusal();
        assert!(message.contains(&format!("generation_config.json: {fragment}")), "{message}");
    }
}

#[test]
fn one_note_names_all_that_is_not_honoured() {
    let opened = open(&json!({
        "num_beams": 4, "no_repeat_ngram_size": 3, "length_penalty": 0.5, "typical_p": 0.9, "penalty_alpha": 0.6,
        "guidance_scale": 1.5, "begin_suppress_tokens": [3, 4], "forced_eos_token_id": 2, "encoder_repetition_penalty": 2,
        "sequence_bias": {"[3]": -1.0}, "max_length": 100, "min_length": 3, "chat_format": "chatml", "speed": [1]
    }));
    assert_eq!(
        opened.notes(),
        [
            "generation_config.json: not honoured: num_beams 4, no_repeat_ngram_size 3, length_penalty 0.5, typical_p 0.9, \
          penalty_alpha 0.6, guidance_scale 1.5, begin_suppress_tokens an array of 2, forced_eos_token_id 2, \
          encoder_repetition_penalty 2, sequence_bias an object, max_length 100, min_length 3; \
          unknown: chat_format \"chatml\", speed an array of 1"
        ]
    );
}

#[test]
fn nothing_is_said_of_settings_that_change_no_text() {
    // Everything at the value with which transformers does nothing, or about other things than the text.
    let quiet = open(&json!({
        "_from_model_config": true, "_commit_hash": "abc", "transformers_version": "5.24.0", "use_cache": true,
        "cache_implementation": "static", "pad_token_id": -1, "return_dict_in_generate": true, "output_scores": true,
        "num_beams": 1, "num_return_sequences": 1, "no_repeat_ngram_size": 0, "typical_p": 1.0, "guidance_scale": 1,
        "epsilon_cutoff": 0.0, "encoder_repetition_penalty": 1.0, "begin_suppress_tokens": [], "sequence_bias": {},
        "token_healing": false, "forced_eos_token_id": null, "never_heard_of": null, "early_stopping": true,
        "length_penalty": 2.0, "min_length": 0, "max_length": 20, "num_assistant_tokens": 5
    }));
    assert!(quiet.notes().is_empty(), "{:?}", quiet.notes());
    // As long as the model's positions, or beside the newer key: no limit of its own.
    for settings in
        [json!({"max_length": 512}), json!({"max_length": 9, "max_new_tokens": 5}), json!({"max_length": 1e9})]
    {
        assert!(open(&settings).notes().is_empty(), "{settings}");
    }
}

/// A folder with a small tokenizer: file and content, over the llama fixture.
fn with_tokenizer(files: &[(&str, Value)]) -> Checkpoint {
    let folder = Folder::of("llama");
    folder.write("tokenizer.json", sentencepiece().to_string());
    for (file, content) in files {
        folder.write(file, content.to_string());
    }
    folder.open().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_end_token_that_only_the_tokenizers_files_name_ends_answers() {
    let nobody = || [("config.json", without_ends()), ("generation_config.json", json!({}))];
    for (file, content) in [
        ("tokenizer_config.json", json!({"eos_token": "</s>"})),
        ("tokenizer_config.json", json!({"eos_token": {"content": "</s>"}})),
        ("special_tokens_map.json", json!({"eos_token": {"content": "</s>", "lstrip": false}})),
    ] {
        let [config, generation] = nobody();
        let opened = with_tokenizer(&[config, generation, (file, content)]);
        assert_eq!(opened.generation().end_tokens, [2], "{file}");
        assert!(opened.notes().is_empty(), "{:?}", opened.notes());
    }
    let [config, generation] = nobody();
    assert!(with_tokenizer(&[config, generation]).generation().end_tokens.is_empty());
}

fn without_ends() -> Value {
    let folder = Folder::of("llama");
    folder.remove_key("config.json", "eos_token_id").json("config.json")
}

/// Chat models whose configuration still has the base model's end token, and whose tokenizer has the end of a turn.
#[test]
fn answers_end_at_the_tokenizers_end_token_too_where_the_configuration_has_another() {
    let added = json!({"268": {"content": "<|im_end|>", "special": true}});
    let opened =
        with_tokenizer(&[("tokenizer_config.json", json!({"eos_token": "<|im_end|>", "added_tokens_decoder": added}))]);
    assert_eq!(opened.generation().end_tokens, [2, 268]);
    assert_eq!(
        opened.notes(),
        ["tokenizer_config.json: `eos_token` is \"<|im_end|>\", token 268, but the model's `eos_token_id` is 2: \
          answers end at either"]
    );
    let same = with_tokenizer(&[("tokenizer_config.json", json!({"eos_token": "</s>"}))]);
    assert_eq!((same.generation().end_tokens.as_slice(), same.notes().len()), ([2].as_slice(), 0));
    // Past the vocabulary, or without an id of its own: no model writes it.
    let past = json!({"600": {"content": "<|im_end|>", "special": true}});
    for config in [json!({"eos_token": "<|im_end|>", "added_tokens_decoder": past}), json!({"eos_token": "<|end|>"})] {
        let opened = with_tokenizer(&[("tokenizer_config.json", config.clone())]);
        assert_eq!((opened.generation().end_tokens.as_slice(), opened.notes().len()), ([2].as_slice(), 1), "{config}");
    }
}
