//! The job as the launcher's environment describes it.
//!
//! The launcher that is nearest to the process counts. Jobs nest: `mpirun` inside a Slurm job
//! starts its daemons with `srun`, so that ranks see the daemons' `SLURM_PROCID` next to their own
//! `OMPI_COMM_WORLD_RANK`. Hence the order below: graccl's own variables, torchrun, Open MPI,
//! MPICH and Intel MPI (Hydra), Slurm, any other PMI.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::host;
use super::id::{IdParts, Place, UniqueId};
use super::names::Names;
use super::wire::mac;
use crate::log::{Level, log};
use crate::{Code, Error, Result};

/// What the environment says about this process's place in its job.
///
/// If `GRACCL_KEY` is set (any string, the same on all ranks), only processes that know it can take
/// part. Without it the key follows from the job's identity, which other users of the machine can
/// find out: on shared networks set it.
#[derive(Clone, Debug)]
pub struct EnvJob {
    pub rank: usize,
    pub size: usize,
    /// Rank among the job's ranks on this host, where the launcher tells.
    pub local_rank: Option<usize>,
    /// Number of the job's ranks on this host, where the launcher tells.
    pub local_size: Option<usize>,
    /// Names the communicator of all ranks. Every call of [`from_env`] gives another one, so all
    /// ranks must make as many calls.
    pub id: UniqueId,
    /// This rank will be the root: [`super::Bootstrap::rendezvous`] opens its listeners.
    pub root_listens: bool,
    /// Whose variables these are: "graccl", "torchrun", "Open MPI", "MPICH", "Slurm", "PMI" or "none".
    pub launcher: &'static str,
}

/// What was found, before it becomes an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    launcher: &'static str,
    rank: usize,
    size: usize,
    local_rank: Option<usize>,
    local_size: Option<usize>,
    /// The same on all ranks of this job, and on no others.
    identity: String,
    id: Option<UniqueId>,
    /// Host of rank 0 and the TCP ports to try there; `None` if all ranks are on this host.
    pub root: Option<(String, u16, u8)>,
}

/// TCP ports that are tried where no port was given to graccl alone.
const PORTS: u8 = 8;
/// Longest wait for the resolver where a name must be resolved at once.
const RESOLVE: Duration = Duration::from_secs(30);

/// Reads the job from the environment. Nothing set means a job of one rank.
///
/// # Errors
/// `InvalidArgument` for a value that cannot be understood, and for a job on several hosts that
/// does not say where rank 0 is. Both name the variable.
pub fn from_env() -> Result<EnvJob> {
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    let found = Env { get: &variable, launcher: &launcher_process }.find()?;
    let generation = if found.size > 1 { GENERATION.fetch_add(1, Ordering::Relaxed) } else { 0 };
    log(
        Level::Info,
        Some(found.rank),
        format_args!("rank {} of {} by {}", found.rank, found.size, found.launcher),
    );
    found.job(variable("GRACCL_KEY"), generation)
}

/// This process's rank and the number of ranks, as [`from_env`] would find them; `None` if no launcher started it.
///
/// # Errors
/// Those of [`from_env`].
pub fn launched() -> Result<Option<(usize, usize)>> {
    let found = Env { get: &variable, launcher: &launcher_process }.find()?;
    Ok((found.launcher != "none").then_some((found.rank, found.size)))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty())
}

pub(super) struct Env<'a> {
    pub get: &'a dyn Fn(&str) -> Option<String>,
    /// Identity of the process that gave the ranks their variable of this name.
    pub launcher: &'a dyn Fn(&str) -> String,
}

fn not_a_number(name: &str, value: &str) -> Error {
    Error::argument(format!("{name}={value} is not a number")).hint("it is set by the launcher of the job")
}

