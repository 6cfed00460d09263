//! The format of GPTQ: AutoGPTQ's, which GPTQModel calls `gptq`, and GPTQModel's own `gptq_v2`. They differ in the zero
//! points, of which the first one stores one less.

use super::super::LoadError;
use super::super::json::Object;
use super::coded::{Axis, Coded, Codes, Fields, Grouping, IN_ORDER, Table, Zeros, index};
use super::module::{FLOATS, Module, Number};
use super::pattern::{Pattern, check_count};
use super::{Found, Method, unsupported};

/// Bits, groups, and for which modules they are others.
pub(super) struct Gptq {
    usual: Params,
    /// Whether zero points are stored less one.
    less_one: bool,
    /// Modules left as they were.
    skipped: Vec<Pattern>,
    dynamic: Vec<(Pattern, Params)>,
}

#[derive(Debug, Clone, Copy)]
struct Params {
    bits: usize,
    /// Inputs of a group; `None`: all of them are one.
    group: Option<usize>,
    reordered: bool,
}

impl Gptq {
    /// Reads `quantization_config`.
    pub(super) fn parse(config: &Object<'_>) -> Result<Self, LoadError> {
        let unset = Params { bits: 0, group: None, reordered: false };
        let usual = Params::parse(config, unset)?;
        if usual.bits == 0 {
            return Err(config.wrong("bits", "4 or 8"));
        }
        let key = if config.value("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
        let less_one = match &config.text(key)?.unwrap_or("gptq").to_lowercase()[..] {
            "gptq" => true,
            "gptq_v2" => false,
            other => return Err(unsupported(config, key, other, "gptq, gptq_v2")),
        };
        if config.flag("is_marlin_format")? == Some(true) {
            return Err(unsupported(config, "is_marlin_format", "true", "gptq, gptq_v2"));
        }
        match config.text("pack_dtype")? {
            None | Some("int32") => {}
            Some(other) => return Err(unsupported(config, "pack_dtype", other, "int32")),
        }
        if config.value("adapter").is_some() {
            return Err(unsupported(config, "adapter", "(weights beside the quantised ones)", "no adapter"));
        }
        let (mut skipped, mut dynamic) = (Vec::new(), Vec::new());
        if let Some(overrides) = config.object("dynamic")? {
            check_count(overrides.keys().count(), config, "dynamic")?;
            for key in overrides.keys() {
                if let Some(expression) = key.strip_prefix("-:") {
                    skipped.push(Pattern::regex(expression, key, config, "dynamic")?);
                    continue;
                }
                let expression = key.strip_prefix("+:").unwrap_or(key);
                let own = overrides.object(key)?.ok_or_else(|| overrides.wrong(key, "an object"))?;
                dynamic.push((Pattern::regex(expression, key, config, "dynamic")?, Params::parse(&own, usual)?));
            }
        }
        Ok(Self { usual, less_one, skipped, dynamic })
    }

    /// How a module is quantised, unless it is left out.
    fn params(&self, module: &str) -> Result<Option<Params>, LoadError> {
        for pattern in &self.skipped {
            if pattern.names(module)? {
                return Ok(None);
            }
        }
        for (pattern, params) in &self.dynamic {
            if pattern.names(module)? {
                return Ok(Some(*params));
            }
        }
        Ok(Some(self.usual))
    }
}

impl Params {
    /// What an object says, and `usual` for what it does not.
    fn parse(object: &Object<'_>, usual: Self) -> Result<Self, LoadError> {
        let bits = match object.unsigned("bits")? {
            Some(bits @ (4 | 8)) => bits,
            Some(other) => return Err(unsupported(object, "bits", other, "4 and 8 bits")),
            None => usual.bits,
        };
        let group = match object.value("group_size") {
            None => usual.group,
            Some(size) if size.as_i64() == Some(-1) => None,
            Some(_) => match object.unsigned("group_size") {
                Ok(Some(size)) if size > 0 => Some(size),
                _ => return Err(object.wrong("group_size", "a whole number above 0, or -1")),
            },
        };
        Ok(Self { bits, group, reordered: object.flag("desc_act")?.unwrap_or(usual.reordered) })
    }
}

impl Method for Gptq {
    /// Its configuration need not say which modules were left: where there is a plain matrix, it counts.
    fn find<'a>(&self, module: &Module<'a>) -> Result<Option<Found<'a>>, LoadError> {
        if module.class() != "Linear" || (module.has("weight") && !module.has("qweight")) {
            return Ok(None);
        }
        let Some(Params { bits, group, reordered }) = self.params(module.name)? else { return Ok(None) };
        let (rows, cols) = (module.rows, module.cols);
        let (codes, size) = (32 / bits, group.unwrap_or(cols));
        module.check_words("qweight", cols, "inputs", codes)?;
        module.check_words("qzeros", rows, "outputs", codes)?;
        let groups = cols.div_ceil(size);

        let qweight = module.part("qweight", &[&[cols / codes, rows]], &[Number::I32])?;
        let qzeros = module.part("qzeros", &[&[groups, rows / codes]], &[Number::I32])?;
        let scales = module.part("scales", &[&[groups, rows]], FLOATS)?;
        let fields =
            Fields { words: qweight.bytes, bits, along: Axis::Cols, next: rows, other: 1, order: IN_ORDER, plus: 0 };
        // One added to every field of a word, carries and all, undoes what the format's own library does when it writes.
        let plus = if self.less_one { u32::MAX / ((1 << bits) - 1) } else { 0 };
        let zeros = Fields { words: qzeros.bytes, along: Axis::Rows, next: 1, other: rows / codes, plus, ..fields };

        let mut parts = vec!["qweight", "qzeros", "scales"];
        let list = match reordered {
            true => Some(module.part("g_idx", &[&[cols]], &[Number::I32, Number::I64])?),
            false => module.optional("g_idx", &[&[cols]], &[Number::I32, Number::I64])?,
        };
        let grouping = match list {
            None => Grouping::Runs(size),
            Some(list) => {
                parts.push("g_idx");
                let index = index(list, cols, groups).map_err(|(at, found)| {
                    module.wrong("g_idx", format!("{found} for input {at}"), format!("a group, 0 to {}", groups - 1))
                })?;
                Grouping::by(index, size)
            }
        };
        let coded = Coded {
            codes: Codes::Packed(fields),
            scales: Table { numbers: scales, high: 1, row: 1, group: rows },
            zeros: Zeros::Packed(zeros),
            groups: grouping,
        };
        Ok(Some(Found { coded, parts }))
    }
}
