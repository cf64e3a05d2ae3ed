//! Which link has which number: those that are there, and those that are over.

use std::ops::Range;

/// The links by number. Both lists are sorted; a job has tens of links at a time and thousands over
/// time, whose numbers lie side by side, so that both stay short.
#[derive(Default)]
pub(super) struct Ids {
    /// Number and place.
    there: Vec<(u32, usize)>,
    /// Numbers that are over, as ranges with gaps between them.
    over: Vec<Range<u32>>,
}

impl Ids {
    #[inline]
    pub fn get(&self, id: u32) -> Option<usize> {
        let at = self.there.binary_search_by_key(&id, |e| e.0).ok()?;
        Some(self.there[at].1)
    }

    /// Of a number that is not there.
    pub fn insert(&mut self, id: u32, place: usize) {
        let at = self.there.partition_point(|e| e.0 < id);
        self.there.insert(at, (id, place));
    }

    pub fn is_over(&self, id: u32) -> bool {
        let at = self.over.partition_point(|r| r.end <= id);
        self.over.get(at).is_some_and(|r| r.contains(&id))
    }

    /// Those that are there of a range.
    pub fn within(&self, ids: &Range<u32>) -> &[(u32, usize)] {
        let (a, b) = self.bounds(ids);
        &self.there[a..b]
    }

    fn bounds(&self, ids: &Range<u32>) -> (usize, usize) {
        let at = |x| self.there.partition_point(|e| e.0 < x);
        (at(ids.start), at(ids.end.max(ids.start)))
    }

    /// The numbers are over; returns the places of those that were there.
    pub fn end(&mut self, ids: Range<u32>) -> Vec<usize> {
        if ids.is_empty() {
            return Vec::new();
        }
        let (a, b) = self.bounds(&ids);
        let places = self.there.drain(a..b).map(|e| e.1).collect();
        // All ranges that touch or overlap the new one become one with it.
        let a = self.over.partition_point(|r| r.end < ids.start);
        let b = self.over.partition_point(|r| r.start <= ids.end);
        let mut whole = ids;
        if a < b {
            whole = whole.start.min(self.over[a].start)..whole.end.max(self.over[b - 1].end);
        }
        self.over.splice(a..b, [whole]);
        places
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto_tests::Rng;
    use super::*;

    #[test]
    fn as_a_plain_table_does() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut ids, mut there, mut over) = (Ids::default(), [None; 70], [false; 70]);
            for place in 0..60 {
                let id = rng.below(64);
                if rng.below(3) > 0 {
                    if there[id].is_none() && !over[id] {
                        ids.insert(id as u32, place);
                        there[id] = Some(place);
                    }
                } else {
                    let end = id + rng.below(6);
                    let mut want: Vec<usize> = there[id..end].iter_mut().filter_map(Option::take).collect();
                    over[id..end].fill(true);
                    let mut got = ids.end(id as u32..end as u32);
                    want.sort();
                    got.sort();
                    assert_eq!(got, want);
                }
                for i in 0..70 {
                    assert_eq!((ids.get(i as u32), ids.is_over(i as u32)), (there[i], over[i]), "{i}");
                }
                assert!(ids.over.windows(2).all(|w| w[0].end < w[1].start), "{:?}", ids.over);
            }
        }
    }

    #[test]
    fn thousands_over_time_stay_short() {
        let mut ids = Ids::default();
        for id in 0..10_000 {
            ids.insert(id, id as usize);
            if id >= 8 {
                assert_eq!(ids.end(id - 8..id - 7), [id as usize - 8]);
            }
        }
        assert_eq!((ids.there.len(), ids.over.len()), (8, 1));
        assert_eq!(ids.end(0..u32::MAX).len(), 8);
        assert!(ids.is_over(77) && !ids.is_over(u32::MAX));
    }
}
