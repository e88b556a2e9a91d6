package snapshot

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/apitest"
)

// site is a runner over an API in memory, in virtual time.
type site struct {
	t      *testing.T
	client api.Client
	dir    string
	runner *Runner
	broken atomic.Bool
	taken  atomic.Uint64
	stop   func()
}

func newSite(t *testing.T, client api.Client, dir string) *site {
	s := &site{t: t, client: client, dir: dir}
	s.runner = New(Config{Client: client, Cluster: "0123456789", Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		Take: func(context.Context) (Content, error) {
			if s.broken.Load() {
				return Content{}, errors.New("no leader")
			}
			return Content{Header: Header{Cluster: "0123456789", Revision: s.taken.Add(1), Made: time.Now().UTC().Truncate(time.Second)}, State: bytes.NewReader([]byte("state"))}, nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.runner.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	s.stop = func() { cancel(); <-done }
	return s
}

func (s *site) configure(data map[string]string) {
	s.t.Helper()
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ConfigNamespace, Name: ConfigName}, Data: data}
	_, err := s.client.Create(s.t.Context(), configMaps, ConfigNamespace, ConfigName, c, metav1.CreateOptions{})
	if err != nil {
		_, err = s.client.Update(s.t.Context(), configMaps, ConfigNamespace, c, metav1.UpdateOptions{})
	}
	if err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

func (s *site) files() (names []string) {
	all, err := Folder(s.dir).List(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Made.Format("15:04"))
	}
	return names
}

func (s *site) said(reason string) (messages []string) {
	all, err := api.ListAs[*corev1.Event](s.t.Context(), s.client, ConfigNamespace, metav1.ListOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range all {
		if e.Reason == reason && e.InvolvedObject.Name == ConfigName {
			messages = append(messages, e.Message)
		}
	}
	return messages
}

func TestRunner(t *testing.T) {
	_, recipient, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		server := apitest.NewServer(t)
		client := server.Local(api.User{Name: "system:conclave", Groups: []string{"system:masters", "system:authenticated"}})
		s := newSite(t, client, dir)
		time.Sleep(48 * time.Hour) // nobody asked for anything; it is midnight
		if s.taken.Load() != 0 {
			t.Error("a snapshot was made unasked")
		}
		s.configure(map[string]string{KeySchedule: "often", KeyTo: dir, KeyRecipients: recipient})
		if got := s.said("SnapshotConfigInvalid"); len(got) != 1 || !strings.Contains(got[0], "snapshot.schedule") || s.runner.Result().Failed == "" {
			t.Errorf("of a wrong configuration it says %q, %+v", got, s.runner.Result())
		}
		good := map[string]string{KeySchedule: "0 */6 * * *", KeyTo: dir, KeyRecipients: recipient, KeyKeep: "2"}
		s.configure(good)
		time.Sleep(6*time.Hour + time.Minute)
		if got := strings.Join(s.files(), " "); got != "06:00" {
			t.Errorf("there are %s", got)
		}
		if err := os.WriteFile(filepath.Join(dir, "conclave-ffffffff-20000101T000000Z-1.snapshot"), []byte("another cluster's"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(12 * time.Hour)
		if got := strings.Join(s.files(), " "); got != "18:00 12:00 00:00" {
			t.Errorf("there are %s", got)
		}
		if got := s.said("SnapshotSaved"); len(got) != 3 {
			t.Errorf("it told of %q", got)
		}
		// One fails: it says so, keeps what there is, and tries again soon.
		s.broken.Store(true)
		time.Sleep(6 * time.Hour)
		if got := strings.Join(s.files(), " "); got != "18:00 12:00 00:00" || !strings.Contains(s.runner.Result().Failed, "no leader") || len(s.said("SnapshotFailed")) == 0 {
			t.Errorf("after a failure: %s, %+v", got, s.runner.Result())
		}
		s.broken.Store(false)
		time.Sleep(retryAfter)
		if got := strings.Join(s.files()[:2], " "); got != "00:05 18:00" && got != "00:04 18:00" || s.runner.Result().Failed != "" {
			t.Errorf("after the next try: %s, %+v", got, s.runner.Result())
		}
		s.stop()
		// The next leader makes up for what was missed, and only for that.
		time.Sleep(9 * time.Hour)
		s = newSite(t, client, dir)
		time.Sleep(time.Second)
		if s.taken.Load() != 1 {
			t.Errorf("the new leader took %d", s.taken.Load())
		}
		s.stop()
		s = newSite(t, client, dir)
		time.Sleep(time.Second)
		if s.taken.Load() != 0 || s.runner.Result().Saved.IsZero() {
			t.Errorf("the leader after it took %d, knows %+v", s.taken.Load(), s.runner.Result())
		}
		delete(good, KeySchedule)
		s.configure(good)
		time.Sleep(24 * time.Hour)
		if s.taken.Load() != 0 {
			t.Error("it goes on after the schedule was removed")
		}
		s.stop()
	})
}
