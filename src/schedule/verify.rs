//! The verifier: proves that a schedule is right, before anything runs it.
//!
//! What is proved, for the ranks and groups at hand and for every count, type, number of tiles and
//! of ways (the facts that make so little playing enough are in brackets):
//!
//! * Sends match receives on every channel, with the same chunks; one lane at each end.
//! * No deadlock with the declared depth of channels. [All order goes from a tile to itself or to
//!   later ones, so one tile decides for any number; ways share nothing.]
//! * No two accesses to the same memory are unordered, in place and out of place. [Full channels
//!   only add order, so this is played without a limit; tiles share scratch only, so two tiles
//!   decide.]
//! * Every rank gets exactly the blocks that [`Collective`] says, and a block's result holds the
//!   contribution of every rank that has one (in a scan, up to this rank) exactly once. Ranks that get the
//!   same block fold it in the same order, and so get the same bits.
//! * `complete` marks exactly the ops that first hold a whole value, and nothing is folded after.
//! * Where declared: messages may be read from the sender's memory, and replies may be written back
//!   into it.
//!
//! Blocks of different lengths have different numbers of tiles: from some tile on, all ops of a block are
//! left out, on all ranks. That needs no more playing, for **dropping blocks is always safe**:
//!
//! * A schedule that does not deadlock still does not without some blocks. What waits for what is a graph
//!   without circles: from each op to the next one of its lane, from each send to its receive, and, with
//!   channels of depth `d`, from the receive of a channel's message `i` to the send of its message `i + d`.
//!   A block's messages disappear at both ends at once. So what is left has the same edges, except that a
//!   lane's next op is now a later one, and that a channel's message `i + d` is now a later one; there was a
//!   way to these already, along the lane (a channel's sends are all in one lane). No new circle can arise.
//!   (A reply in the slot of its question has the same block.)
//! * Values are those of one block anyway. Races are looked for with every block alone, when only its own
//!   ops are there to order its accesses; other blocks' ops can but add order.
//!
//! It assumes channels that are reliable and in order, and lanes that each make progress.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::algorithm::{Algorithm, Groups, algorithms};
use super::collective::Collective;
use super::net::Net;
use super::op::{Arg, ArgKind, Program};
use super::play::{Game, play};
use super::print::step;

/// What is wrong with a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// An op makes no sense by itself.
    Malformed,
    /// Sends and receives do not fit together.
    Unmatched,
    /// Ops wait for each other.
    Deadlock,
    /// Accesses to the same memory are unordered.
    Race,
    /// Something is read or returned that was never computed.
    Value,
    /// A value lacks or repeats a contribution, or `complete` is not where it belongs.
    Complete,
    /// Ranks fold in different orders.
    Tree,
}

/// A fault and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub rank: usize,
    /// Lane and op, where it is about one.
    pub op: Option<(usize, usize)>,
    /// The whole sentence.
    pub text: String,
}

impl Fault {
    pub(super) fn at(
        programs: &[Program],
        kind: FaultKind,
        (rank, lane, op): (usize, usize, usize),
        what: String,
    ) -> Fault {
        let text =
            format!("rank {rank}, lane {lane}, op {op} ({}) {what}", step(&programs[rank].lanes[lane], op));
        Fault { kind, rank, op: Some((lane, op)), text }
    }

    pub(super) fn whole(kind: FaultKind, rank: usize, what: String) -> Fault {
        Fault { kind, rank, op: None, text: format!("rank {rank}: {what}") }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for crate::Error {
    fn from(fault: Fault) -> crate::Error {
        crate::Error::internal(format!("the schedule is wrong: {fault}"))
    }
}

/// What is claimed of a schedule besides being right; see [`Algorithm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    pub depth: u32,
    pub ref_safe: bool,
    pub reply_safe: bool,
}

/// The size of what was proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    pub ranks: usize,
    pub lanes: usize,
    /// Ops and messages of all ranks in one tile.
    pub ops: usize,
    pub messages: usize,
}

/// Proves an algorithm's schedule for these groups and this root, and all that the algorithm declares.
pub fn verify(algorithm: &Algorithm, groups: &Groups, root: usize) -> Result<Proof, Fault> {
    let claims =
        Claims { depth: algorithm.min_depth, ref_safe: algorithm.ref_safe, reply_safe: algorithm.reply_safe };
    let programs = algorithm.programs(groups, root);
    let proof = check(algorithm.collective, root, &programs, claims)?;
    if algorithm.packs {
        // Without a hierarchy any message may be one between hosts.
        let host = |r: usize| if algorithm.hierarchical { groups.numbers()[r] as usize } else { r };
        packs_once(&programs, &host)?;
    }
    Ok(proof)
}

