//! The files that several rules may all write, brought together: a three-way merge of what a rule
//! saw, what it made of it, and what the others made meanwhile.

use std::collections::BTreeMap;

use super::places::Joint;

/// Two versions that can't be one: the name over which they clash, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// The name: of a user, a group, a package.
    pub name: String,
    /// In which way.
    pub how: String,
}

/// Puts into `running` what a rule changed from `saw` to `made`. When `whole` is false the rule saw
/// less than `saw` holds (its builder had fewer packages), so that what it lacks wasn't removed by it.
pub fn three_way(joint: Joint, saw: &[u8], made: &[u8], running: &[u8], whole: bool) -> Result<Vec<u8>, Clash> {
    match joint {
        Joint::Lines { number, lists } => {
            let merged = records(&lines(saw), &lines(made), lines(running), whole, &|name, was, one, other| {
                join_lists(lists, was, one, other).ok_or_else(|| clash(name, one, other))
            })?;
            if let Some(number) = number {
                one_name_each(&lines(made), &lines(saw), &merged, number)?;
            }
            Ok(text(&merged, b"\n"))
        }
        Joint::Paragraphs(fields) => {
            let split = |text| paragraphs(text, fields);
            let merged = records(&split(saw), &split(made), split(running), whole, &|name, _, one, other| {
                Err(clash(name, one, other))
            })?;
            Ok(text(&merged, b"\n\n"))
        }
        Joint::LoaderCache => Ok(super::loader_cache::union(running, made).unwrap_or_else(|| made.to_vec())),
        Joint::Last => Ok(made.to_vec()),
    }
}

/// Named records in their order.
type Records<'a> = Vec<(Vec<u8>, Vec<u8>)>;

fn clash(name: &[u8], one: &[u8], other: &[u8]) -> Clash {
    let shown =
        |record: &[u8]| String::from_utf8_lossy(record.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned();
    Clash {
        name: String::from_utf8_lossy(name).into_owned(),
        how: format!("one has {:?}, the other {:?}", shown(one), shown(other)),
    }
}

type Resolve<'a> = dyn Fn(&[u8], Option<&[u8]>, &[u8], &[u8]) -> Result<Vec<u8>, Clash> + 'a;

fn records<'a>(
    saw: &Records,
    made: &Records,
    mut running: Records<'a>,
    whole: bool,
    resolve: &Resolve,
) -> Result<Records<'a>, Clash> {
    let saw: BTreeMap<_, _> = saw.iter().map(|(n, r)| (n.as_slice(), r.as_slice())).collect();
    let mut at: BTreeMap<Vec<u8>, usize> = running.iter().enumerate().map(|(i, (n, _))| (n.clone(), i)).collect();
    for (name, record) in made {
        let was = saw.get(name.as_slice()).copied();
        let here = at.get(name).copied();
        if was == Some(record.as_slice()) || here.is_some_and(|i| running[i].1 == *record) {
            continue;
        }
        match here {
            None if was.is_none() => {
                at.insert(name.clone(), running.len());
                running.push((name.clone(), record.clone()));
            }
            Some(i) if was == Some(running[i].1.as_slice()) => running[i].1 = record.clone(),
            Some(i) => running[i].1 = resolve(name, was, record, &running[i].1)?,
            None => return Err(clash(name, record, b"")),
        }
    }
    if whole {
        let made: BTreeMap<_, _> = made.iter().map(|(n, r)| (n.as_slice(), r)).collect();
        running.retain(|(name, record)| {
            made.contains_key(name.as_slice()) || saw.get(name.as_slice()) != Some(&record.as_slice())
        });
    }
    Ok(running)
}

fn lines(text: &[u8]) -> Records<'_> {
    let all = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    all.map(|line| (line.split(|b| *b == b':').next().unwrap_or_default().to_vec(), line.to_vec())).collect()
}

fn paragraphs<'a>(text: &'a [u8], fields: &[&str]) -> Records<'a> {
    let mut found: Records = vec![];
    let mut paragraph: Vec<&[u8]> = vec![];
    for line in text.split(|b| *b == b'\n').chain([&b""[..]]) {
        if !line.is_empty() {
            paragraph.push(line);
            continue;
        }
        if !paragraph.is_empty() {
            let value = |field: &&str| {
                paragraph.iter().find_map(|line| line.strip_prefix([field.as_bytes(), b": "].concat().as_slice()))
            };
            let name: Vec<&[u8]> = fields.iter().map(|field| value(field).unwrap_or_default()).collect();
            found.push((name.join(&b':'), paragraph.join(&b'\n')));
            paragraph.clear();
        }
    }
    found
}

fn text(records: &Records, end: &[u8]) -> Vec<u8> {
    records.iter().flat_map(|(_, record)| record.iter().chain(end)).copied().collect()
}

