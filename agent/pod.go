package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

// podWorker runs one pod. Its loop alone touches what is below "loop"; others
// leave what they have to say in what mu guards and wake it.
type podWorker struct {
	a    *Agent
	uid  types.UID
	dirs podDirs
	log  *slog.Logger
	wake chan struct{} // one place

	static *corev1.Pod // as its file says; nil: the pod is the API's

	mu        sync.Mutex
	latest    *corev1.Pod // as last seen
	mirror    types.UID   // of what shows a static pod in the API
	removed   bool        // gone from the API
	stale     bool        // its volumes may show what is no longer so
	changed   bool        // what failed before may succeed now
	goingDown bool        // with its host
	within    time.Duration
	crowded   bool // there is no room for it before others are down
	// reserved has the resources that were allocated to the pod last, nil if
	// they are those that it came with.
	reserved *corev1.Pod
	evicted  *failure // why the node wants it to go, if it does
	probes   map[probeKey]*probeResult
	mounts   map[string]string  // the volumes of its claims, by the claims' names, as far as known
	extra    map[objectKey]bool // what the pod's volumes need besides
	shown    podView            // what the kubelet API serves

	republishAt time.Time // when a driver wants to be asked anew

	// loop
	since   time.Time // when it was first seen
	ctx     context.Context
	pod     *corev1.Pod
	rec     record
	saved   savedState // what the disk has
	ops     map[string]*operation
	results chan opResult
	wg      sync.WaitGroup
	probers map[probeKey]context.CancelFunc
	tokens  tokenCache

	volumes, sandbox, teardown, deletion attempts
	fence, resizing                      attempts
	resize                               resizeState
	roomier                              bool   // the pod may take less than is shown
	epoch                                uint64 // of the fence, in which the API allowed the pod
	containers                           map[string]*containerLoop
	statusSent                           corev1.PodStatus
	statusSentAt                         time.Time
	statusTry                            attempts
	statusGone                           bool
}

// podView is a pod with its newest status, and what is behind it.
type podView struct {
	pod     *corev1.Pod
	running map[string]string // container name to runtime ID
	rec     record            // shallow
	told    bool              // the API has this status, or nobody is to be told
}

// attempts is how far something stands that may fail, with its back-off.
type attempts struct {
	done  bool
	fails int
	retry time.Time
}

const (
	retryFirst = time.Second
	retryMax   = 2 * time.Minute
	quietFails = 4 // about 15 s, in which what is on its way mostly comes
)

func (t *attempts) failed(now time.Time) {
	t.done = false
	t.retry = now.Add(min(retryFirst<<min(t.fails, 10), retryMax))
	t.fails++
}

func (t *attempts) succeeded() { *t = attempts{done: true} }

// containerLoop is what a worker remembers of a container beside its record.
type containerLoop struct {
	attempts
	waiting   *corev1.ContainerStateWaiting
	pull      *pullBackOff
	image     Image
	announced time.Time                    // the back-off that an event told of
	replaced  bool                         // stopped because its definition changed
	killed    bool                         // stopped because it was not healthy
	hooked    string                       // the start whose preStop hook was run
	turn      chan struct{}                // closed when a sidecar of a pod at its end is to end; nil if none waits
	resources *corev1.ResourceRequirements // that the newest start has
	cgroup    *cgroupAmounts               // and what its cgroup was set to
}

// operation is something under way in its own goroutine.
type operation struct {
	cancel context.CancelFunc
	task   task
	grace  time.Duration
}

// opResult ends an operation: apply runs in the loop.
type opResult struct {
	key   string
	apply func()
}

type savedState struct{ manifest, record []byte }

func newPodWorker(a *Agent, pod *corev1.Pod, rec record) *podWorker {
	w := &podWorker{
		a: a, uid: pod.UID, dirs: a.dirs(string(pod.UID)), wake: make(chan struct{}, 1),
		log:    a.log.With("pod", pod.Namespace+"/"+pod.Name),
		latest: pod, pod: pod, rec: rec, since: a.cfg.Now(),
		probes: map[probeKey]*probeResult{}, probers: map[probeKey]context.CancelFunc{},
		ops: map[string]*operation{}, results: make(chan opResult),
		containers: map[string]*containerLoop{},
	}
	if api.IsStatic(pod) {
		w.static = pod
	}
	w.tokens.init(w)
	w.shown = podView{pod: pod}
	return w
}

