package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// Config is what an Agent is made of.
type Config struct {
	NodeName string
	NodeID   string // goes into the Node's annotation conclave.io/node-id
	Client   api.Client
	Runtime  Runtime
	Network  Network

	// Dir is the data folder; the agent's part of it is pods/.
	Dir string
	// RunDir is a folder on tmpfs, emptied by a reboot: Dir/run if empty.
	RunDir string
	// Seal and Unseal protect Secrets and tokens in Dir. Nil: they are kept as
	// they are, readable by root alone.
	Seal   func(plain []byte) ([]byte, error)
	Unseal func(sealed []byte) ([]byte, error)

	// Addresses are the node's own, the preferred first. AddressesChanged
	// receives when they changed.
	Addresses        func() []netip.Addr
	AddressesChanged <-chan struct{}
	// DirectRoutes says that the node's pods are reached without an overlay by
	// nodes that share its link, and that it does likewise.
	DirectRoutes bool
	// Paths says which nodes' pods this node's do not reach, a sentence each,
	// and whether there is a node whose pods they do. It may be nil. Who
	// supplies it calls PathsChanged.
	Paths func() (failing []string, some bool)

	Labels map[string]string
	// Annotations are further ones of the Node, which say what others of this
	// node have to know.
	Annotations map[string]string

	Zone       string
	ProviderID string

	// Listener takes the connections of the kubelet API, TLS secures them and
	// Authorize lets callers in who need no right, and is asked about each request.
	// No Listener: no kubelet API.
	Listener  net.Listener
	TLS       *tls.Config
	Authorize func(*http.Request) error

	ClusterDNS    netip.Addr
	ClusterDomain string
	// APIServer is what pods are told as KUBERNETES_SERVICE_HOST and _PORT.
	APIServer netip.AddrPort

	// SeccompDefault gives containers that name no seccomp profile the
	// runtime's, as if they asked for RuntimeDefault.
	SeccompDefault bool
	// UnsafeSysctls are further sysctls that pods may set here, each a name or
	// a prefix and "*".
	UnsafeSysctls []string

	// CgroupRoot is the cgroup below which the runtime makes those of pods, as
	// a path below the root of the cgroup file system: /stats/summary measures
	// it as what all pods use.
	CgroupRoot string
	// StaticDir is the folder of static pods, made if missing. Empty: there
	// are none.
	StaticDir string
	Version   string
	MaxPods   int // 110 if 0

	// Faults, if not nil, is called at each labelled step of a pod's start and
	// end, for tests that end this process there.
	Faults func(label string)

	// KernelLog is where the kernel says what it does, /dev/kmsg. Empty: nobody
	// is told whom it kills when the node runs out of memory.
	KernelLog string

	// ImageGC says when images that nothing uses are removed.
	ImageGC ImageGC
	// DockerConfigs are files of Docker's with credentials for every pod of the
	// node; those that are not there do not count.
	DockerConfigs []string
	// CredentialProviderConfig is kubelet's file of credential provider plugins,
	// whose programs are in CredentialProviderBinDir. Empty: none.
	CredentialProviderConfig, CredentialProviderBinDir string
	// Reserved is kept back for the host and this program, beside the pods:
	// processors, memory, storage and process ids ("pid").
	Reserved corev1.ResourceList
	// EvictionHard and EvictionSoft say when pods are evicted for the node's
	// sake; EvictionTransition is how long a pressure is held up after its
	// end, 5 minutes if 0.
	EvictionHard, EvictionSoft Thresholds
	EvictionTransition         time.Duration
	// Readings, if not nil, says how much of everything there is, instead of
	// the kernel.
	Readings func() map[Signal]Reading
	// PodPIDs bounds the processes of each pod, by the node's memory if 0; no
	// bound if negative.
	PodPIDs int64

	Now func() time.Time
	Log *slog.Logger
}

const defaultMaxPods = 110

