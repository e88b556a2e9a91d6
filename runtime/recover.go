package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"conclave/runtime/internal/cg"
	"conclave/runtime/internal/proto"
)

// adoptPatience is how long a pod process gets to answer a new engine.
const adoptPatience = 10 * time.Second

// trashPrefix marks folders that are only waiting to be removed.
const trashPrefix = ".trash-"

// recover finds the pods of this host, adopts those that run, and removes what
// belongs to none.
func (e *Engine) recover() error {
	entries, err := os.ReadDir(e.cfg.RunDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == proto.FenceFile || entry.Name() == imageMountsFolder {
			continue
		}
		if err := e.recoverPod(entry.Name()); err != nil {
			return fmt.Errorf("recover pod %s: %w", entry.Name(), err)
		}
	}
	if err := e.sweepCgroups(); err != nil {
		return err
	}
	return e.sweepFolders()
}

func (e *Engine) recoverPod(id string) error {
	p := &pod{id: id, dir: filepath.Join(e.cfg.RunDir, id), containers: map[string]*container{}}
	data, err := os.ReadFile(filepath.Join(p.dir, proto.PodFile))
	if errors.Is(err, fs.ErrNotExist) {
		// Nothing was made before the record was there.
		unmount(filepath.Join(p.dir, proto.ShmDir))
		return os.RemoveAll(p.dir)
	}
	if err == nil {
		err = json.Unmarshal(data, &p.cfg)
	}
	if err != nil {
		return err
	}
	records, err := readRecords(p)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.pods[id] = p
	for _, r := range records {
		e.learn(p, r, true)
	}
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(e.ctx, adoptPatience)
	defer cancel()
	if err := e.connect(ctx, p); err != nil {
		e.log.Warn("a pod has no process; what is left of it is killed", "pod", id, "error", err)
		e.orphaned(p)
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log.Info("adopted a pod", "pod", id, "namespace", p.cfg.Namespace, "name", p.cfg.Name, "pid", p.pid, "containers", len(p.containers))
	return nil
}

// sweepCgroups kills and removes the cgroups of pods that are not known.
func (e *Engine) sweepCgroups() error {
	found, err := cg.Find(e.cfg.CgroupParent, "pod")
	if err != nil {
		return err
	}
	for _, path := range found {
		id := strings.TrimPrefix(filepath.Base(path), "pod")
		if p := e.pods[id]; p != nil && p.cfg.CgroupPath == path {
			continue
		}
		e.log.Warn("removing the cgroup of an unknown pod", "cgroup", path)
		if err := cg.Kill(path, killPause(e.ctx)); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", path, err)
		}
	}
	return nil
}

// sweepFolders removes the folders of containers that nobody knows, such as
// those from before a reboot. They may be large, and are removed in the
// background once they are out of the way.
func (e *Engine) sweepFolders() error {
	root := e.cfg.containersDir()
	pods, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	var trash []string
	discard := func(path string) error {
		unmount(filepath.Join(path, proto.RootFSDir))
		unmountBelow(path)
		to, err := os.MkdirTemp(root, trashPrefix)
		if err != nil {
			return err
		}
		trash = append(trash, to)
		return os.Rename(path, filepath.Join(to, "d"))
	}
	for _, d := range pods {
		path := filepath.Join(root, d.Name())
		p := e.pods[d.Name()]
		switch {
		case strings.HasPrefix(d.Name(), "."): // trash, or a probe of a process that died
			unmount(filepath.Join(path, "m"))
			trash = append(trash, path)
			continue
		case p == nil:
			if err := discard(path); err != nil {
				return err
			}
			continue
		}
		containers, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, c := range containers {
			if p.containers[c.Name()] == nil {
				if err := discard(filepath.Join(path, c.Name())); err != nil {
					return err
				}
			}
		}
	}
	if len(trash) == 0 {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.goLocked(func() {
		for _, t := range trash {
			if e.ctx.Err() != nil {
				return // the next start goes on
			}
			if err := os.RemoveAll(t); err != nil {
				e.log.Warn("cannot remove a folder", "folder", t, "error", err)
			}
		}
	})
	return nil
}

// Purge kills every pod of a host whose engine does not run, and removes all
// that was made for them: processes, cgroups, mounts and folders. Images and
// the pod program stay. It is what leaving a cluster needs.
func Purge(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := cg.Kill(filepath.Join("/", cfg.CgroupParent), killPause(ctx)); err != nil {
		return fmt.Errorf("kill the pods: %w", err)
	}
	for _, root := range []string{cfg.containersDir(), cfg.RunDir} {
		entries, err := os.ReadDir(root)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, d := range entries {
			path := filepath.Join(root, d.Name())
			unmountBelow(path)
			unmount(filepath.Join(path, proto.ShmDir))
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}
