//! What OpenSSL loads by itself: the folders that a libcrypto was built with, and what an `openssl.cnf`
//! has it load: config(5ssl).

use std::collections::{BTreeMap, BTreeSet};

use super::Files;
use super::lookup::{Lookup, World};
use crate::error::Result;
use crate::tree::RootPath;

/// libcrypto has six megabytes.
const MOST_CRYPTO: u64 = 64 << 20;
const MOST_CONF: u64 = 1 << 20;
const MOST_INCLUDES: usize = 100;

/// Where a libcrypto looks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folders {
    /// `OPENSSLDIR`: configuration and certificates.
    pub own: Option<String>,
    /// `ENGINESDIR`.
    pub engines: Option<String>,
    /// `MODULESDIR`: providers.
    pub modules: Option<String>,
}

impl Folders {
    /// As the libcrypto at a path, which has no links in it, says them: OpenSSL_version(3).
    pub fn read(path: &RootPath, world: &World<'_>, files: &dyn Files) -> Result<Self> {
        let bytes = world.open(path, files)?;
        Ok(Self::parse(&bytes.at(0, bytes.size().min(MOST_CRYPTO))?))
    }

    /// `OPENSSLDIR: "/usr/lib/ssl"`, each a string of its own.
    fn parse(crypto: &[u8]) -> Self {
        let mut folders = Self::default();
        for text in crypto.split(|b| *b == 0).filter(|text| text.len() < 4096 && text.ends_with(b"\"")) {
            let Ok(text) = std::str::from_utf8(text) else { continue };
            let place = match text.split_once(": \"") {
                Some(("OPENSSLDIR", _)) => &mut folders.own,
                Some(("ENGINESDIR", _)) => &mut folders.engines,
                Some(("MODULESDIR", _)) => &mut folders.modules,
                _ => continue,
            };
            let folder = text.split('"').nth(1).filter(|folder| folder.starts_with('/'));
            let folder = folder.filter(|folder| RootPath::new(folder).is_ok_and(|f| !f.is_root()));
            *place = place.take().or(folder.map(str::to_string));
        }
        folders
    }
}

/// A configuration with what it includes.
#[derive(Debug, Default)]
pub struct Configuration {
    /// The files that it is made of, those that are there.
    pub files: Vec<String>,
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Configuration {
    /// The one at a path; one that isn't there says nothing.
    pub fn read(path: &str, world: &World<'_>, files: &dyn Files) -> Result<Self> {
        let mut all = Self::default();
        let mut section = String::from("default");
        let mut seen = BTreeSet::new();
        all.add(path, &mut section, &mut seen, (world, files))?;
        Ok(all)
    }

    /// What is included continues the section that it is included in.
    fn add(
        &mut self,
        path: &str,
        section: &mut String,
        seen: &mut BTreeSet<String>,
        from: (&World<'_>, &dyn Files),
    ) -> Result<()> {
        if seen.len() > MOST_INCLUDES || !seen.insert(path.to_string()) {
            return Ok(());
        }
        let Some(text) = from.0.read(&from.0.walk_text(path).path, from.1, MOST_CONF)? else { return Ok(()) };
        self.files.push(path.to_string());
        let text = String::from_utf8_lossy(&text).replace("\\\r\n", "").replace("\\\n", "");
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some(included) = line.strip_prefix(".include") {
                // One that is relative depends on where the program is started.
                let included = included.trim_start_matches(['=', ' ', '\t']).trim_matches('"').to_string();
                let folder = from.0.walk_text(&included);
                let all = match included.starts_with('/') && folder.there {
                    true if from.0.entry(&folder.path).is_some_and(|e| e.is_folder()) => from.0.list(&folder.path),
                    true => vec![folder.path],
                    false => vec![],
                };
                let in_folder = |name: &[u8]| name.ends_with(b".cnf") || name.ends_with(b".conf");
                let single = all.len() == 1;
                for path in all.iter().filter(|path| single || in_folder(path.name())) {
                    self.add(&path.to_string(), section, seen, from)?;
                }
            } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                *section = name.trim().to_string();
            } else if let Some((name, value)) = line.split_once('=') {
                let value = value.trim().trim_matches(['"', '\'']).to_string();
                self.sections.entry(section.clone()).or_default().insert(name.trim().to_string(), value);
            }
        }
        Ok(())
    }

