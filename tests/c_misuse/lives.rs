//! Communicators and requests that end, or are used too late, twice, or by several threads.

use super::*;

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

unsafe extern "C" fn count(arg: *mut c_void, result: ResultInt) {
    assert_eq!(result, SUCCESS);
    // SAFETY: the tests below pass a counter that lives for ever.
    unsafe { &*arg.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn requests_end_once() {
    static CALLED: AtomicU32 = AtomicU32::new(0);
    let comm = alone();
    let mut data = [1.0f32; 4];
    let mut done: c_int = 7;
    let dead = "request is not a live request";
    let arg: *mut c_void = (&raw const CALLED).cast_mut().cast();
    // SAFETY: done can be written; requests are numbers.
    unsafe {
        let refuse = |code, text: &str| refused(code, INVALID_ARGUMENT, text);
        let everything_refuses = |request, done: &mut c_int| {
            refused(graccl_request_test(request, done), INVALID_USAGE, dead);
            assert_eq!(*done, 0);
            refused(graccl_request_wait(request), INVALID_USAGE, dead);
            refused(graccl_request_wait_timeout(request, 1.0, done), INVALID_USAGE, dead);
            refused(graccl_request_set_callback(request, Some(count), arg), INVALID_USAGE, dead);
            refused(graccl_request_free(request), INVALID_USAGE, dead);
        };
        let null = ptr::null_mut();
        refuse(graccl_request_test(null, &mut done), "request is NULL [graccl_request_test]");
        refuse(graccl_request_wait(null), "request is NULL [graccl_request_wait]");
        refuse(
            graccl_request_wait_timeout(null, 1.0, &mut done),
            "request is NULL [graccl_request_wait_timeout]",
        );
        refuse(graccl_request_set_callback(null, Some(count), arg), "request is NULL [graccl_request_set_ca");
        assert_eq!(graccl_request_free(null), SUCCESS);

        // Wrong arguments leave it alive.
        let request = started(&mut data, comm);
        refuse(graccl_request_test(request, ptr::null_mut()), "done is NULL");
        refuse(graccl_request_wait_timeout(request, 1.0, ptr::null_mut()), "done is NULL");
        for wrong in [-1.0, f64::NAN, f64::NEG_INFINITY] {
            let code = graccl_request_wait_timeout(request, wrong, &mut done);
            refuse(code, &format!("seconds = {wrong} is not a time"));
        }
        refuse(graccl_request_set_callback(request, None, arg), "callback is NULL");
        // A ticket of one kind is none of the other.
        refused(graccl_barrier(request.cast()), INVALID_USAGE, "comm is not a live communicator");
        refused(graccl_request_wait(comm.cast()), INVALID_USAGE, dead);
        assert_eq!(graccl_request_wait(request), SUCCESS);
        everything_refuses(request, &mut done);

        let request = started(&mut data, comm);
        let end = Instant::now() + Duration::from_secs(10);
        while done == 0 && Instant::now() < end {
            assert_eq!(graccl_request_test(request, &mut done), SUCCESS);
        }
        assert_eq!(done, 1);
        everything_refuses(request, &mut done);

        let request = started(&mut data, comm);
        assert_eq!(graccl_request_wait_timeout(request, f64::INFINITY, &mut done), SUCCESS);
        assert_eq!(done, 1);
        everything_refuses(request, &mut done);

        let request = started(&mut data, comm);
        assert_eq!(graccl_request_set_callback(request, Some(count), arg), SUCCESS);
        everything_refuses(request, &mut done);

        let request = started(&mut data, comm);
        assert_eq!(graccl_request_free(request), SUCCESS);
        everything_refuses(request, &mut done);

        assert_eq!(graccl_barrier(comm), SUCCESS);
        assert_eq!(CALLED.load(Ordering::Relaxed), 1, "called once");
    }
    destroy(comm);
}

#[test]
fn a_hundred_thousand_requests_may_be_alive() {
    let comm = alone();
    let mut data = vec![1.0f32; 100_000];
    let requests: Vec<_> = data.chunks_mut(1).map(|one| started(one, comm)).collect();
    for request in requests {
        // SAFETY: a live request.
        assert_eq!(unsafe { graccl_request_wait(request) }, SUCCESS);
    }
    destroy(comm);
}

#[test]
fn a_destroy_ends_calls_of_other_threads() {
    let comms = all(2);
    let waiting = comms[0].addr();
    let started = &std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        let call = scope.spawn(move || {
            started.wait();
            // SAFETY: looked up only. The other rank never comes.
            unsafe { graccl_barrier(ptr::without_provenance_mut(waiting)) }
        });
        started.wait();
        std::thread::sleep(Duration::from_millis(50));
        destroy(comms[0]);
        assert!(call.is_finished(), "a destroy waits for calls");
        assert_eq!(call.join().unwrap(), ABORTED);
    });
    destroy(comms[1]);
}

