package api

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// The resource metrics API, which `kubectl top` reads, and the same for our own
// autoscalers (MeasurePods). It is answered by asking the nodes: nothing is
// collected while nobody asks. A node that was not asked for a while measures
// twice, a second apart; one that was tells the rate since then.

var metricsVersion = schema.GroupVersion{Group: "metrics.k8s.io", Version: "v1beta1"}

const (
	metricsPatience = 10 * time.Second // with one node
	metricsAtOnce   = 16               // nodes asked at the same time
	summaryWindow   = "Conclave-Window"
	longestSummary  = 16 << 20
)

// usage is a NodeMetrics or a PodMetrics.
type usage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Timestamp         metav1.Time         `json:"timestamp"`
	Window            metav1.Duration     `json:"window"`
	Usage             corev1.ResourceList `json:"usage,omitempty"`      // of a node
	Containers        []containerUsage    `json:"containers,omitempty"` // of a pod
}

type containerUsage struct {
	Name  string              `json:"name"`
	Usage corev1.ResourceList `json:"usage"`
}

func (u usage) total() corev1.ResourceList {
	if len(u.Containers) == 0 {
		return u.Usage
	}
	var cpu, memory quantity.Quantity
	for _, c := range u.Containers {
		cpu.Add(c.Usage[corev1.ResourceCPU])
		memory.Add(c.Usage[corev1.ResourceMemory])
	}
	return corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}
}

type usageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []usage `json:"items"`
}

type measuredKind struct {
	of         schema.GroupVersionResource
	kind       string
	namespaced bool
}

// measurable are the resources of the API, with the kind that each is of.
var measurable = []measuredKind{{nodes, "NodeMetrics", false}, {pods, "PodMetrics", true}}

func metricsResources() (out []metav1.APIResource) {
	for _, m := range measurable {
		out = append(out, metav1.APIResource{Name: m.of.Resource, Namespaced: m.namespaced, Kind: m.kind, Verbs: metav1.Verbs{"get", "list"}})
	}
	return out
}

// metrics answers a request to the API.
func (x *exchange) metrics(ctx context.Context) error {
	t := x.target
	at := slices.IndexFunc(measurable, func(m measuredKind) bool { return m.of.Resource == t.Resource.Resource })
	if at < 0 || t.Subresource != "" {
		return errNoSuchPath
	}
	m := measurable[at]
	if !m.namespaced && t.Namespace != "" {
		return errNoSuchPath
	}
	if t.Verb != "get" && t.Verb != "list" {
		return x.methodNotAllowed()
	}
	if x.format.as != "Table" {
		x.format.as = ""
	}
	c := &call{s: x.s, res: x.s.resource(m.of), user: x.user, namespace: t.Namespace, name: t.Name}
	var records []Record
	if t.Verb == "get" {
		rec, err := c.get(ctx, metav1.GetOptions{}, true)
		if apierrors.IsNotFound(err) {
			return x.notMeasured(t.Name)
		}
		if err != nil {
			return err
		}
		records = []Record{rec}
	} else {
		o, err := x.listOptions()
		if err != nil {
			return err
		}
		l, err := c.list(ctx, o, true)
		if err != nil {
			return err
		}
		records = l.records
	}
	items := x.measure(ctx, m.kind, records)
	if t.Verb == "get" && len(items) == 0 {
		return x.notMeasured(t.Name)
	}
	if x.format.as == "Table" {
		return x.object(http.StatusOK, usageTable(x.format.gv, items))
	}
	var answer interface{ protobuf() ([]byte, error) } = usageList{TypeMeta: typeMeta(metricsVersion.WithKind(m.kind + "List")), Items: items}
	kind := m.kind + "List"
	if t.Verb == "get" {
		answer, kind = items[0], m.kind
	}
	var data []byte
	var err error
	if x.format.media == mediaProtobuf {
		if data, err = answer.protobuf(); err == nil {
			data, err = envelope(metricsVersion.WithKind(kind), data)
		}
	} else if data, err = json.Marshal(answer); err == nil && x.format.media == mediaYAML {
		data, err = yaml.JSONToYAML(data)
	}
	if err != nil {
		return err
	}
	return x.bytes(http.StatusOK, data)
}

