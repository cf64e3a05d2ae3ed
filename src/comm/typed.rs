//! Collectives of slices: the lengths are checked, and the borrow checker keeps everybody else away.

use super::{Call, Communicator, group};
use crate::{Collective, Element, Error, RedOp, Reduction, Result};

impl Communicator {
    /// Reduces every rank's `data` in place: see [`Communicator::call`] for the errors.
    ///
    /// ```
    /// use graccl::{Communicator, Config, RedOp};
    /// let comm = Communicator::init_env(&Config::from_env()?)?; // a job of one rank, without a launcher
    /// let mut gradient = [1.0f32, 2.0];
    /// comm.all_reduce(&mut gradient, RedOp::Sum)?;
    /// assert_eq!(gradient, [1.0 * comm.size() as f32, 2.0 * comm.size() as f32]);
    /// # Ok::<(), graccl::Error>(())
    /// ```
    pub fn all_reduce<T: Element>(&self, data: &mut [T], op: impl Into<Reduction>) -> Result<()> {
        let p = data.as_mut_ptr().cast::<u8>();
        // SAFETY: the slice is ours for the call, and every bit pattern is a value of an element type.
        unsafe { self.outside_group(&Call::new(Collective::AllReduce, p, p, data.len(), T::DTYPE, op)) }
    }

    /// Reduces every rank's `send` into `recv`, of the same length.
    pub fn all_reduce_into<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        op: impl Into<Reduction>,
    ) -> Result<()> {
        same_length(send.len(), recv.len(), 1)?;
        self.typed(Collective::AllReduce, 0, send, recv, send.len(), op.into())
    }

    /// Reduces every rank's `send`, of `size()` blocks of `recv.len()`; block `i` gets to rank `i`.
    pub fn reduce_scatter<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        op: impl Into<Reduction>,
    ) -> Result<()> {
        same_length(send.len(), recv.len(), self.size())?;
        self.typed(Collective::ReduceScatter, 0, send, recv, recv.len(), op.into())
    }

    /// Gathers every rank's `send` in rank order into every rank's `recv`.
    pub fn all_gather<T: Element>(&self, send: &[T], recv: &mut [T]) -> Result<()> {
        same_length(recv.len(), send.len(), self.size())?;
        self.typed(Collective::AllGather, 0, send, recv, send.len(), RedOp::Sum.into())
    }

    /// Gives the root's `data` to all ranks.
    pub fn broadcast<T: Element>(&self, data: &mut [T], root: usize) -> Result<()> {
        let p = data.as_mut_ptr().cast::<u8>();
        let call = Call::moving(Collective::Broadcast, p, p, data.len(), T::DTYPE).root(root);
        // SAFETY: as in `all_reduce`.
        unsafe { self.outside_group(&call) }
    }

    /// Reduces every rank's `send` into the root's `recv`, which is empty on the other ranks.
    pub fn reduce<T: Element>(
        &self,
        send: &[T],
        recv: &mut [T],
        op: impl Into<Reduction>,
        root: usize,
    ) -> Result<()> {
        if self.rank() == root {
            same_length(send.len(), recv.len(), 1)?;
        }
        self.typed(Collective::Reduce, root, send, recv, send.len(), op.into())
    }

    /// Gathers every rank's `send` in rank order into the root's `recv`, which is empty on the other ranks.
    pub fn gather<T: Element>(&self, send: &[T], recv: &mut [T], root: usize) -> Result<()> {
        if self.rank() == root {
            same_length(recv.len(), send.len(), self.size())?;
        }
        self.typed(Collective::Gather, root, send, recv, send.len(), RedOp::Sum.into())
    }

    /// Gives block `i` of the root's `send` to rank `i`; `send` is empty on the other ranks.
    pub fn scatter<T: Element>(&self, send: &[T], recv: &mut [T], root: usize) -> Result<()> {
        if self.rank() == root {
            same_length(send.len(), recv.len(), self.size())?;
        }
        self.typed(Collective::Scatter, root, send, recv, recv.len(), RedOp::Sum.into())
    }

    /// Gives block `i` of `send` to rank `i`; block `j` of `recv` is what rank `j` gave to this one.
    pub fn all_to_all<T: Element>(&self, send: &[T], recv: &mut [T]) -> Result<()> {
        same_length(send.len(), recv.len(), 1)?;
        let count = send.len() / self.size().max(1);
        same_length(send.len(), count, self.size())?;
        self.typed(Collective::AllToAll, 0, send, recv, count, RedOp::Sum.into())
    }

    fn typed<T: Element>(
        &self,
        collective: Collective,
        root: usize,
        send: &[T],
        recv: &mut [T],
        count: usize,
        op: Reduction,
    ) -> Result<()> {
        let (from, to) = (send.as_ptr().cast(), recv.as_mut_ptr().cast());
        let call = Call::new(collective, from, to, count, T::DTYPE, op).root(root);
        // SAFETY: as in `all_reduce`; the borrow checker keeps the two apart, and their lengths are checked.
        unsafe { self.outside_group(&call) }
    }

    /// # Safety
    /// As `call`.
    #[inline]
    unsafe fn outside_group(&self, call: &Call) -> Result<()> {
        if group::active() {
            return Err(Error::usage("this form cannot be used in a group: it would outlive its borrow")
                .hint("use Communicator::call, which is unsafe, or wait outside of the group"));
        }
        // SAFETY: the caller's promise.
        unsafe { self.call(call) }
    }
}

fn same_length(long: usize, short: usize, times: usize) -> Result<()> {
    if Some(long) == short.checked_mul(times) {
        return Ok(());
    }
    Err(Error::argument(format!("buffers of {long} and {short} elements do not fit together")).hint(
        if times > 1 { "one has the other's length for each rank" } else { "both have the same length" },
    ))
}
