package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"conclave/runtime/internal/cg"
	"conclave/runtime/internal/proto"
)

// Stats returns what a container uses, or the whole pod if id is empty.
func (e *Engine) Stats(podID, id string) (Usage, error) {
	e.mu.Lock()
	p := e.pods[podID]
	e.mu.Unlock()
	if p == nil {
		return Usage{}, fmt.Errorf("usage of pod %s: %w", podID, ErrPodNotFound)
	}
	m, err := cg.Open(filepath.Join(p.cfg.CgroupPath, id), nil)
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	if e.v2 {
		u, err = usageV2(m.Path(""))
	} else {
		u, err = usageV1(m.Path("cpuacct"), m.Path("cpu"), m.Path("memory"), m.Path("pids"))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		err = ErrContainerNotRunning
	}
	if err != nil {
		return Usage{}, fmt.Errorf("usage of container %q of pod %s: %w", id, podID, err)
	}
	u.Time = time.Now()
	return u, nil
}

func usageV2(dir string) (u Usage, err error) {
	cpu, err := readKeys(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return u, err
	}
	u.CPU = time.Duration(cpu["usage_usec"]) * time.Microsecond
	u.Periods, u.Throttled, u.ThrottledTime = cpu["nr_periods"], cpu["nr_throttled"], time.Duration(cpu["throttled_usec"])*time.Microsecond
	if u.Memory, err = readNumber(filepath.Join(dir, "memory.current")); err != nil {
		return u, err
	}
	if u.MemoryLimit, err = readNumber(filepath.Join(dir, "memory.max")); err != nil {
		return u, err
	}
	mem, err := readKeys(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.WorkingSet = u.Memory - min(u.Memory, mem["inactive_file"])
	u.RSS, u.PageFaults, u.MajorFaults = mem["anon"], mem["pgfault"], mem["pgmajfault"]
	u.PIDs, err = readNumber(filepath.Join(dir, "pids.current"))
	return u, err
}

func usageV1(cpuacct, cpu, memory, pids string) (u Usage, err error) {
	ns, err := readNumber(filepath.Join(cpuacct, "cpuacct.usage"))
	if err != nil {
		return u, err
	}
	u.CPU = time.Duration(ns)
	limited, err := readKeys(filepath.Join(cpu, "cpu.stat"))
	if err != nil {
		return u, err
	}
	u.Periods, u.Throttled, u.ThrottledTime = limited["nr_periods"], limited["nr_throttled"], time.Duration(limited["throttled_time"])
	if u.Memory, err = readNumber(filepath.Join(memory, "memory.usage_in_bytes")); err != nil {
		return u, err
	}
	if u.MemoryLimit, err = readNumber(filepath.Join(memory, "memory.limit_in_bytes")); err != nil {
		return u, err
	}
	if u.MemoryLimit > 1<<62 { // how version 1 says "none"
		u.MemoryLimit = 0
	}
	mem, err := readKeys(filepath.Join(memory, "memory.stat"))
	if err != nil {
		return u, err
	}
	u.WorkingSet = u.Memory - min(u.Memory, mem["total_inactive_file"])
	u.RSS, u.PageFaults, u.MajorFaults = mem["total_rss"], mem["total_pgfault"], mem["total_pgmajfault"]
	u.PIDs, err = readNumber(filepath.Join(pids, "pids.current"))
	return u, err
}

// readNumber reads a file that holds one number, 0 for "max".
func readNumber(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(data))
	if s == "max" {
		return 0, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// readKeys reads a file of lines "key number".
func readKeys(path string) (map[string]uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]uint64{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		k, v, ok := strings.Cut(s.Text(), " ")
		if !ok {
			continue
		}
		if out[k], err = strconv.ParseUint(v, 10, 64); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return out, s.Err()
}

// DiskUsage returns the bytes and inodes of a container's writable layer. It
// walks the layer.
func (e *Engine) DiskUsage(podID, id string) (bytes, inodes uint64, err error) {
	if err := errors.Join(checkID("pod", podID), checkID("container", id)); err != nil {
		return 0, 0, err
	}
	return diskUsage(filepath.Join(e.podFolder(podID), id, proto.UpperDir))
}

func diskUsage(dir string) (bytes, inodes uint64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // removed while we looked
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		inodes++
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
		}
		return nil
	})
	return bytes, inodes, err
}
