//! What the machine's parts cost, and how good that predicts calls.

use std::time::Instant;

use graccl::cost::{Curve, Level, Machine, Model, OnCore};
use graccl::schedule::Algorithm;
use graccl::tune::{self, Choice, Place, Predictor, Run};
use graccl::{Call, Collective, Communicator, DataType, RedOp, Result, reduce};

use super::bench::{Bench, Effort};

/// Messages in flight on a channel, as many as a sender can count on: transports let one acknowledgement wait.
const DEPTH: u32 = 3;
/// Over TCP a receiver tells of room after so many messages, if it has none to send.
const CREDITS: u32 = 2;
/// Interpretation of an op, and a core's way from one rank to another, ns: what fitting starts from.
const OP: f64 = 8.0;
const SWITCH: f64 = 1200.0;
/// Ranks of hosts that do not know that they are one machine spin while they wait, and keep each other from the core
/// they share: then the smallest message takes longer than this, ns, and says nothing.
const SPUN: f64 = 20e3;
/// Sizes of messages.
const SIZES: [usize; 10] = [4, 64, 504, 1024, 4096, 16384, 32768, 65536, 131072, 262144];

/// A size's messages take about so long at most, each kind of them, ns.
const MESSAGES: f64 = 50e6;

/// What a quarter of the times does not exceed: interruptions only ever add.
fn usual(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 4).copied().unwrap_or(0.0)
}

/// ns of two reads of the clock.
fn clock() -> f64 {
    let mut t: Vec<f64> = (0..201).map(|_| Instant::now().elapsed().as_nanos() as f64).collect();
    usual(&mut t)
}

/// ns per run of `f`, of short bursts.
fn burst(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    f();
    let one = start.elapsed().as_nanos().max(20) as f64;
    let times = ((20_000.0 / one) as usize).clamp(1, 1000);
    let mut all: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            (0..times).for_each(|_| f());
            start.elapsed().as_nanos() as f64 / times as f64
        })
        .collect();
    usual(&mut all)
}

/// A curve through what was measured. A size that took longer than a larger one was disturbed; and so was one that took
/// far longer than a smaller one makes likely: three times for twice the bytes, as where a socket's buffer ends, is the
/// most that was seen. (Who waits for long goes to sleep, and who wakes it pays.)
fn curve(mut points: Vec<(f64, f64)>) -> Result<Curve> {
    for i in (1..points.len()).rev() {
        points[i - 1].1 = points[i - 1].1.min(points[i].1);
    }
    for i in 1..points.len() {
        let ((less, before), (more, _)) = (points[i - 1], points[i]);
        let likely = before * (more / less).powf(3f64.log2());
        points[i].1 = points[i].1.min(likely.max(before + 1000.0));
    }
    Curve::new(points)
}

/// ns of `copy` and `fold` of float32 sums in a core's caches, for each of [`SIZES`].
fn kernels() -> ([f64; SIZES.len()], [f64; SIZES.len()]) {
    let most = SIZES[SIZES.len() - 1];
    let mut memory = vec![vec![0u8; most + 4096]; 3];
    let at: Vec<*mut u8> =
        memory.iter_mut().zip([64, 1344, 2688]).map(|(m, off)| m[off..].as_mut_ptr()).collect();
    let kernel = reduce::kernel(DataType::F32, RedOp::Sum);
    let run = |bytes: usize, sources: usize| {
        let from = [at[0].cast_const(), at[1].cast_const()];
        // SAFETY: three blocks of `bytes` each, apart, at most two sources.
        burst(|| unsafe { kernel(&at[2], 1, from.as_ptr(), sources, bytes / 4, 1, false) })
    };
    let copy = SIZES.map(|bytes| run(bytes, 1));
    let two = SIZES.map(|bytes| run(bytes, 2));
    (copy, std::array::from_fn(|i| (two[i] - copy[i]).max(0.0)))
}

/// Two ranks that send to each other.
struct Pair<'a> {
    comm: &'a Communicator,
    buffer: Vec<u8>,
    clock: f64,
}

