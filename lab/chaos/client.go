package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// apiPort is where every node serves Kubernetes' API.
const apiPort = "6443"

// namespace holds all that the drill makes in the cluster.
const namespace = "chaos"

// apiClient talks to the API of one host, and to no other. It speaks HTTP/1.1:
// a request that gets no answer costs one connection and not those of others.
type apiClient struct {
	http *http.Client
	base func() string // the address may change
}

// newAPIClient is a client with the credentials of a kubeconfig.
func newAPIClient(kubeconfig []byte, base func() string) (*apiClient, error) {
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	tls.NextProtos = []string{"http/1.1"}
	return &apiClient{base: base, http: &http.Client{Transport: &http.Transport{
		TLSClientConfig: tls, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: 30 * time.Second,
		DisableCompression: true,
	}}}, nil
}

// hostURL is the API of a host at an address.
func hostURL(address string) string { return "https://" + net.JoinHostPort(address, apiPort) }

func reader(body []byte) io.Reader {
	if body == nil {
		return nil
	}
	return bytes.NewReader(body)
}

// statusError is an answer that is no success.
type statusError struct {
	code   int
	status metav1.Status
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %s", e.code, e.status.Message) }

// call sends one request and decodes the answer into out, if that is not nil.
func (c *apiClient) call(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, c.base()+path, reader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "conclave-lab-chaos")
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		failed := &statusError{code: response.StatusCode}
		if json.Unmarshal(raw, &failed.status) != nil || failed.status.Message == "" {
			failed.status.Message = string(raw)
		}
		return failed
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// answered is the HTTP status of an error that is an answer, else 0.
func answered(err error) int {
	if failed, ok := errors.AsType[*statusError](err); ok {
		return failed.code
	}
	return 0
}

// unsent says that a request never left: nobody was there to take it.
func unsent(err error) bool {
	dial, ok := errors.AsType[*net.OpError](err)
	return ok && dial.Op == "dial" || errors.Is(err, syscall.ECONNREFUSED)
}

const configMaps = "/api/v1/namespaces/" + namespace + "/configmaps"

// valueKey is where a register keeps its value.
const valueKey = "v"

// client uses registers (ConfigMaps) by way of one host, one operation at a
// time, and notes each.
type client struct {
	number int
	host   string
	api    *apiClient
	rng    *rand.Rand
	keys   *keyring
	note   func(Op)
	since  func() time.Duration
	limit  time.Duration // of one operation
	pause  time.Duration // at most, between two

	seen  map[string]seen // newest that this client has read or written
	count int
}

type seen struct {
	value    string
	revision string
}

// run works until the context ends; an operation under way is finished.
func (c *client) run(ctx context.Context) {
	c.seen = map[string]seen{}
	for {
		select {
		case <-time.After(time.Duration(c.rng.Int64N(int64(c.pause)))):
		case <-ctx.Done():
			return
		}
		key, release := c.keys.take(c.rng)
		op := c.operate(context.WithoutCancel(ctx), key)
		c.note(op)
		release(op.Outcome == Open)
	}
}

// operate draws an operation on a register and carries it out.
func (c *client) operate(ctx context.Context, key string) Op {
	c.count++
	op := Op{Client: c.number, Host: c.host, Key: key, Verb: Read}
	known, have := c.seen[key]
	switch n := c.rng.IntN(100); {
	case n < 40:
	case n < 55:
		op.Verb = Create
	case n < 75:
		op.Verb = Write
	case n < 95 && have && known.revision != "":
		op.Verb, op.Expect = Swap, known.value
	case n < 95:
		op.Verb = Write
	default:
		op.Verb = Delete
	}
	if op.Verb.writes() && op.Verb != Delete {
		op.Value = fmt.Sprintf("%d.%d", c.number, c.count)
	}
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	op.Call = c.since()
	after, err := c.do(ctx, op, known)
	op.Return = c.since()
	op.conclude(err)
	switch {
	case op.Outcome == Done && op.Verb == Delete, op.Outcome == Missing:
		delete(c.seen, key)
	case op.Outcome == Done:
		c.seen[key] = seen{after.Data[valueKey], after.ResourceVersion}
		op.Revision, op.Got = after.ResourceVersion, after.Data[valueKey]
	}
	return op
}

func (c *client) do(ctx context.Context, op Op, known seen) (after corev1.ConfigMap, err error) {
	object := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: op.Key, Namespace: namespace}, Data: map[string]string{valueKey: op.Value},
	}
	path := configMaps + "/" + op.Key
	switch op.Verb {
	case Read:
		err = c.api.call(ctx, http.MethodGet, path, nil, &after)
	case Create:
		err = c.api.call(ctx, http.MethodPost, configMaps, object, &after)
	case Delete:
		err = c.api.call(ctx, http.MethodDelete, path, nil, nil)
	case Write:
		err = c.api.call(ctx, http.MethodPut, path, object, &after)
	case Swap:
		object.ResourceVersion = known.revision
		err = c.api.call(ctx, http.MethodPut, path, object, &after)
	}
	return after, err
}
