//! Attention in training and its gradients against float64: segments of any length, grouped heads, windows, and the steps of
//! chains with keys of their own.

use crate::support::{Noise, assert_close, bits, from, schedules, to};
use eesd::backend::cuda::kernels::{Flash, FlashPass, RowTile, flash};

/// Relative to the largest expected element: sums of some hundred products in f32.
const TOLERANCE: f64 = 4e-6;

/// What gradients grow from.
const BEFORE: f32 = 0.5;

/// Rows that each step's own keys have room for beside the chains.
const SPARE: usize = 3;

struct Case {
    head_dim: usize,
    heads: usize,
    kv_heads: usize,
    window: usize,
    lengths: Vec<usize>,
    /// Where chains start in each segment.
    starts: Vec<usize>,
    step: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    own_k: Vec<f32>,
    own_v: Vec<f32>,
    dout: Vec<f32>,
}

/// What the kernels write, or what they should.
struct Outputs<R> {
    out: Vec<R>,
    dq: Vec<R>,
    dk: Vec<R>,
    dv: Vec<R>,
    own_dk: Vec<R>,
    own_dv: Vec<R>,
}

impl Case {
    /// The first step of chains that start everywhere: causal attention.
    fn new(head_dim: usize, heads: (usize, usize), window: usize, lengths: &[usize]) -> Self {
        Self::chains(head_dim, heads, window, lengths, &vec![0; lengths.len()], 0)
    }

    fn chains(
        head_dim: usize,
        (heads, kv_heads): (usize, usize),
        window: usize,
        lengths: &[usize],
        starts: &[usize],
        step: usize,
    ) -> Self {
        let rows: usize = lengths.iter().sum();
        let chains = rows - starts.iter().sum::<usize>();
        let own = step * (chains + SPARE);
        let mut noise = Noise::new(41);
        let mut floats = |rows: usize, heads: usize| noise.floats(rows * heads * head_dim, 1.5);
        Self {
            q: floats(chains, heads),
            k: floats(rows, kv_heads),
            v: floats(rows, kv_heads),
            dout: floats(chains, heads),
            own_k: floats(own, kv_heads),
            own_v: floats(own, kv_heads),
            head_dim,
            heads,
            kv_heads,
            window,
            lengths: lengths.to_vec(),
            starts: starts.to_vec(),
            step,
        }
    }

    fn count(&self) -> usize {
        self.q.len() / (self.heads * self.head_dim)
    }

    fn scale(&self) -> f64 {
        (self.head_dim as f64).sqrt().recip()
    }

