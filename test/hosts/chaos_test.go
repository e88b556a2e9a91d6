package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
)

// leader is the name of the host that leads, once all masters can vote.
func leader(t *testing.T, c *cluster.Cluster, masters int) string {
	t.Helper()
	var status struct {
		Leader  string
		Members []struct{ Role string }
	}
	eventually(t, fmt.Sprintf("a leader among %d masters", masters), func() error {
		out, err := c.Ask(t.Context(), "status", "-o", "json")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return err
		}
		voters := 0
		for _, m := range status.Members {
			if m.Role == "leader" || m.Role == "master" {
				voters++
			}
		}
		if status.Leader == "" || voters != masters {
			return fmt.Errorf("the status is %s", out)
		}
		return nil
	})
	return status.Leader
}

// others are the names of the hosts but one.
func others(c *cluster.Cluster, without string) []string {
	var all []string
	for _, h := range c.Hosts {
		if h.Name != without {
			all = append(all, h.Name)
		}
	}
	return all
}

// clientsOf are clients by way of one host each; no request takes longer than
// limit.
func clientsOf(t *testing.T, c *cluster.Cluster, limit time.Duration, hosts ...string) []*kubernetes.Clientset {
	t.Helper()
	var all []*kubernetes.Clientset
	for _, h := range hosts {
		client, err := c.ClientFor(h, func(r *rest.Config) { r.Timeout = limit })
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, client)
	}
	return all
}

// outcome is what clients know of what they wrote.
type outcome struct {
	mu        sync.Mutex
	written   map[string]string // by the writer's mark: the name of the acknowledged object
	uncertain map[string]bool   // no answer that says yes or no
	failures  map[string]int
	perClient []atomic.Int64
}

// write keeps creating objects under generated names, one try each.
func (o *outcome) write(ctx context.Context, number int, client *kubernetes.Clientset) {
	for i := 0; ctx.Err() == nil; i++ {
		mark := fmt.Sprintf("%d-%d", number, i)
		made, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "w-", Labels: map[string]string{"chaos": "yes"}}, Data: map[string]string{"mark": mark},
		}, metav1.CreateOptions{})
		o.mu.Lock()
		if err == nil {
			o.written[mark] = made.Name
			o.perClient[number].Add(1)
		} else {
			o.uncertain[mark] = true
			o.failures[err.Error()]++
		}
		o.mu.Unlock()
	}
}

// silence returns what fails as long as the clients from that number on get
// their writes acknowledged.
func (o *outcome) silence(from int) func() error {
	count := func() (n int64) {
		for i := from; i < len(o.perClient); i++ {
			n += o.perClient[i].Load()
		}
		return n
	}
	last := count()
	return func() error {
		if n := count(); n != last {
			last = n
			return errors.New("writes are acknowledged")
		}
		return nil
	}
}

