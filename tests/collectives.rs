//! Every collective, in jobs whose ranks are threads, against what it should give.

use std::time::Duration;

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
