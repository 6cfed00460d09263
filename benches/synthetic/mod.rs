//! Models of real geometry with random weights.

pub mod geometry;
pub mod numbers;
mod random_model;

pub use random_model::RandomModel;

use eesd::model::Geometry;

/// 24 layers with some 330 million parameters.
pub fn geometry_330m() -> Geometry {
    geometry::llama(32_000, 1024, 2816, 24, (16, 4, 64))
}
