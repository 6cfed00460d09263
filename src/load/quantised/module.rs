//! A matrix's module in the files: the tensors that may be parts of it.

use super::super::LoadError;
use super::super::error::short;
use super::super::tensors::Tensors;
use super::pattern::Pattern;
use half::{bf16, f16};

/// A matrix of the model, and the tensors to find its parts among.
pub(super) struct Module<'a> {
    pub(super) tensors: &'a Tensors,
    /// The matrix's name without `.weight`.
    pub(super) name: &'a str,
    /// Outputs.
    pub(super) rows: usize,
    /// Inputs.
    pub(super) cols: usize,
}

/// A number format of parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    F32,
    F16,
    Bf16,
    E4m3,
    I8,
    I32,
    I64,
}

/// What scales are stored in.
pub(super) const FLOATS: &[Number] = &[Number::F32, Number::F16, Number::Bf16];

/// A part of a matrix, of checked shape and number format.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) number: Number,
    pub(super) bytes: &'a [u8],
}

impl Number {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::E4m3 => "F8_E4M3",
            Self::I8 => "I8",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }
}

impl<'a> Module<'a> {
    /// The class of the module, as PyTorch calls it.
    pub(super) fn class(&self) -> &'static str {
        if self.name.ends_with("embed_tokens") { "Embedding" } else { "Linear" }
    }

    /// The name of a tensor of this module.
    pub(super) fn part_name(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    /// Whether it has a tensor of this name.
    pub(super) fn has(&self, part: &str) -> bool {
        self.tensors.stored(&self.part_name(part)).is_some()
    }

    /// Whether one of these names is its own, or that of a module around it or of the end of its path.
    pub(super) fn is_within(&self, names: &[Pattern]) -> bool {
        let path = format!(".{}.", self.name);
        names.iter().any(|name| !name.text.is_empty() && path.contains(&format!(".{}.", name.text)))
    }

    /// Whether it has tensors beside those of a matrix of plain numbers.
    pub(super) fn has_parts(&self) -> bool {
        let within = self.part_name("");
        let parts = self.tensors.names().filter_map(|name| name.strip_prefix(&within));
        parts.into_iter().any(|part| !matches!(part, "weight" | "bias"))
    }

    /// Whether it has a tensor of this name in this number format.
    pub(super) fn has_in(&self, part: &str, number: Number) -> bool {
        self.tensors.stored(&self.part_name(part)).is_some_and(|stored| stored.dtype == number.name())
    }

    /// A part that must be there, in one of these shapes and number formats.
    pub(super) fn part(&self, part: &str, shapes: &[&[usize]], numbers: &[Number]) -> Result<Part<'a>, LoadError> {
        let missing = || self.wrong(part, "missing".into(), expected(shapes, numbers));
        self.optional(part, shapes, numbers)?.ok_or_else(missing)
    }

    /// A part that may be missing.
    pub(super) fn optional(
        &self,
        part: &str,
        shapes: &[&[usize]],
        numbers: &[Number],
    ) -> Result<Option<Part<'a>>, LoadError> {
        let Some(stored) = self.tensors.stored(&self.part_name(part)) else { return Ok(None) };
        let number = numbers.iter().find(|number| number.name() == stored.dtype);
        match number {
            Some(&number) if shapes.contains(&stored.shape) => Ok(Some(Part { number, bytes: stored.bytes })),
            _ => Err(self.wrong(part, format!("{:?} in {}", stored.shape, stored.dtype), expected(shapes, numbers))),
        }
    }

    /// Whether a part is there and has other bytes than zeros.
    pub(super) fn is_not_zero(&self, part: &str) -> bool {
        self.tensors.stored(&self.part_name(part)).is_some_and(|stored| stored.bytes.iter().any(|&byte| byte != 0))
    }

    /// The error of a part.
    pub(super) fn wrong(&self, part: &str, found: String, expected: String) -> LoadError {
        let tensor = self.part_name(part);
        let path = self.tensors.path_of(&tensor).to_path_buf();
        LoadError::Tensor { path, tensor: short(tensor), found: short(found), expected }
    }

    /// Refuses inputs or outputs that are no whole words of codes.
    pub(super) fn check_words(&self, part: &str, size: usize, what: &str, codes: usize) -> Result<(), LoadError> {
        if size.is_multiple_of(codes) {
            return Ok(());
        }
        let found = format!("of a matrix of {size} {what}");
        Err(self.wrong(part, found, format!("a multiple of {codes} {what} in `quantization_config`'s format")))
    }
}

fn expected(shapes: &[&[usize]], numbers: &[Number]) -> String {
    let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
    let numbers: Vec<&str> = numbers.iter().map(|number| number.name()).collect();
    format!("{} in {}, as `quantization_config` of config.json says", shapes.join(" or "), numbers.join(" or "))
}

impl Part<'_> {
    /// A number of a part of floating-point numbers.
    pub(super) fn float(&self, at: usize) -> f32 {
        match self.number {
            Number::F16 => f16::from_le_bytes(self.element(at)).to_f32(),
            Number::Bf16 => bf16::from_le_bytes(self.element(at)).to_f32(),
            _ => f32::from_le_bytes(self.element(at)),
        }
    }

    /// A number of a part of whole numbers.
    pub(super) fn whole(&self, at: usize) -> i64 {
        match self.number {
            Number::I8 => i8::from_le_bytes(self.element(at)).into(),
            Number::I64 => i64::from_le_bytes(self.element(at)),
            _ => i32::from_le_bytes(self.element(at)).into(),
        }
    }

    fn element<const SIZE: usize>(&self, at: usize) -> [u8; SIZE] {
        self.bytes.as_chunks::<SIZE>().0[at]
    }
}
