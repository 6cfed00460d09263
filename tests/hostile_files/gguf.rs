//! GGUF files that are damaged, or that lie: about numbers, sizes, kinds, offsets, names.

use crate::dice::Dice;
use crate::gguf_file::{File, Value};
use crate::victim::Victim;
use crate::{ALONE, mutations};

const NUMBERS: [u64; 12] =
    [0, 1, 2, 31, 255, 1 << 16, 1 << 20, 1 << 32, 1 << 61, u32::MAX as u64, u64::MAX - 31, u64::MAX];

#[test]
fn gguf_files() {
    let _alone = ALONE.lock();
    let pieces = pieces();
    let files = [File::llama(), File::model("qwen2"), pieces];
    let count = mutations(5000).div_ceil(files.len());
    for (number, mut file) in files.into_iter().enumerate() {
        if number == 1 {
            add_biases(&mut file);
        }
        let victim = Victim::of_file("model.gguf", &file.bytes().0);
        let mut dice = Dice(0x9E6C_63D0_876A_3F6B + number as u64);
        let variants = (0..count).map(|n| match n % 3 {
            0 => damage(&mut dice, &file),
            _ => lie(&mut dice, &file).bytes().0,
        });
        assert_eq!(victim.attack(variants, 40), count);
    }
}

/// A model with SentencePiece's tokens.
fn pieces() -> File {
    let mut file = File::llama();
    let vocabulary = file.tensor("token_embd.weight").shape[0] as usize;
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "d", "e", "f", "▁d", "▁de", "▁def", "de"].map(String::from));
    let kind = |id: usize| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    };
    assert_eq!(tokens.len(), vocabulary);
    let kinds: Vec<i32> = (0..tokens.len()).map(kind).collect();
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    file.set("tokenizer.ggml.model", Value::text("llama"))
        .set("tokenizer.ggml.tokens", Value::texts(&tokens))
        .set("tokenizer.ggml.token_type", Value::i32s(&kinds))
        .set("tokenizer.ggml.scores", Value::f32s(&scores))
        .remove("tokenizer.ggml.merges")
        .remove("tokenizer.ggml.pre");
    file
}

fn add_biases(file: &mut File) {
    for layer in 0..2 {
        for (name, len) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16)] {
            let name = format!("blk.{layer}.{name}.bias");
            file.tensors.push(crate::gguf_file::Tensor::f32(&name, &vec![0.5; len]));
        }
    }
}

/// Damage to what comes before the tensors' data, for the most part.
fn damage(dice: &mut Dice, file: &File) -> Vec<u8> {
    let (bytes, head) = file.bytes();
    if dice.roll(8) == 0 {
        return dice.damage(&bytes);
    }
    let mut damaged = dice.damage(&bytes[..head]);
    damaged.extend(&bytes[head..]);
    damaged
}

/// A well-formed file, but for one or two things that it says.
fn lie(dice: &mut Dice, file: &File) -> File {
    let mut file = file.clone();
    for _ in 0..1 + dice.roll(2) {
        let number = NUMBERS[dice.roll(NUMBERS.len())];
        match dice.roll(4) {
            0 => about_numbers(dice, &mut file, number),
            1 | 2 => about_a_value(dice, &mut file, number),
            _ => about_a_tensor(dice, &mut file, number),
        }
    }
    file
}

fn about_numbers(dice: &mut Dice, file: &mut File, number: u64) {
    let there = [file.tensors.len() as u64, file.values.len() as u64];
    match dice.roll(3) {
        0 => file.version = number as u32,
        1 => file.counts = Some([number, there[1]]),
        _ => file.counts = Some([there[0], number]),
    }
}

fn about_a_value(dice: &mut Dice, file: &mut File, number: u64) {
    let at = dice.roll(file.values.len());
    let other = file.values[dice.roll(file.values.len())].clone();
    let (key, value) = &mut file.values[at];
    match dice.roll(10) {
        0 => drop(file.values.remove(at)),
        1 => *key = other.0,
        2 => *value = other.1,
        3 => value.kind = number as u32 % 20,
        4 => value.list = value.list.map(|(kind, _)| (kind, number)),
        5 => value.list = value.list.map(|(_, count)| (number as u32 % 16, count)),
        6 => *value = Value { kind: 10, list: None, bytes: number.to_le_bytes().into() },
        7 => *value = Value::f32([f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-30, 1e30][dice.roll(6)]),
        8 => *value = Value::text(["", "llama", "yarn", "gpt-4o", "{{ x", "\u{1F600}\0"][dice.roll(6)]),
        _ => {
            let length = value.bytes.len();
            if length > 0 {
                value.bytes[dice.roll(length)] = dice.roll(256) as u8;
            }
        }
    }
}

fn about_a_tensor(dice: &mut Dice, file: &mut File, number: u64) {
    let at = dice.roll(file.tensors.len());
    let other = file.tensors[dice.roll(file.tensors.len())].clone();
    let kinds = [0, 1, 2, 6, 8, 10, 12, 14, 15, 20, 24, 30, 39, 41];
    let tensor = &mut file.tensors[at];
    match dice.roll(9) {
        0 => drop(file.tensors.remove(at)),
        1 => tensor.name = other.name,
        2 => tensor.kind = kinds[dice.roll(kinds.len())],
        3 => tensor.kind = number as u32,
        4 => tensor.offset = Some(number),
        5 => tensor.offset = Some(32 * dice.roll(64) as u64),
        6 => tensor.shape = (0..dice.roll(6)).map(|_| NUMBERS[dice.roll(NUMBERS.len())]).collect(),
        7 => {
            let at = dice.roll(tensor.shape.len());
            if let Some(size) = tensor.shape.get_mut(at) {
                *size = number;
            }
        }
        _ => tensor.name = ["rope_freqs.weight", "output.weight", "blk.9.attn_q.weight", ""][dice.roll(4)].into(),
    }
}
