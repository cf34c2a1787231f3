// Command tutti-task is what runs beside every task: its supervisor, the first steps inside its
// container, and the reaping init process. It is a program of its own, carried within tutti, for
// its size: it is executed twice for each container, and the whole of tutti takes five times as
// long to its first line.
package main

import (
	"fmt"
	"os"

	"github.com/tutti-run/tutti/internal/driver/oci"
	"github.com/tutti-run/tutti/internal/driver/process"
)

func main() {
	if oci.Reexec(os.Args) || process.Reexec(os.Args) {
		return
	}
	fmt.Fprintln(os.Stderr, "tutti-task: this program is started by tutti, beside every task")
	os.Exit(2)
}
