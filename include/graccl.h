/*
 * graccl: GRAdient Collective Communication Library.
 * SPDX-License-Identifier: Apache-2.0
 *
 * Made from src/capi by scripts/header: do not edit.
 *
 * One process per rank:
 *
 *     graccl_comm_t *comm;
 *     graccl_comm_init_env(&comm);
 *     graccl_all_reduce(gradient, gradient, count, GRACCL_FLOAT32, GRACCL_SUM, comm);
 *     graccl_comm_destroy(comm);
 *
 * Every function returns a graccl_result_t; after one that is not GRACCL_SUCCESS, graccl_last_error
 * has the text. Sizes called count are elements, those called bytes are bytes. What a pointer named
 * "where to put it" points to is written before the function returns and never kept. Only
 * graccl_request_set_callback has the caller called back; no function exits the process, and none
 * installs a signal handler.
 */

#ifndef GRACCL_H
#define GRACCL_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/** Value of a number in graccl_config_t that is not set. */
#define GRACCL_UNSET INT_MIN

/** Start of every graccl_config_t: graccl_config_t config = GRACCL_CONFIG_INITIALIZER; */
#define GRACCL_CONFIG_INITIALIZER                                                     \
    {                                                                                 \
        sizeof(graccl_config_t), GRACCL_CONFIG_MAGIC, GRACCL_VERSION, GRACCL_UNSET,   \
            GRACCL_UNSET, NULL, NULL, GRACCL_UNSET, GRACCL_UNSET, GRACCL_UNSET,       \
            GRACCL_UNSET, NULL                                                        \
    }

/** Start of every graccl_bucketer_config_t. */
#define GRACCL_BUCKETER_CONFIG_INITIALIZER                                            \
    {                                                                                 \
        sizeof(graccl_bucketer_config_t), GRACCL_UNSET, GRACCL_UNSET, GRACCL_UNSET,   \
            GRACCL_UNSET, 0                                                           \
    }

/** Version of this header: 10000 * major + 100 * minor + patch. */
#define GRACCL_VERSION (10000 * 0 + 100 * 1 + 0)

/**
 * Bytes of a graccl_unique_id_t.
 */
#define GRACCL_UNIQUE_ID_BYTES 128

/**
 * As a colour of graccl_comm_split: this rank gets no communicator.
 */
#define GRACCL_SPLIT_NOCOLOR -1

/**
 * Marks a graccl_config_t that was initialised.
 */
#define GRACCL_CONFIG_MAGIC 1735549283

/**
 * What every graccl function that can fail returns. Values up to 8 are those of ncclResult_t.
 */
typedef enum {
    /**
     * The call did what it says.
     */
    GRACCL_SUCCESS = 0,
    /**
     * A device (GPU) call failed.
     */
    GRACCL_DEVICE_ERROR = 1,
    /**
     * A call to the operating system failed.
     */
    GRACCL_SYSTEM_ERROR = 2,
    /**
     * A bug in graccl: please report it.
     */
    GRACCL_INTERNAL_ERROR = 3,
    /**
     * An argument is wrong by itself (NULL, out of range, unknown).
     */
    GRACCL_INVALID_ARGUMENT = 4,
    /**
     * The arguments are right but the call is not allowed here or now, or ranks disagree about it.
     */
    GRACCL_INVALID_USAGE = 5,
    /**
     * Another rank died, left or failed.
     */
    GRACCL_REMOTE_ERROR = 6,
    /**
     * Not finished yet.
     */
    GRACCL_IN_PROGRESS = 7,
    /**
     * A deadline passed.
     */
    GRACCL_TIMEOUT = 8,
    /**
     * The communicator was aborted.
     */
    GRACCL_ABORTED = 9,
} graccl_result_t;

/**
 * Type of one element. The values are those of ncclDataType_t.
 */
typedef enum {
    /**
     * int8_t
     */
    GRACCL_INT8 = 0,
    /**
     * uint8_t
     */
    GRACCL_UINT8 = 1,
    /**
     * int32_t
     */
    GRACCL_INT32 = 2,
    /**
     * uint32_t
     */
    GRACCL_UINT32 = 3,
    /**
     * int64_t
     */
    GRACCL_INT64 = 4,
    /**
     * uint64_t
     */
    GRACCL_UINT64 = 5,
    /**
     * IEEE 754 binary16, summed in float.
     */
    GRACCL_FLOAT16 = 6,
    /**
     * float
     */
    GRACCL_FLOAT32 = 7,
    /**
     * double
     */
    GRACCL_FLOAT64 = 8,
    /**
     * The upper half of a float, summed in float.
     */
    GRACCL_BFLOAT16 = 9,
    /**
     * 4 bits of exponent, no infinities, summed in float; more than 448 becomes 448.
     */
    GRACCL_FLOAT8E4M3 = 10,
    /**
     * 5 bits of exponent, summed in float; more than 57344 becomes infinite.
     */
    GRACCL_FLOAT8E5M2 = 11,
} graccl_data_type_t;

/**
 * How contributions are combined. The values are those of ncclRedOp_t.
 *
 * Integers wrap on overflow. Minimum and maximum of floats are NaN if any contribution is NaN.
 */
typedef enum {
    /**
     * Sum.
     */
    GRACCL_SUM = 0,
    /**
     * Product.
     */
    GRACCL_PROD = 1,
    /**
     * Maximum.
     */
    GRACCL_MAX = 2,
    /**
     * Minimum.
     */
    GRACCL_MIN = 3,
    /**
     * Sum divided by the number of ranks; for integers truncated toward zero.
     */
    GRACCL_AVG = 4,
    /**
     * Not an operation: makes room for the numbers of graccl_red_op_create_pre_mul_sum.
     */
    GRACCL_RED_OP_LIMIT = 2147483647,
} graccl_red_op_t;

/**
 * What is put together.
 */
typedef enum {
    /**
     * What the planner finds best for the times measured in the first steps.
     */
    GRACCL_FUSION_PLANNED = 0,
    /**
     * A bucket for each tensor.
     */
    GRACCL_FUSION_PER_TENSOR = 1,
    /**
     * One bucket.
     */
    GRACCL_FUSION_ONE_BUCKET = 2,
    /**
     * A bucket is full with threshold bytes.
     */
    GRACCL_FUSION_THRESHOLD = 3,
} graccl_fusion_t;

/**
 * Gradients of a training step that are reduced in buckets: made by graccl_bucketer_create, ended by
 * graccl_bucketer_destroy. What it points to is graccl's own affair.
 */
typedef struct graccl_bucketer_t graccl_bucketer_t;

/**
 * A communicator: made by the graccl_comm_init functions, graccl_comm_split, graccl_comm_dup and
 * graccl_comm_shrink, ended by graccl_comm_destroy. What it points to is graccl's own affair.
 */
typedef struct graccl_comm_t graccl_comm_t;

/**
 * A call that was started and may not be over: made by the functions whose names end in _async, ended
 * by the graccl_request functions. What it points to is graccl's own affair.
 *
 * Until the call is over its buffers are in use: send must not be written, recv neither read nor
 * written, and neither freed. The call is carried out by a thread of graccl's own and by threads that
 * wait for something; nobody has to ask for that. The collective calls of one communicator are carried
 * out in the order in which they were made, blocking and non-blocking ones together.
 *
 * Every request must be ended once: by graccl_request_wait, by graccl_request_test or
 * graccl_request_wait_timeout that say that it is done, by graccl_request_set_callback or by
 * graccl_request_free. Using it again is GRACCL_INVALID_USAGE. There may be 1048576 at a time.
 */
typedef struct graccl_request_t graccl_request_t;

