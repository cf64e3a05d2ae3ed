//! The C ABI called wrongly: null pointers, unknown numbers, dead handles. Each gives an error that
//! names the culprit, and none does harm. Called from here as C would call it.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use graccl::capi::*;

const SUCCESS: ResultInt = graccl_result_t::GRACCL_SUCCESS as ResultInt;
const INVALID_ARGUMENT: ResultInt = graccl_result_t::GRACCL_INVALID_ARGUMENT as ResultInt;
const INVALID_USAGE: ResultInt = graccl_result_t::GRACCL_INVALID_USAGE as ResultInt;
const F32: DataTypeInt = graccl_data_type_t::GRACCL_FLOAT32 as DataTypeInt;
const F64: DataTypeInt = graccl_data_type_t::GRACCL_FLOAT64 as DataTypeInt;
const SUM: RedOpInt = graccl_red_op_t::GRACCL_SUM as RedOpInt;
const NULL_COMM: *mut graccl_comm_t = ptr::null_mut();

fn text(text: *const std::ffi::c_char) -> String {
    // SAFETY: graccl's texts are never null, and are copied before the next call.
    unsafe { CStr::from_ptr(text) }.to_str().expect("UTF-8").to_owned()
}

#[track_caller]
fn refused(code: ResultInt, expected: ResultInt, text_has: &str) {
    let last = text(graccl_last_error(NULL_COMM));
    assert_eq!(code, expected, "{last}");
    assert!(last.contains(text_has), "\"{last}\" lacks \"{text_has}\"");
}

/// A communicator of one rank.
fn alone() -> *mut graccl_comm_t {
    let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut comm = ptr::null_mut();
    // SAFETY: both can be written.
    let codes = unsafe { [graccl_get_unique_id(&mut id), graccl_comm_init_rank(&mut comm, 1, id, 0)] };
    assert_eq!(codes, [SUCCESS; 2], "{}", text(graccl_last_error(NULL_COMM)));
    assert!(!comm.is_null());
    comm
}

fn destroy(comm: *mut graccl_comm_t) {
    // SAFETY: no other thread uses it.
    assert_eq!(unsafe { graccl_comm_destroy(comm) }, SUCCESS);
}

