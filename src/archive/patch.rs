//! Unified diffs, applied to a folder that is the root of something untrusted, as `patch -p1` would,
//! but exactly: every line that a hunk names must be there. It may have moved to another line.

use std::io::{Read, Write};
use std::os::fd::AsFd;

use crate::error::{Error, Result};
use crate::sys::file;
use crate::sys::root::Root;
use crate::tree::RootPath;

/// Bytes of a patch, and of a file that is patched.
pub const SIZE: u64 = 64 << 20;

/// What a patch says of one file.
#[derive(Debug, Default)]
struct FilePatch<'a> {
    /// `None`: it is created.
    old: Option<RootPath>,
    /// `None`: it is removed.
    new: Option<RootPath>,
    executable: Option<bool>,
    hunks: Vec<Hunk<'a>>,
}

#[derive(Debug)]
struct Hunk<'a> {
    /// The line of the patch that begins it.
    at: usize,
    /// Where its old lines stood, from 0.
    start: usize,
    old: Vec<&'a [u8]>,
    new: Vec<&'a [u8]>,
}

/// Applies a patch below `root`; gives the paths of the files that it wrote, with what it says about their
/// mode (executable or not), and of those that it removed.
pub fn apply(patch: &[u8], root: &Root) -> Result<Vec<(RootPath, Applied)>> {
    let mut done = vec![];
    let files = parse(patch)?;
    if files.is_empty() {
        return Err(Error::failed("it holds no unified diff").next("diff -ru a b, or git diff, write one"));
    }
    for one in files {
        let name = one.new.as_ref().or(one.old.as_ref()).cloned().unwrap_or_default();
        let applied = apply_to(&one, root, &mut done).map_err(|e| e.context(&name))?;
        done.push((name, applied));
    }
    Ok(done)
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It has new content; `Some`: and this is whether it is executable.
    Written(Option<bool>),
    /// It is gone.
    Removed,
}

fn apply_to(one: &FilePatch, root: &Root, done: &mut Vec<(RootPath, Applied)>) -> Result<Applied> {
    let before = one.old.as_ref().map(|path| read(root, path)).transpose()?;
    if before.is_none() && one.new.as_ref().is_some_and(|new| matches!(root.stat(new), Ok(Some(_)))) {
        return Err(Error::failed("the patch creates it, and it is there already"));
    }
    let was_executable = match &one.old {
        Some(path) => root.stat(path)?.is_some_and(|stat| stat.st_mode & 0o111 != 0),
        None => false,
    };
    let content = patched(before.as_deref().unwrap_or_default(), &one.hunks)?;
    if let Some(old) = one.old.as_ref().filter(|old| Some(*old) != one.new.as_ref()) {
        if one.new.is_none() && !content.is_empty() {
            return Err(Error::failed("the patch removes it, and more is in it than the patch says"));
        }
        remove(root, old)?;
        done.push((old.clone(), Applied::Removed));
    }
    let Some(new) = &one.new else { return Ok(Applied::Removed) };
    write(root, new, &content, one.executable.unwrap_or(was_executable))?;
    Ok(Applied::Written(Some(one.executable.unwrap_or(was_executable))))
}

fn read(root: &Root, path: &RootPath) -> Result<Vec<u8>> {
    let mut content = vec![];
    root.open_file(path)?.take(SIZE + 1).read_to_end(&mut content).map_err(|e| Error::io("read", path.as_path(), e))?;
    if content.len() as u64 > SIZE {
        return Err(Error::failed(format!("it is longer than {SIZE} bytes")));
    }
    Ok(content)
}

fn remove(root: &Root, path: &RootPath) -> Result<()> {
    let folder = root.folder(&path.parent().unwrap_or_default())?;
    file::unlink_at(folder.as_fd(), path.name())
}

fn write(root: &Root, path: &RootPath, content: &[u8], executable: bool) -> Result<()> {
    let mut above: Vec<RootPath> = path.ancestors().filter(|above| !above.is_root()).collect();
    above.reverse();
    for folder in above {
        if root.stat(&folder)?.is_none() {
            let parent = root.folder(&folder.parent().unwrap_or_default())?;
            file::mkdir_at(parent.as_fd(), folder.name(), 0o755)?;
        }
    }
    let folder = root.folder(&path.parent().unwrap_or_default())?;
    if file::stat_at(folder.as_fd(), path.name())?.is_some() {
        // A new file: the old one may have other names.
        file::unlink_at(folder.as_fd(), path.name())?;
    }
    let mode = if executable { 0o755 } else { 0o644 };
    let mut made = file::create_file_at(folder.as_fd(), path.name(), mode)?;
    made.write_all(content).map_err(|e| Error::io("write", path.as_path(), e))
}

