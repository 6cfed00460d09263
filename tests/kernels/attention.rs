//! `attention`, `prefill_attention`, `append`: against float64 softmax attention, and against each
//! other bit for bit: rows one at a time, all at once, as a prefill, cut anywhere; with the cache in 16 and in 8 bits.

use crate::attention_case::{Case, Layer, PAGE, Way, layer};
use crate::support::{FORMATS, device, schedules, wide};
use eesd::backend::KvFormat;
use eesd::backend::cuda::kernels::Format;

/// The same with its cache in 8 bits.
fn coded(layer: Layer) -> Layer {
    Layer { kv: KvFormat::Eight, ..layer }
}

#[test]
fn every_head_dim_and_format() {
    for (i, head_dim) in [32, 64, 80, 96, 128, 256].into_iter().enumerate() {
        for format in FORMATS {
            let layer = Layer { qk_norm: i % 2 == 0, ..layer(format, 4, 2, head_dim) };
            for layer in [layer, coded(layer)] {
                let case = Case::new(layer, &[(70, 3), (0, 1)], i as u64);
                let (out, cache) = case.results(&device(2), Way::Split, &[]);
                case.check_values(&out, &cache);
                let prefill = case.results(&device(3), Way::Prefill, &[]);
                assert_eq!(wide(&out), wide(&prefill.0), "head_dim {head_dim}");
                assert!(cache == prefill.1);
            }
        }
    }
}

#[test]
fn grouped_heads_over_several_chunks() {
    Case::new(layer(FORMATS[0], 6, 2, 64), &[(250, 16), (0, 5), (511, 2), (700, 1)], 20).check_bits();
}

#[test]
fn codes_over_several_chunks() {
    Case::new(coded(layer(FORMATS[0], 6, 2, 64)), &[(250, 16), (0, 5), (511, 2), (700, 1)], 30).check_bits();
}

/// Over a cache in 16 bits that holds the numbers which codes stand for, attention has the same bits.
#[test]
fn codes_are_attended_to_as_the_numbers_they_stand_for() {
    for (format, head_dim) in [(FORMATS[0], 128), (FORMATS[1], 80), (FORMATS[1], 96)] {
        let case = Case::new(coded(layer(format, 4, 2, head_dim)), &[(300, 20), (60, 9)], 31);
        let (expected, (k, v)) = case.results(&device(1), Way::Split, &[16]);
        let full = layer(format, 4, 2, head_dim);
        let mut wide_case = Case { layer: full, k: full.rows().unwritten(case.pages), ..case };
        wide_case.v = wide_case.k.clone();
        for (s, position, kv_head) in
            [(0, 320), (1, 69)].into_iter().flat_map(|(s, end)| (0..end).flat_map(move |p| [(s, p, 0), (s, p, 1)]))
        {
            let at = wide_case.at(s, position, kv_head);
            for (from, to) in [(&k, &mut wide_case.k), (&v, &mut wide_case.v)] {
                let numbers: Vec<f32> = coded(full).rows().read(from, at).into_iter().map(|x| x as f32).collect();
                full.rows().write(to, at, &numbers);
            }
        }
        let (found, _) = wide_case.results(&device(2), Way::Filled, &[]);
        assert_eq!(wide(&found), wide(&expected), "{format}, head_dim {head_dim}");
    }
}

