// An allreduce in C++: the C functions behind a class that cleans up after itself and throws.
//
//   c++ -std=c++11 all_reduce.cpp $(pkg-config --cflags --libs graccl) -o all_reduce
//   graccl run -n 4 -- ./all_reduce        (or: mpirun -n 4 ./all_reduce, torchrun, srun)
//
// Started alone it is a job of one rank.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include <graccl.h>

// The whole wrapper. Extend it by the functions and element types that you need.
namespace graccl {

inline void check(graccl_result_t result)
{
    if (result != GRACCL_SUCCESS) throw std::runtime_error(graccl_last_error(nullptr));
}

class Communicator {
public:
    Communicator() { check(graccl_comm_init_env(&comm_)); }
    ~Communicator() { graccl_comm_destroy(comm_); }
    Communicator(const Communicator &) = delete;
    Communicator &operator=(const Communicator &) = delete;

    int rank() const { int n; check(graccl_comm_rank(comm_, &n)); return n; }
    int size() const { int n; check(graccl_comm_size(comm_, &n)); return n; }
    void barrier() { check(graccl_barrier(comm_)); }
    void all_reduce(const double *send, double *recv, std::size_t count, graccl_red_op_t op)
    {
        check(graccl_all_reduce(send, recv, count, GRACCL_FLOAT64, op, comm_));
    }

private:
    graccl_comm_t *comm_ = nullptr;
};

} // namespace graccl

static void expect(const char *what, const std::vector<double> &data, double expected)
{
    for (double value : data)
        if (value != expected) throw std::runtime_error(std::string(what) + ": wrong result");
}

int main()
{
    try {
        // Rank, number of ranks and where to meet come from the environment that the launcher set.
        graccl::Communicator comm;
        const int rank = comm.rank(), size = comm.size();

        // Out of place: send is only read. All ranks make the same calls in the same order.
        std::vector<double> send(100003, rank + 1), recv(send.size());
        comm.all_reduce(send.data(), recv.data(), send.size(), GRACCL_SUM);
        expect("sum, out of place", recv, size * (size + 1) / 2.0);

        // In place: the result takes the place of the contribution.
        comm.all_reduce(send.data(), send.data(), send.size(), GRACCL_MAX);
        expect("maximum, in place", send, size);

        // Leave only when all are done: a rank that leaves early is an error for those that still wait.
        comm.barrier();
        std::printf("rank %d of %d: ok\n", rank, size);
        return 0;
    } catch (const std::exception &error) {
        // Ending this process tells the other ranks: they get GRACCL_REMOTE_ERROR within about a second.
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
}
