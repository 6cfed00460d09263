//! What loader, backend and engine agree on: a decoder's [`Geometry`] and views of its weights.
//!
//! ```
//! use eesd::load::Checkpoint;
//! use eesd::model::Dtype;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("models/pycode-4m".as_ref())?;
//! let (geometry, weights) = (checkpoint.geometry(), checkpoint.weights());
//! let first = &weights.layers[0];
//! assert_eq!((first.q.rows, first.q.cols), (geometry.q_size(), geometry.hidden_size));
//! assert_eq!(first.q.format, Dtype::BF16.into());
//! # Ok(())
//! # }
//! ```

mod blocks;
pub mod cost;
mod draft_vocab;
mod format;
mod geometry;
mod quantise;
mod quantised;
mod weights;

pub use blocks::{Block, BlockType, STEPS};
pub use draft_vocab::DraftVocab;
pub use format::{Dtype, Format, Fp8, Groups, e4m3, floats};
pub use geometry::{Geometry, Rope, RopeScaling};
pub use quantise::{Encoder, NotEncodable, OwnedMatrix};
pub use quantised::{QuantiseError, Quantised, Scheme};
pub use weights::{ExitWeights, LayerWeights, Matrix, ModelWeights, RowOrder, Vector};
