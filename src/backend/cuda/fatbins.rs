//! What nvcc made of `cuda/*.cu` when this program was built.

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// One fat binary per kernel file: its name (`cuda/<name>.cu`) and image. Empty without nvcc.
pub const FATBINS: &[(&str, &[u8])] = TABLE;

/// The compiler's release and the GPU architectures compiled for; `None`: no GPU kernels, because the
/// program was built without nvcc.
pub const BUILT_WITH: Option<(&str, &str)> = COMPILER;

/// The architecture whose PTX is kept for GPUs that nothing was compiled for, as in `100`; empty without nvcc.
pub const PTX: &str = KEPT_PTX;
