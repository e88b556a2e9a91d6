package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// The largest event of a watch: an object, and its previous life in managed
// fields, with room.
const maxFrame = 16 << 20

// NewHTTP is a client of the server at base, by way of rt, which knows the
// certificates. It speaks protobuf for the kinds of Scheme that have it and
// JSON for all others.
func NewHTTP(base *url.URL, rt http.RoundTripper) Client {
	return &httpClient{base: base, rt: rt}
}

type httpClient struct {
	base *url.URL
	rt   http.RoundTripper
}

// accept asks for protobuf where the kind is known. Errors and lists follow.
const acceptAll = mediaProtobuf + "," + mediaJSON

func (c *httpClient) url(r schema.GroupVersionResource, namespace, name string, query url.Values, sub ...string) *url.URL {
	u := *c.base
	parts := []string{strings.TrimSuffix(u.Path, "/"), "apis", r.Group, r.Version}
	if r.Group == "" {
		parts = []string{strings.TrimSuffix(u.Path, "/"), "api", r.Version}
	}
	// A namespace's own path has no namespace before it.
	if namespace != "" && r.Resource != namespaces.Resource {
		parts = append(parts, "namespaces", namespace)
	}
	parts = append(parts, r.Resource)
	if name != "" {
		parts = append(append(parts, name), sub...)
	}
	u.Path, u.RawQuery = strings.Join(parts, "/"), query.Encode()
	return &u
}

// query writes one of metav1's option types into query parameters.
func query(options runtime.Object) (url.Values, error) {
	q, err := paramCodec().EncodeParameters(options, schema.GroupVersion{Version: "v1"})
	if err != nil {
		return nil, fmt.Errorf("encode options: %w", err)
	}
	return q, nil
}

// do sends a request and returns the answer, or the error that it carries.
func (c *httpClient) do(ctx context.Context, method string, u *url.URL, media string, body []byte) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), reader)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, u.Path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", media)
	}
	req.Header.Set("Accept", acceptAll)
	req.Header.Set("User-Agent", "conclave")
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, u.Path, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, responseError(resp, method)
}

// responseError is the error that an answer tells.
func responseError(resp *http.Response, method string) error {
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err == nil {
		obj, err := decodeAnswer(data, resp.Header.Get("Content-Type"))
		if status, ok := obj.(*metav1.Status); err == nil && ok && status.Status != metav1.StatusSuccess {
			return apierrors.FromObject(status)
		}
	}
	after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
	return apierrors.NewGenericServerResponse(resp.StatusCode, method, schema.GroupResource{}, "", string(bytes.TrimSpace(data)), after, true)
}

// decodeAnswer reads an object of whatever kind it says it is.
func decodeAnswer(data []byte, contentType string) (runtime.Object, error) {
	media, _, _ := strings.Cut(contentType, ";")
	if media == mediaProtobuf {
		obj, gvk, err := protobufCodec().Decode(data, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("decode the server's answer: %w", err)
		}
		obj.GetObjectKind().SetGroupVersionKind(*gvk)
		return obj, nil
	}
	obj, gvk, err := bodyCodecs()[mediaJSON][0].Decode(data, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		obj, _, err = unstructured.UnstructuredJSONScheme.Decode(data, nil, nil)
		return obj, err
	}
	if err != nil {
		return nil, fmt.Errorf("decode the server's answer: %w", err)
	}
	obj.GetObjectKind().SetGroupVersionKind(*gvk)
	return obj, nil
}

func (c *httpClient) read(resp *http.Response) (runtime.Object, error) {
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	return decodeAnswer(data, resp.Header.Get("Content-Type"))
}

// object sends a request that is answered with an object. A success that has
// nothing to show is answered with instead.
func (c *httpClient) object(ctx context.Context, method string, u *url.URL, media string, body []byte, instead Object) (Object, error) {
	resp, err := c.do(ctx, method, u, media, body)
	if err != nil {
		return nil, err
	}
	obj, err := c.read(resp)
	if err != nil {
		return nil, err
	}
	if o, ok := obj.(Object); ok {
		return o, nil
	}
	if _, ok := obj.(*metav1.Status); ok && instead != nil {
		return instead, nil
	}
	return nil, fmt.Errorf("%s %s: the server answered with a %T", method, u.Path, obj)
}

// encodeRequest is an object as the body of a request.
func encodeRequest(obj Object) (media string, body []byte, err error) {
	if _, ok := obj.(runtime.Unstructured); ok {
		body, err = json.Marshal(obj)
		return mediaJSON, body, err
	}
	gvk, err := kindOf(obj)
	if err != nil {
		return "", nil, err
	}
	if !inProtobuf(obj) {
		obj = obj.DeepCopyObject().(Object)
		obj.GetObjectKind().SetGroupVersionKind(gvk)
		body, err = json.Marshal(obj)
		return mediaJSON, body, err
	}
	raw, err := encodeRaw(obj)
	if err != nil {
		return "", nil, err
	}
	body, err = envelope(gvk, raw)
	return mediaProtobuf, body, err
}

func (c *httpClient) Get(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.GetOptions, sub ...string) (Object, error) {
	if name == "" {
		return nil, errors.New("resource name may not be empty")
	}
	q, err := query(&o)
	if err != nil {
		return nil, err
	}
	return c.object(ctx, http.MethodGet, c.url(r, namespace, name, q, sub...), "", nil, nil)
}

