//! What programs load while they run and no header names: known cases, as a table.
//!
//! A case applies to a file by its name or by what it imports, and brings files of the builder. What
//! a case brings is optional: where such a file misses a library itself, that's a warning.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::LazyLock;

use super::Files;
use super::elf::{Elf, Machine};
use super::loader::{Flavour, Loader, Object};
use super::lookup::{Lookup, World};
use super::openssl;
use crate::error::Result;
use crate::tree::RootPath;

/// Imports that some case looks at.
pub static WATCHED: LazyLock<Vec<&str>> =
    LazyLock::new(|| [OTHERS, PROVIDER_LOADS, ENGINE_LOADS, NAME_LOOKUPS].concat());

const OTHERS: &[&str] = &["iconv_open", "setlocale", "newlocale", "pthread_exit", "pthread_cancel", "backtrace"];

const PROVIDER_LOADS: &[&str] = &["OSSL_PROVIDER_load", "OSSL_PROVIDER_try_load"];

const ENGINE_LOADS: &[&str] = &[
    "ENGINE_by_id",
    "ENGINE_load_builtin_engines",
    "ENGINE_load_dynamic",
    "ENGINE_load_private_key",
    "ENGINE_load_public_key",
    "ENGINE_load_ssl_client_cert",
];

const NAME_LOOKUPS: &[&str] = &[
    "getaddrinfo",
    "gethostbyname",
    "gethostbyname2_r",
    "gethostbyname_r",
    "getpwnam",
    "getpwnam_r",
    "getpwuid",
    "getpwuid_r",
    "getgrnam",
    "getgrnam_r",
    "getgrgid",
    "getgrgid_r",
    "initgroups",
    "getgrouplist",
];

/// Character sets that texts of the last thirty years are in; others are named by the user.
const CHARACTER_SETS: &[&str] =
    &["ISO8859-1", "ISO8859-2", "ISO8859-15", "CP1252", "UTF-16", "UTF-32", "UTF-7", "UNICODE"];

const MOST: u64 = 1 << 20;

const LOCALE_ARCHIVE: &str = "/usr/lib/locale/locale-archive";

/// A known case.
pub struct Case {
    /// What is loaded, for people.
    pub name: &'static str,
    applies: fn(&Object) -> bool,
    /// Paths that are brought where they are.
    pub brings: fn(&Asking<'_>) -> Result<Vec<String>>,
}

/// What a case may ask.
pub struct Asking<'a> {
    /// The image and the builder.
    pub world: &'a World<'a>,
    /// Content.
    pub files: &'a dyn Files,
    /// The file that it is about.
    pub object: &'a Object,
    /// Its loader.
    pub loader: &'a Loader,
    /// What is in memory with it, by the names under which the loader knows it.
    pub loaded: &'a BTreeMap<String, Rc<Object>>,
    /// The image's environment.
    pub env: &'a BTreeMap<String, String>,
}

const CASES: &[Case] = &[
    Case { name: "character sets of iconv", applies: |o| imports(o, &["iconv_open"]), brings: gconv },
    Case {
        name: "locales of the image's environment",
        applies: |o| imports(o, &["setlocale", "newlocale"]),
        brings: |a| Ok(locales(a)),
    },
    Case {
        name: "libgcc_s for thread cancellation and backtraces",
        applies: |o| imports(o, &["pthread_exit", "pthread_cancel", "backtrace"]),
        brings: |a| Ok(a.in_folders(&["libgcc_s.so.1"])),
    },
    Case { name: "name service modules", applies: |o| imports(o, NAME_LOOKUPS), brings: name_services },
    Case {
        name: "OpenSSL providers",
        applies: |o| imports(o, PROVIDER_LOADS) && !is_openssl(o),
        brings: |a| Ok(a.all_of(openssl_folders(a)?.modules)),
    },
    Case {
        name: "OpenSSL engines",
        applies: |o| imports(o, ENGINE_LOADS) && !is_openssl(o),
        brings: |a| Ok(a.all_of(openssl_folders(a)?.engines)),
    },
    Case { name: "what openssl.cnf loads", applies: |o| named(o, CRYPTO), brings: openssl_configured },
    Case { name: "PAM modules", applies: |o| named(o, "libpam.so"), brings: pam },
    Case { name: "GIO modules", applies: |o| named(o, "libgio-2.0.so"), brings: |a| Ok(a.all_in("gio/modules")) },
    Case { name: "modules of NSS", applies: |o| named(o, "libnss3.so"), brings: nss },
    Case { name: "the Python library", applies: |o| named(o, "python3") || named(o, "libpython3"), brings: python },
    Case { name: "Perl's base library", applies: |o| named(o, "perl") || named(o, "libperl.so"), brings: perl },
    Case { name: "the Java runtime", applies: |o| named(o, "libjli.so"), brings: java },
];

