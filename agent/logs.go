package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// logLine is one line of a log file: "TIME STREAM F|P TEXT\n", the format of
// Kubernetes' container runtime interface. A P line is continued by the next of
// its stream.
type logLine struct {
	at      []byte
	stream  []byte
	partial bool
	text    []byte // without the line's end
}

// parseLogLine takes a line apart; ok is false for anything that is none.
func parseLogLine(line []byte) (l logLine, ok bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	var tag []byte
	if l.at, line, ok = bytes.Cut(line, []byte(" ")); !ok {
		return l, false
	}
	if l.stream, line, ok = bytes.Cut(line, []byte(" ")); !ok {
		return l, false
	}
	if tag, l.text, ok = bytes.Cut(line, []byte(" ")); !ok {
		return l, false
	}
	if s := string(l.stream); s != "stdout" && s != "stderr" {
		return l, false
	}
	tag, _, _ = bytes.Cut(tag, []byte(":"))
	switch string(tag) {
	case "F":
	case "P":
		l.partial = true
	default:
		return l, false
	}
	return l, true
}

func (l logLine) time() time.Time {
	t, err := time.Parse(time.RFC3339Nano, string(l.at))
	if err != nil {
		return time.Time{}
	}
	return t
}

// logOptions is what a reader of a log asks for.
type logOptions struct {
	follow     bool
	timestamps bool
	since      time.Time
	tail       int64  // lines from the end, -1: all
	limit      int64  // bytes, -1: no limit
	stream     string // "stdout" or "stderr", empty: both
}

// openLogs opens the files of one start's log, the oldest first. What rotation
// leaves beside the log itself has a suffix; its age is told by its first line.
// Files are told apart when they are open: a name may pass to the next file at
// any time. If it does so meanwhile, all is done again.
func openLogs(path string) (files []*os.File, err error) {
	for {
		before, err := filepath.Glob(path + ".*")
		if err != nil {
			return nil, err
		}
		if files, err = openAll(append(before, path)); err != nil {
			return nil, err
		}
		after, err := filepath.Glob(path + ".*")
		if err != nil {
			closeAll(files)
			return nil, err
		}
		if !slices.ContainsFunc(after, func(p string) bool { return !slices.Contains(before, p) }) {
			return files, nil
		}
		closeAll(files)
	}
}

// openAll opens the files that there are, the last last, the others by age. One
// that holds no log is left out, but for the last, which may still be empty.
func openAll(paths []string) ([]*os.File, error) {
	type aged struct {
		*os.File
		at time.Time
	}
	var old []aged
	var files []*os.File
	for i, p := range paths {
		f, err := openLog(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeAll(files)
			for _, o := range old {
				o.Close()
			}
			return nil, err
		}
		if i == len(paths)-1 {
			files = append(files, f)
		} else if at, ok := firstLineTime(f); ok {
			old = append(old, aged{f, at})
		} else {
			f.Close()
		}
	}
	sort.SliceStable(old, func(i, j int) bool { return old[i].at.Before(old[j].at) })
	for i, o := range old {
		files = slices.Insert(files, i, o.File)
	}
	return files, nil
}

// openLog opens one file. What is none, a link or a fifo that somebody has put
// there, is not there.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// logExists says whether a start has a log.
func logExists(path string) bool {
	files, err := openLogs(path)
	closeAll(files)
	return err == nil && len(files) > 0
}

func firstLineTime(f *os.File) (time.Time, bool) {
	buf := make([]byte, 80) // a time, a stream and a tag
	n, err := f.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return time.Time{}, false
	}
	l, ok := parseLogLine(buf[:n])
	if !ok {
		return time.Time{}, false
	}
	return l.time(), true
}

// logAttempt is the start that a log file's name tells of.
func logAttempt(name string) (int, bool) {
	number, _, _ := strings.Cut(name, ".log")
	n, err := strconv.Atoi(number)
	return n, err == nil
}

