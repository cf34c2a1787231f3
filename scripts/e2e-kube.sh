#!/usr/bin/env bash
# A session of kubectl against Tutti's Kubernetes API, with pods that run. On HOSTS virtual hosts (3),
# one of which loses its power in between; with HOSTS=0 on this host alone. Needs root, kubectl, docker's command line and curl.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
HOSTS=${HOSTS:-3}
for program in kubectl docker curl; do
	command -v "$program" >/dev/null || { echo "e2e-kube: $program is not there" >&2; exit 1; }
done
[[ $(id -u) = 0 ]] || { echo "e2e-kube: hosts need root" >&2; exit 1; }
work=$(mktemp -d /var/tmp/tutti-kube.XXXXXX)
export TUTTI_DATA_DIR=$work/data TUTTI_RUN_DIR=/run/${work##*/} KUBECACHEDIR=$work/cache HOME=$work
tutti() { "$here/bin/tutti" "$@"; }
finish() {
	local code=$?
	if ((code)); then
		find "$TUTTI_DATA_DIR" -maxdepth 3 -name kubernetes.log -exec tail -n 5 {} + >&2 || true
	fi
	tutti down --purge >/dev/null || code=1
	rm -rf --one-file-system "$work" "$TUTTI_RUN_DIR"
	exit "$code"
}
trap finish EXIT

if ((HOSTS)); then
	tutti up -d --hosts "$HOSTS" --kubernetes
else
	tutti up -d --port "${PORT:-7497}" --marathon-listen "127.0.0.1:${MARATHON_PORT:-18081}" --kubernetes
fi
# env makes this shell talk to a server that answers.
env() {
	local exports
	exports=$(tutti env)
	eval "$exports"
	[[ -n ${KUBECONFIG:-} ]]
}
env

passed=0
failed=0
# want PATTERN COMMAND… runs a command that must succeed and say something like the pattern.
want() {
	local pattern=$1 said
	shift
	if said=$("$@" 2>&1) && grep -qE -- "$pattern" <<<"$said"; then
		passed=$((passed + 1))
		return
	fi
	failed=$((failed + 1))
	printf 'FAILED: %s\n  wanted: %s\n%s\n' "$*" "$pattern" "$(sed 's/^/  | /' <<<"$said" | tail -n 15)"
}
# eventually PATTERN COMMAND… is want for what others have to do first.
eventually() {
	local pattern=$1 said i
	shift
	for ((i = 0; i < 300; i++)); do
		if said=$("$@" 2>&1) && grep -qE -- "$pattern" <<<"$said"; then
			break
		fi
		sleep 0.2
	done
	want "$pattern" "$@"
}

cat >"$work/web.yaml" <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: web:1, resources: {requests: {cpu: 10m}}}]}
Y
cat >"$work/crd.yaml" <<'Y'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: tunes.tutti.run}
spec:
  group: tutti.run
  scope: Namespaced
  names: {plural: tunes, singular: tune, kind: Tune}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {bars: {type: integer, minimum: 1}}}}
Y
tune() { printf 'apiVersion: tutti.run/v1\nkind: Tune\nmetadata: {name: %s}\nspec: {bars: %s}\n' "$1" "$2"; }
k() { kubectl "$@"; }
# refused runs a command that is to fail, or whose answer is looked at in any case.
refused() { "$@" || true; }

