#!/usr/bin/env bash
# Every check that a change has to pass, the same here and in CI.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: scripts/test.sh [-- CARGO_TEST_ARGUMENTS]

Brings the test servers (scripts/deps.sh --tests), then runs all checks to the
end, even if one fails: formatting, lints, the links of the documentation, tests,
the shell scripts, deploy/, and the licences and advisories of the dependencies.

  scripts/test.sh                        everything
  scripts/test.sh -- --test it pipeline  all checks, but only these tests

With TEST_CLICKHOUSE_URL, the tests use that ClickHouse server instead of the
embedded engine.
EOF
}

case ${1-} in
  '') ;;
  --) shift ;;
  -h | --help) usage; exit 0 ;;
  *) echo "test: unknown argument \`$1\`: arguments of cargo test come after --" >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
deps=${FECHATTER_DEPS_DIR:-.dev}

scripts/deps.sh --tests

passed=() failed=() skipped=()

check() {
  local name=$1
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  if "$@"; then passed+=("$name"); else failed+=("$name"); fi
}

# For a check that needs a tool which this machine lacks: it is named rather than
# silently left out.
skip() {
  printf '\n== %s: skipped, %s\n' "$1" "$2"
  skipped+=("$1")
}

check format cargo fmt --check
check lints cargo clippy --all-targets --locked -- -D warnings
check docs env RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked
check documents scripts/check-docs.sh
check tests cargo test --locked "$@"

if [[ -x $deps/venv/bin/shellcheck ]]; then
  check scripts "$deps/venv/bin/shellcheck" scripts/*.sh .ci/run
elif command -v shellcheck >/dev/null; then
  check scripts shellcheck scripts/*.sh .ci/run
else
  skip scripts "shellcheck is missing (Debian: apt-get install shellcheck)"
fi

check deploy scripts/check-deploy.sh

# Both are built from source, which takes minutes, so deps.sh does not bring them.
if cargo deny --version >/dev/null 2>&1; then
  check licences cargo deny --locked check --hide-inclusion-graph licenses bans sources
  # The advisories are on a git host that not every machine can reach.
  if cargo deny fetch db >/dev/null 2>&1; then
    check advisories cargo deny --locked check advisories
  else
    skip advisories "their database cannot be fetched from here"
  fi
else
  skip licences "cargo-deny is missing (cargo install --locked cargo-deny)"
fi
if cargo machete --version >/dev/null 2>&1; then
  check unused-dependencies cargo machete
else
  skip unused-dependencies "cargo-machete is missing (cargo install --locked cargo-machete)"
fi

echo
if ((${#skipped[@]} > 0)); then echo "skipped: ${skipped[*]}"; fi
if ((${#failed[@]} > 0)); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "PASSED: ${passed[*]}"
