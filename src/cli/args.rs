//! The command line, as typed. Doc comments here are the help.
#![allow(missing_docs, reason = "flattened groups of arguments have no help of their own")]

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Build in a full builder, ship only what you tape out: container images and pods, with no
/// daemon, no root, no setuid helper and no network.
#[derive(Debug, Parser)]
#[command(name = "tapeout", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Stand in this folder instead of the current one.
    #[arg(short = 'C', long = "directory", value_name = "DIR", global = true)]
    pub directory: Option<PathBuf>,
    /// The store [default: tapeout under $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "DIR", env = "TAPEOUT_STORE", global = true)]
    pub store: Option<PathBuf>,
    /// Print what machines read.
    #[arg(long, global = true)]
    pub json: bool,
    /// Open no connection to anywhere.
    #[arg(long, global = true)]
    pub offline: bool,
    /// What keeps rules apart from the machine: auto takes namespaces, or says why there are none;
    /// chroot is no boundary, and for containers that are themselves thrown away
    #[arg(long, value_enum, default_value = "auto", global = true)]
    pub isolation: Isolation,
    /// How snapshots are made [default: an overlay where this place gives one, else copies]
    #[arg(long, value_enum, global = true)]
    pub snapshots: Option<Snapshots>,
}

/// What keeps rules apart from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    Auto,
    Namespaces,
    Chroot,
}

/// How snapshots are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Snapshots {
    Overlay,
    Copy,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build images, pods and rules
    #[command(after_help = "Example:\n  tapeout build //shop:shop/build_pod")]
    Build(Build),
    /// Make a builder: the root filesystem that rules run in
    #[command(
        after_help = "Examples:\n  tapeout bootstrap bookworm\n  tapeout bootstrap mine --from oci:./image:latest"
    )]
    Bootstrap(Bootstrap),
    /// Make the folder one stands in a workspace
    #[command(after_help = "Example:\n  mkdir work && cd work && tapeout init")]
    Init,
    /// Complete or renew tapeout.lock, and say which versions changed
    #[command(
        after_help = "Examples:\n  tapeout lock\n  tapeout lock --update\n  tapeout lock --update openssl libssl3"
    )]
    Lock(Lock),
    /// Bring all that a build needs from outside into the store, or into one file
    #[command(
        after_help = "Examples:\n  tapeout fetch //...\n  tapeout fetch //shop:shop/build_pod -o inputs.oci.tar\n  tapeout --offline build //shop:shop/build_pod --inputs inputs.oci.tar"
    )]
    Fetch(Fetch),
    /// Show rules and parameters, with their docs
    #[command(after_help = "Examples:\n  tapeout list //app:*\n  tapeout list --rdeps //lib:build //...")]
    List(List),
    /// Show the rules that a label needs, as a tree
    #[command(
        after_help = "Examples:\n  tapeout graph //app:web/build_image\n  tapeout graph --dot //app:web/build_image | dot -Tsvg > graph.svg"
    )]
    Graph(Graph),
    /// Open a shell in what a rule sees, in what it left when it failed, or in a finished image
    ///
    /// With the rule's environment, sources, folder and user, in the same sandbox. What is below it is
    /// built first. What you change there is thrown away when you leave; the exit code is the
    /// shell's. Secrets and caches of the rule are not there.
    #[command(
        after_help = "Examples:\n  tapeout shell //app:build\n  tapeout shell --failed //app:build\n  tapeout shell //app:web -- /usr/local/bin/web --version"
    )]
    Shell(Shell),
    /// Say why a rule runs again: which part of its key changed, old and new value
    #[command(after_help = "Example:\n  tapeout explain //app:build")]
    Explain(Explain),
    /// Show what the steps of a rule, or the check of an image, printed the last time
    #[command(after_help = "Examples:\n  tapeout log //app:build\n  tapeout log -p //app:jobs=8 //app:build")]
    Log(Log),
    /// Look at an image: built here, or anybody's
    Image(Image),
    /// Write an image into one file
    #[command(
        after_help = "Examples:\n  tapeout export //app:web -o web.tar\n  tapeout export :web -o web.tar --format docker-archive && docker load -i web.tar"
    )]
    Export(Export),
    /// Bring an image into a registry, with the credentials of docker or podman
    #[command(after_help = "Example:\n  tapeout push //app:web docker://registry.example.com/team/web:1.2")]
    Push(Push),
    /// Remove from the store what no build has used for 30 days
    ///
    /// Builders stay, and what they are made of. It waits for builds that use the store, and may be
    /// stopped at any moment.
    #[command(after_help = "Examples:\n  tapeout gc --dry-run\n  tapeout gc --all")]
    Gc(Gc),
    /// Check everything in the store against the digest that it was kept under
    ///
    /// Exits 1 when something is damaged, and names the rules and builders that have it.
    #[command(after_help = "Examples:\n  tapeout fsck\n  tapeout fsck --repair")]
    Fsck(Fsck),
    /// Carry a pod's bundle as one file, and check one that arrived
    Pod(Pod),
    /// Say what this machine offers, what tapeout does without it, and how to mend it
    #[command(after_help = "Example:\n  tapeout doctor")]
    Doctor(Doctor),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  tapeout completions bash > ~/.local/share/bash-completion/completions/tapeout")]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// What is asked for, and under which parameters.
