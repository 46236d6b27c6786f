//! Other people's programs and packages at work in a rule, under the one mapped ID: the table of `docs/sandbox.md`.

use std::collections::BTreeMap;

use crate::common::{Layout, Workspace};

const PACKAGES: &str =
    "acl adduser apt-utils ca-certificates-java chrony cron curl dbus default-jre-headless exim4-daemon-light
    fakeroot gcc git libc6-dev libcap2-bin locales man-db mariadb-server nginx-light nodejs openssh-server perl php-cli
    postgresql python3 redis-server rsync ruby samba-common-bin sudo systemd tzdata";

const BUILD: &str = r#"
rule("build", deps = ["//base:build"], packages = "PACKAGES".split(), sources = ["real_programs.sh"], run = "sh real_programs.sh")

rule("postgresql", deps = [":build"], user = "postgres", run = """
PATH=$PATH:/usr/lib/postgresql/15/bin
initdb -D /var/lib/postgresql/data >/dev/null
pg_ctl -D /var/lib/postgresql/data -s -o "-k /tmp -h ''" start
psql -h /tmp -tAc "select 6 * 7" postgres | grep 42
pg_ctl -D /var/lib/postgresql/data -s stop
""")

tapeout("tapeout", deps = [":postgresql"], paths = [PATHS], libraries = False)
image("owners", deps = [":tapeout"])
"#;

/// Owner and mode as real root gives them: most are taken from `mmdebstrap --variant=minbase` with these packages.
const OWNERS: &[(&str, &str, u32)] = &[
    ("/etc/chrony/chrony.keys", "root:_chrony", 0o640),
    ("/etc/exim4/passwd.client", "root:Debian-exim", 0o640),
    ("/etc/shadow", "root:shadow", 0o640),
    ("/etc/redis", "redis:redis", 0o2770),
    ("/etc/redis/redis.conf", "redis:redis", 0o640),
    ("/etc/ssl/private", "root:ssl-cert", 0o710),
    ("/usr/bin/chage", "root:shadow", 0o2755),
    ("/usr/bin/crontab", "root:crontab", 0o2755),
    ("/usr/bin/passwd", "root:root", 0o4755),
    ("/usr/bin/ssh-agent", "root:_ssh", 0o2755),
    ("/usr/bin/su", "root:root", 0o4755),
    ("/usr/bin/sudo", "root:root", 0o4755),
    ("/usr/lib/dbus-1.0/dbus-daemon-launch-helper", "root:messagebus", 0o4754),
    ("/usr/lib/openssh/ssh-keysign", "root:root", 0o4755),
    ("/usr/sbin/exim4", "root:root", 0o4755),
    ("/usr/sbin/unix_chkpwd", "root:shadow", 0o2755),
    ("/var/cache/man", "man:man", 0o755),
    ("/var/lib/chrony", "_chrony:_chrony", 0o750),
    ("/var/lib/redis", "redis:redis", 0o750),
    ("/var/local", "root:staff", 0o2775),
    ("/var/mail", "root:mail", 0o2775),
    ("/var/log/btmp", "root:utmp", 0o660),
    ("/var/log/exim4", "Debian-exim:adm", 0o2750),
    ("/var/log/nginx", "root:adm", 0o755),
    ("/var/log/postgresql", "root:postgres", 0o1775),
    ("/var/log/redis", "redis:adm", 0o2750),
    ("/var/log/samba", "root:adm", 0o750),
    ("/var/spool/cron/crontabs", "root:crontab", 0o1730),
    ("/var/spool/exim4", "Debian-exim:Debian-exim", 0o750),
    // What the script did.
    ("/opt/t/f", "www-data:backup", 0o644),
    ("/opt/t/tar/a", "1234:4321", 0o644),
    ("/opt/t/rsync", "12:proxy", 0o644),
    ("/opt/t/install", "www-data:mail", 0o2750),
    ("/opt/t/packed", "alice:team", 0o2755),
    ("/home/alice", "alice:alice", 0o755),
    ("/var/lib/worker", "worker:worker", 0o750),
    ("/usr/share/local/x", "local:local", 0o644),
    ("/var/lib/postgresql/data", "postgres:postgres", 0o700),
    ("/var/lib/postgresql/data/PG_VERSION", "postgres:postgres", 0o600),
];

#[test]
fn real_programs_work_under_one_id_and_their_files_have_the_owners_that_root_gives() {
    let workspace = Workspace::debian();
    let packages: Vec<&str> = PACKAGES.split_whitespace().collect();
    let paths: Vec<String> = OWNERS.iter().map(|(path, ..)| format!("{path:?}")).collect();
    workspace
        .file("all/build.star", BUILD.replace("PACKAGES", &packages.join(" ")).replace("PATHS", &paths.join(", ")));
    workspace.file("all/real_programs.sh", include_str!("real_programs.sh"));
    workspace.run("build //all:owners").success();
    let image = Layout::open(&workspace.output("all/owners/build_image")).only();
    let name_of = |table: &str| -> BTreeMap<u64, String> {
        let text = String::from_utf8(image.file(table).content.clone()).expect("UTF-8");
        let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
        fields.map(|f| (f[2].parse().expect("a number"), f[0].to_owned())).collect()
    };
    let (users, groups) = (name_of("etc/passwd"), name_of("etc/group"));
    let mut wrong = vec![];
    for (path, owner, mode) in OWNERS {
        let file = image.file(path.trim_start_matches('/'));
        let name = |names: &BTreeMap<u64, String>, id: u64| names.get(&id).cloned().unwrap_or(id.to_string());
        let is = (format!("{}:{}", name(&users, file.uid), name(&groups, file.gid)), file.mode & 0o7777);
        if is != ((*owner).to_owned(), *mode) {
            wrong.push(format!("{path} is {} {:o}, not {owner} {mode:o}", is.0, is.1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
