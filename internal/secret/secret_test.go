package secret

import (
	"bytes"
	"testing"
)

func TestSealedOpensOnlyWithKeyAndContext(t *testing.T) {
	key, data := NewKey(), []byte("correct horse")
	sealed, err := Seal(key, data, []byte("id"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, data) {
		t.Fatal("the secret is readable in its sealed form")
	}
	if got, err := Open(key, sealed, []byte("id")); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("opened %q, %v", got, err)
	}
	if _, err := Open(key, sealed, []byte("other")); err == nil {
		t.Fatal("it opened in another context")
	}
	if _, err := Open(NewKey(), sealed, []byte("id")); err == nil {
		t.Fatal("it opened with another key")
	}
	for i := range sealed {
		broken := bytes.Clone(sealed)
		broken[i] ^= 1
		if _, err := Open(key, broken, []byte("id")); err == nil {
			t.Fatalf("it opened with byte %d changed", i)
		}
	}
}

func TestDigestDependsOnKeyAndContent(t *testing.T) {
	a, b := NewKey(), NewKey()
	first, again := Digest(a, []byte("x")), Digest(a, []byte("x"))
	if first != again || first == Digest(a, []byte("y")) || first == Digest(b, []byte("x")) {
		t.Fatal("equal content, and only that, has equal digests under one key")
	}
}
