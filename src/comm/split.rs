//! Communicators made from communicators: split, duplicated, and shrunk to the ranks that live.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fabric::{self, Fabric, Post};
use super::inner::{Inner, aborted};
use super::words::{Saying, Word};
use super::{Call, Communicator, Config, Shared, group, progress};
use crate::record::{Identity, Recorder};
use crate::schedule::Collective;
use crate::{Code, Element, Error, Result};

/// splitmix64: a context for what was made from `ctx` in the way that `n` says. All who take part
/// compute the same, and contexts of one family collide with a chance of 1 in 2^64 for each pair.
fn derive(ctx: u64, n: u64) -> u64 {
    let mut z = ctx ^ n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What the child of a communicator needs of it.
struct Parent {
    fabric: Arc<Fabric>,
    ctx: u64,
    members: Vec<u32>,
    config: Config,
}

impl Parent {
    /// The child number `child` of `ctx`: these of the parent's ranks.
    fn child(&self, ctx: u64, ranks: &[usize], me: usize) -> Result<Inner> {
        let rank = ranks
            .iter()
            .position(|&r| r == me)
            .ok_or_else(|| Error::internal("a communicator without its own rank"))?;
        let members = ranks.iter().map(|&r| self.members[r]).collect();
        let recorder = Recorder::open(&Identity {
            job: self.fabric.boot.job(),
            context: ctx,
            parent: Some(self.ctx),
            rank,
            size: ranks.len(),
            world: &[],
            hosts: &[],
        });
        let config = self.config.clone();
        Ok(Inner::new(self.fabric.clone(), ctx, Some(self.ctx), members, rank, config, recorder))
    }
}

/// A communicator that is being split.
struct Part {
    parent: Parent,
    number: u32,
    me: usize,
    color: Option<u32>,
    /// Colour (-1: none) and key of this rank, and of all.
    mine: [i64; 2],
    all: Vec<i64>,
}

impl Part {
    fn context(&self, color: u32) -> u64 {
        derive(self.parent.ctx, u64::from(self.number) << 32 | u64::from(color))
    }

    /// This rank gets no child, since its call failed. Other ranks' calls may be over, and these have one, of which
    /// this rank is: their calls on that end with the same error.
    #[cold]
    fn forsake(&self, e: &Error) {
        let Some(color) = self.color else { return };
        let Parent { fabric, members, .. } = &self.parent;
        let ctx = self.context(color);
        fabric.end(ctx);
        let text = format!("rank {} of the communicator that was split failed: {e}", self.me);
        for saying in [Saying::Abort { code: e.code as i32, text }, Saying::Bye] {
            let word = Word { ctx, saying };
            for &m in members.iter().filter(|&&m| m as usize != fabric.rank) {
                if let Some(conn) = fabric.conn(m as usize) {
                    conn.tell(&word);
                }
            }
            progress::announce(fabric, word, members);
        }
    }

    /// This rank's child, when all ranks have told their colours.
    fn child(&self) -> Result<Option<Inner>> {
        fabric::sweep();
        let Some(color) = self.color else { return Ok(None) };
        let of = |r: usize| (self.all[2 * r], self.all[2 * r + 1]);
        let all = 0..self.parent.members.len();
        let mut ranks: Vec<usize> = all.filter(|&r| of(r).0 == i64::from(color)).collect();
        ranks.sort_by_key(|&r| (of(r).1, r));
        self.parent.child(self.context(color), &ranks, self.me).map(Some)
    }
}

impl Communicator {
    /// Parts the ranks into communicators: those that give the same `color` are together, in the order
    /// of `key`, and of their ranks here where keys are equal. `None` as a colour: this rank gets none.
    ///
    /// Collective. The new one shares the connections, and has the same settings; this one stays usable. In a
    /// group the new one is returned at once, as one that is not ready: [`Communicator::rank`] and
    /// [`Communicator::size`] give 0, and calls `InProgress`. It is ready when `group_end` returns, or has
    /// the error of its making. Where this fails on some ranks only, calls on what the others have got fail.
    pub fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Communicator>> {
        let (parent, number) = {
            let mut phase = self.shared.phase.lock();
            let inner = phase.ready()?;
            inner.splits += 1;
            let (fabric, members) = (inner.fabric.clone(), inner.members.clone());
            let parent = Parent { fabric, ctx: inner.ctx, members, config: inner.config.clone() };
            (parent, inner.splits)
        };
        let mine = [color.map_or(-1, i64::from), i64::from(key)];
        let all = vec![0; 2 * self.size()];
        let mut part = Box::new(Part { parent, number, me: self.rank(), color, mine, all });
        if !group::active() {
            self.all_gather(&part.mine, &mut part.all).inspect_err(|e| part.forsake(e))?;
            let Some(inner) = part.child()? else { return Ok(None) };
            let shared = Shared::new(inner.rank, inner.size());
            shared.become_ready(inner);
            return Ok(Some(Communicator { shared }));
        }
        let (from, to) = (part.mine.as_ptr().cast(), part.all.as_mut_ptr().cast());
        // The buffers stay where they are until the group's end takes the result.
        let call = Call::moving(Collective::AllGather, from, to, part.mine.len(), i64::DTYPE);
        let work = self.work(&call)?;
        let comm = color.map(|_| Communicator { shared: Shared::new(0, 0) });
        let shared = comm.as_ref().map(|c| c.shared.clone());
        let then = move |gathered: Result<()>| {
            let made = gathered.inspect_err(|e| part.forsake(e)).and_then(|()| part.child());
            match (made, shared) {
                (Ok(Some(inner)), Some(shared)) => shared.become_ready(inner),
                (Ok(_), _) => {}
                (Err(e), shared) => {
                    if let Some(shared) = shared {
                        shared.become_failed(e.clone());
                    }
                    return Err(e);
                }
            }
            Ok(())
        };
        group::add_then(&self.shared, work, Box::new(then));
        Ok(comm)
    }

    /// A communicator of the same ranks whose calls are apart from those of this one. Collective; in a group as
    /// [`Communicator::split`].
    pub fn duplicate(&self) -> Result<Communicator> {
        self.split(Some(0), 0)?.ok_or_else(|| Error::internal("a duplicate without ranks"))
    }

    /// After ranks have died: a communicator of those that live, in the same order. All survivors call
    /// it, each with the ranks that it knows or wants out (`exclude`, ranks of this communicator; others
    /// that do not answer are found). This communicator may have failed, and should be dropped after.
    ///
    /// When it returns, no survivor uses memory of another one any more for calls that failed.
    ///
    /// Errors: `Timeout` with the ranks that neither died nor called it within the communicator's
    /// deadline, `InvalidUsage` if others exclude this rank, or in a group, `Aborted`.
    pub fn shrink(&self, exclude: &[usize]) -> Result<Communicator> {
        if group::active() {
            return Err(Error::usage(
                "a communicator cannot be shrunk in a group: survivors wait for each other",
            )
            .hint("shrink it before or after, in a thread for each rank"));
        }
        let (parent, post, number) = {
            let mut phase = self.shared.phase.lock();
            let inner = phase.ready()?;
            if let Some(&r) = exclude.iter().find(|&&r| r >= inner.size()) {
                return Err(Error::argument(format!("there is no rank {r} to exclude"))
                    .hint(format!("ranks are 0 to {}", inner.size() - 1)));
            }
            if !inner.is_idle() {
                inner.fail(&aborted("calls were under way when the communicator was shrunk".into()));
            }
            let finished = std::mem::take(&mut inner.finished);
            inner.shrinks += 1;
            let (fabric, members) = (inner.fabric.clone(), inner.members.clone());
            let parent = Parent { fabric, ctx: inner.ctx, members, config: inner.config.clone() };
            let state = (parent, inner.post().clone(), inner.shrinks);
            drop(phase);
            super::drive::deliver(finished);
            state
        };
        let agreement = Agreement {
            parent: &parent,
            post: &post,
            me: self.rank(),
            number,
            until: Instant::now() + parent.config.timeout,
            abort: &self.shared.abort,
            honest: self.shared.phase.lock().ready()?.failed.as_ref().is_none_or(|e| e.code != Code::Aborted),
        };
        let alive = agreement.reach(exclude)?;
        let ctx = alive.iter().fold(derive(parent.ctx, !u64::from(number)), |c, &r| derive(c, r as u64));
        let inner = parent.child(ctx, &alive, self.rank())?;
        let shared = Shared::new(inner.rank, inner.size());
        shared.become_ready(inner);
        Ok(Communicator { shared })
    }
}

/// Steps of the agreement, in the upper bits of a vote's round; the lower ones number the shrinking.
const BALLOT: u32 = 0;
const DECISION: u32 = 1 << 28;
const ACCEPTED: u32 = 2 << 28;
const FINAL: u32 = 3 << 28;

/// How survivors agree on who survives. The lowest rank that lives leads:
///
/// ```text
/// others   ballot: whom I know to be gone ->  leader   waits for all that live
///          <- decision: who lives                      (again whenever one more dies)
///          accepted ->
///          <- final                                    all have accepted the same
/// ```
///
/// Two ranks that live and have lost their connection cannot both stay: one of them is excluded, and told so.
///
/// When the leader dies, the next one begins anew. Who hears the final word passes it on, so a leader that dies
/// between two of them leaves nobody behind whom others are connected to; a rank that is not ends by its deadline.
struct Agreement<'a> {
    parent: &'a Parent,
    post: &'a Post,
    me: usize,
    number: u32,
    until: Instant,
    abort: &'a std::sync::atomic::AtomicBool,
    /// The flag of abort counts: it was not the reason for shrinking.
    honest: bool,
}

