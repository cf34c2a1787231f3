"""A session of Debian's python3-docker with the Docker API at a socket, named by the only argument; busybox:1 is loaded."""
import io
import sys
import tarfile
import threading

import docker

client = docker.from_env(environment={"DOCKER_HOST": "unix://" + sys.argv[1]}, timeout=60)
done = 0


def check(what, ok):
    global done
    if not ok:
        sys.exit("python: " + what)
    done += 1


check("ping", client.ping())
check("version", client.version()["Os"] == "linux")
check("info", client.info()["Containers"] >= 0)
check("images", any("busybox:1" in i.tags for i in client.images.list()))
check("image", client.images.get("busybox:1").attrs["Os"] == "linux")
check("history", client.images.get("busybox:1").history())
check("run", client.containers.run("busybox:1", "echo hello", remove=True) == b"hello\n")
try:
    client.containers.run("busybox:1", ["sh", "-c", "exit 3"], remove=True)
    check("a failure is told", False)
except docker.errors.ContainerError as e:
    check("exit status", e.exit_status == 3)
try:
    client.containers.get("nosuch")
    check("what is not there is not found", False)
except docker.errors.NotFound:
    check("not found", True)

events = client.events(decode=True, filters={"type": "container"})
seen = []


def follow():
    for e in events:
        seen.append(e["Action"])
        if e["Action"] == "destroy":
            return


thread = threading.Thread(target=follow, daemon=True)
thread.start()
net = client.networks.create("pynet", driver="bridge")
vol = client.volumes.create("pyvol", labels={"a": "b"})
c = client.containers.run(
    "busybox:1", ["sh", "-c", "echo ready; sleep 1000"], name="py", detach=True, network="pynet", labels={"who": "python"},
    volumes={"pyvol": {"bind": "/data", "mode": "rw"}}, environment={"A": "1"}, mem_limit="64m",
)
check("list", [x.name for x in client.containers.list(filters={"label": "who=python"})] == ["py"])
c.reload()
check("status", c.status == "running")
check("attributes", c.attrs["HostConfig"]["Memory"] == 64 << 20 and "A=1" in c.attrs["Config"]["Env"])
for line in c.logs(stream=True, follow=True):
    check("logs", line == b"ready\n")
    break
code, out = c.exec_run("echo inside")
check("exec", (code, out) == (0, b"inside\n"))
code, (stdout, stderr) = c.exec_run(["sh", "-c", "echo o; echo e >&2; exit 4"], demux=True)
check("both streams", (code, stdout, stderr) == (4, b"o\n", b"e\n"))
data = io.BytesIO()
with tarfile.open(fileobj=data, mode="w") as t:
    info = tarfile.TarInfo("put")
    info.size = 5
    t.addfile(info, io.BytesIO(b"there"))
check("put_archive", c.put_archive("/data", data.getvalue()))
chunks, stat = c.get_archive("/data/put")
got = tarfile.open(fileobj=io.BytesIO(b"".join(chunks))).extractfile("put").read()
check("get_archive", got == b"there" and stat["size"] == 5)
check("diff", isinstance(c.diff(), list))
check("top", c.top()["Processes"])
check("stats", c.stats(stream=False)["memory_stats"]["usage"] > 0)
c.pause()
c.reload()
check("pause", c.status == "paused")
c.unpause()
s = c.attach_socket(params={"stdout": 1, "stream": 1})
s.close()
c.rename("py2")
check("rename", client.containers.get("py2").id == c.id)
c.restart(timeout=0)
c.stop(timeout=0)
check("wait", c.wait()["StatusCode"] == 137)
c.start()
c.kill()
c.remove(force=True)
thread.join(30)
check("events", {"create", "start", "die", "destroy"} <= set(seen))
net.remove()
vol.remove()

service = client.services.create("busybox:1", command=["sleep", "1000"], name="pysvc", mode=docker.types.ServiceMode("replicated", replicas=2))
check("service", client.services.get("pysvc").name == "pysvc")
for _ in range(240):
    if sum(t["Status"]["State"] == "running" for t in service.tasks()) == 2:
        break
    threading.Event().wait(0.25)
check("tasks", sum(t["Status"]["State"] == "running" for t in service.tasks()) == 2)
check("scale", service.scale(1))
service.reload()
check("scaled", service.attrs["Spec"]["Mode"]["Replicated"]["Replicas"] == 1)
service.remove()
secret = client.secrets.create(name="pysecret", data=b"x")
check("secrets", any(x.name == "pysecret" for x in client.secrets.list()))
client.secrets.get(secret.id).remove()
check("nodes", client.nodes.list()[0].attrs["Status"]["State"] == "ready")
check("swarm", client.swarm.attrs["JoinTokens"]["Worker"])
check("df", "Images" in client.df())
print("python3-docker: %d checks passed" % done)
