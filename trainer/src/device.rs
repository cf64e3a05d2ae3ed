//! What a rank computes on.

use burn::tensor::Device;
use graccl::{Communicator, Result};

/// The CPU; with the feature `cuda` a GPU, which ranks on one host take in turns.
///
/// # Errors
/// With the feature `cuda`: there is no driver or no GPU.
pub fn of_rank(comm: &Communicator) -> Result<Device> {
    #[cfg(feature = "cuda")]
    let device = gpu(comm);
    #[cfg(not(feature = "cuda"))]
    let (_, device) = (comm, Ok(Device::flex()));
    device
}

#[cfg(feature = "cuda")]
fn gpu(comm: &Communicator) -> Result<Device> {
    // Looks for the driver's library first: none where there is none, where anything else of burn would panic.
    let gpus = Device::enumerate(burn::tensor::DeviceType::Cuda);
    let (hosts, rank) = (comm.hosts(), comm.rank());
    if gpus.is_empty() {
        return Err(graccl::Error::usage("this program computes on an NVIDIA GPU, and finds none, or no driver of one")
            .who(format!("rank {rank}"))
            .hint("look at nvidia-smi and CUDA_VISIBLE_DEVICES; built without the feature cuda it computes on the CPU"));
    }
    let before = hosts[..rank].iter().filter(|&&h| h == hosts[rank]).count();
    Ok(gpus[before % gpus.len()].clone())
}
