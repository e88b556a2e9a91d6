package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	topologyKey = "topology.hostpath.csi.conclave.test/node"
	smallest    = 1 << 20
	largest     = 1 << 40
)

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	name, node, state string
	mu                sync.Mutex // one call at a time: they take no time
}

// volume is what is known of one, in STATE/ID.json beside STATE/ID, which is a
// folder, or a file that is to be a device.
type volume struct {
	Name     string          `json:"name"`
	Block    bool            `json:"block,omitempty"`
	Capacity int64           `json:"capacity"`
	Attached map[string]bool `json:"attached,omitempty"` // node to whether it may only read
	Grown    int64           `json:"grown,omitempty"`    // what the node was last told
	Source   string          `json:"source,omitempty"`   // what it began with
}

func (d *driver) folder(id string) string { return filepath.Join(d.state, id) }

// load finds a volume; an id is never more than a name.
func (d *driver) load(id string) (*volume, error) {
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the volume is missing")
	}
	raw, err := os.ReadFile(d.folder(filepath.Base(id)) + ".json")
	if errors.Is(err, fs.ErrNotExist) || id != filepath.Base(id) {
		return nil, status.Errorf(codes.NotFound, "there is no volume %s", id)
	}
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	v := &volume{}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return v, nil
}

func (d *driver) save(id string, v *volume) error {
	raw, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(d.folder(id)+".json.tmp", raw, 0o600)
	}
	if err == nil {
		err = os.Rename(d.folder(id)+".json.tmp", d.folder(id)+".json")
	}
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// Identity.

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	r := &csi.GetPluginCapabilitiesResponse{}
	for _, t := range []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS} {
		r.Capabilities = append(r.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return r, nil
}

// Controller.

func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	r := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME, csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT, csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS, csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		r.Capabilities = append(r.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}}})
	}
	return r, nil
}

// wanted says whether a volume is wanted as a device or as a folder.
func wanted(list ...*csi.VolumeCapability) (block bool, err error) {
	if len(list) == 0 {
		return false, status.Error(codes.InvalidArgument, "the capabilities of the volume are missing")
	}
	for _, c := range list {
		switch {
		case c == nil:
			return false, status.Error(codes.InvalidArgument, "the capability of the volume is missing")
		case c.GetMount() == nil && c.GetBlock() == nil:
			return false, status.Error(codes.InvalidArgument, "the volume is wanted neither mounted nor as a device")
		case (c.GetBlock() != nil) != (list[0].GetBlock() != nil):
			return false, status.Error(codes.InvalidArgument, "no volume is a folder and a device")
		}
	}
	return list[0].GetBlock() != nil, nil
}

// use is wanted for a volume that there is.
func (d *driver) use(id string, list ...*csi.VolumeCapability) (*volume, error) {
	block, err := wanted(list...)
	if err != nil {
		return nil, err
	}
	v, err := d.load(id)
	if err == nil && v.Block != block {
		return nil, status.Errorf(codes.InvalidArgument, "volume %s is of the other mode", id)
	}
	return v, err
}

// write makes what holds the data of a volume, or makes it larger.
func (d *driver) write(id string, v *volume) error {
	fail := func(err error) error {
		if err == nil {
			return nil
		}
		return status.Error(codes.Internal, err.Error())
	}
	if !v.Block {
		return fail(errors.Join(os.MkdirAll(d.folder(id), 0o777), os.Chmod(d.folder(id), 0o777)))
	}
	f, err := os.OpenFile(d.folder(id), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() < v.Capacity {
		err = f.Truncate(v.Capacity)
	}
	return fail(errors.Join(err, f.Close()))
}

func (d *driver) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if r.Name == "" {
		return nil, status.Error(codes.InvalidArgument, "the name of the volume is missing")
	}
	block, err := wanted(r.VolumeCapabilities...)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	from, err := d.content(r.VolumeContentSource)
	if err != nil {
		return nil, err
	}
	size, source := max(r.CapacityRange.GetRequiredBytes(), smallest), ""
	if from != nil {
		if from.block != block {
			return nil, status.Errorf(codes.InvalidArgument, "%s is of the other mode", from.source)
		}
		size, source = max(size, from.size), from.source
	}
	if limit := r.CapacityRange.GetLimitBytes(); size > largest || limit > 0 && size > limit {
		return nil, status.Errorf(codes.OutOfRange, "no volume of %d bytes can be made", size)
	}
	id := idOf("v-", r.Name)
	v, err := d.load(id)
	switch {
	case status.Code(err) == codes.NotFound:
		v = &volume{Name: r.Name, Block: block, Capacity: size, Source: source}
		if from != nil {
			if err := from.fill(d.folder(id)); err != nil {
				return nil, internal(err)
			}
		}
		if from == nil || block { // what is copied has a mode of its own
			if err := d.write(id, v); err != nil {
				return nil, err
			}
		}
		if err := d.save(id, v); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case v.Block != block || v.Source != source:
		return nil, status.Errorf(codes.AlreadyExists, "there is a volume %s of another mode or source", r.Name)
	case v.Name != r.Name || v.Capacity < size || r.CapacityRange.GetLimitBytes() > 0 && v.Capacity > r.CapacityRange.GetLimitBytes():
		return nil, status.Errorf(codes.AlreadyExists, "there is a volume %s of another size", r.Name)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: id, CapacityBytes: v.Capacity, VolumeContext: r.Parameters, ContentSource: r.VolumeContentSource,
		AccessibleTopology: []*csi.Topology{{Segments: map[string]string{topologyKey: d.node}}},
	}}, nil
}

