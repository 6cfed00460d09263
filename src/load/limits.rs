//! How large anything may be that a file says: one place for all loaders, listed for users in docs/limits.md.
//!
//! Each limit lies far above what published models have, and low enough that a file which keeps to all of them cannot make
//! the process abort, or keep it busy for longer than some seconds. What only a sum or a product makes large (a cache, a
//! table) is allocated so that it fails with an error.

/// Constants, and a list of them that the documentation is compared with.
macro_rules! limits {
    ($($(#[doc = $why:literal])* $name:ident: $kind:ty = $most:expr;)*) => {
        $($(#[doc = $why])* pub(super) const $name: $kind = $most;)*

        #[cfg(test)]
        const ALL: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),*];
    };
}

limits! {
    /// Positions: published models have up to ten million; counted in 32 bits by the kernels.
    POSITIONS: usize = 1 << 28;
    /// Features of one head: published models have up to 256, and tables of cosines and sines grow with it.
    HEAD_DIM: usize = 4096;
    /// Heads: published models have up to 128.
    HEADS: usize = 4096;
    /// Features of the residual stream, of the MLP, and of all query heads together: published models have up to 54,000.
    FEATURES: usize = 1 << 20;
    /// Layers: published models have up to 126.
    LAYERS: usize = 4096;
    /// Tokens of the vocabulary: published models have up to 262,000.
    VOCABULARY: usize = 1 << 22;

    /// Bytes of a JSON file beside tokenizer.json: the largest published index has 9 MB, and a value of two bytes takes 72
    /// in memory.
    JSON_BYTES: u64 = 16 << 20;
    /// Bytes of tokenizer.json: the largest published ones have 35 MB.
    TOKENIZER_BYTES: u64 = 64 << 20;
    /// Bytes of a part of tokenizer.json other than its vocabulary and its added tokens: the largest published ones hold a
    /// table of 400 kB.
    TOKENIZER_PART_BYTES: usize = 4 << 20;
    /// Bytes of a safetensors header, as in the format's own library.
    HEADER_BYTES: u64 = 100_000_000;
    /// Tensors of one file: published models have some thousands.
    TENSORS: usize = 1 << 20;
    /// Values of a GGUF file's metadata: published ones have some tens.
    GGUF_VALUES: usize = 1 << 16;
    /// Files that one model is spread over: published models have up to 200.
    SHARDS: usize = 4096;
    /// Names or regular expressions in a list of modules of `quantization_config`: published ones have up to some hundred,
    /// and each is compared with every matrix.
    MODULE_PATTERNS: usize = 1024;
    /// Bytes of such a regular expression: published ones have up to some hundred.
    MODULE_PATTERN_BYTES: usize = 1024;
    /// Bytes of a line of a file of requests or prompts: four times the longest prompt.
    LINE_BYTES: usize = 64 << 20;

    /// Tokens that a tokenizer puts beside a text: published ones put one or two.
    BEGIN_TOKENS: usize = 4096;
    /// Bytes of a token of the vocabulary, as it is written: published ones have up to some hundred, spaces mostly. A
    /// Unigram model is dropped by recursion over them.
    TOKEN_BYTES: usize = 4 << 10;
    /// Bytes of a piece of SentencePiece's in a GGUF file: published ones have up to some fifty. Every way to cut one in two
    /// is looked at.
    PIECE_BYTES: usize = 256;
    /// Bytes of all tokens of a Unigram model: published ones have two million. Each may take two hundred in memory.
    UNIGRAM_BYTES: usize = 8 << 20;
    /// Bytes of an added token: the search for very long ones takes quadratic time to prepare.
    ADDED_TOKEN_BYTES: usize = 512;
    /// Bytes of all added tokens of a file together: the automaton that finds them takes some hundred times as many.
    ADDED_TOKENS_BYTES: usize = 4 << 20;
    /// Bytes of the prefix or suffix by which a tokenizer marks parts of words: copied for each of them.
    AFFIX_BYTES: usize = 64;
    /// How many times as long the steps of a normalizer, or of a decoder, may together make a text.
    GROWTH: usize = 1024;
    /// Characters of a word that a WordPiece model looks at, which takes their square.
    WORD_CHARACTERS: usize = 1000;
    /// Values in tokenizer.json, whatever their size: published ones have two million.
    TOKENIZER_VALUES: usize = 8_000_000;
    /// Bytes of a text once it is normalized: twice the longest prompt. Each takes some forty in memory.
    NORMALIZED_BYTES: usize = 32 << 20;

    /// Bytes of a chat template, ten times as many as published ones have.
    TEMPLATE_BYTES: usize = 256 << 10;
    /// Operators in one tag of a chat template: published ones have up to 29, and compiling takes their square.
    TEMPLATE_OPERATORS: usize = 200;
    /// Brackets inside each other in one tag of a chat template, as in the template engine's own parser.
    TEMPLATE_BRACKETS: usize = 150;
    /// What rendering may spend on any conversation: an instruction costs 1, and so do 64 bytes of text that it makes and 16
    /// parts of a value that it keeps. Published templates take some thousands for a short one. A value may have a
    /// sixteenth as many parts as there is fuel.
    TEMPLATE_FUEL: u64 = 100_000;
    /// Fuel for each byte of the conversation: some templates look at every character of it.
    TEMPLATE_FUEL_PER_BYTE: u64 = 16;
    /// Fuel for each pair of messages: some templates look from each message at all others.
    TEMPLATE_FUEL_PER_PAIR: u64 = 8;
    /// Fuel however long the conversation is.
    TEMPLATE_FUEL_AT_MOST: u64 = 3_000_000;
    /// Parts of a value that is put into a namespace once some value holds a namespace, as it would stand in all of these.
    TEMPLATE_NAMESPACE_PARTS: u64 = 16;
    /// Lists and mappings inside each other, in what a chat template makes or gets.
    TEMPLATE_VALUE_DEPTH: usize = 200;
    /// Bytes of the text that a chat template makes, far more than any model's context.
    PROMPT_BYTES: usize = 16 << 20;
    /// Bytes of address space for the stack on which templates are compiled and rendered: nothing that a template of
    /// [`TEMPLATE_BYTES`] says needs more. Only what is used of it is taken from the system.
    TEMPLATE_STACK: usize = 512 << 20;
}

#[cfg(test)]
mod tests {
    use super::ALL;

    /// Rows `| what | most | where | why | NAME |` of docs/limits.md.
    #[test]
    fn the_documentation_lists_every_limit_with_its_number() {
        let table = include_str!("../../docs/limits.md");
        let rows = table.lines().filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, _, most, _, _, name, _] = cells[..] else { return None };
            let most = most.replace(',', "");
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            Some((name.to_owned(), most.split(' ').next()?.parse::<u64>().ok()?))
        });
        let mut documented: Vec<(String, u64)> = rows.collect();
        let mut limits: Vec<(String, u64)> = ALL.iter().map(|(name, most)| (name.to_string(), *most)).collect();
        documented.sort();
        limits.sort();
        assert_eq!(documented, limits);
    }
}
