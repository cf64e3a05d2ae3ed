//! Data-parallel training of AlexNet and ResNet-50 over graccl.

pub mod checkpoint;
pub mod data;
pub mod launch;
pub mod model;
pub mod optim;
pub mod random;
pub mod trainer;
