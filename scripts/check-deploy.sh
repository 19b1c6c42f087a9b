#!/usr/bin/env bash
# Checks deploy/, as far as this machine has the tools to do so.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: scripts/check-deploy.sh

Checks each file in deploy/ with the tool that knows its format. A check whose tool is
missing is reported as skipped; nothing is installed. The tools that
scripts/deps.sh --tests brings are found.

  unit, exposure, user         systemd-analyze, systemd-sysusers
  image                        hadolint
  compose                      check-jsonschema, and docker with its compose plugin if installed
  prometheus, alerts           promtool
  dashboard                    python3, promtool
  kubernetes                   kubernetes-validate
  names                        python3 with PyYAML
USAGE
}

case ${1-} in
  '') ;;
  -h | --help) usage; exit 0 ;;
  *) echo "check-deploy: unknown argument \`$1\`" >&2; usage >&2; exit 2 ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
deps=${FECHATTER_DEPS_DIR:-.dev}
PATH=$deps/venv/bin:$deps/bin:$PATH

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT

passed=() failed=() skipped=()

check() {
  local name=$1
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  if "$@"; then passed+=("$name"); else failed+=("$name"); fi
}

skip() {
  printf '\n== %s: skipped, %s\n' "$1" "$2"
  skipped+=("$1")
}

has() { command -v "$1" >/dev/null 2>&1; }

# The binary is not installed where this runs, so another one takes its place. systemd only
# ignores some mistakes, such as an unknown key: it reports them and still succeeds.
verify_unit() {
  sed 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' deploy/systemd/analytics-server.service \
    >"$temp/analytics-server.service"
  local told
  told=$(systemd-analyze verify "$temp/analytics-server.service" 2>&1) || {
    echo "$told"
    return 1
  }
  if grep analytics-server.service <<<"$told"; then return 1; fi
}

# The threshold is in tenths. Prints the verdict, and what is exposed if that is too much.
expose_unit() {
  local report
  if report=$(systemd-analyze security --offline=true --no-pager --threshold=20 \
    deploy/systemd/analytics-server.service 2>&1); then
    tail -n 1 <<<"$report"
  else
    grep -v '✓' <<<"$report"
    return 1
  fi
}

