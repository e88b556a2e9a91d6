package agent_test

import (
	"net/url"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var listAll = metav1.ListOptions{}

// websocketExec collects what each channel of an exec over a WebSocket says.
func websocketExec(t *testing.T, base *url.URL, path string) map[byte]string {
	t.Helper()
	config, err := websocket.NewConfig("ws://"+base.Host+path, base.String())
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	conn, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(conn, &message); err != nil {
			return got
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
	}
}
