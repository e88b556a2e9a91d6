package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// snapshot is what is known of one, in STATE/snapshots/ID.json beside a copy of
// its volume in STATE/snapshots/ID. What is written while the copy is made may be
// in it or not: a driver that can freeze its volumes would.
type snapshot struct {
	Name   string    `json:"name"`
	Source string    `json:"source"`
	Block  bool      `json:"block,omitempty"`
	Size   int64     `json:"size"`
	Taken  time.Time `json:"taken"`
}

func (d *driver) copyOf(id string) string { return filepath.Join(d.state, "snapshots", id) }

func internal(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.Internal, err.Error())
}

// idOf makes an id of a name.
func idOf(prefix, name string) string {
	id := prefix + strings.Map(func(c rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-", c) {
			return c
		}
		return '-'
	}, strings.ToLower(name))
	return id[:min(len(id), 200)]
}

// loadSnapshot finds one, nil if it is not there.
func (d *driver) loadSnapshot(id string) (*snapshot, error) {
	if id != filepath.Base(id) {
		return nil, nil
	}
	raw, err := os.ReadFile(d.copyOf(id) + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	s := &snapshot{}
	if err == nil {
		err = json.Unmarshal(raw, s)
	}
	return s, internal(err)
}

func (s *snapshot) answer(id string) *csi.Snapshot {
	return &csi.Snapshot{SnapshotId: id, SourceVolumeId: s.Source, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Taken), ReadyToUse: true}
}

func (d *driver) CreateSnapshot(_ context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if r.Name == "" || r.SourceVolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "the name of the snapshot or the id of its volume is missing")
	}
	for _, unknown := range slices.Sorted(maps.Keys(r.Parameters)) {
		return nil, status.Errorf(codes.InvalidArgument, "snapshots have no parameter %s", unknown)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id := idOf("s-", r.Name)
	s, err := d.loadSnapshot(id)
	switch {
	case err != nil:
		return nil, err
	case s != nil && (s.Name != r.Name || s.Source != r.SourceVolumeId):
		return nil, status.Errorf(codes.AlreadyExists, "there is a snapshot %s of another volume", r.Name)
	case s != nil:
		return &csi.CreateSnapshotResponse{Snapshot: s.answer(id)}, nil
	}
	v, err := d.load(r.SourceVolumeId)
	if err != nil {
		return nil, err
	}
	s = &snapshot{Name: r.Name, Source: r.SourceVolumeId, Block: v.Block, Size: v.Capacity, Taken: time.Now()}
	if err := errors.Join(os.MkdirAll(d.copyOf(""), 0o750), d.copyVolume(r.SourceVolumeId, v, d.copyOf(id))); err != nil {
		return nil, internal(err)
	}
	raw, err := json.Marshal(s)
	if err == nil { // last: without it there is no snapshot
		err = os.WriteFile(d.copyOf(id)+".tmp", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(d.copyOf(id)+".tmp", d.copyOf(id)+".json")
	}
	return &csi.CreateSnapshotResponse{Snapshot: s.answer(id)}, internal(err)
}

// copyVolume makes a copy of what a volume holds now.
func (d *driver) copyVolume(id string, v *volume, to string) error {
	if v.Block {
		if err := flush(d.folder(id)); err != nil {
			return err
		}
	}
	return copyTree(d.folder(id), to)
}

func (d *driver) DeleteSnapshot(_ context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if r.SnapshotId == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the snapshot is missing")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := d.loadSnapshot(r.SnapshotId)
	if err != nil || s == nil {
		return &csi.DeleteSnapshotResponse{}, err
	}
	return &csi.DeleteSnapshotResponse{}, internal(errors.Join(os.Remove(d.copyOf(r.SnapshotId)+".json"), os.RemoveAll(d.copyOf(r.SnapshotId))))
}

// ListSnapshots lists by id; a token is how many came before.
func (d *driver) ListSnapshots(_ context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	files, err := filepath.Glob(d.copyOf("*.json"))
	if err != nil {
		return nil, internal(err)
	}
	all := &csi.ListSnapshotsResponse{}
	for _, file := range files {
		id := strings.TrimSuffix(filepath.Base(file), ".json")
		s, err := d.loadSnapshot(id)
		if err != nil {
			return nil, err
		}
		if s != nil && (r.SnapshotId == "" || r.SnapshotId == id) && (r.SourceVolumeId == "" || r.SourceVolumeId == s.Source) {
			all.Entries = append(all.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: s.answer(id)})
		}
	}
	first := 0
	if r.StartingToken != "" {
		if first, err = strconv.Atoi(r.StartingToken); err != nil || first < 0 || first > len(all.Entries) {
			return nil, status.Errorf(codes.Aborted, "%q is no token of this list", r.StartingToken)
		}
	}
	all.Entries = all.Entries[first:]
	if most := int(r.MaxEntries); most > 0 && most < len(all.Entries) {
		all.Entries, all.NextToken = all.Entries[:most], strconv.Itoa(first+most)
	}
	return all, nil
}

