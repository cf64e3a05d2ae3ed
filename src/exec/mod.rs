//! The one executor: runs a rank's program over links, in place of any algorithm's own code.
//!
//! A program is bound once to links and to a shape ([`Bound`], [`Tiling`]); a call then only walks
//! it. The [`Engine`] never blocks by itself: a lane advances or says what it waits for, and
//! between two fruitless passes the caller's [`Idle`] decides whether to spin, yield, park, fail or
//! leave the rest for later.

mod bind;
mod engine;
mod tiling;
#[cfg(test)]
mod tiling_tests;

pub use bind::{Bound, Packs};
pub use engine::{Blocked, Engine, Idle, Launch, Pack, Pause, Progress, Ran};
pub use tiling::{BlockSpan, Tiling};
