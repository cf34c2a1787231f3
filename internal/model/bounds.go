package model

// Bounds are what of a task may change while it runs: what it may use at most, and what is set aside for it.
type Bounds struct {
	Limit   Resources `json:"limit"`
	Reserve Resources `json:"reserve"`
	Tuning  *Tuning   `json:"tuning,omitempty"`
}

// Bounds are those of the task; what they refer to is not to be changed.
func (t *TaskSpec) Bounds() Bounds { return Bounds{t.Limit, t.Reserve, t.Tuning} }

// Unbind takes away what an instance follows while it runs: bounds of tasks, and when they are started again. Two
// templates that are alike then differ in nothing else.
func (t *Template) Unbind() {
	t.Restart = RestartPolicy{}
	for i := range t.Tasks {
		task := &t.Tasks[i]
		task.Limit.NanoCPUs, task.Limit.MemoryBytes, task.Limit.Pids = 0, 0, 0
		task.Reserve.NanoCPUs, task.Reserve.MemoryBytes = 0, 0
		if task.Tuning == nil {
			continue
		}
		u := *task.Tuning
		u.CPUs, u.MemoryNodes, u.CPUShares, u.SwapBytes, u.IOWeight = "", "", 0, 0, 0
		if task.Tuning = &u; u.Nothing() {
			task.Tuning = nil
		}
	}
}
