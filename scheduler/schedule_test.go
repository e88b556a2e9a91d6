package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

func trust(string) bool { return false }

func amounts(pairs ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func testNode(name string, edit ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("node-" + name), Labels: map[string]string{corev1.LabelHostname: name}},
		Status:     corev1.NodeStatus{Allocatable: amounts("cpu", "4", "memory", "8Gi", "pods", "110", "ephemeral-storage", "100Gi")},
	}
	for _, f := range edit {
		f(n)
	}
	return n
}

func testPod(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("pod-" + name), Labels: map[string]string{}},
		Spec: corev1.PodSpec{
			SchedulerName: corev1.DefaultSchedulerName,
			Containers:    []corev1.Container{{Name: "c", Image: "registry/app:1"}},
		},
	}
	for _, f := range edit {
		f(p)
	}
	return p
}

func asks(pairs ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = amounts(pairs...) }
}

func on(node string) func(*corev1.Pod)    { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
func label(k, v string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels[k] = v } }

func nodeLabel(k, v string) func(*corev1.Node) { return func(n *corev1.Node) { n.Labels[k] = v } }

func tainted(key, value string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func hostPorts(ip string, port int32, protocol corev1.Protocol) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{HostIP: ip, HostPort: port, ContainerPort: port, Protocol: protocol})
	}
}

func spreadOver(key string, skew int32, when corev1.UnsatisfiableConstraintAction, app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			TopologyKey: key, MaxSkew: skew, WhenUnsatisfiable: when, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		})
	}
}

func appTerm(key, app string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}
}

func near(key, app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		affinityOf(p).PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{appTerm(key, app)}}
	}
}

func awayFrom(key, app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		affinityOf(p).PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{appTerm(key, app)}}
	}
}

func affinityOf(p *corev1.Pod) *corev1.Affinity {
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	return p.Spec.Affinity
}

func cluster(objects ...any) *snapshot {
	s := newSnapshot()
	s.namespaces["default"] = labels.Set{"kubernetes.io/metadata.name": "default"}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			s.setNode(o)
		case *corev1.Pod:
			s.addPod(newPodInfo(o))
		case *corev1.PersistentVolumeClaim:
			s.claims[o.Namespace+"/"+o.Name] = o
		case *corev1.PersistentVolume:
			s.volumes[o.Name] = o
		case *storagev1.StorageClass:
			s.classes[o.Name] = o
		case *storagev1.CSIDriver:
			s.drivers[o.Name] = o
		case *storagev1.CSINode:
			s.onNodes[o.Name] = o
		case *storagev1.CSIStorageCapacity:
			s.capacities[o.Namespace+"/"+o.Name] = o
		}
	}
	return s
}

func claiming(claim string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	}
}

func testClaim(name, class string, edit ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("claim-" + name)},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: amounts("storage", "1Gi")},
		},
	}
	for _, f := range edit {
		f(c)
	}
	return c
}

func boundTo(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase, c.Annotations = volume, corev1.ClaimBound, map[string]string{api.AnnotationBindCompleted: "yes"}
	}
}

func alone(c *corev1.PersistentVolumeClaim) {
	c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
}

// testVolume can be mounted on one node.
func testVolume(name, class, node string) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("volume-" + name)}}
	v.Spec.Capacity, v.Spec.StorageClassName, v.Status.Phase = amounts("storage", "1Gi"), class, corev1.VolumeAvailable
	v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
	}}}}
	v.Spec.Local = &corev1.LocalVolumeSource{Path: "/x"}
	return v
}

func testClass(name, provisioner string, waits bool, edit ...func(*storagev1.StorageClass)) *storagev1.StorageClass {
	mode := storagev1.VolumeBindingImmediate
	if waits {
		mode = storagev1.VolumeBindingWaitForFirstConsumer
	}
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	for _, f := range edit {
		f(c)
	}
	return c
}

// driverVolume is one that a CSI driver mounts anywhere.
func driverVolume(name, driver string) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("volume-" + name)}}
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "handle-" + name}
	return v
}

// mounts says how many volumes a driver mounts on a node.
func mounts(node, driver string, most int32) *storagev1.CSINode {
	return &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{
		{Name: "another", NodeID: node, Allocatable: &storagev1.VolumeNodeResources{Count: new(int32(0))}}, {Name: "unlimited", NodeID: node},
		{Name: driver, NodeID: node, Allocatable: &storagev1.VolumeNodeResources{Count: &most}},
	}}}
}