func (d *driver) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.load(r.VolumeId)
	switch {
	case status.Code(err) == codes.NotFound:
		return &csi.DeleteVolumeResponse{}, nil
	case err != nil:
		return nil, err
	case len(v.Attached) > 0:
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is attached", r.VolumeId)
	}
	if v.Block { // it may have been staged by who did not live to unstage it
		if err := detach(d.folder(r.VolumeId)); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	if err := errors.Join(os.RemoveAll(d.folder(r.VolumeId)), os.Remove(d.folder(r.VolumeId)+".json")); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *driver) ControllerPublishVolume(_ context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.VolumeId == "" || r.NodeId == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the volume or of the node is missing")
	}
	v, err := d.use(r.VolumeId, r.VolumeCapability)
	if err != nil {
		return nil, err
	}
	if r.NodeId != d.node {
		return nil, status.Errorf(codes.NotFound, "node %s is not this one", r.NodeId)
	}
	if readonly, ok := v.Attached[r.NodeId]; ok && readonly != r.Readonly {
		return nil, status.Error(codes.AlreadyExists, "it is attached otherwise")
	}
	if v.Attached == nil {
		v.Attached = map[string]bool{}
	}
	v.Attached[r.NodeId] = r.Readonly
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{"attached": "to " + r.NodeId}}, d.save(r.VolumeId, v)
}

func (d *driver) ControllerUnpublishVolume(_ context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.load(r.VolumeId)
	switch {
	case status.Code(err) == codes.NotFound:
		return &csi.ControllerUnpublishVolumeResponse{}, nil
	case err != nil:
		return nil, err
	}
	if r.NodeId == "" {
		v.Attached = nil
	}
	delete(v.Attached, r.NodeId)
	return &csi.ControllerUnpublishVolumeResponse{}, d.save(r.VolumeId, v)
}

func (d *driver) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.load(r.VolumeId)
	if err != nil {
		return nil, err
	}
	block, err := wanted(r.VolumeCapabilities...)
	if err != nil {
		return nil, err
	}
	if block != v.Block {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: "the volume is of the other mode"}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeContext: r.VolumeContext, VolumeCapabilities: r.VolumeCapabilities, Parameters: r.Parameters}}, nil
}

func (d *driver) ControllerExpandVolume(_ context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, err := d.load(r.VolumeId)
	if err != nil {
		return nil, err
	}
	size := r.CapacityRange.GetRequiredBytes()
	switch {
	case r.CapacityRange == nil:
		return nil, status.Error(codes.InvalidArgument, "the size is missing")
	case size > largest:
		return nil, status.Errorf(codes.OutOfRange, "no volume can have %d bytes", size)
	}
	v.Capacity = max(v.Capacity, size)
	if err := d.write(r.VolumeId, v); err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: v.Capacity, NodeExpansionRequired: true}, d.save(r.VolumeId, v)
}

// Node.

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node, MaxVolumesPerNode: 100, AccessibleTopology: &csi.Topology{Segments: map[string]string{topologyKey: d.node}}}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	r := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range []csi.NodeServiceCapability_RPC_Type{csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csi.NodeServiceCapability_RPC_EXPAND_VOLUME} {
		r.Capabilities = append(r.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return r, nil
}

func (d *driver) NodeStageVolume(_ context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.StagingTargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "the path to stage at is missing")
	}
	if r.VolumeId == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the volume is missing")
	}
	v, err := d.use(r.VolumeId, r.VolumeCapability)
	if err != nil {
		return nil, err
	}
	readonly, ok := v.Attached[d.node]
	if !ok {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not attached to %s", r.VolumeId, d.node)
	}
	if v.Block {
		if err := attach(d.folder(r.VolumeId), readonly); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		return &csi.NodeStageVolumeResponse{}, nil
	}
	return &csi.NodeStageVolumeResponse{}, bind(d.folder(r.VolumeId), r.StagingTargetPath, false)
}

