package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

const (
	nodeIDAnnotation = "conclave.io/node-id"
	directAnnotation = "conclave.io/direct-routes" // read by the network
	maxNodeImages    = 50

	readyFirst   = 20 * time.Millisecond
	readyMax     = time.Second
	resyncEvery  = 5 * time.Minute
	nodeRetryMax = 10 * time.Second
)

// nodeKeeper keeps this node's Node object. It writes only what differs from
// what the API has.
type nodeKeeper struct {
	a        *Agent
	capacity corev1.ResourceList
	info     corev1.NodeSystemInfo
	pids     int64 // that the host can have
	wake     chan struct{}

	mu         sync.Mutex
	known      bool         // the API has told whether there is a Node
	node       *corev1.Node // as last seen
	registered bool
	lastReady  corev1.ConditionStatus
}

func newNodeKeeper(a *Agent) (*nodeKeeper, error) {
	n := &nodeKeeper{a: a, wake: make(chan struct{}, 1)}
	memory, err := meminfo()
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(a.cfg.Dir, &disk); err != nil {
		return nil, fmt.Errorf("agent: size of %s: %w", a.cfg.Dir, err)
	}
	n.capacity = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memory["MemTotal"], resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(a.cfg.MaxPods), resource.DecimalSI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(int64(disk.Blocks)*disk.Bsize, resource.BinarySI),
	}
	n.pids = maxPIDs()
	n.info = systemInfo(a.cfg.Version)
	return n, nil
}

// memory is the node's, in bytes.
func (n *nodeKeeper) memory() int64 { return n.capacity.Memory().Value() }

// allocatable is what pods can have: not what is reserved for the host, nor
// what is to stay free lest pods be evicted.
func (n *nodeKeeper) allocatable() corev1.ResourceList {
	l := n.capacity.DeepCopy()
	for name, s := range map[corev1.ResourceName]Signal{corev1.ResourceCPU: "", corev1.ResourceMemory: signalMemory, corev1.ResourceEphemeralStorage: signalNodefs} {
		q := l[name]
		q.Sub(n.a.cfg.Reserved[name])
		q.Sub(*resource.NewQuantity(n.a.cfg.EvictionHard.of(s).amount(q.Value()), q.Format))
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, q.Format)
		}
		l[name] = q
	}
	return l
}

// object is the Node as the API has it, nil if that is not known.
func (n *nodeKeeper) object() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.node
}

// labelled is the Node as the API has it, or as it is going to be.
func (n *nodeKeeper) labelled() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.node != nil {
		return n.node
	}
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.a.cfg.NodeName, Labels: n.labels()}}
}

func (n *nodeKeeper) registeredError() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.registered {
		return errors.New("the node is not registered yet")
	}
	return nil
}

// PathsChanged says that Config's Paths may answer differently.
func (a *Agent) PathsChanged() { poke(a.node.wake) }

// imagesChanged says that the node has other images than before.
func (n *nodeKeeper) imagesChanged() { poke(n.wake) }

func (n *nodeKeeper) labels() map[string]string {
	l := map[string]string{
		corev1.LabelHostname: n.a.cfg.NodeName, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
		// Older names of the same, which older manifests select nodes by.
		"beta.kubernetes.io/os": runtime.GOOS, "beta.kubernetes.io/arch": runtime.GOARCH,
	}
	if n.a.cfg.Zone != "" {
		l[corev1.LabelTopologyZone] = n.a.cfg.Zone
	}
	for k, v := range n.a.cfg.Labels {
		l[k] = v
	}
	return l
}

// Replace is the api.Handler of the one Node.
func (n *nodeKeeper) Replace(objects []api.Object) {
	var node *corev1.Node
	for _, o := range objects {
		if found, ok := o.(*corev1.Node); ok && found.Name == n.a.cfg.NodeName {
			node = found
		}
	}
	n.set(node)
}

// Apply is one change of it.
func (n *nodeKeeper) Apply(t watch.EventType, o api.Object) {
	node, ok := o.(*corev1.Node)
	if !ok || node.Name != n.a.cfg.NodeName {
		return
	}
	if t == watch.Deleted {
		node = nil
	}
	n.set(node)
}

