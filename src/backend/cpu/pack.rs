//! Weights in the order that the kernels read them.
//!
//! A packed matrix is a run of *panels* of 16 output columns. Of plain numbers a panel is `[k][16]`, in the number format
//! of the file: one load gives one input's weights of 16 outputs. Of bfloat16 numbers two inputs lie together,
//! `[k / 2][16][2]` (see [`Element`]), and so of E4M3 numbers, in groups with 16 scales in f32 before each. Integer codes
//! stay codes: see [`codes`](super::codes).
//! Matrices that share an input (q, k and v; gate and up) are packed into one, each in its own form. Outputs that fill no
//! panel are padded with zeros.

use super::super::BackendError;
use super::codes::{self, Layout};
use super::lanes::{E4m3, Element, LANES};
use super::memory::Memory;
use super::pool::Pool;
use crate::model::{Dtype, Format, Fp8, Matrix, e4m3, floats};
use std::ops::Range;

/// How a panel lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Plain numbers.
    Floats(Dtype),
    /// E4M3 numbers with scales for each so many inputs.
    Eights(usize),
    /// Codes and scales, and which of the matrix's [orders](Panels::orders) the inputs are in.
    Codes(Layout, usize),
}

impl Form {
    /// Bytes of a panel of so many inputs.
    pub fn panel_bytes(&self, inputs: usize) -> usize {
        match self {
            Self::Floats(dtype) => inputs * LANES * dtype.size(),
            Self::Eights(size) => inputs.div_ceil(*size) * E4m3::SCALES + inputs * LANES,
            Self::Codes(layout, _) => layout.panel_bytes(),
        }
    }
}

/// Where a packed matrix lies in its [`Packed`] memory.
#[derive(Debug, Clone)]
pub struct Panels {
    /// Panels of 16 outputs.
    pub count: usize,
    /// Inputs.
    pub inputs: usize,
    /// The orders in which codes take the inputs in 8 bits: the input at each place, or `None`, as they are. There is none
    /// where the matrix is plain numbers, and one but for matrices that are packed together and have different orders.
    pub orders: Vec<Option<Vec<u32>>>,
    runs: Vec<Run>,
}

/// Panels of one form that follow each other.
#[derive(Debug, Clone)]
struct Run {
    form: Form,
    panels: Range<usize>,
    start: usize,
}

impl Panels {
    /// The panels of a range, those of one form together: their form, which they are, where the first of them starts.
    pub fn parts(&self, range: Range<usize>) -> impl Iterator<Item = (Form, Range<usize>, usize)> {
        assert!(range.end <= self.count);
        let part = move |run: &Run| {
            let (first, end) = (run.panels.start.max(range.start), run.panels.end.min(range.end));
            let start = run.start + first.saturating_sub(run.panels.start) * run.form.panel_bytes(self.inputs);
            (first < end).then_some((run.form, first..end, start))
        };
        self.runs.iter().filter_map(part)
    }

    /// The order of inputs of a form of this matrix, unless it is their own.
    fn order(&self, form: Form) -> Option<&[u32]> {
        match form {
            Form::Codes(_, order) => self.orders[order].as_deref(),
            Form::Floats(_) | Form::Eights(_) => None,
        }
    }

    /// Which of the orders is this one, which is a new one if need be.
    fn order_at(&mut self, order: Option<&[u32]>) -> usize {
        self.orders.iter().position(|known| known.as_deref() == order).unwrap_or_else(|| {
            self.orders.push(order.map(<[u32]>::to_vec));
            self.orders.len() - 1
        })
    }
}

/// All packed matrices of a model.
pub struct Packed {
    bytes: Memory<u8>,
    /// Most [orders](Panels::orders) of a matrix.
    pub orders: usize,
}

impl Packed {
    /// A pointer to a byte of a matrix.
    pub fn at(&self, start: usize) -> *const u8 {
        self.bytes.at(start)
    }

    /// Output column `column` over some inputs: a part of a row of the matrix, dequantised.
    pub fn column(&self, matrix: &Panels, column: usize, inputs: Range<usize>, out: &mut [f32]) {
        assert!(inputs.end <= matrix.inputs);
        let panel = column / LANES;
        for (form, _, start) in matrix.parts(panel..panel + 1) {
            // SAFETY: packed memory is never written once it is made.
            let panel = unsafe { self.bytes.slice(start, form.panel_bytes(matrix.inputs)) };
            let element = |at: usize| match form {
                Form::Codes(layout, _) => codes::element(&layout, panel, at, column % LANES),
                Form::Floats(dtype) => {
                    let at = place(dtype == Dtype::BF16, matrix.inputs, at, column % LANES);
                    let mut number = [0.0];
                    dtype.widen(&panel[at * dtype.size()..][..dtype.size()], &mut number);
                    number[0]
                }
                Form::Eights(size) => {
                    let (scales, weights) = panel[group_at(size, at / size)..].split_at(E4m3::SCALES);
                    let len = size.min(matrix.inputs - at / size * size);
                    let scale = scales.as_chunks::<4>().0[column % LANES];
                    e4m3(weights[place(true, len, at % size, column % LANES)]) * f32::from_le_bytes(scale)
                }
            };
            match matrix.order(form) {
                None => inputs.clone().zip(out.iter_mut()).for_each(|(input, out)| *out = element(input)),
                Some(order) => {
                    let wanted = |&(_, &input): &(usize, &u32)| inputs.contains(&(input as usize));
                    let places = order.iter().enumerate().filter(wanted);
                    places.for_each(|(at, &input)| out[input as usize - inputs.start] = element(at));
                }
            }
        }
    }
}

