#!/usr/bin/env bash
# A Docker daemon of our own, for one run of the tests. Its images, volumes and socket lie in DIR, and nothing outlives
# `stop` or whoever called `start`. No bridge, no iptables rules: it needs root and no more, containers share a loopback.
#
#   usage: engine.sh PROGRAMS DIR start|stop      PROGRAMS is what unpack.sh made; DIR must be short (a unix socket)
set -euo pipefail

[ $# -eq 3 ] || [ "${3-}" = watch ] || { sed -n '5s/^# *//p' "$0" >&2; exit 2; }
programs=$(cd "$1" && pwd -P) dir=$2 # as /proc shows it, where the cache is a link

running() { # its pid, if that process still is our daemon
    local pid
    pid=$(cat "$dir/dockerd.pid" 2>/dev/null) && [ "$(readlink "/proc/$pid/exe")" = "$programs/bin/dockerd" ] && echo "$pid"
}

start() {
    mkdir -p "$dir/config"
    ln -sfn "$programs/cli-plugins" "$dir/config/cli-plugins"
    driver=overlay2
    [ "$(stat -f -c %T "$dir")" != overlayfs ] || driver=vfs
    cat >"$dir/daemon.json" <<JSON
{
  "data-root": "$dir/data", "exec-root": "$dir/exec", "pidfile": "$dir/dockerd.pid", "hosts": ["unix://$dir/docker.sock"],
  "bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false,
  "storage-driver": "$driver", "features": {"containerd-snapshotter": false}, "shutdown-timeout": 10
}
JSON
    # A mount namespace of its own: what it mounts ends with it, and / is shared in there, as systems with systemd have it.
    # shellcheck disable=SC2016
    PATH=$programs/bin:$PATH setsid unshare --mount --propagation slave sh -c 'mount --make-rshared / && exec "$@"' sh \
        "$programs/bin/dockerd" --config-file "$dir/daemon.json" >"$dir/dockerd.log" 2>&1 </dev/null &
    daemon=$!
    for _ in {1..240}; do
        if DOCKER_HOST=unix://$dir/docker.sock timeout 10 "$programs/bin/docker" version >/dev/null 2>&1; then
            setsid "$0" "$programs" "$dir" watch "$PPID" >/dev/null 2>&1 </dev/null &
            exit 0
        fi
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.25
    done
    tail -n 20 "$dir/dockerd.log" >&2
    stop
    exit 1
}

watch() { # PID: stop when that process is gone, as where a run of the tests is killed
    while running >/dev/null; do
        kill -0 "$1" 2>/dev/null || { stop; break; }
        sleep 2
    done
}

stop() {
    if pid=$(running); then
        kill "$pid"
        for _ in {1..240}; do running >/dev/null || break; sleep 0.25; done
    fi
    rm -rf "$dir"
}

case $3 in
start) start ;;
stop) stop ;;
watch) watch "$4" ;;
*) exit 2 ;;
esac
