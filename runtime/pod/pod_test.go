//go:build linux && cgo

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"conclave/runtime/internal/proto"
)

var testTime = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)

const stamp = "2024-05-06T07:08:09.123456789Z"

func TestSplitter(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for _, c := range []struct {
		name string
		in   []string
		want []string
	}{
		{"lines", []string{"a\nb\n"}, []string{"F a", "F b"}},
		{"in pieces", []string{"a", "b", "c\nd", "\n"}, []string{"F abc", "F d"}},
		{"no newline at the end", []string{"a\nb"}, []string{"F a", "P b"}},
		{"empty lines", []string{"\n\n"}, []string{"F ", "F "}},
		{"just as long", []string{long + "\n"}, []string{"F " + long}},
		{"too long", []string{long + "y\n"}, []string{"P " + long, "F y"}},
		{"much too long, in pieces", []string{long[:100], long + long[:50], "z\n"}, []string{"P " + long, "F " + long[:150] + "z"}},
		{"too long and cut", []string{long + long + "y"}, []string{"P " + long, "P " + long, "P y"}},
		{"carriage returns stay", []string{"a\r\n"}, []string{"F a\r"}},
	} {
		s := splitter{stream: "stdout"}
		var got []byte
		for _, in := range c.in {
			got = s.add(got, testTime, []byte(in))
		}
		got = s.end(got, testTime)
		var want strings.Builder
		for _, w := range c.want {
			fmt.Fprintf(&want, "%s stdout %s\n", stamp, w)
		}
		if string(got) != want.String() {
			t.Errorf("%s: %.300q", c.name, got)
		}
		if s.rest != nil {
			t.Errorf("%s: an idle stream holds a buffer", c.name)
		}
	}
}

// FuzzSplitter: however the bytes come in, the entries hold them all, none is
// too long, and only the last of a line that ended is full.
func FuzzSplitter(f *testing.F) {
	f.Add([]byte("a\nb\n\nc"), 1)
	f.Add(bytes.Repeat([]byte("0123456789"), 5000), 4096)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		step = max(1, step%(64<<10))
		s := splitter{stream: "stderr"}
		var got []byte
		for rest := data; len(rest) > 0; {
			n := min(step, len(rest))
			got = s.add(got, testTime, rest[:n])
			rest = rest[n:]
		}
		got = s.end(got, testTime)
		var back []byte
		prefix := []byte(stamp + " stderr ")
		for len(got) > 0 {
			i := bytes.IndexByte(got, '\n')
			line := got[:i]
			got = got[i+1:]
			if !bytes.HasPrefix(line, prefix) {
				t.Fatalf("entry %q", line)
			}
			tag, content := line[len(prefix)], line[len(prefix)+2:]
			if len(content) > maxLine || tag == 'P' && len(content) != maxLine && len(got) > 0 {
				t.Fatalf("%c entry of %d bytes", tag, len(content))
			}
			back = append(back, content...)
			if tag == 'F' {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, data) {
			t.Fatalf("%d bytes became %d", len(data), len(back))
		}
	})
}

