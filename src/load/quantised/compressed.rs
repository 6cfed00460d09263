//! The format of `compressed-tensors`: integers of 4 and 8 bits, packed or a byte each, and fp8.

use super::super::LoadError;
use super::super::json::Object;
use super::coded::{Axis, Coded, Codes, Fields, Grouping, IN_ORDER, Table, Zeros, index};
use super::module::{FLOATS, Module, Number, Part};
use super::pattern::{Pattern, check_count};
use super::{Found, Method, unsupported};

const FORMATS: &str = "pack-quantized, int-quantized, float-quantized, naive-quantized";

/// Which modules are quantised, and how.
pub(super) struct Compressed {
    /// The most telling ones first.
    targets: Vec<(Pattern, Option<Scheme>)>,
    ignore: Vec<Pattern>,
}

/// How the weights of some modules are stored.
#[derive(Debug, Clone, Copy)]
struct Scheme {
    storage: Storage,
    symmetric: bool,
    strategy: Strategy,
    /// Whether groups follow the order of activations, each input naming its own.
    reordered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Storage {
    /// Integers of so many bits in words of 32.
    Packed(usize),
    /// A signed byte each.
    Bytes,
    /// E4M3 numbers.
    Fp8,
}

/// Which weights share a scale.
#[derive(Debug, Clone, Copy)]
enum Strategy {
    Tensor,
    Channel,
    Group(usize),
    Block(usize, usize),
}

impl Compressed {
    /// Reads `quantization_config`, and lists the keys that mean activations or the KV cache.
    pub(super) fn parse(config: &Object<'_>, of_activations: &mut Vec<String>) -> Result<Self, LoadError> {
        refuse_transforms(config)?;
        let format = config.text("format")?;
        let groups = config.object("config_groups")?.ok_or_else(|| config.wrong("config_groups", "an object"))?;
        let mut targets: Vec<(Pattern, Option<Scheme>)> = Vec::new();
        for key in groups.keys() {
            let group = groups.object(key)?.ok_or_else(|| groups.wrong(key, "an object"))?;
            for key in ["input_activations", "output_activations"] {
                if group.object(key)?.is_some() {
                    of_activations.push(format!("`{}`", group.name(key)));
                }
            }
            let weights = group.object("weights")?;
            let scheme = weights.map(|weights| Scheme::parse(&group, &weights, format)).transpose()?;
            for target in Pattern::list(&group, "targets")? {
                // The same target once more counts instead of the first.
                targets.retain(|(other, _)| other.text != target.text);
                targets.push((target, scheme));
            }
            check_count(targets.len(), config, "config_groups")?;
        }
        if config.object("kv_cache_scheme")?.is_some() {
            of_activations.push(format!("`{}`", config.name("kv_cache_scheme")));
        }
        targets.sort_by(|(a, _), (b, _)| (a.is_regex(), &a.text).cmp(&(b.is_regex(), &b.text)));
        Ok(Self { targets, ignore: Pattern::list(config, "ignore")? })
    }

