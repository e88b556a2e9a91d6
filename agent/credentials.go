package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// keyEntry is a credential and the addresses that it is for.
type keyEntry struct {
	address string // host, perhaps with wildcards, port and the beginning of a path
	Credential
}

// matching are the credentials for a repository, the most particular first.
func matching(entries []keyEntry, repository string) (out []Credential) {
	var fit []keyEntry
	for _, e := range entries {
		if addressMatches(e.address, repository) {
			fit = append(fit, e)
		}
	}
	slices.SortStableFunc(fit, func(a, b keyEntry) int { return cmp.Compare(len(b.address), len(a.address)) })
	for _, e := range fit {
		if !slices.Contains(out, e.Credential) {
			out = append(out, e.Credential)
		}
	}
	return out
}

// dockerConfig is Docker's own file of credentials, and the content of a Secret
// of type kubernetes.io/dockerconfigjson.
type dockerConfig struct {
	Auths       dockerAuths       `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"` // by registry
	CredsStore  string            `json:"credsStore"`
}

// dockerAuths is the content of a Secret of type kubernetes.io/dockercfg.
type dockerAuths map[string]struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	RegistryToken string `json:"registrytoken"`
	IdentityToken string `json:"identitytoken"`
}

func (d dockerAuths) entries() (out []keyEntry) {
	for address, e := range d {
		c := Credential{Username: e.Username, Password: e.Password, RegistryToken: e.RegistryToken, IdentityToken: e.IdentityToken}
		if plain, err := base64.StdEncoding.DecodeString(e.Auth); err == nil && e.Auth != "" {
			c.Username, c.Password, _ = strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		}
		if c != (Credential{}) {
			out = append(out, keyEntry{registryAddress(address), c})
		}
	}
	slices.SortFunc(out, func(a, b keyEntry) int { return cmp.Compare(a.address, b.address) })
	return out
}

// secretEntries are those of a pod's pull secrets.
func secretEntries(secrets []*corev1.Secret) (out []keyEntry) {
	for _, s := range secrets {
		if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
			var config dockerConfig
			if json.Unmarshal(data, &config) == nil {
				out = append(out, config.Auths.entries()...)
			}
			continue
		}
		var auths dockerAuths
		if json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths) == nil {
			out = append(out, auths.entries()...)
		}
	}
	return out
}

const dockerHub = "index.docker.io"

// imageRepository is an image's registry and path, without tag and digest.
func imageRepository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	host, rest, ok := strings.Cut(image, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		if !ok {
			image = "library/" + image
		}
		return dockerHub + "/" + image
	}
	if host == "docker.io" {
		return dockerHub + "/" + rest
	}
	return image
}

func registryAddress(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimSuffix(s, "/")
	s = strings.TrimSuffix(strings.TrimSuffix(s, "/v1"), "/v2")
	if host, rest, _ := strings.Cut(s, "/"); host == "docker.io" || host == "registry-1.docker.io" {
		s = strings.TrimSuffix(dockerHub+"/"+rest, "/")
	}
	return s
}