eventually '^default ' k get serviceaccounts
want 'Server Version: v1\.[0-9]+\.[0-9]+$' k version
want 'running at' k cluster-info
want 'deployments +deploy' k api-resources
want 'DESCRIPTION' k explain deployment.spec.strategy
want 'created' k create namespace other
want 'created' k apply -f "$work/web.yaml"
eventually 'web-[a-z0-9]+-[a-z0-9]+ .*(ErrImagePull|ImagePullBackOff)' k get pods -o wide # the image is nowhere
want 'ReplicaSet' k get events
want 'web:1' k describe deployment web
want 'unchanged' k apply -f "$work/web.yaml"
sed -i 's/web:1/web:2/' "$work/web.yaml"
want 'web:2' bash -c "kubectl diff -f $work/web.yaml || true"
want 'serverside-applied' k apply --server-side --force-conflicts -f "$work/web.yaml"
want '^2$' k get deployment web -o 'jsonpath={.status.observedGeneration}{"\n"}'
want 'REVISION' k rollout history deployment web
want 'paused' k rollout pause deployment web
want 'resumed' k rollout resume deployment web
want 'restarted' k rollout restart deployment web
want 'patched' k patch deployment web -p '{"metadata":{"labels":{"tier":"front"}}}'
want 'edited' bash -c "KUBE_EDITOR='sed -i s/front/back/' kubectl edit deployment web"
want 'tier=back' k get deployment web --show-labels
want 'labeled' k label deployment web extra=1
want 'annotated' k annotate deployment web note=hello
want 'image updated' k set image deployment web web=web:3
want 'env updated' k set env deployment web COLOUR=red
want 'scaled' k scale deployment web --replicas=3
eventually '^3$' bash -c "kubectl get pods -l app=web --field-selector=status.phase=Pending -o name | wc -l | awk '{print (\$1 >= 3) ? 3 : \$1}'"
want 'autoscaled' k autoscale deployment web --min=2 --max=5 --cpu-percent=50
want 'exposed' k expose deployment web --port=80 --type=NodePort
want 'NodePort +10\.212\.' k get service web
eventually 'web-' k get endpointslices
want 'rolled back' k rollout undo deployment web
want 'created' k create secret generic hush --from-literal=word=quiet
want '^quiet$' bash -c "kubectl get secret hush -o 'jsonpath={.data.word}' | base64 -d"
want 'created' k create configmap conf --from-literal=a=b
want 'replaced' bash -c "kubectl create configmap conf --from-literal=a=c --dry-run=client -o yaml | kubectl replace -f -"
want 'created' k apply -f "$work/crd.yaml"
want 'condition met' k wait --for=condition=Established --timeout=60s crd/tunes.tutti.run
eventually 'created|unchanged' bash -c "$(declare -f tune); tune waltz 3 | kubectl apply -f -"
want 'waltz' k get tunes
want 'refused|Invalid value|should be greater' bash -c "$(declare -f tune); tune silence 0 | kubectl apply -f - 2>&1 || true"
want '^yes' k auth can-i create deployments
want '^no' bash -c "kubectl auth can-i list secrets --as=system:serviceaccount:other:default || true"
want 'created' k create role reader --verb=get,list --resource=pods -n other
want 'created' k create rolebinding reader --role=reader --serviceaccount=other:default -n other
want '^yes' k auth can-i list pods -n other --as=system:serviceaccount:other:default
want '^eyJ' k create token default
want 'created' k create job once --image=web:1
want 'created' k create cronjob leapdaily --image=web:1 --schedule='0 0 29 2 *'
eventually 'k8s/leapdaily +cron' tutti ls k8s
want 'created' k create quota few --hard=pods=1 -n other
want 'deleted' k delete job once
want 'nodes "nowhere" not found' bash -c "kubectl taint nodes nowhere a=b:NoSchedule 2>&1 || true"
head -c 500000 /dev/zero | tr '\0' x >"$work/big"
want 'created' k create configmap big --from-file="$work/big"

# What runs: Redis in three pods, from the images of the example.
"$here/scripts/images.sh" --import redis >/dev/null
want 'created' k create deployment cache --image=redis:7 --replicas=3
want 'successfully rolled out' k rollout status deployment cache --timeout=90s
want '^3$' k get deployment cache -o 'jsonpath={.status.readyReplicas}{"\n"}'
want 'Ready to accept connections' k logs deployment/cache
want '^PONG' k exec deployment/cache -- redis-cli ping
want 'exposed' k expose deployment cache --port=6379
eventually '^PONG' k exec deployment/cache -- redis-cli -h cache ping
eventually '^PONG' k exec deployment/cache -- redis-cli -h cache.default.svc.cluster.local ping
want 'default/cache-|cache-' tutti ps