// update tells the worker of a newer version of its pod.
func (w *podWorker) update(pod *corev1.Pod, removed bool) {
	w.mu.Lock()
	if w.static != nil && !removed {
		w.mirror, pod = pod.UID, merged(w.static, pod)
	}
	if newer(pod, w.latest) {
		w.latest = pod
	}
	w.removed = w.removed || removed
	w.mu.Unlock()
	poke(w.wake)
}

// newer compares versions of one object; one without a version is from disk.
func newer(a, b *corev1.Pod) bool {
	x, errX := strconv.ParseUint(a.ResourceVersion, 10, 64)
	y, errY := strconv.ParseUint(b.ResourceVersion, 10, 64)
	if errX != nil || errY != nil {
		return a.ResourceVersion != "" || b.ResourceVersion == ""
	}
	return x >= y
}

// run is the worker's loop. It returns when ctx ends or the pod is forgotten.
func (w *podWorker) run(ctx context.Context) {
	w.ctx = ctx
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		until, over := w.sync()
		if over {
			break
		}
		timer.Stop()
		var alarm <-chan time.Time
		if !until.IsZero() {
			timer.Reset(max(until.Sub(w.a.cfg.Now()), 0))
			alarm = timer.C
		}
		select {
		case <-ctx.Done():
			w.end()
			return
		case <-w.wake:
		case r := <-w.results:
			w.finish(r)
		case <-alarm:
		}
	}
	w.end()
	w.forget()
}

// end stops what is under way and keeps what it came to.
func (w *podWorker) end() {
	for _, stop := range w.probers {
		stop()
	}
	for _, o := range w.ops {
		o.cancel()
	}
	for len(w.ops) > 0 {
		w.finish(<-w.results)
	}
	w.wg.Wait()
}

// finish applies a result and all others that are there.
func (w *podWorker) finish(r opResult) {
	delete(w.ops, r.key)
	if r.apply != nil {
		r.apply()
	}
}

// start begins an operation. fn runs in its own goroutine and touches nothing
// of the loop; what it returns is run by the loop.
func (w *podWorker) start(key string, t task, grace time.Duration, fn func(ctx context.Context) func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	w.ops[key] = &operation{cancel: cancel, task: t, grace: grace}
	w.wg.Go(func() {
		apply := fn(ctx)
		cancel()
		w.results <- opResult{key, apply}
	})
}

func containerKey(name string) string { return "container/" + name }

// sync does all that is to be done now and says when to look again.
func (w *podWorker) sync() (until time.Time, over bool) {
	for {
		o := w.observe()
		a := step(w.pod, o)
		if a.kind == actForget {
			return time.Time{}, true
		}
		if a.kind == actWait {
			wait := waiter{now: o.now, until: a.until}
			w.syncProbes(o)
			w.report(o, &wait)
			w.save()
			wait.later(w.tokens.renewal())
			wait.later(w.republication())
			return wait.until, false
		}
		w.act(a, o)
	}
}

// act begins what step decided.
func (w *podWorker) act(a action, o observed) {
	switch a.kind {
	case actAdmit:
		w.admit(o.now)
	case actFail:
		w.rec.Failed = &a.failure
		w.event(nil, corev1.EventTypeNormal, a.failure.Reason, a.failure.Message)
	case actSetUp:
		w.setUp()
	case actSandbox:
		w.makeSandbox()
	case actStart:
		w.startContainer(a.container)
	case actStop:
		w.stopContainer(a)
	case actCancel:
		w.cancel(a.container)
	case actRenew:
		w.renew()
	case actResize:
		w.applyResources(o.containers)
	case actAllow:
		w.askFence()
	case actTearDown:
		w.tearDown()
	case actDelete:
		w.deleteObject()
	}
}

