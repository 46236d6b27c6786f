//! "Did you mean …?"

/// The nearest of some names, when one is near: some letters inserted, removed, replaced or exchanged with the next one.
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let letters = name.chars().count();
    let limit = 1 + letters / 4;
    // What differs more in length alone need not be compared: there may be sixty thousand names.
    let in_reach = names.into_iter().filter(|other| other.chars().count().abs_diff(letters) <= limit);
    let near =
        in_reach.map(|other| (strsim::osa_distance(name, other), other)).filter(|(distance, _)| *distance <= limit);
    near.min().map(|(_, other)| other.to_string())
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_name_with_few_slips_is_found_and_a_strange_one_is_not() {
        let names = ["libssl-dev", "build-essential", "zlib1g-dev", "gcc"];
        for (wrong, right) in [("libssl-dve", "libssl-dev"), ("gc", "gcc"), ("zlib1-dev", "zlib1g-dev")] {
            assert_eq!(nearest(wrong, names).as_deref(), Some(right), "{wrong}");
        }
        assert_eq!(nearest("openjdk", names), None);
    }
}
