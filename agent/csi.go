package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/api/csi"
)

// kubeletRoot is where manifests of drivers and plugins expect kubelet's
// folder. Conclave writes below its data folder alone, so a pod that mounts a
// path below it gets the same path below the folder kubelet/ of the data
// folder; and because a driver's own containers mount that folder under the
// old name, paths are told to drivers under it too.
const kubeletRoot = "/var/lib/kubelet"

func (d podDirs) host(path string) string {
	path = filepath.Clean(path)
	for _, name := range []string{podLogs, containLinks} {
		if rest, ok := strings.CutPrefix(path, filepath.Join(hostLogs, name)); ok && (rest == "" || rest[0] == '/') {
			return filepath.Join(d.logs, name) + rest
		}
	}
	if rest, ok := strings.CutPrefix(path, kubeletRoot); ok && (rest == "" || rest[0] == '/') {
		return d.kubelet + rest
	}
	return path
}

// told is host's reverse.
func (p *plugins) told(path string) string {
	if rest, ok := strings.CutPrefix(path, p.dir); ok {
		return kubeletRoot + rest
	}
	return path
}

const (
	pluginWait    = 10 * time.Second // for a plugin to answer to its registration
	registerTries = 8                // from a tenth of a second on, doubling
	csiWait       = 2 * time.Minute  // for a driver's work
)

// plugins are the CSI drivers of this node: who registered, and what is mounted
// by them. Who registers does so as with kubelet: a socket appears in the folder
// plugins_registry, and is asked who is behind it. Nothing is there, and nothing
// runs, before a pod mounts something below kubelet's folder.
type plugins struct {
	a   *Agent
	dir string // our kubelet/

	prepared chan struct{} // closed when dir is there
	once     sync.Mutex    // of preparing

	mu      sync.Mutex
	drivers map[string]*driver
	sockets map[string]uint64 // registered, and their inodes
	locks   map[string]*sync.Mutex
	using   map[corev1.UniqueVolumeName]bool
}

// driver is one that has registered.
type driver struct {
	name, socket string // socket: of its registration
	call         csi.Caller
	info         csi.NodeInfo
	can          map[csi.NodeCapability]bool
}

func newPlugins(a *Agent) *plugins {
	return &plugins{
		a: a, dir: filepath.Join(a.cfg.Dir, "kubelet"), prepared: make(chan struct{}),
		drivers: map[string]*driver{}, sockets: map[string]uint64{}, locks: map[string]*sync.Mutex{}, using: map[corev1.UniqueVolumeName]bool{},
	}
}

func (p *plugins) registry() string { return filepath.Join(p.dir, "plugins_registry") }

// prepare makes the folder that stands for kubelet's. It is a mount of its own,
// shared, so that what a driver mounts in its container is seen here.
func (p *plugins) prepare() error {
	p.once.Lock()
	defer p.once.Unlock()
	select {
	case <-p.prepared:
		return nil
	default:
	}
	for _, name := range []string{"", "plugins", "plugins_registry", "pods"} {
		if err := os.MkdirAll(filepath.Join(p.dir, name), 0o750); err != nil {
			return err
		}
	}
	if mounted, err := mountinfo.Mounted(p.dir); err != nil || !mounted {
		if err := unix.Mount(p.dir, p.dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", p.dir, err)
		}
	}
	if err := unix.Mount("", p.dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("let mounts below %s be shared: %w", p.dir, err)
	}
	close(p.prepared)
	return nil
}

// wanted says whether a pod mounts something of kubelet's folder.
func (p *plugins) wanted(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.HostPath != nil && p.a.dirs("").host(v.HostPath.Path) != filepath.Clean(v.HostPath.Path)
	})
}

