#!/usr/bin/env bash
# From nothing to answers: both servers, the daemon, 10,000 events, three queries.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: scripts/quickstart.sh [OPTIONS]

Builds analytics-server, starts it with a NATS server and a ClickHouse engine of
its own, sends 10,000 sample events through it and queries them. Everything keeps
running until Ctrl-C, which removes all processes and data.

  --once                  exit after the results
  --port PORT             analytics-server's HTTP port (6690)
  --nats-port PORT        NATS' port (4222)
  --clickhouse-port PORT  ClickHouse's HTTP port (8123)
  -h, --help              show this text
EOF
}

once=false port=6690 nats_port=4222 clickhouse_port=8123
usage_error() { echo "quickstart: $*" >&2; usage >&2; exit 2; }

while (($# > 0)); do
  option=$1
  shift
  case $option in
    --once) once=true; continue ;;
    -h | --help) usage; exit 0 ;;
    --port | --nats-port | --clickhouse-port) ;;
    *) usage_error "unknown option \`$option\`" ;;
  esac
  if ! [[ ${1-} =~ ^[1-9][0-9]{0,4}$ ]] || (($1 > 65535)); then
    usage_error "\`$option\` wants a port"
  fi
  case $option in
    --port) port=$1 ;;
    --nats-port) nats_port=$1 ;;
    --clickhouse-port) clickhouse_port=$1 ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
deps=${FECHATTER_DEPS_DIR:-$PWD/.dev}
export FECHATTER_DEPS_DIR=$deps
analytics_server=${CARGO_TARGET_DIR:-target}/quickstart/analytics-server
# Variables that are set in the shell for other servers must not affect this run.
for variable in ${!ANALYTICS_@}; do unset "$variable"; done

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
fail() { echo "quickstart: $*" >&2; exit 1; }

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# Checked before the build: nobody should wait for it only to choose another port.
free() {
  if answers "$2"; then
    fail "port $2 is taken, by a $1 that runs already or by something else: choose another with $3 PORT"
  fi
}
free NATS "$nats_port" --nats-port
free ClickHouse "$clickhouse_port" --clickhouse-port
free analytics-server "$port" --port
if ((port == nats_port || port == clickhouse_port || nats_port == clickhouse_port)); then
  fail "--port, --nats-port and --clickhouse-port have to differ"
fi

run=$(mktemp -d "${TMPDIR:-/tmp}/analytics-quickstart.XXXXXX")
nats_pid='' daemon_pid=''

alive() { kill -0 "$1" 2>/dev/null; }

# Each background process leads a process group of its own, so that Ctrl-C reaches only
# this script, and the daemon can finish its last batch with both servers up.
stop() {
  local pid=$1 tenths
  [[ -n $pid ]] || return 0
  kill -TERM "$pid" 2>/dev/null || true
  # The daemon takes up to 18 s for its last batches, and its ClickHouse 5 s more.
  for ((tenths = 0; tenths < 450; tenths++)); do
    alive "$pid" || break
    sleep 0.1
  done
  # Whatever is left of the group, including a child that lost its parent.
  kill -KILL -- "-$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

clean_up() {
  # Runs only once, and is not cut short by an impatient second Ctrl-C.
  trap - EXIT
  trap '' INT TERM HUP
  stop "$daemon_pid"
  stop "$nats_pid"
  rm -rf "$run"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# start LOG COMMAND...: sets `started` to the process id.
start() {
  local log=$1
  shift
  set -m
  "$@" </dev/null >"$log" 2>&1 &
  started=$!
  set +m
}

died() {
  echo >&2
  tail -n 20 "$run/$1.log" >&2
  fail "$1 $2, see the end of its log above"
}

# await NAME PID SECONDS CONDITION...
await() {
  local name=$1 pid=$2 seconds=$3
  shift 3
  local deadline=$((SECONDS + seconds))
  until "$@"; do
    alive "$pid" || died "$name" "ended"
    ((SECONDS < deadline)) || died "$name" "was not ready after $seconds s"
    sleep 0.2
  done
}

# In bash alone, since not every machine has curl.
healthy() (
  { exec 3<>"/dev/tcp/127.0.0.1/$port"; } 2>/dev/null || exit 1
  printf 'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
  while IFS= read -r -t 5 line <&3 || [[ -n $line ]]; do
    # The daemon's own status comes first; each of its lanes has one, too.
    [[ $line == '{"status":"healthy"'* ]] && exit 0
    line=
  done
  exit 1
)

step "1/5 What this machine lacks"
scripts/deps.sh
echo "nats-server and libchdb are in $deps"

step "2/5 Build (some minutes the first time)"
cargo build --profile quickstart --locked

step "3/5 Start NATS, ClickHouse and analytics-server"
cat >"$run/analytics.yml" <<EOF
server:
  port: $port
  db_url: "embedded:$clickhouse_port"
  base_dir: "$run/data"
integrations:
  messaging:
    nats_url: "nats://127.0.0.1:$nats_port"
EOF
ours=("$analytics_server" --config "$run/analytics.yml")

start "$run/nats-server.log" "$deps/bin/nats-server" \
  --addr 127.0.0.1 --port "$nats_port" --jetstream --store_dir "$run/nats"
nats_pid=$started
await nats-server "$nats_pid" 20 answers "$nats_port"
echo "NATS              nats://127.0.0.1:$nats_port"

start "$run/analytics-server.log" "${ours[@]}" serve
daemon_pid=$started
await analytics-server "$daemon_pid" 120 healthy
echo "ClickHouse        http://127.0.0.1:$clickhouse_port"
echo "analytics-server  http://127.0.0.1:$port"

step "4/5 Send 10,000 sample events, and find them in ClickHouse"
"${ours[@]}" send --count 10000 --wait 60 || died analytics-server "did not store them in time"

step "5/5 Ask"
ask() {
  printf '\n%s\n' "$1"
  "${ours[@]}" query "$1" --format PrettyCompact || died analytics-server "did not answer"
}
ask "SELECT date, count(DISTINCT user_id) AS daily_active_users FROM daily_active_users WHERE date >= today() - 7 GROUP BY date ORDER BY date"
ask "SELECT date, message_type, sum(message_count) AS total_messages, sum(total_size) AS total_size_bytes FROM message_statistics WHERE date >= today() - 30 GROUP BY date, message_type ORDER BY date, message_type"
ask "SELECT toDate(timestamp) AS date, error_type, count() AS error_count FROM error_tracking WHERE date >= today() - 7 GROUP BY date, error_type ORDER BY date, error_count DESC"

if $once; then exit 0; fi

step "Go on, in another terminal"
cat <<EOF
cd $PWD
export ANALYTICS_CONFIG=$run/analytics.yml
$analytics_server query "SELECT event_type, count() FROM analytics_events GROUP BY event_type"
$analytics_server send --count 100000
$analytics_server check
curl http://127.0.0.1:$port/health

With servers of your own: put their addresses into analytics.yml, then
$analytics_server --config analytics.yml check --repair
$analytics_server --config analytics.yml serve

Logs are in $run. Ctrl-C ends everything and removes it.
EOF

while sleep 1; do
  alive "$nats_pid" || died nats-server "ended"
  alive "$daemon_pid" || died analytics-server "ended"
done
