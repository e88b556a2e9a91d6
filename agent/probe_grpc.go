package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// The gRPC health check is one small call, so it is spoken here as what it is:
// an HTTP/2 request of one framed message, {1: service}, whose answer is one
// framed message, {1: status}, and a trailer with the call's outcome.

const (
	grpcOK            = "0"
	grpcUnimplemented = "12"
	grpcServing       = 1
)

var healthStates = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

// http2Transport speaks HTTP/2 without TLS and keeps no connection.
var http2Transport = func() *http.Transport {
	t := &http.Transport{DialContext: probeDialer.DialContext, DisableKeepAlives: true, Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(true)
	return t
}()

func (p *prober) grpc(ctx context.Context) (bool, string, error) {
	service := ""
	if s := p.probe.GRPC.Service; s != nil {
		service = *s
	}
	return checkHealth(ctx, p.podIP, p.probe.GRPC, service)
}

func checkHealth(ctx context.Context, host string, probe *corev1.GRPCAction, service string) (good bool, output string, err error) {
	message := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(service)))
	message = append(message, service...)
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	url := "http://" + net.JoinHostPort(host, strconv.Itoa(int(probe.Port))) + "/grpc.health.v1.Health/Check"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(frame))
	if err != nil {
		return false, "", err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	req.Header.Set("User-Agent", "kube-probe/1.37")
	resp, err := http2Transport.RoundTrip(req)
	if err != nil {
		return false, fmt.Sprintf("failed to connect service %q: %v", req.URL.Host, err), nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, probeMaxOutput))
	if err != nil {
		return false, err.Error(), nil
	}
	status, text := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // a refusal may be all head
		status, text = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	switch status {
	case grpcOK:
	case grpcUnimplemented:
		return false, "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): " + text, nil
	default:
		return false, fmt.Sprintf("error: health rpc failed with code %q (HTTP status %d): %s", status, resp.StatusCode, text), nil
	}
	state, err := healthState(body)
	switch {
	case err != nil:
		return false, err.Error(), nil
	case state == grpcServing:
		return true, "", nil
	case state < uint64(len(healthStates)):
		return false, fmt.Sprintf("service unhealthy (responded with %q)", healthStates[state]), nil
	}
	return false, fmt.Sprintf("service unhealthy (responded with %d)", state), nil
}

// healthState reads the answer; a message without the field means UNKNOWN.
func healthState(frame []byte) (uint64, error) {
	const prefix = 5
	if len(frame) < prefix || frame[0] != 0 || int(binary.BigEndian.Uint32(frame[1:])) != len(frame)-prefix {
		return 0, errors.New("the answer to the health rpc is no message")
	}
	message := frame[prefix:]
	if len(message) == 0 {
		return 0, nil
	}
	if message[0] != 1<<3 {
		return 0, errors.New("the answer to the health rpc has no status")
	}
	state, n := binary.Uvarint(message[1:])
	if n <= 0 {
		return 0, errors.New("the answer to the health rpc ends early")
	}
	return state, nil
}
