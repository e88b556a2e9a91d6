package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

func volumeClaim(name, class string, edit ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("2Gi")}},
		},
	}
	for _, f := range edit {
		f(c)
	}
	return c
}

func volume(name, class, size string, edit ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, Capacity: corev1.ResourceList{"storage": resource.MustParse(size)}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}},
		},
	}
	for _, f := range edit {
		f(v)
	}
	return v
}

func policy(p corev1.PersistentVolumeReclaimPolicy) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p }
}

func storageClass(name, provisioner string, waits bool) *storagev1.StorageClass {
	mode, grow := storagev1.VolumeBindingImmediate, true
	if waits {
		mode = storagev1.VolumeBindingWaitForFirstConsumer
	}
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode, AllowVolumeExpansion: &grow}
}

// binding shows a claim: its phase and volume.
func (w *world) binding(name string) string {
	w.Helper()
	w.settle(0)
	c := read[*corev1.PersistentVolumeClaim](w, claims, "default", name)
	return strings.TrimSpace(string(c.Status.Phase) + " " + c.Spec.VolumeName)
}

// phases shows all volumes.
func (w *world) phases() string {
	w.Helper()
	w.settle(0)
	var shown []string
	for _, v := range all[*corev1.PersistentVolume](w, volumes, "") {
		s := v.Name + " " + string(v.Status.Phase)
		if v.DeletionTimestamp != nil {
			s += " ending"
		}
		shown = append(shown, s)
	}
	slices.Sort(shown)
	return strings.Join(shown, ", ")
}

func (w *world) same(what, got, want string) {
	w.Helper()
	if got != want {
		w.Errorf("%s: %q, want %q", what, got, want)
	}
}

func (w *world) sees(about, event string) {
	w.Helper()
	w.settle(0)
	if got := w.events(about); !slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, event) }) {
		w.Errorf("no event %q among %q", event, got)
	}
}

// The smallest volume that suits is taken; what a claim leaves behind is dealt
// with by policy.
func TestClaimsBindToVolumes(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, claims, volumeClaim("early", ""))
		w.same("early", w.binding("early"), "Pending")
		w.sees("early", "FailedBinding: no persistent volumes available for this claim and no storage class is set")
		create(w, volumes, volume("small", "", "1Gi"))
		create(w, volumes, volume("large", "", "9Gi", policy(corev1.PersistentVolumeReclaimDelete)))
		w.same("early", w.binding("early"), "Bound large")
		c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "early")
		if q := c.Status.Capacity["storage"]; q.String() != "9Gi" || len(c.Status.AccessModes) != 1 || !api.Bound(c) {
			t.Errorf("claim %+v, annotations %v", c.Status, c.Annotations)
		}
		if v := read[*corev1.PersistentVolume](w, volumes, "", "large"); v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != c.UID || v.Spec.ClaimRef.Kind != "PersistentVolumeClaim" || v.Status.LastPhaseTransitionTime == nil {
			t.Errorf("claimRef %+v, status %+v", v.Spec.ClaimRef, v.Status)
		}
		create(w, volumes, volume("medium", "", "3Gi"))
		create(w, volumes, volume("huge", "", "30Gi"))
		w.settle(0)
		create(w, claims, volumeClaim("late", ""))
		w.same("late", w.binding("late"), "Bound medium")
		w.same("all", w.phases(), "huge Available, large Bound, medium Bound, small Available")
		w.remove(claims, "default", "late", metav1.DeletePropagationBackground)
		w.remove(claims, "default", "early", metav1.DeletePropagationBackground)
		w.same("afterwards", w.phases(), "huge Available, large Failed, medium Released, small Available")
		w.sees("large", `VolumeFailedDelete: error getting deleter volume plugin for volume "large": no deletable volume plugin matched`)
		// A released volume is nobody's until somebody says so.
		create(w, claims, volumeClaim("late", ""))
		w.same("again", w.binding("late"), "Bound huge")
		change(w, volumes, "", "medium", func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil })
		w.same("set free", w.phases(), "huge Bound, large Failed, medium Available, small Available")
	})
}

