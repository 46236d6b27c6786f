//! The analysis in a child process with limits: a build file can use up stack and memory, and no
//! limit inside the interpreter catches all of it.
//!
//! The child is our own executable with nothing in its environment but advice to malloc. It reads the question from
//! its standard input, with the memo of an earlier answer where there is one, writes the answer to its standard output, and its progress to its standard
//! error, a file without a name: so that the parent can say where a child was that didn't answer.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::memo::Recalled;
use super::{Answer, Answered, Encoded, Question, Said};
use crate::build_file::seen::{self, Seen};
use crate::build_file::spec::{Definition, Graph, Id, ImageRef, Spec};
use crate::build_file::starlark::{self, progress};
use crate::error::{Error, Place, Result};

/// The name of the role, as the first argument.
const ROLE: &str = "analyse build files (an inner role of tapeout)";
/// Address space of the child: its stack of 512 MiB, and the heap.
const MEMORY: u64 = 2 << 30;
/// Seconds of the processor.
const PROCESSOR: u64 = 60;
/// How long the child may work at one file without a word: of the processor, since by the clock it may have had none
/// of it (other work, a suspended machine, a job that was stopped).
const SILENCE: Duration = Duration::from_millis(4500);
/// How long it may take in all.
const WHOLE: Duration = Duration::from_secs(120);
/// How long an analysis from a memo may evaluate: what is longer is not worth doing twice.
const ATTEMPT: Duration = Duration::from_millis(500);
/// Bytes of an answer.
const ANSWER: u64 = 1 << 30;
/// What glibc's malloc is told: one heap that grows in large steps and of large pages. A child makes millions of small
/// things and is gone: a third of its time went into asking for pages and giving them back.
const HEAP: &str = "glibc.malloc.arena_max=1:glibc.malloc.top_pad=67108864:glibc.malloc.trim_threshold=2000000000:\
                    glibc.malloc.hugetlb=1";
/// Bytes of progress.
const PROGRESS: u64 = 64 << 20;

/// When this process was started as the analysis child, does its work and never returns.
pub fn analysis_child_if_asked() {
    let mut arguments = std::env::args_os();
    if arguments.next().is_none_or(|name| name != ROLE) {
        return;
    }
    std::process::exit(match work() {
        Ok(()) => 0,
        Err(_) => 1,
    });
}

fn work() -> std::io::Result<()> {
    limit()?;
    let mut asked = vec![];
    std::io::stdin().take(ANSWER).read_to_end(&mut asked)?;
    let [question, edited, memo] = sections(&asked).ok_or_else(|| std::io::Error::other("not a question"))?;
    let question: Question = serde_json::from_slice(question)?;
    let edited: Option<Vec<String>> = serde_json::from_slice(edited)?;
    let recalled = edited.and_then(|edited| Recalled::new(memo, &edited));
    drop(asked);
    let progress = File::from(std::io::stderr().as_fd().try_clone_to_owned()?);
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("no reason given");
        let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
    }));
    let run = move || {
        progress::write_to(progress);
        if let Some(recalled) = recalled {
            seen::begin();
            starlark::end_at(Some(Instant::now() + ATTEMPT));
            let answer = super::analysis::run(&question, recalled);
            starlark::end_at(None);
            if let Ok(answer) = answer {
                return written(answer, seen::end(), true);
            }
        }
        seen::begin();
        let answer = super::analysis::run(&question, Recalled::default()).unwrap_or_else(Answer::Error);
        written(answer, seen::end(), false)
    };
    let thread = std::thread::Builder::new().name("analysis".to_string()).stack_size(super::STACK).spawn(run)?;
    let answer = thread.join().map_err(|_| std::io::Error::other("the analysis broke off"))??;
    std::io::stdout().lock().write_all(&answer)
}

/// The answer, as the parent reads it.
fn written(answer: Answer, seen: Option<Seen>, from_memo: bool) -> std::io::Result<Vec<u8>> {
    let binary = std::io::Error::other::<postcard::Error>;
    let (text, graph, memo) = match answer {
        Answer::Graph(graph, memo) => {
            let (plan, shown) = graph.in_two().map_err(binary)?;
            (vec![], framed([&plan, &shown]), postcard::to_stdvec(&memo).map_err(binary)?)
        }
        Answer::Definitions(definitions) => (serde_json::to_vec(&Ok::<_, Error>(definitions))?, vec![], vec![]),
        Answer::Error(error) => (serde_json::to_vec(&Err::<Vec<Definition>, _>(error))?, vec![], vec![]),
    };
    let seen = postcard::to_stdvec(&seen).map_err(binary)?;
    Ok(framed([&text, &graph, &memo, &seen, &[u8::from(from_memo)]]))
}

