package proto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	a, far, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(far)
	far.Close()
	if err != nil {
		t.Fatal(err)
	}
	b = c.(*net.UnixConn)
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestFrames(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 3<<20) // longer than any socket's buffer
	go func() {
		for _, send := range []struct {
			req   Request
			files []*os.File
		}{
			{Request{Op: OpWatch}, nil},
			{Request{Op: OpExec, ID: big, Grace: time.Second}, []*os.File{w}},
			{Request{Op: OpStop, Signal: 15}, nil},
		} {
			if err := Write(a, send.req, send.files...); err != nil {
				t.Error(err)
			}
		}
		w.Close()
		a.Close()
	}()
	var got []Request
	var files []*os.File
	for {
		var req Request
		f, err := Read(b, &req)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got, files = append(got, req), append(files, f...)
	}
	if len(got) != 3 || got[0].Op != OpWatch || got[1].ID != big || got[1].Grace != time.Second || got[2].Signal != 15 || len(files) != 1 {
		t.Fatalf("%d requests, %d files", len(got), len(files))
	}
	if _, err := files[0].WriteString("through the file"); err != nil {
		t.Fatal(err)
	}
	Close(files)
	if data, err := io.ReadAll(r); string(data) != "through the file" || err != nil {
		t.Errorf("%q %v", data, err)
	}
}

// TestSentFileStaysPollable: sending a file must not make its description
// blocking, for the sender goes on using it.
func TestSentFileStaysPollable(t *testing.T) {
	a, b := pair(t)
	near, far, err := Pipe(false)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if err := Write(a, Response{}, near); err != nil {
		t.Fatal(err)
	}
	var resp Response
	files, err := Read(b, &resp)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	defer Close(files)
	for _, f := range []*os.File{near, files[0]} {
		if err := f.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
	}
	near.Close()
}

func TestFilesAreClosedOnExec(t *testing.T) {
	a, b := pair(t)
	if err := Write(a, Response{}, os.Stderr); err != nil {
		t.Fatal(err)
	}
	var resp Response
	files, err := Read(b, &resp)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	defer Close(files)
	flags, err := unix.FcntlInt(files[0].Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %x %v", flags, err)
	}
}

// FuzzRead feeds anything to a reader: it must return, and must not allocate
// what a length only claims.
func FuzzRead(f *testing.F) {
	for _, body := range []string{`{}`, `{"Op":"run","Create":{"Spec":{}}}`, `[`, ``} {
		var head [4]byte
		binary.BigEndian.PutUint32(head[:], uint32(len(body)))
		f.Add(append(head[:], body...))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := pair(t)
		go func() {
			_, _ = io.Copy(a, bytes.NewReader(data)) // b may close first
			a.Close()
		}()
		for {
			var req Request
			files, err := Read(b, &req)
			Close(files)
			if err != nil {
				return
			}
		}
	})
}
