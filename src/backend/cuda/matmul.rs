//! Products of row-major matrices in device memory: what a library is asked for, and what it must be told right.

use super::kernels::{Address, Format};
use crate::backend::BackendError;
use std::fmt;

/// Number format of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16.
    F16,
    /// IEEE 754 binary32; its products are not rounded to fewer bits on the way (no TF32).
    F32,
}

impl Number {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Number::Bf16 | Number::F16 => 2,
            Number::F32 => 4,
        }
    }
}

impl From<Format> for Number {
    fn from(format: Format) -> Self {
        match format {
            Format::Bf16 => Number::Bf16,
            Format::F16 => Number::F16,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Number::Bf16 => "bf16",
            Number::F16 => "f16",
            Number::F32 => "f32",
        })
    }
}

/// A row-major matrix; its shape is told by the product that it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowMajor {
    /// Its first element.
    pub at: Address,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Of all elements.
    pub number: Number,
}

/// `c = alpha · op(a) · op(b) + beta · c`, summed in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matmul {
    /// Rows of `c`.
    pub m: usize,
    /// Columns of `c`.
    pub n: usize,
    /// Products in a sum.
    pub k: usize,
    /// `[m, k]`, or `[k, m]` where transposed.
    pub a: RowMajor,
    /// Multiply `a`'s transpose.
    pub transpose_a: bool,
    /// `[k, n]`, or `[n, k]` where transposed.
    pub b: RowMajor,
    /// Multiply by `b`'s transpose.
    pub transpose_b: bool,
    /// `[m, n]`.
    pub c: RowMajor,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what `c` holds; at 0 that is not looked at.
    pub beta: f32,
    /// Memory to work in, as much as [`Driver::matmul_workspace`](super::driver::Driver::matmul_workspace) says.
    pub workspace: Address,
}

impl Matmul {
    /// Rows and columns of `a`, `b` and `c` as they lie in memory.
    pub fn shapes(&self) -> [(usize, usize); 3] {
        let of = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        [of(self.m, self.k, self.transpose_a), of(self.k, self.n, self.transpose_b), (self.m, self.n)]
    }

    /// Refuses what no device computes: empty matrices, rows that overlap, formats that do not go together.
    ///
    /// # Errors
    /// What was found and what was expected.
    pub fn check(&self) -> Result<(), BackendError> {
        let refused = |found: String| Err(BackendError::Device(format!("{self}: {found}")));
        if [self.m, self.n, self.k].contains(&0) {
            return refused("an empty matrix (expected at least one row and column)".into());
        }
        for ((name, matrix), (_, columns)) in [("a", self.a), ("b", self.b), ("c", self.c)].iter().zip(self.shapes()) {
            if matrix.stride < columns {
                let stride = matrix.stride;
                return refused(format!("{name} has {columns} columns and a stride of {stride} (expected as many)"));
            }
        }
        if self.a.number != self.b.number {
            return refused("two formats (expected one)".into());
        }
        if self.c.number != Number::F32 && self.c.number != self.a.number {
            return refused(format!("a result in {} (expected f32 or {})", self.c.number, self.a.number));
        }
        Ok(())
    }
}

impl fmt::Display for Matmul {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = [self.shapes()[0], self.shapes()[1]].map(|(rows, columns)| [rows, columns]);
        let turned = |transposed| if transposed { "ᵀ" } else { "" };
        write!(
            f,
            "a product {:?}{} {} · {:?}{} {} of {} x {} {}",
            a,
            turned(self.transpose_a),
            self.a.number,
            b,
            turned(self.transpose_b),
            self.b.number,
            self.m,
            self.n,
            self.c.number,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_device_computes_is_refused() {
        let matrix = |stride, number| RowMajor { at: Address(256), stride, number };
        let good = Matmul {
            m: 3,
            n: 5,
            k: 7,
            a: matrix(7, Number::Bf16),
            transpose_a: false,
            b: matrix(7, Number::Bf16),
            transpose_b: true,
            c: matrix(5, Number::F32),
            alpha: 1.0,
            beta: 0.0,
            workspace: Address(0),
        };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.shapes(), [(3, 7), (5, 7), (3, 5)]);
        assert_eq!(good.to_string(), "a product [3, 7] bf16 · [5, 7]ᵀ bf16 of 3 x 5 f32");
        assert_eq!(Matmul { c: matrix(5, Number::Bf16), ..good }.check(), Ok(()));
        for (wrong, told) in [
            (Matmul { k: 0, ..good }, "an empty matrix"),
            (Matmul { a: matrix(6, Number::Bf16), ..good }, "a has 7 columns and a stride of 6"),
            (Matmul { transpose_b: false, b: matrix(4, Number::Bf16), ..good }, "b has 5 columns and a stride of 4"),
            (Matmul { c: matrix(4, Number::F32), ..good }, "c has 5 columns and a stride of 4"),
            (Matmul { b: matrix(7, Number::F16), ..good }, "two formats"),
            (Matmul { c: matrix(5, Number::F16), ..good }, "a result in f16 (expected f32 or bf16)"),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
