"""Walks every call of Debian's python3-docker against DOCKER_HOST, and says which work.

A call that is to be refused is named with what the refusal says. The exit code is 1 when a call does
otherwise than it should, or when the client has one that is not walked.
"""

import io
import os
import sys
import tarfile
import time

import docker
from docker.types import (
    ContainerSpec, EndpointSpec, IPAMConfig, IPAMPool, LogConfig, Mount, Placement, Resources, RestartPolicy, ServiceMode, TaskTemplate, UpdateConfig,
)

client = docker.APIClient(os.environ["DOCKER_HOST"], version="auto", timeout=60)
image = sys.argv[1]
worked, refused, wrong, walked = [], [], [], set()


def call(name, /, *args, refuses=None, expect=None, title=None, **kwargs):
    """Makes a call; its answer must be as expect says, or its refusal must say what refuses says."""
    walked.add(name)
    title = title or name
    try:
        answer = getattr(client, name)(*args, **kwargs)
        if name in STREAMS and not isinstance(answer, (bytes, str)):
            answer = list(answer)
    except Exception as e:  # whatever the client raises is what a user would meet
        if refuses and refuses in str(e):
            refused.append(title)
        else:
            wrong.append("%s: %s: %s" % (title, type(e).__name__, str(e)[:300]))
        return None
    if refuses:
        wrong.append("%s: it was to be refused with %r, and answered %r" % (title, refuses, answer))
    elif expect and not expect(answer):
        wrong.append("%s: it answered %.300r" % (title, answer))
    else:
        worked.append(title)
    return answer


STREAMS = {"export", "get_image", "pull", "push", "build", "load_image"}


