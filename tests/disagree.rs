//! Ranks whose calls differ: an error on all of them that shows what each has called, and never another rank's data in
//! the place of what was expected.

mod common;

use std::time::Duration;

use common::{Ended, Job, case, join};
use graccl::{Call, Collective, Communicator, Counts, DataType, Extent, RedOp, Result};

/// Ranks, emulated hosts, transport.
const SHAPES: [(usize, usize, &str); 4] = [(2, 1, "shm"), (3, 1, "shm"), (2, 1, "tcp"), (4, 2, "auto")];

/// A case by its number, on a communicator of its own.
type Cases<'a> = &'a (dyn Fn(&Communicator, usize) -> Result<()> + Sync);

/// In a rank: every case, at the same time, and a barrier behind it, in which those learn of it who had no part in it.
/// Says how they ended.
fn all_at_once(count: usize, run: Cases) {
    let c = join();
    let comms: Vec<Communicator> = (0..count).map(|_| c.duplicate().unwrap()).collect();
    c.barrier().unwrap();
    std::thread::scope(|s| {
        for (i, c) in comms.iter().enumerate() {
            s.spawn(move || {
                let own = run(c, i);
                let done = if own.is_ok() { "done" } else { "refused" };
                let end = own.and_then(|()| c.barrier());
                let text = end.map_or_else(|e| format!("{:?} {e}", e.code), |()| "OK".into());
                println!("\nCASE {i} {done} {}", text.replace('\n', " "));
            });
        }
    });
    // None leaves before all have found out.
    c.barrier().unwrap();
}

/// How case `i` ended on a rank, and whether its own call was refused.
fn ended(e: &Ended, i: usize) -> (bool, &str) {
    let line = e.text.lines().find_map(|l| l.strip_prefix(&format!("CASE {i} ")));
    let line = line.unwrap_or_else(|| panic!("rank {} has no case {i}:\n{}", e.rank, e.text));
    let (done, text) = line.split_once(' ').unwrap();
    (done == "refused", text)
}

// ------------------------------------------------------------------------------------------------
// Blocks

const FORMS: [&str; 6] =
    ["all_to_all_v", "gather_v", "scatter_v", "recv", "all_gather_v", "reduce_scatter_v"];
/// What rank 0 sends to rank 1, and what that expects: in headers, in slots, in several tiles; also in tiles of the same
/// length.
const LENGTHS: [(usize, usize); 6] =
    [(3, 5), (5, 3), (1000, 1001), (100, 1000), (16_384, 8192), (200_000, 300_000)];

fn block(c: &Communicator, form: &str, (sent, expected): (usize, usize)) -> Result<()> {
    let (me, n) = (c.rank(), c.size());
    let mut memory = vec![0f32; 2_000_000];
    let (send, recv) = memory.split_at_mut(1_000_000);
    let (send, recv) = (send.as_ptr().cast::<u8>(), recv.as_mut_ptr().cast::<u8>());
    // Others have two elements for each other.
    let list = |of: &dyn Fn(usize) -> usize| Extent::packed(&(0..n).map(of).collect::<Vec<_>>());
    let only = |count: usize| Extent::packed(&[count]);
    let none = || Extent::packed(&[]);
    let to = |r: usize| if (me, r) == (0, 1) { sent } else { 2 };
    let from = |r: usize| if (r, me) == (0, 1) { expected } else { 2 };
    // The same sum.
    let (a, b) = if me == 1 { (expected, sent) } else { (sent, expected) };
    let all = |r: usize| [a, b].get(r).copied().unwrap_or(2);
    let (collective, root, to, from) = match form {
        "all_to_all_v" => (Collective::AllToAll, 0, list(&to), list(&from)),
        "gather_v" if me == 1 => (Collective::Gather, 1, only(2), list(&from)),
        "gather_v" => (Collective::Gather, 1, only(to(1)), none()),
        "scatter_v" if me == 0 => (Collective::Scatter, 0, list(&to), only(2)),
        "scatter_v" => (Collective::Scatter, 0, none(), only(from(0))),
        "all_gather_v" => (Collective::AllGather, 0, only(all(me)), list(&all)),
        "reduce_scatter_v" => (Collective::ReduceScatter, 0, list(&all), only(all(me))),
        // SAFETY: our own memory.
        _ => {
            return unsafe {
                match me {
                    0 => c.send_raw(send, sent, DataType::F32, 1),
                    1 => c.recv_raw(recv, expected, DataType::F32, 0),
                    _ => Ok(()),
                }
            };
        }
    };
    let call = Call::moving(collective, send, recv, 0, DataType::F32).root(root);
    let call = Call { counts: Counts::Each { send: to, recv: from }, ..call };
    // SAFETY: our own memory, long enough for all blocks.
    unsafe { c.call(&call) }
}

