//! Q4_K and Q6_K: blocks of 256 whose groups have scales in a few bits. The search begins with each group on its own,
//! rounds the groups' scales to what the block has for them, and then mends the two in turns: a group's scale by its
//! neighbours, the block's by least squares.
//!
//! An error counts the more the larger a number is, `rms of its group + |x|` times its square: large weights matter more,
//! and small ones are not given up.

use half::f16;

const Q4_GROUP: usize = 32;
const Q6_GROUP: usize = 16;
/// Ranges that a group is tried with: this many, in such steps of a code, from a code less than the type has.
const RANGES: usize = 21;
const RANGE_STEP: f32 = 0.1;
/// Times that scales and codes are mended in turns.
const ROUNDS: usize = 3;
/// How far a group's scale is moved, of 128 steps.
const Q6_NEAR: i32 = 3;

/// The weights of a group's errors.
fn importance<const N: usize>(numbers: &[f32; N]) -> [f32; N] {
    let rms = (numbers.iter().map(|x| x * x).sum::<f32>() / N as f32).sqrt();
    numbers.map(|x| rms + x.abs())
}

/// To the nearest code, of which there are `0..=most`.
fn code(steps: f32, most: f32) -> f32 {
    // Of so large a number f32 has no fraction: adding it rounds, and many numbers are rounded at a time.
    const WHOLE: f32 = 12_582_912.0; // 3 · 2²²
    // Not a number where everything is 0, which becomes code 0.
    (steps.max(0.0).min(most) + WHOLE) - WHOLE
}

/// Sums that are added up side by side.
const LANES: usize = 8;

/// Sums over the elements of a group, `N` of them.
fn sum<const N: usize>(of: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for start in (0..N).step_by(LANES) {
        lanes.iter_mut().enumerate().for_each(|(lane, sum)| *sum += of(start + lane));
    }
    lanes.iter().sum()
}

fn in_f16(number: f32) -> f32 {
    f16::from_f32(number).to_f32()
}

// ---- Q4_K: element = scale · code − minimum, code in 0..=15 ----

#[derive(Clone, Copy, Default)]
struct Affine {
    scale: f32,
    minimum: f32,
}

/// A group of a Q4_K block.
struct Q4Group {
    numbers: [f32; Q4_GROUP],
    weights: [f32; Q4_GROUP],
    /// Sums of the weights, and of the numbers with their weights.
    weight: f32,
    weighted: f32,
}

impl Q4Group {
    fn new(numbers: &[f32; Q4_GROUP]) -> Self {
        let weights = importance(numbers);
        let weighted = sum::<Q4_GROUP>(|i| weights[i] * numbers[i]);
        Self { numbers: *numbers, weights, weight: sum::<Q4_GROUP>(|i| weights[i]), weighted }
    }

    fn codes(&self, Affine { scale, minimum }: Affine) -> [f32; Q4_GROUP] {
        let inverse = super::inverse(scale);
        self.numbers.map(|x| code((x + minimum) * inverse, 15.0))
    }

    fn error(&self, Affine { scale, minimum }: Affine, codes: &[f32; Q4_GROUP]) -> f32 {
        sum::<Q4_GROUP>(|i| {
            let error = scale * codes[i] - minimum - self.numbers[i];
            self.weights[i] * error * error
        })
    }

    /// The scale and the minimum that are best with these codes.
    fn fit(&self, codes: &[f32; Q4_GROUP]) -> Affine {
        let Self { numbers, weights, weight: w, weighted: x } = self;
        let (w, x) = (*w, *x);
        let q = sum::<Q4_GROUP>(|i| weights[i] * codes[i]);
        let qq = sum::<Q4_GROUP>(|i| weights[i] * codes[i] * codes[i]);
        let xq = sum::<Q4_GROUP>(|i| weights[i] * numbers[i] * codes[i]);
        let determinant = w * qq - q * q;
        let both = if determinant > 0.0 { (w * xq - q * x) / determinant } else { 0.0 };
        let minimum = if w > 0.0 { (both * q - x) / w } else { 0.0 };
        match minimum >= 0.0 {
            true => Affine { scale: both.max(0.0), minimum },
            // Minima are below 0 or there is none.
            false => Affine { scale: if qq > 0.0 { (xq / qq).max(0.0) } else { 0.0 }, minimum: 0.0 },
        }
    }

