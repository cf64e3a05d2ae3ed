//! Moves the ranks' output to ours, in whole lines, and our input to rank 0.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A longer line is cut, so that a rank without newlines cannot fill our memory. Bytes.
const MAX_LINE: u64 = 1 << 20;

/// The threads that move output. Each reports through `finished` when its pipe is closed.
pub struct Pumps {
    running: usize,
    finished: (Sender<()>, Receiver<()>),
    /// Pumps that are writing to our own output.
    writing: Arc<AtomicUsize>,
    /// A terminal's input has to be handed on: see [`Pumps::stdin`].
    hand_on_input: bool,
}

impl Default for Pumps {
    fn default() -> Pumps {
        Pumps { running: 0, finished: channel(), writing: Arc::default(), hand_on_input: false }
    }
}

impl Pumps {
    /// Standard input for rank 0. A file or pipe is inherited. A terminal may be read by its
    /// foreground process group only, which the rank is not in: we read it and hand it on.
    pub fn stdin(&mut self) -> Stdio {
        if !io::stdin().is_terminal() {
            return Stdio::inherit();
        }
        // SAFETY: plain system calls.
        if unsafe { libc::tcgetpgrp(0) != libc::getpgrp() } {
            return Stdio::null();
        }
        self.hand_on_input = true;
        Stdio::piped()
    }

    /// Starts to move what `child` writes to its pipes.
    pub fn add(&mut self, child: &mut Child, prefix: String) {
        if let Some(mut input) = child.stdin.take().filter(|_| self.hand_on_input) {
            // Blocks in read() for ever if nobody types; it ends with the process.
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = io::stdin().read(&mut buffer) {
                    if input.write_all(&buffer[..n]).and_then(|()| input.flush()).is_err() {
                        break;
                    }
                }
            });
        }
        if let Some(pipe) = child.stdout.take() {
            let (prefix, writing) = (prefix.clone(), self.writing.clone());
            self.spawn(move || forward(pipe, &prefix, |b| write_out(&writing, &mut io::stdout().lock(), b)));
        }
        if let Some(pipe) = child.stderr.take() {
            let writing = self.writing.clone();
            self.spawn(move || forward(pipe, &prefix, |b| write_out(&writing, &mut io::stderr().lock(), b)));
        }
    }

    fn spawn(&mut self, f: impl FnOnce() + Send + 'static) {
        let finished = self.finished.0.clone();
        self.running += 1;
        thread::spawn(move || {
            f();
            let _ = finished.send(());
        });
    }

    /// Waits until all output has been moved. Gives up on pipes that stay open for `limit` though
    /// all ranks have ended, but not on a slow reader of our own output.
    pub fn drain(mut self, limit: Duration) {
        let mut deadline = Instant::now() + limit;
        while self.running > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.finished.1.recv_timeout(left).is_ok() {
                self.running -= 1;
            } else if self.writing.load(Ordering::Relaxed) > 0 {
                deadline = Instant::now() + limit;
            } else {
                return;
            }
        }
    }
}

fn write_out(writing: &AtomicUsize, out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    writing.fetch_add(1, Ordering::Relaxed);
    let result = out.write_all(line).and_then(|()| out.flush());
    writing.fetch_sub(1, Ordering::Relaxed);
    result
}

/// Copies lines from `pipe`, each in one write, until it is closed. When our own output is closed,
/// the pipe is dropped, and the rank meets the closed pipe as it would without us.
fn forward(pipe: impl Read, prefix: &str, write: impl Fn(&[u8]) -> io::Result<()>) {
    let mut reader = BufReader::with_capacity(64 << 10, pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        if write(&line).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn moved(input: &[u8]) -> String {
        let out = RefCell::new(Vec::new());
        forward(input, "[3] ", |b| {
            out.borrow_mut().extend_from_slice(b);
            Ok(())
        });
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn lines_get_prefixes_and_the_last_its_newline() {
        assert_eq!(moved(b""), "");
        assert_eq!(moved(b"a\n\nb"), "[3] a\n[3] \n[3] b\n");
    }

    #[test]
    fn endless_lines_are_cut() {
        let text = moved(&vec![b'x'; MAX_LINE as usize + 5]);
        assert_eq!(text.lines().map(str::len).collect::<Vec<_>>(), [MAX_LINE as usize + 4, 5 + 4]);
    }
}