func (n *nodeKeeper) set(node *corev1.Node) {
	n.mu.Lock()
	n.known, n.node = true, node
	n.mu.Unlock()
	poke(n.wake)
}

// run keeps the Node until ctx ends.
func (n *nodeKeeper) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var follower sync.WaitGroup
	defer follower.Wait()
	defer cancel()
	failed := make(chan error, 1)
	follower.Go(func() {
		failed <- n.a.follow(ctx, "this node", func() error {
			return api.Follow(ctx, n.a.cfg.Client, nodesResource, "", metav1.ListOptions{FieldSelector: "metadata.name=" + n.a.cfg.NodeName}, n)
		})
	})
	n.event(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
	fails, unready := 0, readyFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-n.wake:
		case <-n.a.cfg.AddressesChanged:
			for _, w := range n.a.allWorkers() {
				poke(w.wake) // their hostIP is one of these
			}
		case <-timer.C:
		}
		ready, err := n.sync(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			n.a.log.Debug("the Node cannot be written yet", "err", err)
			timer.Reset(min(readyFirst<<min(fails, 10), nodeRetryMax))
			fails++
		case !ready:
			// Nobody tells when the network has become ready.
			timer.Reset(unready)
			unready, fails = min(2*unready, readyMax), 0
		default:
			// Who sees a change pokes us; this is for what nobody saw.
			timer.Reset(resyncEvery)
			unready, fails = readyFirst, 0
		}
	}
}

// sync writes what differs.
func (n *nodeKeeper) sync(ctx context.Context) (ready bool, err error) {
	n.mu.Lock()
	known, node, registered := n.known, n.node, n.registered
	n.mu.Unlock()
	if !known {
		return true, nil // the follower will wake us
	}
	c := n.a.cfg.Client
	if node == nil {
		if registered {
			return true, nil // somebody removed it: that is final until we are started again
		}
		node = &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: n.a.cfg.NodeName, Labels: n.labels(), Annotations: n.annotations(&corev1.Node{})},
			Spec:       corev1.NodeSpec{ProviderID: n.a.cfg.ProviderID},
		}
		node.Status = n.status(node)
		_, err := c.Create(ctx, nodesResource, "", node.Name, node, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return false, err
		}
		return true, nil // the follower brings it
	}
	if patch := n.metadataPatch(node); patch != nil {
		if old := node.Annotations[nodeIDAnnotation]; old != "" && old != n.a.cfg.NodeID {
			n.a.log.Warn("taking over the Node of an earlier installation", "node", node.Name, "its-id", old)
		}
		if _, err := c.Patch(ctx, nodesResource, "", node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return false, err
		}
	}
	n.mu.Lock()
	n.registered = true
	n.mu.Unlock()
	want := n.status(node)
	if patch := nodeStatusPatch(&node.Status, &want); patch != nil {
		if _, err := c.Patch(ctx, nodesResource, "", node.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			return false, err
		}
		if before := node.Status.NodeInfo.BootID; before != "" && before != n.info.BootID {
			n.event(corev1.EventTypeWarning, "Rebooted", fmt.Sprintf("Node %s has been rebooted, boot id: %s", node.Name, n.info.BootID))
		}
	}
	if is, was := findNodeCondition(want.Conditions, corev1.NodeNetworkUnavailable), findNodeCondition(node.Status.Conditions, corev1.NodeNetworkUnavailable); is != nil && was != nil && is.Message != was.Message {
		kind, word := corev1.EventTypeNormal, "RouteCreated"
		if is.Reason != word {
			kind, word = corev1.EventTypeWarning, "PathsFailing"
		}
		n.event(kind, word, fmt.Sprintf("Node %s: %s", node.Name, is.Message))
	}
	now := findNodeCondition(want.Conditions, corev1.NodeReady).Status
	if now != n.lastReady {
		n.lastReady = now
		word := map[corev1.ConditionStatus]string{corev1.ConditionTrue: "NodeReady", corev1.ConditionFalse: "NodeNotReady"}[now]
		n.event(corev1.EventTypeNormal, word, fmt.Sprintf("Node %s status is now: %s", node.Name, word))
	}
	return now == corev1.ConditionTrue, nil
}