    /// The best scale and minimum of the group on its own.
    fn alone(&self) -> Affine {
        let low = self.numbers.iter().copied().fold(0.0, f32::min);
        let range = self.numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max) - low;
        let mut best = (f32::INFINITY, Affine { scale: 0.0, minimum: -low });
        for step in 0..RANGES {
            let codes = 14.0 + RANGE_STEP * step as f32;
            let codes = self.codes(Affine { scale: range / codes, minimum: -low });
            best = self.better(best, &codes);
        }
        for _ in 0..ROUNDS {
            best = self.better(best, &self.codes(best.1));
        }
        best.1
    }

    fn better(&self, best: (f32, Affine), codes: &[f32; Q4_GROUP]) -> (f32, Affine) {
        let fit = self.fit(codes);
        let error = self.error(fit, codes);
        if error < best.0 { (error, fit) } else { best }
    }
}

/// What is stored of a Q4_K block, but for its codes, which follow.
#[derive(Clone, Copy)]
struct Q4Block {
    /// Of the scales and of the minima, as f16 has it.
    unit: Affine,
    /// 0 to 63, of each group.
    scales: [f32; 8],
    minima: [f32; 8],
}

impl Q4Block {
    fn of(&self, group: usize) -> Affine {
        let Affine { scale, minimum } = self.unit;
        Affine { scale: scale * self.scales[group], minimum: minimum * self.minima[group] }
    }

    fn error(&self, groups: &[Q4Group]) -> f32 {
        let error = |(index, group): (usize, &Q4Group)| group.error(self.of(index), &group.codes(self.of(index)));
        groups.iter().enumerate().map(error).sum()
    }

    /// Moves each group's scale and minimum to the best of their neighbours.
    fn mend_groups(&mut self, groups: &[Q4Group]) {
        for (index, group) in groups.iter().enumerate() {
            let (scale, minimum) = (self.scales[index], self.minima[index]);
            let mut best = f32::INFINITY;
            let mut chosen = (scale, minimum);
            for scale in [scale, scale - 1.0, scale + 1.0].into_iter().filter(|scale| (0.0..=63.0).contains(scale)) {
                for minimum in [minimum, minimum - 1.0, minimum + 1.0] {
                    if !(0.0..=63.0).contains(&minimum) {
                        continue;
                    }
                    (self.scales[index], self.minima[index]) = (scale, minimum);
                    let error = group.error(self.of(index), &group.codes(self.of(index)));
                    if error < best {
                        (best, chosen) = (error, (scale, minimum));
                    }
                }
            }
            (self.scales[index], self.minima[index]) = chosen;
        }
    }

    /// The block's own scales that are best with these codes.
    fn fit(&self, groups: &[Q4Group]) -> Affine {
        let (mut aa, mut ab, mut bb, mut xa, mut xb) = (0.0f64, 0.0, 0.0, 0.0, 0.0);
        for (index, group) in groups.iter().enumerate() {
            let b = -f64::from(self.minima[index]);
            let codes = group.codes(self.of(index));
            for ((&number, &weight), &code) in group.numbers.iter().zip(&group.weights).zip(&codes) {
                let (number, weight) = (f64::from(number), f64::from(weight));
                let a = f64::from(self.scales[index]) * f64::from(code);
                aa += weight * a * a;
                ab += weight * a * b;
                bb += weight * b * b;
                xa += weight * number * a;
                xb += weight * number * b;
            }
        }
        let determinant = aa * bb - ab * ab;
        let (scale, minimum) = match determinant > 1e-9 * aa * bb {
            true => ((xa * bb - xb * ab) / determinant, (xb * aa - xa * ab) / determinant),
            false => (if aa > 0.0 { xa / aa } else { 0.0 }, 0.0),
        };
        Affine { scale: in_f16(scale.max(0.0) as f32), minimum: in_f16(minimum.max(0.0) as f32) }
    }
}

