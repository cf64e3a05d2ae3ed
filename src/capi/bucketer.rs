//! Gradient buckets.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::offset_of;
use std::ptr;

use super::config::UNSET;
use super::types::{DataTypeInt, data_type};
use super::{NO_COMM, ResultInt, entry, graccl_bucketer_t, graccl_comm_t, handle};
use crate::bucket::{Bucketer, BucketerConfig, Fusion, StepTimes, Tensor};
use crate::reduce::Wire;
use crate::{DataType, Error, Result};

/// One gradient of a graccl_bucketer_t.
#[repr(C)]
pub struct graccl_tensor_t {
    /// For messages; may be NULL. Read during the call only.
    pub name: *const c_char,
    /// Elements.
    pub count: usize,
    /// Type of an element.
    pub data_type: DataTypeInt,
    /// Where the program keeps it, until graccl_bucketer_destroy. NULL: in the bucketer's memory (see
    /// graccl_bucketer_gradient), where nothing has to be copied.
    pub memory: *mut c_void,
}

/// What is put together.
#[repr(C)]
pub enum graccl_fusion_t {
    /// What the planner finds best for the times measured in the first steps.
    GRACCL_FUSION_PLANNED = 0,
    /// A bucket for each tensor.
    GRACCL_FUSION_PER_TENSOR = 1,
    /// One bucket.
    GRACCL_FUSION_ONE_BUCKET = 2,
    /// A bucket is full with threshold bytes.
    GRACCL_FUSION_THRESHOLD = 3,
}

/// Settings of a bucketer, the same on all ranks. Start from GRACCL_BUCKETER_CONFIG_INITIALIZER and set
/// what should differ.
#[repr(C)]
pub struct graccl_bucketer_config_t {
    /// sizeof(graccl_bucketer_config_t), by the initialiser.
    pub size: usize,
    /// 1 (default): results are averages over the ranks; 0: sums.
    pub average: c_int,
    /// GRACCL_FLOAT16, GRACCL_BFLOAT16 or GRACCL_INT8: gradients of type float may travel between hosts in that
    /// type (int8: in blocks of 16 with a common scale), if the planner finds that it pays. They are summed
    /// in float, and what int8 loses is made up for in the next step. GRACCL_UNSET (default): as they are.
    /// With n ranks whose values are at most A (int8: in a block), a sum is off by at most about 2 u n A, where u is
    /// 2^-11 for float16 (of host sums from 6.1e-5 to 65504: larger become infinite) and 2^-8 for bfloat16; for
    /// int8 by 5 u n A with u = 1/127, and its mean over T steps with the same gradients by 6 u n A / T.
    /// Averages: an n-th of that.
    pub wire: c_int,
    /// A graccl_fusion_t; GRACCL_FUSION_PLANNED by default.
    pub fusion: c_int,
    /// 1: the program waits for each tensor (graccl_bucketer_wait) just before it uses it in the next
    /// forward pass, which allows plans that gather results during that pass; 0 (default): it does not.
    pub late: c_int,
    /// Bytes, above 0, for GRACCL_FUSION_THRESHOLD.
    pub threshold: usize,
}

/// What a step took, in seconds of this rank.
#[repr(C)]
pub struct graccl_step_times_t {
    /// From the end of the step before to the end of this one.
    pub step: f64,
    /// While any bucket was under way.
    pub busy: f64,
    /// While the program waited for buckets.
    pub waited: f64,
    /// What the plan foretold for step; 0 while there is no plan of measured times.
    pub predicted: f64,
}

/// The first struct's size.
const FIRST_SIZE: usize = offset_of!(graccl_bucketer_config_t, threshold) + size_of::<usize>();