/// The content after all hunks.
fn patched(content: &[u8], hunks: &[Hunk]) -> Result<Vec<u8>> {
    let lines: Vec<&[u8]> = content.split_inclusive(|b| *b == b'\n').collect();
    let mut made = vec![];
    let (mut next, mut moved) = (0, 0i64);
    for hunk in hunks {
        let expected = (hunk.start as i64 + moved).max(next as i64) as usize;
        let Some(found) = position(&lines, &hunk.old, next, expected) else {
            return Err(Error::failed(format!("the hunk at line {} of the patch doesn't match", hunk.at))
                .next("make the patch again from the sources that are unpacked"));
        };
        moved = found as i64 - hunk.start as i64;
        made.extend_from_slice(&lines[next..found].concat());
        made.extend_from_slice(&hunk.new.concat());
        next = found + hunk.old.len();
    }
    made.extend_from_slice(&lines[next..].concat());
    Ok(made)
}

/// Where these lines stand, at or after `from`, nearest to `expected`.
fn position(lines: &[&[u8]], wanted: &[&[u8]], from: usize, expected: usize) -> Option<usize> {
    let last = lines.len().checked_sub(wanted.len()).filter(|last| *last >= from)?;
    let matches = |at: &usize| lines[*at..*at + wanted.len()] == *wanted;
    if wanted.is_empty() {
        return Some(expected.min(last));
    }
    let expected = expected.clamp(from, last);
    let after = (expected..=last).find(matches);
    let before = (from..expected).rev().find(matches);
    match (before, after) {
        (Some(before), Some(after)) if expected - before < after - expected => Some(before),
        (before, after) => after.or(before),
    }
}

fn parse(patch: &[u8]) -> Result<Vec<FilePatch<'_>>> {
    let lines: Vec<&[u8]> = patch.split_inclusive(|b| *b == b'\n').collect();
    let mut files: Vec<FilePatch> = vec![];
    let mut coming = FilePatch::default();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let number = at + 1;
        let bad = |what: &str| Error::failed(format!("line {number} of the patch: {what}"));
        if let (Some(old), Some(new)) =
            (line.strip_prefix(b"--- "), lines.get(at + 1).and_then(|next| next.strip_prefix(b"+++ ")))
        {
            let mut one = std::mem::take(&mut coming);
            (one.old, one.new) = (path(old)?, path(new)?);
            if one.old.is_none() && one.new.is_none() {
                return Err(bad("neither file has a name"));
            }
            at += 2;
            while let Some(header) = lines.get(at).filter(|line| line.starts_with(b"@@ ")) {
                let hunk = hunk(header, &lines, &mut at)?;
                one.hunks.push(hunk);
            }
            if one.hunks.is_empty() {
                return Err(bad("it has no hunks"));
            }
            files.push(one);
            continue;
        }
        if line.starts_with(b"diff --git ") {
            coming = FilePatch::default();
        } else if line.starts_with(b"GIT binary patch") || line.starts_with(b"Binary files ") {
            return Err(bad("a binary difference can't be applied"));
        } else if line.starts_with(b"rename ") || line.starts_with(b"copy ") {
            return Err(bad("a rename or copy can't be applied").next("write it with git diff --no-renames"));
        } else if let Some(mode) = line.strip_prefix(b"new mode ").or_else(|| line.strip_prefix(b"new file mode ")) {
            match mode.trim_ascii() {
                b"100644" => coming.executable = Some(false),
                b"100755" => coming.executable = Some(true),
                _ => return Err(bad("only regular files can be patched")),
            }
        }
        at += 1;
    }
    Ok(files)
}

/// `a/src/x.c` and a time after a tab, as `-p1` takes it; `None`: `/dev/null`.
fn path(text: &[u8]) -> Result<Option<RootPath>> {
    let name = text.split(|b| *b == b'\t').next().unwrap_or_default().trim_ascii_end();
    if name == b"/dev/null" {
        return Ok(None);
    }
    let Some(slash) = name.iter().position(|b| *b == b'/') else {
        return Err(Error::failed(format!(
            "a file's name without a folder before it: {:?}",
            String::from_utf8_lossy(name)
        ))
        .next("write a patch for -p1: diff -ru a b, or git diff"));
    };
    let path = RootPath::new(&name[slash + 1..])?;
    if path.is_root() || name.starts_with(b"\"") {
        return Err(Error::failed(format!("a file's name that can't be read: {:?}", String::from_utf8_lossy(name))));
    }
    Ok(Some(path))
}