func tellingRoom(name string, edit ...func(*storagev1.CSIDriver)) *storagev1.CSIDriver {
	d := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSIDriverSpec{StorageCapacity: new(true)}}
	for _, f := range edit {
		f(d)
	}
	return d
}

// roomOf is what a driver has for a class where the nodes' label "rack" is so.
func roomOf(class, rack, capacity, largest string) *storagev1.CSIStorageCapacity {
	c := &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: class + rack}, StorageClassName: class,
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": rack}},
	}
	for q, to := range map[string]**resource.Quantity{capacity: &c.Capacity, largest: &c.MaximumVolumeSize} {
		if q != "" {
			*to = new(resource.MustParse(q))
		}
	}
	return c
}

func keeping(n *corev1.Node) { n.Annotations = map[string]string{api.AnnotationVolumesDir: "/data"} }

const zone = corev1.LabelTopologyZone

// The words are what kubectl describe shows: goldens.
func TestExplanations(t *testing.T) {
	gpu := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"gpu": "yes"} }
	full := func(n *corev1.Node) { n.Status.Allocatable = amounts("cpu", "1", "memory", "1Gi", "pods", "1") }
	for _, tc := range []struct {
		name  string
		s     *snapshot
		pod   *corev1.Pod
		doubt string
		want  string
	}{
		{"no node at all", cluster(), testPod("p"), "", "no nodes available to schedule pods"},
		{"mixed", cluster(testNode("a", func(n *corev1.Node) { n.Status.Allocatable = amounts("cpu", "1", "memory", "8Gi", "pods", "10") }),
			testNode("b", tainted("key", "value", corev1.TaintEffectNoSchedule)), testNode("c", tainted("key", "value", corev1.TaintEffectNoExecute))),
			testPod("p", asks("cpu", "2")), "",
			"0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {key: value}."},
		{"all resources at once", cluster(testNode("a", full), testPod("x", on("a"))),
			testPod("p", asks("cpu", "2", "memory", "2Gi", "ephemeral-storage", "1Gi", "example.com/card", "1")), "",
			"0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient ephemeral-storage, 1 Insufficient example.com/card, 1 Insufficient memory, 1 Too many pods."},
		{"selector", cluster(testNode("a"), testNode("b", nodeLabel("gpu", "no"))), testPod("p", gpu), "",
			"0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."},
		{"cordoned", cluster(testNode("a", func(n *corev1.Node) { n.Spec.Unschedulable = true }, tainted(corev1.TaintNodeUnschedulable, "", corev1.TaintEffectNoSchedule))), testPod("p"), "",
			"0/1 nodes are available: 1 node(s) were unschedulable."},
		{"suspected", cluster(testNode("a"), testNode("b")), testPod("p", asks("cpu", "5")), "a",
			"0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were suspected to be unreachable."},
		{"host port", cluster(testNode("a"), testPod("x", on("a"), hostPorts("", 80, corev1.ProtocolTCP))), testPod("p", hostPorts("127.0.0.1", 80, corev1.ProtocolTCP)), "",
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."},
		{"spread", cluster(testNode("a", nodeLabel(zone, "1")), testNode("b", nodeLabel(zone, "2"), tainted("k", "", corev1.TaintEffectNoSchedule)), testNode("c"),
			testPod("x", on("a"), label("app", "web"))), testPod("p", label("app", "web"), spreadOver(zone, 1, corev1.DoNotSchedule, "web")), "",
			"0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) didn't match pod topology spread constraints (missing required label), 1 node(s) had untolerated taint {k: }."},
		{"affinity", cluster(testNode("a")), testPod("p", near(corev1.LabelHostname, "db")), "",
			"0/1 nodes are available: 1 node(s) didn't match pod affinity rules."},
		{"anti-affinity", cluster(testNode("a"), testPod("x", on("a"), label("app", "web"))), testPod("p", awayFrom(corev1.LabelHostname, "web")), "",
			"0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."},
		{"no claim", cluster(testNode("a")), testPod("p", claiming("data")), "",
			`0/1 nodes are available: persistentvolumeclaim "data" not found.`},
		{"claim that goes", cluster(testNode("a"), testClaim("data", "", func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} })), testPod("p", claiming("data")), "",
			`0/1 nodes are available: persistentvolumeclaim "data" is being deleted.`},
		{"claim that lost its volume", cluster(testNode("a"), testClaim("data", "", boundTo("v"), func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost })), testPod("p", claiming("data")), "",
			`0/1 nodes are available: persistentvolumeclaim "data" bound to non-existent persistentvolume "v".`},
		{"unbound", cluster(testNode("a"), testClaim("data", "quick"), testClass("quick", "a/b", false)), testPod("p", claiming("data")), "",
			"0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
		{"volume elsewhere", cluster(testNode("a"), testNode("b"), testClaim("data", "", boundTo("v")), testVolume("v", "", "c")), testPod("p", claiming("data")), "",
			"0/2 nodes are available: 2 node(s) didn't match PersistentVolume's node affinity."},
		{"no free volume", cluster(testNode("a"), testNode("b"), testClaim("data", "disks"), testClass("disks", "kubernetes.io/no-provisioner", true), testVolume("v", "disks", "c")), testPod("p", claiming("data")), "",
			"0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind."},
		{"nodes without folders", cluster(testNode("a"), testClaim("data", "local"), testClass("local", api.LocalPathProvisioner, true)), testPod("p", claiming("data")), "",
			"0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind."},
		{"another pod's", cluster(testNode("a"), testNode("b"), testClaim("data", "", boundTo("v"), alone), testVolume("v", "", "a"), testPod("x", on("a"), claiming("data"))), testPod("p", claiming("data")), "",
			"0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."},
		{"volumes of a driver", cluster(testNode("a"), mounts("a", "d", 2), testClaim("data", "", boundTo("v")), driverVolume("v", "d"),
			testClaim("one", "", boundTo("v1")), driverVolume("v1", "d"), testClaim("two", "", boundTo("v2")), driverVolume("v2", "d"),
			testPod("x", on("a"), claiming("one"), claiming("two"))), testPod("p", claiming("data")), "",
			"0/1 nodes are available: 1 node(s) exceed max volume count."},
		{"volumes of a driver, to be made", cluster(testNode("a"), mounts("a", "d", 1), testClaim("data", "made"), testClass("made", "d", true), testClaim("one", "", boundTo("v1")), driverVolume("v1", "d"),
			testPod("x", on("a"), claiming("one"))), testPod("p", claiming("data")), "",
			"0/1 nodes are available: 1 node(s) exceed max volume count."},
		{"no room", cluster(testNode("a", nodeLabel("rack", "1")), testNode("b", nodeLabel("rack", "2")), testNode("c"), testClaim("data", "made"), testClass("made", "d", true), tellingRoom("d"),
			roomOf("made", "1", "1Mi", ""), roomOf("made", "2", "1Ti", "1Mi"), roomOf("other", "1", "1Ti", "")), testPod("p", claiming("data")), "",
			"0/3 nodes are available: 3 node(s) did not have enough free storage."},
		{"anti-affinity of another", cluster(testNode("a"), testPod("x", on("a"), awayFrom(corev1.LabelHostname, "web"))), testPod("p", label("app", "web")), "",
			"0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, why, _ := schedule(tc.s, newPodInfo(tc.pod), func(name string) bool { return name == tc.doubt })
			if n != nil {
				t.Fatalf("placed on %s", n.name)
			}
			if why.String() != tc.want {
				t.Errorf("got  %s\nwant %s", why, tc.want)
			}
		})
	}
}