    /// The modules of the providers that it activates and of the engines that it names: paths, of which those
    /// that are built in have nothing there.
    pub fn loads(&self, folders: &Folders) -> Vec<String> {
        let mut all = vec![];
        // `openssl_conf`, or a name of the program's own: nodejs has one.
        let roots = self.section("default").filter(|(name, _)| name.ends_with("_conf")).map(|(_, section)| section);
        for (kind, section) in roots.flat_map(|root| self.section(root)) {
            for (name, own) in self.section(section) {
                let own: BTreeMap<_, _> = self.section(own).collect();
                let module = match kind {
                    "providers" if own.contains_key("activate") => {
                        place(own.get("module").copied(), name, folders.modules.as_deref())
                    }
                    "engines" => {
                        let id = own.get("engine_id").copied().unwrap_or(name);
                        place(own.get("dynamic_path").copied(), id, folders.engines.as_deref())
                    }
                    _ => None,
                };
                all.extend(module);
            }
        }
        all
    }

    fn section(&self, name: &str) -> impl Iterator<Item = (&str, &str)> {
        self.sections.get(name).into_iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// A path that is written, or `ID.so` in the folder for such.
fn place(written: Option<&str>, id: &str, folder: Option<&str>) -> Option<String> {
    match written {
        Some(path) if path.starts_with('/') => Some(path.to_string()),
        Some(path) => Some(format!("{}/{path}", folder?)),
        None => Some(format!("{}/{id}.so", folder?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{OnDisk, on_disk};
    use crate::tree::Stack;

    #[test]
    fn libcrypto_says_where_it_looks() {
        let text =
            b"x\0OPENSSLDIR: \"/usr/lib/ssl\"\0ENGINESDIR: \"/e\"\0\xff\"\0MODULESDIR: \"/m\"\0MODULESDIR: \"/n\"\0";
        let some = |text: &str| Some(text.to_string());
        let folders = Folders { own: some("/usr/lib/ssl"), engines: some("/e"), modules: some("/m") };
        assert_eq!(Folders::parse(text), folders);
        assert_eq!(Folders::parse(b"OPENSSLDIR: \"relative\"\0OPENSSLDIR: \"/\"\0OPENSSLDIR"), Folders::default());
    }

    fn loads(conf: &str) -> Vec<String> {
        let (dir, layer) = on_disk(&[
            ("c/openssl.cnf", Some(conf.as_bytes()), 0o644),
            ("c/more.inc", Some(b"[ p ]\nincluded = on\n.include /c/openssl.cnf\n"), 0o644),
            ("c/d/a.cnf", Some(b"two = on\n"), 0o644),
            ("c/d/b.txt", Some(b"no = on\n"), 0o644),
            ("c/d/c.conf", Some(b"three = on\n"), 0o644),
        ]);
        let view = Stack(vec![layer]);
        let world = World::new([], &view);
        let conf = Configuration::read("/c/openssl.cnf", &world, &OnDisk(dir.path().into())).unwrap();
        let folders = Folders { own: None, engines: Some("/e".into()), modules: Some("/m".into()) };
        conf.loads(&folders)
    }

    #[test]
    fn a_configuration_says_what_is_loaded() {
        let begin = "openssl_conf = init\n[init]\nproviders = p\nengines = e\n[on]\nactivate = 1\n";
        for (rest, expected) in [
            ("[p]\nlegacy = on # x\n", &["/m/legacy.so"][..]),
            ("[p]\nlegacy = off\n[off]\n# activate = 1\n", &[]),
            ("[p]\nx = own\n[own]\nactivate = yes\nmodule = \"/opt/x.so\"\n", &["/opt/x.so"]),
            ("[p]\nx = own\n[own]\nactivate = yes\nmodule = \\\ny.so\n", &["/m/y.so"]),
            ("[e]\npkcs11 = own\n[own]\ninit = 0\n", &["/e/pkcs11.so"]),
            ("[e]\nx = own\n[own]\nengine_id = afalg\n", &["/e/afalg.so"]),
            ("[e]\nx = own\n[own]\ndynamic_path = /opt/e.so\n", &["/opt/e.so"]),
            (".include = /c/more.inc\n", &["/m/included.so"]),
            ("[p]\n.include /c/d\n", &["/m/three.so", "/m/two.so"]),
            (".include c/more.inc\n.include /nowhere\n", &[]),
        ] {
            assert_eq!(loads(&format!("{begin}{rest}")), expected, "{rest}");
        }
        assert!(loads("[init]\nproviders = p\n[p]\nlegacy = on\n[on]\nactivate = 1\n").is_empty(), "nothing names it");
    }
}