func (d *driver) NodeUnstageVolume(_ context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.VolumeId == "" || r.StagingTargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the volume or the path is missing")
	}
	if r.VolumeId == filepath.Base(r.VolumeId) { // a folder has no device
		if err := detach(d.folder(r.VolumeId)); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath, false)
}

func (d *driver) NodePublishVolume(_ context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.VolumeId == "" || r.TargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the volume or the path is missing")
	}
	if _, err := wanted(r.VolumeCapability); err != nil {
		return nil, err
	}
	source := r.StagingTargetPath
	if r.VolumeContext["csi.storage.k8s.io/ephemeral"] == "true" {
		source = d.folder("e-" + filepath.Base(r.VolumeId))
		if err := os.MkdirAll(source, 0o777); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		about := fmt.Sprintf("%s/%s %s\n", r.VolumeContext["csi.storage.k8s.io/pod.namespace"], r.VolumeContext["csi.storage.k8s.io/pod.name"], r.VolumeContext["greeting"])
		if err := os.WriteFile(filepath.Join(source, "about"), []byte(about), 0o644); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	} else {
		v, err := d.use(r.VolumeId, r.VolumeCapability)
		if err != nil {
			return nil, err
		}
		if v.Block && source != "" {
			if source, err = loopOf(d.folder(r.VolumeId)); err != nil {
				return nil, status.Error(codes.Internal, err.Error())
			}
		}
		if source == "" {
			return nil, status.Error(codes.FailedPrecondition, "the volume is not staged")
		}
	}
	return &csi.NodePublishVolumeResponse{}, bind(source, r.TargetPath, r.Readonly)
}

func (d *driver) NodeUnpublishVolume(_ context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.VolumeId == "" || r.TargetPath == "" {
		return nil, status.Error(codes.InvalidArgument, "the id of the volume or the path is missing")
	}
	if err := unbind(r.TargetPath, true); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.folder("e-" + filepath.Base(r.VolumeId))); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.VolumePath == "" {
		return nil, status.Error(codes.InvalidArgument, "the path of the volume is missing")
	}
	v, err := d.load(r.VolumeId)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(r.VolumePath); err != nil {
		return nil, status.Errorf(codes.NotFound, "nothing is mounted at %s", r.VolumePath)
	}
	if v.Block {
		if err := resize(d.folder(r.VolumeId)); err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
	v.Grown = max(v.Capacity, r.CapacityRange.GetRequiredBytes())
	return &csi.NodeExpandVolumeResponse{CapacityBytes: v.Grown}, d.save(r.VolumeId, v)
}

// bind mounts a folder, or the node of a device, at a path, once.
func bind(source, target string, readonly bool) error {
	fail := func(err error) error { return status.Error(codes.Internal, err.Error()) }
	if mounted, err := isMount(target); err != nil || mounted {
		return err
	}
	info, err := os.Stat(source)
	switch {
	case err != nil:
	case info.IsDir():
		err = os.MkdirAll(target, 0o750)
	default:
		err = os.WriteFile(target, nil, 0o640)
	}
	if err != nil {
		return fail(err)
	}
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		return fail(fmt.Errorf("mount %s at %s: %w", source, target, err))
	}
	if readonly {
		if err := syscall.Mount("", target, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
			return fail(errors.Join(err, syscall.Unmount(target, 0)))
		}
	}
	return nil
}

func unbind(target string, remove bool) error {
	mounted, err := isMount(target)
	if err != nil {
		return err
	}
	if mounted {
		if err := syscall.Unmount(target, 0); err != nil {
			return status.Errorf(codes.Internal, "unmount %s: %v", target, err)
		}
	}
	if remove {
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return status.Error(codes.Internal, err.Error())
		}
	}
	return nil
}

// isMount looks into the table of mounts: bind mounts of one device are told by
// nothing else.
func isMount(path string) (bool, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, status.Error(codes.Internal, err.Error())
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == filepath.Clean(path) {
			return true, nil
		}
	}
	return false, nil
}
