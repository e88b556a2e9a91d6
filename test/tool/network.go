package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// Request is what a server saw of a request that asked for /echo.
type Request struct {
	Method, Path, Query, Body, Host, Client string
	Headers                                 http.Header
}

// serve listens on what it is told to: http:PORT, https:PORT or udp:PORT, each
// with =TEXT to answer that instead of this container's host name.
func serve(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("serve: name what to serve, such as http:80 udp:81=hello")
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, arg := range args {
		address, text, given := strings.Cut(arg, "=")
		if !given {
			text = host
		}
		kind, port, ok := strings.Cut(address, ":")
		if !ok {
			return fmt.Errorf("serve: %q names no port", arg)
		}
		switch kind {
		case "udp":
			conn, err := net.ListenPacket("udp", ":"+port)
			if err != nil {
				return err
			}
			g.Go(func() error { return answer(ctx, conn, text) })
		case "http", "https":
			listener, err := net.Listen("tcp", ":"+port)
			if err != nil {
				return err
			}
			if kind == "https" {
				certificate, err := selfSigned(host)
				if err != nil {
					return err
				}
				listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}})
			}
			server := &http.Server{Handler: handler(text), ReadHeaderTimeout: 10 * time.Second}
			g.Go(func() error { return server.Serve(listener) })
			g.Go(func() error { <-ctx.Done(); return server.Close() })
		default:
			return fmt.Errorf("serve: %q is neither http, https nor udp", arg)
		}
	}
	fmt.Println("serving as", host)
	err = g.Wait()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func handler(text string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) })
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Method", r.Method) // an answer to HEAD has no body
		_ = json.NewEncoder(w).Encode(Request{
			Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Body: string(body), Host: r.Host, Client: r.RemoteAddr, Headers: r.Header})
	}
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/echo/", echo)
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.FormValue("to"))
		w.WriteHeader(http.StatusFound)
	})
	return mux
}

// answer sends text back for every packet.
func answer(ctx context.Context, conn net.PacketConn, text string) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	buf := make([]byte, 1500)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo([]byte(text), from); err != nil && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "answer:", err)
		}
	}
}

func selfSigned(host string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

const patience = 3 * time.Second // of one question to one server

// get prints a page, a line each time: get [-n TIMES] URL.
func get(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("get", flag.ContinueOnError)
	times := f.Int("n", 1, "how often, each time by a new connection")
	if err := f.Parse(args); err != nil {
		return err
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for range *times {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Arg(0), nil)
		if err != nil {
			return err
		}
		page, err := client.Do(request)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(page.Body)
		page.Body.Close()
		if err != nil {
			return err
		}
		if page.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", page.Status, body)
		}
		fmt.Println(strings.TrimSpace(string(body)))
	}
	return nil
}

// udp sends a packet and prints the answer, a line each time: udp [-n TIMES] HOST:PORT.
func udp(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("udp", flag.ContinueOnError)
	times := f.Int("n", 1, "how often, each time from a new port")
	if err := f.Parse(args); err != nil {
		return err
	}
	ask := func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", f.Arg(0))
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "who"); err != nil {
			return err
		}
		buf := make([]byte, 1500)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		fmt.Println(string(buf[:n]))
		return nil
	}
	for range *times {
		if err := ask(); err != nil {
			return err
		}
	}
	return nil
}

// dig asks the container's resolver, along its search list, and prints the
// answer's records, a line each as "TYPE DATA": dig [-tcp] TYPE NAME….
func dig(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("dig", flag.ContinueOnError)
	tcp := f.Bool("tcp", false, "ask by TCP")
	if err := f.Parse(args); err != nil {
		return err
	}
	kind, ok := dns.StringToType[f.Arg(0)]
	if !ok || f.NArg() < 2 {
		return errors.New("dig: give a type of record, then names")
	}
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return err
	}
	client := &dns.Client{Timeout: patience}
	if *tcp {
		client.Net = "tcp"
	}
	for _, name := range f.Args()[1:] {
		if err := digOne(ctx, client, config, kind, name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func digOne(ctx context.Context, client *dns.Client, config *dns.ClientConfig, kind uint16, name string) error {
	rcode := dns.RcodeNameError
	for _, full := range config.NameList(name) {
		reply, _, err := client.ExchangeContext(ctx, new(dns.Msg).SetQuestion(full, kind), net.JoinHostPort(config.Servers[0], config.Port))
		if err != nil {
			return err
		}
		if rcode = reply.Rcode; len(reply.Answer) == 0 {
			continue
		}
		for _, record := range reply.Answer {
			h := record.Header()
			fmt.Println(dns.TypeToString[h.Rrtype], strings.TrimPrefix(record.String(), h.String()))
		}
		return nil
	}
	return fmt.Errorf("no such record: %s", dns.RcodeToString[rcode])
}
