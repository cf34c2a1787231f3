// Command marathon walks every call of go-marathon, a public client, against MARATHON_URL, and says which
// work. A call that is to be refused is named with what the refusal says. The exit code is 1 when a call does
// otherwise than it should, or when the client has one that is not walked.
package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	marathon "github.com/gambol99/go-marathon"
)

const patience = time.Minute

type walk struct {
	client          marathon.Marathon
	works, refusals []string
	own             []string // calls that fail by themselves, as they do with Marathon
	wrong           []string
	mu              sync.Mutex
	events          map[string]int
}

// call notes how a call went.
func (w *walk) call(name string, err error) {
	if err != nil {
		w.wrong = append(w.wrong, name+": "+err.Error())
		return
	}
	w.works = append(w.works, name)
}

// refused notes a call that is to fail with these words.
func (w *walk) refused(name, words string, err error) {
	switch {
	case err == nil:
		w.wrong = append(w.wrong, name+": was to be refused")
	case !strings.Contains(err.Error(), words):
		w.wrong = append(w.wrong, name+": is refused with "+err.Error())
	default:
		w.refusals = append(w.refusals, name)
	}
}

// fails notes a call that cannot work with Marathon since version 1.5.
func (w *walk) fails(name, words string, err error) {
	before := len(w.refusals)
	if w.refused(name, words, err); len(w.refusals) > before {
		w.refusals = w.refusals[:before]
		w.own = append(w.own, name)
	}
}

func (w *walk) wait(what string, done func() bool) {
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		if done() {
			return
		}
	}
	w.wrong = append(w.wrong, "waited in vain: "+what)
}

func (w *walk) settled() {
	w.wait("no deployment is left", func() bool {
		list, err := w.client.Deployments()
		return err == nil && len(list) == 0
	})
}

func (w *walk) running(id string, n int) {
	w.settled()
	w.wait(fmt.Sprintf("%d tasks of %s run", n, id), func() bool {
		tasks, err := w.client.Tasks(id)
		return err == nil && len(tasks.Tasks) == n && !slices.ContainsFunc(tasks.Tasks, func(t marathon.Task) bool { return t.State != "TASK_RUNNING" })
	})
}

func expect(ok bool, err error, otherwise string) error {
	if err == nil && !ok {
		return errors.New(otherwise)
	}
	return err
}

func newApp(id, cmd string, n int) *marathon.Application {
	a := new(marathon.Application).Name(id).Command(cmd).CPU(0.05).Memory(16).Count(n)
	return a
}

func main() {
	config := marathon.NewDefaultConfig()
	config.URL = os.Getenv("MARATHON_URL")
	config.EventsTransport = marathon.EventsTransportSSE
	client, err := marathon.NewClient(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	w := &walk{client: client, events: map[string]int{}}
	w.all()
	var missing []string
	calls := reflect.TypeFor[marathon.Marathon]()
	for i := range calls.NumMethod() {
		name := calls.Method(i).Name
		if !slices.Contains(w.works, name) && !slices.Contains(w.refusals, name) && !slices.Contains(w.own, name) && !slices.ContainsFunc(w.wrong, func(s string) bool { return strings.HasPrefix(s, name+":") }) {
			missing = append(missing, name)
		}
	}
	slices.Sort(w.works)
	fmt.Printf("go-marathon: %d calls: %d work, %d are refused by name (%s), %d fail with Marathon 1.5, too (%s), %d go wrong; events: %v\n",
		calls.NumMethod(), len(slices.Compact(w.works)), len(w.refusals), strings.Join(w.refusals, ", "), len(w.own), strings.Join(w.own, ", "), len(w.wrong)+len(missing), w.events)
	for _, s := range w.wrong {
		fmt.Println("  " + s)
	}
	if len(missing) > 0 {
		fmt.Println("  not walked:", strings.Join(missing, ", "))
	}
	if len(w.wrong)+len(missing) > 0 {
		os.Exit(1)
	}
}

func (w *walk) all() {
	c := w.client
	w.call("GetMarathonURL", expect(c.GetMarathonURL() != "", nil, "there is none"))
	ok, err := c.Ping()
	w.call("Ping", expect(ok, err, "it says no"))
	info, err := c.Info()
	w.call("Info", expect(err == nil && info.Version != "", err, "it has no version"))
	leader, err := c.Leader()
	w.call("Leader", expect(leader != "", err, "there is none"))
	heard, err := c.AddEventsListener(marathon.EventIDApplications | marathon.EventIDDeploymentSuccess | marathon.EventIDAPIRequest)
	w.call("AddEventsListener", err)
	go func() {
		for e := range heard {
			w.mu.Lock()
			w.events[e.Name]++
			w.mu.Unlock()
		}
	}()
	w.apps()
	w.tasks()
	w.groups()
	w.deployments()
	const callback = "an event callback (follow /v2/events) is not supported"
	_, err = c.Subscriptions()
	w.refused("Subscriptions", callback, err)
	w.refused("Subscribe", callback, c.Subscribe("http://127.0.0.1/"))
	w.refused("Unsubscribe", callback, c.Unsubscribe("http://127.0.0.1/"))
	_, err = c.AbdicateLeader()
	w.refused("AbdicateLeader", "abdication", err)
	w.wait("events have come", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.events["status_update_event"] > 0 && w.events["deployment_success"] > 0 && w.events["api_post_event"] > 0 && w.events["app_terminated_event"] > 0
	})
	c.RemoveEventsListener(heard)
	w.call("RemoveEventsListener", nil)
}

