//go:build linux

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine is the longest content of one entry; a longer line is cut into
// partial entries. Readers of the CRI log format expect no more.
const maxLine = 16 << 10

// Bounds of a log that names none.
const (
	defaultLogSize  = 10 << 20
	defaultLogFiles = 5
)

// attachPatience is how long an attached reader may keep a container's output
// waiting before it is left behind.
const attachPatience = 10 * time.Second

// output is where the streams of one container go: a log file, rotated by
// size, and whoever is attached.
type output struct {
	path     string
	maxSize  int64
	maxFiles int

	mu    sync.Mutex
	file  *os.File // nil if path is empty, or after a failed open
	size  int64
	sinks map[*sink]struct{}
	ended bool
}

// sink is an attached reader of one stream.
type sink struct {
	stream string
	file   *os.File
}

func newOutput(path string, maxSize int64, maxFiles int) (*output, error) {
	o := &output{
		path:     path,
		maxSize:  cmp.Or(maxSize, defaultLogSize),
		maxFiles: cmp.Or(maxFiles, defaultLogFiles),
		sinks:    map[*sink]struct{}{},
	}
	if path == "" {
		return o, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return o, o.open()
}

func (o *output) open() error {
	f, err := os.OpenFile(o.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("log: %w", err)
	}
	o.file, o.size = f, st.Size()
	return nil
}

// attach adds a reader; it is closed when the output ends, or at once if it
// has.
func (o *output) attach(s *sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		s.file.Close()
		return
	}
	o.sinks[s] = struct{}{}
}

func (o *output) detach(s *sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(s)
}

func (o *output) drop(s *sink) {
	if _, ok := o.sinks[s]; ok {
		delete(o.sinks, s)
		s.file.Close()
	}
}

// end closes the file and lets the attached readers go.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	for s := range o.sinks {
		o.drop(s)
	}
	if o.file != nil {
		o.file.Close()
		o.file = nil
	}
}

// tee hands raw output to the attached readers of a stream.
func (o *output) tee(stream string, data []byte) {
	o.mu.Lock()
	var to []*sink
	for s := range o.sinks {
		if s.stream == stream {
			to = append(to, s)
		}
	}
	o.mu.Unlock()
	for _, s := range to {
		err := s.file.SetWriteDeadline(time.Now().Add(attachPatience))
		if err == nil {
			_, err = s.file.Write(data)
		}
		if err != nil {
			o.detach(s)
		}
	}
}

// log appends finished entries to the file. A disk that is full loses lines;
// it must not stop the container.
func (o *output) log(entries []byte, now time.Time) {
	if o.path == "" || len(entries) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	if o.file != nil && o.size > 0 && o.size+int64(len(entries)) > o.maxSize {
		o.rotate(now)
	}
	if o.file == nil && o.open() != nil {
		return
	}
	n, err := o.file.Write(entries)
	o.size += int64(n)
	if err != nil && n > 0 && n < len(entries) && o.file.Truncate(o.size-int64(n)) == nil {
		o.size -= int64(n) // half an entry would spoil the next one
	}
}

// rotatedTime follows the file's name and a dot. It sorts as text.
const rotatedTime = "20060102-150405.000000000"

// rotate moves the file away and forgets the oldest ones. The next write opens
// a new file.
func (o *output) rotate(now time.Time) {
	o.file.Close()
	o.file = nil
	if err := os.Rename(o.path, o.path+"."+now.UTC().Format(rotatedTime)); err != nil {
		return
	}
	old, err := rotated(o.path)
	if err != nil {
		return
	}
	for len(old) > max(o.maxFiles-1, 0) {
		if err := os.Remove(old[0]); err != nil && !os.IsNotExist(err) {
			return
		}
		old = old[1:]
	}
}

// rotated returns the files that were rotated away, oldest first.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	prefix := filepath.Base(path) + "."
	out := slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		suffix, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok {
			return true
		}
		_, err := time.Parse(rotatedTime, suffix)
		return err != nil
	})
	names := make([]string, len(out))
	for i, e := range out {
		names[i] = filepath.Join(filepath.Dir(path), e.Name())
	}
	slices.Sort(names)
	return names, nil
}

// splitter cuts one stream into entries.
type splitter struct {
	stream string
	rest   []byte // of a line that has not ended, shorter than maxLine
}

// add appends to dst the entries that data completes. A line longer than
// maxLine becomes partial entries, the last of them full.
func (s *splitter) add(dst []byte, now time.Time, data []byte) []byte {
	for len(data) > 0 {
		line, full := data, false
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			line, full = data[:i], true
			data = data[i+1:]
		} else {
			data = nil
		}
		for len(s.rest)+len(line) > maxLine {
			n := maxLine - len(s.rest)
			dst = entry(dst, now, s.stream, 'P', s.rest, line[:n])
			s.rest, line = s.rest[:0], line[n:]
		}
		if full {
			dst = entry(dst, now, s.stream, 'F', s.rest, line)
			s.rest = s.rest[:0]
		} else {
			s.rest = append(s.rest, line...)
		}
	}
	if len(s.rest) == 0 {
		s.rest = nil // an idle stream holds no buffer
	}
	return dst
}

// end appends what is left when the stream has ended: a line without its end is
// a part, so that readers add none.
func (s *splitter) end(dst []byte, now time.Time) []byte {
	if len(s.rest) > 0 {
		dst = entry(dst, now, s.stream, 'P', s.rest, nil)
		s.rest = nil
	}
	return dst
}

// entry appends "TIME STREAM TAG CONTENT\n".
func entry(dst []byte, now time.Time, stream string, tag byte, a, b []byte) []byte {
	dst = now.AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, ' ')
	dst = append(dst, stream...)
	dst = append(dst, ' ', tag, ' ')
	dst = append(dst, a...)
	dst = append(dst, b...)
	return append(dst, '\n')
}

// buffers are shared by all streams of the process: an idle stream holds none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// pump copies a stream to the output until it ends or its deadline passes.
func pump(r *os.File, stream string, o *output) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	split := splitter{stream: stream}
	var entries []byte
	for {
		var buf *[]byte
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			// The buffer is taken only when there is something to read.
			if buf == nil {
				buf = buffers.Get().(*[]byte)
			}
			n, rerr = readFD(int(fd), *buf)
			if again(rerr) {
				buffers.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		if err == nil {
			err = rerr
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		now := time.Now().UTC()
		if n > 0 {
			o.tee(stream, (*buf)[:n])
			entries = split.add(entries[:0], now, (*buf)[:n])
			o.log(entries, now)
			if cap(entries) > 4<<10 {
				entries = nil
			}
		}
		if buf != nil {
			buffers.Put(buf)
		}
		if err != nil {
			o.log(split.end(nil, now), now)
			return
		}
	}
}