/**
 * Names a communicator to be. One process makes it with graccl_get_unique_id and gives the bytes to
 * all ranks by any means. It serves once. It holds a secret key: whoever has it can join.
 */
typedef struct {
    /**
     * To be copied, not to be read.
     */
    uint8_t internal[GRACCL_UNIQUE_ID_BYTES];
} graccl_unique_id_t;

/**
 * Settings of one communicator. Start from GRACCL_CONFIG_INITIALIZER and set what should differ:
 * a field left at GRACCL_UNSET or NULL takes its value from the environment variable named here, or
 * else the default. All ranks must use the same transport, algorithm, deterministic,
 * encrypt and profile.
 */
typedef struct {
    /**
     * sizeof(graccl_config_t), by the initialiser.
     */
    size_t size;
    /**
     * GRACCL_CONFIG_MAGIC, by the initialiser.
     */
    uint32_t magic;
    /**
     * GRACCL_VERSION that the caller was compiled with, by the initialiser.
     */
    int version;
    /**
     * Milliseconds, above 0: longest wait inside a collective. GRACCL_TIMEOUT (seconds); 1800000.
     */
    int timeout_ms;
    /**
     * Milliseconds, above 0: longest wait for all ranks to join. GRACCL_INIT_TIMEOUT (seconds);
     * 300000.
     */
    int init_timeout_ms;
    /**
     * "auto" (shared memory within a host, TCP between hosts), "shm" or "tcp". GRACCL_TRANSPORT;
     * "auto". Read during the call only.
     */
    const char *transport;
    /**
     * "auto" or the name of an algorithm. GRACCL_ALGO; "auto". Read during the call only.
     */
    const char *algorithm;
    /**
     * 1: prove every schedule for this job's ranks before its first use; 0: do not. GRACCL_VERIFY;
     * 0.
     */
    int verify;
    /**
     * 0: the functions that join return GRACCL_IN_PROGRESS at once, and graccl_comm_get_async_error
     * tells when all ranks have joined; 1: they wait. No variable; 1.
     */
    int blocking;
    /**
     * 1: results have the same bits whatever the count of ranks per host, the transport and the
     * algorithm, at some cost in speed; 0: they have them on all ranks of a call, no more.
     * GRACCL_DETERMINISTIC; 0.
     */
    int deterministic;
    /**
     * 1: encrypt what goes over TCP; 0: do not. GRACCL_ENCRYPT; 0.
     */
    int encrypt;
    /**
     * File with the choices that `graccl tune` made; "" for none. Read during the call only.
     * GRACCL_PROFILE; none.
     */
    const char *profile;
} graccl_config_t;

/**
 * One gradient of a graccl_bucketer_t.
 */
typedef struct {
    /**
     * For messages; may be NULL. Read during the call only.
     */
    const char *name;
    /**
     * Elements.
     */
    size_t count;
    /**
     * Type of an element.
     */
    graccl_data_type_t data_type;
    /**
     * Where the program keeps it, until graccl_bucketer_destroy. NULL: in the bucketer's memory (see
     * graccl_bucketer_gradient), where nothing has to be copied.
     */
    void *memory;
} graccl_tensor_t;

/**
 * Settings of a bucketer, the same on all ranks. Start from GRACCL_BUCKETER_CONFIG_INITIALIZER and set
 * what should differ.
 */
typedef struct {
    /**
     * sizeof(graccl_bucketer_config_t), by the initialiser.
     */
    size_t size;
    /**
     * 1 (default): results are averages over the ranks; 0: sums.
     */
    int average;
    /**
     * GRACCL_FLOAT16, GRACCL_BFLOAT16 or GRACCL_INT8: gradients of type float may travel between hosts in that
     * type (int8: in blocks of 16 with a common scale), if the planner finds that it pays. They are summed
     * in float, and what int8 loses is made up for in the next step. GRACCL_UNSET (default): as they are.
     * With n ranks whose values are at most A (int8: in a block), a sum is off by at most about 2 u n A, where u is
     * 2^-11 for float16 (of host sums from 6.1e-5 to 65504: larger become infinite) and 2^-8 for bfloat16; for
     * int8 by 5 u n A with u = 1/127, and its mean over T steps with the same gradients by 6 u n A / T.
     * Averages: an n-th of that.
     */
    int wire;
    /**
     * A graccl_fusion_t; GRACCL_FUSION_PLANNED by default.
     */
    int fusion;
    /**
     * 1: the program waits for each tensor (graccl_bucketer_wait) just before it uses it in the next
     * forward pass, which allows plans that gather results during that pass; 0 (default): it does not.
     */
    int late;
    /**
     * Bytes, above 0, for GRACCL_FUSION_THRESHOLD.
     */
    size_t threshold;
} graccl_bucketer_config_t;

/**
 * What a step took, in seconds of this rank.
 */
typedef struct {
    /**
     * From the end of the step before to the end of this one.
     */
    double step;
    /**
     * While any bucket was under way.
     */
    double busy;
    /**
     * While the program waited for buckets.
     */
    double waited;
    /**
     * What the plan foretold for step; 0 while there is no plan of measured times.
     */
    double predicted;
} graccl_step_times_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that runs, which may differ from the GRACCL_VERSION of the header that
 * the caller was compiled with.
 *
 * @param version Where to put it: 10000 * major + 100 * minor + patch.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT.
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_get_version(int *version);

/**
 * Makes the name of one new communicator, to be given to every rank. This process listens for the
 * ranks from now on and must live until all have joined; it may be a rank itself or not. Processes
 * that it forks afterwards cannot use graccl: fork first.
 *
 * @param id Where to put it.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_SYSTEM_ERROR (no port, no file descriptor).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_get_unique_id(graccl_unique_id_t *id);

/**
 * Joins the communicator that id names. Collective: returns when all ranks have joined.
 *
 * @param comm Where to put the communicator; NULL after an error. It is there before the other ranks are
 *        waited for, so that another thread can read it (as a volatile or atomic pointer), and abort
 *        or destroy it.
 * @param nranks Number of ranks, the same on all.
 * @param id From graccl_get_unique_id, the same bytes on all ranks.
 * @param rank This process's number, 0 .. nranks-1, on each rank another.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_INVALID_USAGE (the ranks disagree, or a rank
 *         was given twice); GRACCL_TIMEOUT (the text names the ranks that did not come);
 *         GRACCL_REMOTE_ERROR; GRACCL_ABORTED (by another thread); GRACCL_SYSTEM_ERROR.
 *
 * Settings come from the environment: see graccl_config_t. The caller owns the communicator until
 * graccl_comm_destroy. In a group it returns at once, and graccl_group_end waits: if that gives an
 * error, comm must still be destroyed.
 *
 * Thread-safety: may be called by any thread; threads of one process may be different ranks.
 */
graccl_result_t graccl_comm_init_rank(graccl_comm_t **comm,
                                      int nranks,
                                      graccl_unique_id_t id,
                                      int rank);

/**
 * graccl_comm_init_rank with settings.
 *
 * @param comm Where to put the communicator; NULL after an error. As graccl_comm_init_rank.
 * @param nranks Number of ranks, the same on all.
 * @param id From graccl_get_unique_id, the same bytes on all ranks.
 * @param rank This process's number, 0 .. nranks-1, on each rank another.
 * @param config Settings, started from GRACCL_CONFIG_INITIALIZER; NULL is the same as all unset. Stays
 *        the caller's and is not used after the call.
 * @return As graccl_comm_init_rank; GRACCL_INVALID_ARGUMENT also for a setting that makes no sense;
 *         with config->blocking = 0 GRACCL_IN_PROGRESS: comm is there and must be destroyed, but the
 *         other ranks may not be. Ask graccl_comm_get_async_error until it gives something else; all
 *         that may be called on comm before are graccl_comm_rank, graccl_comm_size, graccl_comm_abort
 *         and graccl_comm_destroy.
 *
 * Thread-safety: as graccl_comm_init_rank.
 */
