package compose

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/dotenv"
)

// knowRaw teaches compose-go the format raw of env_file, which it leaves to its users. What it has of
// formats is global to the process; adding one twice, or this one beside others, changes nothing.
var knowRaw = sync.OnceFunc(func() { dotenv.RegisterFormat("raw", readRaw) })

// readRaw reads NAME=value lines as they are: without quotes, without variables.
func readRaw(r io.Reader, name string, vars map[string]string, lookup func(string) (string, bool)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, given := strings.Cut(line, "=")
		if key == "" || strings.ContainsAny(key, " \t") {
			return fmt.Errorf("%s:%d: %q is not NAME=value", name, n, line)
		}
		if !given {
			if value, given = lookup(key); !given {
				continue
			}
		}
		vars[key] = value
	}
	return lines.Err()
}
