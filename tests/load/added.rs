//! Tokens that stand outside of tokenizer.json. What is right was taken from transformers 5.24 on the same files.

use crate::folder::Folder;
use crate::tokenizer::sentencepiece;
use eesd::load::Checkpoint;
use serde_json::{Value, json};

/// The llama fixture with the small tokenizer, which has 267 tokens, and `<x>` in its vocabulary as token 267.
fn folder(files: &[(&str, Value)]) -> Folder {
    let folder = Folder::of("llama");
    let mut tokenizer = sentencepiece();
    tokenizer["model"]["vocab"]["<x>"] = json!(267);
    folder.write("tokenizer.json", tokenizer.to_string());
    for (file, content) in files {
        folder.write(file, content.to_string());
    }
    folder
}

fn open(files: &[(&str, Value)]) -> Checkpoint {
    folder(files).open().unwrap_or_else(|error| panic!("{error}"))
}

/// Tokens of a text, and the text of these tokens.
fn tokens(checkpoint: &Checkpoint, text: &str) -> (Vec<u32>, String) {
    let tokenizer = checkpoint.tokenizer().unwrap();
    let tokens = tokenizer.encode(text, false).unwrap();
    let text = tokenizer.decode(&tokens);
    (tokens, text)
}

fn entry(id: u32, content: &str, flags: Value) -> (&'static str, Value) {
    let mut entry = json!({"content": content, "lstrip": false, "rstrip": false, "single_word": false,
        "normalized": false, "special": true});
    entry.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
    ("tokenizer_config.json", json!({"added_tokens_decoder": {id.to_string(): entry}}))
}

const TEXT: &str = "Hi <|im_end|> <x> Hi";
/// The pieces of ` <x> `, where that is no token.
const PIECES: [u32; 4] = [264, 63, 123, 65];

#[test]
fn added_tokens_of_the_tokenizers_configuration_are_one_token_each() {
    let right = [&[263, 259, 268], &PIECES[..], &[263]].concat();
    let special = open(&[entry(268, "<|im_end|>", json!({}))]);
    assert_eq!(tokens(&special, TEXT), (right.clone(), "Hi   <x> Hi".into()));
    assert!(special.tokenizer().unwrap().is_special(268));
    let plain = open(&[entry(268, "<|im_end|>", json!({"special": false}))]);
    assert_eq!(tokens(&plain, TEXT), (right, "Hi <|im_end|>  <x> Hi".into()));
    // A name makes it special all the same, and leaves its other flags.
    let (file, mut config) = entry(268, "<|im_end|>", json!({"special": false, "normalized": true}));
    config["eos_token"] = json!("<|im_end|>");
    let named = open(&[(file, config)]);
    assert!(named.tokenizer().unwrap().is_special(268));
    assert_eq!(tokens(&named, TEXT).0[..2], [263, 268], "normalized: the space before it is its own");
    assert!(special.notes().is_empty() && plain.notes().is_empty());
}

#[test]
fn flags_of_an_entry_hold() {
    let stripped = open(&[entry(268, "<|im_end|>", json!({"lstrip": true}))]);
    assert_eq!(tokens(&stripped, TEXT).0[..2], [263, 268]);
    let stripped = open(&[entry(268, "<|im_end|>", json!({"rstrip": true}))]);
    assert_eq!(tokens(&stripped, TEXT).0[..4], [263, 259, 268, 259], "the pieces begin without the space");
    let whole = open(&[entry(268, "im", json!({"single_word": true}))]);
    assert!(!tokens(&whole, "Himi").0.contains(&268) && tokens(&whole, "Hi im").0.contains(&268));
    // The entry also has the last word on tokens that tokenizer.json has.
    let stripped = open(&[entry(2, "</s>", json!({"lstrip": true}))]);
    assert_eq!(tokens(&stripped, "Hi </s>").0, [263, 2]);
}

#[test]
fn tokens_have_the_ids_that_the_files_give() {
    // `tokenizers` would count on from 268.
    let apart = open(&[entry(300, "<|im_end|>", json!({}))]);
    assert_eq!(tokens(&apart, TEXT).0[..3], [263, 259, 300]);
    let tokenizer = apart.tokenizer().unwrap();
    assert_eq!((tokenizer.id("<|im_end|>"), tokenizer.token(300)), (Some(300), Some("<|im_end|>".into())));
    assert_eq!(tokenizer.token(268), None);

    // Those in tokenizer.json too, in any order.
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false})
    };
    let mut json = sentencepiece();
    json["added_tokens"].as_array_mut().unwrap().extend([added(269, "<b>"), added(268, "<a>"), added(400, "<c>")]);
    let checkpoint = Folder::of("llama").write("tokenizer.json", json.to_string()).open().unwrap();
    assert_eq!(tokens(&checkpoint, "<a><b><c>").0, [268, 269, 400]);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!([267, 268, 269, 400].map(|id| tokenizer.token(id).unwrap_or_default()), ["", "<a>", "<b>", "<c>"]);
}