const CRYPTO: &str = "libcrypto.so";

/// The cases that apply to a file.
pub fn cases(object: &Object) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(|case| (case.applies)(object))
}

/// A program of which nothing but the machine is known.
pub fn empty(machine: Machine) -> Elf {
    Elf {
        machine,
        interpreter: None,
        soname: None,
        needed: vec![],
        rpath: vec![],
        runpath: None,
        no_default: false,
        wants: BTreeMap::new(),
        has: BTreeSet::new(),
        imports: BTreeSet::new(),
        declared: vec![],
    }
}

fn imports(object: &Object, symbols: &[&str]) -> bool {
    symbols.iter().any(|symbol| object.elf.imports.contains(*symbol))
}

fn named(object: &Object, start: &str) -> bool {
    let soname = object.elf.soname.as_deref().unwrap_or_default();
    object.path.name().starts_with(start.as_bytes()) || soname.starts_with(start)
}

/// OpenSSL's own libraries and providers call its functions for others, if these ask for it.
fn is_openssl(object: &Object) -> bool {
    let provider = object.path.parent().is_some_and(|folder| folder.name() == b"ossl-modules");
    provider || named(object, "libssl.so") || named(object, CRYPTO)
}

impl Asking<'_> {
    /// The loader's own folders.
    fn folders(&self) -> &[String] {
        &self.loader.built_in
    }

    fn is_there(&self, path: &str) -> bool {
        self.world.walk_text(path).there
    }

    /// Is what the path leads to in the image?
    fn has(&self, path: &str) -> bool {
        self.world.has(&self.world.walk_text(path).path)
    }

    fn in_image(&self, path: &str) -> bool {
        RootPath::new(path).is_ok_and(|path| self.world.has(&path))
    }

    /// These names, each where the first of the loader's folders has it.
    fn in_folders(&self, names: &[&str]) -> Vec<String> {
        let first = |name: &&str| {
            self.folders().iter().map(|folder| format!("{folder}/{name}")).find(|path| self.is_there(path))
        };
        names.iter().filter_map(first).collect()
    }

    /// All files in this folder of the first of the loader's folders that has it.
    fn all_in(&self, name: &str) -> Vec<String> {
        self.all_of(self.in_folders(&[name]))
    }

    /// All files in these folders.
    fn all_of(&self, folders: impl IntoIterator<Item = String>) -> Vec<String> {
        let files = folders.into_iter().flat_map(|folder| self.world.list(&self.world.walk_text(&folder).path));
        files.map(|path| path.to_string()).collect()
    }

    /// All files of the builder at and below a folder, the named ones left out.
    fn below(&self, folder: &str, without: &[&str]) -> Vec<String> {
        let top = self.world.walk_text(folder);
        if !top.there {
            return vec![];
        }
        let left_out: Vec<RootPath> = without.iter().filter_map(|name| top.path.join(name).ok()).collect();
        let all = self.world.view().below(&top.path);
        let wanted = |path: &&RootPath| {
            !left_out.iter().any(|folder| path.starts_with(folder))
                && !path.as_bytes().windows(13).any(|w| w == b"/__pycache__/")
        };
        let files = all.iter().filter(|(_, (entry, _))| !entry.is_folder()).map(|(path, _)| path);
        files.filter(wanted).map(|path| path.to_string()).collect()
    }
}

fn gconv(asking: &Asking<'_>) -> Result<Vec<String>> {
    if asking.loader.flavour == Flavour::Musl {
        return Ok(vec![]);
    }
    let mut all = asking.in_folders(&["gconv/gconv-modules.cache"]);
    if all.is_empty() {
        all = asking.in_folders(&["gconv/gconv-modules"]);
        all.extend(asking.all_in("gconv/gconv-modules.d"));
    }
    let modules: Vec<String> = CHARACTER_SETS.iter().map(|set| format!("gconv/{set}.so")).collect();
    all.extend(asking.in_folders(&modules.iter().map(String::as_str).collect::<Vec<_>>()));
    Ok(all)
}

