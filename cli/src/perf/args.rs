//! The flags of `graccl perf`: those of nccl-tests, and our own.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use graccl::{Collective, DataType, Error, RedOp, Result, TransportChoice};

use super::operation::Operation;
use super::tensors::{self, Tensor};
use crate::schedules;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Auto,
    Shm,
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// Plain memory of the process
    Host,
    /// Memory from graccl_mem_alloc, which the ranks of a host can reach directly
    Registered,
}

#[derive(Args, Clone)]
#[command(after_help = "\
Columns: size of a rank's larger buffer; count, the elements that a call is given: for one rank
where every rank has a block of its own; time of one call; algbw = size / time; busbw = algbw *
2(n-1)/n for all_reduce, (n-1)/n for reduce_scatter, all_gather, gather, scatter and all_to_all,
1 for the others: what the busiest rank must send or receive, comparable between any n;
#wrong = elements that differ from the exact result, or bytes touched that must not be, all ranks;
for barrier: ranks that came out before the last one went in. 1 GB/s = 1e9 B/s.
Then, of a second loop, in place where that exists, with a clock read around every iteration, the
slowest rank's min, median, p99 and max; then the plan: algorithm x tiles, transport.

send_recv: every rank sends to the next one and receives from the one before.

--algo all measures every algorithm beside graccl's choice, on one communicator and in turns, and
compares within rounds of turns: the mean of the middle half of what each took in times of its round's mean. An
algorithm whose plan is the choice's is not measured twice. The mean of busbw is that of the choice.

Under a launcher (graccl run, mpirun, srun, torchrun) it joins that job; else it starts --np ranks.

Exit status: 0 if everything ran and every result was right, 1 if not, 2 for wrong flags.")]
pub struct PerfArgs {
    /// What to time
    #[arg(value_enum, value_name = "COLLECTIVE")]
    pub operation: Operation,

    /// Smallest size, bytes; K, M and G mean 2^10, 2^20 and 2^30
    #[arg(short = 'b', long, value_name = "SIZE", value_parser = parse_size, default_value = "8")]
    pub minbytes: usize,
    /// Largest size, bytes. The default range shows the whole curve; nccl-tests' default is one
    /// size, 32M
    #[arg(short = 'e', long, value_name = "SIZE", value_parser = parse_size, default_value = "128M")]
    pub maxbytes: usize,
    /// Add this many bytes from one size to the next
    #[arg(short = 'i', long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "stepfactor")]
    pub stepbytes: Option<usize>,
    /// Multiply by this from one size to the next; without -i, 2
    #[arg(short = 'f', long, value_name = "FACTOR", value_parser = clap::value_parser!(u64).range(2..))]
    pub stepfactor: Option<u64>,