// The messages of the API's published definition, written by hand: its module
// would bring a second set of types for two of them.

type message interface{ Marshal() ([]byte, error) }

// appendMessages appends messages under ascending numbers from 1.
func appendMessages(b []byte, all ...message) ([]byte, error) {
	for i, m := range all {
		data, err := m.Marshal()
		if err != nil {
			return nil, err
		}
		b = appendBytesField(b, byte(i+1), data)
	}
	return b, nil
}

// appendAmounts appends a map of quantities under a number.
func appendAmounts(b []byte, number byte, list corev1.ResourceList) ([]byte, error) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		q := list[name]
		data, err := q.Marshal()
		if err != nil {
			return nil, err
		}
		b = appendBytesField(b, number, appendBytesField(appendBytesField(nil, 1, []byte(name)), 2, data))
	}
	return b, nil
}

func (u usage) protobuf() ([]byte, error) {
	b, err := appendMessages(nil, &u.ObjectMeta, &u.Timestamp, &u.Window)
	if err != nil {
		return nil, err
	}
	if b, err = appendAmounts(b, 4, u.Usage); err != nil {
		return nil, err
	}
	for _, c := range u.Containers {
		one, err := appendAmounts(appendBytesField(nil, 1, []byte(c.Name)), 2, c.Usage)
		if err != nil {
			return nil, err
		}
		b = appendBytesField(b, 4, one)
	}
	return b, nil
}

func (l usageList) protobuf() ([]byte, error) {
	b, err := appendMessages(nil, &l.ListMeta)
	for _, u := range l.Items {
		one, err := u.protobuf()
		if err != nil {
			return nil, err
		}
		b = appendBytesField(b, 2, one)
	}
	return b, err
}

func (x *exchange) notMeasured(name string) error {
	return apierrors.NewNotFound(metricsVersion.WithResource(x.target.Resource.Resource).GroupResource(), name)
}

func usageTable(gv schema.GroupVersion, items []usage) *metav1.Table {
	t := &metav1.Table{TypeMeta: typeMeta(gv.WithKind("Table")), Rows: []metav1.TableRow{}, ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "CPU", Type: "string", Format: "quantity", Description: "CPU usage"},
		{Name: "Memory", Type: "string", Format: "quantity", Description: "Memory usage"},
		{Name: "Window", Type: "string", Format: "duration", Description: "Window over which the usage was measured"},
	}}
	for _, u := range items {
		total := u.total()
		row := metav1.TableRow{Cells: []any{u.Name, total.Cpu().String(), total.Memory().String(), u.Window.Duration.String()}}
		row.Object = runtime.RawExtension{Object: &metav1.PartialObjectMetadata{TypeMeta: typeMeta(gv.WithKind("PartialObjectMetadata")), ObjectMeta: u.ObjectMeta}}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// summary is the part of a kubelet's /stats/summary that is read.
type summary struct {
	Node   consumption      `json:"node"`
	Pods   []podConsumption `json:"pods"`
	window time.Duration
}

type podConsumption struct {
	PodRef struct {
		UID string `json:"uid"`
	} `json:"podRef"`
	Containers []consumption `json:"containers"`
}

type consumption struct {
	Name string `json:"name"`
	CPU  struct {
		Time           metav1.Time `json:"time"`
		UsageNanoCores *int64      `json:"usageNanoCores"`
	} `json:"cpu"`
	Memory struct {
		WorkingSetBytes int64 `json:"workingSetBytes"`
	} `json:"memory"`
}

func (c consumption) list() corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    *quantity.NewScaledQuantity(*c.CPU.UsageNanoCores, quantity.Nano),
		corev1.ResourceMemory: *quantity.NewQuantity(c.Memory.WorkingSetBytes, quantity.BinarySI),
	}
}

// summaries asks the nodes that are the keys. One that cannot be measured is left
// with nothing.
func (s *Server) summaries(ctx context.Context, ask map[string]*summary) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, metricsAtOnce)
	for _, name := range slices.Collect(maps.Keys(ask)) {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			found, err := s.summaryOf(ctx, name)
			if err != nil {
				s.log.Debug("a node cannot be measured", "node", name, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ask[name] = found
		})
	}
	wg.Wait()
}

