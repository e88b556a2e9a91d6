package cli

import (
	"context"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// watched is a client whose watches say nothing until their context ends.
type watched struct{ api.Client }

func (watched) Watch(ctx context.Context, _ schema.GroupVersionResource, _ string, _ metav1.ListOptions) (watch.Interface, error) {
	w := watch.NewFake()
	context.AfterFunc(ctx, w.Stop)
	return w, nil
}

// A watch that was begun at another master ends when there is one here: that
// master may lose its power, and nothing would tell.
func TestWatchEndsWhenTheClientIsSwitched(t *testing.T) {
	never := make(chan struct{})
	c := newSwitchClient(watched{}, func() bool { return true }, func() <-chan struct{} { return never })
	begin := func() watch.Interface {
		t.Helper()
		w, err := c.Watch(t.Context(), schema.GroupVersionResource{}, "", metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, next := range []api.Client{watched{}, nil} {
		w := begin()
		c.use(next)
		if _, open := <-w.ResultChan(); open {
			t.Error("an event came instead of the end")
		}
	}
	w := begin()
	w.Stop()
	if _, open := <-w.ResultChan(); open {
		t.Error("a stopped watch goes on")
	}
}