// run registers whoever comes, until ctx ends.
func (p *plugins) run(ctx context.Context) error {
	p.findUsed()
	if _, err := os.Stat(p.registry()); err == nil {
		if err := p.prepare(); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case <-p.prepared:
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("agent: watch %s: %w", p.registry(), err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	if _, err := unix.InotifyAddWatch(fd, p.registry(), unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM); err != nil {
		return fmt.Errorf("agent: watch %s: %w", p.registry(), err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	buffer := make([]byte, 4096)
	for {
		p.look(ctx, &wg)
		if _, err := events.Read(buffer); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("agent: watch %s: %w", p.registry(), err)
		}
	}
}

// look compares the folder of registrations with who has registered.
func (p *plugins) look(ctx context.Context, wg *sync.WaitGroup) {
	found := map[string]uint64{}
	entries, err := os.ReadDir(p.registry())
	if err != nil {
		p.a.log.Warn("the plugins' registrations cannot be read", "err", err)
		return
	}
	for _, e := range entries {
		var info unix.Stat_t
		path := filepath.Join(p.registry(), e.Name())
		if unix.Lstat(path, &info) == nil && info.Mode&unix.S_IFMT == unix.S_IFSOCK && !strings.HasPrefix(e.Name(), ".") {
			found[path] = info.Ino
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for path, inode := range p.sockets {
		if found[path] == inode {
			delete(found, path)
			continue
		}
		delete(p.sockets, path)
		for name, d := range p.drivers {
			if d.socket == path {
				delete(p.drivers, name)
				wg.Go(func() { p.say(ctx, func(n *storagev1.CSINode) { dropDriver(n, name) }, nil) })
			}
		}
	}
	for path, inode := range found {
		p.sockets[path] = inode
		wg.Go(func() { p.meet(ctx, path) })
	}
}

// meet registers who is behind a socket. It may have been made just before
// somebody listens.
func (p *plugins) meet(ctx context.Context, path string) {
	wait := 100 * time.Millisecond
	var err error
	for range registerTries {
		if err = p.register(ctx, path); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			wait *= 2
		}
	}
	// A socket that was left by a reboot, most likely: its owner will make it anew.
	p.a.log.Warn("a plugin cannot be registered", "socket", path, "err", err)
}

func (p *plugins) register(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, pluginWait)
	defer cancel()
	who, err := csi.Registration(ctx, csi.Socket(path))
	if err != nil {
		return err
	}
	d, err := p.judge(ctx, who, path)
	if err == nil {
		err = p.say(ctx, func(n *storagev1.CSINode) { addDriver(n, d) }, d)
	}
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if tell := csi.Registered(ctx, csi.Socket(path), problem); err == nil {
		err = tell
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.drivers[d.name] = d
	p.mu.Unlock()
	p.a.log.Info("a CSI driver has registered", "driver", d.name, "node-id", d.info.ID)
	p.sweep(context.WithoutCancel(ctx), d)
	for _, w := range p.a.allWorkers() {
		p.a.objectChanged(w.uid) // it may have waited for this
	}
	return nil
}

// judge says whether a plugin is a driver that we can talk to.
func (p *plugins) judge(ctx context.Context, who csi.PluginInfo, path string) (*driver, error) {
	if who.Type != "CSIPlugin" {
		return nil, fmt.Errorf("plugins of type %s are not supported by Conclave", who.Type)
	}
	if !slices.ContainsFunc(who.Versions, func(v string) bool { return strings.HasPrefix(strings.TrimPrefix(v, "v"), "1.") }) {
		return nil, fmt.Errorf("driver %s speaks versions %v of CSI, and none of 1.x", who.Name, who.Versions)
	}
	d := &driver{name: who.Name, socket: path, call: csi.Socket(p.a.dirs("").host(cmp.Or(strings.TrimPrefix(who.Endpoint, "unix://"), path)))}
	var err error
	if d.info, err = csi.GetNodeInfo(ctx, d.call); err != nil {
		return nil, err
	}
	if d.info.ID == "" {
		return nil, fmt.Errorf("driver %s gives this node no id", who.Name)
	}
	d.can, err = csi.NodeCapabilities(ctx, d.call)
	return d, err
}

var (
	csiNodesResource    = storagev1.SchemeGroupVersion.WithResource("csinodes")
	csiDriversResource  = storagev1.SchemeGroupVersion.WithResource("csidrivers")
	attachmentsResource = storagev1.SchemeGroupVersion.WithResource("volumeattachments")
)

const csiNodeIDAnnotation = "csi.volume.kubernetes.io/nodeid"

func dropDriver(n *storagev1.CSINode, name string) {
	n.Spec.Drivers = slices.DeleteFunc(n.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == name })
}

func addDriver(n *storagev1.CSINode, d *driver) {
	entry := storagev1.CSINodeDriver{Name: d.name, NodeID: d.info.ID, TopologyKeys: slices.Sorted(maps.Keys(d.info.Topology))}
	if d.info.MaxVolumes > 0 {
		entry.Allocatable = &storagev1.VolumeNodeResources{Count: new(int32(min(d.info.MaxVolumes, 1<<31-1)))}
	}
	dropDriver(n, d.name)
	n.Spec.Drivers = append(n.Spec.Drivers, entry)
}

// say keeps what the cluster knows of this node's drivers: the CSINode and, of
// a driver that comes, the node's place in its topology.
func (p *plugins) say(ctx context.Context, change func(*storagev1.CSINode), d *driver) error {
	c, name := p.a.cfg.Client, p.a.cfg.NodeName
	o, err := c.Get(ctx, nodesResource, "", name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	node, _ := o.(*corev1.Node)
	for {
		o, err := c.Get(ctx, csiNodesResource, "", name, metav1.GetOptions{})
		n, exists := o.(*storagev1.CSINode)
		switch {
		case apierrors.IsNotFound(err):
			n = &storagev1.CSINode{
				TypeMeta: metav1.TypeMeta{APIVersion: storagev1.SchemeGroupVersion.String(), Kind: "CSINode"},
				ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{
					APIVersion: "v1", Kind: "Node", Name: name, UID: node.GetUID(),
				}}},
			}
			change(n)
			_, err = c.Create(ctx, csiNodesResource, "", name, n, metav1.CreateOptions{})
		case err == nil && exists:
			before := n
			n = n.DeepCopy()
			change(n)
			if sameDrivers(before.Spec.Drivers, n.Spec.Drivers) {
				break
			}
			// What a driver says of itself is replaced, not changed.
			_, err = c.Update(ctx, csiNodesResource, "", n, metav1.UpdateOptions{})
			if apierrors.IsInvalid(err) && d != nil {
				gone := before.DeepCopy()
				dropDriver(gone, d.name)
				if _, err = c.Update(ctx, csiNodesResource, "", gone, metav1.UpdateOptions{}); err == nil {
					continue
				}
			}
		}
		if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write CSINode %s: %w", name, err)
		}
		break
	}
	if d == nil {
		return nil
	}
	ids := map[string]string{}
	_ = json.Unmarshal([]byte(node.Annotations[csiNodeIDAnnotation]), &ids) // what is no JSON is written anew
	ids[d.name] = d.info.ID
	text, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	labels, annotations := lacking(node.Labels, d.info.Topology), lacking(node.Annotations, map[string]string{csiNodeIDAnnotation: string(text)})
	if len(labels)+len(annotations) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels, "annotations": annotations}})
	if err != nil {
		return err
	}
	if _, err = c.Patch(ctx, nodesResource, "", name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("write the topology of driver %s on node %s: %w", d.name, name, err)
	}
	return nil
}

