//! What a process holds: to see what it does not give back.

use serde::{Deserialize, Serialize};

/// Of one process, at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory of its own, and memory that is shared, that is in RAM. KiB.
    pub private: i64,
    pub shared: i64,
    /// What its own memory files hold, KiB.
    pub memfds: i64,
    pub descriptors: i64,
    pub threads: i64,
}

/// What a process may keep after its last communicator: its arena, its record, two threads and what they poll,
/// listening sockets.
const KEPT_DESCRIPTORS: i64 = 8;
const KEPT_THREADS: i64 = 2;
/// Of memory files: the arena's used pages that are not given back, the record. KiB.
const KEPT_MEMFDS: i64 = 16 << 10;

impl Usage {
    /// More than a process may keep after its last communicator.
    pub fn too_much(&self) -> bool {
        self.descriptors > KEPT_DESCRIPTORS || self.threads > KEPT_THREADS || self.memfds > KEPT_MEMFDS
    }

    /// That of this process.
    pub fn now() -> Usage {
        let mut u = Usage::default();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<i64>().ok()
        };
        u.private = number("RssAnon").unwrap_or(0);
        u.shared = number("RssShmem").unwrap_or(0);
        u.threads = number("Threads").unwrap_or(0);
        for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
            u.descriptors += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            if target.to_string_lossy().starts_with("/memfd:")
                && let Ok(m) = std::fs::metadata(entry.path())
            {
                u.memfds += std::os::unix::fs::MetadataExt::blocks(&m) as i64 / 2;
            }
        }
        u
    }

    /// What has come since `before`.
    pub fn since(&self, before: &Usage) -> Usage {
        Usage {
            private: self.private - before.private,
            shared: self.shared - before.shared,
            memfds: self.memfds - before.memfds,
            descriptors: self.descriptors - before.descriptors,
            threads: self.threads - before.threads,
        }
    }
}