/// Collects what is to be packed, so that it can be done in parallel into one piece of memory.
pub struct Packer<'a> {
    /// Whether integer codes are kept as such; else they are dequantised.
    codes: bool,
    jobs: Vec<PanelJob<'a>>,
    bytes: usize,
    /// Most orders of inputs of a matrix.
    orders: usize,
}

/// One panel to fill: up to 16 rows of a stored matrix.
struct PanelJob<'a> {
    source: Matrix<'a>,
    row: usize,
    rows: usize,
    form: Form,
    to: usize,
}

impl<'a> Packer<'a> {
    /// Nothing yet; `codes`: integer codes are kept as such, else they are dequantised to f32.
    pub fn new(codes: bool) -> Self {
        Self { codes, jobs: Vec::new(), bytes: 0, orders: 0 }
    }

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
        let inputs = panels[0].0.cols;
        let mut planned = Panels { count: panels.len(), inputs, orders: Vec::new(), runs: Vec::new() };
        for (index, (source, row, rows)) in panels.into_iter().enumerate() {
            let form = match (source.format, Layout::of(source.format, inputs).filter(|_| self.codes)) {
                (_, Some(layout)) => Form::Codes(layout, planned.order_at(source.columns)),
                (Format::Float(dtype), None) => Form::Floats(dtype),
                (Format::Fp8(Fp8 { size }), None) => Form::Eights(size.min(inputs)),
                (_, None) => Form::Floats(Dtype::F32),
            };
            match planned.runs.last_mut() {
                Some(run) if run.form == form => run.panels.end += 1,
                _ => {
                    self.bytes = self.bytes.next_multiple_of(64);
                    planned.runs.push(Run { form, panels: index..index + 1, start: self.bytes });
                }
            }
            self.jobs.push(PanelJob { source, row, rows, form, to: self.bytes });
            self.bytes += form.panel_bytes(inputs);
        }
        self.bytes = self.bytes.next_multiple_of(4096);
        self.orders = self.orders.max(planned.orders.len());
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
                let panel = unsafe { bytes.slice_mut(job.to, job.form.panel_bytes(job.source.cols)) };
                job.fill(panel);
            }
        });
        Ok(Packed { bytes, orders: self.orders })
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
        for lane in 0..self.rows {
            let row = self.row + lane;
            match self.form {
                Form::Codes(layout, _) => codes::fill(&layout, &self.source, row, panel, lane),
                Form::Eights(size) => scatter_eights(size, self.source.row(row), self.source.cols, panel, lane),
                Form::Floats(dtype) if self.source.format == dtype.into() => match dtype.size() {
                    2 => scatter::<2>(dtype, self.source.row(row), panel, lane),
                    _ => scatter::<4>(dtype, self.source.row(row), panel, lane),
                },
                Form::Floats(dtype) => {
                    let mut numbers = vec![0.0f32; self.source.cols];
                    self.source.dequantise_row(row, &mut numbers);
                    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                    scatter::<4>(dtype, &bytes, panel, lane);
                }
            }
        }
    }
}

/// `panel[k][lane] = row[k]`, elements of `SIZE` bytes.
fn scatter<const SIZE: usize>(dtype: Dtype, row: &[u8], panel: &mut [u8], lane: usize) {
    let (row, panel) = (row.as_chunks::<SIZE>().0, panel.as_chunks_mut::<SIZE>().0);
    for (input, element) in row.iter().enumerate() {
        panel[place(dtype == Dtype::BF16, row.len(), input, lane)] = *element;
    }
}

/// The same of a row of E4M3 numbers. The scale of a group with something in it that is no number is none: kernels take
/// its codes for numbers.
fn scatter_eights(size: usize, row: &[u8], cols: usize, panel: &mut [u8], lane: usize) {
    const NO_NUMBER: u8 = 0x7f;
    let (scales, codes) = row.split_at(row.len() - cols);
    for (index, (codes, scale)) in codes.chunks(size).zip(floats(scales)).enumerate() {
        let (scales, weights) = panel[group_at(size, index)..].split_at_mut(E4m3::SCALES);
        let broken = codes.iter().any(|code| code & 0x7f == NO_NUMBER);
        scales.as_chunks_mut::<4>().0[lane] = if broken { f32::NAN } else { scale }.to_le_bytes();
        codes.iter().enumerate().for_each(|(input, &code)| weights[place(true, codes.len(), input, lane)] = code);
    }
}

/// Where a group starts in a panel of E4M3 numbers.
fn group_at(size: usize, index: usize) -> usize {
    index * (E4m3::SCALES + size * LANES)
}

/// Where an input's weight of one lane lies in a panel of `inputs` inputs, those of two inputs together or not.
fn place(paired: bool, inputs: usize, input: usize, lane: usize) -> usize {
    let paired = paired && input | 1 < inputs;
    if paired { (input & !1) * LANES + 2 * lane + (input & 1) } else { input * LANES + lane }
}