graccl_result_t graccl_comm_init_rank_config(graccl_comm_t **comm,
                                             int nranks,
                                             graccl_unique_id_t id,
                                             int rank,
                                             const graccl_config_t *config);

/**
 * Joins as the launcher's environment says: that of `graccl run`, torchrun (RANK, WORLD_SIZE,
 * LOCAL_RANK, MASTER_ADDR, MASTER_PORT), mpirun or srun. No unique id is needed. Collective: returns
 * when all ranks have joined.
 *
 * @param comm Where to put the communicator; NULL after an error. As graccl_comm_init_rank.
 * @return As graccl_comm_init_rank; GRACCL_INVALID_ARGUMENT also for an environment that makes no
 *         sense.
 *
 * Settings come from the environment too. The caller owns the communicator until
 * graccl_comm_destroy.
 *
 * Thread-safety: one thread of a process at a time, since the environment makes it one rank.
 */
graccl_result_t graccl_comm_init_env(graccl_comm_t **comm);

/**
 * Makes one communicator whose ranks are all in this process: for threads, or for one thread that makes
 * the calls of all ranks in groups (graccl_group_start).
 *
 * @param comms Where to put the communicators, nranks of them: number i is rank i. All NULL after an
 *        error.
 * @param nranks Number of ranks, 1 .. 4096.
 * @param config Settings, started from GRACCL_CONFIG_INITIALIZER; NULL is the same as all unset. Stays
 *        the caller's and is not used after the call. Its blocking must not be 0.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_SYSTEM_ERROR.
 *
 * The caller owns the communicators, each until its graccl_comm_destroy.
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_comm_init_all(graccl_comm_t **comms,
                                     int nranks,
                                     const graccl_config_t *config);

/**
 * Parts the ranks of a communicator into new ones: ranks that give the same colour are together.
 * Collective: all ranks of comm call it.
 *
 * @param comm The communicator. It stays usable.
 * @param color 0 or more, or GRACCL_SPLIT_NOCOLOR.
 * @param key Decides this rank's number among those of its colour: they are in the order of their
 *        keys, and of their ranks in comm where keys are equal.
 * @param out Where to put the new communicator; NULL with GRACCL_SPLIT_NOCOLOR and after an error.
 * @param config NULL, or all unset: the new communicator has the settings of comm.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for another negative colour, and for
 *         settings.
 *
 * The new communicator shares connections and memory with comm, but not its calls; either may be
 * destroyed first. The caller owns it until graccl_comm_destroy. What graccl_red_op_create_pre_mul_sum
 * made for comm stays with comm.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_comm_split(graccl_comm_t *comm,
                                  int color,
                                  int key,
                                  graccl_comm_t **out,
                                  const graccl_config_t *config);

/**
 * Makes a communicator of the same ranks whose calls are apart from those of the first, for example for
 * another thread. Collective: all ranks of comm call it.
 *
 * @param comm The communicator. It stays usable.
 * @param out Where to put the new communicator; NULL after an error.
 * @return As graccl_all_reduce.
 *
 * What is shared and who owns it: as graccl_comm_split.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_comm_dup(graccl_comm_t *comm,
                                graccl_comm_t **out);

/**
 * After ranks have died or hang: makes a communicator of those that live, in the same order. Collective
 * among the survivors, whose comm may have failed; calls under way on it must have returned.
 *
 * @param comm The communicator; to be destroyed afterwards if it has failed.
 * @param exclude Ranks of comm that shall not be in the new one, because they are known to be dead or
 *        are not wanted; those do not call this. Survivors may give different lists: who is in any
 *        is out, and so are ranks that do not answer. May be NULL if count is 0. Read during the
 *        call only.
 * @param count Number of ranks in exclude; 0 or more.
 * @param out Where to put the new communicator; NULL after an error.
 * @param config NULL, or all unset: the new communicator has the settings of comm.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a number in exclude that is not a rank,
 *         or is this one, and for settings.
 *
 * What is shared and who owns it: as graccl_comm_split.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_comm_shrink(graccl_comm_t *comm,
                                   const int *exclude,
                                   int count,
                                   graccl_comm_t **out,
                                   const graccl_config_t *config);

/**
 * Waits until the calls under way are over, and tells the other ranks that no more come from this one.
 * Only graccl_comm_destroy, graccl_comm_abort and questions are allowed after it.
 *
 * @param comm The communicator; must still be destroyed.
 * @return As graccl_all_reduce.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_comm_finalize(graccl_comm_t *comm);

/**
 * Asks, without waiting, how the communicator is.
 *
 * @param comm The communicator.
 * @param result Where to put it: GRACCL_SUCCESS if it can be used; GRACCL_IN_PROGRESS if the other ranks are
 *        still joining (config->blocking = 0); otherwise the error that made it unusable, with its text in
 *        graccl_last_error: it can only be destroyed, or shrunk if all ranks had joined.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_comm_get_async_error(graccl_comm_t *comm,
                                            graccl_result_t *result);

/**
 * This process's number in the communicator.
 *
 * @param comm The communicator.
 * @param rank Where to put it: 0 .. size-1.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_comm_rank(const graccl_comm_t *comm, int *rank);

/**
 * Number of ranks in the communicator.
 *
 * @param comm The communicator.
 * @param size Where to put it.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_comm_size(const graccl_comm_t *comm, int *size);

/**
 * Leaves the communicator and frees what belongs to it. Waits a short while for the other ranks to
 * leave too. Ranks that still need this one for a call get GRACCL_REMOTE_ERROR, so let all finish
 * first.
 *
 * @param comm The communicator, invalid from now on; using it again is GRACCL_INVALID_USAGE. NULL
 *        does nothing.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (destroyed before).
 *
 * Memory from graccl_mem_alloc is not freed. Calls that were started and are not over (graccl_request_t)
 * are waited for: call graccl_comm_abort before if they shall not be, but for what it says. Their requests
 * stay, and must still be ended.
 *
 * Thread-safety: may be called by any thread at any time, but not in a callback. Other threads' blocking
 * calls on comm are aborted as by graccl_comm_abort, and have returned when this returns.
 */
graccl_result_t graccl_comm_destroy(graccl_comm_t *comm);

/**
 * Fails the calls under way on the communicator and all later ones with GRACCL_ABORTED, here and, as
 * soon as they hear of it, on the other ranks. Does not wait; but a call whose memory another rank writes to
 * just then is over when that is. The communicator must still be destroyed (unlike with ncclCommAbort).
 *
 * @param comm The communicator.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (destroyed).
 *
 * Thread-safety: may be called by any thread at any time, also while others are inside a call.
 */
graccl_result_t graccl_comm_abort(graccl_comm_t *comm);

/**
 * Reduces the ranks' send buffers, element by element, into every rank's recv buffer.
 *
 * All ranks of the communicator call it with the same count, type and operation. The result has the
 * same bits on all ranks. Blocks until this rank's result is complete.
 *
 * @param send This rank's contribution, count elements; only read.
 * @param recv The result, count elements. May equal send (in place); other overlaps are refused.
 * @param count Elements, not bytes. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param op How they are combined.
 * @param comm The communicator.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, overlap, unknown type or operation, more
 *         bytes than can be addressed): nothing was sent and comm can still be used;
 *         GRACCL_INVALID_USAGE (the ranks disagree about the call), GRACCL_REMOTE_ERROR (a rank
 *         died), GRACCL_TIMEOUT, GRACCL_ABORTED, GRACCL_SYSTEM_ERROR: recv is undefined, comm can
 *         only be destroyed, or shrunk if a rank died.
 *
 * The buffers stay the caller's. Memory from graccl_mem_alloc saves a copy between ranks of one host.
 *
 * Thread-safety: threads may share comm; their calls are carried out one after the other, and must
 * have the same order on all ranks. No other thread may touch the buffers during the call. Another
 * thread may abort or destroy comm meanwhile: the call then gives GRACCL_ABORTED.
 */