// admit takes the pod on, or refuses it.
func (w *podWorker) admit(now time.Time) {
	w.mu.Lock()
	w.crowded = true // until roomMade says otherwise, which may be at once
	w.mu.Unlock()
	refused, crowded := w.a.admit(w, w.pod)
	if w.a.isGoingDown() && w.static == nil {
		refused, crowded = &failure{Reason: reasonShutdown, Message: messageShutdown}, false
	}
	if crowded {
		return
	}
	w.rec.Started = now.Truncate(time.Second)
	if refused != nil {
		w.rec.Failed, w.rec.Rejected, w.rec.Down = refused, true, true
		w.event(nil, corev1.EventTypeWarning, refused.Reason, refused.Message)
	}
}

// cancel ends what is under way for a container or for the pod, and waits: it
// answers at once.
func (w *podWorker) cancel(container string) {
	keys := []string{"volumes", "sandbox"}
	if container != "" {
		keys = []string{containerKey(container)}
	}
	for _, k := range keys {
		if op := w.ops[k]; op != nil {
			op.cancel()
		}
	}
	for _, k := range keys {
		for w.ops[k] != nil {
			w.finish(<-w.results)
		}
	}
}

// renew has all containers of the pod begin again, the first init container
// first. It stays true across a restart of ours.
func (w *podWorker) renew() {
	for kind, c := range everyContainer(w.pod) {
		if rec := w.rec.container(c.Name); kind != ephemeral && rec.Attempt >= 0 {
			rec.Renew = true
		}
	}
}

// wanted are the objects that the pod needs, as far as they are known: mounts
// are the volumes of its claims.
func wanted(pod *corev1.Pod, mounts map[string]string) map[objectKey]bool {
	keys := map[objectKey]bool{}
	configMaps, secrets := referenced(pod)
	for n := range configMaps {
		keys[objectKey{configMapsResource, pod.Namespace, n}] = true
	}
	for n := range secrets {
		keys[objectKey{secretsResource, pod.Namespace, n}] = true
	}
	for _, n := range api.ClaimNames(pod) {
		keys[objectKey{claimsResource, pod.Namespace, n}] = true
	}
	if n := pod.Spec.RuntimeClassName; n != nil {
		keys[objectKey{runtimeClassesResource, "", *n}] = true
	}
	for _, n := range mounts {
		keys[objectKey{volumesResource, "", n}] = true
	}
	return keys
}

// sources are where values come from, for the pod as it is now. The functions
// may wait for the API until ctx ends.
func (w *podWorker) sources(ctx context.Context, pod *corev1.Pod, podIPs []string) sources {
	return sources{
		podIPs: podIPs, hostIPs: w.a.hostIPs(), allocatable: w.a.node.allocatable(),
		file: func(volume, path string) (map[string]string, error) {
			for i := range pod.Spec.Volumes {
				if v := &pod.Spec.Volumes[i]; v.Name == volume {
					return readEnvFile(volumePath(v, w.dirs), path)
				}
			}
			return nil, fs.ErrNotExist
		},
		running: func(name string) string {
			if s := w.newestContainers()[name]; s != nil && s.State == Running {
				return s.ID
			}
			return ""
		},
		configMap: func(name string) (*corev1.ConfigMap, error) {
			o, err := w.a.objects.get(ctx, w.uid, w.dirs, objectKey{configMapsResource, pod.Namespace, name})
			cm, _ := o.(*corev1.ConfigMap)
			return cm, err
		},
		secret: func(name string) (*corev1.Secret, error) {
			o, err := w.a.objects.get(ctx, w.uid, w.dirs, objectKey{secretsResource, pod.Namespace, name})
			s, _ := o.(*corev1.Secret)
			return s, err
		},
	}
}

func (w *podWorker) podIPs() []string {
	if w.pod.Spec.HostNetwork {
		return w.a.hostIPs()
	}
	return w.rec.IPs
}

