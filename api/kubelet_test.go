package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/apitest"
)

// What a kubelet refuses in plain words is a Status to the client, and a log
// may come as the messages of a WebSocket.
func TestKubeletAnswers(t *testing.T) {
	kubelet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Query().Get("tailLines") {
		case "1":
			http.Error(w, `container "web" in pod "p" is waiting to start: ContainerCreating`, http.StatusBadRequest)
		case "2":
			http.Error(w, "it broke", http.StatusInternalServerError)
		case "3":
			http.Error(w, `pod "p" does not exist`, http.StatusNotFound)
		default:
			fmt.Fprint(w, "a line\n")
		}
	}))
	defer kubelet.Close()
	base, _ := url.Parse(kubelet.URL)
	st := newSite(t, func(c *api.Config) { c.Nodes = fakeNodes{base} })
	st.namespace("shop")
	c, p := st.Local(apitest.Admin), testPod("p")
	must(c.Create(t.Context(), api.GVROf(p), "shop", "", p, metav1.CreateOptions{}))(t)
	must(c.Create(t.Context(), api.GVROf(p), "shop", "p", &corev1.Binding{Target: corev1.ObjectReference{Name: "n1"}}, metav1.CreateOptions{}, "binding"))(t)
	const path = "/api/v1/namespaces/shop/pods/p/log"
	for tail, want := range map[string]metav1.Status{
		"1": {Code: 400, Reason: metav1.StatusReasonBadRequest, Message: `container "web" in pod "p" is waiting to start: ContainerCreating`},
		"2": {Code: 500, Reason: metav1.StatusReasonInternalError, Message: "Internal error occurred: it broke"},
		"3": {Code: 404, Reason: metav1.StatusReasonNotFound, Message: `pod "p" does not exist`},
	} {
		a := st.request(st.admin(), "GET", path+"?tailLines="+tail, "")
		var got metav1.Status
		if err := json.Unmarshal(a.body, &got); err != nil || got.Code != want.Code || got.Reason != want.Reason || got.Message != want.Message || a.code != int(want.Code) {
			t.Errorf("%s: %d %s %v", tail, a.code, a.body, err)
		}
	}
	for _, protocol := range []string{"", "binary.k8s.io", "base64.binary.k8s.io"} {
		config, err := websocket.NewConfig("wss://"+st.base().Host+path, st.base().String())
		if err != nil {
			t.Fatal(err)
		}
		if protocol != "" {
			config.Protocol = []string{protocol}
		}
		config.TlsConfig = st.admin().TLSClientConfig.Clone()
		config.TlsConfig.NextProtos = []string{"http/1.1"}
		conn, err := websocket.DialConfig(config)
		if err != nil {
			t.Fatal(protocol, err)
		}
		var got, message []byte
		for websocket.Message.Receive(conn, &message) == nil {
			got = append(got, message...)
		}
		conn.Close()
		want := "a line\n"
		if strings.HasPrefix(protocol, "base64") {
			want = base64.StdEncoding.EncodeToString([]byte(want))
		}
		if string(got) != want {
			t.Errorf("%q: %q", protocol, got)
		}
	}
}
