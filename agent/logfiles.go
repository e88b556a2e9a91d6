package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Programs that gather logs are deployed as pods that mount /var/log, or a folder
// in it, and look there for what kubelet keeps: pods/NAMESPACE_NAME_UID/CONTAINER/N.log
// for the N-th start of a container, and containers/NAME_NAMESPACE_CONTAINER-ID.log,
// a link to that. Both folders are in log/ of the data folder here, and are shown
// to those pods where they expect them.

const (
	hostLogs     = "/var/log"
	podLogs      = "pods"
	containLinks = "containers"
	nameMost     = 255 // bytes of a file's name
)

// startID names one start of one container among all of all nodes, in the form
// that programs take for a container's ID.
func startID(uid types.UID, container string, attempt int) string {
	sum := sha256.Sum256([]byte(string(uid) + "_" + containerID(container, attempt)))
	return hex.EncodeToString(sum[:])
}

// logFolder is what a pod's folder of logs is called.
func logFolder(pod *corev1.Pod) string {
	head, tail := pod.Namespace+"_"+pod.Name, "_"+string(pod.UID)
	return head[:min(len(head), nameMost-len(tail))] + tail
}

// logLink is what the link to the log of one start is called.
func logLink(pod *corev1.Pod, container string, attempt int) string {
	const ending = ".log"
	name := fmt.Sprintf("%s_%s_%s-%s", pod.Name, pod.Namespace, container, startID(pod.UID, container, attempt))
	return name[:min(len(name), nameMost-len(ending))] + ending
}

// makeLogs makes the folder for the log of one start of a container, and the link
// to the log.
func (d podDirs) makeLogs(pod *corev1.Pod, container string, attempt int) error {
	folder := logFolder(pod)
	if err := errors.Join(os.MkdirAll(filepath.Join(d.logs, podLogs, folder, container), dirMode), os.MkdirAll(filepath.Join(d.logs, containLinks), dirMode), os.MkdirAll(d.disk, 0o750)); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join("..", "..", filepath.Base(d.logs), podLogs, folder), filepath.Join(d.disk, "logs")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	err := os.Symlink(filepath.Join(hostLogs, podLogs, folder, container, strconv.Itoa(attempt)+".log"), filepath.Join(d.logs, containLinks, logLink(pod, container, attempt)))
	if errors.Is(err, fs.ErrExist) { // an attempt to start it that came to nothing
		return nil
	}
	return err
}

// removeLogs removes what makeLogs made for a pod. What else it needs to know,
// it finds on the disk, so that nobody need know the pod.
func (d podDirs) removeLogs() error {
	target, err := os.Readlink(filepath.Join(d.disk, "logs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // it never logged, or has a folder of its own
		return nil
	}
	if err != nil {
		return err
	}
	folder := filepath.Base(target)
	links, err := os.ReadDir(filepath.Join(d.logs, containLinks))
	if err != nil {
		return err
	}
	// Links to it begin with the pod's name, or what the folder has of that.
	_, rest, _ := strings.Cut(folder, "_")
	name, _, _ := strings.Cut(rest, "_")
	for _, l := range links {
		if !strings.HasPrefix(l.Name(), name) {
			continue
		}
		path := filepath.Join(d.logs, containLinks, l.Name())
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, filepath.Join(hostLogs, podLogs, folder)+"/") {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.RemoveAll(filepath.Join(d.logs, podLogs, folder))
}

// remove removes all that the disk has of a pod.
func (d podDirs) remove() error {
	if err := d.removeLogs(); err != nil {
		return err // the link says what is left
	}
	return os.RemoveAll(d.disk)
}

// withLogs adds to a mount of the host's /var/log what containers log, unless the
// container mounts something else there.
func (d podDirs) withLogs(m specs.Mount, taken func(path string) bool) ([]specs.Mount, error) {
	mounts := []specs.Mount{m}
	for _, name := range []string{podLogs, containLinks} {
		target := filepath.Join(m.Destination, name)
		if taken(target) {
			continue
		}
		// A mount needs a place, and the host's folder may be mounted read-only.
		for _, dir := range []string{filepath.Join(hostLogs, name), filepath.Join(d.logs, name)} {
			if err := os.MkdirAll(dir, dirMode); err != nil {
				return nil, err
			}
		}
		mounts = append(mounts, specs.Mount{Destination: target, Type: m.Type, Source: filepath.Join(d.logs, name), Options: m.Options})
	}
	return mounts, nil
}
