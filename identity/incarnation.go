package identity

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	incarnationFile   = "incarnation.json"
	incarnationPrefix = "conclave incarnation 1\n" // binds a signature to its purpose
)

// Incarnation is one life of the cluster. It is founded in the first, of
// number 0. A new one begins when a single node is made the only master because
// the majority is lost, or when a snapshot is restored: from then on what the
// masters of an older one have in their logs no longer counts. Only the
// cluster's CA can sign one, so that a node which is no master cannot begin it.
type Incarnation struct {
	Number uint64 `json:"number"`
	// ID is by chance: it tells apart two of the same number, made in two
	// parts of a network.
	ID        uint64    `json:"id"`
	Cluster   string    `json:"cluster"`
	Began     time.Time `json:"began,omitzero"`
	By        string    `json:"by"`   // the name of the node that began it
	From      string    `json:"from"` // what it began with, for people
	Signature []byte    `json:"signature,omitempty"`
}

// Compare orders incarnations: the greater one counts.
func (i Incarnation) Compare(o Incarnation) int {
	return cmp.Or(cmp.Compare(i.Number, o.Number), cmp.Compare(i.ID, o.ID))
}

// digest is what is signed.
func (i Incarnation) digest() ([]byte, error) {
	i.Signature = nil
	data, err := json.Marshal(i)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte(incarnationPrefix), data...))
	return sum[:], nil
}

// Proclaim begins the incarnation after the newest one known. Its number comes
// from the clock where that is ahead: whoever restores an old snapshot may not
// know of all that were since.
func (a *Authority) Proclaim(after Incarnation, by, from string) (Incarnation, error) {
	i := Incarnation{
		Number: max(after.Number+1, uint64(max(time.Now().Unix(), 0))), ID: binary.LittleEndian.Uint64(randomBytes(8)), Cluster: a.cluster.ID,
		Began: time.Now().UTC().Truncate(time.Second), By: by, From: from,
	}
	digest, err := i.digest()
	if err == nil {
		i.Signature, err = ecdsa.SignASN1(rand.Reader, a.caKey, digest)
	}
	if err != nil {
		return Incarnation{}, fmt.Errorf("sign the cluster's new incarnation: %w", err)
	}
	return i, nil
}

// Verify refuses an incarnation that the cluster's CA did not sign. The first
// one needs no signature.
func (c Cluster) Verify(i Incarnation) error {
	if i.Number == 0 {
		return nil
	}
	ca, err := parseCert(c.CA)
	if err != nil {
		return fmt.Errorf("the cluster's CA: %w", err)
	}
	digest, err := i.digest()
	if err != nil {
		return err
	}
	key, ok := ca.PublicKey.(*ecdsa.PublicKey)
	if !ok || i.Cluster != c.ID || !ecdsa.VerifyASN1(key, digest, i.Signature) {
		return errors.New("an incarnation of the cluster is not signed by its CA")
	}
	return nil
}

// Incarnation is the newest that this node has heard of.
func (n *Node) Incarnation() Incarnation {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.incarnation
}

// Adopt remembers an incarnation for good, if it is signed and newer than the
// one known; newer says so.
func (n *Node) Adopt(i Incarnation) (newer bool, err error) {
	cluster, ok := n.Cluster()
	if !ok {
		return false, errors.New("adopt an incarnation: this node is in no cluster")
	}
	if err := cluster.Verify(i); err != nil {
		return false, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if i.Compare(n.incarnation) <= 0 {
		return false, nil
	}
	data, err := json.MarshalIndent(i, "", "  ")
	if err == nil {
		err = writeFile(filepath.Join(n.dir, incarnationFile), data)
	}
	if err != nil {
		return false, fmt.Errorf("store the cluster's incarnation: %w", err)
	}
	n.incarnation = i
	return true, nil
}

// openIncarnation reads what Adopt stored.
func (n *Node) openIncarnation() error {
	path := filepath.Join(n.dir, incarnationFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n.incarnation)
	}
	if err == nil {
		err = n.member.Cluster.Verify(n.incarnation)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}