func TestClaimsByName(t *testing.T) {
	inWorld(t, func(w *world) {
		named := func(volume string) func(*corev1.PersistentVolumeClaim) {
			return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
		}
		create(w, claims, volumeClaim("named", "", named("mine")))
		w.same("named", w.binding("named"), "Pending mine")
		create(w, volumes, volume("other", "", "5Gi"))
		w.same("named", w.binding("named"), "Pending mine")
		create(w, volumes, volume("mine", "", "5Gi"))
		w.same("named", w.binding("named"), "Bound mine")
		create(w, claims, volumeClaim("second", "", named("mine")))
		w.same("second", w.binding("second"), "Pending mine")
		w.sees("second", `FailedBinding: volume "mine" already bound to a different claim.`)
		create(w, volumes, volume("tiny", "", "1Mi"))
		create(w, claims, volumeClaim("greedy", "", named("tiny")))
		w.same("greedy", w.binding("greedy"), "Pending tiny")
		w.sees("greedy", `VolumeMismatch: Cannot bind to requested volume "tiny": requested PV is too small`)
		block := corev1.PersistentVolumeBlock
		create(w, volumes, volume("disk", "", "6Gi", func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = &block }))
		create(w, claims, volumeClaim("folder", "", named("disk")))
		w.same("folder", w.binding("folder"), "Pending disk")
		w.sees("folder", `VolumeMismatch: Cannot bind to requested volume "disk": incompatible volumeMode`)
		create(w, claims, volumeClaim("device", "", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block }))
		w.same("device", w.binding("device"), "Bound disk")
		// A volume that is kept for a claim, which comes later.
		create(w, volumes, volume("kept", "slow", "5Gi", func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "kept"}
		}))
		w.same("all", w.phases(), "disk Bound, kept Available, mine Bound, other Available, tiny Available")
		create(w, claims, volumeClaim("thief", "slow"))
		create(w, claims, volumeClaim("kept", "slow"))
		w.same("thief", w.binding("thief"), "Pending")
		w.same("kept", w.binding("kept"), "Bound kept")
	})
}

// What is in use stays.
func TestVolumeProtection(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, volumes, volume("v", "", "5Gi"))
		create(w, claims, volumeClaim("data", ""))
		create(w, pods, plainPod("user", withAClaim))
		w.settle(time.Second)
		w.remove(claims, "default", "data", metav1.DeletePropagationBackground)
		w.remove(volumes, "", "v", metav1.DeletePropagationBackground)
		w.same("in use", w.phases()+" "+w.binding("data"), "v Bound ending Bound v")
		w.remove(pods, "default", "user", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if w.exists(claims, "default", "data") || w.exists(volumes, "", "v") {
			t.Error("what nobody uses stays")
		}
	})
}

func TestLostClaim(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, volumes, volume("v", "", "5Gi"))
		create(w, claims, volumeClaim("data", ""))
		w.same("before", w.binding("data"), "Bound v")
		w.remove(volumes, "", "v", metav1.DeletePropagationBackground)
		change(w, volumes, "", "v", func(v *corev1.PersistentVolume) { v.Finalizers = nil })
		w.same("after", w.binding("data"), "Lost v")
		w.sees("data", "ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	})
}

func TestDefaultClassComesLater(t *testing.T) {
	inWorld(t, func(w *world) {
		w.remove(storageClasses, "", api.LocalPathClass, metav1.DeletePropagationBackground)
		w.settle(0)
		create(w, claims, volumeClaim("open", "", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }))
		create(w, claims, volumeClaim("none", ""))
		class := storageClass("later", "example.com/far", false)
		class.Annotations = map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}
		create(w, storageClasses, class)
		w.settle(0)
		c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "open")
		if c.Spec.StorageClassName == nil || *c.Spec.StorageClassName != "later" || c.Annotations[api.AnnotationProvisioner] != "example.com/far" {
			t.Errorf("class %v, annotations %v", c.Spec.StorageClassName, c.Annotations)
		}
		w.sees("open", "ExternalProvisioning: Waiting for a volume to be created either by the external provisioner 'example.com/far' or manually")
		if c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "none"); *c.Spec.StorageClassName != "" {
			t.Errorf("a claim that wants no class got %q", *c.Spec.StorageClassName)
		}
	})
}