/// Numbers that a scale of 16 bits has no room for, or that are all zero.
#[test]
fn extreme_rows_are_kept_in_8_bits() {
    for format in FORMATS {
        let layer = coded(layer(format, 1, 1, 64));
        let mut case = Case::new(layer, &[(0, 6)], 32);
        let most: f32 = if format == Format::F16 { 1e6 } else { f32::MAX };
        for (row, size) in [0.0, 1e-30, 1e-7, 1.0, 6e4, most].into_iter().enumerate() {
            // Keys of position 0 are not rotated; of all rows, values are what counts.
            let value = row * case.width() + 2 * 64;
            case.qkv[value..value + 64].iter_mut().for_each(|x| *x *= size / 2.0);
        }
        let (_, (_, v)) = case.results(&device(0), Way::Split, &[]);
        let read = |row: usize| layer.rows().read(&v, case.at(0, row, 0));
        assert!((0..6).all(|row| read(row).iter().all(|number| number.is_finite())), "{format}");
        assert!(read(0).iter().all(|&number| number == 0.0));
        let largest = |row: usize| read(row).into_iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        // 1.0 and 6e4 are kept; what f16 has no numbers for is as large as it goes.
        for (row, size) in [(3, 1.0), (4, 6e4)] {
            assert!(largest(row) > 0.8 * size && largest(row) <= 1.01 * size, "{format}, {size}: {}", largest(row));
        }
        let limit = if format == Format::F16 { 65_472.0 } else { f64::from(f32::MAX) };
        assert!(largest(5) > 0.8 * limit && largest(5) <= limit, "{format}: {}", largest(5));
    }
}

/// More tiles of queries than a block has, one with few, past several chunks.
#[test]
fn many_rows_of_a_prompt() {
    Case::new(layer(FORMATS[0], 4, 2, 64), &[(200, 150), (0, 70), (300, 1)], 25).check_bits();
    let layer = Layer { window: 90, ..layer(FORMATS[1], 3, 1, 80) };
    Case::new(layer, &[(500, 100)], 26).check_bits();
    Case::new(coded(layer), &[(500, 100)], 27).check_bits();
}

#[test]
fn sliding_window_and_norms() {
    let layer = Layer { window: 100, qk_norm: true, ..layer(FORMATS[1], 4, 4, 32) };
    Case::new(layer, &[(190, 16), (600, 7), (3, 9)], 21).check_bits();
}

#[test]
fn many_heads_share_one() {
    Case::new(layer(FORMATS[0], 16, 1, 32), &[(260, 9)], 22).check_bits();
}

/// One row's key and another one's value are not finite: as those of refused drafts may be.
#[test]
fn rows_that_are_not_finite_spoil_no_other_and_are_noted() {
    let kept = FORMATS.map(|format| [layer(format, 4, 2, 32), coded(layer(format, 4, 2, 32))]).concat();
    for (layer, broken) in kept.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]) {
        let layer = Layer { window: 40, ..layer };
        let clean = Case::new(layer, &[(250, 12), (30, 4)], 24);
        let mut case = Case::new(layer, &[(250, 12), (30, 4)], 24);
        // Positions 256 (its key, of head 1) and 259 (its value, of head 0) of the first sequence.
        for (row, head) in [(6, layer.heads + 1), (9, layer.heads + layer.kv_heads)] {
            let at = row * case.width() + head * layer.head_dim + 5;
            case.qkv[at] = broken;
        }
        let page = case.table[256 / PAGE] as usize;
        let expected = clean.results(&device(0), Way::Split, &[]).0;
        let row_of = layer.heads * layer.head_dim;
        for on in schedules() {
            for way in [Way::Split, Way::Prefill] {
                let (mut cache, mut out) = ((case.k.clone(), case.v.clone()), vec![0; expected.len()]);
                let (noted, any) = case.run(&on, way, &mut cache, (0, 12), &mut out);
                assert_eq!(any, 1);
                let words: Vec<_> = noted.iter().enumerate().filter(|(_, bits)| **bits != 0).collect();
                assert_eq!(words, [(2 * page, &(1 << 0 | 1 << 3))], "{way:?}");
                // The six rows before them, and the other sequence.
                assert_eq!(wide(&out[..6 * row_of]), wide(&expected[..6 * row_of]), "{way:?}");
                assert_eq!(wide(&out[12 * row_of..]), wide(&expected[12 * row_of..]), "{way:?}");
                for (cache, position, kv_head) in [(&cache.0, 256, 1), (&cache.1, 259, 0)] {
                    let row = layer.rows().read(cache, case.at(0, position, kv_head));
                    assert!(row.iter().all(|number| number.is_finite()) && row[5] == 0.0 && row[6] != 0.0, "{row:?}");
                }
            }
        }
    }
}
