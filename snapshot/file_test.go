package snapshot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
)

func testKey(t testing.TB) (age.Recipient, age.Identity) {
	t.Helper()
	file, recipient, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	identities, err := Identities(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	recipients, err := Recipients(recipient)
	if err != nil {
		t.Fatal(err)
	}
	return recipients[0], identities[0]
}

func testContent(size int) Content {
	state := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range state {
		state[i] = byte(r.Uint32())
	}
	return Content{
		Header:  Header{Cluster: "0123456789abcdef", Revision: 77, Made: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Node: "n1", Version: "v"},
		Secrets: []byte("the keys of the cluster"), State: bytes.NewReader(state),
	}
}

func testFile(t testing.TB, size int, to age.Recipient) []byte {
	t.Helper()
	var file bytes.Buffer
	if err := Write(&file, testContent(size), to); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// readAll is what a restore does with a file.
func readAll(file []byte, key age.Identity) (Content, []byte, error) {
	c, err := Open(bytes.NewReader(file), key)
	if err != nil {
		return c, nil, err
	}
	state, err := io.ReadAll(c.State)
	return c, state, err
}

func TestRoundTrip(t *testing.T) {
	to, key := testKey(t)
	for _, size := range []int{0, 1, 64 << 10, 200_001} {
		want := testContent(size)
		file := testFile(t, size, to)
		c, state, err := readAll(file, key)
		if err != nil {
			t.Fatal(err)
		}
		wantState, _ := io.ReadAll(want.State)
		if c.Header != want.Header || string(c.Secrets) != string(want.Secrets) || !bytes.Equal(state, wantState) {
			t.Errorf("%d bytes: came back as %+v with %d bytes", size, c.Header, len(state))
		}
		if h, err := ReadHeader(bytes.NewReader(file)); err != nil || h != want.Header {
			t.Errorf("the header alone: %+v, %v", h, err)
		}
		for _, secret := range []string{string(want.Secrets), string(wantState[:min(len(wantState), 64)])} {
			if len(secret) > 8 && bytes.Contains(file, []byte(secret)) {
				t.Error("the file shows what it should hide")
			}
		}
	}
	if name := testContent(0).Header.Name(); name != "conclave-01234567-20260102T030405Z-77.snapshot" {
		t.Errorf("it is called %s", name)
	}
}

func TestPassphrase(t *testing.T) {
	to, err := PassphraseRecipient("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	file := testFile(t, 1000, to)
	for passphrase, want := range map[string]error{"correct horse": nil, "wrong horse": ErrKey} {
		key, err := PassphraseIdentity(passphrase)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := readAll(file, key); !errors.Is(err, want) {
			t.Errorf("with %q: %v", passphrase, err)
		}
	}
	_, other := testKey(t)
	if _, _, err := readAll(file, other); !errors.Is(err, ErrKey) {
		t.Errorf("with a key file: %v", err)
	}
	if err := Write(io.Discard, testContent(1)); err == nil {
		t.Error("it was written without encryption")
	}
}

// TestDamage changes every byte, cuts everywhere, and appends.
func TestDamage(t *testing.T) {
	to, key := testKey(t)
	file := testFile(t, 1500, to)
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		if _, _, err := readAll(bad, key); err == nil || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) && i != len(magic) {
			t.Fatalf("byte %d of %d was changed: %v", i, len(file), err)
		}
		if _, _, err := readAll(file[:i], key); err == nil {
			t.Fatalf("%d of %d bytes were enough", i, len(file))
		}
	}
	if _, _, err := readAll(append(bytes.Clone(file), 0), key); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte was appended: %v", err)
	}
}

// TestForgery makes the checksum right again after each change: then the
// encryption refuses.
func TestForgery(t *testing.T) {
	to, key := testKey(t)
	file := testFile(t, 1500, to)
	body := len(file) - sha256.Size
	fix := func(b []byte) []byte {
		sum := sha256.Sum256(b)
		return append(b, sum[:]...)
	}
	for i := range body {
		bad := bytes.Clone(file[:body])
		bad[i] ^= 1 << (i % 8)
		if _, _, err := readAll(fix(bad), key); err == nil {
			t.Fatalf("byte %d of %d was forged", i, body)
		}
		if _, _, err := readAll(fix(bytes.Clone(file[:i])), key); err == nil {
			t.Fatalf("it was cut to %d of %d bytes, with a new checksum", i, body)
		}
	}
	if _, _, err := readAll(fix(append(bytes.Clone(file[:body]), 1)), key); err == nil {
		t.Error("something was appended, with a new checksum")
	}
}

func FuzzOpen(f *testing.F) {
	to, key := testKey(f)
	whole := testFile(f, 300, to)
	f.Add(whole)
	f.Add([]byte(magic))
	f.Add(whole[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := readAll(data, key); err == nil && !bytes.Equal(data, whole) {
			t.Error("something else was taken for a snapshot")
		}
	})
}