func (w *walk) apps() {
	c := w.client
	made, err := c.CreateApplication(newApp("/go/one", "sleep 1000", 2))
	w.call("CreateApplication", expect(err == nil && made.ID == "/go/one", err, "another was made"))
	w.call("WaitOnApplication", c.WaitOnApplication("/go/one", patience))
	w.running("/go/one", 2)
	names, err := c.ListApplications(url.Values{"id": {"go"}})
	w.call("ListApplications", expect(slices.Equal(names, []string{"/go/one"}), err, fmt.Sprint(names)))
	all, err := c.Applications(url.Values{"cmd": {"sleep"}, "embed": {"apps.tasks", "apps.counts"}})
	w.call("Applications", expect(err == nil && len(all.Apps) > 0 && len(all.Apps[0].Tasks) > 0, err, "they have no tasks"))
	one, err := c.Application("/go/one")
	w.call("Application", expect(err == nil && one.TasksRunning == 2 && *one.Instances == 2, err, "it is another"))
	by, err := c.ApplicationBy("/go/one", &marathon.GetAppOpts{Embed: []string{"app.taskStats"}})
	w.call("ApplicationBy", expect(err == nil && len(by.TaskStats) > 0, err, "it has no statistics"))
	well, err := c.ApplicationOK("/go/one")
	w.call("ApplicationOK", expect(well, err, "it is not"))
	_, err = c.UpdateApplication(newApp("/go/one", "sleep 2000", 2), false)
	w.call("UpdateApplication", err)
	w.running("/go/one", 2)
	_, err = c.ScaleApplicationInstances("/go/one", 3, false)
	w.call("ScaleApplicationInstances", err)
	w.running("/go/one", 3)
	_, err = c.RestartApplication("/go/one", false)
	w.call("RestartApplication", err)
	w.running("/go/one", 3)
	versions, err := c.ApplicationVersions("/go/one")
	if w.call("ApplicationVersions", expect(err == nil && len(versions.Versions) > 2, err, "there are too few")); err != nil {
		return
	}
	first := versions.Versions[len(versions.Versions)-1]
	has, err := c.HasApplicationVersion("/go/one", first)
	w.call("HasApplicationVersion", expect(has, err, "it has not"))
	then, err := c.ApplicationByVersion("/go/one", first)
	w.call("ApplicationByVersion", expect(err == nil && *then.Cmd == "sleep 1000", err, "it is another"))
	_, err = c.SetApplicationVersion("/go/one", &marathon.ApplicationVersion{Version: first})
	w.call("SetApplicationVersion", err)
	_, err = c.ApplicationDeployments("/go/one")
	w.call("ApplicationDeployments", err)
	w.running("/go/one", 2)
}