/// A way to make a communicator from another one.
fn derived(way: usize, comm: *mut graccl_comm_t) -> c_int {
    let mut out = ptr::null_mut();
    // SAFETY: out can be written; the communicator is looked up only.
    let code = unsafe {
        match way {
            0 => graccl_comm_split(comm, 0, 0, &mut out, ptr::null()),
            1 => graccl_comm_dup(comm, &mut out),
            _ => graccl_comm_shrink(comm, ptr::null(), 0, &mut out, ptr::null()),
        }
    };
    assert_eq!(code == SUCCESS, !out.is_null());
    if code == SUCCESS {
        destroy(out);
    }
    code
}

#[test]
fn a_destroy_ends_what_makes_communicators_in_other_threads() {
    for (way, aborts) in [(0, false), (0, true), (1, false), (1, true), (2, false), (2, true)] {
        let comms = all(2);
        let waiting = comms[0].addr();
        std::thread::scope(|scope| {
            // The other rank never comes.
            let call = scope.spawn(move || derived(way, ptr::without_provenance_mut(waiting)));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!call.is_finished());
            let since = Instant::now();
            if aborts {
                // SAFETY: allowed at any time.
                assert_eq!(unsafe { graccl_comm_abort(comms[0]) }, SUCCESS);
            } else {
                destroy(comms[0]);
            }
            assert_eq!(call.join().unwrap(), ABORTED, "way {way}");
            assert!(since.elapsed() < Duration::from_secs(2), "way {way}: {:?}", since.elapsed());
            if aborts {
                destroy(comms[0]);
            }
        });
        destroy(comms[1]);
    }
}

#[test]
fn making_communicators_may_race_with_a_destroy() {
    for round in 0..60 {
        let comms: Vec<_> = all(2).into_iter().map(|c| c.addr()).collect();
        let (way, gone) = (round % 3, &AtomicBool::new(false));
        std::thread::scope(|scope| {
            for &comm in &comms {
                scope.spawn(move || {
                    let since = Instant::now();
                    let code = loop {
                        assert!(since.elapsed() < Duration::from_secs(20), "no end");
                        match derived(way, ptr::without_provenance_mut(comm)) {
                            // The rank that is left may shrink it to itself for ever.
                            SUCCESS if way == 2 && gone.load(Ordering::Relaxed) => return,
                            SUCCESS => {}
                            code => break code,
                        }
                    };
                    assert!([ABORTED, REMOTE_ERROR, INVALID_USAGE].contains(&code), "{code}");
                });
            }
            std::thread::sleep(Duration::from_micros(61 * (round * round) as u64 % 5000));
            destroy(ptr::without_provenance_mut(comms[0]));
            gone.store(true, Ordering::Relaxed);
        });
        destroy(ptr::without_provenance_mut(comms[1]));
    }
}

#[test]
fn requests_outlive_their_communicator() {
    for aborts in [true, false] {
        let comms = all(2);
        let mut data = [[1.0f32; 4], [2.0; 4]];
        let [data0, data1] = &mut data;
        let request = started(data0, comms[0]);
        let mut done = 7;
        // SAFETY: done can be written.
        unsafe {
            assert_eq!(graccl_request_wait_timeout(request, 0.02, &mut done), SUCCESS);
            assert_eq!(done, 0, "the other rank has not called");
            if aborts {
                assert_eq!(graccl_comm_abort(comms[0]), SUCCESS);
                destroy(comms[0]);
                refused(graccl_request_wait(request), ABORTED, "");
                destroy(comms[1]);
                continue;
            }
        }
        let other = comms[1].addr();
        std::thread::scope(|scope| {
            // Destroying waits for the call, so the other rank has to make it.
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                let data: *mut c_void = data1.as_mut_ptr().cast();
                let comm = ptr::without_provenance_mut(other);
                // SAFETY: the buffer has 4 elements.
                assert_eq!(unsafe { graccl_all_reduce(data, data, 4, F32, SUM, comm) }, SUCCESS);
                destroy(comm);
            });
            destroy(comms[0]);
        });
        // SAFETY: a live request.
        assert_eq!(unsafe { graccl_request_wait(request) }, SUCCESS);
        assert_eq!(data, [[3.0; 4]; 2]);
    }
}