// PodUsage is what the containers of a pod used, by their names: the average of
// the Window before Time.
type PodUsage struct {
	Time       time.Time
	Window     time.Duration
	Containers map[string]corev1.ResourceList
}

// MeasurePods asks the nodes of pods what they use. A pod that does not run, or
// cannot be measured, is not in the answer.
func (s *Server) MeasurePods(ctx context.Context, pods []*corev1.Pod) map[types.UID]PodUsage {
	ask := map[string]*summary{}
	for _, pod := range pods {
		if pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodRunning {
			ask[pod.Spec.NodeName] = nil
		}
	}
	s.summaries(ctx, ask)
	all := map[types.UID]PodUsage{}
	for _, pod := range pods {
		of := ask[pod.Spec.NodeName]
		if of == nil {
			continue
		}
		at := slices.IndexFunc(of.Pods, func(p podConsumption) bool { return p.PodRef.UID == string(pod.UID) })
		if at < 0 {
			continue
		}
		u := PodUsage{Window: of.window, Containers: map[string]corev1.ResourceList{}}
		for _, c := range of.Pods[at].Containers {
			if c.CPU.UsageNanoCores != nil {
				u.Time = c.CPU.Time.Time
				u.Containers[c.Name] = c.list()
			}
		}
		if len(u.Containers) > 0 {
			all[pod.UID] = u
		}
	}
	return all
}

// measure is of the nodes or the pods that records are. What cannot be measured
// is left out.
func (x *exchange) measure(ctx context.Context, kind string, records []Record) []usage {
	nodes := map[string]*summary{}
	var pods []*corev1.Pod
	for _, rec := range records {
		switch obj := rec.Object().(type) {
		case *corev1.Node:
			nodes[obj.Name] = nil
		case *corev1.Pod:
			pods = append(pods, obj)
		}
	}
	x.s.summaries(ctx, nodes)
	used := x.s.MeasurePods(ctx, pods)
	items := []usage{}
	add := func(obj Object, at time.Time, window time.Duration) *usage {
		items = append(items, usage{
			TypeMeta:   typeMeta(metricsVersion.WithKind(kind)),
			ObjectMeta: metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace(), Labels: obj.GetLabels(), CreationTimestamp: metav1.NewTime(at)},
			Timestamp:  metav1.NewTime(at), Window: metav1.Duration{Duration: window},
		})
		return &items[len(items)-1]
	}
	for _, rec := range records {
		switch obj := rec.Object().(type) {
		case *corev1.Node:
			if s := nodes[obj.Name]; s != nil && s.Node.CPU.UsageNanoCores != nil {
				add(obj, s.Node.CPU.Time.Time, s.window).Usage = s.Node.list()
			}
		case *corev1.Pod:
			u, ok := used[obj.UID]
			if !ok {
				continue
			}
			item := add(obj, u.Time, u.Window)
			for _, name := range slices.Sorted(maps.Keys(u.Containers)) {
				item.Containers = append(item.Containers, containerUsage{name, u.Containers[name]})
			}
		}
	}
	return items
}

func (s *Server) summaryOf(ctx context.Context, node string) (*summary, error) {
	ctx, cancel := context.WithTimeout(ctx, metricsPatience)
	defer cancel()
	base, rt, err := s.kubelet(ctx, node)
	if err != nil {
		return nil, err
	}
	if idle, ok := rt.(interface{ CloseIdleConnections() }); ok {
		defer idle.CloseIdleConnections() // nobody else has this one
	}
	to := base.JoinPath("/stats/summary")
	to.RawQuery = "only_cpu_and_memory=true"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the kubelet answers %s", resp.Status)
	}
	var of summary
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, longestSummary)).Decode(&of); err != nil {
		return nil, fmt.Errorf("read the kubelet's summary: %w", err)
	}
	if of.window, err = time.ParseDuration(resp.Header.Get(summaryWindow)); err != nil {
		return nil, fmt.Errorf("the kubelet's summary says no window: %w", err)
	}
	return &of, nil
}
