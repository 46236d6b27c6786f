//! Paths, patterns, users, modes and file records.

use super::Attributes;
use crate::build_file::data::{Data, Record};
use crate::build_file::spec::{FileKind, FileRecord};

/// Modes that people write, read as decimal numbers.
const WITHOUT_PREFIX: [u32; 19] =
    [444, 500, 555, 600, 640, 644, 660, 664, 666, 700, 710, 711, 750, 755, 770, 775, 777, 1777, 2755];

impl Attributes<'_> {
    /// Below the package's folder.
    pub(super) fn relative(&mut self, attribute: &str, path: &str) -> bool {
        let bad = if path.is_empty() || path.starts_with('/') {
            "it must be relative"
        } else if let Some(why) = odd(path) {
            why
        } else {
            return true;
        };
        self.fault(
            attribute,
            Some(path),
            format!("{attribute}: not a path that can stand here: {path:?}: {bad}"),
            Some("write it from the folder of the build file, without .."),
        );
        false
    }

    pub(super) fn is_absolute(&mut self, attribute: &str, path: &str) -> bool {
        let bad = if !path.starts_with('/') {
            "it must begin with /"
        } else if let Some(why) = odd(path) {
            why
        } else {
            return true;
        };
        self.fault(
            attribute,
            Some(path),
            format!("{attribute}: not a path that can stand here: {path:?}: {bad}"),
            Some("write it from the root, without .."),
        );
        false
    }

    pub(super) fn absolute_path(&mut self, name: &str) -> Option<String> {
        let path = self.text(name)?;
        self.is_absolute(name, &path);
        Some(path)
    }

    pub(super) fn absolute_paths(&mut self, name: &str) -> Vec<String> {
        let paths = self.texts(name);
        paths.iter().for_each(|path| _ = self.is_absolute(name, path));
        paths
    }

    /// Folders to mount a cache on: not over what the sandbox mounts itself, nor over the sources.
    pub(super) fn cache_paths(&mut self, attribute: &str) -> Vec<String> {
        let here = format!("/workspace/{}/", self.package.path());
        let paths = self.texts(attribute);
        for path in &paths {
            if !self.is_absolute(attribute, path) {
                continue;
            }
            let top = path.split('/').nth(1).unwrap_or_default();
            let bad = if ["proc", "sys", "dev", "run"].contains(&top) {
                format!("the sandbox has its own /{top}")
            } else if path == "/" || path == "/tmp" {
                "it would hide all that is there".to_string()
            } else if path.split('/').skip(1).any(|part| part.is_empty() || part == ".") {
                "write it without . and doubled slashes".to_string()
            } else if here.starts_with(&format!("{path}/")) {
                "it would hide the rule's sources".to_string()
            } else {
                continue;
            };
            self.fault(
                attribute,
                Some(path),
                format!("{attribute}: not a folder that can be kept: {path:?}: {bad}"),
                Some("name the folder that a tool caches in, as /root/.cargo/registry"),
            );
        }
        paths
    }

    pub(super) fn is_pattern(&mut self, attribute: &str, pattern: &str) {
        if let Some(why) = odd(pattern) {
            let what = format!("{attribute}: not a pattern: {pattern:?}: {why}");
            self.fault(attribute, Some(pattern), what, Some("write it from the root, without .."));
        } else if !pattern.starts_with('/') && !pattern.starts_with("**") {
            let next = format!("write {:?}", format!("/{pattern}"));
            self.fault(
                attribute,
                Some(pattern),
                format!("{attribute}: not a pattern: {pattern:?}: it must begin with / or **"),
                Some(&next),
            );
        } else if let Err(error) = globset::GlobBuilder::new(pattern).literal_separator(true).build() {
            self.fault(
                attribute,
                Some(pattern),
                format!("{attribute}: not a pattern: {pattern:?}: {}", error.kind()),
                Some("write \\ before a character of patterns that is meant itself: * ? [ ] { }"),
            );
        }
    }

    pub(super) fn patterns(&mut self, name: &str) -> Vec<String> {
        let patterns = self.texts(name);
        patterns.iter().for_each(|pattern| self.is_pattern(name, pattern));
        patterns
    }

    /// A name that may become a file's: an input, a secret.
    pub(super) fn is_plain(&mut self, attribute: &str, name: &str) -> bool {
        let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b));
        let good = good && !name.is_empty() && !name.starts_with(['-', '.']);
        if !good {
            self.fault(
                attribute,
                Some(name),
                format!("{attribute}: not a name: {name:?}"),
                Some("letters, digits and . _ + - may stand in it"),
            );
        }
        good
    }

    pub(super) fn plain_names(&mut self, attribute: &str) -> Vec<String> {
        let names = self.texts(attribute);
        names.iter().for_each(|name| _ = self.is_plain(attribute, name));
        names
    }

    /// `user` or `user:group`, names or numbers.
    pub(super) fn user(&mut self, attribute: &str) -> Option<String> {
        let data = self.get(attribute)?;
        self.user_of(attribute, data)
    }

    pub(super) fn user_of(&mut self, attribute: &str, data: &Data) -> Option<String> {
        let text = match data {
            Data::Int(number) => number.to_string(),
            other => self.string(attribute, other)?,
        };
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-$".contains(&b))
                && !part.starts_with('-')
        };
        if !text.is_empty() && (!text.split(':').all(part) || text.split(':').count() > 2) {
            self.fault(
                attribute,
                Some(&text),
                format!("{attribute}: not a user: {text:?}"),
                Some("write a name or a number, or user:group"),
            );
        }
        Some(text)
    }

    pub(super) fn mode(&mut self, attribute: &str, data: &Data) -> Option<u32> {
        let number = match data {
            Data::Int(number) => u32::try_from(*number).ok(),
            Data::Text(text) => u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8).ok(),
            _ => None,
        };
        let mode = number.filter(|mode| *mode <= 0o7777);
        // A number as chmod(1) has it, without the 0o: nobody wants the mode that it is.
        if let (Some(mode), Data::Int(number)) = (mode, data)
            && WITHOUT_PREFIX.contains(&mode)
        {
            self.fault(
                attribute,
                None,
                format!("{attribute}: {number} is the mode 0o{mode:o}"),
                Some(&format!("write 0o{number} or \"{number:04}\"")),
            );
            return None;
        }
        if mode.is_none() {
            let shown = match data {
                Data::Text(text) => format!("{text:?}"),
                Data::Int(number) => number.to_string(),
                other => other.kind(),
            };
            self.fault(attribute, None, format!("{attribute}: not a mode: {shown}"), Some("write \"0640\" or 0o640"));
        }
        mode
    }

    /// `files = [file(…)]`: absolute paths in an image or a volume, relative ones in a pod.
    pub(super) fn files(&mut self, name: &'static str, absolute: bool) -> Vec<FileRecord> {
        self.items(name).iter().filter_map(|item| self.file(name, item, absolute)).collect()
    }

    pub(super) fn file(&mut self, name: &'static str, data: &Data, absolute: bool) -> Option<FileRecord> {
        let Data::Record(Record { kind, fields }) = data else {
            self.wrong_type(name, "file(…)", data);
            return None;
        };
        if kind != "file" {
            self.wrong_type(name, "file(…)", data);
            return None;
        }
        let mut text = |field: &str| {
            fields.get(field).filter(|data| !matches!(data, Data::None)).and_then(|data| self.string(name, data))
        };
        let path = text("path")?;
        let (content, source, target, kind) = (text("content"), text("source"), text("target"), text("kind"));
        let _ = if absolute { self.is_absolute(name, &path) } else { self.relative(name, &path) };
        let kind = match (kind.as_deref(), &target) {
            (None, Some(_)) | (Some("link"), _) => FileKind::Link,
            (None | Some("file"), _) => FileKind::File,
            (Some("folder"), _) => FileKind::Folder,
            (Some(other), _) => {
                self.fault(
                    name,
                    Some(other),
                    format!("a file's kind can't be {other:?}"),
                    Some("it is one of file, folder, link"),
                );
                FileKind::File
            }
        };
        let fits = match kind {
            FileKind::File => content.is_some() != source.is_some() && target.is_none(),
            FileKind::Folder => content.is_none() && source.is_none() && target.is_none(),
            FileKind::Link => content.is_none() && source.is_none() && target.is_some(),
        };
        if !fits {
            let next = "a file takes either content or source, a link a target, a folder none of them";
            self.fault(name, Some(&path), format!("the file {path:?} doesn't say what it holds"), Some(next));
        }
        if let Some(source) = &source
            && self.relative(name, source)
        {
            self.needs.push((name, source.clone()));
        }
        let mut user = |field: &str| {
            fields.get(field).and_then(|data| self.user_of(name, data)).unwrap_or_else(|| "root".to_string())
        };
        let (owner, group) = (user("owner"), user("group"));
        let mode = fields.get("mode").filter(|data| !matches!(data, Data::None)).and_then(|data| self.mode(name, data));
        Some(FileRecord { path, content, source, target, mode, owner, group, kind })
    }
}

/// Why a path is none, wherever it stands.
fn odd(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        Some("it is empty")
    } else if path.contains(['\0', '\n']) {
        Some("it holds a NUL byte or a newline")
    } else if path.split('/').any(|part| part == "..") {
        Some("it has a part that is ..")
    } else if path.len() > 4000 || path.split('/').any(|part| part.len() > 255) {
        Some("it is too long")
    } else {
        None
    }
}