// TestLeaderKilledWhileClientsWrite ends the leader by SIGKILL while twenty
// clients write through the other hosts, some of them to one shared counter.
// Further clients write through the leader itself, which thus dies with entries
// in its log that nobody else has.
func TestLeaderKilledWhileClientsWrite(t *testing.T) {
	t.Parallel()
	const writers, counters, doomed = 16, 4, 4
	c := own(t, 3)
	chief := leader(t, c, 3)
	clients := clientsOf(t, c, 10*time.Second, others(c, chief)...)
	if _, err := clients[0].CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "counter"}, Data: map[string]string{"n": "0"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	o := &outcome{written: map[string]string{}, uncertain: map[string]bool{}, failures: map[string]int{}, perClient: make([]atomic.Int64, writers+counters+doomed)}
	var added, perhaps atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var working sync.WaitGroup
	for i := range writers {
		working.Go(func() { o.write(ctx, i, clients[i%2]) })
	}
	for i := range counters {
		working.Go(func() {
			api := clients[i%2].CoreV1().ConfigMaps("default")
			for ctx.Err() == nil {
				cm, err := api.Get(ctx, "counter", metav1.GetOptions{})
				if err != nil {
					continue
				}
				n, err := strconv.Atoi(cm.Data["n"])
				if err != nil {
					t.Errorf("the counter is %q", cm.Data["n"])
					return
				}
				cm.Data["n"] = strconv.Itoa(n + 1)
				switch _, err := api.Update(ctx, cm, metav1.UpdateOptions{}); {
				case err == nil:
					added.Add(1)
					o.perClient[writers+i].Add(1)
				case !apierrors.IsConflict(err):
					perhaps.Add(1)
				}
			}
		})
	}
	direct, hangUp := context.WithCancel(ctx)
	defer hangUp()
	for i := range doomed {
		client := clientsOf(t, c, 10*time.Second, chief)[0]
		working.Go(func() { o.write(direct, writers+counters+i, client) })
	}
	// Everybody has written, then everybody who can has written again.
	progress := func(what string, clients int) {
		t.Helper()
		var since []int64
		for i := range clients {
			since = append(since, o.perClient[i].Load())
		}
		eventually(t, what, func() error {
			for i := range clients {
				if o.perClient[i].Load() < since[i]+3 {
					return fmt.Errorf("client %d has written %d times, %d before", i, o.perClient[i].Load(), since[i])
				}
			}
			return nil
		})
	}
	progress("all clients write", writers+counters+doomed)
	// Cut off, the leader takes writes that it cannot commit.
	if err := c.Partition([]string{chief}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody gets answers from the leader", o.silence(writers+counters))
	killed := time.Now()
	if err := c.Kill(chief); err != nil {
		t.Fatal(err)
	}
	hangUp()
	progress("all clients write again", writers+counters)
	// Only now: what the dead leader had sent is still on the wire until then.
	if err := c.Heal(); err != nil {
		t.Fatal(err)
	}
	t.Logf("the last of %d clients had written again after %s", writers+counters, time.Since(killed))
	stop()
	working.Wait()
	t.Logf("%d objects acknowledged, %d tries without answer: %v", len(o.written), len(o.uncertain), o.failures)
	if err := c.Start(chief, "up"); err != nil {
		t.Fatal(err)
	}
	leader(t, c, 3)
	for _, h := range c.Hosts { // each tells the same, the one that was killed too
		client := clientsOf(t, c, time.Minute, h.Name)[0]
		var all *corev1.ConfigMapList
		eventually(t, h.Name+" answers", func() (err error) {
			all, err = client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{LabelSelector: "chaos=yes"})
			return err
		})
		found := map[string]string{}
		for _, cm := range all.Items {
			mark := cm.Data["mark"]
			if twice := found[mark]; twice != "" {
				t.Errorf("%s: mark %s is in %s and in %s", h.Name, mark, twice, cm.Name)
			}
			if found[mark] = cm.Name; o.written[mark] == "" && !o.uncertain[mark] {
				t.Errorf("%s: nobody wrote the mark %q of %s", h.Name, mark, cm.Name)
			}
		}
		for mark, name := range o.written {
			if found[mark] != name {
				t.Errorf("%s: mark %s was acknowledged as %s, and is in %q", h.Name, mark, name, found[mark])
			}
		}
		counter, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), "counter", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := strconv.ParseInt(counter.Data["n"], 10, 64); err != nil || n < added.Load() || n > added.Load()+perhaps.Load() {
			t.Errorf("%s: the counter is %s after %d increments and %d without answer", h.Name, counter.Data["n"], added.Load(), perhaps.Load())
		}
	}
}

// serving makes an application of n pods and its Service, waits until it runs,
// and returns the page's address.
func serving(t *testing.T, c *cluster.Cluster, n int32) string {
	t.Helper()
	w := &world{c: c, ns: "default"}
	pod := toolPod("", "", map[string]string{"app": "page"}, "serve", "http:8080")
	d := newDeployment("page", n, corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec})
	d.Spec.Template.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: d.Spec.Selector}}
	w.create(t, d)
	s := w.service(t, "page", func(s *corev1.Service) { s.Spec.Selector = pod.Labels })
	w.complete(t, "page")
	return pageAt(s.Spec.ClusterIP, 80)
}

// podsOn are the application's pods on a node, or all if node is empty.
func podsOn(ctx context.Context, c *cluster.Cluster, node string) ([]corev1.Pod, error) {
	all, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=page"})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all.Items, func(p corev1.Pod) bool { return node != "" && p.Spec.NodeName != node }), nil
}

