use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::snapshot::{Communicator, Snapshot, Source};
use super::*;

/// The process has one record: tests that fill it would disturb the others.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// The records that a process has open, as a stranger finds them.
fn records(pid: &str) -> Vec<File> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let named = fds.filter_map(|f| {
        let path = f.unwrap().path();
        let to = std::fs::read_link(&path).ok()?;
        to.to_str()?.starts_with("/memfd:graccl-status").then_some(path)
    });
    named.map(|path| File::open(path).unwrap()).collect()
}

fn snapshot() -> Snapshot {
    let found = records("self");
    assert_eq!(found.len(), 1, "one record for the process");
    Snapshot::read(&found[0]).unwrap()
}

fn find(context: u64) -> Option<Communicator> {
    snapshot().communicators.into_iter().find(|c| c.context == context)
}

fn identity(context: u64) -> Identity<'static> {
    Identity { job: 0x1234, context, parent: None, rank: 1, size: 4, world: &[], hosts: &[] }
}

fn shape(text: &str) -> Shape<'_> {
    Shape { text, algorithm: "direct", tiles: 2, bytes: 40, bus: 1.5, collective: true }
}

fn position<'a>(seq: u32, op: u32, peers: &'a [u32], text: &'a dyn Fn() -> String) -> Position<'a> {
    let (waited, limit) = (Duration::from_secs(3), Some(Duration::from_secs(300)));
    Position { seq, lane: 1, tile: 2, op, peers, waited, limit, text }
}

#[test]
fn a_life() {
    let _alone = alone();
    let r = Recorder::open(&Identity { job: 0, ..identity(100) });
    assert_eq!(find(100).unwrap().state, State::Joining);
    let me =
        Identity { parent: Some(7), world: &[3, 5, 7, 20], hosts: &["a", "a", "b", "b"], ..identity(101) };
    r.identify(&me);
    r.state(State::Ready);
    assert_eq!(find(100), None);
    let c = find(101).unwrap();
    assert_eq!((c.job, c.parent, c.rank, c.size, c.state), (0x1234, Some(7), 1, 4, State::Ready));
    assert_eq!((0..4).map(|i| c.world(i).unwrap()).collect::<Vec<_>>(), [3, 5, 7, 20]);
    assert_eq!((0..4).map(|i| c.host(i).unwrap()).collect::<Vec<_>>(), ["a", "a", "b", "b"]);
    assert!(c.open.is_empty() && c.stuck.is_none() && c.last.is_none());

    let plan = r.plan(&shape("all_reduce of 10 float (sum)"));
    r.begin(17, plan, false);
    let c = find(101).unwrap();
    let call = &c.open[0];
    assert_eq!((call.number, call.own, call.since), (17, false, None));
    let s = call.shape.as_ref().unwrap();
    assert_eq!((&s.text[..], &s.algorithm[..]), ("all_reduce of 10 float (sum)", "direct"));
    assert_eq!((s.tiles, s.bytes, s.bus, c.calls, c.bytes), (2, 40, 1.5, 1, 40));

    let before = memory::now();
    r.stuck(&position(17, 3, &[2, 0], &|| "waits for chunk 1 from rank 2".into()));
    let s = find(101).unwrap().stuck.unwrap();
    assert_eq!((s.number, s.lane, s.tile, s.op, &s.peers[..]), (17, 1, 2, 3, &[2, 0][..]));
    assert_eq!(s.text, "waits for chunk 1 from rank 2");
    let waited = (s.looked - s.since) as f64 / 1e9;
    assert!(s.looked >= before && (waited - 3.0).abs() < 0.1, "{waited}");
    assert_eq!(s.deadline, Some(s.since + 300_000_000_000));
    // The same place again: only the look is new, and the text is not asked for.
    r.stuck(&position(17, 3, &[2, 0], &|| panic!("asked for the text")));
    let again = find(101).unwrap().stuck.unwrap();
    assert!(again.looked > s.looked && again.since == s.since);
    // Another place.
    r.stuck(&position(17, 4, &[0], &|| "elsewhere\x1b[2J".into()));
    assert_eq!(find(101).unwrap().stuck.unwrap().text, "elsewhere?[2J");
    r.moved();
    assert_eq!(find(101).unwrap().stuck, None);
    r.stuck(&position(17, 4, &[0], &|| "elsewhere".into()));
    r.end(17, plan);
    let c = find(101).unwrap();
    assert!(c.stuck.is_none() && c.open.is_empty());
    assert_eq!(c.last.unwrap().number, 17);

    r.begin(18, plan, true);
    let since = find(101).unwrap().open[0].since.unwrap();
    assert!(since >= before && since <= memory::now());
    r.mismatch(18, 3);
    r.failed(&Error::timeout("nothing moved").who("rank 1"));
    let c = find(101).unwrap();
    assert_eq!((c.state, c.open[0].number), (State::Failed, 18));
    let f = c.failure.unwrap();
    assert_eq!((&f.text[..], f.code), ("nothing moved [rank 1]", 8));
    r.end(18, plan);
    drop(r);
    assert_eq!(find(101), None);
    let kinds: Vec<_> = snapshot().events.iter().map(|e| e.kind).rev().take(10).collect();
    use Kind::*;
    assert_eq!(kinds, [Destroy, End, Fail, Mismatch, Begin, Moved, Stuck, Moved, Stuck, Init]);
    let e = snapshot().events.into_iter().rev().find(|e| e.kind == Mismatch).unwrap();
    assert_eq!((e.call, e.peer), (18, Some(3)));
}

