//! Each kernel of a layer by itself, against the memory: what it reads, how long it takes.
//!
//! Launches are recorded as one graph, as in a pass, so that neither the host nor the gaps between launches
//! made one by one are measured. Each goes to the next of several copies of the weights (or of the cache),
//! which together are many times the GPU's cache.

use crate::costs::median;
use crate::device::Measurable;
use crate::expected;
use crate::sizes::Size;
use crate::steps::cache_bytes;
use bytemuck::Zeroable;
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::kernels::{
    Address, Attention, AttentionForm, Form, Format, GateUp, HeadPartial, LmHead, Norm, PagedBatch, Projection, Qkv,
    RandomWeights, Residual, attend, project, random_weights,
};
use eesd::backend::cuda::pack::{CHUNK, block_bytes, chunks, packed_bytes};
use eesd::backend::{BackendError, KvFormat};
use eesd::kv::PAGE_TOKENS;
use std::error::Error;
use std::f64::consts::LOG2_E;
use std::sync::Arc;

/// Rows that every buffer has room for, whatever a pass has.
const ROOM: usize = 72;
/// Bytes of a weight, or of a number in the cache.
const ELEMENT: usize = 2;
/// Every buffer begins and ends on such a boundary.
const ALIGNMENT: usize = 256;
const FORMAT: Format = Format::Bf16;

/// Measures the kernels at one model's shapes and prints them; `copy_rate` is in bytes per second.
///
/// # Errors
/// If there is too little memory, or the device fails.
pub fn kernels<D: Measurable>(driver: &Arc<D>, size: &Size, copy_rate: f64) -> Result<(), Box<dyn Error>> {
    println!(
        "### Kernels, {}\n\n\
         Bytes: weights, or keys and values, read once; medians of {} graphs of {} launches or more, each to other \
         weights than the one before.\n\n\
         | kernel | rows | MB | µs | expected | GB/s | of a copy |\n|---|--:|--:|--:|--:|--:|--:|",
        size.name, size.repetitions, size.launches
    );
    let bench = Bench { driver, size, copy_rate };
    for (name, outputs, inputs) in size.projections() {
        bench.projection(name, outputs, inputs, &|on, projection, buffers| {
            // SAFETY: all buffers have room for the rows of `projection`.
            unsafe { launch(on, (name, outputs, inputs), projection, buffers) }
        })?;
    }
    for kv in [KvFormat::Full, KvFormat::Eight] {
        size.contexts.iter().try_for_each(|&context| bench.attention(kv, context))?;
    }
    println!();
    Ok(())
}

/// Launches the kernel of that name.
///
/// # Safety
/// The buffers have room for the projection's rows.
unsafe fn launch<D: Driver>(
    on: &D,
    (name, outputs, inputs): (&str, usize, usize),
    projection: Projection,
    buffers: &Buffers<D>,
) -> Result<(), BackendError> {
    let (norm, form) = (buffers.norm(inputs), Form::for_tokens(projection.tokens));
    let (bias, padding) = (Address(0), 0);
    // SAFETY: the caller's promise.
    unsafe {
        match name {
            "qkv" => {
                let stride = outputs as i32;
                let arguments = Qkv { projection, norm, bias, out: buffers.out.at(), stride, padding };
                project(on, "qkv", FORMAT, form, &arguments)
            }
            "gate_up" => {
                let (intermediate, out) = (outputs / 2, buffers.out.at());
                let (stride, intermediate) = (stride(intermediate) as i32, intermediate as i32);
                project(on, "gate_up", FORMAT, form, &GateUp { projection, norm, bias, out, stride, intermediate })
            }
            "lm_head" => {
                let (logits, partials) = (buffers.out.at(), buffers.partials.at());
                project(on, "lm_head", FORMAT, form, &LmHead { projection, norm, logits, partials })
            }
            _ => {
                let arguments = Residual {
                    projection,
                    bias,
                    from: buffers.residual.at(),
                    residual: buffers.residual.at(),
                    next_norm: buffers.next_norm.at(),
                    operand: buffers.out.at(),
                    stride: stride(outputs) as i32,
                    padding,
                    squares: buffers.squares.at(),
                };
                project(on, "residual", FORMAT, form, &arguments)
            }
        }
    }
}

/// Elements between rows of a projection's input: whole chunks.
fn stride(inputs: usize) -> usize {
    chunks(inputs) * CHUNK
}

