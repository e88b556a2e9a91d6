package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// reach asks many servers at once, each given as http:HOST:PORT,
// udp:HOST:PORT or icmp:HOST, and prints a line for each, in order: the name
// that answers (pong, to a ping), or "-" if nobody does for as long as an answer
// would never take.
func reach(ctx context.Context, targets []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answers := make([]string, len(targets))
	var all sync.WaitGroup
	for i, target := range targets {
		kind, address, ok := strings.Cut(target, ":")
		ask := map[string]func(context.Context, string) (string, error){"http": askHTTP, "udp": askUDP, "icmp": askICMP}[kind]
		if !ok || ask == nil {
			return fmt.Errorf("reach: %q is neither http:HOST:PORT, udp:HOST:PORT nor icmp:HOST", target)
		}
		all.Go(func() {
			if answer, err := ask(ctx, address); err == nil {
				answers[i] = strings.TrimSpace(answer)
			}
		})
	}
	all.Wait()
	for _, answer := range answers {
		if answer == "" {
			answer = "-"
		}
		fmt.Println(answer)
	}
	return nil
}

// dialUntil makes a connection that is of no use after ctx's deadline.
func dialUntil(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// askICMP pings, which takes CAP_NET_RAW.
func askICMP(ctx context.Context, host string) (string, error) {
	conn, err := dialUntil(ctx, "ip4:icmp", host)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// An echo request with a number of its own; the checksum makes the sum of
	// all words ones.
	number := uint16(rand.Uint32())
	request := binary.BigEndian.AppendUint16([]byte{8, 0}, ^uint16(0))
	sum := uint32(8<<8) + uint32(number)
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(request[2:], ^uint16(sum))
	request = binary.BigEndian.AppendUint16(request, number)
	request = binary.BigEndian.AppendUint16(request, 0)
	if _, err := conn.Write(request); err != nil {
		return "", err
	}
	answer := make([]byte, 64)
	for {
		n, _, err := conn.(*net.IPConn).ReadFromIP(answer) // without the IP header
		if err != nil {
			return "", err
		}
		if n >= 8 && answer[0] == 0 && binary.BigEndian.Uint16(answer[4:]) == number {
			return "pong", nil
		}
	}
}

func askHTTP(ctx context.Context, address string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
	if err != nil {
		return "", err
	}
	page, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return "", err
	}
	defer page.Body.Close()
	body, err := io.ReadAll(page.Body)
	return string(body), err
}

func askUDP(ctx context.Context, address string) (string, error) {
	conn, err := dialUntil(ctx, "udp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "who"); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}