func sameDrivers(a, b []storagev1.CSINodeDriver) bool {
	text := func(list []storagev1.CSINodeDriver) string {
		list = slices.SortedFunc(slices.Values(list), func(x, y storagev1.CSINodeDriver) int { return cmp.Compare(x.Name, y.Name) })
		raw, err := json.Marshal(list)
		if err != nil {
			return ""
		}
		return string(raw)
	}
	return text(a) == text(b)
}

// driver finds one that has registered.
func (p *plugins) driver(name string) (*driver, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.drivers[name]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("driver name %s not found in the list of registered CSI drivers", name)
}

// lock keeps two pods from working on one volume at the same time.
func (p *plugins) lock(driver, handle string) func() {
	p.mu.Lock()
	key := driver + "^" + handle
	l := p.locks[key]
	if l == nil {
		l = &sync.Mutex{}
		p.locks[key] = l
	}
	p.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// ErrNoDriver is the outcome of CallDriver where none of that name is.
var ErrNoDriver = errors.New("the driver has not registered with this node")

// CallDriver makes a controller call of a driver that runs here, on behalf of
// the cluster's leader.
func (a *Agent) CallDriver(ctx context.Context, name, method string, request []byte) ([]byte, error) {
	if !strings.HasPrefix(method, "/csi.v1.Controller/") && !strings.HasPrefix(method, "/csi.v1.Identity/") {
		return nil, fmt.Errorf("%s is not a call that a controller makes", method)
	}
	d, err := a.plugins.driver(name)
	if err != nil {
		return nil, ErrNoDriver
	}
	return d.call(ctx, method, request)
}

// The record of what is mounted.

// mounted is kept beside each mount, written before the driver is called: what
// was begun by a process that did not live to end it is found here.
type mounted struct {
	Driver    string `json:"driverName"`
	Handle    string `json:"volumeHandle"`
	Name      string `json:"specVolID"`
	Ephemeral bool   `json:"ephemeral,omitempty"`
	Block     bool   `json:"block,omitempty"` // it is a device
	// Boot is of the host's run in which the driver said that it is mounted,
	// and Mount that there is a mount since.
	Boot  string `json:"boot,omitempty"`
	Mount bool   `json:"mount,omitempty"`
}

const mountedFile = "vol_data.json"

var bootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
})

