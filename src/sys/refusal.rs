//! Why a machine refuses namespaces: what the kernel's errno doesn't say, and what mends it.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A call that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// `clone`, `write(/proc/self/uid_map)`.
    pub call: String,
    /// What it said.
    pub errno: i32,
}

/// What decides whether a process gets namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// `kernel.unprivileged_userns_clone`, of Debian's kernels; empty where there is none.
    pub userns_clone: String,
    /// `user.max_user_namespaces`
    pub most: String,
    /// `kernel.apparmor_restrict_unprivileged_userns`, of Ubuntu's kernels; empty where there is none.
    pub apparmor: String,
    /// Our own AppArmor profile; empty where there is none.
    pub profile: String,
    /// Is a seccomp filter on us?
    pub filtered: bool,
    /// Are we user 0?
    pub root: bool,
    /// Do we have CAP_SETFCAP?
    pub setfcap: bool,
    /// Is this Windows' first imitation of Linux?
    pub wsl1: bool,
    /// Our binary, as an AppArmor profile names it.
    pub executable: PathBuf,
}

/// Why something is refused, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remedy {
    /// Why.
    pub why: String,
    /// What the user may do.
    pub user: Option<String>,
    /// What the administrator may do: commands, as root.
    pub administrator: Option<String>,
}

impl Refusal {
    /// A refused call.
    pub fn new(call: impl Into<String>, errno: Errno) -> Self {
        Self { call: call.into(), errno: errno as i32 }
    }

    /// `clone: Operation not permitted`
    pub fn words(&self) -> String {
        format!("{}: {}", self.call, Errno::from_raw(self.errno).desc())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let remedy = Surroundings::here().explain(&refusal);
        let error = Error::failed(format!("this machine gives no user namespace: {}", refusal.words())).why(remedy.why);
        match remedy.administrator {
            // Its profile has many lines.
            Some(command) if command.lines().count() == 1 => {
                error.next(format!("ask the administrator for: {command}"))
            }
            _ => error.next("see `tapeout doctor`, which says what mends it"),
        }
    }
}

/// A setting of the kernel, now and after the next start.
fn set(setting: &str, value: &str) -> String {
    format!("echo '{setting} = {value}' >/etc/sysctl.d/60-tapeout.conf && sysctl --system")
}

/// The AppArmor profile that lets this binary make user namespaces, and how it is loaded.
pub fn apparmor_profile(executable: &Path) -> String {
    format!(
        "cat >/etc/apparmor.d/tapeout <<'EOF'\nabi <abi/4.0>,\ninclude <tunables/global>\n\
         profile tapeout {} flags=(unconfined) {{\n  userns,\n}}\nEOF\napparmor_parser -r /etc/apparmor.d/tapeout",
        executable.display()
    )
}

