//! Schedules as text: for people, for error messages, and for simulators that read GOAL.

use std::fmt::Write;

use super::op::{Arg, ArgKind, Lane, Op, Program};
use super::shape::cut;

/// One op in full, as `fold In[2] + recv r1 -> Out[2], send r3`. Ports other than 0 follow the rank:
/// `r1:2`.
pub fn step(lane: &Lane, op: usize) -> String {
    let Some(op) = lane.ops.get(op) else { return "the end".into() };
    let list = |args: &[Arg], between: &str| {
        args.iter().map(|a| operand(lane, op, a)).collect::<Vec<_>>().join(between)
    };
    let verb = if op.nsrc > 1 { "fold" } else { "copy" };
    let mark = if op.complete { " (complete)" } else { "" };
    format!("{verb} {} -> {}{mark}", list(lane.srcs(op), " + "), list(lane.dsts(op), ", "))
}

/// What an op stands for while it cannot go on, as `waits for chunk 2 from rank 5`.
pub fn describe(lane: &Lane, op: usize) -> String {
    let Some(op) = lane.ops.get(op) else { return "is done".into() };
    let chunks = match op.len {
        1 => format!("chunk {}", op.at),
        len => format!("chunks {}..{}", op.at, op.at as u64 + len as u64),
    };
    let ranks = |args: &[Arg]| -> Vec<u32> { args.iter().flat_map(|a| peers(lane, a)).copied().collect() };
    let (from, to) = (ranks(lane.srcs(op)), ranks(lane.dsts(op)));
    match (from.is_empty(), to.is_empty()) {
        (true, true) => format!("copies {chunks}"),
        (true, false) => format!("waits for room to send {chunks} to {}", names(&to)),
        (false, true) => format!("waits for {chunks} from {}", names(&from)),
        (false, false) => {
            format!("waits for {chunks} from {} or for room to send to {}", names(&from), names(&to))
        }
    }
}

/// The picture of one rank's program: a line for every op.
pub fn picture(program: &Program, rank: usize) -> String {
    let size = match (program.blocks, program.chunks) {
        (1, chunks) => format!("{chunks} chunks"),
        (blocks, 1) => format!("{blocks} blocks"),
        (blocks, chunks) => format!("{blocks} blocks of {chunks} chunks"),
    };
    let mut text = format!("rank {rank}, {size}\n");
    for (i, lane) in program.lanes.iter().enumerate() {
        if program.lanes.len() > 1 {
            let _ = writeln!(text, "  lane {i}");
        }
        for op in 0..lane.ops.len() {
            let _ = writeln!(text, "  {op:4}  {}", step(lane, op));
        }
    }
    text
}

/// Bytes that are folded in a nanosecond, for the `calc` lines of [`goal`].
const FOLD_BYTES_PER_NS: u64 = 8;

/// The schedule as GOAL text, which LogGOPSim reads: blocks of `bytes` bytes in `tiles` tiles,
/// the ports as tags. Every op is a `calc` (its fold at 8 GB/s) after its receives and before its
/// sends; the next op of the lane requires it. GOAL knows no limit to messages under way.
pub fn goal(programs: &[Program], bytes: u64, tiles: u32) -> String {
    let mut text = format!("num_ranks {}\n", programs.len());
    for (rank, program) in programs.iter().enumerate() {
        let _ = writeln!(text, "\nrank {rank} {{");
        let mut label = 0u64;
        for lane in &program.lanes {
            let mut before: Option<u64> = None;
            for tile in 0..tiles as u64 {
                let tile_len = cut(bytes, tile + 1, tiles as u64, 64) - cut(bytes, tile, tiles as u64, 64);
                for op in &lane.ops {
                    before = Some(goal_op(&mut text, &mut label, lane, op, program.chunks, tile_len, before));
                }
            }
        }
        text.push_str("}\n");
    }
    text
}

/// Writes one op; `before` is the label of the op before it, the result that of this one.
fn goal_op(
    text: &mut String,
    label: &mut u64,
    lane: &Lane,
    op: &Op,
    chunks: u32,
    tile_len: u64,
    before: Option<u64>,
) -> u64 {
    let edge = |i: u64| cut(tile_len, i, chunks as u64, 64);
    let at = (op.at % chunks) as u64;
    let len = edge(at + op.len as u64) - edge(at);
    let mut line = |text: &mut String, what: String, after: &[u64]| {
        *label += 1;
        let _ = writeln!(text, "l{label}: {what}");
        for l in after {
            let _ = writeln!(text, "l{label} requires l{l}");
        }
        *label
    };
    let mut after: Vec<u64> = before.into_iter().collect();
    for src in lane.srcs(op) {
        for peer in peers(lane, src) {
            let recv = format!("recv {len}b from {peer} tag {}", src.port);
            let l = line(text, recv, before.as_slice());
            after.push(l);
        }
    }
    let calc = (op.nsrc as u64 - 1) * len / FOLD_BYTES_PER_NS;
    let done = line(text, format!("calc {calc}"), &after);
    for dst in lane.dsts(op) {
        for peer in peers(lane, dst) {
            line(text, format!("send {len}b to {peer} tag {}", dst.port), &[done]);
        }
    }
    done
}

