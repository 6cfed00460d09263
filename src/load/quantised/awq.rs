//! The format of AWQ, in AutoAWQ's version `gemm`.

use super::super::LoadError;
use super::super::json::Object;
use super::coded::{Axis, Coded, Codes, Fields, Grouping, Table, Zeros};
use super::module::{FLOATS, Module, Number};
use super::pattern::Pattern;
use super::{Found, Method, unsupported};

/// Which output of eight has which four bits of a word.
const ORDER: &[usize] = &[0, 2, 4, 6, 1, 3, 5, 7];
const BITS: usize = 4;
/// Codes of a word.
const CODES: usize = 32 / BITS;

/// Groups, and which modules have none.
pub(super) struct Awq {
    /// Inputs of a group; `None`: all of them are one.
    group: Option<usize>,
    skipped: Vec<Pattern>,
}

impl Awq {
    /// Reads `quantization_config`.
    pub(super) fn parse(config: &Object<'_>) -> Result<Self, LoadError> {
        let key = |name, older| if config.value(name).is_none() { older } else { name };
        let bits = key("bits", "w_bit");
        match config.unsigned(bits)? {
            Some(BITS) => {}
            Some(other) => return Err(unsupported(config, bits, other, "4 bits")),
            None => return Err(config.wrong("bits", "4")),
        }
        let key_of_version = key("version", "format");
        let version = config.text(key_of_version)?.unwrap_or("gemm");
        if !version.eq_ignore_ascii_case("gemm") {
            return Err(unsupported(config, key_of_version, version, "gemm"));
        }
        let size = key("group_size", "q_group_size");
        let group = match config.value(size) {
            Some(number) if number.as_i64() == Some(-1) => None,
            _ => match config.unsigned(size) {
                Ok(Some(number)) if number > 0 => Some(number),
                _ => return Err(config.wrong(size, "a whole number above 0, or -1")),
            },
        };
        Ok(Self { group, skipped: Pattern::list(config, "modules_to_not_convert")? })
    }
}

impl Method for Awq {
    /// Its configuration need not say which modules were left: where there is a plain matrix, it counts.
    fn find<'a>(&self, module: &Module<'a>) -> Result<Option<Found<'a>>, LoadError> {
        let plain = module.has("weight") && !module.has("qweight");
        if module.class() != "Linear" || plain || module.is_within(&self.skipped) {
            return Ok(None);
        }
        let (rows, cols) = (module.rows, module.cols);
        let size = self.group.unwrap_or(cols);
        module.check_words("qweight", rows, "outputs", CODES)?;
        let (groups, words) = (cols.div_ceil(size), rows / CODES);
        let qweight = module.part("qweight", &[&[cols, words]], &[Number::I32])?;
        let qzeros = module.part("qzeros", &[&[groups, words]], &[Number::I32])?;
        let scales = module.part("scales", &[&[groups, rows]], FLOATS)?;
        let codes = Fields {
            words: qweight.bytes,
            bits: BITS,
            along: Axis::Rows,
            next: 1,
            other: words,
            order: ORDER,
            plus: 0,
        };
        let coded = Coded {
            codes: Codes::Packed(codes),
            scales: Table { numbers: scales, high: 1, row: 1, group: rows },
            zeros: Zeros::Packed(Fields { words: qzeros.bytes, ..codes }),
            groups: Grouping::Runs(size),
        };
        Ok(Some(Found { coded, parts: vec!["qweight", "qzeros", "scales"] }))
    }
}