    /// How a module's weights are stored; `None`: as plain numbers. A target that names the module goes before its class.
    fn scheme(&self, module: &Module<'_>) -> Result<Option<Scheme>, LoadError> {
        for pattern in &self.ignore {
            if pattern.text == module.class() || pattern.names(module.name)? {
                return Ok(None);
            }
        }
        for (target, scheme) in &self.targets {
            if target.names(module.name)? {
                return Ok(*scheme);
            }
        }
        Ok(self.targets.iter().find(|(target, _)| target.text == module.class()).and_then(|(_, scheme)| *scheme))
    }
}

/// Refuses what changes the weights in further ways.
fn refuse_transforms(config: &Object<'_>) -> Result<(), LoadError> {
    if let Some(sparsity) = config.object("sparsity_config")?
        && let Some(format) = sparsity.text("format")?
        && format != "dense"
    {
        return Err(unsupported(&sparsity, "format", format, "dense"));
    }
    match config.object("transform_config")? {
        Some(transforms)
            if transforms.object("config_groups")?.is_some_and(|groups| groups.keys().next().is_some()) =>
        {
            Err(unsupported(&transforms, "config_groups", "(rotations of weights)", "no transforms"))
        }
        _ => Ok(()),
    }
}

impl Scheme {
    fn parse(group: &Object<'_>, weights: &Object<'_>, format: Option<&str>) -> Result<Self, LoadError> {
        let own = group.text("format")?;
        let Some(format) = own.or(format) else { return Err(group.wrong("format", FORMATS)) };
        let bits = weights.unsigned("num_bits")?.unwrap_or(8);
        let kind = weights.text("type")?.unwrap_or("int");
        let storage = match (format, kind, bits) {
            ("pack-quantized", "int", 4 | 8) => Storage::Packed(bits),
            ("int-quantized" | "naive-quantized", "int", 4 | 8) => Storage::Bytes,
            ("float-quantized" | "naive-quantized", "float", 8) => Storage::Fp8,
            ("pack-quantized" | "int-quantized" | "naive-quantized", "int", _) => {
                return Err(unsupported(weights, "num_bits", bits, "4 and 8 bits"));
            }
            ("float-quantized" | "naive-quantized", "float", _) => {
                return Err(unsupported(weights, "num_bits", bits, "8 bits"));
            }
            ("pack-quantized" | "int-quantized", _, _) => return Err(unsupported(weights, "type", kind, "int")),
            ("float-quantized" | "naive-quantized", _, _) => return Err(unsupported(weights, "type", kind, "float")),
            _ if own.is_some() => return Err(unsupported(group, "format", format, FORMATS)),
            _ => {
                let what = format!("`quantization_config.format` `{format}`");
                return Err(LoadError::unsupported(group.path(), what, FORMATS));
            }
        };
        if weights.value("dynamic").is_some_and(|dynamic| dynamic.as_bool() != Some(false)) {
            return Err(weights.wrong("dynamic", "false: weights have scales of their own"));
        }
        let symmetric = weights.flag("symmetric")?.unwrap_or(true);
        if storage == Storage::Fp8 && !symmetric {
            return Err(weights.wrong("symmetric", "true, with fp8"));
        }
        let strategy = Strategy::parse(weights)?;
        if storage != Storage::Fp8 && matches!(strategy, Strategy::Block(..)) {
            return Err(unsupported(weights, "strategy", "block", "tensor, channel, group; block with fp8"));
        }
        let reordered = match weights.value("actorder") {
            None => false,
            Some(value) => match (value.as_str(), value.as_bool()) {
                (Some("group" | "dynamic"), _) | (_, Some(true)) => true,
                (Some("weight" | "static"), _) | (_, Some(false)) => false,
                _ => return Err(weights.wrong("actorder", "\"group\", \"weight\" or null")),
            },
        };
        if reordered && !matches!(strategy, Strategy::Group(_)) {
            return Err(weights.wrong("actorder", "null where weights have no groups"));
        }
        Ok(Self { storage, symmetric, strategy, reordered })
    }
}

impl Strategy {
    fn parse(weights: &Object<'_>) -> Result<Self, LoadError> {
        let size = weights.value("group_size").map(|_| weights.unsigned("group_size"));
        let all = weights.value("group_size").is_some_and(|size| size.as_i64() == Some(-1));
        let size = if all { None } else { size.transpose()?.flatten() };
        let strategy = match weights.text("strategy")? {
            Some(strategy) => strategy,
            None if all => "channel",
            None if size.is_some() => "group",
            None => "tensor",
        };
        match strategy {
            "tensor" => Ok(Self::Tensor),
            "channel" => Ok(Self::Channel),
            "group" => match size {
                Some(size) if size > 0 => Ok(Self::Group(size)),
                _ => Err(weights.wrong("group_size", "a whole number above 0, with strategy `group`")),
            },
            "block" => {
                let sizes = weights.array("block_structure")?.map(|sizes| &sizes[..]);
                let size = |value: &serde_json::Value| {
                    value.as_u64().and_then(|size| size.try_into().ok()).filter(|&size: &usize| size > 0)
                };
                match sizes {
                    Some([rows, cols]) if size(rows).is_some() && size(cols).is_some() => {
                        Ok(Self::Block(size(rows).unwrap_or(1), size(cols).unwrap_or(1)))
                    }
                    _ => Err(weights.wrong("block_structure", "two whole numbers above 0, with strategy `block`")),
                }
            }
            other => Err(unsupported(weights, "strategy", other, "tensor, channel, group, block")),
        }
    }

    /// Inputs that share a scale.
    fn inputs(self, cols: usize) -> usize {
        match self {
            Self::Tensor | Self::Channel => cols,
            Self::Group(size) | Self::Block(_, size) => size,
        }
    }

    /// The table of a part with a number for each scale.
    fn table<'a>(self, module: &Module<'a>, part: &str, numbers: &[Number]) -> Result<Table<'a>, LoadError> {
        let (rows, cols) = (module.rows, module.cols);
        let of_shapes = |shapes: &[&[usize]], high, row| {
            Ok(Table { numbers: module.part(part, shapes, numbers)?, high, row, group: 1 })
        };
        match self {
            Self::Tensor => of_shapes(&[&[1], &[]], 1, 0),
            Self::Channel => of_shapes(&[&[rows, 1], &[rows]], 1, 1),
            Self::Group(size) => of_shapes(&[&[rows, cols.div_ceil(size)]], 1, cols.div_ceil(size)),
            Self::Block(high, wide) => {
                let groups = cols.div_ceil(wide);
                of_shapes(&[&[rows.div_ceil(high), groups]], high, groups)
            }
        }
    }
}