#[test]
fn several_calls_under_way() {
    let _alone = alone();
    let r = Recorder::open(&identity(200));
    let plan = r.plan(&shape("all_reduce"));
    let own = r.plan(&Shape { collective: false, ..shape("send") });
    // Around the end of the numbers, too.
    let numbers: Vec<u32> = (0..OPEN as u32 + 3).map(|i| (u32::MAX - 4).wrapping_add(i)).collect();
    for &n in &numbers {
        r.start(n, plan, false);
    }
    let c = find(200).unwrap();
    assert_eq!(c.open.iter().map(|o| o.number).collect::<Vec<_>>(), numbers[..OPEN], "the oldest stay");
    assert_eq!(c.last.unwrap().number, numbers[OPEN + 2]);
    // One that has no place ends without taking another's.
    r.finish(numbers[OPEN], plan);
    assert_eq!(find(200).unwrap().open.len(), OPEN);
    for &n in &numbers {
        r.finish(n, plan);
    }
    r.start(5, plan, false);
    r.start(5, own, true);
    let c = find(200).unwrap();
    assert_eq!(c.open.iter().map(|o| (o.own, o.number)).collect::<Vec<_>>(), [(false, 5), (true, 5)]);
    assert!(c.open[0].since.is_none() && c.open[1].since.is_some());
    assert_eq!(c.last_own.unwrap().shape.unwrap().text, "send");
    r.finish(5, plan);
    assert_eq!(find(200).unwrap().open.len(), 1);
    r.finish(5, own);
}

#[test]
fn places_are_used_again() {
    let _alone = alone();
    let keep = Recorder::open(&identity(300));
    let r = Recorder::open(&identity(301));
    let place = r.home.unwrap().1;
    let plan = r.plan(&shape("old"));
    r.begin(9, plan, true);
    r.stuck(&position(9, 0, &[1], &|| "old".into()));
    r.failed(&Error::internal("old"));
    drop(r);
    let r = Recorder::open(&identity(302));
    assert_eq!(r.home.unwrap().1, place);
    let c = find(302).unwrap();
    assert_eq!((c.state, c.calls, c.bytes), (State::Joining, 0, 0));
    assert!(c.open.is_empty() && c.last.is_none() && c.stuck.is_none() && c.failure.is_none());
    drop((keep, r));
}

#[test]
fn more_communicators_than_places() {
    let _alone = alone();
    let all: Vec<Recorder> = (0..ENTRIES + 2).map(|i| Recorder::open(&identity(1000 + i as u64))).collect();
    let unseen = all.last().unwrap();
    assert!(unseen.home.is_none());
    let plan = unseen.plan(&shape("unseen"));
    unseen.begin(1, plan, true);
    unseen.stuck(&position(1, 0, &[1], &|| "unseen".into()));
    unseen.end(1, plan);
    unseen.failed(&Error::internal("unseen"));
    assert!(snapshot().communicators.len() <= ENTRIES);
    drop(all);
    assert!(find(1000).is_none());
    assert!(Recorder::open(&identity(400)).home.is_some());
}

#[test]
fn more_plans_than_places() {
    let _alone = alone();
    let r = Recorder::open(&identity(500));
    let first = r.plan(&shape("first"));
    r.begin(1, first, false);
    for i in 0..PLANS - 1 {
        r.plan(&shape(&format!("shape {i}")));
    }
    let text = || find(500).unwrap().open[0].shape.as_ref().map(|s| s.text.clone());
    assert_eq!(text().as_deref(), Some("first"));
    r.plan(&shape("one more"));
    assert_eq!(text(), None, "never the text of another plan");
    r.end(1, first);
}