// addressMatches compares host names label by label, each of which may hold
// wildcards, and takes the rest as a path prefix.
func addressMatches(address, repository string) bool {
	wantHost, wantPath, _ := strings.Cut(address, "/")
	host, rest, _ := strings.Cut(repository, "/")
	want, have := strings.Split(wantHost, "."), strings.Split(host, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return wantPath == "" || rest == wantPath || strings.HasPrefix(rest, wantPath+"/")
}

// nodeCredentials are those that the node has for all of its pods: Docker's
// files, its credential helpers, and kubelet's credential provider plugins. All
// is read and run when an image is pulled, nothing before.
type nodeCredentials struct {
	files     []string // Docker's, those that are there count
	providers []credentialProvider
	now       func() time.Time

	mu    sync.Mutex
	cache map[string]cachedCredentials // by provider and key
}

type cachedCredentials struct {
	entries []keyEntry
	until   time.Time
}

// helperTimeout bounds one run of a helper or plugin, as kubelet does.
const helperTimeout = time.Minute

// of are the node's credentials for a repository. What cannot be had is logged
// by the caller and does not keep others from being tried.
func (n *nodeCredentials) of(ctx context.Context, repository string) (out []Credential, err error) {
	if n == nil {
		return nil, nil
	}
	var errs []error
	add := func(entries []keyEntry, err error) {
		if err != nil {
			errs = append(errs, err)
		}
		for _, c := range matching(entries, repository) {
			c.Node = true
			if !slices.Contains(out, c) {
				out = append(out, c)
			}
		}
	}
	for _, file := range n.files {
		add(fileEntries(ctx, file, repository))
	}
	for i := range n.providers {
		if p := &n.providers[i]; p.matches(repository) {
			add(n.provided(ctx, p, repository))
		}
	}
	return out, errors.Join(errs...)
}

// NodeCredentials are what the node has for every pod, for a repository.
func (a *Agent) NodeCredentials(ctx context.Context, repository string) ([]Credential, error) {
	return a.credentials.of(ctx, repository)
}

// fileEntries reads one of Docker's files.
func fileEntries(ctx context.Context, file, repository string) ([]keyEntry, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if filepath.Base(file) == ".dockercfg" {
		var auths dockerAuths
		if err := json.Unmarshal(data, &auths); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		return auths.entries(), nil
	}
	var config dockerConfig
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	entries := config.Auths.entries()
	host, _, _ := strings.Cut(repository, "/")
	helper := config.CredsStore
	for registry, h := range config.CredHelpers {
		if registryAddress(registry) == host {
			helper = h
		}
	}
	if helper == "" {
		return entries, nil
	}
	c, err := askHelper(ctx, helper, host)
	if err != nil {
		return entries, fmt.Errorf("%s: %w", file, err)
	}
	if c != nil {
		entries = append(entries, keyEntry{host, *c})
	}
	return entries, nil
}

// askHelper runs one of Docker's credential helpers.
func askHelper(ctx context.Context, helper, host string) (*Credential, error) {
	if strings.ContainsRune(helper, '/') {
		return nil, fmt.Errorf("credential helper %q: it is named without a path", helper)
	}
	if host == dockerHub {
		host = "https://index.docker.io/v1/"
	}
	out, err := runHelper(ctx, "docker-credential-"+helper, []string{"get"}, nil, []byte(host))
	if err != nil {
		if bytes.Contains(out, []byte("credentials not found")) {
			return nil, nil
		}
		return nil, err
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("credential helper %s: %w", helper, err)
	}
	if answer.Username == "<token>" {
		return &Credential{IdentityToken: answer.Secret}, nil
	}
	return &Credential{Username: answer.Username, Password: answer.Secret}, nil
}

// runHelper runs a program with a text for it to read, and returns what it wrote.
func runHelper(ctx context.Context, program string, args, env []string, stdin []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, problems bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &problems
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(problems.String())
		return out.Bytes(), fmt.Errorf("run %s: %w: %.500s", filepath.Base(program), err, said)
	}
	return out.Bytes(), nil
}

// credentialProvider is one plugin of a CredentialProviderConfig.
type credentialProvider struct {
	Name                 string   `json:"name"`
	MatchImages          []string `json:"matchImages"`
	DefaultCacheDuration string   `json:"defaultCacheDuration"`
	APIVersion           string   `json:"apiVersion"`
	Args                 []string `json:"args"`
	Env                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
	TokenAttributes any `json:"tokenAttributes"`

	program string
	keep    time.Duration
}

const providerVersion = "credentialprovider.kubelet.k8s.io/v1"

