use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::digest::Digest;
use crate::tree::{Changeset, Node, RootPath};

struct Rules {
    _temp: tempfile::TempDir,
    store: Store,
    stack: Stack,
}

impl Rules {
    /// One rule has run.
    fn new(first: impl FnOnce(&Path)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(&temp.path().join("store")).unwrap();
        let mut rules = Self { _temp: temp, store, stack: Stack::default() };
        rules.run(first);
        rules
    }

    fn tree(&self) -> KeptTree {
        KeptTree::at(&self.store, &self.stack).unwrap()
    }

    /// One more rule, that changes this.
    fn run(&mut self, change: impl FnOnce(&Path)) -> Vec<String> {
        let tree = self.tree();
        change(tree.path());
        let (scratch, options) = (self.store.scratch().unwrap(), Options { time: 7, owner: (0, 0) });
        let files = scratch.folder("files").unwrap();
        let captured = tree.capture(&Root::open(&files).unwrap(), &self.stack, &[], &options).unwrap();
        let (changeset, digest) = captured.name().unwrap();
        let told = told(&changeset);
        if !told.is_empty() {
            self.stack.0.push(self.store.keep_changeset(digest, changeset, &files).unwrap());
        }
        self.expect_right(&self.tree_of_next());
        told
    }

    /// The tree is kept again, unchanged.
    fn tree_of_next(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
        let tree = self.tree();
        let found = walkdir::WalkDir::new(tree.path()).min_depth(1).into_iter().map(|entry| {
            let entry = entry.unwrap();
            let stat = entry.metadata().unwrap();
            let content = match stat.mode() & libc::S_IFMT {
                libc::S_IFREG => fs::read(entry.path()).unwrap(),
                libc::S_IFLNK => fs::read_link(entry.path()).unwrap().into_os_string().into_encoded_bytes(),
                _ => vec![],
            };
            let path = entry.path().strip_prefix(tree.path()).unwrap();
            (format!("/{}", path.display()), (stat.mode(), content))
        });
        let found = found.collect();
        tree.keep().unwrap();
        found
    }

    fn expect_right(&self, found: &BTreeMap<String, (u32, Vec<u8>)>) {
        let expected = self.stack.below(&RootPath::root());
        let paths: Vec<_> = expected.keys().map(|path| path.to_string()).collect();
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), paths);
        for (path, (entry, _)) in expected {
            let (mode, content) = &found[&path.to_string()];
            match &entry.node {
                Node::File { digest, .. } => assert_eq!(Digest::of(content), *digest, "{path}"),
                Node::Link { target } => assert_eq!(content, target, "{path}"),
                _ => {}
            }
            assert!(mode & libc::S_IFMT == libc::S_IFLNK || mode & 0o7777 == entry.mode, "{path}: {mode:o}");
        }
    }

    fn record(&self) -> PathBuf {
        self.store.trees_path().join("0/record")
    }

    fn inode(&self, path: &str) -> u64 {
        fs::symlink_metadata(self.store.trees_path().join("0/root").join(path)).unwrap().ino()
    }
}

