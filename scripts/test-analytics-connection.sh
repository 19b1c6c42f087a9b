#!/usr/bin/env bash
# Proves that an event gets from NATS through the running daemon into ClickHouse.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: scripts/test-analytics-connection.sh [--config FILE] [--wait SECONDS]

Publishes a test event, waits until it is found in ClickHouse by its id, and says
how long that took. If it is not found, shows what is wrong on the way.

  --config FILE   the configuration, if it is not in one of the default places
  --wait SECONDS  how long to wait (30)
  -h, --help      show this text

Exits with 0 when the event arrived, 1 when it did not, 69 when a server is
unreachable and 78 when the configuration is wrong.
EOF
}

config=() wait=30
while (($# > 0)); do
  case $1 in
    --config | --wait)
      [[ -n ${2-} ]] || { echo "test: $1 wants a value" >&2; exit 2; }
      if [[ $1 == --config ]]; then config=(--config "$2"); else wait=$2; fi
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test: unknown option \`$1\`" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

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
  echo "test: analytics-server is not built: cargo build --release --locked" >&2
  exit 1
}

# The form with + is for bash 3.2, which takes an empty array for an unset one.
code=0
"$analytics_server" ${config[@]+"${config[@]}"} send --count 1 --type app_start --wait "$wait" || code=$?
if ((code == 0)); then
  printf '\n%s\n' "CONNECTED: the event was published, stored and found again"
  exit 0
fi

echo
"$analytics_server" ${config[@]+"${config[@]}"} check || true
printf '\n%s\n' "NOT CONNECTED: scripts/fix-analytics-connection.sh mends what can be mended from here"
exit "$code"
