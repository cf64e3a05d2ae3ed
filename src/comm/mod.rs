//! The communicator: what an application holds.

mod config;

pub use config::{Config, TransportChoice};

use crate::bootstrap::UniqueId;
use crate::{DataType, Error, RedOp, Result};

/// How a call will be carried out: shown by `graccl perf`, and part of error texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanInfo {
    /// Name of the algorithm, one of [`crate::schedule::algorithms`].
    pub algorithm: &'static str,
    /// "shm", "tcp" or "shm+tcp"; "self" with one rank.
    pub transport: &'static str,
    /// Tiles that the buffer is cut into.
    pub tiles: u32,
    /// Tiles that are worked on at a time.
    pub ways: u32,
}

/// A group of ranks that reduce together.
///
/// All ranks must make the same collective calls in the same order. A communicator may be shared
/// between threads; calls on it are carried out one after the other.
pub struct Communicator {
    rank: usize,
    size: usize,
}

impl Communicator {
    /// Joins the communicator that `id` names, as `rank` of `size`. Collective: returns when all
    /// ranks have joined, or with an error that names the missing ones after
    /// [`Config::init_timeout`].
    pub fn init_rank(id: &UniqueId, rank: usize, size: usize, config: &Config) -> Result<Communicator> {
        let _ = (id, config);
        if size != 1 {
            return Err(Error::internal("not built yet"));
        }
        Ok(Communicator { rank, size })
    }

    /// Joins as the launcher's environment says (torchrun, Slurm, Open MPI, MPICH, `graccl run`).
    pub fn init_env(config: &Config) -> Result<Communicator> {
        let _ = config;
        Ok(Communicator { rank: 0, size: 1 })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Host number (0, 1, ... in order of first rank) of every rank.
    pub fn hosts(&self) -> &[u32] {
        &[0]
    }

    /// Reduces `count` elements of every rank's `send` into every rank's `recv`. In place when both
    /// are equal; other overlaps are refused. Blocks until this rank's result is complete.
    ///
    /// Errors: `InvalidArgument` (null, overlap, size overflow), `InvalidUsage` (ranks disagree),
    /// `RemoteError` (a rank died), `Timeout`, `Aborted`. After an error other than
    /// `InvalidArgument` the communicator is unusable and `recv` undefined.
    ///
    /// # Safety
    /// `send` is readable and `recv` writable for `count * dtype.size()` bytes, and no other thread
    /// touches them during the call.
    pub unsafe fn all_reduce_raw(
        &self,
        send: *const u8,
        recv: *mut u8,
        count: usize,
        dtype: DataType,
        op: RedOp,
    ) -> Result<()> {
        let _ = op;
        if send != recv {
            unsafe { std::ptr::copy_nonoverlapping(send, recv, count * dtype.size()) };
        }
        Ok(())
    }

    /// How an all_reduce of this shape will be carried out. Not collective, but all ranks answer
    /// the same.
    pub fn plan_all_reduce(&self, count: usize, dtype: DataType, in_place: bool) -> Result<PlanInfo> {
        let _ = (count, dtype, in_place);
        Ok(PlanInfo { algorithm: "copy", transport: "self", tiles: 1, ways: 1 })
    }

    /// Waits until all ranks have called it.
    pub fn barrier(&self) -> Result<()> {
        Ok(())
    }

    /// Fails the calls under way and all later ones, here and on the other ranks. Callable from any
    /// thread at any time.
    pub fn abort(&self) {}
}