#[test]
fn added_tokens_json_counts_where_the_configuration_lists_none() {
    let list = ("added_tokens.json", json!({"<|im_end|>": 268}));
    let (ids, text) = tokens(&open(std::slice::from_ref(&list)), TEXT);
    assert_eq!(&ids[..2], [263, 268], "not special, so normalized: the space before it is its own");
    assert!(text.contains("<|im_end|>"), "{text}");
    let named = ("tokenizer_config.json", json!({"eos_token": "<|im_end|>"}));
    let (ids, text) = tokens(&open(&[list.clone(), named]), TEXT);
    assert_eq!((&ids[..3], text.as_str()), ([263, 259, 268].as_slice(), "Hi   <x> Hi"), "special by its name");

    let both = open(&[list, entry(270, "<|im_end|>", json!({}))]);
    assert_eq!(tokens(&both, TEXT).0[..3], [263, 259, 270]);
    let note = "added_tokens.json: `<|im_end|>` is 268, expected what added_tokens_decoder of tokenizer_config.json";
    assert!(both.notes()[0].starts_with(note), "{:?}", both.notes());
}

#[test]
fn named_special_tokens_of_either_file_are_special() {
    let right = [&[263, 259, 63, 127, 261, 112, 98, 104, 113, 103, 127, 65, 259, 267, 259, 263][..]].concat();
    let flags = json!({"content": "<x>", "lstrip": false, "normalized": false, "rstrip": false, "single_word": false});
    for (file, content) in [
        ("special_tokens_map.json", json!({"eos_token": "<x>"})),
        ("special_tokens_map.json", json!({"pad_token": flags})),
        ("special_tokens_map.json", json!({"additional_special_tokens": ["<x>"]})),
        ("tokenizer_config.json", json!({"cls_token": "<x>"})),
        ("tokenizer_config.json", json!({"additional_special_tokens": [flags]})),
        ("tokenizer_config.json", json!({"extra_special_tokens": {"image_token": "<x>"}})),
    ] {
        let checkpoint = open(&[(file, content.clone())]);
        assert_eq!(tokens(&checkpoint, TEXT), (right.clone(), "Hi <|im_end|>   Hi".into()), "{file}: {content}");
        assert!(checkpoint.tokenizer().unwrap().is_special(267));
    }
}

#[test]
fn a_named_token_without_an_id_gets_the_next_one_with_a_note() {
    let checkpoint = open(&[("special_tokens_map.json", json!({"additional_special_tokens": ["<|im_end|>", "<x>"]}))]);
    let right = [263, 259, 268, 264, 267, 259, 263];
    assert_eq!(tokens(&checkpoint, TEXT), (right.to_vec(), "Hi     Hi".into()));
    assert_eq!(
        checkpoint.notes(),
        ["special_tokens_map.json: `additional_special_tokens` names \"<|im_end|>\", which no file gives an id: \
          it gets the next one, 268"]
    );
}

#[test]
fn files_that_contradict_each_other_are_refused_with_both_sides() {
    let twice = json!({"268": {"content": "<a>"}, "269": {"content": "<a>"}});
    let table = [
        (
            entry(268, "<x>", json!({})),
            "tokenizer_config.json: `added_tokens_decoder.268` is \"<x>\" with id 268, expected \"<x>\" to have id 267, \
             as in tokenizer.json",
        ),
        (
            entry(2, "<|im_end|>", json!({})),
            "`added_tokens_decoder.2` is \"<|im_end|>\" with id 2, expected id 2 to be \"</s>\", as in tokenizer.json",
        ),
        (
            ("added_tokens.json", json!({"<x>": 5})),
            "added_tokens.json: `<x>` is \"<x>\" with id 5, expected \"<x>\" to have id 267, as in tokenizer.json",
        ),
        (
            ("added_tokens.json", json!({"<a>": 268, "<b>": 268})),
            "added_tokens.json: `<b>` is \"<b>\" with id 268, expected id 268 to be \"<a>\", as already",
        ),
        (("tokenizer_config.json", json!({"added_tokens_decoder": twice})), "`added_tokens_decoder.269` is \"<a>\""),
    ];
    for (file, fragment) in table {
        let message = folder(std::slice::from_ref(&file)).refusal();
        assert!(message.contains(fragment), "{message}");
    }
}

