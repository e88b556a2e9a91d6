package kinds

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// gap is a field that Kubernetes has and Conclave does not make work yet. Its
// path is that of the JSON, with [*] for every element of a list. A value that
// asks for nothing (nil, empty, false, or one of but) is not warned of. Delete
// the row when the field works.
type gap struct {
	path string
	but  []string
}

// podGaps are below a pod's spec. Rows of containers are of init containers
// too; see containerGaps.
var podGaps = []gap{
	{path: "resourceClaims"},
	{path: "schedulingGroup"},
	{path: "evictionResponders"},
	{path: "volumes[*].emptyDir.mode"},
}

// containerGaps are below each container, of whichever kind.
var containerGaps = []gap{
	{path: "resources.claims"},
}

// mountable are the types of volumes that nodes mount.
var mountable = []string{"emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim", "ephemeral", "csi", "nfs", "image"}

// projectable are the sources that nodes project into a volume.
var projectable = []string{"secret", "downwardAPI", "configMap", "serviceAccountToken"}

// find returns the paths of all fields of v that a gap's path names and that
// ask for something.
func (g gap) find(at *field.Path, v reflect.Value) []*field.Path {
	return find(at, v, strings.Split(g.path, "."), g.but)
}

func find(at *field.Path, v reflect.Value, path, but []string) []*field.Path {
	given := false // somebody wrote it, be it empty
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return nil
		}
		v, given = v.Elem(), true
	}
	if len(path) == 0 {
		// A structure is judged by its type, where it has one.
		value := v
		if v.Kind() == reflect.Struct {
			if t := v.FieldByName("Type"); t.IsValid() {
				value = t
			}
		}
		asks := !v.IsZero() || given && (v.Kind() == reflect.Struct || len(but) > 0)
		if !asks || slices.Contains(but, fmt.Sprint(value.Interface())) {
			return nil
		}
		return []*field.Path{at}
	}
	name, each := strings.CutSuffix(path[0], "[*]")
	f, ok := fieldByJSON(v, name)
	if !ok {
		panic(fmt.Sprintf("%s has no field %q", v.Type(), name)) // a row of the table is wrong; a test walks them all
	}
	if !each {
		return find(at.Child(name), f, path[1:], but)
	}
	var out []*field.Path
	for i := range f.Len() {
		out = append(out, find(at.Child(name).Index(i), f.Index(i), path[1:], but)...)
	}
	return out
}

// fieldByJSON is the field of a struct, or of a struct inlined in it.
func fieldByJSON(v reflect.Value, name string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if tag == name {
			return v.Field(i), true
		}
		if tag == "" && t.Field(i).Anonymous {
			if f, ok := fieldByJSON(v.Field(i), name); ok {
				return f, true
			}
		}
	}
	return reflect.Value{}, false
}

func unsupported(p *field.Path) string {
	return p.String() + ": not supported by Conclave yet, it has no effect"
}

// gapWarnings are of all rows of a table.
func gapWarnings(at *field.Path, obj any, gaps []gap) []string {
	var out []string
	for _, g := range gaps {
		for _, p := range g.find(at, reflect.ValueOf(obj)) {
			out = append(out, unsupported(p))
		}
	}
	return out
}

// warn lends a typed function to a row's Warnings. An update is told only what
// its old object did not have already.
func warn[T runtime.Object](f func(T) []string) func(obj, old runtime.Object) []string {
	return func(obj, old runtime.Object) []string {
		warnings := f(obj.(T))
		if old == nil || len(warnings) == 0 {
			return warnings
		}
		before := f(old.(T))
		return slices.DeleteFunc(warnings, func(w string) bool { return slices.Contains(before, w) })
	}
}

func podWarnings(pod *corev1.Pod) []string {
	return append(appArmorWarnings(nil, pod.Annotations), podSpecWarnings(specPath, &pod.Spec)...)
}

// templateWarnings are of the pods that the template of a spec, if it has one,
// will make.
func templateWarnings(spec *field.Path, t *corev1.PodTemplateSpec) []string {
	if t == nil {
		return nil
	}
	p := spec.Child("template")
	return append(appArmorWarnings(p, t.Annotations), podSpecWarnings(p.Child("spec"), &t.Spec)...)
}

func deploymentWarnings(d *appsv1.Deployment) []string {
	return templateWarnings(specPath, &d.Spec.Template)
}