# Deployments are workloads of every API, which scale them and change nothing else.
eventually 'k8s/cache +service +ready +3/3 +redis:7' tutti ls k8s
want 'cache-.* redis:7|cache-' tutti ps k8s/cache
want 'Deployment cache of Kubernetes' tutti explain k8s/cache
want 'k8s_cache +replicated +3/3 +redis:7' docker service ls
want '^k8s_cache\.[123] Running' docker service ps --format '{{.Name}} {{.CurrentState}}' k8s_cache
want 'Ready to accept connections' docker service logs k8s_cache
want '"id":"/k8s/cache".*"tasksRunning":3' curl -sf "$MARATHON_URL/v2/apps//k8s/cache"
want '' tutti scale k8s/cache=4
want '^4$' k get deployment cache -o 'jsonpath={.spec.replicas}{"\n"}'
want 'converged|scaled to 2' docker service scale k8s_cache=2
eventually '^2$' k get deployment cache -o 'jsonpath={.status.readyReplicas}{"\n"}'
want 'deploymentId' curl -sf -X PUT -H 'Content-Type: application/json' -d '{"instances":3}' "$MARATHON_URL/v2/apps//k8s/cache"
eventually '^3$' k get deployment cache -o 'jsonpath={.status.readyReplicas}{"\n"}'
eventually 'k8s/cache +service +ready +3/3' tutti ls k8s
want 'Deployment cache of Kubernetes: here it can be scaled; for all else use kubectl' refused tutti rm k8s/cache
want 'use kubectl' refused docker service rm k8s_cache
want 'use kubectl' refused docker service update --image redis:8 k8s_cache
want 'use kubectl' refused curl -s -X DELETE "$MARATHON_URL/v2/apps//k8s/cache"

# Names that stand for others, addresses from outside, policies.
want 'created' k create service externalname elsewhere --external-name=cache.default.svc.cluster.local
eventually '^PONG' k exec deployment/cache -- redis-cli -h elsewhere ping
want 'created' k create configmap tutti-load-balancer -n kube-system --from-literal=addresses=198.51.100.8/30
want 'exposed' k expose deployment cache --name=outside --port=6379 --type=LoadBalancer
eventually '^198\.51\.100\.8$' k get service outside -o 'jsonpath={.status.loadBalancer.ingress[0].ip}{"\n"}'
eventually '^PONG' k exec deployment/cache -- redis-cli -h 198.51.100.8 ping
# allow FROM lets nothing but Pods with that label reach the cache.
allow() {
	printf 'apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: walls}\nspec: {podSelector: {matchLabels: {app: cache}}, ingress: [{from: [{podSelector: {matchLabels: {app: %s}}}], ports: [{port: 6379}]}]}\n' "$1" | kubectl apply -f -
}
from=$(k get pods -l app=cache -o 'jsonpath={.items[0].metadata.name}')
to=$(k get pods -l app=cache -o 'jsonpath={.items[1].status.podIP}')
want 'created' allow nobody
eventually 'Could not connect' bash -c "kubectl exec $from -- redis-cli -h $to ping 2>&1 || true"
want 'configured' allow cache
eventually '^PONG' k exec "$from" -- redis-cli -h "$to" ping
want 'deleted' k delete networkpolicy walls
want 'deleted' k delete service outside elsewhere

