//! Data-parallel training over graccl.

pub mod input;
pub mod search;
