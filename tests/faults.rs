//! Bad input, and ranks that fail: an error on every survivor, in time, that says what, who and what to
//! do; and nothing left behind.

mod common;

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Ended, Fault, Job, can_unshare, case, join, report, report_error, say, sum_f32, try_join};
use graccl::{Code, Communicator, Config, DataType, RedOp, UniqueId, memory};

/// How soon survivors must know of a death. Noticing takes milliseconds; the rest is for a machine that
/// is busy with all other tests.
const SOON_MS: u128 = 2500;

fn reduce(c: &Communicator, count: usize, t: DataType, op: RedOp) -> graccl::Result<()> {
    let mut data = vec![0u8; count * t.size()];
    let p = data.as_mut_ptr();
    // SAFETY: our own buffer of that size.
    unsafe { c.all_reduce_raw(p, p, count, t, op) }
}

/// The case's words.
fn words(case: &str) -> Vec<&str> {
    case.split(' ').collect()
}

// ------------------------------------------------------------------------------------------------
// Bad arguments

/// Refused calls, and that the communicator is as good as before.
fn bad_arguments(c: &Communicator) {
    let mut data = [1.0f32; 100];
    let p = data.as_mut_ptr().cast::<u8>();
    let null = std::ptr::null_mut::<u8>();
    let refused = |send: *const u8, recv: *mut u8, count: usize, words: &[&str]| {
        // SAFETY: refused before anything is read or written.
        let e = unsafe { c.all_reduce_raw(send, recv, count, DataType::F32, RedOp::Sum) }.unwrap_err();
        assert_eq!(e.code, Code::InvalidArgument, "{e}");
        assert!(e.who.contains("all_reduce of") && !e.hint.is_empty(), "{e}");
        words.iter().for_each(|w| assert!(e.what.contains(w), "{e}"));
    };
    refused(null, p, 1, &["send buffer is null"]);
    refused(p, null, 1, &["receive buffer is null"]);
    refused(null, null, 100, &["null"]);
    for count in [usize::MAX, usize::MAX / 2, isize::MAX as usize / 4 + 1, -1isize as usize, 1 << 62] {
        refused(p, p, count, &[&count.to_string(), "do not fit in memory"]);
    }
    refused(p, p.wrapping_add(4), 100, &["overlap"]);
    refused(p.wrapping_add(396), p, 100, &["overlap"]);
    // SAFETY: nothing to read or write.
    unsafe { c.all_reduce_raw(null, null, 0, DataType::F32, RedOp::Sum) }.unwrap();
    // SAFETY: two halves of our array.
    unsafe { c.all_reduce_raw(p, p.wrapping_add(200), 50, DataType::F32, RedOp::Sum) }.unwrap();
    assert!(c.failure().is_none());
    assert_eq!((data[0], data[99]), (1.0, c.size() as f32));
}

#[test]
fn bad_arguments_are_refused_and_harmless() {
    if case().is_some() {
        return bad_arguments(&join());
    }
    for (ranks, transport) in [(1, "auto"), (2, "shm"), (2, "tcp")] {
        let job = Job::new("bad_arguments_are_refused_and_harmless", ranks);
        job.env("GRACCL_TRANSPORT", transport).succeed();
    }
}

#[test]
fn impossible_ranks_are_refused() {
    let id = UniqueId::create().unwrap();
    for (rank, size) in [(0, 0), (1, 1), (7, 3), (usize::MAX, 2)] {
        let e = Communicator::init_rank(&id, rank, size, &Config::default()).err().unwrap();
        assert_eq!(e.code, Code::InvalidArgument);
        assert!(e.what.contains(&format!("rank {rank} of {size}")) && !e.hint.is_empty(), "{e}");
    }
}

#[test]
fn memory_beyond_the_arena_is_refused() {
    for bytes in [usize::MAX, isize::MAX as usize, 1 << 50] {
        let e = memory::alloc(bytes).unwrap_err();
        assert_eq!(e.code, Code::InvalidArgument);
        assert!(e.what.contains(&bytes.to_string()) && !e.hint.is_empty(), "{e}");
    }
    memory::alloc(1).unwrap();
}

