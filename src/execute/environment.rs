//! The environment of a rule: fixed, then what its dependencies export, then its own.

use std::collections::BTreeMap;

use crate::build_file::spec::Export;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What every rule has, whatever the host has.
fn fixed(epoch: i64) -> BTreeMap<String, String> {
    [
        ("HOME", "/tmp/home"),
        ("LANG", "C.UTF-8"),
        ("PATH", PATH),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONHASHSEED", "0"),
        ("SOURCE_DATE_EPOCH", &epoch.to_string()),
        ("TMPDIR", "/tmp"),
        ("TZ", "UTC"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .into()
}

/// The whole environment. `exports` come in the order of the graph; what a later one prepends
/// stands before what an earlier one did.
pub fn of<'a>(
    epoch: i64,
    exports: impl Iterator<Item = &'a BTreeMap<String, Export>>,
    own: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut env = fixed(epoch);
    for (name, export) in exports.flatten() {
        let value = match (export, env.get(name)) {
            (Export::Set(value), _) => value.clone(),
            (Export::Prepend(parts), Some(before)) if !before.is_empty() => format!("{}:{before}", parts.join(":")),
            (Export::Prepend(parts), _) => parts.join(":"),
        };
        env.insert(name.clone(), value);
    }
    env.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_prepended_and_the_rule_has_the_last_word() {
        let exports = [
            BTreeMap::from([("PATH".to_string(), Export::Prepend(vec!["/opt/a/bin".into()]))]),
            BTreeMap::from([
                ("PATH".to_string(), Export::Prepend(vec!["/opt/b/bin".into()])),
                ("X".to_string(), Export::Set("1".into())),
            ]),
        ];
        let env = of(7, exports.iter(), &BTreeMap::from([("X".to_string(), "2".to_string())]));
        assert_eq!(env["PATH"], format!("/opt/b/bin:/opt/a/bin:{PATH}"));
        assert_eq!((env["X"].as_str(), env["SOURCE_DATE_EPOCH"].as_str()), ("2", "7"));
    }
}