/// The hunk whose header is at `at`, which is set behind it.
fn hunk<'a>(header: &[u8], lines: &[&'a [u8]], at: &mut usize) -> Result<Hunk<'a>> {
    let here = *at + 1;
    let bad = |what: &str| Error::failed(format!("line {here} of the patch: {what}"));
    let text = std::str::from_utf8(header).unwrap_or_default();
    let mut words = text.split(' ').skip(1);
    let mut range = |sign: char| -> Option<(usize, usize)> {
        let word = words.next()?.trim().strip_prefix(sign)?;
        let (start, count) = word.split_once(',').unwrap_or((word, "1"));
        Some((start.parse().ok()?, count.parse().ok()?))
    };
    let (Some((start, mut old_left)), Some((_, mut new_left))) = (range('-'), range('+')) else {
        return Err(bad("not the header of a hunk"));
    };
    // A hunk without old lines names the line after which it stands.
    let start = if old_left == 0 { start } else { start.saturating_sub(1) };
    let mut made = Hunk { at: here, start, old: vec![], new: vec![] };
    *at += 1;
    while old_left > 0 || new_left > 0 {
        let Some(line) = lines.get(*at) else { return Err(bad("the hunk ends too early")) };
        let (sign, content) = match line.first() {
            Some(sign @ (b' ' | b'+' | b'-')) => (*sign, &line[1..]),
            // Some editors strip the space of an empty line.
            Some(b'\n') => (b' ', *line),
            _ => return Err(bad("the hunk ends too early")),
        };
        *at += 1;
        // `\ No newline at end of file`
        let bare = lines.get(*at).is_some_and(|next| next.starts_with(b"\\"));
        let content = if bare { content.strip_suffix(b"\n").unwrap_or(content) } else { content };
        *at += usize::from(bare);
        if sign != b'+' {
            old_left = old_left.checked_sub(1).ok_or_else(|| bad("the hunk has more lines than it says"))?;
            made.old.push(content);
        }
        if sign != b'-' {
            new_left = new_left.checked_sub(1).ok_or_else(|| bad("the hunk has more lines than it says"))?;
            made.new.push(content);
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn apply_here(folder: &tempfile::TempDir, patch: &str) -> Result<Vec<(RootPath, Applied)>> {
        apply(patch.as_bytes(), &Root::open(folder.path()).unwrap())
    }

    #[test]
    fn lines_are_changed_also_where_they_have_moved() {
        let text = "0\n1\na\nb\nc\n2\na\nb\nd\n";
        let folder = folder(&[("src/x", text)]);
        let patch = "words before\n--- a/src/x\t2020-01-01\n+++ b/src/x\n@@ -1,3 +1,3 @@ f()\n a\n-b\n+B\n c\n@@ -5,3 +5,2 @@\n a\n-b\n d\n\\ No newline at end of file\n";
        assert!(apply_here(&folder, patch).is_err(), "the last line has a newline");
        assert_eq!(fs::read_to_string(folder.path().join("src/x")).unwrap(), text);
        apply_here(&folder, &patch.replace("\\ No newline at end of file\n", "")).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("src/x")).unwrap(), "0\n1\na\nB\nc\n2\na\nd\n");
    }

    #[test]
    fn files_come_and_go_and_modes_are_kept() {
        let folder = folder(&[("run", "old\n"), ("gone", "x\n"), ("same", "s")]);
        fs::set_permissions(folder.path().join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        let patch = "diff --git a/run b/run\n--- a/run\n+++ b/run\n@@ -1 +1 @@\n-old\n+new\n\
            diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\
            diff --git a/d/e/new b/d/e/new\nnew file mode 100755\n--- /dev/null\n+++ b/d/e/new\n@@ -0,0 +1,2 @@\n+1\n+2\n";
        let done = apply_here(&folder, patch).unwrap();
        assert_eq!(done.iter().filter(|(_, applied)| *applied == Applied::Removed).count(), 2, "{done:?}");
        let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("run"), mode("d/e/new")), (0o755, 0o755));
        assert_eq!(fs::read_to_string(folder.path().join("d/e/new")).unwrap(), "1\n2\n");
        assert!(!folder.path().join("gone").exists());
    }

    #[test]
    fn what_does_not_match_or_leads_out_is_an_error() {
        let hunk = "@@ -1 +1 @@\n-a\n+b\n";
        let cases = [
            String::new(),
            "no patch at all\n".to_string(),
            format!("--- a/missing\n+++ b/missing\n{hunk}"),
            format!("--- a/../out\n+++ b/../out\n{hunk}"),
            format!("--- a/link\n+++ b/link\n{hunk}"),
            format!("--- a/folder/x\n+++ b/folder/x\n{hunk}"),
            format!("--- x\n+++ x\n{hunk}"),
            format!("--- /dev/null\n+++ /dev/null\n{hunk}"),
            "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-other\n+b\n".to_string(),
            "--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-a\n".to_string(),
            "--- a/x\n+++ b/x\n@@ -1,99999999999999999999 +1 @@\n-a\n".to_string(),
            "--- a/x\n+++ /dev/null\n@@ -1,0 +0,0 @@\n".to_string(),
            "--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+b\n".to_string(),
            "diff --git a/x b/y\nrename from x\nrename to y\n".to_string(),
            "diff --git a/x b/x\nGIT binary patch\n".to_string(),
        ];
        let outside = folder(&[("x", "a\n")]);
        for patch in cases {
            let folder = folder(&[("x", "a\n")]);
            std::os::unix::fs::symlink(outside.path().join("x"), folder.path().join("link")).unwrap();
            std::os::unix::fs::symlink(outside.path(), folder.path().join("folder")).unwrap();
            assert!(apply_here(&folder, &patch).is_err(), "{patch}");
            assert_eq!(fs::read_to_string(folder.path().join("x")).unwrap(), "a\n", "{patch}");
            assert_eq!(fs::read_to_string(outside.path().join("x")).unwrap(), "a\n", "{patch}");
        }
    }
}
