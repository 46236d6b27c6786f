# Each line is a row of the table in docs/sandbox.md. What fails is shown, and fails the rule at the end.
fails=
works() { # NAME COMMAND...
    name=$1; shift
    if ! timeout -s KILL 600 "$@" >/tmp/said 2>&1 </dev/null; then
        echo "FAIL $name: $(tail -n 5 /tmp/said)"
        fails=yes
    fi
}
refused() { # NAME WORDS COMMAND...: it can't be done, and the error says why
    name=$1 words=$2; shift 2
    if timeout -s KILL 600 "$@" >/tmp/said 2>&1 </dev/null || ! grep -q "$words" /tmp/said; then
        echo "FAIL $name was not refused with \"$words\": $(tail -n 5 /tmp/said)"
        fails=yes
    fi
}
sh_e() {
    name=$1; shift
    works "$name" sh -ec "$@"
}
mkdir /opt/t; cd /opt/t
echo x >f; chown 33:34 f

# Owners
mkdir packed; echo x >packed/a; echo y >packed/b
tar -cf foreign.tar --owner=1234 --group=4321 -C packed .
sh_e tar 'mkdir tar; tar -C tar -xpf foreign.tar --numeric-owner'
works rsync rsync -a --chown=12:13 f rsync
works install install -o www-data -g mail -m 2750 f install
works cp cp -a f cp
sh_e useradd 'useradd -m -u 1500 alice; usermod -aG www-data alice; groupadd -g 1600 team; echo alice:secret123 | chpasswd'
sh_e adduser 'adduser --quiet --system --group service; id service'
works su su alice -c 'echo x >/tmp/su'
works su- su - alice -c id
works setpriv setpriv --reuid 33 --regid 33 --clear-groups id
works runuser runuser -u alice -- id
sh_e sudo 'sudo -u alice true; sudo -n true'
sh_e setcap 'cp /bin/true setcap; setcap cap_net_raw+ep setcap; getcap setcap | grep net_raw'
sh_e setfacl 'echo x >listed; setfacl -m u:alice:rw,g:team:r listed; setfacl -m u:www-data:r listed; chmod g-w listed
    getfacl -c listed | grep user:alice:rw-; cp -a listed copied; getfacl -cn copied | grep user:1500:rw-
    mkdir lists; setfacl -d -m g:team:rwx lists; echo y >lists/f; getfacl -c lists/f | grep group:team; ls -l listed | grep "+ "'
works fakeroot fakeroot sh -c 'touch fakeroot; chown 12:12 fakeroot; stat -c %u fakeroot | grep 12'
works dpkg-statoverride dpkg-statoverride --force-statoverride-add --update --add alice team 2755 /opt/t/packed
works dpkg-divert dpkg-divert --local --rename --add /usr/bin/rsync
sh_e systemd-sysusers 'echo "u worker 990 - /var/lib/worker" >/usr/lib/sysusers.d/worker.conf; systemd-sysusers; id worker'
sh_e systemd-tmpfiles 'echo "d /var/lib/worker 0750 worker worker" >/usr/lib/tmpfiles.d/worker.conf; systemd-tmpfiles --create worker.conf'
sh_e systemctl 'systemctl enable ssh; test -L /etc/systemd/system/multi-user.target.wants/ssh.service'

# Packages, from a repository of files: apt's own sandbox checks that it became _apt, and there is one ID.
mkdir -p repository package/DEBIAN package/usr/share/local
echo x >package/usr/share/local/x
printf '%s\n' 'Package: local' 'Version: 1' 'Architecture: all' 'Maintainer: me <me@example>' 'Description: x' >package/DEBIAN/control
printf '%s\n' '#!/bin/sh' 'adduser --quiet --system --group local; chown local:local /usr/share/local/x' >package/DEBIAN/postinst
chmod 0755 package/DEBIAN/postinst
sh_e apt-ftparchive 'dpkg-deb -b package repository/local_1_all.deb; cd repository; apt-ftparchive packages . >Packages; apt-ftparchive release . >/tmp/Release; mv /tmp/Release .'
echo "deb [trusted=yes] file:/opt/t/repository ./" >/etc/apt/sources.list
refused "apt-get's own sandbox" 'Could not switch group' apt-get update
echo 'APT::Sandbox::User "root";' >/etc/apt/apt.conf.d/00one-id
sh_e apt-get 'apt-get update; apt-get install -y local; id local'

