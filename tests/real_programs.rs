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

# What makes owners, once more, and nothing that comes out differently each time. (rsync is diverted by now.)
rule("owners/build", deps = [":build"], run = """
mkdir /opt/o; cd /opt/o
tar -xpf /opt/t/foreign.tar --numeric-owner
echo 1 >one; rsync.distrib -a --chown=12:13 one rsync; install -o www-data -g mail -m 2750 one install; cp -a install cp
groupadd -g 1700 crew; useradd -m -u 1701 -g crew -G www-data bob; usermod -aG mail bob
su bob -c 'echo 1 >/tmp/bob'; setpriv --reuid 33 --regid 33 --clear-groups true
cp /bin/true setcap; setcap cap_net_raw+ep setcap
mkdir packed; dpkg-statoverride --force-statoverride-add --update --add bob crew 2755 /opt/o/packed
echo 'u clerk 980 - /var/lib/clerk' >/usr/lib/sysusers.d/clerk.conf; systemd-sysusers clerk.conf
echo 'd /var/lib/clerk 0750 clerk clerk' >/usr/lib/tmpfiles.d/clerk.conf; systemd-tmpfiles --create clerk.conf
python3 -c 'import shutil; shutil.chown("one", "www-data", "mail")'
setfacl -d -m o:--- packed; ln one two; mknod null c 1 3; chown 0:crew null; mkfifo pipe; chown bob pipe; ln -s one link; chown -h bob link
rm -f /etc/*- /var/log/lastlog /var/log/faillog
""")
# What copies by reading owners.
rule("seen/build", deps = [":owners/build"], owners = "seen", run = """
mkdir /opt/s; cd /opt/s
rsync.distrib -a /opt/t/tar/ rsync/; cp -a /opt/t/tar cp-a; cp -p /opt/t/f cp-p
tar -C /opt/t -cf - tar install packed | tar -xpf - --numeric-owner
test "$(find /opt/s -user 1234 -type f | wc -l)" = 6
""")

tapeout("tapeout", deps = [":postgresql", ":seen/build"], paths = [PATHS], libraries = False)
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
    ("/opt/o/a", "1234:4321", 0o644),
    ("/opt/o/rsync", "12:proxy", 0o644),
    ("/opt/o/install", "www-data:mail", 0o2750),
    ("/opt/o/packed", "bob:crew", 0o2755),
    ("/home/bob", "bob:crew", 0o755),
    ("/var/lib/clerk", "clerk:clerk", 0o750),
    ("/opt/s/rsync/a", "1234:4321", 0o644),
    ("/opt/s/cp-a/a", "1234:4321", 0o644),
    ("/opt/s/cp-p", "www-data:backup", 0o644),
    ("/opt/s/tar/a", "1234:4321", 0o644),
    ("/opt/s/install", "www-data:mail", 0o2750),
    ("/opt/s/packed", "alice:team", 0o2755),
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

    // On a copied snapshot the same programs leave the same changesets.
    for rule in ["//all:owners/build", "//all:seen/build"] {
        workspace.run(&format!("build --snapshots copy --twice {rule}")).success().says(&format!("same  {rule}"));
    }
}
