//! Relations between packages (Debian policy, chapter 7): `a (>= 1) | b, c:any [amd64]`.

use std::cmp::Ordering;
use std::fmt;

use debversion::Version;

use super::names::{is_name, version};
use crate::error::{Error, Result};

/// How a version must compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// `<<`
    Before,
    /// `<=`
    AtMost,
    /// `=`
    Exactly,
    /// `>=`
    AtLeast,
    /// `>>`
    After,
}

/// A name, and maybe a condition on its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Of a package, or of something provided.
    pub name: String,
    /// `(>= 1)`
    pub version: Option<(Operator, Version)>,
}

/// A name that a package provides, and maybe as which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provided {
    /// The name.
    pub name: String,
    /// `(= 1)`
    pub version: Option<Version>,
}

impl Operator {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Before => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Exactly => order.is_eq(),
            Self::AtLeast => order.is_ge(),
            Self::After => order.is_gt(),
        }
    }
}

impl Relation {
    /// Does a package of that name and this version fit?
    pub fn fits(&self, version: &Version) -> bool {
        self.version.as_ref().is_none_or(|(operator, wanted)| operator.holds(version.cmp(wanted)))
    }

    /// Does what is provided fit? Without a version it fits no condition (policy 7.5).
    pub fn fits_provided(&self, provided: &Provided) -> bool {
        provided.name == self.name
            && match (&self.version, &provided.version) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(_), Some(version)) => self.fits(version),
            }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "<<",
            Self::AtMost => "<=",
            Self::Exactly => "=",
            Self::AtLeast => ">=",
            Self::After => ">>",
        })
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.version {
            Some((operator, version)) => write!(f, " ({operator} {version})"),
            None => Ok(()),
        }
    }
}

/// A field: all of a list, any of each alternative.
pub fn parse_relations(text: &str, architecture: &str) -> Result<Vec<Vec<Relation>>> {
    let mut all = vec![];
    for group in text.split(',').map(str::trim).filter(|g| !g.is_empty()) {
        let mut alternatives = vec![];
        for one in group.split('|') {
            if let Some(relation) = parse_relation(one.trim(), architecture)? {
                alternatives.push(relation);
            }
        }
        if !alternatives.is_empty() {
            all.push(alternatives);
        }
    }
    Ok(all)
}

/// `None`: not for this architecture.
fn parse_relation(text: &str, architecture: &str) -> Result<Option<Relation>> {
    let bad = || Error::failed(format!("not a relation between packages: {text:?}"));
    let (rest, architectures) = match text.split_once('[') {
        Some((rest, list)) => (rest.trim(), Some(list.strip_suffix(']').ok_or_else(bad)?)),
        None => (text, None),
    };
    if architectures.is_some_and(|list| !applies(list, architecture)) {
        return Ok(None);
    }
    let (name, condition) = match rest.split_once('(') {
        Some((name, condition)) => (name.trim(), Some(condition.strip_suffix(')').ok_or_else(bad)?.trim())),
        None => (rest, None),
    };
    // One architecture is installed, so `:any` and `:native` mean the same package.
    let name = name.split(':').next().unwrap_or(name);
    if !is_name(name) {
        return Err(bad());
    }
    Ok(Some(Relation {
        name: name.into(),
        version: condition.map(|c| parse_condition(c).ok_or_else(bad)).transpose()?,
    }))
}

fn applies(list: &str, architecture: &str) -> bool {
    let words: Vec<_> = list.split_whitespace().collect();
    let not: Vec<_> = words.iter().filter_map(|w| w.strip_prefix('!')).collect();
    if not.is_empty() { words.contains(&architecture) } else { !not.contains(&architecture) }
}

fn parse_condition(text: &str) -> Option<(Operator, Version)> {
    let operators = [
        ("<<", Operator::Before),
        ("<=", Operator::AtMost),
        (">=", Operator::AtLeast),
        (">>", Operator::After),
        ("=", Operator::Exactly),
        // Old forms: policy 7.1.
        ("<", Operator::AtMost),
        (">", Operator::AtLeast),
    ];
    let (operator, rest) = operators.iter().find_map(|(sign, operator)| Some((*operator, text.strip_prefix(sign)?)))?;
    Some((operator, version(rest.trim())?))
}

/// `Provides`: names, maybe with `(= version)`.
pub fn parse_provides(text: &str) -> Result<Vec<Provided>> {
    let groups = parse_relations(text, "")?;
    let provided = groups.into_iter().flatten().map(|relation| Provided {
        name: relation.name,
        version: relation.version.filter(|(operator, _)| *operator == Operator::Exactly).map(|(_, version)| version),
    });
    Ok(provided.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_read_as_policy_has_them() {
        let read =
            parse_relations("a (>= 1:2.0-1~) | b:any, c [amd64 i386], d [!amd64], e [arm64] | f,", "amd64").unwrap();
        let shown: Vec<Vec<String>> = read.iter().map(|g| g.iter().map(|r| r.to_string()).collect()).collect();
        assert_eq!(shown, [vec!["a (>= 1:2.0-1~)", "b"], vec!["c"], vec!["f"]]);
        for bad in ["a (", "a (1)", "A", "a (>= )", "a [amd64", "../a", "a (>= 1 2)"] {
            assert!(parse_relations(bad, "amd64").is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_compare_as_dpkg_does() {
        let fits = |condition: &str, have: &str| {
            parse_relations(&format!("a ({condition})"), "").unwrap()[0][0].fits(&version(have).unwrap())
        };
        for (condition, have, expected) in [
            (">= 1.0", "1.0~rc1", false),
            ("<< 1.0", "1.0~rc1", true),
            ("= 1.0-1", "1.0-1", true),
            (">> 1:0", "2", false),
            ("<= 2.36-9", "2.36-9+deb12u1", false),
            (">= 1.10", "1.9", false),
        ] {
            assert_eq!(fits(condition, have), expected, "{have} {condition}");
        }
    }

    #[test]
    fn what_is_provided_without_a_version_fits_no_condition() {
        let relation = |text: &str| parse_relations(text, "").unwrap().remove(0).remove(0);
        let provided = parse_provides("x, y (= 2)").unwrap();
        assert!(relation("x").fits_provided(&provided[0]));
        assert!(!relation("x (>= 1)").fits_provided(&provided[0]));
        assert!(relation("y (>= 1)").fits_provided(&provided[1]));
        assert!(!relation("y (>= 3)").fits_provided(&provided[1]));
    }
}
