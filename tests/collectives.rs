//! Every collective, in jobs whose ranks are threads or processes, against what it should give.

mod common;

use std::time::Duration;

use common::{Job, case, join};
use graccl::reduce::Wire;
use graccl::*;

/// Element `i` of what rank `r` gives: small integers, whose sums are exact.
fn value(r: usize, i: usize) -> f32 {
    ((r * 7 + i) % 50) as f32
}

fn sum(ranks: usize, i: usize) -> f32 {
    (0..ranks).map(|r| value(r, i)).sum()
}

fn whole(data: &[f32], expected: impl Fn(usize) -> f32, what: &str) {
    for (i, &x) in data.iter().enumerate() {
        assert_eq!(x, expected(i), "element {i} of {} in {what}", data.len());
    }
}

fn every_collective(c: &Communicator, count: usize, root: usize) {
    let (me, n) = (c.rank(), c.size());
    let mine: Vec<f32> = (0..count).map(|i| value(me, i)).collect();
    let long: Vec<f32> = (0..count * n).map(|i| value(me, i)).collect();
    let at_root = |len: usize| vec![0f32; if me == root { len } else { 0 }];

    let mut all = vec![0f32; count * n];
    c.all_gather(&mine, &mut all).unwrap();
    whole(&all, |i| value(i / count, i % count), "all_gather");

    let mut out = vec![0f32; count];
    c.reduce_scatter(&long, &mut out, RedOp::Sum).unwrap();
    whole(&out, |i| sum(n, me * count + i), "reduce_scatter");

    let mut data = mine.clone();
    c.broadcast(&mut data, root).unwrap();
    whole(&data, |i| value(root, i), "broadcast");

    let mut out = at_root(count);
    c.reduce(&mine, &mut out, RedOp::Sum, root).unwrap();
    whole(&out, |i| sum(n, i), "reduce");

    let mut out = at_root(count * n);
    c.gather(&mine, &mut out, root).unwrap();
    whole(&out, |i| value(i / count, i % count), "gather");

    let mut out = vec![0f32; count];
    c.scatter(if me == root { &long } else { &[] }, &mut out, root).unwrap();
    whole(&out, |i| value(root, me * count + i), "scatter");

    c.all_to_all(&long, &mut all).unwrap();
    whole(&all, |i| value(i / count, me * count + i % count), "all_to_all");

    let mut data = mine.clone();
    c.all_reduce(&mut data, RedOp::Sum).unwrap();
    whole(&data, |i| sum(n, i), "all_reduce");

    for (collective, before) in [(Collective::Scan, me + 1), (Collective::Exscan, me)] {
        let mut data = mine.clone();
        let p = data.as_mut_ptr().cast::<u8>();
        for send in [mine.as_ptr().cast(), p.cast_const()] {
            data.copy_from_slice(&mine);
            // SAFETY: two buffers of our own, or one.
            unsafe { c.call(&Call::new(collective, send, p, count, DataType::F32, RedOp::Sum)) }.unwrap();
            if before > 0 {
                whole(&data, |i| sum(before, i), collective.name());
            }
        }
    }
    if n > 1 {
        let (to, from) = ((me + 1) % n, (me + n - 1) % n);
        let mut got = vec![0f32; count];
        // SAFETY: both are waited for below.
        let requests = unsafe {
            let send = c.start_send(mine.as_ptr().cast(), count, DataType::F32, to).unwrap();
            [send, c.start_recv(got.as_mut_ptr().cast(), count, DataType::F32, from).unwrap()]
        };
        requests.iter().for_each(|r| r.wait().unwrap());
        whole(&got, |i| value(from, i), "send and recv");
    }
    c.barrier().unwrap();
}

fn config(transport: TransportChoice, deterministic: bool) -> Config {
    Config { transport, deterministic, timeout: Duration::from_secs(30), ..Config::default() }
}

