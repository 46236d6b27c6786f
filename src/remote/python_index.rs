//! A Python index: which of a package's files have the digests of a lock, and which fits best.
//!
//! The page is the "simple" one of PEP 503, an HTML list of links whose fragments are digests. It is
//! trusted for nothing: a file is taken by its digest.

use crate::error::{Error, Result};
use crate::remote::http::shown;

/// A file of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFile {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// 64 hex digits.
    pub sha256: String,
}

/// The page of a package.
pub fn page(index: &str, package: &str) -> String {
    let mut name = String::new();
    for c in package.chars() {
        match c {
            '-' | '_' | '.' if name.ends_with('-') => {}
            '-' | '_' | '.' => name.push('-'),
            c => name.push(c.to_ascii_lowercase()),
        }
    }
    format!("{index}/{name}/")
}

/// The files of a page that have a digest; `url` is where the page came from.
pub fn files(url: &str, html: &str) -> Result<Vec<IndexFile>> {
    let mut made = vec![];
    for part in html.split("href=").skip(1) {
        let Some(quote) = part.chars().next().filter(|c| matches!(c, '"' | '\'')) else { continue };
        let Some(target) = part[1..].split(quote).next() else { continue };
        let target = target.replace("&amp;", "&");
        let Some((target, fragment)) = target.split_once('#') else { continue };
        let Some(sha256) = fragment.split('&').find_map(|part| part.strip_prefix("sha256=")) else { continue };
        let name = target.split('?').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let name = decoded(name)
            .ok_or_else(|| Error::failed(format!("{} names a file that can't be one: {name:?}", shown(url))))?;
        made.push(IndexFile { url: joined(url, target), sha256: sha256.to_string(), name });
    }
    Ok(made)
}

/// May a file of an index have this name? It is one part of a path.
pub fn is_file_name(name: &str) -> bool {
    let good = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-!".contains(&b));
    good && !name.is_empty() && !name.starts_with(['.', '-'])
}

/// A name without percent signs that is one part of a path.
fn decoded(name: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = name.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = &rest[2..];
    }
    let name = String::from_utf8(bytes).ok()?;
    is_file_name(&name).then_some(name)
}

/// A link of a page, absolute.
fn joined(page: &str, target: &str) -> String {
    if target.starts_with("https://") || target.starts_with("http://") || target.starts_with("file:") {
        return target.to_string();
    }
    let (scheme, rest) = page.split_once("://").unwrap_or(("https", page));
    if let Some(target) = target.strip_prefix("//") {
        return format!("{scheme}://{target}");
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if target.starts_with('/') {
        return format!("{scheme}://{host}{target}");
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("{scheme}://{host}/{}", parts.join("/"))
}

/// The wheel that fits a Python (`3.11`) on a Linux of this processor best. `None`: none does.
pub fn best<'a>(files: &'a [IndexFile], python: &str, processor: &str) -> Option<&'a IndexFile> {
    let fitting = files.iter().filter_map(|file| Some((fit(&file.name, python, processor)?, file)));
    fitting.max_by(|(a, one), (b, other)| a.cmp(b).then_with(|| other.name.cmp(&one.name))).map(|(_, file)| file)
}

/// How well a wheel fits: by its binary interface, then for the oldest C library.
fn fit(name: &str, python: &str, processor: &str) -> Option<(u8, u32, std::cmp::Reverse<u32>)> {
    let minor: u32 = python.strip_prefix("3.")?.parse().ok()?;
    let parts: Vec<&str> = name.strip_suffix(".whl")?.rsplitn(4, '-').collect();
    let [platforms, interfaces, pythons, _] = parts[..] else { return None };
    let platform = platforms.split('.').filter_map(|platform| glibc(platform, processor)).min()?;
    let mut best = None;
    for interface in interfaces.split('.') {
        for tag in pythons.split('.') {
            let own = tag.strip_prefix("cp3").and_then(|minor| minor.parse::<u32>().ok());
            let score = match (interface, own) {
                (abi, Some(tagged)) if tagged == minor && abi == format!("cp3{minor}") => (3, minor),
                ("abi3", Some(tagged)) if tagged <= minor => (2, tagged),
                ("none", Some(tagged)) if tagged == minor => (1, minor),
                ("none", None) if tag == "py3" => (1, 0),
                ("none", None) => match tag.strip_prefix("py3").and_then(|minor| minor.parse::<u32>().ok()) {
                    Some(tagged) if tagged <= minor => (1, tagged),
                    _ => continue,
                },
                _ => continue,
            };
            best = best.max(Some(score));
        }
    }
    best.map(|(interface, tagged)| (interface, tagged, std::cmp::Reverse(platform)))
}

/// The minor version of the glibc that a platform needs; `None`: it is another platform.
fn glibc(platform: &str, processor: &str) -> Option<u32> {
    if platform == "any" {
        return Some(0);
    }
    let libc = platform.strip_suffix(processor)?.strip_suffix('_')?;
    match libc {
        "linux" => Some(0),
        "manylinux1" => Some(5),
        "manylinux2010" => Some(12),
        "manylinux2014" => Some(17),
        libc => libc.strip_prefix("manylinux_2_")?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_of_a_page_are_files() {
        let html = "<a href=\"https://files/x/six-1.16.0-py2.py3-none-any.whl#sha256=ab\">six</a>\n<a href='../../x/a%2Bb-1.whl#md5=1&amp;sha256=cd' data-yanked>b</a><a href=\"/none.whl\">c</a>";
        let made = files("https://host/simple/six/", html).unwrap();
        assert_eq!(made.len(), 2);
        assert_eq!((made[0].name.as_str(), made[0].sha256.as_str()), ("six-1.16.0-py2.py3-none-any.whl", "ab"));
        assert_eq!((made[1].name.as_str(), made[1].url.as_str()), ("a+b-1.whl", "https://host/x/a%2Bb-1.whl"));
        for bad in ["..%2Fx.whl", "%2e%2e", "%zz", "-x.whl"] {
            assert!(files("https://host/", &format!("<a href=\"https://x/{bad}#sha256=ab\">")).is_err(), "{bad}");
        }
        assert_eq!(page("https://host/simple", "Foo._bar"), "https://host/simple/foo-bar/");
    }

    #[test]
    fn the_wheel_that_fits_best_is_taken() {
        let file = |name: &str| IndexFile { name: name.to_string(), url: String::new(), sha256: String::new() };
        let names = [
            "x-1.tar.gz",
            "x-1-py3-none-any.whl",
            "x-1-cp310-cp310-manylinux2014_x86_64.whl",
            "x-1-cp39-abi3-manylinux_2_28_x86_64.whl",
            "x-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
            "x-1-cp311-cp311-manylinux_2_34_x86_64.whl",
            "x-1-cp311-cp311-musllinux_1_1_x86_64.whl",
            "x-1-cp311-cp311-manylinux2014_aarch64.whl",
            "x-1-cp311-cp311-win_amd64.whl",
        ];
        let files: Vec<IndexFile> = names.into_iter().map(file).collect();
        let best_of = |python: &str, processor: &str| best(&files, python, processor).map(|file| file.name.as_str());
        assert_eq!(best_of("3.11", "x86_64"), Some(names[4]));
        assert_eq!(best_of("3.12", "x86_64"), Some(names[3]));
        assert_eq!(best_of("3.11", "aarch64"), Some(names[7]));
        assert_eq!(best_of("3.8", "x86_64"), Some(names[1]));
        assert_eq!(best_of("2.7", "x86_64"), None);
        assert!(best(&files[..1], "3.11", "x86_64").is_none());
    }
}
