package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/html"
)

// A pod that is seen through the proxy knows nothing of the path that leads to
// it. What its redirects and pages say about paths of its own is moved below
// that path; all else passes as it is.

// linkAttributes are HTML's attributes that hold one URL.
var linkAttributes = map[string]bool{
	"action": true, "background": true, "cite": true, "codebase": true, "data": true, "formaction": true, "href": true,
	"icon": true, "longdesc": true, "manifest": true, "poster": true, "profile": true, "src": true, "usemap": true,
}

// longestToken bounds what one part of a page may hold up in memory; a page
// with a longer one passes unchanged from there on.
const longestToken = 1 << 20

// behind returns what changes the answers of a server that is seen below prefix.
func behind(prefix string) func(*http.Response) error {
	return func(resp *http.Response) error {
		move := func(link string) (string, bool) { return moved(link, prefix, resp.Request.URL.Host) }
		if to, ok := move(resp.Header.Get("Location")); ok {
			resp.Header.Set("Location", to)
		}
		kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		if err != nil || kind != "text/html" || resp.Header.Get("Content-Encoding") != "" || resp.StatusCode == http.StatusSwitchingProtocols {
			return nil
		}
		resp.Header.Del("Content-Length")
		resp.ContentLength = -1
		tokens := html.NewTokenizer(resp.Body)
		tokens.SetMaxBuf(longestToken)
		resp.Body = &page{tokens: tokens, rest: resp.Body, move: move}
		return nil
	}
}

// moved is where a server's link leads below prefix, if it is one to the server
// itself by its whole path.
func moved(link, prefix, host string) (string, bool) {
	u, err := url.Parse(link)
	if err != nil || !strings.HasPrefix(u.Path, "/") || u.Host != "" && u.Host != host || strings.HasPrefix(u.Path, prefix+"/") {
		return "", false
	}
	u.Scheme, u.Host, u.User = "", "", nil
	u.Path, u.RawPath = prefix+u.Path, ""
	return u.String(), true
}

// page is a body of HTML with its links moved, made while it is read.
type page struct {
	tokens *html.Tokenizer
	rest   io.ReadCloser
	move   func(string) (string, bool)
	ready  bytes.Buffer
	ended  error // io.EOF, or nil while there are tokens
	plain  bool  // what follows passes unchanged
}

func (p *page) Read(b []byte) (int, error) {
	for p.ready.Len() == 0 {
		switch {
		case p.ended != nil:
			return 0, p.ended
		case p.plain:
			return p.rest.Read(b)
		}
		p.next()
	}
	return p.ready.Read(b)
}

func (p *page) Close() error { return p.rest.Close() }

// next makes one more token ready.
func (p *page) next() {
	kind := p.tokens.Next()
	raw := bytes.Clone(p.tokens.Raw()) // reading the token changes it
	switch kind {
	case html.ErrorToken:
		if p.ended = p.tokens.Err(); errors.Is(p.ended, html.ErrBufferExceeded) {
			p.ended, p.plain = nil, true
			raw = append(raw, p.tokens.Buffered()...)
		}
	case html.StartTagToken, html.SelfClosingTagToken:
		token, changed := p.tokens.Token(), false
		for i, a := range token.Attr {
			if to, ok := p.move(a.Val); ok && linkAttributes[a.Key] {
				token.Attr[i].Val, changed = to, true
			}
		}
		if changed {
			raw = []byte(token.String())
		}
	}
	p.ready.Write(raw)
}
