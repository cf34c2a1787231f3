package model

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// Hash identifies a template by its content: equal templates have equal hashes. It is the
// first 16 hexadecimal digits of the SHA-256 of the template's JSON form, whose map keys are
// sorted.
func (t *Template) Hash() string {
	data, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("a template is plain data and always encodes: %v", err))
	}
	sum := sha256.Sum256(data)
	return fmt.Sprintf("%x", sum[:8])
}

// RevisionIDOf joins a workload ID and a template hash to a revision ID.
func RevisionIDOf(workloadID, hash string) string { return workloadID + "." + hash }
