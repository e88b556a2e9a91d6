package csi

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// PluginInfo is how a plugin registers with a node.
type PluginInfo struct {
	Type, Name, Endpoint string
	Versions             []string
}

// Registration asks a plugin that has put its socket into the folder of
// registrations who it is.
func Registration(ctx context.Context, call Caller) (PluginInfo, error) {
	r, err := ask(ctx, call, "/pluginregistration.Registration/GetInfo", nil)
	return PluginInfo{Type: r.text(1), Name: r.text(2), Endpoint: r.text(3), Versions: r.texts(4)}, err
}

// Registered tells a plugin how its registration went.
func Registered(ctx context.Context, call Caller, problem string) error {
	var m message
	m.truth(1, problem == "")
	m.text(2, problem)
	_, err := call(ctx, "/pluginregistration.Registration/NotifyRegistrationStatus", m)
	return err
}

func ask(ctx context.Context, call Caller, method string, m message) (read, error) {
	b, err := call(ctx, method, m)
	if err != nil {
		return nil, err
	}
	return parse(b)
}

// Capabilities of a driver, and of its services.
type (
	PluginCapability     int
	ControllerCapability int
	NodeCapability       int
)

// Numbers of the specification.
const (
	ControllerService PluginCapability = 1
	Accessibility     PluginCapability = 2

	CreateDelete         ControllerCapability = 1
	PublishUnpublish     ControllerCapability = 2
	CreateDeleteSnapshot ControllerCapability = 5
	ListSnapshots        ControllerCapability = 6
	CloneVolume          ControllerCapability = 7
	ExpandVolume         ControllerCapability = 9
	SingleNodeMulti      ControllerCapability = 13

	StageUnstage     NodeCapability = 1
	NodeExpand       NodeCapability = 3
	NodeSingleMulti  NodeCapability = 5
	VolumeMountGroup NodeCapability = 6
)

// capabilities reads a list whose every element has its kind within one part.
func capabilities[T ~int](ctx context.Context, call Caller, method string) (map[T]bool, error) {
	r, err := ask(ctx, call, method, nil)
	if err != nil {
		return nil, err
	}
	all := map[T]bool{}
	for _, v := range r[1] {
		c, err := parse(v.bytes)
		if err != nil {
			return nil, err
		}
		kind, err := parse(c.last(1).bytes)
		if err != nil {
			return nil, err
		}
		all[T(kind.number(1))] = true
	}
	return all, nil
}

// PluginCapabilities are what services a driver has.
func PluginCapabilities(ctx context.Context, call Caller) (map[PluginCapability]bool, error) {
	return capabilities[PluginCapability](ctx, call, "/csi.v1.Identity/GetPluginCapabilities")
}

// ControllerCapabilities are what the controller service can do.
func ControllerCapabilities(ctx context.Context, call Caller) (map[ControllerCapability]bool, error) {
	return capabilities[ControllerCapability](ctx, call, "/csi.v1.Controller/ControllerGetCapabilities")
}

// NodeCapabilities are what the node service can do.
func NodeCapabilities(ctx context.Context, call Caller) (map[NodeCapability]bool, error) {
	return capabilities[NodeCapability](ctx, call, "/csi.v1.Node/NodeGetCapabilities")
}

// NodeInfo is how a driver calls a node.
type NodeInfo struct {
	ID         string
	MaxVolumes int64
	Topology   map[string]string
}

// GetNodeInfo asks for it.
func GetNodeInfo(ctx context.Context, call Caller) (NodeInfo, error) {
	r, err := ask(ctx, call, "/csi.v1.Node/NodeGetInfo", nil)
	if err != nil {
		return NodeInfo{}, err
	}
	info := NodeInfo{ID: r.text(1), MaxVolumes: r.number(2)}
	info.Topology, err = topology(r.last(3).bytes)
	return info, err
}

func topology(b []byte) (map[string]string, error) {
	r, err := parse(b)
	if err != nil {
		return nil, err
	}
	return r.pairs(1)
}

// Capability is how a volume is to be used.
type Capability struct {
	Block      bool
	FSType     string
	MountFlags []string
	MountGroup string
	Mode       AccessMode
}

// AccessMode is a volume's, in the numbers of the specification.
type AccessMode int64