const logChunk = 64 << 10

// tailOffset is where the last n lines of a file begin, and how many the file
// has if they are fewer. A line in several parts is one line.
func tailOffset(f *os.File, n int64) (offset, have int64, err error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, 0, err
	}
	following := size
	// full counts the line that begins at an offset, from the last to the
	// first, and says whether it is the one too many.
	full := func(at int64, known []byte) bool {
		if following == size || !partialLine(f, at, known) { // the last counts, ended or not
			if have == n {
				return true
			}
			have++
		}
		following = at
		return false
	}
	buf := make([]byte, logChunk)
	for end := size; end > 0; {
		start := max(end-logChunk, 0)
		part := buf[:end-start]
		if _, err := f.ReadAt(part, start); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for i := len(part) - 1; i >= 0; i-- {
			if at := start + int64(i) + 1; part[i] == '\n' && at != size && full(at, part[i+1:]) {
				return following, n, nil
			}
		}
		end = start
	}
	if full(0, nil) {
		return following, n, nil
	}
	return 0, have, nil
}

// partialLine says whether the line at an offset is one that the next goes on
// with, so that it is counted with that.
func partialLine(f *os.File, at int64, known []byte) bool {
	const enough = 80 // a time, a stream and a tag
	if len(known) < enough {
		buf := make([]byte, enough)
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return false
		}
		known = buf[:n]
	}
	l, ok := parseLogLine(known)
	return ok && l.partial
}

// errLogLimit ends reading: all that was asked for has been written.
var errLogLimit = errors.New("limit reached")

// readLog writes a container's log to out. With follow it goes on until ended
// says that the container has, or ctx ends; changed receives when that may be.
func readLog(ctx context.Context, path string, o logOptions, out io.Writer, changed <-chan struct{}, ended func() bool) error {
	w := &logWriter{out: out, o: o, left: o.limit}
	var n *notifier
	if o.follow {
		var err error
		if n, err = watchDir(filepath.Dir(path)); err != nil {
			return err
		}
		defer n.close()
	}
	files, err := openLogs(path)
	if err != nil {
		return err
	}
	defer func() { closeAll(files) }()
	first, offset, err := tailFiles(files, o.tail)
	if err != nil {
		return err
	}
	closeAll(files[:first])
	files = files[first:]
	r := bufio.NewReaderSize(nil, logChunk)
	for i, f := range files {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return err
		}
		offset = 0
		r.Reset(f)
		if err := w.copy(r); err != nil || i == len(files)-1 && !o.follow {
			return ignoreLimit(err)
		}
	}
	for o.follow {
		over := ended() // looked at first: what it wrote before is still read
		next, err := nextLog(files, path)
		if err != nil {
			return err
		}
		// Looked at before too: a file that has a successor is complete, but
		// may have grown since it was last read.
		if len(files) > 0 {
			if err := w.copy(r); err != nil {
				closeAll(next)
				return ignoreLimit(err)
			}
		}
		if len(next) > 0 {
			closeAll(files)
			files = next
			r.Reset(files[0])
			continue
		}
		if over {
			return nil
		}
		w.flush()
		select {
		case <-ctx.Done():
			return nil
		case err := <-n.events:
			if err != nil {
				return err
			}
		case <-changed:
		}
	}
	return nil
}

func ignoreLimit(err error) error {
	if errors.Is(err, errLogLimit) {
		return nil
	}
	return err
}

// tailFiles says in which file, and where in it, the last n lines begin.
func tailFiles(files []*os.File, n int64) (first int, offset int64, err error) {
	if n < 0 {
		return 0, 0, nil
	}
	for i := len(files) - 1; i >= 0; i-- {
		if n == 0 {
			end, err := files[i].Seek(0, io.SeekEnd)
			return i, end, err
		}
		offset, have, err := tailOffset(files[i], n)
		if err != nil {
			return 0, 0, err
		}
		if have >= n {
			return i, offset, nil
		}
		n -= have
	}
	return 0, 0, nil
}