func readMounted(dir string) (*mounted, error) {
	raw, err := os.ReadFile(filepath.Join(dir, mountedFile))
	if err != nil {
		return nil, err
	}
	m := &mounted{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, mountedFile), err)
	}
	return m, nil
}

func (m *mounted) write(dir string) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	return writeDurably(filepath.Join(dir, mountedFile), raw)
}

// holds says whether what was mounted still is.
func (m *mounted) holds(target string) bool {
	if m == nil || m.Boot == "" || m.Boot != bootID() {
		return false
	}
	there, err := mountinfo.Mounted(target)
	return err == nil && (there || !m.Mount)
}

// done notes that the driver has mounted it.
func (m *mounted) done(dir, target string) error {
	there, err := mountinfo.Mounted(target)
	if err != nil {
		return err
	}
	m.Boot, m.Mount = bootID(), there
	return m.write(dir)
}

// Where things are below kubelet's folder. A driver may mount no more of it than
// what drivers know of kubelet's own: the pods' folders and plugins, or of the
// latter what is in csiFolder; so what a driver is told is where kubelet has it.
// A volume that is a device has folders of its own: its mode is part of what a
// driver was asked for.

// csiFolder is, below plugins, what is staged; devicesFolder, within it, is of
// devices, staged and published.
const (
	csiFolder     = "kubernetes.io/csi"
	devicesFolder = csiFolder + "/volumeDevices"
)

// record is the folder of a pod's volume, with the record in it.
func (p *plugins) record(uid, name string, block bool) string {
	return filepath.Join(p.dir, "pods", uid, podFolder(block), "kubernetes.io~csi", name)
}

func podFolder(block bool) string {
	if block {
		return "volumeDevices"
	}
	return "volumes"
}

// published is what a driver is to mount for a pod, or for a device to make.
func (p *plugins) published(m *mounted, dir string) string {
	if !m.Block {
		return filepath.Join(dir, "mount")
	}
	uid := filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(dir))))
	return filepath.Join(p.dir, "plugins", devicesFolder, "publish", m.id(), uid)
}

// staged is where a volume is mounted once for all pods of the node, and the
// folder with the record of it.
func (p *plugins) staged(m *mounted) (dir, target string) {
	if m.Block {
		root := filepath.Join(p.dir, "plugins", devicesFolder)
		return filepath.Join(root, m.id()), filepath.Join(root, "staging", m.id())
	}
	dir = filepath.Join(p.dir, "plugins", csiFolder, m.Driver, api.VolumeDigest(m.Handle))
	return dir, filepath.Join(dir, "globalmount")
}

// id is a volume's among those of all drivers.
func (m *mounted) id() string { return api.VolumeDigest(m.Driver + "^" + m.Handle) }

// records are all that is mounted for pods, or for one pod.
func (p *plugins) records(uid string) []string {
	return p.glob("pods", cmp.Or(uid, "*"), "volume*", "kubernetes.io~csi", "*")
}

func (p *plugins) glob(parts ...string) []string {
	dirs, err := filepath.Glob(filepath.Join(append([]string{p.dir}, parts...)...))
	if err != nil {
		return nil // the patterns are ours
	}
	return dirs
}