#[test]
fn joining_can_be_aborted_and_destroyed() {
    for destroys in [false, true] {
        let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
        // SAFETY: id can be written.
        assert_eq!(unsafe { graccl_get_unique_id(&mut id) }, SUCCESS);
        static COMM: AtomicPtr<graccl_comm_t> = AtomicPtr::new(ptr::null_mut());
        std::thread::scope(|scope| {
            // SAFETY: the place lives for ever. Rank 1 never comes.
            let join = scope.spawn(move || unsafe { graccl_comm_init_rank(COMM.as_ptr(), 2, id, 0) });
            let comm = loop {
                let comm = COMM.load(Ordering::Acquire);
                if !comm.is_null() {
                    break comm;
                }
                std::thread::yield_now();
            };
            let started = Instant::now();
            let mut rank = -1;
            // SAFETY: rank can be written; the rest are numbers.
            unsafe {
                assert_eq!(graccl_comm_rank(comm, &mut rank), SUCCESS);
                assert_eq!(rank, 0);
                refused(graccl_barrier(comm), IN_PROGRESS, "");
                let end = if destroys { graccl_comm_destroy(comm) } else { graccl_comm_abort(comm) };
                assert_eq!(end, SUCCESS);
            }
            assert_eq!(join.join().unwrap(), ABORTED);
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            assert!(COMM.load(Ordering::Relaxed).is_null());
            // SAFETY: a number.
            refused(unsafe { graccl_comm_destroy(comm) }, INVALID_USAGE, "not a live communicator");
        });
    }
}

#[test]
fn joining_without_waiting_says_when_it_is_ready() {
    let mut id = graccl_unique_id_t { internal: [0; GRACCL_UNIQUE_ID_BYTES] };
    let config = graccl_config_t { blocking: 0, ..unset() };
    let mut comms = [ptr::null_mut(); 2];
    let mut state = -1;
    let deadline = Instant::now() + Duration::from_secs(20);
    // SAFETY: all can be written.
    unsafe {
        assert_eq!(graccl_get_unique_id(&mut id), SUCCESS);
        let same = graccl_unique_id_t { internal: id.internal };
        refused(graccl_comm_init_rank_config(&mut comms[0], 2, same, 0, &config), IN_PROGRESS, "joining");
        assert_eq!(graccl_comm_get_async_error(comms[0], &mut state), SUCCESS);
        assert_eq!(state, IN_PROGRESS);
        refused(graccl_barrier(comms[0]), IN_PROGRESS, "");
        assert_eq!(graccl_comm_init_rank_config(&mut comms[1], 2, id, 1, &config), IN_PROGRESS);
        for comm in comms {
            state = IN_PROGRESS;
            while state == IN_PROGRESS && Instant::now() < deadline {
                assert_eq!(graccl_comm_get_async_error(comm, &mut state), SUCCESS);
            }
            assert_eq!(state, SUCCESS);
        }
        assert_eq!(graccl_comm_abort(comms[0]), SUCCESS);
        assert_eq!(graccl_comm_get_async_error(comms[0], &mut state), SUCCESS);
        assert_eq!(state, ABORTED);
        // The other one hears of it.
        while state != SUCCESS && Instant::now() < deadline {
            assert_eq!(graccl_comm_get_async_error(comms[1], &mut state), SUCCESS);
            if state == ABORTED {
                break;
            }
        }
        refused(graccl_comm_get_async_error(comms[0], ptr::null_mut()), INVALID_ARGUMENT, "result is NULL");
    }
    comms.into_iter().for_each(destroy);
}

