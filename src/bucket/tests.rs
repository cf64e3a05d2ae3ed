//! Steps of several ranks, which are threads here.

use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::{Code, Config};

/// Runs `f` as every rank.
pub(super) fn ranks(n: usize, f: impl Fn(&Communicator) + Sync) {
    let comms = Communicator::init_all(n, &Config::default()).unwrap();
    std::thread::scope(|s| {
        for comm in &comms {
            s.spawn(|| f(comm));
        }
    });
}

/// Lengths with a bit of everything: none, odd, larger than a tile.
const LENGTHS: [usize; 9] = [5, 0, 1000, 1, 70_001, 64, 3, 0, 20_000];

/// f32, f64 and i32 in turn.
fn tensors() -> Vec<Tensor> {
    let dtype = |i: usize| [DataType::F32, DataType::F64, DataType::I32][i % 3];
    LENGTHS.iter().enumerate().map(|(i, &n)| Tensor::new(format!("t{i}"), n, dtype(i))).collect()
}

/// What rank `r` writes to element `e` of tensor `i` in a step.
fn value(step: usize, r: usize, i: usize, e: usize) -> i32 {
    ((step * 7 + r * 5 + i * 3 + e) % 23) as i32 - 8
}

/// # Safety
/// `p` is that of a tensor of this type and length, which is ours now.
unsafe fn put(p: *mut u8, dtype: DataType, e: usize, x: i32) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DataType::F32 => p.cast::<f32>().add(e).write_unaligned(x as f32),
            DataType::F64 => p.cast::<f64>().add(e).write_unaligned(x.into()),
            _ => p.cast::<i32>().add(e).write_unaligned(x),
        }
    }
}

/// # Safety
/// As `put`.
unsafe fn get(p: *const u8, dtype: DataType, e: usize) -> f64 {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            DataType::F32 => p.cast::<f32>().add(e).read_unaligned().into(),
            DataType::F64 => p.cast::<f64>().add(e).read_unaligned(),
            _ => p.cast::<i32>().add(e).read_unaligned().into(),
        }
    }
}

fn write(b: &Bucketer, t: &[Tensor], step: usize, rank: usize, i: usize) {
    let p = b.gradient(i).unwrap();
    for e in 0..t[i].elements {
        // SAFETY: the gradient is ours until its mark.
        unsafe { put(p, t[i].dtype, e, value(step, rank, i, e)) };
    }
}

fn check(b: &Bucketer, t: &[Tensor], step: usize, n: usize, i: usize, average: bool) {
    let p = b.gradient(i).unwrap();
    for e in 0..t[i].elements {
        let sum: i32 = (0..n).map(|r| value(step, r, i, e)).sum();
        let expected = match (average, t[i].dtype) {
            (false, _) => f64::from(sum),
            (true, DataType::I32) => f64::from(sum / n as i32),
            (true, DataType::F32) => f64::from(sum as f32 / n as f32),
            (true, _) => f64::from(sum) / n as f64,
        };
        // SAFETY: the step is over, or the tensor was waited for.
        let got = unsafe { get(p, t[i].dtype, e) };
        assert_eq!(got, expected, "step {step}, tensor {i}, element {e}");
    }
}

/// The tensors of a rank in an order of its own.
fn order(step: usize, rank: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..LENGTHS.len()).collect();
    all.rotate_left((step + rank) % LENGTHS.len());
    if step % 2 == 1 {
        all.reverse();
    }
    all
}

