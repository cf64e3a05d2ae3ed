//! Data-parallel training of AlexNet and ResNet-50 over graccl.

pub mod model;
pub mod optim;
pub mod random;
