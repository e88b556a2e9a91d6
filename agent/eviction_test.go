package agent_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"conclave/agent"
)

// gauges are readings that a test sets.
type gauges struct {
	mu  sync.Mutex
	all map[agent.Signal]agent.Reading
}

func (g *gauges) set(s agent.Signal, available, capacity int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == nil {
		g.all = map[agent.Signal]agent.Reading{}
	}
	g.all[s] = agent.Reading{Available: available, Capacity: capacity}
}

func (g *gauges) read() map[agent.Signal]agent.Reading {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := map[agent.Signal]agent.Reading{}
	for s, r := range g.all {
		out[s] = r
	}
	return out
}

func (w *world) pressure(t corev1.NodeConditionType) corev1.ConditionStatus {
	for _, c := range w.node().Status.Conditions {
		if c.Type == t {
			return c.Status
		}
	}
	return ""
}

func requests(memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"memory": resource.MustParse(memory)}
	}
}

func TestEvictionForMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauges
		g.set("memory.available", 500<<20, 1<<30)
		w := newWorld(t, func(w *world) { w.config.Readings, w.runtime.Measured = g.read, map[string]agent.Stats{} })
		uses := func(p *corev1.Pod, mib uint64) {
			w.runtime.Measured[string(p.UID)] = agent.Stats{MemoryWorkingSet: mib << 20, Processes: 1}
		}
		// In Kubernetes' order: who uses more than he requested, by priority,
		// then by how much; last those within their requests.
		uses(w.create(pod("within", requests("400Mi"))), 300)
		uses(w.create(pod("modest")), 20)
		uses(w.create(pod("greedy", requests("10Mi"))), 150)
		uses(w.create(pod("important", func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" })), 200)
		after(time.Second)
		if got := w.pressure(corev1.NodeMemoryPressure); got != corev1.ConditionFalse {
			t.Fatal(got)
		}
		g.set("memory.available", 50<<20, 1<<30)
		after(2 * time.Minute)
		if got := w.pressure(corev1.NodeMemoryPressure); got != corev1.ConditionTrue {
			t.Errorf("MemoryPressure is %s", got)
		}
		var order []string
		for _, m := range w.events("Evicted") {
			order = append(order, m)
		}
		want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container web was using 150Mi, request is 10Mi, has larger consumption of memory. "
		if len(order) != 3 || order[0] != want {
			t.Errorf("evicted for: %q", order)
		}
		p := w.get("greedy")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Evicted" || p.Status.Message != want {
			t.Errorf("%s %s %q", p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		if c := resizeSays(p, corev1.DisruptionTarget); c != "True TerminationByKubelet "+want {
			t.Error(c)
		}
		if got := w.get("important"); got.Status.Phase != corev1.PodRunning {
			t.Errorf("a critical pod is %s", got.Status.Phase)
		}
		if got := w.events("EvictionThresholdMet"); len(got) == 0 || got[0] != "Attempting to reclaim memory" {
			t.Errorf("%q", got)
		}
		// While it lasts, and for five minutes more, only who requested memory
		// is taken on.
		g.set("memory.available", 600<<20, 1<<30)
		after(2 * time.Minute)
		w.create(pod("late"))
		w.create(pod("late-requests", requests("10Mi")))
		after(time.Second)
		if got := w.get("late"); got.Status.Phase != corev1.PodFailed || got.Status.Reason != "Evicted" || got.Status.Message != "Pod was rejected: The node had condition: [MemoryPressure]. " {
			t.Errorf("%s %s %q", got.Status.Phase, got.Status.Reason, got.Status.Message)
		}
		if got := w.get("late-requests"); got.Status.Phase != corev1.PodRunning {
			t.Errorf("%s %q", got.Status.Phase, got.Status.Message)
		}
		after(5 * time.Minute)
		if got := w.pressure(corev1.NodeMemoryPressure); got != corev1.ConditionFalse {
			t.Errorf("MemoryPressure is %s after it has ended", got)
		}
	})
}

// TestEvictionOneByOne: the next pod goes only when the last one's end was not
// enough.
func TestEvictionOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauges
		w := newWorld(t, func(w *world) { w.config.Readings = g.read })
		a, b := w.create(pod("a")), w.create(pod("b"))
		after(time.Second)
		w.runtime.Measured = map[string]agent.Stats{string(a.UID): {MemoryWorkingSet: 5 << 20, Processes: 900}, string(b.UID): {MemoryWorkingSet: 9 << 20, Processes: 2}}
		g.set("pid.available", 50, 1000)
		for w.get("a").Status.Phase != corev1.PodFailed {
			time.Sleep(100 * time.Millisecond)
		}
		g.set("pid.available", 950, 1000)
		after(5 * time.Minute)
		if p := w.get("b"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("b: %s %s", p.Status.Phase, p.Status.Message)
		}
		if m := w.get("a").Status.Message; m != "The node was low on resource: pids. Threshold quantity: 100, available: 50. " {
			t.Errorf("%q", m)
		}
	})
}