#[test]
fn settings_that_make_no_sense_name_their_variable() {
    if case().is_some() {
        return report(try_join().map(drop));
    }
    for (name, value, known) in [
        ("GRACCL_ALGO", "rign", "ring"),
        ("GRACCL_TRANSPORT", "rdma9", "shm"),
        ("GRACCL_TIMEOUT", "soon", "number"),
        ("GRACCL_TIMEOUT", "-3", "number"),
        ("GRACCL_INIT_TIMEOUT", "0", "number"),
    ] {
        let job = Job::new("settings_that_make_no_sense_name_their_variable", 2).env(name, value);
        for e in job.deadline(Duration::from_secs(10)).run() {
            e.fault().says("InvalidArgument", &[value, known]);
        }
    }
    // Shared memory alone, between hosts.
    let job = Job::new("settings_that_make_no_sense_name_their_variable", 2).hosts(2);
    for e in job.env("GRACCL_TRANSPORT", "shm").run() {
        e.fault().says("InvalidUsage", &["GRACCL_TRANSPORT=shm", "2 hosts"]);
    }
}

// ------------------------------------------------------------------------------------------------
// Ranks that disagree

#[test]
fn calls_that_differ_are_both_named() {
    const SUM: RedOp = RedOp::Sum;
    const F32: DataType = DataType::F32;
    if let Some(case) = case() {
        let c = join();
        let odd = c.rank() == 1;
        let words = words(&case);
        if words[1] == "later" {
            for _ in 0..3 {
                reduce(&c, 10, F32, SUM).unwrap();
            }
        }
        let r = match (words[0], odd) {
            ("type", true) => reduce(&c, 1000, DataType::I32, SUM),
            ("op", true) => reduce(&c, 1000, F32, RedOp::Max),
            ("count", true) => reduce(&c, 1001, F32, SUM),
            // Other algorithms, other numbers of messages.
            ("small-large", true) => reduce(&c, 3_000_000, F32, SUM),
            ("large-small", false) => reduce(&c, 3_000_000, F32, SUM),
            ("order", true) => reduce(&c, 500_000, F32, SUM).and_then(|()| reduce(&c, 1000, F32, SUM)),
            ("order", false) => reduce(&c, 1000, F32, SUM).and_then(|()| reduce(&c, 500_000, F32, SUM)),
            _ => reduce(&c, 1000, F32, SUM),
        };
        report(r);
        // Told again, and what to do.
        let e = reduce(&c, 10, F32, SUM).unwrap_err();
        return assert!(e.what.contains("failed earlier") && e.hint.contains("new one"), "{e}");
    }
    let kinds = [
        ("type", "1000 float (sum)", "1000 int32 (sum)"),
        ("op", "1000 float (sum)", "1000 float (max)"),
        ("count", "1000 float (sum)", "1001 float (sum)"),
        ("small-large", "1000 float (sum)", "3000000 float (sum)"),
        ("large-small", "3000000 float (sum)", "1000 float (sum)"),
        ("order", "1000 float (sum)", "500000 float (sum)"),
    ];
    for (i, (kind, one, other)) in kinds.into_iter().enumerate() {
        for (j, (ranks, hosts, transport)) in
            [(2, 1, "shm"), (2, 1, "tcp"), (4, 2, "auto"), (3, 1, "auto")].into_iter().enumerate()
        {
            let when = if (i + j) % 2 == 0 { "first" } else { "later" };
            let job = Job::new("calls_that_differ_are_both_named", ranks).hosts(hosts);
            let job = job.case(&format!("{kind} {when}")).env("GRACCL_TRANSPORT", transport);
            for e in job.deadline(Duration::from_secs(15)).run() {
                e.fault().says("InvalidUsage", &["ranks disagree", one, other, "same order"]);
            }
        }
    }
}

