//! Vector instructions, chosen when the program runs: AVX-512, AVX2, NEON, or none.

use pulp::{Arch, Simd, WithSimd};

/// The instructions to use: the best that this processor has.
pub(crate) fn instructions() -> Arch {
    #[cfg(test)]
    if let Some(arch) = testing::FORCED.get() {
        return arch;
    }
    Arch::new()
}

/// A computation that is compiled once for each set of instructions.
///
/// Implementations and all they call are `#[inline(always)]`: only what is inlined here is compiled
/// for the instructions chosen.
pub(crate) trait Vectorised {
    /// Runs the computation.
    fn run<S: Simd>(self, simd: S);
}

/// Runs `computation` with the instructions of `arch`.
pub(crate) fn dispatch(arch: Arch, computation: impl Vectorised) {
    struct Sized<T>(T);
    impl<T: Vectorised> WithSimd for Sized<T> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            self.0.run(simd);
        }
    }
    arch.dispatch(Sized(computation));
}

/// `eˣ` to about one unit in the last place, between e⁻⁸⁷ and e⁸⁸; NaN stays NaN.
///
/// `eˣ = 2ⁿ eʳ` with `n` the nearest integer to `x / ln 2`. Adding 1.5 · 2²³ rounds to an integer and
/// leaves `n` in the low bits, from where it is shifted into the exponent. The polynomial for `eʳ` and
/// the two parts of `ln 2` are those of the Cephes library.
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

/// Between two bounds; NaN stays NaN, which minimum and maximum do not promise.
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

/// Sum, in an order that depends on the instructions only.
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

/// Every set of instructions that this processor has.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Arch> {
    #[allow(unused_mut)]
    let mut levels = vec![Arch::Scalar];
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        levels.extend(pulp::x86::V3::try_new().map(Arch::V3));
        levels.extend(pulp::x86::V4::try_new().map(Arch::V4));
    }
    levels
}

/// For the tests of all that uses these instructions.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    use burn::tensor::{Device, Tensor};
    use pulp::Arch;

    use super::levels;
    use crate::draws::{Stream, normal_noise};

    thread_local! {
        /// The instructions to use on this thread, in the place of the best.
        pub(crate) static FORCED: Cell<Option<Arch>> = const { Cell::new(None) };
        /// Tensors drawn on this thread.
        static DRAWN: Cell<u64> = const { Cell::new(0) };
    }

    /// Runs `check` with every set of instructions.
    pub(crate) fn at_every_level(check: impl Fn()) {
        for level in levels() {
            FORCED.set(Some(level));
            check();
        }
        FORCED.set(None);
    }

    /// Normal numbers, the same in every run of a test.
    pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let seed = DRAWN.get();
        DRAWN.set(seed + 1);
        normal_noise(shape, seed, 0, 0, Stream::Noise, &Device::flex()) * 1.5 + 0.3
    }

    pub(crate) fn tracked<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
        tensor.clone().autodiff().require_grad()
    }

    pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    /// What a function returns in a pool of so many threads.
    pub(crate) fn on_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