/// What `LANG` and its like name, as a folder if the builder has one, else in the archive of all: locale(7).
fn locales(asking: &Asking<'_>) -> Vec<String> {
    if asking.loader.flavour == Flavour::Musl {
        return vec![];
    }
    let named = asking.env.iter().filter(|(name, _)| *name == "LANG" || name.starts_with("LC_"));
    let names: BTreeSet<&str> = named.map(|(_, value)| value.as_str()).collect();
    let mut all = BTreeSet::new();
    for name in names.into_iter().filter(|name| !matches!(*name, "" | "C" | "POSIX") && !name.contains('/')) {
        let folders = locale_folders(name).map(|folder| asking.below(&format!("/usr/lib/locale/{folder}"), &[]));
        match folders.into_iter().find(|files| !files.is_empty()) {
            Some(files) => all.extend(files),
            None => all.extend([LOCALE_ARCHIVE.to_string()].into_iter().filter(|path| asking.is_there(path))),
        }
    }
    all.into_iter().collect()
}

/// `de_DE.UTF-8@euro` is looked for as it stands, and with its character set in glibc's own spelling,
/// `utf8`: _nl_normalize_codeset.
fn locale_folders(name: &str) -> [String; 2] {
    let (name, modifier) = name.split_once('@').map_or((name, String::new()), |(n, m)| (n, format!("@{m}")));
    let Some((language, set)) = name.split_once('.') else {
        return [format!("{name}{modifier}"), format!("{name}{modifier}")];
    };
    let plain: String = set.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let iso = if plain.bytes().all(|b| b.is_ascii_digit()) { "iso" } else { "" };
    [format!("{name}{modifier}"), format!("{language}.{iso}{plain}{modifier}")]
}

/// glibc has `files` and `dns` built in since 2.34; before, and for what else `nsswitch.conf` of the image
/// names, there are modules: nss(5).
fn name_services(asking: &Asking<'_>) -> Result<Vec<String>> {
    if asking.loader.flavour == Flavour::Musl {
        return Ok(vec![]);
    }
    let mut services: BTreeSet<String> = BTreeSet::new();
    if asking.loaded.get("libc.so.6").is_some_and(|libc| !libc.elf.has.contains("GLIBC_2.34")) {
        services.extend(["files".to_string(), "dns".to_string()]);
    }
    let conf = RootPath::new("etc/nsswitch.conf")?;
    if asking.world.has(&conf)
        && let Some(text) = asking.world.read(&conf, asking.files, MOST)?
    {
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let words = lines.filter_map(|line| line.split_once(':')).flat_map(|(_, services)| services.split_whitespace());
        let known = ["files", "dns"];
        services.extend(
            words
                .filter(|w| w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !known.contains(w))
                .map(str::to_string),
        );
    }
    let modules: Vec<String> = services.iter().map(|service| format!("libnss_{service}.so.2")).collect();
    Ok(asking.in_folders(&modules.iter().map(String::as_str).collect::<Vec<_>>()))
}

/// The modules that the image's own `/etc/pam.d` names: pam.conf(5).
fn pam(asking: &Asking<'_>) -> Result<Vec<String>> {
    let folder = RootPath::new("etc/pam.d")?;
    let mut todo: Vec<RootPath> =
        asking.world.list(&folder).into_iter().filter(|path| asking.world.has(path)).collect();
    let (mut all, mut seen, mut modules) = (vec![], BTreeSet::new(), BTreeSet::new());
    while let Some(path) = todo.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let Some(text) = asking.world.read(&path, asking.files, MOST)? else { continue };
        all.push(path.to_string());
        for line in String::from_utf8_lossy(&text).lines() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let included = words
                .iter()
                .position(|w| matches!(*w, "@include" | "include" | "substack"))
                .and_then(|at| words.get(at + 1));
            if let Some(Ok(path)) = included.map(|name| folder.join(name)) {
                todo.push(path);
            }
            modules.extend(words.iter().filter(|w| w.ends_with(".so")).map(|w| w.to_string()));
        }
    }
    for module in modules {
        match module.starts_with('/') {
            true => all.push(module),
            false => all.extend(asking.in_folders(&[&format!("security/{module}")])),
        }
    }
    Ok(all)
}

