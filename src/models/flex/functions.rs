//! Functions of vectors.

use pulp::Simd;

/// `eˣ` to about one unit in the last place, between e⁻⁸⁷ and e⁸⁸; NaN stays NaN.
///
/// `eˣ = 2ⁿ eʳ` with `n` the nearest integer to `x / ln 2`. Adding 1.5 · 2²³ rounds to an integer
/// and leaves `n` in the low bits, from which it is shifted into the exponent. The polynomial for
/// `eʳ` and the two parts of `ln 2` come from the Cephes library.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    let splat = |value| simd.splat_f32s(value);
    let x = clamp(simd, x, -87.3, 88.3);
    let shifted = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(shifted, splat(ROUND));
    let r = simd.mul_add_e_f32s(n, splat(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, splat(2.121_944_4e-4), r);

    let mut sum = splat(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        sum = simd.mul_add_e_f32s(sum, r, splat(*coefficient));
    }
    let sum = simd.mul_add_e_f32s(simd.mul_f32s(sum, r), r, simd.add_f32s(r, splat(1.0)));

    let bits: S::u32s = pulp::cast(shifted);
    let exponent = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let exponent = simd.add_u32s(exponent, simd.splat_u32s(127 << 23));
    simd.mul_f32s(sum, pulp::cast(exponent))
}

/// Clamps to two bounds; NaN stays NaN, which minimum and maximum do not guarantee.
#[inline(always)]
fn clamp<S: Simd>(simd: S, x: S::f32s, least: f32, most: f32) -> S::f32s {
    let (least, most) = (simd.splat_f32s(least), simd.splat_f32s(most));
    let x = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
    simd.select_f32s(simd.greater_than_f32s(x, most), most, x)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let decay = exp(simd, simd.sub_f32s(simd.splat_f32s(0.0), x));
    simd.div_f32s(one, simd.add_f32s(one, decay))
}

/// Sum, in an order that depends only on the vector instructions.
#[inline(always)]
pub(crate) fn sum<S: Simd>(simd: S, numbers: &[f32]) -> f32 {
    let (body, tail) = S::as_simd_f32s(numbers);
    let mut partial = [simd.splat_f32s(0.0); 4];
    let (quads, rest) = body.as_chunks::<4>();
    for quad in quads {
        for (partial, &values) in partial.iter_mut().zip(quad) {
            *partial = simd.add_f32s(*partial, values);
        }
    }
    for (partial, &values) in partial.iter_mut().zip(rest) {
        *partial = simd.add_f32s(*partial, values);
    }
    partial[3] = simd.add_f32s(partial[3], simd.partial_load_f32s(tail));
    let [a, b, c, d] = partial;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::simd::{Vectorised, dispatch, levels};

    struct Map<'a> {
        function: fn(f32) -> f32,
        input: &'a [f32],
    }

    impl Vectorised for Map<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            for &x in self.input {
                let mut got = vec![0.0; S::F32_LANES];
                simd.partial_store_f32s(&mut got, exp(simd, simd.splat_f32s(x)));
                let expected = (self.function)(x);
                assert!(
                    (got[0] - expected).abs() <= 2e-7 * expected,
                    "{x}: {got:?} {expected}"
                );
            }
        }
    }

    #[test]
    fn exp_is_that_of_the_standard_library() {
        let input: Vec<f32> = (-87_000..88_000).map(|n| n as f32 * 1e-3).collect();
        for level in levels() {
            let map = Map {
                function: f32::exp,
                input: &input,
            };
            dispatch(level, map);
        }
    }

    struct Extremes;

    impl Vectorised for Extremes {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let at = |x| simd.reduce_max_f32s(exp(simd, simd.splat_f32s(x)));
            assert!(at(f32::NEG_INFINITY) < 2e-38 && at(-1e30) < 2e-38);
            assert!(at(f32::INFINITY) > 2e38 && at(f32::INFINITY).is_finite());
            let (mut undefined, nan) = ([0.0; 16], simd.splat_f32s(f32::NAN));
            simd.partial_store_f32s(&mut undefined[..S::F32_LANES], exp(simd, nan));
            assert!(undefined[..S::F32_LANES].iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        for level in levels() {
            dispatch(level, Extremes);
        }
    }

    struct Sum<'a>(&'a [f32]);

    impl Vectorised for Sum<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            assert_eq!(sum(simd, self.0), self.0.iter().sum::<f32>());
        }
    }

    #[test]
    fn a_sum_takes_every_number_once() {
        let numbers: Vec<f32> = (0..200).map(|n| n as f32).collect();
        for level in levels() {
            for length in 0..200 {
                dispatch(level, Sum(&numbers[..length]));
            }
        }
    }
}