// setUp puts the pod's volumes in place or brings them up to date.
func (w *podWorker) setUp() {
	pod := w.pod
	w.mu.Lock()
	w.stale = false
	keys := wanted(pod, w.mounts)
	maps.Copy(keys, w.extra)
	w.mu.Unlock()
	w.a.objects.hold(w.uid, keys)
	ips, fresh := w.podIPs(), !w.hasRun()
	w.start("volumes", idle, 0, func(ctx context.Context) func() {
		errs := w.setUpVolumes(ctx, pod, ips, fresh)
		err := errors.Join(errs...)
		w.a.fault("volumes.set-up")
		return func() {
			w.a.folders.changed()
			if err == nil {
				w.volumes.succeeded()
				return
			}
			if !errors.Is(err, context.Canceled) && (w.volumes.fails >= quietFails || !errors.Is(err, errNotYet)) {
				w.sayVolumes(errs)
			}
			done := w.volumes.done
			w.volumes.failed(w.a.cfg.Now())
			w.volumes.done = done // what was there stays
			if done {
				w.mu.Lock()
				w.stale = true
				w.mu.Unlock()
			}
		}
	})
}

// sayVolumes tells why volumes cannot be mounted, and why others cannot be mapped.
func (w *podWorker) sayVolumes(errs []error) {
	var unmounted, unmapped []error
	for _, err := range errs {
		if errors.As(err, &mapFailure{}) {
			unmapped = append(unmapped, err)
		} else {
			unmounted = append(unmounted, err)
		}
	}
	if len(unmounted) > 0 {
		w.event(nil, corev1.EventTypeWarning, "FailedMount", errors.Join(unmounted...).Error())
	}
	if len(unmapped) > 0 {
		w.event(nil, corev1.EventTypeWarning, "FailedMapVolume", errors.Join(unmapped...).Error())
	}
}

// republication is when a driver wants to be asked anew.
func (w *podWorker) republication() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.republishAt
}

// hasRun says whether a container was started in the present sandbox: from then
// on the pod's volumes are its own business.
func (w *podWorker) hasRun() bool {
	for _, c := range w.rec.Containers {
		if c.Attempt >= 0 && c.Sandbox == w.rec.Sandbox {
			return true
		}
	}
	return false
}

// setUpVolumes does so and returns what went wrong with each; fresh says that
// nothing of the pod has run yet.
func (w *podWorker) setUpVolumes(ctx context.Context, pod *corev1.Pod, podIPs []string, fresh bool) (errs []error) {
	if err := os.MkdirAll(w.dirs.disk, 0o750); err != nil {
		return []error{err}
	}
	src := volumeSources{sources: w.sources(ctx, pod, podIPs), fsGroup: fsGroup(pod), user: commonUser(pod)}
	src.token = func(p *corev1.ServiceAccountTokenProjection) ([]byte, error) { return w.tokens.get(ctx, pod, p) }
	if w.a.plugins.wanted(pod) {
		if err := w.a.plugins.prepare(); err != nil {
			return []error{err}
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		var err error
		if _, claimed := api.ClaimName(pod, v); claimed {
			err = w.setUpClaim(ctx, pod, v, fresh)
		} else if v.NFS != nil {
			path := w.dirs.nfs(v.Name)
			if err = setUpNFS(ctx, v.NFS, nil, path); err == nil {
				err = pointTo(filepath.Join(w.dirs.volumes, v.Name), path)
			}
		} else if v.CSI != nil {
			var path string
			if path, err = w.setUpCSI(ctx, pod, v, nil, fresh); err == nil {
				err = pointTo(filepath.Join(w.dirs.volumes, v.Name), path)
			}
		} else {
			err = setUpVolume(pod, v, w.dirs, src)
		}
		if err != nil {
			step := "MountVolume.SetUp"
			if errors.As(err, &mapFailure{}) {
				step = "MapVolume.SetUpDevice"
			}
			errs = append(errs, fmt.Errorf("%s failed for volume %q : %w", step, v.Name, err))
		}
	}
	return errs
}

// makeSandbox gives the pod its network and its process.
func (w *podWorker) makeSandbox() {
	pod := w.pod
	known, amounts := slices.Contains(w.a.cfg.Runtime.Pods(), string(w.uid)), amountsOf(pod)
	var problem error
	if ownUsers(pod) && w.rec.IDs == 0 {
		if w.rec.IDs, problem = w.a.users.take(w.uid); problem == nil {
			w.save() // before anything is made with them
		}
	}
	ids := w.rec.IDs
	w.start("sandbox", idle, 0, func(ctx context.Context) func() {
		ips, err := []string(nil), problem
		if err == nil {
			ips, err = w.startPod(ctx, pod, ids, !known)
		}
		return func() {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					w.event(nil, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error())
				}
				w.sandbox.failed(w.a.cfg.Now())
				return
			}
			if !known || w.rec.Sandbox == 0 {
				adopted := known
				w.rec.Sandbox++
				for _, c := range w.rec.Containers {
					if adopted && c.Attempt >= 0 {
						c.Sandbox = w.rec.Sandbox
					}
				}
			}
			w.rec.IPs = ips
			if !known || w.rec.Cgroup == nil {
				w.rec.Cgroup = &amounts
			}
			w.sandbox.succeeded()
		}
	})
}