impl Agreement<'_> {
    fn reach(&self, exclude: &[usize]) -> Result<Vec<usize>> {
        let mut alive: BTreeSet<usize> = (0..self.parent.members.len()).collect();
        for r in exclude {
            alive.remove(r);
        }
        if !alive.contains(&self.me) {
            return Err(Error::argument("a rank cannot exclude itself"));
        }
        loop {
            let leader = *alive.first().ok_or_else(|| Error::internal("nobody lives"))?;
            let end =
                if leader == self.me { self.lead(&mut alive)? } else { self.follow(leader, &mut alive)? };
            if end {
                return Ok(alive.into_iter().collect());
            }
        }
    }

    fn member(&self, rank: usize) -> usize {
        self.parent.members[rank] as usize
    }

    fn say(&self, to: usize, step: u32, ranks: impl Iterator<Item = usize>) {
        if let Some(conn) = self.parent.fabric.conn(self.member(to)) {
            let ranks = ranks.map(|r| r as u32).collect();
            let saying = Saying::Vote { round: step | self.number, ranks };
            conn.tell(&Word { ctx: self.parent.ctx, saying });
        }
    }

    /// To all that are connected, also to those that do not count any more: so they know.
    fn say_all(&self, step: u32, alive: &BTreeSet<usize>) {
        for r in (0..self.parent.members.len()).filter(|&r| r != self.me) {
            self.say(r, step, alive.iter().copied());
        }
    }

    /// Says the final word, also to those that connect later.
    fn conclude(&self, alive: &BTreeSet<usize>) {
        let ranks = alive.iter().map(|&r| r as u32).collect();
        let saying = Saying::Vote { round: FINAL | self.number, ranks };
        self.say_all(FINAL, alive);
        self.parent.fabric.announce(Word { ctx: self.parent.ctx, saying }, &self.parent.members);
    }

    /// True if somebody has said the final word, whom all have accepted; passed on to those who have lost the
    /// leader before they heard it.
    fn end(&self, alive: &mut BTreeSet<usize>) -> Result<bool> {
        let last = |v: &(usize, u32, Vec<u32>)| v.1 == FINAL | self.number;
        let Some(list) = self.post.open().votes.iter().find(|v| last(v)).map(|v| v.2.clone()) else {
            return Ok(false);
        };
        *alive = self.there(list);
        self.conclude(alive);
        if alive.contains(&self.me) { Ok(true) } else { Err(excluded(self.me)) }
    }

    /// The connection to a rank is lost.
    fn lost(&self, rank: usize) -> bool {
        self.parent.fabric.conn(self.member(rank)).is_some_and(|c| c.dead())
    }

    /// Whether a rank is known to be dead, or to have destroyed the communicator, which is as good; connects
    /// to it on the way. What it said before counts, and is there once this is true.
    fn dead(&self, rank: usize) -> bool {
        let dead = match self.parent.fabric.connect(self.member(rank)) {
            Ok(Some(conn)) => conn.dead(),
            // Who tells of the failure may have found out sooner.
            Ok(None) => self.parent.fabric.unmet(self.member(rank)),
            Err(_) => true,
        };
        dead || self.post.open().left.contains(&self.member(rank))
    }

    /// What `rank` has said at this step; taken out. Ranks that do not exist are left out.
    fn heard(&self, rank: usize, step: u32) -> Option<Vec<usize>> {
        let mut letters = self.post.open();
        let of = |v: &(usize, u32, Vec<u32>)| v.0 == self.member(rank) && v.1 == step | self.number;
        let i = letters.votes.iter().position(of)?;
        let (_, _, ranks) = letters.votes.remove(i);
        Some(self.there(ranks))
    }

    /// The ranks of a list that exist.
    fn there<T: FromIterator<usize>>(&self, ranks: Vec<u32>) -> T {
        ranks.into_iter().map(|r| r as usize).filter(|&r| r < self.parent.members.len()).collect()
    }

    /// Waits a little; the error of a wait that was too long.
    fn tick(&self, waits_for: &dyn Fn() -> String) -> Result<()> {
        std::thread::sleep(Duration::from_micros(500));
        self.parent.fabric.pump();
        self.parent.fabric.listen();
        if self.honest && self.abort.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(aborted("shrinking".into()));
        }
        if Instant::now() > self.until {
            return Err(Error::timeout(format!("{} did not call shrink", waits_for()))
                .who(format!("rank {}", self.me))
                .hint("all ranks that live must call it; exclude those that will not"));
        }
        Ok(())
    }

    /// True when all have agreed.
    fn lead(&self, alive: &mut BTreeSet<usize>) -> Result<bool> {
        let mut voted = BTreeSet::from([self.me]);
        let mut accepted = BTreeSet::new();
        let mut decided = false;
        loop {
            let before = alive.len();
            let others: Vec<usize> = alive.iter().copied().filter(|&r| r != self.me).collect();
            for &r in &others {
                if !alive.contains(&r) {
                    // By the word of another one.
                } else if self.dead(r) {
                    alive.remove(&r);
                } else if let Some(gone) = self.heard(r, BALLOT) {
                    voted.insert(r);
                    for g in gone {
                        alive.remove(&g);
                    }
                }
                if self.heard(r, ACCEPTED).is_some_and(|list| list.len() == before) {
                    accepted.insert(r);
                }
            }
            if self.end(alive)? {
                return Ok(true);
            }
            if !alive.contains(&self.me) {
                return Err(excluded(self.me));
            }
            if alive.len() != before {
                (decided, accepted) = (false, BTreeSet::new());
                continue;
            }
            let complete = |set: &BTreeSet<usize>| alive.iter().all(|r| *r == self.me || set.contains(r));
            if !decided && complete(&voted) {
                decided = true;
                self.say_all(DECISION, alive);
            }
            if decided && complete(&accepted) {
                self.conclude(alive);
                return Ok(true);
            }
            self.tick(&|| {
                let missing: Vec<String> =
                    alive.iter().filter(|r| !voted.contains(r)).map(usize::to_string).collect();
                format!("rank {}", missing.join(", "))
            })?;
        }
    }

    /// True when the leader has said the final word; false when it has died.
    fn follow(&self, leader: usize, alive: &mut BTreeSet<usize>) -> Result<bool> {
        let mut told = false;
        loop {
            // Words before its death count.
            let dead = self.dead(leader);
            if !told && self.parent.fabric.conn(self.member(leader)).is_some() {
                told = true;
                let gone = |r: &usize| !alive.contains(r) || self.lost(*r);
                self.say(leader, BALLOT, (0..self.parent.members.len()).filter(gone));
            }
            if let Some(list) = self.heard(leader, DECISION) {
                if !list.contains(&self.me) {
                    return Err(excluded(self.me));
                }
                *alive = list.iter().copied().collect();
                self.say(leader, ACCEPTED, list.into_iter());
            }
            if self.end(alive)? {
                return Ok(true);
            }
            if dead {
                alive.remove(&leader);
                return Ok(false);
            }
            self.tick(&|| format!("rank {leader}"))?;
        }
    }
}

fn excluded(me: usize) -> Error {
    Error::usage("the other ranks exclude this one").who(format!("rank {me}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RedOp;

    #[test]
    fn votes_for_ranks_that_do_not_exist_do_no_harm() {
        let _alone = crate::record::tests::alone();
        let comms = Communicator::init_all(2, &Config::default()).unwrap();
        std::thread::scope(|s| {
            for c in &comms {
                s.spawn(move || {
                    c.all_reduce(&mut [1.0f32], RedOp::Sum).unwrap();
                    if c.rank() == 0 {
                        // The leader, who says what no leader says, and leads no further.
                        let mut phase = c.shared.phase.lock();
                        let inner = phase.ready().unwrap();
                        let conn = inner.fabric.conn(1).unwrap();
                        for step in [DECISION, FINAL] {
                            let ranks = vec![7, 0, 1, u32::MAX];
                            let saying = Saying::Vote { round: step | (inner.shrinks + 1), ranks };
                            conn.tell(&Word { ctx: inner.ctx, saying });
                        }
                    } else {
                        let rest = c.shrink(&[]).unwrap();
                        assert_eq!((rest.rank(), rest.size()), (1, 2));
                    }
                });
            }
        });
    }
}