impl Pair<'_> {
    /// One message from `root` to the other rank; ns that it took here.
    fn message(&mut self, root: usize, bytes: usize) -> Result<f64> {
        let at = self.buffer.as_mut_ptr();
        let call = Call::moving(Collective::Broadcast, at, at, bytes, DataType::U8).root(root);
        let start = Instant::now();
        // SAFETY: the buffer is longer than any message.
        unsafe { self.comm.call(&call)? };
        Ok((start.elapsed().as_nanos() as f64 - self.clock).max(0.0))
    }

    /// Over `times`, ns: from the call that sends to the end of the one that receives; and what of that the sender's
    /// core does.
    fn there_and_back(&mut self, bytes: usize, times: usize) -> Result<[f64; 2]> {
        let (mut way, mut send) = (Vec::new(), Vec::new());
        for i in 0..times + 3 {
            let start = Instant::now();
            let first = self.message(0, bytes)?;
            self.message(1, bytes)?;
            let both = start.elapsed().as_nanos() as f64 - self.clock;
            if self.comm.rank() == 0 && i >= 3 {
                way.push(both / 2.0);
                send.push(first);
            }
        }
        Ok([self.tell(usual(&mut way))?, self.tell(usual(&mut send))?])
    }

    /// What the receiver's core does, ns, where the message is there already: it looks after `patience`.
    fn late(&mut self, bytes: usize, times: usize, patience: f64) -> Result<f64> {
        let me = self.comm.rank();
        let mut recv = Vec::new();
        for _ in 0..times {
            // Rank 0 hears from rank 1 and answers at once; rank 1 looks late.
            self.message(1, 4)?;
            if me == 1 {
                let start = Instant::now();
                while (start.elapsed().as_nanos() as f64) < patience {
                    std::hint::spin_loop();
                }
            }
            let late = self.message(0, bytes)?;
            if me == 1 {
                recv.push(late);
            }
        }
        self.tell(usual(&mut recv))
    }

    /// ns per message when many follow each other.
    fn stream(&mut self, bytes: usize, times: usize) -> Result<f64> {
        self.message(0, bytes)?;
        self.message(1, 4)?;
        let start = Instant::now();
        for _ in 0..times {
            self.message(0, bytes)?;
        }
        // The last one has arrived when this has.
        self.message(1, 4)?;
        self.tell(start.elapsed().as_nanos() as f64 / times as f64)
    }

    /// The larger of both ranks' numbers.
    fn tell(&self, x: f64) -> Result<f64> {
        let mut both = [x];
        self.comm.all_reduce(&mut both, RedOp::Max)?;
        Ok(both[0])
    }
}

/// What a level costs: for each of [`SIZES`] `send`, `recv` and `link`, and behind them the latency.
type Costs = [f64; 3 * SIZES.len() + 1];

/// A message is one message, whatever its size.
fn whole(pair: &Pair) -> Result<()> {
    let direct = Algorithm::by_name(Collective::Broadcast, "direct").expect("it is built in");
    pair.comm.force(Some(Choice { algorithm: direct, ways: 1, message: 1 << 20 }))
}

/// What it costs two ranks that share a core: for each of [`SIZES`] `send`, and the rest of a message's way, going from
/// one rank to the other included.
fn together(pair: &mut Pair, own: &Machine) -> Result<[f64; 2 * SIZES.len()]> {
    whole(pair)?;
    let mut costs = [0.0; 2 * SIZES.len()];
    for (i, bytes) in SIZES.into_iter().enumerate().rev() {
        // The first messages make pages, too.
        for _ in 0..if i + 1 == SIZES.len() { 3 } else { 0 } {
            pair.there_and_back(bytes, 20)?;
        }
        let [way, sends] = pair.there_and_back(bytes, if bytes <= 16384 { 60 } else { 20 })?;
        let rest = way - sends - own.op - own.copy.at(bytes as f64);
        costs[2 * i..2 * i + 2].copy_from_slice(&[(sends - own.call - own.op).max(0.0), rest.max(0.0)]);
    }
    pair.comm.force(None)?;
    Ok(costs)
}

