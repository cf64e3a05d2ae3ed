//! Data-parallel training of AlexNet and ResNet-50 over graccl.
//!
//! `input` makes batches, `model` says what is computed, `trainer` does a step on all ranks, `optim` changes the
//! weights, `state` and `checkpoint` keep them, `search` looks for good settings.

pub mod checkpoint;
pub mod device;
pub mod input;
pub mod launch;
pub mod model;
pub mod optim;
pub mod random;
pub mod search;
pub mod state;
pub mod trainer;