/// Ranks that an operand talks to; none for memory, and none for peers that are not there.
fn peers<'a>(lane: &'a Lane, arg: &Arg) -> &'a [u32] {
    let count = match arg.kind {
        ArgKind::Recv => 1,
        ArgKind::Send => arg.count as usize,
        _ => 0,
    };
    let ix = arg.ix as usize;
    lane.peers.get(ix..ix.saturating_add(count)).unwrap_or(&[])
}

fn operand(lane: &Lane, op: &Op, arg: &Arg) -> String {
    let memory = |name: &str| match op.len {
        1 => format!("{name}[{}]", op.at),
        len => format!("{name}[{}..{}]", op.at, op.at as u64 + len as u64),
    };
    match arg.kind {
        ArgKind::In => memory("In"),
        ArgKind::Out => memory("Out"),
        ArgKind::Scratch => memory(&format!("Scratch{}", arg.ix)),
        ArgKind::Recv | ArgKind::Send => {
            let verb = if arg.kind == ArgKind::Recv { "recv" } else { "send" };
            let port = if arg.port == 0 { String::new() } else { format!(":{}", arg.port) };
            let ranks: Vec<String> = peers(lane, arg).iter().map(|r| format!("r{r}{port}")).collect();
            format!("{verb} {}", ranks.join(" "))
        }
    }
}

fn names(ranks: &[u32]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        _ => {
            let shown: Vec<String> = ranks.iter().take(8).map(u32::to_string).collect();
            let more = if ranks.len() > 8 { format!(" and {} more", ranks.len() - 8) } else { String::new() };
            format!("ranks {}{more}", shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Algorithm, Collective, Groups};
    use super::*;

    #[test]
    fn a_ring_reads_as_its_picture() {
        let ring = Algorithm::by_name(Collective::AllReduce, "ring").unwrap();
        let text = picture(&ring.program(0, &Groups::flat(3), 0), 0);
        assert_eq!(
            text,
            "rank 0, 3 chunks\n\
             \x20    0  copy In[2] -> send r1\n\
             \x20    1  fold recv r2 + In[1] -> send r1\n\
             \x20    2  fold recv r2 + In[0] -> Out[0], send r1 (complete)\n\
             \x20    3  copy recv r2 -> Out[2], send r1\n\
             \x20    4  copy recv r2 -> Out[1]\n"
        );
    }

    #[test]
    fn waits_name_chunks_and_ranks() {
        let direct = Algorithm::by_name(Collective::AllReduce, "direct").unwrap();
        let lane = &direct.program(1, &Groups::flat(3), 0).lanes[0];
        assert_eq!(describe(lane, 0), "waits for room to send chunk 2 to rank 2");
        assert_eq!(describe(lane, 2), "waits for chunk 1 from ranks 0, 2 or for room to send to ranks 2, 0");
        assert_eq!(describe(lane, 3), "waits for chunk 0 from rank 0");
        assert_eq!(describe(lane, 99), "is done");
        let tree = Algorithm::by_name(Collective::AllReduce, "double_tree").unwrap();
        let lane = &tree.program(0, &Groups::flat(2), 0).lanes[0];
        assert_eq!(step(lane, 0), "copy In[0] -> send r1");
        let hier = Algorithm::by_name(Collective::AllReduce, "hier_leader").unwrap();
        let lane = &hier.program(1, &Groups::blocks(4, 2), 0).lanes[0];
        assert_eq!(describe(lane, 1), "waits for chunks 0..2 from rank 0");
    }

    #[test]
    fn goal_text_of_two_ranks() {
        let direct = Algorithm::by_name(Collective::AllReduce, "direct").unwrap();
        let programs = direct.programs(&Groups::flat(2), 0);
        let text = goal(&programs, 256, 1);
        let rank0 = "num_ranks 2\n\nrank 0 {\n\
            l1: calc 0\nl2: send 128b to 1 tag 0\nl2 requires l1\n\
            l3: recv 128b from 1 tag 0\nl3 requires l1\n\
            l4: calc 16\nl4 requires l1\nl4 requires l3\nl5: send 128b to 1 tag 0\nl5 requires l4\n\
            l6: recv 128b from 1 tag 0\nl6 requires l4\nl7: calc 0\nl7 requires l4\nl7 requires l6\n}\n";
        assert!(text.starts_with(rank0), "{text}");
        let sends = |t: &str| t.matches(": send").count();
        assert_eq!(sends(&goal(&programs, 256, 3)), 3 * sends(&text));
    }
}
