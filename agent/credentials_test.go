package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func script(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func text(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDockerFiles takes credentials from Docker's files and helpers.
func TestDockerFiles(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	script(t, dir, "docker-credential-safe", `read host; [ "$1" = get ] || exit 9
case $host in
helped.lan) echo '{"ServerURL":"helped.lan","Username":"me","Secret":"from the safe"}';;
token.lan) echo '{"Username":"<token>","Secret":"identity"}';;
broken.lan) echo out of order >&2; exit 3;;
*) echo credentials not found in native keychain; exit 1;;
esac`)
	n := &nodeCredentials{now: time.Now, files: []string{
		filepath.Join(dir, "nothere.json"),
		text(t, filepath.Join(dir, "config.json"), `{"auths":{"plain.lan":{"auth":"bWU6cHc="},"https://helped.lan/v2/":{}},"credHelpers":{"helped.lan":"safe","token.lan":"safe","broken.lan":"safe","none.lan":"safe"}}`),
		text(t, filepath.Join(dir, ".dockercfg"), `{"old.lan":{"username":"old","password":"o"}}`),
	}}
	for repository, want := range map[string]Credential{
		"plain.lan/a": {Username: "me", Password: "pw", Node: true}, "helped.lan/a/b": {Username: "me", Password: "from the safe", Node: true},
		"token.lan/a": {IdentityToken: "identity", Node: true}, "old.lan/a": {Username: "old", Password: "o", Node: true}, "none.lan/a": {}, "other.lan/a": {},
	} {
		got, err := n.of(t.Context(), repository)
		if err != nil || want != (Credential{}) && !slices.Equal(got, []Credential{want}) || want == (Credential{}) && len(got) > 0 {
			t.Errorf("%s: %+v, %v", repository, got, err)
		}
	}
	if got, err := n.of(t.Context(), "broken.lan/a"); err == nil || !strings.Contains(err.Error(), "out of order") || len(got) > 0 {
		t.Errorf("a broken helper: %+v, %v", got, err)
	}
}

// TestCredentialProviders runs kubelet's plugins, and them only as often as they
// say.
func TestCredentialProviders(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	answer := func(kind, keep string) string {
		return `echo "$WHO $1 $(cat)" >> ` + log + `
echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"` + kind + `",` + keep + `"auth":{"*.cloud.lan/team":{"username":"team","password":"t"},"*.cloud.lan":{"username":"all","password":"a"}}}'`
	}
	script(t, dir, "by-image", answer("Image", ""))
	script(t, dir, "by-registry", answer("Registry", `"cacheDuration":"5m0s",`))
	script(t, dir, "never", answer("Global", `"cacheDuration":"0s",`))
	script(t, dir, "fails", "echo no luck >&2; exit 1")
	provider := func(name, match string) string {
		return `
- name: ` + name + `
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["` + match + `"]
  defaultCacheDuration: 10m
  args: ["--get"]
  env: [{name: WHO, value: ` + name + `}]
`
	}
	const head = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:"
	config := text(t, filepath.Join(dir, "config.yaml"), head+provider("by-image", "*.cloud.lan")+provider("by-registry", "r.cloud.lan")+provider("never", "n.cloud.lan/x")+provider("fails", "f.cloud.lan"))
	providers, err := readProviders(config, dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	n := &nodeCredentials{providers: providers, now: func() time.Time { return now }}
	ask := func(repository string, runs ...string) {
		t.Helper()
		if err := os.WriteFile(log, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := n.of(t.Context(), repository)
		if err != nil && !strings.Contains(err.Error(), "no luck") {
			t.Errorf("%s: %v", repository, err)
		}
		want := []Credential{{Username: "all", Password: "a", Node: true}}
		if strings.Contains(repository, "/team/") {
			want = append([]Credential{{Username: "team", Password: "t", Node: true}}, want...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %+v", repository, got)
		}
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		var ran []string
		for line := range strings.Lines(string(data)) {
			who, question, _ := strings.Cut(line, " ")
			ran = append(ran, who)
			if want := `--get {"apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"` + repository + `","kind":"CredentialProviderRequest"}`; strings.TrimSpace(question) != want {
				t.Errorf("%s was asked %s", who, question)
			}
		}
		if !slices.Equal(ran, runs) {
			t.Errorf("%s: %v ran, not %v", repository, ran, runs)
		}
	}
	ask("a.cloud.lan/team/app", "by-image")
	ask("a.cloud.lan/team/app")
	ask("a.cloud.lan/other", "by-image")
	ask("r.cloud.lan/one", "by-image", "by-registry")
	ask("r.cloud.lan/two", "by-image")
	now = now.Add(6 * time.Minute)
	ask("r.cloud.lan/one", "by-registry")
	now = now.Add(5 * time.Minute)
	ask("a.cloud.lan/team/app", "by-image")
	ask("n.cloud.lan/x", "by-image", "never")
	ask("n.cloud.lan/x", "never")
	ask("f.cloud.lan/x", "by-image")

	for wrong, says := range map[string]string{
		"kind: Pod": "not CredentialProviderConfig", head + " []": "at least 1 item", head + provider("../up", "a"): "name of a program",
		head + provider("none", "a"): "there is no program", head + provider("never", "a") + provider("never", "b"): "duplicate provider name: never",
		head + strings.Replace(provider("never", "a"), "10m", "soon", 1):                        "no duration",
		head + provider("never", "a") + "  tokenAttributes: {serviceAccountTokenAudience: x}\n": "tokenAttributes is not supported",
		head + strings.Replace(provider("never", "a"), "k8s.io/v1", "k8s.io/v1alpha1", 1):       "only credentialprovider.kubelet.k8s.io/v1",
		strings.Replace(head, "kubelet.config.k8s.io/v1", "x/v1", 1) + provider("never", "a"):   "not CredentialProviderConfig", head + provider("never", "a") + "  speed: 3\n": "unknown field",
	} {
		if _, err := readProviders(text(t, config, wrong), dir); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
}
