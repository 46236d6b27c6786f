//! A workspace of one test, and the commands that are run in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::outcome::{Outcome, Running};
use super::places::{self, Scratch};
use super::user::User;

/// A workspace, with its user's home, store and environment.
pub struct Workspace {
    scratch: Scratch,
    /// Who runs the commands.
    pub user: User,
    root: PathBuf,
    store: PathBuf,
    env: BTreeMap<String, String>,
    prefix: Vec<String>,
    binary: Option<PathBuf>,
    /// After this long a command is ended and the test fails.
    pub limit: Duration,
}

/// The `tapeout.toml` of a workspace whose builder is busybox alone.
pub fn tiny_toml() -> String {
    format!(
        "[builder]\ntag = \"tiny\"\nfrom = \"dir:{}\"\n[build]\nepoch = 1767225600\n",
        places::tiny_root().display()
    )
}

/// The `tapeout.toml` of a workspace in a Debian builder.
pub const DEBIAN_TOML: &str =
    "[builder]\ntag = \"bookworm\"\nfrom = \"debian:bookworm\"\n[build]\nepoch = 1767225600\n";

/// The folder with the store, its Debian builder and the lock that it was made from: bootstrapped once.
pub fn shared() -> PathBuf {
    places::shared(|folder| {
        let user = User::plain();
        let mut first = Workspace::empty(user.clone()).stored_in(folder.join("store"));
        first.limit = Duration::from_secs(540);
        first.file("tapeout.toml", DEBIAN_TOML);
        first.run("bootstrap bookworm --from debian:bookworm").success();
        let lock = folder.join("tapeout.lock");
        fs::copy(first.path("tapeout.lock"), &lock).expect("bootstrap writes tapeout.lock");
        user.owns(&lock);
    })
}

impl Workspace {
    /// An empty folder, of this user.
    pub fn empty(user: User) -> Self {
        let scratch = Scratch::new(&user);
        let (root, store) = (scratch.path().join("workspace"), scratch.path().join("store"));
        for folder in
            [scratch.path().join("home"), scratch.path().join("tmp"), scratch.path().join("bin"), root.clone()]
        {
            fs::create_dir(&folder).expect("create_dir");
            user.owns(&folder);
        }
        let mut workspace = Self {
            root,
            store,
            user,
            scratch,
            env: BTreeMap::new(),
            prefix: vec![],
            binary: None,
            limit: Duration::from_secs(600),
        };
        for (name, value) in [
            ("HOME", workspace.home().display().to_string()),
            ("USER", workspace.user.name.clone()),
            ("LOGNAME", workspace.user.name.clone()),
            ("PATH", workspace.scratch.path().join("bin").display().to_string()),
            ("TMPDIR", workspace.scratch.path().join("tmp").display().to_string()),
            ("TAPEOUT_STORE", workspace.store.display().to_string()),
        ] {
            workspace.env.insert(name.into(), value);
        }
        workspace
    }

    /// In a builder of busybox alone, in its own store: fast.
    pub fn tiny() -> Self {
        Self::tiny_of(User::plain())
    }

    /// The same, of another user.
    pub fn tiny_of(user: User) -> Self {
        let workspace = Self::empty(user);
        workspace.file("tapeout.toml", tiny_toml());
        workspace
    }

    /// In the Debian builder that all tests share, in the store that all tests share.
    pub fn debian() -> Self {
        let shared = shared();
        let workspace = Self::empty(User::plain()).stored_in(shared.join("store"));
        workspace.file("tapeout.toml", DEBIAN_TOML);
        workspace.file("tapeout.lock", fs::read(shared.join("tapeout.lock")).expect("tapeout.lock"));
        workspace
    }

    /// With another store.
    pub fn stored_in(mut self, store: PathBuf) -> Self {
        self.env.insert("TAPEOUT_STORE".into(), store.display().to_string());
        self.store = store;
        self
    }

    /// With a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// With a command before the command: `faketime`, `setpriv`.
    pub fn behind(mut self, prefix: &[&str]) -> Self {
        self.prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With the static binary that ci/release made of this very source, where there is one; ci/test says so where not.
    pub fn with_static_binary(mut self) -> Self {
        if let Some(binary) = std::env::var_os("TAPEOUT_STATIC_BINARY") {
            let copy = self.everything().join("static");
            fs::copy(binary, &copy).expect("TAPEOUT_STATIC_BINARY");
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("chmod");
            self.binary = Some(copy);
        }
        self
    }

    /// Writes a file of the workspace, mode 0644.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let file = self.root.join(path);
        self.make_folders(path);
        fs::write(&file, content).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
        self.user.owns(&file);
        self
    }

    fn make_folders(&self, path: &str) {
        let mut folder = self.root.clone();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            folder.push(part);
            if fs::create_dir(&folder).is_ok() {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
                self.user.owns(&folder);
            }
        }
    }

    /// Copies a folder into the workspace, without what a build made there.
    pub fn copy(&self, from: &Path, below: &str) -> &Self {
        for entry in walkdir::WalkDir::new(from).sort_by_file_name() {
            let entry = entry.expect("walk");
            let name = entry.path().strip_prefix(from).expect("below");
            if entry.file_type().is_file() && !name.starts_with("tapeout-out") {
                let to = Path::new(below).join(name);
                self.file(to.to_str().expect("UTF-8"), fs::read(entry.path()).expect("read"));
                let mode = entry.metadata().expect("metadata").permissions().mode() & 0o755;
                fs::set_permissions(self.root.join(to), fs::Permissions::from_mode(mode)).expect("chmod");
            }
        }
        self
    }

    /// A path of the workspace.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The text of a file of the workspace.
    pub fn read(&self, path: &str) -> String {
        let file = self.path(path);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// What a build wrote: `output("app/web/build_image")`.
    pub fn output(&self, path: &str) -> PathBuf {
        self.root.join("tapeout-out").join(path)
    }

    /// The folder that holds everything of this test: home, store, workspace.
    pub fn everything(&self) -> &Path {
        self.scratch.path()
    }

    /// The user's home.
    pub fn home(&self) -> PathBuf {
        self.scratch.path().join("home")
    }

    /// The store.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A command as this user, in this environment, in the workspace.
    pub fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut words = self.prefix.clone();
        words.push(program.display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments).current_dir(&self.root).env_clear().envs(&self.env);
        self.user.runs(&mut command);
        command
    }

    /// Starts `tapeout` and doesn't wait.
    pub fn start(&self, arguments: &str) -> Running {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        self.start_words(&arguments)
    }

    fn start_words(&self, arguments: &[&str]) -> Running {
        let shown = format!("{} tapeout {}", self.prefix.join(" "), arguments.join(" "));
        let binary = self.binary.clone().unwrap_or_else(places::binary);
        Running::start(&mut self.command(&binary, arguments), shown)
    }

    /// Runs `tapeout` with these arguments, separated by spaces.
    pub fn run(&self, arguments: &str) -> Outcome {
        self.start(arguments).wait(self.limit)
    }

    /// Runs `tapeout` with these arguments, which may hold spaces.
    pub fn run_words(&self, arguments: &[&str]) -> Outcome {
        self.start_words(arguments).wait(self.limit)
    }

    /// Runs a program of this machine as this user, in the workspace, with the machine's programs.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Outcome {
        let path = super::needs::find(program).unwrap_or_else(|| panic!("{program} is not installed"));
        let mut command = self.command(&path, arguments);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Running::start(&mut command, format!("{program} {}", arguments.join(" "))).wait(self.limit)
    }
}
