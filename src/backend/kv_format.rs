//! How a device keeps keys and values.

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    /// As they are computed: in f32 on the processor, in the weights' 16 bits on a GPU.
    #[default]
    Full,
    /// In 8 bits, with a scale for each 32 dimensions of a head: less than a third of the memory of f32, 0.53 of 16 bits'.
    Eight,
}

impl KvFormat {
    /// Dimensions of a head that share a scale in 8 bits.
    pub const GROUP: usize = 32;
}

impl std::fmt::Display for KvFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            KvFormat::Full => "f32",
            KvFormat::Eight => "q8",
        })
    }
}
