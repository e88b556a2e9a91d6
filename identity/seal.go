package identity

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
)

// sealVersion is the first byte of what Seal makes: AES-256-GCM, a random
// nonce of 12 bytes, then the ciphertext. 2^32 seals under one key are safe; a
// cluster that writes a Secret each second needs a century for that.
const sealVersion = 1

// Sealer encrypts what rests on the masters' disks. Its key is in the
// authority's bundle, the same on every master.
type Sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*Sealer, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("the sealing key has %d bytes, not 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &Sealer{aead}, nil
}

// Seal encrypts plain. What it makes opens only with the same aad, which ought
// to name the object, so that sealed values cannot change places.
func (s *Sealer) Seal(plain, aad []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	out := make([]byte, 1+n, 1+n+len(plain)+s.aead.Overhead())
	out[0] = sealVersion
	if _, err := rand.Read(out[1:]); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return s.aead.Seal(out, out[1:], plain, aad), nil
}

// Open decrypts what Seal made.
func (s *Sealer) Open(sealed, aad []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < 1+n+s.aead.Overhead() {
		return nil, errors.New("open sealed data: too short")
	}
	if sealed[0] != sealVersion {
		return nil, fmt.Errorf("open sealed data: version %d is not known", sealed[0])
	}
	plain, err := s.aead.Open(nil, sealed[1:1+n], sealed[1+n:], aad)
	if err != nil {
		return nil, errors.New("open sealed data: it was changed, moved, or sealed with another key")
	}
	return plain, nil
}