impl Method for Compressed {
    fn find<'a>(&self, module: &Module<'a>) -> Result<Option<Found<'a>>, LoadError> {
        let Some(scheme) = self.scheme(module)? else { return Ok(None) };
        let (rows, cols) = (module.rows, module.cols);
        let mut parts = vec!["weight_scale"];
        let codes = match scheme.storage {
            Storage::Packed(bits) => {
                parts.push("weight_packed");
                let words = cols.div_ceil(32 / bits);
                let packed = module.part("weight_packed", &[&[rows, words]], &[Number::I32])?;
                check_shape(module, &mut parts)?;
                Codes::Packed(Fields {
                    words: packed.bytes,
                    bits,
                    along: Axis::Cols,
                    next: 1,
                    other: words,
                    order: IN_ORDER,
                    plus: 0,
                })
            }
            Storage::Bytes => Codes::Signed(plain_bytes(module, &mut parts, Number::I8)?.bytes),
            Storage::Fp8 => Codes::E4m3(plain_bytes(module, &mut parts, Number::E4m3)?.bytes),
        };
        let scales = scheme.strategy.table(module, "weight_scale", FLOATS)?;
        let zeros = scheme.zeros(module, &mut parts)?;
        let groups = scheme.groups(module, &mut parts)?;
        Ok(Some(Found { coded: Coded { codes, scales, zeros, groups }, parts }))
    }
}

/// The shape that stands beside packed words, where it does.
fn check_shape(module: &Module<'_>, parts: &mut Vec<&'static str>) -> Result<(), LoadError> {
    let Some(shape) = module.optional("weight_shape", &[&[2]], &[Number::I64, Number::I32])? else { return Ok(()) };
    parts.push("weight_shape");
    let found = [shape.whole(0), shape.whole(1)];
    if found == [module.rows as i64, module.cols as i64] {
        return Ok(());
    }
    Err(module.wrong("weight_shape", format!("{found:?}"), format!("[{}, {}]", module.rows, module.cols)))
}

fn plain_bytes<'a>(module: &Module<'a>, parts: &mut Vec<&'static str>, number: Number) -> Result<Part<'a>, LoadError> {
    parts.push("weight");
    module.part("weight", &[&[module.rows, module.cols]], &[number])
}

impl Scheme {
    fn zeros<'a>(&self, module: &Module<'a>, parts: &mut Vec<&'static str>) -> Result<Zeros<'a>, LoadError> {
        const NAME: &str = "weight_zero_point";
        let middle = match self.storage {
            Storage::Packed(bits) => 1 << (bits - 1),
            _ => 0,
        };
        if self.symmetric {
            // Older versions wrote them, all zeros.
            if module.is_not_zero(NAME) {
                let expected = "zeros, since `quantization_config` says that weights are symmetric";
                return Err(module.wrong(NAME, "not zero".into(), expected.into()));
            }
            if module.has(NAME) {
                parts.push(NAME);
            }
            return Ok(Zeros::Fixed(middle));
        }
        parts.push(NAME);
        let groups = module.cols.div_ceil(self.strategy.inputs(module.cols));
        match (self.storage, self.strategy) {
            (Storage::Packed(bits), Strategy::Channel | Strategy::Group(_)) => {
                let words = module.rows.div_ceil(32 / bits);
                let packed = module.part(NAME, &[&[words, groups]], &[Number::I32])?;
                Ok(Zeros::Packed(Fields {
                    words: packed.bytes,
                    bits,
                    along: Axis::Rows,
                    next: groups,
                    other: 1,
                    order: IN_ORDER,
                    plus: 0,
                }))
            }
            _ => Ok(Zeros::Stored(self.strategy.table(module, NAME, &[Number::I8])?, middle)),
        }
    }

    /// Groups are runs unless each input names its own, which in this format are all of the same size.
    fn groups(&self, module: &Module<'_>, parts: &mut Vec<&'static str>) -> Result<Grouping, LoadError> {
        const NAME: &str = "weight_g_idx";
        let (size, cols) = (self.strategy.inputs(module.cols), module.cols);
        let numbers = [Number::I32, Number::I64];
        let part = match self.reordered {
            true => Some(module.part(NAME, &[&[cols]], &numbers)?),
            false => module.optional(NAME, &[&[cols]], &numbers)?,
        };
        let Some(part) = part else { return Ok(Grouping::Runs(size)) };
        parts.push(NAME);
        // Not filled in: the order was never changed.
        if (0..cols).any(|at| part.whole(at) == -1) {
            return Ok(Grouping::Runs(size));
        }
        let groups = cols.div_ceil(size);
        let index = index(part, cols, groups).map_err(|(at, found)| {
            module.wrong(NAME, format!("{found} for input {at}"), format!("a group below {groups}"))
        })?;
        let mut counts = vec![0; groups];
        index.iter().for_each(|&group| counts[group as usize] += 1);
        match counts.iter().position(|&count| count != size.min(cols)) {
            Some(group) if self.reordered => {
                let found = format!("a list with {} inputs in group {group}", counts[group]);
                Err(module.wrong(NAME, found, format!("{} inputs in each group", size.min(cols))))
            }
            _ => Ok(Grouping::by(index, size)),
        }
    }
}