#[test]
fn settings_that_differ_are_named_on_all_ranks() {
    if case().is_some() {
        return report(try_join().map(drop));
    }
    for (name, all, one) in [
        ("GRACCL_ENCRYPT", "0", "1"),
        ("GRACCL_ENCRYPT", "1", "0"),
        ("GRACCL_DETERMINISTIC", "0", "1"),
        ("GRACCL_TRANSPORT", "auto", "tcp"),
        ("GRACCL_ALGO", "auto", "ring"),
    ] {
        for (ranks, hosts, odd) in [(2, 2, 0), (3, 1, 1), (4, 2, 3)] {
            let job = Job::new("settings_that_differ_are_named_on_all_ranks", ranks).hosts(hosts);
            let job = job.env("GRACCL_VERIFY", "0").env_of(odd, "GRACCL_VERIFY", "1");
            let job = job.env(name, all).env_of(odd, name, one).deadline(Duration::from_secs(15));
            for e in job.run() {
                let f = e.fault();
                let odd = format!("rank {odd} (");
                let words = [format!("{name}={all}"), format!("{name}={one}"), odd, "alike".into()];
                f.says("InvalidUsage", &words.each_ref().map(String::as_str));
                assert_eq!(f.text.matches("GRACCL_").count(), 2, "only what differs: {}", f.text);
            }
        }
    }
}

