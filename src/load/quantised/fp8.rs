//! Fp8 with a scale for each block (DeepSeek's, which transformers writes too) or for the whole matrix (AutoFP8's).

use super::super::LoadError;
use super::super::json::Object;
use super::coded::{Coded, Codes, Grouping, Table, Zeros};
use super::module::{FLOATS, Module, Number};
use super::pattern::Pattern;
use super::{Found, Method, unsupported};

/// The blocks, and which modules have none.
pub(super) struct Fp8 {
    /// Outputs and inputs of a block; `None`: a matrix has one scale.
    block: Option<(usize, usize)>,
    skipped: Vec<Pattern>,
}

impl Fp8 {
    /// Reads `quantization_config`, and lists the key that means activations.
    pub(super) fn parse(config: &Object<'_>, of_activations: &mut Vec<String>) -> Result<Self, LoadError> {
        match config.text("fmt")? {
            None | Some("e4m3") => {}
            Some(other) => return Err(unsupported(config, "fmt", other, "e4m3")),
        }
        if config.text("activation_scheme")?.is_some() {
            of_activations.push(format!("`{}`", config.name("activation_scheme")));
        }
        let sizes = config.array("weight_block_size")?.map(|sizes| {
            let size = |value: &serde_json::Value| {
                value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|&size| size > 0)
            };
            sizes.iter().map(size).collect::<Option<Vec<usize>>>()
        });
        let block = match sizes {
            None => None,
            Some(Some(sizes)) if sizes.len() == 2 => Some((sizes[0], sizes[1])),
            Some(_) => return Err(config.wrong("weight_block_size", "two whole numbers above 0")),
        };
        let mut skipped = Pattern::list(config, "modules_to_not_convert")?;
        skipped.append(&mut Pattern::list(config, "ignored_layers")?);
        Ok(Self { block, skipped })
    }
}

impl Method for Fp8 {
    /// Its configuration need not say which modules were left: where there is a plain matrix, it counts.
    fn find<'a>(&self, module: &Module<'a>) -> Result<Option<Found<'a>>, LoadError> {
        let is_scaled = module.has("weight_scale_inv") || module.has("weight_scale");
        if !(is_scaled || module.has_in("weight", Number::E4m3)) || module.is_within(&self.skipped) {
            return Ok(None);
        }
        let (rows, cols) = (module.rows, module.cols);
        let weight = module.part("weight", &[&[rows, cols]], &[Number::E4m3])?;
        let name = if self.block.is_none() && module.has("weight_scale") { "weight_scale" } else { "weight_scale_inv" };
        let (scales, size) = match self.block {
            Some((high, wide)) => {
                let groups = cols.div_ceil(wide);
                let numbers = module.part(name, &[&[rows.div_ceil(high), groups]], FLOATS)?;
                (Table { numbers, high, row: groups, group: 1 }, wide)
            }
            None => (Table { numbers: module.part(name, &[&[], &[1]], FLOATS)?, high: 1, row: 0, group: 0 }, cols),
        };
        let (codes, groups) = (Codes::E4m3(weight.bytes), Grouping::Runs(size));
        Ok(Some(Found { coded: Coded { codes, scales, zeros: Zeros::Fixed(0), groups }, parts: vec!["weight", name] }))
    }
}
