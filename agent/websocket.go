package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// The channels of exec and attach over a WebSocket: each message begins with
// the number of its channel. Of the protocols, v4 says how a command ended as a
// Status instead of as text, and v5 adds that a client can end its stdin.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel
	channelCount
)

// channelProtocols are what clients may ask for, and whether its messages are
// binary or base64.
var channelProtocols = map[string]bool{
	"": true, "channel.k8s.io": true, "base64.channel.k8s.io": false,
	"v4.channel.k8s.io": true, "v4.base64.channel.k8s.io": false, "v5.channel.k8s.io": true,
}

// serveChannels runs a command, or attaches to one, with its streams in the
// channels of a WebSocket.
func (s *session) serveChannels(rw http.ResponseWriter, r *http.Request, run func(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error) {
	kind := func(wanted bool, t wsstream.ChannelType) wsstream.ChannelType {
		if !wanted {
			return wsstream.IgnoreChannel
		}
		return t
	}
	channels := make([]wsstream.ChannelType, channelCount)
	channels[stdinChannel] = kind(s.options.Stdin, wsstream.ReadChannel)
	channels[stdoutChannel] = kind(s.options.Stdout, wsstream.WriteChannel)
	channels[stderrChannel] = kind(s.options.Stderr, wsstream.WriteChannel)
	channels[errorChannel] = wsstream.WriteChannel
	channels[resizeChannel] = wsstream.ReadChannel
	protocols := map[string]wsstream.ChannelProtocolConfig{}
	for name, binary := range channelProtocols {
		protocols[name] = wsstream.ChannelProtocolConfig{Binary: binary, Channels: channels}
	}
	if !offers(r, slices.Collect(maps.Keys(channelProtocols))) {
		http.Error(rw, "unable to upgrade: none of the WebSocket protocols is known", http.StatusBadRequest)
		return
	}
	conn := wsstream.NewConn(protocols)
	conn.SetIdleTimeout(streamIdle)
	protocol, streams, err := conn.Open(rw, r)
	if err != nil {
		s.a.log.Debug("a WebSocket could not be opened", "path", r.URL.Path, "err", err)
		return
	}
	defer conn.Close()
	first := errorChannel
	if s.options.Stdout {
		first = stdoutChannel
	} else if s.options.Stderr {
		first = stderrChannel
	}
	// An empty message tells the client that it is connected.
	if _, err := streams[first].Write(nil); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	sizes := make(chan remotecommand.TerminalSize)
	go func() { // ends with the connection
		defer close(sizes)
		decoder := json.NewDecoder(streams[resizeChannel])
		for {
			var size remotecommand.TerminalSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case sizes <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	err = run(ctx, streams[stdinChannel], streams[stdoutChannel], streams[stderrChannel], sizes)
	if _, err := streams[errorChannel].Write(outcome(err, strings.HasPrefix(protocol, "v"))); err != nil {
		s.a.log.Debug("nobody is left to hear how a command ended", "err", err)
	}
}

// offers says whether a WebSocket's client asks for one of these protocols.
func offers(r *http.Request, known []string) bool {
	for line := range strings.SplitSeq(strings.Join(r.Header.Values(wsstream.WebSocketProtocolHeader), ","), ",") {
		if slices.Contains(known, strings.TrimSpace(line)) {
			return true
		}
	}
	return false
}

// outcome is the last message of a command: how it ended.
func outcome(err error, asStatus bool) []byte {
	status := metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess}
	var exit utilexec.ExitError
	switch {
	case err == nil && !asStatus:
		return nil
	case err == nil:
	case errors.As(err, &exit) && exit.Exited():
		status.Status, status.Reason = metav1.StatusFailure, remotecommand.NonZeroExitCodeReason
		status.Message = fmt.Sprintf("command terminated with non-zero exit code: %v", exit)
		status.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())}}}
	default:
		status.Status, status.Reason, status.Code = metav1.StatusFailure, metav1.StatusReasonInternalError, http.StatusInternalServerError
		status.Message = fmt.Sprintf("Internal error occurred: error executing command in container: %v", err)
	}
	if !asStatus {
		return []byte(status.Message)
	}
	data, err := json.Marshal(status)
	if err != nil {
		return []byte(err.Error())
	}
	return data
}

const tunnelProtocol = portforward.WebsocketsSPDYTunnelingPortForwardV1

// serveTunnel forwards ports for a client that speaks SPDY inside a WebSocket,
// which proxies let through where they would not SPDY itself.
func serveTunnel(rw http.ResponseWriter, r *http.Request, f *forwarder, uid string) {
	inner := r.Clone(r.Context())
	inner.Header.Del(wsstream.WebSocketProtocolHeader)
	inner.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	inner.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
	server := websocket.Server{
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			config.Protocol = []string{tunnelProtocol}
			return nil
		},
		Handler: func(conn *websocket.Conn) {
			conn.PayloadType = websocket.BinaryFrame
			portforward.ServePortForward(&tunnel{conn: conn, header: http.Header{}}, inner, f, f.pod.Name, uid, &portforward.V4Options{}, streamIdle, streamCreation, portforward.SupportedProtocols)
		},
	}
	server.ServeHTTP(rw, r)
}

// tunnel is the answer to a request for SPDY that the client never made: its
// head goes nowhere, and the connection to take over is the WebSocket.
type tunnel struct {
	conn   net.Conn
	header http.Header
}

func (t *tunnel) Header() http.Header         { return t.header }
func (t *tunnel) WriteHeader(int)             {}
func (t *tunnel) Write(p []byte) (int, error) { return len(p), nil }

func (t *tunnel) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
