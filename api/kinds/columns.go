package kinds

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
)

var metaDescription = metav1.ObjectMeta{}.SwaggerDoc()

var (
	nameColumn = metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metaDescription["name"]}
	ageColumn  = text("Age", metaDescription["creationTimestamp"])
)

func text(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

func number(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "integer", Description: description}
}

// wide makes a column that only `-o wide` shows.
func wide(c metav1.TableColumnDefinition) metav1.TableColumnDefinition {
	c.Priority = 1
	return c
}

// cells lends a typed function to a row's Cells.
func cells[T runtime.Object](f func(obj T, now time.Time) []any) func(runtime.Object, time.Time) []any {
	return func(o runtime.Object, now time.Time) []any { return f(o.(T), now) }
}

const (
	none    = "<none>"
	unknown = "<unknown>"
	unset   = "<unset>"
)

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

// age is how long ago t was, in kubectl's words.
func age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

func microAge(t metav1.MicroTime, now time.Time) string { return age(metav1.Time{Time: t.Time}, now) }

func docs(o interface{ SwaggerDoc() map[string]string }, field string) string {
	return o.SwaggerDoc()[field]
}

var namespaceColumns = []metav1.TableColumnDefinition{nameColumn, text("Status", "The status of the namespace"), ageColumn}

func namespaceCells(ns *corev1.Namespace, now time.Time) []any {
	return []any{ns.Name, string(ns.Status.Phase), age(ns.CreationTimestamp, now)}
}

var nodeColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Status", "The status of the node"),
	text("Roles", "The roles of the node"),
	ageColumn,
	text("Version", docs(corev1.NodeSystemInfo{}, "kubeletVersion")),
	wide(text("Internal-IP", docs(corev1.NodeStatus{}, "addresses"))),
	wide(text("External-IP", docs(corev1.NodeStatus{}, "addresses"))),
	wide(text("OS-Image", docs(corev1.NodeSystemInfo{}, "osImage"))),
	wide(text("Kernel-Version", docs(corev1.NodeSystemInfo{}, "kernelVersion"))),
	wide(text("Container-Runtime", docs(corev1.NodeSystemInfo{}, "containerRuntimeVersion"))),
}

func nodeCells(node *corev1.Node, now time.Time) []any {
	status := "Unknown"
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			if status = "NotReady"; c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if node.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	address := func(of corev1.NodeAddressType) string {
		for _, a := range node.Status.Addresses {
			if a.Type == of {
				return a.Address
			}
		}
		return none
	}
	info := &node.Status.NodeInfo
	return []any{
		node.Name, status, or(strings.Join(nodeRoles(node), ","), none), age(node.CreationTimestamp, now), info.KubeletVersion,
		address(corev1.NodeInternalIP), address(corev1.NodeExternalIP),
		or(info.OSImage, unknown), or(info.KernelVersion, unknown), or(info.ContainerRuntimeVersion, unknown),
	}
}

func nodeRoles(node *corev1.Node) []string {
	var roles []string
	for key, value := range sorted(node.Labels) {
		role, ok := strings.CutPrefix(key, "node-role.kubernetes.io/")
		if !ok && key == "kubernetes.io/role" {
			role = value
		} else if !ok {
			continue
		}
		if role != "" && !slices.Contains(roles, role) {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return roles
}

var serviceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Type", docs(corev1.ServiceSpec{}, "type")),
	text("Cluster-IP", docs(corev1.ServiceSpec{}, "clusterIP")),
	text("External-IP", docs(corev1.ServiceSpec{}, "externalIPs")),
	text("Port(s)", docs(corev1.ServiceSpec{}, "ports")),
	ageColumn,
	wide(text("Selector", docs(corev1.ServiceSpec{}, "selector"))),
}

func serviceCells(svc *corev1.Service, now time.Time) []any {
	clusterIP := svc.Spec.ClusterIP
	if len(svc.Spec.ClusterIPs) > 0 {
		clusterIP = svc.Spec.ClusterIPs[0]
	}
	ports := make([]string, len(svc.Spec.Ports))
	for i, p := range svc.Spec.Ports {
		ports[i] = fmt.Sprintf("%d/%s", p.Port, p.Protocol)
		if p.NodePort > 0 {
			ports[i] = fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol)
		}
	}
	return []any{
		svc.Name, string(svc.Spec.Type), or(clusterIP, none), externalIP(svc), or(strings.Join(ports, ","), none),
		age(svc.CreationTimestamp, now), labels.FormatLabels(svc.Spec.Selector),
	}
}