impl Env<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name)
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.text(name) else { return Ok(None) };
        value.parse::<u32>().map(|n| Some(n as usize)).map_err(|_| not_a_number(name, &value))
    }

    fn port(&self, name: &str) -> Result<Option<u16>> {
        let Some(value) = self.text(name) else { return Ok(None) };
        match value.parse::<u16>() {
            Ok(p) if p > 0 => Ok(Some(p)),
            _ => Err(Error::argument(format!("{name}={value} is not a port")).hint("use 1 to 65535")),
        }
    }

    /// All of these variables, as "name=value ...": part of an identity.
    fn quote(&self, names: &[&str]) -> String {
        let pairs = names.iter().filter_map(|n| self.text(n).map(|v| format!("{n}={v}")));
        pairs.collect::<Vec<_>>().join(" ")
    }

    /// Rank and size, if both are set.
    fn pair(&self, rank: &str, size: &str) -> Result<Option<(usize, usize)>> {
        if self.text(rank).is_none() || self.text(size).is_none() {
            return Ok(None);
        }
        let (Some(r), Some(s)) = (self.number(rank)?, self.number(size)?) else { return Ok(None) };
        if r >= s {
            return Err(Error::argument(format!("{rank}={r} but {size}={s}"))
                .hint("ranks are 0 to size - 1: correct one of the two"));
        }
        Ok(Some((r, s)))
    }

    fn local(&self, found: &mut Found, rank: &str, size: &str) -> Result<()> {
        found.local_rank = self.number(rank)?;
        found.local_size = self.number(size)?;
        if let (Some(r), Some(s)) = (found.local_rank, found.local_size)
            && r >= s
        {
            return Err(Error::argument(format!("{rank}={r} but {size}={s}"))
                .hint("local ranks are 0 to local size - 1"));
        }
        match found.local_size {
            Some(s) if s > found.size => {
                Err(Error::argument(format!("{size}={s}, but the whole job has {} ranks", found.size)))
            }
            _ => Ok(()),
        }
    }

    pub fn find(&self) -> Result<Found> {
        let found = |launcher, (rank, size)| Found {
            launcher,
            rank,
            size,
            local_rank: None,
            local_size: None,
            identity: String::new(),
            id: None,
            root: None,
        };

        if let Some(half) = ["GRACCL_RANK", "GRACCL_SIZE"].iter().find(|n| self.text(n).is_some()) {
            let Some(pair) = self.pair("GRACCL_RANK", "GRACCL_SIZE")? else {
                return Err(Error::argument(format!("{half} is set without its counterpart"))
                    .hint("set both GRACCL_RANK and GRACCL_SIZE, or neither"));
            };
            let mut f = found("graccl", pair);
            if let Some(hex) = self.text("GRACCL_ID") {
                f.id = Some(UniqueId::from_hex(&hex).map_err(|e| e.who("GRACCL_ID"))?);
            } else if self.text("GRACCL_KEY").is_none() && self.text("MASTER_ADDR").is_none() {
                f.identity = (self.launcher)("GRACCL_RANK");
            }
            return self.place(f, None);
        }
        if let Some(pair) = self.pair("RANK", "WORLD_SIZE")? {
            let mut f = found("torchrun", pair);
            self.local(&mut f, "LOCAL_RANK", "LOCAL_WORLD_SIZE")?;
            f.identity = self.quote(&["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"]);
            if self.text("MASTER_ADDR").is_none() {
                f.identity += &(self.launcher)("RANK");
            }
            return self.place(f, None);
        }
        if let Some(pair) = self.pair("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")? {
            let mut f = found("Open MPI", pair);
            self.local(&mut f, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")?;
            // The first is random for every job, the others contain the launcher's process id.
            f.identity = self.quote(&[
                "OMPI_MCA_orte_precondition_transports",
                "PMIX_NAMESPACE",
                "OMPI_MCA_ess_base_jobid",
            ]);
            if f.identity.is_empty() {
                f.identity = (self.launcher)("OMPI_COMM_WORLD_RANK");
            }
            return self.place(f, None);
        }
        let pmi = self.pair("PMI_RANK", "PMI_SIZE")?;
        if let Some(pair) = pmi.filter(|_| self.text("MPI_LOCALRANKID").is_some()) {
            let mut f = found("MPICH", pair);
            self.local(&mut f, "MPI_LOCALRANKID", "MPI_LOCALNRANKS")?;
            if f.local_size.is_none_or(|s| s == f.size) {
                f.identity = (self.launcher)("PMI_RANK");
            }
            return self.place(f, None);
        }
        let size = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"].into_iter().find(|n| self.text(n).is_some());
        let step = ["SLURM_STEP_ID", "SLURM_STEPID"].iter().any(|n| self.text(n).is_some());
        // A batch script has a SLURM_PROCID as well, but it is no step and starts no ranks.
        if step && let Some(pair) = self.pair("SLURM_PROCID", size.unwrap_or("SLURM_NTASKS"))? {
            let mut f = found("Slurm", pair);
            f.local_rank = self.number("SLURM_LOCALID")?;
            let nodes = self.number("SLURM_STEP_NUM_NODES")?.or(self.number("SLURM_NNODES")?);
            f.local_size = (nodes == Some(1)).then_some(f.size);
            f.identity = self.quote(&[
                "SLURM_CLUSTER_NAME",
                "SLURM_JOB_ID",
                "SLURM_STEP_ID",
                "SLURM_STEPID",
                "SLURM_RESTART_COUNT",
            ]);
            let first = self.text("SLURM_STEP_NODELIST").or_else(|| self.text("SLURM_NODELIST"));
            return self.place(f, first.map(|l| first_host(&l)));
        }
        if let Some(pair) = pmi {
            let mut f = found("PMI", pair);
            f.identity = (self.launcher)("PMI_RANK");
            return self.place(f, None);
        }
        Ok(found("none", (0, 1)))
    }

    /// Settles where rank 0 is. `first` is the launcher's own word on it.
    fn place(&self, mut f: Found, first: Option<String>) -> Result<Found> {
        if f.size == 1 || f.id.is_some() || f.local_size == Some(f.size) {
            // The parent's identity is not needed where a port tells jobs of one host apart.
            f.identity += &self.quote(&["MASTER_ADDR", "MASTER_PORT"]);
            return Ok(f);
        }
        let Some(host) = self.text("MASTER_ADDR").or(first) else {
            return match f.local_size {
                // The launcher does not tell: taken to be one host.
                None => Ok(f),
                Some(here) => Err(Error::argument(format!(
                    "only {here} of {} ranks are on this host, and {} does not say where rank 0 is",
                    f.size, f.launcher
                ))
                .hint(
                    "set MASTER_ADDR to the host of rank 0, GRACCL_PORT to a free port there and GRACCL_KEY to \
                     a secret, the same on all ranks",
                )),
            };
        };
        f.identity += &self.quote(&["MASTER_ADDR", "MASTER_PORT"]);
        let (port, ports) = match (self.port("GRACCL_PORT")?, self.port("MASTER_PORT")?) {
            (Some(port), _) => (port, 1),
            // torchrun's own store holds MASTER_PORT itself.
            (None, Some(port)) => (port.saturating_add(1), PORTS),
            (None, None) => {
                let hash = mac(b"graccl port", &[f.identity.as_bytes()]);
                (20_000 + u16::from_le_bytes([hash[0], hash[1]]) % 10_000, PORTS)
            }
        };
        f.root = Some((host, port, ports));
        Ok(f)
    }
}