#[test]
fn runs_of_ranks_and_hosts() {
    let _alone = alone();
    let check = |world: &[u32], hosts: &[&str], known: usize, known_hosts: usize| {
        let r = Recorder::open(&Identity { size: world.len(), world, hosts, ..identity(600) });
        let c = find(600).unwrap();
        for i in 0..world.len() {
            let (w, h) = (c.world(i as u32), c.host(i as u32));
            assert_eq!(w, (i < known).then(|| world[i]), "rank {i}");
            assert_eq!(h, (i < known_hosts).then(|| hosts[i]), "rank {i}");
        }
        drop(r);
    };
    let names: Vec<String> = (0..200).map(|i| format!("host{i}")).collect();
    let even: Vec<u32> = (0..100_000).map(|i| i * 2 + 1).collect();
    let blocks: Vec<&str> = (0..100_000).map(|i| &names[i / 2000][..]).collect();
    check(&even, &blocks, 100_000, 100_000);
    let back: Vec<u32> = (0..100).rev().collect();
    let turns: Vec<&str> = (0..100).map(|i| &names[i % 3][..]).collect();
    check(&back, &turns, 100, 100);
    // Without any order the tables end: what they do not hold is not known.
    let wild: Vec<u32> = (0..1000).map(|i| i * i * 7).collect();
    let turns: Vec<&str> = (0..1000).map(|i| &names[i % 2][..]).collect();
    check(&wild, &turns, (RUNS - 1) * 2, HOST_RUNS - 1); // Any two make a run.
    let many: Vec<&str> = (0..200).map(|i| &names[i][..]).collect();
    check(&even[..200], &many, 200, HOSTS);
}

/// Readers never see half of one text and half of another.
#[test]
fn nothing_torn() {
    let _alone = alone();
    let (moving, changing) = (Recorder::open(&identity(700)), Recorder::open(&identity(710)));
    let text = |n: u32| format!("{} ", n % 10).repeat(100);
    let texts: Vec<String> = (0..10).map(text).collect();
    let text = |n: u32| &texts[n as usize % 10];
    let stop = AtomicBool::new(false);
    let repeat = |step: &dyn Fn(u32)| {
        (0..u32::MAX).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(step);
    };
    /// Ends the threads when an assertion fails, too.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|s| {
        s.spawn(|| {
            repeat(&|n| {
                let plan = moving.plan(&shape(text(n)));
                moving.begin(n, plan, n % 2 == 0);
                for i in 0..10 {
                    let m = n.wrapping_add(i);
                    moving.stuck(&position(m, i, &[m; 8], &|| text(m).clone()));
                }
                moving.end(n, plan);
            });
        });
        s.spawn(|| {
            repeat(&|n| {
                let name = text(n);
                let hosts = [&name[..70]; 4];
                let parent = Some(u64::from(n % 4));
                changing.identify(&Identity {
                    rank: n as usize % 4,
                    parent,
                    world: &[n; 4],
                    hosts: &hosts,
                    ..identity(710 + u64::from(n % 4))
                });
                // Time to be read in.
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(u64::from(n % 32)) {}
            });
        });
        let _stop = Stop(&stop);
        let file = records("self").pop().unwrap();
        let at = ENTRIES_AT + moving.home.unwrap().1 * ENTRY + std::mem::offset_of!(Entry, stuck);
        let (mut seen, mut identities, mut begins, begin) = (0, 0, 0, Instant::now());
        let sane = |p: &snapshot::Stuck| {
            assert_eq!(&p.text, text(p.number));
            assert_eq!(p.peers, [p.number; 8]);
        };
        while begin.elapsed() < Duration::from_secs(10) && (seen < 10_000 || identities < 500) {
            for p in (0..100).filter_map(|_| snapshot::stuck(&file, at)) {
                seen += 1;
                sane(&p);
            }
            let s = Snapshot::read(&file).unwrap();
            for c in &s.communicators {
                for o in c.open.iter().filter(|o| o.shape.is_some()) {
                    assert_eq!(&o.shape.as_ref().unwrap().text, text(o.number));
                }
                c.stuck.iter().for_each(sane);
                if c.context >= 710 && c.parent.is_some() {
                    identities += 1;
                    let n = u64::from(c.rank);
                    assert_eq!((c.context, c.parent), (710 + n, Some(n)));
                    assert_eq!(c.host(3).unwrap(), &text(c.world(3).unwrap())[..70]);
                }
            }
            // Other tests of this process make calls, too.
            for e in s.events.iter().filter(|e| e.kind == Kind::Begin && e.communicator == moving.serial) {
                assert!(e.bytes == 40 && e.call % 2 == 0);
                begins += 1;
            }
        }
        assert!(seen > 100 && identities > 100 && begins > 100, "{seen} {identities} {begins}");
    });
}

