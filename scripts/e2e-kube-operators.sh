#!/usr/bin/env bash
# Helm, built from its Go module, installs, upgrades, rolls back and removes examples/shop/chart; and JobSet, an operator
# with a CustomResourceDefinition and webhooks, built from its Go module, does its work. On HOSTS virtual hosts (3), or
# with HOSTS=0 on this host alone. Needs root and kubectl.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
HOSTS=${HOSTS:-3}
command -v kubectl >/dev/null || { echo "e2e-kube-operators: kubectl is not there" >&2; exit 1; }
[[ $(id -u) = 0 ]] || { echo "e2e-kube-operators: hosts need root" >&2; exit 1; }
helm=$("$here/scripts/helm.sh")
work=$(mktemp -d /var/tmp/tutti-kube-operators.XXXXXX)
export TUTTI_DATA_DIR=$work/data TUTTI_RUN_DIR=/run/${work##*/} KUBECACHEDIR=$work/cache
export HELM_CACHE_HOME=$work/helm HELM_CONFIG_HOME=$work/helm HELM_DATA_HOME=$work/helm
tutti() { "$here/bin/tutti" "$@"; }
h() { "$helm" "$@"; }
finish() {
	local code=$?
	if ((code)); then
		kubectl --request-timeout=5s get pods -A -o wide >&2 || true
		kubectl --request-timeout=5s get events -A --field-selector=type=Warning >&2 | tail -n 20 || true
		find "$TUTTI_DATA_DIR" -maxdepth 3 -name kubernetes.log -exec tail -n 5 {} + >&2 || true
	fi
	[[ -n ${KEEP:-} ]] || tutti down --purge >/dev/null || code=1
	[[ -n ${KEEP:-} ]] || rm -rf --one-file-system "$work" "$TUTTI_RUN_DIR"
	exit "$code"
}
trap finish EXIT
if ((HOSTS)); then
	tutti up -d --hosts "$HOSTS" --kubernetes
else
	tutti up -d --port "${PORT:-7497}" --marathon-listen '' --kubernetes
fi
exports=$(tutti env)
eval "$exports"
"$here/scripts/images.sh" --import >/dev/null

passed=0
failed=0
# want PATTERN COMMAND… runs a command that must succeed and say something like the pattern; eventually is for what others have to do first.
want() { try 1 "$@"; }
eventually() { try 300 "$@"; }
# try TIMES PATTERN COMMAND…
try() {
	local times=$1 pattern=$2 said i
	shift 2
	for ((i = 0; i < times; i++)); do
		((i == 0)) || sleep 0.2
		if said=$("$@" 2>&1) && grep -qE -- "$pattern" <<<"$said"; then
			passed=$((passed + 1))
			printf 'ok: %s\n' "$*"
			return
		fi
	done
	failed=$((failed + 1))
	printf 'FAILED: %s\n  wanted: %s\n%s\n' "$*" "$pattern" "$(sed 's/^/  | /' <<<"$said" | tail -n 15)"
}
chart=$here/examples/shop/chart
page() { curl -sf -m 3 http://127.0.0.1:30080/; }

# Helm.
want '1 chart\(s\) linted, 0 chart\(s\) failed' h lint "$chart"
want 'STATUS: deployed' h install store "$chart" --wait --wait-for-jobs --timeout 4m
eventually 'Tutti Music' page
want '^store[[:space:]].*[[:space:]]1[[:space:]].*deployed' h list
want 'STATUS: deployed' h status store
want 'Phase: +Succeeded' h test store --timeout 2m
want 'STATUS: deployed' h upgrade store "$chart" --wait --timeout 4m --reuse-values --set web.tag=v2 --set web.replicas=2 --set title='Second Movement'
eventually 'Second Movement' page
want '^2$' kubectl get deployment store-web -o 'jsonpath={.status.readyReplicas}{"\n"}'
want 'shop/web:v2' kubectl get deployment store-web -o 'jsonpath={.spec.template.spec.containers[0].image}{"\n"}'
want 'Second Movement' h get values store
want 'Error|timed out|context deadline' bash -c "$helm upgrade store $chart --wait --timeout 10s --reuse-values --set web.tag=nowhere 2>&1 || true"
eventually 'Second Movement' page
want '^3[[:space:]].*failed' h history store
want 'Rollback was a success' h rollback store 1 --wait --timeout 4m
want 'Rollback to 1' h history store
eventually 'Tutti Music' page
want '^3$' kubectl get deployment store-web -o 'jsonpath={.status.readyReplicas}{"\n"}'
want 'uninstalled' h uninstall store --wait --timeout 3m
eventually '^$' kubectl get deployments,statefulsets,services -l app.kubernetes.io/instance=store -o name
want '^NAME' h list
want 'deleted' kubectl delete pvc --all
want 'deleted' kubectl delete pod store-front

# An operator: its image is made of its program alone, its manifests are as they are but for the image's name.
jobset=$("$here/scripts/jobset.sh")
mkdir -p "$work/root/etc" "$work/jobset"
install -m 755 "$jobset/manager" "$work/root/manager"
printf 'jobset:x:65532:65532::/:/sbin/nologin\n' >"$work/root/etc/passwd"
tutti image pack --name jobset:v1 --dir "$work/root" --entrypoint /manager --user 65532 -o "$work/jobset.tar" >/dev/null
tutti image import "$work/jobset.tar" >/dev/null
cp -r "$jobset/config" "$work/config"
cat >"$work/jobset/kustomization.yaml" <<'Y'
resources: [../config/default]
images: [{name: us-central1-docker.pkg.dev/k8s-staging-images/jobset/jobset, newName: jobset, newTag: v1}]
Y
want 'all is deployed' tutti deploy -f "$work/jobset" --timeout 3m
want 'objects are as they were|of [0-9]+ objects' tutti deploy -f "$work/jobset" -d
want 'jobsets' kubectl api-resources --api-group=jobset.x-k8s.io
want 'jobset-' kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations
cat >"$work/set.yaml" <<'Y'
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: choir}
spec:
  replicatedJobs:
  - name: voices
    replicas: 2
    template:
      spec:
        parallelism: 2
        completions: 2
        backoffLimit: 0
        template:
          spec:
            restartPolicy: Never
            containers:
            - {name: voice, image: "redis:7", command: [bash, -c, 'echo "voice $JOB_COMPLETION_INDEX sings"; sleep 1']}
Y
eventually 'created' kubectl apply -f "$work/set.yaml"
want 'Indexed' kubectl get jobset choir -o 'jsonpath={.spec.replicatedJobs[0].template.spec.completionMode}{"\n"}' # its webhook says so
want 'condition met' kubectl wait --for=condition=Completed --timeout=120s jobset/choir
want '^4$' bash -c "kubectl get pods -l jobset.sigs.k8s.io/jobset-name=choir --field-selector=status.phase=Succeeded -o name | wc -l"
want 'voice 1 sings' kubectl logs job/choir-voices-1 --all-pods
want 'denied|immutable|Invalid' bash -c "kubectl patch jobset choir --type=json -p '[{\"op\":\"replace\",\"path\":\"/spec/replicatedJobs/0/replicas\",\"value\":5}]' 2>&1 || true"
want 'deleted' kubectl delete jobset choir
eventually '^$' kubectl get jobs,pods -l jobset.sigs.k8s.io/jobset-name=choir -o name
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