# An Ingress. What it leads to is Redis, which does not answer in HTTP.
want 'created' k create ingress front --rule='cache.example.com/*=cache:6379'
eventually '^[0-9.]+$' k get ingress front -o 'jsonpath={.status.loadBalancer.ingress[0].ip}{"\n"}'
where=$(k get ingress front -o 'jsonpath={.status.loadBalancer.ingress[0].ip}')
# asks HOST prints how the ingress answers for it.
asks() {
	exec 3<>"/dev/tcp/$where/80"
	printf 'GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$1" >&3
	head -n 1 <&3
}
eventually '^HTTP/1.1 502' asks cache.example.com
want '^HTTP/1.1 404' asks other.example.com
want 'deleted' k delete ingress front
first=$(k get pods -l app=cache -o 'jsonpath={.items[0].metadata.name}')
want 'deleted' k delete pod "$first"
want 'successfully rolled out' k rollout status deployment cache --timeout=90s
want 'scaled' k scale deployment cache --replicas=4
want 'condition met' k wait --for=jsonpath='{.status.readyReplicas}'=4 --timeout=90s deployment/cache
want 'restarted' k rollout restart deployment cache
want 'successfully rolled out' k rollout status deployment cache --timeout=90s
want 'created' k create job hello --image=redis:7 -- redis-server --version
want 'condition met' k wait --for=condition=complete --timeout=90s job/hello
want 'Redis server v=' k logs job/hello
eventually 'k8s/hello +job +completed' tutti ls k8s
want 'a Job|Job hello of Kubernetes' refused tutti scale k8s/hello=3

# What it uses, and who may see it.
eventually 'cache-.* [0-9]+m +[0-9]+Mi' k top pods
eventually ' [0-9]+m +[0-9]+% +[0-9]+Mi' k top nodes
want 'autoscaled' k autoscale deployment cache --min=3 --max=5 --cpu-percent=50 # its containers ask for no share: told so
want 'resource requirements updated' k set resources deployment cache --requests=cpu=100m
want 'successfully rolled out' k rollout status deployment cache --timeout=90s
eventually 'cpu: [0-9]+%/50%' k get hpa cache
want 'deleted' k delete hpa cache

# attach and port-forward.
pod=$(k get pods -l app=cache -o 'jsonpath={.items[0].metadata.name}')
want 'Background saving started' bash -c "{ sleep 1; kubectl exec $pod -- redis-cli bgsave >&2; } & timeout 8 kubectl attach $pod || true"
k port-forward "$pod" 16379:6379 >/dev/null 2>&1 &
forward=$!
eventually '^.PONG' bash -c 'exec 3<>/dev/tcp/127.0.0.1/16379; printf "PING\r\n" >&3; read -r -t 5 line <&3; echo "$line"'
kill "$forward"
wait "$forward" 2>/dev/null || true

