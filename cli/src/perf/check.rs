//! What the buffers of a call hold before it, what they must hold after it, and what differs.

use std::time::Duration;

use graccl::{Communicator, DataType, Result};

use super::buffer::{Buffer, Buffers, POISON};
use super::data::{Pattern, Problem, show_element};
use super::job::Job;
use super::operation::{Placement, What};

/// What a block of memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// What nobody may write, or must have written over.
    Poison,
    /// This rank's contribution to a block.
    Input(usize),
    /// A block of the result.
    Result(usize),
}

/// One buffer, before and after: a content for each block's place.
struct Sheet {
    before: Vec<Content>,
    after: Vec<Content>,
}

/// The data of one check on one rank.
pub struct Exam {
    rank: usize,
    what: What,
    /// None in place.
    send: Option<Sheet>,
    recv: Sheet,
    input: Pattern,
    result: Pattern,
    poison: Pattern,
}

impl Exam {
    pub fn new(problem: &Problem, what: What, rank: usize, place: Placement) -> Exam {
        let (o, n) = (what.operation, problem.ranks);
        let (sent, got) = (o.sent(n, what.root, rank), o.received(n, what.root, rank));
        let (send, recv) =
            sheets(&sent, &got, (place == Placement::InPlace).then_some((o.starts(rank), o.widest(n))));
        let elements = what.count * o.blocks(n);
        // A rank that gets nothing needs no result.
        let folded = o.folded(n, rank).max(1);
        let (input, result) = match o.reduces() {
            true => (problem.input(rank, elements), problem.folded(folded, elements)),
            false => (problem.bits(elements), problem.bits(elements)),
        };
        Exam { rank, what, send, recv, input, result, poison: Pattern::plain(POISON, what.dtype) }
    }

    /// Pattern and first element of a content.
    fn pattern(&self, content: Content) -> (&Pattern, usize) {
        match content {
            Content::Poison => (&self.poison, 0),
            Content::Input(block) => (&self.input, block * self.what.count),
            Content::Result(block) => (&self.result, block * self.what.count),
        }
    }

    fn fill(&self, buffer: &mut Buffer, contents: &[Content]) {
        let block = self.what.block();
        for (i, &content) in contents.iter().enumerate() {
            let (pattern, from) = self.pattern(content);
            pattern.fill_from(from, buffer.slice_mut(i * block..(i + 1) * block));
        }
        buffer.set_guard(contents.len() * block);
    }

    /// Fills the buffers, guards and all.
    pub fn prepare(&self, buffers: &mut Buffers) {
        if let Some(send) = &self.send {
            self.fill(&mut buffers.send, &send.before);
        }
        self.fill(&mut buffers.recv, &self.recv.before);
    }

    /// Elements that are not what they must be after the call, and guard bytes. Says on stderr what differs.
    pub fn wrong(&self, buffers: &Buffers) -> usize {
        let send = self.send.as_ref().map_or(0, |s| self.compare("send", &buffers.send, &s.after));
        send + self.compare("receive", &buffers.recv, &self.recv.after)
    }

    fn compare(&self, name: &str, buffer: &Buffer, contents: &[Content]) -> usize {
        let (block, size, rank) = (self.what.block(), self.what.dtype.size(), self.rank);
        let bytes = contents.len() * block;
        let mut wrong = 0;
        for (i, &content) in contents.iter().enumerate() {
            let (pattern, from) = self.pattern(content);
            let part = buffer.slice(i * block..(i + 1) * block);
            let found = pattern.compare_from(from, part);
            wrong += found.count;
            if let Some(first) = found.first {
                let what = match content {
                    Content::Result(_) => "wrong result",
                    Content::Input(_) if self.send.is_some() => "send buffer changed",
                    Content::Input(_) => "input changed that is no result",
                    Content::Poison => "written where no result belongs",
                };
                eprintln!(
                    "graccl perf: rank {rank}: {what}: {} of {} elements of block {i}, the first is {first}: {} instead of {} ({}, {bytes} bytes)",
                    found.count,
                    self.what.count,
                    show_element(&part[first * size..(first + 1) * size]),
                    pattern.show(from + first),
                    self.what.dtype.name(),
                );
            }
        }
        let guard = buffer.broken_guard(bytes);
        if guard > 0 {
            eprintln!(
                "graccl perf: rank {rank}: {guard} bytes written behind the end of a {name} buffer of {bytes} bytes"
            );
        }
        wrong + guard
    }
}

/// The send buffer's sheet, unless all is in place, and the receive buffer's. In place, buffers begin at
/// places of one with so many blocks.
fn sheets(
    sent: &[usize],
    got: &[usize],
    in_place: Option<((usize, usize), usize)>,
) -> (Option<Sheet>, Sheet) {
    let inputs = || sent.iter().map(|&b| Content::Input(b));
    let results = || got.iter().map(|&b| Content::Result(b));
    let Some(((send_start, recv_start), blocks)) = in_place else {
        let send = Sheet { before: inputs().collect(), after: inputs().collect() };
        let recv = Sheet { before: vec![Content::Poison; got.len()], after: results().collect() };
        return (Some(send), recv);
    };
    let mut before = vec![Content::Poison; blocks];
    before.iter_mut().skip(send_start).zip(inputs()).for_each(|(at, input)| *at = input);
    let mut after = before.clone();
    after.iter_mut().skip(recv_start).zip(results()).for_each(|(at, result)| *at = result);
    (None, Sheet { before, after })
}

/// How long a rank waits for the others to do what they must not do yet.
const PATIENCE: Duration = Duration::from_millis(5);