#[test]
fn results_are_right_with_every_fusion_and_any_order() {
    for fusion in [Fusion::Planned, Fusion::PerTensor, Fusion::OneBucket, Fusion::Threshold(50_000)] {
        for (n, own_memory, average) in
            [(1, false, true), (2, true, true), (3, false, false), (4, true, false)]
        {
            ranks(n, |comm| {
                let mut kept: Vec<Vec<u64>> = LENGTHS.iter().map(|&l| vec![0; l + 1]).collect();
                let mut t = tensors();
                if own_memory {
                    t = t.into_iter().zip(&mut kept).map(|(t, m)| t.at(m.as_mut_ptr().cast())).collect();
                }
                let config = BucketerConfig { average, fusion, ..Default::default() };
                // SAFETY: the memory lives longer, and nobody else uses it.
                let b = unsafe { Bucketer::new(comm, &t, config) }.unwrap();
                for step in 0..8 {
                    for i in order(step, comm.rank()) {
                        write(&b, &t, step, comm.rank(), i);
                        b.mark_ready(i).unwrap();
                    }
                    let times = b.finish_step().unwrap();
                    assert!(times.step >= times.busy && times.waited >= 0.0, "{times:?}");
                    assert_eq!(times.predicted.is_some(), fusion == Fusion::Planned && n > 1 && step >= 4);
                    (0..t.len()).for_each(|i| check(&b, &t, step, n, i, average));
                    // Other calls between steps.
                    comm.barrier().unwrap();
                }
                let buckets = b.buckets();
                let expected = match fusion {
                    Fusion::PerTensor => 7,
                    Fusion::Threshold(_) => 2,
                    Fusion::OneBucket => 1,
                    Fusion::Planned => buckets.list.len(),
                };
                assert_eq!(buckets.list.len(), expected, "{}", b.describe());
                assert_eq!(buckets.list.iter().map(|b| b.bytes).sum::<u64>(), b.core.layout.total());
            });
        }
    }
}

#[test]
fn results_may_be_waited_for_in_the_next_forward_pass() {
    ranks(3, |comm| {
        let t = tensors();
        let config = BucketerConfig { late: true, ..Default::default() };
        // SAFETY: all memory is the bucketer's.
        let b = unsafe { Bucketer::new(comm, &t, config) }.unwrap();
        for step in 0..12 {
            // Whatever the planner would choose: all kinds are right.
            if step >= 6 {
                let share = [Share::Both, Share::Forward, Share::Backward][step % 3];
                let mut state = b.lock();
                assert!(!state.closed || step > 6);
                if !state.closed {
                    let mut other = (*state.buckets).clone();
                    other.list.iter_mut().for_each(|b| b.share = share);
                    state.adopt(&b.core, other);
                }
            }
            for i in 0..t.len() {
                write(&b, &t, step, comm.rank(), i);
                b.mark_ready(i).unwrap();
            }
            b.finish_backward().unwrap();
            for i in (0..t.len()).rev() {
                b.wait(i).unwrap();
                check(&b, &t, step, 3, i, true);
            }
            if step >= 5 {
                b.finish_step().unwrap();
            }
        }
        assert_eq!(b.steps(), 12);
    });
}

#[test]
fn a_step_is_busy_while_calls_are_under_way() {
    let now = Instant::now();
    let at = |ms: u64| now + Duration::from_millis(ms);
    let busy =
        |calls: &[(u64, u64)]| step::busy(calls.iter().map(|c| (at(c.0), at(c.1))).collect()).as_millis();
    assert_eq!(busy(&[]), 0);
    assert_eq!(busy(&[(100, 105), (0, 5)]), 10);
    // Three in a queue; one within another.
    assert_eq!(busy(&[(0, 10), (2, 20), (3, 30), (40, 50), (42, 45)]), 40);
    // The halves of a bucket are apart.
    ranks(2, |comm| {
        let t = tensors();
        let config = BucketerConfig { late: true, fusion: Fusion::Threshold(50_000), ..Default::default() };
        // SAFETY: all memory is the bucketer's.
        let b = unsafe { Bucketer::new(comm, &t, config) }.unwrap();
        let mut halves = (*b.buckets()).clone();
        halves.list.iter_mut().for_each(|b| b.share = Share::Both);
        b.lock().adopt(&b.core, halves);
        for _ in 0..2 {
            (0..t.len()).for_each(|i| b.mark_ready(i).unwrap());
            std::thread::sleep(Duration::from_millis(200));
            let times = b.finish_step().unwrap();
            assert!(times.busy > 0.0 && times.busy < 0.1 && times.step > 0.2, "{times:?}");
        }
    });
}

