//! Choices that were made beforehand, for one job or several: what `graccl tune` measures and a profile keeps.

use super::{Choice, Layout};
use crate::schedule::Collective;

/// Where choices hold: a collective on so many ranks, spread evenly over so many hosts, reached in such a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub collective: Collective,
    pub ranks: u32,
    pub hosts: u32,
    /// As [`Layout::transport`].
    pub transport: &'static str,
}

impl Place {
    /// That of a communicator. `None` where hosts have unlike numbers of ranks (by more than one).
    pub fn of(collective: Collective, layout: &Layout) -> Option<Place> {
        let g = &layout.groups;
        let few = g.iter().map(<[u32]>::len).min()?;
        let many = g.iter().map(<[u32]>::len).max()?;
        let place =
            Place { collective, ranks: g.n() as u32, hosts: g.len() as u32, transport: layout.transport() };
        (many - few <= 1).then_some(place)
    }
}

/// Frozen choices. Equal tables have equal digests, and give equal choices on all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    lists: Vec<(Place, Vec<(u64, Choice)>)>,
}

impl Table {
    /// Adds a choice for calls of up to `up_to` bytes (of the larger of a rank's buffers), behind those for fewer
    /// bytes. False if these are as many or more: then it is not added.
    #[must_use]
    pub fn push(&mut self, place: Place, up_to: u64, choice: Choice) -> bool {
        let list = match self.lists.iter().position(|(p, _)| *p == place) {
            Some(i) => i,
            None => {
                self.lists.push((place, Vec::new()));
                self.lists.len() - 1
            }
        };
        let list = &mut self.lists[list].1;
        let fits = list.last().is_none_or(|(b, _)| *b < up_to);
        if fits {
            list.push((up_to, choice));
        }
        fits
    }

    /// The choice for a call, if there is one.
    pub fn choose(&self, collective: Collective, layout: &Layout, bytes: usize) -> Option<Choice> {
        let place = Place::of(collective, layout)?;
        let (_, list) = self.lists.iter().find(|(p, _)| *p == place)?;
        list.get(list.partition_point(|(b, _)| *b < bytes as u64)).map(|(_, c)| *c)
    }

    /// All choices: place, largest size (`u64::MAX`: any), what to do.
    pub fn rows(&self) -> impl Iterator<Item = (Place, u64, Choice)> {
        self.lists.iter().flat_map(|(p, list)| list.iter().map(|(b, c)| (*p, *b, *c)))
    }

    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Takes over the lists of `other`, in place of those for the same place.
    pub fn merge(&mut self, other: Table) {
        self.lists.retain(|(p, _)| other.lists.iter().all(|(q, _)| p != q));
        self.lists.extend(other.lists);
    }

    /// Not 0. Another one for another table but by a chance of one in 2^64.
    pub fn digest(&self) -> u64 {
        let mut lists: Vec<String> = self
            .lists
            .iter()
            .map(|(p, list)| {
                let rows = list.iter().map(|(b, c)| (*b, c.algorithm.name, c.ways, c.message));
                format!("{p:?} {:?}", rows.collect::<Vec<_>>())
            })
            .collect();
        lists.sort_unstable();
        // FNV-1a.
        let hash = lists
            .iter()
            .flat_map(|l| l.bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        hash.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::{Algorithm, Groups};

    fn choice(name: &str) -> Choice {
        let algorithm = Algorithm::by_name(Collective::AllReduce, name).unwrap();
        Choice { algorithm, ways: 1, message: 1 << 18 }
    }

    fn layout(hosts: &[u32]) -> Layout {
        let groups = Groups::new(hosts);
        let any_tcp = groups.len() > 1;
        Layout { groups, any_tcp, all_tcp: false }
    }

    #[test]
    fn sizes_find_their_row() {
        let flat = layout(&[0, 0, 0, 0]);
        let place = Place::of(Collective::AllReduce, &flat).unwrap();
        let mut t = Table::default();
        assert!(t.push(place, 1000, choice("one_shot")));
        assert!(!t.push(place, 1000, choice("ring")));
        assert!(t.push(place, 4000, choice("direct")));
        let name = |b| t.choose(Collective::AllReduce, &flat, b).map(|c| c.algorithm.name);
        assert_eq!([name(0), name(1000)], [Some("one_shot"); 2]);
        assert_eq!([name(1001), name(4000), name(4001)], [Some("direct"), Some("direct"), None]);
        // Other jobs are not meant.
        let others = [&[0, 0, 0][..], &[0, 0, 1, 1], &[0, 0, 0, 1]];
        assert!(others.iter().all(|h| t.choose(Collective::AllReduce, &layout(h), 8).is_none()));
        assert!(t.choose(Collective::Broadcast, &flat, 8).is_none());
        let tcp = Layout { any_tcp: true, all_tcp: true, ..flat.clone() };
        assert!(t.choose(Collective::AllReduce, &tcp, 8).is_none());
        assert_eq!(Place::of(Collective::AllReduce, &layout(&[0, 0, 0, 1])), None);
    }

    #[test]
    fn digests_tell_tables_apart_and_not_their_order() {
        let [two, four] = [layout(&[0, 0]), layout(&[0, 0, 0, 0])].map(|l| {
            let mut t = Table::default();
            assert!(t.push(Place::of(Collective::AllReduce, &l).unwrap(), u64::MAX, choice("direct")));
            t
        });
        let (mut a, mut b) = (two.clone(), four.clone());
        a.merge(four.clone());
        b.merge(two.clone());
        assert_eq!(a.digest(), b.digest());
        assert_ne!(a.digest(), two.digest());
        assert_ne!(two.digest(), four.digest());
        let mut other = Table::default();
        let place = Place::of(Collective::AllReduce, &layout(&[0, 0])).unwrap();
        assert!(other.push(place, u64::MAX, Choice { ways: 2, ..choice("direct") }));
        assert_ne!(two.digest(), other.digest());
        // The later one counts.
        a.merge(other.clone());
        assert_eq!(a.rows().count(), 2);
        assert_ne!(a.digest(), b.digest());
    }
}
