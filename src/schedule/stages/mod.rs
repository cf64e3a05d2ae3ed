//! Stages: what algorithms are composed of. One file per family.
//!
//! A stage works on the members and parts of the builder's scope. After a reduce_scatter, member `i`
//! holds the reduced part `i`; there may be fewer parts than members, and members beyond the parts
//! then own nothing but take part all the same.

pub(super) mod chain;
pub(super) mod direct;
pub(super) mod doubling;
pub(super) mod ring;
pub(super) mod tree;
