package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// toNode answers by handing the request on: to the kubelet API of the pod's
// node, or for proxies to the pod or node itself.
func (x *exchange) toNode(ctx context.Context, c *call) error {
	if c.sub == "proxy" {
		return x.proxy(ctx, c)
	}
	if c.res.gvr != pods || c.name == "" {
		return errNoSuchPath
	}
	wanted := http.MethodGet
	if c.sub == "log" && x.r.Method != wanted || c.sub != "log" && x.r.Method != wanted && x.r.Method != http.MethodPost {
		return x.methodNotAllowed()
	}
	rec, err := c.get(ctx, metav1.GetOptions{}, true)
	if err != nil {
		return err
	}
	pod := rec.Object().(*corev1.Pod)
	path, query, err := kubeletRequest(c.sub, pod, x.query)
	if err != nil {
		return err
	}
	if pod.Spec.NodeName == "" {
		if c.sub == "log" { // it has said nothing yet
			x.format.media = "text/plain"
			return x.bytes(http.StatusOK, nil)
		}
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	base, rt, err := x.kubelet(ctx, pod.Spec.NodeName)
	if err != nil {
		return err
	}
	x.forward(base, path, query, rt)
	return nil
}

func (x *exchange) kubelet(ctx context.Context, node string) (*url.URL, http.RoundTripper, error) {
	if x.s.cfg.Nodes == nil {
		return nil, nil, apierrors.NewServiceUnavailable("this server does not reach nodes")
	}
	base, rt, err := x.s.cfg.Nodes.Kubelet(ctx, node)
	if err != nil {
		return nil, nil, apierrors.NewServiceUnavailable(fmt.Sprintf("node %q cannot be reached: %v", node, err))
	}
	return base, rt, nil
}

// kubeletRequest is the kubelet's path and query for a request of a pod's
// subresource.
func kubeletRequest(sub string, pod *corev1.Pod, query url.Values) (string, url.Values, error) {
	decode := func(into runtime.Object) error {
		if err := decodeQuery(query, into); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		return nil
	}
	at := func(verb, container string) string {
		p := "/" + verb + "/" + url.PathEscape(pod.Namespace) + "/" + url.PathEscape(pod.Name)
		if container != "" {
			p += "/" + url.PathEscape(container)
		}
		return p
	}
	streams := func(in, out, err, tty bool) url.Values {
		q := url.Values{}
		for name, on := range map[string]bool{"input": in, "output": out, "error": err, "tty": tty} {
			if on {
				q.Set(name, "1")
			}
		}
		return q
	}
	switch sub {
	case "log":
		var o corev1.PodLogOptions
		if err := decode(&o); err != nil {
			return "", nil, err
		}
		if o.TailLines != nil && *o.TailLines < 0 || o.SinceSeconds != nil && *o.SinceSeconds < 1 || o.LimitBytes != nil && *o.LimitBytes < 1 {
			return "", nil, apierrors.NewBadRequest("tailLines must not be negative; sinceSeconds and limitBytes must be at least 1")
		}
		container, err := containerOf(pod, o.Container)
		return at("containerLogs", container), logQuery(o), err
	case "exec":
		var o corev1.PodExecOptions
		if err := decode(&o); err != nil {
			return "", nil, err
		}
		if len(o.Command) == 0 {
			return "", nil, apierrors.NewBadRequest("you must specify at least 1 command for the container")
		}
		container, err := containerOf(pod, o.Container)
		q := streams(o.Stdin, o.Stdout, o.Stderr, o.TTY)
		q["command"] = o.Command
		return at("exec", container), q, err
	case "attach":
		var o corev1.PodAttachOptions
		if err := decode(&o); err != nil {
			return "", nil, err
		}
		container, err := containerOf(pod, o.Container)
		return at("attach", container), streams(o.Stdin, o.Stdout, o.Stderr, o.TTY), err
	}
	q := url.Values{}
	if p := query["ports"]; len(p) > 0 {
		q["port"], q["ports"] = p, p
	}
	return at("portForward", ""), q, nil
}

func logQuery(o corev1.PodLogOptions) url.Values {
	q := url.Values{}
	for name, on := range map[string]bool{"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps} {
		if on {
			q.Set(name, "true")
		}
	}
	if o.SinceSeconds != nil {
		q.Set("sinceSeconds", strconv.FormatInt(*o.SinceSeconds, 10))
	}
	if o.SinceTime != nil {
		q.Set("sinceTime", o.SinceTime.UTC().Format(time.RFC3339))
	}
	if o.TailLines != nil {
		q.Set("tailLines", strconv.FormatInt(*o.TailLines, 10))
	}
	if o.LimitBytes != nil {
		q.Set("limitBytes", strconv.FormatInt(*o.LimitBytes, 10))
	}
	if o.Stream != nil {
		q.Set("stream", *o.Stream)
	}
	return q
}

// containerOf is the container that a request means: the one it names, or the
// only one, or the one that the pod's author prefers.
func containerOf(pod *corev1.Pod, name string) (string, error) {
	var names, inits []string
	for _, ct := range pod.Spec.Containers {
		names = append(names, ct.Name)
	}
	for _, ct := range pod.Spec.InitContainers {
		inits = append(inits, ct.Name)
	}
	if name == "" {
		if len(names) == 1 {
			return names[0], nil
		}
		msg := fmt.Sprintf("a container name must be specified for pod %s, choose one of: [%s]", pod.Name, strings.Join(names, " "))
		if len(inits) > 0 {
			msg += fmt.Sprintf(" or one of the init containers: [%s]", strings.Join(inits, " "))
		}
		return "", apierrors.NewBadRequest(msg)
	}
	for _, n := range append(names, inits...) {
		if n == name {
			return n, nil
		}
	}
	for _, ct := range pod.Spec.EphemeralContainers {
		if ct.Name == name {
			return name, nil
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
}

// forward hands the request on and the answer back, whatever protocol the two
// ends change to.
func (x *exchange) forward(base *url.URL, path string, query url.Values, rt http.RoundTripper) {
	p := &httputil.ReverseProxy{
		Transport:     rt,
		FlushInterval: -1, // logs that are followed come line by line
		ErrorLog:      slog.NewLogLogger(x.s.log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = base.Scheme, base.Host
			r.Out.URL.Path, r.Out.URL.RawPath = strings.TrimSuffix(base.Path, "/")+path, ""
			r.Out.URL.RawQuery = query.Encode()
			r.Out.Host = base.Host
			// The client's credentials are for us alone.
			for name := range r.Out.Header {
				if name == "Authorization" || strings.HasPrefix(name, "Impersonate-") {
					r.Out.Header.Del(name)
				}
			}
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return
			}
			x.fail(apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err)))
		},
	}
	p.ServeHTTP(x.w, x.r)
}