func externalIP(svc *corev1.Service) string {
	switch svc.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return svc.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var ips []string
		for _, in := range svc.Status.LoadBalancer.Ingress {
			ips = append(ips, or(in.IP, in.Hostname))
		}
		return or(strings.Join(slices.Concat(ips, svc.Spec.ExternalIPs), ","), "<pending>")
	}
	return or(strings.Join(svc.Spec.ExternalIPs, ","), none)
}

var secretColumns = []metav1.TableColumnDefinition{
	nameColumn, text("Type", docs(corev1.Secret{}, "type")), number("Data", docs(corev1.Secret{}, "data")), ageColumn,
}

func secretCells(s *corev1.Secret, now time.Time) []any {
	return []any{s.Name, string(s.Type), int64(len(s.Data)), age(s.CreationTimestamp, now)}
}

var configMapColumns = []metav1.TableColumnDefinition{nameColumn, number("Data", docs(corev1.ConfigMap{}, "data")), ageColumn}

func configMapCells(cm *corev1.ConfigMap, now time.Time) []any {
	return []any{cm.Name, int64(len(cm.Data) + len(cm.BinaryData)), age(cm.CreationTimestamp, now)}
}

var serviceAccountColumns = []metav1.TableColumnDefinition{nameColumn, number("Secrets", docs(corev1.ServiceAccount{}, "secrets")), ageColumn}

func serviceAccountCells(sa *corev1.ServiceAccount, now time.Time) []any {
	return []any{sa.Name, int64(len(sa.Secrets)), age(sa.CreationTimestamp, now)}
}

var endpointsColumns = []metav1.TableColumnDefinition{nameColumn, text("Endpoints", docs(corev1.Endpoints{}, "subsets")), ageColumn}

func endpointsCells(e *corev1.Endpoints, now time.Time) []any {
	var all []string
	for _, s := range e.Subsets {
		for _, a := range s.Addresses {
			if len(s.Ports) == 0 {
				all = append(all, a.IP)
			}
			for _, p := range s.Ports {
				all = append(all, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
			}
		}
	}
	return []any{e.Name, someOf(all, none), age(e.CreationTimestamp, now)}
}

// someOf lists the first three and counts the rest.
func someOf(all []string, otherwise string) string {
	const most = 3
	if len(all) > most {
		return fmt.Sprintf("%s + %d more...", strings.Join(all[:most], ","), len(all)-most)
	}
	return or(strings.Join(all, ","), otherwise)
}

var endpointSliceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("AddressType", docs(discoveryv1.EndpointSlice{}, "addressType")),
	text("Ports", docs(discoveryv1.EndpointSlice{}, "ports")),
	text("Endpoints", docs(discoveryv1.EndpointSlice{}, "endpoints")),
	ageColumn,
}

func endpointSliceCells(s *discoveryv1.EndpointSlice, now time.Time) []any {
	var ports, endpoints []string
	for _, p := range s.Ports {
		port := "*"
		if p.Port != nil {
			port = strconv.Itoa(int(*p.Port))
		} else if p.Name != nil && *p.Name != "" {
			port = *p.Name
		}
		ports = append(ports, port)
	}
	for _, e := range s.Endpoints {
		endpoints = append(endpoints, e.Addresses...)
	}
	return []any{s.Name, string(s.AddressType), someOf(ports, unset), someOf(endpoints, unset), age(s.CreationTimestamp, now)}
}

var eventColumns = []metav1.TableColumnDefinition{
	text("Last Seen", docs(corev1.Event{}, "lastTimestamp")),
	text("Type", docs(corev1.Event{}, "type")),
	text("Reason", docs(corev1.Event{}, "reason")),
	text("Object", docs(corev1.Event{}, "involvedObject")),
	wide(text("Subobject", docs(corev1.ObjectReference{}, "fieldPath"))),
	wide(text("Source", docs(corev1.Event{}, "source"))),
	text("Message", docs(corev1.Event{}, "message")),
	wide(text("First Seen", docs(corev1.Event{}, "firstTimestamp"))),
	wide(number("Count", docs(corev1.Event{}, "count"))),
	wide(nameColumn),
}

