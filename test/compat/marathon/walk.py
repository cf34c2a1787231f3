"""Walks every call of Debian's python3-marathon against MARATHON_URL, and says which work.

A call that is to be refused is named with what the refusal says. The exit code is 1 when a call does
otherwise than it should, or when the client has one that is not walked.
"""

import logging
import os
import sys
import threading
import time
from collections import Counter

from marathon import MarathonClient
from marathon.models import MarathonApp, MarathonGroup

logging.disable(logging.CRITICAL)
client = MarathonClient(os.environ["MARATHON_URL"])
worked, refused, wrong = [], [], []


def call(name, *args, refuses=None, **kwargs):
    try:
        result = getattr(client, name)(*args, **kwargs)
    except Exception as e:  # whatever the client raises is what a user would meet
        if refuses and refuses in str(e):
            refused.append(name)
        else:
            wrong.append("%s: %s: %s" % (name, type(e).__name__, str(e)[:300]))
        return None
    if refuses:
        wrong.append("%s: was to be refused" % name)
    worked.append(name)
    return result


def wait(what, done):
    for _ in range(300):
        try:
            if done():
                return
        except Exception:
            pass  # it is asked again
        time.sleep(0.2)
    wrong.append("waited in vain: " + what)


def settled():
    wait("no deployment is left", lambda: not client.list_deployments())


def running(n):
    settled()
    wait("%d tasks run" % n, lambda: [t.state for t in client.list_tasks("/py/one")].count("TASK_RUNNING") == n)


def app(cmd, **more):
    return MarathonApp(cmd=cmd, cpus=0.05, mem=16, **more)


events = []


def follow():
    try:
        for e in client.event_stream():
            events.append(type(e).__name__)
    except Exception as e:
        wrong.append("event_stream: %s: %s" % (type(e).__name__, e))


threading.Thread(target=follow, daemon=True).start()
wait("the event stream is attached", lambda: "MarathonEventStreamAttached" in events)

for name in ("ping", "get_info", "get_leader", "get_metrics"):
    call(name)
call("create_app", "/py/one", app("sleep 1000", instances=2))
running(2)
everything = dict(embed_tasks=True, embed_counts=True, embed_deployments=True, embed_readiness=True,
                  embed_last_task_failure=True, embed_failures=True, embed_task_stats=True)
found = call("list_apps", app_id="py", cmd="sleep", **everything)
if not found or found[0].tasks_running != 2:
    wrong.append("list_apps gave %r" % found)
call("get_app", "/py/one", **everything)
call("update_app", "/py/one", app("sleep 2000", instances=2))
running(2)
call("update_apps", [app("sleep 1000", id="/py/two")])
settled()
call("scale_app", "/py/one", instances=3)
running(3)
call("restart_app", "/py/one")
running(3)
versions = call("list_versions", "/py/one") or [None]
call("get_version", "/py/one", versions[-1])
call("rollback_app", "/py/one", versions[-1])
running(2)
if client.get_app("/py/one").cmd != "sleep 1000":
    wrong.append("rollback_app left another command")
tasks = call("list_tasks", "/py/one")
call("list_endpoints")
call("kill_task", "/py/one", tasks[0].id)
running(2)
call("kill_given_tasks", [client.list_tasks("/py/one")[0].id], scale=True)
running(1)
call("kill_tasks", "/py/one")
running(1)
call("create_group", MarathonGroup(id="/pyg", apps=[app("sleep 100", id="/pyg/a")]))
settled()
call("get_group", "/pyg")
call("list_groups")
call("update_group", "/pyg", MarathonGroup(id="/pyg", apps=[app("sleep 200", id="/pyg/a")]))
settled()
call("scale_group", "/pyg", 2)
settled()
versions = client._do_request("GET", "/v2/groups/pyg/versions").json()
call("rollback_group", "/pyg", versions[-1])
settled()
if client.get_app("/pyg/a").cmd != "sleep 100":
    wrong.append("rollback_group left another command")
call("list_queue", embed_last_unused_offers=True)
call("reset_delay", "/py/one")
client.update_app("/py/one", app("sleep 3000", instances=2))
deployments = call("list_deployments")
if deployments:
    call("delete_deployment", deployments[0].id)
else:
    wrong.append("list_deployments: the deployment that was just begun is not listed")
settled()
callback = "an event callback (follow /v2/events) is not supported"
call("list_event_subscriptions", refuses=callback)
call("create_event_subscription", "http://127.0.0.1/", refuses=callback)
call("delete_event_subscription", "http://127.0.0.1/", refuses=callback)
call("delete_leader", refuses="abdication")
call("delete_group", "/pyg")
call("delete_app", "/py/one")
client.delete_app("/py/two")
settled()
wait("the event stream tells of it", lambda: events.count("MarathonAppTerminatedEvent") >= 3)
for kind in ("MarathonStatusUpdateEvent", "MarathonApiPostEvent", "MarathonDeploymentInfo", "MarathonDeploymentSuccess"):
    if kind not in events:
        wrong.append("event_stream: no %s came: %s" % (kind, Counter(events)))
worked.append("event_stream")

walked = set(worked) | set(refused)
calls = [n for n in dir(MarathonClient) if not n.startswith("_") and callable(getattr(MarathonClient, n))]
missing = [n for n in calls if n not in walked and not any(w.startswith(n + ":") for w in wrong)]
print("python3-marathon: %d calls: %d work, %d are refused by name (%s), %d go wrong; %d events of %d kinds" % (
    len(calls), len(set(worked)), len(refused), ", ".join(refused), len(wrong) + len(missing), len(events), len(set(events))))
for w in wrong:
    print("  " + w)
if missing:
    print("  not walked: " + ", ".join(missing))
sys.exit(1 if wrong or missing else 0)
