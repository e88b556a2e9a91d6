package snapshot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// placeSuite is what every Place has to do.
func placeSuite(t *testing.T, p Place, other func(name string)) {
	ctx := t.Context()
	made := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	var names []string
	for i, size := range []int{0, 10, 3 << 20} {
		h := Header{Cluster: "0123456789", Revision: uint64(i), Made: made.Add(time.Duration(i) * time.Hour)}
		names = append([]string{h.Name()}, names...)
		data := bytes.Repeat([]byte{byte('a' + i)}, size)
		for range 2 { // the same again replaces it
			if err := p.Put(ctx, h.Name(), bytes.NewReader(data), int64(size)); err != nil {
				t.Fatal(err)
			}
		}
		from, err := p.Get(ctx, h.Name())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(from)
		if err = errors.Join(err, from.Close()); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d of %d bytes came back: %v", len(got), size, err)
		}
	}
	other("notes.txt")
	other("conclave-01234567-yesterday-3.snapshot")
	list := func() (all []string) {
		entries, err := p.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, e.Name)
		}
		return all
	}
	if got := list(); !slices.Equal(got, names) {
		t.Errorf("it lists %v, not %v", got, names)
	}
	entries, err := p.List(ctx)
	if err != nil || entries[0].Size != 3<<20 || entries[0].Revision != 2 || !entries[0].Made.Equal(made.Add(2*time.Hour)) {
		t.Errorf("the newest is %+v, %v", entries[0], err)
	}
	if err := p.Delete(ctx, names[1]); err != nil {
		t.Fatal(err)
	}
	if got := list(); !slices.Equal(got, []string{names[0], names[2]}) {
		t.Errorf("after a deletion it lists %v", got)
	}
	if _, err := p.Get(ctx, names[1]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("fetching what was deleted: %v", err)
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	if all, err := Folder(dir).List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("a folder that is not there: %v, %v", all, err)
	}
	placeSuite(t, Folder(dir), func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	// A write that fails leaves nothing.
	fails := io.NewSectionReader(failing{}, 0, 10)
	if err := Folder(dir).Put(t.Context(), "broken", fails, 10); err == nil {
		t.Error("a file that cannot be read was stored")
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*broken*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no") }

// s3Server runs a real S3 server, built by `make s3`, with a bucket "backups".
func s3Server(t *testing.T) (s S3, root string) {
	t.Helper()
	binary, err := filepath.Abs("../bin/s3")
	if err == nil {
		_, err = os.Stat(binary)
	}
	if err != nil {
		t.Skip("there is no S3 server to test with: run `make s3`")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	root = t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "backups"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var said bytes.Buffer
	server := exec.CommandContext(ctx, binary, "--access", "someone", "--secret", "something", "--port", address, "posix", "--sidecar", t.TempDir(), root)
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = server.Wait() // it was killed
		if t.Failed() {
			t.Log(said.String())
		}
	})
	s = S3{Endpoint: "http://" + address, AccessKey: "someone", SecretKey: "something"}
	for {
		if answer, err := http.Get(s.Endpoint); err == nil {
			answer.Body.Close()
			return s, root
		}
		select {
		case <-t.Context().Done():
			t.Fatal("the S3 server does not answer")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestS3(t *testing.T) {
	s, root := s3Server(t)
	for _, where := range []string{"s3://backups/", "s3://backups/edge site/a+b/"} {
		t.Run(where, func(t *testing.T) {
			p, name, err := Locate(where, s)
			if err != nil || name != "" || p.String() != where {
				t.Fatalf("%v, %q, %v", p, name, err)
			}
			placeSuite(t, p, func(name string) {
				if err := p.Put(t.Context(), name, strings.NewReader("x"), 1); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
	if _, err := os.Stat(filepath.Join(root, "backups", "edge site", "a+b", "notes.txt")); err != nil {
		t.Errorf("the name is not what it should be: %v", err)
	}
	for what, change := range map[string]func(*S3){
		"SignatureDoesNotMatch": func(s *S3) { s.SecretKey = "wrong" },
		"NoSuchBucket":          func(s *S3) { s.Bucket = "nowhere" },
		"connection refused":    func(s *S3) { s.Endpoint = "http://127.0.0.1:1" },
	} {
		bad := s
		bad.Bucket, bad.Region = "backups", "us-east-1"
		change(&bad)
		if _, err := bad.List(t.Context()); err == nil || !strings.Contains(err.Error(), what) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("want %s: %v", what, err)
		}
	}
}

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	keys := S3{AccessKey: "a", SecretKey: "b"}
	for _, c := range []struct{ text, place, name, err string }{
		{"s3://b/k", "s3://b/", "k", ""},
		{"s3://b/p/q/k", "s3://b/p/q/", "k", ""},
		{"s3://b", "s3://b/", "", ""},
		{"s3://b/p/", "s3://b/p/", "", ""},
		{"s3://", "", "", "names no bucket"},
		{dir, dir, "", ""},
		{dir + "/x", dir, "x", ""},
		{"x", ".", "x", ""},
		{"new/", "new/", "", ""},
	} {
		p, name, err := Locate(c.text, keys)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || err == nil && (p.String() != c.place || name != c.name) {
			t.Errorf("%s: %v, %q, %v", c.text, p, name, err)
		}
	}
	if _, _, err := Locate("s3://b/k", S3{}); err == nil || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v", err)
	}
	if _, _, err := Locate("s3://b/k", S3{AccessKey: "a", SecretKey: "b", Endpoint: "minio:9000"}); err == nil {
		t.Error("an endpoint that is none was taken")
	}
}