#[test]
fn every_collective_gives_what_it_should() {
    for n in 1..=4 {
        for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
            for deterministic in [false, true] {
                let comms = Communicator::init_all(n, &config(transport, deterministic)).unwrap();
                std::thread::scope(|s| {
                    for c in &comms {
                        s.spawn(move || {
                            for count in [1, 7, 1000, 200_000] {
                                for root in 0..n {
                                    every_collective(c, count, root);
                                }
                            }
                        });
                    }
                });
            }
        }
    }
}

#[test]
fn one_thread_drives_all_ranks_in_groups() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let comms = Communicator::init_all(4, &config(transport, false)).unwrap();
        let mut data: Vec<Vec<f32>> = (0..4).map(|r| vec![r as f32 + 1.0; 100_000]).collect();
        for _ in 0..2 {
            group_start().unwrap();
            for (c, d) in comms.iter().zip(&mut data) {
                d.fill(c.rank() as f32 + 1.0);
                let p = d.as_mut_ptr().cast::<u8>();
                let call = Call::new(Collective::AllReduce, p, p, d.len(), DataType::F32, RedOp::Sum);
                // SAFETY: the buffers live until the group has ended.
                unsafe { c.call(&call) }.unwrap();
            }
            group_end().unwrap();
            data.iter().for_each(|d| whole(d, |_| 10.0, "all_reduce in a group"));
        }
    }
    assert!(group_end().is_err());
}

#[test]
fn communicators_are_split_and_duplicated() {
    let comms = Communicator::init_all(4, &config(TransportChoice::Auto, false)).unwrap();
    std::thread::scope(|s| {
        for c in &comms {
            s.spawn(move || {
                let me = c.rank();
                // Odd and even ranks, in reverse order; rank 3 stays out.
                let color = (me != 3).then_some(me as u32 % 2);
                let part = c.split(color, -(me as i32)).unwrap();
                if let Some(part) = &part {
                    assert_eq!((part.rank(), part.size()), [(1, 2), (0, 1), (0, 2)][me]);
                    let mut x = [me as f32];
                    part.all_reduce(&mut x, RedOp::Sum).unwrap();
                    assert_eq!(x[0], [2.0, 1.0, 2.0][me]);
                }
                assert_eq!(part.is_none(), me == 3);
                let twin = c.duplicate().unwrap();
                drop(part);
                let mut x = [1.0f32];
                twin.all_reduce(&mut x, RedOp::Sum).unwrap();
                c.all_reduce(&mut x, RedOp::Sum).unwrap();
                assert_eq!(x[0], 16.0);
            });
        }
    });
}

#[test]
fn uneven_counts_move_every_block_to_its_place() {
    let comms = Communicator::init_all(3, &config(TransportChoice::Auto, false)).unwrap();
    std::thread::scope(|s| {
        for c in &comms {
            s.spawn(move || {
                let (me, n) = (c.rank(), 3);
                // From rank i to rank j: some nothing, some in several tiles.
                let count = |i: usize, j: usize| [0, 5, 300_000, 17][(i * 2 + j) % 4];
                let sizes: Vec<usize> = (0..n).map(|j| count(me, j)).collect();
                let gets: Vec<usize> = (0..n).map(|i| count(i, me)).collect();
                let send = Extent::packed(&sizes);
                // With a gap of three elements before every block.
                let recv: std::sync::Arc<[Extent]> = Extent::packed(&gets)
                    .iter()
                    .enumerate()
                    .map(|(i, e)| Extent { at: e.at + 3 * (i + 1), ..*e })
                    .collect();
                let from: Vec<f32> = (0..sizes.iter().sum()).map(|i| value(me, i)).collect();
                let mut to = vec![-1f32; gets.iter().sum::<usize>() + 3 * n];
                let call = Call {
                    counts: Counts::Each { send, recv: recv.clone() },
                    ..Call::moving(
                        Collective::AllToAll,
                        from.as_ptr().cast(),
                        to.as_mut_ptr().cast(),
                        0,
                        DataType::F32,
                    )
                };
                // SAFETY: our own buffers, as long as the extents say.
                unsafe { c.call(&call) }.unwrap();
                let mut expected = vec![-1f32; to.len()];
                for (i, e) in recv.iter().enumerate() {
                    let start: usize = (0..me).map(|j| count(i, j)).sum();
                    for k in 0..e.count {
                        expected[e.at + k] = value(i, start + k);
                    }
                }
                assert!(to == expected, "all_to_all_v on rank {me}");
            });
        }
    });
}

