package api

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServiceCIDRFinalizer holds a ServiceCIDR until no address needs it.
const ServiceCIDRFinalizer = "networking.k8s.io/service-cidr-finalizer"

// systemObjects are those that Kubernetes' own server makes at its start and
// users may look at, and in part change.
func (s *Server) systemObjects() []Object {
	cidrs := []string{s.cfg.ServiceCIDR.Masked().String()}
	if s.cfg.ServiceCIDR6.IsValid() {
		cidrs = append(cidrs, s.cfg.ServiceCIDR6.Masked().String())
	}
	return append(systemClasses(),
		&networkingv1.ServiceCIDR{
			ObjectMeta: metav1.ObjectMeta{Name: kubernetesService, Finalizers: []string{ServiceCIDRFinalizer}},
			Spec:       networkingv1.ServiceCIDRSpec{CIDRs: cidrs},
		},
	)
}