func TestPlacement(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	small := func(n *corev1.Node) { n.Status.Allocatable = amounts("cpu", "1", "memory", "1Gi", "pods", "10") }
	prefer := func(key, value string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			affinityOf(p).NodeAffinity = &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
				Weight: 10, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{value}}}},
			}}}
		}
	}
	owned := func(p *corev1.Pod) {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "rs", UID: "rs", Controller: &yes}}
	}
	for _, tc := range []struct {
		name string
		s    *snapshot
		pod  *corev1.Pod
		want string // nodes that may be chosen; empty: none
	}{
		{"emptier", cluster(testNode("a"), testNode("b"), testPod("x", on("a"), asks("cpu", "3", "memory", "6Gi"))), testPod("p", asks("cpu", "1")), "b"},
		{"named node", cluster(testNode("a"), testNode("b"), testPod("x", on("b"), asks("cpu", "3"))), testPod("p", func(p *corev1.Pod) {
			affinityOf(p).NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"b"}}}}}}}
		}), "b"},
		{"where the volume is", cluster(testNode("a"), testNode("b"), testNode("c"), testClaim("data", "", boundTo("v")), testVolume("v", "", "b")), testPod("p", claiming("data")), "b"},
		{"where one is free", cluster(testNode("a"), testNode("b"), testClaim("data", "disks"), testClass("disks", "kubernetes.io/no-provisioner", true), testVolume("v", "disks", "a")), testPod("p", claiming("data")), "a"},
		{"where one can be made", cluster(testNode("a"), testNode("b", keeping), testClaim("data", "local"), testClass("local", api.LocalPathProvisioner, true)), testPod("p", claiming("data")), "b"},
		{"where one may be made", cluster(testNode("a", keeping), testNode("b", keeping, nodeLabel(zone, "z")), testClaim("data", "local"), testClass("local", api.LocalPathProvisioner, true, func(c *storagev1.StorageClass) {
			c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: zone, Values: []string{"z"}}}}}
		})), testPod("p", claiming("data")), "b"},
		{"a claim that many share", cluster(testNode("a"), testNode("b"), testClaim("data", "", boundTo("v")), testVolume("v", "", "a"), testPod("x", on("a"), claiming("data"))), testPod("p", claiming("data")), "a"},
		{"one volume more", cluster(testNode("a"), mounts("a", "d", 2), testClaim("data", "", boundTo("v")), driverVolume("v", "d"),
			testClaim("one", "", boundTo("v1")), driverVolume("v1", "d"), testClaim("two", "", boundTo("v2")), driverVolume("v2", "unlimited"),
			testPod("x", on("a"), claiming("one"), claiming("two"))), testPod("p", claiming("data")), "a"},
		{"a volume that is there already", cluster(testNode("a"), mounts("a", "d", 1), testClaim("data", "", boundTo("v")), driverVolume("v", "d"), testPod("x", on("a"), claiming("data"))), testPod("p", claiming("data")), "a"},
		{"where there is room", cluster(testNode("a", nodeLabel("rack", "1")), testNode("b", nodeLabel("rack", "2")), testNode("c"), testClaim("data", "made"), testClass("made", "d", true), tellingRoom("d"),
			roomOf("made", "1", "1Mi", ""), roomOf("made", "2", "5Mi", "1Gi")), testPod("p", claiming("data")), "b"},
		{"where nobody says how much", cluster(testNode("a"), testClaim("data", "made"), testClass("made", "d", true), tellingRoom("d", func(d *storagev1.CSIDriver) {
			d.Annotations = map[string]string{api.AnnotationControllerCalls: "true"}
		})), testPod("p", claiming("data")), "a"},
		{"largest init container counts", cluster(testNode("a", small)), testPod("p", asks("cpu", "500m"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Resources: corev1.ResourceRequirements{Requests: amounts("cpu", "1500m")}}}
		}), ""},
		{"init containers run one by one", cluster(testNode("a", small)), testPod("p", asks("cpu", "500m"), func(p *corev1.Pod) {
			one := corev1.ResourceRequirements{Requests: amounts("cpu", "1")}
			p.Spec.InitContainers = []corev1.Container{{Name: "i", Resources: one}, {Name: "j", Resources: one}}
		}), "a"},
		{"sidecar adds up", cluster(testNode("a", small)), testPod("p", asks("cpu", "600m"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{{Name: "s", RestartPolicy: &always, Resources: corev1.ResourceRequirements{Requests: amounts("cpu", "600m")}}}
		}), ""},
		{"overhead adds up", cluster(testNode("a", small)), testPod("p", asks("cpu", "900m"), func(p *corev1.Pod) { p.Spec.Overhead = amounts("cpu", "200m") }), ""},
		{"other protocol", cluster(testNode("a"), testPod("x", on("a"), hostPorts("", 53, corev1.ProtocolTCP))), testPod("p", hostPorts("", 53, corev1.ProtocolUDP)), "a"},
		{"other address", cluster(testNode("a"), testPod("x", on("a"), hostPorts("127.0.0.1", 53, corev1.ProtocolTCP))), testPod("p", hostPorts("127.0.0.2", 53, corev1.ProtocolTCP)), "a"},
		{"avoids PreferNoSchedule", cluster(testNode("a", tainted("slow", "", corev1.TaintEffectPreferNoSchedule)), testNode("b")), testPod("p"), "b"},
		{"toleration", cluster(testNode("a", tainted("k", "v", corev1.TaintEffectNoSchedule))), testPod("p", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}
		}), "a"},
		{"preferred node", cluster(testNode("a"), testNode("b", nodeLabel("disk", "fast"))), testPod("p", prefer("disk", "fast")), "b"},
		{"image at hand", cluster(testNode("a"), testNode("b", func(n *corev1.Node) {
			n.Status.Images = []corev1.ContainerImage{{Names: []string{"registry/app:1"}, SizeBytes: 900 << 20}}
		})), testPod("p"), "b"},
		{"spread by owner", cluster(testNode("a"), testNode("b"), testPod("x", on("a"), owned)), testPod("p", owned), "b"},
		{"first of its group", cluster(testNode("a")), testPod("p", label("app", "db"), near(corev1.LabelHostname, "db")), "a"},
		{"near", cluster(testNode("a"), testNode("b"), testPod("x", on("b"), label("app", "db"), asks("cpu", "3"))), testPod("p", near(corev1.LabelHostname, "db")), "b"},
		{"away", cluster(testNode("a"), testNode("b"), testPod("x", on("a"), label("app", "db"))), testPod("p", awayFrom(corev1.LabelHostname, "db")), "b"},
		{"away from the zone", cluster(testNode("a", nodeLabel(zone, "1")), testNode("b", nodeLabel(zone, "1")), testNode("c", nodeLabel(zone, "2")),
			testPod("x", on("a"), label("app", "db"))), testPod("p", awayFrom(zone, "db")), "c"},
		{"even spread", cluster(testNode("a", nodeLabel(zone, "1")), testNode("b", nodeLabel(zone, "2")), testPod("x", on("a"), label("app", "w"))),
			testPod("p", label("app", "w"), spreadOver(zone, 1, corev1.DoNotSchedule, "w")), "b"},
		{"soft spread", cluster(testNode("a"), testNode("b"), testPod("x", on("a"), label("app", "w"))),
			testPod("p", label("app", "w"), spreadOver(corev1.LabelHostname, 1, corev1.ScheduleAnyway, "w")), "b"},
		{"preferred company", cluster(testNode("a"), testNode("b"), testPod("x", on("b"), label("app", "db"))), testPod("p", func(p *corev1.Pod) {
			affinityOf(p).PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: appTerm(corev1.LabelHostname, "db")}}}
		}), "b"},
		{"equals take turns", cluster(testNode("a"), testNode("b"), testNode("c")), testPod("p"), "a b c"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			chosen := map[string]bool{}
			for range 6 {
				n, _, looked := schedule(tc.s, newPodInfo(tc.pod), trust)
				tc.s.decided(looked)
				if n != nil {
					chosen[n.name] = true
				}
			}
			for _, name := range strings.Fields(tc.want) {
				if !chosen[name] {
					t.Errorf("never placed on %s", name)
				}
				delete(chosen, name)
			}
			if len(chosen) > 0 {
				t.Errorf("also placed on %v", chosen)
			}
		})
	}
}

