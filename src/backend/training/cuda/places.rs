//! Arrays of a student on the device, one after another.

use super::Operands;
use crate::backend::cuda::arena::Arena;
use crate::backend::cuda::kernels::Address;

/// An f32 array that products multiply with: by itself, or as its bf16 copy.
#[derive(Debug, Clone, Copy)]
pub struct Operand {
    /// f32.
    pub wide: Address,
    /// What products read: the copy, or `wide`.
    pub factor: Address,
}

/// Hands out arrays.
pub struct Places {
    pub arena: Arena,
    pub operands: Operands,
}

impl Places {
    /// f32.
    pub fn floats(&mut self, elements: usize) -> Address {
        self.arena.array::<f32>(elements)
    }

    /// What products read.
    pub fn factors(&mut self, elements: usize) -> Address {
        self.arena.take(elements * self.operands.number().bytes())
    }

    /// Both sides of an operand.
    pub fn operand(&mut self, elements: usize) -> Operand {
        let wide = self.floats(elements);
        self.operand_of(wide, elements)
    }

    /// One whose f32 side is there.
    pub fn operand_of(&mut self, wide: Address, elements: usize) -> Operand {
        Operand { wide, factor: if self.operands == Operands::F32 { wide } else { self.factors(elements) } }
    }

    /// One whose f32 side nobody reads once there is a copy: until then it is in `scratch`.
    pub fn copy(&mut self, scratch: Address, elements: usize) -> Operand {
        if self.operands == Operands::F32 { self.operand(elements) } else { self.operand_of(scratch, elements) }
    }
}
