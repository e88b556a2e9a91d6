package csi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Codes of gRPC that mean something to those who call drivers.
const (
	OK                = 0
	Canceled          = 1
	DeadlineExceeded  = 4
	NotFound          = 5
	ResourceExhausted = 8
	Aborted           = 10
	Unimplemented     = 12
	Unavailable       = 14
)

// Error is a driver's refusal.
type Error struct {
	Code    int
	Message string
}

var codeNames = []string{
	"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied", "ResourceExhausted",
	"FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
}

func (e *Error) Error() string {
	name := strconv.Itoa(e.Code)
	if e.Code >= 0 && e.Code < len(codeNames) {
		name = codeNames[e.Code]
	}
	return "rpc error: code = " + name + " desc = " + e.Message
}

// IsCode says whether err is a driver's refusal of this kind.
func IsCode(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// Final says that a call that failed has surely done nothing and will do
// nothing more: anything else may still be under way.
func Final(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case Canceled, DeadlineExceeded, Unavailable, ResourceExhausted, Aborted:
		return false
	}
	return true
}

// Caller makes one call to a driver: method is "/csi.v1.Node/NodeGetInfo", and
// both messages are protobuf. A refusal by the driver is an *Error.
type Caller func(ctx context.Context, method string, request []byte) (response []byte, err error)

const (
	longestMessage = 4 << 20 // what gRPC takes by default
	frameHead      = 5       // compressed or not, and the length
	longestSocket  = 100     // of the 108 bytes that a socket's address may have
)

// Socket is a Caller for the server at a unix socket. A gRPC call of one
// message is a request of HTTP/2 with one framed message, its answer the same
// and a trailer that says how it ended. No connection is kept: calls are rare,
// and drivers come and go.
func Socket(path string) Caller {
	return func(ctx context.Context, method string, request []byte) ([]byte, error) {
		t := &http.Transport{Protocols: new(http.Protocols), DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialSocket(ctx, path)
		}}
		t.Protocols.SetUnencryptedHTTP2(true)
		defer t.CloseIdleConnections()
		frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request))), request...)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+method, bytes.NewReader(frame))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
		resp, err := t.RoundTrip(req)
		if err != nil {
			return nil, fmt.Errorf("call %s at %s: %w", method, path, err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, longestMessage+frameHead+1))
		if err != nil {
			return nil, fmt.Errorf("call %s at %s: %w", method, path, err)
		}
		if err := outcome(resp); err != nil {
			return nil, err
		}
		return unframe(body)
	}
}

// outcome is what the trailer says.
func outcome(resp *http.Response) error {
	status, text := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // a refusal may be all head
		status, text = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	code, err := strconv.Atoi(status)
	if err != nil {
		return fmt.Errorf("the answer is not gRPC's: HTTP status %d, grpc-status %q", resp.StatusCode, status)
	}
	if code == OK {
		return nil
	}
	if plain, err := url.PathUnescape(text); err == nil {
		text = plain
	}
	return &Error{Code: code, Message: text}
}

// unframe takes the one message out of its frame.
func unframe(body []byte) ([]byte, error) {
	if len(body) < frameHead || body[0] != 0 || int64(binary.BigEndian.Uint32(body[1:])) != int64(len(body)-frameHead) {
		return nil, errors.New("the answer is not one plain message")
	}
	return body[frameHead:], nil
}

// dialSocket connects to a socket whose path may be longer than an address.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	path = strings.TrimPrefix(path, "unix://")
	if len(path) > longestSocket {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", path)
}
