//! Schedules: collectives as plain data. No I/O and no `unsafe` in here.
//!
//! [`algorithms`] lists what there is; [`Algorithm::program`] builds one rank's [`Program`] with the
//! builder (`build`) out of stages (`stages`, `compose`). [`verify()`] proves all ranks' programs
//! together, [`picture`] and [`goal`] show them.
//!
//! All operands of an op are the same chunks, `Op::at` and `Op::len`, whether they are memory or messages.

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

pub use algorithm::{Algorithm, Groups, algorithms, algorithms_of};
pub use collective::Collective;
pub use op::{Arg, ArgKind, Lane, Op, Program};
pub use print::{describe, goal, picture, step};
pub use shape::cut;
pub use verify::{
    Claims, Fault, FaultKind, Proof, Summary, cases, check, groupings, is_canonical, live_at, prove, verify,
    verify_all, verify_up_to,
};
