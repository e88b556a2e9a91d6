package api

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A ClusterIP or node port belongs to the service for which a small object of
// that name was created: the store refuses a second one, whichever master
// asks. The object is made before the service and removed after it, so that
// what goes wrong between leaves a reservation too many and never one too few;
// repair frees those.

const (
	addressResource     = "ipaddresses.networking.k8s.io"
	serviceCIDRResource = "servicecidrs.networking.k8s.io"
	// Node ports are kept under a name that no kind of the API has.
	portResource = "nodeports.conclave.io"

	firstNodePort, lastNodePort = 30000, 32767

	reservationAge = 2 * time.Minute // a younger one may be of a service that is being made
	repairEvery    = 10 * time.Minute

	// Guesses before the free ones are looked for one by one.
	randomTries = 16

	ownerAnnotation = "conclave.io/service"
)

// reservation is one address or port of one service.
type reservation struct{ resource, name string }

func portReservation(p corev1.ServicePort) reservation {
	return reservation{portResource, strings.ToLower(string(p.Protocol)) + "-" + strconv.Itoa(int(p.NodePort))}
}

// reservationsOf is what a service has to itself.
func reservationsOf(svc *corev1.Service) []reservation {
	var all []reservation
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	for _, ip := range svc.Spec.ClusterIPs {
		if ip != "" && ip != corev1.ClusterIPNone {
			all = append(all, reservation{addressResource, ip})
		}
	}
	if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" && svc.Spec.ClusterIP != corev1.ClusterIPNone {
		all = append(all, reservation{addressResource, svc.Spec.ClusterIP})
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			all = append(all, portReservation(p))
		}
	}
	if svc.Spec.HealthCheckNodePort != 0 {
		all = append(all, healthReservation(svc.Spec.HealthCheckNodePort))
	}
	return all
}

// healthReservation is of the port of all nodes where a service's health is
// told, by HTTP.
func healthReservation(port int32) reservation {
	return portReservation(corev1.ServicePort{Protocol: corev1.ProtocolTCP, NodePort: port})
}

// reserveService gives a service the addresses and ports that it needs.
func reserveService(ctx context.Context, c *call, obj, old Object) (func(error), error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return func(error) {}, nil
	}
	var before []reservation
	if was, ok := old.(*corev1.Service); ok {
		before = reservationsOf(was)
		keepAllocated(svc, was)
	}
	a := &allocation{s: c.s, svc: svc, had: before}
	if err := a.run(ctx); err != nil {
		a.release(ctx, a.taken)
		return nil, err
	}
	return func(err error) {
		// The request's own time may be over.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		switch {
		case err == nil:
			now := reservationsOf(svc)
			a.release(ctx, slices.DeleteFunc(slices.Clone(before), func(r reservation) bool { return slices.Contains(now, r) }))
		case !apierrors.IsTimeout(err): // it may have been written: then it keeps what it has
			a.release(ctx, a.taken)
		}
	}, nil
}

// releaseService frees what a deleted service had.
func releaseService(ctx context.Context, c *call, old Object) {
	if svc, ok := old.(*corev1.Service); ok {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		(&allocation{s: c.s, svc: svc}).release(ctx, reservationsOf(svc))
	}
}

// keepAllocated lets an update that does not speak of addresses and ports keep
// those that the service has.
func keepAllocated(svc, was *corev1.Service) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || was.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	if svc.Spec.ClusterIP == "" && len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIP, svc.Spec.ClusterIPs = was.Spec.ClusterIP, slices.Clone(was.Spec.ClusterIPs)
	}
	if !wantsNodePorts(svc) {
		return
	}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		for _, o := range was.Spec.Ports {
			if p.NodePort == 0 && o.Port == p.Port && o.Protocol == p.Protocol {
				p.NodePort = o.NodePort
			}
		}
	}
}

func wantsNodePorts(svc *corev1.Service) bool {
	switch svc.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return false
}

// allocation is the reservations of one write of a service.
type allocation struct {
	s     *Server
	svc   *corev1.Service
	had   []reservation
	taken []reservation // by this write
}

func (a *allocation) run(ctx context.Context) error {
	spec := &a.svc.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if spec.ClusterIP != corev1.ClusterIPNone {
		if err := a.addresses(ctx); err != nil {
			return err
		}
	}
	for i := range spec.Ports {
		if err := a.port(ctx, i); err != nil {
			return err
		}
	}
	return a.healthPort(ctx)
}