/// Measures a level with two ranks that are at it. The receiver may work while the sender still does (a socket's sender
/// does in its call what wakes the receiver, and more), so both together may be more than a message takes. Where cores
/// have somebody else to serve, `crowded`, their work counts; else the message's time.
fn measure(pair: &mut Pair, own: &Machine, across: bool, crowded: bool) -> Result<Costs> {
    whole(pair)?;
    let fixed = own.call + own.op;
    let mut costs = [0.0; 3 * SIZES.len() + 1];
    let (mut latency, mut works) = (0.0, [0.0; SIZES.len()]);
    // Largest first: that tells whether there is a link that limits, ns per byte. Inside a host there is none.
    let mut gap = 0.0;
    for (i, bytes) in SIZES.into_iter().enumerate().rev() {
        let times = if bytes <= 16384 { 60 } else { 20 };
        let mut stream = pair.stream(bytes, times * 2)?;
        // The first messages make pages, too. Who then waits for long is asleep when it is answered, and waking it would
        // count as the receiver's work.
        for _ in 0..if i + 1 == SIZES.len() { 6 } else { 0 } {
            stream = stream.min(pair.stream(bytes, times * 2)?);
        }
        // Where others want the cores, too, few must do.
        let times = ((MESSAGES / stream) as usize).clamp(8, times);
        let [way, sends] = pair.there_and_back(bytes, times)?;
        let late = pair.late(bytes, times, 3.0 * way.max(stream) + 3000.0)?;
        if across && i + 1 == SIZES.len() {
            // A link is there if many messages take longer each than either core, and always: connections start slowly,
            // and others may want the core.
            let mut least = stream;
            for _ in 0..3 {
                least = least.min(pair.stream(bytes, times * 2)?);
            }
            if least > 1.5 * sends.max(late) {
                gap = least / bytes as f64;
            }
        }
        works[i] = (late - fixed - own.copy.at(bytes as f64)).max(0.0);
        let send = (sends - fixed).max(0.0).min(0.9 * way);
        let link = gap * bytes as f64;
        let mut rest = way - fixed - send - own.op - own.copy.at(bytes as f64);
        if i == 0 {
            latency = (way - sends - (late - own.call).max(0.0)).max(0.0);
        }
        // Links let short bursts pass.
        if rest > link {
            rest -= link;
        }
        costs[3 * i..3 * i + 3].copy_from_slice(&[send, rest, link]);
    }
    for (c, work) in costs[..3 * SIZES.len()].chunks_mut(3).zip(works) {
        c[1] = (c[1] - latency).max(0.0);
        if gap > 0.0 {
            // The end of a message that a link lets pass in part is no work of the receiver's.
            c[1] = c[1].min(work);
        }
        if crowded {
            c[1] = c[1].max(work);
        }
    }
    costs[3 * SIZES.len()] = latency;
    pair.comm.force(None)?;
    Ok(costs)
}

fn level(costs: &Costs, tcp: bool) -> Result<Level> {
    let part = |which: usize| {
        let points = SIZES.iter().zip(costs.chunks(3));
        curve(points.map(|(&bytes, c)| (bytes as f64, c[which])).collect())
    };
    let (send, recv, link) = (part(0)?, part(1)?, part(2)?);
    let links = u32::from(!link.is_zero());
    let credits = if tcp { CREDITS } else { 0 };
    Ok(Level {
        send,
        recv,
        latency: costs[3 * SIZES.len()],
        link,
        links,
        depth: DEPTH,
        credits,
        on_core: None,
    })
}

/// Two ranks of a host, and ranks of two hosts. `together`: on the same core, else not, if there are others: going from
/// one to the other is no part of a message, and has a number of its own.
fn pairs(hosts: &[u32], cores: u32, together: bool) -> [Option<(usize, usize)>; 2] {
    [true, false].map(|same| {
        let all = || (0..hosts.len()).flat_map(|a| (a + 1..hosts.len()).map(move |b| (a, b)));
        let mut fitting = all().filter(|&(a, b)| (hosts[a] == hosts[b]) == same);
        let suits = |&(a, b): &(usize, usize)| ((b - a) % cores as usize == 0) == together;
        fitting.clone().find(suits).or(if together { None } else { fitting.next() })
    })
}

/// The system's name for this machine.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string()
}

