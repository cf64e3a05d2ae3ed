//! graccl: GRAdient Collective Communication Library.
//!
//! A collective is a *schedule*: plain data that says, rank by rank, what is read, folded and
//! written. [`schedule`] builds, proves and prints schedules; [`exec`] runs them over the links of
//! [`transport`], with the kernels of [`reduce`]; [`comm`] is what an application holds; [`capi`]
//! is the same for C. [`plan`] finds which gradients to send together. [`record`] lets others see what a process waits for. Imports point downwards only, in this order:
//!
//! ```text
//! capi -> comm -> tune, plan, exec -> sim -> cost, schedule, transport, reduce, memory, bootstrap, record -> types, error, log
//! ```
//!
//! `docs/design.md` explains why.

pub mod bootstrap;
pub mod capi;
pub mod comm;
pub mod cost;
pub mod error;
pub mod exec;
pub mod log;
pub mod memory;
pub mod plan;
pub mod record;
pub mod reduce;
pub mod schedule;
pub mod sim;
pub mod transport;
pub mod tune;
pub mod types;

pub use error::{Code, Error, Result};
pub use types::{DataType, Element, Factor, RedOp, Reduction};

pub use bootstrap::UniqueId;
pub use comm::{
    Call, Communicator, Config, Counts, Extent, Request, TransportChoice, group_end, group_start,
};
pub use schedule::Collective;