#[test]
fn groups_must_begin_and_end() {
    let comms = all(2);
    let mut data = [[1.0f32; 4], [2.0; 4]];
    let mut request = ptr::null_mut();
    let mut done = 0;
    // SAFETY: the buffers have 4 elements and outlive the group.
    unsafe {
        refused(graccl_group_end(), INVALID_USAGE, "no group to end");
        assert_eq!([graccl_group_start(), graccl_group_start()], [SUCCESS; 2]);
        for (rank, data) in data.iter_mut().enumerate() {
            let data: *mut c_void = data.as_mut_ptr().cast();
            assert_eq!(graccl_all_reduce(data, data, 4, F32, SUM, comms[rank]), SUCCESS);
            // A wrong call is refused at once and is not part of the group.
            refused(
                graccl_all_reduce(data, data, 4, -1, SUM, comms[rank]),
                INVALID_ARGUMENT,
                "data_type = -1",
            );
        }
        assert_eq!(graccl_barrier(comms[0]), SUCCESS);
        assert_eq!(graccl_barrier_async(comms[1], &mut request), SUCCESS);
        assert_eq!(graccl_group_end(), SUCCESS);
        // Still in the outer one: nothing has run.
        refused(graccl_request_wait(request), INVALID_USAGE, "group");
        refused(graccl_request_wait_timeout(request, 0.0, &mut done), INVALID_USAGE, "group");
        assert_eq!((graccl_request_test(request, &mut done), done), (SUCCESS, 0));
        assert_eq!(graccl_group_end(), SUCCESS);
        assert_eq!(graccl_request_wait(request), SUCCESS);
        refused(graccl_group_end(), INVALID_USAGE, "no group to end");
    }
    assert_eq!(data, [[3.0; 4]; 2]);
    comms.into_iter().for_each(destroy);
}

#[test]
fn messages_and_exchanges_have_requests() {
    static CALLED: AtomicU32 = AtomicU32::new(0);
    let comms = all(2);
    each(&comms, |comm| {
        let (mut rank, mut done) = (-1, 0);
        let (mut got, mut request) = ([-1i32; 2], ptr::null_mut());
        let int = graccl_data_type_t::GRACCL_INT32 as DataTypeInt;
        // SAFETY: buffers outlive their calls.
        unsafe {
            assert_eq!(graccl_comm_rank(comm, &mut rank), SUCCESS);
            let (send, peer) = ((&raw const rank).cast(), 1 - rank);
            for (i, got) in got.iter_mut().enumerate() {
                let recv = (&raw mut *got).cast();
                let code = graccl_send_recv_async(send, 1, peer, recv, 1, peer, int, comm, &mut request);
                assert_eq!(code, SUCCESS, "{}", text(graccl_last_error(NULL_COMM)));
                if i == 0 {
                    assert_eq!(graccl_request_wait_timeout(request, 20.0, &mut done), SUCCESS);
                    assert_eq!(done, 1);
                } else {
                    let arg = (&raw const CALLED).cast_mut().cast();
                    assert_eq!(graccl_request_set_callback(request, Some(count), arg), SUCCESS);
                    while CALLED.load(Ordering::Acquire) < 2 {
                        std::thread::yield_now();
                    }
                }
                assert_eq!(*got, peer);
            }
            assert_eq!(graccl_barrier(comm), SUCCESS);
        }
    });
    assert_eq!(CALLED.load(Ordering::Relaxed), 2, "once for each exchange");
    comms.into_iter().for_each(destroy);
}

#[test]
fn a_callback_gets_the_failure_and_its_text() {
    static RESULT: AtomicI32 = AtomicI32::new(-1);
    unsafe extern "C" fn note(_: *mut c_void, result: ResultInt) {
        assert!(!text(graccl_last_error(NULL_COMM)).starts_with("no error"));
        RESULT.store(result, Ordering::Release);
    }
    let comms = all(2);
    let mut data = [1.0f32; 4];
    let request = started(&mut data, comms[0]);
    // SAFETY: the data outlive the communicator.
    unsafe {
        assert_eq!(graccl_request_set_callback(request, Some(note), ptr::null_mut()), SUCCESS);
        assert_eq!(RESULT.load(Ordering::Acquire), -1, "the other rank has not called");
        assert_eq!(graccl_comm_abort(comms[0]), SUCCESS);
    }
    let end = Instant::now() + Duration::from_secs(10);
    while RESULT.load(Ordering::Acquire) == -1 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(RESULT.load(Ordering::Acquire), ABORTED);
    comms.into_iter().for_each(destroy);
}