func (w *podWorker) startPod(ctx context.Context, pod *corev1.Pod, ids uint32, fresh bool) (ips []string, err error) {
	hostname, _ := podHostname(pod, w.a.cfg.ClusterDomain)
	cfg := PodConfig{
		ID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, Hostname: hostname,
		CgroupParent: cgroupParent(pod), Resources: w.a.podResources(pod),
		HostPID: pod.Spec.HostPID, HostIPC: pod.Spec.HostIPC, ShareProcesses: isTrue(pod.Spec.ShareProcessNamespace),
		Fenced: w.a.fenced(pod), IDs: ids,
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		cfg.Sysctls = map[string]string{}
		for _, s := range sc.Sysctls {
			cfg.Sysctls[s.Name] = s.Value
		}
	}
	if err := w.checkHandler(ctx, pod); err != nil {
		return nil, err
	}
	if ids != 0 {
		if err := w.a.cfg.Runtime.Isolate(ctx, cfg); err != nil {
			return nil, err
		}
	}
	addresses := ips
	if pod.Spec.HostNetwork {
		cfg.Hostname, addresses = "", w.a.hostIPs()
	} else {
		var found []netip.Addr
		if cfg.NetNS, found, err = w.a.cfg.Network.Attach(ctx, pod); err != nil {
			return nil, fmt.Errorf("attach to the pod network: %w", err)
		}
		w.a.fault("network.attached")
		for _, ip := range found {
			ips = append(ips, ip.String())
		}
		addresses = ips
	}
	if err := w.a.cfg.Runtime.StartPod(ctx, cfg); err != nil {
		return nil, err
	}
	w.a.fault("sandbox.started")
	dns, omitted := w.a.resolverOf(pod)
	for _, message := range omitted {
		w.event(nil, corev1.EventTypeWarning, "DNSConfigForming", message)
	}
	return ips, w.a.writeEtc(pod, w.dirs, addresses, dns, fresh)
}

// startContainer starts a container for the next time.
func (w *podWorker) startContainer(name string) {
	pod, c := w.pod, containerNamed(w.pod, name)
	rec, loop := w.rec.container(name), w.loop(name)
	attempt, back := rec.Attempt+1, loop.pull
	in := amounts(containerResources(pod, c))
	loop.resources, loop.cgroup = &c.Resources, &in
	services, ips, epoch := w.rec.Services, w.podIPs(), w.epoch
	w.start(containerKey(name), starting, 0, func(ctx context.Context) func() {
		src := w.sources(ctx, pod, ips)
		image, pull, vars, err := w.runContainer(ctx, pod, c, attempt, epoch, back, src, services)
		return func() {
			loop.pull, loop.image = pull, image
			if vars != nil {
				w.rec.Services = vars
			}
			if errors.Is(err, ErrFenced) {
				w.epoch = 0 // to be allowed anew
				return
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				w.notStarted(c, loop, err)
			}
		}
	})
}