#[derive(Debug, Clone, Default, Args)]
pub struct Ask {
    /// A parameter's value, or a JSON file of them; later ones win
    #[arg(short, long = "parameter", value_name = "LABEL=VALUE|@FILE")]
    pub parameters: Vec<String>,
    /// A folder of packages that goes before the workspace; later ones go first
    #[arg(long = "path", value_name = "DIR")]
    pub paths: Vec<PathBuf>,
    /// Where a named input of this workspace lies
    #[arg(long = "input", value_name = "NAME=PATH")]
    pub inputs: Vec<String>,
}

/// `tapeout build`
#[derive(Debug, Args)]
pub struct Build {
    /// Labels and patterns: //app:web/build_image, :web/build_image, //app:*, //...
    #[arg(required = true, value_name = "LABEL")]
    pub labels: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
    /// Where images and pods go [default: tapeout-out in the workspace]
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// How many rules run at once [default: the number of processors]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
    /// A file that tapeout fetch wrote: what is in it is read there, and not fetched
    #[arg(long = "inputs", value_name = "FILE")]
    pub input_files: Vec<PathBuf>,
    /// Print what would run, in order, and what is cached
    #[arg(long)]
    pub dry_run: bool,
    /// Then run it again without the cache, in the same snapshots, and fail where a file comes out differently: a rule
    /// itself; of an image, pod or tapeout rule all rules below it but //base:build
    #[arg(long, conflicts_with = "dry_run")]
    pub twice: bool,
    /// Fail where the lock would have to change
    #[arg(long)]
    pub locked: bool,
    /// Where Debian packages come from, instead of tapeout.toml's or the host's apt sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// A keyring to verify the package index with, instead of Debian's own
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Give this rule the host's network, if it asks for it
    #[arg(long = "allow-network", value_name = "LABEL")]
    pub allow_network: Vec<String>,
    /// What the rules that name this secret may read at /run/secrets/NAME: a file's content, or a variable's value
    #[arg(long = "secret", value_name = "NAME=file:PATH|env:VARIABLE")]
    pub secrets: Vec<String>,
}

/// `tapeout lock`
#[derive(Debug, Args)]
pub struct Lock {
    /// Take the newest versions of the mirror's index; with names, of these packages alone where the others' are still there
    #[arg(long, value_name = "PACKAGE", num_args = 0..)]
    pub update: Option<Vec<String>>,
    /// Where Debian packages come from, instead of tapeout.toml's or the host's apt sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// A keyring to verify the package index with, instead of Debian's own
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
}

/// `tapeout fetch`
#[derive(Debug, Args)]
pub struct Fetch {
    /// Labels and patterns
    #[arg(required = true, value_name = "LABEL")]
    pub labels: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
    /// Write all of it, with the lock, into this file: an OCI archive for build --inputs
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Leave out what this file has already
    #[arg(long, value_name = "FILE", requires = "output")]
    pub since: Vec<PathBuf>,
    /// Fail where the lock would have to change
    #[arg(long)]
    pub locked: bool,
    /// Where Debian packages come from, instead of tapeout.toml's or the host's apt sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// A keyring to verify the package index with, instead of Debian's own
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
}

/// `tapeout bootstrap`
#[derive(Debug, Args)]
pub struct Bootstrap {
    /// The builder's name in the store
    pub tag: String,
    /// debian:SUITE, docker://REF@DIGEST, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, tar:FILE, dir:DIR, host or rule://LABEL [default: the workspace's, else debian:bookworm]
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<String>,
    /// Where Debian packages come from, instead of tapeout.toml's or the host's apt sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// A keyring to verify the package index with, instead of Debian's own
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Packages besides the base system
    #[arg(long = "include", value_name = "PACKAGE", value_delimiter = ',')]
    pub include: Vec<String>,
    /// Fail where the lock would have to change
    #[arg(long)]
    pub locked: bool,
    /// Take the newest versions into the lock
    #[arg(long, conflicts_with = "locked")]
    pub update: bool,
}

/// `tapeout list`
#[derive(Debug, Args)]
pub struct List {
    /// Labels and patterns [default: all of the workspace]
    #[arg(value_name = "LABEL")]
    pub labels: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
    /// What this label depends on, directly or not
    #[arg(long, value_name = "LABEL", conflicts_with_all = ["rdeps", "why"])]
    pub deps: Option<String>,
    /// What depends on this label, directly or not
    #[arg(long, value_name = "LABEL", conflicts_with = "why")]
    pub rdeps: Option<String>,
    /// One path of dependencies from the first label to the second
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub why: Option<Vec<String>>,
}

/// `tapeout graph`
#[derive(Debug, Args)]
pub struct Graph {
    /// Labels and patterns
    #[arg(required = true, value_name = "LABEL")]
    pub labels: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
    /// Graphviz's language, with the phases as clusters
    #[arg(long)]
    pub dot: bool,
}