/// Blocks of three ranks, at sizes just above one that is measured.
#[test]
fn all_sizes_have_prices() {
    ranks(3, |comm| {
        for elements in [1, 1024, 1025, 1026, 4097] {
            let t = [Tensor::new("t", elements, DataType::F32)];
            // SAFETY: all memory is the bucketer's.
            let b = unsafe { Bucketer::new(comm, &t, BucketerConfig::default()) }.unwrap();
            b.mark_ready(0).unwrap();
            b.finish_step().unwrap();
        }
    });
}

#[test]
fn tensors_may_be_cut() {
    ranks(2, |comm| {
        let t = tensors();
        // SAFETY: all memory is the bucketer's.
        let b = unsafe { Bucketer::new(comm, &t, BucketerConfig::default()) }.unwrap();
        // Five elements of f32; then pieces that begin and end within tensor 4, f64.
        let before = 20 + 4000 + 4;
        let mut ends = [20, before + 8, before + 30_000 * 8, before + 30_001 * 8, b.core.layout.total()];
        for step in 0..6 {
            let mut at = 0;
            let runs = ends.iter().map(|&end| {
                let run = (at, end - at, [Share::Backward, Share::Both][step % 2], false);
                at = end;
                run
            });
            let list = times::fit(&b.core.layout, runs);
            assert_eq!(list.len(), ends.len());
            b.lock().adopt(&b.core, Buckets { list, predicted: None });
            for i in order(step, comm.rank()) {
                write(&b, &t, step, comm.rank(), i);
                b.mark_ready(i).unwrap();
            }
            b.finish_step().unwrap();
            (0..t.len()).for_each(|i| check(&b, &t, step, 2, i, true));
            // The results are there until the next step's marks.
            b.wait(4).unwrap();
            ends[1] += 8 * 64;
        }
    });
}

#[test]
fn a_plan_of_garbage_is_refused() {
    let l = Layout::new(&tensors()).unwrap();
    let runs = [(0, 20, Share::Both, true), (20, l.total() - 20, Share::Forward, false)];
    let plan = Buckets { list: times::fit(&l, runs.into_iter()), predicted: Some(0.25) };
    let words = times::encode(&plan, &l);
    let read = times::decode(&words, &l).unwrap();
    assert_eq!((read.list, read.predicted), (plan.list, plan.predicted));
    for (place, wrong) in [(0, f64::NAN.to_bits()), (1, 4), (2, 24), (2, u64::MAX), (3, 3), (5, 24), (6, 8)] {
        let mut words = words.clone();
        words[place] = wrong;
        assert_eq!(
            times::decode(&words, &l).unwrap_err().code,
            Code::InternalError,
            "word {place} is {wrong}"
        );
    }
    assert!(times::decode(&words[..5], &l).is_err());
}

#[test]
fn a_step_fails_everywhere_if_a_rank_gives_up() {
    ranks(3, |comm| {
        let t = tensors();
        let config = BucketerConfig { fusion: Fusion::Threshold(4000), ..Default::default() };
        // SAFETY: all memory is the bucketer's.
        let b = unsafe { Bucketer::new(comm, &t, config) }.unwrap();
        let mut failed = None;
        for i in 0..t.len() {
            if comm.rank() == 1 && i == 5 {
                comm.abort();
            }
            failed = failed.or(b.mark_ready(i).err());
        }
        let e = failed.or(b.finish_step().err()).expect("a failure");
        assert!(!matches!(e.code, Code::InvalidUsage | Code::InvalidArgument), "{e}");
        // It stays so.
        assert!(b.finish_step().is_err() && b.wait(0).is_err());
    });
}