#[test]
fn entries_of_the_wrong_type_are_refused_by_their_key() {
    let config = |content: Value| ("tokenizer_config.json", content);
    let decoder = |content: Value| config(json!({ "added_tokens_decoder": content }));
    let table = [
        (decoder(json!([])), "tokenizer_config.json: `added_tokens_decoder` is an array of 0, expected an object"),
        (
            decoder(json!({"x": {"content": "<a>"}})),
            "`added_tokens_decoder.x` is an object, expected a token's id as its key",
        ),
        (
            decoder(json!({"-1": {"content": "<a>"}})),
            "`added_tokens_decoder.-1` is an object, expected a token's id as its key",
        ),
        (decoder(json!({"268": "<a>"})), "`added_tokens_decoder.268` is \"<a>\", expected an object"),
        (decoder(json!({"268": {}})), "`added_tokens_decoder.268.content` is missing, expected a string"),
        (
            decoder(json!({"268": {"content": ""}})),
            "`added_tokens_decoder.268` is an object, expected a token of at least one byte",
        ),
        (
            decoder(json!({"268": {"content": "<a>", "lstrip": "no"}})),
            "`added_tokens_decoder.268.lstrip` is \"no\", expected true or false",
        ),
        (config(json!({"mask_token": 7})), "tokenizer_config.json: `mask_token` is 7, expected a string or an object"),
        (config(json!({"extra_special_tokens": 7})), "`extra_special_tokens` is 7, expected a list of tokens"),
        (config(json!({"additional_special_tokens": ["<a>", 7]})), "`additional_special_tokens[1]`"),
        (
            ("special_tokens_map.json", json!({"pad_token": ["<a>"]})),
            "special_tokens_map.json: `pad_token` is an array",
        ),
        (("special_tokens_map.json", json!([])), "special_tokens_map.json: an array of 0, expected a JSON object"),
        (("added_tokens.json", json!({"<a>": "268"})), "added_tokens.json: `<a>` is \"268\", expected a whole number"),
        (("added_tokens.json", json!({"<a>": 1u64 << 32})), "`<a>` is 4294967296, expected a token's id"),
    ];
    for (file, fragment) in table {
        let message = folder(std::slice::from_ref(&file)).refusal();
        assert!(message.contains(fragment), "{message}");
    }
}

/// The search for long tokens takes quadratic time to prepare, minutes for a hostile one.
#[test]
fn tokens_longer_than_any_honest_one_are_refused_in_every_place() {
    for (length, opens) in [(512, true), (513, false)] {
        let long = "x".repeat(length);
        let listed = json!({"id": 267, "content": long, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false});
        let mut tokenizer = sentencepiece();
        tokenizer["added_tokens"].as_array_mut().unwrap().push(listed);
        for (file, content) in [
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", json!({"mask_token": long})),
            ("tokenizer_config.json", json!({"additional_special_tokens": [{"content": long}]})),
            ("tokenizer_config.json", json!({"added_tokens_decoder": {"268": {"content": long}}})),
            ("special_tokens_map.json", json!({"eos_token": long})),
            ("added_tokens.json", json!({long: 268})),
        ] {
            let outcome = folder(&[(file, content)]).open().err().map(|error| error.to_string());
            match outcome {
                None => assert!(opens, "{file}"),
                Some(message) => {
                    assert!(!opens && message.contains(file) && message.contains("at most 512"), "{message}");
                }
            }
        }
    }
}

/// `tokenizers` counts an added token's id up from the number of tokens, which here is another token's id.
#[test]
fn an_added_token_never_takes_the_id_of_another_one() {
    let mut json = sentencepiece();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("H");
    assert_eq!(vocab.len(), 266);
    json["model"]["merges"] = json!(["▁ ▁"]);
    json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 300, "content": "<a>", "special": true,
        "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}));
    let message = Folder::of("llama").write("tokenizer.json", json.to_string()).refusal();
    assert!(message.contains("added token \"<a>\" would get id 266 of the vocabulary's \"é\""), "{message}");
}
