package runtime

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// endpoint is one host that may be asked for the images of a registry.
type endpoint struct {
	origin     string   // the registry, as its images' names have it on the wire
	namespace  string   // the registry, as users write it
	repository string   // whose credentials are asked for: host/path
	host       string   // for messages
	base       *url.URL // nil: the registry itself, as it is called
	mirror     bool
	override   bool // base's path stands for /v2
	resolve    bool
	pull       bool
	skipVerify bool
	ca         []string // files
	client     [][2]string
	header     http.Header

	dialTimeout time.Duration
}

func (e *endpoint) path(asked string) string {
	if asked != "/v2" && !strings.HasPrefix(asked, "/v2/") {
		return asked // its token server
	}
	prefix := strings.TrimSuffix(e.base.Path, "/")
	if e.override {
		return prefix + strings.TrimPrefix(asked, "/v2")
	}
	return strings.TrimSuffix(prefix, "/v2") + asked
}

func (e *endpoint) tls(roots *x509.CertPool) (*tls.Config, error) {
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, InsecureSkipVerify: e.skipVerify}
	if len(e.ca) > 0 {
		pool := roots
		if pool == nil {
			var err error
			if pool, err = x509.SystemCertPool(); err != nil {
				pool = x509.NewCertPool()
			}
		}
		pool = pool.Clone()
		for _, file := range e.ca {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("%w: CA of %s: %w", ErrRegistryUnavailable, e.host, err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%w: CA of %s: no certificate in %s", ErrRegistryUnavailable, e.host, file)
			}
		}
		config.RootCAs = pool
	}
	for _, pair := range e.client {
		cert, err := tls.LoadX509KeyPair(pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("%w: client certificate for %s: %w", ErrRegistryUnavailable, e.host, err)
		}
		config.Certificates = append(config.Certificates, cert)
	}
	return config, nil
}

// endpoints are the hosts for a repository, in the order in which they are to
// be asked: by Config.RegistryDir/HOST/hosts.toml in containerd's format, by
// that of the folder _default for registries that have none, and otherwise the
// registry alone, with the certificates that its folder has. The files are read
// at each pull: a change needs no restart.
func (s *store) endpoints(repo name.Repository) ([]*endpoint, error) {
	host := repo.RegistryStr()
	known := host
	if host == name.DefaultRegistry {
		known = "docker.io"
	}
	origin := endpoint{
		origin: host, namespace: known, host: host, repository: host + "/" + repo.RepositoryStr(), resolve: true, pull: true,
	}
	if s.cfg.RegistryDir == "" {
		return []*endpoint{&origin}, nil
	}
	for _, dir := range hostDirs(s.cfg.RegistryDir, known) {
		raw, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
		if errors.Is(err, fs.ErrNotExist) {
			found, err := certificateFiles(dir, &origin)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrRegistryUnavailable, err)
			}
			if found {
				return []*endpoint{&origin}, nil
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRegistryUnavailable, err)
		}
		all, err := readHosts(raw, dir, origin, repo.RepositoryStr())
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrRegistryUnavailable, filepath.Join(dir, "hosts.toml"), err)
		}
		return all, nil
	}
	return []*endpoint{&origin}, nil
}

// hostDirs are the folders that may be about a host, the first that says
// something counts.
func hostDirs(root, host string) []string {
	dirs := []string{filepath.Join(root, host)}
	if name, port, err := net.SplitHostPort(host); err == nil { // ":" is not for every filesystem
		dirs = append(dirs, filepath.Join(root, name+"_"+port+"_"))
	}
	return append(dirs, filepath.Join(root, "_default"))
}

// certificateFiles takes a folder in Docker's form: *.crt are CAs, NAME.cert
// with NAME.key are certificates to be shown.
func certificateFiles(dir string, e *endpoint) (found bool, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch filepath.Ext(path) {
		case ".crt":
			e.ca, found = append(e.ca, path), true
		case ".cert":
			e.client, found = append(e.client, [2]string{path, strings.TrimSuffix(path, ".cert") + ".key"}), true
		}
	}
	return found, nil
}