    /// Timed iterations per size
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub iters: u32,
    /// Iterations before the timed ones, per size
    #[arg(short = 'w', long = "warmup_iters", value_name = "N", default_value_t = 1)]
    pub warmup_iters: u32,
    /// Calls per iteration
    #[arg(short = 'm', long = "agg_iters", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub agg_iters: u32,
    /// Repeat the table N times; 0: for ever
    #[arg(short = 'N', long = "run_cycles", value_name = "N", default_value_t = 1)]
    pub run_cycles: u32,
    /// Check iterations per size, each with data of its own; 0: none
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1)]
    pub check: u32,
    /// sum, prod, min, max, avg or all [default: sum]
    #[arg(short = 'o', long, value_name = "OP", value_parser = parse_op)]
    pub op: Option<Choice<RedOp>>,
    /// int8, uint8, int32, uint32, int64, uint64, half, float, double, bfloat16, f8e4m3, f8e5m2 or all
    /// [default: float]
    #[arg(short = 'd', long, value_name = "TYPE", value_parser = parse_type)]
    datatype: Option<Choice<DataType>>,
    /// Root, where there is one; -1 or all: every rank in turn [default: 0]
    #[arg(short = 'r', long, value_name = "R|all", value_parser = parse_root, allow_hyphen_values = true)]
    pub root: Option<Root>,
    /// Longest wait inside a call, seconds
    #[arg(short = 'T', long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub timeout: Option<u64>,
    /// Time to report: 0 rank 0's, 1 average, 2 smallest, 3 largest of all ranks. (nccl-tests'
    /// default, 1, hides stragglers)
    #[arg(short = 'a', long, value_name = "0..3", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub average: u8,
    /// Report CPU time per call instead of elapsed time: 0 or 1
    #[arg(short = 'C', long = "report_cputime", value_name = "0|1", default_value_t = 0, num_args = 0..=1, default_missing_value = "1")]
    pub report_cputime: u32,
    /// Add the time of day to each row: 0 or 1
    #[arg(short = 'S', long = "report_timestamps", value_name = "0|1", default_value_t = 0, num_args = 0..=1, default_missing_value = "1")]
    pub report_timestamps: u32,
    /// Write the results to FILE as JSON, with nccl-tests' keys
    #[arg(short = 'J', long = "output_file", value_name = "FILE")]
    pub output_file: Option<PathBuf>,

    /// Ranks to start here [default: number of cores, at least 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub np: Option<u32>,
    /// Split the ranks over H emulated hosts, in blocks
    #[arg(long, value_name = "H", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub hosts: u32,
    /// How ranks reach each other [default: GRACCL_TRANSPORT, or auto: shared memory on a host,
    /// TCP between hosts]
    #[arg(long, value_enum)]
    pub transport: Option<Transport>,
    /// Algorithm; auto lets graccl choose per size; all says how good that choice is [default:
    /// GRACCL_ALGO, or auto]
    #[arg(long, value_name = "NAME|auto|all")]
    pub algo: Option<String>,
    /// Memory of the buffers
    #[arg(long, value_enum, default_value = "host")]
    pub memory: Memory,
    /// Bind rank r to core r mod cores
    #[arg(long)]
    pub pin: bool,
    /// For all_reduce: reduce a model's gradients instead, in the order of its backward pass: a name or a FILE, as
    /// for graccl plan. Its times are medians of the slowest rank's; -a, -b, -C, -e, -N and -o all do not apply
    #[arg(long, value_name = "MODEL|FILE")]
    pub tensors: Option<String>,

    /// Threads per rank: 1
    #[arg(
        short = 't',
        long,
        value_name = "1",
        default_value_t = 1,
        help_heading = "Accepted from nccl-tests"
    )]
    pub nthreads: u32,
    /// Devices per rank: 1
    #[arg(
        short = 'g',
        long,
        value_name = "1",
        default_value_t = 1,
        help_heading = "Accepted from nccl-tests"
    )]
    pub ngpus: u32,
    #[command(flatten)]
    pub ignored: Ignored,
}

/// Flags of nccl-tests that mean nothing without a GPU.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Accepted from nccl-tests")]
pub struct Ignored {
    /// Ignored, as they are about GPUs: -p -z -y -G -R -x -D -V -M -u -I -K
    #[arg(short = 'p', long = "parallel_init", value_name = "V")]
    parallel_init: Option<String>,
    #[arg(short = 'z', long, value_name = "V", hide = true)]
    blocking: Option<String>,
    #[arg(short = 'y', long = "stream_null", value_name = "V", hide = true)]
    stream_null: Option<String>,
    #[arg(short = 'G', long, value_name = "V", hide = true)]
    cudagraph: Option<String>,
    #[arg(short = 'R', long = "local_register", value_name = "V", hide = true)]
    local_register: Option<String>,
    #[arg(short = 'x', long = "cta_policy", value_name = "V", hide = true)]
    cta_policy: Option<String>,
    #[arg(short = 'D', long = "device_implementation", value_name = "V", hide = true)]
    device_implementation: Option<String>,
    #[arg(short = 'V', long = "device_cta_count", value_name = "V", hide = true)]
    device_cta_count: Option<String>,
    #[arg(short = 'M', long = "memory_report", value_name = "V", hide = true, num_args = 0..=1, default_missing_value = "1")]
    memory_report: Option<String>,
    #[arg(short = 'u', long, value_name = "V", hide = true)]
    unalign: Option<String>,
    #[arg(short = 'I', long = "per_iter_timing", hide = true, action = ArgAction::SetTrue)]
    per_iter_timing: bool,
    #[arg(short = 'K', long = "per_iter_skip", value_name = "V", hide = true)]
    per_iter_skip: Option<String>,
}

