package runtime

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

// hold moves the fence on by d from now, and returns until when it holds.
func (h *testHost) hold(d time.Duration, newEpoch bool) time.Duration {
	h.t.Helper()
	until := proto.SinceBoot() + d
	if began := h.engine.HoldFence(until); began != newEpoch {
		h.t.Fatalf("holding the fence began an epoch: %v, want %v", began, newEpoch)
	}
	return until
}

// fenced waits until a container was killed by the fence, and returns how long
// after the instant that was.
func (h *testHost) fenced(pod, id string, until time.Duration) time.Duration {
	h.t.Helper()
	c := h.await(pod, id, exited)
	if c.ExitCode != 137 || c.Reason != ReasonFenced || !strings.Contains(c.Message, "lost the masters") {
		h.t.Errorf("container %s of %s: %+v", id, pod, c)
	}
	return proto.SinceBoot() - time.Since(c.FinishedAt) - until
}

func running(c ContainerStatus) bool { return c.State == Running }

func TestFence(t *testing.T) {
	h := newHost(t)
	plain := h.pod(PodConfig{ID: "plain"})
	h.mustRun(plain, "a_0", ContainerConfig{Args: []string{"idle"}})
	p := h.pod(PodConfig{ID: "fenced", Fenced: true, ShareProcesses: true})
	idle := func(epoch uint64) ContainerConfig { return ContainerConfig{Args: []string{"idle"}, Epoch: epoch} }
	refused := func(what string, epoch uint64) {
		t.Helper()
		if err := h.run(p, "refused_0", idle(epoch)); !errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("before the first lease", 0)
	refused("before the first lease, with an epoch", 1)

	h.hold(time.Hour, true)
	refused("in no epoch", 0)
	refused("in an epoch that is not yet", 2)
	h.mustRun(p, "a_0", idle(1))
	h.mustRun(p, "b_0", ContainerConfig{Args: []string{"spawn", "idle"}, Epoch: 1})
	h.mustRun(p, "c_0", idle(1))
	// A restart of the engine touches nothing, and finds the fence as it was.
	h.restart()
	if epoch, up := h.engine.Fence(); epoch != 1 || !up {
		t.Fatalf("after a restart the fence is at epoch %d, up %v", epoch, up)
	}
	h.await(p, "a_0", running)
}

// Nobody moves the fence on: the pods' own processes kill what is in them, with
// the engine gone.
func TestFenceComesDown(t *testing.T) {
	h := newHost(t)
	plain := h.pod(PodConfig{ID: "plain"})
	h.mustRun(plain, "a_0", ContainerConfig{Args: []string{"idle"}})
	until := h.hold(2*time.Second, true)
	for _, shared := range []bool{false, true} {
		p := h.pod(PodConfig{ID: map[bool]string{false: "own", true: "shared"}[shared], Fenced: true, ShareProcesses: shared})
		h.mustRun(p, "a_0", ContainerConfig{Args: []string{"idle"}, Epoch: 1})
		h.mustRun(p, "b_0", ContainerConfig{Args: []string{"idle"}, Epoch: 1})
		h.mustRun(p, "done_0", ContainerConfig{Args: []string{"exit", "3"}, Epoch: 1})
		if c := h.await(p, "done_0", exited); c.Reason != ReasonError || c.ExitCode != 3 {
			t.Errorf("a container that ends by itself: %+v", c)
		}
	}
	moved := h.hold(4*time.Second, false)
	if moved <= until {
		t.Fatal("the fence did not move on")
	}
	h.end()
	h.start() // as if killed meanwhile: what is running is adopted
	for _, p := range []string{"own", "shared"} {
		for _, id := range []string{"a_0", "b_0"} {
			late := h.fenced(p, id, moved)
			t.Logf("%s of %s ended %s after the fence came down", id, p, late)
			if late < 0 {
				t.Errorf("%s of %s was killed %s early", id, p, -late)
			}
		}
		if err := h.run(p, "late_0", ContainerConfig{Args: []string{"idle"}, Epoch: 1}); !errors.Is(err, ErrFenced) {
			t.Errorf("a start behind the fence: %v", err)
		}
	}
	if c, ok := h.engine.Container(plain, "a_0"); !ok || c.State != Running {
		t.Errorf("the ordinary pod's container: %+v", c)
	}
	h.hold(time.Hour, true)
	if err := h.run("own", "late_0", ContainerConfig{Args: []string{"idle"}, Epoch: 1}); !errors.Is(err, ErrFenced) {
		t.Errorf("a start that was allowed before the fence was down: %v", err)
	}
	h.mustRun("own", "late_0", ContainerConfig{Args: []string{"idle"}, Epoch: 2})
	h.mustRun("shared", "late_0", ContainerConfig{Args: []string{"idle"}, Epoch: 2})
}

// The pod's process was stopped while the fence was down, and finds it up again:
// what it has was to be dead in between.
func TestFenceOfAnOlderEpoch(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{Fenced: true})
	until := h.hold(2*time.Second, true)
	h.mustRun(p, "a_0", ContainerConfig{Args: []string{"idle"}, Epoch: 1})
	h.engine.mu.Lock()
	process := h.engine.pods[p].process
	h.engine.mu.Unlock()
	if err := process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	<-time.After(until - proto.SinceBoot())
	h.hold(time.Hour, true)
	if c, _ := h.engine.Container(p, "a_0"); c.State != Running {
		t.Fatalf("the container ended though nobody was there to kill it: %+v", c)
	}
	if err := process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.fenced(p, "a_0", until)
}

// A pod may come to be fenced, when a StatefulSet adopts it, and cease to be.
func TestFenceOnAndOff(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "a_0", ContainerConfig{Args: []string{"idle"}})
	q := h.pod(PodConfig{ID: "p2", Fenced: true})
	until := h.hold(3*time.Second, true)
	h.mustRun(q, "a_0", ContainerConfig{Args: []string{"idle"}, Epoch: 1})
	h.pod(PodConfig{Fenced: true})
	h.pod(PodConfig{ID: "p2"})
	h.restart() // the processes have not forgotten
	h.pod(PodConfig{Fenced: true})
	if late := h.fenced(p, "a_0", until); late < 0 {
		t.Errorf("killed %s early", -late)
	}
	if c, _ := h.engine.Container(q, "a_0"); c.State != Running {
		t.Errorf("the pod that is no longer fenced: %+v", c)
	}
}
