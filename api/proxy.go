package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/streaming/pkg/httpstream/wsstream"
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
	if c.sub != "log" {
		if x.target.Verb == "get" {
			// A WebSocket begins with a GET, whoever may only read may not therefore
			// run programs: what a POST needs, this needs, too.
			also := x.target.Attributes
			also.Verb = "create"
			if err := x.s.authorize(ctx, x.user, also); err != nil {
				return err
			}
		}
		if err := x.connects(ctx, c); err != nil {
			return err
		}
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
	base, rt, err := x.s.kubelet(ctx, pod.Spec.NodeName)
	if err != nil {
		return err
	}
	if c.sub == "log" && wsstream.IsWebSocketRequest(x.r) {
		return x.logToWebSocket(ctx, base, path, query, rt)
	}
	x.forward(base, path, query, rt, kubeletRefusal)
	return nil
}

// kubeletRefusal is a kubelet's refusal, which is plain text, as the error that
// clients know how to show; nil for anything else.
func kubeletRefusal(resp *http.Response) error {
	if resp.StatusCode < http.StatusBadRequest || strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		return nil
	}
	defer resp.Body.Close()
	const enough = 10 << 10
	body, err := io.ReadAll(io.LimitReader(resp.Body, enough))
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read the node's refusal: %w", err))
	}
	text := strings.TrimSpace(string(body))
	switch resp.StatusCode {
	case http.StatusBadRequest:
		return apierrors.NewBadRequest(text)
	case http.StatusInternalServerError:
		return apierrors.NewInternalError(errors.New(text))
	case http.StatusNotFound:
		e := apierrors.NewNotFound(schema.GroupResource{}, "")
		e.ErrStatus.Message, e.ErrStatus.Details = text, nil
		return e
	}
	return apierrors.NewGenericServerResponse(resp.StatusCode, "", schema.GroupResource{}, "", text, 0, true)
}

// logToWebSocket sends a log as the messages of a WebSocket.
func (x *exchange) logToWebSocket(ctx context.Context, base *url.URL, path string, query url.Values, rt http.RoundTripper) error {
	at := *base
	at.Path, at.RawQuery = strings.TrimSuffix(base.Path, "/")+path, query.Encode()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return unreachable(err)
	}
	if err := kubeletRefusal(resp); err != nil {
		return err
	}
	defer resp.Body.Close()
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, p := range c.Protocol {
				if p == "" || p == binaryMessages || p == base64Messages {
					c.Protocol = []string{p}
					return nil
				}
			}
			if len(c.Protocol) > 0 {
				return websocket.ErrBadWebSocketProtocol
			}
			return nil
		},
		Handler: func(conn *websocket.Conn) {
			go func() { // ends with the connection
				defer cancel()
				_, _ = io.Copy(io.Discard, conn) // clients have nothing to say
			}()
			conn.PayloadType = websocket.BinaryFrame
			var to io.Writer = conn
			if slices.Contains(conn.Config().Protocol, base64Messages) {
				conn.PayloadType, to = websocket.TextFrame, base64Writer{conn}
			}
			// An empty message tells the client that it is connected.
			if _, err := conn.Write(nil); err != nil {
				return
			}
			if _, err := io.Copy(to, resp.Body); err != nil {
				x.s.log.Debug("a log could not be sent whole", "path", x.r.URL.Path, "err", err)
			}
		},
	}.ServeHTTP(x.w, x.r)
	return nil
}

// The protocols of a WebSocket that carries one stream.
const (
	binaryMessages = "binary.k8s.io"
	base64Messages = "base64.binary.k8s.io"
)

// base64Writer encodes each message for itself.
type base64Writer struct{ w io.Writer }

func (b base64Writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(b.w, base64.StdEncoding.EncodeToString(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func unreachable(err error) error {
	return apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err))
}

func (s *Server) kubelet(ctx context.Context, node string) (*url.URL, http.RoundTripper, error) {
	if s.cfg.Nodes == nil {
		return nil, nil, apierrors.NewServiceUnavailable("this server does not reach nodes")
	}
	base, rt, err := s.cfg.Nodes.Kubelet(ctx, node)
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
// only one. Which of several its author prefers is kubectl's business.
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
// ends change to. An answer that refused finds an error in is not handed back,
// the error is. Those in tell have the last word on the request's header.
func (x *exchange) forward(base *url.URL, path string, query url.Values, rt http.RoundTripper, refused func(*http.Response) error, tell ...func(http.Header)) {
	p := &httputil.ReverseProxy{
		Transport:      rt,
		ModifyResponse: refused,
		FlushInterval:  -1, // logs that are followed come line by line
		ErrorLog:       slog.NewLogLogger(x.s.log.Handler(), slog.LevelDebug),
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
			for _, f := range tell {
				f(r.Out.Header)
			}
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return
			}
			var status apierrors.APIStatus
			if !errors.As(err, &status) {
				err = unreachable(err)
			}
			x.fail(err)
		},
	}
	p.ServeHTTP(x.w, x.r)
}