// Agent runs the pods of one node.
type Agent struct {
	cfg      Config
	log      *slog.Logger
	events   *recorder
	node     *nodeKeeper
	users    userRanges
	objects  *objectStore
	services *serviceStore
	folders  *folderKeeper
	static   *staticKeeper
	plugins  *plugins
	images   *imageKeeper

	credentials *nodeCredentials
	pressure    *pressureKeeper
	meter       usageMeter
	callers     callers

	admission sync.Mutex                 // one admission at a time; guards these
	accepted  map[types.UID]bool         // pods whose resources count
	crowded   map[*podWorker]bool        // those that wait until others are down
	resizes   map[*podWorker]*corev1.Pod // those that wait for other resources, which they are

	reckon chan struct{} // holds one token: the pods' sums may have changed

	mu        sync.Mutex
	goingDown bool            // with its host: see Shutdown
	ctx       context.Context // of Run
	workers   map[types.UID]*podWorker
	seen      map[types.UID]map[chan struct{}]bool // who wants to know of a pod's changes
	wg        sync.WaitGroup                       // workers and followers of objects
}

// New checks the configuration and prepares the folders.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.NodeName == "":
		return nil, errors.New("agent: NodeName is missing")
	case cfg.Client == nil, cfg.Runtime == nil, cfg.Network == nil:
		return nil, errors.New("agent: Client, Runtime and Network are needed")
	case cfg.Dir == "":
		return nil, errors.New("agent: Dir is missing")
	case cfg.Seal == nil != (cfg.Unseal == nil):
		return nil, errors.New("agent: Seal and Unseal come together")
	case cfg.Listener != nil && cfg.Authorize == nil:
		return nil, errors.New("agent: the kubelet API needs Authorize")
	}
	dir, err := filepath.Abs(cfg.Dir) // the API is told of it
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	cfg.Dir = dir
	cfg.RunDir = cmp.Or(cfg.RunDir, filepath.Join(cfg.Dir, "run"))
	cfg.MaxPods = cmp.Or(cfg.MaxPods, defaultMaxPods)
	cfg.ClusterDomain = cmp.Or(cfg.ClusterDomain, "cluster.local")
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Addresses == nil {
		cfg.Addresses = func() []netip.Addr { return nil }
	}
	if cfg.ImageGC, err = cfg.ImageGC.withDefaults(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	credentials := &nodeCredentials{files: cfg.DockerConfigs, now: cfg.Now}
	if cfg.CredentialProviderConfig != "" {
		if credentials.providers, err = readProviders(cfg.CredentialProviderConfig, cfg.CredentialProviderBinDir); err != nil {
			return nil, err
		}
	}
	// Who gathers logs may want to see their folders before there are any.
	logs := filepath.Join(cfg.Dir, "log")
	for _, dir := range []string{filepath.Join(cfg.Dir, "pods"), cfg.RunDir, filepath.Join(logs, podLogs), filepath.Join(logs, containLinks)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log.With("room", "agent"),
		services: newServiceStore(), credentials: credentials,
		accepted: map[types.UID]bool{}, crowded: map[*podWorker]bool{}, resizes: map[*podWorker]*corev1.Pod{},
		reckon:  make(chan struct{}, 1),
		workers: map[types.UID]*podWorker{}, seen: map[types.UID]map[chan struct{}]bool{},
	}
	a.events = newRecorder(cfg.Client, cfg.NodeName, cfg.Now, a.log)
	a.folders = newFolderKeeper(a)
	a.plugins = newPlugins(a)
	a.images = newImageKeeper(a)
	a.pressure = newPressureKeeper(a)
	a.objects = &objectStore{a: a, entries: map[objectKey]*objectEntry{}, wg: &a.wg}
	if a.node, err = newNodeKeeper(a); err != nil {
		return nil, err
	}
	if a.static, err = newStaticKeeper(a, cfg.StaticDir); err != nil {
		return nil, err
	}
	return a, nil
}

