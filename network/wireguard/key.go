package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Key is a key of X25519 (RFC 7748), private or public.
type Key [32]byte

// String is how WireGuard's tools write a key.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// ParseKey reads what String writes.
func ParseKey(text string) (k Key, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != len(k) || Key(raw) == k {
		return k, fmt.Errorf("%q is not a key of WireGuard: 32 bytes in base64", text)
	}
	return Key(raw), nil
}

// Public is the public half of a private key.
func (k Key) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return Key{} // of 32 bytes all are keys
	}
	return Key(private.PublicKey().Bytes())
}

// OpenKey reads the private key in a file that only root may read, and makes
// one where there is none.
func OpenKey(path string) (k Key, err error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		if k, err = ParseKey(strings.TrimSpace(string(raw))); err != nil { // which does not show it
			return k, fmt.Errorf("%s holds no key of WireGuard: remove it, and a new one is made", path)
		}
		return k, os.Chmod(path, 0o600)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return k, fmt.Errorf("reading the key of WireGuard: %w", err)
	}
	_, _ = rand.Read(k[:]) // crypto/rand never fails
	k[0], k[31] = k[0]&248, k[31]&127|64
	if err := writeKey(path, k); err != nil {
		return k, fmt.Errorf("storing the key of WireGuard: %w", err)
	}
	return k, nil
}

// writeKey writes a file that is there whole or not at all.
func writeKey(path string, k Key) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // for us alone
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(k.String() + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
