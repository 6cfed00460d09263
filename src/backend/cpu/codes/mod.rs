//! Products of quantised weights: codes of 4 to 8 bits, as they lie packed in memory, times inputs in 8 bits.
//!
//! - `layout` is how codes and scales lie in memory, `fill` brings them there from a model's rows;
//! - `inputs` quantises rows of activations: 8 bits and a scale for each [`BLOCK`] of them;
//! - `dots` is what an instruction set has to offer, `tile` the one inner loop, `product` goes over a matrix.
//!
//! The sum over a group's products of two integers is exact in any order. It is brought to f32, times the weights' scale
//! and the input's, in one fused multiply-add a group, in the groups' order: so an element's bits depend neither on
//! the instruction set nor on the number of rows.

mod dots;
mod fill;
mod inputs;
mod layout;
mod product;
#[cfg(test)]
mod tests;
mod tile;

pub use dots::{LINE, prefetch};
pub use fill::{element, fill};
pub use inputs::{CodeRows, Quantise, QuantisedRows};
pub use layout::Layout;
pub use product::{SCRATCH, multiply};

/// Inputs that share a scale.
pub const BLOCK: usize = 32;
