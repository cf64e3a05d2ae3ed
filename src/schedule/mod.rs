//! Schedules: collectives as plain data. No I/O and no `unsafe` in here.

mod algorithm;
mod build;
mod compose;
mod op;
mod shape;
mod stages;

pub use algorithm::{Algorithm, Groups, algorithms};
pub use op::{Arg, ArgKind, Lane, Op, Program};
pub use shape::cut;
