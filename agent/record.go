package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// record is what the node knows of a pod and the runtime may not know after a
// reboot. It is written when it changes.
type record struct {
	// Started is when the pod was accepted: its status.startTime.
	Started time.Time `json:"started,omitzero"`
	// Failed is set when the node gave the pod up.
	Failed *failure `json:"failed,omitempty"`
	// Rejected: it was given up before anything was made of it.
	Rejected bool `json:"rejected,omitempty"`
	// Down: the pod came to its end and nothing of it is left but its logs.
	Down bool `json:"down,omitempty"`
	// IDs is the first of the 65536 users and groups of this host that the pod
	// has for its own; 0 if it uses the host's.
	IDs uint32 `json:"ids,omitempty"`
	// Sandbox counts how often what the containers share was made.
	Sandbox int      `json:"sandbox,omitempty"`
	IPs     []string `json:"ips,omitempty"`
	// Cgroup is what the pod's cgroup is set to; nil until it is made.
	Cgroup     *cgroupAmounts              `json:"cgroup,omitempty"`
	Containers map[string]*containerRecord `json:"containers,omitempty"`
	// Services are the variables that the pod's containers were last given,
	// for a start with no master in sight.
	Services map[string]string `json:"services,omitempty"`
}

// failure is why the node gave a pod up.
type failure struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Grace, if not 0, is how long the containers have at most to end.
	Grace time.Duration `json:"grace,omitempty"`
}

// containerRecord is the history of one container.
type containerRecord struct {
	// Attempt is the newest start, counted from 0: the restart count.
	Attempt int `json:"attempt"`
	// Sandbox is record.Sandbox at that start.
	Sandbox int `json:"sandbox"`
	// Up: in that start, the startup probe has succeeded, or there is none.
	Up bool `json:"up,omitempty"`
	// Renew: all containers of the pod are to begin again, and this one has not.
	Renew bool `json:"renew,omitempty"`
	// Image and ImageID are what it was started from, Asked is how the pod
	// names that image.
	Asked   string `json:"asked,omitempty"`
	Image   string `json:"image,omitempty"`
	ImageID string `json:"imageID,omitempty"`
	// User is who it runs as, StopSignal what asks it to end; nil if they are
	// not known.
	User       *corev1.ContainerUser `json:"user,omitempty"`
	StopSignal *corev1.Signal        `json:"stopSignal,omitempty"`
	// Resources are what that start has, as far as they were put in force.
	// Cgroup is what its cgroup is set to.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`
	Cgroup    *cgroupAmounts               `json:"cgroup,omitempty"`
	// Replaced says that it was ended to be started anew.
	Replaced bool `json:"replaced,omitempty"`
	// End is how that start ended; nil while it has not.
	End *corev1.ContainerStateTerminated `json:"end,omitempty"`
	// Last is how the start before ended.
	Last *corev1.ContainerStateTerminated `json:"last,omitempty"`
	// BackOff is what the next restart waits after the end before; zero after
	// the first crash. Until is when that is over.
	BackOff time.Duration `json:"backOff,omitempty"`
	Until   time.Time     `json:"until,omitzero"`
}

const (
	backOffFirst = 10 * time.Second
	backOffMax   = 300 * time.Second
	backOffReset = 2 * backOffMax
)

// crashed counts an end in: the first restart is at once, then 10 s doubling to
// 5 minutes, and from the beginning after 10 minutes without a crash.
func (c *containerRecord) crashed(start, end time.Time) {
	switch {
	case c.BackOff == 0 || end.Sub(start) > backOffReset:
		c.BackOff, c.Until = backOffFirst, end
	default:
		c.Until = end.Add(c.BackOff)
		c.BackOff = min(2*c.BackOff, backOffMax)
	}
}

// waited is the delay that the current back-off is made of.
func (c *containerRecord) waited() time.Duration {
	if c.End == nil {
		return 0
	}
	return max(c.Until.Sub(c.End.FinishedAt.Time).Round(time.Second), 0)
}

func (r *record) container(name string) *containerRecord {
	c := r.Containers[name]
	if c == nil {
		c = &containerRecord{Attempt: -1}
		if r.Containers == nil {
			r.Containers = map[string]*containerRecord{}
		}
		r.Containers[name] = c
	}
	return c
}

// containerID is the runtime's ID of one start of a container. Names of
// containers hold no underscore.
func containerID(name string, attempt int) string { return name + "_" + strconv.Itoa(attempt) }

func splitContainerID(id string) (name string, attempt int, ok bool) {
	name, number, ok := strings.Cut(id, "_")
	if !ok {
		return "", 0, false
	}
	attempt, err := strconv.Atoi(number)
	return name, attempt, err == nil
}

const (
	manifestFile = "manifest.json"
	recordFile   = "state.json"
)

// savedPod is a pod as the disk remembers it.
type savedPod struct {
	pod *corev1.Pod
	rec record
}

// loadPods reads what pods this node had. A folder without a readable manifest
// is not a pod (yet): the API will say what it was.
func loadPods(dir string) (map[string]savedPod, error) {
	entries, err := os.ReadDir(filepath.Join(dir, "pods"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pods := map[string]savedPod{}
	for _, e := range entries {
		var s savedPod
		base := filepath.Join(dir, "pods", e.Name())
		if readJSON(filepath.Join(base, manifestFile), &s.pod) != nil || s.pod == nil || string(s.pod.UID) != e.Name() {
			continue
		}
		if err := readJSON(filepath.Join(base, recordFile), &s.rec); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.rec = recordFromStatus(s.pod)
		}
		pods[e.Name()] = s
	}
	return pods, nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func writeJSON(path string, from any) error {
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	return writeDurably(path, data)
}

// recordFromStatus is the best guess about a pod that this node's disk does not
// know: what the API was last told of it.
func recordFromStatus(pod *corev1.Pod) record {
	var r record
	if pod.Status.StartTime == nil {
		return r
	}
	r.Started = pod.Status.StartTime.Time
	r.Down = terminalPhase(pod.Status.Phase)
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			s := &list[i]
			if s.ContainerID == "" {
				continue
			}
			c := r.container(s.Name)
			c.Attempt, c.Image, c.ImageID = int(s.RestartCount), s.Image, s.ImageID
			c.User, c.StopSignal = s.User, s.StopSignal
			c.End, c.Last = s.State.Terminated, s.LastTerminationState.Terminated
			c.Up = isTrue(s.Started)
			if s.State.Waiting != nil {
				c.End, c.Last = s.LastTerminationState.Terminated, nil
			}
		}
	}
	return r
}

// manifest is the pod without what changes too often to be worth writing.
func manifest(pod *corev1.Pod) *corev1.Pod {
	m := pod.DeepCopy()
	m.ManagedFields = nil
	m.ResourceVersion = ""
	m.Status = corev1.PodStatus{Phase: pod.Status.Phase, StartTime: pod.Status.StartTime, QOSClass: pod.Status.QOSClass}
	if !terminalPhase(m.Status.Phase) {
		m.Status.Phase = ""
	}
	return m
}

func terminalPhase(p corev1.PodPhase) bool {
	return p == corev1.PodSucceeded || p == corev1.PodFailed
}