// The modes.
const (
	SingleNodeWriter       AccessMode = 1
	MultiNodeReaderOnly    AccessMode = 3
	MultiNodeMultiWriter   AccessMode = 5
	SingleNodeSingleWriter AccessMode = 6
	SingleNodeMultiWriter  AccessMode = 7
)

// ModeOf is the mode that a volume with Kubernetes' modes is used in. multi says
// that the driver tells one pod from one node.
func ModeOf(modes []corev1.PersistentVolumeAccessMode, multi bool) AccessMode {
	has := map[corev1.PersistentVolumeAccessMode]bool{}
	for _, m := range modes {
		has[m] = true
	}
	switch {
	case has[corev1.ReadWriteMany]:
		return MultiNodeMultiWriter
	case has[corev1.ReadWriteOncePod] && multi:
		return SingleNodeSingleWriter
	case has[corev1.ReadWriteOnce] && multi:
		return SingleNodeMultiWriter
	case has[corev1.ReadWriteOnce], has[corev1.ReadWriteOncePod]:
		return SingleNodeWriter
	case has[corev1.ReadOnlyMany]:
		return MultiNodeReaderOnly
	}
	return SingleNodeWriter
}

func (c *Capability) message() message {
	var m, access, mode message
	if c.Block {
		m.part(1, nil)
	} else {
		access.text(1, c.FSType)
		access.texts(2, c.MountFlags)
		access.text(3, c.MountGroup)
		m.part(2, access)
	}
	mode.number(1, int64(c.Mode))
	m.part(3, mode)
	return m
}

// Create is a request for a volume.
type Create struct {
	Name                 string
	Required, Limit      int64 // bytes; 0: no matter
	Capability           Capability
	Parameters, Secrets  map[string]string
	CloneOf, SnapshotID  string              // what it begins with: a volume's content, or a snapshot's
	Requisite, Preferred []map[string]string // topologies
}

// Volume is one that was made.
type Volume struct {
	ID         string
	Capacity   int64
	Context    map[string]string
	Accessible []map[string]string
}

// CreateVolume makes a volume, or finds the one that was made under its name.
func CreateVolume(ctx context.Context, call Caller, c Create) (Volume, error) {
	var m message
	m.text(1, c.Name)
	m.part(2, rangeOf(c.Required, c.Limit))
	m.part(3, c.Capability.message())
	m.pairs(4, c.Parameters)
	m.pairs(5, c.Secrets)
	if c.CloneOf != "" || c.SnapshotID != "" {
		var from, what message
		if c.SnapshotID != "" {
			what.text(1, c.SnapshotID)
			from.part(1, what)
		} else {
			what.text(1, c.CloneOf)
			from.part(2, what)
		}
		m.part(6, from)
	}
	if len(c.Requisite)+len(c.Preferred) > 0 {
		var where message
		for n, list := range [][]map[string]string{c.Requisite, c.Preferred} {
			for _, segments := range list {
				var t message
				t.pairs(1, segments)
				if n == 0 {
					where.part(1, t)
				} else {
					where.part(2, t)
				}
			}
		}
		m.part(7, where)
	}
	r, err := ask(ctx, call, "/csi.v1.Controller/CreateVolume", m)
	if err != nil {
		return Volume{}, err
	}
	if r, err = parse(r.last(1).bytes); err != nil {
		return Volume{}, err
	}
	v := Volume{Capacity: r.number(1), ID: r.text(2)}
	if v.Context, err = r.pairs(3); err != nil {
		return Volume{}, err
	}
	for _, t := range r[5] {
		segments, err := topology(t.bytes)
		if err != nil {
			return Volume{}, err
		}
		v.Accessible = append(v.Accessible, segments)
	}
	return v, nil
}

func rangeOf(required, limit int64) message {
	var m message
	m.number(1, required)
	m.number(2, limit)
	return m
}

// DeleteVolume removes a volume; one that is not there is removed.
func DeleteVolume(ctx context.Context, call Caller, id string, secrets map[string]string) error {
	return remove(ctx, call, "DeleteVolume", id, secrets)
}

// remove makes a call of the controller that removes what has an id.
func remove(ctx context.Context, call Caller, name, id string, secrets map[string]string) error {
	var m message
	m.text(1, id)
	m.pairs(2, secrets)
	_, err := call(ctx, "/csi.v1.Controller/"+name, m)
	return err
}