// No history of nodes and pods coming, going and changing leads to a node that
// has promised more than it has, or one port twice; and the sums that are kept
// by small changes are those of the pods.
func TestNeverOvercommitted(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newSnapshot()
		var names []string
		for i := range 6 {
			name := fmt.Sprintf("n%d", i)
			names = append(names, name)
			s.setNode(testNode(name, func(n *corev1.Node) {
				n.Labels[zone] = fmt.Sprint(i % 2)
				n.Status.Allocatable = amounts("cpu", fmt.Sprint(1+r.IntN(4)), "memory", fmt.Sprintf("%dGi", 1+r.IntN(4)), "pods", fmt.Sprint(2+r.IntN(10)), "example.com/card", "2")
			}))
		}
		var placed []types.UID
		for step := range 400 {
			switch {
			case r.IntN(3) == 0 && len(placed) > 0:
				i := r.IntN(len(placed))
				s.removePod(placed[i])
				placed = append(placed[:i], placed[i+1:]...)
			case r.IntN(20) == 0: // a node returns with another zone
				name := names[r.IntN(len(names))]
				node := s.nodes[name].Node.DeepCopy()
				node.Labels[zone] = fmt.Sprint(r.IntN(3))
				s.removeNode(name)
				s.setNode(node)
			default:
				p := newPodInfo(testPod(fmt.Sprintf("p%d", step), asks("cpu", fmt.Sprintf("%dm", r.IntN(1500)), "memory", fmt.Sprintf("%dMi", r.IntN(1500)), "example.com/card", fmt.Sprint(r.IntN(2))), func(p *corev1.Pod) {
					if r.IntN(3) == 0 {
						hostPorts([]string{"", "127.0.0.1"}[r.IntN(2)], int32(80+r.IntN(3)), corev1.ProtocolTCP)(p)
					}
					if r.IntN(2) == 0 {
						yes := true
						p.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(fmt.Sprint(r.IntN(3))), Controller: &yes}}
					}
				}))
				n, _, looked := schedule(s, p, trust)
				s.decided(looked)
				if n != nil {
					s.assume(p, n)
					placed = append(placed, p.UID)
				}
			}
			check(t, s)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func check(t *testing.T, s *snapshot) {
	t.Helper()
	owners := map[types.UID]int64{}
	for _, n := range s.nodes {
		var sum resources
		for _, p := range n.pods {
			sum.add(&p.requests, 1)
			if p.owner != "" {
				owners[p.owner]++
			}
		}
		if sum.cpu != n.requests.cpu || sum.memory != n.requests.memory || sum.other["example.com/card"] != n.requests.other["example.com/card"] {
			t.Errorf("node %s: sums %+v, pods %+v", n.name, n.requests, sum)
		}
		if n.Node == nil {
			continue
		}
		if sum.cpu > n.allocatable.cpu || sum.memory > n.allocatable.memory || len(n.pods) > n.maxPods || sum.other["example.com/card"] > n.allocatable.other["example.com/card"] {
			t.Errorf("node %s promises %+v of %+v", n.name, sum, n.allocatable)
		}
		var ports []hostPort
		for _, p := range n.pods {
			for _, port := range p.ports {
				for _, other := range ports {
					if port.conflicts(other) {
						t.Errorf("node %s: port %v twice", n.name, port)
					}
				}
			}
			ports = append(ports, p.ports...)
		}
	}
	for uid, o := range s.owners {
		byNode, byZone := int64(0), int64(0)
		for _, k := range o.nodes {
			byNode += k
		}
		for _, k := range o.zones {
			byZone += k
		}
		if byNode != owners[uid] || byZone != owners[uid] {
			t.Errorf("owner %s: %d by node, %d by zone, %d pods", uid, byNode, byZone, owners[uid])
		}
	}
}

