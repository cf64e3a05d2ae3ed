//! Geometry: the one function that cuts buffers into tiles and tiles into chunks.

/// Start of part `i` when `n` elements are cut into `parts`, in steps of `unit` elements.
///
/// `cut(0) = 0`, `cut(parts) = n`, never decreasing; parts may be empty. With `u = ceil(n / unit)`
/// units the boundary is `min(n, unit * floor(i * u / parts))`. The floor form is consistent under
/// refinement (boundary `i` of `g` parts is boundary `i * h` of `g * h` parts), so hierarchical
/// stages that cut a chunk again agree with stages that did not.
///
/// `unit` must not be 0, and `i * ceil(n / unit)` must fit 64 bits.
#[inline]
pub fn cut(n: u64, i: u64, parts: u64, unit: u64) -> u64 {
    let units = n.div_ceil(unit);
    (unit * (i * units / parts)).min(n)
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn boundaries_refine() {
        for n in 0..300u64 {
            for unit in [1, 2, 16] {
                for g in 1..12 {
                    for h in 1..9 {
                        assert_eq!(cut(n, 0, g, unit), 0);
                        assert_eq!(cut(n, g, g, unit), n);
                        for i in 0..g {
                            assert!(cut(n, i, g, unit) <= cut(n, i + 1, g, unit));
                            assert_eq!(cut(n, i, g, unit), cut(n, i * h, g * h, unit));
                        }
                    }
                }
            }
        }
    }
}
