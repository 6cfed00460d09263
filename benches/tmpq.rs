mod synthetic;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::load::Checkpoint;
use eesd::model::{BlockType, Format, Matrix};
use eesd::sample::{Sampler, SamplingParams};
use std::time::Instant;
fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();

    for name in &args {
        let checkpoint =
            Checkpoint::open(if name.contains('/') { name } else { "/work/wt/smol/f16" }.as_ref()).unwrap();
        let find = |n: &str| BlockType::ALL.into_iter().find(|t| t.to_string() == n);
        let (mut w, g) = (checkpoint.weights(), checkpoint.geometry());
        let conv = |m: Matrix<'static>| m;
        let _ = conv;
        let make = |m: &mut Matrix<'_>, t: BlockType| {
            let t = if m.cols % t.len() != 0 {
                if t == BlockType::Q4K { BlockType::Q5_0 } else { BlockType::Q8_0 }
            } else {
                t
            };
            let f = Format::Blocks(t);
            let n = f.row_bytes(m.cols).unwrap() * m.rows;
            let mut b = vec![0x11u8; n];
            let mut s = 1u32;
            for x in b.iter_mut() {
                s = s.wrapping_mul(1664525).wrapping_add(1013904223);
                *x = (s >> 24) as u8;
            }
            for c in b.chunks_mut(t.bytes()) {
                c[0] = 0;
                c[1] = 0x10;
                if t.has_minima() {
                    c[2] = 0;
                    c[3] = 0x10;
                }
                let l = c.len();
                c[l - 2] = 0;
                c[l - 1] = 0x10;
            }
            *m = Matrix::new(f, m.rows, m.cols, b.leak());
        };
        if let Some(t) = find(name) {
            for l in &mut w.layers {
                for m in [&mut l.q, &mut l.k, &mut l.v, &mut l.o, &mut l.gate, &mut l.up, &mut l.down] {
                    make(m, t);
                }
            }
            make(&mut w.embed, BlockType::Q8_0);
            w.head = w.embed;
        }
        let most = 32;
        let t0 = Instant::now();
        let threads = std::env::var("T").ok().and_then(|t| t.parse().ok()).unwrap_or(2);
        let simd = std::env::var("S")
            .ok()
            .and_then(|t| eesd::backend::cpu::Simd::ALL.into_iter().find(|s| s.to_string() == t));
        let mut backend = CpuBackend::new(
            g,
            &w,
            None,
            &CpuOptions {
                threads: Some(threads),
                simd,
                slots: most,
                context: 2048,
                max_draft: 0,
                pages: Some(32 * 6 + 128),
                ..CpuOptions::default()
            },
        )
        .unwrap();
        let load = t0.elapsed();
        let tokens: Vec<u32> = (0..2048u32).map(|i| i * 7919 % g.vocab_size as u32).collect();
        let per = 96usize.div_ceil(PAGE_TOKENS);
        let pages: Vec<Vec<PageId>> =
            (0..most).map(|s| (0..per).map(|p| PageId((s * per + p) as u32)).collect()).collect();
        for p in &pages {
            backend.prefill(&[Chunk { pages: p, start: 0, tokens: &tokens[..64] }]).unwrap();
        }
        let long: Vec<PageId> = (0..128).map(|p| PageId((32 * per + p) as u32)).collect();
        print!("{name} {} load {:.2}s: ", backend.describe(), load.as_secs_f64());
        let rows_list: Vec<usize> = std::env::var("R")
            .map(|r| r.split(',').map(|x| x.parse().unwrap()).collect())
            .unwrap_or(vec![1, 2, 4, 8, 16, 32]);
        let n: usize = std::env::var("N").map(|n| n.parse().unwrap()).unwrap_or(64);
        for rows in rows_list {
            let sampler = Sampler::new(SamplingParams::default(), g.vocab_size).unwrap();
            let t = &tokens[..65];
            let batch: Vec<Sequence<'_>> = pages[..rows]
                .iter()
                .enumerate()
                .map(|(slot, pages)| Sequence {
                    slot,
                    pages,
                    tokens: t,
                    committed: t.len(),
                    prompt: 64,
                    sampler: &sampler,
                })
                .collect();
            backend.describe();
            let mut best = f64::MAX;
            let mut all = vec![];
            for _ in 0..(n / rows).max(8) {
                let s = Instant::now();
                backend.verify(&batch).unwrap();
                let d = s.elapsed().as_secs_f64();
                best = best.min(d);
                all.push(d);
            }
            backend.describe();
            all.sort_by(f64::total_cmp);
            print!(
                "{rows}: {:.2}ms ({:.2}) {:.0}/s  ",
                all[all.len() / 2] * 1e3,
                best * 1e3,
                rows as f64 / all[all.len() / 2]
            );
        }
        for n in if std::env::var("R").is_ok() { vec![] } else { vec![256, 1024] } {
            let mut best = f64::MAX;
            for _ in 0..3 {
                let s = Instant::now();
                backend.prefill(&[Chunk { pages: &long, start: 0, tokens: &tokens[..n] }]).unwrap();
                best = best.min(s.elapsed().as_secs_f64());
            }
            print!("pp{n} {:.0}/s ", n as f64 / best);
        }
        println!();
    }
}