// addresses reserves one address for each of the service's families: those that
// it names, and any for the others.
func (a *allocation) addresses(ctx context.Context) error {
	spec := &a.svc.Spec
	for i, family := range spec.IPFamilies {
		if i < len(spec.ClusterIPs) {
			if err := a.address(ctx, family, spec.ClusterIPs[i]); err != nil {
				return err
			}
			continue
		}
		ip, err := a.anyAddress(ctx, family)
		if err != nil {
			return err
		}
		spec.ClusterIPs = append(slices.Clone(spec.ClusterIPs), ip)
	}
	if len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	return nil
}

// healthPort reserves the health check port of a service that is to have one.
func (a *allocation) healthPort(ctx context.Context) error {
	spec := &a.svc.Spec
	path := field.NewPath("spec", "healthCheckNodePort")
	if spec.HealthCheckNodePort != 0 {
		return a.namedPort(ctx, healthReservation(spec.HealthCheckNodePort), spec.HealthCheckNodePort, path)
	}
	if spec.Type != corev1.ServiceTypeLoadBalancer || spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return nil
	}
	number, err := a.anyPort(ctx, corev1.ProtocolTCP)
	spec.HealthCheckNodePort = number
	return err
}

func (a *allocation) invalid(path *field.Path, value any, why string) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), a.svc.Name, field.ErrorList{field.Invalid(path, value, why)})
}

// address reserves the address that the service names.
func (a *allocation) address(ctx context.Context, family corev1.IPFamily, ip string) error {
	refuse := func(why string) error {
		return a.invalid(field.NewPath("spec", "clusterIPs"), a.svc.Spec.ClusterIPs, "failed to allocate IP "+ip+": "+why)
	}
	if slices.Contains(a.had, reservation{addressResource, ip}) {
		return nil
	}
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return nil // validation says it better
	}
	if ranges := a.s.serviceRanges(family); !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return refuse("the provided network does not match the current range: The range of valid IPs is " + strings.Trim(fmt.Sprint(ranges), "[]"))
	}
	if owner, ok := a.s.reserved(addr); ok && owner != a.svc.Namespace+"/"+a.svc.Name {
		return refuse("provided IP is reserved for " + owner)
	}
	err = a.take(ctx, reservation{addressResource, addr.String()})
	if errors.Is(err, ErrExists) {
		return refuse("provided IP is already allocated")
	}
	return storageError(err, services.GroupResource(), a.svc.Name)
}

// reserved says which service alone may have an address.
func (s *Server) reserved(addr netip.Addr) (owner string, ok bool) {
	switch addr {
	case nth(s.cfg.ServiceCIDR, 1):
		return metav1.NamespaceDefault + "/" + kubernetesService, true
	case nth(s.cfg.ServiceCIDR, 10):
		return metav1.NamespaceSystem + "/" + dnsServiceName, true
	}
	return "", false
}

