//! Attention in training and its gradients against float64: segments of any length, grouped heads, windows.

use crate::support::{Noise, assert_close, bits, from, schedules, to};
use eesd::backend::cuda::kernels::{Flash, FlashPass, RowTile, flash};

/// Relative to the largest expected element: sums of some hundred products in f32.
const TOLERANCE: f64 = 4e-6;

struct Case {
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    window: usize,
    lengths: Vec<usize>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
}

/// What the kernels write, or what they should.
struct Outputs<R> {
    out: Vec<R>,
    dq: Vec<R>,
    dk: Vec<R>,
    dv: Vec<R>,
}

impl Case {
    fn new(head_dim: usize, (heads, kv_heads): (usize, usize), window: usize, lengths: &[usize]) -> Self {
        let rows: usize = lengths.iter().sum();
        let mut noise = Noise::new(41);
        let [q, k, v, dout] =
            [heads, kv_heads, kv_heads, heads].map(|heads| noise.floats(rows * heads * head_dim, 1.5));
        Self { head_dim, heads, kv_heads, window, lengths: lengths.to_vec(), q, k, v, dout }
    }

    fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn scale(&self) -> f64 {
        (self.head_dim as f64).sqrt().recip()
    }

    fn run(&self, on: &crate::device::Device) -> Outputs<f32> {
        let tiles: Vec<RowTile> = Flash::tiles(&self.lengths, self.head_dim);
        let mut made = Outputs {
            out: vec![f32::NAN; self.q.len()],
            dq: vec![f32::NAN; self.q.len()],
            dk: vec![f32::NAN; self.k.len()],
            dv: vec![f32::NAN; self.v.len()],
        };
        let [mut lse, mut delta] = [(); 2].map(|()| vec![f32::NAN; self.rows() * self.heads]);
        let arguments = Flash {
            tiles: from(&tiles),
            q: from(&self.q),
            k: from(&self.k),
            v: from(&self.v),
            out: to(&mut made.out),
            lse: to(&mut lse),
            dout: from(&self.dout),
            delta: to(&mut delta),
            dq: to(&mut made.dq),
            dk: to(&mut made.dk),
            dv: to(&mut made.dv),
            scale: self.scale() as f32,
            heads: self.heads as i32,
            kv_heads: self.kv_heads as i32,
            window: self.window as i32,
        };
        for pass in [FlashPass::Forward, FlashPass::Queries, FlashPass::Keys] {
            // SAFETY: buffers of the sizes that cuda/common/flash.cuh states.
            unsafe { flash(on, pass, tiles.len(), self.head_dim, &arguments) }.unwrap();
        }
        made
    }

    fn expected(&self) -> Outputs<f64> {
        let d = self.head_dim;
        let zeros = |len| vec![0f64; len];
        let mut made = Outputs {
            out: zeros(self.q.len()),
            dq: zeros(self.q.len()),
            dk: zeros(self.k.len()),
            dv: zeros(self.v.len()),
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let mut segment = 0;
        for &length in &self.lengths {
            for (row, head) in (0..length).flat_map(|row| (0..self.heads).map(move |head| (row, head))) {
                let first = if self.window == 0 { 0 } else { (row + 1).saturating_sub(self.window) };
                let query = ((segment + row) * self.heads + head) * d;
                let key = |at: usize| ((segment + at) * self.kv_heads + head / (self.heads / self.kv_heads)) * d;
                let (q, dout) = (&self.q[query..][..d], &self.dout[query..][..d]);
                let scores: Vec<f64> = (first..=row).map(|at| self.scale() * dot(q, &self.k[key(at)..][..d])).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|score| (score - most).exp() / total).collect();
                let dp: Vec<f64> = (first..=row).map(|at| dot(dout, &self.v[key(at)..][..d])).collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (at, (p, dp)) in (first..=row).zip(p.iter().zip(&dp)) {
                    let ds = p * (dp - mean) * self.scale();
                    for i in 0..d {
                        made.out[query + i] += p * f64::from(self.v[key(at) + i]);
                        made.dq[query + i] += ds * f64::from(self.k[key(at) + i]);
                        made.dk[key(at) + i] += ds * f64::from(q[i]);
                        made.dv[key(at) + i] += p * f64::from(dout[i]);
                    }
                }
            }
            segment += length;
        }
        made
    }

    fn check(&self) {
        let expected = self.expected();
        let mut first: Option<Vec<u32>> = None;
        for schedule in schedules() {
            let found = self.run(&schedule);
            let pairs = [
                ("out", &found.out, &expected.out),
                ("dq", &found.dq, &expected.dq),
                ("dk", &found.dk, &expected.dk),
                ("dv", &found.dv, &expected.dv),
            ];
            for (name, found, expected) in pairs {
                // A window of one row leaves gradients that are exactly zero, of terms that are not.
                let largest = expected.iter().fold(1f64, |most, x| most.max(x.abs()));
                for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
                    let what = || format!("{name}[{at}] of heads of {}, window {}", self.head_dim, self.window);
                    assert_close(found.into(), expected, TOLERANCE * largest, what);
                }
            }
            let all = bits(&[found.out, found.dq, found.dk, found.dv].concat());
            assert!(*first.get_or_insert_with(|| all.clone()) == all, "seed {}", schedule.seed());
        }
    }
}

#[test]
fn grouped_heads_within_segments() {
    Case::new(64, (4, 2), 0, &[70, 1, 33, 32]).check();
}

#[test]
fn windows_end_inside_tiles() {
    for window in [1, 20, 40] {
        Case::new(64, (2, 1), window, &[75, 9]).check();
    }
}

#[test]
fn every_width_of_heads() {
    for head_dim in [32, 80, 96, 128, 256] {
        Case::new(head_dim, (2, 1), 0, &[37, 5]).check();
    }
}

/// A segment's results do not depend on what stands beside it.
#[test]
fn segments_are_alone() {
    let (both, alone) = (Case::new(32, (2, 2), 0, &[40, 11]), Case::new(32, (2, 2), 0, &[40]));
    let cut = |of: &[f32]| of[..40 * 64].to_vec();
    let alone = Case { q: cut(&both.q), k: cut(&both.k), v: cut(&both.v), dout: cut(&both.dout), ..alone };
    let on = crate::support::device(0);
    let (both, alone) = (both.run(&on), alone.run(&on));
    for (both, alone) in [(both.out, alone.out), (both.dq, alone.dq), (both.dk, alone.dk), (both.dv, alone.dv)] {
        assert_eq!(bits(&cut(&both)), bits(&alone));
    }
}
