package docker

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// idEncoding is how model.NewID writes its bytes.
var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// containerID is the 64 hexadecimal digits by which a container is known: the bytes of our own ID,
// the task's number, and digits that depend on both.
func containerID(id string, task int) string {
	sum := sha256.Sum256([]byte(id + string(rune('0'+task))))
	raw, err := idEncoding.DecodeString(id)
	if err != nil || len(raw) != 15 {
		raw = sum[16:31]
	}
	return hex.EncodeToString(raw) + hex.EncodeToString([]byte{byte(task)}) + hex.EncodeToString(sum[:16])
}

// ownerOf is the inverse of containerID: the ID of the workload or instance.
func ownerOf(id string) string {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) != 32 {
		return ""
	}
	owner := idEncoding.EncodeToString(raw[:15])
	if containerID(owner, int(raw[15])) != id {
		return ""
	}
	return owner
}

func shortID(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// application is where the containers of `docker run` are.
const application = "containers"

// dockerName is the name that Docker's clients know an object by.
func dockerName(m *model.Meta) string {
	if m.Application == "" || m.Application == application {
		return m.Name
	}
	return m.Application + "_" + m.Name
}

// stackLabel puts an object into the application of a stack.
const stackLabel = "com.docker.stack.namespace"

// placeOf is the application and name of an object that Docker's clients call name.
func placeOf(name string, labels map[string]string) (app, local string) {
	stack := labels[stackLabel]
	if rest, ok := strings.CutPrefix(name, stack+"_"); stack != "" && ok && rest != "" && model.CheckName(stack) == nil {
		return stack, rest
	}
	return "", name
}

// extension is the name of what this package keeps with objects.
const extension = "docker"