/// Where the OpenSSL of this program looks, as its environment and then its libcrypto have it.
fn openssl_folders(asking: &Asking<'_>) -> Result<openssl::Folders> {
    let all = std::iter::once(asking.object).chain(asking.loaded.values().map(Rc::as_ref));
    let crypto = all.filter(|object| named(object, CRYPTO)).find_map(|object| asking.world.file(&object.path));
    let built = crypto.map(|path| openssl::Folders::read(&path, asking.world, asking.files)).transpose()?;
    let built = built.unwrap_or_default();
    let usual = |name: &str| asking.in_folders(&[name]).into_iter().next();
    Ok(openssl::Folders {
        own: built.own,
        engines: asking.env.get("OPENSSL_ENGINES").cloned().or(built.engines).or_else(|| usual("engines-3")),
        modules: asking.env.get("OPENSSL_MODULES").cloned().or(built.modules).or_else(|| usual("ossl-modules")),
    })
}

/// The providers and engines that the configuration has OpenSSL load, and the files that it includes. Without any
/// it comes by itself alone, where TLS is spoken.
fn openssl_configured(asking: &Asking<'_>) -> Result<Vec<String>> {
    let folders = openssl_folders(asking)?;
    let usual = || folders.own.as_ref().map(|folder| format!("{folder}/openssl.cnf"));
    let Some(path) = asking.env.get("OPENSSL_CONF").cloned().or_else(usual) else { return Ok(vec![]) };
    let configuration = openssl::Configuration::read(&path, asking.world, asking.files)?;
    let mut all: Vec<String> = configuration.loads(&folders).into_iter().filter(|p| asking.is_there(p)).collect();
    if !all.is_empty() || asking.has(&path) {
        all.extend(configuration.files);
    }
    Ok(all)
}

fn nss(asking: &Asking<'_>) -> Result<Vec<String>> {
    let mut all = asking.all_in("nss");
    all.extend(asking.in_folders(&[
        "libsoftokn3.so",
        "libfreebl3.so",
        "libfreeblpriv3.so",
        "libnssckbi.so",
        "libnssdbm3.so",
    ]));
    Ok(all)
}

/// `PREFIX/lib/python3.N`, for `PREFIX/bin/python3.N` and `PREFIX/lib/…/libpython3.N.so`; not when the rule
/// picked it itself.
fn python(asking: &Asking<'_>) -> Result<Vec<String>> {
    let path = asking.object.path.to_string();
    let name = path.rsplit('/').next().unwrap_or_default();
    let version: String = name
        .trim_start_matches("lib")
        .trim_start_matches("python")
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let version = version.trim_end_matches('.');
    if !version.contains('.') {
        return Ok(vec![]);
    }
    let above = asking.object.path.ancestors().map(|folder| folder.join(format!("lib/python{version}")));
    let Some(folder) =
        above.filter_map(|f| f.ok()).map(|f| f.to_string()).find(|folder| asking.is_there(&format!("{folder}/os.py")))
    else {
        return Ok(vec![]);
    };
    if asking.in_image(&format!("{folder}/os.py")) {
        return Ok(vec![]);
    }
    let without = [
        "dist-packages",
        "site-packages",
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "ensurepip",
        "lib2to3",
        "pydoc_data",
        "EXTERNALLY-MANAGED",
    ];
    let all = asking.below(&folder, &without);
    Ok(all.into_iter().filter(|path| !path.starts_with(&format!("{folder}/config-"))).collect())
}

fn perl(asking: &Asking<'_>) -> Result<Vec<String>> {
    let folders = asking.in_folders(&["perl-base"]);
    Ok(folders
        .iter()
        .filter(|folder| !asking.in_image(&format!("{folder}/strict.pm")))
        .flat_map(|folder| asking.below(folder, &[]))
        .collect())
}

