//! Quantised folders of Hugging Face: what `quantization_config` of config.json announces is checked against the tensors,
//! and each quantised matrix becomes rows that the engine computes with (see [`Format`](crate::model::Format)), exactly.
//!
//! A format is a [`Method`], in a file of its own, that says which tensors are the parts of a matrix and how its codes,
//! scales and zero points lie in them ([`Coded`]). Only the weights are quantised here: what a configuration says about
//! activations and about the KV cache is noted and left.

mod awq;
mod coded;
mod compressed;
mod fp8;
mod gptq;
mod module;
mod pattern;

use super::config::Config;
use super::error::short;
use super::json::Object;
use super::tensors::{Made, Tensors};
use super::{LoadError, weights};
use crate::model::{Dtype, Geometry};
use coded::Coded;
use module::Module;

const METHODS: &str = "compressed-tensors, fp8, gptq, awq";

/// What belongs to quantised activations or to a quantised KV cache.
const OF_ACTIVATIONS: [&str; 11] = [
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "activation_scale",
    "q_scale",
    "k_scale",
    "v_scale",
    "kv_scale",
    "k_zero_point",
    "v_zero_point",
];

/// A way of storing quantised matrices.
trait Method {
    /// Finds the parts of a matrix and checks them; `None` where it is stored as plain numbers.
    fn find<'a>(&self, module: &Module<'a>) -> Result<Option<Found<'a>>, LoadError>;
}

/// A quantised matrix, found.
struct Found<'a> {
    coded: Coded<'a>,
    /// The tensors that are its parts, by the last components of their names.
    parts: Vec<&'static str>,
}

/// What a model's configuration says about its quantisation.
pub(super) struct Quantisation {
    method: Box<dyn Method>,
    /// The keys that ask for quantised activations or a quantised KV cache.
    of_activations: Vec<String>,
}

impl Quantisation {
    /// Reads `quantization_config` of a configuration's root object; `None` where there is none.
    ///
    /// # Errors
    /// If it is damaged, or announces what this engine does not read.
    pub(super) fn parse(root: &Object<'_>) -> Result<Option<Self>, LoadError> {
        let config = match root.object("quantization_config")? {
            Some(config) => Some(config),
            // As the first files of compressed-tensors had it.
            None => root.object("compression_config")?,
        };
        let Some(config) = config else { return Ok(None) };
        let mut of_activations = Vec::new();
        let method: Box<dyn Method> = match config.text("quant_method")? {
            Some("compressed-tensors") => Box::new(compressed::Compressed::parse(&config, &mut of_activations)?),
            Some("fp8") => Box::new(fp8::Fp8::parse(&config, &mut of_activations)?),
            Some("gptq") => Box::new(gptq::Gptq::parse(&config)?),
            Some("awq") => Box::new(awq::Awq::parse(&config)?),
            Some(other) => return Err(unsupported(&config, "quant_method", other, METHODS)),
            None => return Err(config.wrong("quant_method", METHODS)),
        };
        Ok(Some(Self { method, of_activations }))
    }

    /// Puts each quantised matrix of the model in the place of its parts.
    ///
    /// # Errors
    /// If a part is missing, or has another shape, number format or content than the configuration says, or there is no
    /// memory for a matrix.
    pub(super) fn transcode(
        &self,
        tensors: &mut Tensors,
        config: &Config,
        notes: &mut Vec<String>,
    ) -> Result<(), LoadError> {
        // With a head of its own, even where that is tied: one that is stored quantised is looked at, and whose it is is
        // settled later.
        let untied = Config { geometry: Geometry { tied_head: false, ..config.geometry.clone() }, ..config.clone() };
        let plan = weights::model_plan(&untied);
        // All matrices are checked before the first is made, so that what is allocated is what the files justify.
        let made = self.find(tensors, &plan, config.geometry.tied_head)?;
        let made = made.iter().map(|(module, found)| transcode(module, found)).collect::<Result<Vec<_>, _>>()?;
        note_widened(&made, notes);
        for (parts, name, matrix) in made {
            tensors.replace(&parts, name, matrix);
        }
        self.leave_activations(tensors, &plan, notes);
        leave_zero_biases(tensors, &plan, notes);
        Ok(())
    }