func TestPump(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "0.log")
	o, err := newOutput(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far, err := proto.Pipe(true)
	if err != nil {
		t.Fatal(err)
	}
	attached, sinkFile, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o.attach(&sink{stream: "stdout", file: sinkFile})
	done := make(chan struct{})
	go func() {
		defer close(done)
		pump(near, "stdout", o)
		o.end()
	}()
	fmt.Fprint(far, "one\ntw")
	fmt.Fprint(far, "o\nrest")
	far.Close()
	<-done
	if got, err := io.ReadAll(attached); string(got) != "one\ntwo\nrest" || err != nil {
		t.Errorf("attached: %q %v", got, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(data)) {
		got = append(got, strings.Join(strings.Fields(line)[1:], " "))
	}
	if want := []string{"stdout F one", "stdout F two", "stdout P rest"}; !slices.Equal(got, want) {
		t.Errorf("log %q", got)
	}
	// A reader that comes after the end is let go at once.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o.attach(&sink{stream: "stdout", file: w})
	if got, err := io.ReadAll(r); len(got) > 0 || err != nil {
		t.Errorf("late: %q %v", got, err)
	}
}

func TestRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	other := path + ".not-a-time"
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := newOutput(path, 10, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		o.log([]byte(fmt.Sprintf("entry %d\n", i)), testTime.Add(time.Duration(i)*time.Second))
	}
	o.end()
	old, err := rotated(path)
	if err != nil || len(old) != 1 {
		t.Fatalf("rotated %v %v", old, err)
	}
	for file, want := range map[string]string{path: "entry 3\n", old[0]: "entry 2\n", other: ""} {
		if got, err := os.ReadFile(file); string(got) != want || err != nil {
			t.Errorf("%s: %q %v", file, got, err)
		}
	}
	// What is there already counts.
	o, err = newOutput(path, 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	o.log([]byte("entry 4\n"), testTime.Add(time.Minute))
	o.end()
	if old, err := rotated(path); len(old) != 0 || err != nil {
		t.Errorf("with one file to keep: %v %v", old, err)
	}
}

func TestLookUpUser(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The files lie behind symlinks that mean the image's root, not ours.
	write("real/passwd", "root:x:0:0::/root:\nweb:x:101:102::/home/web:\nbare:x:5:6:::\n")
	write("real/group", "root:x:0:\nwww:x:102:\nextra:x:103:web\n")
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"passwd", "group"} {
		if err := os.Symlink("/real/"+f, filepath.Join(root, "etc", f)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		spec  string
		extra []uint32
		want  identity
		fails string
	}{
		{"", nil, identity{0, 0, []uint32{0}, "/root"}, ""},
		{"web", nil, identity{101, 102, []uint32{102, 103}, "/home/web"}, ""},
		{"101", []uint32{9, 103}, identity{101, 102, []uint32{9, 102, 103}, "/home/web"}, ""},
		{"web:0", nil, identity{101, 0, []uint32{0}, "/home/web"}, ""},
		{"web:extra", nil, identity{101, 103, []uint32{103}, "/home/web"}, ""},
		{"4711", nil, identity{4711, 0, []uint32{0}, "/"}, ""},
		{"4711:42", nil, identity{4711, 42, []uint32{42}, "/"}, ""},
		{"bare", nil, identity{5, 6, []uint32{6}, "/"}, ""},
		{"nobody", nil, identity{}, `user "nobody"`},
		{"web:nogroup", nil, identity{}, "nogroup"},
	} {
		got, err := lookUpUser(root, c.spec, c.extra, false)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%q: %v", c.spec, err)
			}
			continue
		}
		if err != nil || got.uid != c.want.uid || got.gid != c.want.gid || got.home != c.want.home || !slices.Equal(got.groups, c.want.groups) {
			t.Errorf("%q: %+v %v", c.spec, got, err)
		}
	}
	if got, err := lookUpUser(root, "web", []uint32{9}, true); err != nil || !slices.Equal(got.groups, []uint32{9, 102}) {
		t.Errorf("only the groups that were asked for: %+v %v", got, err)
	}
	if got, err := lookUpUser(t.TempDir(), "7:8", nil, false); err != nil || got.uid != 7 || got.gid != 8 || got.home != "/" {
		t.Errorf("in an empty image: %+v %v", got, err)
	}
	if _, err := lookUpUser(t.TempDir(), "web", nil, false); err == nil {
		t.Error("a name in an empty image was resolved")
	}
}

// A log is written to no file that somebody has put a link to in its place.
func TestLogIsNoLink(t *testing.T) {
	dir := t.TempDir()
	path, host := filepath.Join(dir, "0.log"), filepath.Join(dir, "host")
	if err := os.WriteFile(host, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, path); err != nil {
		t.Fatal(err)
	}
	if o, err := newOutput(path, 10, 2); err == nil {
		o.log([]byte("entry\n"), testTime)
		o.end()
	}
	if got, err := os.ReadFile(host); len(got) > 0 || err != nil {
		t.Errorf("the file of the host: %q %v", got, err)
	}
}

func TestOverlayOptions(t *testing.T) {
	got := overlayOptions([]string{"b", "a:x"}, "/u,p", "/w")
	if want := `lowerdir=b:a\:x,upperdir=/u\,p,workdir=/w`; got != want {
		t.Error(got)
	}
}