/// Two lines that differ in nothing but lists of names are one with both their additions.
fn join_lists(lists: &[usize], was: Option<&[u8]>, one: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let fields = |line: &[u8]| line.split(|b| *b == b':').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let names =
        |field: &[u8]| field.split(|b| *b == b',').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (one, mut other) = (fields(one), fields(other));
    let was = was.map(fields);
    if one.len() != other.len() {
        return None;
    }
    for i in 0..one.len() {
        if one[i] == other[i] {
            continue;
        }
        if !lists.contains(&i) {
            return None;
        }
        let was = was.as_ref().and_then(|was| was.get(i)).map(|field| names(field)).unwrap_or_default();
        let added = names(&one[i]);
        let mut all = names(&other[i]);
        all.retain(|name| added.contains(name) || !was.contains(name));
        for name in added {
            if !all.contains(&name) && !was.contains(&name) {
                all.push(name);
            }
        }
        other[i] = all.join(&b',');
    }
    Some(other.join(&b':'))
}

/// A name that a rule added must not have the number of one that it didn't know.
fn one_name_each(made: &Records, saw: &Records, merged: &Records, number: usize) -> Result<(), Clash> {
    let of = |line: &[u8]| line.split(|b| *b == b':').nth(number).map(<[u8]>::to_vec);
    let known: BTreeMap<_, _> = made.iter().map(|(n, r)| (n.as_slice(), r)).collect();
    let saw: BTreeMap<_, _> = saw.iter().map(|(n, r)| (n.as_slice(), r)).collect();
    let mut strangers: BTreeMap<Vec<u8>, &[u8]> = BTreeMap::new();
    for (name, line) in merged.iter().filter(|(name, _)| !known.contains_key(name.as_slice())) {
        strangers.extend(of(line).map(|number| (number, name.as_slice())));
    }
    for (name, line) in made.iter().filter(|(name, _)| !saw.contains_key(name.as_slice())) {
        let Some(number) = of(line) else { continue };
        if let Some(stranger) = strangers.get(&number) {
            let (name, stranger, number) =
                (String::from_utf8_lossy(name), String::from_utf8_lossy(stranger), String::from_utf8_lossy(&number));
            return Err(Clash {
                name: name.to_string(),
                how: format!("{name} and {stranger} both have the number {number}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::places;
    use crate::tree::RootPath;

    fn merge(file: &str, saw: &str, made: &str, running: &str) -> Result<String, Clash> {
        let joint = places::joint(&RootPath::new(file).unwrap()).unwrap();
        three_way(joint, saw.as_bytes(), made.as_bytes(), running.as_bytes(), true)
            .map(|b| String::from_utf8(b).unwrap())
    }

    const ROOT: &str = "root:x:0:0::/:/bin/sh\n";

    #[test]
    fn users_of_two_rules_are_both_there() {
        let merged =
            merge("etc/passwd", ROOT, &format!("{ROOT}a:x:100:100::/:\n"), &format!("{ROOT}b:x:101:101::/:\n"))
                .unwrap();
        assert_eq!(merged, format!("{ROOT}b:x:101:101::/:\na:x:100:100::/:\n"));
    }

    #[test]
    fn a_name_with_two_numbers_or_a_number_with_two_names_is_a_clash() {
        for other in ["a:x:101:101::/:\n", "b:x:100:100::/:\n"] {
            let clash =
                merge("etc/passwd", ROOT, &format!("{ROOT}a:x:100:100::/:\n"), &format!("{ROOT}{other}")).unwrap_err();
            assert_eq!(clash.name, "a", "{other}");
        }
    }

    #[test]
    fn members_of_a_group_are_joined() {
        let merged = merge("etc/group", "g:x:5:root\nh:x:6:\n", "g:x:5:root,a\n", "g:x:5:root,b\nh:x:6:\n").unwrap();
        assert_eq!(merged, "g:x:5:root,b,a\n");
    }

    #[test]
    fn a_changed_and_a_removed_line_stay_so() {
        let merged = merge(
            "etc/passwd",
            "a:x:1:1::/:\nb:x:2:2::/:\n",
            "a:x:1:1::/home:\n",
            "a:x:1:1::/:\nb:x:2:2::/:\nc:x:3:3::/:\n",
        )
        .unwrap();
        assert_eq!(merged, "a:x:1:1::/home:\nc:x:3:3::/:\n");
        assert!(merge("etc/passwd", "a:x:1:1::/:\n", "a:x:1:1::/x:\n", "a:x:1:1::/y:\n").is_err());
    }

    #[test]
    fn packages_of_two_rules_are_both_there() {
        let one = |name: &str| format!("Package: {name}\nArchitecture: amd64\nStatus: install ok installed\n\n");
        let merged =
            merge("var/lib/dpkg/status", &one("base"), &(one("base") + &one("a")), &(one("base") + &one("b"))).unwrap();
        assert_eq!(merged, one("base") + &one("b") + &one("a"));
    }
}