func (n *nodeKeeper) annotations(node *corev1.Node) map[string]string {
	annotations := map[string]string{api.AnnotationVolumesDir: n.a.folders.dir}
	if _, said := node.Annotations[directAnnotation]; said || n.a.cfg.DirectRoutes {
		annotations[directAnnotation] = strconv.FormatBool(n.a.cfg.DirectRoutes)
	}
	if n.a.cfg.NodeID != "" {
		annotations[nodeIDAnnotation] = n.a.cfg.NodeID
	}
	maps.Copy(annotations, n.a.cfg.Annotations)
	return annotations
}

// metadataPatch is what the Node lacks of our labels and annotations; nil if
// nothing.
func (n *nodeKeeper) metadataPatch(node *corev1.Node) []byte {
	labels, annotations := lacking(node.Labels, n.labels()), lacking(node.Annotations, n.annotations(node))
	patch := map[string]any{}
	if len(labels)+len(annotations) > 0 {
		patch["metadata"] = map[string]any{"labels": labels, "annotations": annotations}
	}
	if n.a.cfg.ProviderID != "" && node.Spec.ProviderID == "" {
		patch["spec"] = map[string]any{"providerID": n.a.cfg.ProviderID}
	}
	if len(patch) == 0 {
		return nil
	}
	data, err := json.Marshal(patch)
	if err != nil {
		return nil // strings always marshal
	}
	return data
}

func lacking(have, want map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			out[k] = v
		}
	}
	return out
}

// status is the Node's status as it should be.
func (n *nodeKeeper) status(node *corev1.Node) corev1.NodeStatus {
	s := node.Status.DeepCopy()
	s.Capacity, s.Allocatable, s.NodeInfo = n.capacity.DeepCopy(), n.allocatable(), n.info
	// What others add to a node (extended resources) stays.
	keepForeign(s.Capacity, node.Status.Capacity)
	keepForeign(s.Allocatable, node.Status.Allocatable)
	s.Addresses = nil
	for _, ip := range n.a.cfg.Addresses() {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip.String()})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: n.a.cfg.NodeName})
	if l := n.a.cfg.Listener; l != nil {
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			s.DaemonEndpoints.KubeletEndpoint.Port = int32(tcp.Port)
		}
	}
	s.RuntimeHandlers = handlerFeatures()
	s.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: new(true)}
	s.Images = nodeImages(n.a.cfg.Runtime.Images())
	s.VolumesInUse = n.a.plugins.inUse()
	s.Conditions = n.conditions(s.Conditions)
	return *s
}

func keepForeign(ours, theirs corev1.ResourceList) {
	for name, q := range theirs {
		if _, ok := ours[name]; !ok {
			ours[name] = q
		}
	}
}

func nodeImages(images []Image) []corev1.ContainerImage {
	images = slices.Clone(images)
	sort.SliceStable(images, func(i, j int) bool { return images[i].Size > images[j].Size })
	if len(images) > maxNodeImages {
		images = images[:maxNodeImages]
	}
	var out []corev1.ContainerImage
	for _, i := range images {
		out = append(out, corev1.ContainerImage{Names: append(slices.Clone(i.Digests), i.Names...), SizeBytes: i.Size})
	}
	return out
}