/// What projections read and write besides weights. All is finite: residual stream and sums of squares begin
/// at zero, inputs are random.
struct Buffers<D: Driver> {
    x: Memory<D>,
    squares: Memory<D>,
    residual: Memory<D>,
    next_norm: Memory<D>,
    out: Memory<D>,
    partials: Memory<D>,
}

impl<D: Driver> Buffers<D> {
    fn new(driver: &Arc<D>, outputs: usize, inputs: usize) -> Result<Self, BackendError> {
        let zeroed = |bytes: usize| Memory::zeroed(driver, bytes.next_multiple_of(ALIGNMENT), "activations");
        let buffers = Self {
            x: zeroed(ROOM * stride(inputs) * ELEMENT)?,
            // One of 32 numbers of the stream, which is the input of some kernels and the output of others.
            squares: zeroed(ROOM * outputs.max(inputs).div_ceil(32) * 4)?,
            residual: zeroed(ROOM * outputs * 4)?,
            next_norm: zeroed(outputs * 4)?,
            out: zeroed(ROOM * stride(outputs) * 4)?,
            partials: zeroed(ROOM * outputs.div_ceil(32) * size_of::<HeadPartial>())?,
        };
        fill(driver, &buffers.x, 1.0)?;
        Ok(buffers)
    }

    fn norm(&self, width: usize) -> Norm {
        let slots = width.div_ceil(32) as i32;
        Norm { squares: self.squares.at(), slots, width: width as i32, epsilon: 1e-5, padding: 0 }
    }
}

/// Fills memory with random numbers.
pub fn fill<D: Driver>(driver: &Arc<D>, memory: &Memory<D>, scale: f32) -> Result<(), BackendError> {
    let elements = (memory.bytes() / 16 * 8) as u64;
    let arguments = RandomWeights { target: memory.at(), seed: 1, elements, scale, padding: 0 };
    // SAFETY: the memory has as many elements.
    unsafe { random_weights(&**driver, FORMAT, &arguments) }
}

/// Launches a projection with these weights and rows.
type Launch<'a, D> = &'a dyn Fn(&D, Projection, &Buffers<D>) -> Result<(), BackendError>;

struct Bench<'a, D: Measurable> {
    driver: &'a Arc<D>,
    size: &'a Size,
    copy_rate: f64,
}

