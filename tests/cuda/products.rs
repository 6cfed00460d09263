//! Products of matrices: every format, both ways round of both factors, strides, factors, against float64 sums.

use crate::support::{can_multiply, emulated};
use crate::tested_gpu::tested_gpu;
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::matmul::{Matmul, Number, RowMajor};
use half::{bf16, f16};
use std::sync::Arc;

fn narrow(number: Number, x: f32) -> Vec<u8> {
    match number {
        Number::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        Number::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Number::F32 => x.to_le_bytes().to_vec(),
    }
}

fn widen(number: Number, bytes: &[u8]) -> f64 {
    match number {
        Number::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Number::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Number::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]).into(),
    }
}

/// A matrix on the device, and its numbers as they are there, padding between rows included.
struct OnDevice<D: Driver> {
    memory: Memory<D>,
    host: HostMemory<D>,
    number: Number,
    stride: usize,
}

impl<D: Driver> OnDevice<D> {
    fn new(driver: &Arc<D>, number: Number, (rows, columns): (usize, usize), padding: usize, seed: usize) -> Self {
        // Rows begin on 16 bytes, as the library likes it best.
        let stride = columns.next_multiple_of(8) + padding;
        let bytes: Vec<u8> = (0..rows * stride)
            .flat_map(|i| narrow(number, ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.0 - 1.0))
            .collect();
        let memory = Memory::zeroed(driver, bytes.len(), "a test").unwrap();
        let mut host = HostMemory::zeroed(driver, bytes.len()).unwrap();
        host.contents_mut().copy_from_slice(&bytes);
        // SAFETY: as many bytes, waited for.
        unsafe { driver.copy_to_device(memory.at(), host.at(), bytes.len()) }.unwrap();
        driver.wait().unwrap();
        Self { memory, host, number, stride }
    }

    fn matrix(&self) -> RowMajor {
        RowMajor { at: self.memory.at(), stride: self.stride, number: self.number }
    }

    fn numbers(&self) -> Vec<f64> {
        self.host.contents().chunks(self.number.bytes()).map(|bytes| widen(self.number, bytes)).collect()
    }

