package agent

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// measured are the stats of one running container.
type measured struct {
	view      podView
	container string
	id        string
	started   time.Time
	Stats
}

func (a *Agent) measure() []measured {
	var all []measured
	for _, v := range a.views() {
		for _, name := range sortedKeys(v.running) {
			s, err := a.cfg.Runtime.Stats(string(v.pod.UID), v.running[name])
			if err != nil {
				a.log.Debug("a container cannot be measured", "container", v.running[name], "err", err)
				continue
			}
			if s.Time.IsZero() {
				s.Time = a.cfg.Now()
			}
			m := measured{view: v, container: name, id: v.running[name], Stats: s}
			if cs := statusOf(v.pod, name); cs != nil && cs.State.Running != nil {
				m.started = cs.State.Running.StartedAt.Time
			}
			all = append(all, m)
		}
	}
	return all
}

// sample is all of the node measured once.
type sample struct {
	at         time.Time
	cpu        uint64 // of the host, in nanoseconds
	memory     uint64
	containers []measured
}

func (a *Agent) sample() (*sample, error) {
	cpu, memory, err := hostUsage()
	if err != nil {
		return nil, err
	}
	return &sample{a.cfg.Now(), cpu, memory, a.measure()}, nil
}

// usageMeter makes rates of samples. Nothing is measured while nobody asks: who
// asks first waits for a second sample; who asks again within a while gets the
// rate since the last time; who asks at once again the same answer. Somebody
// who looks every minute never waits, and what is remembered for that is
// forgotten when he stops.
type usageMeter struct {
	mu           sync.Mutex // held while measuring: they who ask together share one answer
	older, newer *sample
	forget       *time.Timer
}

const (
	rateFresh  = 5 * time.Second // an answer is as good as new
	rateOld    = 2 * time.Minute // a sample is no base for a rate
	rateWindow = time.Second     // between two samples where there is none
)

func (m *usageMeter) take(ctx context.Context, a *Agent) (older, newer *sample, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.forget != nil {
		m.forget.Stop()
	}
	defer func() {
		m.forget = time.AfterFunc(rateOld, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.older, m.newer = nil, nil
		})
	}()
	age := rateOld
	if m.newer != nil {
		age = a.cfg.Now().Sub(m.newer.at)
	}
	if age < rateFresh {
		return m.older, m.newer, nil
	}
	base := m.newer
	if age >= rateOld {
		if base, err = a.sample(); err != nil {
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(rateWindow):
		}
	}
	now, err := a.sample()
	if err != nil {
		return nil, nil, err
	}
	m.older, m.newer = base, now
	return base, now, nil
}

// rate is a usage in nanoseconds of processor time per second.
func rate(from, to uint64, over time.Duration) *uint64 {
	if over <= 0 || to < from {
		return nil
	}
	n := uint64(float64(to-from) / over.Seconds())
	return &n
}

