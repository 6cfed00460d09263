//! Devices, models and requests of these tests.

pub use crate::requests::{run, tokens};

use crate::exits::exit_after;
use crate::tested_gpu::tested_gpu;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::loop_probe::Loops;
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{Backend, BackendError};
use eesd::control::ControllerSpec;
use eesd::engine::Engine;
use eesd::kv::{BlockTable, PAGE_TOKENS, PagePool};
use eesd::load::{Checkpoint, ExitBlock};
use eesd::model::{ExitWeights, Geometry, ModelWeights};
use std::path::Path;
use std::sync::Arc;

/// Memory of the emulated device: nothing here needs more.
const DEVICE_BYTES: u64 = 4 << 30;

/// A model with an exit block: a shipped one, or an untrained copy of its last layer.
pub struct Subject {
    pub checkpoint: Checkpoint,
    pub exits: Vec<ExitBlock>,
}

impl Subject {
    pub fn bundled() -> Self {
        // As a folder: a program for a machine with a GPU need not carry the model too.
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m");
        let checkpoint = Checkpoint::open(&folder).unwrap();
        Self { exits: checkpoint.exit_blocks().unwrap(), checkpoint }
    }

    pub fn fixture(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf").join(name);
        Self { checkpoint: Checkpoint::open(&folder).unwrap(), exits: Vec::new() }
    }

    /// Every fixture: Llama, Mistral, Qwen2 and Qwen3, heads of 32 and 64, tied and untied, biases, QK norms.
    pub fn fixtures() -> Vec<Self> {
        ["llama", "llama3_rope_sharded", "mistral", "qwen2", "qwen3"].map(Self::fixture).into()
    }

    pub fn name(&self) -> &str {
        self.checkpoint.name()
    }

    pub fn geometry(&self) -> &Geometry {
        self.checkpoint.geometry()
    }

    pub fn exit(&self, after: usize) -> ExitWeights<'_> {
        exit_after(&self.checkpoint, &self.exits, after)
    }

    /// The first prompts that the bundled model comes with.
    pub fn prompts(&self, count: usize) -> Vec<Vec<TokenId>> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m/prompts.jsonl");
        let lines = std::fs::read_to_string(file).unwrap();
        let tokenizer = self.checkpoint.tokenizer().unwrap();
        let ids = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            tokenizer.encode(line["prompt"].as_str().unwrap(), true).unwrap()
        };
        lines.lines().take(count).map(ids).collect()
    }

    /// Some token ids, the same for a seed.
    pub fn text(&self, seed: u64, len: usize) -> Vec<TokenId> {
        let vocab = self.geometry().vocab_size as u64;
        (0..len as u64).map(|i| ((seed * 7919 + i * i * 31 + i * 17) % vocab) as TokenId).collect()
    }

    pub fn cuda(&self, exit: Option<usize>, options: &CudaOptions) -> Box<dyn Backend> {
        let exit = exit.map(|after| self.exit(after));
        on_device(self.geometry(), &self.checkpoint.weights(), exit.as_ref(), options)
    }

    pub fn cpu(&self, exit: Option<usize>, slots: usize) -> Box<dyn Backend> {
        let exit = exit.map(|after| self.exit(after));
        let options = CpuOptions { slots, context: CONTEXT, max_draft: 16, ..CpuOptions::default() };
        CpuBackend::new(self.geometry(), &self.checkpoint.weights(), exit.as_ref(), &options).unwrap()
    }
}

/// Positions of a sequence in these tests: several chunks of attention.
pub const CONTEXT: usize = 512;

/// Few slots and short prefill passes, so that prompts are cut.
pub fn options(slots: usize) -> CudaOptions {
    CudaOptions { slots, context: CONTEXT, prefill_rows: 24, ..CudaOptions::default() }
}

/// A model on the GPU to be tested, or on the emulated one.
pub fn on_device(
    geometry: &Geometry,
    weights: &ModelWeights<'_>,
    exit: Option<&ExitWeights<'_>>,
    options: &CudaOptions,
) -> Box<dyn Backend> {
    match tested_gpu() {
        Some(number) => {
            let gpu = Arc::new(Gpu::open(number).unwrap());
            gpu.allow_loops(tested_loops());
            CudaBackend::new(gpu, geometry, weights, exit, options)
        }
        None => CudaBackend::new(emulated(3, DEVICE_BYTES), geometry, weights, exit, options),
    }
    .unwrap()
}

/// What `EESD_TEST_LOOPS` lets a GPU do, `in-order` or `overlapping`: tests of nothing else then die where a driver does.
fn tested_loops() -> Loops {
    match std::env::var("EESD_TEST_LOOPS").as_deref() {
        Err(_) => Loops::None,
        Ok("in-order") => Loops::InOrder,
        Ok("overlapping") => Loops::Overlapping,
        Ok(other) => panic!("EESD_TEST_LOOPS={other}: expected in-order or overlapping"),
    }
}

/// An emulated device whose threads run in an order of their own.
pub fn emulated(seed: u64, bytes: u64) -> Arc<EmulatedDevice> {
    Arc::new(EmulatedDevice::new(Emulator::new(seed), bytes))
}

/// Whether the device to be tested has a library of matrix products; a GPU without is said.
pub fn can_multiply() -> bool {
    let Some(number) = tested_gpu() else { return true };
    let library = Gpu::open(number).unwrap().matmul_workspace();
    if let Err(why) = &library {
        println!("left out: {why}");
    }
    library.is_ok()
}

/// A small model with an exit block after its first layer, on a device.
pub fn on(device: &Arc<EmulatedDevice>, options: &CudaOptions) -> Result<Box<dyn Backend>, BackendError> {
    let subject = Subject::fixture("llama");
    let (weights, exit) = (subject.checkpoint.weights(), subject.exit(1));
    CudaBackend::new(device.clone(), subject.geometry(), &weights, Some(&exit), options)
}

/// A block table with room for `positions`, of pages from `first` on.
pub fn table(first: usize, positions: usize) -> BlockTable {
    let pages = positions.div_ceil(PAGE_TOKENS);
    let mut pool = PagePool::new(first + pages);
    pool.take(first).unwrap();
    let mut table = BlockTable::default();
    table.reserve(positions, &mut pool).unwrap();
    table
}

pub fn engine(backend: Box<dyn Backend>, controller: &str) -> Engine {
    Engine::new(backend, controller.parse::<ControllerSpec>().unwrap().build(), None, Vec::new())
}

pub fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Root of the mean square.
pub fn size(numbers: impl Iterator<Item = f32>) -> f64 {
    let (sum, count) = numbers.fold((0.0, 0), |(sum, count), x| (sum + f64::from(x).powi(2), count + 1));
    (sum / f64::from(count)).sqrt()
}

/// Root of the mean square of what two differ by.
pub fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    size(a.iter().zip(b).map(|(a, b)| a - b))
}