// notStarted notes why a container could not be started.
func (w *podWorker) notStarted(c *corev1.Container, loop *containerLoop, err error) {
	now := w.a.cfg.Now()
	loop.failed(now)
	loop.retry = now.Add(min(backOffFirst<<min(loop.fails-1, 10), backOffMax))
	reason, message, quiet := "CreateContainerError", err.Error(), false
	var waiting *waitingError
	var config configError
	switch {
	case errors.As(err, &waiting):
		reason, message, quiet = waiting.reason, waiting.message, waiting.quiet
		if !waiting.again.IsZero() {
			loop.retry = waiting.again
		}
	case errors.As(err, &config):
		reason, message = "CreateContainerConfigError", config.msg
	}
	loop.waiting = &corev1.ContainerStateWaiting{Reason: reason, Message: message}
	if quiet {
		return
	}
	switch reason {
	case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName":
		w.event(c, corev1.EventTypeWarning, "Failed", "Error: "+reason)
	default:
		w.event(c, corev1.EventTypeWarning, "Failed", "Error: "+message)
	}
}

// runContainer is the whole way from a container's specification to its process.
func (w *podWorker) runContainer(ctx context.Context, pod *corev1.Pod, c *corev1.Container, attempt int, epoch uint64, back *pullBackOff, src sources, saved map[string]string) (image Image, pull *pullBackOff, vars map[string]string, err error) {
	image, pull, err = w.ensureImages(ctx, pod, c, back, src)
	if err != nil {
		return image, pull, nil, err
	}
	w.a.fault("image.ready")
	if vars, err = w.a.serviceVars(ctx, pod, saved); err != nil {
		return image, pull, nil, err
	}
	src.services = vars
	cfg, skipped, err := containerConfig(pod, c, attempt, image, w.dirs, src, w.a.node.memory(), w.a.cfg.ClusterDomain, w.a.security())
	if len(skipped) > 0 {
		w.event(c, corev1.EventTypeWarning, "InvalidEnvironmentVariableNames", fmt.Sprintf("Keys %v from the EnvFrom sources were skipped since they are considered invalid environment variable names.", skipped))
	}
	if err != nil {
		return image, pull, vars, err
	}
	w.removeOld(ctx, pod, c.Name, attempt)
	if err := w.dirs.makeLogs(pod, c.Name, attempt); err != nil {
		return image, pull, vars, err
	}
	cfg.Epoch = epoch
	if err := w.a.cfg.Runtime.RunContainer(ctx, cfg); err != nil {
		for _, s := range w.a.cfg.Runtime.Containers(cfg.PodID) {
			if s.ID == cfg.ID && s.State != Created {
				// It exists and has ended: what follows is a crash like others.
				w.event(c, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
				return image, pull, vars, nil
			}
		}
		if ctx.Err() == nil {
			if rmErr := w.a.cfg.Runtime.RemoveContainer(ctx, cfg.PodID, cfg.ID); rmErr != nil {
				w.log.Debug("nothing to remove of a container that did not start", "container", cfg.ID, "err", rmErr)
			}
		}
		return image, pull, vars, err
	}
	w.a.fault("container.ran")
	w.event(c, corev1.EventTypeNormal, "Created", "Container created")
	w.event(c, corev1.EventTypeNormal, "Started", "Container started")
	if postStartOf(c) != nil {
		w.postStart(ctx, pod, c, cfg.ID, first(src.podIPs))
	}
	return image, pull, vars, nil
}

// removeOld removes the starts of a container before the last, with their logs.
func (w *podWorker) removeOld(ctx context.Context, pod *corev1.Pod, name string, attempt int) {
	for _, s := range w.a.cfg.Runtime.Containers(string(w.uid)) {
		if n, old, ok := splitContainerID(s.ID); ok && n == name && old < attempt-1 {
			if err := w.a.cfg.Runtime.RemoveContainer(ctx, string(w.uid), s.ID); err != nil {
				w.log.Warn("an old container cannot be removed", "container", s.ID, "err", err)
			}
		}
	}
	logs, err := filepath.Glob(filepath.Join(w.dirs.disk, "logs", name, "*.log*"))
	if err != nil {
		return // the pattern is ours
	}
	for _, path := range logs {
		if n, ok := logAttempt(filepath.Base(path)); ok && n < attempt-1 {
			if err := errors.Join(os.Remove(path), os.RemoveAll(filepath.Join(w.dirs.logs, containLinks, logLink(pod, name, n)))); err != nil {
				w.log.Warn("an old log cannot be removed", "path", path, "err", err)
			}
		}
	}
	if attempt >= 2 {
		if err := os.Remove(w.dirs.termination(name, attempt-2)); err != nil && !os.IsNotExist(err) {
			w.log.Warn("an old termination message cannot be removed", "err", err)
		}
	}
}

// stopContainer asks a container to end.
func (w *podWorker) stopContainer(a action) {
	c := containerNamed(w.pod, a.container)
	id := containerID(a.container, w.rec.container(a.container).Attempt)
	message := a.message
	if message == "" {
		message = "Stopping container " + a.container
	}
	w.event(c, corev1.EventTypeNormal, "Killing", message)
	loop := w.loop(a.container)
	loop.killed = true
	hook, ip := preStopOf(c), first(w.podIPs())
	if loop.hooked == id || a.renewal {
		hook = nil // it was cut short, or is not due
	}
	loop.hooked = id
	loop.replaced = loop.replaced || a.renewal
	var turn chan struct{}
	if a.inTurn {
		turn = make(chan struct{})
	}
	loop.turn = turn
	w.start(containerKey(a.container), stopping, a.grace, func(ctx context.Context) func() {
		err := w.stopGently(ctx, c, id, a.grace, hook, turn, ip)
		return func() {
			if err != nil && !errors.Is(err, context.Canceled) {
				w.log.Warn("a container cannot be stopped", "container", id, "err", err)
				w.event(c, corev1.EventTypeWarning, "FailedKillPod", fmt.Sprintf("error killing pod: failed to stop container %q: %v", a.container, err))
				loop.failed(w.a.cfg.Now())
			}
		}
	})
}

// tearDown takes down all that the containers shared.
func (w *podWorker) tearDown() {
	host := w.pod.Spec.HostNetwork
	w.start("teardown", idle, 0, func(ctx context.Context) func() {
		err := w.a.takeDown(ctx, string(w.uid), host)
		return func() {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					w.log.Warn("a pod cannot be taken down yet", "err", err)
				}
				w.teardown.failed(w.a.cfg.Now())
				return
			}
			w.teardown.succeeded()
			w.sandbox, w.volumes = attempts{}, attempts{}
			w.rec.Down, w.rec.IDs = true, 0
			w.a.users.free(w.uid)
			w.a.objects.hold(w.uid, nil)
			w.mu.Lock()
			w.shown.rec.Down = true // for whoever asks before the next report
			w.mu.Unlock()
			w.a.folders.changed()
			w.tokens.clear()
		}
	})
}

// deleteObject tells the API that the pod is no more.
func (w *podWorker) deleteObject() {
	pod := w.pod
	w.start("deletion", idle, 0, func(ctx context.Context) func() {
		err := w.a.cfg.Client.Delete(ctx, podsResource, pod.Namespace, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(pod.UID)),
		})
		w.a.fault("object.deleted")
		return func() {
			switch {
			case err == nil, refused(err): // refused: it is gone, or another has its name
				w.deletion.succeeded()
			default:
				w.log.Debug("a deleted pod cannot be removed from the API yet", "err", err)
				w.deletion.failed(w.a.cfg.Now())
			}
		}
	})
}

// event records what happened to the pod, or to one of its containers.
func (w *podWorker) event(c *corev1.Container, kind, reason, message string) {
	w.mu.Lock()
	pod := w.latest
	w.mu.Unlock()
	field := ""
	if c != nil {
		field = containerField(pod, c.Name)
	}
	w.a.events.event(podReference(pod, field), kind, reason, message)
}