/// Several byte strings as one, each behind its length.
pub(super) fn framed<const N: usize>(sections: [&[u8]; N]) -> Vec<u8> {
    let mut made = Vec::with_capacity(sections.iter().map(|section| section.len() + 8).sum());
    for section in sections {
        made.extend((section.len() as u64).to_le_bytes());
        made.extend(section);
    }
    made
}

/// And back.
pub(super) fn sections<const N: usize>(bytes: &[u8]) -> Option<[&[u8]; N]> {
    Some(ranges(bytes)?.map(|range| &bytes[range]))
}

/// Where they stand.
fn ranges<const N: usize>(bytes: &[u8]) -> Option<[Range<usize>; N]> {
    let mut found = std::array::from_fn(|_| 0..0);
    let mut end = 0;
    for section in &mut found {
        let length = usize::try_from(u64::from_le_bytes(*bytes.get(end..)?.first_chunk()?)).ok()?;
        let start = end + 8;
        end = start.checked_add(length)?;
        *section = start..end;
    }
    (end == bytes.len()).then_some(found)
}

fn read(answer: Vec<u8>) -> Option<Result<Answered>> {
    let [text, graph, memo, seen, from_memo] = ranges(&answer)?;
    let (text, seen, from_memo) = (&answer[text], postcard::from_bytes(&answer[seen]).ok()?, answer[from_memo] == [1]);
    let said = if text.is_empty() {
        Said::Graph(Encoded { graph, memo, answer })
    } else {
        match serde_json::from_slice::<Result<Vec<Definition>>>(text).ok()? {
            Ok(definitions) => Said::Definitions(definitions),
            Err(error) => return Some(Err(error.with_kind(crate::error::Kind::Request))),
        }
    };
    Some(Ok(Answered { said, seen, from_memo }))
}

/// No core file, no file longer than the progress may be, no endless loop, no endless memory.
fn limit() -> std::io::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    setrlimit(Resource::RLIMIT_CPU, PROCESSOR, PROCESSOR)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, PROGRESS, PROGRESS)?;
    Ok(())
}

/// Asks a child; with the memo of an earlier answer, and what was edited since.
pub(super) fn ask(executable: &Path, question: &Question, memo: Option<(&[String], &[u8])>) -> Result<Answered> {
    let io = |call: &'static str| move |e: std::io::Error| Error::io(call, executable, e);
    let written =
        memfd_create(c"progress", MFdFlags::MFD_CLOEXEC).map_err(|e| Error::io("memfd_create", "progress", e))?;
    let mut written = File::from(written);
    let json = |e: serde_json::Error| Error::failed(format!("the question can't be written: {e}"));
    let edited = serde_json::to_vec(&memo.map(|(edited, _)| edited)).map_err(json)?;
    let text = framed([&serde_json::to_vec(question).map_err(json)?, &edited, memo.map_or(&[], |(_, memo)| memo)]);
    let mut child = Command::new(executable)
        .arg0(ROLE)
        // An executable that doesn't know the role (a test runner) stops at this instead of doing its own work.
        .arg("--role-unknown")
        .env_clear()
        .env("GLIBC_TUNABLES", HEAP)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(written.try_clone().map_err(io("dup"))?)
        .spawn()
        .map_err(io("spawn"))?;
    let answered = answers(&mut child, text, &written);
    // Whatever happened, it must not stay: it is ours and has no children.
    let _ = child.kill();
    let status = child.wait().map_err(io("wait"))?;
    let answer = match answered {
        Ok(answer) => answer,
        Err(silent) => return Err(no_answer(question, &mut written, silent.then_some(()), status)),
    };
    read(answer).unwrap_or_else(|| Err(no_answer(question, &mut written, None, status)))
}

