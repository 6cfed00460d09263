//! The emulator's own test: each device wrapper against what CUDA's manuals say it does, under several
//! orders of threads; and what the emulator says of launches that cannot work.
//!
//! `cargo test --release --features emulated-kernels --test kernels emulator`

use crate::device::{Device, address};
use eesd::backend::cuda::emulator::Emulator;
use eesd::backend::cuda::kernels::{Address, Launcher, Shape};
use eesd::sample::{Philox, Purpose};
use half::{bf16, f16};

/// On the GPU that is tested, or on the emulator under an order of threads of its own.
fn launch(kernel: &str, blocks: u32, threads: u32, seed: u64, arguments: &[u64]) -> Result<(), String> {
    let mut emulated = Emulator::new(seed);
    emulated.coresident = seed % 2 == 1;
    let device = Device::gpu(seed).unwrap_or(Device::Emulated(emulated));
    let shape = Shape { grid: [blocks, 1, 1], threads, shared_bytes: 0 };
    // SAFETY: each test gives buffers of the sizes that cuda/wrappers.cu states.
    unsafe { device.launch(kernel, shape, bytemuck::cast_slice(arguments)) }
        .map_err(|error| format!("seed {}: {error}", device.seed()))
}

fn to<T>(buffer: &mut [T]) -> u64 {
    address(buffer); // that a GPU could reach it
    buffer.as_mut_ptr() as u64
}

fn from<T>(buffer: &[T]) -> u64 {
    address(buffer)
}

#[test]
fn mma_multiplies_matrices() {
    for (kernel, narrow, widen) in [
        (
            "wrapper_mma_bf16",
            (|x| bf16::from_f32(x).to_bits()) as fn(f32) -> u16,
            (|b| bf16::from_bits(b).to_f32()) as fn(u16) -> f32,
        ),
        ("wrapper_mma_f16", |x| f16::from_f32(x).to_bits(), |b| f16::from_bits(b).to_f32()),
    ] {
        let a: Vec<u16> = (0..256).map(|i| narrow((i * 37 % 101) as f32 / 16.0 - 3.0)).collect();
        let b: Vec<u16> = (0..128).map(|i| narrow((i * 53 % 97) as f32 / 32.0 - 1.5)).collect();
        let before: Vec<f32> = (0..128).map(|i| i as f32).collect();
        for seed in 0..4 {
            let mut d = before.clone();
            launch(kernel, 1, 32, seed, &[from(&a), from(&b), to(&mut d)]).unwrap();
            for (i, &found) in d.iter().enumerate() {
                let (row, column) = (i / 8, i % 8);
                // Few enough bits that float32 sums are exact, in any order.
                let sum: f32 = (0..16).map(|k| widen(a[row * 16 + k]) * widen(b[k * 8 + column])).sum();
                assert_eq!(found, before[i] + sum, "{kernel} ({row}, {column})");
            }
        }
    }
}

#[test]
fn numbers_are_rounded_as_the_half_crate_rounds() {
    let special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e9, 6.1e-5, 5.96e-8, 2.98e-8, 1e-9, f32::MIN_POSITIVE, 1e38];
    let spread = (0..20_000u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9))).filter(|x| x.is_finite());
    let numbers: Vec<f32> = special.into_iter().chain(spread).collect();
    let mut out = vec![0u32; numbers.len() * 5];
    launch("wrapper_numbers", 1, 32, 2, &[from(&numbers), to(&mut out), numbers.len() as u64]).unwrap();
    for (x, out) in numbers.iter().zip(out.chunks(5)) {
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let brain = |x: f32| bf16::from_f32(x);
        // Past the largest number f16 saturates.
        let half = |x: f32| f16::from_f32(x.clamp(-65504.0, 65504.0)).to_bits();
        assert_eq!(out[0], pair(brain(*x).to_bits(), brain(-x).to_bits()), "{x:e}");
        assert_eq!(out[1], pair(half(*x), half(-x)), "{x:e}");
        assert_eq!(out[2], brain(*x).to_f32().to_bits(), "{x:e}");
        let product = |a: u16, b: f32| bf16::from_bits(a).to_f32() * bf16::from_f32(b).to_f32();
        let (low, high) = (product(out[0] as u16, 3.0), product((out[0] >> 16) as u16, -1.0 / 3.0));
        assert_eq!(out[3], pair(brain(low).to_bits(), brain(high).to_bits()), "{x:e}");
        let product = |a: u16, b: f32| f16::from_bits(a).to_f32() * f16::from_f32(b).to_f32();
        let (low, high) = (product(out[1] as u16, 0.75), product((out[1] >> 16) as u16, -1.0 / 3.0));
        assert_eq!(out[4], pair(half(low), half(high)), "{x:e}");
    }
    let (nan, mut out) = ([f32::NAN].to_vec(), [0u32; 5].to_vec());
    launch("wrapper_numbers", 1, 32, 2, &[from(&nan), to(&mut out), 1]).unwrap();
    assert!(bf16::from_bits(out[0] as u16).is_nan() && f16::from_bits(out[1] as u16).is_nan());
}

