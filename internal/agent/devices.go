package agent

import (
	"maps"
	"slices"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// giveDevices gives a task the devices that it names, by path or as CDI does, and those that it was
// given of a kind that CDI knows.
func (w *worker) giveDevices(t *model.TaskSpec, task *driver.Task) (err error) {
	as, _, _ := w.desired()
	var named []string
	for _, d := range t.Devices {
		if _, _, ok := model.CDIName(d.Host); ok {
			named = append(named, d.Host)
		} else {
			task.Devices = append(task.Devices, d)
		}
	}
	if w.agent.Devices != nil {
		for _, kind := range slices.Sorted(maps.Keys(t.Reserve.Custom)) {
			for _, name := range as.Instance.DevicesOf(as.Template, t.Name, kind) {
				if device := kind + "=" + name; w.agent.Devices.Has(device) {
					named = append(named, device)
				}
			}
		}
	}
	if len(named) == 0 {
		return nil
	}
	if w.agent.Devices == nil {
		return fault.New(fault.Unsupported, "node %s knows no device %s", w.agent.NodeName, named[0])
	}
	asked, err := w.agent.Devices.Inject(named)
	if err == nil {
		task.Injected = &driver.Injected{Spec: asked}
	}
	return err
}
