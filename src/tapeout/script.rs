//! The first line of scripts: execve(2), "Interpreter scripts", and env(1).

use std::collections::VecDeque;

/// How much of a file the kernel looks at: `BINPRM_BUF_SIZE`.
pub const LOOKED_AT: u64 = 256;

/// Where a shell without a `PATH` looks, and `execvp`: `_CS_PATH` of confstr(3).
const NO_PATH: &str = "/bin:/usr/bin";

/// What a script is run by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// Its path.
    pub path: String,
    /// What it starts in turn, if it is `env`.
    pub program: Option<Program>,
}

/// A program that `env` starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// A path, or a name that is looked up.
    pub name: String,
    /// The `PATH` in which it is looked up, where the first line itself sets one.
    pub path: Option<String>,
}

/// What runs a file that begins like this; `None`: it isn't a script.
pub fn interpreter(start: &[u8]) -> Option<Interpreter> {
    let line = start.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim();
    let (path, argument) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    if !path.starts_with('/') {
        return None;
    }
    let program = if path.ends_with("/env") { started_by_env(argument) } else { None };
    Some(Interpreter { path: path.to_string(), program })
}

/// The program among the arguments of `env`. The kernel gives it all that follows as one; `-S` has it split.
/// Without, only a single word can work on Linux, and is split here as other kernels do.
fn started_by_env(argument: &str) -> Option<Program> {
    let mut words = words(argument);
    let mut path = None;
    let mut options = true;
    while let Some(word) = words.pop_front() {
        if options && word == "--" {
            options = false;
        } else if options && word == "-" {
            path = Some(NO_PATH.to_string());
        } else if let Some(long) = word.strip_prefix("--").filter(|_| options) {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_string())));
            match name {
                "split-string" => value.into_iter().for_each(|word| words.push_front(word)),
                "ignore-environment" => path = Some(NO_PATH.to_string()),
                "unset" | "chdir" | "argv0" => {
                    let value = value.or_else(|| words.pop_front())?;
                    if name == "unset" && value == "PATH" {
                        path = Some(NO_PATH.to_string());
                    }
                }
                _ => {}
            }
        } else if let Some(letters) = word.strip_prefix('-').filter(|_| options) {
            let takes_more = letters.find(['S', 'u', 'C', 'a', 'P']);
            let (alone, with) = letters.split_at(takes_more.unwrap_or(letters.len()));
            if alone.contains('i') {
                path = Some(NO_PATH.to_string());
            }
            let mut rest = with.chars();
            let Some(letter) = rest.next() else { continue };
            let value = Some(rest.as_str().to_string()).filter(|rest| !rest.is_empty());
            match letter {
                'S' => value.into_iter().for_each(|word| words.push_front(word)),
                letter => match (letter, value.or_else(|| words.pop_front())?) {
                    ('u', name) if name == "PATH" => path = Some(NO_PATH.to_string()),
                    ('P', folders) => path = Some(folders),
                    _ => {}
                },
            }
        } else if let Some((name, value)) = word.split_once('=') {
            options = false;
            if name == "PATH" {
                path = Some(value.to_string());
            }
        } else {
            // A variable's value is known only where the script is started.
            return (!word.contains("${")).then_some(Program { name: word, path });
        }
    }
    None
}

/// The words of a `-S` string: blanks divide it, outside of quotes and where no backslash is before them.
fn words(text: &str) -> VecDeque<String> {
    let mut words = VecDeque::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => match (chars.next(), quote) {
                (Some('c') | None, _) => break,
                (Some('_'), None) => words.extend(word.take()),
                (Some('_'), _) => word.get_or_insert_default().push(' '),
                (Some(c), _) => word.get_or_insert_default().push(c),
            },
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (c, None) if c.is_ascii_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_are_read_as_the_kernel_does() {
        for (start, expected) in [
            ("#!/bin/sh\necho", Some("/bin/sh")),
            ("#! /bin/sh -e\n", Some("/bin/sh")),
            ("#!\t/bin/sh\t-e\n", Some("/bin/sh")),
            ("#!/usr/bin/env\n", Some("/usr/bin/env")),
            ("#!/opt/venv/x\n", Some("/opt/venv/x")),
            ("#!sh\n", None),
            ("#![allow(x)]\n", None),
            ("#!\n", None),
            ("echo", None),
            ("#!/bin/sh", Some("/bin/sh")),
            ("#!/bin/sh\r\n", Some("/bin/sh")),
        ] {
            let expected = expected.map(|path| Interpreter { path: path.into(), program: None });
            assert_eq!(interpreter(start.as_bytes()), expected, "{start:?}");
        }
    }

    #[test]
    fn what_env_starts_is_read_as_env_does() {
        for (argument, program, path) in [
            ("python3", "python3", None),
            ("/opt/x", "/opt/x", None),
            ("-S /opt/x -w", "/opt/x", None),
            ("-S LANG=C perl -w", "perl", None),
            ("-Snode --x", "node", None),
            ("-vS node --x", "node", None),
            ("--split-string=node --x", "node", None),
            ("--split-string node", "node", None),
            ("-S -u FOO node", "node", None),
            ("-S -uFOO --unset=BAR --unset BAZ node", "node", None),
            ("-S -C /tmp --chdir /tmp --argv0 x -a y node", "node", None),
            ("-S --default-signal=PIPE --block-signal -- node", "node", None),
            ("-S PATH=/opt/bin node", "node", Some("/opt/bin")),
            ("-S -u PATH node", "node", Some(NO_PATH)),
            ("-S -i PATH=/opt/bin node", "node", Some("/opt/bin")),
            ("-iS node", "node", Some(NO_PATH)),
            ("-S - node", "node", Some(NO_PATH)),
            ("-S -P /a:/b node", "node", Some("/a:/b")),
            (r#"-S A="b c" 'my prog' x"#, "my prog", None),
            (r"-S my\ prog\_x", "my prog", None),
        ] {
            let found = interpreter(format!("#!/usr/bin/env {argument}\n").as_bytes()).unwrap();
            assert_eq!(found.path, "/usr/bin/env", "{argument}");
            let expected = Program { name: program.into(), path: path.map(str::to_string) };
            assert_eq!(found.program, Some(expected), "{argument}");
        }
        for nothing in ["-S", "-S A=b", "-S -u", "-S ${HOME}/x", "-S # x"] {
            let found = interpreter(format!("#!/usr/bin/env {nothing}\n").as_bytes()).unwrap();
            assert_eq!(found.program, None, "{nothing}");
        }
    }
}
