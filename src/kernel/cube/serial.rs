//! How many numbers one unit of a kernel adds one after another, noted for a test that bounds it.

/// Notes the longest sum of one unit in a launch; does nothing outside tests.
pub(crate) fn note(_kernel: &'static str, _length: usize) {
    #[cfg(test)]
    LONGEST.with_borrow_mut(|longest| {
        let longest = longest.entry(_kernel).or_default();
        *longest = (*longest).max(_length);
    });
}

#[cfg(test)]
thread_local! {
    static LONGEST: std::cell::RefCell<std::collections::BTreeMap<&'static str, usize>> =
        const { std::cell::RefCell::new(std::collections::BTreeMap::new()) };
}

/// The longest sum of one unit by kernel, over all launches of this thread.
#[cfg(test)]
pub(crate) fn longest() -> std::collections::BTreeMap<&'static str, usize> {
    LONGEST.with_borrow(Clone::clone)
}