#[test]
fn lanes_exchange_and_vote() {
    let x: Vec<u32> = (0..32u32).map(|i| (i + 1).wrapping_mul(0x85EB_CA6B) >> (i % 7)).collect();
    for seed in 0..6 {
        let mut out = vec![0u32; 256];
        launch("wrapper_lanes", 1, 32, seed, &[from(&x), to(&mut out)]).unwrap();
        let ballot = (0..32).map(|i| (x[i] & 1) << i).sum::<u32>();
        for (lane, out) in out.chunks(8).enumerate() {
            assert_eq!(out[0], x[lane ^ 5]);
            assert_eq!(out[1], x[if lane < 3 { lane } else { lane - 3 }]);
            assert_eq!(out[2], x[if lane + 16 < 32 { lane + 16 } else { lane }]);
            assert_eq!(out[3], x[8]);
            assert_eq!(out[4], ballot);
            assert_eq!(out[5], x[lane] >> 16 | !x[lane] & 0xffff_0000);
            assert_eq!(out[6], x[lane].leading_zeros() << 8 | (x[lane].trailing_zeros() + 1));
            let words = Philox::new(u64::from(x[lane]) << 32 | lane as u64, 17, Purpose::Gumbel, 3).block(lane as u32);
            assert_eq!(out[7], words.iter().fold(0, |all, word| all ^ word));
        }
    }
}

#[test]
fn copies_land_by_their_wait() {
    let data: Vec<[u32; 4]> = (0..64).map(|i| [i, i + 100, i + 200, i + 300]).collect();
    // 16-byte copies need aligned memory, which a vector of u128 has.
    let input: Vec<u128> = data.iter().map(|unit| bytemuck::cast(*unit)).collect();
    for seed in 0..6 {
        let mut out = vec![0u128; 64];
        launch("wrapper_copy", 1, 32, seed, &[from(&input), to(&mut out)]).unwrap();
        for (i, unit) in out.iter().enumerate() {
            assert_eq!(*unit, if (i ^ 1) % 4 == 3 { 0 } else { input[i ^ 1] });
        }
    }
}

#[test]
fn the_last_block_sees_the_others() {
    for seed in 0..8 {
        let (mut values, mut arrived, mut out) = ([0u32; 9].to_vec(), [0u32].to_vec(), [0u32].to_vec());
        for round in 1..=2 {
            launch("wrapper_last_block", 9, 64, seed, &[to(&mut values), to(&mut arrived), to(&mut out)]).unwrap();
            assert_eq!((arrived[0], out[0]), (0, round * (0..9).map(|b| b * 3 + 1).sum::<u32>()));
        }
    }
}

#[test]
fn launches_that_cannot_work_are_errors() {
    let error = |kernel, threads, arguments: &[u64]| {
        let shape = Shape { grid: [1; 3], threads, shared_bytes: 0 };
        // SAFETY: nothing is launched, or buffers have the sizes that cuda/wrappers.cu states.
        unsafe { Emulator::new(0).launch(kernel, shape, bytemuck::cast_slice(arguments)) }.unwrap_err().to_string()
    };
    assert!(error("no_such_kernel", 32, &[]).contains("no kernel named"));
    assert!(error("wrapper_lanes", 32, &[0; 3]).contains("takes 16 bytes of arguments, got 24"));
    assert!(error("wrapper_lanes", 2048, &[0; 2]).contains("bad launch"));
    // Half a warp cannot multiply matrices.
    let (a, b, mut d) = ([0u16; 256].to_vec(), [0u16; 128].to_vec(), [0f32; 128].to_vec());
    assert!(error("wrapper_mma_bf16", 16, &[from(&a), from(&b), to(&mut d)]).contains("fewer than 32 threads"));
    assert_eq!(Address::default(), Address(0));
}