func uniqueName(driver, handle string) corev1.UniqueVolumeName {
	return corev1.UniqueVolumeName("kubernetes.io/csi/" + driver + "^" + handle)
}

// findUsed reads what is in use from the disk.
func (p *plugins) findUsed() {
	using := map[corev1.UniqueVolumeName]bool{}
	for _, dir := range p.records("") {
		if m, err := readMounted(dir); err == nil && !m.Ephemeral {
			using[uniqueName(m.Driver, m.Handle)] = true
		}
	}
	p.mu.Lock()
	p.using = using
	p.mu.Unlock()
	p.a.node.imagesChanged()
}

// inUse are the volumes that must not be taken from this node.
func (p *plugins) inUse() []corev1.UniqueVolumeName {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.using) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(p.using))
}

// sweep takes back what is staged and mounted by no pod: somebody did not live
// to do it.
func (p *plugins) sweep(ctx context.Context, d *driver) {
	for _, dir := range slices.Concat(p.glob("plugins", csiFolder, d.name, "*"), p.glob("plugins", devicesFolder, "*")) {
		m, err := readMounted(dir)
		if err != nil || m.Driver != d.name {
			continue
		}
		if err := p.unstage(ctx, d, m); err != nil {
			p.a.log.Warn("a volume that nobody mounts cannot be unstaged", "driver", d.name, "volume", m.Handle, "err", err)
		}
	}
}

// unstage undoes what is mounted once for all pods of the node, unless one has
// it still.
func (p *plugins) unstage(ctx context.Context, d *driver, m *mounted) error {
	defer p.lock(d.name, m.Handle)()
	for _, other := range p.records("") {
		if o, err := readMounted(other); err == nil && o.id() == m.id() && o.Block == m.Block {
			return nil
		}
	}
	dir, target := p.staged(m)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, csiWait)
	defer cancel()
	if err := csi.NodeUnstage(ctx, d.call, m.Handle, p.told(target)); err != nil {
		return err
	}
	return removeMount(dir, target)
}

// removeMount removes what held a mount that is gone, and nothing else.
func removeMount(dir, target string) error {
	if there, err := mountinfo.Mounted(target); err != nil && !errors.Is(err, fs.ErrNotExist) || there {
		return fmt.Errorf("%s is still mounted (%v)", target, err)
	}
	for _, path := range []string{target, filepath.Join(dir, mountedFile), dir} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// tearDown takes back all that drivers have mounted for a pod.
func (p *plugins) tearDown(ctx context.Context, uid string) error {
	dirs := p.records(uid)
	for _, dir := range dirs {
		m, err := readMounted(dir)
		if errors.Is(err, fs.ErrNotExist) { // nobody was called yet
			err = removeMount(dir, filepath.Join(dir, "mount"))
			m = nil
		}
		if err != nil {
			return err
		}
		if m == nil {
			continue
		}
		if err := p.unpublish(ctx, m, dir); err != nil {
			return fmt.Errorf("UnmountVolume.TearDown failed for volume %q : kubernetes.io/csi: %w", m.Name, err)
		}
	}
	if len(dirs) > 0 {
		p.findUsed()
	}
	root := filepath.Join(p.dir, "pods", uid)
	var left []string
	for _, block := range []bool{false, true} {
		left = append(left, filepath.Join(root, podFolder(block), "kubernetes.io~csi"), filepath.Join(root, podFolder(block)))
	}
	for _, path := range append(left, root) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p *plugins) unpublish(ctx context.Context, m *mounted, dir string) error {
	d, err := p.driver(m.Driver)
	if err != nil {
		return err
	}
	target := p.published(m, dir)
	err = func() error {
		defer p.lock(m.Driver, m.Handle)()
		ctx, cancel := context.WithTimeout(ctx, csiWait)
		defer cancel()
		if err := csi.NodeUnpublish(ctx, d.call, m.Handle, p.told(target)); err != nil {
			return err
		}
		if err := removeMount(dir, target); err != nil || !m.Block {
			return err
		}
		if err := os.Remove(filepath.Dir(target)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err // what other pods have of it is there too
		}
		return nil
	}()
	if err != nil || m.Ephemeral {
		return err
	}
	return p.unstage(ctx, d, m)
}