func coreEventCells(ev *corev1.Event, now time.Time) []any {
	first := age(ev.FirstTimestamp, now)
	if ev.FirstTimestamp.IsZero() {
		first = microAge(ev.EventTime, now)
	}
	last, count := age(ev.LastTimestamp, now), ev.Count
	if ev.LastTimestamp.IsZero() {
		last = first
	}
	if ev.Series != nil {
		last, count = microAge(ev.Series.LastObservedTime, now), ev.Series.Count
	} else if count == 0 {
		count = 1
	}
	object := strings.ToLower(ev.InvolvedObject.Kind)
	if ev.InvolvedObject.Name != "" {
		object += "/" + ev.InvolvedObject.Name
	}
	source := []string{or(ev.Source.Component, ev.ReportingController)}
	if host := or(ev.Source.Host, ev.ReportingInstance); host != "" {
		source = append(source, host)
	}
	return []any{
		last, ev.Type, ev.Reason, object, ev.InvolvedObject.FieldPath, strings.Join(source, ", "),
		strings.TrimSpace(ev.Message), first, int64(count), ev.Name,
	}
}

func eventCells(ev *eventsv1.Event, now time.Time) []any { return coreEventCells(coreEvent(ev), now) }

var leaseColumns = []metav1.TableColumnDefinition{nameColumn, text("Holder", docs(coordinationv1.LeaseSpec{}, "holderIdentity")), ageColumn}

func leaseCells(l *coordinationv1.Lease, now time.Time) []any {
	holder := ""
	if l.Spec.HolderIdentity != nil {
		holder = *l.Spec.HolderIdentity
	}
	return []any{l.Name, holder, age(l.CreationTimestamp, now)}
}

var ipAddressColumns = []metav1.TableColumnDefinition{nameColumn, text("ParentRef", docs(networkingv1.IPAddressSpec{}, "parentRef")), ageColumn}

func ipAddressCells(ip *networkingv1.IPAddress, now time.Time) []any {
	parent := none
	if r := ip.Spec.ParentRef; r != nil {
		parent = r.Resource
		if r.Group != "" {
			parent += "." + r.Group
		}
		if r.Namespace != "" {
			parent += "/" + r.Namespace
		}
		parent += "/" + r.Name
	}
	return []any{ip.Name, parent, age(ip.CreationTimestamp, now)}
}

var workloadColumns = []metav1.TableColumnDefinition{
	wide(text("Containers", "Names of each container in the template.")),
	wide(text("Images", "Images referenced by each container in the template.")),
	wide(text("Selector", docs(appsv1.DeploymentSpec{}, "selector"))),
}

func workloadCells(t *corev1.PodTemplateSpec, selector *metav1.LabelSelector) []any {
	var names, images []string
	for _, c := range t.Spec.Containers {
		names, images = append(names, c.Name), append(images, c.Image)
	}
	return []any{strings.Join(names, ","), strings.Join(images, ","), metav1.FormatLabelSelector(selector)}
}

var deploymentColumns = append([]metav1.TableColumnDefinition{
	nameColumn,
	text("Ready", "Number of the pod with ready state"),
	number("Up-to-date", docs(appsv1.DeploymentStatus{}, "updatedReplicas")),
	number("Available", docs(appsv1.DeploymentStatus{}, "availableReplicas")),
	ageColumn,
}, workloadColumns...)

func deploymentCells(d *appsv1.Deployment, now time.Time) []any {
	return append([]any{
		d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicas(d.Spec.Replicas)),
		int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), age(d.CreationTimestamp, now),
	}, workloadCells(&d.Spec.Template, d.Spec.Selector)...)
}

func replicas(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

var replicaSetColumns = append([]metav1.TableColumnDefinition{
	nameColumn,
	number("Desired", docs(appsv1.ReplicaSetSpec{}, "replicas")),
	number("Current", docs(appsv1.ReplicaSetStatus{}, "replicas")),
	number("Ready", docs(appsv1.ReplicaSetStatus{}, "readyReplicas")),
	ageColumn,
}, workloadColumns...)

func replicaSetCells(rs *appsv1.ReplicaSet, now time.Time) []any {
	return append([]any{
		rs.Name, int64(replicas(rs.Spec.Replicas)), int64(rs.Status.Replicas), int64(rs.Status.ReadyReplicas), age(rs.CreationTimestamp, now),
	}, workloadCells(&rs.Spec.Template, rs.Spec.Selector)...)
}
