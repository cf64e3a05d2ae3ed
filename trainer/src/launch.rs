//! `--np N`: this program again, once for each rank, on this machine.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use graccl::{Error, Result, UniqueId};

/// How long the other ranks may take to say what they saw when one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// Starts the ranks and waits for them. The exit status of the job: that of the first rank that failed, or 0.
///
/// # Errors
/// A rank cannot be started.
pub fn ranks(n: usize) -> Result<i32> {
    // Rank 0 meets the others at this process, which lives as long as they do.
    let id = UniqueId::create()?.to_hex();
    let program =
        std::env::current_exe().map_err(|e| Error::io("cannot find this program's own file", &e))?;
    let mut children: Vec<Option<Child>> = Vec::new();
    for rank in 0..n {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        command.env("GRACCL_RANK", rank.to_string()).env("GRACCL_SIZE", n.to_string()).env("GRACCL_ID", &id);
        // SAFETY: prctl is a system call, which may be made between fork and exec. It ends the rank with us.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        match command.spawn() {
            Ok(child) => children.push(Some(child)),
            Err(e) => {
                kill(&mut children);
                return Err(Error::io(format!("cannot start rank {rank}"), &e));
            }
        }
    }
    let mut failed: Option<(i32, Instant)> = None;
    while children.iter().any(Option::is_some) {
        for (rank, slot) in children.iter_mut().enumerate() {
            let Some(status) = slot.as_mut().and_then(|c| c.try_wait().ok().flatten()) else { continue };
            *slot = None;
            if !status.success() {
                say(&format!("graccl-train: rank {rank} of {n} ended: {status}\n"));
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                failed.get_or_insert((code, Instant::now()));
            }
        }
        if failed.is_some_and(|(_, at)| at.elapsed() > GRACE) {
            kill(&mut children);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(failed.map_or(0, |(code, _)| code))
}

/// On standard error in one write: others write there at the same time.
pub fn say(text: &str) {
    // There is nobody to tell of a failure.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn kill(children: &mut [Option<Child>]) {
    for child in children.iter_mut().flatten() {
        // It may have ended by itself; either way it is over.
        let _ = child.kill();
        let _ = child.wait();
    }
    children.iter_mut().for_each(|c| *c = None);
}
