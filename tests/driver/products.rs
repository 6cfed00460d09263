//! Products of matrices: descriptors, layouts, stream and workspace that the pretended cuBLASLt is given, and what comes
//! out, which it computes from those alone.

use crate::{PRODUCTS, launch, launches, open, with_driver};
use eesd::backend::cuda::FATBINS;
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::matmul::{Matmul, Number, RowMajor};
use std::env;
use std::sync::Arc;

const LIBRARY: &str = "libcublasLt.so.13";

/// Memory of the pretended GPU: the process's own.
fn filled(gpu: &Arc<Gpu>, numbers: &[f32]) -> Memory<Gpu> {
    let memory = Memory::zeroed(gpu, numbers.len() * 4, "a test").unwrap();
    let mut host = HostMemory::zeroed(gpu, numbers.len() * 4).unwrap();
    host.contents_mut().copy_from_slice(bytemuck::cast_slice(numbers));
    // SAFETY: as many bytes; copies are done at once.
    unsafe { gpu.copy_to_device(memory.at(), host.at(), numbers.len() * 4) }.unwrap();
    memory
}

fn contents(gpu: &Arc<Gpu>, memory: &Memory<Gpu>) -> Vec<f32> {
    let host = HostMemory::zeroed(gpu, memory.bytes()).unwrap();
    // SAFETY: as many bytes; copies are done at once.
    unsafe { gpu.copy_to_host(host.at(), memory.at(), memory.bytes()) }.unwrap();
    bytemuck::cast_slice(host.contents()).to_vec()
}

fn matrix(memory: &Memory<Gpu>, offset: usize, stride: usize, number: Number) -> RowMajor {
    RowMajor { at: memory.byte(offset), stride, number }
}

fn whole_numbers(count: usize, of: usize) -> Vec<f32> {
    (0..count).map(|i| (i * of % 7) as f32 - 3.0).collect()
}

/// `c = 2 op(a) op(b) + c / 2` in whole numbers and halves, which no order of sums rounds.
fn check(gpu: &Arc<Gpu>, workspace: &Memory<Gpu>, transpose_a: bool, transpose_b: bool) {
    let (m, n, k) = (5, 3, 4);
    let [a_stride, b_stride, c_stride] = [7, 6, 9];
    let (a, b) = (whole_numbers(7 * 7, 3), whole_numbers(7 * 6, 5));
    let before = whole_numbers(m * c_stride, 4);
    let (on_a, on_b, on_c) = (filled(gpu, &a), filled(gpu, &b), filled(gpu, &before));
    let product = Matmul {
        m,
        n,
        k,
        a: matrix(&on_a, 0, a_stride, Number::F32),
        transpose_a,
        b: matrix(&on_b, 0, b_stride, Number::F32),
        transpose_b,
        c: matrix(&on_c, 0, c_stride, Number::F32),
        alpha: 2.0,
        beta: 0.5,
        workspace: workspace.at(),
    };
    // SAFETY: all of it is memory of this device.
    unsafe { gpu.matmul(&product) }.unwrap();
    let found = contents(gpu, &on_c);
    for (i, j) in (0..m).flat_map(|i| (0..c_stride).map(move |j| (i, j))) {
        let of_a = |l: usize| if transpose_a { a[l * a_stride + i] } else { a[i * a_stride + l] };
        let of_b = |l: usize| if transpose_b { b[j * b_stride + l] } else { b[l * b_stride + j] };
        let at = i * c_stride + j;
        let sum = || (0..k).map(|l| of_a(l) * of_b(l)).sum::<f32>();
        let expected = if j < n { 2.0 * sum() + 0.5 * before[at] } else { before[at] };
        assert_eq!(found[at], expected, "({i}, {j}), transposed: {transpose_a}, {transpose_b}");
    }
}