// BenchmarkSchedule places 10,000 pods of 50 controllers onto 5,000 nodes in
// three zones, a fifth of them tainted, images and taints known.
func BenchmarkSchedule(b *testing.B) {
	const nodeCount, podCount = 5000, 10000
	s := newSnapshot()
	for i := range nodeCount {
		s.setNode(testNode(fmt.Sprintf("node-%d", i), nodeLabel(zone, fmt.Sprint(i%3)), func(n *corev1.Node) {
			if i%5 == 0 {
				tainted("slow", "", corev1.TaintEffectPreferNoSchedule)(n)
			}
			if i%4 == 0 {
				n.Status.Images = []corev1.ContainerImage{{Names: []string{"registry/app:1"}, SizeBytes: 200 << 20}}
			}
		}))
	}
	pods := make([]*corev1.Pod, podCount)
	for i := range pods {
		pods[i] = testPod(fmt.Sprintf("p%d", i), asks("cpu", "100m", "memory", "128Mi"), func(p *corev1.Pod) {
			yes := true
			p.OwnerReferences = []metav1.OwnerReference{{UID: types.UID(fmt.Sprintf("rs-%d", i%50)), Controller: &yes}}
		})
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i == podCount {
			b.StopTimer()
			for _, p := range pods {
				s.removePod(p.UID)
			}
			i = 0
			b.StartTimer()
		}
		p := newPodInfo(pods[i])
		n, why, looked := schedule(s, p, trust)
		if n == nil {
			b.Fatal(why)
		}
		s.decided(looked)
		s.assume(p, n)
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
}