/// `JAVA_HOME`, for `JAVA_HOME/lib/libjli.so`; not when the rule picked it itself.
fn java(asking: &Asking<'_>) -> Result<Vec<String>> {
    let Some(home) = asking.object.path.ancestors().nth(1).filter(|home| !home.is_root()) else { return Ok(vec![]) };
    let home = home.to_string();
    if asking.in_image(&format!("{home}/lib/modules")) || !asking.is_there(&format!("{home}/lib/modules")) {
        return Ok(vec![]);
    }
    let mut all = asking.below(
        &home,
        &["bin", "man", "docs", "legal", "demo", "include", "jmods", "lib/src.zip", "lib/ct.sym", "src.zip"],
    );
    all.push(format!("{home}/bin/java"));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tapeout::testing::{OnDisk, on_disk, path};
    use crate::tree::{Selection, Stack};

    /// What the cases bring for a file of this name in a builder with these files.
    fn brought(name: &str, imported: &str, files: &[(&str, &str)], picked: &[&str]) -> Vec<String> {
        let entries: Vec<_> = files.iter().map(|(path, text)| (*path, Some(text.as_bytes()), 0o644)).collect();
        let (dir, layer) = on_disk(&entries);
        let view = Stack(vec![layer]);
        let image: Selection =
            picked.iter().map(|p| (path(p), World::new([], &view).pick(&path(p), "".into()).unwrap())).collect();
        let world = World::new([&image], &view);
        let elf =
            Elf { imports: [imported.to_string()].into(), ..empty(Machine { wide: true, little: true, number: 62 }) };
        let object = Object { path: path(name), elf: Rc::new(elf), loader: None };
        let loader = Loader {
            flavour: Flavour::Glibc,
            path: String::new(),
            configured: vec![],
            built_in: vec!["/lib/x".into(), "/usr/lib/x".into()],
        };
        let old = Elf { has: ["GLIBC_2.31".to_string()].into(), ..empty(object.elf.machine) };
        let loaded = |at: &str, elf: Elf| {
            (at.rsplit('/').next().unwrap().into(), Rc::new(Object { path: path(at), elf: Rc::new(elf), loader: None }))
        };
        let crypto = loaded("opt/lib/libcrypto.so.3", empty(object.elf.machine));
        let asking = Asking {
            world: &world,
            files: &OnDisk(dir.path().into()),
            object: &object,
            loader: &loader,
            loaded: &BTreeMap::from([loaded("lib/libc.so.6", old), crypto]),
            env: &BTreeMap::from([("LANG".into(), "de_DE.UTF-8".into()), ("LC_TIME".into(), "C".into())]),
        };
        cases(&object).flat_map(|case| (case.brings)(&asking).unwrap()).collect()
    }

    #[test]
    fn each_case_brings_what_it_knows() {
        assert_eq!(
            brought(
                "bin/x",
                "iconv_open",
                &[
                    ("usr/lib/x/gconv/gconv-modules", ""),
                    ("usr/lib/x/gconv/UTF-16.so", ""),
                    ("usr/lib/x/gconv/IBM037.so", "")
                ],
                &[]
            ),
            ["/usr/lib/x/gconv/gconv-modules", "/usr/lib/x/gconv/UTF-16.so"]
        );
        assert_eq!(brought("bin/x", "pthread_exit", &[("lib/x/libgcc_s.so.1", "")], &[]), ["/lib/x/libgcc_s.so.1"]);
        assert_eq!(
            brought("bin/x", "getaddrinfo", &[("lib/x/libnss_dns.so.2", ""), ("lib/x/libnss_ldap.so.2", "")], &[]),
            ["/lib/x/libnss_dns.so.2"]
        );
        assert_eq!(
            brought("usr/lib/x/libgio-2.0.so.0", "", &[("usr/lib/x/gio/modules/libtls.so", "")], &[]),
            ["/usr/lib/x/gio/modules/libtls.so"]
        );
        assert!(brought("bin/x", "", &[("lib/x/libgcc_s.so.1", "")], &[]).is_empty());
        let (german, archive) = ("usr/lib/locale/de_DE.utf8/LC_CTYPE", "usr/lib/locale/locale-archive");
        let other = "usr/lib/locale/C.utf8/LC_CTYPE";
        let builder = [(german, ""), (archive, ""), (other, "")];
        assert_eq!(brought("bin/x", "setlocale", &builder, &[]), [format!("/{german}")]);
        assert_eq!(brought("bin/x", "newlocale", &builder[1..], &[]), [format!("/{archive}")]);
        assert!(brought("bin/x", "setlocale", &builder[2..], &[]).is_empty());
    }

    #[test]
    fn a_locale_is_looked_for_as_glibc_does() {
        for (name, folder) in
            [("C.UTF-8", "C.utf8"), ("de_DE.ISO-8859-1@euro", "de_DE.iso88591@euro"), ("x.8859-1", "x.iso88591")]
        {
            assert_eq!(locale_folders(name), [name, folder]);
        }
        assert_eq!(locale_folders("de_DE@euro")[0], "de_DE@euro");
    }

    #[test]
    fn openssl_gets_what_is_asked_of_it_and_what_its_configuration_loads() {
        let crypto = "OPENSSLDIR: \"/opt/ssl\"\0ENGINESDIR: \"/opt/lib/engines\"\0MODULESDIR: \"/opt/lib/modules\"\0";
        let active =
            "openssl_conf=i\n.include /opt/ssl/more.cnf\n[i]\nproviders=p\n[p]\nlegacy=l\ndefault=l\n[l]\nactivate=1\n";
        let mut files = [
            ("opt/lib/libcrypto.so.3", crypto),
            ("opt/lib/modules/legacy.so", ""),
            ("opt/lib/modules/fips.so", ""),
            ("opt/lib/engines/padlock.so", ""),
            ("usr/lib/x/engines-3/other.so", ""),
            ("opt/ssl/openssl.cnf", active),
            ("opt/ssl/more.cnf", ""),
        ];
        let providers = ["/opt/lib/modules/fips.so", "/opt/lib/modules/legacy.so"];
        assert_eq!(brought("bin/x", "OSSL_PROVIDER_load", &files, &[]), providers);
        assert_eq!(brought("bin/x", "ENGINE_by_id", &files, &[]), ["/opt/lib/engines/padlock.so"]);
        for own in ["opt/lib/libssl.so.3", "usr/lib/x/ossl-modules/legacy.so"] {
            assert!(brought(own, "ENGINE_by_id", &files, &[]).is_empty(), "{own}");
        }
        let configured = ["/opt/lib/modules/legacy.so", "/opt/ssl/openssl.cnf", "/opt/ssl/more.cnf"];
        assert_eq!(brought("opt/lib/libcrypto.so.3", "", &files, &["opt/ssl/openssl.cnf"]), configured);
        assert_eq!(brought("opt/lib/libcrypto.so.3", "", &files, &[]), configured, "the skeleton would bring it");
        files[5].1 = "openssl_conf=i\n[i]\nproviders=p\n[p]\nlegacy=l\ndefault=l\n[l]\n# activate=1\n";
        assert!(brought("opt/lib/libcrypto.so.3", "", &files, &[]).is_empty());
        assert!(brought("bin/x", "", &files, &["opt/ssl/openssl.cnf"]).is_empty());
        assert_eq!(brought("bin/x", "ENGINE_by_id", &files[3..], &[]), ["/usr/lib/x/engines-3/other.so"]);
    }

    #[test]
    fn services_of_the_images_own_table_are_brought() {
        let files = [
            ("etc/nsswitch.conf", "hosts: files ldap [NOTFOUND=return] # x\n"),
            ("lib/x/libnss_ldap.so.2", ""),
            ("lib/x/libnss_files.so.2", ""),
        ];
        assert_eq!(
            brought("bin/x", "getpwnam", &files, &["etc/nsswitch.conf"]),
            ["/lib/x/libnss_files.so.2", "/lib/x/libnss_ldap.so.2"]
        );
    }

    #[test]
    fn modules_of_picked_pam_files_are_brought() {
        let files = [
            ("etc/pam.d/app", "auth [success=1] pam_unix.so nullok # pam_not.so\n@include common\n"),
            ("etc/pam.d/common", "account required pam_deny.so\n"),
            ("etc/pam.d/other", "auth required pam_other.so\n"),
            ("lib/x/security/pam_unix.so", ""),
            ("lib/x/security/pam_deny.so", ""),
            ("lib/x/security/pam_other.so", ""),
        ];
        assert_eq!(
            brought("lib/x/libpam.so.0", "", &files, &["etc/pam.d/app"]),
            ["/etc/pam.d/app", "/etc/pam.d/common", "/lib/x/security/pam_deny.so", "/lib/x/security/pam_unix.so"]
        );
    }

    #[test]
    fn python_gets_its_library_unless_it_was_picked() {
        let files = [
            ("usr/lib/python3.11/os.py", ""),
            ("usr/lib/python3.11/json/a.py", ""),
            ("usr/lib/python3.11/test/b.py", ""),
            ("usr/lib/python3.11/json/__pycache__/a.pyc", ""),
        ];
        assert_eq!(
            brought("usr/bin/python3.11", "", &files, &[]),
            ["/usr/lib/python3.11/json/a.py", "/usr/lib/python3.11/os.py"]
        );
        assert!(brought("usr/bin/python3.11", "", &files, &["usr/lib/python3.11/os.py"]).is_empty());
    }
}