// wantServed fetches a page from a host until it came 30 times in a row.
func wantServed(t *testing.T, c *cluster.Cluster, tool, host, page string) {
	t.Helper()
	eventually(t, page+" is served to "+host, func() error {
		out, err := c.On(t.Context(), host, tool, "get", "-n", "30", page)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func hostTool(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	tool, err := cluster.Tool(t.Context(), c.Root)
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

// TestPowerOff cuts the power of a host: its pods leave the endpoints before
// they are replaced, and once it is back it is used again.
func TestPowerOff(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	tool := hostTool(t, c)
	page := serving(t, c, 4)
	rest := others(c, leader(t, c, 3))
	victim, survivor := rest[0], rest[1]
	c.Client = clientsOf(t, c, 0, survivor)[0]
	lost, err := podsOn(t.Context(), c, victim)
	if err != nil || len(lost) == 0 {
		t.Fatalf("on %s run %v (%v)", victim, lost, err)
	}
	before, err := podsOn(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	known, gone := map[types.UID]bool{}, map[string]bool{}
	for _, p := range before {
		known[p.UID] = true
	}
	for _, p := range lost {
		gone[p.Status.PodIP] = true
	}
	watchingSlices, err := c.Client.DiscoveryV1().EndpointSlices("default").Watch(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=page"})
	if err != nil {
		t.Fatal(err)
	}
	defer watchingSlices.Stop()
	watchingPods, err := c.Client.CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=page"})
	if err != nil {
		t.Fatal(err)
	}
	defer watchingPods.Stop()

	if err := c.PowerOff(victim); err != nil {
		t.Fatal(err)
	}
	// The log gives both kinds of event one order.
	slice := awaitEvent(t, watchingSlices, "MODIFIED", func(s *discoveryv1.EndpointSlice) bool {
		return !slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return gone[e.Addresses[0]] && ptr.Deref(e.Conditions.Ready, true) })
	})
	replaced := awaitEvent(t, watchingPods, "ADDED", func(p *corev1.Pod) bool { return !known[p.UID] })
	if left, came := version(t, slice.ResourceVersion), version(t, replaced.ResourceVersion); left >= came {
		t.Errorf("the endpoints were left at %d, but the first new pod came at %d", left, came)
	}
	for _, h := range others(c, victim) {
		wantServed(t, c, tool, h, page)
	}
	wantReadyPage(t, c, 4, victim)

	if err := c.Boot(victim, netip.Addr{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(victim, "up"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: "default"}
	eventually(t, "the node is ready and untainted", func() error {
		n, err := c.Client.CoreV1().Nodes().Get(t.Context(), victim, metav1.GetOptions{})
		if err == nil && (len(n.Spec.Taints) > 0 || !nodeReady(n)) {
			err = fmt.Errorf("its taints are %v, its conditions %v", n.Spec.Taints, n.Status.Conditions)
		}
		return err
	})
	kubectl(t, c, "scale", "deployment/page", "--replicas=9")
	w.complete(t, "page")
	again, err := podsOn(t.Context(), c, victim)
	if err != nil || len(again) == 0 {
		t.Fatalf("of 9 pods none is on %s (%v)", victim, err)
	}
	// The page has no readiness probe: its process may run before it listens.
	eventually(t, "a pod on the node that is back answers", func() error {
		out, err := c.On(t.Context(), survivor, tool, "get", pageAt(again[0].Status.PodIP, 8080))
		if err == nil && strings.TrimSpace(out) != again[0].Name {
			err = fmt.Errorf("it answers %q", out)
		}
		return err
	})
	for _, h := range c.Hosts {
		wantServed(t, c, tool, h.Name, page)
	}
}

func version(t *testing.T, s string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// wantReadyPage waits until exactly n pods serve the page, none of them on away.
func wantReadyPage(t *testing.T, c *cluster.Cluster, n int, away string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d pods are ready", n), func() error {
		all, err := podsOn(t.Context(), c, "")
		if err != nil {
			return err
		}
		ready := 0
		for _, p := range all {
			if podReady(&p) && p.DeletionTimestamp == nil && p.Spec.NodeName != away {
				ready++
			}
		}
		if ready != n {
			return fmt.Errorf("%d are", ready)
		}
		return nil
	})
}

// servers are how many containers of an application run on a host.
func servers(t *testing.T, c *cluster.Cluster, host string) int {
	t.Helper()
	out, err := c.On(t.Context(), host, "sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -c '^/tool serve http:8080 $'; true`)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestPartition cuts the leader's host off. The others go on without it; it
// refuses to write, but its pods go on; healed, all is whole.
func TestPartition(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	tool := hostTool(t, c)
	page := serving(t, c, 4)
	minority := leader(t, c, 3)
	majority := others(c, minority)
	atMinority, atMajority := clientsOf(t, c, 45*time.Second, minority)[0], clientsOf(t, c, 45*time.Second, majority[0])[0]

	w := &world{c: c, ns: "default"}
	stays := toolPod("stays", minority, map[string]string{"app": "stays"}, "serve", "http:8090")
	stays.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
	stays.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8090}}
	stayed := runPods(t, c, "default", stays)[0]
	service := w.service(t, "stays", func(s *corev1.Service) {
		s.Spec.Selector, s.Spec.Ports[0].TargetPort = stays.Labels, intstr.FromInt32(8090)
	})
	served := func(when string) {
		t.Helper()
		for _, address := range []string{pageAt(stayed.Status.PodIP, 8090), pageAt(service.Spec.ClusterIP, 80)} {
			if out, err := c.On(t.Context(), minority, tool, "get", address); err != nil || strings.TrimSpace(out) != "stays" {
				t.Errorf("%s %s answers %q (%v)", when, address, out, err)
			}
		}
	}
	eventually(t, "the service has its endpoint", func() error {
		_, err := c.On(t.Context(), minority, tool, "get", pageAt(service.Spec.ClusterIP, 80))
		return err
	})
	served("before the cut")
	acknowledged := writeMarks(t, c, "before-cut", 10)

	if err := c.Partition([]string{minority}, majority); err != nil {
		t.Fatal(err)
	}
	c.Client = atMajority
	eventually(t, "the majority writes", func() error {
		_, err := atMajority.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "majority"}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	acknowledged = append(append(acknowledged, "majority"), writeMarks(t, c, "during-cut", 10)...)
	var asking sync.WaitGroup // each waits for a leader for a while
	for i := range 3 {
		asking.Go(func() {
			_, err := atMinority.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("minority-%d", i)}}, metav1.CreateOptions{})
			if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "the cluster has no leader that this server reaches") {
				t.Errorf("a write at the minority: %v", err)
			}
		})
	}
	asking.Go(func() {
		if _, err := atMinority.CoreV1().ConfigMaps("default").Get(t.Context(), "majority", metav1.GetOptions{}); !apierrors.IsServiceUnavailable(err) {
			t.Errorf("a read at the minority, which cannot know the answer: %v", err)
		}
	})
	asking.Wait()
	if old, err := atMinority.CoreV1().ConfigMaps("default").Get(t.Context(), acknowledged[0], metav1.GetOptions{ResourceVersion: "0"}); err != nil || old.Name != acknowledged[0] {
		t.Errorf("the minority does not answer a read of what it had: %v", err)
	}
	wantReadyPage(t, c, 4, minority)
	for _, h := range majority {
		wantServed(t, c, tool, h, page)
	}
	served("during the cut")

	if err := c.Heal(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all nodes are ready again", func() error {
		all, err := atMinority.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range all.Items {
			if !nodeReady(&n) || len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s has the taints %v", n.Name, n.Spec.Taints)
			}
		}
		return nil
	})
	leader(t, c, 3)
	for _, client := range []*kubernetes.Clientset{atMinority, atMajority} {
		for _, name := range acknowledged {
			if _, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
		}
		for i := range 3 {
			if _, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), fmt.Sprintf("minority-%d", i), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("a refused write is there: %v", err)
			}
		}
	}
	if _, err := atMinority.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "healed"}}, metav1.CreateOptions{}); err != nil {
		t.Errorf("a write through the healed host: %v", err)
	}
	wantReadyPage(t, c, 4, "")
	eventually(t, "as many containers run as pods are known", func() error {
		for _, h := range c.Hosts {
			pods, err := podsOn(t.Context(), c, h.Name)
			if err != nil {
				return err
			}
			if n := servers(t, c, h.Name); n != len(pods) {
				return fmt.Errorf("on %s run %d containers for %d pods", h.Name, n, len(pods))
			}
		}
		return nil
	})
	eventually(t, "the pod that stayed is ready and has never been restarted", func() error {
		p, err := c.Client.CoreV1().Pods("default").Get(t.Context(), "stays", metav1.GetOptions{})
		if err == nil && (p.UID != stayed.UID || !podReady(p) || p.Status.ContainerStatuses[0].ContainerID != stayed.Status.ContainerStatuses[0].ContainerID) {
			err = fmt.Errorf("its status is %+v", p.Status)
		}
		return err
	})
	served("after the cut")
	for _, h := range c.Hosts {
		wantServed(t, c, tool, h.Name, page)
		wantServed(t, c, tool, h.Name, pageAt(service.Spec.ClusterIP, 80))
	}
}
