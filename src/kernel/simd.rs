//! Vector instructions, chosen at run time: AVX-512, AVX2, NEON, or none.

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
/// Implementations and everything they call are `#[inline(always)]`: only inlined code is compiled
/// for the chosen instructions.
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

/// Helpers for the tests of everything that uses these instructions.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::Cell;

    use burn::tensor::{Device, Tensor};
    use pulp::Arch;

    use super::levels;
    use crate::draws::{Stream, normal_noise};

    thread_local! {
        /// The instructions to use on this thread instead of the best ones.
        pub(crate) static FORCED: Cell<Option<Arch>> = const { Cell::new(None) };
        /// Number of tensors drawn on this thread.
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

    /// Normally distributed numbers, the same in every run of a test.
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

    /// The result of a function in a pool of this many threads.
    pub(crate) fn on_threads<T: Send>(threads: usize, run: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(run)
    }
}