// keeps makes a node one that keeps volumes.
func keeps(n *corev1.Node) {
	n.Annotations[api.AnnotationVolumesDir] = "/data/" + n.Name
	n.Labels[corev1.LabelHostname] = n.Name
}

func (w *world) selectNode(claim, node string) {
	w.Helper()
	change(w, claims, "default", claim, func(c *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, api.AnnotationSelectedNode, node)
	})
	w.settle(0)
}

// madeBy plays the agent of the node that keeps a volume.
func (w *world) madeBy(v string) {
	w.Helper()
	change(w, volumes, "", v, func(v *corev1.PersistentVolume) {
		metav1.SetMetaDataAnnotation(&v.ObjectMeta, api.AnnotationVolumeMade, "now")
	})
	w.settle(0)
}

func TestLocalPath(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a", keeps)
		w.addNode("b", keeps)
		create(w, storageClasses, storageClass("local", api.LocalPathProvisioner, true))
		c := create(w, claims, volumeClaim("data", "local"))
		w.same("no pod yet", w.binding("data")+w.phases(), "Pending")
		w.sees("data", "WaitForFirstConsumer: waiting for first consumer to be created before binding")
		name := "pvc-" + string(c.UID)
		w.selectNode("data", "a")
		w.same("being made", w.binding("data")+" "+w.phases(), "Pending "+name+" Pending")
		v := read[*corev1.PersistentVolume](w, volumes, "", name)
		if v.Spec.Local.Path != "/data/a/"+name+"_default_data" || v.Labels[api.LabelVolumeNode] != "a" || !slices.Contains(v.Finalizers, api.FinalizerLocalPath) ||
			!api.Fits(v, read[*corev1.Node](w, nodes, "", "a")) || api.Fits(v, read[*corev1.Node](w, nodes, "", "b")) || v.Spec.PersistentVolumeReclaimPolicy != "Delete" {
			t.Errorf("the volume is %+v", v)
		}
		// The scheduler thinks better of it: nothing was made yet.
		w.selectNode("data", "b")
		if v := read[*corev1.PersistentVolume](w, volumes, "", name); v.Labels[api.LabelVolumeNode] != "b" {
			t.Errorf("it is still being made on %s", v.Labels[api.LabelVolumeNode])
		}
		w.madeBy(name)
		w.same("made", w.binding("data")+" "+w.phases(), "Bound "+name+" "+name+" Bound")
		change(w, claims, "default", "data", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests["storage"] = resource.MustParse("7Gi")
		})
		w.settle(0)
		now := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data").Status.Capacity["storage"]
		w.same("grown to", now.String(), "7Gi")
		// The object goes only after the data.
		w.remove(claims, "default", "data", metav1.DeletePropagationBackground)
		w.same("deleted", w.phases(), name+" Released ending")
		if v := read[*corev1.PersistentVolume](w, volumes, "", name); !slices.Equal(v.Finalizers, []string{api.FinalizerLocalPath}) {
			t.Errorf("finalizers %v", v.Finalizers)
		}
		// Unless there is nobody any more to remove it.
		w.remove(nodes, "", "b", metav1.DeletePropagationBackground)
		w.same("its node has left", w.phases(), "")
		w.sees(name, "VolumeAbandoned: Node b has left the cluster")
	})
}

func TestLocalPathRefuses(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a", keeps)
		w.addNode("bare")
		create(w, storageClasses, storageClass("local", api.LocalPathProvisioner, true))
		create(w, storageClasses, storageClass("hasty", api.LocalPathProvisioner, false))
		for name, tc := range map[string]struct {
			class, node, want string
			edit              func(*corev1.PersistentVolumeClaim)
		}{
			"immediate": {class: "hasty", want: "a folder on a node can be made only where a pod runs"},
			"shared":    {class: "local", want: "a folder on a node has no access modes but", edit: func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes[0] = corev1.ReadWriteMany }},
			"block":     {class: "local", want: "a folder on a node is no block device", edit: func(c *corev1.PersistentVolumeClaim) { m := corev1.PersistentVolumeBlock; c.Spec.VolumeMode = &m }},
			"bare":      {class: "local", node: "bare", want: `node "bare" is not there to make it`},
			"nowhere":   {class: "local", node: "x", want: `node "x" is not there to make it`},
		} {
			c := volumeClaim(name, tc.class)
			if tc.edit != nil {
				tc.edit(c)
			}
			create(w, claims, c)
			if tc.class == "local" {
				node := tc.node
				if node == "" {
					node = "a"
				}
				w.selectNode(name, node)
			}
			w.sees(name, `ProvisioningFailed: failed to provision volume with StorageClass "`+tc.class+`": `+tc.want)
			if tc.node != "" && read[*corev1.PersistentVolumeClaim](w, claims, "default", name).Annotations[api.AnnotationSelectedNode] != "" {
				t.Errorf("%s: the scheduler is not asked again", name)
			}
		}
		w.same("volumes", w.phases(), "")
	})
}