/// One value of a list, or all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<T>(pub Vec<T>);

fn choose<T: Copy>(text: &str, all: &[T], name: impl Fn(T) -> &'static str) -> Option<Choice<T>> {
    let lower = text.to_ascii_lowercase();
    if lower == "all" {
        return Some(Choice(all.to_vec()));
    }
    all.iter().find(|&&t| name(t) == lower).map(|&t| Choice(vec![t]))
}

fn parse_op(text: &str) -> std::result::Result<Choice<RedOp>, String> {
    choose(text, &RedOp::ALL, RedOp::name).ok_or_else(|| "graccl has sum, prod, min, max, avg and all".into())
}

fn parse_type(text: &str) -> std::result::Result<Choice<DataType>, String> {
    choose(text, &DataType::ALL, DataType::name).ok_or_else(|| {
        let names: Vec<_> = DataType::ALL.iter().map(|d| d.name()).collect();
        format!("graccl has {} and all", names.join(", "))
    })
}

/// Which ranks are roots, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    Rank(usize),
    All,
}

fn parse_root(text: &str) -> std::result::Result<Root, String> {
    match text {
        "-1" | "all" => Ok(Root::All),
        rank => rank.parse().map(Root::Rank).map_err(|_| "not a rank, -1 or all".into()),
    }
}

/// "4", "64K", "1M", "2G", also with a fraction ("1.5M") and a final B or iB.
pub fn parse_size(text: &str) -> std::result::Result<usize, String> {
    let wrong = || "not a size in bytes: write a number, with K, M or G for 2^10, 2^20 or 2^30".to_string();
    let upper = text.trim().to_ascii_uppercase();
    let body = upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper);
    let (digits, unit) = match body.chars().last() {
        Some('K') => (&body[..body.len() - 1], 1u64 << 10),
        Some('M') => (&body[..body.len() - 1], 1 << 20),
        Some('G') => (&body[..body.len() - 1], 1 << 30),
        _ => (body, 1),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || digits.contains('E') {
        return Err(wrong());
    }
    if let Ok(n) = digits.parse::<u64>() {
        let bytes = n.checked_mul(unit).and_then(|b| usize::try_from(b).ok());
        return bytes.filter(|&b| b <= 1 << 46).ok_or_else(|| "more than any machine has".into());
    }
    match digits.parse::<f64>().map(|f| f * unit as f64) {
        Ok(f) if f < (1u64 << 46) as f64 => Ok(f as usize),
        _ => Err(wrong()),
    }
}

impl PerfArgs {
    /// What clap cannot see.
    pub fn check(&self) -> Result<()> {
        if self.nthreads != 1 || self.ngpus != 1 {
            return Err(Error::argument("graccl has one rank per process, so -t and -g can only be 1")
                .hint("start more ranks with --np N"));
        }
        if self.minbytes > self.maxbytes {
            return Err(Error::argument(format!("-b {} is larger than -e {}", self.minbytes, self.maxbytes))
                .hint("-b is the smallest and -e the largest size"));
        }
        if self.stepbytes == Some(0) {
            return Err(
                Error::argument("-i 0 would never reach -e").hint("use a step of at least one element")
            );
        }
        if let Some(name) = self.algo.as_deref().filter(|a| !["auto", "all"].contains(a)) {
            match self.operation.algorithms() {
                Some(collective) => schedules::find(collective, name).map(drop)?,
                None => {
                    return Err(Error::argument(format!("{} has no algorithms", self.operation.name()))
                        .hint("leave --algo out"));
                }
            }
        }
        if let Some(Choice(ops)) = &self.op
            && self.operation.reduces()
            && self.ops().is_empty()
        {
            let names: Vec<_> = ops.iter().map(|o| o.name()).collect();
            let what = format!("{} has no {}", self.operation.name(), names.join(", "));
            return Err(Error::argument(what).hint("use sum, prod, min or max"));
        }
        if self.tensors.is_some() {
            if self.operation != Operation::Do(Collective::AllReduce) {
                return Err(Error::argument(format!("--tensors with {}", self.operation.name()))
                    .hint("it is for all_reduce"));
            }
            if self.ops().len() > 1 || self.types().len() > 1 {
                return Err(Error::argument("--tensors takes one -o and one -d").hint("name one of each"));
            }
        }
        Ok(())
    }