/// Probes kernels and messages. The same numbers on all ranks.
pub fn machine(bench: &mut Bench) -> Result<Model> {
    bench.progress(format_args!("kernels"));
    bench.settle()?;
    let (comm, me) = (&bench.comm, bench.rank());
    let all = &bench.job.comm;
    let alone = comm.split(Some(me as u32), 0)?.expect("a communicator of its own");
    // The others sleep while rank 0 measures.
    let mut own = [0.0; 2 * SIZES.len() + 1];
    if me == 0 {
        let (copy, fold) = kernels();
        own[..SIZES.len()].copy_from_slice(&copy);
        own[SIZES.len()..2 * SIZES.len()].copy_from_slice(&fold);
        let mut one = [0f32];
        let mut failed = Ok(());
        own[2 * SIZES.len()] = burst(|| failed = alone.all_reduce(&mut one, RedOp::Sum));
        failed?;
    }
    all.broadcast(&mut own, 0)?;
    let through = |ns: &[f64]| curve(SIZES.iter().map(|&b| b as f64).zip(ns.iter().copied()).collect());
    let mut m = Machine::alpha_beta(0.0, 0.0, 0.0);
    (m.copy, m.fold) = (through(&own[..SIZES.len()])?, through(&own[SIZES.len()..2 * SIZES.len()])?);
    (m.call, m.op) = (own[2 * SIZES.len()], OP);
    let hosts = comm.hosts().to_vec();
    // Not those that a pinned rank may use count.
    // SAFETY: a plain library call.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }.max(1) as u32;
    // Hosts of the same name are one machine that plays several: they share its cores.
    let names = bench.job.gather(&host_name())?;
    let here: Vec<usize> = (0..names.len()).filter(|&r| names[r] == names[0]).collect();
    if here.len() as u32 > cores {
        (m.cores, m.switch) = (Some(cores), SWITCH);
        m.core_hosts = here.iter().map(|&r| hosts[r]).max().unwrap_or(0) + 1;
    }
    let mut levels = [None, None];
    let kinds = ["inside a host", "between hosts"];
    for ((slot, pair), kind) in levels.iter_mut().zip(pairs(&hosts, cores, false)).zip(kinds) {
        let Some((a, b)) = pair else { continue };
        bench.progress(format_args!("messages {kind}"));
        let two = comm.split((me == a || me == b).then_some(0), 0)?;
        let mut costs = [0.0; 3 * SIZES.len() + 1];
        if let Some(two) = &two {
            let mut pair = Pair { comm: two, buffer: vec![0; 1 << 20], clock: clock() };
            costs = measure(&mut pair, &m, hosts[a] != hosts[b], m.cores.is_some())?;
        }
        all.broadcast(&mut costs, a)?;
        let tcp = bench.layout.all_tcp || hosts[a] != hosts[b];
        *slot = Some(level(&costs, tcp)?);
    }
    if m.cores.is_some() {
        share(&bench.comm, all, &mut m, &mut levels, &hosts)?;
    }
    let [inside, across] = levels;
    if let Some(l) = inside.clone().or_else(|| across.clone()) {
        m.inside = l;
    }
    if let Some(l) = across.or(inside) {
        m.across = l;
    }
    Ok(Model::new(m))
}

/// Probes what ranks that share a core cost each other.
fn share(
    comm: &Communicator,
    all: &Communicator,
    m: &mut Machine,
    levels: &mut [Option<Level>; 2],
    hosts: &[u32],
) -> Result<()> {
    let (me, mut switch) = (comm.rank(), None);
    for (slot, pair) in levels.iter_mut().zip(pairs(hosts, m.cores.unwrap_or(1), true)) {
        let (Some(level), Some((a, b))) = (slot, pair) else { continue };
        let mut costs = [0.0; 2 * SIZES.len()];
        if let Some(two) = comm.split((me == a || me == b).then_some(0), 0)? {
            let mut pair = Pair { comm: &two, buffer: vec![0; 1 << 20], clock: clock() };
            costs = together(&mut pair, m)?;
        }
        all.broadcast(&mut costs, a)?;
        if costs[1] > SPUN {
            continue;
        }
        // Of the smallest message all that the receiver does not do is the switch.
        let switch = *switch.get_or_insert((costs[1] - level.recv.at(4.0)).max(0.0));
        let points = |part: &dyn Fn(f64, &[f64]) -> f64| {
            let points = SIZES.iter().map(|&b| b as f64).zip(costs.chunks(2));
            curve(points.map(|(bytes, c)| (bytes, part(bytes, c).max(0.0))).collect())
        };
        let rest = |bytes: f64, c: &[f64]| {
            let (rest, link) = (c[1] - switch, level.link.at(bytes));
            // Links let short bursts pass; of what they hold up the work is not seen here.
            let seen = if rest > 0.5 * link { f64::INFINITY } else { rest };
            if link > 0.0 { seen.min(level.recv.at(bytes)) } else { rest }
        };
        level.on_core = Some(OnCore { send: points(&|_, c| c[0])?, recv: points(&rest)? });
    }
    m.switch = switch.unwrap_or(m.switch);
    Ok(())
}

