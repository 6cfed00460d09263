//! SmolLM2-135M-Instruct from its GGUF file, where `models/smollm2-135m-instruct` holds it: it is too large to come along.

use crate::common::requests::{run, tokens};
use crate::common::simulated_times;
use eesd::backend::cpu::{CpuBackend, CpuOptions, KvFormat};
use eesd::engine::{Engine, Request, Stats};
use eesd::load::{Chat, Checkpoint, Message};
use eesd::model::ExitWeights;
use std::path::Path;

fn model() -> Option<Checkpoint> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m-instruct");
    folder.join("SmolLM2-135M-Instruct.Q4_1.gguf").is_file().then(|| Checkpoint::open(&folder).unwrap())
}

/// The ids are those of Hugging Face's `tokenizers` for the model's own tokenizer.json.
#[test]
fn its_tokens_are_those_of_its_tokenizer() {
    let Some(model) = model() else { return };
    let tokenizer = model.tokenizer().unwrap();
    for (text, ids) in [
        ("The capital of France is", &[504, 3575, 282, 4649, 314][..]),
        (
            "def f(x):\n    return x + 1234\n",
            &[1604, 275, 24, 104, 727, 472, 1003, 1792, 1232, 216, 33, 34, 35, 36, 198],
        ),
        (
            "你好，世界！ 2026年",
            &[18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230, 8083, 219, 216, 34, 32, 34, 38, 32090, 129],
        ),
        ("🙂👍🏽 café e\u{301}", &[10813, 38887, 10813, 235, 231, 10813, 233, 138, 37366, 297, 151, 219]),
        ("<|im_start|>user\nHi<|im_end|>\n", &[1, 4093, 198, 26843, 2, 198]),
    ] {
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text}");
        assert!(text.contains("<|") || tokenizer.decode(ids) == text, "{text}");
    }
}

#[test]
fn its_chat_template_and_ends_are_read() {
    let Some(model) = model() else { return };
    assert_eq!(model.generation().end_tokens, [2]);
    let prompt = model.chat_template().unwrap().unwrap().render(&Chat::new([Message::new("user", "Hi")])).unwrap();
    assert!(prompt.starts_with("<|im_start|>system\nYou are a helpful AI assistant named Smol"), "{prompt}");
    assert!(prompt.ends_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{prompt}");
    let geometry = model.geometry();
    assert_eq!((geometry.layers, geometry.hidden_size, geometry.vocab_size), (30, 576, 49152));
    assert!(geometry.tied_head && model.parameters() == 134_515_008);
}

/// What it writes has the same bits on every processor, so it can be said word for word. An untrained exit block drafts
/// badly and so tries the refusals; the trained one has to be right now and then.
#[test]
fn it_answers_alike_with_and_without_drafts() {
    let Some(model) = model() else { return };
    let (tokenizer, template) = (model.tokenizer().unwrap(), model.chat_template().unwrap().unwrap());
    let prompt = |text: &str| {
        let prompt = template.render(&Chat::new([Message::new("user", text)])).unwrap();
        tokenizer.encode(&prompt, false).unwrap()
    };
    let questions = ["Name three fruits.", "Write a Python function that adds two numbers.", "Say hello."];
    let requests: Vec<Request> = questions.iter().map(|text| Request::new(prompt(text), 48)).collect();
    let weights = model.weights();
    let block = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/smollm2-135m-instruct/exit-29.safetensors");
    let block = model.open_exit(&block).unwrap();
    let (untrained, trained) = (ExitWeights::from_model(&weights, 10, 29), block.weights());
    let ways = [(KvFormat::Full, &untrained), (KvFormat::Eight, &untrained), (KvFormat::Full, &trained)];
    for (kv, exit) in ways {
        let options = CpuOptions { slots: 3, context: 256, max_draft: 8, kv, ..CpuOptions::default() };
        let backend = CpuBackend::new(model.geometry(), &weights, Some(exit), &options).unwrap();
        let ends = model.generation().end_tokens.clone();
        let mut engine = Engine::new(backend, simulated_times::controller("off"), None, ends);
        let plain = run(&mut engine, &requests, 1);
        assert_eq!(tokenizer.decode(&plain[0].tokens).trim_end(), "1. Bananas\n2. Oranges\n3. Grapes", "{kv}");
        for controller in ["fixed:4", "goodput-ts"] {
            engine.set_controller(simulated_times::controller(controller));
            assert_eq!(tokens(&run(&mut engine, &requests, 3)), tokens(&plain), "{kv}, {controller}");
        }
        if exit.after == trained.after {
            engine.set_controller(simulated_times::controller("fixed:1"));
            let answers = run(&mut engine, &requests, 1);
            assert_eq!(tokens(&answers), tokens(&plain));
            let sum = |of: fn(&Stats) -> usize| answers.iter().map(|answer| of(&answer.stats)).sum::<usize>();
            let (drafted, accepted) = (sum(|stats| stats.drafted_at[0]), sum(|stats| stats.accepted_at[0]));
            assert!(4 * accepted > drafted, "{accepted} of {drafted} first drafts");
        }
    }
}