/// # Safety
/// `config` is null or points to a struct of the size that it says.
unsafe fn settings(config: *const graccl_bucketer_config_t) -> Result<BucketerConfig> {
    let mut out = BucketerConfig::default();
    if config.is_null() {
        return Ok(out);
    }
    // SAFETY: not null, and the caller's promise; the size comes first.
    let size = unsafe { (&raw const (*config).size).read() };
    if !(FIRST_SIZE..=1 << 16).contains(&size) {
        return Err(Error::argument(format!(
            "config.size = {size} is not that of a graccl_bucketer_config_t"
        ))
        .hint("start from GRACCL_BUCKETER_CONFIG_INITIALIZER"));
    }
    // SAFETY: as above: it has all fields.
    let c = unsafe { &*config };
    let switch = |value: c_int, name: &str, default: bool| match value {
        UNSET => Ok(default),
        0 | 1 => Ok(value == 1),
        _ => Err(Error::argument(format!("{name} = {value} is not 0 or 1"))),
    };
    out.average = switch(c.average, "average", true)?;
    out.late = switch(c.late, "late", false)?;
    out.wire = match c.wire {
        UNSET => None,
        other => match data_type(other)? {
            DataType::F16 => Some(Wire::F16),
            DataType::Bf16 => Some(Wire::Bf16),
            DataType::I8 => Some(Wire::Int8),
            other => {
                return Err(Error::argument(format!("wire = {} is no form for messages", other.name()))
                    .hint("pass GRACCL_FLOAT16, GRACCL_BFLOAT16 or GRACCL_INT8, or leave it unset"));
            }
        },
    };
    out.fusion = match c.fusion {
        UNSET | 0 => Fusion::Planned,
        1 => Fusion::PerTensor,
        2 => Fusion::OneBucket,
        3 if c.threshold > 0 => Fusion::Threshold(c.threshold),
        3 => return Err(Error::argument("threshold is 0").hint("give the bytes of a bucket")),
        other => {
            return Err(Error::argument(format!("fusion = {other} is not a graccl_fusion_t"))
                .hint("pass one of the constants of graccl_fusion_t"));
        }
    };
    Ok(out)
}

/// Makes a bucketer: it reduces the gradients of a training step bucket by bucket, while the program
/// computes others.
///
/// In each step: write every gradient and mark it (graccl_bucketer_mark_ready), in any order, then
/// graccl_bucketer_finish_step. The first steps are measured; then the ranks agree on what is put together
/// and when, and look again now and then.
///
/// @param bucketer Where to put it; NULL after an error.
/// @param tensors The gradients, in the order in which the backward pass makes them ready (roughly: the
///        order decides what is put together; all orders work). Read during the call only.
/// @param count How many, at least 1.
/// @param config Settings, or NULL for the defaults. Read during the call only.
/// @param comm The communicator, which must live longer. Other calls on it may be made between steps.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no tensors, unknown types or settings);
///         GRACCL_INVALID_USAGE (destroyed; ranks with other tensors or settings); what graccl_all_reduce
///         returns.
///
/// Collective: all ranks call it with the same tensors and settings; only memory may differ. It may measure
/// for about a second.
///
/// Thread-safety: as graccl_all_reduce.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_create(
    bucketer: *mut *mut graccl_bucketer_t,
    tensors: *const graccl_tensor_t,
    count: usize,
    config: *const graccl_bucketer_config_t,
    comm: *mut graccl_comm_t,
) -> ResultInt {
    entry!(graccl_bucketer_create on comm, not_null [bucketer, tensors], {
        // SAFETY: bucketer is not null, and C's caller says that it can be written.
        unsafe { bucketer.write(ptr::null_mut()) };
        // SAFETY: C's caller says that config is NULL or a config.
        let config = unsafe { settings(config) }?;
        let entry = &*handle::live(comm)?;
        // SAFETY: not null, and C's caller says that there are so many.
        let tensors = unsafe { std::slice::from_raw_parts(tensors, count) };
        let tensors: Vec<Tensor> = tensors.iter().map(|t| {
            let name = match t.name.is_null() {
                true => String::new(),
                // SAFETY: not null, and C's caller says that it is a string.
                false => unsafe { CStr::from_ptr(t.name) }.to_string_lossy().into_owned(),
            };
            Ok(Tensor::new(name, t.count, data_type(t.data_type)?).at(t.memory.cast()))
        }).collect::<Result<_>>()?;
        let vacancy = handle::bucketer_vacancy()?;
        // SAFETY: C's caller says that the memory is there until the bucketer is destroyed, and left alone as
        // the functions below say.
        let made = unsafe { Bucketer::new(&entry.comm, &tensors, config) }?;
        // SAFETY: as at the first write.
        unsafe { bucketer.write(handle::insert_bucketer(vacancy, made)) };
        Ok(())
    })
}

/// Where gradient i is to be written and its result read: its memory, or the bucketer's. It stays there.
///
/// @param bucketer The bucketer.
/// @param i Number of the tensor.
/// @param gradient Where to put the address.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no such tensor); GRACCL_INVALID_USAGE
///         (destroyed).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_gradient(
    bucketer: *mut graccl_bucketer_t,
    i: usize,
    gradient: *mut *mut c_void,
) -> ResultInt {
    entry!(graccl_bucketer_gradient on NO_COMM, not_null [gradient], {
        let address = handle::bucketer(bucketer)?.gradient(i)?;
        // SAFETY: gradient is not null, and C's caller says that it can be written.
        unsafe { gradient.write(address.cast()) };
        Ok(())
    })
}