    fn read(&self, driver: &D) {
        // SAFETY: as many bytes, waited for.
        unsafe { driver.copy_to_host(self.host.at(), self.memory.at(), self.memory.bytes()) }.unwrap();
        driver.wait().unwrap();
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    shape: [usize; 3],
    numbers: [Number; 2],
    transposed: [bool; 2],
    padding: usize,
    alpha: f32,
    beta: f32,
}

fn check<D: Driver>(driver: &Arc<D>, case: Case) {
    let Case { shape: [m, n, k], numbers: [factors, result], transposed, padding, alpha, beta } = case;
    let turned = |rows: usize, columns: usize, turned: bool| if turned { (columns, rows) } else { (rows, columns) };
    let a = OnDevice::new(driver, factors, turned(m, k, transposed[0]), padding, 1);
    let b = OnDevice::new(driver, factors, turned(k, n, transposed[1]), padding, 2);
    let c = OnDevice::new(driver, result, (m, n), padding, 3);
    let workspace = Memory::zeroed(driver, driver.matmul_workspace().unwrap(), "a test").unwrap();
    let product = Matmul {
        m,
        n,
        k,
        a: a.matrix(),
        transpose_a: transposed[0],
        b: b.matrix(),
        transpose_b: transposed[1],
        c: c.matrix(),
        alpha,
        beta,
        workspace: workspace.at(),
    };
    let (of_a, of_b, before) = (a.numbers(), b.numbers(), c.numbers());
    // SAFETY: all of it is memory of this device.
    unsafe { driver.matmul(&product) }.unwrap();
    c.read(driver);
    let found = c.numbers();
    let roundoff = match result {
        Number::Bf16 => 1.0 / 256.0,
        Number::F16 => 1.0 / 2048.0,
        Number::F32 => 0.0,
    };
    for (i, j) in (0..m).flat_map(|i| (0..c.stride).map(move |j| (i, j))) {
        let at = i * c.stride + j;
        if j >= n {
            assert_eq!(found[at], before[at], "{case:?}: past the columns of row {i}");
            continue;
        }
        let left = |l: usize| of_a[if transposed[0] { l * a.stride + i } else { i * a.stride + l }];
        let right = |l: usize| of_b[if transposed[1] { j * b.stride + l } else { l * b.stride + j }];
        let (sum, magnitude) = (0..k).map(|l| left(l) * right(l)).fold((0.0, 0.0), |(s, m), x| (s + x, m + x.abs()));
        let kept = if beta == 0.0 { 0.0 } else { f64::from(beta) * before[at] };
        let expected = f64::from(alpha) * sum + kept;
        let tolerance = 2e-6 * (magnitude * f64::from(alpha).abs() + kept.abs() + 1.0) + roundoff * expected.abs();
        assert!((found[at] - expected).abs() <= tolerance, "{case:?} ({i}, {j}): {} {expected}", found[at]);
    }
}

fn check_all<D: Driver>(driver: &Arc<D>) {
    use Number::{Bf16, F16, F32};
    let plain = Case {
        shape: [130, 72, 200],
        numbers: [Bf16, F32],
        transposed: [false, true],
        padding: 0,
        alpha: 1.0,
        beta: 0.0,
    };
    // Forward, and what flows back to inputs and to weights, where sums are added to what is there.
    for transposed in [[false, true], [false, false], [true, false], [true, true]] {
        for numbers in [[Bf16, F32], [Bf16, Bf16], [F16, F32], [F16, F16], [F32, F32]] {
            check(driver, Case { transposed, numbers, ..plain });
            check(driver, Case { transposed, numbers, padding: 16, alpha: -0.5, beta: 1.0, ..plain });
        }
    }
    for shape in [[1, 8, 8], [257, 40, 64], [8, 1, 72], [3, 5, 7]] {
        check(driver, Case { shape, ..plain });
        check(driver, Case { shape, alpha: 2.0, beta: 0.25, padding: 8, ..plain });
    }
}

#[test]
fn products_are_what_float64_says() {
    match tested_gpu() {
        Some(_) if !can_multiply() => {}
        Some(number) => check_all(&Arc::new(Gpu::open(number).unwrap())),
        None => check_all(&emulated(0, 1 << 28)),
    }
}

/// Recorded, and computed anew at every replay; what `c` held is not looked at where its factor is zero.
fn check_recorded<D: Driver>(driver: &Arc<D>) {
    let number = Number::F32;
    let [a, b, c] = [1, 2, 3].map(|seed| OnDevice::new(driver, number, (8, 8), 0, seed));
    let workspace = Memory::zeroed(driver, driver.matmul_workspace().unwrap(), "a test").unwrap();
    let product = Matmul {
        m: 8,
        n: 8,
        k: 8,
        a: a.matrix(),
        transpose_a: false,
        b: b.matrix(),
        transpose_b: false,
        c: c.matrix(),
        alpha: 1.0,
        beta: 0.0,
        workspace: workspace.at(),
    };
    // SAFETY: all of it is memory of this device.
    let multiply = || unsafe { driver.matmul(&product) };
    multiply().unwrap();
    c.read(driver);
    let expected = c.numbers();
    driver.begin_capture().unwrap();
    multiply().unwrap();
    let graph = driver.end_capture().unwrap();
    let nothing = vec![0xff; c.memory.bytes()];
    let mut host = HostMemory::zeroed(driver, nothing.len()).unwrap();
    host.contents_mut().copy_from_slice(&nothing);
    for _ in 0..2 {
        // SAFETY: as many bytes, waited for.
        unsafe {
            driver.copy_to_device(c.memory.at(), host.at(), nothing.len()).unwrap();
            driver.replay(&graph).unwrap();
        }
        c.read(driver);
        assert_eq!(c.numbers(), expected);
    }
}

#[test]
fn products_are_recorded() {
    match tested_gpu() {
        Some(_) if !can_multiply() => {}
        Some(number) => check_recorded(&Arc::new(Gpu::open(number).unwrap())),
        None => check_recorded(&emulated(0, 1 << 24)),
    }
}
