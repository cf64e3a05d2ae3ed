//! Reduction kernels in cache: bytes read and written per second.
//! `GRACCL_SIMD` chooses the instruction set.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graccl::reduce::Wire;
use graccl::{DataType, RedOp, reduce};

const TYPES: [DataType; 6] =
    [DataType::F32, DataType::Bf16, DataType::F16, DataType::I32, DataType::F8E4M3, DataType::F8E5M2];
const SIZES: [usize; 3] = [4 << 10, 64 << 10, 1 << 20];

/// `n` buffers that do not share their position in a page, aligned to a cache line.
fn buffers(n: usize, bytes: usize) -> (Vec<Vec<u8>>, Vec<*mut u8>) {
    let mut bufs: Vec<Vec<u8>> = (0..n).map(|_| vec![0x3c; bytes + 8192]).collect();
    let at = |i: usize, p: *mut u8| p.wrapping_add(p.align_offset(4096) + i % 8 * 320);
    let ptrs = bufs.iter_mut().enumerate().map(|(i, b)| at(i, b.as_mut_ptr())).collect();
    (bufs, ptrs)
}

/// Kernels of a type.
type Kernels = fn(DataType, RedOp) -> reduce::Kernel;

fn sums(c: &mut Criterion) {
    let (all, pairs): (Kernels, Kernels) = (reduce::kernel, reduce::kernel_pairs);
    for (name, kernels, nsrc, ndst) in [
        ("sum", all, 2, 1),
        ("sum", all, 2, 2),
        ("sum", all, 8, 1),
        ("pairs", pairs, 4, 1),
        ("pairs", pairs, 8, 1),
    ] {
        let mut g = c.benchmark_group(format!("{name} {nsrc}->{ndst} {}", reduce::level()));
        for t in TYPES {
            let kernel = kernels(t, RedOp::Sum);
            for bytes in SIZES {
                let (_bufs, p) = buffers(nsrc + ndst, bytes);
                let srcs: Vec<*const u8> = p[..nsrc].iter().map(|p| p.cast_const()).collect();
                g.throughput(Throughput::Bytes(((nsrc + ndst) * bytes) as u64));
                g.bench_function(BenchmarkId::new(t.name(), bytes), |b| {
                    // SAFETY: every buffer has `bytes` bytes, and they are disjoint.
                    b.iter(|| unsafe {
                        kernel(p[nsrc..].as_ptr(), ndst, srcs.as_ptr(), nsrc, bytes / t.size(), 0, false)
                    })
                });
            }
        }
        g.finish();
    }
}

fn copies(c: &mut Criterion) {
    let mut g = c.benchmark_group(format!("copy {}", reduce::level()));
    for (name, nt) in [("plain", false), ("nt", true)] {
        for bytes in SIZES {
            let (_bufs, p) = buffers(2, bytes);
            g.throughput(Throughput::Bytes(2 * bytes as u64));
            g.bench_function(BenchmarkId::new(name, bytes), |b| {
                // SAFETY: both buffers have `bytes` bytes, and they are disjoint.
                b.iter(|| unsafe { reduce::copy(p[1], p[0], bytes, nt) })
            });
        }
    }
    g.finish();
}

fn conversions(c: &mut Criterion) {
    let mut g = c.benchmark_group(format!("wire {}", reduce::level()));
    for wire in Wire::ALL {
        for bytes in SIZES {
            let (_bufs, p) = buffers(3, bytes);
            let len = bytes / 4;
            g.throughput(Throughput::Bytes(bytes as u64));
            for (name, residual) in [("encode", None), ("encode with residual", Some(p[2].cast()))] {
                let name = format!("{name} {}", wire.name());
                g.bench_function(BenchmarkId::new(name, bytes), |b| {
                    // SAFETY: all buffers have room for `len` elements of 4 bytes, and they are disjoint.
                    b.iter(|| unsafe { wire.encode(p[1], p[0].cast(), len, residual) })
                });
            }
            g.bench_function(BenchmarkId::new(format!("decode {}", wire.name()), bytes), |b| {
                // SAFETY: as above.
                b.iter(|| unsafe { wire.decode(p[0].cast(), p[1], len) })
            });
        }
    }
    g.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(200))
        .measurement_time(std::time::Duration::from_millis(500));
    targets = sums, copies, conversions
}
criterion_main!(benches);