// conditions are the four that a kubelet keeps, then those of others. One that
// says what it said keeps its times: a Node that is well is never rewritten.
func (n *nodeKeeper) conditions(old []corev1.NodeCondition) []corev1.NodeCondition {
	pressure := n.a.pressure.conditions()
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if err := n.a.cfg.Network.Ready(); err != nil {
		ready.Status, ready.Reason = corev1.ConditionFalse, "KubeletNotReady"
		ready.Message = "container runtime network not ready: " + err.Error()
	}
	if n.a.isGoingDown() {
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", messageShuttingDown
	}
	list := []corev1.NodeCondition{
		pressureCondition(corev1.NodeMemoryPressure, pressure[corev1.NodeMemoryPressure], "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory", "kubelet has insufficient memory available", "kubelet has sufficient memory available"),
		pressureCondition(corev1.NodeDiskPressure, pressure[corev1.NodeDiskPressure], "KubeletHasDiskPressure", "KubeletHasNoDiskPressure", "kubelet has disk pressure", "kubelet has no disk pressure"),
		pressureCondition(corev1.NodePIDPressure, pressure[corev1.NodePIDPressure], "KubeletHasInsufficientPID", "KubeletHasSufficientPID", "kubelet has insufficient PID available", "kubelet has sufficient PID available"),
		ready,
	}
	if n.a.cfg.Paths != nil {
		list = append(list, pathCondition(n.a.cfg.Paths()))
	}
	now := metav1.NewTime(n.a.cfg.Now().Truncate(time.Second))
	for i := range list {
		c := &list[i]
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		if before := findNodeCondition(old, c.Type); before != nil && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
			if before.Reason == c.Reason && before.Message == c.Message {
				c.LastHeartbeatTime = before.LastHeartbeatTime
			}
		}
	}
	for _, c := range old {
		if findNodeCondition(list, c.Type) == nil {
			list = append(list, c)
		}
	}
	return list
}

// pathCondition is of the ways to other nodes' pods. The network is unavailable
// where several are known and none works: where one of two fails, nobody can
// tell which end is to blame, and both can still run pods.
func pathCondition(failing []string, some bool) corev1.NodeCondition {
	c := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "RouteCreated", Message: "the pods of all nodes that live are reached"}
	if len(failing) == 0 {
		return c
	}
	c.Reason, c.Message = "PathsFailing", "cannot reach "+strings.Join(failing, "; ")
	if len(failing) > 1 && !some {
		c.Status, c.Reason = corev1.ConditionTrue, "NoRouteCreated"
	}
	return c
}

func pressureCondition(t corev1.NodeConditionType, is bool, badReason, goodReason, bad, good string) corev1.NodeCondition {
	if is {
		return corev1.NodeCondition{Type: t, Status: corev1.ConditionTrue, Reason: badReason, Message: bad}
	}
	return corev1.NodeCondition{Type: t, Status: corev1.ConditionFalse, Reason: goodReason, Message: good}
}

func findNodeCondition(list []corev1.NodeCondition, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// nodeStatusPatch holds each field of the status that differs; nil if none.
func nodeStatusPatch(have, want *corev1.NodeStatus) []byte {
	changed := map[string]any{}
	h, w := reflect.ValueOf(have).Elem(), reflect.ValueOf(want).Elem()
	for i := range w.NumField() {
		name, _, _ := strings.Cut(w.Type().Field(i).Tag.Get("json"), ",")
		if !equality.Semantic.DeepEqual(h.Field(i).Interface(), w.Field(i).Interface()) {
			changed[name] = w.Field(i).Interface()
		}
	}
	if len(changed) == 0 {
		return nil
	}
	data, err := json.Marshal(map[string]any{"status": changed})
	if err != nil {
		return nil // API types always marshal
	}
	return data
}

func (n *nodeKeeper) event(kind, reason, message string) {
	name := n.a.cfg.NodeName
	n.a.events.event(corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: name, UID: types.UID(name)}, kind, reason, message)
}

// meminfo is /proc/meminfo in bytes.
func meminfo() (map[string]int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if v, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			out[name] = v << 10
		}
	}
	return out, nil
}

func systemInfo(version string) corev1.NodeSystemInfo {
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(data))
	}
	info := corev1.NodeSystemInfo{
		MachineID: read("/etc/machine-id"), SystemUUID: read("/sys/class/dmi/id/product_uuid"),
		BootID: read("/proc/sys/kernel/random/boot_id"), KernelVersion: read("/proc/sys/kernel/osrelease"),
		OSImage: "Linux", OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
		KubeletVersion: version, ContainerRuntimeVersion: containerIDPrefix + version,
	}
	if info.SystemUUID == "" {
		info.SystemUUID = info.MachineID
	}
	for _, line := range strings.Split(read("/etc/os-release"), "\n") {
		if name, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			info.OSImage = strings.Trim(name, `"'`)
		}
	}
	return info
}