graccl_result_t graccl_all_reduce(const void *send,
                                  void *recv,
                                  size_t count,
                                  graccl_data_type_t data_type,
                                  graccl_red_op_t op,
                                  graccl_comm_t *comm);

/**
 * graccl_all_reduce without waiting: starts it and returns at once.
 *
 * @param send As graccl_all_reduce; in use until the call is over.
 * @param recv As graccl_all_reduce; in use until the call is over.
 * @param count As graccl_all_reduce.
 * @param data_type As graccl_all_reduce.
 * @param op As graccl_all_reduce.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return GRACCL_SUCCESS: the call is under way, and how it ends is what the request gives;
 *         GRACCL_INVALID_ARGUMENT (also for NULL as request), GRACCL_INVALID_USAGE (comm was
 *         destroyed, or too many requests) or the error of a communicator that failed before:
 *         nothing was started.
 *
 * Thread-safety: as graccl_all_reduce. No other thread may touch the buffers until the call is
 * over, and nor may this one.
 */
graccl_result_t graccl_all_reduce_async(const void *send,
                                        void *recv,
                                        size_t count,
                                        graccl_data_type_t data_type,
                                        graccl_red_op_t op,
                                        graccl_comm_t *comm,
                                        graccl_request_t **request);

/**
 * Reduces the ranks' send buffers, element by element, and gives every rank one block of the
 * result: rank r gets the elements from r * recv_count on. All ranks call it with the same
 * arguments, apart from the buffers.
 *
 * @param send This rank's contribution, recv_count elements for each rank; only read, except in
 *        place.
 * @param recv This rank's block of the result, recv_count elements. In place: recv == send + rank
 *        * recv_count (in elements); the rest of send is left as it was. Other overlaps are
 *        refused.
 * @param recv_count Elements of one block. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param op How they are combined.
 * @param comm The communicator.
 * @return As graccl_all_reduce.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_reduce_scatter(const void *send,
                                      void *recv,
                                      size_t recv_count,
                                      graccl_data_type_t data_type,
                                      graccl_red_op_t op,
                                      graccl_comm_t *comm);

/**
 * graccl_reduce_scatter without waiting: starts it and returns at once.
 *
 * @param send As graccl_reduce_scatter; in use until the call is over.
 * @param recv As graccl_reduce_scatter; in use until the call is over.
 * @param recv_count As graccl_reduce_scatter.
 * @param data_type As graccl_reduce_scatter.
 * @param op As graccl_reduce_scatter.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_reduce_scatter_async(const void *send,
                                            void *recv,
                                            size_t recv_count,
                                            graccl_data_type_t data_type,
                                            graccl_red_op_t op,
                                            graccl_comm_t *comm,
                                            graccl_request_t **request);

/**
 * graccl_reduce_scatter with blocks of different sizes.
 *
 * @param send This rank's contribution: the blocks of all ranks, one behind the other; only read,
 *        except in place.
 * @param recv This rank's block of the result, recv_counts[rank] elements. In place: where this
 *        rank's block lies in send. Other overlaps are refused.
 * @param recv_counts Elements of each rank's block, the same numbers on all ranks. May be 0.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param op How they are combined.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for counts or displacements that do
 *         not fit in memory, and for a NULL array of counts.
 *
 * Buffers and arrays stay the caller's; the arrays are read during the call only.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_reduce_scatter_v(const void *send,
                                        void *recv,
                                        const size_t *recv_counts,
                                        graccl_data_type_t data_type,
                                        graccl_red_op_t op,
                                        graccl_comm_t *comm);

/**
 * graccl_reduce_scatter_v without waiting: starts it and returns at once.
 *
 * @param send As graccl_reduce_scatter_v; in use until the call is over.
 * @param recv As graccl_reduce_scatter_v; in use until the call is over.
 * @param recv_counts As graccl_reduce_scatter_v; read during this call only.
 * @param data_type As graccl_reduce_scatter_v.
 * @param op As graccl_reduce_scatter_v.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_reduce_scatter_v_async(const void *send,
                                              void *recv,
                                              const size_t *recv_counts,
                                              graccl_data_type_t data_type,
                                              graccl_red_op_t op,
                                              graccl_comm_t *comm,
                                              graccl_request_t **request);

/**
 * Reduces the ranks' send buffers, element by element, into the root's recv buffer.
 *
 * @param send This rank's contribution, count elements; only read.
 * @param recv On the root: the result, count elements. In place: recv == send. Other overlaps are
 *        refused. Not used on other ranks, where it may be NULL.
 * @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param op How they are combined.
 * @param root The root's rank, the same on all ranks.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_reduce(const void *send,
                              void *recv,
                              size_t count,
                              graccl_data_type_t data_type,
                              graccl_red_op_t op,
                              int root,
                              graccl_comm_t *comm);

/**
 * graccl_reduce without waiting: starts it and returns at once.
 *
 * @param send As graccl_reduce; in use until the call is over.
 * @param recv As graccl_reduce; in use until the call is over.
 * @param count As graccl_reduce.
 * @param data_type As graccl_reduce.
 * @param op As graccl_reduce.
 * @param root As graccl_reduce.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_reduce_async(const void *send,
                                    void *recv,
                                    size_t count,
                                    graccl_data_type_t data_type,
                                    graccl_red_op_t op,
                                    int root,
                                    graccl_comm_t *comm,
                                    graccl_request_t **request);

/**
 * Reduces, element by element, the send buffers of the ranks up to and including each rank into
 * that rank's recv buffer.
 *
 * @param send This rank's contribution, count elements; only read.
 * @param recv The result of ranks 0 .. rank, count elements. In place: recv == send. Other
 *        overlaps are refused.
 * @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param op How they are combined.
 * @param comm The communicator.
 * @return As graccl_all_reduce.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_scan(const void *send,
                            void *recv,
                            size_t count,
                            graccl_data_type_t data_type,
                            graccl_red_op_t op,
                            graccl_comm_t *comm);

/**
 * graccl_scan without waiting: starts it and returns at once.
 *
 * @param send As graccl_scan; in use until the call is over.
 * @param recv As graccl_scan; in use until the call is over.
 * @param count As graccl_scan.
 * @param data_type As graccl_scan.
 * @param op As graccl_scan.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_scan_async(const void *send,
                                  void *recv,
                                  size_t count,
                                  graccl_data_type_t data_type,
                                  graccl_red_op_t op,
                                  graccl_comm_t *comm,
                                  graccl_request_t **request);

/**
 * Reduces, element by element, the send buffers of the ranks before each rank into that rank's
 * recv buffer.
 *
 * @param send This rank's contribution, count elements; only read.
 * @param recv The result of ranks 0 .. rank-1, count elements. In place: recv == send. Other
 *        overlaps are refused. Left as it was on rank 0, where it may be NULL.
 * @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param op How they are combined.
 * @param comm The communicator.
 * @return As graccl_all_reduce.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_exscan(const void *send,
                              void *recv,
                              size_t count,
                              graccl_data_type_t data_type,
                              graccl_red_op_t op,
                              graccl_comm_t *comm);

/**
 * graccl_exscan without waiting: starts it and returns at once.
 *
 * @param send As graccl_exscan; in use until the call is over.
 * @param recv As graccl_exscan; in use until the call is over.
 * @param count As graccl_exscan.
 * @param data_type As graccl_exscan.
 * @param op As graccl_exscan.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_exscan_async(const void *send,
                                    void *recv,
                                    size_t count,
                                    graccl_data_type_t data_type,
                                    graccl_red_op_t op,
                                    graccl_comm_t *comm,
                                    graccl_request_t **request);

/**
 * Gives every rank the blocks of all ranks, in the order of the ranks.
 *
 * @param send This rank's block, send_count elements; only read.
 * @param recv The blocks of all ranks, send_count elements for each. In place: send == recv + rank
 *        * send_count (in elements). Other overlaps are refused.
 * @param send_count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param comm The communicator.
 * @return As graccl_all_reduce.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_all_gather(const void *send,
                                  void *recv,
                                  size_t send_count,
                                  graccl_data_type_t data_type,
                                  graccl_comm_t *comm);

/**
 * graccl_all_gather without waiting: starts it and returns at once.
 *
 * @param send As graccl_all_gather; in use until the call is over.
 * @param recv As graccl_all_gather; in use until the call is over.
 * @param send_count As graccl_all_gather.
 * @param data_type As graccl_all_gather.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_all_gather_async(const void *send,
                                        void *recv,
                                        size_t send_count,
                                        graccl_data_type_t data_type,
                                        graccl_comm_t *comm,
                                        graccl_request_t **request);

/**
 * graccl_all_gather with blocks of different sizes.
 *
 * @param send This rank's block, recv_counts[rank] elements; only read. In place: where this
 *        rank's block lies in recv. Other overlaps are refused.
 * @param recv The blocks of all ranks; elements between them are left as they were.
 * @param recv_counts Elements of each rank's block, the same numbers on all ranks. May be 0.
 * @param recv_displs Where each rank's block lies in recv, in elements from its start, one number
 *        for each rank; NULL: one behind the other in the order of the ranks. Blocks must not
 *        overlap. Ranks may differ.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for counts or displacements that do
 *         not fit in memory, and for a NULL array of counts.
 *
 * Buffers and arrays stay the caller's; the arrays are read during the call only.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_all_gather_v(const void *send,
                                    void *recv,
                                    const size_t *recv_counts,
                                    const size_t *recv_displs,
                                    graccl_data_type_t data_type,
                                    graccl_comm_t *comm);

/**
 * graccl_all_gather_v without waiting: starts it and returns at once.
 *
 * @param send As graccl_all_gather_v; in use until the call is over.
 * @param recv As graccl_all_gather_v; in use until the call is over.
 * @param recv_counts As graccl_all_gather_v; read during this call only.
 * @param recv_displs As graccl_all_gather_v; read during this call only.
 * @param data_type As graccl_all_gather_v.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_all_gather_v_async(const void *send,
                                          void *recv,
                                          const size_t *recv_counts,
                                          const size_t *recv_displs,
                                          graccl_data_type_t data_type,
                                          graccl_comm_t *comm,
                                          graccl_request_t **request);

/**
 * Copies the root's send buffer into every rank's recv buffer.
 *
 * @param send On the root: what to copy, count elements; only read. Not used on other ranks, where
 *        it may be NULL.
 * @param recv The copy, count elements, on the root as well. In place: on the root recv == send.
 *        Other overlaps are refused.
 * @param count Elements, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param root The root's rank, the same on all ranks.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_broadcast(const void *send,
                                 void *recv,
                                 size_t count,
                                 graccl_data_type_t data_type,
                                 int root,
                                 graccl_comm_t *comm);

/**
 * graccl_broadcast without waiting: starts it and returns at once.
 *
 * @param send As graccl_broadcast; in use until the call is over.
 * @param recv As graccl_broadcast; in use until the call is over.
 * @param count As graccl_broadcast.
 * @param data_type As graccl_broadcast.
 * @param root As graccl_broadcast.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_broadcast_async(const void *send,
                                       void *recv,
                                       size_t count,
                                       graccl_data_type_t data_type,
                                       int root,
                                       graccl_comm_t *comm,
                                       graccl_request_t **request);

/**
 * Gives the root the blocks of all ranks, in the order of the ranks.
 *
 * @param send This rank's block, send_count elements; only read.
 * @param recv On the root: the blocks of all ranks, send_count elements for each. In place: on the
 *        root send == recv + root * send_count (in elements). Other overlaps are refused. Not used
 *        on other ranks, where it may be NULL.
 * @param send_count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param root The root's rank, the same on all ranks.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_gather(const void *send,
                              void *recv,
                              size_t send_count,
                              graccl_data_type_t data_type,
                              int root,
                              graccl_comm_t *comm);

/**
 * graccl_gather without waiting: starts it and returns at once.
 *
 * @param send As graccl_gather; in use until the call is over.
 * @param recv As graccl_gather; in use until the call is over.
 * @param send_count As graccl_gather.
 * @param data_type As graccl_gather.
 * @param root As graccl_gather.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_gather_async(const void *send,
                                    void *recv,
                                    size_t send_count,
                                    graccl_data_type_t data_type,
                                    int root,
                                    graccl_comm_t *comm,
                                    graccl_request_t **request);

/**
 * graccl_gather with blocks of different sizes.
 *
 * @param send This rank's block, send_count elements; only read. In place: on the root, where its
 *        block lies in recv. Other overlaps are refused.
 * @param send_count Elements of this rank's block: what the root has as recv_counts[rank]. May be
 *        0.
 * @param recv On the root: the blocks of all ranks; elements between them are left as they were.
 *        Not used on other ranks, where it may be NULL.
 * @param recv_counts On the root: elements of each rank's block. Not used on other ranks, where it
 *        may be NULL.
 * @param recv_displs On the root: where each rank's block lies in recv, in elements from its
 *        start; NULL: one behind the other in the order of the ranks. Blocks must not overlap.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param root The root's rank, the same on all ranks.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank, for
 *         counts or displacements that do not fit in memory, and on the root for a NULL array of
 *         counts.
 *
 * Buffers and arrays stay the caller's; the arrays are read during the call only.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_gather_v(const void *send,
                                size_t send_count,
                                void *recv,
                                const size_t *recv_counts,
                                const size_t *recv_displs,
                                graccl_data_type_t data_type,
                                int root,
                                graccl_comm_t *comm);

/**
 * graccl_gather_v without waiting: starts it and returns at once.
 *
 * @param send As graccl_gather_v; in use until the call is over.
 * @param send_count As graccl_gather_v.
 * @param recv As graccl_gather_v; in use until the call is over.
 * @param recv_counts As graccl_gather_v; read during this call only.
 * @param recv_displs As graccl_gather_v; read during this call only.
 * @param data_type As graccl_gather_v.
 * @param root As graccl_gather_v.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_gather_v_async(const void *send,
                                      size_t send_count,
                                      void *recv,
                                      const size_t *recv_counts,
                                      const size_t *recv_displs,
                                      graccl_data_type_t data_type,
                                      int root,
                                      graccl_comm_t *comm,
                                      graccl_request_t **request);

/**
 * Gives every rank one block of the root's send buffer: rank r gets the elements from r *
 * recv_count on.
 *
 * @param send On the root: the blocks of all ranks, recv_count elements for each; only read. Not
 *        used on other ranks, where it may be NULL.
 * @param recv This rank's block, recv_count elements. In place: on the root recv == send + root *
 *        recv_count (in elements). Other overlaps are refused.
 * @param recv_count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param root The root's rank, the same on all ranks.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_scatter(const void *send,
                               void *recv,
                               size_t recv_count,
                               graccl_data_type_t data_type,
                               int root,
                               graccl_comm_t *comm);

/**
 * graccl_scatter without waiting: starts it and returns at once.
 *
 * @param send As graccl_scatter; in use until the call is over.
 * @param recv As graccl_scatter; in use until the call is over.
 * @param recv_count As graccl_scatter.
 * @param data_type As graccl_scatter.
 * @param root As graccl_scatter.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_scatter_async(const void *send,
                                     void *recv,
                                     size_t recv_count,
                                     graccl_data_type_t data_type,
                                     int root,
                                     graccl_comm_t *comm,
                                     graccl_request_t **request);

/**
 * graccl_scatter with blocks of different sizes.
 *
 * @param send On the root: the blocks of all ranks; only read. Not used on other ranks, where it
 *        may be NULL.
 * @param send_counts On the root: elements of each rank's block. Not used on other ranks, where it
 *        may be NULL.
 * @param send_displs On the root: where each rank's block lies in send, in elements from its
 *        start; NULL: one behind the other in the order of the ranks.
 * @param recv This rank's block, recv_count elements. In place: on the root, where its block lies
 *        in send. Other overlaps are refused.
 * @param recv_count Elements of this rank's block: what the root has as send_counts[rank]. May be
 *        0.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param root The root's rank, the same on all ranks.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a root that is not a rank, for
 *         counts or displacements that do not fit in memory, and on the root for a NULL array of
 *         counts.
 *
 * Buffers and arrays stay the caller's; the arrays are read during the call only.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_scatter_v(const void *send,
                                 const size_t *send_counts,
                                 const size_t *send_displs,
                                 void *recv,
                                 size_t recv_count,
                                 graccl_data_type_t data_type,
                                 int root,
                                 graccl_comm_t *comm);

/**
 * graccl_scatter_v without waiting: starts it and returns at once.
 *
 * @param send As graccl_scatter_v; in use until the call is over.
 * @param send_counts As graccl_scatter_v; read during this call only.
 * @param send_displs As graccl_scatter_v; read during this call only.
 * @param recv As graccl_scatter_v; in use until the call is over.
 * @param recv_count As graccl_scatter_v.
 * @param data_type As graccl_scatter_v.
 * @param root As graccl_scatter_v.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_scatter_v_async(const void *send,
                                       const size_t *send_counts,
                                       const size_t *send_displs,
                                       void *recv,
                                       size_t recv_count,
                                       graccl_data_type_t data_type,
                                       int root,
                                       graccl_comm_t *comm,
                                       graccl_request_t **request);

/**
 * Gives every rank one block from every rank: block r of send goes to rank r, and block r of recv
 * comes from rank r.
 *
 * @param send A block for each rank, count elements each; only read.
 * @param recv A block from each rank, count elements each. There is no in-place form: it must not
 *        overlap send.
 * @param count Elements of one block, the same on all ranks. With 0 the pointers may be NULL.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param comm The communicator.
 * @return As graccl_all_reduce.
 *
 * The buffers stay the caller's.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_all_to_all(const void *send,
                                  void *recv,
                                  size_t count,
                                  graccl_data_type_t data_type,
                                  graccl_comm_t *comm);

/**
 * graccl_all_to_all without waiting: starts it and returns at once.
 *
 * @param send As graccl_all_to_all; in use until the call is over.
 * @param recv As graccl_all_to_all; in use until the call is over.
 * @param count As graccl_all_to_all.
 * @param data_type As graccl_all_to_all.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_all_to_all_async(const void *send,
                                        void *recv,
                                        size_t count,
                                        graccl_data_type_t data_type,
                                        graccl_comm_t *comm,
                                        graccl_request_t **request);

/**
 * graccl_all_to_all with blocks of different sizes.
 *
 * @param send The blocks for the ranks; only read.
 * @param send_counts Elements for each rank. May be 0.
 * @param send_displs Where each rank's block lies in send, in elements from its start, one number
 *        for each rank; NULL: one behind the other in the order of the ranks.
 * @param recv The blocks from the ranks; elements between them are left as they were. There is no
 *        in-place form: it must not overlap send.
 * @param recv_counts Elements from each rank r: what rank r has as send_counts[rank]. May be 0.
 * @param recv_displs Where each rank's block lies in recv, in elements from its start, one number
 *        for each rank; NULL: one behind the other in the order of the ranks. Blocks must not
 *        overlap.
 * @param data_type Type of the elements, at least aligned as C aligns it.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for counts or displacements that do
 *         not fit in memory, and for a NULL array of counts.
 *
 * Buffers and arrays stay the caller's; the arrays are read during the call only.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_all_to_all_v(const void *send,
                                    const size_t *send_counts,
                                    const size_t *send_displs,
                                    void *recv,
                                    const size_t *recv_counts,
                                    const size_t *recv_displs,
                                    graccl_data_type_t data_type,
                                    graccl_comm_t *comm);

/**
 * graccl_all_to_all_v without waiting: starts it and returns at once.
 *
 * @param send As graccl_all_to_all_v; in use until the call is over.
 * @param send_counts As graccl_all_to_all_v; read during this call only.
 * @param send_displs As graccl_all_to_all_v; read during this call only.
 * @param recv As graccl_all_to_all_v; in use until the call is over.
 * @param recv_counts As graccl_all_to_all_v; read during this call only.
 * @param recv_displs As graccl_all_to_all_v; read during this call only.
 * @param data_type As graccl_all_to_all_v.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after
 *        an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_all_to_all_v_async(const void *send,
                                          const size_t *send_counts,
                                          const size_t *send_displs,
                                          void *recv,
                                          const size_t *recv_counts,
                                          const size_t *recv_displs,
                                          graccl_data_type_t data_type,
                                          graccl_comm_t *comm,
                                          graccl_request_t **request);

/**
 * Makes a reduction that multiplies this rank's contributions by a factor before they are summed.
 * Ranks may have different factors, but in a call either all or none must use such a reduction.
 *
 * @param op Where to put it: a number from 1000 on, to be passed as op to functions that reduce, on
 *        this communicator and with this type alone.
 * @param scalar The factor, one element of the type, in the caller's memory; read during this call
 *        only. Products are rounded to the type.
 * @param data_type Its type.
 * @param comm The communicator.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, unknown type); GRACCL_INVALID_USAGE (destroyed).
 *
 * It lives until graccl_red_op_destroy, or as long as comm. Not collective: a rank's number for it
 * says nothing to the others.
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_red_op_create_pre_mul_sum(graccl_red_op_t *op,
                                                 const void *scalar,
                                                 graccl_data_type_t data_type,
                                                 graccl_comm_t *comm);

/**
 * Forgets a reduction that graccl_red_op_create_pre_mul_sum made. Calls that were made with it are not
 * affected.
 *
 * @param op Its number, invalid from now on. It is not given again.
 * @param comm The communicator that it was made for.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, or not a reduction of this communicator);
 *         GRACCL_INVALID_USAGE (comm was destroyed).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_red_op_destroy(graccl_red_op_t op,
                                      graccl_comm_t *comm);

/**
 * Sends elements to a rank, which receives as many of that type with graccl_recv. Returns when the buffer
 * may be used again, which may be before the peer has them, or only when it receives: two ranks that
 * both send before they receive may wait for ever (graccl_send_recv does not).
 *
 * @param send What to send, count elements; only read.
 * @param count Elements. With 0 send may be NULL; the receive must have 0, too.
 * @param data_type Type of the elements.
 * @param peer The rank to send to: another than this one.
 * @param comm The communicator.
 * @return As graccl_all_reduce; GRACCL_INVALID_ARGUMENT also for a peer that is not a rank or is this
 *         one.
 *
 * Messages between two ranks arrive in the order in which they were sent. The buffer stays the caller's.
 *
 * Thread-safety: as graccl_all_reduce; sends and receives are not ordered with collectives, and wait
 * for none.
 */