# Every expression has to be valid PromQL, and no panel may overlap another.
dashboard() {
  python3 - deploy/grafana/dashboards/*.json >"$temp/expressions.yml" <<'PYTHON' || return 1
import json, re, sys

print("groups:\n- name: dashboards\n  rules:")
wrong, number = [], 0
for path in sys.argv[1:]:
    with open(path) as file:
        dashboard = json.load(file)
    panels = dashboard["panels"]
    if len({panel["id"] for panel in panels}) != len(panels):
        wrong.append(f"{path}: two panels have one id")
    cells = {}
    for panel in panels:
        place, title = panel["gridPos"], panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if x > 23:
                    wrong.append(f"{path}: `{title}` is too far to the right")
                if cells.setdefault((x, y), title) != title:
                    wrong.append(f"{path}: `{title}` lies on `{cells[x, y]}`")
        for target in panel.get("targets", []):
            if target["datasource"]["uid"] != "${datasource}":
                wrong.append(f"{path}: `{title}` has a data source of its own")
            expression = re.sub(r"\$__(rate_interval|range)", "5m", target["expr"])
            expression = re.sub(r"\$\w+", ".*", expression)
            number += 1
            print(f"  - record: expression_{number}\n    expr: {json.dumps(expression)}")
for line in sorted(set(wrong)):
    print(line, file=sys.stderr)
sys.exit(bool(wrong))
PYTHON
  promtool check rules "$temp/expressions.yml"
}

# What one file names has to exist in the other.
names() {
  python3 - <<'PYTHON'
import json, pathlib, re, sys
import yaml

wrong = []
deploy = pathlib.Path("deploy")

compose = yaml.safe_load((deploy / "compose.yml").read_text())
for service, settings in compose["services"].items():
    for volume in settings.get("volumes", []):
        source = volume.split(":")[0]
        known = source in compose["volumes"] if source[0] != "." else (deploy / source).is_dir()
        if not known:
            wrong.append(f"compose.yml: {service} mounts `{source}`, which is not there")

def keys(tree, path=""):
    for key, value in (tree or {}).items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{path}{key}.")

known = set(keys(yaml.safe_load(pathlib.Path("analytics.yml").read_text())))
config = yaml.safe_load((deploy / "kubernetes/configmap.yml").read_text())
for key in keys(yaml.safe_load(config["data"]["analytics.yml"])):
    if key not in known:
        wrong.append(f"configmap.yml: `{key}` is no key of analytics.yml")

rules = [
    rule
    for group in yaml.safe_load((deploy / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
tested = (deploy / "prometheus/alerts_test.yml").read_text()
for rule in rules:
    name, notes = rule.get("alert"), rule.get("annotations", {})
    if name is None:
        continue
    for note in ("summary", "description", "runbook_url"):
        if note not in notes:
            wrong.append(f"alerts.yml: {name} has no {note}")
    if f"alertname: {name}\n" not in tested and f'alertname="{name}"' not in tested:
        wrong.append(f"alerts_test.yml: {name} is not tested")

headings = re.findall(r"^#+ +(.+)$", pathlib.Path("docs/alarms.md").read_text(), re.MULTILINE)
anchors = {re.sub(r"[^\w\- ]", "", line).lower().replace(" ", "-") for line in headings}
for rule in rules:
    url = rule.get("annotations", {}).get("runbook_url", "")
    page, _, anchor = url.partition("#")
    if url and not (page.endswith("docs/alarms.md") and anchor in anchors):
        wrong.append(f"docs/alarms.md has no section for `{url}`")

# What the tests saw at /metrics.
snapshot = "tests/it/snapshots/it__http__every_metric_is_there_from_the_start.snap"
metrics = dict(re.findall(r"^(analytics_\w+) (\w+)$", pathlib.Path(snapshot).read_text(), re.MULTILINE))
expressions = [rule["expr"] for rule in rules]
for path in deploy.glob("grafana/dashboards/*.json"):
    for panel in json.loads(path.read_text())["panels"]:
        expressions += [target["expr"] for target in panel.get("targets", [])]
text = re.sub(r'"[^"]*"|\w+:\w+:\w+', "", "\n".join(expressions))
for name in sorted(set(re.findall(r"\banalytics_\w+", text))):
    plain = re.sub(r"_(bucket|sum|count)$", "", name)
    if name not in metrics and metrics.get(plain) != "histogram":
        wrong.append(f"the daemon has no metric `{name}`")

for line in wrong:
    print(line, file=sys.stderr)
sys.exit(bool(wrong))
PYTHON
}

if has systemd-analyze; then
  check unit verify_unit
  check exposure expose_unit
else
  skip unit "systemd-analyze is missing"
  skip exposure "systemd-analyze is missing"
fi
if has systemd-sysusers; then
  check user systemd-sysusers --dry-run "$PWD/deploy/systemd/analytics-server.sysusers"
else
  skip user "systemd-sysusers is missing"
fi

if has hadolint; then
  check image hadolint deploy/Dockerfile
else
  skip image "hadolint is missing (scripts/deps.sh --tests)"
fi
if has check-jsonschema; then
  check compose check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yml
else
  skip compose "check-jsonschema is missing (scripts/deps.sh --tests)"
fi
if has docker && docker compose version >/dev/null 2>&1; then
  check compose-config docker compose -f deploy/compose.yml config --quiet
fi

if has promtool; then
  check prometheus promtool check config deploy/prometheus/prometheus.yml
  check alerts promtool test rules deploy/prometheus/alerts_test.yml
else
  skip prometheus "promtool is missing (Debian: apt-get install prometheus)"
  skip alerts "promtool is missing"
fi
if has promtool && has python3; then
  check dashboard dashboard
else
  skip dashboard "promtool or python3 is missing"
fi

if has kubernetes-validate; then
  check kubernetes kubernetes-validate --strict deploy/kubernetes/*.yml
else
  skip kubernetes "kubernetes-validate is missing (scripts/deps.sh --tests)"
fi

if python3 -c 'import yaml' >/dev/null 2>&1; then
  check names names
else
  skip names "python3 with PyYAML is missing (scripts/deps.sh --tests)"
fi

echo
if ((${#skipped[@]} > 0)); then echo "skipped: ${skipped[*]}"; fi
if ((${#failed[@]} > 0)); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "PASSED: ${passed[*]}"
