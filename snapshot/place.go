package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Entry is one snapshot as a listing shows it: what its name says.
type Entry struct {
	Name     string
	Size     int64
	Made     time.Time
	Revision uint64
}

// entryOf reads a name that Header.Name made.
func entryOf(name string, size int64) (Entry, bool) {
	rest, ours := strings.CutPrefix(name, "conclave-")
	rest, whole := strings.CutSuffix(rest, suffix)
	parts := strings.Split(rest, "-")
	if !ours || !whole || len(parts) != 3 {
		return Entry{}, false
	}
	made, err := time.Parse(nameTime, parts[1])
	if err != nil {
		return Entry{}, false
	}
	revision, err := strconv.ParseUint(parts[2], 10, 64)
	return Entry{Name: name, Size: size, Made: made, Revision: revision}, err == nil
}

// Place is a folder of snapshots.
type Place interface {
	// Put stores a file under a name, whole or not at all.
	Put(ctx context.Context, name string, file io.ReadSeeker, size int64) error
	// Get reads a file: fs.ErrNotExist.
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	// List are the snapshots there, the newest first. Other files are not
	// listed.
	List(ctx context.Context) ([]Entry, error)
	Delete(ctx context.Context, name string) error
	String() string
}

// sorted are entries with the newest first.
func sorted(all []Entry) []Entry {
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(b.Made.Compare(a.Made), cmp.Compare(b.Revision, a.Revision), cmp.Compare(a.Name, b.Name))
	})
	return all
}

const s3Scheme = "s3://"

// Locate splits what a user typed into the place and the name of the file in
// it; the name is empty where it ends with a slash, or is a folder that exists.
func Locate(text string, s3 S3) (Place, string, error) {
	if rest, ok := strings.CutPrefix(text, s3Scheme); ok {
		bucket, key, _ := strings.Cut(rest, "/")
		if bucket == "" {
			return nil, "", fmt.Errorf("%q names no bucket: write s3://BUCKET/KEY", text)
		}
		s3.Bucket = bucket
		s3.Prefix, key = path.Split(key)
		if err := s3.check(); err != nil {
			return nil, "", err
		}
		return &s3, key, nil
	}
	if info, err := os.Stat(text); err == nil && info.IsDir() || strings.HasSuffix(text, "/") {
		return Folder(text), "", nil
	}
	return Folder(filepath.Dir(text)), filepath.Base(text), nil
}

// Folder is a place on the disk.
type Folder string

func (f Folder) String() string { return string(f) }

// Put writes beside the name first. It makes the folder if it is not there.
func (f Folder) Put(_ context.Context, name string, file io.ReadSeeker, _ int64) (err error) {
	if err := os.MkdirAll(string(f), 0o700); err != nil {
		return err
	}
	out, err := os.CreateTemp(string(f), "."+name+"-*") // made with 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(out.Name())
		}
	}()
	_, err = io.Copy(out, file)
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(string(f), name), err)
	}
	if err := os.Rename(out.Name(), filepath.Join(string(f), name)); err != nil {
		return err
	}
	dir, err := os.Open(string(f))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (f Folder) Get(_ context.Context, name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(f), name))
}

func (f Folder) List(context.Context) ([]Entry, error) {
	files, err := os.ReadDir(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []Entry
	for _, file := range files {
		info, failed := file.Info()
		if failed != nil {
			continue // it was deleted meanwhile
		}
		if e, ok := entryOf(file.Name(), info.Size()); ok {
			all = append(all, e)
		}
	}
	return sorted(all), err
}

func (f Folder) Delete(_ context.Context, name string) error {
	return os.Remove(filepath.Join(string(f), name))
}