#[test]
fn several_threads_may_mark() {
    ranks(2, |comm| {
        let t: Vec<Tensor> = (0..64).map(|i| Tensor::new("", 500 + i, DataType::F32)).collect();
        let config =
            BucketerConfig { fusion: Fusion::Threshold(10_000), average: false, ..Default::default() };
        // SAFETY: all memory is the bucketer's.
        let b = unsafe { Bucketer::new(comm, &t, config) }.unwrap();
        for step in 0..20 {
            std::thread::scope(|s| {
                for part in 0..4 {
                    let (b, t) = (&b, &t);
                    s.spawn(move || {
                        for i in (part..64).step_by(4) {
                            write(b, t, step, comm.rank(), i);
                            b.mark_ready(i).unwrap();
                        }
                    });
                }
            });
            b.finish_step().unwrap();
            (0..64).for_each(|i| check(&b, &t, step, 2, i, false));
        }
    });
}

#[test]
fn misuse_is_told() {
    let one = Communicator::init_all(1, &Config::default()).unwrap();
    let t = tensors();
    // SAFETY: all memory is the bucketer's.
    let b = unsafe { Bucketer::new(&one[0], &t, BucketerConfig::default()) }.unwrap();
    let text = |e: crate::Error| {
        assert!(matches!(e.code, Code::InvalidUsage | Code::InvalidArgument), "{e}");
        e.to_string()
    };
    assert!(text(b.mark_ready(9).unwrap_err()).contains("no tensor 9"));
    b.mark_ready(2).unwrap();
    assert!(text(b.mark_ready(2).unwrap_err()).contains("tensor 2 (t2)"));
    assert!(text(b.wait(2).unwrap_err()).contains("8 gradients were not marked"));
    assert!(text(b.finish_step().unwrap_err()).contains("tensor 0 (t0), tensor 1 (t1)"));
    crate::group_start().unwrap();
    assert!(text(b.mark_ready(0).unwrap_err()).contains("in a group"));
    assert!(text(b.finish_step().unwrap_err()).contains("in a group"));
    crate::group_end().unwrap();
    for i in [0, 1, 3, 4, 5, 6, 7, 8] {
        b.mark_ready(i).unwrap();
    }
    b.finish_step().unwrap();
    // SAFETY: as above.
    let none = unsafe { Bucketer::new(&one[0], &[], BucketerConfig::default()) };
    assert!(text(none.err().unwrap()).contains("no tensors"));
    drop(one);
    for i in 0..t.len() {
        let _ = b.mark_ready(i);
    }
    assert!(text(b.finish_step().unwrap_err()).contains("finalized"));
}

#[test]
fn ranks_with_other_tensors_are_named() {
    let errors = Mutex::new(Vec::new());
    ranks(3, |comm| {
        let mut t = tensors();
        t[2].elements += usize::from(comm.rank() == 1);
        // SAFETY: all memory is the bucketer's.
        let made = unsafe { Bucketer::new(comm, &t, BucketerConfig::default()) };
        errors.lock().unwrap().push(made.err().unwrap().to_string());
    });
    for e in errors.into_inner().unwrap() {
        assert!(e.contains("rank 1") && e.contains("different tensors"), "{e}");
    }
}

#[test]
fn spans_follow_bytes() {
    let l = Layout::new(&tensors()).unwrap();
    // 5 f32, none, 1000 i32, 1 f32: 20 + 0 + 4000 + 4 bytes.
    assert_eq!(l.span(0, 20), Span { first: 0, from: 0, last: 0, to: 5 });
    assert_eq!(l.span(20, 4004), Span { first: 2, from: 0, last: 3, to: 1 });
    assert_eq!(l.span(8, 420), Span { first: 0, from: 2, last: 2, to: 102 });
    let slices = l.slices(&l.span(8, 420));
    assert_eq!(slices.len(), 2);
    assert_eq!((slices[0].at, slices[0].len, slices[1].at, slices[1].len), (2, 3, 0, 102));
    let whole = l.slices(&l.span(0, l.total()));
    assert!(whole.iter().all(|s| s.at == 0 && s.len <= l.regions[s.region].elements));
}