    /// The quantised matrices of a plan, checked.
    fn find<'a>(
        &self,
        tensors: &'a Tensors,
        plan: &'a weights::Plan,
        tied: bool,
    ) -> Result<Vec<(Module<'a>, Found<'a>)>, LoadError> {
        let mut quantised = Vec::new();
        for (name, shape) in plan {
            let (Some(name), &[rows, cols]) = (name.strip_suffix(".weight"), &shape[..]) else { continue };
            let module = Module { tensors, name, rows, cols };
            if tied && name == weights::HEAD_MODULE && !module.has_parts() {
                continue;
            }
            let Some(found) = self.method.find(&module)? else { continue };
            if module.has("weight") && !found.parts.contains(&"weight") {
                return Err(LoadError::UnexpectedTensor {
                    path: tensors.path_of(&module.part_name("weight")).to_path_buf(),
                    tensor: short(module.part_name("weight")),
                    why: format!("`{}` is the same matrix", short(module.part_name(found.parts[0]))),
                });
            }
            quantised.push((module, found));
        }
        Ok(quantised)
    }

    /// Takes out what belongs to quantised activations, and says so.
    fn leave_activations(&self, tensors: &mut Tensors, plan: &weights::Plan, notes: &mut Vec<String>) {
        let of_activations = |name: &&str| {
            name.rsplit_once('.').is_some_and(|(module, part)| OF_ACTIVATIONS.contains(&part) && holds(plan, module))
        };
        let names: Vec<String> = tensors.names().filter(of_activations).map(str::to_owned).collect();
        names.iter().for_each(|name| tensors.remove(name));
        let mut asked = self.of_activations.clone();
        if let Some(first) = names.first() {
            asked.push(format!("`{}`{}", short(first), and_more(names.len())));
        }
        if !asked.is_empty() {
            notes.push(format!(
                "config.json: `quantization_config` also means activations or the KV cache ({}): only weights are \
                 quantised here",
                short(asked.join(", "))
            ));
        }
    }
}

/// Whether the plan has tensors within a module.
fn holds(plan: &weights::Plan, module: &str) -> bool {
    let within = format!("{module}.");
    plan.range(within.clone()..).next().is_some_and(|(name, _)| name.starts_with(&within))
}

/// Takes out biases that the configuration does not name and that are all zeros: older tools wrote one for every matrix.
fn leave_zero_biases(tensors: &mut Tensors, plan: &weights::Plan, notes: &mut Vec<String>) {
    let spare = |name: &&str| {
        let matrix = name.strip_suffix(".bias").map(|module| format!("{module}.weight"));
        let of_matrix = matrix.and_then(|matrix| plan.get(&matrix)).is_some_and(|shape| shape.len() == 2);
        of_matrix && !plan.contains_key(*name) && tensors.stored(name).is_some_and(|bias| bias.is_zero())
    };
    let names: Vec<String> = tensors.names().filter(spare).map(str::to_owned).collect();
    let Some(first) = names.first() else { return };
    notes.push(format!(
        "config.json: no bias is announced for `{}`{}: theirs are zeros, left out",
        short(first),
        and_more(names.len())
    ));
    names.iter().for_each(|name| tensors.remove(name));
}

fn and_more(count: usize) -> String {
    if count > 1 { format!(" and {} more", count - 1) } else { String::new() }
}

/// The names of a matrix's parts, its own name, and the matrix.
type Transcoded = (Vec<String>, String, Made);

/// Says which matrices became larger than they were.
fn note_widened(made: &[Transcoded], notes: &mut Vec<String>) {
    let widened = made.iter().filter(|(_, _, matrix)| matrix.format == Dtype::F32.into());
    let (names, bytes): (Vec<&str>, Vec<usize>) =
        widened.map(|(_, name, matrix)| (&name[..], matrix.bytes.len())).unzip();
    let Some(first) = names.first() else { return };
    notes.push(format!(
        "config.json: `quantization_config`: groups of `{}`{} are of odd or uneven lengths, or of fp8 numbers in \
         act-order: kept in f32, {:.1} MB in memory",
        short(first),
        and_more(names.len()),
        bytes.iter().sum::<usize>() as f64 / 1e6
    ));
}

fn transcode(module: &Module<'_>, found: &Found<'_>) -> Result<Transcoded, LoadError> {
    let matrix = found.coded.transcode(module.rows, module.cols).map_err(|_| LoadError::Io {
        path: module.tensors.path_of(&module.part_name(found.parts[0])).to_path_buf(),
        source: std::io::Error::new(
            std::io::ErrorKind::OutOfMemory,
            format!("no memory for the matrix of tensor `{}`", short(module.part_name(found.parts[0]))),
        ),
    })?;
    let parts = found.parts.iter().map(|part| module.part_name(part)).collect();
    Ok((parts, module.part_name("weight"), matrix))
}

/// The error of a key whose value asks for what is not read here.
fn unsupported(object: &Object<'_>, key: &str, value: impl std::fmt::Display, supported: &'static str) -> LoadError {
    LoadError::unsupported(object.path(), format!("`{}` `{value}`", object.name(key)), supported)
}
