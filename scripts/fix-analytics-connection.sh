#!/usr/bin/env bash
# Fixes what keeps events from flowing, as far as that can be fixed from here.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: scripts/fix-analytics-connection.sh [--config FILE] [--yes]

Checks the configuration, NATS, JetStream, the stream, the consumer, ClickHouse
and the schema. Starts NATS if it is local and not running, creates what is
missing (stream, consumer, migrations) and publishes a test event.

  --config FILE  the configuration, if it is not in one of the default places
  --yes          start NATS without asking
  -h, --help     show this text

Exits with 0 when all is well, 1 when something is left to fix, 69 when a server
is unreachable and 78 when the configuration is wrong.
EOF
}

config=() config_file='' yes=false
while (($# > 0)); do
  case $1 in
    --config)
      [[ -n ${2-} ]] || { echo "fix: --config wants a file" >&2; exit 2; }
      config=(--config "$2") config_file=$2
      shift
      ;;
    --yes) yes=true ;;
    -h | --help) usage; exit 0 ;;
    *) echo "fix: unknown option \`$1\`" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
deps=${FECHATTER_DEPS_DIR:-$root/.dev}

first_of() {
  local candidate
  for candidate in "$@"; do
    if [[ -n $candidate && -x $candidate ]]; then echo "$candidate"; return; fi
  done
  return 1
}

analytics_server=${ANALYTICS_SERVER:-$(first_of "$root/target/release/analytics-server" \
  "$root/target/quickstart/analytics-server" "$root/target/debug/analytics-server" \
  "$(command -v analytics-server || true)")} || {
  echo "fix: analytics-server is not built: cargo build --release --locked" >&2
  exit 1
}

verdict() {
  printf '\n%s\n' "$2"
  exit "$1"
}

# setting KEY: prints its value in the configuration, or nothing. This is enough for the
# two plain values below; analytics-server itself checks the file.
setting() {
  local file
  for file in "$config_file" "${ANALYTICS_CONFIG-}" analytics.yml /etc/fechatter/analytics.yml; do
    [[ -n $file && -r $file ]] || continue
    sed -n "s/^\([^#]*[^#[:alnum:]_]\)\{0,1\}$1:[[:space:]]*[\"']\{0,1\}\([^\"',}#[:space:]]*\).*/\2/p" "$file" | head -n 1
    return
  done
}

answers() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

start_nats() {
  local port=$1 nats_server data log base answer=y
  nats_server=$(first_of "$deps/bin/nats-server" "$(command -v nats-server || true)") || {
    echo "NATS does not run on port $port, and nats-server is not installed: scripts/deps.sh brings it"
    return
  }
  if ! $yes; then
    answer=n
    echo "NATS does not run on port $port."
    # Without a terminal, nobody can say yes.
    if [[ -t 0 ]]; then
      read -r -p "Start $nats_server? [y/N] " answer
    else
      echo "With --yes it would be started."
    fi
  fi
  [[ $answer == [yY]* ]] || return 0

  base=${ANALYTICS_BASE_DIR:-$(setting base_dir)}
  data=${base:-${XDG_DATA_HOME:-$HOME/.local/share}/fechatter-analytics}/nats
  log=$data/nats-server.log
  mkdir -p "$data"
  # It must not end together with this session.
  nohup "$nats_server" --addr 127.0.0.1 --port "$port" --jetstream --store_dir "$data" \
    </dev/null >>"$log" 2>&1 &
  local pid=$! tenths
  for ((tenths = 0; tenths < 100; tenths++)); do
    answers 127.0.0.1 "$port" && break
    if ! kill -0 "$pid" 2>/dev/null; then
      tail -n 10 "$log"
      echo "NATS ended again, see the end of its log above ($log)"
      return
    fi
    sleep 0.1
  done
  echo "NATS runs on port $port, process $pid, data and log in $data"
  echo "stop it with: kill $pid"
}

nats_url=${ANALYTICS_NATS_URL:-$(setting nats_url)}
# The last two of nats://user:password@host:port.
address=${nats_url#*://}
address=${address##*@}
address=${address%/}
case ${address:-localhost} in
  localhost | 127.0.0.1) nats_port=4222 ;;
  localhost:* | 127.0.0.1:*) nats_port=${address##*:} ;;
  *) nats_port='' ;; # on another machine, where this script cannot start it
esac
if [[ $nats_port =~ ^[0-9]+$ ]] && ! answers 127.0.0.1 "$nats_port"; then
  start_nats "$nats_port"
fi

# The form with + is for bash 3.2, which takes an empty array for an unset one.
code=0
"$analytics_server" ${config[@]+"${config[@]}"} check --repair || code=$?
case $code in
  0) ;;
  69) verdict 69 "UNREACHABLE: start the server named above, then run this again" ;;
  78) verdict 78 "CONFIGURATION: correct what is named above, then run this again" ;;
  *) verdict "$code" "NOT FIXED: what is left to do is named above" ;;
esac
"$analytics_server" ${config[@]+"${config[@]}"} send --count 1 --type app_start ||
  verdict $? "NOT FIXED: a test event could not be published"
verdict 0 "FIXED: all checks pass and a test event is published"
