//! Self-distillation: an exit block learns from what the full model, its teacher, writes; nothing but the block is
//! trained (EESD).
//!
//! [`data`] is where training begins: prompts that the teacher continues with this engine, and other text, become
//! documents, documents a training and a held-out set, and those the batches of each step.

pub mod data;
