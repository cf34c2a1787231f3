package compose_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/compose"
	"github.com/tutti-run/tutti/internal/model"
)

func service() (*model.Workload, *model.Service) {
	w := &model.Workload{Meta: model.Meta{Application: "shop", Name: "web"}, Type: model.ServiceWorkload, Count: 1}
	w.Update.Order, w.Rollback.Order = model.StartFirst, model.StartFirst
	w.Template.Tasks = []model.TaskSpec{{Name: "main", Image: "web", Reserve: model.Resources{NanoCPUs: 1e9}}}
	w.Template.Networks = []model.Attachment{{Network: "front"}}
	w.Template.Placement.Spread = []string{"node.labels.zone"}
	return w, &model.Service{Meta: model.Meta{Name: "web"}, Networks: []string{"front"}, Ports: []model.ServicePort{{Protocol: "tcp", Target: 80}}}
}

// TestLabelsAskForWhatAnAPIHasNoWordFor holds that the labels of a service mean what x-tutti means in a file.
func TestLabelsAskForWhatAnAPIHasNoWordFor(t *testing.T) {
	w, s := service()
	err := compose.ApplyLabels(map[string]string{
		"color":            "blue",
		"tutti.rebalance":  "true",
		"tutti.autoscale":  "{min: 2, max: 8, cpu: 60, down_after: 10m}",
		"tutti.routes":     "[shop.example/api, {host: other.example, insecure: true}]",
		"tutti.depends_on": "{db: {condition: service_healthy}, cache: {required: false}}",
		"tutti.devices":    `[/dev/fuse, "/dev/sda:/dev/xvda:r"]`,
		"tutti.privileged": "true",
		"tutti.priority":   "7",
		"tutti.spread":     "[node.hostname]",
		"tutti.balance":    "{sticky: 3h}",
		"tutti.hugepages":  "{2MB: 64m}",
		"tutti.clocks":     "{monotonic: 72h}",
	}, w, s)
	if err != nil {
		t.Fatal(err)
	}
	task := w.Template.Tasks[0]
	switch {
	case !w.Rebalance, w.Autoscale == nil || w.Autoscale.Max != 8 || w.Autoscale.DownAfter != 10*time.Minute || w.Count != 2,
		len(s.Routes) != 2 || s.Routes[0].Path != "/api" || s.Routes[0].Target != 80 || !s.Routes[1].Insecure,
		len(w.DependsOn) != 2 || w.DependsOn[1].Condition != model.DependencyHealthy || w.DependsOn[1].Optional || !w.DependsOn[0].Optional,
		task.Tuning == nil || task.Tuning.HugePages["2MB"] != 64<<20 || task.Tuning.Clocks == nil || task.Tuning.Clocks.Monotonic != 72*time.Hour,
		!task.Privileged, len(task.Devices) != 2 || task.Devices[1] != model.Device{Host: "/dev/sda", Container: "/dev/xvda", Permissions: "r"},
		w.Template.Placement.Priority != 7, strings.Join(w.Template.Placement.Spread, " ") != "node.labels.zone node.hostname", s.Balance.Sticky != 3*time.Hour:
		t.Errorf("workload %+v, service %+v", w, s)
	}
	w, s = service()
	if err := compose.ApplyLabels(map[string]string{"color": "blue"}, w, s); err != nil || w.Rebalance {
		t.Errorf("labels of others: %v, %+v", err, w)
	}
}

func TestLabelsThatMeanNothingAreNamed(t *testing.T) {
	for label, want := range map[string]string{
		"tutti.autoscal=true":                         "label tutti.autoscal: there is no such label; did you mean tutti.autoscale?",
		"tutti.autoscale={mx: 3}":                     "label tutti.autoscale: there is no key mx in it; did you mean",
		"tutti.autoscale={max: many}":                 "label tutti.autoscale",
		"tutti.autoscale=[":                           "is no YAML",
		"tutti.process=true":                          "there is no such label",
		"tutti.depends_on={db: {condition: perhaps}}": "db: a condition is one of service_started, service_healthy and service_completed_successfully",
		"tutti.devices=fuse":                          "is not a list",
		"tutti.devices=[fuse]":                        `"fuse" is not a path`,
		"tutti.privileged=perhaps":                    "perhaps is neither true nor false",
		"tutti.hugepages={2M: 64m}":                   "huge pages of \"2M\": a size is one that the kernel has, such as 2MB or 1GB",
		"tutti.hugepages={2MB: some}":                 "some is no amount of memory such as 64m",
		"tutti.clocks={monotonic: 3 days}":            "\"3 days\" is not like 72h or -90s",
		"tutti.parallelism=3":                         "it is for jobs",
	} {
		w, s := service()
		key, value, _ := strings.Cut(label, "=")
		err := compose.ApplyLabels(map[string]string{key: value}, w, s)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", label, err, want)
		}
	}
}
