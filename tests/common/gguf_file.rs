//! Small GGUF files, made value by value, so that each can be another than it should be.

pub const F32: u32 = 0;
pub const Q8_0: u32 = 8;

/// A value: its kind and its bytes; of a list also its kind of values and their number.
#[derive(Clone)]
pub struct Value {
    pub kind: u32,
    pub list: Option<(u32, u64)>,
    pub bytes: Vec<u8>,
}

impl Value {
    pub fn u32(number: u32) -> Self {
        Self { kind: 4, list: None, bytes: number.to_le_bytes().into() }
    }

    pub fn f32(number: f32) -> Self {
        Self { kind: 6, list: None, bytes: number.to_le_bytes().into() }
    }

    pub fn truth(truth: bool) -> Self {
        Self { kind: 7, list: None, bytes: vec![truth.into()] }
    }

    pub fn text(text: &str) -> Self {
        Self { kind: 8, list: None, bytes: spelled(text) }
    }

    pub fn texts(texts: &[impl AsRef<str>]) -> Self {
        let bytes = texts.iter().flat_map(|text| spelled(text.as_ref())).collect();
        Self { kind: 9, list: Some((8, texts.len() as u64)), bytes }
    }

    pub fn i32s(numbers: &[i32]) -> Self {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self { kind: 9, list: Some((5, numbers.len() as u64)), bytes }
    }

    pub fn f32s(numbers: &[f32]) -> Self {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self { kind: 9, list: Some((6, numbers.len() as u64)), bytes }
    }
}

/// A tensor: its sizes, outermost first, and where its bytes lie, unless they lie behind those before.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    pub offset: Option<u64>,
}

impl Tensor {
    pub fn f32(name: &str, numbers: &[f32]) -> Self {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self { name: name.into(), shape: vec![numbers.len() as u64], kind: F32, bytes, offset: None }
    }

    /// Codes that look random, with one scale.
    fn q8_0(name: &str, rows: u64, cols: u64, dice: &mut u64) -> Self {
        let mut bytes = Vec::new();
        for _ in 0..rows * cols / 32 {
            bytes.extend(half::f16::from_f32(0.003).to_le_bytes());
            bytes.extend((0..32).map(|_| {
                *dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (*dice >> 40) as u8
            }));
        }
        Self { name: name.into(), shape: vec![rows, cols], kind: Q8_0, bytes, offset: None }
    }
}

/// A file in the making.
#[derive(Clone)]
pub struct File {
    pub version: u32,
    /// Tensors and values there are said to be, where that is another number.
    pub counts: Option<[u64; 2]>,
    pub values: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

pub const HIDDEN: usize = 32;
pub const HEAD_DIM: usize = 16;
pub const HEADS: usize = 2;

impl File {
    /// A model of two layers, with a tokenizer that has a token for each byte and some merges.
    pub fn llama() -> Self {
        Self::model("llama")
    }

    pub fn model(architecture: &str) -> Self {
        let mut file = Self { version: 3, counts: None, values: Vec::new(), tensors: Vec::new() };
        file.set("general.architecture", Value::text(architecture));
        let sizes = [
            ("context_length", 128),
            ("embedding_length", HIDDEN as u32),
            ("block_count", 2),
            ("feed_forward_length", 64),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", 1),
            ("attention.key_length", HEAD_DIM as u32),
            ("attention.value_length", HEAD_DIM as u32),
            ("rope.dimension_count", HEAD_DIM as u32),
        ];
        for (key, number) in sizes {
            file.set(&format!("{architecture}.{key}"), Value::u32(number));
        }
        file.set(&format!("{architecture}.rope.freq_base"), Value::f32(10_000.0));
        file.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::f32(1e-5));

        let specials = ["<|bos|>", "<|eos|>"];
        let merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "123 4", "# #", "d e", "de f"];
        let mut tokens: Vec<String> = specials.iter().map(|token| (*token).to_owned()).collect();
        tokens.extend((0..=255).map(|byte| letter(byte).to_string()));
        tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
        let mut kinds = vec![1; tokens.len()];
        kinds[..2].fill(3);
        file.set("tokenizer.ggml.model", Value::text("gpt2"));
        file.set("tokenizer.ggml.pre", Value::text("gpt-2"));
        file.set("tokenizer.ggml.tokens", Value::texts(&tokens));
        file.set("tokenizer.ggml.token_type", Value::i32s(&kinds));
        file.set("tokenizer.ggml.merges", Value::texts(&merges));
        file.set("tokenizer.ggml.bos_token_id", Value::u32(0));
        file.set("tokenizer.ggml.eos_token_id", Value::u32(1));
        file.set("tokenizer.ggml.add_bos_token", Value::truth(true));
        let template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}";
        file.set("tokenizer.chat_template", Value::text(template));

        let (hidden, q, kv, mlp) = (HIDDEN as u64, (HEADS * HEAD_DIM) as u64, HEAD_DIM as u64, 64);
        let mut dice = 1;
        file.tensors.push(Tensor::q8_0("token_embd.weight", tokens.len() as u64, hidden, &mut dice));
        file.tensors.push(Tensor::f32("output_norm.weight", &[1.0; HIDDEN]));
        for layer in 0..2 {
            for (name, rows, cols) in [
                ("attn_q", q, hidden),
                ("attn_k", kv, hidden),
                ("attn_v", kv, hidden),
                ("attn_output", hidden, q),
                ("ffn_gate", mlp, hidden),
                ("ffn_up", mlp, hidden),
                ("ffn_down", hidden, mlp),
            ] {
                file.tensors.push(Tensor::q8_0(&format!("blk.{layer}.{name}.weight"), rows, cols, &mut dice));
            }
            for name in ["attn_norm", "ffn_norm"] {
                file.tensors.push(Tensor::f32(&format!("blk.{layer}.{name}.weight"), &[1.0; HIDDEN]));
            }
        }
        file
    }

    /// Gives a key a value, in the place of the one that it has.
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        match self.values.iter_mut().find(|(other, _)| other == key) {
            Some((_, old)) => *old = value,
            None => self.values.push((key.to_owned(), value)),
        }
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.values.retain(|(other, _)| other != key);
        self
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).expect("there is such a tensor")
    }

    /// The file; and where its tensors' data begin.
    pub fn bytes(&self) -> (Vec<u8>, usize) {
        const ALIGNMENT: usize = 32;
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let counts = self.counts.unwrap_or([self.tensors.len() as u64, self.values.len() as u64]);
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        for (key, Value { kind, list, bytes: value }) in &self.values {
            bytes.extend(spelled(key));
            bytes.extend(kind.to_le_bytes());
            if let Some((kind, count)) = list {
                bytes.extend(kind.to_le_bytes());
                bytes.extend(count.to_le_bytes());
            }
            bytes.extend(value);
        }
        let mut end = 0;
        let mut data = Vec::new();
        for Tensor { name, shape, kind, bytes: numbers, offset } in &self.tensors {
            bytes.extend(spelled(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            bytes.extend(shape.iter().rev().flat_map(|size| size.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offset.unwrap_or(end as u64).to_le_bytes());
            data.extend(numbers);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
            end = data.len();
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        let head = bytes.len();
        bytes.extend(data);
        (bytes, head)
    }
}

/// The letter that byte-level tokenizers have for a byte: itself where it can be seen, else one from U+0100 on.
pub fn letter(byte: u8) -> char {
    let seen = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match seen(&byte) {
        true => byte.into(),
        false => char::from_u32(256 + (0..byte).filter(|byte| !seen(byte)).count() as u32).expect("a letter"),
    }
}

fn spelled(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