def archive(name, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def until(what, enough, seconds=60):
    for _ in range(seconds * 5):
        if enough():
            return
        time.sleep(0.2)
    wrong.append("%s does not come about" % what)


NOT_YET = "not supported by Tutti"

# The host.
call("ping", expect=lambda a: a is True)
call("version", expect=lambda a: a["ApiVersion"])
call("info", expect=lambda a: a["Swarm"]["LocalNodeState"] == "active")
call("df", expect=lambda a: "Volumes" in a)
call("login", "someone", password="secret", registry="127.0.0.1:1", reauth=True, refuses="127.0.0.1:1")
call("reload_config")

# Images.
call("images", expect=lambda a: any(image in i["RepoTags"] for i in a))
call("inspect_image", image, expect=lambda a: a["Os"] == "linux")
call("history", image, expect=lambda a: len(a) > 0)
call("tag", image, "walked", "1", expect=lambda a: a is True)
saved = call("get_image", "walked:1", expect=lambda a: sum(map(len, a)) > 1000)
call("remove_image", "walked:1")
call("load_image", b"".join(saved or []))
call("remove_image", "walked:1", title="remove_image, once more")
call("inspect_distribution", image, expect=lambda a: a["Descriptor"]["digest"])
call("search", "busybox", refuses=NOT_YET)
call("build", fileobj=io.BytesIO(b"FROM " + image.encode()), refuses=NOT_YET)
call("prune_builds", refuses=NOT_YET)
call("pull", "127.0.0.1:1/nosuch:1", refuses="127.0.0.1:1", stream=False)
call("push", "127.0.0.1:1/nosuch:1", expect=lambda a: "does not exist locally" in str(a))
call("prune_images", expect=lambda a: "SpaceReclaimed" in a)
call("import_image_from_data", archive("etc/hello", b"hello\n"), repository="walked", tag="data")
# It says that it sends chunks, and sends none.
call("import_image_from_stream", io.BytesIO(archive("etc/hello", b"hello\n")), repository="walked", tag="stream", refuses="chunked line")
with open("/tmp/walked.tar", "wb") as f:
    f.write(archive("etc/hello", b"hello\n"))
call("import_image_from_file", "/tmp/walked.tar", repository="walked", tag="file")
call("import_image", "/tmp/walked.tar", repository="walked", tag="any")
call("import_image_from_url", "http://127.0.0.1:1/x.tar", repository="walked", tag="url", refuses="127.0.0.1:1")
call("import_image_from_image", image, repository="walked", tag="image", refuses="busybox:image")  # which is what the client pulls

# Volumes and networks.
call("create_volume", "walk", labels={"walk": "1"}, expect=lambda a: a["Name"] == "walk")
call("volumes", filters={"label": "walk"}, expect=lambda a: len(a["Volumes"]) == 1)
call("inspect_volume", "walk", expect=lambda a: a["Driver"] == "local")
net = call("create_network", "walk", ipam=IPAMConfig(pool_configs=[IPAMPool(subnet="10.66.0.0/24")]), labels={"walk": "1"}, expect=lambda a: a["Id"])
call("create_network", "other", expect=lambda a: a["Id"], title="create_network, without a subnet")
call("networks", names=["walk"], expect=lambda a: len(a) == 1)
call("inspect_network", "walk", expect=lambda a: a["IPAM"]["Config"][0]["Subnet"] == "10.66.0.0/24")

# A container's life.
host = call(
    "create_host_config", binds={"walk": {"bind": "/data", "mode": "rw"}}, mem_limit="64m", restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
    port_bindings={80: 18099}, network_mode="walk", cap_add=["NET_ADMIN"], ulimits=[docker.types.Ulimit(name="nofile", soft=64, hard=128)],
    log_config=LogConfig(type="json-file"), dns=["192.0.2.1"], extra_hosts={"a.example": "192.0.2.9"}, tmpfs={"/scratch": "size=1m"}, init=True,
)
endpoint = call("create_endpoint_config", aliases=["walker"])
networking = call("create_networking_config", {"walk": endpoint})
c = call(
    "create_container", image, ["sh", "-c", "echo out; echo err >&2; sleep 1000"], name="walk", environment={"A": "b"}, labels={"walk": "1"}, ports=[80],
    host_config=host, networking_config=networking, healthcheck={"test": ["CMD", "true"], "interval": 10**9}, stop_signal="SIGKILL",
)
call("create_container_config", image, "true", expect=lambda a: a["Image"] == image)
call("create_container_from_config", client.create_container_config(image, "true", host_config=client.create_host_config()), "made", expect=lambda a: a["Id"])
call("remove_container", "made")
call("start", "walk")
call("inspect_container", "walk", expect=lambda a: a["State"]["Running"] and a["HostConfig"]["Memory"] == 64 << 20)
call("containers", filters={"label": "walk"}, expect=lambda a: len(a) == 1 and a[0]["Names"] == ["/walk"])
call("port", "walk", 80, expect=lambda a: a[0]["HostPort"] == "18099")
until("a healthy container", lambda: client.inspect_container("walk")["State"]["Health"]["Status"] == "healthy")
call("logs", "walk", stdout=True, stderr=True, expect=lambda a: b"out\n" in a and b"err\n" in a)
call("top", "walk", expect=lambda a: len(a["Processes"]) > 0)
call("stats", "walk", stream=False, expect=lambda a: a["memory_stats"]["usage"] > 0)
call("put_archive", "walk", "/tmp", archive("in", b"given\n"), expect=lambda a: a is True)
call("get_archive", "walk", "/tmp/in", expect=lambda a: a[1]["name"] == "in" and b"given" in b"".join(a[0]))
call("diff", "walk", expect=lambda a: {"Path": "/tmp/in", "Kind": 1} in a)
e = call("exec_create", "walk", ["sh", "-c", "cat /tmp/in; exit 3"], expect=lambda a: a["Id"]) or {"Id": "none"}
call("exec_start", e["Id"], expect=lambda a: a == b"given\n")
call("exec_inspect", e["Id"], expect=lambda a: a["ExitCode"] == 3)
e = client.exec_create("walk", ["sh", "-c", "echo o; echo e >&2"])
call("exec_start", e["Id"], demux=True, expect=lambda a: a == (b"o\n", b"e\n"), title="exec_start, both streams")
e = client.exec_create("walk", "sh", stdin=True, tty=True)
call("exec_start", e["Id"], detach=True, tty=True, title="exec_start, detached")
call("exec_resize", e["Id"], height=20, width=80)
call("resize", "walk", 20, 80)
call("pause", "walk")
call("unpause", "walk")
call("rename", "walk", "walked")
call("rename", "walked", "walk", title="rename, back")
call("update_container", "walk", restart_policy={"Name": "no"}, mem_limit="96m", memswap_limit="192m", expect=lambda a: "Warnings" in a)
client.create_container(image, "true", name="fresh")
call("update_container", "fresh", mem_limit="96m", memswap_limit="192m", expect=lambda a: "Warnings" in a, title="update_container, before its start")
client.remove_container("fresh")
call("connect_container_to_network", "walk", "other", aliases=["there"])
call("disconnect_container_from_network", "walk", "walk")
call("commit", "walk", repository="walked", tag="commit", changes='CMD ["cat", "/tmp/in"]', expect=lambda a: a["Id"])
call("export", "walk", expect=lambda a: sum(map(len, a)) > 1000)
call("restart", "walk", timeout=0)
call("kill", "walk", "SIGUSR1")
call("stop", "walk", timeout=0)
call("wait", "walk", expect=lambda a: a["StatusCode"] == 137)
call("remove_container", "walk", force=True, title="remove_container, by force")
socket_box = client.create_container(image, ["sh", "-c", "read line; echo got $line"], stdin_open=True, name="talk", host_config=client.create_host_config(network_mode="none"))
sock = call("attach_socket", "talk", params={"stdin": 1, "stdout": 1, "stream": 1})
client.start("talk")
if sock:
    sock._sock.sendall(b"word\n")
    heard = b""
    sock._sock.settimeout(30)
    while b"got word\n" not in heard:
        more = sock._sock.recv(100)
        if not more:
            wrong.append("attach_socket: it heard %r only" % heard)
            break
        heard += more
until("the end of what talks", lambda: client.inspect_container("talk")["State"]["Status"] == "exited" and b"got word" in client.logs("talk"))
# The client loses what comes together with the headers of the answer.
call("attach", "talk", logs=True, stream=False, expect=lambda a: a == b"" or b"got word" in a, title="attach, with what was said")
call("attach_socket", "talk", params={"logs": 1, "stdout": 1, "stream": 1}, ws=True, refuses="scheme http+docker is invalid",  # the client's own, over Unix sockets
     title="attach_socket, by WebSocket")
client.remove_container("talk", force=True)
call("prune_containers", expect=lambda a: "ContainersDeleted" in a)

# Events, of what was above.
call("events", since=1, until=time.time(), decode=True, expect=lambda a: {"create", "start", "die", "destroy"} <= {e["Action"] for e in a})

# Swarm mode.
call("inspect_swarm", expect=lambda a: a["JoinTokens"]["Worker"])
call("init_swarm", refuses="already part of a swarm")
call("join_swarm", ["127.0.0.1:2377"], "token", refuses="already part of a swarm")
call("leave_swarm", refuses="swarm")
call("create_swarm_spec", name="default", expect=lambda a: a["Name"] == "default")
call("update_swarm", client.inspect_swarm()["Version"]["Index"], rotate_worker_token=True, expect=lambda a: a is True)
call("get_unlock_key", expect=lambda a: "UnlockKey" in a)
call("unlock_swarm", "SWMKEY-1-none", refuses="not locked")
nodes = call("nodes", expect=lambda a: len(a) > 0)
node = nodes[0]["ID"]
call("inspect_node", node, expect=lambda a: a["Spec"]["Role"] == "manager")
spec = dict(client.inspect_node(node)["Spec"])
spec["Labels"] = {"walk": "1"}
call("update_node", node, client.inspect_node(node)["Version"]["Index"], spec, expect=lambda a: a is True)
call("remove_node", node, refuses="not down")
s = call("create_secret", "walk", b"hidden", labels={"walk": "1"}, expect=lambda a: a["ID"]) or {}
call("secrets", filters={"name": "walk"}, expect=lambda a: len(a) == 1)
call("inspect_secret", s.get("ID"), expect=lambda a: a["Spec"]["Name"] == "walk")
f = call("create_config", "walk", b"shown", labels={"walk": "1"}, expect=lambda a: a["ID"]) or {}
call("configs", filters={"name": "walk"}, expect=lambda a: len(a) == 1)
call("inspect_config", f.get("ID"), expect=lambda a: a["Spec"]["Name"] == "walk")
template = TaskTemplate(
    ContainerSpec(
        image, ["sh", "-c", "echo served; sleep 1000"], env=["A=b"], labels={"walk": "1"}, mounts=[Mount("/data", "walk")],
        secrets=[docker.types.SecretReference(s.get("ID"), "walk")], configs=[docker.types.ConfigReference(f.get("ID"), "walk")],
        healthcheck=docker.types.Healthcheck(test=["CMD", "true"], interval=10**9),
    ),
    resources=Resources(mem_limit=64 << 20), restart_policy=RestartPolicy("any", delay=10**9), placement=Placement(constraints=["node.role==manager"]), networks=["walk"],
)
made = call(
    "create_service", template, name="walk", labels={"walk": "1"}, mode=ServiceMode("replicated", 2), update_config=UpdateConfig(parallelism=2, order="stop-first"),
    endpoint_spec=EndpointSpec(ports={18098: 80}), expect=lambda a: a["ID"],
)
until("a service of two", lambda: sum(t["Status"]["State"] == "running" for t in client.tasks(filters={"service": "walk"})) == 2)
call("services", filters={"name": "walk"}, expect=lambda a: len(a) == 1)
info = call("inspect_service", "walk", insert_defaults=True, expect=lambda a: a["Spec"]["Mode"]["Replicated"]["Replicas"] == 2)
tasks = call("tasks", filters={"service": "walk", "desired-state": "running"}, expect=lambda a: len(a) == 2)
call("inspect_task", tasks[0]["ID"], expect=lambda a: a["Status"]["State"] == "running")
call("service_logs", "walk", stdout=True, expect=lambda a: b"served" in b"".join(a))
call("update_service", "walk", info["Version"]["Index"], mode=ServiceMode("replicated", 1), fetch_current_spec=True)
until("a service of one", lambda: len(client.tasks(filters={"service": "walk", "desired-state": "running"})) == 1)
call("remove_service", "walk", expect=lambda a: a is True)
until("the end of its containers", lambda: not client.containers(all=True, filters={"label": "walk"}))
call("remove_secret", s.get("ID"), expect=lambda a: a is True)
call("remove_config", f.get("ID"), expect=lambda a: a is True)

# What is left.
call("remove_network", "walk")
call("prune_networks", expect=lambda a: "other" in a["NetworksDeleted"])
call("remove_volume", "walk")
call("prune_volumes", expect=lambda a: "VolumesDeleted" in a)
for tag in ("data", "stream", "file", "any", "image", "commit"):
    try:
        client.remove_image("walked:" + tag)
    except docker.errors.APIError:
        pass

# Plugins.
call("plugins", expect=lambda a: a == [])
for name, args in {
    "plugin_privileges": ("nosuch",), "pull_plugin": ("nosuch", []), "create_plugin": ("nosuch", "/tmp/walked"), "inspect_plugin": ("nosuch",), "enable_plugin": ("nosuch",),
    "disable_plugin": ("nosuch",), "configure_plugin": ("nosuch", {}), "upgrade_plugin": ("nosuch", "nosuch", []), "push_plugin": ("nosuch",), "remove_plugin": ("nosuch",),
}.items():
    if name in ("pull_plugin", "upgrade_plugin"):
        walked.add(name)
        try:
            list(getattr(client, name)(*args))
            wrong.append(name + " was not refused")
        except docker.errors.APIError as e:
            (refused if NOT_YET in str(e) else wrong).append(name)
        continue
    if name == "create_plugin":
        os.makedirs("/tmp/walked/rootfs", exist_ok=True)
        with open("/tmp/walked/config.json", "w") as out:
            out.write("{}")
    call(name, *args, refuses="page not found" if name == "push_plugin" else NOT_YET)  # it asks for a path that no Engine has

helpers = set(dir(__import__("requests").Session)) | {"close", "get_adapter", "create_host_config"}
calls = {n for n in dir(client) if not n.startswith("_") and callable(getattr(client, n)) and n not in helpers}
for name in sorted(calls - walked):
    wrong.append("%s is not walked" % name)
print("python3-docker %s: %d calls, %d made: %d work, %d are refused by name (%s), %d otherwise" % (
    docker.__version__, len(calls), len(worked) + len(refused) + len(wrong), len(worked), len(refused), ", ".join(refused), len(wrong)))
for line in wrong:
    print("  " + line)
sys.exit(1 if wrong else 0)
