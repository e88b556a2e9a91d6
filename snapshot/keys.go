package snapshot

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// workFactor is the base-2 logarithm of scrypt's cost: 64 MiB of memory for a
// fraction of a second, which a machine of 1 GB can spare.
const workFactor = 16

// PassphraseRecipient encrypts for whoever knows the passphrase.
func PassphraseRecipient(passphrase string) (age.Recipient, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, errors.New("the passphrase is empty")
	}
	r.SetWorkFactor(workFactor)
	return r, nil
}

// PassphraseIdentity opens what was encrypted so.
func PassphraseIdentity(passphrase string) (age.Identity, error) {
	i, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, errors.New("the passphrase is empty")
	}
	return i, nil
}

// Recipients reads public keys (age1…), separated by space.
func Recipients(text string) ([]age.Recipient, error) {
	var all []age.Recipient
	for _, word := range strings.Fields(text) {
		r, err := age.ParseX25519Recipient(word)
		if err != nil {
			return nil, fmt.Errorf("%q is no recipient: `conclave snapshot key` makes one, which begins with age1", word)
		}
		all = append(all, r)
	}
	return all, nil
}

// Identities reads the file of a private key.
func Identities(from io.Reader) ([]age.Identity, error) {
	all, err := age.ParseIdentities(from)
	if err != nil {
		return nil, fmt.Errorf("the key file cannot be read: %w", err)
	}
	return all, nil
}

// NewKey makes a pair: the file to keep away from the cluster, and the recipient
// to tell it.
func NewKey() (file, recipient string, err error) {
	i, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", err
	}
	return fmt.Sprintf("# opens snapshots made for %s\n%s\n", i.Recipient(), i), i.Recipient().String(), nil
}