// readProviders reads kubelet's file of credential provider plugins.
func readProviders(file, dir string) ([]credentialProvider, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credential providers: %w", err)
	}
	var config struct {
		APIVersion string               `json:"apiVersion"`
		Kind       string               `json:"kind"`
		Providers  []credentialProvider `json:"providers"`
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("credential providers: %s: %w", file, fmt.Errorf(format, args...))
	}
	if err := yaml.UnmarshalStrict(raw, &config); err != nil {
		return nil, bad("%w", err)
	}
	if config.Kind != "CredentialProviderConfig" || config.APIVersion != "kubelet.config.k8s.io/v1" {
		return nil, bad("it is %s of %s, not CredentialProviderConfig of kubelet.config.k8s.io/v1", config.Kind, config.APIVersion)
	}
	if len(config.Providers) == 0 {
		return nil, bad("at least 1 item in plugins is required")
	}
	names := map[string]bool{}
	for i := range config.Providers {
		p := &config.Providers[i]
		switch {
		case p.Name == "":
			return nil, bad("name is required")
		case p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/ "):
			return nil, bad("provider name %q: it is the name of a program in %s", p.Name, dir)
		case names[p.Name]:
			return nil, bad("duplicate provider name: %s", p.Name)
		case p.APIVersion != providerVersion:
			return nil, bad("provider %s: apiVersion %q: only %s is supported", p.Name, p.APIVersion, providerVersion)
		case len(p.MatchImages) == 0:
			return nil, bad("provider %s: at least 1 item in matchImages is required", p.Name)
		case p.DefaultCacheDuration == "":
			return nil, bad("provider %s: defaultCacheDuration is required", p.Name)
		case p.TokenAttributes != nil:
			return nil, bad("provider %s: tokenAttributes is not supported", p.Name)
		}
		names[p.Name] = true
		if p.keep, err = time.ParseDuration(p.DefaultCacheDuration); err != nil || p.keep < 0 {
			return nil, bad("provider %s: defaultCacheDuration %q is no duration", p.Name, p.DefaultCacheDuration)
		}
		p.program = filepath.Join(dir, p.Name)
		if info, err := os.Stat(p.program); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return nil, bad("provider %s: there is no program %s", p.Name, p.program)
		}
	}
	return config.Providers, nil
}

func (p *credentialProvider) matches(repository string) bool {
	return slices.ContainsFunc(p.MatchImages, func(m string) bool { return addressMatches(registryAddress(m), repository) })
}

// provided asks a plugin, unless it said before how long its answer holds.
func (n *nodeCredentials) provided(ctx context.Context, p *credentialProvider, repository string) ([]keyEntry, error) {
	host, _, _ := strings.Cut(repository, "/")
	now := n.now()
	n.mu.Lock()
	for _, key := range []string{repository, host, ""} {
		if c, ok := n.cache[p.Name+"\x00"+key]; ok && now.Before(c.until) {
			n.mu.Unlock()
			return c.entries, nil
		}
	}
	n.mu.Unlock()
	question, err := json.Marshal(map[string]string{"kind": "CredentialProviderRequest", "apiVersion": providerVersion, "image": repository})
	if err != nil {
		return nil, err
	}
	var env []string
	for _, e := range p.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	out, err := runHelper(ctx, p.program, p.Args, env, question)
	if err != nil {
		return nil, fmt.Errorf("credential provider %s: %w", p.Name, err)
	}
	var answer struct {
		APIVersion    string  `json:"apiVersion"`
		Kind          string  `json:"kind"`
		CacheKeyType  string  `json:"cacheKeyType"`
		CacheDuration *string `json:"cacheDuration"`
		Auth          map[string]struct{ Username, Password string }
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("credential provider %s: its answer: %w", p.Name, err)
	}
	if answer.Kind != "CredentialProviderResponse" || answer.APIVersion != providerVersion {
		return nil, fmt.Errorf("credential provider %s: it answers with %s of %s", p.Name, answer.Kind, answer.APIVersion)
	}
	var entries []keyEntry
	for address, a := range answer.Auth {
		entries = append(entries, keyEntry{registryAddress(address), Credential{Username: a.Username, Password: a.Password}})
	}
	slices.SortFunc(entries, func(a, b keyEntry) int { return cmp.Compare(a.address, b.address) })
	key, ok := map[string]string{"Image": repository, "Registry": host, "Global": ""}[answer.CacheKeyType]
	if !ok {
		return nil, fmt.Errorf("credential provider %s: cacheKeyType %q is not known", p.Name, answer.CacheKeyType)
	}
	keep := p.keep
	if answer.CacheDuration != nil {
		if keep, err = time.ParseDuration(*answer.CacheDuration); err != nil {
			return nil, fmt.Errorf("credential provider %s: cacheDuration: %w", p.Name, err)
		}
	}
	if keep > 0 {
		n.mu.Lock()
		if n.cache == nil {
			n.cache = map[string]cachedCredentials{}
		}
		for k, c := range n.cache { // what is over takes room
			if !now.Before(c.until) {
				delete(n.cache, k)
			}
		}
		n.cache[p.Name+"\x00"+key] = cachedCredentials{entries, now.Add(keep)}
		n.mu.Unlock()
	}
	return entries, nil
}