#[test]
fn survivors_shrink_and_go_on() {
    let mut comms = Communicator::init_all(4, &config(TransportChoice::Auto, false)).unwrap();
    let lost = comms.remove(2);
    std::thread::scope(|s| {
        s.spawn(move || {
            let mut x = [1.0f32];
            lost.all_reduce(&mut x, RedOp::Sum).unwrap();
            drop(lost);
        });
        for c in &comms {
            s.spawn(move || {
                let mut x = [1.0f32];
                c.all_reduce(&mut x, RedOp::Sum).unwrap();
                let e = c.all_reduce(&mut x, RedOp::Sum).unwrap_err();
                assert!(e.to_string().contains("rank 2"), "{e}");
                // How often a rank has tried other things meanwhile does not matter.
                (0..c.rank()).for_each(|_| assert!(c.duplicate().is_err()));
                let rest = c.shrink(&[2]).unwrap();
                assert_eq!((rest.rank(), rest.size()), ([0, 1, 9, 2][c.rank()], 3));
                let mut x = [c.rank() as f32];
                rest.all_reduce(&mut x, RedOp::Sum).unwrap();
                assert_eq!(x[0], 4.0);
            });
        }
    });
}

#[test]
fn a_rank_that_left_is_not_waited_for() {
    let mut comms = Communicator::init_all(3, &config(TransportChoice::Auto, false)).unwrap();
    std::thread::scope(|s| {
        for c in &comms {
            s.spawn(|| c.all_reduce(&mut [1.0f32], RedOp::Sum).unwrap());
        }
    });
    comms.remove(0);
    std::thread::scope(|s| {
        for c in &comms {
            s.spawn(move || {
                // Its links for collectives are there, those for messages are not.
                let mut x = [0.0f32];
                // SAFETY: our own number.
                let received = unsafe { c.recv_raw(x.as_mut_ptr().cast(), 1, DataType::F32, 0) };
                let e = received.unwrap_err();
                assert!(e.code == Code::RemoteError && e.to_string().contains("rank 0"), "{e}");
                // It will not vote either.
                let rest = c.shrink(&[]).unwrap();
                assert_eq!((rest.rank(), rest.size()), (c.rank() - 1, 2));
                rest.all_reduce(&mut [1.0f32], RedOp::Sum).unwrap();
            });
        }
    });
}

#[test]
fn an_excluded_rank_is_told_so() {
    let comms = Communicator::init_all(3, &config(TransportChoice::Auto, false)).unwrap();
    std::thread::scope(|s| {
        for c in &comms {
            s.spawn(move || {
                c.all_reduce(&mut [1.0f32], RedOp::Sum).unwrap();
                match c.rank() {
                    1 => assert_eq!(c.shrink(&[]).err().unwrap().code, Code::InvalidUsage),
                    _ => assert_eq!(c.shrink(&[1]).unwrap().size(), 2),
                }
            });
        }
    });
}

// ------------------------------------------------------------------------------------------------
// Jobs of processes