#[test]
fn null_arguments_are_named() {
    let comm = alone();
    let mut data = [1.0f32; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    let id = || graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut number: c_int = 0;
    // SAFETY: whatever is not null is valid.
    unsafe {
        let refuse = |code, name: &str, function: &str| {
            refused(code, INVALID_ARGUMENT, &format!("{name} is NULL [{function}]"));
        };
        refuse(graccl_get_version(ptr::null_mut()), "version", "graccl_get_version");
        refuse(graccl_get_unique_id(ptr::null_mut()), "id", "graccl_get_unique_id");
        refuse(graccl_comm_init_rank(ptr::null_mut(), 1, id(), 0), "comm", "graccl_comm_init_rank");
        refuse(
            graccl_comm_init_rank_config(ptr::null_mut(), 1, id(), 0, ptr::null()),
            "comm",
            "graccl_comm_init_rank_config",
        );
        refuse(graccl_comm_init_env(ptr::null_mut()), "comm", "graccl_comm_init_env");
        refuse(graccl_comm_rank(comm, ptr::null_mut()), "rank", "graccl_comm_rank");
        refuse(graccl_comm_rank(NULL_COMM, &mut number), "comm", "graccl_comm_rank");
        refuse(graccl_comm_size(comm, ptr::null_mut()), "size", "graccl_comm_size");
        refuse(graccl_comm_size(NULL_COMM, &mut number), "comm", "graccl_comm_size");
        refuse(graccl_comm_abort(NULL_COMM), "comm", "graccl_comm_abort");
        refuse(graccl_barrier(NULL_COMM), "comm", "graccl_barrier");
        let reduce = |send, recv, comm| graccl_all_reduce(send, recv, 4, F32, SUM, comm);
        refuse(reduce(ptr::null(), data, comm), "send", "graccl_all_reduce");
        refuse(reduce(data, ptr::null_mut(), comm), "recv", "graccl_all_reduce");
        refuse(reduce(data, data, NULL_COMM), "comm", "graccl_all_reduce");
        refuse(graccl_mem_alloc(ptr::null_mut(), 1), "ptr", "graccl_mem_alloc");

        // Where null makes sense.
        assert_eq!(graccl_comm_destroy(NULL_COMM), SUCCESS);
        assert_eq!(graccl_mem_free(ptr::null_mut()), SUCCESS);
        assert_eq!(graccl_all_reduce(ptr::null(), ptr::null_mut(), 0, F32, SUM, comm), SUCCESS);
    }
    destroy(comm);
}

#[test]
fn unknown_numbers_are_named() {
    let comm = alone();
    let mut data = [1.0f64; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    // SAFETY: the buffer has 4 elements of the largest type.
    unsafe {
        for wrong in [-1, 10, c_int::MAX, c_int::MIN] {
            refused(
                graccl_all_reduce(data, data, 4, wrong, SUM, comm),
                INVALID_ARGUMENT,
                &format!("data_type = {wrong} is not a graccl_data_type_t"),
            );
        }
        for wrong in [-1, 5, c_int::MAX, c_int::MIN] {
            refused(
                graccl_all_reduce(data, data, 4, F32, wrong, comm),
                INVALID_ARGUMENT,
                &format!("op = {wrong} is not a graccl_red_op_t"),
            );
        }
        // None of these was carried out, and the communicator lives on.
        for (data_type, op) in (0..10).flat_map(|data_type| (0..5).map(move |op| (data_type, op))) {
            assert_eq!(graccl_all_reduce(data, data, 4, data_type, op, comm), SUCCESS, "{data_type} {op}");
        }
    }
    destroy(comm);
}

#[test]
fn counts_beyond_memory_are_refused() {
    let comm = alone();
    let mut data = [1.0f64; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    // SAFETY: the call has to be refused before it touches the data.
    let code = unsafe { graccl_all_reduce(data, data, usize::MAX / 4, F64, SUM, comm) };
    refused(code, INVALID_ARGUMENT, "all_reduce of");
    destroy(comm);
}

#[test]
fn ranks_outside_the_job_are_refused() {
    for (nranks, rank, named) in
        [(0, 0, "nranks = 0"), (-3, 0, "nranks = -3"), (2, 2, "rank = 2"), (2, -1, "rank = -1")]
    {
        let id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
        let mut comm = ptr::without_provenance_mut(1);
        // SAFETY: comm can be written.
        refused(unsafe { graccl_comm_init_rank(&mut comm, nranks, id, rank) }, INVALID_ARGUMENT, named);
        assert!(comm.is_null(), "set to NULL by the error");
    }
}

#[test]
fn a_destroyed_communicator_is_refused_everywhere() {
    let comm = alone();
    let mut data = [1.0f32; 4];
    let data: *mut c_void = data.as_mut_ptr().cast();
    let mut number: c_int = 0;
    destroy(comm);
    let dead = "comm is not a live communicator";
    // SAFETY: the pointers are valid; comm is no pointer to graccl, only a number.
    unsafe {
        refused(graccl_comm_destroy(comm), INVALID_USAGE, dead);
        refused(graccl_comm_abort(comm), INVALID_USAGE, dead);
        refused(graccl_comm_rank(comm, &mut number), INVALID_USAGE, dead);
        refused(graccl_comm_size(comm, &mut number), INVALID_USAGE, dead);
        refused(graccl_barrier(comm), INVALID_USAGE, dead);
        refused(graccl_all_reduce(data, data, 4, F32, SUM, comm), INVALID_USAGE, dead);
        // Nor does a new communicator revive the old handle.
        let next = alone();
        assert_ne!(next, comm);
        refused(graccl_barrier(comm), INVALID_USAGE, dead);
        destroy(next);
        // A pointer to something else.
        refused(graccl_barrier((&raw mut number).cast()), INVALID_USAGE, dead);
    }
}

#[test]
fn abort_and_questions_may_race_with_destroy() {
    for _ in 0..50 {
        let comm = alone().addr();
        let started = &std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    let comm = ptr::without_provenance_mut(comm);
                    let mut number: c_int = 0;
                    started.wait();
                    loop {
                        // SAFETY: these are allowed at any time, and number can be written.
                        let codes = unsafe { [graccl_comm_abort(comm), graccl_comm_size(comm, &mut number)] };
                        let _ = text(graccl_last_error(comm));
                        assert!(
                            codes.iter().all(|code| [SUCCESS, INVALID_USAGE].contains(code)),
                            "{codes:?}"
                        );
                        if codes[1] == INVALID_USAGE {
                            break;
                        }
                        assert_eq!(number, 1);
                    }
                });
            }
            started.wait();
            destroy(ptr::without_provenance_mut(comm));
        });
    }
}

