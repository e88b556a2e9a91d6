package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var logStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func logLines(from int, texts ...string) string {
	var b strings.Builder
	for i, text := range texts {
		tag := "F"
		if rest, ok := strings.CutPrefix(text, "P:"); ok {
			tag, text = "P", rest
		}
		fmt.Fprintf(&b, "%s stdout %s %s\n", logStart.Add(time.Duration(from+i)*time.Second).Format(time.RFC3339Nano), tag, text)
	}
	return b.String()
}

func writeLogs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "0.log")
}

func TestReadLog(t *testing.T) {
	path := writeLogs(t, map[string]string{
		"0.log":                            logLines(6, "six", "P:sev", "P:en", "", "eight"),
		"0.log.20260101-000006.000000000":  logLines(3, "three", "four", "five"),
		"0.log.20260101-000003.000000000":  logLines(0, "zero", "one", "two"),
		"0.log.tmp":                        "rubbish",
		"1.log":                            logLines(0, "another start"),
		"00.log.20260101-000003.000000000": logLines(0, "not ours"),
	})
	all := []string{"zero", "one", "two", "three", "four", "five", "six", "seven", "eight"}
	text := func(from int) string { return strings.Join(all[from:], "\n") + "\n" }
	for _, test := range []struct {
		name string
		o    logOptions
		want string
	}{
		{"all", logOptions{tail: -1, limit: -1}, text(0)},
		{"tail 0", logOptions{tail: 0, limit: -1}, ""},
		{"tail 1", logOptions{tail: 1, limit: -1}, text(8)},
		{"tail 2: a line in parts is one", logOptions{tail: 2, limit: -1}, text(7)},
		{"tail 3", logOptions{tail: 3, limit: -1}, text(6)},
		{"tail 4: into the file before", logOptions{tail: 4, limit: -1}, text(5)},
		{"tail 7: into the first", logOptions{tail: 7, limit: -1}, text(2)},
		{"tail 100", logOptions{tail: 100, limit: -1}, text(0)},
		{"since", logOptions{tail: -1, limit: -1, since: logStart.Add(4 * time.Second)}, text(4)},
		{"limit", logOptions{tail: -1, limit: 7}, "zero\non"},
		{"other stream", logOptions{tail: -1, limit: -1, stream: "stderr"}, ""},
		{"timestamps", logOptions{tail: 2, limit: -1, timestamps: true}, "2026-01-01T00:00:07Z seven\n2026-01-01T00:00:10Z eight\n"},
	} {
		var b bytes.Buffer
		if err := readLog(context.Background(), path, test.o, &b, nil, nil); err != nil || b.String() != test.want {
			t.Errorf("%s: %q, %v", test.name, b.String(), err)
		}
	}
}

// A tail must not depend on where the chunks end that it is looked for in.
func TestTailOfLongLines(t *testing.T) {
	var lines []string
	for i := range 40 {
		lines = append(lines, strings.Repeat(string(rune('a'+i%26)), i*997%(logChunk/4)))
	}
	path := writeLogs(t, map[string]string{"0.log": logLines(0, lines...)})
	for n := range len(lines) + 1 {
		var b bytes.Buffer
		want := strings.Join(lines[len(lines)-n:], "\n") + "\n"
		if n == 0 {
			want = ""
		}
		if err := readLog(context.Background(), path, logOptions{tail: int64(n), limit: -1}, &b, nil, nil); err != nil || b.String() != want {
			t.Fatalf("tail %d: %d bytes, want %d, %v", n, b.Len(), len(want), err)
		}
	}
}

// Following loses nothing over rotations, and ends with the container.
// What somebody has put in a log's place is not read through: a link to a file
// of the host (kubelet's logs of /var/log, as a pod with that folder found out),
// or a fifo that nobody writes to.
func TestLogIsNoLink(t *testing.T) {
	dir := t.TempDir()
	path, host := filepath.Join(dir, "0.log"), filepath.Join(dir, "host")
	line := "2026-01-02T03:04:05.000000001Z stdout F of the host\n"
	if err := errors.Join(os.WriteFile(host, []byte(line), 0o600), os.Symlink(host, path), os.Symlink(host, path+".20260101-000000.000000000")); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		var out bytes.Buffer
		err := readLog(t.Context(), path, logOptions{tail: -1, limit: -1}, &out, nil, nil)
		return fmt.Sprint(out.String(), err)
	}
	if got := read(); strings.Contains(got, "of the host") {
		t.Errorf("a link was read: %q", got)
	}
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := read(); strings.Contains(got, "of the host") {
		t.Errorf("a fifo was read: %q", got)
	}
}

func TestFollowLog(t *testing.T) {
	path := writeLogs(t, map[string]string{"0.log": logLines(0, "zero")})
	r, w := io.Pipe()
	changed := make(chan struct{}, 1)
	over := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		err := readLog(context.Background(), path, logOptions{tail: -1, limit: -1, follow: true}, w, changed, func() bool {
			select {
			case <-over:
				return true
			default:
				return false
			}
		})
		w.Close()
		done <- err
	}()
	var got strings.Builder
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 1024)
		for got.Len() < len(want) {
			n, err := r.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got.Write(buf[:n])
		}
		if got.String() != want {
			t.Fatalf("got %q, want %q", got.String(), want)
		}
	}
	expect("zero\n")
	appendTo := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	line := logLines(1, "one")
	appendTo(line[:10]) // half a line is not shown
	appendTo(line[10:])
	expect("zero\none\n")
	appendTo(logLines(2, "two"))
	if err := os.Rename(path, path+".20260101-000003.000000000"); err != nil {
		t.Fatal(err)
	}
	appendTo(logLines(3, "three"))
	if err := os.Rename(path, path+".20260101-000004.000000000"); err != nil {
		t.Fatal(err)
	}
	appendTo(logLines(4, "four"))
	expect("zero\none\ntwo\nthree\nfour\n")
	appendTo(logLines(5, "five"))
	close(over)
	changed <- struct{}{}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if got.String()+string(rest) != "zero\none\ntwo\nthree\nfour\nfive\n" {
		t.Errorf("at the end: %q", rest)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzLogLine(f *testing.F) {
	f.Add([]byte("2026-01-01T00:00:00Z stdout F text\n"))
	f.Add([]byte("2026-01-01T00:00:00Z stderr P:x "))
	f.Add([]byte("  F "))
	f.Fuzz(func(t *testing.T, line []byte) {
		l, ok := parseLogLine(line)
		if ok && !bytes.HasSuffix(bytes.TrimSuffix(line, []byte("\n")), l.text) {
			t.Errorf("%q has the text %q", line, l.text)
		}
	})
}

// A line that its program never ended is one all the same, and gets no end.
func TestTailOfAnUnfinishedLine(t *testing.T) {
	text := strings.TrimSuffix(logLines(0, "one", "two"), "\n")
	text = text[:strings.LastIndex(text, " F ")] + " P two\n"
	path := writeLogs(t, map[string]string{"0.log": text})
	for n, want := range []string{"", "two", "one\ntwo"} {
		var b bytes.Buffer
		if err := readLog(context.Background(), path, logOptions{tail: int64(n), limit: -1}, &b, nil, nil); err != nil || b.String() != want {
			t.Errorf("tail %d: %q %v", n, b.String(), err)
		}
	}
}