/// 256 numbers to a block of Q4_K.
pub(super) fn q4_k(numbers: &[f32], stored: &mut [u8]) {
    let (numbers, _) = numbers.as_chunks::<Q4_GROUP>();
    let groups: Vec<Q4Group> = numbers.iter().map(Q4Group::new).collect();
    let alone: Vec<Affine> = groups.iter().map(Q4Group::alone).collect();
    let most = |of: fn(&Affine) -> f32| alone.iter().map(of).fold(0.0, f32::max) / 63.0;
    let unit = Affine { scale: in_f16(most(|group| group.scale)), minimum: in_f16(most(|group| group.minimum)) };
    let mut block = Q4Block { unit, scales: [0.0; 8], minima: [0.0; 8] };
    for (index, group) in alone.iter().enumerate() {
        block.scales[index] = code(group.scale * super::inverse(unit.scale), 63.0);
        block.minima[index] = code(group.minimum * super::inverse(unit.minimum), 63.0);
    }
    block.mend_groups(&groups);
    let mut error = block.error(&groups);
    for _ in 0..ROUNDS {
        let mut next = Q4Block { unit: block.fit(&groups), ..block };
        next.mend_groups(&groups);
        let of_next = next.error(&groups);
        if of_next.total_cmp(&error).is_ge() {
            break;
        }
        (block, error) = (next, of_next);
    }

    stored[..2].copy_from_slice(&f16::from_f32(block.unit.scale).to_le_bytes());
    stored[2..4].copy_from_slice(&f16::from_f32(block.unit.minimum).to_le_bytes());
    let (scales, minima) = (block.scales.map(|scale| scale as u8), block.minima.map(|minimum| minimum as u8));
    for group in 0..4 {
        stored[4 + group] = scales[group] | scales[group + 4] >> 4 << 6;
        stored[8 + group] = minima[group] | minima[group + 4] >> 4 << 6;
        stored[12 + group] = scales[group + 4] & 15 | minima[group + 4] << 4;
    }
    stored[16..].fill(0);
    for (index, group) in groups.iter().enumerate() {
        for (i, code) in group.codes(block.of(index)).into_iter().enumerate() {
            stored[16 + index / 2 * Q4_GROUP + i] |= (code as u8) << (index % 2 * 4);
        }
    }
}

// ---- Q6_K: element = scale · code, code in −32..=31 ----

/// A group of a Q6_K block.
struct Q6Group {
    numbers: [f32; Q6_GROUP],
    weights: [f32; Q6_GROUP],
}

impl Q6Group {
    /// From 0 to 63: 32 more than what the numbers are multiples of.
    fn codes(&self, scale: f32) -> [f32; Q6_GROUP] {
        let inverse = super::inverse(scale);
        self.numbers.map(|x| code(x * inverse + 32.0, 63.0))
    }

    fn error(&self, scale: f32) -> f32 {
        let codes = self.codes(scale);
        sum::<Q6_GROUP>(|i| {
            let error = scale * (codes[i] - 32.0) - self.numbers[i];
            self.weights[i] * error * error
        })
    }

    /// Sums `w x q` and `w q²` over the codes of a scale: their quotient is the best factor for these.
    fn sums(&self, scale: f32) -> (f32, f32) {
        let codes = self.codes(scale);
        let weighted = |i: usize| self.weights[i] * (codes[i] - 32.0);
        (sum::<Q6_GROUP>(|i| weighted(i) * self.numbers[i]), sum::<Q6_GROUP>(|i| weighted(i) * (codes[i] - 32.0)))
    }

