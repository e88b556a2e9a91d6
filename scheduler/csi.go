package scheduler

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"conclave/api"
	"conclave/api/kinds"
)

// csiVolume is one that a driver mounts. Two pods that use the same one on a node
// are one mount.
type csiVolume struct {
	driver string
	handle string // the driver's, or the claim's key until it has a volume
}

// mountedBy are the volumes of CSI drivers that a pod's claims have, or will have.
// Those that a pod has without a claim count nowhere, as in Kubernetes.
func (s *volumeState) mountedBy(p *podInfo) map[csiVolume]struct{} {
	var all map[csiVolume]struct{}
	for _, key := range p.claims {
		c := s.claims[key]
		if c == nil {
			continue
		}
		var v csiVolume
		if volume := s.volumes[c.Spec.VolumeName]; volume != nil {
			if volume.Spec.CSI == nil {
				continue
			}
			v = csiVolume{volume.Spec.CSI.Driver, volume.Spec.CSI.VolumeHandle}
		} else if class := s.classes[kinds.ClaimClass(c)]; class != nil {
			v = csiVolume{class.Provisioner, "claim " + key}
		} else {
			continue
		}
		if all == nil {
			all = map[csiVolume]struct{}{}
		}
		all[v] = struct{}{}
	}
	return all
}

// mountable says whether no driver has to mount more volumes on a node, with this
// pod's, than it says that it can there.
func (c *cycle) mountable(n *nodeInfo) bool {
	drivers := c.s.onNodes[n.name]
	if drivers == nil {
		return true
	}
	for i := range drivers.Spec.Drivers {
		d := &drivers.Spec.Drivers[i]
		if d.Allocatable == nil || d.Allocatable.Count == nil {
			continue
		}
		more := map[csiVolume]struct{}{}
		for v := range c.volumes.mounted {
			if v.driver == d.Name {
				more[v] = struct{}{}
			}
		}
		if len(more) == 0 {
			continue
		}
		there := map[csiVolume]struct{}{}
		for _, p := range n.pods {
			for v := range c.s.mountedBy(p) {
				if v.driver == d.Name {
					there[v] = struct{}{}
					delete(more, v)
				}
			}
		}
		if len(more) > 0 && len(there)+len(more) > int(*d.Allocatable.Count) {
			return false
		}
	}
	return true
}

// room says whether a volume for a claim can be made for a node: a driver that
// says how much room it has where (KEP-1472) must have enough. Where the cluster
// makes the driver's controller calls nobody publishes that, and nothing is asked.
func (s *volumeState) room(class *storagev1.StorageClass, c *corev1.PersistentVolumeClaim, node *corev1.Node) bool {
	d := s.drivers[class.Provisioner]
	if d == nil || d.Spec.StorageCapacity == nil || !*d.Spec.StorageCapacity || d.Annotations[api.AnnotationControllerCalls] == "true" {
		return true
	}
	size := c.Spec.Resources.Requests[corev1.ResourceStorage]
	for _, at := range s.capacities {
		most := at.Capacity
		if at.MaximumVolumeSize != nil {
			most = at.MaximumVolumeSize
		}
		if at.StorageClassName != class.Name || most == nil || most.Cmp(size) < 0 || at.NodeTopology == nil {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(at.NodeTopology)
		if err == nil && selector.Matches(labels.Set(node.Labels)) {
			return true
		}
	}
	return false
}