// readHosts makes endpoints of a hosts.toml.
func readHosts(raw []byte, dir string, origin endpoint, path string) ([]*endpoint, error) {
	root, err := parseTOML(string(raw))
	if err != nil {
		return nil, err
	}
	file := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	fill := func(e *endpoint, t *tomlTable) error {
		for _, key := range t.keys {
			v := t.values[key]
			bad := func() error { return fmt.Errorf("line %d: %s: not what it should be", v.line, key) }
			switch key {
			case "server", "host":
			case "capabilities":
				e.resolve, e.pull = false, false
				list, ok := v.texts()
				if !ok {
					return bad()
				}
				for _, c := range list {
					switch c {
					case "resolve":
						e.resolve = true
					case "pull":
						e.pull = true
					case "push": // nobody pushes from here
					default:
						return fmt.Errorf("line %d: unknown capability %q", v.line, c)
					}
				}
			case "ca":
				list, ok := v.texts()
				if !ok {
					return bad()
				}
				for _, f := range list {
					e.ca = append(e.ca, file(f))
				}
			case "client":
				pairs, ok := v.pairs()
				if !ok {
					return bad()
				}
				for _, p := range pairs {
					if p[1] == "" {
						p[1] = p[0] // both in one file
					}
					e.client = append(e.client, [2]string{file(p[0]), file(p[1])})
				}
			case "skip_verify", "override_path":
				yes, ok := v.any.(bool)
				if !ok {
					return bad()
				}
				if key == "skip_verify" {
					e.skipVerify = yes
				} else {
					e.override = yes
				}
			case "header":
				sub, ok := v.any.(*tomlTable)
				if !ok {
					return bad()
				}
				e.header = http.Header{}
				for _, name := range sub.keys {
					list, ok := sub.values[name].texts()
					if !ok {
						return bad()
					}
					for _, text := range list {
						e.header.Add(name, text)
					}
				}
			case "dial_timeout":
				text, ok := v.any.(string)
				d, err := time.ParseDuration(text)
				if !ok || err != nil {
					return bad()
				}
				e.dialTimeout = d
			default:
				return fmt.Errorf("line %d: %s is not supported", v.line, key)
			}
		}
		return nil
	}
	var all []*endpoint
	if hosts, ok := root.values["host"]; ok {
		table, ok := hosts.any.(*tomlTable)
		if !ok {
			return nil, fmt.Errorf("line %d: host is no table", hosts.line)
		}
		for _, address := range table.keys {
			t, ok := table.values[address].any.(*tomlTable)
			if !ok {
				return nil, fmt.Errorf("line %d: host %q is no table", table.values[address].line, address)
			}
			u, err := serverURL(address)
			if err != nil {
				return nil, fmt.Errorf("line %d: host %q: %w", table.values[address].line, address, err)
			}
			e := &endpoint{
				origin: origin.origin, namespace: origin.namespace, host: u.Host, repository: u.Host + "/" + path,
				base: u, mirror: u.Host != origin.origin, resolve: true, pull: true,
			}
			if err := fill(e, t); err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	if v, ok := root.values["server"]; ok {
		text, isText := v.any.(string)
		u, err := serverURL(text)
		if !isText || err != nil {
			return nil, fmt.Errorf("line %d: server: not what it should be", v.line)
		}
		if u.Host != origin.namespace { // docker.io is called otherwise on the wire
			origin.base, origin.host = u, u.Host
		}
		if u.Scheme == "http" {
			origin.base = u
		}
	}
	if err := fill(&origin, root); err != nil {
		return nil, err
	}
	return append(all, &origin), nil
}

// --- the part of TOML that hosts.toml is written in --------------------------

type tomlTable struct {
	keys   []string // in the order of the file
	values map[string]tomlValue
}

type tomlValue struct {
	any  any // string, bool, []any or *tomlTable
	line int
}

// texts is a text, or a list of them.
func (v tomlValue) texts() ([]string, bool) {
	if text, ok := v.any.(string); ok {
		return []string{text}, true
	}
	list, ok := v.any.([]any)
	var out []string
	for _, item := range list {
		text, isText := item.(string)
		ok = ok && isText
		out = append(out, text)
	}
	return out, ok
}

// pairs are a text, a list of them, or a list of pairs of them.
func (v tomlValue) pairs() (out [][2]string, ok bool) {
	if list, isList := v.any.([]any); isList {
		for _, item := range list {
			texts, ok := tomlValue{any: item}.texts()
			if !ok || len(texts) == 0 || len(texts) > 2 {
				return nil, false
			}
			out = append(out, [2]string{texts[0], append(texts, "")[1]})
		}
		return out, true
	}
	text, ok := v.any.(string)
	return [][2]string{{text, ""}}, ok
}

func newTable() *tomlTable { return &tomlTable{values: map[string]tomlValue{}} }

// child is a table in a table, made if need be.
func (t *tomlTable) child(key string, line int) (*tomlTable, error) {
	v, ok := t.values[key]
	if !ok {
		sub := newTable()
		t.keys = append(t.keys, key)
		t.values[key] = tomlValue{sub, line}
		return sub, nil
	}
	sub, ok := v.any.(*tomlTable)
	if !ok {
		return nil, fmt.Errorf("line %d: %s is no table", line, key)
	}
	return sub, nil
}

// tomlReader reads tables, dotted and quoted keys, texts on one line, true,
// false, whole numbers (as texts) and lists.
type tomlReader struct {
	text string
	at   int
	line int
}

func parseTOML(text string) (*tomlTable, error) {
	r := &tomlReader{text: text, line: 1}
	root := newTable()
	here := root
	for {
		r.space(true)
		if r.at == len(r.text) {
			return root, nil
		}
		line := r.line
		if r.take("[") {
			if r.take("[") {
				return nil, fmt.Errorf("line %d: lists of tables are not supported", line)
			}
			keys, err := r.key()
			if err != nil {
				return nil, err
			}
			if !r.take("]") {
				return nil, fmt.Errorf("line %d: ] is missing", line)
			}
			here = root
			for _, k := range keys {
				if here, err = here.child(k, line); err != nil {
					return nil, err
				}
			}
		} else {
			keys, err := r.key()
			if err != nil {
				return nil, err
			}
			if !r.take("=") {
				return nil, fmt.Errorf("line %d: = is missing", line)
			}
			v, err := r.value(0)
			if err != nil {
				return nil, err
			}
			t := here
			for _, k := range keys[:len(keys)-1] {
				if t, err = t.child(k, line); err != nil {
					return nil, err
				}
			}
			last := keys[len(keys)-1]
			if _, twice := t.values[last]; twice {
				return nil, fmt.Errorf("line %d: %s is there twice", line, last)
			}
			t.keys = append(t.keys, last)
			t.values[last] = tomlValue{v, line}
		}
		r.space(false)
		if r.at < len(r.text) && r.text[r.at] != '\n' {
			return nil, fmt.Errorf("line %d: %q is too much", r.line, r.rest())
		}
	}
}

func (r *tomlReader) rest() string {
	line, _, _ := strings.Cut(r.text[r.at:], "\n")
	return line
}

// space passes blanks and comments, and line ends if it may.
func (r *tomlReader) space(lines bool) {
	for ; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; {
		case c == ' ', c == '\t', c == '\r':
		case c == '\n' && lines:
			r.line++
		case c == '#':
			r.at += len(r.rest()) - 1
		default:
			return
		}
	}
}

func (r *tomlReader) take(s string) bool {
	r.space(false)
	if !strings.HasPrefix(r.text[r.at:], s) {
		return false
	}
	r.at += len(s)
	return true
}

func (r *tomlReader) key() (keys []string, err error) {
	for {
		r.space(false)
		var k string
		if r.at < len(r.text) && (r.text[r.at] == '"' || r.text[r.at] == '\'') {
			if k, err = r.quoted(); err != nil {
				return nil, err
			}
		} else {
			from := r.at
			for r.at < len(r.text) && (r.text[r.at] == '_' || r.text[r.at] == '-' || isAlnum(r.text[r.at])) {
				r.at++
			}
			if k = r.text[from:r.at]; k == "" {
				return nil, fmt.Errorf("line %d: a key is missing before %q", r.line, r.rest())
			}
		}
		keys = append(keys, k)
		if !r.take(".") {
			return keys, nil
		}
	}
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func (r *tomlReader) quoted() (string, error) {
	line := r.rest()
	if line[0] == '\'' {
		end := strings.IndexByte(line[1:], '\'')
		if end < 0 {
			return "", fmt.Errorf("line %d: a text does not end", r.line)
		}
		r.at += end + 2
		return line[1 : end+1], nil
	}
	prefix, err := strconv.QuotedPrefix(line)
	if err != nil {
		return "", fmt.Errorf("line %d: a text does not end", r.line)
	}
	text, err := strconv.Unquote(prefix)
	if err != nil {
		return "", fmt.Errorf("line %d: %w", r.line, err)
	}
	r.at += len(prefix)
	return text, nil
}

func (r *tomlReader) value(depth int) (any, error) {
	r.space(false)
	if r.at == len(r.text) || depth > 4 {
		return nil, fmt.Errorf("line %d: a value is missing", r.line)
	}
	switch c := r.text[r.at]; {
	case c == '"' || c == '\'':
		return r.quoted()
	case c == '[':
		r.at++
		list := []any{}
		for {
			r.space(true)
			if r.take("]") {
				return list, nil
			}
			v, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			r.space(true)
			if !r.take(",") && !strings.HasPrefix(r.text[r.at:], "]") {
				return nil, fmt.Errorf("line %d: a list does not end", r.line)
			}
		}
	}
	from := r.at
	for r.at < len(r.text) && (r.text[r.at] == '_' || r.text[r.at] == '-' || r.text[r.at] == '.' || isAlnum(r.text[r.at])) {
		r.at++
	}
	switch word := r.text[from:r.at]; word {
	case "true", "false":
		return word == "true", nil
	case "":
		return nil, fmt.Errorf("line %d: %q is not supported", r.line, r.rest())
	default:
		if _, err := strconv.ParseFloat(word, 64); err != nil {
			return nil, fmt.Errorf("line %d: %q is not supported", r.line, word)
		}
		return word, nil
	}
}