// A volume that is being made on a node that dies is made elsewhere; one that
// was made there is waited for, and so does its pod.
func TestLocalPathOnADeadNode(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a", keeps)
		w.addNode("b", keeps)
		create(w, storageClasses, storageClass("local", api.LocalPathProvisioner, true))
		create(w, claims, volumeClaim("young", "local"))
		c := create(w, claims, volumeClaim("data", "local"))
		w.selectNode("young", "a")
		w.selectNode("data", "a")
		w.madeBy("pvc-" + string(c.UID))
		w.agent.set(func() { w.agent.nodes = []string{"a"} })
		create(w, pods, plainPod("stuck", withAClaim, unreachableAt0))
		create(w, pods, plainPod("free", func(p *corev1.Pod) {
			withAClaim(p)
			p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = "far"
		}, unreachableAt0))
		w.settle(time.Second)
		w.agent.set(func() { w.agent.nodes = nil })
		w.liveness.set("a", Dead)
		w.settle(time.Minute)
		if w.exists(pods, "default", "free") || !w.exists(pods, "default", "stuck") {
			t.Errorf("free: %t, stuck: %t", w.exists(pods, "default", "free"), w.exists(pods, "default", "stuck"))
		}
		w.sees("stuck", "VolumeOnLostNode: Volume pvc-"+string(c.UID)+" lies on node a")
		w.same("made", w.binding("data"), "Bound pvc-"+string(c.UID))
		if young := read[*corev1.PersistentVolumeClaim](w, claims, "default", "young"); young.Annotations[api.AnnotationSelectedNode] != "" {
			t.Error("a volume waits to be made by a dead node")
		}
		w.same("volumes", w.phases(), "pvc-"+string(c.UID)+" Bound")
	})
}

// Volumes that users made, of a class that waits for a pod, are taken where the
// pod is to run.
func TestWaitingForAStaticVolume(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a", keeps)
		w.addNode("b", keeps)
		create(w, storageClasses, storageClass("disks", noProvisioner, true))
		on := func(node string) func(*corev1.PersistentVolume) {
			return func(v *corev1.PersistentVolume) {
				v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
				}}}}
			}
		}
		create(w, volumes, volume("on-a", "disks", "5Gi", on("a")))
		create(w, volumes, volume("on-b", "disks", "9Gi", on("b")))
		create(w, claims, volumeClaim("data", "disks"))
		w.same("before", w.binding("data"), "Pending")
		w.selectNode("data", "b")
		w.same("after", w.binding("data"), "Bound on-b")
		create(w, claims, volumeClaim("more", "disks"))
		w.selectNode("more", "b")
		w.same("none there", w.binding("more"), "Pending")
		if c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "more"); c.Annotations[api.AnnotationSelectedNode] != "" {
			t.Error("the scheduler is not asked again")
		}
	})
}

func TestEphemeralVolumes(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		pod := create(w, pods, plainPod("p", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
				VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}, Spec: volumeClaim("", "").Spec},
			}}}}
		}))
		w.settle(time.Second)
		if c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "p-scratch"); !metav1.IsControlledBy(c, pod) || c.Labels["a"] != "b" {
			t.Errorf("the claim is %+v", c.ObjectMeta)
		}
		w.remove(pods, "default", "p", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if w.exists(claims, "default", "p-scratch") {
			t.Error("the claim outlives its pod")
		}
	})
}
