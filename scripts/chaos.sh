#!/usr/bin/env bash
# Breaks everything at random for as long as you like, and counts the damage.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: scripts/chaos.sh [OPTIONS]

Publishes events of all types in two runs. In the first, a storm, ClickHouse alone is
killed in the middle of small inserts, each time as soon as it is up. In the second,
the daemons, ClickHouse, nats-server and the connections between them are killed,
frozen and cut at random, tables are replaced by copies, NATS' clock is set back, the
stream is restored from a backup, and `verify --repair` runs. Prints how often each
fault occurred, how many events were lost or duplicated, and how many views and dead
letters are wrong, including views of an operator's own. Exits with 0 if there are
none, and with 1 otherwise.

  --minutes N      how long everything is broken at random (5)
  --seed S         decides which fault comes when (a random number)
  --storm-kills K  how often ClickHouse alone is killed, about twice a second (30 N)
  -h, --help       show this text

scripts/test.sh runs a short form of both.
EOF
}

minutes=5 seed=$((RANDOM * 32768 + RANDOM)) storm_kills=''
usage_error() { echo "chaos: $*" >&2; usage >&2; exit 2; }

while (($# > 0)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --minutes | --seed | --storm-kills) ;;
    *) usage_error "unknown option \`$1\`" ;;
  esac
  if ! [[ ${2-} =~ ^(0|[1-9][0-9]{0,9})$ ]]; then
    usage_error "\`$1\` wants a number"
  fi
  case $1 in
    --minutes) minutes=$2 ;;
    --seed) seed=$2 ;;
    --storm-kills) storm_kills=$2 ;;
  esac
  shift 2
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/deps.sh --tests
cargo test --locked --test it --no-run

run=$(mktemp -d "${TMPDIR:-/tmp}/analytics-chaos.XXXXXX")
pid='' keep=false
# The tests lead a process group of their own, to which their servers and daemons belong:
# whatever ends this script early ends all of them, including the frozen ones.
clean_up() {
  trap - EXIT
  if [[ -n $pid ]]; then kill -KILL -- "-$pid" 2>/dev/null || true; fi
  if ! $keep; then rm -rf "$run"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

export CHAOS_SECONDS=$((minutes * 60)) CHAOS_SEED=$seed CHAOS_REPORT=$run/report TMPDIR=$run
export CHAOS_STORM_KILLS=${storm_kills:-$((minutes * 30))}
echo "seed $seed, $CHAOS_STORM_KILLS kills of ClickHouse, then $minutes minutes of everything"

set -m
cargo test --locked --test it chaos:: -- --nocapture --test-threads=1 </dev/null &
pid=$!
set +m
status=0
wait "$pid" || status=1

echo
if [[ -e $run/report ]]; then cat "$run/report"; fi
if ((status == 0)); then
  echo "PASSED"
else
  keep=true
  echo "FAILED, seed $seed: logs and data are in $run"
fi
((status == 0))