func replicaSetWarnings(rs *appsv1.ReplicaSet) []string {
	return templateWarnings(specPath, &rs.Spec.Template)
}

func statefulSetWarnings(s *appsv1.StatefulSet) []string {
	var out []string
	if len(validation.IsDNS1123Label(s.Name)) > 0 {
		out = append(out, "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended")
	}
	for i := range s.Spec.VolumeClaimTemplates {
		out = append(out, claimSpecWarnings(specPath.Child("volumeClaimTemplates").Index(i).Child("spec"), &s.Spec.VolumeClaimTemplates[i].Spec)...)
	}
	return append(out, templateWarnings(specPath, &s.Spec.Template)...)
}

// claimGaps are below a claim's spec.
var claimGaps = []gap{
	{path: "volumeAttributesClassName"},
}

func claimWarnings(c *corev1.PersistentVolumeClaim) []string {
	return claimSpecWarnings(specPath, &c.Spec)
}

func claimSpecWarnings(p *field.Path, spec *corev1.PersistentVolumeClaimSpec) []string {
	out := gapWarnings(p, spec, claimGaps)
	if q := spec.Resources.Requests[corev1.ResourceStorage]; q.MilliValue()%1000 != 0 {
		out = append(out, fmt.Sprintf("%s: fractional byte value %q is invalid, must be an integer", p.Child("resources", "requests").Key(string(corev1.ResourceStorage)), q.String()))
	}
	return out
}

// volumeGaps are below a persistent volume's spec.
var volumeGaps = []gap{
	{path: "volumeAttributesClassName"},
}

// localGaps are those of a volume that is local.
var localGaps = []gap{{path: "local.fsType"}}

// mountableVolumes are the types of persistent volumes that nodes mount, and
// deviceVolumes those among them that can be block devices.
var (
	mountableVolumes = []string{"local", "hostPath", "csi", "nfs"}
	deviceVolumes    = []string{"local", "csi"}
)

func volumeWarnings(v *corev1.PersistentVolume) []string {
	var out []string
	for _, source := range membersOf(&v.Spec.PersistentVolumeSource) {
		switch {
		case !slices.Contains(mountableVolumes, source):
			out = append(out, specPath.Child(source).String()+": this type of volume is not supported by Conclave yet, pods that use it will not start")
		case IsBlock(v.Spec.VolumeMode) && !slices.Contains(deviceVolumes, source):
			out = append(out, specPath.Child("volumeMode").String()+": a volume of type "+source+" is no block device, pods that use it will not start")
		}
	}
	out = append(out, gapWarnings(specPath, &v.Spec, slices.Concat(volumeGaps, localGaps))...)
	if len(v.Spec.MountOptions) > 0 && v.Spec.CSI == nil && v.Spec.NFS == nil {
		out = append(out, unsupported(specPath.Child("mountOptions")))
	}
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		out = append(out, specPath.Child("persistentVolumeReclaimPolicy").String()+": The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.")
	}
	return out
}

func podSpecWarnings(p *field.Path, spec *corev1.PodSpec) []string {
	out := gapWarnings(p, spec, podGaps)
	for i := range spec.Volumes {
		at := p.Child("volumes").Index(i)
		for _, source := range membersOf(&spec.Volumes[i].VolumeSource) {
			if !slices.Contains(mountable, source) {
				out = append(out, at.Child(source).String()+": this type of volume is not supported by Conclave yet, the pod will not start")
			}
		}
		if v := spec.Volumes[i].Projected; v != nil {
			for j := range v.Sources {
				for _, source := range membersOf(&v.Sources[j]) {
					if !slices.Contains(projectable, source) {
						out = append(out, at.Child("projected", "sources").Index(j).Child(source).String()+": this type of source is not supported by Conclave yet, the pod will not start")
					}
				}
			}
		}
		if e := spec.Volumes[i].EmptyDir; e != nil && e.Medium != corev1.StorageMediumDefault && e.Medium != corev1.StorageMediumMemory {
			out = append(out, unsupported(at.Child("emptyDir", "medium")))
		}
	}
	for at, c := range containersOf(p, spec) {
		out = append(out, gapWarnings(at, c, containerGaps)...)
		out = append(out, containerWarnings(at, c)...)
	}
	if spec.TerminationGracePeriodSeconds != nil && *spec.TerminationGracePeriodSeconds < 0 {
		out = append(out, p.Child("terminationGracePeriodSeconds").String()+": must be >= 0; negative values are invalid and will be treated as 1")
	}
	for i, s := range spec.ImagePullSecrets {
		if s.Name == "" {
			out = append(out, fmt.Sprintf("%s: invalid empty name %q", p.Child("imagePullSecrets").Index(i).Child("name"), s.Name))
		}
	}
	for i, a := range spec.HostAliases {
		if at := p.Child("hostAliases").Index(i).Child("ip"); len(validation.IsValidIPForLegacyField(at, a.IP, true, nil)) == 0 {
			out = append(out, validation.GetWarningsForIP(at, a.IP)...)
		}
	}
	return out
}

