package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
)

// followConnection returns the same request with a context that ends when its
// connection does, also after a stream took that over: what was run for a
// client that is gone ends. The function ends the context in any case.
func followConnection(rw http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	return &followedWriter{rw, cancel}, r.WithContext(ctx), cancel
}

type followedWriter struct {
	http.ResponseWriter
	gone context.CancelFunc
}

// Hijack hands over a connection that tells of its end.
func (w *followedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	h, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be taken over")
	}
	conn, buffered, err := h.Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	followed := &followedConn{conn, w.gone}
	reader := bufio.NewReader(io.MultiReader(bytes.NewReader(slices.Clone(early)), followed))
	return followed, bufio.NewReadWriter(reader, bufio.NewWriter(followed)), nil
}

// followedConn is read all the time by whoever has taken it over.
type followedConn struct {
	net.Conn
	gone context.CancelFunc
}

func (c *followedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}

func (c *followedConn) Close() error {
	c.gone()
	return c.Conn.Close()
}
