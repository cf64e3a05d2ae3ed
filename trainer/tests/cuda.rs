//! With the feature `cuda`: what it says where there is no GPU. The other tests then compute on the GPU.

#![cfg(feature = "cuda")]

mod common;

use std::process::Command;

use common::{images, text};

#[test]
fn no_gpu_is_an_error_that_says_so() {
    let data = images("no-gpu");
    let flags = "--model alexnet --width 4 --batch 32";
    for (command, np) in [("", "1"), ("", "2"), ("search", "2")] {
        let mut c = Command::new(env!("CARGO_BIN_EXE_graccl-train"));
        c.args(command.split_whitespace()).args(flags.split(' ')).args(["--np", np]).arg("--data").arg(&data);
        // Hides them from the driver, where there is one.
        let o = c.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
        let said = text(&o);
        assert_eq!(o.status.code(), Some(1), "{said}");
        assert!(said.contains("computes on an NVIDIA GPU, and finds none"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