/// Sizes whose calls the machine is fitted to, and those in between that only check it. Caches end between the larger ones.
const FITTED: [usize; 12] =
    [4, 512, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20, 32 << 20, 64 << 20];
const CHECKED: [usize; 7] = [64, 2 << 10, 8 << 10, 128 << 10, 2 << 20, 12 << 20, 24 << 20];

/// For each size.
const FIT: Effort = Effort { seconds: 0.6, race: false };

/// Measured calls, by size.
#[derive(Default)]
pub struct Runs {
    /// Those that the model was fitted to.
    pub fitted: Vec<Run>,
    /// Those that only check it.
    pub checks: Vec<Run>,
}

/// Times some allreduces, in this share of the time that is left, and fits the model to a part of them.
pub fn fit(bench: &mut Bench, predictor: &mut Predictor, share: f64) -> Result<Runs> {
    let Some(place) = Place::of(Collective::AllReduce, &bench.layout) else { return Ok(Runs::default()) };
    let hierarchical = bench.layout.groups.len() > 1 && bench.layout.groups.len() < bench.job.size;
    let choice = |name: &str| {
        let algorithm = Algorithm::by_name(Collective::AllReduce, name).expect("it is built in");
        tune::forced(&bench.layout, algorithm)
    };
    let known = [choice("direct"), choice("ring"), choice("recursive_doubling")];
    let mut unknown = vec![choice("halving_doubling")];
    if hierarchical {
        unknown.extend([choice("hier_2d"), choice("hier_leader")]);
    }
    let all: Vec<Choice> = known.iter().chain(&unknown).copied().collect();
    let mut runs = Runs::default();
    let mut sizes = [&FITTED[..], &CHECKED].concat();
    sizes.sort_unstable();
    let whole = bench.left()?;
    bench.progress(format_args!("calls that the machine's numbers are fitted to"));
    for bytes in sizes {
        if bytes > bench.what(Collective::AllReduce, usize::MAX).1 as usize {
            continue;
        }
        if bench.left()? < (1.0 - share) * whole {
            bench.say(format_args!("# {bytes} bytes and more left out: this took too long"));
            break;
        }
        let (_, exact) = bench.what(Collective::AllReduce, bytes);
        // In another state it is another machine.
        if !bench.settle()? {
            bench.say(format_args!("# {bytes} bytes left out: the machine's cores have moved"));
            continue;
        }
        let times = bench.compare(Collective::AllReduce, bytes, &all, FIT)?;
        if !bench.settle()? {
            continue;
        }
        for (choice, ns) in all.iter().zip(times) {
            let run = Run::measured(place, exact, *choice, ns);
            let fits = FITTED.contains(&bytes) && known.contains(choice);
            if fits { &mut runs.fitted } else { &mut runs.checks }.push(run);
        }
    }
    bench.progress(format_args!("nothing, but fitting"));
    if bench.rank() == 0 {
        predictor.fit(&mut runs.fitted)?;
        for r in &mut runs.checks {
            r.predicted = predictor.ns(&r.choice, r.bytes)?;
        }
    }
    bench.job.comm.barrier()?;
    Ok(runs)
}

/// A prediction may be off by so many times: what nine of ten runs keep to, of those that the model does not know.
pub fn uncertainty(runs: &Runs) -> f64 {
    let mut off: Vec<f64> = runs.checks.iter().map(|r| (r.predicted / r.measured).ln().abs().exp()).collect();
    off.sort_by(f64::total_cmp);
    off.get(off.len() * 9 / 10).copied().unwrap_or(1.5).clamp(1.1, 4.0)
}
