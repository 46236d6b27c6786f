//! Terminals: the one that we were started on, and pseudo terminals.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::fcntl::OFlag;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Our terminal, passing every key on. Dropped, or when a signal ends us, it is as it was.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

static BEFORE: OnceLock<libc::termios> = OnceLock::new();

impl Raw {
    /// Of standard input.
    pub fn enter() -> nix::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let _ = BEFORE.set(before.clone().into());
        // Whoever is ended gives the terminal back first.
        let action = SigAction::new(SigHandler::Handler(give_back), SaFlags::SA_RESETHAND, SigSet::empty());
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: the handler calls tcsetattr(3) and raise(3) alone, which signal-safety(7) lists.
            unsafe { nix::sys::signal::sigaction(signal, &action) }?;
        }
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

extern "C" fn give_back(signal: libc::c_int) {
    if let Some(before) = BEFORE.get() {
        // SAFETY: `before` is a live static, and 0 a number; both calls are async-signal-safe.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, before) };
    }
    // SAFETY: as above. The action was reset when we were called, so this ends us.
    unsafe { libc::raise(signal) };
}

/// Gives one terminal the size of another.
pub fn copy_size(from: BorrowedFd, to: BorrowedFd) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which is a live local; TIOCSWINSZ reads it. The kernel
    // tells the programs on the terminal only if it changed.
    unsafe {
        if libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) == 0 {
            libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size);
        }
    }
}

/// A pseudo terminal: our side of it, and the path of the other.
pub fn open_pair() -> nix::Result<(OwnedFd, String)> {
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    nix::pty::grantpt(&master)?;
    nix::pty::unlockpt(&master)?;
    let path = nix::pty::ptsname_r(&master)?;
    Ok((master.as_fd().try_clone_to_owned().map_err(|_| nix::errno::Errno::EMFILE)?, path))
}
