//! Weights in the order that the kernels read them.
//!
//! A packed matrix is a run of *panels* of 16 output columns, `[panel][k][16]`, in the number format
//! of the file: one load gives one input's weights of 16 outputs. Of bfloat16 numbers two inputs lie
//! together, `[panel][k / 2][16][2]` (see [`Element`](super::lanes::Element)). Matrices that share an input
//! (q, k and v; gate and up) are packed into one. Outputs that fill no panel are padded with zeros.

use super::super::BackendError;
use super::lanes::LANES;
use super::memory::Memory;
use super::pool::Pool;
use crate::model::{Dtype, Matrix};
use half::{bf16, f16};

/// Where a packed matrix lies in its [`Packed`] memory.
#[derive(Debug, Clone, Copy)]
pub struct Panels {
    /// Number format of the elements.
    pub dtype: Dtype,
    /// Panels of 16 outputs.
    pub count: usize,
    /// Inputs.
    pub inputs: usize,
    start: usize,
}

impl Panels {
    /// Bytes of one panel.
    pub fn panel_bytes(&self) -> usize {
        self.inputs * LANES * self.dtype.size()
    }
}

/// All packed matrices of a model.
pub struct Packed {
    bytes: Memory<u8>,
}

impl Packed {
    /// A pointer to panel `panel` of a matrix, aligned to a cache line.
    pub fn panel(&self, matrix: &Panels, panel: usize) -> *const u8 {
        assert!(panel <= matrix.count);
        self.bytes.at(matrix.start + panel * matrix.panel_bytes())
    }

    /// Output column `column` over all inputs: a row of the matrix as it was stored.
    pub fn column(&self, matrix: &Panels, column: usize, inputs: std::ops::Range<usize>, out: &mut [f32]) {
        assert!(inputs.end <= matrix.inputs && column / LANES < matrix.count);
        let size = matrix.dtype.size();
        let panel = matrix.start + (column / LANES) * matrix.panel_bytes();
        for (input, out) in inputs.zip(out) {
            let at = panel + place(matrix.dtype, matrix.inputs, input, column % LANES) * size;
            // SAFETY: packed memory is never written once it is made.
            let element = unsafe { self.bytes.slice(at, size) };
            *out = widen(matrix.dtype, element);
        }
    }
}

/// Collects what is to be packed, so that it can be done in parallel into one piece of memory.
#[derive(Default)]
pub struct Packer<'a> {
    jobs: Vec<PanelJob<'a>>,
    bytes: usize,
}

/// One panel to fill: up to 16 rows of a stored matrix.
struct PanelJob<'a> {
    source: Matrix<'a>,
    row: usize,
    rows: usize,
    dtype: Dtype,
    to: usize,
}

impl<'a> Packer<'a> {
    /// Plans a matrix.
    pub fn matrix(&mut self, source: Matrix<'a>) -> Panels {
        self.heads(&[source], source.rows)
    }

    /// Plans matrices one after the other, each cut into heads of `head` rows that start at a panel.
    pub fn heads(&mut self, sources: &[Matrix<'a>], head: usize) -> Panels {
        let mut panels = Vec::new();
        for &source in sources {
            for first in (0..source.rows).step_by(head) {
                panels.extend(panels_of(source, first..(first + head).min(source.rows)));
            }
        }
        self.plan(panels)
    }

    /// Plans two matrices of the same shape with their panels in turn.
    pub fn interleaved(&mut self, even: Matrix<'a>, odd: Matrix<'a>) -> Panels {
        let pairs = panels_of(even, 0..even.rows).zip(panels_of(odd, 0..odd.rows));
        self.plan(pairs.flat_map(|(even, odd)| [even, odd]).collect())
    }

    fn plan(&mut self, panels: Vec<(Matrix<'a>, usize, usize)>) -> Panels {
        let first = panels[0].0;
        // Where fused matrices differ in format, f32 holds them all exactly.
        let same = panels.iter().all(|(source, ..)| source.format == first.format);
        let dtype = first.format.dtype().filter(|_| same).unwrap_or(Dtype::F32);
        let planned = Panels { dtype, count: panels.len(), inputs: first.cols, start: self.bytes };
        for (source, row, rows) in panels {
            self.jobs.push(PanelJob { source, row, rows, dtype, to: self.bytes });
            self.bytes += planned.panel_bytes();
        }
        self.bytes = self.bytes.next_multiple_of(4096);
        planned
    }

    /// Packs everything planned.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn pack(self, pool: &mut Pool) -> Result<Packed, BackendError> {
        let bytes = Memory::zeroed(self.bytes, "weights")?;
        pool.run(&|worker| {
            while let Some(unit) = worker.claim(self.jobs.len()) {
                let job = &self.jobs[unit];
                // SAFETY: each panel is one job's, and each job one worker's.
                let panel = unsafe { bytes.slice_mut(job.to, job.source.cols * LANES * job.dtype.size()) };
                job.fill(panel);
            }
        });
        Ok(Packed { bytes })
    }
}

/// Rows `range` of a matrix as panels: (matrix, first row, rows).
fn panels_of<'a>(
    source: Matrix<'a>,
    range: std::ops::Range<usize>,
) -> impl Iterator<Item = (Matrix<'a>, usize, usize)> {
    range.clone().step_by(LANES).map(move |row| (source, row, LANES.min(range.end - row)))
}

impl PanelJob<'_> {
    fn fill(&self, panel: &mut [u8]) {
        match (self.source.format == self.dtype.into(), self.dtype.size()) {
            (true, 2) => self.transpose::<2>(panel, |row| row.to_vec()),
            (true, _) => self.transpose::<4>(panel, |row| row.to_vec()),
            (false, _) => self.transpose::<4>(panel, |row| {
                let mut numbers = vec![0.0; self.source.cols];
                self.source.format.dequantise(row, &mut numbers);
                numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
            }),
        }
    }

    /// `panel[k][lane] = convert(row + lane)[k]`, elements of `SIZE` bytes.
    fn transpose<const SIZE: usize>(&self, panel: &mut [u8], convert: impl Fn(&[u8]) -> Vec<u8>) {
        let (panel, _) = panel.as_chunks_mut::<SIZE>();
        for lane in 0..self.rows {
            let row = convert(self.source.row(self.row + lane));
            for (input, element) in row.as_chunks::<SIZE>().0.iter().enumerate() {
                panel[place(self.dtype, self.source.cols, input, lane)] = *element;
            }
        }
    }
}

/// Where an input's weight of one lane lies in a panel of `inputs` inputs.
fn place(dtype: Dtype, inputs: usize, input: usize, lane: usize) -> usize {
    let paired = dtype == Dtype::BF16 && input | 1 < inputs;
    if paired { (input & !1) * LANES + 2 * lane + (input & 1) } else { input * LANES + lane }
}

/// One stored element as `f32`.
pub fn widen(dtype: Dtype, element: &[u8]) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_le_bytes([element[0], element[1], element[2], element[3]]),
        Dtype::F16 => f16::from_le_bytes([element[0], element[1]]).to_f32(),
        Dtype::BF16 => bf16::from_le_bytes([element[0], element[1]]).to_f32(),
    }
}
