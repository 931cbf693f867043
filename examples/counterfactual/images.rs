//! Several kinds of images that the model of digits never saw.

use siss::burn::tensor::Tensor;

/// Images and the kind of each.
pub struct Unseen {
    /// `[count, 1, 28, 28]` in `[-1, 1]`.
    pub images: Tensor<4>,
    pub kinds: Vec<&'static str>,
}

impl Unseen {
    /// The T-shirt in eight forms, and `count` images of each other kind, made from digits that the
    /// model has not seen.
    pub fn new(tshirt: &Tensor<4>, heldout: &Tensor<4>, count: usize) -> Self {
        let mut unseen = (Vec::new(), Vec::new());
        let mut add = |kind: &'static str, images: Tensor<4>| {
            unseen.1.extend(vec![kind; images.dims()[0]]);
            unseen.0.push(images);
        };
        for form in tshirts(tshirt) {
            add("T-shirt", form);
        }
        // Digits other than the control points, which come first.
        let from = |part: usize| heldout.clone().narrow(0, 500 + part * count, count);
        add("digit", from(0));
        add("digit, upside down", from(1).flip([2]));
        add("digit, mirrored", from(2).flip([3]));
        add("digit, on its side", from(3).swap_dims(2, 3));
        add("digit, negative", -from(4));
        add("digit, grey", (from(5) + 1.0) / 2.0 - 1.0);
        add("two digits", from(6).max_pair(from(7)));
        Self {
            images: Tensor::cat(unseen.0, 0),
            kinds: unseen.1,
        }
    }
}

fn tshirts(tshirt: &Tensor<4>) -> Vec<Tensor<4>> {
    let shifted = |rows: usize| {
        let bottom = tshirt.clone().narrow(2, 28 - rows, rows);
        let top = tshirt.clone().narrow(2, 0, 28 - rows);
        Tensor::cat(vec![bottom, top], 2)
    };
    let plain = || tshirt.clone();
    vec![
        plain(),
        plain().flip([2]),
        plain().flip([3]),
        plain().swap_dims(2, 3),
        plain().swap_dims(2, 3).flip([3]),
        (plain() + 1.0) / 2.0 - 1.0,
        -plain(),
        shifted(6),
    ]
}