graccl_result_t graccl_send(const void *send,
                            size_t count,
                            graccl_data_type_t data_type,
                            int peer,
                            graccl_comm_t *comm);

/**
 * graccl_send without waiting: starts it and returns at once.
 *
 * @param send As graccl_send; in use until the call is over.
 * @param count As graccl_send.
 * @param data_type As graccl_send.
 * @param peer As graccl_send.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_send_async(const void *send,
                                  size_t count,
                                  graccl_data_type_t data_type,
                                  int peer,
                                  graccl_comm_t *comm,
                                  graccl_request_t **request);

/**
 * Receives elements that a rank sends with graccl_send.
 *
 * @param recv Where to put them, count elements.
 * @param count Elements, as many as are sent. With 0 recv may be NULL.
 * @param data_type Type of the elements, the same as at the sender.
 * @param peer The rank to receive from: another than this one.
 * @param comm The communicator.
 * @return As graccl_send; GRACCL_INVALID_USAGE also when another count or type was sent.
 *
 * The buffer stays the caller's.
 *
 * Thread-safety: as graccl_send.
 */
graccl_result_t graccl_recv(void *recv,
                            size_t count,
                            graccl_data_type_t data_type,
                            int peer,
                            graccl_comm_t *comm);

/**
 * graccl_recv without waiting: starts it and returns at once.
 *
 * @param recv As graccl_recv; in use until the call is over.
 * @param count As graccl_recv.
 * @param data_type As graccl_recv.
 * @param peer As graccl_recv.
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_recv_async(void *recv,
                                  size_t count,
                                  graccl_data_type_t data_type,
                                  int peer,
                                  graccl_comm_t *comm,
                                  graccl_request_t **request);

/**
 * Sends to one rank and receives from another (or the same), both at once: a group of two. So all ranks
 * may call it side by side, for example around a ring.
 *
 * @param send What to send, send_count elements; only read.
 * @param send_count Elements. With 0 send may be NULL.
 * @param dest The rank to send to.
 * @param recv Where to put what is received, recv_count elements. Must not overlap send.
 * @param recv_count Elements, as many as source sends. With 0 recv may be NULL.
 * @param source The rank to receive from. Neither may be this rank.
 * @param data_type Type of the elements of both.
 * @param comm The communicator.
 * @return As graccl_recv.
 *
 * The other side may be graccl_send, graccl_recv or graccl_send_recv. The buffers stay the caller's.
 *
 * Thread-safety: as graccl_send.
 */
