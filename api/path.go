package api

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// under says whether a path is one of these or below one.
func under(path string, roots []string) bool {
	path = strings.TrimSuffix(path, "/")
	return slices.ContainsFunc(roots, func(root string) bool {
		return path == root || strings.HasPrefix(path, root+"/")
	})
}

// path answers what is not a resource.
func (x *exchange) path() error {
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		return x.methodNotAllowed()
	}
	path := strings.TrimSuffix(x.r.URL.Path, "/")
	switch {
	case path == "":
		return x.json(map[string][]string{"paths": x.s.paths()})
	case path == "/version":
		return x.json(x.s.cfg.Version)
	case path == "/metrics" && x.s.cfg.Metrics != nil:
		x.format.media = "text/plain; version=0.0.4; charset=utf-8"
		return x.bytes(http.StatusOK, x.s.cfg.Metrics())
	case under(path, []string{"/healthz", "/livez", "/readyz"}):
		return x.health(strings.TrimPrefix(path, "/"))
	case under(path, []string{"/openapi"}):
		return x.openAPI(path)
	case path == "/.well-known/openid-configuration":
		return x.json(map[string]any{
			"issuer": Issuer, "jwks_uri": Issuer + "/openid/v1/jwks", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	case path == "/openid/v1/jwks":
		return x.keys()
	}
	found, err := x.discover(path)
	if !found {
		return errNoSuchPath
	}
	return err
}

func (x *exchange) json(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	x.format.media = mediaJSON
	return x.bytes(http.StatusOK, b)
}

func (s *Server) paths() []string {
	all := []string{"/.well-known/openid-configuration", "/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/openid/v1/jwks", "/readyz", "/version"}
	for _, gv := range s.discovery().order {
		if gv.Group == "" {
			all = append(all, "/api/"+gv.Version)
		} else {
			all = append(all, "/apis/"+gv.Group, "/apis/"+gv.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// health answers the questions of load balancers and people: one word, or one
// line for each check.
func (x *exchange) health(path string) error {
	kind, one, _ := strings.Cut(path, "/")
	type check struct {
		name string
		err  error
	}
	checks := []check{{name: "ping"}}
	if x.s.cfg.Ready != nil && kind != "livez" {
		checks = append(checks, check{"consensus", x.s.cfg.Ready()})
	}
	if one != "" {
		checks = slices.DeleteFunc(checks, func(c check) bool { return c.name != one })
		if len(checks) == 0 {
			return errNoSuchPath
		}
	}
	var b bytes.Buffer
	code := http.StatusOK
	for _, c := range checks {
		if c.err == nil {
			fmt.Fprintf(&b, "[+]%s ok\n", c.name)
			continue
		}
		code = http.StatusInternalServerError
		fmt.Fprintf(&b, "[-]%s failed: %v\n", c.name, c.err)
	}
	_, verbose := x.query["verbose"]
	switch {
	case code != http.StatusOK:
		fmt.Fprintf(&b, "%s check failed\n", kind)
	case verbose:
		fmt.Fprintf(&b, "%s check passed\n", kind)
	default:
		b.Reset()
		b.WriteString("ok")
	}
	x.format.media = "text/plain; charset=utf-8"
	x.w.Header().Set("X-Content-Type-Options", "nosniff")
	return x.bytes(code, b.Bytes())
}

// keys is the public key by which others verify the tokens of service accounts.
func (x *exchange) keys() error {
	if x.s.cfg.ServiceAccountSigner == nil {
		return errNoSuchPath
	}
	signer := x.s.cfg.ServiceAccountSigner()
	if signer == nil {
		return apierrors.NewServiceUnavailable("this node does not have the key of service account tokens yet")
	}
	key, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("token key is a %T", signer.Public())
	}
	kid, err := keyID(key)
	if err != nil {
		return err
	}
	point, err := key.Bytes() // 4, X, Y
	if err != nil {
		return fmt.Errorf("encode the token key: %w", err)
	}
	half := (len(point) - 1) / 2
	b64 := base64.RawURLEncoding.EncodeToString
	return x.json(map[string]any{"keys": []map[string]string{{
		"use": "sig", "kty": "EC", "kid": kid, "crv": "P-256", "alg": "ES256", "x": b64(point[1 : 1+half]), "y": b64(point[1+half:]),
	}}})
}
