package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const helperEnv = "CONCLAVE_RUNTIME_HELPER"

func helper() int { return 1 }

func dockerArchive(t testing.TB, ref string, img v1.Image) *bytes.Buffer {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestRunToTheEnd(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	out, st := h.output(p, "web_0", ContainerConfig{})
	if out != "from the image\n" || st.ExitCode != 0 || st.Reason != ReasonCompleted {
		t.Errorf("wrote %q, status %+v", out, st)
	}
	if _, err := os.Stat(filepath.Join(h.cfg.Root, "containers", p, "web_0")); err != nil {
		t.Error(err)
	}
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Error(err)
	}
}
