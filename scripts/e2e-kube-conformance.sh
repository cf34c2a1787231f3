#!/usr/bin/env bash
# Kubernetes' own conformance suite against Tutti's Kubernetes API, with images that are made here. On HOSTS virtual hosts
# (3); with HOSTS=0 on this host alone. Needs root, kubectl and runc.
#
#   scripts/e2e-kube-conformance.sh [PART…]      such as sig-apps or "sig-node.*Probing"; default: all of it
#
# Environment: PROCS how many cases run at once (3) beside those that want to be alone, 0: those alone; SKIP a pattern of cases to leave
# out; REPORT where what each case said is kept (default: nowhere); KEEP=yes leaves the cluster up; LIMIT how long each half may take (3h).
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
HOSTS=${HOSTS:-3} PROCS=${PROCS:-3} SKIP=${SKIP:-} REPORT=${REPORT:-} KEEP=${KEEP:-}
bin=${TUTTI_CONFORMANCE_BIN:-$here/.cache/conformance}
for program in kubectl runc; do
	command -v $program >/dev/null || { echo "e2e-kube-conformance: $program is not there" >&2; exit 1; }
done
[[ $(id -u) = 0 ]] || { echo "e2e-kube-conformance: hosts need root" >&2; exit 1; }
work=$(mktemp -d /var/tmp/tutti-conformance.XXXXXX)
home=$HOME
export TUTTI_DATA_DIR=${TUTTI_DATA_DIR:-$work/data} TUTTI_RUN_DIR=${TUTTI_RUN_DIR:-/run/${work##*/}} KUBECACHEDIR=$work/cache HOME=$work
tutti() { "$here/bin/tutti" "$@"; }
up=
finish() {
	local code=$?
	if [[ -n $up && -z $KEEP ]]; then
		tutti down --purge >/dev/null || code=1
	fi
	rm -rf --one-file-system "$work/cache" "$work/report"
	[[ -n $KEEP ]] || rm -rf --one-file-system "$work" "$TUTTI_RUN_DIR"
	exit "$code"
}
trap finish EXIT

if ! tutti kubernetes status >/dev/null 2>&1; then
	up=yes
	if ((HOSTS)); then
		tutti up -d --hosts "$HOSTS" --oci-runtime test-handler="$(command -v runc)" --kubernetes
	else
		tutti up -d --port "${PORT:-7497}" --marathon-listen '' --oci-runtime test-handler="$(command -v runc)" --kubernetes
	fi
	HOME=$home "$here/scripts/images.sh" --import conformance >/dev/null
fi
eval "$(tutti env)"
for ((i = 0; i < 300; i++)); do
	kubectl get serviceaccount default >/dev/null 2>&1 && break
	sleep 0.2
done

# A case names the part that it belongs to and, if so, that it wants to be alone.
part=
(($# == 0)) || part="($(IFS='|' && echo "$*")).*"
report=${REPORT:-$work/report}
mkdir -p "$report"
failed=0
# cases PROCS SKIP FOCUS
cases() {
	local skip=()
	[[ -z $2 ]] || skip=(--skip="$2")
	HOME=$home GOTOOLCHAIN=local "$bin/ginkgo" --procs="$1" --no-color --succinct --focus="$3" "${skip[@]}" --timeout="${LIMIT:-3h}" --output-interceptor-mode=none \
		--json-report="cases-$1.json" --output-dir="$report" "$bin/e2e.test" -- --kubeconfig="$KUBECONFIG" --provider=skeleton --kubectl-path="$(command -v kubectl)" \
		--disable-log-dump --dump-logs-on-failure=false --minStartupPods=0 --allowed-not-ready-nodes=0 >"$report/cases-$1.log" 2>&1 || failed=1
}
((PROCS == 0)) || cases "$PROCS" "\[Serial\]${SKIP:+|$SKIP}" "$part\[Conformance\]"
cases 1 "$SKIP" "$part\[Serial\].*\[Conformance\]|$part\[Conformance\].*\[Serial\]"

python3 - "$report" <<'P'
import glob, json, re, sys
count = {"passed": 0, "failed": 0, "skipped": 0}
parts, why = {}, []
for name in glob.glob(sys.argv[1] + "/cases-*.json"):
    for suite in json.load(open(name)):
        for s in suite["SpecReports"] or []:
            if s["LeafNodeType"] != "It" or s["NumAttempts"] == 0 and s["State"] != "pending" and not s.get("Failure"):
                continue
            text = " ".join((s["ContainerHierarchyTexts"] or []) + [s["LeafNodeText"]])
            state = {"passed": "passed", "skipped": "skipped", "pending": "skipped"}.get(s["State"], "failed")
            part = re.match(r"\[(sig-[a-z-]+)\]", text)
            one = parts.setdefault(part.group(1) if part else "other", dict(count))
            one[state] += 1
            if state != "passed":
                why.append("%s: %s\n  | %s" % (state.upper(), text, s.get("Failure", {}).get("Message", "").strip().replace("\n", "\n  | ")[:1500]))
print("\n".join(sorted(why)))
for name in sorted(parts):
    print("%-22s %s" % (name, ", ".join("%d %s" % (n, k) for k, n in parts[name].items())))
for k in count:
    count[k] = sum(p[k] for p in parts.values())
print("%d passed, %d failed, %d skipped" % (count["passed"], count["failed"], count["skipped"]))
sys.exit(count["failed"] > 0 or count["passed"] == 0)
P
((failed == 0))