/// Gradient i is written: from now on it is graccl's until the step is over. Starts what can start, and
/// returns without waiting for other ranks.
///
/// @param bucketer The bucketer.
/// @param i Number of the tensor. Every tensor is marked once in every step.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no such tensor); GRACCL_INVALID_USAGE (marked
///         twice, in a group, destroyed); the failure of a bucket.
///
/// Thread-safety: several threads may mark at the same time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_mark_ready(bucketer: *mut graccl_bucketer_t, i: usize) -> ResultInt {
    entry!(graccl_bucketer_mark_ready on NO_COMM, not_null [], { handle::bucketer(bucketer)?.mark_ready(i) })
}

/// All gradients are marked, but the step is not over: results may be waited for one by one, and the first
/// mark of the next step waits for what is left.
///
/// @param bucketer The bucketer.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (gradients that were not marked, destroyed); the failure
///         of a bucket.
///
/// Thread-safety: one thread, after all marks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_finish_backward(bucketer: *mut graccl_bucketer_t) -> ResultInt {
    entry!(graccl_bucketer_finish_backward on NO_COMM, not_null [], {
        handle::bucketer(bucketer)?.finish_backward()
    })
}

/// Waits until the result of gradient i is there.
///
/// @param bucketer The bucketer.
/// @param i Number of the tensor.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no such tensor); GRACCL_INVALID_USAGE (its bucket
///         waits for gradients that were not marked, destroyed); the bucket's failure.
///
/// Thread-safety: several threads may wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_wait(bucketer: *mut graccl_bucketer_t, i: usize) -> ResultInt {
    entry!(graccl_bucketer_wait on NO_COMM, not_null [], { handle::bucketer(bucketer)?.wait(i) })
}

/// Waits for all results: the step is over, and the gradients are the program's again.
///
/// @param bucketer The bucketer.
/// @param times Where to put what the step took; may be NULL.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (gradients that were not marked, destroyed); the failure
///         of a bucket, after which the bucketer can only be destroyed.
///
/// Collective: in some steps the ranks agree on a new plan.
///
/// Thread-safety: one thread, after all marks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_finish_step(
    bucketer: *mut graccl_bucketer_t,
    times: *mut graccl_step_times_t,
) -> ResultInt {
    entry!(graccl_bucketer_finish_step on NO_COMM, not_null [], {
        let StepTimes { step, busy, waited, predicted } = handle::bucketer(bucketer)?.finish_step()?;
        if !times.is_null() {
            let taken = graccl_step_times_t { step, busy, waited, predicted: predicted.unwrap_or(0.0) };
            // SAFETY: not null, and C's caller says that it can be written.
            unsafe { times.write(taken) };
        }
        Ok(())
    })
}

/// The plan in use, for people: a line for each bucket.
///
/// @param bucketer The bucketer.
/// @param text Where to put it, ended by a 0 and cut where the room ends.
/// @param bytes The room, at least 1.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no room); GRACCL_INVALID_USAGE (destroyed).
///
/// Thread-safety: may be called by any thread at any time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_describe(
    bucketer: *mut graccl_bucketer_t,
    text: *mut c_char,
    bytes: usize,
) -> ResultInt {
    entry!(graccl_bucketer_describe on NO_COMM, not_null [text], {
        if bytes == 0 {
            return Err(Error::argument("bytes is 0"));
        }
        let described = handle::bucketer(bucketer)?.describe();
        let len = described.len().min(bytes - 1);
        // SAFETY: text is not null, and C's caller says that it has so many bytes.
        unsafe {
            ptr::copy_nonoverlapping(described.as_ptr(), text.cast(), len);
            text.add(len).write(0);
        }
        Ok(())
    })
}

/// Ends a bucketer. Buckets under way go on without it; the program's memory is not touched any more.
///
/// @param bucketer The bucketer, invalid from now on. NULL does nothing.
/// @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (destroyed before).
///
/// Thread-safety: may be called by any thread, when no other function uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn graccl_bucketer_destroy(bucketer: *mut graccl_bucketer_t) -> ResultInt {
    entry!(graccl_bucketer_destroy on NO_COMM, not_null [], {
        if !bucketer.is_null() {
            drop(handle::take_bucketer(bucketer)?);
        }
        Ok(())
    })
}
