//! Labels: `//path/to/package:name`, and the patterns `//app:*` and `//app/...`.
//!
//! A label that exists is well formed: its parts hold letters, digits and `._+-` alone, none is
//! `.` or `..` or begins with `-`. So it can stand in a path, a JSON or DOT string and a unit file.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A package: the part of a label between `//` and `:`; the workspace's own top is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Package(Arc<str>);

/// `//package:name`. A graph of ten thousand rules holds hundreds of thousands of these: a copy shares its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label {
    package: Package,
    name: Arc<str>,
}

/// What a command line may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// One label.
    One(Label),
    /// `//app:*`: all of a package.
    All(Package),
    /// `//app/...`: all of a package and of those below it.
    Below(Package),
}

fn check(whole: &str, text: &str, what: &str) -> Result<()> {
    for part in text.split('/') {
        let reason = if part.is_empty() {
            "it has an empty part"
        } else if part == "." || part == ".." {
            "it has a part that is . or .."
        } else if part.starts_with('-') {
            "a part begins with -"
        } else if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-".contains(&b)) {
            "only letters, digits and . _ + - may stand in it"
        } else {
            continue;
        };
        return Err(Error::request(format!("not a {what}: {whole:?}"))
            .why(reason)
            .next("write //path/to/package:name"));
    }
    Ok(())
}

/// Is it the path of a folder, as one types it: `.`, `./lib`, `../lib`, `lib/`?
fn is_path(text: &str) -> bool {
    let first = text.split('/').next();
    (matches!(first, Some("." | "..")) && text != "...") || (text.len() > 2 && text.ends_with('/'))
}

impl Package {
    /// `path/to/package`, without slashes around it; empty is the workspace's top.
    pub fn new(path: &str) -> Result<Self> {
        if !path.is_empty() {
            check(path, path, "package")?;
        }
        if let Some(last @ ("build_image" | "build_pod")) = path.rsplit('/').next() {
            return Err(Error::request(format!("a package can't be named {last}: {path:?}"))
                .why(format!("{last} is the folder that an image's or a pod's output goes to"))
                .next("rename the folder"));
        }
        Ok(Self(path.into()))
    }

    /// The path below the workspace, without slashes around it.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// The package of a folder by its path from this one's, or from the workspace's top: `../lib`, `./lib/`, `//lib/`.
    fn at(&self, path: &str) -> Result<Self> {
        let mut parts: Vec<&str> = if path.starts_with("//") { vec![] } else { self.0.split('/').collect() };
        parts.retain(|part| !part.is_empty());
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return Err(Error::request(format!("{path} leads out of the workspace"))
                            .next("name a folder of the workspace; --path adds others"));
                    }
                }
                part => parts.push(part),
            }
        }
        Self::new(&parts.join("/"))
    }

    /// `self` or a package below it.
    pub fn holds(&self, other: &Package) -> bool {
        self.0.is_empty()
            || other.0 == self.0
            || (other.0.starts_with(&*self.0) && other.0.as_bytes()[self.0.len()] == b'/')
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "//{}", self.0)
    }
}

impl Label {
    /// From its two parts.
    pub fn new(package: Package, name: &str) -> Result<Self> {
        check(name, name, "name")?;
        Ok(Self { package, name: name.into() })
    }

    /// As written where `here` is the package: `//a:b`, `:b` or `b`.
    pub fn parse_in(text: &str, here: &Package) -> Result<Self> {
        match text.strip_prefix("//") {
            Some(rest) => match rest.split_once(':') {
                Some((package, name)) => {
                    check(text, name, "label")?;
                    Ok(Self { package: Package::new(package)?, name: name.into() })
                }
                None => Err(Error::request(format!("not a label: {text:?}"))
                    .why("it has no name after the package")
                    .next(format!("write {text}:NAME"))),
            },
            None => {
                let name = text.strip_prefix(':').unwrap_or(text);
                check(text, name, "label")?;
                Ok(Self { package: here.clone(), name: name.into() })
            }
        }
    }

    /// The part before the colon.
    pub fn package(&self) -> &Package {
        &self.package
    }

    /// The part after the colon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The last part of the name: `build_image` of `web/build_image`.
    pub fn last(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or(&self.name)
    }

    /// `//base:tapeout`, the joint point of all images.
    pub fn is_base_tapeout(&self) -> bool {
        self.package.path() == "base" && self.name() == "tapeout"
    }

    /// `//base:build`, where packages are installed.
    pub fn is_base_build(&self) -> bool {
        self.package.path() == "base" && self.name() == "build"
    }

    /// `build` or `…/build`.
    pub fn is_build(&self) -> bool {
        self.last() == "build"
    }