impl Found {
    pub fn job(self, secret: Option<String>, generation: u32) -> Result<EnvJob> {
        let parts = match &self.id {
            Some(id) => IdParts { keep: true, generation, ..id.parts()? },
            None => {
                let size = self.size.to_le_bytes();
                let key = match &secret {
                    Some(secret) => {
                        mac(secret.as_bytes(), &[b"graccl key of a job\0", &size, self.identity.as_bytes()])
                    }
                    None => {
                        let uid = host::uid().to_le_bytes();
                        mac(b"graccl open job", &[&uid, &size, self.identity.as_bytes()])
                    }
                };
                let (place, port, ports) = match &self.root {
                    Some((host, port, ports)) => (place_of(host)?, *port, *ports),
                    None => (Place::Addrs(Vec::new()), 0, 0),
                };
                IdParts { rank0_listens: true, keep: true, generation, host: 0, key, port, ports, place }
            }
        };
        Ok(EnvJob {
            rank: self.rank,
            size: self.size,
            local_rank: self.local_rank,
            local_size: self.local_size,
            id: parts.encode().0,
            root_listens: parts.rank0_listens && self.rank == 0,
            launcher: self.launcher,
        })
    }
}

/// A host name that fits is resolved when it is needed, and again if that fails: in a cluster
/// that is coming up it may not be known yet.
fn place_of(host: &str) -> Result<Place> {
    if host.len() <= super::id::MAX_NAME {
        return Ok(Place::Named(host.into()));
    }
    match Names::new(host).look(Instant::now() + RESOLVE, &AtomicBool::new(false)) {
        (_, Some(why)) => Err(Error::new(Code::SystemError, "cannot resolve the host of rank 0")
            .who(why)
            .hint("set MASTER_ADDR to its IP address")),
        (found, None) => Ok(Place::Addrs(found)),
    }
}