// Run runs this node's pods until ctx ends. Pods outlive it.
func (a *Agent) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	a.ctx, a.objects.ctx = ctx, ctx
	hints, stop := a.cfg.Runtime.Subscribe()
	defer stop()
	saved, err := loadPods(a.cfg.Dir)
	if err != nil {
		return fmt.Errorf("agent: read the pods of this node: %w", err)
	}
	for uid, s := range saved {
		if !s.rec.Started.IsZero() && !s.rec.Down {
			a.accepted[types.UID(uid)] = true
			a.users.keep(s.rec.IDs, types.UID(uid))
		}
	}
	a.static.read()
	for _, s := range saved {
		a.startWorker(s.pod, s.rec)
	}
	group.Go(func() error { return a.static.run(ctx) })
	group.Go(func() error { a.events.run(ctx); return nil })
	group.Go(func() error { return a.node.run(ctx) })
	group.Go(func() error { a.watchRuntime(ctx, hints); return nil })
	group.Go(func() error { a.keepBounds(ctx); return nil })
	group.Go(func() error { a.pressure.run(ctx); return nil })
	group.Go(func() error {
		return a.follow(ctx, "services", func() error {
			return api.Follow(ctx, a.cfg.Client, servicesResource, "", metav1.ListOptions{}, a.services)
		})
	})
	group.Go(func() error { return a.followPods(ctx) })
	group.Go(func() error { a.folders.run(ctx); return nil })
	group.Go(func() error { return a.plugins.run(ctx) })
	group.Go(func() error { a.images.run(ctx); return nil })
	group.Go(func() error {
		return a.follow(ctx, "volumes", func() error {
			return api.Follow(ctx, a.cfg.Client, volumesResource, "", metav1.ListOptions{LabelSelector: api.LabelVolumeNode + "=" + a.cfg.NodeName}, a.folders)
		})
	})
	if a.cfg.KernelLog != "" {
		group.Go(func() error { a.watchKernel(ctx); return nil })
	}
	if a.cfg.Listener != nil {
		group.Go(func() error { return a.serve(ctx) })
	}
	<-ctx.Done()
	err = group.Wait()
	a.wg.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a *Agent) fault(label string) {
	if a.cfg.Faults != nil {
		a.cfg.Faults(label)
	}
}

func (a *Agent) follow(ctx context.Context, what string, f func() error) error {
	if err := f(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("agent: follow %s: %w", what, err)
	}
	return nil
}

const (
	barrierFirst = 50 * time.Millisecond
	barrierMax   = 2 * time.Second
)