#[test]
fn a_rank_that_leaves_early_is_named() {
    if case().is_some() {
        let c = join();
        for _ in 0..5 {
            reduce(&c, 1000, DataType::F32, RedOp::Sum).unwrap();
        }
        if c.rank() == 1 {
            return say("left");
        }
        return report(reduce(&c, 1000, DataType::F32, RedOp::Sum));
    }
    for (ranks, hosts, transport) in [(2, 1, "shm"), (2, 1, "tcp"), (3, 2, "auto")] {
        let job = Job::new("a_rank_that_leaves_early_is_named", ranks).hosts(hosts);
        for e in job.env("GRACCL_TRANSPORT", transport).deadline(Duration::from_secs(15)).run() {
            if e.rank != 1 {
                let f = e.fault();
                f.says("RemoteError", &["rank 1 has destroyed its communicator", "call 6", "same calls"]);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Ranks that do not come

#[test]
fn a_rank_that_never_joins_is_named() {
    if case().is_some() {
        return report(try_join().map(drop));
    }
    for hosts in [1, 2] {
        let job = Job::new("a_rank_that_never_joins_is_named", 4).hosts(hosts).without(2);
        let ended = job.env("GRACCL_INIT_TIMEOUT", "1").deadline(Duration::from_secs(10)).run();
        for e in ended {
            e.fault().says("Timeout", &["rank 2 of 4 did not join within", "GRACCL_INIT_TIMEOUT"]);
        }
    }
    // Nobody who could tell: the root itself.
    let job = Job::new("a_rank_that_never_joins_is_named", 3).without(0).env("GRACCL_INIT_TIMEOUT", "1");
    for e in job.deadline(Duration::from_secs(10)).run() {
        e.fault().says("Timeout", &["rank 0 did not answer within 1 s", "was started"]);
    }
}

#[test]
fn a_rank_that_never_calls_is_named() {
    if let Some(case) = case() {
        let c = join();
        if words(&case)[0] == "later" {
            reduce(&c, 100, DataType::F32, RedOp::Sum).unwrap();
        }
        let call = || reduce(&c, 100, DataType::F32, RedOp::Sum);
        if c.rank() == 1 {
            // Busy with something else; long enough for the others. What they had sent before may be
            // enough for one call, but not for two.
            std::thread::sleep(Duration::from_millis(3500));
            return report(call().and_then(|()| call()));
        }
        return report(call());
    }
    for (when, hosts, transport) in
        [("first", 1, "shm"), ("later", 1, "shm"), ("first", 2, "auto"), ("later", 1, "tcp")]
    {
        let job = Job::new("a_rank_that_never_calls_is_named", 3).case(when).hosts(hosts);
        let job = job.env("GRACCL_TRANSPORT", transport).env("GRACCL_TIMEOUT", "2");
        for e in job.deadline(Duration::from_secs(20)).run() {
            let f = e.fault();
            if e.rank == 1 {
                // Too late: those who waited have given up.
                f.says(&f.code, &["rank ", "all_reduce of 100 float (sum)"]);
                continue;
            }
            let step = if when == "later" { "step" } else { "connecting" };
            f.says("Timeout", &["all_reduce of 100 float (sum)", step, "GRACCL_TIMEOUT"]);
            // Where rank 2 waits for rank 0, which waits for rank 1, either may be the first to say so.
            let indirect = hosts > 1 || transport == "tcp";
            assert!(
                f.text.contains("rank 1") || indirect && f.text.contains("waits for rank 0"),
                "{}",
                f.text
            );
        }
    }
}

#[test]
fn a_wrong_key_keeps_a_rank_out() {
    if case().is_some() {
        return report(try_join().map(drop));
    }
    for hosts in [1, 2] {
        let job = Job::new("a_wrong_key_keeps_a_rank_out", 2).hosts(hosts);
        let job = job.env_of(1, "GRACCL_KEY", "another").env("GRACCL_INIT_TIMEOUT", "1.5");
        let ended = job.deadline(Duration::from_secs(10)).run();
        ended[0].fault().says("Timeout", &["rank 1 of 2 did not join", "GRACCL_KEY"]);
        let f = ended[1].fault();
        f.says("Timeout", &["rank 0 did not answer within 1.5 s", "GRACCL_KEY"]);
        if hosts == 2 {
            f.says("Timeout", &["does not know this communicator's key"]);
        }
    }
}

#[test]
fn garbage_and_silence_while_a_job_starts() {
    if case().is_some() {
        // The others wait at the root meanwhile.
        if std::env::var("RANK").unwrap() == "2" {
            std::thread::sleep(Duration::from_millis(700));
        }
        let c = join();
        for _ in 0..20 {
            reduce(&c, 1000, DataType::F32, RedOp::Sum).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        return say("done");
    }
    let job = Job::new("garbage_and_silence_while_a_job_starts", 3).hosts(2).start();
    let pids: Vec<u32> = (0..3).map(|r| job.pid(r) as u32).collect();
    let mut held: Vec<Box<dyn Write>> = Vec::new();
    let start = Instant::now();
    let mut round = 0u8;
    while start.elapsed() < Duration::from_millis(1000) {
        // The root's ports, and the abstract names of all ranks.
        for port in job.port + 1..job.port + 9 {
            if let Ok(s) = std::net::TcpStream::connect(("127.0.0.1", port)) {
                held.push(Box::new(s));
            }
        }
        for name in common::unix_listeners(&pids) {
            use std::os::linux::net::SocketAddrExt;
            let addr = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            if let Ok(s) = std::os::unix::net::UnixStream::connect_addr(&addr) {
                held.push(Box::new(s));
            }
        }
        for (i, s) in held.iter_mut().enumerate() {
            // A third stays silent, a third begins as it should.
            let _ = match i % 3 {
                0 => Ok(()),
                1 => s.write_all(&[round.wrapping_mul(31); 100]),
                _ => s.write_all(&b"GRACCL"[..1 + i % 6]),
            };
        }
        round = round.wrapping_add(1);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(held.len() > 10, "{} connections", held.len());
    for e in job.finish() {
        assert!(e.status.success(), "{}", e.text);
        assert!(e.took < Duration::from_secs(8), "{:?}", e.took);
    }
}

// ------------------------------------------------------------------------------------------------
// Ranks that die

/// All but `victim` report its death soon after `at`.
fn survivors_know(ended: &[Ended], victim: usize, at: u128) {
    for e in ended.iter().filter(|e| e.rank != victim) {
        let f: Fault = e.fault();
        assert_eq!(f.code, "RemoteError", "{f:?}");
        assert!(f.text.contains(&format!("rank {victim}")) && f.text.contains(" -> "), "{}", f.text);
        assert!(f.text.contains("all_reduce of"), "{}", f.text);
        let after = f.at.saturating_sub(at);
        assert!(after < SOON_MS, "rank {} knew after {after} ms", e.rank);
    }
}

/// All-reduces of this many floats, until one fails.
fn again_and_again(c: &Communicator, count: usize) {
    let mut data = vec![0.0f32; count];
    sum_f32(c, &mut data).unwrap();
    say("ready");
    loop {
        if let Err(e) = sum_f32(c, &mut data) {
            return report_error(&e);
        }
    }
}

fn killed_in_a_large_call(test: &str, ranks: usize, hosts: &[u32], transport: &str, victim: usize) {
    if case().is_some() {
        return again_and_again(&join(), 64 << 20);
    }
    let job = Job::new(test, ranks).on(hosts).env("GRACCL_TRANSPORT", transport).start();
    (0..ranks).for_each(|r| job.await_line(r, "ready"));
    std::thread::sleep(Duration::from_millis(100));
    let at = job.signal(victim, libc::SIGKILL);
    let ended = job.finish();
    assert!(ended[victim].killed_by(libc::SIGKILL));
    survivors_know(&ended, victim, at);
}

macro_rules! killed {
    ($($name:ident $ranks:expr, $hosts:expr, $transport:expr, $victim:expr;)*) => { $(
        #[test]
        fn $name() {
            killed_in_a_large_call(stringify!($name), $ranks, &$hosts, $transport, $victim);
        }
    )* };
}

killed! {
    killed_shm_2 2, [0, 0], "shm", 0;
    killed_shm_4 4, [0, 0, 0, 0], "shm", 2;
    killed_tcp_2 2, [0, 0], "tcp", 1;
    killed_tcp_4 4, [0, 0, 0, 0], "tcp", 0;
    killed_on_two_hosts 4, [0, 0, 1, 1], "auto", 3;
}

#[test]
fn killed_between_small_calls() {
    if case().is_some() {
        return again_and_again(&join(), 4);
    }
    for (hosts, transport, victim) in [([0, 0, 0], "shm", 0), ([0, 1, 1], "auto", 1), ([0, 0, 0], "tcp", 2)] {
        let job = Job::new("killed_between_small_calls", 3).on(&hosts);
        let job = job.env("GRACCL_TRANSPORT", transport).start();
        (0..3).for_each(|r| job.await_line(r, "ready"));
        let at = job.signal(victim, libc::SIGKILL);
        survivors_know(&job.finish(), victim, at);
    }
}

#[test]
fn a_rank_that_exits_without_a_word_is_named() {
    if let Some(case) = case() {
        let words = words(&case);
        let (victim, calls): (usize, usize) = (words[0].parse().unwrap(), words[1].parse().unwrap());
        let c = join();
        for _ in 0..calls {
            reduce(&c, 1000, DataType::F32, RedOp::Sum).unwrap();
        }
        if c.rank() == victim {
            // The others wait for it by now.
            std::thread::sleep(Duration::from_millis(500));
            say(&format!("at={}", common::now_ms()));
            std::process::exit(0);
        }
        return report(reduce(&c, 1000, DataType::F32, RedOp::Sum));
    }
    // Before its first call, as the one who would connect and as the one who would be connected to;
    // and later.
    for (victim, calls) in [(0, 0), (2, 0), (1, 3)] {
        for (hosts, transport) in [(1, "shm"), (1, "tcp"), (2, "auto")] {
            let job = Job::new("a_rank_that_exits_without_a_word_is_named", 3).hosts(hosts);
            let job = job.case(&format!("{victim} {calls}")).env("GRACCL_TRANSPORT", transport);
            let ended = job.deadline(Duration::from_secs(15)).run();
            let at = ended[victim].text.lines().find_map(|l| l.strip_prefix("at=")).unwrap();
            survivors_know(&ended, victim, at.parse().unwrap());
        }
    }
}

#[test]
fn abort_ends_calls_everywhere() {
    if let Some(case) = case() {
        let c = join();
        if case == "later" {
            reduce(&c, 1000, DataType::F32, RedOp::Sum).unwrap();
        }
        if c.rank() == 2 {
            // Blocks all others until it is too late.
            std::thread::sleep(Duration::from_millis(2500));
            // What the others had sent before may be enough for one call, but not for two.
            let call = || reduce(&c, 1000, DataType::F32, RedOp::Sum);
            return report(call().and_then(|()| call()));
        }
        return std::thread::scope(|s| {
            let call = s.spawn(|| reduce(&c, 1000, DataType::F32, RedOp::Sum));
            if c.rank() == 0 {
                std::thread::sleep(Duration::from_millis(500));
                assert!(!call.is_finished());
                say(&format!("at={}", common::now_ms()));
                c.abort();
            }
            report(call.join().unwrap());
            let e = reduce(&c, 10, DataType::F32, RedOp::Sum).unwrap_err();
            assert_eq!(e.code, Code::Aborted);
        });
    }
    for (when, hosts, transport) in
        [("first", 1, "shm"), ("later", 1, "shm"), ("first", 1, "tcp"), ("later", 2, "auto")]
    {
        let job = Job::new("abort_ends_calls_everywhere", 3).case(when).hosts(hosts);
        let ended = job.env("GRACCL_TRANSPORT", transport).deadline(Duration::from_secs(15)).run();
        let at: u128 = ended[0].text.lines().find_map(|l| l.strip_prefix("at=")).unwrap().parse().unwrap();
        let own = ended[0].fault();
        own.says("Aborted", &["aborted here", "all_reduce of 1000 float (sum)", "new one"]);
        assert!(own.at - at < SOON_MS, "{} ms", own.at - at);
        let f = ended[1].fault();
        f.says(&f.code, &["rank 0"]);
        assert!(f.code == "Aborted" || when == "first" && f.code == "RemoteError", "{f:?}");
        assert!(f.at - at < SOON_MS, "{} ms", f.at - at);
        let f = ended[2].fault();
        f.says(&f.code, &["rank 0"]);
    }
}

#[test]
fn abort_between_calls() {
    if case().is_some() {
        let c = join();
        reduce(&c, 1000, DataType::F32, RedOp::Sum).unwrap();
        if c.rank() == 0 {
            c.abort();
            c.abort();
            assert_eq!(c.failure().unwrap().code, Code::Aborted);
        }
        return report(reduce(&c, 1000, DataType::F32, RedOp::Sum));
    }
    for transport in ["shm", "tcp"] {
        let job = Job::new("abort_between_calls", 2).env("GRACCL_TRANSPORT", transport);
        for e in job.deadline(Duration::from_secs(10)).run() {
            e.fault().says("Aborted", &["the communicator was aborted here", "rank 0"]);
        }
    }
}

#[test]
fn a_stopped_rank_is_waited_for() {
    if case().is_some() {
        let c = join();
        let start = Instant::now();
        let mut longest = Duration::ZERO;
        sum_f32(&c, &mut [1.0]).unwrap();
        // From round to round without a gap: the stop may fall between two calls, too.
        let mut before = Instant::now();
        say("ready");
        loop {
            let mut v = vec![1.0; 100_000];
            sum_f32(&c, &mut v).unwrap();
            assert!(v.iter().all(|&x| x == 2.0));
            // All end after the same call.
            let mut go_on = [f32::from(start.elapsed() < Duration::from_secs(4))];
            sum_f32(&c, &mut go_on).unwrap();
            longest = longest.max(before.elapsed());
            before = Instant::now();
            if go_on[0] < 2.0 {
                break;
            }
        }
        return assert!(longest > Duration::from_secs(1), "nothing stopped: {longest:?}");
    }
    for transport in ["shm", "tcp"] {
        let job = Job::new("a_stopped_rank_is_waited_for", 2).env("GRACCL_TRANSPORT", transport).start();
        (0..2).for_each(|r| job.await_line(r, "ready"));
        job.signal(1, libc::SIGSTOP);
        std::thread::sleep(Duration::from_secs(2));
        job.signal(1, libc::SIGCONT);
        for e in job.finish() {
            assert!(e.status.success(), "{}", e.text);
        }
    }
}

// ------------------------------------------------------------------------------------------------
// Machines that lack something

#[test]
fn dev_shm_is_not_needed() {
    if case().is_some() {
        let c = join();
        const BYTES: usize = 128 << 20;
        reduce(&c, BYTES / 4, DataType::F32, RedOp::Sum).unwrap();
        let p = memory::alloc(BYTES).unwrap();
        // SAFETY: allocated above, freed below.
        unsafe {
            c.all_reduce_raw(p, p, BYTES / 4, DataType::F32, RedOp::Sum).unwrap();
            memory::free(p).unwrap();
        }
        return;
    }
    if !can_unshare("-m") {
        return;
    }
    for change in ["mount -t tmpfs -o size=64m none /dev/shm", "umount -l /dev/shm; rmdir /dev/shm; true"] {
        let script = format!("mkdir -p /dev/shm; {change} && exec \"$@\"");
        let job = Job::new("dev_shm_is_not_needed", 2);
        job.wrapper(&["unshare", "-m", "sh", "-c", &script, "sh"]).succeed();
    }
}

#[test]
fn too_few_descriptors_are_said() {
    if case().is_some() {
        let r = try_join().and_then(|c| {
            let r = reduce(&c, 1000, DataType::F32, RedOp::Sum);
            // Held open by the others too, so that all need their descriptors at the same time.
            r.and_then(|()| reduce(&c, 1000, DataType::F32, RedOp::Sum))
        });
        return report(r);
    }
    let (mut failed, mut worked) = (0, 0);
    for (files, transport) in
        [(5, "shm"), (7, "shm"), (9, "shm"), (11, "tcp"), (12, "shm"), (14, "tcp"), (16, "shm"), (64, "tcp")]
    {
        let job = Job::new("too_few_descriptors_are_said", 4).nofile(1, files);
        let job =
            job.env("GRACCL_TRANSPORT", transport).env("GRACCL_INIT_TIMEOUT", "3").env("GRACCL_TIMEOUT", "3");
        let ended = job.deadline(Duration::from_secs(20)).run();
        if ended.iter().all(|e| e.text.contains("\nOK")) {
            worked += 1;
            continue;
        }
        failed += 1;
        let f = ended[1].fault();
        assert!(f.text.contains("ulimit -n"), "{files} files, {transport}: {f:?}");
        for e in ended.iter().filter(|e| e.rank != 1) {
            let f = e.fault();
            // Rank 1, or one that failed because of it.
            assert!(f.text.contains("rank "), "{files} files, {transport}: {f:?}");
        }
    }
    assert!(failed > 1 && worked > 0, "{failed} failed, {worked} worked");
}

#[test]
fn little_address_space_is_enough_or_said() {
    if case().is_some() {
        return report(try_join().and_then(|c| reduce(&c, 1_000_000, DataType::F32, RedOp::Sum)));
    }
    for gib in [4, 16, 64, 300] {
        let job = Job::new("little_address_space_is_enough_or_said", 4).address_space(gib << 30);
        for e in job.deadline(Duration::from_secs(20)).succeed() {
            assert!(e.text.contains("\nOK"), "{gib} GiB: {}", e.text);
        }
    }
    let job = Job::new("little_address_space_is_enough_or_said", 2).address_space(400 << 20);
    for e in job.deadline(Duration::from_secs(20)).succeed() {
        assert!(e.text.contains("\nFAULT") && e.text.contains("ulimit -v"), "{}", e.text);
    }
}

#[test]
fn one_host_needs_no_network() {
    const TEST: &str = "one_host_needs_no_network";
    match case().as_deref() {
        // Inside a network namespace whose only interface, loopback, is down.
        Some("inside") => {
            assert!(
                std::net::TcpStream::connect("127.0.0.1:9")
                    .is_err_and(|e| e.raw_os_error() == Some(libc::ENETUNREACH))
            );
            drop(Job::new(TEST, 3).succeed());
        }
        Some(_) => reduce(&join(), 100_000, DataType::F32, RedOp::Sum).unwrap(),
        None if can_unshare("-n") => {
            let exe = std::env::current_exe().unwrap();
            let mut c = Command::new("unshare");
            c.arg("-n").arg(exe).args([TEST, "--exact", "--nocapture"]).env("GRACCL_TEST_CASE", "inside");
            let o = c.output().unwrap();
            assert!(
                o.status.success(),
                "{}{}",
                String::from_utf8_lossy(&o.stdout),
                String::from_utf8_lossy(&o.stderr)
            );
        }
        None => {}
    }
}