    /// The types of the elements.
    pub fn types(&self) -> &[DataType] {
        self.datatype.as_ref().map_or(&[DataType::F32], |d| &d.0)
    }

    /// With --tensors: the gradients; those of a model as -d says, if it does.
    pub fn gradients(&self) -> Result<Option<Vec<Tensor>>> {
        let dtype = self.datatype.as_ref().map(|d| d.0[0]);
        self.tensors.as_deref().map(|t| tensors::load(t, dtype)).transpose()
    }

    /// The operations to reduce with; one where nothing is reduced.
    pub fn ops(&self) -> Vec<RedOp> {
        match &self.op {
            Some(Choice(ops)) if self.operation.reduces() => {
                ops.iter().copied().filter(|&op| self.operation.takes(op)).collect()
            }
            _ => vec![RedOp::Sum],
        }
    }

    /// The roots of a job of `ranks`; one where there is no root.
    pub fn roots(&self, ranks: usize) -> Result<Vec<usize>> {
        match self.root {
            Some(Root::All) if self.operation.rooted() => Ok((0..ranks).collect()),
            Some(Root::Rank(r)) if self.operation.rooted() && r >= ranks => {
                Err(Error::argument(format!("there is no rank {r}"))
                    .who("-r")
                    .hint(format!("ranks are 0 to {}", ranks - 1)))
            }
            Some(Root::Rank(r)) if self.operation.rooted() => Ok(vec![r]),
            _ => Ok(vec![0]),
        }
    }

    /// The counts to time where an element of each block takes `size` bytes of a buffer, ascending.
    /// nccl-tests cuts blocks to multiples of 16 bytes; ours may have any number of elements.
    pub fn counts(&self, size: usize) -> Vec<usize> {
        let mut counts = Vec::new();
        let mut bytes = self.minbytes;
        while bytes <= self.maxbytes {
            let count = bytes / size;
            if count > 0 && counts.last() != Some(&count) {
                counts.push(count);
            }
            let next = match self.stepbytes {
                Some(step) => bytes.checked_add(step),
                None => bytes.max(1).checked_mul(self.stepfactor.unwrap_or(2) as usize),
            };
            let Some(next) = next else { break };
            bytes = next;
        }
        counts
    }

