package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// A call between nodes is one frame each way on a kept connection of
// conclave-node/1. HTTP/2 wakes eleven goroutines for one, frames three: every
// node renews its lease by a call each second, for ever. All numbers are big
// endian:
//
//	question:  length of the rest (4), number (4), length of the path (2), path, body
//	answer:    length of the rest (4), number (4), HTTP status (2), body
//
// The caller numbers its questions, and answers come in any order. A question
// with an empty path takes back the one of its number: nobody waits any more.
const (
	frameHead  = 4 + 4 + 2
	frameLimit = answerLimit + 64<<10
	// callsAtOnce is how many calls of one peer are worked on at a time.
	callsAtOnce = 1000
)

// frame is a question or an answer, by what word means.
type frame struct {
	number uint32
	word   uint16
	rest   []byte
}

// encode puts a frame's parts into one piece, to be written at once.
func (f frame) encode(more ...[]byte) []byte {
	size := frameHead + len(f.rest)
	for _, m := range more {
		size += len(m)
	}
	b := make([]byte, frameHead, size)
	binary.BigEndian.PutUint32(b, uint32(size-4))
	binary.BigEndian.PutUint32(b[4:], f.number)
	binary.BigEndian.PutUint16(b[8:], f.word)
	b = append(b, f.rest...)
	for _, m := range more {
		b = append(b, m...)
	}
	return b
}

// readFrame reads one frame. It trusts no length further than bytes come.
func readFrame(r io.Reader) (f frame, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return f, err
	}
	size := int64(binary.BigEndian.Uint32(head[:])) - (frameHead - 4)
	if size < 0 || size > frameLimit {
		return f, fmt.Errorf("a frame of %d bytes", size)
	}
	f.number, f.word = binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint16(head[8:])
	if size <= 64<<10 {
		f.rest = make([]byte, size)
		_, err = io.ReadFull(r, f.rest)
	} else {
		var b bytes.Buffer
		if _, err = io.CopyN(&b, r, size); err == nil {
			f.rest = b.Bytes()
		}
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return f, err
}

// writer lets many write whole frames to a connection.
type writer struct {
	conn net.Conn
	turn chan struct{} // held by whoever writes: a lock that a context can leave
}

func newWriter(conn net.Conn) writer { return writer{conn, make(chan struct{}, 1)} }

// write returns whether anything may have been written.
func (w writer) write(ctx context.Context, b []byte) (bool, error) {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	defer func() { <-w.turn }()
	// A peer that reads nothing must not hold up its callers for ever.
	if err := w.conn.SetWriteDeadline(time.Now().Add(userTimeout)); err != nil {
		return false, err
	}
	_, err := w.conn.Write(b)
	return true, err
}

// caller is the calling end of a connection.
type caller struct {
	writer

	mu      sync.Mutex
	last    uint32
	waiting map[uint32]chan<- frame
	err     error // why it ended; nil while it is open
	retired bool  // it ends with its last answer
}

func newCaller(conn net.Conn) *caller {
	c := &caller{writer: newWriter(conn), waiting: map[uint32]chan<- frame{}}
	go c.read()
	return c
}

// read hands out the answers until the connection ends.
func (c *caller) read() {
	r := bufio.NewReader(c.conn)
	for {
		f, err := readFrame(r)
		if err != nil {
			c.end(fmt.Errorf("the connection ended: %w", err))
			return
		}
		c.mu.Lock()
		wait := c.waiting[f.number]
		delete(c.waiting, f.number)
		over := c.retired && len(c.waiting) == 0
		c.mu.Unlock()
		if wait != nil { // or nobody waits any more
			wait <- f
		}
		if over {
			c.end(net.ErrClosed)
			return
		}
	}
}

// end closes the connection and tells all that wait.
func (c *caller) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = why
	c.conn.Close()
	for number, wait := range c.waiting {
		close(wait)
		delete(c.waiting, number)
	}
}

// retire ends the connection once nobody waits for an answer on it.
func (c *caller) retire() {
	c.mu.Lock()
	c.retired = true
	idle := len(c.waiting) == 0
	c.mu.Unlock()
	if idle {
		c.end(net.ErrClosed)
	}
}