// nextLog is the file to read after the last of files, alone in its list: none
// while that is still being written.
func nextLog(files []*os.File, path string) ([]*os.File, error) {
	all, err := openLogs(path)
	if err != nil {
		return nil, err
	}
	next := 0 // if ours was removed in the meantime: the oldest that is left
	if len(files) > 0 {
		mine, err := files[len(files)-1].Stat()
		if err != nil {
			closeAll(all)
			return nil, err
		}
		for i, f := range all {
			if info, err := f.Stat(); err == nil && os.SameFile(info, mine) {
				next = i + 1
			}
		}
	}
	for i, f := range all {
		if i != next {
			f.Close()
		}
	}
	if next >= len(all) {
		return nil, nil
	}
	return all[next : next+1], nil
}

// logWriter writes lines as they were asked for.
type logWriter struct {
	out    io.Writer
	o      logOptions
	left   int64
	within map[string]bool // streams whose last line was partial
	rest   []byte          // the beginning of a line whose end is not written yet
}

// copy writes all whole lines that the reader has.
func (w *logWriter) copy(r *bufio.Reader) error {
	for {
		part, err := r.ReadSlice('\n')
		if err != nil {
			w.rest = append(w.rest, part...)
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		line := part
		if len(w.rest) > 0 {
			w.rest = append(w.rest, part...)
			line = w.rest
		}
		err = w.line(line)
		w.rest = w.rest[:0]
		if err != nil {
			return err
		}
	}
}

func (w *logWriter) line(line []byte) error {
	l, ok := parseLogLine(line)
	if !ok {
		return nil // torn by a power loss
	}
	stream := string(l.stream)
	if w.o.stream != "" && w.o.stream != stream || !w.o.since.IsZero() && l.time().Before(w.o.since) {
		return nil
	}
	if w.within == nil {
		w.within = map[string]bool{}
	}
	if w.o.timestamps && !w.within[stream] {
		if err := w.write(append(bytes.Clone(l.at), ' ')); err != nil {
			return err
		}
	}
	w.within[stream] = l.partial
	text := l.text
	if !l.partial {
		text = append(bytes.Clone(text), '\n')
	}
	return w.write(text)
}

func (w *logWriter) write(p []byte) error {
	if w.o.limit >= 0 {
		p = p[:min(int64(len(p)), w.left)]
		w.left -= int64(len(p))
	}
	if _, err := w.out.Write(p); err != nil {
		return err
	}
	if w.o.limit >= 0 && w.left == 0 {
		return errLogLimit
	}
	return nil
}

func (w *logWriter) flush() {
	if f, ok := w.out.(interface{ Flush() }); ok {
		f.Flush()
	}
}

// logTail is the end of a log as text.
func logTail(path string, lines, size int64) string {
	var b bytes.Buffer
	if err := readLog(context.Background(), path, logOptions{tail: lines, limit: -1}, &b, nil, nil); err != nil {
		return fmt.Sprintf("Error on reading termination message from logs: %v", err)
	}
	text := b.Bytes()
	return string(text[max(int64(len(text))-size, 0):])
}

// notifier tells when something in a folder was written, made, renamed or
// removed. The
// kernel wakes it; nothing is polled.
type notifier struct {
	file   *os.File
	events chan error
	done   chan struct{}
}

func watchDir(dir string) (*notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE); err != nil {
		file.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	n := &notifier{file: file, events: make(chan error, 1), done: make(chan struct{})}
	go n.run()
	return n, nil
}

// run ends when the file is closed.
func (n *notifier) run() {
	defer close(n.done)
	buf := make([]byte, 4096)
	for {
		_, err := n.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		select {
		case n.events <- err:
		default: // one is waiting already
		}
		if err != nil {
			return
		}
	}
}

func (n *notifier) close() {
	n.file.Close()
	<-n.done
}