// containerWarnings are those that Kubernetes has.
func containerWarnings(p *field.Path, c *corev1.Container) []string {
	var out []string
	for i, v := range c.Env {
		for j := range i {
			if v.Name != "" && c.Env[j].Name == v.Name {
				out = append(out, fmt.Sprintf("%s: hides previous definition of %q, which may be dropped when using apply", p.Child("env").Index(i), v.Name))
				break
			}
		}
	}
	for i, port := range c.Ports {
		for j, other := range c.Ports[:i] {
			if port.Protocol == other.Protocol && port.ContainerPort == other.ContainerPort && port.HostIP == other.HostIP && port.HostPort == other.HostPort {
				out = append(out, fmt.Sprintf("%s: duplicate port definition with %s", p.Child("ports").Index(i), p.Child("ports").Index(j)))
				break
			}
		}
	}
	for part, list := range sorted(map[string]corev1.ResourceList{"limits": c.Resources.Limits, "requests": c.Resources.Requests}) {
		for name, q := range sorted(list) {
			if (name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage) && q.MilliValue()%1000 != 0 {
				out = append(out, fmt.Sprintf("%s: fractional byte value %q is invalid, must be an integer", p.Child("resources", part).Key(string(name)), q.String()))
			}
		}
	}
	return out
}

// topologyAnnotations asked for hints by zone before there was a field for it.
var topologyAnnotations = []string{corev1.AnnotationTopologyMode, corev1.DeprecatedAnnotationTopologyAwareHints}

func serviceWarnings(svc *corev1.Service) []string {
	var out []string
	for i, p := range svc.Spec.Ports {
		if p.Protocol == corev1.ProtocolSCTP && !kernelHasSCTP() {
			out = append(out, specPath.Child("ports").Index(i).Child("protocol").String()+": this node's kernel has no SCTP; only nodes and pods whose kernel has it can speak it")
		}
	}
	for _, a := range topologyAnnotations {
		if mode := svc.Annotations[a]; mode != "" && !strings.EqualFold(mode, "disabled") {
			out = append(out, unsupported(field.NewPath("metadata", "annotations").Key(a))+"; please use spec.trafficDistribution instead")
		}
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		for name, set := range sorted(map[string]bool{
			"spec.loadBalancerIP": svc.Spec.LoadBalancerIP != "", "spec.externalIPs": len(svc.Spec.ExternalIPs) > 0,
			"spec.SessionAffinity": svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP,
		}) {
			if set {
				out = append(out, name+" is ignored for headless services")
			}
		}
	}
	for i, ip := range svc.Spec.ExternalIPs {
		if at := specPath.Child("externalIPs").Index(i); len(validation.IsValidIPForLegacyField(at, ip, true, nil)) == 0 {
			out = append(out, validation.GetWarningsForIP(at, ip)...)
		}
	}
	return out
}

// kernelHasSCTP asks the kernel, which may load what it lacks.
var kernelHasSCTP = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	return unix.Close(fd) == nil
})

func secretWarnings(s *corev1.Secret) []string {
	if s.Type == corev1.SecretTypeServiceAccountToken {
		return []string{"type: Conclave writes no token into secrets of type " + string(s.Type) + " yet; ask for one with `kubectl create token`"}
	}
	return nil
}

// nodeGaps are below a node's spec.
var nodeGaps = []gap{{path: "configSource"}, {path: "podPreemptionPolicy"}}

func nodeWarnings(node *corev1.Node) []string { return gapWarnings(specPath, &node.Spec, nodeGaps) }