#[test]
fn blocks_of_another_length_are_refused() {
    let cases: Vec<_> = FORMS.iter().flat_map(|f| LENGTHS.map(|l| (*f, l))).collect();
    if case().is_some() {
        return all_at_once(cases.len(), &|c, i| block(c, cases[i].0, cases[i].1));
    }
    for (ranks, hosts, transport) in SHAPES {
        let job = Job::new("blocks_of_another_length_are_refused", ranks).hosts(hosts);
        for e in job.env("GRACCL_TRANSPORT", transport).succeed() {
            for (i, &(form, (a, b))) in cases.iter().enumerate() {
                let (refused, text) = ended(&e, i);
                let who = format!("{form}, {a} and {b}, rank {} of {ranks}, {transport}: {text}", e.rank);
                assert!(text.starts_with("InvalidUsage") && text.contains("ranks disagree: "), "{who}");
                assert!(refused || e.rank != 1, "{who}");
                let rest = " + 2".repeat(ranks - 2);
                let words = match form {
                    "all_gather_v" | "reduce_scatter_v" => [
                        format!("rank 1 calls {form} of {b} + {a}{rest} float"),
                        format!("{form} of {a} + {b}{rest} float"),
                    ],
                    _ => [format!("rank 0 sent {a} float"), format!("expects {b} float")],
                };
                assert!(words.iter().all(|w| text.contains(w)) && text.contains(form), "{who}");
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Calls

/// What all call, and what rank 1 calls.
const CALLS: [(&str, &str); 8] = [
    ("all_reduce of 1000 float (sum)", "all_gather of 1000 float"),
    ("all_reduce of 1000 float (sum)", "reduce_scatter of 1000 float (sum)"),
    ("all_reduce of 300000 float (sum)", "all_reduce of 300000 int32 (sum)"),
    ("all_gather of 1000 float", "all_to_all of 1000 float"),
    ("scan of 1000 float (sum)", "exscan of 1000 float (sum)"),
    ("reduce of 1000 float (sum) to rank 0", "reduce of 1000 float (sum) to rank 1"),
    ("gather of 300000 float to rank 0", "gather of 300000 float to rank 1"),
    ("all_reduce of 1000 float (sum)", "barrier"),
];

/// Makes the call that a text names.
fn named(c: &Communicator, text: &str) -> Result<()> {
    let words: Vec<&str> = text.split(' ').collect();
    let [name, _, count, dtype, ..] = words[..] else { return c.barrier() };
    let collective = Collective::by_name(name).unwrap();
    let dtype = if dtype == "float" { DataType::F32 } else { DataType::I32 };
    let root: usize = words.iter().skip_while(|w| **w != "rank").nth(1).map_or(0, |r| r.parse().unwrap());
    let count: usize = count.parse().unwrap();
    let mut memory = vec![0u8; 2 * 4 * count * c.size()];
    let (send, recv) = memory.split_at_mut(4 * count * c.size());
    let call = Call::new(collective, send.as_ptr(), recv.as_mut_ptr(), count, dtype, RedOp::Sum).root(root);
    // SAFETY: our own memory, long enough for a block for each rank.
    unsafe { c.call(&call) }
}

/// Ranks that have gone on since they sent a message: it is in the way of a later call.
#[test]
fn the_call_of_a_message_that_is_left_over_is_named() {
    if case().is_some() {
        return all_at_once(1, &|c, _| {
            named(c, &format!("broadcast of 1000 float from rank {}", c.rank().min(1)))
        });
    }
    for (ranks, hosts, transport) in [(2, 1, "shm"), (2, 1, "tcp")] {
        let job = Job::new("the_call_of_a_message_that_is_left_over_is_named", ranks).hosts(hosts);
        for e in job.env("GRACCL_TRANSPORT", transport).deadline(Duration::from_secs(30)).succeed() {
            let (_, text) = ended(&e, 0);
            assert!(text.starts_with("InvalidUsage") && text.contains("call 2 is barrier"), "{text}");
            assert!(text.contains("'s call 1, broadcast of 1000 float from rank"), "{text}");
        }
    }
}

#[test]
fn the_rank_that_calls_something_else_is_named_on_all() {
    if case().is_some() {
        let one = |c: &Communicator, i: usize| named(c, if c.rank() == 1 { CALLS[i].1 } else { CALLS[i].0 });
        return all_at_once(CALLS.len(), &one);
    }
    for (ranks, hosts, transport) in SHAPES {
        let job = Job::new("the_rank_that_calls_something_else_is_named_on_all", ranks).hosts(hosts);
        for e in job.env("GRACCL_TRANSPORT", transport).deadline(Duration::from_secs(30)).succeed() {
            for (i, (most, odd)) in CALLS.into_iter().enumerate() {
                let (_, text) = ended(&e, i);
                let who = format!("{most}, {odd}, rank {} of {ranks}, {transport}: {text}", e.rank);
                assert!(
                    text.starts_with("InvalidUsage") && text.contains("ranks disagree: as call 1, "),
                    "{who}"
                );
                assert!(text.contains(&format!("rank 1 calls {odd}")) && text.contains(most), "{who}");
            }
        }
    }
}
