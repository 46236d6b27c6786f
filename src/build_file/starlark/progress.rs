//! Where the evaluation stands, written down for the case that it doesn't come back: the child
//! appends a line before each statement of a file, and the parent reads the last one.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};

use starlark::codemap::FileSpanRef;
use starlark::eval::{BeforeStmtFuncDyn, Evaluator};

thread_local! {
    static PROGRESS: RefCell<Option<(File, usize)>> = const { RefCell::new(None) };
    static HERE: RefCell<(String, usize)> = const { RefCell::new((String::new(), 0)) };
}

/// What begins a line of progress.
pub const MARK: &str = "\u{1}at ";

/// Where the file begins anew: only its end is ever read.
const LENGTH: usize = 1 << 20;

/// From here on, this thread writes its progress to this file.
pub fn write_to(file: File) {
    PROGRESS.with_borrow_mut(|progress| *progress = Some((file, 0)));
}

/// The file and line at which this thread's evaluation stands.
pub fn here() -> Option<(String, usize)> {
    HERE.with_borrow(|here| (here.1 > 0).then(|| here.clone()))
}

/// The evaluation is at this line now.
pub fn note(file: &str, line: usize) {
    HERE.with_borrow_mut(|here| {
        if here.0 != file {
            here.0 = file.to_string();
        }
        here.1 = line;
    });
    PROGRESS.with_borrow_mut(|progress| {
        if let Some((progress, written)) = progress {
            // One write each, so that a line is there whole or not at all; nothing helps if it fails.
            let text = format!("{MARK}{line} {file}\n");
            *written += text.len();
            if *written > LENGTH {
                *written = text.len();
                let _ = progress.set_len(0).and_then(|()| progress.rewind());
            }
            let _ = progress.write_all(text.as_bytes());
        }
    });
}

/// Notes the line of each top statement.
pub(super) struct Line;

impl<'e> BeforeStmtFuncDyn<'e> for Line {
    fn call<'v>(
        &mut self,
        span: FileSpanRef,
        _continued: bool,
        evaluator: &mut Evaluator<'v, '_, 'e>,
    ) -> starlark::Result<()> {
        if evaluator.call_stack_count() <= 1 {
            note(span.filename(), span.resolve_span().begin.line + 1);
        }
        Ok(())
    }
}