impl Surroundings {
    /// Those of this process.
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_string()).unwrap_or_default();
        let status = read("/proc/self/status");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
        Self {
            userns_clone: read("/proc/sys/kernel/unprivileged_userns_clone"),
            most: read("/proc/sys/user/max_user_namespaces"),
            apparmor: read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
            profile: match read("/proc/self/attr/apparmor/current") {
                none if none.is_empty() => read("/proc/self/attr/current"),
                profile => profile,
            },
            filtered: field("Seccomp:") == Some("2"),
            root: nix::unistd::geteuid().is_root(),
            setfcap: caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SETFCAP).unwrap_or(false),
            wsl1: kernel.is_ok_and(|kernel| kernel.ends_with("-Microsoft")),
            executable: std::fs::read_link("/proc/self/exe").unwrap_or_else(|_| "/usr/local/bin/tapeout".into()),
        }
    }

    /// Why these surroundings refuse a namespace.
    pub fn explain(&self, refusal: &Refusal) -> Remedy {
        let because = |why: &str| Remedy { why: why.into(), ..Remedy::default() };
        let administrator = |why: &str, command: String| Remedy { administrator: Some(command), ..because(why) };
        match Errno::from_raw(refusal.errno) {
            Errno::ENOSPC if self.most == "0" => {
                administrator("user.max_user_namespaces is 0", set("user.max_user_namespaces", "15000"))
            }
            Errno::ENOSPC => Remedy {
                user: Some("end programs that hold namespaces (lsns -t user lists them)".into()),
                ..administrator("user.max_user_namespaces is reached", set("user.max_user_namespaces", "100000"))
            },
            Errno::EUSERS => because("user namespaces are nested too deeply (32 at most)"),
            Errno::EAGAIN => Remedy {
                user: Some("ulimit -u shows it; end some processes".into()),
                ..because("the limit on processes is reached")
            },
            Errno::EINVAL | Errno::ENOSYS if self.wsl1 => Remedy {
                user: Some("in Windows: wsl --set-version DISTRIBUTION 2".into()),
                ..because("this is WSL 1, which has no Linux kernel")
            },
            Errno::EINVAL | Errno::ENOSYS if !self.filtered => {
                because("the kernel was built without user namespaces (CONFIG_USER_NS)")
            }
            Errno::EPERM | Errno::EACCES | Errno::ENOSYS => self.not_permitted(refusal),
            _ => because("the kernel doesn't say more"),
        }
    }

    fn not_permitted(&self, refusal: &Refusal) -> Remedy {
        // Whoever is confined by another profile is not held by the limit on unconfined programs.
        let unconfined =
            ["", "unconfined"].contains(&self.profile.as_str()) || self.profile.contains("unprivileged_userns");
        if self.userns_clone == "0" {
            return Remedy {
                why: "kernel.unprivileged_userns_clone is 0".into(),
                administrator: Some(set("kernel.unprivileged_userns_clone", "1")),
                user: None,
            };
        }
        if self.apparmor == "1" && unconfined && !self.root {
            return Remedy {
                why: "AppArmor allows user namespaces to named programs only (kernel.apparmor_restrict_unprivileged_userns is 1)".into(),
                administrator: Some(apparmor_profile(&self.executable)),
                user: None,
            };
        }
        if self.root && !self.setfcap && refusal.call.contains("_map") {
            return Remedy {
                why: "we are uid 0 without CAP_SETFCAP, and then the kernel does not map ID 0 (user_namespaces(7))".into(),
                user: Some("run it as another user: setpriv --reuid 1000 --regid 1000 --clear-groups tapeout …".into()),
                administrator: Some(
                    "give the container CAP_SETFCAP (docker, podman: --cap-add SETFCAP; Kubernetes: capabilities: {add: [SETFCAP]})"
                        .into(),
                ),
            };
        }
        if self.filtered {
            return Remedy {
                why: "a seccomp profile refuses it, most likely that of a container around us".into(),
                user: None,
                administrator: Some(
                    "start the container with a profile that allows it (podman's own does; docker: --security-opt \
                     seccomp=unconfined --security-opt apparmor=unconfined; Kubernetes: seccompProfile: {type: Unconfined})"
                        .into(),
                ),
            };
        }
        Remedy {
            why: "no setting of the kernel says why: a security module (SELinux, AppArmor) may refuse it, or we are in a \
                  chroot, where the kernel gives none (unshare(2))"
                .into(),
            user: Some("look for a denial in the kernel's log: journalctl -k | grep -i denied".into()),
            administrator: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Surroundings {
        Surroundings { most: "15000".into(), executable: "/opt/bin/tapeout".into(), ..Surroundings::default() }
    }

    #[test]
    fn what_forbids_namespaces_is_named_with_what_mends_it() {
        let refused = |errno| Refusal::new("clone", errno);
        let map = Refusal::new("write(/proc/self/uid_map)", Errno::EPERM);
        let own = |f: fn(&mut Surroundings)| {
            let mut machine = machine();
            f(&mut machine);
            machine
        };
        let cases = [
            (
                own(|m| m.userns_clone = "0".into()),
                refused(Errno::EPERM),
                "unprivileged_userns_clone is 0",
                "userns_clone = 1",
            ),
            (own(|m| m.most = "0".into()), refused(Errno::ENOSPC), "max_user_namespaces is 0", "namespaces = 15000"),
            (machine(), refused(Errno::ENOSPC), "is reached", "namespaces = 100000"),
            (
                own(|m| m.apparmor = "1".into()),
                map.clone(),
                "AppArmor",
                "profile tapeout /opt/bin/tapeout flags=(unconfined) {\n  userns,\n}",
            ),
            (own(|m| (m.root, m.filtered) = (true, true)), map, "CAP_SETFCAP", "--cap-add SETFCAP"),
            (
                own(|m| (m.root, m.setfcap, m.filtered) = (true, true, true)),
                refused(Errno::EPERM),
                "seccomp profile",
                "seccomp=unconfined",
            ),
            (own(|m| m.filtered = true), refused(Errno::ENOSYS), "seccomp profile", "Unconfined"),
            (machine(), refused(Errno::ENOSYS), "CONFIG_USER_NS", ""),
            (machine(), refused(Errno::EPERM), "chroot", ""),
            (own(|m| m.wsl1 = true), refused(Errno::EINVAL), "WSL 1", ""),
            (machine(), refused(Errno::EUSERS), "nested", ""),
        ];
        for (machine, refusal, why, administrator) in cases {
            let remedy = machine.explain(&refusal);
            assert!(remedy.why.contains(why), "{refusal:?}: {remedy:?}");
            match remedy.administrator {
                Some(command) => assert!(!administrator.is_empty() && command.contains(administrator), "{command}"),
                None => assert_eq!(administrator, "", "{refusal:?}"),
            }
        }
    }

    #[test]
    fn the_limit_on_unconfined_programs_is_not_blamed_in_a_container_with_a_profile_of_its_own() {
        let docker = Surroundings {
            apparmor: "1".into(),
            profile: "docker-default (enforce)".into(),
            filtered: true,
            ..machine()
        };
        assert!(docker.explain(&Refusal::new("clone", Errno::EPERM)).why.contains("seccomp"));
        let moved = Surroundings { profile: "unprivileged_userns (enforce)".into(), filtered: false, ..docker };
        assert!(moved.explain(&Refusal::new("write(/proc/self/setgroups)", Errno::EACCES)).why.contains("AppArmor"));
    }
}