#[test]
fn row_major_products_are_asked_for_in_columns() {
    let body = || {
        let Some(gpu) = open().map(Arc::new) else { return };
        let bytes = gpu.matmul_workspace().unwrap();
        assert_eq!(bytes, 32 << 20);
        let workspace = Memory::zeroed(&gpu, bytes, "a test").unwrap();
        for (transpose_a, transpose_b) in [(false, true), (false, false), (true, false), (true, true), (false, true)] {
            check(&gpu, &workspace, transpose_a, transpose_b);
        }
        // Between kernels that overlap, in other formats, and at addresses of little alignment.
        let memory = Memory::zeroed(&gpu, 4096, "a test").unwrap();
        launch(&gpu, "qkv_bf16_8").unwrap();
        for (number, result, offset) in [(Number::Bf16, Number::F32, 0), (Number::F16, Number::F16, 48)] {
            let product = Matmul {
                m: 2,
                n: 8,
                k: 16,
                a: matrix(&memory, offset, 16, number),
                transpose_a: false,
                b: matrix(&memory, 1024, 24, number),
                transpose_b: true,
                c: matrix(&memory, 2048, 32, result),
                alpha: 1.0,
                beta: 0.0,
                workspace: workspace.at(),
            };
            // SAFETY: all of it is memory of this device.
            unsafe { gpu.matmul(&product) }.unwrap();
            launch(&gpu, "gate_up_bf16_finish").unwrap();
            launch(&gpu, "unpack_weights").unwrap();
        }
    };
    let test = "products::row_major_products_are_asked_for_in_columns";
    let Some(log) = with_driver(test, &[(PRODUCTS, LIBRARY)], body) else { return };
    if FATBINS.is_empty() {
        return;
    }
    let stream = log.iter().find(|line| line.starts_with("stream ")).unwrap();
    let told: Vec<_> = log.iter().filter(|line| line.starts_with("choose") || line.starts_with("multiply")).collect();
    let choose = |alignments: &str| format!("choose, 33554432 bytes of workspace, alignments {alignments}");
    let multiply = |what: &str, choice: u32| format!("multiply {what}, choice {choice}, 33554432 bytes, {stream}");
    let expected = [
        choose("256 256 256 256"),
        multiply("TN types 0 0 0, 3 x 5, strides 6 7 9", 1),
        choose("256 256 256 256"),
        multiply("NN types 0 0 0, 3 x 5, strides 6 7 9", 2),
        choose("256 256 256 256"),
        multiply("NT types 0 0 0, 3 x 5, strides 6 7 9", 3),
        choose("256 256 256 256"),
        multiply("TT types 0 0 0, 3 x 5, strides 6 7 9", 4),
        // The same shape again: nothing is chosen anew.
        multiply("TN types 0 0 0, 3 x 5, strides 6 7 9", 1),
        choose("256 256 256 256"),
        multiply("TN types 14 14 0, 8 x 2, strides 24 16 32", 5),
        // The library's first operand is b, its second one a, at 48 bytes past a boundary.
        choose("256 16 256 256"),
        multiply("TN types 2 2 2, 8 x 2, strides 24 16 32", 6),
    ];
    assert_eq!(told, expected.iter().collect::<Vec<_>>());
    let expected = [
        "qkv_bf16_8 waits queued",
        "gate_up_bf16_finish waits queued",
        "unpack_weights overlaps queued",
        "gate_up_bf16_finish waits queued",
        "unpack_weights overlaps queued",
    ];
    assert_eq!(launches(&log), expected, "nothing overlaps with a product");
    // The handle itself is gone when it says so.
    assert_eq!(
        log.iter().filter(|line| line.contains("products")).collect::<Vec<_>>(),
        ["start products", "end products, 0 descriptors left"]
    );
    assert!(log.last().unwrap() == "release context", "{log:?}");
}