    /// Gradients of keys come to what is there: of the text where an earlier pass has left something, and of own keys.
    fn run(&self, on: &crate::device::Device, before: Option<f32>) -> Outputs<f32> {
        let [queries, keys]: [Vec<RowTile>; 2] = Flash::tiles(&self.lengths, &self.starts, self.head_dim);
        let left = before.unwrap_or(f32::NAN);
        let mut made = Outputs {
            out: vec![f32::NAN; self.q.len()],
            dq: vec![f32::NAN; self.q.len()],
            dk: vec![left; self.k.len()],
            dv: vec![left; self.k.len()],
            own_dk: vec![BEFORE; self.own_k.len()],
            own_dv: vec![BEFORE; self.own_k.len()],
        };
        let [mut lse, mut delta] = [(); 2].map(|()| vec![f32::NAN; self.count() * self.heads]);
        let arguments = Flash {
            tiles: from(&queries),
            q: from(&self.q),
            k: from(&self.k),
            v: from(&self.v),
            own_k: from(&self.own_k),
            own_v: from(&self.own_v),
            out: to(&mut made.out),
            lse: to(&mut lse),
            dout: from(&self.dout),
            delta: to(&mut delta),
            dq: to(&mut made.dq),
            dk: to(&mut made.dk),
            dv: to(&mut made.dv),
            own_dk: to(&mut made.own_dk),
            own_dv: to(&mut made.own_dv),
            own_rows: (self.count() + SPARE) as u64,
            scale: self.scale() as f32,
            heads: self.heads as i32,
            kv_heads: self.kv_heads as i32,
            window: self.window as i32,
            step: self.step as i32,
            add: before.is_some().into(),
        };
        let of_keys = Flash { tiles: from(&keys), ..arguments };
        for pass in [FlashPass::Forward, FlashPass::Queries, FlashPass::Keys, FlashPass::Own] {
            let (tiles, arguments) =
                if pass == FlashPass::Keys { (keys.len(), &of_keys) } else { (queries.len(), &arguments) };
            // SAFETY: buffers of the sizes that cuda/common/flash.cuh states.
            unsafe { flash(on, pass, tiles, self.head_dim, arguments) }.unwrap();
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
            own_dk: vec![f64::from(BEFORE); self.own_k.len()],
            own_dv: vec![f64::from(BEFORE); self.own_k.len()],
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let (mut segment, mut chain) = (0, 0);
        for (&length, &start) in self.lengths.iter().zip(&self.starts) {
            for (row, head) in (start..length).flat_map(|row| (0..self.heads).map(move |head| (row, head))) {
                let position = row + self.step;
                let first = if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window) };
                let chain = chain + row - start;
                let query = (chain * self.heads + head) * d;
                let kv_head = head / (self.heads / self.kv_heads);
                // Keys of the text, then the chain's own: whether it is one of those, and where it begins.
                let text = (first..=row).map(|at| (false, ((segment + at) * self.kv_heads + kv_head) * d));
                let own_rows = self.count() + SPARE;
                let own = (0..self.step).filter(|own| row + own + 1 >= first);
                let own = own.map(|own| (true, ((own * own_rows + chain) * self.kv_heads + kv_head) * d));
                let seen: Vec<(bool, usize)> = text.chain(own).collect();
                let key = |&(own, at): &(bool, usize)| &if own { &self.own_k } else { &self.k }[at..][..d];
                let value = |&(own, at): &(bool, usize)| &if own { &self.own_v } else { &self.v }[at..][..d];
                let (q, dout) = (&self.q[query..][..d], &self.dout[query..][..d]);
                let scores: Vec<f64> = seen.iter().map(|of| self.scale() * dot(q, key(of))).collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|score| (score - most).exp() / total).collect();
                let dp: Vec<f64> = seen.iter().map(|of| dot(dout, value(of))).collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                for (of, (p, dp)) in seen.iter().zip(p.iter().zip(&dp)) {
                    let ds = p * (dp - mean) * self.scale();
                    let (dk, dv) = match of.0 {
                        true => (&mut made.own_dk, &mut made.own_dv),
                        false => (&mut made.dk, &mut made.dv),
                    };
                    for i in 0..d {
                        made.out[query + i] += p * f64::from(value(of)[i]);
                        made.dq[query + i] += ds * f64::from(key(of)[i]);
                        dk[of.1 + i] += ds * f64::from(q[i]);
                        dv[of.1 + i] += p * f64::from(dout[i]);
                    }
                }
            }
            segment += length;
            chain += length - start;
        }
        made
    }

    fn check(&self) {
        let expected = self.expected();
        let mut first: Option<Vec<u32>> = None;
        for schedule in schedules() {
            let found = self.run(&schedule, None);
            let pairs = [
                ("out", &found.out, &expected.out),
                ("dq", &found.dq, &expected.dq),
                ("dk", &found.dk, &expected.dk),
                ("dv", &found.dv, &expected.dv),
                ("own_dk", &found.own_dk, &expected.own_dk),
                ("own_dv", &found.own_dv, &expected.own_dv),
            ];
            for (name, found, expected) in pairs {
                // A window of one row leaves gradients that are exactly zero, of terms that are not.
                let largest = expected.iter().fold(1f64, |most, x| most.max(x.abs()));
                for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
                    let what = || {
                        let Self { head_dim, window, step, .. } = self;
                        format!("{name}[{at}] of heads of {head_dim}, window {window}, step {step}")
                    };
                    assert_close(found.into(), expected, TOLERANCE * largest, what);
                }
            }
            let all = bits(&[found.out, found.dq, found.dk, found.dv, found.own_dk, found.own_dv].concat());
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

/// Chains that start inside tiles, and longer ones than the window: with text that none sees, to the point that there is no tile
/// of it to look at; and a segment without chains.
#[test]
fn chains_see_their_own_keys() {
    Case::chains(64, (4, 2), 0, &[41, 3, 36], &[7, 0, 33], 3).check();
    for (window, step) in [(20, 1), (2, 2), (3, 5), (1, 4)] {
        Case::chains(64, (2, 1), window, &[40, 9, 5, 32], &[3, 9, 0, 29], step).check();
    }
    for head_dim in [32, 256] {
        Case::chains(head_dim, (2, 2), 0, &[20, 5], &[0, 2], 2).check();
    }
}

/// The gradients of steps come together in those of the text's keys.
#[test]
fn gradients_of_keys_grow() {
    let case = Case::chains(32, (2, 1), 0, &[36], &[2], 1);
    let on = crate::support::device(0);
    let (made, grown) = (case.run(&on, None), case.run(&on, Some(BEFORE)));
    for (made, grown) in [(made.dk, grown.dk), (made.dv, grown.dv)] {
        assert!(made.iter().zip(&grown).all(|(made, grown)| made + BEFORE == *grown));
    }
}

/// A segment's results do not depend on what stands beside it.
#[test]
fn segments_are_alone() {
    let (both, alone) = (Case::new(32, (2, 2), 0, &[40, 11]), Case::new(32, (2, 2), 0, &[40]));
    let cut = |of: &[f32]| of[..40 * 64].to_vec();
    let alone = Case { q: cut(&both.q), k: cut(&both.k), v: cut(&both.v), dout: cut(&both.dout), ..alone };
    let on = crate::support::device(0);
    let (both, alone) = (both.run(&on, None), alone.run(&on, None));
    for (both, alone) in [(both.out, alone.out), (both.dq, alone.dq), (both.dk, alone.dk), (both.dv, alone.dv)] {
        assert_eq!(bits(&cut(&both)), bits(&alone));
    }
}
