package api

import (
	"net/url"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDecodeQuery(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	seven := int64(7)
	stream := "Stdout"
	for query, want := range map[string]any{
		"command=sh&command=-c&command=ls&stdin=true&tty=1&stdout=false&container=main": &corev1.PodExecOptions{
			Command: []string{"sh", "-c", "ls"}, Stdin: true, TTY: true, Container: "main"},
		"follow=true&tailLines=7&sinceTime=2026-01-02T03:04:05Z&timestamps&stream=Stdout&previous=false": &corev1.PodLogOptions{
			Follow: true, TailLines: &seven, SinceTime: &at, Timestamps: true, Stream: &stream},
		"ports=80&ports=443,8080":     &corev1.PodPortForwardOptions{Ports: []int32{80, 443, 8080}},
		"tailLines=&unknown=1":        &corev1.PodLogOptions{},
		"path=/a/b%3Fc":               &corev1.PodProxyOptions{Path: "/a/b?c"},
		"limitBytes=7&sinceSeconds=7": &corev1.PodLogOptions{LimitBytes: &seven, SinceSeconds: &seven},
	} {
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface()
		if err := decodeQuery(values, got); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s\n is %+v\nnot %+v", query, got, want)
		}
	}
	for _, bad := range []string{"tailLines=many", "sinceTime=yesterday"} {
		values, _ := url.ParseQuery(bad)
		if err := decodeQuery(values, &corev1.PodLogOptions{}); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}