#[test]
fn a_child_of_fork_is_nobody() {
    let _alone = alone();
    let r = Recorder::open(&identity(800));
    let plan = r.plan(&shape("parent"));
    r.begin(1, plan, false);
    let events = snapshot().events.len();
    // SAFETY: the child only stores to memory and makes plain system calls, and then it is gone.
    let child = unsafe { libc::fork() };
    if child == 0 {
        r.end(1, plan);
        r.begin(2, plan, true);
        r.stuck(&position(2, 0, &[1], &|| String::new()));
        // SAFETY: as above. The other side kills it.
        unsafe {
            libc::pause();
            libc::_exit(0)
        }
    }
    // It has run when it sleeps.
    let begin = Instant::now();
    let asleep = || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    };
    while !asleep() || begin.elapsed() < Duration::from_millis(20) {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
    let seen = records(&child.to_string()).len();
    // SAFETY: our own child.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    assert_eq!(seen, 0);
    assert_eq!(find(800).unwrap().open[0].number, 1);
    assert_eq!(snapshot().events.len(), events);
    r.end(1, plan);
}

#[test]
fn strangers_cannot_write() {
    let _alone = alone();
    let _r = Recorder::open(&identity(900));
    let path = std::fs::read_dir("/proc/self/fd").unwrap().map(|f| f.unwrap().path()).find(|p| {
        std::fs::read_link(p).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:graccl-status"))
    });
    let file = File::options().read(true).write(true).open(path.unwrap()).unwrap();
    assert!(file.set_len(0).is_err());
    assert!(file.write_at(b"x", 0).is_err());
}

/// Any bytes are refused or shown, and never a crash.
#[test]
fn garbage() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    for round in 0..300 {
        let len = random() as usize % 60_000;
        let mut data: Vec<u8> = (0..len).map(|_| random() as u8).collect();
        // Mostly small numbers get further.
        if round % 2 == 0 {
            data.iter_mut().filter(|b| **b > 8).for_each(|b| *b = 0);
        }
        fuzz_read(&data);
    }
    fuzz_read(&[]);
    fuzz_read(&[0xff; 60_000]);
    fuzz_read(&[0; 60_000]);
    // Live entries, with everything else as wild as it can be.
    let mut data = vec![0xff; 60_000];
    let used = std::mem::size_of::<Header>();
    data[used..used + 8].copy_from_slice(&[2, 0, 0, 0, 2, 0, 0, 0]);
    fuzz_read(&data);
}

#[test]
fn other_things_are_refused() {
    let _alone = alone();
    let _r = Recorder::open(&identity(950));
    let file = records("self").pop().unwrap();
    let mut image = vec![0; ENTRIES_AT];
    assert!(Source::read(&file, 0, &mut image));
    assert!(Snapshot::read(&image[..]).is_ok());
    // Without its entries the communicator is counted, not shown.
    assert!(Snapshot::read(&image[..]).unwrap().unreadable > 0);
    for len in [0, 8, 4096, PLANS_AT - 1] {
        assert!(Snapshot::read(&image[..len]).is_err());
    }
    image[std::mem::offset_of!(Header, layout)] += 1;
    let e = Snapshot::read(&image[..]).unwrap_err();
    assert!(e.what.contains("layout 2") && e.hint.contains("version"), "{e}");
    image[0] = 0;
    assert!(Snapshot::read(&image[..]).is_err());
}

/// Prints what the record costs; the figure is for people, `cargo test --release cost -- --nocapture`.
#[test]
fn cost_of_a_call() {
    let _alone = alone();
    let r = Recorder::open(&identity(960));
    let plan = r.plan(&shape("all_reduce"));
    for timed in [false, true] {
        let n = if timed { 200_000 } else { 5_000_000 };
        let best = (0..5).map(|_| {
            let begin = Instant::now();
            for i in 0..n {
                std::hint::black_box(&r).begin(i, std::hint::black_box(plan), timed);
                std::hint::black_box(&r).end(i, plan);
            }
            begin.elapsed().as_nanos() as f64 / f64::from(n)
        });
        println!("begin + end, timed {timed}: {:.2} ns", best.fold(f64::MAX, f64::min));
    }
    let n = 100_000;
    let begin = Instant::now();
    for _ in 0..n {
        r.stuck(&position(1, 0, &[1], &|| "waits".into()));
    }
    println!("stuck, at the same place: {:.1} ns", begin.elapsed().as_nanos() as f64 / f64::from(n));
}
