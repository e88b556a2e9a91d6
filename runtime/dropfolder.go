package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The drop folder is for images that are brought by hand: archives that lie in
// it are imported when the engine starts and when they appear, once each. What
// they hold is pinned while they lie there. What was imported is noted in
// images/dropped.json, so that a start reads no archive again.

// droppedFile is what became of one archive.
type droppedFile struct {
	Size     int64
	Modified time.Time
	Images   []string // IDs
}

func (s *store) droppedPath() string { return filepath.Join(s.dir, "dropped.json") }

// DropFolder is where archives of images are looked for.
func (c Config) DropFolder() string { return filepath.Join(c.Root, "images.d") }

// watchDrops imports what lies in the drop folder, and what comes, until ctx
// ends. The kernel tells of it: nothing polls.
func (e *Engine) watchDrops(ctx context.Context) {
	dir := e.cfg.DropFolder()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		e.log.Error("the folder of images to import cannot be made", "error", err)
		return
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		e.log.Error("the folder of images to import cannot be watched", "error", os.NewSyscallError("inotify_init1", err))
		return
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_MOVED_FROM); err != nil {
		e.log.Error("the folder of images to import cannot be watched", "error", os.NewSyscallError("inotify_add_watch", err))
		return
	}
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	buffer := make([]byte, 4<<10)
	for {
		if err := e.images.importDrops(ctx, dir); err != nil && ctx.Err() == nil {
			e.log.Error("images in the folder of those to import", "error", err)
		}
		if _, err := events.Read(buffer); err != nil { // whatever it was: all is looked at
			return
		}
	}
}

// importDrops imports the archives that are new or changed.
func (s *store) importDrops(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	before := s.dropped
	s.mu.Unlock()
	next := map[string]droppedFile{}
	var errs []error
	for _, entry := range entries {
		name := entry.Name()
		info, err := entry.Info()
		if err != nil || !info.Mode().IsRegular() || strings.HasPrefix(name, ".") || !isArchive(name) {
			continue
		}
		was, known := before[name]
		if known && was.Size == info.Size() && was.Modified.Equal(info.ModTime()) && s.haveAll(was.Images) {
			next[name] = was
			continue
		}
		images, err := s.importFile(ctx, filepath.Join(dir, name))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		d := droppedFile{Size: info.Size(), Modified: info.ModTime()}
		for _, i := range images {
			d.Images = append(d.Images, i.ID)
			s.log.Info("imported an image", "file", name, "image", i.ID, "names", i.Names)
		}
		next[name] = d
	}
	data, err := json.MarshalIndent(next, "", " ")
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(s.droppedPath()); err != nil && len(next) > 0 || err == nil && !bytes.Equal(old, data) {
		errs = append(errs, writeFileSync(s.droppedPath(), data, 0o600))
	}
	s.mu.Lock()
	s.dropped = next
	s.mu.Unlock()
	return errors.Join(errs...)
}

func isArchive(name string) bool {
	return slices.ContainsFunc([]string{".tar", ".tar.gz", ".tgz", ".tar.zst"}, func(end string) bool { return strings.HasSuffix(name, end) })
}

func (s *store) importFile(ctx context.Context, path string) ([]Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return s.importTar(ctx, f)
}

func (s *store) haveAll(ids []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(ids, func(id string) bool { return s.images[id] == nil })
}

// readDropped reads what became of the archives so far.
func (s *store) readDropped() {
	data, err := os.ReadFile(s.droppedPath())
	if err == nil {
		err = json.Unmarshal(data, &s.dropped)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("which archives were imported is not known: they are read again", "error", err)
		s.dropped = nil
	}
}

// pinned says whether an image lies in the drop folder. s.mu is held.
func (s *store) pinned(id string) bool {
	for _, d := range s.dropped {
		if slices.Contains(d.Images, id) {
			return true
		}
	}
	return false
}