impl<D: Measurable> Bench<'_, D> {
    fn projection(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
        launch: Launch<'_, D>,
    ) -> Result<(), Box<dyn Error>> {
        // As a backend lays weights out: with a block more.
        let room = (packed_bytes(outputs, inputs) + block_bytes(inputs)).next_multiple_of(ALIGNMENT);
        let copies = self.copies(room);
        let weights = Memory::zeroed(self.driver, copies * room, "weights")?;
        fill(self.driver, &weights, (inputs as f32).sqrt().recip())?;
        let buffers = Buffers::new(self.driver, outputs, inputs)?;
        for &rows in self.size.kernel_rows {
            let seconds = time(&**self.driver, self.size, copies, &|copy| {
                let projection = Projection {
                    weights: weights.byte(copy * room),
                    x: buffers.x.at(),
                    outputs: outputs as i32,
                    chunks: chunks(inputs) as i32,
                    stride: stride(inputs) as i32,
                    tokens: rows as i32,
                    coding: 0,
                    padding: 0,
                };
                launch(self.driver, projection, &buffers)
            })?;
            let bytes = outputs * inputs * ELEMENT;
            self.print(name, rows, bytes, seconds, expected::projection(bytes, rows));
        }
        Ok(())
    }

    fn attention(&self, kv: KvFormat, context: usize) -> Result<(), Box<dyn Error>> {
        let geometry = &self.size.geometry;
        let (heads, kv_heads, head_dim) = (geometry.heads, geometry.kv_heads, geometry.head_dim);
        let pages = context.div_ceil(PAGE_TOKENS);
        let half = (cache_bytes(geometry, kv, pages * PAGE_TOKENS) / 2).next_multiple_of(ALIGNMENT);
        let copies = self.copies(2 * half);
        let cache = Memory::zeroed(self.driver, copies * 2 * half, "cache")?;
        fill(self.driver, &cache, 1.0)?; // as codes and scales they are as good as any
        let zeroed = |bytes: usize| Memory::zeroed(self.driver, bytes.next_multiple_of(ALIGNMENT), "attention");
        let chunks = context.div_ceil(Attention::CHUNK_TOKENS as usize).next_power_of_two();
        let most_tiles = Attention::row_tiles(ROOM, heads, kv_heads);
        let qkv = zeroed(ROOM * (geometry.q_size() + 2 * geometry.kv_size()) * 4)?;
        let rotary = zeroed(context * head_dim * 4)?;
        let out = zeroed(ROOM * stride(geometry.q_size()) * ELEMENT)?;
        let partial = zeroed(Attention::partial_bytes(1, kv_heads, most_tiles, chunks, head_dim))?;
        let arrived = zeroed(kv_heads * most_tiles * 4)?;
        // Every page of a power of two of chunks; those past the context are never read.
        let max_pages = chunks * Attention::CHUNK_TOKENS as usize / PAGE_TOKENS;
        let told = [16, 16, 4 * max_pages];
        let inbox = zeroed(told.iter().sum())?;
        let mut host = HostMemory::zeroed(self.driver, told.iter().sum())?;
        for &rows in self.size.rows {
            let words: &mut [u32] = bytemuck::cast_slice_mut(host.contents_mut());
            words[..5].copy_from_slice(&[0, rows as u32, 0, 0, (context - rows) as u32]);
            for (page, entry) in words[8..].iter_mut().enumerate() {
                *entry = if page < pages { page as u32 } else { 0 };
            }
            // SAFETY: both sides have room, and the host's is left alone until the copy is done.
            unsafe { self.driver.copy_to_device(inbox.at(), host.at(), host.contents().len()) }?;
            self.driver.wait()?;
            let row_tiles = Attention::row_tiles(rows, heads, kv_heads) as i32;
            let batch = PagedBatch {
                row_begin: inbox.at(),
                start: inbox.byte(told[0]),
                block_table: inbox.byte(told[0] + told[1]),
                max_pages: max_pages as i32,
                padding: 0,
            };
            let seconds = time(&**self.driver, self.size, copies, &|copy| {
                let arguments = Attention {
                    batch,
                    qkv: qkv.at(),
                    k_cache: cache.byte(copy * 2 * half),
                    v_cache: cache.byte(copy * 2 * half + half),
                    rotary: rotary.at(),
                    scale: (LOG2_E / (head_dim as f64).sqrt()) as f32,
                    heads: heads as i32,
                    kv_heads: kv_heads as i32,
                    row_tiles,
                    out: out.at(),
                    stride: stride(geometry.q_size()) as i32,
                    partial: partial.at(),
                    arrived: arrived.at(),
                    ..Attention::zeroed()
                };
                // SAFETY: all buffers have room for the rows, positions and chunks.
                unsafe {
                    attend(&**self.driver, (FORMAT, kv), AttentionForm::Split { chunks }, 1, head_dim, &arguments)
                }
            })?;
            let bytes = cache_bytes(geometry, kv, context);
            let kept = if kv == KvFormat::Eight { " in 8 bits" } else { "" };
            self.print(&format!("attention{kept}, {context}"), rows, bytes, seconds, expected::reading(bytes));
        }
        Ok(())
    }

    /// How many times something of `bytes` bytes is held.
    fn copies(&self, bytes: usize) -> usize {
        self.size.spread_bytes.div_ceil(bytes).max(2)
    }

    fn print(&self, name: &str, rows: usize, bytes: usize, seconds: f64, expected: f64) {
        let rate = bytes as f64 / seconds;
        println!(
            "| {name} | {rows} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} % |",
            bytes as f64 * 1e-6,
            seconds * 1e6,
            expected * 1e6,
            rate * 1e-9,
            rate / self.copy_rate * 100.0
        );
    }
}

/// Seconds of a launch, which is told which of `copies` copies to read.
///
/// # Errors
/// If the device fails.
pub fn time<D: Measurable>(
    driver: &D,
    size: &Size,
    copies: usize,
    launch: &dyn Fn(usize) -> Result<(), BackendError>,
) -> Result<f64, BackendError> {
    let launches = size.launches.next_multiple_of(copies);
    // The kernel is loaded when it is first needed.
    launch(0)?;
    driver.wait()?;
    driver.begin_capture()?;
    let launched = (0..launches).try_for_each(|index| launch(index % copies));
    let graph = driver.end_capture();
    launched?;
    let graph = graph?;
    // SAFETY: all that the launches use outlives the graph's last replay, which is waited for.
    let mut replay = || unsafe { driver.replay(&graph) };
    replay()?;
    let mut seconds = Vec::new();
    for _ in 0..size.repetitions {
        seconds.push(driver.seconds(&mut replay)? / launches as f64);
    }
    driver.wait()?;
    Ok(median(&seconds))
}