/// First host of a Slurm list: "node[03-05,9],x" is node03.
pub(super) fn first_host(list: &str) -> String {
    let mut host = String::new();
    let mut rest = list;
    while let Some(c) = rest.chars().next() {
        match c {
            ',' => break,
            '[' => {
                let end = rest.find(']').unwrap_or(rest.len());
                let first = rest[1..end].split([',', '-']).next().unwrap_or_default();
                host.push_str(first);
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            _ => {
                host.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    host
}

/// The nearest ancestor that does not have `variable` in its own environment: it started the ranks,
/// whatever shells and wrappers are in between. Process id and start time, which no two processes
/// of a host since its boot have in common.
fn launcher_process(variable: &str) -> String {
    let stat = |pid: u32| -> Option<(u32, String)> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name, in parentheses, may contain anything.
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
        Some((fields.get(1)?.parse().ok()?, fields.get(19)?.to_string()))
    };
    let has = |pid: u32| {
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|b| *b == 0).any(|e| e.starts_with(format!("{variable}=").as_bytes()))
    };
    let mut pid = std::os::unix::process::parent_id();
    while pid > 1 && has(pid) {
        match stat(pid) {
            Some((parent, _)) => pid = parent,
            None => break,
        }
    }
    format!("launcher {pid} started {}", stat(pid).map_or(String::new(), |s| s.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(vars: &[(&str, &str)]) -> Result<Found> {
        let get = |name: &str| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_string());
        Env { get: &get, launcher: &|v| format!("launcher of {v}") }.find()
    }

    #[test]
    fn nothing_set_is_one_rank() {
        let f = find(&[]).unwrap();
        assert_eq!((f.launcher, f.rank, f.size), ("none", 0, 1));
        // A batch script of Slurm, without srun.
        assert_eq!(find(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap().size, 1);
        // Half of what torchrun sets is not torchrun.
        assert_eq!(find(&[("RANK", "3")]).unwrap().size, 1);
    }

    #[test]
    fn torchrun() {
        let mut vars = vec![
            ("RANK", "5"),
            ("WORLD_SIZE", "8"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "node0"),
            ("MASTER_PORT", "29500"),
        ];
        let f = find(&vars).unwrap();
        assert_eq!((f.launcher, f.rank, f.size), ("torchrun", 5, 8));
        assert_eq!((f.local_rank, f.local_size), (Some(1), Some(4)));
        assert_eq!(f.root, Some(("node0".into(), 29501, 8)));
        vars.push(("GRACCL_PORT", "4000"));
        assert_eq!(find(&vars).unwrap().root, Some(("node0".into(), 4000, 1)));
        vars[3].1 = "8";
        assert_eq!(find(&vars).unwrap().root, None, "one host needs no port");
        vars[5].1 = "29501";
        assert_ne!(find(&vars).unwrap().identity, f.identity);
        vars.truncate(4);
        vars[3].1 = "4";
        let e = find(&vars).unwrap_err();
        assert!(e.what.contains("only 4 of 8") && e.hint.contains("MASTER_ADDR"), "{e}");
    }

    #[test]
    fn graccl_comes_first() {
        let mut vars = vec![("RANK", "5"), ("WORLD_SIZE", "8"), ("GRACCL_RANK", "1"), ("GRACCL_SIZE", "2")];
        let f = find(&vars).unwrap();
        assert_eq!((f.launcher, f.rank, f.size, f.root), ("graccl", 1, 2, None));
        assert_eq!(f.identity, "launcher of GRACCL_RANK");
        vars.push(("GRACCL_KEY", "x"));
        assert_eq!(find(&vars).unwrap().identity, "");
        vars.push(("GRACCL_ID", "12"));
        assert_eq!(find(&vars).unwrap_err().who, "GRACCL_ID");
        let e = find(&vars[..3]).unwrap_err();
        assert!(e.what.contains("GRACCL_RANK"), "{e}");
    }

    #[test]
    fn mpi() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("PMIX_NAMESPACE", "77"),
            // mpirun's daemon as Slurm sees it
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
            ("SLURM_STEP_ID", "0"),
        ];
        let f = find(&open_mpi).unwrap();
        assert_eq!((f.launcher, f.rank, f.size, f.root), ("Open MPI", 1, 2, None));
        assert_eq!(f.identity, "PMIX_NAMESPACE=77");
        let hydra =
            [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")];
        let f = find(&hydra).unwrap();
        assert_eq!((f.launcher, f.rank, f.size, f.local_rank), ("MPICH", 1, 2, Some(1)));
        assert_eq!(f.identity, "launcher of PMI_RANK");
        assert_eq!(find(&hydra[..2]).unwrap().launcher, "PMI");
    }

    #[test]
    fn slurm() {
        let vars = [
            ("SLURM_PROCID", "3"),
            ("SLURM_NTASKS", "64"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_STEP_NUM_NODES", "2"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_ID", "9"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NODELIST", "gpu[07-08]"),
        ];
        let f = find(&vars).unwrap();
        assert_eq!((f.launcher, f.rank, f.size, f.local_rank), ("Slurm", 3, 4, Some(1)));
        let (host, port, ports) = f.root.unwrap();
        assert_eq!((host.as_str(), ports), ("gpu07", 8));
        assert!((20_000..30_000).contains(&port));
        assert_eq!(first_host("a,b"), "a");
        assert_eq!(first_host("r[1-2]n[3,5-7]x,b"), "r1n3x");
        assert_eq!(first_host("n[5"), "n5");
        assert_eq!(first_host(""), "");
    }

    #[test]
    fn contradictions_name_the_variable() {
        let e = find(&[("RANK", "4"), ("WORLD_SIZE", "4")]).unwrap_err();
        assert_eq!(e.what, "RANK=4 but WORLD_SIZE=4");
        let e = find(&[("RANK", "x"), ("WORLD_SIZE", "4")]).unwrap_err();
        assert_eq!(e.what, "RANK=x is not a number");
        let e = find(&[("RANK", "0"), ("WORLD_SIZE", "-1")]).unwrap_err();
        assert_eq!(e.what, "WORLD_SIZE=-1 is not a number");
        let local = [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "3")];
        assert!(find(&local).unwrap_err().what.contains("LOCAL_WORLD_SIZE=3"));
        let port = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "99999")];
        assert!(find(&port).unwrap_err().what.contains("MASTER_PORT=99999"));
    }

    #[test]
    fn keys_follow_secret_identity_and_generation() {
        let f = find(&[("GRACCL_RANK", "1"), ("GRACCL_SIZE", "2")]).unwrap();
        let parts = |secret: Option<&str>, generation| {
            f.clone().job(secret.map(String::from), generation).unwrap().id.parts().unwrap()
        };
        assert_eq!(parts(Some("a"), 0), parts(Some("a"), 0));
        assert_ne!(parts(Some("a"), 0).key, parts(Some("b"), 0).key);
        assert_ne!(parts(Some("a"), 0).key, parts(None, 0).key);
        assert_eq!(parts(None, 0).key, parts(None, 1).key, "one root serves the job");
        assert_ne!(parts(None, 0).session_key(), parts(None, 1).session_key());
        assert!(!f.clone().job(None, 0).unwrap().root_listens, "rank 1");
        let long = Found { root: Some(("127.0.0.1".into(), 7, 1)), ..f };
        assert_eq!(long.job(None, 0).unwrap().id.parts().unwrap().place, Place::Named("127.0.0.1".into()));
    }

    #[test]
    fn the_launcher_is_an_ancestor_without_the_variable() {
        // Nobody above has this variable, so it is the parent.
        let parent = format!("launcher {} started ", std::os::unix::process::parent_id());
        let found = launcher_process("GRACCL_NO_SUCH_VARIABLE");
        assert!(found.starts_with(&parent) && found.len() > parent.len(), "{found}");
    }
}