/// `tapeout shell`
#[derive(Debug, Args)]
pub struct Shell {
    /// The rule or image
    pub label: String,
    /// In what the rule left when it failed the last time
    #[arg(long)]
    pub failed: bool,
    /// What to run instead of a shell
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
    /// Where Debian packages come from, instead of tapeout.toml's or the host's apt sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// A keyring to verify the package index with, instead of Debian's own
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Give this rule the host's network, if it asks for it
    #[arg(long = "allow-network", value_name = "LABEL")]
    pub allow_network: Vec<String>,
}

/// `tapeout explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// The rule or image; patterns too
    #[arg(required = true, value_name = "LABEL")]
    pub labels: Vec<String>,
    #[command(flatten)]
    pub ask: Ask,
}

/// `tapeout log`
#[derive(Debug, Args)]
pub struct Log {
    /// The rule or image
    pub label: String,
    /// Only of runs that saw this value of a parameter
    #[arg(short, long = "parameter", value_name = "LABEL=VALUE")]
    pub parameters: Vec<String>,
}

/// `tapeout gc`
#[derive(Debug, Args)]
pub struct Gc {
    /// Remove whatever no builder needs, used or not: the next build makes it again
    #[arg(long)]
    pub all: bool,
    /// Remove nothing, say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// `tapeout fsck`
#[derive(Debug, Args)]
pub struct Fsck {
    /// Remove what is damaged, so that the next build makes or fetches it again; exits 0 then
    #[arg(long)]
    pub repair: bool,
}

/// `tapeout image`
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What to look at. IMAGE is a label (//app:web, :web), as it was last built, an image on disk, or one in a registry.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show an image's settings and layers
    #[command(
        after_help = "Examples:\n  tapeout image inspect //app:web\n  tapeout image inspect oci-archive:their.tar"
    )]
    Inspect {
        /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
        image: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// List the files that a container sees
    #[command(after_help = "Example:\n  tapeout image ls -l //app:web /usr/lib")]
    Ls {
        /// With mode, owner, size, and the rule whose layer has it
        #[arg(short, long)]
        long: bool,
        /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
        image: String,
        /// What is at and below this path
        path: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Print a file
    #[command(after_help = "Example:\n  tapeout image cat //app:web /etc/passwd")]
    Cat {
        /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
        image: String,
        /// Its path; links are followed inside the image
        path: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Say in which files two images differ, from which byte on, and which rules made them
    #[command(
        after_help = "Example:\n  tapeout image diff oci:yesterday //app:web\n\nThe exit code is 1 where they differ."
    )]
    Diff {
        /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
        a: String,
        /// The other one
        b: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Unpack an image's files into a folder
    #[command(
        after_help = "Example:\n  tapeout image unpack //app:web rootfs\n\nAll of it belongs to you; whose it is in the image is told where that differs."
    )]
    Unpack {
        /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
        image: String,
        /// A folder that is not there yet, or empty
        #[arg(value_name = "DIR")]
        to: PathBuf,
        #[command(flatten)]
        ask: Ask,
    },
    /// Say why a file is in an image
    #[command(after_help = "Example:\n  tapeout image why //app:web /usr/lib/x86_64-linux-gnu/libssl.so.3")]
    Why {
        /// The image
        image: String,
        /// A path in it; all paths without one
        path: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
}

/// `tapeout export`
#[derive(Debug, Args)]
pub struct Export {
    /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
    pub image: String,
    /// The file
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// What others call it: podman, skopeo and buildah read both, docker load the second
    #[arg(long, value_enum, default_value_t = ExportFormat::OciArchive)]
    pub format: ExportFormat,
    #[command(flatten)]
    pub ask: Ask,
}

/// Images as one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// The image layout as a tar file; the layers as they are
    OciArchive,
    /// What docker save writes; zstd layers are written plain
    DockerArchive,
}

/// `tapeout push`
#[derive(Debug, Args)]
pub struct Push {
    /// A label, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or docker://REF
    pub image: String,
    /// docker://HOST/REPOSITORY[:TAG] [default tag: the image's own]
    #[arg(value_name = "docker://REF")]
    pub to: String,
    #[command(flatten)]
    pub ask: Ask,
}

/// `tapeout pod`
#[derive(Debug, Args)]
pub struct Pod {
    #[command(subcommand)]
    pub command: PodCommand,
}

/// What to do with a bundle.
#[derive(Debug, Subcommand)]
pub enum PodCommand {
    /// Make one file of a bundle: the same bytes for the same bundle
    #[command(after_help = "Example:\n  tapeout pod pack //shop:shop -o shop.tar")]
    Pack {
        /// The bundle's folder, or the label of a pod that was built
        #[arg(value_name = "DIR|LABEL")]
        bundle: String,
        /// The file
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Check a bundle, and name what is damaged, missing or added
    #[command(after_help = "Example:\n  tapeout pod verify shop.tar")]
    Verify {
        /// A file that tapeout pod pack made, or a bundle's folder
        #[arg(value_name = "FILE|DIR")]
        bundle: PathBuf,
    },
}

/// `tapeout doctor`
#[derive(Debug, Args)]
pub struct Doctor {}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