fn told(changeset: &Changeset) -> Vec<String> {
    let changes = changeset.changes.iter().filter(|(_, change)| !change.passed_through());
    changes
        .map(|(path, change)| match (&change.now, &change.was) {
            (None, _) => format!("- {path}"),
            (Some(_), None) => format!("+ {path}"),
            (Some(_), Some(_)) => format!("~ {path}"),
        })
        .collect()
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn few(root: &Path) {
    for path in ["a", "b", "d/one", "d/two", "d/deep/three", "e/x"] {
        write(root.join(path), path);
    }
    symlink("a", root.join("link")).unwrap();
}

#[test]
fn each_kind_of_change_is_seen_and_the_next_snapshot_is_right() {
    let mut rules = Rules::new(few);
    let kept = rules.inode("d/two");
    assert_eq!(rules.run(|_| {}), Vec::<String>::new());
    let mode = |path: PathBuf, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    assert_eq!(rules.run(|root| mode(root.join("a"), 0o4755)), ["~ /a"]);
    assert_eq!(rules.run(|root| mode(root.join("d"), 0o700)), ["~ /d"]);
    let attribute = |root: &Path, name: &[u8]| {
        xattr::set(File::open(root).unwrap().as_fd(), name, b"user.some", b"1").unwrap();
    };
    assert_eq!(rules.run(|root| attribute(root, b"b")), ["~ /b"]);
    assert_eq!(rules.run(|root| attribute(root, b"e")), ["~ /e"]);
    // Another kind, at the same name.
    let to_folder = |root: &Path| {
        fs::remove_file(root.join("a")).unwrap();
        write(root.join("a/in"), "it");
    };
    assert_eq!(rules.run(to_folder), ["~ /a", "+ /a/in"]);
    let to_link = |root: &Path| {
        fs::remove_dir_all(root.join("a")).unwrap();
        symlink("d", root.join("a")).unwrap();
    };
    assert_eq!(rules.run(to_link), ["~ /a"]);
    // A link that points elsewhere; a new name for an old file, through which it is then written.
    let relinked = |root: &Path| {
        fs::remove_file(root.join("link")).unwrap();
        symlink("b", root.join("link")).unwrap();
    };
    assert_eq!(rules.run(relinked), ["~ /link"]);
    let append = |root: &Path| {
        fs::hard_link(root.join("d/one"), root.join("e/one")).unwrap();
        fs::OpenOptions::new().append(true).open(root.join("e/one")).unwrap().write_all(b"more").unwrap();
    };
    use std::io::Write;
    assert_eq!(rules.run(append), ["~ /d/one", "+ /e/one"]);
    // It appears as two files, as an overlay shows them.
    assert_ne!(rules.inode("d/one"), rules.inode("e/one"));
    let replaced = |root: &Path| {
        fs::remove_dir_all(root.join("d/deep")).unwrap();
        write(root.join("d/deep/four"), "4");
    };
    assert_eq!(rules.run(replaced), ["+ /d/deep/four", "- /d/deep/three"]);
    let renamed = |root: &Path| fs::rename(root.join("e"), root.join("f")).unwrap();
    assert_eq!(rules.run(renamed), ["- /e", "+ /f", "+ /f/one", "+ /f/x"]);
    // What is the same again is no change.
    let rewritten = |root: &Path| {
        fs::remove_file(root.join("b")).unwrap();
        write(root.join("b"), "b");
        attribute(root, b"b");
    };
    assert_eq!(rules.run(rewritten), Vec::<String>::new());
    assert_eq!(rules.inode("d/two"), kept, "what stays isn't made again");
}

#[test]
fn a_change_at_once_that_hides_in_size_and_times_is_seen() {
    let mut rules = Rules::new(few);
    for round in 0..20 {
        let hidden = |root: &Path| {
            let path = root.join("a");
            let before = fs::metadata(&path).unwrap();
            fs::write(&path, if round % 2 == 0 { "x" } else { "y" }).unwrap();
            let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
            File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        };
        assert_eq!(rules.run(hidden), ["~ /a"], "round {round}");
    }
}

/// A shell ends so, a rule whose sandbox died, and a build that is killed.
#[test]
fn what_was_not_captured_is_in_no_later_snapshot() {
    let mut rules = Rules::new(few);
    let tree = rules.tree();
    assert!(!rules.record().exists(), "nobody believes a tree that is in use");
    write(tree.path().join("a"), "a secret");
    write(tree.path().join("new"), "a secret");
    drop(tree);
    assert_eq!(rules.run(|root| assert!(!root.join("new").exists())), Vec::<String>::new());
}

#[test]
fn a_record_that_is_not_whole_or_of_another_time_is_not_believed() {
    let mut rules = Rules::new(few);
    let good = rules.tree();
    let of = |change: fn(&mut Record)| {
        let mut record: Record = postcard::from_bytes(&postcard::to_stdvec(&good.tree.record).unwrap()).unwrap();
        change(&mut record);
        let text = postcard::to_stdvec(&record).unwrap();
        [Digest::of(&text).as_bytes().as_slice(), &text].concat()
    };
    let whole = of(|_| {});
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let bad = [
        vec![],
        whole[..20].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        flipped,
        of(|record| record.boot = "another".into()),
        of(|record| record.format += 1),
    ];
    drop(good);
    for (n, bytes) in bad.into_iter().enumerate() {
        fs::write(rules.record(), bytes).unwrap();
        write(rules.store.trees_path().join("0/root/junk"), "1");
        assert_eq!(rules.run(|root| assert!(!root.join("junk").exists(), "record {n}")), Vec::<String>::new());
    }
}

#[test]
fn a_tree_that_is_not_as_its_record_says_is_made_anew() {
    let mut rules = Rules::new(few);
    // The next rule's snapshot is without the first: what is to be removed isn't there.
    fs::remove_dir_all(rules.store.trees_path().join("0/root/d")).unwrap();
    write(rules.store.trees_path().join("0/root/d"), "a file now");
    rules.stack = Stack::default();
    assert_eq!(rules.run(|root| assert_eq!(fs::read_dir(root).unwrap().count(), 0)), Vec::<String>::new());
}

#[test]
fn two_at_once_have_a_tree_each() {
    let rules = Rules::new(few);
    let (one, other) = (rules.tree(), rules.tree());
    assert_ne!(one.path(), other.path());
    assert_ne!(fs::metadata(one.path().join("a")).unwrap().ino(), fs::metadata(other.path().join("a")).unwrap().ino());
}
