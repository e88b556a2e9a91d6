package runtime

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// smaps reads fields of a process' memory, in KiB.
func smaps(t testing.TB, pid int, fields ...string) map[string]int {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		for _, name := range fields {
			if f[0] == name+":" {
				if out[name], err = strconv.Atoi(f[1]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return out
}

// startPods starts pods with one idle container each, all at once, and returns
// how long it took until the last one ran.
func startPods(h *testHost, n int) time.Duration {
	h.t.Helper()
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprintf("pod%d", i)
			if err := h.engine.StartPod(h.t.Context(), PodConfig{ID: id, Hostname: id}); err != nil {
				h.t.Error(err)
				return
			}
			if err := h.run(id, "web_0", ContainerConfig{Args: []string{"idle"}, Seccomp: SeccompDefault}); err != nil {
				h.t.Error(err)
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}

// TestMemoryOfAPod measures what one more idle pod costs in processes of ours.
func TestMemoryOfAPod(t *testing.T) {
	h := newHost(t)
	const pods = 10
	startPods(h, pods)
	// The pod processes give memory back by themselves, half a second after the
	// last change; there is no event for it.
	const goal = 4 << 10
	deadline := time.Now().Add(20 * time.Second)
	for {
		var pss, private int
		for _, id := range h.engine.Pods() {
			m := smaps(t, h.engine.pods[id].pid, "Pss", "Private_Dirty", "Private_Clean")
			pss += m["Pss"]
			private = max(private, m["Private_Dirty"]+m["Private_Clean"])
		}
		if private <= goal/2 {
			t.Logf("PSS %d KiB a pod, private at most %d KiB", pss/pods, private)
			return
		}
		if time.Now().After(deadline) {
			t.Logf("PSS %d KiB a pod, private at most %d KiB: above the target of %d", pss/pods, private, goal/2)
			if private > goal {
				t.Errorf("a pod process has %d KiB of private memory, more than %d", private, goal)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestBurst measures 50 pods at once and one alone.
func TestBurst(t *testing.T) {
	h := newHost(t)
	t.Logf("one pod: %v", startPods(h, 1))
	if err := h.engine.StopPod(t.Context(), "pod0"); err != nil {
		t.Fatal(err)
	}
	t.Logf("one pod again: %v", startPods(h, 1))
	if err := h.engine.StopPod(t.Context(), "pod0"); err != nil {
		t.Fatal(err)
	}
	t.Logf("50 pods: %v", startPods(h, 50))
	if n := len(h.engine.Pods()); n != 50 {
		t.Errorf("%d pods run", n)
	}
}