# Servers, in this rule and no longer
mkdir -p -m 700 /run/sshd /root/.ssh
ssh-keygen -q -A; ssh-keygen -q -N "" -t ed25519 -f /tmp/key; cp /tmp/key.pub /root/.ssh/authorized_keys
sh_e sshd '/usr/sbin/sshd -t; /usr/sbin/sshd -p 2222 -E /tmp/sshd.log; until ssh-keyscan -p 2222 127.0.0.1 2>&1 | grep SSH-2.0; do sleep 0.1; done'
# It tries whether it can become root again, and under one ID it can.
refused "a login through sshd" 'was able to restore old' sh -c 'ssh -i /tmp/key -p 2222 -o StrictHostKeyChecking=no \
    -o UserKnownHostsFile=/dev/null root@127.0.0.1 true && exit; cat /tmp/sshd.log; exit 1'
refused "initdb as root" 'cannot be run as root' su postgres -c '/usr/lib/postgresql/15/bin/initdb -D /tmp/refused'
sh_e nginx 'nginx; curl -s http://127.0.0.1/ | grep nginx; nginx -s stop'
sh_e redis 'redis-server --daemonize yes --dir /tmp --unixsocket /tmp/redis.s; until redis-cli -s /tmp/redis.s ping; do sleep 0.1; done; redis-cli -s /tmp/redis.s shutdown nosave'
sh_e mariadb 'install -d -o mysql /run/mysqld; mariadb-install-db --datadir=/tmp/my --user=mysql --auth-root-authentication-method=normal
    mariadbd --datadir=/tmp/my --socket=/tmp/my.s --user=mysql --skip-networking &
    until mariadb -S /tmp/my.s -e "select 6 * 7"; do sleep 0.2; done; mariadb-admin -S /tmp/my.s shutdown'
works dbus dbus-run-session -- dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames
sh_e dbus-system 'mkdir -p /run/dbus; dbus-daemon --system --fork --nopidfile; dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames'
sh_e cron 'cron; test -s /run/crond.pid; echo "0 0 * * * true" | crontab -; crontab -l'
works chrony chronyd -p -f /etc/chrony/chrony.conf
works exim4 exim4 -bV
works samba testparm -s

# Languages and tools
works git sh -ec 'git init -q git; git -C git -c user.name=a -c user.email=b commit -q --allow-empty -m x; git clone -q git clone'
sh_e gcc 'echo "int main(void) { return 0; }" >main.c; gcc main.c -o main; ./main'
works perl perl -MPOSIX -e 'chown 5, 6, "f" or die $!'
works python3 python3 -c 'import os, shutil; shutil.chown("/opt/t/f", "www-data", "mail")'
works nodejs node -e 'require("fs").chownSync("/opt/t/f", 33, 34)'
works ruby ruby -e 'File.chown(33, 34, "/opt/t/f")'
works php php -r 'exit(chown("/opt/t/f", "www-data") ? 0 : 1);'
works java java -XX:+UseSerialGC -version
sh_e ca-certificates-java 'keytool -list -cacerts -storepass changeit | grep -q trustedCertEntry'
sh_e man 'mandb -q --create; test -e /var/cache/man/index.db'
sh_e locale-gen 'echo "de_DE.UTF-8 UTF-8" >/etc/locale.gen; locale-gen; locale -a | grep de_DE'
sh_e tzdata 'test "$(TZ=Asia/Tokyo date +%Z)" = JST'
works ldconfig ldconfig
works unshare unshare --user --map-root-user id

[ -z "$fails" ]