graccl_result_t graccl_send_recv(const void *send,
                                 size_t send_count,
                                 int dest,
                                 void *recv,
                                 size_t recv_count,
                                 int source,
                                 graccl_data_type_t data_type,
                                 graccl_comm_t *comm);

/**
 * graccl_send_recv without waiting: starts both and returns at once.
 *
 * @param send As graccl_send_recv; in use until the call is over.
 * @param send_count As graccl_send_recv.
 * @param dest As graccl_send_recv.
 * @param recv As graccl_send_recv; in use until the call is over.
 * @param recv_count As graccl_send_recv.
 * @param source As graccl_send_recv.
 * @param data_type As graccl_send_recv.
 * @param comm The communicator.
 * @param request Where to put the request of both, over when both are; the caller's to end: see
 *        graccl_request_t. NULL after an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_send_recv_async(const void *send,
                                       size_t send_count,
                                       int dest,
                                       void *recv,
                                       size_t recv_count,
                                       int source,
                                       graccl_data_type_t data_type,
                                       graccl_comm_t *comm,
                                       graccl_request_t **request);

/**
 * Waits until all ranks of the communicator have called it.
 *
 * @param comm The communicator.
 * @return GRACCL_SUCCESS, or an error as from graccl_all_reduce.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_barrier(graccl_comm_t *comm);

/**
 * graccl_barrier without waiting: its request is over when all ranks have called it.
 *
 * @param comm The communicator.
 * @param request Where to put the request, the caller's to end: see graccl_request_t. NULL after an error.
 * @return As graccl_all_reduce_async.
 *
 * Thread-safety: as graccl_all_reduce_async.
 */
