package agent

import (
	"fmt"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// Tasks share out the devices of their instance, and read them as they do from Docker.
func TestTasksReadTheirDevices(t *testing.T) {
	reserves := func(name string, gpus, licences int64) model.TaskSpec {
		custom := map[string]int64{"gpu": gpus}
		if licences > 0 {
			custom["my-licence"] = licences
		}
		return model.TaskSpec{Name: name, Reserve: model.Resources{Custom: custom}}
	}
	template := &model.Template{
		InitTasks: []model.TaskSpec{reserves("warm", 2, 0)},
		Tasks:     []model.TaskSpec{reserves("one", 1, 0), reserves("two", 2, 3), {Name: "none"}},
	}
	i := &model.Instance{Devices: map[string][]string{"gpu": {"a", "b", "c"}}}
	want := []string{"[DOCKER_RESOURCE_GPU=a,b]", "[DOCKER_RESOURCE_GPU=a]", "[DOCKER_RESOURCE_GPU=b,c DOCKER_RESOURCE_MY-LICENCE=3]", "[]"}
	for n, task := range append(template.InitTasks, template.Tasks...) {
		if got := fmt.Sprint(deviceEnv(i, template, &task)); got != want[n] {
			t.Errorf("%s reads %s, want %s", task.Name, got, want[n])
		}
	}
}