    /// The flags that were given and have no effect.
    pub fn ignored(&self) -> Vec<&'static str> {
        let i = &self.ignored;
        let all = [
            ("-o", self.op.is_some() && !self.operation.reduces()),
            ("-r", self.root.is_some() && !self.operation.rooted()),
            ("-p", i.parallel_init.is_some()),
            ("-z", i.blocking.is_some()),
            ("-y", i.stream_null.is_some()),
            ("-G", i.cudagraph.is_some()),
            ("-R (see --memory registered)", i.local_register.is_some()),
            ("-x", i.cta_policy.is_some()),
            ("-D", i.device_implementation.is_some()),
            ("-V", i.device_cta_count.is_some()),
            ("-M", i.memory_report.is_some()),
            ("-u", i.unalign.is_some()),
            ("-I (always on)", i.per_iter_timing),
            ("-K", i.per_iter_skip.is_some()),
        ];
        all.into_iter().filter(|a| a.1).map(|a| a.0).collect()
    }

    pub fn transport_choice(&self) -> Option<TransportChoice> {
        self.transport.map(|t| match t {
            Transport::Auto => TransportChoice::Auto,
            Transport::Shm => TransportChoice::Shm,
            Transport::Tcp => TransportChoice::Tcp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("8", 8),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("1M", 1 << 20),
            ("2G", 2 << 30),
            ("1.5K", 1536),
            ("4MiB", 4 << 20),
            ("4MB", 4 << 20),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "8Q", "1e3K", "nan", "inf", "99999999999G", "18446744073709551615K"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[derive(clap::Parser)]
    struct Wrapper {
        #[command(flatten)]
        args: PerfArgs,
    }

    fn parsed(flags: &str) -> PerfArgs {
        parsed_for("all_reduce", flags)
    }

    fn parsed_for(operation: &str, flags: &str) -> PerfArgs {
        use clap::Parser;
        let line = ["x", operation].into_iter().chain(flags.split_whitespace());
        Wrapper::try_parse_from(line).unwrap_or_else(|e| panic!("{flags}: {e}")).args
    }

    #[test]
    fn counts_step_by_factor_or_by_bytes() {
        assert_eq!(parsed("-b 8 -e 64").counts(4), [2, 4, 8, 16]);
        assert_eq!(parsed("-b 1 -e 8").counts(4), [1, 2]);
        assert_eq!(parsed("-b 0 -e 8").counts(4), [1, 2]);
        assert_eq!(parsed("-b 8 -e 100 -f 3").counts(8), [1, 3, 9]);
        assert_eq!(parsed("-b 8 -e 32 -i 8").counts(4), [2, 4, 6, 8]);
        assert_eq!(parsed("-b 8 -e 16 -i 1").counts(4), [2, 3, 4]);
        assert_eq!(parsed("").counts(4).last(), Some(&(32 << 20)));
    }

    #[test]
    fn all_flags_of_nccl_tests_are_understood() {
        let a = parsed(
            "-t 1 -g 1 -b 8 -e 1K -f 2 -n 5 -w 2 -m 1 -N 1 -p 0 -c 1 -o all -d all -r 0 -z 0 -y 0 -T 60 -G 0 -C 0 \
             -S 1 -J x.json -a 1 -R 1 -x 0 -D 0 -V 0 -M -u 0 -I -K 0",
        );
        assert_eq!(a.ignored().len(), 13);
        assert_eq!((a.ops().len(), a.types().len()), (5, 12));
        let a = parsed(
            "--nthreads 1 --ngpus 1 --minbytes 8 --maxbytes 8 --stepfactor 2 --iters 5 --warmup_iters 1 \
             --agg_iters 1 --run_cycles 1 --check 0 --op sum --datatype half --timeout 5 --report_cputime 1 \
             --report_timestamps 1 --average 0 --output_file y --parallel_init 0 --cudagraph 0",
        );
        assert_eq!(a.ignored().len(), 2);
        assert_eq!((a.report_cputime, a.average), (1, 0));
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for flags in ["-t 2", "-g 4", "-b 2M -e 1M", "-i 0", "--algo nonsense", "--tensors alexnet -d all"] {
            assert!(parsed(flags).check().is_err(), "{flags}");
        }
        assert!(parsed("--algo all").check().is_ok());
        for (operation, flags) in [
            ("scan", "-o avg"),
            ("all_gather", "--algo tree"),
            ("send_recv", "--algo direct"),
            ("broadcast", "--tensors alexnet"),
        ] {
            assert!(parsed_for(operation, flags).check().is_err(), "{operation} {flags}");
        }
    }

    #[test]
    fn operations_roots_and_what_is_ignored_follow_the_collective() {
        assert_eq!(parsed_for("scan", "-o all").ops().len(), 4);
        assert_eq!(parsed_for("exscan", "").ops(), [RedOp::Sum]);
        let a = parsed_for("alltoall", "-o max -r 1");
        assert_eq!((a.ops(), a.ignored()), (vec![RedOp::Sum], vec!["-o", "-r"]));
        assert_eq!(parsed_for("reduce", "-r -1").roots(3).unwrap(), [0, 1, 2]);
        assert_eq!(parsed_for("gather", "-r all").roots(2).unwrap(), [0, 1]);
        assert_eq!(parsed_for("scatter", "-r 2").roots(3).unwrap(), [2]);
        assert_eq!(parsed_for("scatter", "").roots(3).unwrap(), [0]);
        assert_eq!(parsed_for("scan", "-r all").roots(3).unwrap(), [0]);
        assert!(parsed_for("broadcast", "-r 3").roots(3).is_err());
    }
}