# Data that outlives Pods.
cat >"$work/store.yaml" <<'Y'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  replicas: 2
  serviceName: store
  selector: {matchLabels: {app: store}}
  template:
    metadata: {labels: {app: store}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - {name: store, image: "redis:7", args: [--appendonly, "yes", --appendfsync, always], volumeMounts: [{name: data, mountPath: /data}]}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
Y
want 'tutti-local \(default\) +tutti.run/local +Delete +Immediate' k get storageclass
want 'created' k apply -f "$work/store.yaml"
want 'roll out complete|partitioned|rolling update complete' k rollout status statefulset store --timeout=90s
want 'data-store-1 +Bound' k get pvc
eventually 'k8s/store +stateful +ready +2/2' tutti ls k8s
want '' tutti scale k8s/store=1
eventually '^1$' k get statefulset store -o 'jsonpath={.status.replicas}{"\n"}'
want '^OK' k exec store-0 -- redis-cli set word kept
want 'deleted' k delete pod store-0
eventually '^kept' k exec store-0 -- redis-cli get word
want 'scaled' k scale statefulset store --replicas=1
want 'deleted' k delete statefulset store
want 'deleted' k delete pvc data-store-0 data-store-1
eventually 'No resources' k get pv

# Nodes.
node=$(k get nodes -o 'jsonpath={.items[-1:].metadata.name}')
want 'labeled' k label node "$node" disk=ssd
eventually 'disk: ssd' tutti nodes -o yaml
want 'tainted' k taint node "$node" only=this:NoSchedule
eventually 'key: only' tutti nodes -o yaml
want 'untainted' k taint node "$node" only-
want 'cordoned' k cordon "$node"
eventually 'SchedulingDisabled' k get node "$node"
want 'drained' k drain "$node" --ignore-daemonsets --delete-emptydir-data --force --timeout=90s
want 'uncordoned' k uncordon "$node"
want 'unlabeled' k label node "$node" disk-
want 'Capacity:' k describe node "$node"
want 'successfully rolled out' k rollout status deployment cache --timeout=90s

# More important Pods get the room of others: each of these fills more than half of a node.
cpu=$(k get node "$node" -o 'jsonpath={.status.allocatable.cpu}')
[[ $cpu = *m ]] && cpu=${cpu%m} || cpu=$((cpu * 1000))
# large NAME COUNT CLASS makes a Deployment of such Pods.
large() {
	printf 'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: %s}\nspec: {replicas: %s, selector: {matchLabels: {app: %s}}, template: {metadata: {labels: {app: %s}}, spec: {priorityClassName: %s, terminationGracePeriodSeconds: 1, containers: [{name: app, image: "redis:7", resources: {requests: {cpu: %sm}}}]}}}\n' \
		"$1" "$2" "$1" "$1" "$3" $((cpu * 6 / 10)) | kubectl apply -f -
}
want 'created' k create priorityclass minor --value=10
want 'created' k create priorityclass major --value=1000
want 'created' large minor $((HOSTS ? HOSTS : 1)) minor
want 'successfully rolled out' k rollout status deployment minor --timeout=90s
want 'created' large major 1 major
want 'successfully rolled out' k rollout status deployment major --timeout=90s
eventually 'Preempted .*pod/minor-' k get events
eventually 'FailedScheduling .*pod/minor-' k get events
eventually 'minor-.* Pending' k get pods
want 'deleted' k delete deployment minor major
want 'deleted' k delete priorityclass minor major

# What others made shows as a mirror pod, whose use is known; a drain by Tutti moves it, and evicts Pods.
want '^[a-z0-9]+' docker service create -d --name tally redis:7
eventually '^tally-1-.* 1/1 +Running' k get pods
eventually '^tally-1-.* [0-9]+m +[0-9]+Mi' k top pods
if ((HOSTS >= 3)); then
	node=$(k get pods -l tutti.run/workload=tally -o 'jsonpath={.items[0].spec.nodeName}')
	want '' tutti node drain "$node"
	eventually '^moved$' bash -c "kubectl get pods -o wide --no-headers | awk -v node=$node '/^tally-1-/ && \$3 == \"Running\" && \$7 != node { up = 1 } \$7 == node && \$3 == \"Running\" { left = 1 } END { print up && !left ? \"moved\" : \"not yet\" }'"
	want '' tutti node activate "$node"
	want 'successfully rolled out' k rollout status deployment cache --timeout=90s
fi
want 'tally' docker service rm tally
eventually '^gone$' bash -c "kubectl get pods -o name | grep -q tally || echo gone"

if ((HOSTS >= 3)); then
	before=$KUBECONFIG
	tutti host kill host-1 || failed=$((failed + 1))
	unset KUBECONFIG
	for ((i = 0; i < 100; i++)); do env && break || sleep 0.2; done
	printf 'host-1 has lost power: from %s to %s\n' "$before" "${KUBECONFIG:-nowhere}"
	eventually 'web' k get deployments
	eventually 'created|unchanged|configured' bash -c "kubectl create configmap after --from-literal=a=b --dry-run=client -o yaml | kubectl apply -f -"
	eventually 'web-[a-z0-9]+-[a-z0-9]+' k get pods
	eventually '^4 0$' bash -c "kubectl get pods -l app=cache -o wide --no-headers | awk '\$2 == \"1/1\" { up++ } /host-1/ && \$3 == \"Running\" { lost++ } END { print up+0, lost+0 }'"
	eventually '^PONG' k exec deployment/cache -- redis-cli -h cache ping
fi
want 'deleted' k delete deployment cache
want 'deleted' k delete job hello
want 'deleted' k delete deployment web
eventually 'No resources' k get pods
want 'deleted' k delete namespace other --timeout=60s
eventually 'ready' tutti kubernetes status
ps -eo rss,args | awk '/tutti-kub[e] --lifeline/ { printf "tutti-kube has %d MB of memory\n", $1 / 1024 }'
want 'no more' tutti kubernetes disable
printf '%d passed, %d failed\n' "$passed" "$failed"
((failed == 0))