func (c *caller) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil
}

// call asks and waits for the answer.
func (c *caller) call(ctx context.Context, path string, body []byte) (status int, answer []byte, err error) {
	if len(path) > 1<<15 || len(body) > answerLimit {
		return 0, nil, errors.New("the question is too long")
	}
	wait := make(chan frame, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, nil, c.err
	}
	c.last++
	number := c.last
	c.waiting[number] = wait
	c.mu.Unlock()
	if wrote, err := c.write(ctx, frame{number: number, word: uint16(len(path))}.encode([]byte(path), body)); err != nil {
		if wrote { // nobody knows how much of it: what follows would be garbage
			c.end(fmt.Errorf("write the question: %w", err))
		} else {
			c.forget(number)
		}
		return 0, nil, err
	}
	select {
	case f, ok := <-wait:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return 0, nil, c.err
		}
		return int(f.word), f.rest, nil
	case <-ctx.Done():
		c.forget(number)
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if wrote, err := c.write(back, frame{number: number}.encode()); err != nil && wrote {
			c.end(fmt.Errorf("take back a question: %w", err))
		}
		return 0, nil, context.Cause(ctx)
	}
}

func (c *caller) forget(number uint32) {
	c.mu.Lock()
	delete(c.waiting, number)
	over := c.retired && len(c.waiting) == 0
	c.mu.Unlock()
	if over {
		c.end(net.ErrClosed)
	}
}

// serveCalls answers one peer's calls until the connection or ctx ends, and
// returns when no handler runs any more.
func serveCalls(ctx context.Context, conn net.Conn, h http.Handler, log *slog.Logger) {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer conn.Close()
	defer cancel()
	var state *tls.ConnectionState
	if c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		s := c.ConnectionState()
		state = &s
	}
	var mu sync.Mutex
	asked := map[uint32]context.CancelFunc{}
	w, r, room := newWriter(conn), bufio.NewReader(conn), make(chan struct{}, callsAtOnce)
	for {
		f, err := readFrame(r)
		if err != nil || int(f.word) > len(f.rest) {
			return
		}
		if f.word == 0 {
			mu.Lock()
			if takeBack := asked[f.number]; takeBack != nil {
				takeBack()
			}
			mu.Unlock()
			continue
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		callCtx, takeBack := context.WithCancel(ctx)
		mu.Lock()
		if asked[f.number] != nil { // a peer that numbers two alike is none of ours
			mu.Unlock()
			takeBack()
			return
		}
		asked[f.number] = takeBack
		mu.Unlock()
		handlers.Go(func() {
			a := handle(callCtx, h, state, conn.RemoteAddr(), f, log)
			mu.Lock()
			delete(asked, f.number)
			mu.Unlock()
			if callCtx.Err() == nil {
				if wrote, err := w.write(ctx, frame{number: f.number, word: uint16(a.status())}.encode(a.body.Bytes())); err != nil && wrote {
					conn.Close()
				}
			}
			takeBack()
			<-room
		})
	}
}

// handle answers one question by the handler.
func handle(ctx context.Context, h http.Handler, state *tls.ConnectionState, from net.Addr, f frame, log *slog.Logger) (a *answer) {
	full, body := string(f.rest[:f.word]), f.rest[f.word:]
	path, query, _ := strings.Cut(full, "?")
	a = &answer{header: http.Header{}}
	defer func() {
		if r := recover(); r != nil { // as net/http does: one call must not end a node
			log.Error("a call between nodes failed", "path", path, "panic", r, "stack", string(debug.Stack()))
			a = &answer{code: http.StatusInternalServerError}
		}
	}()
	r := (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: path, RawQuery: query}, RequestURI: full, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		RemoteAddr: from.String(), TLS: state,
	}).WithContext(ctx)
	h.ServeHTTP(a, r)
	if a.body.Len() > answerLimit {
		return &answer{code: http.StatusInternalServerError}
	}
	return a
}

// answer is what a handler writes.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(code int) {
	if a.code == 0 {
		a.code = code
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	return a.body.Write(p)
}

func (a *answer) status() int {
	a.WriteHeader(http.StatusOK)
	return a.code
}