#[test]
fn every_code_has_a_text() {
    let texts: Vec<_> = (0..10).map(|code| text(graccl_get_error_string(code))).collect();
    assert_eq!(texts[0], "success");
    assert_eq!(texts[8], "a deadline passed");
    for wrong in [-1, 10, c_int::MAX, c_int::MIN] {
        assert_eq!(text(graccl_get_error_string(wrong)), "unknown result code");
    }
    assert!((1..10).all(|n| !texts[..n].contains(&texts[n]) && !texts[n].is_empty()), "{texts:?}");
}

#[test]
fn error_texts_belong_to_a_thread_and_then_to_the_communicator() {
    let comm = alone();
    assert_eq!(text(graccl_last_error(comm)), "no error");
    std::thread::scope(|scope| {
        let other = ptr::NonNull::new(comm).unwrap().addr().get();
        scope.spawn(move || {
            let comm = ptr::without_provenance_mut(other);
            // SAFETY: null is what is tested.
            unsafe { graccl_comm_rank(comm, ptr::null_mut()) };
            assert!(text(graccl_last_error(ptr::null())).starts_with("rank is NULL"));
        });
    });
    // This thread had no error, the communicator had.
    assert_eq!(text(graccl_last_error(NULL_COMM)), "no error");
    assert!(text(graccl_last_error(comm)).starts_with("rank is NULL [graccl_comm_rank]"));
    // Success does not clear a text; the thread's own comes first.
    // SAFETY: as above.
    unsafe { graccl_get_version(ptr::null_mut()) };
    let mut version = 0;
    // SAFETY: version can be written.
    assert_eq!(unsafe { graccl_get_version(&mut version) }, SUCCESS);
    assert!(text(graccl_last_error(comm)).starts_with("version is NULL"));
    destroy(comm);
}

#[test]
fn memory_comes_zeroed_and_aligned_or_not_at_all() {
    let mut memory = ptr::null_mut();
    // SAFETY: memory can be written; it has 10000 bytes.
    unsafe {
        assert_eq!(graccl_mem_alloc(&mut memory, 10_000), SUCCESS);
        assert_eq!(memory.addr() % 4096, 0);
        assert!(std::slice::from_raw_parts(memory.cast::<u8>(), 10_000).iter().all(|&byte| byte == 0));
        assert_eq!(graccl_mem_free(memory), SUCCESS);
        let code = graccl_mem_alloc(&mut memory, usize::MAX);
        refused(code, code, "");
        assert!(code == INVALID_ARGUMENT || code == graccl_result_t::GRACCL_SYSTEM_ERROR as ResultInt);
        assert!(memory.is_null());
    }
}

#[test]
fn settings_of_c_callers_count() {
    let mut config = graccl_config_t {
        size: size_of::<graccl_config_t>(),
        magic: GRACCL_CONFIG_MAGIC,
        version: 100,
        timeout_ms: 1000,
        init_timeout_ms: 1000,
        transport: c"auto".as_ptr(),
        algorithm: c"auto".as_ptr(),
        verify: 0,
        blocking: 1,
        deterministic: 0,
        encrypt: 0,
    };
    let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let mut comm = ptr::null_mut();
    // SAFETY: all can be written, and config is a whole struct with C strings.
    unsafe {
        assert_eq!(graccl_get_unique_id(&mut id), SUCCESS);
        assert_eq!(graccl_comm_init_rank_config(&mut comm, 1, id, 0, &config), SUCCESS);
        destroy(comm);
        config.magic = 0;
        let id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
        let code = graccl_comm_init_rank_config(&mut comm, 1, id, 0, &config);
        refused(code, INVALID_ARGUMENT, "config.magic");
        assert!(comm.is_null());
    }
}