// followPods runs what the API binds to this node. Before the first look it
// reads something that a replica may answer only when it has caught up: one
// that has just been started would otherwise show pods of the past, and miss
// those that this node runs.
func (a *Agent) followPods(ctx context.Context) error {
	for wait := barrierFirst; ; wait = min(2*wait, barrierMax) {
		_, err := a.cfg.Client.Get(ctx, nodesResource, "", a.cfg.NodeName, metav1.GetOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			break
		}
		a.log.Debug("the API does not answer yet", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
	return a.follow(ctx, "pods", func() error {
		return api.Follow(ctx, a.cfg.Client, podsResource, "", metav1.ListOptions{FieldSelector: "spec.nodeName=" + a.cfg.NodeName}, &podHandler{a: a})
	})
}

// podHandler is the api.Handler of this node's pods.
type podHandler struct {
	a       *Agent
	cleaned bool
}

func (h *podHandler) Replace(objects []api.Object) {
	listed := map[types.UID]bool{}
	mirrors, pods := mirrorsAmong(objects)
	for _, pod := range pods {
		listed[pod.UID] = true
		h.a.dispatch(pod)
	}
	h.a.static.replace(mirrors)
	for _, w := range h.a.allWorkers() {
		if w.static == nil && !listed[w.uid] {
			h.a.wg.Go(func() { h.a.confirmRemoved(w) })
		}
	}
	if !h.cleaned {
		h.cleaned = true
		h.a.wg.Go(h.a.removeOrphans)
	}
}

func (h *podHandler) Apply(t watch.EventType, o api.Object) {
	pod, ok := o.(*corev1.Pod)
	switch {
	case !ok:
	case api.IsMirror(pod):
		h.a.static.apply(pod, t == watch.Deleted)
	case t != watch.Deleted:
		h.a.dispatch(pod)
	default:
		if w := h.a.worker(pod.UID); w != nil {
			w.update(pod, true)
		}
	}
}

// confirmRemoved asks for a pod that a list does not have, before it is stopped
// for that: running pods are not killed on the word of one list.
func (a *Agent) confirmRemoved(w *podWorker) {
	pod := w.view().pod
	for wait := barrierFirst; ; wait = min(2*wait, barrierMax) {
		obj, err := a.cfg.Client.Get(a.ctx, podsResource, pod.Namespace, pod.Name, metav1.GetOptions{})
		elsewhere := false
		if apierrors.IsForbidden(err) { // another node has a pod of that name: a StatefulSet's, perhaps
			var mine []api.Object
			mine, _, err = a.cfg.Client.List(a.ctx, podsResource, pod.Namespace, metav1.ListOptions{
				FieldSelector: "metadata.name=" + pod.Name + ",spec.nodeName=" + a.cfg.NodeName})
			elsewhere = err == nil && len(mine) == 0
			if err == nil && !elsewhere {
				obj = mine[0]
			}
		}
		if apierrors.IsNotFound(err) || elsewhere || err == nil && obj.GetUID() != pod.UID {
			w.update(pod, true)
			return
		}
		if err == nil {
			return
		}
		select {
		case <-a.ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// removeOrphans takes down what the runtime and the disk have of pods that
// nobody knows.
func (a *Agent) removeOrphans() {
	unknown := map[string]bool{}
	for _, id := range a.cfg.Runtime.Pods() {
		unknown[id] = true
	}
	for _, root := range []string{filepath.Join(a.cfg.Dir, "pods"), filepath.Join(a.cfg.RunDir, "volumes"), filepath.Join(a.plugins.dir, "pods")} {
		entries, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			a.log.Warn("leftovers of pods cannot be looked for", "dir", root, "err", err)
		}
		for _, e := range entries {
			unknown[e.Name()] = true
		}
	}
	for id := range unknown {
		if a.worker(types.UID(id)) != nil {
			continue
		}
		err := a.takeDown(a.ctx, id, false)
		if err == nil {
			err = a.dirs(id).remove()
		}
		if err != nil {
			a.log.Warn("a pod that nobody knows cannot be removed", "uid", id, "err", err)
		}
	}
}

// takeDown removes all of a pod but its folder on disk.
func (a *Agent) takeDown(ctx context.Context, uid string, hostNetwork bool) error {
	if err := a.cfg.Runtime.StopPod(ctx, uid); err != nil {
		return fmt.Errorf("stop the pod: %w", err)
	}
	a.fault("pod.stopped")
	if !hostNetwork {
		if err := a.cfg.Network.Detach(ctx, uid); err != nil {
			return fmt.Errorf("detach the pod from the network: %w", err)
		}
		a.fault("network.detached")
	}
	if err := a.plugins.tearDown(ctx, uid); err != nil {
		return err
	}
	err := tearDownVolumes(a.dirs(uid))
	a.fault("volumes.torn-down")
	return err
}

// dispatch hands a pod to its worker, a new one if need be.
func (a *Agent) dispatch(pod *corev1.Pod) {
	if w := a.worker(pod.UID); w != nil {
		w.update(pod, false)
		return
	}
	a.startWorker(pod, recordFromStatus(pod))
}

func (a *Agent) startWorker(pod *corev1.Pod, rec record) {
	w := newPodWorker(a, pod, rec)
	a.mu.Lock()
	a.workers[pod.UID] = w
	a.mu.Unlock()
	a.wg.Go(func() { w.run(a.ctx) })
}

func (a *Agent) workerEnded(w *podWorker) {
	a.mu.Lock()
	delete(a.workers, w.uid)
	a.mu.Unlock()
	a.admission.Lock()
	delete(a.accepted, w.uid)
	delete(a.crowded, w)
	delete(a.resizes, w)
	a.admission.Unlock()
	a.folders.changed()
	a.roomMade()
	a.podShown(w.uid)
	poke(a.static.files)
}

func (a *Agent) worker(uid types.UID) *podWorker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[uid]
}

func (a *Agent) allWorkers() []*podWorker {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*podWorker, 0, len(a.workers))
	for _, w := range a.workers {
		all = append(all, w)
	}
	return all
}

// objectChanged tells a pod that an object it shows or needs has changed.
func (a *Agent) objectChanged(uid types.UID) {
	w := a.worker(uid)
	if w == nil {
		return
	}
	w.mu.Lock()
	w.stale, w.changed = true, true
	w.mu.Unlock()
	poke(w.wake)
}

// watchRuntime wakes the workers whose containers changed.
func (a *Agent) watchRuntime(ctx context.Context, hints <-chan struct{}) {
	type state struct {
		state State
		pid   int
	}
	known := map[string]map[string]state{}
	for {
		now := map[string]map[string]state{}
		for _, id := range a.cfg.Runtime.Pods() {
			now[id] = map[string]state{}
		}
		for _, s := range a.cfg.Runtime.Containers("") {
			if now[s.PodID] == nil {
				now[s.PodID] = map[string]state{}
			}
			now[s.PodID][s.ID] = state{s.State, s.PID}
		}
		for _, w := range a.allWorkers() {
			before, had := known[string(w.uid)]
			after, has := now[string(w.uid)]
			same := had == has && len(before) == len(after)
			for id, s := range after {
				same = same && before[id] == s
			}
			if !same {
				poke(w.wake)
			}
		}
		known = now
		select {
		case <-ctx.Done():
			return
		case <-hints:
		}
	}
}

// watchPod returns a channel that receives when a pod's status may have
// changed, until the function is called.
func (a *Agent) watchPod(uid types.UID) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.seen[uid] == nil {
		a.seen[uid] = map[chan struct{}]bool{}
	}
	a.seen[uid][c] = true
	return c, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.seen[uid], c)
		if len(a.seen[uid]) == 0 {
			delete(a.seen, uid)
		}
	}
}

