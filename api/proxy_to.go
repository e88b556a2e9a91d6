package api

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	gopath "path"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// proxy hands a request on to a port of a node, pod or service.
func (x *exchange) proxy(ctx context.Context, c *call) error {
	prefix := strings.TrimSuffix(x.r.URL.Path, x.target.rest)
	if err := x.connects(ctx, c); err != nil {
		return err
	}
	name, port, scheme := splitProxyName(c.name)
	one := *c
	one.name = name
	rec, err := one.get(ctx, metav1.GetOptions{}, true)
	if err != nil {
		return err
	}
	path := x.target.rest
	if path == "" {
		// A page's relative links lead below it only if its own path ends so.
		if x.r.Header.Get("Upgrade") == "" && (x.r.Method == http.MethodGet || x.r.Method == http.MethodHead) {
			to := url.URL{Path: x.r.URL.Path + "/", RawQuery: x.r.URL.RawQuery}
			x.w.Header().Set("Location", to.String())
			x.w.WriteHeader(http.StatusMovedPermanently)
			return nil
		}
		path = "/"
	}
	var host string
	switch obj := rec.Object().(type) {
	case *corev1.Node:
		if port == "" || port == "10250" {
			if err := x.mayRun(ctx, path); err != nil {
				return err
			}
			base, rt, err := x.s.kubelet(ctx, name)
			if err != nil {
				return err
			}
			x.forward(base, path, x.query, rt, nil)
			return nil
		}
		host = net.JoinHostPort(nodeAddress(obj), port)
	case *corev1.Pod:
		if obj.Status.PodIP == "" {
			return apierrors.NewServiceUnavailable(fmt.Sprintf("pod %s has no address yet", name))
		}
		if port == "" {
			port = firstPort(obj)
		}
		host = net.JoinHostPort(obj.Status.PodIP, podPort(obj, port))
	case *corev1.Service:
		if host, err = x.s.serviceBackend(obj, port); err != nil {
			return err
		}
	default:
		return errNoSuchPath
	}
	direct := &http.Transport{
		DialContext: x.s.dialPod, DisableKeepAlives: true,
		// A pod's certificate is its own affair: it names nothing that we know.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	if x.r.Method == http.MethodGet && x.r.Header.Get("Range") == "" {
		x.r.Header.Del("Accept-Encoding") // the transport asks for what it can undo
	}
	x.forward(&url.URL{Scheme: scheme, Host: host}, path, x.query, direct, behind(prefix))
	return nil
}

// mayRun refuses a request to the kubelet API that runs a command or connects to
// a container, if its user may only read: a WebSocket begins with a GET.
func (x *exchange) mayRun(ctx context.Context, path string) error {
	first, _, _ := strings.Cut(strings.TrimPrefix(gopath.Clean("/"+path), "/"), "/")
	if x.target.Verb != "get" || !slices.Contains([]string{"exec", "attach", "portForward"}, first) {
		return nil
	}
	also := x.target.Attributes
	also.Verb = "create"
	return x.s.authorize(ctx, x.user, also)
}

// dialPod reaches a pod or node. An object may name any address; those that
// mean this host itself, or a cloud's metadata, are not for who reads it.
func (s *Server) dialPod(ctx context.Context, network, address string) (net.Conn, error) {
	if s.cfg.Dial != nil {
		return s.cfg.Dial(ctx, network, address)
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	if ip := at.Addr().Unmap(); ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() {
		return nil, fmt.Errorf("address %s is not proxied to", ip)
	}
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, address)
}

// splitProxyName reads "name", "name:port" and "scheme:name:port".
func splitProxyName(s string) (name, port, scheme string) {
	parts := strings.Split(s, ":")
	switch len(parts) {
	case 2:
		return parts[0], parts[1], "http"
	case 3:
		scheme = parts[0]
		if scheme != "https" {
			scheme = "http"
		}
		return parts[1], parts[2], scheme
	}
	return s, "", "http"
}

func nodeAddress(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return ""
}

func firstPort(p *corev1.Pod) string {
	for _, ct := range p.Spec.Containers {
		for _, port := range ct.Ports {
			return strconv.Itoa(int(port.ContainerPort))
		}
	}
	return "80"
}

// podPort is the number of a port that may be named.
func podPort(p *corev1.Pod, port string) string {
	for _, ct := range p.Spec.Containers {
		for _, cp := range ct.Ports {
			if cp.Name == port {
				return strconv.Itoa(int(cp.ContainerPort))
			}
		}
	}
	return port
}

// serviceBackend is the address of one ready backend of a service's port.
func (s *Server) serviceBackend(svc *corev1.Service, port string) (string, error) {
	unavailable := func() (string, error) {
		return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", svc.Name))
	}
	if port == "" && len(svc.Spec.Ports) == 1 {
		port = svc.Spec.Ports[0].Name
	}
	for _, p := range svc.Spec.Ports {
		if strconv.Itoa(int(p.Port)) == port {
			port = p.Name
			break
		}
	}
	all, _ := s.cfg.Storage.List("endpointslices.discovery.k8s.io", svc.Namespace)
	var ready []string
	for _, rec := range all {
		slice, ok := rec.Object().(*discoveryv1.EndpointSlice)
		if !ok || slice.Labels[discoveryv1.LabelServiceName] != svc.Name || slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || ptr.Deref(p.Name, "") != port || ptr.Deref(p.Protocol, corev1.ProtocolTCP) != corev1.ProtocolTCP {
				continue
			}
			for _, e := range slice.Endpoints {
				if len(e.Addresses) > 0 && ptr.Deref(e.Conditions.Ready, true) {
					ready = append(ready, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	if len(ready) == 0 {
		return unavailable()
	}
	return ready[randomBelow(uint64(len(ready)))], nil
}
