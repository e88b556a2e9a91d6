package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"
)

// The pods of a StatefulSet must never run twice. Each stamps the kernel's
// CLOCK_BOOTTIME, which all hosts of a lab have in common, into a file of its
// own in a folder that all hosts see: when it began, and when it last ran. A
// page of memory that it shares with the file does it, so that what it wrote is
// there however it ends.

const (
	singleName  = "single"
	singleCount = 3
	stampsPath  = "/stamps"
	stampEvery  = 10 * time.Millisecond
	stampSize   = 16
)

// singleSet is a StatefulSet whose pods stamp files below a folder.
func singleSet(binary, folder string) *appsv1.StatefulSet {
	labels := map[string]string{"app": singleName}
	template := guestPod(binary, labels, "stamp", stampsPath)
	kind := corev1.HostPathDirectory
	template.Spec.Volumes = append(template.Spec.Volumes, corev1.Volume{Name: "stamps", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: &kind}}})
	template.Spec.Containers[0].VolumeMounts = append(template.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "stamps", MountPath: stampsPath})
	n, grace := int32(singleCount), int64(1)
	template.Spec.TerminationGracePeriodSeconds = &grace
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metav1.ObjectMeta{Name: singleName, Namespace: namespace},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template,
			ServiceName: singleName, PodManagementPolicy: appsv1.ParallelPodManagement,
		},
	}
}

func sinceBoot() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(fmt.Sprintf("the kernel has no CLOCK_BOOTTIME: %v", err)) // every one since 2.6.39 has
	}
	return now.Nano()
}

// stamp says in a file, until the context ends, that this pod runs.
func stamp(ctx context.Context, folder string) error {
	file, err := os.CreateTemp(folder, os.Getenv("POD")+"@"+os.Getenv("NODE")+"@")
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(stampSize); err != nil {
		return err
	}
	page, err := unix.Mmap(int(file.Fd()), 0, stampSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", file.Name(), err)
	}
	binary.LittleEndian.PutUint64(page[8:], uint64(sinceBoot()))
	copy(page, page[8:]) // the first, too
	tick := time.NewTicker(stampEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			binary.LittleEndian.PutUint64(page[8:], uint64(sinceBoot()))
		case <-ctx.Done():
			return unix.Munmap(page)
		}
	}
}

// Stay is the time that one process of a pod ran.
type Stay struct {
	Pod, Node   string
	First, Last int64 // CLOCK_BOOTTIME, in nanoseconds
}

// readStays reads all stamps below a folder.
func readStays(folder string) (all []Stay, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		parts := strings.Split(e.Name(), "@")
		raw, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return nil, err
		}
		if len(parts) != 3 || len(raw) != stampSize || binary.LittleEndian.Uint64(raw) == 0 {
			continue // it ended before it had stamped once
		}
		all = append(all, Stay{parts[0], parts[1], int64(binary.LittleEndian.Uint64(raw)), int64(binary.LittleEndian.Uint64(raw[8:]))})
	}
	return all, nil
}

// together returns the stays of the same pod that overlap, and the times from
// one stay to the next on another node.
func together(stays []Stay) (wrong []string, moves []time.Duration) {
	byPod := map[string][]Stay{}
	for _, s := range stays {
		byPod[s.Pod] = append(byPod[s.Pod], s)
	}
	for _, pod := range byPod {
		slices.SortFunc(pod, func(a, b Stay) int { return int(a.First - b.First) })
		for i := 1; i < len(pod); i++ {
			before, after := pod[i-1], pod[i]
			if before.Last >= after.First {
				wrong = append(wrong, fmt.Sprintf("%s ran twice for %.2f s: on %s until %.2f s after boot, on %s from %.2f s", after.Pod,
					time.Duration(min(before.Last, after.Last)-after.First).Seconds(), before.Node, time.Duration(before.Last).Seconds(), after.Node, time.Duration(after.First).Seconds()))
				pod[i].Last = max(before.Last, after.Last) // whoever outlasts both
			} else if before.Node != after.Node {
				moves = append(moves, time.Duration(after.First-before.Last))
			}
		}
	}
	slices.Sort(wrong)
	return wrong, moves
}