/// Ranks, emulated hosts, settings.
type Shape = (usize, usize, &'static [(&'static str, &'static str)]);

const SHAPES: [Shape; 7] = [
    (2, 1, &[("GRACCL_TRANSPORT", "shm")]),
    (3, 1, &[("GRACCL_TRANSPORT", "tcp")]),
    (4, 2, &[]),
    (5, 3, &[]),
    (2, 2, &[("GRACCL_ENCRYPT", "1")]),
    (3, 1, &[("GRACCL_TRANSPORT", "tcp"), ("GRACCL_ENCRYPT", "1")]),
    (4, 2, &[("GRACCL_ENCRYPT", "1")]),
];

fn job(test: &str, (ranks, hosts, settings): Shape) -> Job {
    let job = Job::new(test, ranks).hosts(hosts).deadline(Duration::from_secs(120));
    settings.iter().fold(job, |job, (name, value)| job.env(name, value))
}

#[test]
fn every_collective_in_real_jobs() {
    if case().is_some() {
        let c = join();
        for count in [1, 7, 1000, 200_000] {
            for root in 0..c.size() {
                every_collective(&c, count, root);
            }
        }
        return;
    }
    for shape in SHAPES {
        job("every_collective_in_real_jobs", shape).succeed();
    }
}

/// What rank `r` gives for element `i` of a block: a small integer that every type holds.
fn piece(r: usize, block: usize, i: usize) -> u8 {
    ((r * 7 + block * 13 + i) % 40) as u8
}

fn bytes(dtype: DataType, values: impl Iterator<Item = u8>) -> Vec<u8> {
    let one = |v: u8| match dtype {
        DataType::F32 => f32::from(v).to_ne_bytes().to_vec(),
        _ => vec![v],
    };
    values.flat_map(one).collect()
}

/// What is around the blocks of a receive buffer, in bytes.
const AROUND: u8 = 0xee;

/// One call with uneven counts (of each block), checked to the byte; in place where `in_place` and where
/// this rank has a block in both buffers.
fn uneven(
    c: &Communicator,
    collective: Collective,
    root: usize,
    count: &dyn Fn(usize) -> usize,
    in_place: bool,
) {
    let (me, n) = (c.rank(), c.size());
    let dtype = if collective.reduces() || root == 1 { DataType::F32 } else { DataType::U8 };
    let size = dtype.size();
    let blocks = 0..collective.blocks(n);
    // Blocks in the order in which the buffers have them.
    let list = |place: &dyn Fn(usize) -> Option<usize>| {
        let mut list: Vec<(usize, usize)> = blocks.clone().filter_map(|b| Some((place(b)?, b))).collect();
        list.sort();
        list.into_iter().map(|(_, b)| b).collect::<Vec<usize>>()
    };
    let sends = list(&|b| collective.sent(n, root, me, b));
    let gets = list(&|b| collective.received(n, root, me, b));
    // With `gap` elements before every block, and the bytes of the whole buffer.
    let layout = |list: &[usize], gap: usize| {
        let mut at = 0;
        let one = |&b: &usize| {
            let e = Extent { at: at + gap, count: count(b) };
            at = e.at + e.count;
            e
        };
        let extents: Vec<Extent> = list.iter().map(one).collect();
        (extents, (at + gap) * size)
    };
    let (mut send, slen) = layout(&sends, 1);
    let (mut recv, rlen) = layout(&gets, 3);
    let given = |b: usize| bytes(dtype, (0..count(b)).map(|i| piece(me, b, i)));
    let (mut from, mut to) = (vec![AROUND; slen], vec![AROUND; rlen]);
    for (e, &b) in send.iter().zip(&sends) {
        from[e.at * size..][..e.count * size].copy_from_slice(&given(b));
    }
    let both = sends.iter().position(|b| gets.contains(b)).filter(|_| in_place);
    let both = both.map(|s| (s, gets.iter().position(|b| *b == sends[s]).unwrap()));
    let all_to_all = collective == Collective::AllToAll;
    let one_buffer = both.is_some() && !all_to_all;
    if let (Some((s, g)), false) = (both, all_to_all) {
        // The longer list's buffer has the block of the other one.
        if gets.len() > sends.len() {
            to[recv[g].at * size..][..recv[g].count * size].copy_from_slice(&given(sends[s]));
            send[s].at = recv[g].at;
        } else {
            recv[g].at = send[s].at;
            to.clone_from(&from);
        }
    }
    let input = if one_buffer { to.as_ptr() } else { from.as_ptr() };
    let before = to.clone();
    let counts = Counts::Each { send: send.into(), recv: recv.clone().into() };
    let call = Call { counts, ..Call::moving(collective, input, to.as_mut_ptr(), 0, dtype).root(root) };
    // SAFETY: our own buffers, as long as the extents say.
    unsafe { c.call(&call) }.unwrap();
    let mut expected = before;
    for (e, &b) in recv.iter().zip(&gets) {
        let giver = (0..n).find(|&r| collective.sent(n, root, r, b).is_some()).unwrap();
        let value = |i| match collective.reduces() {
            true => (0..n).map(|r| piece(r, b, i)).sum(),
            false => piece(giver, b, i),
        };
        expected[e.at * size..][..e.count * size].copy_from_slice(&bytes(dtype, (0..e.count).map(value)));
    }
    if one_buffer && sends.len() > gets.len() && collective.reduces() {
        // In place, a reduce_scatter may use the other blocks of its input.
        let (e, whole) = (recv[0], expected);
        let range = e.at * size..(e.at + e.count) * size;
        assert!(to[range.clone()] == whole[range], "{collective:?} in place on rank {me} of {n}");
        return;
    }
    assert!(to == expected, "{collective:?}, root {root}, in place {in_place}, rank {me} of {n}");
}

#[test]
fn uneven_counts_in_real_jobs() {
    if case().is_some() {
        let c = join();
        let n = c.size();
        use Collective::*;
        for collective in [AllGather, ReduceScatter, Gather, Scatter, AllToAll] {
            for root in (0..n).filter(|&r| collective.rooted() || r == 0) {
                for in_place in [false, true] {
                    // The same sum in other places; one block alone; some nothing, some in several tiles; none.
                    for turn in 0..4 {
                        uneven(&c, collective, root, &|b| [0, 5, 300_000, 17][(b + turn) % 4], in_place);
                    }
                    uneven(&c, collective, root, &|b| if b == n - 1 { 1003 } else { 0 }, in_place);
                    uneven(&c, collective, root, &|b| 1 + b % 3, in_place);
                    uneven(&c, collective, root, &|_| 0, in_place);
                }
            }
        }
        return;
    }
    // Where a rank between two others would have to know how long their block is, another algorithm is taken.
    for shape in SHAPES.into_iter().chain([(4, 2, &[("GRACCL_ALGO", "hier_leader")][..])]) {
        job("uneven_counts_in_real_jobs", shape).succeed();
    }
}

/// All ranks get the same bits, near the exact sums; what is lost in a step is made up for in later ones.
fn packed(c: &Communicator, wire: Wire, count: usize) {
    let n = c.size();
    let several = c.hosts().iter().any(|h| *h != 0);
    let give = |r: usize| (0..count).map(move |i| value(r, i) - 24.5);
    let exact: Vec<f32> = (0..count).map(|i| sum(n, i) - 24.5 * n as f32).collect();
    let mut residual = vec![0f32; count];
    let mut mean = vec![0f64; count];
    const STEPS: usize = 24;
    for step in 0..STEPS {
        let mut data: Vec<f32> = give(c.rank()).collect();
        let p = data.as_mut_ptr().cast::<u8>();
        let call = Call::new(Collective::AllReduce, p, p, count, DataType::F32, RedOp::Sum);
        // SAFETY: our own buffers, of the call's length.
        unsafe { c.call(&call.packed(wire, residual.as_mut_ptr())) }.unwrap();
        let hash = fnv(&data.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>());
        let mut all = vec![0u64; n];
        c.all_gather(&[hash], &mut all).unwrap();
        assert!(all.iter().all(|h| *h == hash), "{wire:?} of {count}: ranks have other bits");
        // Values are up to 24.5, sums n times that; partial sums and sums are packed once each, and what the
        // step before lost comes in.
        let part = [1.0 / 2048.0, 1.0 / 256.0, 1.0 / 127.0][wire as usize];
        let bound = if several { 5.0 * part * 24.5 * n as f32 } else { 0.0 };
        for (i, (x, y)) in data.iter().zip(&exact).enumerate() {
            assert!((x - y).abs() <= bound, "{wire:?} of {count}, step {step}, element {i}: {x}, not {y}");
        }
        mean.iter_mut().zip(&data).for_each(|(m, x)| *m += f64::from(*x) / STEPS as f64);
    }
    let off = mean.iter().zip(&exact).map(|(m, y)| (m - f64::from(*y)).abs()).fold(0.0, f64::max);
    assert!(
        off <= 6.0 * 24.5 * n as f64 / 127.0 / STEPS as f64,
        "{wire:?} of {count}: off by {off} on average"
    );
}

#[test]
fn packed_messages_in_real_jobs() {
    if case().is_some() {
        let c = join();
        for wire in Wire::ALL {
            for count in [0, 1, 17, 5000, 300_001] {
                packed(&c, wire, count);
            }
        }
        let mut x = [1.0f64];
        let p = x.as_mut_ptr().cast::<u8>();
        let call = Call::new(Collective::AllReduce, p, p, 1, DataType::F64, RedOp::Sum);
        // SAFETY: our own number.
        let e = unsafe { c.call(&call.packed(Wire::F16, std::ptr::null_mut())) }.unwrap_err();
        assert!(e.code == Code::InvalidArgument && e.to_string().contains("half"), "{e}");
        return;
    }
    for shape in [SHAPES[0], SHAPES[2], SHAPES[3], SHAPES[4], (6, 2, &[]), (4, 4, &[])] {
        job("packed_messages_in_real_jobs", shape).succeed();
    }
}

// ------------------------------------------------------------------------------------------------
// The same bits

/// Numbers whose sums depend on the order in which they are added.
fn rough(rank: usize, i: usize) -> f32 {
    let mut x = (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (i as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 29).wrapping_mul(0x94d0_49bb_1331_11eb);
    let m = 0.5 + (x >> 40) as f32 / (1 << 24) as f32;
    let m = m * [1.0, 1.0 / 8.0, 16.0, 1.0 / 64.0][(x >> 8) as usize % 4];
    if x & 1 == 0 { m } else { -m }
}

/// The bits of a float, rounded toward zero in the short types (where e4m3 is subnormal: to some number).
fn encode(dtype: DataType, x: f32) -> Vec<u8> {
    match dtype {
        DataType::F32 => x.to_ne_bytes().to_vec(),
        // With digits that no f32 has.
        DataType::F64 => (f64::from(x) * (1.0 + f64::from(x) / (1u64 << 40) as f64)).to_ne_bytes().to_vec(),
        DataType::F8E4M3 => {
            let magnitude = ((x.abs().to_bits()) - (120 << 23)) >> 20;
            vec![(x.to_bits() >> 24 & 0x80 | magnitude) as u8]
        }
        DataType::F8E5M2 => {
            encode(DataType::F16, x)[usize::from(cfg!(target_endian = "little"))..][..1].to_vec()
        }
        DataType::Bf16 => ((x.to_bits() >> 16) as u16).to_ne_bytes().to_vec(),
        // f16 in its normal range.
        _ => {
            let sign = (x.to_bits() >> 16 & 0x8000) as u16;
            let magnitude = (((x.abs().to_bits()) - (112 << 23)) >> 13) as u16;
            (sign | magnitude).to_ne_bytes().to_vec()
        }
    }
}

fn fnv(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Says the bits of what every collective that folds gives, in types whose results are rounded.
fn say_bits(c: &Communicator) {
    let (me, n) = (c.rank(), c.size());
    for (dtype, op) in [
        (DataType::F32, RedOp::Sum),
        (DataType::F32, RedOp::Avg),
        (DataType::F16, RedOp::Sum),
        (DataType::Bf16, RedOp::Sum),
        (DataType::F64, RedOp::Sum),
        (DataType::F8E4M3, RedOp::Sum),
        (DataType::F8E5M2, RedOp::Sum),
    ] {
        for count in [1, 1001, 100_003] {
            for collective in Collective::ALL.into_iter().filter(|c| c.reduces()) {
                if op == RedOp::Avg && !collective.completes() {
                    continue;
                }
                let root = count % n;
                let len = count * collective.blocks(n);
                let from: Vec<u8> = (0..len).flat_map(|i| encode(dtype, rough(me, i))).collect();
                let mut to = vec![0u8; count * dtype.size()];
                let call = Call::new(collective, from.as_ptr(), to.as_mut_ptr(), count, dtype, op).root(root);
                // SAFETY: buffers of our own, and as long as the call needs.
                unsafe { c.call(&call) }.unwrap();
                println!("BITS {} {dtype:?} {op:?} {count}: {:016x}", collective.name(), fnv(&to));
            }
        }
    }
}

/// What the ranks said, by rank.
fn bits(job: Job) -> Vec<Vec<String>> {
    let ended = job.deadline(Duration::from_secs(120)).succeed();
    let said =
        ended.iter().map(|e| e.text.lines().filter(|l| l.starts_with("BITS")).map(String::from).collect());
    let said: Vec<Vec<String>> = said.collect();
    assert!(said.iter().all(|s| s.len() == said[0].len() && s.len() == 99));
    for rank in &said {
        for (a, b) in rank.iter().zip(&said[0]).filter(|(a, _)| a.starts_with("BITS all_reduce")) {
            assert_eq!(a, b, "ranks have different bits");
        }
    }
    said
}

#[test]
fn every_run_gives_the_same_bits() {
    const TEST: &str = "every_run_gives_the_same_bits";
    if case().is_some() {
        return say_bits(&join());
    }
    let run = |hosts, transport| bits(Job::new(TEST, 4).hosts(hosts).env("GRACCL_TRANSPORT", transport));
    let mut kinds = std::collections::HashSet::new();
    for (hosts, transport) in [(1, "shm"), (1, "tcp"), (2, "auto")] {
        let first = run(hosts, transport);
        assert_eq!(run(hosts, transport), first, "{hosts} hosts, {transport}");
        kinds.insert(first);
    }
    assert!(kinds.len() > 1, "these numbers add up alike in every order: the test sees nothing");
}

#[test]
fn deterministic_jobs_give_the_same_bits_everywhere() {
    const TEST: &str = "deterministic_jobs_give_the_same_bits_everywhere";
    if case().is_some() {
        return say_bits(&join());
    }
    for n in [4, 5] {
        let run = |hosts: &[u32], transport: &str, algorithm: &str| {
            let job = Job::new(TEST, n).on(hosts).env("GRACCL_DETERMINISTIC", "1");
            bits(job.env("GRACCL_TRANSPORT", transport).env("GRACCL_ALGO", algorithm))
        };
        let one = vec![0; n];
        let first = run(&one, "shm", "auto");
        for hosts in [vec![0, 0, 1, 1], vec![0, 1, 1, 1], vec![0, 1, 0, 1], vec![0, 1, 2, 2]] {
            let hosts: Vec<u32> = (0..n).map(|r| hosts[r % 4]).collect();
            assert!(run(&hosts, "auto", "auto") == first, "{n} ranks on {hosts:?}");
        }
        assert!(run(&one, "tcp", "auto") == first, "{n} ranks over TCP");
        let names = Collective::ALL.into_iter().filter(|c| c.reduces()).flat_map(schedule::algorithms_of);
        let names: std::collections::BTreeSet<&str> = names.map(|a| a.name).collect();
        for name in names {
            assert!(run(&one, "shm", name) == first, "{n} ranks with {name}");
            let hosts: Vec<u32> = (0..n).map(|r| u32::from(r >= n / 2)).collect();
            assert!(run(&hosts, "auto", name) == first, "{n} ranks on two hosts with {name}");
        }
    }
}