func (c *httpClient) List(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) ([]Object, metav1.ListMeta, error) {
	q, err := query(&o)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	resp, err := c.do(ctx, http.MethodGet, c.url(r, namespace, "", q), "", nil)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	list, err := c.read(resp)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return nil, metav1.ListMeta{}, fmt.Errorf("list %s: the server answered with a %T", r.GroupResource(), list)
	}
	var objects []Object
	err = meta.EachListItem(list, func(item runtime.Object) error {
		obj, ok := item.(Object)
		if !ok {
			return fmt.Errorf("list %s: item is a %T", r.GroupResource(), item)
		}
		objects = append(objects, obj)
		if obj.GetObjectKind().GroupVersionKind().Empty() {
			return setKind(obj)
		}
		return nil
	})
	return objects, metav1.ListMeta{ResourceVersion: m.GetResourceVersion(), Continue: m.GetContinue(), RemainingItemCount: m.GetRemainingItemCount()}, err
}

func (c *httpClient) Create(ctx context.Context, r schema.GroupVersionResource, namespace, name string, obj Object, o metav1.CreateOptions, sub ...string) (Object, error) {
	q, err := query(&o)
	if err != nil {
		return nil, err
	}
	media, body, err := encodeRequest(obj)
	if err != nil {
		return nil, err
	}
	if len(sub) == 0 {
		name = "" // a new object is posted to its collection
	}
	return c.object(ctx, http.MethodPost, c.url(r, namespace, name, q, sub...), media, body, obj)
}

func (c *httpClient) Update(ctx context.Context, r schema.GroupVersionResource, namespace string, obj Object, o metav1.UpdateOptions, sub ...string) (Object, error) {
	q, err := query(&o)
	if err != nil {
		return nil, err
	}
	media, body, err := encodeRequest(obj)
	if err != nil {
		return nil, err
	}
	return c.object(ctx, http.MethodPut, c.url(r, namespace, obj.GetName(), q, sub...), media, body, nil)
}

func (c *httpClient) Patch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, t types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (Object, error) {
	q, err := query(&o)
	if err != nil {
		return nil, err
	}
	return c.object(ctx, http.MethodPatch, c.url(r, namespace, name, q, sub...), string(t), data, nil)
}

func (c *httpClient) Delete(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.DeleteOptions) error {
	if name == "" {
		return errors.New("resource name may not be empty")
	}
	o.TypeMeta = metav1.TypeMeta{Kind: "DeleteOptions", APIVersion: "v1"}
	body, err := json.Marshal(o)
	if err != nil {
		return err
	}
	resp, err := c.do(ctx, http.MethodDelete, c.url(r, namespace, name, nil), mediaJSON, body)
	if err != nil {
		return err
	}
	// Reading to the end lets the connection be used again.
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

func (c *httpClient) Watch(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	q, err := query(&o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	resp, err := c.do(ctx, http.MethodGet, c.url(r, namespace, "", q), "", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &httpWatch{events: make(chan watch.Event), cancel: cancel}
	media, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	go w.run(ctx, resp.Body, media)
	return w, nil
}

// httpWatch reads a stream in one goroutine, which closes the channel when the
// stream ends.
type httpWatch struct {
	events chan watch.Event
	cancel context.CancelFunc
	once   sync.Once
}

func (w *httpWatch) ResultChan() <-chan watch.Event { return w.events }
func (w *httpWatch) Stop()                          { w.once.Do(w.cancel) }

func (w *httpWatch) run(ctx context.Context, body io.ReadCloser, media string) {
	defer close(w.events)
	defer body.Close()
	defer w.cancel()
	next := jsonFrames(body)
	if media == mediaProtobuf {
		next = protobufFrames(body)
	}
	for {
		e, err := next()
		if err != nil {
			// A stream that breaks off is nothing unusual; one that cannot be
			// read is, and its reader must hear of it.
			if ctx.Err() == nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				select {
				case w.events <- watch.Event{Type: watch.Error, Object: asStatus(apierrors.NewInternalError(fmt.Errorf("watch stream: %w", err)))}:
				case <-ctx.Done():
				}
			}
			return
		}
		select {
		case w.events <- e:
		case <-ctx.Done():
			return
		}
	}
}

func decodeEvent(e metav1.WatchEvent, media string) (watch.Event, error) {
	obj, err := decodeAnswer(e.Object.Raw, media)
	return watch.Event{Type: watch.EventType(e.Type), Object: obj}, err
}

func jsonFrames(r io.Reader) func() (watch.Event, error) {
	d := json.NewDecoder(r)
	return func() (watch.Event, error) {
		var e metav1.WatchEvent
		if err := d.Decode(&e); err != nil {
			return watch.Event{}, err
		}
		return decodeEvent(e, mediaJSON)
	}
}

func protobufFrames(r io.Reader) func() (watch.Event, error) {
	b := bufio.NewReader(r)
	return func() (watch.Event, error) {
		var head [4]byte
		if _, err := io.ReadFull(b, head[:]); err != nil {
			return watch.Event{}, err
		}
		size := binary.BigEndian.Uint32(head[:])
		if size > maxFrame {
			return watch.Event{}, fmt.Errorf("event of %d bytes", size)
		}
		raw := make([]byte, size)
		if _, err := io.ReadFull(b, raw); err != nil {
			return watch.Event{}, err
		}
		var e metav1.WatchEvent
		if err := e.Unmarshal(raw); err != nil {
			return watch.Event{}, err
		}
		return decodeEvent(e, mediaProtobuf)
	}
}
