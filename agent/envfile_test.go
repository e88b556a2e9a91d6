package agent

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

func TestParseEnvFile(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"": {}, "\n \n# A='b'\n  # c\n": {},
		"A='b'": {"A": "b"}, "A='b'\nA='c'\n": {"A": "c"}, "  A = 'b'  \n\tC\t=\t'd'": {"A": "b", "C": "d"},
		"A=''": {"A": ""}, "A='# no comment \\n $B \"q\"'": {"A": "# no comment \\n $B \"q\""},
		"M='line1\nline2\n'\nB='x'\n": {"M": "line1\nline2\n", "B": "x"}, "A='b'\r\n": {"A": "b"},
	} {
		got, err := parseEnvFile([]byte(text))
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: %q %v, want %q", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"A": "line 1: it is no variable", "A='b'\nB": "line 2: it is no variable", "A=b": "single quotes", `A="b"`: "single quotes", "A=": "single quotes", "A=\n'b'": "single quotes",
		"A='b": "closing quote is missing", "A='b''c'": "nothing may follow", "A='b'$C": "nothing may follow", "M='1\n2'\n\n=x": "line 4: \"\" is no name", "='b'": "no name",
	} {
		if got, err := parseEnvFile([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q %v, want %q", text, got, err, want)
		}
	}
}

func FuzzParseEnvFile(f *testing.F) {
	f.Add([]byte("A='b'\n# c\nM='1\n2'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		vars, err := parseEnvFile(data)
		if err != nil && vars != nil {
			t.Error("variables of a file that is wrong")
		}
		for name, value := range vars {
			if again, err := parseEnvFile([]byte(name + "='" + value + "'")); err != nil || again[name] != value {
				t.Errorf("%q=%q does not read back: %v", name, value, err)
			}
		}
	})
}

func TestReadEnvFile(t *testing.T) {
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "secret"), "A='stolen'")
	write(filepath.Join(volume, "sub", "env"), "A='b'")
	for name, target := range map[string]string{"out": "../secret", "abs": filepath.Join(dir, "secret"), "in": "sub/env", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(volume, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(volume, "large"), "A='"+strings.Repeat("x", envFileMax)+"'")
	for path, ok := range map[string]bool{"sub/env": true, "in": true, "out": false, "abs": false, "up/secret": false, "fifo": false, "sub": false, "large": false, "none": false} {
		vars, err := readEnvFile(volume, path)
		if (err == nil) != ok || ok && vars["A"] != "b" {
			t.Errorf("%s: %q %v", path, vars, err)
		}
	}
}

func TestFileKeyRef(t *testing.T) {
	pod := testPod()
	c := &pod.Spec.Containers[0]
	src := testSources()
	src.file = func(volume, path string) (map[string]string, error) {
		if volume == "v" && path == "env" {
			return map[string]string{"KEY": "from a file"}, nil
		}
		return nil, os.ErrNotExist
	}
	ref := func(path, key string, optional bool) []corev1.EnvVar {
		return []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{VolumeName: "v", Path: path, Key: key, Optional: &optional}}}}
	}
	for _, test := range []struct {
		env  []corev1.EnvVar
		want string
		fail bool
	}{
		{ref("env", "KEY", false), "from a file", false}, {ref("env", "NONE", true), "", false}, {ref("none", "KEY", true), "", false},
		{ref("env", "NONE", false), "", true}, {ref("none", "KEY", false), "", true},
	} {
		c.Env = test.env
		_, values, _, err := environment(pod, c, src)
		if (err != nil) != test.fail || values["X"] != test.want {
			t.Errorf("%+v: %q %v", *test.env[0].ValueFrom.FileKeyRef, values["X"], err)
		}
	}
}
