//! What a command did, and the assertions on it; a failed one shows all there is to see.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What a command did.
pub struct Outcome {
    shown: String,
    status: ExitStatus,
    /// Standard output; what isn't UTF-8 in it is replaced.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// A command that runs, in a process group of its own.
pub struct Running {
    shown: String,
    child: Child,
    started: Instant,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Starts it; `shown` is what a failure calls it.
    pub fn start(command: &mut Command, shown: String) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Self { shown, child, started: Instant::now(), stdout, stderr }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// `kill -9` of this process alone, as the kernel's memory killer would.
    pub fn kill(mut self) -> Outcome {
        let _ = self.child.kill();
        self.outcome()
    }

    /// Waits for it; after `limit` it is ended, with all in its group, and the test fails.
    pub fn wait(mut self, limit: Duration) -> Outcome {
        while self.child.try_wait().expect("wait").is_none() {
            if self.started.elapsed() > limit {
                let _ = killpg(self.pid(), Signal::SIGKILL);
                let outcome = self.outcome();
                panic!("not done after {} s{outcome}", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        let status = self.child.wait().expect("wait");
        let took = self.started.elapsed();
        let text = |thread: &mut Option<JoinHandle<Vec<u8>>>| {
            let bytes = thread.take().map(|thread| thread.join().expect("reader"));
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        let (stdout, stderr) = (text(&mut self.stdout), text(&mut self.stderr));
        Outcome { shown: self.shown.clone(), status, stdout, stderr, took }
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = vec![];
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shown, status, stdout, stderr, took } = self;
        write!(f, "\n$ {shown}\n{status} after {took:.1?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

#[track_caller]
fn check(fine: bool, what: &str, outcome: &Outcome) {
    assert!(fine, "{what}{outcome}");
}

impl Outcome {
    /// It exited 0.
    #[track_caller]
    pub fn success(self) -> Self {
        check(self.status.success(), "it failed", &self);
        self
    }

    /// It exited with this code: 1 (the build failed) or 2 (the request was wrong).
    #[track_caller]
    pub fn failure(self, code: i32) -> Self {
        check(self.status.code() == Some(code), &format!("it did not exit with {code}"), &self);
        self
    }

    /// It exited 1 or 2, as a program that understood what went wrong.
    #[track_caller]
    pub fn fails(self) -> Self {
        check(matches!(self.status.code(), Some(1 | 2)), "it did not exit with 1 or 2", &self);
        self
    }

    /// A signal ended it.
    pub fn killed(&self) -> bool {
        self.status.signal().is_some()
    }

    /// Whether it exited 0.
    pub fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// Standard output has this text.
    #[track_caller]
    pub fn stdout_has(self, text: &str) -> Self {
        check(self.stdout.contains(text), &format!("stdout lacks {text:?}"), &self);
        self
    }

    /// Standard error has this text.
    #[track_caller]
    pub fn stderr_has(self, text: &str) -> Self {
        check(self.stderr.contains(text), &format!("stderr lacks {text:?}"), &self);
        self
    }

    /// The two outputs together have this text.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        check(self.stdout.contains(text) || self.stderr.contains(text), &format!("it doesn't say {text:?}"), &self);
        self
    }

    /// Neither output has this text.
    #[track_caller]
    pub fn says_not(self, text: &str) -> Self {
        check(!self.stdout.contains(text) && !self.stderr.contains(text), &format!("it says {text:?}"), &self);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not JSON: {error}{self}"))
    }
}
