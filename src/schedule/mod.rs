//! Schedules: collectives as plain data. No I/O and no `unsafe` in here.
//!
//! [`algorithms`] lists what there is; [`Algorithm::program`] builds one rank's [`Program`] with the
//! builder (`build`) out of stages (`stages`, `compose`). [`verify()`] proves all ranks' programs
//! together, [`picture`] and [`goal`] show them.
//!
//! Every op of a proved schedule has a local operand, and all its local operands start at the same
//! chunk, [`first_chunk`]: that and `Op::len` tell the bytes of all its operands.

mod algorithm;
mod build;
mod collective;
mod compose;
mod net;
mod op;
mod play;
mod print;
mod shape;
mod stages;
mod verify;

pub use algorithm::{Algorithm, Groups, algorithms};
pub use collective::Collective;
pub use op::{Arg, ArgKind, Lane, Op, Program};
pub use print::{describe, first_chunk, goal, picture, step};
pub use shape::cut;
pub use verify::{
    Claims, Fault, FaultKind, Proof, Summary, check, groupings, live_at, verify, verify_all, verify_up_to,
};
