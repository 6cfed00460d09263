//! Safetensors files that are whole, and whose tensors are others than they should be.

use crate::dice::Dice;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Number formats of the same size, to be taken for each other.
const ALIKE: [&[Dtype]; 4] = [
    &[Dtype::I8, Dtype::U8, Dtype::F8_E4M3, Dtype::F8_E5M2],
    &[Dtype::F16, Dtype::BF16, Dtype::I16],
    &[Dtype::I32, Dtype::F32, Dtype::U32],
    &[Dtype::I64, Dtype::F64],
];

/// Last components of the names of parts.
const PARTS: [&str; 14] = [
    "weight",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
    "weight_scale_inv",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "bias",
    "input_scale",
    "k_scale",
];

/// Variants of a file, each with one tensor changed.
pub fn part_variants(mut dice: Dice, original: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> {
    let tensors = || -> Vec<Tensor> {
        let file = SafeTensors::deserialize(original).unwrap();
        let mut tensors: Vec<Tensor> = file
            .iter()
            .map(|(name, view)| Tensor {
                name: name.into(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            })
            .collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors
    };
    (0..count).map(move |_| {
        let mut tensors = tensors();
        change(&mut dice, &mut tensors);
        let views = tensors.iter().map(|Tensor { name, dtype, shape, data }| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    })
}

fn change(dice: &mut Dice, tensors: &mut Vec<Tensor>) {
    let (at, other) = (dice.roll(tensors.len()), dice.roll(tensors.len()));
    match dice.roll(9) {
        0 => drop(tensors.remove(at)),
        1 => {
            let module = tensors[at].name.rsplit_once('.').unwrap().0;
            let name = format!("{module}.{}", PARTS[dice.roll(PARTS.len())]);
            if !tensors.iter().any(|tensor| tensor.name == name) {
                tensors[at].name = name;
            }
        }
        2 => {
            let alike = ALIKE.iter().find(|alike| alike.contains(&tensors[at].dtype)).unwrap();
            tensors[at].dtype = alike[dice.roll(alike.len())];
        }
        3 => match dice.roll(3) {
            0 => tensors[at].shape.reverse(),
            1 => tensors[at].shape = vec![tensors[at].shape.iter().product()],
            _ => tensors[at].shape.push(1),
        },
        4 => {
            let Tensor { shape, data, .. } = &mut tensors[at];
            match (dice.roll(2), shape[0]) {
                (0, size) if size > 1 && size.is_multiple_of(2) => {
                    shape[0] /= 2;
                    data.truncate(data.len() / 2);
                }
                _ => {
                    shape[0] *= 2;
                    data.extend_from_within(..);
                }
            }
        }
        5 => tensors[at].data.iter_mut().for_each(|byte| *byte = dice.roll(256) as u8),
        6 => {
            let module = tensors[other].name.rsplit_once('.').unwrap().0;
            let name = format!("{module}.{}", PARTS[dice.roll(PARTS.len())]);
            if !tensors.iter().any(|tensor| tensor.name == name) {
                let Tensor { dtype, ref shape, ref data, .. } = tensors[at];
                tensors.push(Tensor { name, dtype, shape: shape.clone(), data: data.clone() });
            }
        }
        7 => {
            let names = (tensors[at].name.clone(), tensors[other].name.clone());
            (tensors[other].name, tensors[at].name) = names;
        }
        _ => {
            let last = tensors[at].data.len() - 1;
            tensors[at].data[dice.roll(last + 1)] = 0xFF;
        }
    }
}
