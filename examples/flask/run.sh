#!/usr/bin/env bash
# Three Flask instances behind a balancer; one of them is killed under load, another is restarted; no request fails.
# It needs flask and gunicorn (Debian: apt install python3-flask gunicorn), takes about ten seconds, uses free ports of
# 127.0.0.1 only, and leaves nothing behind.
#
#   ROTA=/path/to/rota examples/flask/run.sh      # without ROTA it is built
set -euo pipefail
[ -z "${ROTA:-}" ] || ROTA=$(realpath "$ROTA")
cd "$(dirname "${BASH_SOURCE[0]}")"
export ROTA=${ROTA:-}
if [ -z "${BOUNDED:-}" ]; then
	BOUNDED=1 exec timeout --kill-after=20 120 "$BASH" ./run.sh "$@"
fi

tmp=$(mktemp -d)
dev=
registered=()
cleanup() {
	trap - EXIT INT TERM
	# Registrations first, so that they can say that they leave.
	[ ${#registered[@]} -eq 0 ] || { kill "${registered[@]}" && wait "${registered[@]}"; } 2>/dev/null || true
	[ -z "$dev" ] || { kill "$dev" && wait "$dev"; } 2>/dev/null || true
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

say() { printf '\n== %s\n' "$*"; }
die() {
	echo "$*" >&2
	tail -n 20 "$tmp"/*.log >&2
	exit 1
}

# until_true <seconds> <command>: repeats it until it succeeds.
until_true() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		[ "$SECONDS" -lt "$end" ] || die "never: $*"
		sleep 0.05
	done
}

command -v gunicorn >/dev/null && gunicorn --check-config app:app >/dev/null 2>&1 ||
	die "flask and gunicorn are needed: apt install python3-flask gunicorn, or pip install flask gunicorn"
rota=$ROTA
if [ -z "$rota" ]; then
	rota=$tmp/rota
	(cd ../.. && go build -o "$rota" ./cmd/rota)
fi

say "a balancer with etcd inside"
"$rota" dev --listen 127.0.0.1:0 --admin 127.0.0.1:0 >"$tmp/dev.log" 2>&1 &
dev=$!
until_true 30 grep -qs 'Ctrl-C' "$tmp/dev.log"
part() { sed -n "s|^  $1  *\(http://\)*\([a-z0-9.]*:[0-9]*\).*|\2|p" "$tmp/dev.log"; }
balancer=$(part balancer)
export ROTA_ADMIN_ADDRESS=$(part dashboard) ETCDCTL_ENDPOINTS=$(part etcd)
unset ROTA_ETCD_ENDPOINTS ROTA_ETCD_PREFIX
echo "    http://$balancer, etcd at $ETCDCTL_ENDPOINTS"

# register <n>: an instance as any deployment would start it.
register() {
	"$rota" register --service flask --id "flask-$1" --address 127.0.0.1 --check-http /healthz -- \
		gunicorn app:app >"$tmp/flask-$1.log" 2>&1 &
	registered[$1]=$!
}
# What instances answer with 200 shows that they are registered and routed, all in turn.
instances() { "$rota" instances ls flask 2>/dev/null; }
ready() { [ "$(instances | grep -c ' ready ')" -eq "$1" ]; }
gone() { ! instances | grep -q "$1"; }

say "three instances"
for n in 1 2 3; do register "$n"; done
until_true 30 ready 3
instances

say "load, and after two seconds kill -9 for flask-2: gunicorn and its workers"
python3 load.py "http://$balancer/flask/" 8 &
load=$!
sleep 2
group=$(sed -n 's/.*"msg":"started".*"pid":\([0-9]*\).*/\1/p' "$tmp/flask-2.log")
before=$(date +%s%N)
kill -9 -- "-$group"
until_true 5 gone flask-2
echo "    flask-2 has left, $((($(date +%s%N) - before) / 1000000)) ms later, with the time that asking takes"
status=0
wait "${registered[2]}" || status=$?
unset 'registered[2]'
echo "    its rota register ended with status $status, gunicorn's"

say "flask-1 is restarted: SIGTERM, and a new one"
kill "${registered[1]}"
wait "${registered[1]}" || die "flask-1 ended with status $?"
register 1
until_true 30 ready 2
instances

say "how it went"
wait "$load" || die "requests have failed"