// proxy hands a request on to a port of a node, pod or service.
func (x *exchange) proxy(ctx context.Context, c *call) error {
	name, port, scheme := splitProxyName(c.name)
	one := *c
	one.name = name
	rec, err := one.get(ctx, metav1.GetOptions{}, true)
	if err != nil {
		return err
	}
	path := x.target.rest
	if path == "" {
		path = "/"
	}
	direct := &http.Transport{DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, DisableKeepAlives: true}
	var host string
	switch obj := rec.Object().(type) {
	case *corev1.Node:
		if port == "" || port == "10250" {
			base, rt, err := x.kubelet(ctx, name)
			if err != nil {
				return err
			}
			x.forward(base, path, x.query, rt)
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
		if host, err = x.serviceBackend(obj, port); err != nil {
			return err
		}
	default:
		return errNoSuchPath
	}
	x.forward(&url.URL{Scheme: scheme, Host: host}, path, x.query, direct)
	return nil
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
func (x *exchange) serviceBackend(svc *corev1.Service, port string) (string, error) {
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
	rec := x.s.cfg.Storage.Get("endpoints", svc.Namespace, svc.Name)
	if rec == nil {
		return unavailable()
	}
	for _, set := range rec.Object().(*corev1.Endpoints).Subsets {
		for _, p := range set.Ports {
			if p.Name == port && len(set.Addresses) > 0 {
				return net.JoinHostPort(set.Addresses[0].IP, strconv.Itoa(int(p.Port))), nil
			}
		}
	}
	return unavailable()
}