func (w *walk) tasks() {
	c := w.client
	list, err := c.Tasks("/go/one")
	w.call("Tasks", expect(err == nil && len(list.Tasks) == 2, err, "there are not two"))
	everything, err := c.AllTasks(&marathon.AllTasksOpts{Status: "running"})
	w.call("AllTasks", expect(err == nil && len(everything.Tasks) >= 2, err, "there are too few"))
	if len(list.Tasks) == 0 {
		return
	}
	_, err = c.KillTask(list.Tasks[0].ID, &marathon.KillTaskOpts{})
	w.call("KillTask", err)
	w.running("/go/one", 2)
	if list, err = c.Tasks("/go/one"); err == nil && len(list.Tasks) > 0 {
		w.call("KillTasks", c.KillTasks([]string{list.Tasks[0].ID}, &marathon.KillTaskOpts{Scale: true}))
	}
	w.running("/go/one", 1)
	_, err = c.KillApplicationTasks("/go/one", &marathon.KillApplicationTasksOpts{})
	w.call("KillApplicationTasks", err)
	w.running("/go/one", 1)
	_, err = c.Queue()
	w.call("Queue", err)
	w.call("DeleteQueueDelay", c.DeleteQueueDelay("/go/one"))

	box := newApp("/go/box", "sleep 1000", 1)
	box.Ports = nil
	box.Container = marathon.NewDockerContainer()
	box.Container.Docker.Container("busybox:1").Bridged().Expose(8080)
	if _, err := c.CreateApplication(box); err != nil {
		w.call("TaskEndpoints", err)
		return
	}
	w.running("/go/box", 1)
	_, err = c.TaskEndpoints("/go/box", 8080, false)
	w.fails("TaskEndpoints", "does not contain any port mappings", err) // it looks for them where they were before
	_, err = c.DeleteApplication("/go/box", false)
	w.call("DeleteApplication", err)
	w.settled()
}

func (w *walk) groups() {
	c := w.client
	group := marathon.NewApplicationGroup("/gog").App(newApp("/gog/a", "sleep 1000", 1))
	w.call("CreateGroup", c.CreateGroup(group))
	w.call("WaitOnGroup", c.WaitOnGroup("/gog", patience))
	w.settled()
	got, err := c.Group("/gog")
	w.call("Group", expect(err == nil && len(got.Apps) == 1, err, "it has no app"))
	got, err = c.GroupBy("/gog", &marathon.GetGroupOpts{Embed: []string{"group.apps", "group.apps.tasks"}})
	w.call("GroupBy", expect(err == nil && len(got.Apps) == 1 && len(got.Apps[0].Tasks) == 1, err, "its app has no task"))
	all, err := c.Groups()
	w.call("Groups", expect(err == nil && len(all.Groups) > 0, err, "there are none"))
	all, err = c.GroupsBy(&marathon.GetGroupOpts{Embed: []string{"group.groups"}})
	w.call("GroupsBy", expect(err == nil && len(all.Groups) > 0, err, "there are none"))
	has, err := c.HasGroup("/gog")
	w.call("HasGroup", expect(has, err, "it is not there"))
	_, err = c.UpdateGroup("/gog", marathon.NewApplicationGroup("/gog").App(newApp("/gog/a", "sleep 2000", 1)), false)
	w.call("UpdateGroup", err)
	w.settled()
	_, err = c.DeleteGroup("/gog", false)
	w.call("DeleteGroup", err)
	w.settled()
}

func (w *walk) deployments() {
	c := w.client
	begun, err := c.UpdateApplication(newApp("/go/one", "sleep 3000", 3), false)
	if err != nil {
		w.call("Deployments", err)
		return
	}
	has, err := c.HasDeployment(begun.DeploymentID)
	w.call("HasDeployment", expect(has, err, "the deployment that was just begun is not there"))
	list, err := c.Deployments()
	w.call("Deployments", expect(len(list) == 1, err, fmt.Sprintf("%d are listed", len(list))))
	back, err := c.DeleteDeployment(begun.DeploymentID, false)
	w.call("DeleteDeployment", err)
	if err == nil {
		w.call("WaitOnDeployment", c.WaitOnDeployment(back.DeploymentID, patience))
	}
	w.running("/go/one", 1)
	if _, err := c.DeleteApplication("/go/one", false); err != nil {
		w.call("DeleteApplication", err)
	}
	w.settled()
}