// The kubelet's summary.
type (
	summary struct {
		Node nodeSummary  `json:"node"`
		Pods []podSummary `json:"pods"`
	}
	nodeSummary struct {
		NodeName  string        `json:"nodeName"`
		StartTime metav1.Time   `json:"startTime"`
		CPU       cpuSummary    `json:"cpu"`
		Memory    memorySummary `json:"memory"`
		// SystemContainers has one entry, "pods": all that pods use.
		SystemContainers []containerSummary `json:"systemContainers,omitempty"`
		FS               *fsSummary         `json:"fs,omitempty"`
		Runtime          *runtimeSummary    `json:"runtime,omitempty"`
		Rlimit           *rlimitSummary     `json:"rlimit,omitempty"`
	}
	runtimeSummary struct {
		ImageFS     *fsSummary `json:"imageFs,omitempty"`
		ContainerFS *fsSummary `json:"containerFs,omitempty"`
	}
	rlimitSummary struct {
		Time    metav1.Time `json:"time"`
		MaxPID  int64       `json:"maxpid"`
		CurProc int64       `json:"curproc"`
	}
	podSummary struct {
		PodRef struct {
			Name      string `json:"name"`
			Namespace string `json:"namespace"`
			UID       string `json:"uid"`
		} `json:"podRef"`
		StartTime        metav1.Time        `json:"startTime"`
		Containers       []containerSummary `json:"containers"`
		CPU              cpuSummary         `json:"cpu"`
		Memory           memorySummary      `json:"memory"`
		Network          *networkSummary    `json:"network,omitempty"`
		Volumes          []volumeSummary    `json:"volume,omitempty"`
		EphemeralStorage *fsSummary         `json:"ephemeral-storage,omitempty"`
		ProcessStats     *processSummary    `json:"process_stats,omitempty"`
	}
	processSummary struct {
		Count uint64 `json:"process_count"`
	}
	containerSummary struct {
		Name      string        `json:"name"`
		StartTime metav1.Time   `json:"startTime"`
		CPU       cpuSummary    `json:"cpu"`
		Memory    memorySummary `json:"memory"`
		RootFS    *fsSummary    `json:"rootfs,omitempty"`
		Logs      *fsSummary    `json:"logs,omitempty"`
	}
	cpuSummary struct {
		Time                 metav1.Time `json:"time"`
		UsageNanoCores       *uint64     `json:"usageNanoCores,omitempty"`
		UsageCoreNanoSeconds uint64      `json:"usageCoreNanoSeconds"`
	}
	memorySummary struct {
		Time            metav1.Time `json:"time"`
		AvailableBytes  *uint64     `json:"availableBytes,omitempty"`
		UsageBytes      uint64      `json:"usageBytes"`
		WorkingSetBytes uint64      `json:"workingSetBytes"`
		RSSBytes        uint64      `json:"rssBytes,omitempty"`
		PageFaults      uint64      `json:"pageFaults,omitempty"`
		MajorPageFaults uint64      `json:"majorPageFaults,omitempty"`
	}
	fsSummary struct {
		Time           metav1.Time `json:"time"`
		AvailableBytes *uint64     `json:"availableBytes,omitempty"`
		CapacityBytes  *uint64     `json:"capacityBytes,omitempty"`
		UsedBytes      *uint64     `json:"usedBytes,omitempty"`
		InodesFree     *uint64     `json:"inodesFree,omitempty"`
		Inodes         *uint64     `json:"inodes,omitempty"`
		InodesUsed     *uint64     `json:"inodesUsed,omitempty"`
	}
	volumeSummary struct {
		fsSummary
		Name   string        `json:"name"`
		PVCRef *claimSummary `json:"pvcRef,omitempty"`
	}
	claimSummary struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	}
	networkSummary struct {
		Time metav1.Time `json:"time"`
		interfaceSummary
		Interfaces []interfaceSummary `json:"interfaces"`
	}
	interfaceSummary struct {
		Name     string `json:"name"`
		RxBytes  uint64 `json:"rxBytes"`
		RxErrors uint64 `json:"rxErrors"`
		TxBytes  uint64 `json:"txBytes"`
		TxErrors uint64 `json:"txErrors"`
	}
)

// windowHeader tells over how long the rates of a summary are.
const windowHeader = "Conclave-Window"

