package docker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// TestInstructionsChangeAnImage holds that lines of a Dockerfile mean what they mean there, over what a container
// was made with, and that others are refused by their name.
func TestInstructionsChangeAnImage(t *testing.T) {
	s, err := instructions([]string{
		`CMD ["a", "b c"]`, "entrypoint run it", "ENV A=1", "ENV B two words", `LABEL x="y z"`, "EXPOSE 80 81/udp", "USER nobody", "WORKDIR /srv", "STOPSIGNAL SIGINT",
		`VOLUME ["/v"]`, "HEALTHCHECK CMD true",
	})
	if err != nil {
		t.Fatal(err)
	}
	under := settingsOf(&container.Config{Cmd: []string{"old"}, Env: []string{"A=0", "C=3", "constraint:node==a"}, Labels: map[string]string{"k": "v"}, User: "root"})
	got := overlay(under, s)
	if text := fmt.Sprintf("%q %q %q %v %q %s %s %s %q %s", got.Entrypoint, got.Cmd, got.Env, got.Labels, got.ExposedPorts, got.User, got.WorkingDir, got.StopSignal, got.Volumes, got.Health.Shell); text !=
		`["/bin/sh" "-c" "run it"] ["a" "b c"] ["A=1" "C=3" "B=two words"] map[k:v x:y z] ["80" "81/udp"] nobody /srv SIGINT ["/v"] true` {
		t.Error(text)
	}
	for line, want := range map[string]string{"FROM x": "a change of the image by FROM", "CMD": "is an instruction and what it says", "HEALTHCHECK NONE": "HEALTHCHECK other than CMD"} {
		if _, err := instructions([]string{line}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func FuzzInstructions(f *testing.F) {
	f.Add("CMD [\"a\"]")
	f.Add("ENV A=b")
	f.Add("HEALTHCHECK CMD x")
	f.Fuzz(func(_ *testing.T, line string) {
		_, _ = instructions([]string{line})
		_, _ = detachKeys(line)
		_, _ = psTitles(line)
		_, _ = classicConstraint(line)
		_, _ = bindMount(line)
		_, _ = tmpfs("/x", line)
		_, _ = nameToMake(line, "")
	})
}
