//! Our standard input and outputs, and those of a sandbox: bytes are carried, no descriptor of the
//! host's terminal gets in.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Result};
use crate::sys::terminal::{self, Raw};

/// Are we used by a person? Then the sandbox gets a terminal too.
pub fn is_one() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Our terminal's size is looked at so often: a signal would reach any of our threads.
const LOOK: u16 = 200;

/// Carries keys and output between our terminal and the sandbox's until that one has nobody on it.
pub fn relay(master: OwnedFd) {
    let (stdin, stdout) = (io::stdin(), io::stdout());
    terminal::copy_size(stdout.as_fd(), master.as_fd());
    let _raw = Raw::enter();
    let mut buffer = [0; 16 << 10];
    loop {
        let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(LOOK)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let ready = fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        terminal::copy_size(stdout.as_fd(), master.as_fd());
        if ready[1] {
            match nix::unistd::read(&master, &mut buffer) {
                // EIO: the last program on it is gone.
                Ok(0) | Err(Errno::EIO) => return,
                Ok(n) if write_all(&stdout, &buffer[..n]).is_err() => return,
                _ => {}
            }
        }
        if ready[0] {
            match nix::unistd::read(&stdin, &mut buffer) {
                Ok(n @ 1..) => {
                    if write_all(&master, &buffer[..n]).is_err() {
                        return;
                    }
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // The terminal is gone; without our side the programs on the other get SIGHUP.
                _ => return,
            }
        }
    }
}

fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Three pipes for a sandbox, and threads that carry what goes through them.
pub struct Pipes {
    outputs: Vec<JoinHandle<()>>,
}

impl Pipes {
    /// Standard input, output and error for the sandbox.
    pub fn open() -> Result<(Self, [OwnedFd; 3])> {
        let pipe = || io::pipe().map_err(|e| Error::io("pipe", "", e));
        let ((stdin, keys), (out, stdout), (err, stderr)) = (pipe()?, pipe()?, pipe()?);
        // It waits for input that may never come, so nobody waits for it.
        std::thread::spawn(move || carry(io::stdin().lock(), keys));
        let outputs = vec![
            std::thread::spawn(move || carry(out, io::stdout())),
            std::thread::spawn(move || carry(err, io::stderr())),
        ];
        Ok((Self { outputs }, [stdin.into(), stdout.into(), stderr.into()]))
    }

    /// Waits until all that the sandbox printed is out.
    pub fn finish(self) {
        for output in self.outputs {
            let _ = output.join();
        }
    }
}

fn carry(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
