//! The first line of scripts: execve(2), "Interpreter scripts".

/// How much of a file the kernel looks at: `BINPRM_BUF_SIZE`.
pub const LOOKED_AT: u64 = 256;

/// What a script is run by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interpreter {
    /// A path.
    Path(String),
    /// `env`, and the program that it looks up in `PATH`.
    Env {
        /// The path of `env`.
        env: String,
        /// The program.
        program: String,
    },
}

/// What runs a file that begins like this; `None`: it isn't a script.
pub fn interpreter(start: &[u8]) -> Option<Interpreter> {
    let line = start.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    let mut words = line.split_whitespace();
    let path = words.next().filter(|path| path.starts_with('/'))?;
    if path.rsplit('/').next() != Some("env") {
        return Some(Interpreter::Path(path.to_string()));
    }
    let program = words
        .map(|word| word.strip_prefix("-S").unwrap_or(word))
        .find(|word| !word.is_empty() && !word.starts_with('-') && !word.contains('='));
    match program {
        Some(program) if program.starts_with('/') => Some(Interpreter::Path(program.to_string())),
        Some(program) => Some(Interpreter::Env { env: path.to_string(), program: program.to_string() }),
        None => Some(Interpreter::Path(path.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_are_read_as_the_kernel_and_env_do() {
        let path = |p: &str| Some(Interpreter::Path(p.into()));
        let env = |p: &str| Some(Interpreter::Env { env: "/usr/bin/env".into(), program: p.into() });
        for (start, expected) in [
            ("#!/bin/sh\necho", path("/bin/sh")),
            ("#! /bin/sh -e\n", path("/bin/sh")),
            ("#!/usr/bin/env python3\n", env("python3")),
            ("#!/usr/bin/env -S LANG=C perl -w\n", env("perl")),
            ("#!/usr/bin/env -Snode --x\n", env("node")),
            ("#!/usr/bin/env /opt/x\n", path("/opt/x")),
            ("#!/usr/bin/env\n", path("/usr/bin/env")),
            ("#!sh\n", None),
            ("#![allow(x)]\n", None),
            ("#!\n", None),
            ("echo", None),
            ("#!/bin/sh", path("/bin/sh")),
            ("#!/bin/sh\r\n", path("/bin/sh")),
        ] {
            assert_eq!(interpreter(start.as_bytes()), expected, "{start:?}");
        }
    }
}