// Publish is a request to attach a volume to a node.
type Publish struct {
	VolumeID, NodeID string
	Capability       Capability
	ReadOnly         bool
	Secrets, Context map[string]string
}

// ControllerPublish attaches a volume and returns what the node is to be told.
func ControllerPublish(ctx context.Context, call Caller, p Publish) (map[string]string, error) {
	var m message
	m.text(1, p.VolumeID)
	m.text(2, p.NodeID)
	m.part(3, p.Capability.message())
	m.truth(4, p.ReadOnly)
	m.pairs(5, p.Secrets)
	m.pairs(6, p.Context)
	r, err := ask(ctx, call, "/csi.v1.Controller/ControllerPublishVolume", m)
	if err != nil {
		return nil, err
	}
	return r.pairs(1)
}

// ControllerUnpublish detaches it.
func ControllerUnpublish(ctx context.Context, call Caller, volumeID, nodeID string, secrets map[string]string) error {
	var m message
	m.text(1, volumeID)
	m.text(2, nodeID)
	m.pairs(3, secrets)
	_, err := call(ctx, "/csi.v1.Controller/ControllerUnpublishVolume", m)
	return err
}

// ControllerExpand grows a volume; node says that its node has work to do too.
func ControllerExpand(ctx context.Context, call Caller, volumeID string, size int64, c Capability, secrets map[string]string) (capacity int64, node bool, err error) {
	var m message
	m.text(1, volumeID)
	m.part(2, rangeOf(size, 0))
	m.pairs(3, secrets)
	m.part(4, c.message())
	r, err := ask(ctx, call, "/csi.v1.Controller/ControllerExpandVolume", m)
	return r.number(1), r.truth(2), err
}

// Mount is a request to stage or to publish a volume on a node.
type Mount struct {
	VolumeID                               string
	PublishContext, VolumeContext, Secrets map[string]string
	Staging, Target                        string // Target is empty to stage
	Capability                             Capability
	ReadOnly                               bool
}

// NodeStage mounts a volume once for all pods of the node.
func NodeStage(ctx context.Context, call Caller, s Mount) error {
	var m message
	m.text(1, s.VolumeID)
	m.pairs(2, s.PublishContext)
	m.text(3, s.Staging)
	m.part(4, s.Capability.message())
	m.pairs(5, s.Secrets)
	m.pairs(6, s.VolumeContext)
	_, err := call(ctx, "/csi.v1.Node/NodeStageVolume", m)
	return err
}

// NodeUnstage undoes it.
func NodeUnstage(ctx context.Context, call Caller, volumeID, staging string) error {
	var m message
	m.text(1, volumeID)
	m.text(2, staging)
	_, err := call(ctx, "/csi.v1.Node/NodeUnstageVolume", m)
	return err
}

// NodePublish mounts a volume for one pod.
func NodePublish(ctx context.Context, call Caller, p Mount) error {
	var m message
	m.text(1, p.VolumeID)
	m.pairs(2, p.PublishContext)
	m.text(3, p.Staging)
	m.text(4, p.Target)
	m.part(5, p.Capability.message())
	m.truth(6, p.ReadOnly)
	m.pairs(7, p.Secrets)
	m.pairs(8, p.VolumeContext)
	_, err := call(ctx, "/csi.v1.Node/NodePublishVolume", m)
	return err
}

// NodeUnpublish undoes it.
func NodeUnpublish(ctx context.Context, call Caller, volumeID, target string) error {
	var m message
	m.text(1, volumeID)
	m.text(2, target)
	_, err := call(ctx, "/csi.v1.Node/NodeUnpublishVolume", m)
	return err
}

// NodeExpandVolume makes what is on a grown volume fill it.
func NodeExpandVolume(ctx context.Context, call Caller, volumeID, path, staging string, size int64, c Capability, secrets map[string]string) (capacity int64, err error) {
	var m message
	m.text(1, volumeID)
	m.text(2, path)
	m.part(3, rangeOf(size, 0))
	m.text(4, staging)
	m.part(5, c.message())
	m.pairs(6, secrets)
	r, err := ask(ctx, call, "/csi.v1.Node/NodeExpandVolume", m)
	return r.number(1), err
}