/// Feeds the child and reads what it says; `Err(true)`: it took too long.
fn answers(child: &mut Child, question: Vec<u8>, written: &File) -> std::result::Result<Vec<u8>, bool> {
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { return Err(false) };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || _ = stdin.write_all(&question));
    std::thread::spawn(move || {
        let mut answer = vec![];
        let read = stdout.take(ANSWER).read_to_end(&mut answer);
        let _ = sender.send(read.map(|_| answer));
    });
    let start = Instant::now();
    let (mut length, mut since) = (0, Duration::ZERO);
    loop {
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(_)) | Err(mpsc::RecvTimeoutError::Disconnected) => return Err(false),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now = written.metadata().map_or(0, |stat| stat.len());
        if now != length {
            (length, since) = (now, worked(child));
        }
        if worked(child).saturating_sub(since) > SILENCE || start.elapsed() > WHOLE {
            return Err(true);
        }
    }
}

/// The time of the processor that a child has had.
fn worked(child: &Child) -> Duration {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(child.id().cast_signed()));
    clock.and_then(ClockId::now).map_or(Duration::ZERO, Duration::from)
}

/// What was evaluated when no answer came.
fn no_answer(question: &Question, written: &mut File, too_long: Option<()>, status: ExitStatus) -> Error {
    let mut tail = String::new();
    let start = written.metadata().map_or(0, |stat| stat.len()).saturating_sub(64 << 10);
    let mut bytes = vec![];
    if written.seek(SeekFrom::Start(start)).and_then(|_| written.take(64 << 10).read_to_end(&mut bytes)).is_ok() {
        tail = String::from_utf8_lossy(&bytes).into_owned();
    }
    let last = tail.lines().rev().find_map(|line| line.strip_prefix(progress::MARK)?.split_once(' '));
    let said = tail
        .lines()
        .rev()
        .find(|line| !line.starts_with(progress::MARK) && !line.starts_with("note:") && !line.trim().is_empty());
    let reason = match (too_long, status.signal()) {
        (Some(()), _) => format!("it took longer than {} s", SILENCE.as_secs_f32()),
        (_, Some(libc::SIGKILL | libc::SIGXCPU)) => "it used up its time".to_string(),
        (_, Some(libc::SIGSEGV)) => "it used up its stack".to_string(),
        (_, Some(libc::SIGABRT)) => {
            format!("it used up its memory or its stack ({})", said.unwrap_or("no more was said"))
        }
        _ => format!("the interpreter broke off ({})", said.unwrap_or("no more was said")),
    };
    match last {
        Some((line, file)) => {
            let line = line.parse().unwrap_or(1);
            let source = question.search_path.line(file, line);
            let place = Place {
                file: file.to_string(),
                line,
                column: 1,
                length: source.as_ref().map_or(1, |s| s.chars().count().max(1)),
                source,
            };
            Error::request(format!("{file}:{line} can't be evaluated: {reason}"))
                .at(place, "it stood here")
                .next("limits of build files: docs/build-files.md")
        }
        None => Error::request(format!("the build files can't be evaluated: {reason}")),
    }
}

/// The error of an answer that answers something else.
pub(super) fn nonsense() -> Error {
    Error::failed("the analysis gave something that wasn't asked for")
}

/// A child that a build file took over could say anything: the numbers in its answer must be
/// numbers of this graph, each before what depends on it, and the folders those of the search path.
pub(super) fn check(graph: &Graph, question: &Question) -> Result<()> {
    let wrong = || Error::failed("the analysis gave a graph that is none");
    for (id, instance) in graph.instances.iter().enumerate() {
        let built: Vec<Id> = match &instance.spec {
            Spec::Image(image) => image.built_base().into_iter().collect(),
            Spec::Pod(pod) => pod
                .containers
                .iter()
                .filter_map(|container| match container.image {
                    ImageRef::Built(id) => Some(id),
                    ImageRef::Registry(_) => None,
                })
                .collect(),
            _ => vec![],
        };
        let below = instance.deps.iter().chain(&instance.joined).chain(&instance.base_build).chain(&built);
        let package = instance.label.package().path();
        let folder = instance.folder.as_ref();
        let known =
            folder.is_none_or(|folder| question.search_path.folders.iter().any(|place| place.join(package) == *folder));
        if !known || below.into_iter().any(|dep| *dep >= id) {
            return Err(wrong());
        }
    }
    let images = |graph: &Graph, id: Id| matches!(graph.instances[id].spec, Spec::Image(_));
    for instance in &graph.instances {
        if let Spec::Image(image) = &instance.spec
            && image.built_base().is_some_and(|base| !images(graph, base))
        {
            return Err(wrong());
        }
    }
    if graph.requested.iter().any(|id| *id >= graph.instances.len()) { Err(wrong()) } else { Ok(()) }
}