// content is what a new volume begins with: its size, and how it gets there. It
// is nil of a volume that begins empty.
type content struct {
	source string // as it is kept with the volume
	block  bool
	size   int64
	fill   func(to string) error
}

func (d *driver) content(s *csi.VolumeContentSource) (*content, error) {
	switch {
	case s == nil:
		return nil, nil
	case s.GetSnapshot() != nil:
		id := s.GetSnapshot().SnapshotId
		of, err := d.loadSnapshot(id)
		if err == nil && of == nil {
			err = status.Errorf(codes.NotFound, "there is no snapshot %s on node %s", id, d.node)
		}
		if err != nil {
			return nil, err
		}
		return &content{"snapshot " + id, of.Block, of.Size, func(to string) error { return copyTree(d.copyOf(id), to) }}, nil
	case s.GetVolume() != nil:
		id := s.GetVolume().VolumeId
		v, err := d.load(id)
		if err != nil {
			return nil, err
		}
		return &content{"volume " + id, v.Block, v.Capacity, func(to string) error { return d.copyVolume(id, v, to) }}, nil
	}
	return nil, status.Error(codes.InvalidArgument, "the source of the volume is neither a snapshot nor a volume")
}

// copyTree copies a file or a folder with all that is in it, in place of what is
// there: what an earlier try left.
func copyTree(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	type folder struct {
		path string
		info fs.FileInfo
	}
	var folders []folder
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		var info fs.FileInfo
		if err == nil {
			info, err = e.Info()
		}
		if errors.Is(err, fs.ErrNotExist) && path != from {
			return nil // it went meanwhile
		}
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		at := filepath.Join(to, rest)
		if info.IsDir() {
			folders = append(folders, folder{at, info})
			return os.Mkdir(at, 0o700)
		}
		if err := copyOne(path, at, info); err != nil {
			return err
		}
		return like(at, info)
	})
	if err != nil {
		return err
	}
	for _, f := range slices.Backward(folders) { // whose times the copying changed
		if err := like(f.path, f.info); err != nil {
			return err
		}
	}
	return nil
}

func copyOne(from, to string, info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case mode.IsRegular():
		return copyFile(from, to, info.Size())
	}
	stat := info.Sys().(*syscall.Stat_t)
	return syscall.Mknod(to, stat.Mode, int(stat.Rdev))
}

// like gives a copy the owner, the mode and the time of what it is a copy of.
func like(path string, info fs.FileInfo) error {
	stat := info.Sys().(*syscall.Stat_t)
	if err := os.Lchown(path, int(stat.Uid), int(stat.Gid)); err != nil || info.Mode()&fs.ModeSymlink != 0 {
		return err
	}
	return errors.Join(os.Chmod(path, info.Mode()), os.Chtimes(path, info.ModTime(), info.ModTime()))
}

// Whence of lseek that os has no name for.
const (
	seekData = 3
	seekHole = 4
)

// copyFile copies a file, but for its holes.
func copyFile(from, to string, size int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		begin, err := in.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err != nil {
			return err
		}
		end, err := in.Seek(begin, seekHole)
		if err != nil {
			return err
		}
		if _, err := in.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, end-begin); errors.Is(err, io.EOF) {
			return nil // it has become shorter
		} else if err != nil {
			return err
		}
		at = end
	}
	return nil
}
