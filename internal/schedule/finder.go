package schedule

// finder finds the nodes that have something under a name: it looks through all nodes for one name, or
// for all names at once where many are asked for.
type finder[V any] struct {
	nodes      []*NodeView
	of         func(*NodeView) map[string]V
	known      map[string][]int32
	everything bool // known has all names
	looked     int  // at nodes, for single names
	enough     int  // how many there are of all names: to look at more is a waste
}

// on lists the nodes that have something under a name.
func (f *finder[V]) on(name string) []int32 {
	list, ok := f.known[name]
	if ok || f.everything {
		return list
	}
	if f.known == nil {
		f.known = map[string][]int32{}
	}
	if f.looked == 0 {
		for _, n := range f.nodes {
			f.enough += len(f.of(n))
		}
	}
	if f.looked += len(f.nodes); f.looked <= len(f.nodes) || f.looked <= f.enough {
		for _, n := range f.nodes {
			if _, ok := f.of(n)[name]; ok {
				list = append(list, n.index)
			}
		}
		f.known[name] = list
		return list
	}
	f.everything = true
	clear(f.known)
	for _, n := range f.nodes {
		for name := range f.of(n) {
			f.known[name] = append(f.known[name], n.index)
		}
	}
	return f.known[name]
}

// add notes that a node has got something under a name.
func (f *finder[V]) add(name string, node int32) {
	if list, ok := f.known[name]; ok || f.everything {
		f.known[name] = append(list, node)
	}
}
