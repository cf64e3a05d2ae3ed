//! Tiling against the definition, written out.

use super::tiling::{BlockSpan, Tiling};

/// The definition: parts of whole cache lines, all as long as each other to within one line.
fn boundaries(n: usize, parts: usize, unit: usize) -> Vec<usize> {
    let lines = n.div_ceil(unit);
    (0..=parts)
        .map(|i| (i as u128 * lines as u128 / parts as u128) as usize * unit)
        .map(|b| b.min(n))
        .collect()
}

fn block(count: usize, tiles: u32) -> BlockSpan {
    BlockSpan { count, tiles, ..BlockSpan::default() }
}

/// Chunk boundaries of a block in a tile, from the block's begin; and the block's begin.
fn look(t: &Tiling, block: u32, tile: u32) -> (usize, Vec<usize>) {
    let place = t.place(block, tile);
    let bounds = (0..=t.chunks()).map(|j| t.span(&place, 0, j).1);
    (place.input, bounds.collect())
}

fn check(spans: &[BlockSpan], esize: usize, chunks: u32) {
    let who = format!("{spans:?} x {esize} bytes, {chunks} chunks");
    let t = Tiling::new(spans, esize, chunks);
    assert_eq!(t.tiles(), spans.iter().map(|s| s.tiles).max().unwrap_or(0), "{who}");
    assert_eq!((t.blocks(), t.chunks()), (spans.len(), chunks));
    let unit = 64 / esize;
    let (mut longest, mut scratch) = (vec![0; chunks as usize + 1], 0);
    for (b, s) in spans.iter().enumerate() {
        let b = b as u32;
        assert_eq!(t.tiles_of(b), s.tiles);
        let starts = boundaries(s.count, s.tiles.max(1) as usize, unit);
        let (mut end, mut largest) = (0, 0);
        for i in 0..s.tiles {
            let who = format!("{who}: block {b}, tile {i}");
            let place = t.place(b, i);
            let (from, to) = (starts[i as usize], starts[i as usize + 1]);
            let base = from * esize;
            assert_eq!(place.input, s.input + base, "{who}");
            assert_eq!(place.output, s.output + base, "{who}");
            assert_eq!(place.scratch, scratch, "{who}");
            assert_eq!(base, end, "{who} does not begin where the last one ended");
            let (_, table) = look(&t, b, i);
            let want: Vec<usize> =
                boundaries(to - from, chunks as usize, unit).iter().map(|b| b * esize).collect();
            assert_eq!(table, want, "{who}");
            for bound in &table[..chunks as usize] {
                let at = base + bound;
                assert!(at.is_multiple_of(64) || at == s.count * esize, "{who}, a chunk at byte {at}");
            }
            for at in 0..=chunks {
                for len in 0..=chunks - at {
                    let span = (table[at as usize], table[(at + len) as usize] - table[at as usize]);
                    assert_eq!(t.span(&place, at, len), span, "{who}");
                    longest[len as usize] = longest[len as usize].max(span.1);
                }
            }
            let lens: Vec<usize> = table.windows(2).map(|w| w[1] - w[0]).collect();
            let (least, most) = (lens.iter().min().unwrap(), lens.iter().max().unwrap());
            assert!(most - least <= 128, "{who}, chunks of {least} to {most} bytes");
            end = base + table[chunks as usize];
            largest = largest.max(end - base);
        }
        assert!(s.tiles == 0 || end == s.count * esize, "{who}: not all of block {b}");
        scratch += largest.next_multiple_of(64);
    }
    assert_eq!(t.scratch_bytes(), scratch, "{who}");
    let every = spans.iter().all(|s| s.tiles > 0);
    for (len, bytes) in longest.iter().enumerate() {
        let got = t.span_bytes(len as u32);
        assert!(if every { got == *bytes } else { got >= *bytes }, "{who}: spans of {len}");
    }
    match t.single() {
        None => assert!(spans.iter().any(|s| s.tiles != 1), "{who}"),
        Some(places) => {
            assert!(spans.iter().all(|s| s.tiles == 1) && places.len() == spans.len(), "{who}");
            for (b, place) in places.iter().enumerate() {
                assert_eq!(*place, t.place(b as u32, 0), "{who}");
            }
        }
    }
}