graccl_result_t graccl_barrier_async(graccl_comm_t *comm,
                                     graccl_request_t **request);

/**
 * Asks whether the call is over, without waiting.
 *
 * @param request The request. When the call is over it is freed: invalid from then on.
 * @param done Where to put it: 1 if the call is over, well or not; else 0.
 * @return GRACCL_SUCCESS; what the call itself would return if it failed, with done = 1;
 *         GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (ended before), with done = 0.
 *
 * A test that says 1 is as good as a wait: the result is complete and the buffers are the caller's.
 *
 * Thread-safety: any thread may ask, one at a time.
 */
graccl_result_t graccl_request_test(graccl_request_t *request, int *done);

/**
 * Waits until the call is over, and frees the request.
 *
 * @param request The request, invalid from now on.
 * @return What the call itself would return; GRACCL_INVALID_ARGUMENT (NULL); GRACCL_INVALID_USAGE (ended
 *         before; or in a group, where the call has not started: the request stays).
 *
 * Thread-safety: one thread waits. graccl_comm_abort by another one ends the wait.
 */
graccl_result_t graccl_request_wait(graccl_request_t *request);

/**
 * Waits until the call is over, but not for ever.
 *
 * @param request The request. When the call is over it is freed: invalid from then on. Otherwise it
 *        stays, and the call goes on.
 * @param seconds The longest wait, 0 or more; INFINITY is allowed.
 * @param done Where to put it: 1 if the call is over, well or not; else 0.
 * @return As graccl_request_test; GRACCL_INVALID_ARGUMENT also for seconds that are negative or NaN.
 *         That the time is over is GRACCL_SUCCESS with done = 0.
 *
 * Thread-safety: as graccl_request_wait.
 */
graccl_result_t graccl_request_wait_timeout(graccl_request_t *request,
                                            double seconds,
                                            int *done);

/**
 * Has a function called when the call is over, and hands the request over: it need not and cannot be
 * waited for or freed.
 *
 * @param request The request, invalid from now on.
 * @param callback Called once with arg and with what the call itself would return: by this thread
 *        before graccl_request_set_callback returns if the call is over already, otherwise by a thread
 *        of graccl's or one that waits in a graccl function. It must be short: it may start calls
 *        (_async), but not wait for any, not make blocking ones and not destroy communicators. In
 *        it, graccl_last_error(NULL) has the text of a failed call.
 * @param arg Passed on; must stay valid until callback was called.
 * @return GRACCL_SUCCESS, also if the call failed: callback gets that; GRACCL_INVALID_ARGUMENT (NULL): the
 *         request is still the caller's; GRACCL_INVALID_USAGE (ended before).
 *
 * Thread-safety: may be called by any thread.
 */
graccl_result_t graccl_request_set_callback(graccl_request_t *request,
                                            void (*callback)(void *arg, graccl_result_t result),
                                            void *arg);

/**
 * Gives up interest in a call, which goes on: its buffers stay in use until it is over, and its failure
 * shows at the next call on the communicator. To stop it, abort the communicator.
 *
 * @param request The request, invalid from now on. NULL does nothing.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (ended before).
 *
 * Thread-safety: may be called by any thread.
 */
graccl_result_t graccl_request_free(graccl_request_t *request);

