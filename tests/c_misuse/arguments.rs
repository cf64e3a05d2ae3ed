//! Arguments that make no sense.

use super::*;

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
        for wrong in [-1, 12, c_int::MAX, c_int::MIN] {
            refused(
                graccl_all_reduce(data, data, 4, wrong, SUM, comm),
                INVALID_ARGUMENT,
                &format!("data_type = {wrong} is not a graccl_data_type_t"),
            );
        }
        for wrong in [-1, 5, 999, c_int::MAX, c_int::MIN] {
            refused(
                graccl_all_reduce(data, data, 4, F32, wrong, comm),
                INVALID_ARGUMENT,
                &format!("op = {wrong} is not a graccl_red_op_t"),
            );
        }
        // None of these was carried out, and the communicator lives on.
        for (data_type, op) in (0..12).flat_map(|data_type| (0..5).map(move |op| (data_type, op))) {
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
        profile: ptr::null(),
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

/// One call of every function that works on a communicator, with good buffers for one rank: the name, and
/// the call with this communicator, this root or peer, and this place for a request.
type Try = (&'static str, Box<dyn Fn(*mut graccl_comm_t, c_int, *mut *mut graccl_request_t) -> ResultInt>);

/// Collectives and messages, blocking.
fn blocking() -> Vec<Try> {
    let send = Box::leak(Box::new([1.0f32; 4])).as_ptr().cast::<c_void>();
    let recv = Box::leak(Box::new([0.0f32; 4])).as_mut_ptr().cast::<c_void>();
    let n = Box::leak(Box::new([4usize])).as_ptr();
    let none = ptr::null::<usize>();
    macro_rules! tries {
        ($($name:ident ($($argument:expr),*) $root:ident;)*) => {
            // SAFETY: buffers and counts are as one rank needs them, and live for ever.
            vec![$((stringify!($name), Box::new(move |comm, $root, _| unsafe { $name($($argument,)* comm) }) as _)),*]
        };
    }
    tries! {
        graccl_all_reduce(send, recv, 4, F32, SUM) _root;
        graccl_reduce_scatter(send, recv, 4, F32, SUM) _root;
        graccl_reduce_scatter_v(send, recv, n, F32, SUM) _root;
        graccl_all_gather(send, recv, 4, F32) _root;
        graccl_all_gather_v(send, recv, n, none, F32) _root;
        graccl_all_to_all(send, recv, 4, F32) _root;
        graccl_all_to_all_v(send, n, none, recv, n, none, F32) _root;
        graccl_scan(send, recv, 4, F32, SUM) _root;
        graccl_exscan(send, recv, 4, F32, SUM) _root;
        graccl_barrier() _root;
        graccl_broadcast(send, recv, 4, F32, root) root;
        graccl_reduce(send, recv, 4, F32, SUM, root) root;
        graccl_gather(send, recv, 4, F32, root) root;
        graccl_gather_v(send, 4, recv, n, none, F32, root) root;
        graccl_scatter(send, recv, 4, F32, root) root;
        graccl_scatter_v(send, n, none, recv, 4, F32, root) root;
        graccl_send(send, 4, F32, root) root;
        graccl_recv(recv, 4, F32, root) root;
        graccl_send_recv(send, 4, root, recv, 4, root, F32) root;
    }
}

/// The same, non-blocking.
fn non_blocking() -> Vec<Try> {
    let send = Box::leak(Box::new([1.0f32; 4])).as_ptr().cast::<c_void>();
    let recv = Box::leak(Box::new([0.0f32; 4])).as_mut_ptr().cast::<c_void>();
    let n = Box::leak(Box::new([4usize])).as_ptr();
    let none = ptr::null::<usize>();
    macro_rules! tries {
        ($($name:ident ($($argument:expr),*) $root:ident;)*) => {
            // SAFETY: as above; a request that is not null can be written.
            vec![$((stringify!($name), Box::new(move |comm, $root, out| unsafe { $name($($argument,)* comm, out) }) as _)),*]
        };
    }
    tries! {
        graccl_all_reduce_async(send, recv, 4, F32, SUM) _root;
        graccl_reduce_scatter_async(send, recv, 4, F32, SUM) _root;
        graccl_reduce_scatter_v_async(send, recv, n, F32, SUM) _root;
        graccl_all_gather_async(send, recv, 4, F32) _root;
        graccl_all_gather_v_async(send, recv, n, none, F32) _root;
        graccl_all_to_all_async(send, recv, 4, F32) _root;
        graccl_all_to_all_v_async(send, n, none, recv, n, none, F32) _root;
        graccl_scan_async(send, recv, 4, F32, SUM) _root;
        graccl_exscan_async(send, recv, 4, F32, SUM) _root;
        graccl_barrier_async() _root;
        graccl_broadcast_async(send, recv, 4, F32, root) root;
        graccl_reduce_async(send, recv, 4, F32, SUM, root) root;
        graccl_gather_async(send, recv, 4, F32, root) root;
        graccl_gather_v_async(send, 4, recv, n, none, F32, root) root;
        graccl_scatter_async(send, recv, 4, F32, root) root;
        graccl_scatter_v_async(send, n, none, recv, 4, F32, root) root;
        graccl_send_async(send, 4, F32, root) root;
        graccl_recv_async(recv, 4, F32, root) root;
        graccl_send_recv_async(send, 4, root, recv, 4, root, F32) root;
    }
}

/// Functions without a root come first in the lists above, then those with one, then messages.
const ROOTED: usize = 10;

const MESSAGES: usize = 16;

#[test]
fn every_call_names_its_bad_handles_and_roots() {
    let comm = alone();
    let dead = alone();
    destroy(dead);
    for (calls, is_async) in [(blocking(), false), (non_blocking(), true)] {
        assert_eq!(calls.len(), 19);
        for (i, (name, call)) in calls.iter().enumerate() {
            let mut request = ptr::without_provenance_mut(1);
            let tag = format!(" [{name}]");
            refused(call(NULL_COMM, 0, &mut request), INVALID_ARGUMENT, &format!("comm is NULL{tag}"));
            refused(
                call(dead, 0, &mut request),
                INVALID_USAGE,
                &format!("comm is not a live communicator{tag}"),
            );
            if is_async {
                assert!(request.is_null(), "{name} sets it to NULL");
                refused(call(comm, 0, ptr::null_mut()), INVALID_ARGUMENT, &format!("request is NULL{tag}"));
            }
            if i >= ROOTED {
                for wrong in [-1, 1, c_int::MAX, c_int::MIN] {
                    refused(
                        call(comm, wrong, &mut request),
                        INVALID_ARGUMENT,
                        &format!("= {wrong} is not in 0 .. 0{tag}"),
                    );
                }
            }
            if i >= MESSAGES {
                refused(call(comm, 0, &mut request), INVALID_ARGUMENT, "a rank cannot send to itself");
                continue;
            }
            // None of these did harm.
            assert_eq!(call(comm, 0, &mut request), SUCCESS, "{name}");
            if is_async {
                // SAFETY: a live request.
                assert_eq!(unsafe { graccl_request_wait(request) }, SUCCESS, "{name}");
            }
        }
    }
    destroy(comm);
}

#[test]
fn null_counts_and_wrong_counts_are_named() {
    let comm = alone();
    let mut data = [1.0f32; 8];
    let send: *const c_void = data.as_ptr().cast();
    let recv: *mut c_void = (&raw mut data[4]).cast();
    let (none, n, too_many) = (ptr::null::<usize>(), [4usize], [usize::MAX / 2]);
    let (n, too_many) = (n.as_ptr(), too_many.as_ptr());
    // SAFETY: whatever is not null is valid, or has to be refused before it is used.
    unsafe {
        let refuse = |code, text: &str| refused(code, INVALID_ARGUMENT, text);
        refuse(
            graccl_reduce_scatter_v(send, recv, none, F32, SUM, comm),
            "recv_counts is NULL [graccl_reduce_sc",
        );
        refuse(
            graccl_all_gather_v(send, recv, none, none, F32, comm),
            "recv_counts is NULL [graccl_all_gather_v",
        );
        refuse(
            graccl_gather_v(send, 4, recv, none, none, F32, 0, comm),
            "recv_counts is NULL [graccl_gather_v]",
        );
        refuse(
            graccl_scatter_v(send, none, none, recv, 4, F32, 0, comm),
            "send_counts is NULL [graccl_scatter_v",
        );
        refuse(graccl_all_to_all_v(send, none, none, recv, n, none, F32, comm), "send_counts is NULL");
        refuse(graccl_all_to_all_v(send, n, none, recv, none, none, F32, comm), "recv_counts is NULL");
        refuse(graccl_all_gather_v(send, recv, too_many, none, F32, comm), "do not fit in memory");
        refuse(graccl_all_gather_v(send, recv, n, too_many, F32, comm), "do not fit in memory");
        refuse(graccl_gather_v(send, 3, recv, n, none, F32, 0, comm), "3 elements to send and 4 to receive");
        refuse(graccl_all_gather(send, recv, usize::MAX / 4, F32, comm), "do not fit in memory");
        refuse(graccl_all_gather(ptr::null(), recv, 4, F32, comm), "null");
        refuse(graccl_all_gather(send, ptr::null_mut(), 4, F32, comm), "null");
        // By two elements.
        refuse(graccl_all_gather(send, recv.byte_sub(8), 4, F32, comm), "overlap");
        refuse(graccl_all_to_all(send, send.cast_mut(), 4, F32, comm), "overlap");
        assert_eq!(graccl_all_gather_v(send, recv, n, none, F32, comm), SUCCESS);
        assert_eq!(graccl_all_gather(ptr::null(), ptr::null_mut(), 0, F32, comm), SUCCESS);
    }
    destroy(comm);
}

#[test]
fn bad_arguments_of_communicators_are_named() {
    let comm = alone();
    let mut out = ptr::without_provenance_mut(1);
    let mut number = 0;
    let null = ptr::null_mut();
    // SAFETY: whatever is not null is valid.
    unsafe {
        let refuse = |code, text: &str| refused(code, INVALID_ARGUMENT, text);
        refuse(graccl_comm_init_all(ptr::null_mut(), 1, ptr::null()), "comms is NULL [graccl_comm_init_all]");
        for wrong in [0, -1, 4097, c_int::MAX] {
            refuse(
                graccl_comm_init_all(&mut out, wrong, ptr::null()),
                &format!("nranks = {wrong} is not in 1 .. "),
            );
        }
        let config = graccl_config_t { blocking: 0, ..unset() };
        refuse(graccl_comm_init_all(&mut out, 1, &config), "config.blocking = 0");
        assert!(out.is_null());

        refuse(
            graccl_comm_split(comm, 0, 0, ptr::null_mut(), ptr::null()),
            "out is NULL [graccl_comm_split]",
        );
        refuse(graccl_comm_split(null, 0, 0, &mut out, ptr::null()), "comm is NULL [graccl_comm_split]");
        refuse(graccl_comm_split(comm, -2, 0, &mut out, ptr::null()), "color = -2");
        refuse(graccl_comm_split(comm, 0, 0, &mut out, &config), "config.blocking cannot be set here");
        assert_eq!(graccl_comm_split(comm, GRACCL_SPLIT_NOCOLOR, 0, &mut out, ptr::null()), SUCCESS);
        assert!(out.is_null());
        assert_eq!(graccl_comm_split(comm, c_int::MAX, c_int::MIN, &mut out, &unset()), SUCCESS);
        destroy(out);

        refuse(graccl_comm_dup(comm, ptr::null_mut()), "out is NULL [graccl_comm_dup]");
        refuse(graccl_comm_dup(null, &mut out), "comm is NULL [graccl_comm_dup]");
        assert_eq!(graccl_comm_dup(comm, &mut out), SUCCESS);
        destroy(out);

        let shrink = |exclude: &[c_int], count, out: &mut _| {
            let exclude = if exclude.is_empty() { ptr::null() } else { exclude.as_ptr() };
            graccl_comm_shrink(comm, exclude, count, out, ptr::null())
        };
        refuse(shrink(&[], 1, &mut out), "exclude is NULL [graccl_comm_shrink]");
        refuse(shrink(&[], -1, &mut out), "count = -1");
        refuse(shrink(&[1], 1, &mut out), "exclude = 1 is not in 0 .. 0");
        refuse(shrink(&[-1], 1, &mut out), "exclude = -1 is not in 0 .. 0");
        refuse(shrink(&[0], 1, &mut out), "exclude has this rank itself");
        assert!(out.is_null());
        refuse(graccl_comm_shrink(comm, ptr::null(), 0, ptr::null_mut(), ptr::null()), "out is NULL");

        refuse(graccl_comm_get_async_error(null, &mut number), "comm is NULL");
        refuse(graccl_comm_finalize(null), "comm is NULL [graccl_comm_finalize]");
        assert_eq!(graccl_comm_finalize(comm), SUCCESS);
        refused(graccl_barrier(comm), INVALID_USAGE, "");
    }
    destroy(comm);
}

#[test]
fn made_reductions_are_for_one_communicator_and_type() {
    let (comm, other) = (alone(), alone());
    let mut data = [1.0f64; 4];
    let data_at: *mut c_void = data.as_mut_ptr().cast();
    let (mut first, mut second) = (-1, -1);
    let (half, third) = (0.5f64, 3.0f64);
    let half: *const c_void = (&raw const half).cast();
    // SAFETY: factors and buffers are of the type that is given, the largest.
    unsafe {
        let refuse = |code, text: &str| refused(code, INVALID_ARGUMENT, text);
        let create =
            |op, scalar, data_type, comm| graccl_red_op_create_pre_mul_sum(op, scalar, data_type, comm);
        refuse(create(ptr::null_mut(), half, F64, comm), "op is NULL");
        refuse(create(&mut first, ptr::null(), F64, comm), "scalar is NULL");
        refuse(create(&mut first, half, 12, comm), "data_type = 12");
        refuse(create(&mut first, half, F64, NULL_COMM), "comm is NULL");
        assert_eq!(create(&mut first, half, F64, comm), SUCCESS);
        assert_eq!(create(&mut second, (&raw const third).cast(), F64, comm), SUCCESS);
        assert!(first >= 1000 && second >= 1000 && first != second);

        let reduce = |data_type, op, comm| graccl_all_reduce(data_at, data_at, 4, data_type, op, comm);
        assert_eq!(reduce(F64, first, comm), SUCCESS);
        assert_eq!(data, [0.5; 4]);
        let mut request = ptr::null_mut();
        assert_eq!(graccl_reduce_async(data_at, data_at, 4, F64, second, 0, comm, &mut request), SUCCESS);
        // Calls that were made with it are not affected.
        assert_eq!(graccl_red_op_destroy(second, comm), SUCCESS);
        assert_eq!(graccl_request_wait(request), SUCCESS);
        assert_eq!(data, [1.5; 4]);

        refuse(reduce(F32, first, comm), &format!("op = {first} was made for double, not for float"));
        refuse(reduce(F64, first, other), &format!("op = {first} is not a reduction of this communicator"));
        refuse(reduce(F64, second, comm), &format!("op = {second} is not a reduction of this communicator"));
        refuse(graccl_red_op_destroy(second, comm), "is not a reduction of this communicator");
        refuse(graccl_red_op_destroy(SUM, comm), "op = 0 is not a reduction of this communicator");
        refuse(graccl_red_op_destroy(first, NULL_COMM), "comm is NULL");
        // A number is not given again.
        let mut third = -1;
        assert_eq!(create(&mut third, half, F64, comm), SUCCESS);
        assert!(![first, second].contains(&third));
    }
    destroy(comm);
    destroy(other);
}