    /// The label of another name in the same package.
    pub fn sibling(&self, name: &str) -> Result<Self> {
        Self::new(self.package.clone(), name)
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if !text.starts_with("//") {
            return Err(Error::request(format!("not a full label: {text:?}")).next("write //path/to/package:name"));
        }
        Self::parse_in(text, &Package("".into()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ["//", self.package.path(), ":", self.name()].into_iter().try_for_each(|part| f.write_str(part))
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Pattern {
    /// As typed where `here` is the package. `//app` alone means `//app:*`, and so does the path of its folder.
    pub fn parse_in(text: &str, here: &Package) -> Result<Self> {
        let (path, name) = match text.split_once(':') {
            Some((path, name)) => (path, Some(name)),
            None => (text, None),
        };
        if is_path(path) {
            return match (path.strip_suffix("/..."), name) {
                (Some(path), None) => Ok(Self::Below(here.at(path)?)),
                (_, None | Some("*")) => Ok(Self::All(here.at(path)?)),
                (_, Some(name)) => Ok(Self::One(Label::new(here.at(path)?, name)?)),
            };
        }
        let below = |package: &str| -> Result<Package> {
            match package.strip_prefix("//") {
                Some(absolute) => Package::new(absolute),
                None if package.is_empty() => Ok(here.clone()),
                None if here.0.is_empty() => Package::new(package),
                None => Package::new(&format!("{}/{package}", here.0)),
            }
        };
        if text == "..." {
            Ok(Self::Below(here.clone()))
        } else if text == "//..." {
            Ok(Self::Below(Package::new("")?))
        } else if let Some(package) = text.strip_suffix("/...") {
            Ok(Self::Below(below(package)?))
        } else if let Some(package) = text.strip_suffix(":*") {
            Ok(Self::All(below(package)?))
        } else if text.starts_with("//") && !text.contains(':') {
            Ok(Self::All(below(text)?))
        } else {
            // `lib:build` is a package below the one we stand in; `lib/build` is a name.
            match text.split_once(':') {
                Some((package, name)) if !text.starts_with("//") => Ok(Self::One(Label::new(below(package)?, name)?)),
                _ => Ok(Self::One(Label::parse_in(text, here)?)),
            }
        }
    }

    /// As typed, where one rule is wanted.
    pub fn one_in(text: &str, here: &Package) -> Result<Label> {
        match Self::parse_in(text, here)? {
            Self::One(label) => Ok(label),
            Self::All(package) | Self::Below(package) => {
                Err(Error::request(format!("one rule is wanted, and {text} may be several"))
                    .next(format!("name one: {package}:NAME")))
            }
        }
    }

    /// Does it name this label?
    pub fn matches(&self, label: &Label) -> bool {
        match self {
            Self::One(one) => one == label,
            Self::All(package) => package == label.package(),
            Self::Below(package) => package.holds(label.package()),
        }
    }
}

macro_rules! as_text {
    ($type:ty, $parse:expr) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a string")
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        $parse(text).map_err(|e: Error| E::custom(e.what()))
                    }
                }
                d.deserialize_str(Text)
            }
        }
    };
}

as_text!(Label, |text: &str| text.parse::<Label>());
as_text!(Package, |text: &str| Package::new(text.strip_prefix("//").unwrap_or(text)));

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> Package {
        Package::new("app").unwrap()
    }

    #[test]
    fn parse_and_print_are_inverse() {
        for text in ["//app:build", "//a/b-c:web/build_image", "//:top", "//lib_1:x+y.z"] {
            assert_eq!(text.parse::<Label>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bare_name_means_the_package_it_stands_in() {
        for text in [":web/build", "web/build", "//app:web/build"] {
            assert_eq!(Label::parse_in(text, &app()).unwrap().to_string(), "//app:web/build");
        }
    }

    #[test]
    fn what_could_leave_its_place_is_refused() {
        for bad in [
            "//a:../b",
            "//../a:b",
            "//a:",
            "//a",
            "//a:b//c",
            "//a:-x",
            "//a:b c",
            "//a:b\n",
            "//a:b\0",
            "",
            "//a:$x",
            "//x/build_pod:y",
        ] {
            assert!(Label::parse_in(bad, &app()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn patterns_hold_what_they_say() {
        let label: Label = "//app/sub:x".parse().unwrap();
        for (text, expected) in [
            ("//app/...", true),
            ("...", true),
            ("//...", true),
            ("//app:*", false),
            ("//app/sub", true),
            ("sub:x", true),
            ("//ap/...", false),
            (".", false),
            ("./sub", true),
            ("sub/", true),
            ("./sub:x", true),
            ("../app/sub:*", true),
            ("../app/...", true),
            ("./...", true),
            ("//app/sub/", true),
            ("..", false),
            ("../...", true),
        ] {
            assert_eq!(Pattern::parse_in(text, &app()).unwrap().matches(&label), expected, "{text}");
        }
    }

    #[test]
    fn a_path_stays_in_the_workspace_and_one_rule_is_one() {
        for bad in ["../..", "../../x:y", "./x/build_image", "./-x", "./x y"] {
            assert!(Pattern::parse_in(bad, &app()).is_err(), "{bad:?}");
        }
        for (text, expected) in [("../lib:x", "//lib:x"), ("sub:x", "//app/sub:x"), (":x/build", "//app:x/build")] {
            assert_eq!(Pattern::one_in(text, &app()).unwrap().to_string(), expected);
        }
        assert!(Pattern::one_in("./sub", &app()).is_err());
    }
}
