//! Every GPU kernel, run by the emulator under several orders of threads, against a float64 reference
//! of its own, and against itself: one row at a time, many rows at once, all forms, bit for bit.
//!
//! `cargo test --release --features emulated-kernels --test kernels`

mod attention;
mod attention_case;
mod cached;
#[path = "../common/chi_squared.rs"]
mod chi_squared;
mod coded;
#[path = "../common/device.rs"]
mod device;
mod drafting;
mod emulator;
mod finish;
mod flash;
mod listed;
mod losses;
mod mutations;
mod projection;
mod proposals;
mod rows;
mod sampling;
mod scratch;
mod support;
#[path = "../common/tested_gpu.rs"]
mod tested_gpu;
mod training;
mod upload;
mod verdicts;
mod weights;
mod workshop;

use eesd::backend::cuda::emulator::Emulator;
use eesd::backend::cuda::gpu::{self, Gpu};
use eesd::backend::cuda::{BUILT_WITH, FATBINS};

#[test]
fn every_kernel_is_registered() {
    let mut expected: Vec<String> = [
        "accept_drafts",
        "adamw",
        "add_partials",
        "add_rows",
        "adjust_logits",
        "column_sums",
        "continue_loop",
        "count_tokens",
        "distill_loss",
        "gradient_norm",
        "gradient_squares",
        "keep_rows",
        "narrow_bf16",
        "next_draft",
        "pack_weights",
        "rms_norm",
        "rms_norm_backward",
        "rotate",
        "sample_rows",
        "start_rows",
        "swiglu",
        "swiglu_backward",
        "take_rows_bf16",
        "take_rows_f32",
        "unpack_weights",
        "weigh_rows",
    ]
    .map(String::from)
    .into();
    for format in ["bf16", "f16"] {
        for name in ["gate_up", "lm_head", "qkv", "residual"] {
            expected.extend(["8", "16", "24", "32", "48", "64", "gemm"].map(|form| format!("{name}_{format}_{form}")));
        }
        for (name, codes) in
            ["gate_up", "lm_head", "qkv", "residual"].map(|name| ["four", "eight"].map(|codes| (name, codes))).concat()
        {
            expected.extend(["8", "16", "32", "gemm"].map(|form| format!("{name}_{format}_{codes}_{form}")));
        }
        expected.extend(["gate_up", "qkv", "residual"].map(|name| format!("{name}_{format}_finish")));
        for name in ["append", "attention", "prefill_attention"] {
            expected.extend([128, 256, 32, 64, 80, 96].map(|head_dim| format!("{name}_{format}_{head_dim}")));
            expected.extend([128, 256, 32, 64, 80, 96].map(|head_dim| format!("{name}_{format}_q8_{head_dim}")));
        }
        expected.extend([format!("wrapper_mma_{format}")]);
        expected.extend(
            ["embedding", "gather_rows", "random_weights", "recurrent_input"].map(|name| format!("{name}_{format}")),
        );
    }
    for pass in ["flash_attention", "flash_attention_dkv", "flash_attention_dq", "flash_attention_own"] {
        expected.extend([128, 256, 32, 64, 80, 96].map(|head_dim| format!("{pass}_{head_dim}")));
    }
    expected.extend(["copy", "lanes", "last_block", "numbers"].map(|name| format!("wrapper_{name}")));
    expected.sort();
    assert_eq!(Emulator::kernels(), expected);
}

/// What nvcc made, where it was there: whole and aligned as the driver wants it.
#[test]
fn fatbins_are_images() {
    assert_eq!(FATBINS.is_empty(), BUILT_WITH.is_none());
    for (name, image) in FATBINS {
        assert_eq!(image[..4], 0xba55_ed50_u32.to_le_bytes(), "{name}");
        assert_eq!(image.as_ptr() as usize % 64, 0, "{name}");
    }
}

/// With kernels and without a driver it is the driver that is missed.
#[test]
fn a_gpu_that_is_not_there_is_told_by_what_is_missing() {
    let why = match Gpu::open(999) {
        Ok(_) => panic!("a thousand GPUs"),
        Err(why) => why.to_string(),
    };
    match (FATBINS.is_empty(), gpu::list()) {
        (true, _) => assert!(why.contains("cuda:999") && why.contains("built without GPU kernels"), "{why}"),
        (false, Err(missing)) => assert_eq!(why, format!("device: cuda:999: {missing}")),
        (false, Ok(_)) => assert!(why.contains("cuda:999: this machine has"), "{why}"),
    }
}
