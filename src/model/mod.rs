//! What loader, backend and engine agree on: a decoder's [`Geometry`] and views of its weights.

mod geometry;
mod weights;

pub use geometry::{Geometry, Rope, RopeScaling};
pub use weights::{Dtype, ExitWeights, LayerWeights, Matrix, ModelWeights, Vector};