/// Accepts a schedule whose messages between hosts may be in a form that rounds ([`Algorithm::packs`]).
///
/// Each chunk is completed by one op of all ranks: the others get that op's value, rounded there, and forms
/// are their own fixed points. And what comes from another host is folded only where that completes
/// the value, so no contribution is rounded again in a partial sum.
pub fn packs_once(programs: &[Program], host: &dyn Fn(usize) -> usize) -> Result<(), Fault> {
    let mut completed: HashMap<u32, usize> = HashMap::new();
    for (rank, program) in programs.iter().enumerate() {
        for (l, lane) in program.lanes.iter().enumerate() {
            for (i, op) in lane.ops.iter().enumerate() {
                let fault = |what: String| Err(Fault::at(programs, FaultKind::Complete, (rank, l, i), what));
                let foreign = |a: &Arg| {
                    a.kind == ArgKind::Recv && host(lane.peers[a.ix as usize] as usize) != host(rank)
                };
                if !op.complete {
                    if op.nsrc > 1 && lane.srcs(op).iter().any(foreign) {
                        return fault("folds a rounded contribution into a partial sum".into());
                    }
                    continue;
                }
                for chunk in op.at..op.at + op.len {
                    if let Some(other) = completed.insert(chunk, rank) {
                        return fault(format!("completes chunk {chunk}, as rank {other} does"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Proves a schedule for a collective (the programs of all ranks, in rank order) and the claims about it.
pub fn check(
    collective: Collective,
    root: usize,
    programs: &[Program],
    claims: Claims,
) -> Result<Proof, Fault> {
    let net = Net::new(collective, root, programs)?;
    let tiles = if net.scratch == 0 { 1 } else { 2 };
    live(&net, claims.depth, false)?;
    // An all_to_all has no block in place: a rank sends block (r, s) and gets block (s, r).
    let places: &[bool] = if collective == Collective::AllToAll { &[false] } else { &[true, false] };
    for block in net.blocks() {
        for &in_place in places {
            let game = Game { tiles, in_place, ..VALUES };
            play(&block, game)?;
            if claims.ref_safe {
                play(&block, Game { by_ref: true, ..game })?;
            }
            if claims.reply_safe {
                play(&block, Game { by_ref: true, reply: true, ..game })?;
            }
        }
    }
    if claims.reply_safe {
        live(&net, claims.depth, true)?;
    }
    let ops = net.lanes.iter().map(|lane| lane.ops.len()).sum();
    Ok(Proof { ranks: programs.len(), lanes: net.lanes.len(), ops, messages: net.messages })
}

/// Every result of this schedule, which must have been proved, is folded in one way that depends on the
/// number of ranks alone, if every op folds its sources in adjacent pairs, these in pairs again, and so on:
/// `((0 + 1) + (2 + 3)) + 4`. All schedules for which it holds give the same bits.
pub fn is_canonical(collective: Collective, root: usize, programs: &[Program]) -> bool {
    !collective.reduces()
        || Net::new(collective, root, programs)
            .is_ok_and(|net| net.blocks().all(|block| play(&block, Game { pairs: true, ..VALUES }).is_ok()))
}

/// Proves only that nothing deadlocks when channels hold `depth` messages.
pub fn live_at(collective: Collective, root: usize, programs: &[Program], depth: u32) -> Result<(), Fault> {
    live(&Net::new(collective, root, programs)?, depth, false)
}

/// Values and races, out of place, without a limit to messages.
const VALUES: Game =
    Game { tiles: 1, depth: None, values: true, in_place: false, by_ref: false, reply: false, pairs: false };

fn live(net: &Net, depth: u32, reply: bool) -> Result<(), Fault> {
    play(net, Game { depth: Some(depth), values: false, reply, ..VALUES })
}

/// What [`verify_all`] proved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub schedules: usize,
    /// Ops and messages of all ranks and schedules.
    pub ops: usize,
    pub messages: usize,
    /// Schedules refused, as they must be, at one less than the declared depth.
    pub refused: usize,
    pub time: Duration,
}

/// Proves every algorithm for 1 to 64 ranks, with the groups and roots of [`cases`]. `progress` gets a line
/// per algorithm. Takes some seconds.
pub fn verify_all(progress: &mut dyn FnMut(&str)) -> crate::Result<Summary> {
    verify_up_to(64, progress)
}

/// [`verify_all`] for 1 to `max_ranks` ranks.
pub fn verify_up_to(max_ranks: usize, progress: &mut dyn FnMut(&str)) -> crate::Result<Summary> {
    let start = Instant::now();
    let mut sum = Summary::default();
    for algorithm in algorithms() {
        let before = sum;
        let began = Instant::now();
        for n in 1..=max_ranks {
            for (groups, root) in cases(algorithm, n) {
                let (proof, refused) = prove(algorithm, &groups, root)?;
                sum.schedules += 1;
                sum.ops += proof.ops;
                sum.messages += proof.messages;
                sum.refused += usize::from(refused);
            }
        }
        let refused = sum.refused - before.refused;
        if algorithm.min_depth > 1 && refused == 0 && max_ranks > 3 {
            let what = format!("{algorithm:?} declares a depth of {}, but needs less", algorithm.min_depth);
            return Err(crate::Error::internal(what));
        }
        progress(&format!(
            "{:14} {:21} {:4} schedules, {:8} ops, {:8} messages, {:4} refused at depth {}, {:.2} s",
            algorithm.collective.name(),
            algorithm.name,
            sum.schedules - before.schedules,
            sum.ops - before.ops,
            sum.messages - before.messages,
            refused,
            algorithm.min_depth - 1,
            began.elapsed().as_secs_f64(),
        ));
    }
    sum.time = start.elapsed();
    Ok(sum)
}

/// [`verify`], with the case in the error's text; and whether one less than the declared depth deadlocks.
pub fn prove(algorithm: &Algorithm, groups: &Groups, root: usize) -> crate::Result<(Proof, bool)> {
    let proof = verify(algorithm, groups, root).map_err(|f| {
        let numbers = groups.numbers();
        crate::Error::from(f).who(format!("{algorithm:?}, root {root}, host of each rank: {numbers:?}"))
    })?;
    let less = algorithm.min_depth - 1;
    let programs = || algorithm.programs(groups, root);
    Ok((proof, less > 0 && live_at(algorithm.collective, root, &programs(), less).is_err()))
}

/// What an algorithm is proved with on `n` ranks: hierarchies with all [`groupings`], and, where there is a
/// root, the first, the middle and the last rank as root.
pub fn cases(algorithm: &Algorithm, n: usize) -> Vec<(Groups, usize)> {
    let groups = if algorithm.hierarchical { groupings(n) } else { vec![Groups::flat(n)] };
    let mut roots = if algorithm.collective.rooted() { vec![0, n / 2, n - 1] } else { vec![0] };
    roots.dedup();
    groups.iter().flat_map(|g| roots.iter().map(|&root| (g.clone(), root))).collect()
}

/// Groups that hierarchies are proved with: consecutive ranks in groups of every size that divides
/// `n`, in groups of 3, of 5, and of 3 and 5 in turn with what is left over, and dealt out to 2 and
/// 3 hosts in turn.
pub fn groupings(n: usize) -> Vec<Groups> {
    let mut all: Vec<Groups> =
        (1..=n).filter(|d| n.is_multiple_of(*d)).map(|d| Groups::blocks(n, d)).collect();
    let in_turn = (0..n).map(|r| (r / 8 * 2 + usize::from(r % 8 >= 3)) as u32);
    let dealt = |hosts: usize| Groups::new(&(0..n).map(|r| (r % hosts) as u32).collect::<Vec<_>>());
    let uneven = [Groups::blocks(n, 3), Groups::blocks(n, 5), Groups::new(&in_turn.collect::<Vec<_>>())];
    for groups in uneven.into_iter().chain([dealt(2), dealt(3)]) {
        if !all.contains(&groups) {
            all.push(groups);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::op::{Arg, ArgKind, Lane, Op};
    use super::*;

    const CLAIMS: Claims = Claims { depth: 2, ref_safe: false, reply_safe: false };

    fn arg(kind: ArgKind, ix: u16, count: u16) -> Arg {
        Arg { kind, port: 0, ix, count }
    }

    /// A lane from (sources, destinations, complete), one chunk each.
    fn lane(peers: &[u32], ops: &[(&[Arg], &[Arg], bool)]) -> Lane {
        let mut lane = Lane { peers: peers.to_vec(), ..Lane::default() };
        for (srcs, dsts, complete) in ops {
            let (arg, nsrc, ndst) = (lane.args.len() as u32, srcs.len() as u16, dsts.len() as u16);
            lane.ops.push(Op { at: 0, len: 1, arg, nsrc, ndst, complete: *complete });
            lane.args.extend_from_slice(srcs);
            lane.args.extend_from_slice(dsts);
        }
        lane
    }

    /// Rank 0 sends to rank 1, which sums and answers; `extra` is added to rank 0, in a second lane
    /// together with the receive of the answer.
    fn ask(scratch: u32, first: &[Arg], extra: &[(&[Arg], &[Arg], bool)]) -> Vec<Program> {
        let (input, out) = (arg(ArgKind::In, 0, 0), arg(ArgKind::Out, 0, 0));
        let (recv, send) = (arg(ArgKind::Recv, 0, 0), arg(ArgKind::Send, 0, 1));
        let (recvs, outs) = ([recv], [out]);
        let mut answer: Vec<(&[Arg], &[Arg], bool)> = vec![(&recvs, &outs, false)];
        answer.extend_from_slice(extra);
        let dsts = [&[send], first].concat();
        let zero = vec![lane(&[1], &[(&[input], &dsts, false)]), lane(&[1], &answer)];
        let one = vec![lane(&[0], &[(&[recv, input], &[out, send], true)])];
        [zero, one].map(|lanes| Program { lanes, blocks: 1, chunks: 1, scratch }).to_vec()
    }

    #[test]
    fn scratch_races_between_tiles_are_seen() {
        let image = |ix| arg(ArgKind::Scratch, ix, 0);
        // The second lane reads scratch after the answer: ordered in one tile. The first lane then
        // writes it for the next tile without waiting.
        let racy = ask(2, &[image(0)], &[(&[image(0)], &[image(1)], false)]);
        let fault = check(Collective::AllReduce, 0, &racy, CLAIMS).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Race, "{fault}");
        let net = Net::new(Collective::AllReduce, 0, &racy).unwrap();
        assert!(play(&net, VALUES).is_ok());
        let clean = ask(2, &[image(0)], &[]);
        assert_eq!(
            check(Collective::AllReduce, 0, &clean, CLAIMS),
            Ok(Proof { ranks: 2, lanes: 3, ops: 3, messages: 2 })
        );
    }

    #[test]
    fn a_reply_must_not_overwrite_what_others_still_read() {
        let (input, out, image) =
            (arg(ArgKind::In, 0, 0), arg(ArgKind::Out, 0, 0), arg(ArgKind::Scratch, 0, 0));
        let other = arg(ArgKind::Scratch, 1, 0);
        let recv = |peer| arg(ArgKind::Recv, peer, 0);
        let send = |peer, count| arg(ArgKind::Send, peer, count);
        // Rank 0 lends its input to 1 and 2, and stores 1's reply once it has heard from 2. Rank 2
        // does not read before it sends to 1, so 1's reply may come while it reads.
        let zero = lane(
            &[1, 2],
            &[
                (&[input], &[send(0, 2)], false),
                (&[recv(0)], &[image], false),
                (&[recv(1)], &[other], false),
                (&[image], &[out], false),
            ],
        );
        let one = lane(&[0, 2], &[(&[recv(0), input, recv(1)], &[out, send(0, 2)], true)]);
        let mut ops: [(&[Arg], &[Arg], bool); 3] = [
            (&[input], &[send(1, 1)], false),
            (&[recv(0)], &[image, send(0, 1)], false),
            (&[recv(1)], &[out], false),
        ];
        let programs = |two: Lane| -> Vec<Program> {
            let program =
                |lane: &Lane| Program { lanes: vec![lane.clone()], blocks: 1, chunks: 1, scratch: 2 };
            [&zero, &one, &two].map(program).to_vec()
        };
        let claims = Claims { ref_safe: true, ..CLAIMS };
        let eager = programs(lane(&[0, 1], &ops));
        check(Collective::AllReduce, 0, &eager, claims).unwrap();
        let fault =
            check(Collective::AllReduce, 0, &eager, Claims { reply_safe: true, ..claims }).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Race, "{fault}");
        // With the read first, all is well.
        ops.swap(0, 1);
        check(
            Collective::AllReduce,
            0,
            &programs(lane(&[0, 1], &ops)),
            Claims { reply_safe: true, ..claims },
        )
        .unwrap();
    }

    #[test]
    fn a_reply_must_not_go_to_what_is_input_only() {
        // Rank 1 is the root of a reduce, and tells rank 0 the sum, which keeps it in scratch: in place
        // its input is no output as well.
        let mut programs = ask(1, &[], &[]);
        programs[0].lanes[1].args[1] = arg(ArgKind::Scratch, 0, 0);
        let claims = Claims { ref_safe: true, ..CLAIMS };
        check(Collective::Reduce, 1, &programs, claims).unwrap();
        let claims = Claims { reply_safe: true, ..claims };
        let fault = check(Collective::Reduce, 1, &programs, claims).unwrap_err();
        assert!(fault.kind == FaultKind::Race && fault.text.contains("input only"), "{fault}");
        // In an allreduce the same is an output.
        let programs = ask(1, &[], &[]);
        check(Collective::AllReduce, 0, &programs, claims).unwrap();
    }

    #[test]
    fn in_place_a_kept_block_may_be_read_meanwhile() {
        let gather = Algorithm::by_name(Collective::AllGather, "direct").unwrap();
        let mut programs = gather.programs(&Groups::flat(2), 0);
        let claims = Claims { ref_safe: true, ..CLAIMS };
        check(Collective::AllGather, 0, &programs, claims).unwrap();
        // A copy by way of scratch is a write.
        for program in &mut programs {
            program.scratch = 1;
            let lane = &mut program.lanes[0];
            let (first, next) = (lane.args.len() as u32, lane.ops[1]);
            let (input, image) = (arg(ArgKind::In, 0, 0), arg(ArgKind::Scratch, 0, 0));
            lane.args.extend([input, image, image, arg(ArgKind::Out, 0, 0)]);
            lane.ops[1].arg = first;
            lane.ops.insert(2, Op { arg: first + 2, ..next });
        }
        let fault = check(Collective::AllGather, 0, &programs, claims).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    }

    #[test]
    fn what_makes_no_sense_is_malformed() {
        let mend = |change: &dyn Fn(&mut Program)| {
            let mut programs = ask(1, &[], &[]);
            change(&mut programs[0]);
            check(Collective::AllReduce, 0, &programs, CLAIMS).map_err(|f| f.kind)
        };
        assert!(mend(&|_| {}).is_ok());
        let malformed: [&dyn Fn(&mut Program); 15] = [
            &|p| p.lanes[0].ops[0].nsrc = 0,
            &|p| p.lanes[0].ops[0].arg = 77,
            &|p| p.lanes[0].ops[0].len = 2,
            &|p| p.lanes[0].ops[0].len = 0,
            &|p| p.lanes[0].ops[0].at = u32::MAX,
            &|p| p.lanes[0].args[0] = arg(ArgKind::Send, 0, 1),
            &|p| p.lanes[1].args[1] = arg(ArgKind::In, 0, 0),
            &|p| p.lanes[1].args[1] = arg(ArgKind::Scratch, 1, 0),
            &|p| p.lanes[0].peers[0] = 0,
            &|p| p.lanes[0].peers[0] = 2,
            &|p| p.lanes[0].args[1].count = u16::MAX,
            &|p| p.chunks = 2,
            &|p| p.blocks = 2,
            &|p| p.lanes[0].args[1].port = 7,
            &|p| p.lanes[1].args[0].port = 7,
        ];
        for (i, change) in malformed.iter().enumerate() {
            assert_eq!(mend(change), Err(FaultKind::Malformed), "change {i}");
        }
        assert!(check(Collective::AllReduce, 0, &[], CLAIMS).is_err());
        let programs = ask(0, &[], &[]);
        let kind = |c, root| check(c, root, &programs, CLAIMS).map_err(|f| f.kind);
        // Rank 0 gets nothing in a reduce to rank 1; nothing is completed in a scan; a gather has two blocks.
        for (c, root) in [(Collective::Reduce, 1), (Collective::Scan, 0), (Collective::Gather, 0)] {
            assert_eq!(kind(c, root), Err(FaultKind::Malformed), "{c:?}");
        }
    }

    #[test]
    fn faults_name_the_place() {
        let ring = Algorithm::by_name(Collective::AllReduce, "ring").unwrap();
        let fault = live_at(Collective::AllReduce, 0, &ring.programs(&Groups::flat(3), 0), 1).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Deadlock);
        assert_eq!(
            fault.text,
            "rank 0, lane 0, op 1 (fold recv r2 + In[1] -> send r1) never fires: \
             rank 0 op 1 waits for room to send to rank 1, rank 1 op 1 waits for room to send to rank 2, \
             rank 2 op 1 waits for room to send to rank 0"
        );
    }
}
