//! Groups of calls.

use super::{NO_COMM, ResultInt, entry};
use crate::{group_end, group_start};

/// Begins a group: the graccl calls of this thread up to graccl_group_end are collected and carried out
/// together, as if each ran in a thread of its own. So one thread can make the calls of several ranks
/// (see graccl_comm_init_all), or sends and receives that wait for each other.
///
/// Collective calls and sends and receives return at once in a group. Wrong arguments are refused at
/// once, too, and such a call is not part of the group. Results, and buffers, are there when
/// graccl_group_end has returned. Non-blocking calls give their requests at once; these start at the
/// end of the group, so wait for them after it. Count arrays of calls are read at once.
///
/// Communicators may be made in a group, also from others by graccl_comm_split and graccl_comm_dup: they are
/// ready when graccl_group_end has returned, and destroyed or aborted but not otherwise used before.
/// graccl_comm_shrink is not for groups.
///
/// Calls on one communicator keep their order. Groups nest: only the outermost end counts.
///
/// @return GRACCL_SUCCESS.
///
/// Thread-safety: each thread has groups of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_group_start() -> ResultInt {
    entry!(graccl_group_start on NO_COMM, not_null [], { group_start() })
}

/// Ends a group: carries out its calls, and waits until the blocking ones are complete.
///
/// @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (there is no group to end); the first error of any call
///         of the group, as the call itself would return it.
///
/// Thread-safety: ends the group that this thread began.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_group_end() -> ResultInt {
    entry!(graccl_group_end on NO_COMM, not_null [], { group_end() })
}
