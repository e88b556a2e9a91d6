package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// The stages of faults, each in a process of its own: the end of a process
// closes what a store's Close leaves open.
var stages = []string{"full", "write", "read"}

// faults tells what a store does while its disk is full and when there is room
// again, and then what it makes of a newest entry that has become noise. dir is
// a folder on a small disk of its own.
func faults(stage string, open func(string) (store, error), dir string) (string, error) {
	s, err := open(dir)
	if err != nil {
		return "", err
	}
	last, err := s.LastIndex()
	if err != nil {
		return "", err
	}
	data := bytes.Repeat([]byte("entry of the log "), 1000)
	newest := bytes.Repeat([]byte("the newest entry "), 1000)
	add := func(data []byte) error {
		err := s.StoreLogs([]*raft.Log{{Index: last + 1, Term: 2, Data: data}})
		if err == nil {
			last++
		}
		return err
	}
	switch stage {
	case "full":
		for err == nil {
			err = add(data)
		}
		full := err
		if err := os.Remove(filepath.Join(dir, ballastFile)); err != nil {
			return "", err
		}
		again := "entries are taken again"
		for range 3 {
			if err := add(data); err != nil {
				again = err.Error()
			}
		}
		return fmt.Sprintf("while full: %v; with room again: %s", full, again), nil
	case "write":
		return fmt.Sprintf("opened again, it takes entries: %v", errors.Join(add(data), add(newest)) == nil), spoil(dir, newest[:64])
	}
	var l raft.Log
	if err := s.GetLog(last, &l); err != nil {
		return fmt.Sprintf("newest entry damaged: %v", err), nil
	}
	switch {
	case bytes.Equal(l.Data, data):
		return "newest entry damaged: it is dropped in silence", nil
	case bytes.Equal(l.Data, newest):
		return "", errors.New("the damage was not seen")
	}
	return "newest entry damaged: it is read as it is", nil
}

const ballastFile = "ballast"

// spoil turns the last occurrence of what in the files of dir into noise.
func spoil(dir string, what []byte) error {
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ballastFile) {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.LastIndex(raw, what)
		if at < 0 {
			return nil
		}
		found = true
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		noise := slices.Clone(what)
		for i := range noise {
			noise[i] ^= 0x55
		}
		_, err = f.WriteAt(noise, int64(at))
		return errors.Join(err, f.Sync(), f.Close())
	})
	if err == nil && !found {
		err = errors.New("the newest entry is in no file")
	}
	return err
}
