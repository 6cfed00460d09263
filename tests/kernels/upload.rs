//! Weights on their way to the device: they arrive where they belong, whatever the buffers hold on the way.

use eesd::backend::cuda::coding::{Storage, pack_codes};
use eesd::backend::cuda::driver::Memory;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator};
use eesd::backend::cuda::pack::packed_bytes;
use eesd::backend::cuda::upload::{Cargo, upload_through};
use eesd::model::{BlockType, Dtype, Format, Matrix, RowOrder};
use std::sync::Arc;

/// Whatever the buffers hold, the same arrives.
#[test]
fn pieces_make_a_whole() {
    let (rows, columns) = (100, 72);
    let bytes: Vec<u8> = (0..rows * columns * 2).map(|i| (i * 31 % 251) as u8).collect();
    let floats: Vec<f32> = (0..999).map(|i| i as f32).collect();
    let matrix = Matrix::new(Dtype::BF16, rows, columns, &bytes);
    let through = |most: usize| {
        let device = Arc::new(EmulatedDevice::new(Emulator::new(2), 1 << 24));
        let packed = packed_bytes(2 * rows.next_multiple_of(16), columns);
        let memory = Memory::zeroed(&device, packed + (1 << 16), "test").unwrap();
        let (raw, numbers) = (memory.byte(packed), memory.byte(packed + 32768));
        let cargo = [
            Cargo::Rows { matrix, target: memory.at(), first_block: 0, block_step: 2 },
            Cargo::Rows { matrix, target: memory.at(), first_block: 1, block_step: 2 },
            Cargo::Bytes { bytes: &bytes, target: raw },
            Cargo::Floats { floats: floats.clone(), target: numbers },
        ];
        // SAFETY: targets with room, all zeros.
        unsafe { upload_through(&device, &cargo, most) }.unwrap();
        // SAFETY: the emulated device's memory is the process's own, and nothing is queued.
        let all = unsafe { std::slice::from_raw_parts(memory.at().0 as *const u8, memory.bytes()) }.to_vec();
        assert_eq!(all[packed..][..bytes.len()], bytes);
        assert_eq!(&all[packed + 32768..][..999 * 4], bytemuck::cast_slice::<f32, u8>(&floats));
        all
    };
    let whole = through(1 << 20);
    assert!(whole[..4096].iter().any(|&byte| byte != 0));
    for most in [1, 3000, 5000, 7777] {
        assert!(through(most) == whole, "through {most} bytes");
    }
}

/// Blocks of codes arrive where they belong whatever the buffers hold, one after the other or in turn.
#[test]
fn codes_arrive_packed() {
    let (rows, columns) = (70, 96);
    let format = BlockType::Q4_0;
    let bytes: Vec<u8> = (0..rows * columns / 32 * format.bytes()).map(|i| (i * 31 % 251) as u8).collect();
    let matrix = Matrix::new(Format::Blocks(format), rows, columns, &bytes);
    let Ok(storage @ Storage::Codes(coding)) = Storage::of(&matrix) else { panic!() };
    let block = storage.block_bytes(columns);
    for (block_step, most) in [(1, 1), (1, 2 * block), (1, 1 << 20), (2, 1), (2, 3 * block), (2, 1 << 20)] {
        let device = Arc::new(EmulatedDevice::new(Emulator::new(2), 1 << 24));
        let blocks = rows.div_ceil(16);
        let memory = Memory::zeroed(&device, (1 + block_step * blocks) * block, "test").unwrap();
        let cargo = [Cargo::Codes { matrix, coding, target: memory.at(), first_block: 1, block_step }];
        // SAFETY: a target with room, all zeros.
        unsafe { upload_through(&device, &cargo, most) }.unwrap();
        // SAFETY: the emulated device's memory is the process's own, and nothing is queued.
        let all = unsafe { std::slice::from_raw_parts(memory.at().0 as *const u8, memory.bytes()) };
        let mut expected = vec![0; memory.bytes()];
        for index in 0..blocks {
            let target = &mut expected[(1 + index * block_step) * block..][..block];
            pack_codes(target, coding, &matrix, index * 16..rows.min((index + 1) * 16));
        }
        assert!(all == expected, "steps of {block_step}, through {most} bytes");
        assert!(expected[block..2 * block].iter().any(|&byte| byte != 0));
    }
}

#[test]
fn rows_that_are_stored_in_another_order_arrive_in_order() {
    let (rows, columns) = (100, 72);
    let stored: Vec<u8> = (0..rows * columns * 2).map(|i| (i * 31 % 251) as u8).collect();
    let paired =
        Matrix { order: RowOrder::PairedHalves { head_dim: 20 }, ..Matrix::new(Dtype::BF16, rows, columns, &stored) };
    let in_order: Vec<u8> = (0..rows).flat_map(|row| paired.row(row)).copied().collect();
    let arrived = |matrix: Matrix<'_>, most: usize| {
        let device = Arc::new(EmulatedDevice::new(Emulator::new(2), 1 << 24));
        let memory = Memory::zeroed(&device, packed_bytes(rows, columns), "test").unwrap();
        let cargo = [Cargo::Rows { matrix, target: memory.at(), first_block: 0, block_step: 1 }];
        // SAFETY: a target with room, all zeros.
        unsafe { upload_through(&device, &cargo, most) }.unwrap();
        // SAFETY: the emulated device's memory is the process's own, and nothing is queued.
        unsafe { std::slice::from_raw_parts(memory.at().0 as *const u8, memory.bytes()) }.to_vec()
    };
    let expected = arrived(Matrix::new(Dtype::BF16, rows, columns, &in_order), 1 << 20);
    assert!(arrived(Matrix::new(Dtype::BF16, rows, columns, &stored), 1 << 20) != expected);
    for most in [1, 5000, 1 << 20] {
        assert!(arrived(paired, most) == expected, "through {most} bytes");
    }
}