// TestMinimumReclaim: once there was too little, there is to be more than the
// threshold before it is enough.
func TestMinimumReclaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauges
		g.set("memory.available", 150<<20, 1<<30)
		w := newWorld(t, func(w *world) {
			w.config.Readings, w.runtime.Measured = g.read, map[string]agent.Stats{}
			w.config.EvictionHard = must(must(agent.ParseThresholds("memory.available<100Mi"))(t).WithReclaim(map[string]string{"memory.available": "100Mi"}))(t)
		})
		for i, name := range []string{"first", "second", "third"} {
			w.runtime.Measured[string(w.create(pod(name)).UID)] = agent.Stats{MemoryWorkingSet: uint64(90-i) << 20}
		}
		running := func() (names []string) {
			for _, name := range []string{"first", "second", "third"} {
				if w.get(name).Status.Phase == corev1.PodRunning {
					names = append(names, name)
				}
			}
			return names
		}
		after(2 * time.Minute)
		if got := running(); len(got) != 3 { // never below the threshold, so it is enough
			t.Fatalf("there run %v", got)
		}
		for _, step := range []struct {
			mib  int64
			want int // how many run when there are that many
		}{{50, 2}, {150, 1}} {
			g.set("memory.available", step.mib<<20, 1<<30)
			for len(running()) > step.want {
				time.Sleep(100 * time.Millisecond)
			}
		}
		g.set("memory.available", 200<<20, 1<<30)
		after(2 * time.Minute)
		g.set("memory.available", 150<<20, 1<<30)
		after(4 * time.Minute)
		if got := running(); !slices.Equal(got, []string{"third"}) {
			t.Errorf("there run %v", got)
		}
		if got := w.events("Evicted"); len(got) != 2 || !strings.Contains(got[1], "Threshold quantity: 100Mi, available: 150Mi.") {
			t.Errorf("%q", got)
		}
	})
}

func TestSoftEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauges
		w := newWorld(t, func(w *world) {
			w.config.Readings = g.read
			soft := must(agent.ParseThresholds("memory.available<200Mi"))(t)
			soft[0].Grace = 10 * time.Minute
			w.config.EvictionSoft = soft
		})
		w.create(pod("a"))
		after(time.Second)
		g.set("memory.available", 150<<20, 1<<30)
		after(9 * time.Minute)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning || w.pressure(corev1.NodeMemoryPressure) != corev1.ConditionFalse {
			t.Errorf("too early: %s", p.Status.Phase)
		}
		after(3 * time.Minute)
		if p := w.get("a"); p.Status.Phase != corev1.PodFailed || w.pressure(corev1.NodeMemoryPressure) != corev1.ConditionTrue {
			t.Errorf("too late: %s", p.Status.Phase)
		}
	})
}

func TestEvictionForStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauges
		g.set("nodefs.available", 50<<30, 100<<30)
		w := newWorld(t, func(w *world) { w.config.Readings, w.runtime.Disk = g.read, map[string]uint64{} })
		limit := func(c *corev1.Container) {
			c.Resources.Limits = corev1.ResourceList{"ephemeral-storage": resource.MustParse("1Mi")}
		}
		w.create(pod("layer", func(p *corev1.Pod) { limit(&p.Spec.Containers[0]) }))
		empty := w.create(pod("empty", func(p *corev1.Pod) {
			q := resource.MustParse("64Ki")
			p.Spec.Volumes = []corev1.Volume{{Name: "cache", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &q}}}}
		}))
		w.create(pod("free"))
		after(time.Minute)
		w.runtime.Disk[string(w.get("layer").UID)+"/web_0"] = 2 << 20
		w.runtime.Disk[string(w.get("free").UID)+"/web_0"] = 2 << 30
		if err := os.WriteFile(filepath.Join(w.config.Dir, "pods", string(empty.UID), "volumes", "cache", "f"), make([]byte, 128<<10), 0o600); err != nil {
			t.Fatal(err)
		}
		g.set("nodefs.available", 50<<30-3<<20, 100<<30)
		after(2 * time.Minute)
		got := w.events("Evicted")
		slices.Sort(got)
		want := []string{"Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ", "Usage of EmptyDir volume \"cache\" exceeds the limit \"64Ki\". "}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if p := w.get("free"); p.Status.Phase != corev1.PodRunning {
			t.Error(p.Status.Message)
		}
		if w.pressure(corev1.NodeDiskPressure) != corev1.ConditionFalse {
			t.Error("the node is not short of disk")
		}
	})
}

func TestReclaimBeforeEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gauges
		w := newWorld(t, func(w *world) { w.config.Readings = g.read })
		w.runtime.AddImage("unused:1", agent.Image{ID: "unused", Names: []string{"unused:1"}, Size: 100})
		w.create(pod("a"))
		after(time.Second)
		used := func() bool { _, ok := w.runtime.Image("unused:1"); return ok }
		g.set("imagefs.available", 10, 100)
		go func() {
			for used() {
				time.Sleep(time.Millisecond)
			}
			g.set("imagefs.available", 50, 100)
		}()
		after(90 * time.Second)
		if used() {
			t.Error("an image that nobody uses stayed")
		}
		if _, ok := w.runtime.Image("app:1"); !ok {
			t.Error("an image in use went")
		}
	})
}

func TestThresholds(t *testing.T) {
	for text, want := range map[string]string{
		"memory.available<100Mi, nodefs.available<10%": "",
		"memory.available<0":                           "",
		"memory.available":                             "write SIGNAL<AMOUNT",
		"memory.free<1":                                "write SIGNAL<AMOUNT",
		"memory.available<1x":                          "neither an amount nor a share",
		"memory.available<100%":                        "a share is at least",
		"memory.available<NaN%":                        "a share is at least",
		"pid.available<1,pid.available<2":              "named twice",
	} {
		_, err := agent.ParseThresholds(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for name, test := range map[string]struct{ amount, want string }{
		"memory.available":   {"1Gi", ""},
		"imagefs.available":  {"5%", ""},
		"nodefs.inodesFree":  {"0", ""},
		"memory.free":        {"1", "write SIGNAL=AMOUNT"},
		"nodefs.available":   {"-1", "neither an amount nor a share"},
		"imagefs.inodesFree": {"-5%", "a share is at least"},
		"pid.available":      {"", "neither an amount nor a share"},
	} {
		_, err := agent.Thresholds{}.WithReclaim(map[string]string{name: test.amount})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s=%s: %v", name, test.amount, err)
		}
	}
}

func TestNodeAllocatable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world) {
			w.config.Reserved = corev1.ResourceList{"cpu": resource.MustParse("500m"), "memory": resource.MustParse("1Gi")}
		})
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("250m")}
		}))
		after(time.Second)
		s := w.node().Status
		if a, c := s.Allocatable, s.Capacity; c.Cpu().MilliValue()-a.Cpu().MilliValue() != 500 || c.Memory().Value()-a.Memory().Value() != 1<<30+100<<20 {
			t.Errorf("%v of %v", a, c)
		}
		b := w.runtime.Bounds()
		if b.Memory != s.Capacity.Memory().Value()-1<<30 || b.Shares != uint64(s.Allocatable.Cpu().MilliValue()*1024/1000) || b.Burstable != 256 || b.BestEffort != 2 || b.PIDs <= 0 {
			t.Errorf("%+v", b)
		}
		w.delete("a", 0)
		after(time.Second)
		if b := w.runtime.Bounds(); b.Burstable != 2 {
			t.Errorf("without the pod: %+v", b)
		}
	})
}