func (a *Agent) podShown(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.seen[uid] {
		poke(c)
	}
}

// Ready says why this node cannot run pods now; nil if it can.
func (a *Agent) Ready() error {
	if err := a.cfg.Network.Ready(); err != nil {
		return err
	}
	return a.node.registeredError()
}

// Warn writes a warning event about this node, as soon as the API takes it.
func (a *Agent) Warn(reason, message string) { a.node.event(corev1.EventTypeWarning, reason, message) }

// ImagesChanged tells that somebody else brought or removed images of this node.
func (a *Agent) ImagesChanged() {
	a.node.imagesChanged()
	a.images.now()
}

// PodsRunning returns the pods that have containers running here, sorted by
// namespace and name, with their newest status.
func (a *Agent) PodsRunning() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, v := range a.views() {
		if len(v.running) > 0 {
			pods = append(pods, v.pod)
		}
	}
	return pods
}

func (a *Agent) views() []podView {
	var all []podView
	for _, w := range a.allWorkers() {
		all = append(all, w.view())
	}
	slices.SortFunc(all, func(x, y podView) int {
		return cmp.Or(strings.Compare(x.pod.Namespace, y.pod.Namespace), strings.Compare(x.pod.Name, y.pod.Name))
	})
	return all
}

func (a *Agent) hostIPs() []string {
	var ips []string
	for _, ip := range a.cfg.Addresses() {
		ips = append(ips, ip.String())
	}
	return ips
}

// serviceVars are the service variables of a pod's containers: from the API, or
// as they last were if it does not answer.
func (a *Agent) serviceVars(ctx context.Context, pod *corev1.Pod, saved map[string]string) (map[string]string, error) {
	vars := map[string]string{}
	if saved == nil && api.IsStatic(pod) {
		saved = map[string]string{} // it starts without masters, too
	}
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		wait := objectWait
		if saved != nil {
			wait = max(0, objectCopyAfter-time.Since(a.services.asked))
		}
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-a.services.known:
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		var ok bool
		if vars, ok = a.services.of(pod.Namespace); !ok {
			if saved == nil {
				return nil, errors.New("services have not yet been read at least once, cannot construct envvars")
			}
			return saved, nil
		}
	}
	if a.cfg.APIServer.IsValid() {
		kubernetes := corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: corev1.ServiceSpec{
			ClusterIP: a.cfg.APIServer.Addr().String(),
			Ports:     []corev1.ServicePort{{Name: "https", Port: int32(a.cfg.APIServer.Port()), Protocol: corev1.ProtocolTCP}},
		}}
		for k, v := range serviceVariables(&kubernetes) {
			vars[k] = v
		}
	}
	return vars, nil
}