// serveSummary answers /stats/summary. What a pod has written is found by
// walking it, which only_cpu_and_memory spares.
func (a *Agent) serveSummary(w http.ResponseWriter, r *http.Request) {
	older, newer, err := a.meter.take(r.Context(), a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	whole := r.FormValue("only_cpu_and_memory") != "true"
	at, window := metav1.NewTime(newer.at), newer.at.Sub(older.at)
	available := uint64(max(a.node.memory()-int64(newer.memory), 0))
	s := summary{
		Node: nodeSummary{
			NodeName: a.cfg.NodeName, StartTime: metav1.NewTime(bootTime(newer.at)), CPU: cpuSummary{at, rate(older.cpu, newer.cpu, window), newer.cpu},
			Memory: memorySummary{Time: at, AvailableBytes: &available, UsageBytes: newer.memory, WorkingSetBytes: newer.memory},
		},
		Pods: []podSummary{},
	}
	if cpu, memory, err := cgroupUsage("/sys/fs/cgroup", a.cfg.CgroupRoot); err == nil {
		s.Node.SystemContainers = []containerSummary{{Name: "pods", StartTime: s.Node.StartTime, CPU: cpuSummary{Time: at, UsageCoreNanoSeconds: cpu}, Memory: memorySummary{Time: at, UsageBytes: memory, WorkingSetBytes: memory}}}
	}
	if whole {
		s.Node.FS = folderFS(a.cfg.Dir, at)
		s.Node.Runtime = &runtimeSummary{folderFS(filepath.Join(a.cfg.Dir, "images"), at), folderFS(filepath.Join(a.cfg.Dir, "containers"), at)}
		if info := (unix.Sysinfo_t{}); unix.Sysinfo(&info) == nil {
			s.Node.Rlimit = &rlimitSummary{at, a.node.pids, int64(info.Procs)}
		}
	}
	before := map[string]*measured{}
	for i := range older.containers {
		m := &older.containers[i]
		before[string(m.view.pod.UID)+"/"+m.id] = m
	}
	for _, m := range newer.containers {
		if n := len(s.Pods); n == 0 || s.Pods[n-1].PodRef.UID != string(m.view.pod.UID) {
			s.Pods = append(s.Pods, a.podSummary(m.view, at, whole))
		}
		p, at := &s.Pods[len(s.Pods)-1], metav1.NewTime(m.Time)
		// One that has started since is measured from its start.
		cpu := cpuSummary{Time: at, UsageCoreNanoSeconds: m.CPUNanoseconds, UsageNanoCores: rate(0, m.CPUNanoseconds, max(m.Time.Sub(m.started), rateWindow))}
		if b := before[string(m.view.pod.UID)+"/"+m.id]; b != nil {
			cpu.UsageNanoCores = rate(b.CPUNanoseconds, m.CPUNanoseconds, m.Time.Sub(b.Time))
		}
		memory := memorySummary{Time: at, UsageBytes: m.MemoryUsage, WorkingSetBytes: m.MemoryWorkingSet, RSSBytes: m.MemoryRSS, PageFaults: m.PageFaults, MajorPageFaults: m.MajorFaults}
		if m.MemoryLimit > 0 {
			free := m.MemoryLimit - min(m.MemoryWorkingSet, m.MemoryLimit)
			memory.AvailableBytes = &free
		}
		container := containerSummary{Name: m.container, StartTime: metav1.NewTime(m.started), CPU: cpu, Memory: memory}
		if whole {
			if n, inodes, err := a.cfg.Runtime.DiskUsage(string(m.view.pod.UID), m.id); err == nil {
				container.RootFS = &fsSummary{Time: at, UsedBytes: &n, InodesUsed: &inodes}
			}
			n, inodes := folderUsage(filepath.Join(a.dirs(string(m.view.pod.UID)).disk, "logs", m.container))
			container.Logs = &fsSummary{Time: at, UsedBytes: &n, InodesUsed: &inodes}
		}
		p.Containers = append(p.Containers, container)
		p.CPU.UsageCoreNanoSeconds += m.CPUNanoseconds
		if n := cpu.UsageNanoCores; n != nil {
			sum := *n
			if p.CPU.UsageNanoCores != nil {
				sum += *p.CPU.UsageNanoCores
			}
			p.CPU.UsageNanoCores = &sum
		}
		p.Memory.UsageBytes += m.MemoryUsage
		p.Memory.WorkingSetBytes += m.MemoryWorkingSet
		p.Memory.RSSBytes += m.MemoryRSS
		p.ProcessStats.Count += m.Processes
	}
	w.Header().Set(windowHeader, window.String())
	writeJSONAnswer(w, &s)
}

// podSummary is the part of a pod's summary that is not of its containers.
func (a *Agent) podSummary(v podView, at metav1.Time, whole bool) podSummary {
	p := podSummary{ProcessStats: &processSummary{}}
	p.PodRef.Name, p.PodRef.Namespace, p.PodRef.UID = v.pod.Name, v.pod.Namespace, string(v.pod.UID)
	if t := v.pod.Status.StartTime; t != nil {
		p.StartTime = *t
	}
	p.CPU.Time, p.Memory.Time = at, at
	if !whole {
		return p
	}
	if interfaces := a.podInterfaces(v); len(interfaces) > 0 {
		p.Network = &networkSummary{Time: at, interfaceSummary: interfaces[0], Interfaces: interfaces}
	}
	w := a.worker(v.pod.UID)
	if w == nil {
		return p
	}
	used := a.storageOf(w, v)
	sum, inodes := used.total(), used.inodes
	p.EphemeralStorage = &fsSummary{Time: at, UsedBytes: &sum, InodesUsed: &inodes}
	for _, vol := range v.pod.Spec.Volumes {
		if n, ok := used.volumes[vol.Name]; ok {
			fs := *folderFS(a.cfg.Dir, at)
			fs.UsedBytes, fs.InodesUsed = &n, nil
			p.Volumes = append(p.Volumes, volumeSummary{fs, vol.Name, nil})
		}
	}
	for _, c := range a.claimVolumes([]podView{v}, at) {
		p.Volumes = append(p.Volumes, volumeSummary{*c.fs, c.volume, &claimSummary{c.claim, v.pod.Namespace}})
	}
	return p
}

// folderFS is the filesystem that a folder is on.
func folderFS(dir string, at metav1.Time) *fsSummary {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return &fsSummary{Time: at}
	}
	block := uint64(fs.Bsize)
	available, capacity, used := fs.Bavail*block, fs.Blocks*block, (fs.Blocks-fs.Bfree)*block
	free, inodes, taken := fs.Ffree, fs.Files, fs.Files-fs.Ffree
	return &fsSummary{at, &available, &capacity, &used, &free, &inodes, &taken}
}