#[test]
fn what_cannot_be_multiplied_is_told() {
    let body = || {
        let Some(gpu) = open().map(Arc::new) else { return };
        let memory = Memory::zeroed(&gpu, 4096, "a test").unwrap();
        let of = |offset| matrix(&memory, offset, 8, Number::Bf16);
        let product = Matmul {
            m: 8,
            n: 8,
            k: 8,
            a: of(0),
            transpose_a: false,
            b: of(1024),
            transpose_b: true,
            c: of(2048),
            alpha: 1.0,
            beta: 0.0,
            workspace: memory.at(),
        };
        // SAFETY: all of it is memory of this device, and nothing is multiplied.
        let multiply = |product: &Matmul| unsafe { gpu.matmul(product) }.map_err(|error| error.to_string());
        let workspace = gpu.matmul_workspace().map_err(|error| error.to_string());
        let (told, parts): (_, &[&str]) = match env::var("CASE").unwrap().as_str() {
            "none" => (workspace, &["libcublasLt.so.13 or libcublasLt.so.12", "LD_LIBRARY_PATH", "cannot open"]),
            "none for the driver" => (workspace, &["cuBLASLt (libcublasLt.so.12)", "cannot open"]),
            "old driver" => (workspace, &["cuBLASLt 12 needs a driver of CUDA 12.0", "CUDA 11.8"]),
            "incomplete" => (workspace, &["libcublasLt.so.13 has no cublasLtMatmulAlgoGetHeuristic"]),
            "no start" => (workspace, &["starting cuBLASLt: cuBLASLt says CUBLAS_STATUS_PRETENDED (1)"]),
            "older library" => {
                assert_eq!(workspace, Ok(32 << 20));
                let wrong = Matmul { a: matrix(&memory, 0, 7, Number::Bf16), ..product };
                (multiply(&wrong).map(|()| 0), &["a has 8 columns and a stride of 7"])
            }
            "no choice" => (multiply(&product).map(|()| 0), &["bf16 of 8 x 8 bf16: cuBLASLt knows 0 ways"]),
            "new state" => (multiply(&product).map(|()| 0), &["choosing how", "an unknown status (777)"]),
            "not supported" => (multiply(&product).map(|()| 0), &["choosing how", "PRETENDED (15)"]),
            _ => (multiply(&product).map(|()| 0), &["a product [8, 8] bf16", "PRETENDED (13)"]),
        };
        let told = told.expect_err("an error");
        parts.iter().for_each(|part| assert!(told.contains(part), "{told}: {part}"));
    };
    const OLDER: &str = "libcublasLt.so.12";
    let cases: [&[(&str, &str)]; 10] = [
        &[("CASE", "none")],
        &[("CASE", "none for the driver"), ("DRIVER_VERSION", "12040"), (PRODUCTS, LIBRARY)],
        &[("CASE", "old driver"), ("DRIVER_VERSION", "11080"), (PRODUCTS, LIBRARY)],
        &[("CASE", "incomplete"), (PRODUCTS, LIBRARY), ("PRODUCTS_LACKS", "cublasLtMatmulAlgoGetHeuristic")],
        &[("CASE", "no start"), (PRODUCTS, LIBRARY), ("PRODUCTS_START", "1")],
        &[("CASE", "older library"), (PRODUCTS, OLDER)],
        &[("CASE", "no choice"), (PRODUCTS, LIBRARY), ("PRODUCTS_FOUND", "0")],
        &[("CASE", "new state"), (PRODUCTS, LIBRARY), ("PRODUCTS_STATE", "777")],
        &[("CASE", "not supported"), (PRODUCTS, LIBRARY), ("PRODUCTS_CHOOSE", "15")],
        &[("CASE", "not run"), (PRODUCTS, LIBRARY), ("PRODUCTS_RUN", "13")],
    ];
    for settings in cases {
        let Some(log) = with_driver("products::what_cannot_be_multiplied_is_told", settings, body) else { return };
        let count = |text: &str| log.iter().filter(|line| line.starts_with(text)).count();
        assert_eq!(count("start products"), count("end products, 0 descriptors left"), "{settings:?}: {log:?}");
    }
}