    /// The best scale of the group on its own, of either sign: there is one more code below 0 than above.
    fn alone(&self) -> f32 {
        let largest = self.numbers[super::largest(&self.numbers)];
        let mut best = (f32::INFINITY, 0.0);
        for step in 0..RANGES {
            let codes = -33.0 + RANGE_STEP * step as f32;
            let (xq, qq) = self.sums(largest / codes);
            let scale = if qq > 0.0 { xq / qq } else { 0.0 };
            let error = self.error(scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
        best.1
    }
}

/// What is stored of a Q6_K block, but for its codes, which follow.
#[derive(Clone, Copy)]
struct Q6Block {
    /// As f16 has it.
    unit: f32,
    /// −128 to 127, of each group.
    scales: [f32; 16],
}

impl Q6Block {
    fn error(&self, groups: &[Q6Group]) -> f32 {
        groups.iter().zip(&self.scales).map(|(group, scale)| group.error(self.unit * scale)).sum()
    }

    /// Moves each group's scale to the best of its neighbours.
    fn mend_groups(&mut self, groups: &[Q6Group]) {
        for (group, scale) in groups.iter().zip(&mut self.scales) {
            let near = (-Q6_NEAR..=Q6_NEAR).map(|step| *scale + step as f32);
            let errors = near.filter(|scale| (-128.0..=127.0).contains(scale));
            let errors = errors.map(|scale| (group.error(self.unit * scale), scale));
            let best = errors.fold((f32::INFINITY, *scale), |best, found| if found.0 < best.0 { found } else { best });
            *scale = best.1;
        }
    }

    /// The block's own scale that is best with these codes.
    fn fit(&self, groups: &[Q6Group]) -> f32 {
        let sums = groups.iter().zip(&self.scales).map(|(group, &scale)| {
            let (xq, qq) = group.sums(self.unit * scale);
            (xq * scale, qq * scale * scale)
        });
        let (xq, qq) = sums.fold((0.0, 0.0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        in_f16(if qq > 0.0 { xq / qq } else { 0.0 })
    }
}

/// 256 numbers to a block of Q6_K.
pub(super) fn q6_k(numbers: &[f32], stored: &mut [u8]) {
    let (numbers, _) = numbers.as_chunks::<Q6_GROUP>();
    let groups: Vec<Q6Group> =
        numbers.iter().map(|numbers| Q6Group { numbers: *numbers, weights: importance(numbers) }).collect();
    let alone: Vec<f32> = groups.iter().map(Q6Group::alone).collect();
    let unit = in_f16(alone[super::largest(&alone)] / -128.0);
    let inverse = super::inverse(unit);
    let mut block = Q6Block { unit, scales: [0.0; 16] };
    for (scale, alone) in block.scales.iter_mut().zip(&alone) {
        *scale = code(alone * inverse + 128.0, 255.0) - 128.0;
    }
    block.mend_groups(&groups);
    let mut error = block.error(&groups);
    for _ in 0..ROUNDS {
        let mut next = Q6Block { unit: block.fit(&groups), ..block };
        next.mend_groups(&groups);
        let of_next = next.error(&groups);
        if of_next.total_cmp(&error).is_ge() {
            break;
        }
        (block, error) = (next, of_next);
    }

    stored.fill(0);
    stored[208..].copy_from_slice(&f16::from_f32(block.unit).to_le_bytes());
    for (index, (group, &scale)) in groups.iter().zip(&block.scales).enumerate() {
        stored[192 + index] = scale as i8 as u8;
        for (i, code) in (index * Q6_GROUP..).zip(group.codes(block.unit * scale)) {
            let code = code as u8;
            stored[i / 128 * 64 + i % 64] |= (code & 15) << (i % 128 / 64 * 4);
            stored[128 + i / 128 * 32 + i % 32] |= (code >> 4) << (i % 128 / 32 * 2);
        }
    }
}