// podInterfaces are the network interfaces of a pod with a network of its own,
// eth0 first, as a process of it sees them.
func (a *Agent) podInterfaces(v podView) []interfaceSummary {
	if v.pod.Spec.HostNetwork {
		return nil
	}
	for _, c := range a.cfg.Runtime.Containers(string(v.pod.UID)) {
		if c.PID > 0 && c.State == Running {
			if data, err := os.ReadFile("/proc/" + strconv.Itoa(c.PID) + "/net/dev"); err == nil {
				return parseNetDev(string(data))
			}
		}
	}
	return nil
}

// parseNetDev reads /proc/net/dev, without the loopback.
func parseNetDev(text string) (out []interfaceSummary) {
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || name == "lo" || len(f) < 11 {
			continue
		}
		number := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n } // the kernel's own
		one := interfaceSummary{Name: name, RxBytes: number(0), RxErrors: number(2), TxBytes: number(8), TxErrors: number(10)}
		if name == "eth0" {
			out = append([]interfaceSummary{one}, out...)
		} else {
			out = append(out, one)
		}
	}
	return out
}

// exposition writes metrics in Prometheus' text format.
type exposition struct{ http.ResponseWriter }

func expose(w http.ResponseWriter) exposition {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	return exposition{w}
}

func (e exposition) family(name, kind, help string) {
	fmt.Fprintf(e, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (e exposition) one(name, kind, help string, value float64) {
	e.family(name, kind, help)
	fmt.Fprintf(e, "%s %s\n", name, number(value))
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

func seconds(ns uint64) string { return number(float64(ns) / 1e9) }

func whole(n uint64) string { return strconv.FormatUint(n, 10) }

// serveResourceMetrics is what a metrics server reads.
func (a *Agent) serveResourceMetrics(w http.ResponseWriter, _ *http.Request) {
	s, err := a.sample()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	e := expose(w)
	stamp := s.at.UnixMilli()
	each := func(name, kind, help string, value func(measured) string) {
		e.family(name, kind, help)
		for _, m := range s.containers {
			fmt.Fprintf(e, "%s{container=%q,namespace=%q,pod=%q} %s %d\n", name, m.container, m.view.pod.Namespace, m.view.pod.Name, value(m), m.Time.UnixMilli())
		}
	}
	each("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds", func(m measured) string { return seconds(m.CPUNanoseconds) })
	each("container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes", func(m measured) string { return whole(m.MemoryWorkingSet) })
	each("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds", func(m measured) string { return strconv.FormatInt(m.started.Unix(), 10) })
	e.family("node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds")
	fmt.Fprintf(e, "node_cpu_usage_seconds_total %s %d\n", seconds(s.cpu), stamp)
	e.family("node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes")
	fmt.Fprintf(e, "node_memory_working_set_bytes %d %d\n", s.memory, stamp)
	for _, f := range []struct {
		name, kind, help string
		value            func(measured) uint64
		show             func(uint64) string
	}{
		{"pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds", func(m measured) uint64 { return m.CPUNanoseconds }, seconds},
		{"pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes", func(m measured) uint64 { return m.MemoryWorkingSet }, whole},
	} {
		e.family(f.name, f.kind, f.help)
		for i := 0; i < len(s.containers); {
			pod, sum := s.containers[i].view.pod, uint64(0)
			for ; i < len(s.containers) && s.containers[i].view.pod == pod; i++ {
				sum += f.value(s.containers[i])
			}
			fmt.Fprintf(e, "%s{namespace=%q,pod=%q} %s %d\n", f.name, pod.Namespace, pod.Name, f.show(sum), stamp)
		}
	}
	e.family("resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise")
	fmt.Fprintln(e, "resource_scrape_error 0")
}

// serveContainerMetrics has the series of cAdvisor's that dashboards draw and
// that cost no walk.
func (a *Agent) serveContainerMetrics(w http.ResponseWriter, _ *http.Request) {
	s, err := a.sample()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	e := expose(w)
	labels := make([]string, len(s.containers))
	for i, m := range s.containers {
		labels[i] = fmt.Sprintf("container=%q,id=%q,image=%q,name=%q,namespace=%q,pod=%q", m.container,
			"/kubepods/"+cgroupParent(m.view.pod)+"/pod"+string(m.view.pod.UID)+"/"+m.id, imageOf(m), m.id, m.view.pod.Namespace, m.view.pod.Name)
	}
	each := func(name, kind, help, more string, value func(measured) string) {
		e.family(name, kind, help)
		for i, m := range s.containers {
			fmt.Fprintf(e, "%s{%s%s} %s %d\n", name, labels[i], more, value(m), m.Time.UnixMilli())
		}
	}
	bytes := func(name, help string, value func(measured) uint64) {
		each(name, "gauge", help, "", func(m measured) string { return whole(value(m)) })
	}
	each("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", `,cpu="total"`, func(m measured) string { return seconds(m.CPUNanoseconds) })
	for _, limited := range []struct {
		name, help string
		value      func(measured) string
	}{
		{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", func(m measured) string { return whole(m.Periods) }},
		{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", func(m measured) string { return whole(m.Throttled) }},
		{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", func(m measured) string { return seconds(m.ThrottledNanoseconds) }},
	} {
		e.family(limited.name, "counter", limited.help)
		for i, m := range s.containers {
			if m.Periods > 0 {
				fmt.Fprintf(e, "%s{%s} %s %d\n", limited.name, labels[i], limited.value(m), m.Time.UnixMilli())
			}
		}
	}
	bytes("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", func(m measured) uint64 { return m.MemoryUsage })
	bytes("container_memory_working_set_bytes", "Current working set in bytes.", func(m measured) uint64 { return m.MemoryWorkingSet })
	bytes("container_memory_rss", "Size of RSS in bytes.", func(m measured) uint64 { return m.MemoryRSS })
	bytes("container_memory_cache", "Number of bytes of page cache memory.", func(m measured) uint64 { return m.MemoryUsage - min(m.MemoryRSS, m.MemoryUsage) })
	bytes("container_spec_memory_limit_bytes", "Memory limit for the container.", func(m measured) uint64 { return m.MemoryLimit })
	bytes("container_processes", "Number of processes running inside the container.", func(m measured) uint64 { return m.Processes })
	each("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.", "", func(m measured) string { return strconv.FormatInt(m.started.Unix(), 10) })
	each("container_last_seen", "gauge", "Last time a container was seen by the exporter", "", func(m measured) string { return strconv.FormatInt(m.Time.Unix(), 10) })
	for _, spec := range []struct {
		name, help string
		value      func(cgroupAmounts) int64
	}{
		{"container_spec_cpu_shares", "CPU share of the container.", func(a cgroupAmounts) int64 { return int64(a.Shares) }},
		{"container_spec_cpu_quota", "CPU quota of the container.", func(a cgroupAmounts) int64 { return a.Quota }},
		{"container_spec_cpu_period", "CPU period of the container.", func(cgroupAmounts) int64 { return quotaPeriod }},
	} {
		e.family(spec.name, "gauge", spec.help)
		for i, m := range s.containers {
			rec := m.view.rec.Containers[m.container]
			if rec == nil || rec.Cgroup == nil {
				continue
			}
			if n := spec.value(*rec.Cgroup); n > 0 {
				fmt.Fprintf(e, "%s{%s} %d\n", spec.name, labels[i], n)
			}
		}
	}
	a.exposeNetworks(e, s)
	e.one("machine_cpu_cores", "gauge", "Number of logical CPU cores.", float64(a.node.capacity.Cpu().Value()))
	e.one("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.", float64(a.node.memory()))
	e.one("container_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise", 0)
}

func (a *Agent) exposeNetworks(e exposition, s *sample) {
	type counted struct {
		labels string
		interfaceSummary
	}
	var all []counted
	for i, m := range s.containers {
		if i > 0 && s.containers[i-1].view.pod == m.view.pod {
			continue
		}
		for _, n := range a.podInterfaces(m.view) {
			all = append(all, counted{fmt.Sprintf("interface=%q,namespace=%q,pod=%q", n.Name, m.view.pod.Namespace, m.view.pod.Name), n})
		}
	}
	for _, f := range []struct {
		name, help string
		value      func(interfaceSummary) uint64
	}{
		{"container_network_receive_bytes_total", "Cumulative count of bytes received", func(n interfaceSummary) uint64 { return n.RxBytes }},
		{"container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", func(n interfaceSummary) uint64 { return n.RxErrors }},
		{"container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", func(n interfaceSummary) uint64 { return n.TxBytes }},
		{"container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", func(n interfaceSummary) uint64 { return n.TxErrors }},
	} {
		e.family(f.name, "counter", f.help)
		for _, c := range all {
			fmt.Fprintf(e, "%s{%s} %d\n", f.name, c.labels, f.value(c.interfaceSummary))
		}
	}
}

// serveProbeMetrics counts what came of each probe of the containers that run,
// since their start.
func (a *Agent) serveProbeMetrics(w http.ResponseWriter, _ *http.Request) {
	var lines []string
	for _, worker := range a.allWorkers() {
		worker.mu.Lock()
		pod := worker.shown.pod
		for k, r := range worker.probes {
			name, _, _ := splitContainerID(k.id)
			for outcome, n := range r.counts {
				lines = append(lines, fmt.Sprintf("prober_probe_total{container=%q,namespace=%q,pod=%q,pod_uid=%q,probe_type=%q,result=%q} %d\n",
					name, pod.Namespace, pod.Name, worker.uid, k.kind, outcome, n))
			}
		}
		worker.mu.Unlock()
	}
	slices.Sort(lines)
	e := expose(w)
	e.family("prober_probe_total", "counter", "Cumulative number of a liveness, readiness or startup probe for a container by result.")
	fmt.Fprint(e, strings.Join(lines, ""))
}

func imageOf(m measured) string {
	if rec := m.view.rec.Containers[m.container]; rec != nil {
		return rec.Image
	}
	return ""
}

// serveMetrics is what the kubelet tells of itself.
func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	e := expose(w)
	pods, containers := 0, 0
	phases := map[corev1.PodPhase]int{}
	for _, v := range a.views() {
		phases[v.pod.Status.Phase]++
		if len(v.running) > 0 {
			pods++
		}
		containers += len(v.running)
	}
	e.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.")
	fmt.Fprintf(e, "kubelet_node_name{node=%q} 1\n", a.cfg.NodeName)
	e.one("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox", float64(pods))
	e.family("kubelet_running_containers", "gauge", "Number of containers currently running")
	fmt.Fprintf(e, "kubelet_running_containers{container_state=\"running\"} %d\n", containers)
	e.family("kubelet_active_pods", "gauge", "The number of pods the kubelet considers active and which are being considered when admitting new pods.")
	fmt.Fprintf(e, "kubelet_active_pods{static=\"\"} %d\n", phases[corev1.PodPending]+phases[corev1.PodRunning])
	exposeClaims(e, a.claimVolumes(a.views(), metav1.Time{}))
	var use unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &use) == nil {
		e.one("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", float64(use.Utime.Nano()+use.Stime.Nano())/1e9)
	}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(data)); len(f) > 1 {
			for i, name := range []string{"process_virtual_memory_bytes", "process_resident_memory_bytes"} {
				if n, err := strconv.ParseUint(f[i], 10, 64); err == nil {
					e.one(name, "gauge", "Memory size in bytes.", float64(n)*float64(os.Getpagesize()))
				}
			}
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		e.one("process_open_fds", "gauge", "Number of open file descriptors.", float64(len(fds)))
	}
}
