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
 * "where to put it" points to is written before the function returns and never kept. No function calls
 * back into the caller, none exits the process, and none installs a signal handler.
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
            GRACCL_UNSET, NULL, NULL, GRACCL_UNSET                                    \
    }

/** Version of this header: 10000 * major + 100 * minor + patch. */
#define GRACCL_VERSION (10000 * 0 + 100 * 1 + 0)

/**
 * Bytes of a graccl_unique_id_t.
 */
#define GRACCL_UNIQUE_ID_BYTES 128

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
} graccl_red_op_t;

/**
 * A communicator: made by graccl_comm_init_rank, graccl_comm_init_rank_config or
 * graccl_comm_init_env, ended by graccl_comm_destroy. What it points to is graccl's own affair.
 */
typedef struct graccl_comm_t graccl_comm_t;

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
 * else the default. All ranks must use the same transport and algorithm.
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
} graccl_config_t;

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
 * @param comm Where to put the communicator; NULL after an error.
 * @param nranks Number of ranks, the same on all.
 * @param id From graccl_get_unique_id, the same bytes on all ranks.
 * @param rank This process's number, 0 .. nranks-1, on each rank another.
 * @return GRACCL_SUCCESS; GRACCL_INVALID_ARGUMENT; GRACCL_INVALID_USAGE (the ranks disagree, or a rank
 *         was given twice); GRACCL_TIMEOUT (the text names the ranks that did not come);
 *         GRACCL_REMOTE_ERROR; GRACCL_SYSTEM_ERROR.
 *
 * Settings come from the environment: see graccl_config_t. The caller owns the communicator until
 * graccl_comm_destroy.
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
 * @param comm Where to put the communicator; NULL after an error.
 * @param nranks Number of ranks, the same on all.
 * @param id From graccl_get_unique_id, the same bytes on all ranks.
 * @param rank This process's number, 0 .. nranks-1, on each rank another.
 * @param config Settings, started from GRACCL_CONFIG_INITIALIZER; NULL is the same as all unset. Stays
 *        the caller's and is not used after the call.
 * @return As graccl_comm_init_rank; GRACCL_INVALID_ARGUMENT also for a setting that makes no sense.
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
 * @param comm Where to put the communicator; NULL after an error.
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
 * Memory from graccl_mem_alloc is not freed.
 *
 * Thread-safety: no other thread may be inside graccl_all_reduce or graccl_barrier on comm: to stop
 * them, call graccl_comm_abort and wait for them to return. All other functions may run meanwhile.
 */
graccl_result_t graccl_comm_destroy(graccl_comm_t *comm);

/**
 * Fails the calls under way on the communicator and all later ones with GRACCL_ABORTED, here and, as
 * soon as they hear of it, on the other ranks. Does not wait. The communicator must still be
 * destroyed (unlike with ncclCommAbort).
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
 *         only be destroyed.
 *
 * The buffers stay the caller's. Memory from graccl_mem_alloc saves a copy between ranks of one host.
 *
 * Thread-safety: threads may share comm; their calls are carried out one after the other, and must
 * have the same order on all ranks. No other thread may touch the buffers during the call.
 */
graccl_result_t graccl_all_reduce(const void *send,
                                  void *recv,
                                  size_t count,
                                  graccl_data_type_t data_type,
                                  graccl_red_op_t op,
                                  graccl_comm_t *comm);

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
 * May be called by any thread at any time.
 */
const char *graccl_last_error(const graccl_comm_t *comm);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GRACCL_H */