/// Ranks that left a barrier before the last one entered it. Every rank is the last one once: it learns from
/// messages that the others are there, waits, and sees whether messages come that are sent behind the
/// barrier. One that is there is a proof, whatever the clocks say; on a slow machine one may be missed.
pub fn early(job: &Job, comm: &Communicator) -> Result<usize> {
    let mut early = 0;
    for last in 0..job.size {
        let others = (0..job.size).filter(|&r| r != last);
        let mut bytes = vec![[0u8; 2]; job.size];
        if job.rank != last {
            // SAFETY: the bytes outlive the calls, which return when they are over.
            unsafe {
                comm.send_raw(bytes[last].as_ptr(), 1, DataType::U8, last)?;
                comm.barrier()?;
                comm.send_raw(bytes[last].as_ptr(), 1, DataType::U8, last)?;
            }
            continue;
        }
        let mut coming = Vec::new();
        for r in others {
            let [there, behind] = &mut bytes[r];
            // SAFETY: as above. After an error nothing more is received: the communicator has failed.
            unsafe {
                comm.recv_raw(there, 1, DataType::U8, r)?;
                coming.push(comm.start_recv(behind, 1, DataType::U8, r)?);
            }
        }
        std::thread::sleep(PATIENCE);
        for request in &coming {
            early += usize::from(request.test()?);
        }
        comm.barrier()?;
        coming.iter().try_for_each(|request| request.wait())?;
    }
    if early > 0 {
        eprintln!(
            "graccl perf: rank {}: {early} ranks came out of a barrier before this one went in",
            job.rank
        );
    }
    Ok(early)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use graccl::RedOp;

    use super::super::args::Memory;
    use super::super::buffer::GUARD;
    use super::super::operation::Operation;
    use super::*;

    const COUNT: usize = 5;

    /// Every operation on up to 4 ranks, every root, rank and placement.
    fn exams() -> impl Iterator<Item = (Exam, usize)> {
        let mut all = Vec::new();
        for &operation in Operation::value_variants() {
            for n in 1..=4 {
                for (root, rank) in (0..n).flat_map(|root| (0..n).map(move |rank| (root, rank))) {
                    for &place in operation.placements() {
                        let (dtype, op) = (DataType::F32, RedOp::Sum);
                        let what = What { operation, count: COUNT, dtype, op, root };
                        let problem = Problem { dtype, op, ranks: n, seed: 9 };
                        all.push((Exam::new(&problem, what, rank, place), n));
                    }
                }
            }
        }
        all.into_iter()
    }

    /// The buffers as a faultless call leaves them.
    fn right(exam: &Exam, n: usize) -> Buffers {
        let mut buffers = Buffers::new(exam.what.bytes(n), Memory::Host).unwrap();
        exam.prepare(&mut buffers);
        if let Some(send) = &exam.send {
            exam.fill(&mut buffers.send, &send.after);
        }
        exam.fill(&mut buffers.recv, &exam.recv.after);
        assert_eq!(exam.wrong(&buffers), 0);
        buffers
    }

    #[test]
    fn no_byte_changes_unseen() {
        for (exam, n) in exams() {
            let mut buffers = right(&exam, n);
            let (sent, got) = (exam.send.as_ref().map_or(0, |s| s.after.len()), exam.recv.after.len());
            let mut flip = |send: bool, at: usize| {
                let buffer = if send { &mut buffers.send } else { &mut buffers.recv };
                buffer.slice_mut(at..at + 1)[0] ^= 0x10;
                assert_eq!(exam.wrong(&buffers), 1, "{:?} {at}", exam.what);
                let buffer = if send { &mut buffers.send } else { &mut buffers.recv };
                buffer.slice_mut(at..at + 1)[0] ^= 0x10;
            };
            let block = exam.what.block();
            let places =
                |blocks: usize| (0..blocks * block).chain([blocks * block, blocks * block + GUARD - 1]);
            places(got).for_each(|at| flip(false, at));
            if exam.send.is_some() {
                places(sent).for_each(|at| flip(true, at));
            }
        }
    }

    #[test]
    fn a_call_that_does_nothing_is_seen() {
        for (exam, n) in exams() {
            let mut buffers = Buffers::new(exam.what.bytes(n), Memory::Host).unwrap();
            exam.prepare(&mut buffers);
            let operation = exam.what.operation;
            let due = |i: usize| match (exam.recv.before[i], exam.recv.after[i]) {
                (Content::Poison, Content::Result(_)) => true,
                // A block that stays where it is, or the fold of this rank's own contribution alone.
                (Content::Input(_), Content::Result(_)) => {
                    let own = exam.rank == 0 && operation.folded(n, 0) == 1;
                    operation.reduces() && !own
                }
                _ => false,
            };
            let due = (0..exam.recv.after.len()).filter(|&i| due(i)).count() * COUNT;
            assert_eq!(exam.wrong(&buffers), due, "{:?} rank {} of {n}", exam.what, exam.rank);
        }
    }

    #[test]
    fn in_place_the_rest_of_the_buffer_stays() {
        use Content::*;
        // reduce_scatter on rank 1 of 3.
        let (send, recv) = sheets(&[0, 1, 2], &[1], Some(((0, 1), 3)));
        assert!(send.is_none());
        assert_eq!(recv.before, [Input(0), Input(1), Input(2)]);
        assert_eq!(recv.after, [Input(0), Result(1), Input(2)]);
        // gather on rank 2 of 3, which is not the root.
        let (_, recv) = sheets(&[2], &[], Some(((2, 0), 3)));
        assert_eq!(recv.before, [Poison, Poison, Input(2)]);
        assert_eq!(recv.after, recv.before);
        // all_gather on rank 0 of 2, apart.
        let (send, recv) = sheets(&[0], &[0, 1], None);
        assert_eq!(send.unwrap().after, [Input(0)]);
        assert_eq!((recv.before, recv.after), (vec![Poison; 2], vec![Result(0), Result(1)]));
    }
}