fn random() -> impl FnMut(u64) -> u64 {
    let mut r = 1u64;
    move |n: u64| {
        r = r.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (r >> 33) % n
    }
}

#[test]
fn tiles_and_chunks_cover_everything_once() {
    for count in [0, 1, 2, 3, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 1003] {
        for esize in [1, 2, 4, 8] {
            for tiles in [0, 1, 2, 3, 7, 64] {
                for chunks in [1, 2, 3, 8, 9] {
                    check(&[block(count, tiles)], esize, chunks);
                }
            }
        }
    }
    let mut below = random();
    for _ in 0..3000 {
        let magnitude = below(20);
        let count = below(1 << (magnitude + 1)) as usize;
        check(&[block(count, 1 + below(100) as u32)], 1 << below(4), 1 + below(16) as u32);
    }
}

#[test]
fn blocks_have_their_own_tiles_and_places() {
    let mut below = random();
    check(&[], 4, 3);
    for _ in 0..3000 {
        let (esize, one) = (1 << below(4), below(4) == 0);
        let spans: Vec<BlockSpan> = (0..1 + below(6))
            .map(|_| {
                let magnitude = below(14);
                BlockSpan {
                    // Equal ones, and empty ones, are common.
                    count: if below(3) == 0 { 0 } else { below(1 << (magnitude + 1)) as usize },
                    tiles: if one { 1 } else { below(6) as u32 },
                    input: below(100_000) as usize,
                    output: below(100_000) as usize,
                    mark: 0,
                }
            })
            .collect();
        check(&spans, esize, 1 + below(6) as u32);
    }
}

/// The begin of every tile is computed without a division.
#[test]
fn huge_counts_and_many_tiles() {
    let mut below = random();
    for count in [usize::MAX >> 4, (1 << 40) + 12345, 3 << 33, 1 << 20] {
        for esize in [1, 8] {
            for tiles in [1, 2, 7, 1000, 65_537, u32::MAX - 1] {
                let t = Tiling::new(&[block(count, tiles)], esize, 24);
                let lines = (count as u128).div_ceil(64 / esize as u128);
                let start = |i: u32| {
                    let line = u128::from(i) * lines / u128::from(tiles);
                    (line * 64).min(count as u128 * esize as u128) as usize
                };
                let random = (0..1000).map(|_| below(u64::from(tiles)) as u32);
                for i in (0..tiles.min(1000)).chain(tiles - tiles.min(1000)..tiles).chain(random) {
                    let (base, table) = look(&t, 0, i);
                    assert_eq!(base, start(i), "{count} x {esize}, tile {i} of {tiles}");
                    assert_eq!(base + table[24], start(i + 1), "{count} x {esize}, tile {i} of {tiles}");
                }
            }
        }
    }
}

#[test]
fn offsets_of_absent_blocks_may_be_anything() {
    let t = Tiling::new(&[BlockSpan { count: 100, tiles: 3, input: usize::MAX, output: 64, mark: 0 }], 8, 1);
    assert_eq!(t.place(0, 2).output, 64 + 8 * 64);
}

#[test]
fn a_finer_cut_keeps_the_boundaries() {
    for count in [0, 1, 100, 1003, 70000] {
        for (chunks, finer) in [(2, 3), (3, 4), (8, 2)] {
            let spans = [block(count, 3)];
            let (a, b) = (Tiling::new(&spans, 4, chunks), Tiling::new(&spans, 4, chunks * finer));
            for tile in 0..3 {
                let ((x, i), (y, j)) = (look(&a, 0, tile), look(&b, 0, tile));
                assert_eq!(x, y);
                let every: Vec<usize> = j.iter().copied().step_by(finer as usize).collect();
                assert_eq!(i, every);
            }
        }
    }
}
