package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"filippo.io/age"
)

const (
	magic   = "conclave snapshot\n"
	version = 1
	// fieldLimit is far above what a header or the secrets take: it only keeps
	// a damaged length from asking for all memory.
	fieldLimit = 1 << 20
)

// Outcomes that callers tell apart.
var (
	ErrDamaged = errors.New("the snapshot is damaged")
	ErrForeign = errors.New("this is no snapshot of conclave")
	ErrKey     = errors.New("this key does not open the snapshot: it was made for another one")
)

// Header says what a snapshot is of.
type Header struct {
	Cluster  string    `json:"cluster"` // its id
	Revision uint64    `json:"revision"`
	Made     time.Time `json:"made"`
	Node     string    `json:"node"`    // on which it was made
	Version  string    `json:"version"` // of the conclave that made it
	// Incarnation of the cluster; a restore begins a later one.
	Incarnation uint64 `json:"incarnation,omitempty"`
}

// Name is what a snapshot is called where nobody says otherwise.
func (h Header) Name() string {
	return fmt.Sprintf("%s%s-%d%s", prefix(h.Cluster), h.Made.UTC().Format(nameTime), h.Revision, suffix)
}

const (
	nameTime = "20060102T150405Z"
	suffix   = ".snapshot"
)

// prefix is how the names of a cluster's snapshots begin.
func prefix(cluster string) string { return fmt.Sprintf("conclave-%.8s-", cluster) }

func appendField(b, field []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(field))), field...)
}

func readField(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > fieldLimit {
		return nil, fmt.Errorf("a field of %d bytes", n)
	}
	field := make([]byte, n)
	_, err := io.ReadFull(r, field)
	return field, err
}

// Content is a whole cluster, as it is read from one and put into a file.
type Content struct {
	Header  Header
	Secrets []byte
	State   io.Reader
}

// Stream writes a content plainly, for a pipe that nobody else hears.
func (c Content) Stream(to io.Writer) error {
	head, err := json.Marshal(c.Header)
	if err != nil {
		return err
	}
	if _, err := to.Write(appendField(appendField(nil, head), c.Secrets)); err != nil {
		return err
	}
	_, err = io.Copy(to, c.State)
	return err
}

// ReadStream is the other end of Stream. The state is read by the caller.
func ReadStream(from io.Reader) (c Content, err error) {
	r := bufio.NewReaderSize(from, 64<<10)
	head, err := readField(r)
	if err == nil {
		err = json.Unmarshal(head, &c.Header)
	}
	if err == nil {
		c.Secrets, err = readField(r)
	}
	c.State = r
	return c, err
}

// Write encrypts a content to recipients.
func Write(to io.Writer, c Content, recipients ...age.Recipient) error {
	if len(recipients) == 0 {
		return errors.New("a snapshot holds the cluster's keys: it needs a passphrase or a recipient to be encrypted for")
	}
	head, err := json.Marshal(c.Header)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum), 128<<10)
	out.WriteString(magic) // bufio keeps the first error for Flush
	out.WriteByte(version)
	out.Write(appendField(nil, head))
	sealed, err := age.Encrypt(out, recipients...)
	if err != nil {
		return fmt.Errorf("encrypt the snapshot: %w", err)
	}
	if err := c.Stream(sealed); err != nil {
		return err
	}
	if err := sealed.Close(); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = to.Write(sum.Sum(nil))
	return err
}

// readHead reads what stands before the encryption.
func readHead(r io.Reader) (h Header, raw []byte, err error) {
	start := make([]byte, len(magic)+1)
	if _, err := io.ReadFull(r, start); err != nil || string(start[:len(magic)]) != magic {
		return h, nil, ErrForeign
	}
	if v := start[len(magic)]; v != version {
		return h, nil, fmt.Errorf("the snapshot has version %d; this conclave reads %d: use a newer one", v, version)
	}
	raw, err = readField(r)
	if err == nil {
		err = json.Unmarshal(raw, &h)
	}
	if err != nil {
		return h, nil, fmt.Errorf("%w: its header cannot be read", ErrDamaged)
	}
	return h, raw, nil
}

// ReadHeader tells what a file says it is. Nobody vouches for it yet.
func ReadHeader(r io.Reader) (Header, error) {
	h, _, err := readHead(r)
	return h, err
}

// Open reads a whole file from its beginning and checks it, goes back, and hands
// out what it holds. The state's end is io.EOF only if it is the file's.
func Open(file io.ReadSeeker, identities ...age.Identity) (Content, error) {
	if err := again(file); err != nil {
		return Content{}, err
	}
	if _, _, err := readHead(file); err != nil {
		return Content{}, err
	}
	if err := again(file); err != nil {
		return Content{}, err
	}
	if _, err := io.Copy(io.Discard, newTail(file)); err != nil {
		return Content{}, err
	}
	if err := again(file); err != nil {
		return Content{}, err
	}
	r := newTail(file)
	_, head, err := readHead(r)
	if err != nil {
		return Content{}, err
	}
	opened, err := age.Decrypt(r, identities...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return Content{}, ErrKey
	}
	if err != nil {
		return Content{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	c, err := ReadStream(damageOf{opened})
	if err != nil {
		return Content{}, err
	}
	inside, err := json.Marshal(c.Header)
	if err != nil {
		return Content{}, err
	}
	if !bytes.Equal(inside, head) {
		return Content{}, fmt.Errorf("%w: its header was changed", ErrDamaged)
	}
	return c, nil
}

func again(file io.Seeker) error {
	_, err := file.Seek(0, io.SeekStart)
	return err
}

// damageOf calls every error damage: what is decrypted was read once already.
type damageOf struct{ io.Reader }

func (d damageOf) Read(b []byte) (int, error) {
	n, err := d.Reader.Read(b)
	if err != nil && err != io.EOF && !errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, err
}

// tail reads a file up to its checksum, which it compares at the end.
type tail struct {
	r   *bufio.Reader
	h   hash.Hash
	err error
}

func newTail(r io.Reader) *tail {
	return &tail{r: bufio.NewReaderSize(r, 64<<10), h: sha256.New()}
}

func (t *tail) Read(b []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n := min(len(b), 32<<10)
	peeked, err := t.r.Peek(n + sha256.Size)
	n = max(0, len(peeked)-sha256.Size)
	switch {
	case err != nil && err != io.EOF:
		t.err = err
		return 0, err
	case n == 0 && err == io.EOF:
		t.err = io.EOF
		if len(peeked) < sha256.Size || !bytes.Equal(t.h.Sum(nil), peeked) {
			t.err = fmt.Errorf("%w: its checksum does not match its content; nothing of it was used", ErrDamaged)
		}
		return 0, t.err
	}
	copy(b, peeked[:n])
	t.h.Write(b[:n])
	_, err = t.r.Discard(n)
	return n, err
}
