//! Tiling against the definition, written out.

use super::Tiling;

/// The definition: parts of whole cache lines, all as long as each other to within one line.
fn boundaries(n: usize, parts: usize, unit: usize) -> Vec<usize> {
    let lines = n.div_ceil(unit);
    (0..=parts)
        .map(|i| (i as u128 * lines as u128 / parts as u128) as usize * unit)
        .map(|b| b.min(n))
        .collect()
}

fn check(count: usize, esize: usize, tiles: u32, chunks: u32) {
    let who = format!("{count} x {esize} bytes, {tiles} tiles, {chunks} chunks");
    let t = Tiling::new(count, esize, tiles, chunks);
    assert_eq!(t.tiles(), tiles.max(1));
    let unit = 64 / esize;
    let starts = boundaries(count, tiles.max(1) as usize, unit);
    let mut end = 0;
    let (mut largest, mut longest) = (0, vec![0; chunks as usize + 1]);
    for i in 0..t.tiles() {
        let (base, table) = t.tile(i);
        let table = t.table(table);
        let (from, to) = (starts[i as usize], starts[i as usize + 1]);
        assert_eq!(base, from * esize, "{who}: tile {i}");
        assert_eq!(base, end, "{who}: tile {i} does not begin where the last one ended");
        let want: Vec<usize> =
            boundaries(to - from, chunks as usize, unit).iter().map(|b| b * esize).collect();
        assert_eq!(table, want, "{who}: tile {i}");
        assert_eq!(table[0], 0);
        for b in &table[..chunks as usize] {
            let at = base + b;
            assert!(at % 64 == 0 || at == count * esize, "{who}: tile {i}, a chunk at byte {at}");
        }
        let lens: Vec<usize> = table.windows(2).map(|w| w[1] - w[0]).collect();
        let (least, most) = (lens.iter().min().unwrap(), lens.iter().max().unwrap());
        assert!(most - least <= 128, "{who}: tile {i}, chunks of {least} to {most} bytes");
        end = base + table[chunks as usize];
        largest = largest.max(end - base);
        for len in 0..=chunks as usize {
            let spans = (0..=chunks as usize - len).map(|j| table[j + len] - table[j]);
            longest[len] = longest[len].max(spans.max().unwrap());
        }
    }
    assert_eq!(end, count * esize, "{who}: not all of it");
    assert_eq!(t.tile_bytes(), largest, "{who}");
    for (len, bytes) in longest.iter().enumerate() {
        assert_eq!(t.span_bytes(len as u32), *bytes, "{who}: spans of {len}");
    }
}

#[test]
fn tiles_and_chunks_cover_everything_once() {
    let mut r = 1u64;
    let mut below = |n: u64| {
        r = r.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (r >> 33) % n
    };
    for count in [0, 1, 2, 3, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 1003] {
        for esize in [1, 2, 4, 8] {
            for tiles in [0, 1, 2, 3, 7, 64] {
                for chunks in [1, 2, 3, 8, 9, 24] {
                    check(count, esize, tiles, chunks);
                }
            }
        }
    }
    for _ in 0..3000 {
        let magnitude = below(20);
        let count = below(1 << (magnitude + 1)) as usize;
        check(count, 1 << below(4), 1 + below(100) as u32, 1 + below(64) as u32);
    }
}

#[test]
fn huge_counts_do_not_overflow() {
    for count in [usize::MAX >> 4, (1 << 40) + 12345, 3 << 33] {
        for esize in [1, 8] {
            let t = Tiling::new(count, esize, 7, 24);
            let (base, table) = t.tile(6);
            assert_eq!(base + t.table(table)[24], count * esize);
        }
    }
}

#[test]
fn a_finer_cut_keeps_the_boundaries() {
    for count in [0, 1, 100, 1003, 70000] {
        for (chunks, finer) in [(2, 3), (3, 4), (8, 2)] {
            let (a, b) = (Tiling::new(count, 4, 3, chunks), Tiling::new(count, 4, 3, chunks * finer));
            for tile in 0..3 {
                let ((x, i), (y, j)) = (a.tile(tile), b.tile(tile));
                assert_eq!(x, y);
                let every: Vec<usize> = b.table(j).iter().copied().step_by(finer as usize).collect();
                assert_eq!(a.table(i), every);
            }
        }
    }
}
