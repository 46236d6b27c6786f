# The images of examples/programs, run by crun as their own users, in a network of their own.
# $OUTPUT has the images in gzip; the current folder is empty.

for name in redis nginx postgresql python java git curl; do
    image=$OUTPUT/$name/$name/build_image
    tag=$(jq -r '.manifests[0].annotations["org.opencontainers.image.ref.name"]' "$image/index.json")
    umoci unpack --rootless --image "$image:$tag" $name >&2
done

# prepare NAME [ARGUMENT...]: what is run; the image's user is the one that is mapped
prepare() {
    name=$1; shift
    arguments=$(jq -cn '$ARGS.positional' --args -- "$@")
    jq --argjson arguments "$arguments" '
        (if $arguments == [] then . else .process.args = $arguments end) | .process.terminal = false
        | .linux.uidMappings = [{containerID: .process.user.uid, hostID: 0, size: 1}]
        | .linux.gidMappings = [{containerID: .process.user.gid, hostID: 0, size: 1}] | del(.linux.resources)' \
        $name/config.json >$name/new
    mv $name/new $name/config.json
}
start() { # in the background
    prepare "$@"
    crun --cgroup-manager=disabled run -b $name programs-$$-$name >$name.log 2>&1 </dev/null &
}
once() {
    prepare "$@"
    crun --cgroup-manager=disabled run -b $name programs-$$-$name </dev/null
}
soon() { # a server takes its time
    for try in $(seq 300); do
        if "$@" >.out 2>&1; then
            cat .out
            return
        fi
        sleep 0.1
    done
    cat .out ./*.log
    false
}
get() {
    once curl /usr/bin/curl --silent --show-error --max-time 20 "$@"
}
trap 'for name in redis nginx python java; do crun delete -f programs-$$-$name; done >/dev/null 2>&1 || true' EXIT
ip link set lo up

start nginx
start python
start java
start redis

echo nginx says
soon get --resolve xn--bcher-kva.example:8443:127.0.0.1 https://bücher.example:8443/
if get --cacert /etc/ssl/certs/ca-certificates.crt --resolve localhost:8443:127.0.0.1 https://localhost:8443/; then
    echo a certificate that nobody vouches for was believed
fi
echo python says
soon get https://127.0.0.1:8444/lxml
echo java says
soon get http://127.0.0.1:8445/java
echo redis says
user=$(jq -r '.process.user | "\(.uid):\(.gid)"' redis/config.json)
soon crun exec --user=$user programs-$$-redis /usr/bin/redis-cli set answer 42
crun exec --user=$user programs-$$-redis /usr/bin/redis-cli get answer
echo postgresql says
once postgresql /bin/sh -ec '
    initdb --pgdata /tmp/data >/dev/null
    pg_ctl --pgdata /tmp/data --silent --options "-k /tmp -h 127.0.0.1" start
    psql --host 127.0.0.1 --dbname postgres --tuples-only --no-align --command "select upper(\$\$ä\$\$) || 6 * 7"
    pg_ctl --pgdata /tmp/data stop >/dev/null'
echo git says
once git /bin/sh -ec '
    git init --quiet /tmp/one
    git -C /tmp/one -c user.name=me -c user.email=me@example commit --quiet --allow-empty -m "the first"
    git clone --quiet /tmp/one /tmp/two
    git -C /tmp/two log --format=%s'
