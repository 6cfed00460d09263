//! Elementary functions with the same bits in every instruction set.

use super::lanes::{LANES, Lanes};

/// `e^x` to about one unit in the last place; zero below -87, where results would be subnormal, and
/// `e^88` above 88.
#[inline(always)]
pub fn exp<V: Lanes>(x: V) -> V {
    // x = n·ln 2 + r, |r| ≤ ln 2 / 2. Adding 1.5·2²³ rounds to an integer and leaves it in the low bits.
    const ROUNDING: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let floor = V::splat(-87.0);
    let clamped = x.max(floor).min(V::splat(88.0));
    let power = clamped.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUNDING));
    let n = power.sub(V::splat(ROUNDING));
    let r = n.fma(V::splat(-LN_2_LOW), n.fma(V::splat(-LN_2_HIGH), clamped));
    // Taylor's series to r⁷/7!: what is left out is below 2⁻²⁷.
    let mut sum = V::splat(1.0 / 5040.0);
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum.fma(r, V::splat(coefficient));
    }
    sum.scale(power).zero_where_below(x, floor)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub fn silu<V: Lanes>(x: V) -> V {
    x.div(V::splat(1.0).add(exp(V::splat(0.0).sub(x))))
}

/// The sum of the lanes, always by the same tree.
#[inline(always)]
pub fn sum<V: Lanes>(lanes: V) -> f32 {
    fold(lanes, |a, b| a + b)
}

/// The largest lane.
#[inline(always)]
pub fn max<V: Lanes>(lanes: V) -> f32 {
    fold(lanes, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn fold<V: Lanes>(lanes: V, op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes.to_array();
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = op(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::super::Simd;
    use super::super::lanes::Kernel;
    use super::*;

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<V: Lanes>(self) -> Self::Output {
            // SAFETY: the array has 16 floats.
            exp(unsafe { V::load(self.0.as_ptr()) }).to_array()
        }
    }

    #[test]
    fn exp_is_accurate_and_the_same_everywhere() {
        let levels = Simd::ALL.into_iter().filter(|level| level.is_available());
        let mut worst = 0.0f64;
        for level in levels {
            for step in 0..20_000 {
                let x: [f32; LANES] = std::array::from_fn(|i| -90.0 + 0.0089 * step as f32 + 0.0005 * i as f32);
                let found = level.run(Exp(x));
                assert_eq!(found.map(f32::to_bits), Simd::Portable.run(Exp(x)).map(f32::to_bits));
                for (x, found) in x.into_iter().zip(found) {
                    let expected = if x < -87.0 { 0.0 } else { f64::from(x.min(88.0)).exp() };
                    worst = worst.max((f64::from(found) - expected).abs() / expected.max(f64::MIN_POSITIVE));
                }
            }
        }
        assert!(worst < 1.5e-7, "relative error {worst:e}");
        let special = [f32::NEG_INFINITY, 0.0, f32::INFINITY, -1e30, 1.0, 0.0, 0.0, 0.0].map(|x| [x; 2]);
        let found = Simd::detect().run(Exp(bytemuck::cast(special)));
        assert_eq!((found[0], found[2], found[6]), (0.0, 1.0, 0.0));
        assert!(found[4].is_finite());
    }
}