/**
 * Begins a group: the graccl calls of this thread up to graccl_group_end are collected and carried out
 * together, as if each ran in a thread of its own. So one thread can make the calls of several ranks
 * (see graccl_comm_init_all), or sends and receives that wait for each other.
 *
 * Collective calls and sends and receives return at once in a group. Wrong arguments are refused at
 * once, too, and such a call is not part of the group. Results, and buffers, are there when
 * graccl_group_end has returned. Non-blocking calls give their requests at once; these start at the
 * end of the group, so wait for them after it. Count arrays of calls are read at once.
 *
 * Communicators may be made in a group, also from others by graccl_comm_split and graccl_comm_dup: they are
 * ready when graccl_group_end has returned, and destroyed or aborted but not otherwise used before.
 * graccl_comm_shrink is not for groups.
 *
 * Calls on one communicator keep their order. Groups nest: only the outermost end counts.
 *
 * @return GRACCL_SUCCESS.
 *
 * Thread-safety: each thread has groups of its own.
 */
graccl_result_t graccl_group_start(void);

/**
 * Ends a group: carries out its calls, and waits until the blocking ones are complete.
 *
 * @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (there is no group to end); the first error of any call
 *         of the group, as the call itself would return it.
 *
 * Thread-safety: ends the group that this thread began.
 */
graccl_result_t graccl_group_end(void);

/**
 * Makes a bucketer: it reduces the gradients of a training step bucket by bucket, while the program
 * computes others.
 *
 * In each step: write every gradient and mark it (graccl_bucketer_mark_ready), in any order, then
 * graccl_bucketer_finish_step. The first steps are measured; then the ranks agree on what is put together
 * and when, and look again now and then.
 *
 * @param bucketer Where to put it; NULL after an error.
 * @param tensors The gradients, in the order in which the backward pass makes them ready (roughly: the
 *        order decides what is put together; all orders work). Read during the call only.
 * @param count How many, at least 1.
 * @param config Settings, or NULL for the defaults. Read during the call only.
 * @param comm The communicator, which must live longer. Other calls on it may be made between steps.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no tensors, unknown types or settings);
 *         GRACCL_INVALID_USAGE (destroyed; ranks with other tensors or settings); what graccl_all_reduce
 *         returns.
 *
 * Collective: all ranks call it with the same tensors and settings; only memory may differ. It may measure
 * for about a second.
 *
 * Thread-safety: as graccl_all_reduce.
 */
graccl_result_t graccl_bucketer_create(graccl_bucketer_t **bucketer,
                                       const graccl_tensor_t *tensors,
                                       size_t count,
                                       const graccl_bucketer_config_t *config,
                                       graccl_comm_t *comm);

/**
 * Where gradient i is to be written and its result read: its memory, or the bucketer's. It stays there.
 *
 * @param bucketer The bucketer.
 * @param i Number of the tensor.
 * @param gradient Where to put the address.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no such tensor); GRACCL_INVALID_USAGE
 *         (destroyed).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_bucketer_gradient(graccl_bucketer_t *bucketer,
                                         size_t i,
                                         void **gradient);

/**
 * Gradient i is written: from now on it is graccl's until the step is over. Starts what can start, and
 * returns without waiting for other ranks.
 *
 * @param bucketer The bucketer.
 * @param i Number of the tensor. Every tensor is marked once in every step.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no such tensor); GRACCL_INVALID_USAGE (marked
 *         twice, in a group, destroyed); the failure of a bucket.
 *
 * Thread-safety: several threads may mark at the same time.
 */
graccl_result_t graccl_bucketer_mark_ready(graccl_bucketer_t *bucketer,
                                           size_t i);

/**
 * All gradients are marked, but the step is not over: results may be waited for one by one, and the first
 * mark of the next step waits for what is left.
 *
 * @param bucketer The bucketer.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (gradients that were not marked, destroyed); the failure
 *         of a bucket.
 *
 * Thread-safety: one thread, after all marks.
 */
graccl_result_t graccl_bucketer_finish_backward(graccl_bucketer_t *bucketer);

/**
 * Waits until the result of gradient i is there.
 *
 * @param bucketer The bucketer.
 * @param i Number of the tensor.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no such tensor); GRACCL_INVALID_USAGE (its bucket
 *         waits for gradients that were not marked, destroyed); the bucket's failure.
 *
 * Thread-safety: several threads may wait.
 */
graccl_result_t graccl_bucketer_wait(graccl_bucketer_t *bucketer,
                                     size_t i);

/**
 * Waits for all results: the step is over, and the gradients are the program's again.
 *
 * @param bucketer The bucketer.
 * @param times Where to put what the step took; may be NULL.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (gradients that were not marked, destroyed); the failure
 *         of a bucket, after which the bucketer can only be destroyed.
 *
 * Collective: in some steps the ranks agree on a new plan.
 *
 * Thread-safety: one thread, after all marks.
 */
graccl_result_t graccl_bucketer_finish_step(graccl_bucketer_t *bucketer,
                                            graccl_step_times_t *times);

/**
 * The plan in use, for people: a line for each bucket.
 *
 * @param bucketer The bucketer.
 * @param text Where to put it, ended by a 0 and cut where the room ends.
 * @param bytes The room, at least 1.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, no room); GRACCL_INVALID_USAGE (destroyed).
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_bucketer_describe(graccl_bucketer_t *bucketer,
                                         char *text,
                                         size_t bytes);

/**
 * Ends a bucketer. Buckets under way go on without it; the program's memory is not touched any more.
 *
 * @param bucketer The bucketer, invalid from now on. NULL does nothing.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_USAGE (destroyed before).
 *
 * Thread-safety: may be called by any thread, when no other function uses it.
 */
graccl_result_t graccl_bucketer_destroy(graccl_bucketer_t *bucketer);

/**
 * Allocates memory that the other ranks of this host can reach directly, so that collectives on it
 * need no staging copy. Any graccl call takes it, and so does everything else that takes memory.
 *
 * @param ptr Where to put the address: zeroed memory, aligned to 4096 bytes or more. NULL after an
 *        error.
 * @param bytes Size in bytes; 0 gives an address that may only be freed.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (NULL, or more bytes than there can be);
 *         GRACCL_SYSTEM_ERROR.
 *
 * The caller owns it until graccl_mem_free. It is not bound to a communicator.
 *
 * Thread-safety: may be called by any thread at any time.
 */
graccl_result_t graccl_mem_alloc(void **ptr, size_t bytes);

/**
 * Frees what graccl_mem_alloc gave.
 *
 * @param ptr An address that graccl_mem_alloc gave, or NULL, which does nothing.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT (not from graccl_mem_alloc, or freed before).
 *
 * Thread-safety: may be called by any thread, when no call that uses the memory is under way.
 */
graccl_result_t graccl_mem_free(void *ptr);

/**
 * One English line for a result code, for example "a deadline passed".
 *
 * @param result Any number.
 * @return Static text; never NULL, "unknown result code" if there is no such code.
 *
 * May be called by any thread at any time. graccl_last_error says more about one failed call.
 */
const char *graccl_get_error_string(graccl_result_t result);

/**
 * What went wrong, who it concerns, and what to do about it, in one line.
 *
 * @param comm NULL, or a communicator.
 * @return The text of the calling thread's last graccl call that failed. If none of its calls
 *         failed and comm is a live communicator, the text of the last failed call on comm by any
 *         thread. Otherwise "no error". Never NULL. Calls that succeed do not clear the text, so ask
 *         only after a call that failed.
 *
 * The text belongs to graccl and is valid until the calling thread's next graccl call or its end.
 * A call that failed after it was started or in a group counts as the one that reported it:
 * graccl_request_test, graccl_request_wait, graccl_group_end, graccl_comm_get_async_error. May be
 * called by any thread at any time.
 */
const char *graccl_last_error(const graccl_comm_t *comm);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GRACCL_H */