// nth is the nth address of a prefix.
func nth(p netip.Prefix, n uint64) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// serviceRanges is where ClusterIPs of a family come from: the range with which
// the cluster was founded, and those of the ServiceCIDRs that are ready, in the
// order of their names.
func (s *Server) serviceRanges(family corev1.IPFamily) []netip.Prefix {
	all := []netip.Prefix{s.cfg.ServiceCIDR}
	if family != s.families()[0] {
		all[0] = s.cfg.ServiceCIDR6
	}
	records, _ := s.cfg.Storage.List(serviceCIDRResource, "")
	for _, rec := range records {
		c, ok := rec.Object().(*networkingv1.ServiceCIDR)
		if !ok || c.DeletionTimestamp != nil || !meta.IsStatusConditionTrue(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
			continue
		}
		for _, text := range c.Spec.CIDRs {
			p, err := netip.ParsePrefix(text)
			if err == nil && familyOf(p.Addr()) == family && !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

// anyAddress reserves some free address of a family, of the first range that
// has one.
func (a *allocation) anyAddress(ctx context.Context, family corev1.IPFamily) (string, error) {
	if !a.s.cfg.ServiceCIDR.IsValid() {
		return "", apierrors.NewInternalError(errors.New("no range of service addresses is configured"))
	}
	ranges := a.s.serviceRanges(family)
	for _, cidr := range ranges {
		ip, err := a.anyOf(ctx, cidr)
		if !errors.Is(err, errNoneFree) {
			return ip, err
		}
	}
	return "", apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: range %s is full", strings.Trim(fmt.Sprint(ranges), "[]")))
}

// anyOf reserves some free address of a range. Those at its bottom are left to
// services that name theirs, as long as there are others.
func (a *allocation) anyOf(ctx context.Context, cidr netip.Prefix) (string, error) {
	bits := min(cidr.Addr().BitLen()-cidr.Bits(), 32)
	size := uint64(1) << bits
	low := min(max(16, size/16), 256)
	if low+1 >= size {
		low = 0
	}
	ip, err := a.any(ctx, low, size-1, func(n uint64) (reservation, bool) {
		addr := nth(cidr, n)
		_, taken := a.s.reserved(addr)
		return reservation{addressResource, addr.String()}, !taken && n > 0
	})
	return ip.name, err
}

var errNoneFree = errors.New("none is free")

// any reserves one of the numbers up to last: one above low if there is.
func (a *allocation) any(ctx context.Context, low, last uint64, at func(uint64) (reservation, bool)) (reservation, error) {
	try := func(n uint64) (reservation, bool, error) {
		r, ok := at(n)
		if !ok || a.s.cfg.Storage.Get(r.resource, "", r.name) != nil {
			return r, false, nil
		}
		err := a.take(ctx, r)
		if errors.Is(err, ErrExists) {
			return r, false, nil
		}
		return r, err == nil, storageError(err, services.GroupResource(), a.svc.Name)
	}
	for range randomTries {
		if r, ok, err := try(low + randomBelow(last-low)); ok || err != nil {
			return r, err
		}
	}
	for _, span := range [][2]uint64{{low, last}, {0, low}} {
		for n := span[0]; n < span[1]; n++ {
			if r, ok, err := try(n); ok || err != nil {
				return r, err
			}
		}
	}
	return reservation{}, errNoneFree
}

func randomBelow(n uint64) uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails
	return binary.BigEndian.Uint64(b[:]) % max(n, 1)
}

// port reserves the node port of the service's ith port, if it is to have one.
func (a *allocation) port(ctx context.Context, i int) error {
	p := &a.svc.Spec.Ports[i]
	if p.NodePort == 0 && !wantsNodePorts(a.svc) {
		return nil
	}
	if p.NodePort != 0 {
		return a.namedPort(ctx, portReservation(*p), p.NodePort, field.NewPath("spec", "ports").Index(i).Child("nodePort"))
	}
	number, err := a.anyPort(ctx, p.Protocol)
	p.NodePort = number
	return err
}

// namedPort reserves the port that the service names.
func (a *allocation) namedPort(ctx context.Context, r reservation, number int32, path *field.Path) error {
	if slices.Contains(a.had, r) || slices.Contains(a.taken, r) {
		return nil
	}
	if number < firstNodePort || number > lastNodePort {
		return a.invalid(path, number, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %d-%d", firstNodePort, lastNodePort))
	}
	err := a.take(ctx, r)
	if errors.Is(err, ErrExists) {
		return a.invalid(path, number, "provided port is already allocated")
	}
	return storageError(err, services.GroupResource(), a.svc.Name)
}

// anyPort reserves some free port of all nodes.
func (a *allocation) anyPort(ctx context.Context, protocol corev1.Protocol) (int32, error) {
	number := int32(0)
	_, err := a.any(ctx, 86, lastNodePort-firstNodePort+1, func(n uint64) (reservation, bool) {
		number = firstNodePort + int32(n)
		return portReservation(corev1.ServicePort{Protocol: protocol, NodePort: number}), true
	})
	if errors.Is(err, errNoneFree) {
		return 0, apierrors.NewInternalError(errors.New("failed to allocate a nodePort: range is full"))
	}
	return number, err
}

// take reserves, or returns ErrExists. What is reserved for this very service
// already, by a write that failed half way, is its own.
func (a *allocation) take(ctx context.Context, r reservation) error {
	owner := a.svc.Namespace + "/" + a.svc.Name
	meta := metav1.ObjectMeta{
		Name: r.name, UID: uuid.NewUUID(), CreationTimestamp: metav1.NewTime(a.s.cfg.Now().Truncate(time.Second)),
		Annotations: map[string]string{ownerAnnotation: owner},
	}
	var obj Object = &metav1.PartialObjectMetadata{TypeMeta: typeMeta(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata")), ObjectMeta: meta}
	if r.resource == addressResource {
		family := string(corev1.IPv4Protocol)
		if strings.Contains(r.name, ":") {
			family = string(corev1.IPv6Protocol)
		}
		meta.Labels = map[string]string{networkingv1.LabelIPAddressFamily: family, networkingv1.LabelManagedBy: "ipallocator.k8s.io"}
		obj = &networkingv1.IPAddress{
			TypeMeta: typeMeta(networkingv1.SchemeGroupVersion.WithKind("IPAddress")), ObjectMeta: meta,
			Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: a.svc.Namespace, Name: a.svc.Name}},
		}
	}
	_, err := a.s.cfg.Storage.Write(ctx, Write{Verb: Create, Resource: r.resource, Name: r.name, Object: obj})
	if err == nil {
		a.taken = append(a.taken, r)
		return nil
	}
	if errors.Is(err, ErrExists) {
		rec := a.s.cfg.Storage.Get(r.resource, "", r.name)
		if rec != nil && rec.Object().GetAnnotations()[ownerAnnotation] == owner && a.s.cfg.Storage.Get(services.Resource, a.svc.Namespace, a.svc.Name) == nil {
			return nil
		}
	}
	return err
}

// release gives back; what fails is left to repair.
func (a *allocation) release(ctx context.Context, all []reservation) {
	for _, r := range all {
		_, err := a.s.cfg.Storage.Write(ctx, Write{Verb: Delete, Resource: r.resource, Name: r.name})
		if err != nil && !errors.Is(err, ErrNotFound) {
			a.s.log.Warn("reservation of a service left to repair", "reservation", r.name, "service", a.svc.Namespace+"/"+a.svc.Name, "error", err)
		}
	}
}

// repairLoop looks from time to time for reservations of services that are
// gone, and reserves again what a service has without one.
func (s *Server) repairLoop(ctx context.Context) error {
	t := time.NewTicker(repairEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			if err := s.repair(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("repair of service addresses failed", "error", err)
			}
		}
	}
}

// repair makes the reservations agree with the services.
func (s *Server) repair(ctx context.Context) error {
	if err := s.cfg.Storage.Sync(ctx); err != nil {
		return fmt.Errorf("repair service addresses: %w", err)
	}
	held := map[reservation]*corev1.Service{}
	all, _ := s.cfg.Storage.List(services.Resource, "")
	for _, rec := range all {
		if svc, ok := rec.Object().(*corev1.Service); ok {
			for _, r := range reservationsOf(svc) {
				held[r] = svc
			}
		}
	}
	for _, resource := range []string{addressResource, portResource} {
		records, _ := s.cfg.Storage.List(resource, "")
		for _, rec := range records {
			obj := rec.Object()
			r := reservation{resource, obj.GetName()}
			_, used := held[r]
			delete(held, r)
			ours := obj.GetAnnotations()[ownerAnnotation] != ""
			if used || !ours || s.cfg.Now().Sub(obj.GetCreationTimestamp().Time) < reservationAge {
				continue
			}
			_, err := s.cfg.Storage.Write(ctx, Write{Verb: Delete, Resource: resource, Name: obj.GetName(), Version: rec.Revision()})
			if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
				return fmt.Errorf("free %s: %w", obj.GetName(), err)
			}
		}
	}
	for r, svc := range held {
		a := &allocation{s: s, svc: svc}
		if err := a.take(ctx, r); err != nil && !errors.Is(err, ErrExists) {
			return fmt.Errorf("reserve %s again for %s/%s: %w", r.name, svc.Namespace, svc.Name, err)
		}
	}
	return nil
}

// LoadBalancerClass is the class of the load balancer that is built in, which
// also serves services that name no class.
const LoadBalancerClass = "conclave.io/load-balancer"

// OwnLoadBalancer says whether a service of type LoadBalancer is the built-in
// load balancer's to look after.
func OwnLoadBalancer(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		(svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass == LoadBalancerClass)
}
