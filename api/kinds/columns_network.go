package kinds

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

var podTemplateColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Containers", "Names of each container in the template."),
	text("Images", "Images referenced by each container in the template."),
	text("Pod Labels", "The labels for the pod template."),
}

func podTemplateCells(t *corev1.PodTemplate, _ time.Time) []any {
	return append(append([]any{t.Name}, workloadCells(&t.Template, nil)[:2]...), labels.FormatLabels(t.Template.Labels))
}

var ingressColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Class", "The name of the IngressClass resource that should be used for additional configuration"),
	text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
	text("Address", "Address is a list containing ingress points for the load-balancer"),
	text("Ports", "Ports of TLS configurations that open"),
	ageColumn,
}

func ingressCells(i *networkingv1.Ingress, now time.Time) []any {
	class := none
	if i.Spec.IngressClassName != nil {
		class = *i.Spec.IngressClassName
	}
	ports := "80"
	if len(i.Spec.TLS) > 0 {
		ports = "80, 443"
	}
	var addresses []string
	for _, in := range i.Status.LoadBalancer.Ingress {
		addresses = append(addresses, or(in.IP, in.Hostname))
	}
	return []any{i.Name, class, someOf(hostsOf(i.Spec.Rules), "*"), strings.Join(addresses, ","), ports, age(i.CreationTimestamp, now)}
}

var ingressClassColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Controller", "Controller that is responsible for handling this class"),
	text("Parameters", "A reference to a resource with additional parameters"),
	ageColumn,
}

func ingressClassCells(c *networkingv1.IngressClass, now time.Time) []any {
	parameters := none
	if p := c.Spec.Parameters; p != nil {
		parameters = p.Kind
		if p.APIGroup != nil {
			parameters += "." + *p.APIGroup
		}
		parameters += "/" + p.Name
	}
	return []any{c.Name, c.Spec.Controller, parameters, age(c.CreationTimestamp, now)}
}

var serviceCIDRColumns = []metav1.TableColumnDefinition{nameColumn, text("CIDRs", docs(networkingv1.ServiceCIDRSpec{}, "cidrs")), ageColumn}

func serviceCIDRCells(c *networkingv1.ServiceCIDR, now time.Time) []any {
	return []any{c.Name, strings.Join(c.Spec.CIDRs, ","), age(c.CreationTimestamp, now)}
}

var deviceClassColumns = []metav1.TableColumnDefinition{nameColumn, ageColumn}

func deviceClassCells(c *resourcev1.DeviceClass, now time.Time) []any {
	return []any{c.Name, age(c.CreationTimestamp, now)}
}

var resourceClaimColumns = []metav1.TableColumnDefinition{
	nameColumn, text("State", "A summary of the current state (allocated, pending, reserved, etc.)."), ageColumn,
}

func resourceClaimCells(c *resourcev1.ResourceClaim, now time.Time) []any {
	var states []string
	if c.DeletionTimestamp != nil {
		states = append(states, "deleted")
	}
	switch {
	case c.Status.Allocation == nil && c.DeletionTimestamp == nil:
		states = append(states, "pending")
	case c.Status.Allocation != nil:
		states = append(states, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			states = append(states, "reserved")
		}
	}
	return []any{c.Name, strings.Join(states, ","), age(c.CreationTimestamp, now)}
}

var resourceClaimTemplateColumns = []metav1.TableColumnDefinition{nameColumn, ageColumn}

func resourceClaimTemplateCells(t *resourcev1.ResourceClaimTemplate, now time.Time) []any {
	return []any{t.Name, age(t.CreationTimestamp, now)}
}

var resourceSliceColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Node", docs(resourcev1.ResourceSliceSpec{}, "nodeName")),
	text("Driver", docs(resourcev1.ResourceSliceSpec{}, "driver")),
	text("Pool", "Name of the pool that the resource slice belongs to."),
	ageColumn,
}

func resourceSliceCells(s *resourcev1.ResourceSlice, now time.Time) []any {
	node := unset
	if s.Spec.NodeName != nil {
		node = *s.Spec.NodeName
	}
	return []any{s.Name, node, s.Spec.Driver, s.Spec.Pool.Name, age(s.CreationTimestamp, now)}
}
