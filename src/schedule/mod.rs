//! Schedules: collectives as plain data. No I/O and no `unsafe` in here.

mod op;
mod shape;

pub use op::{Arg, ArgKind, Lane, Op, Program};
pub use shape::cut;
