package wireguard

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The textual protocol by which a WireGuard of user space is configured: lines
// of key=value, and an empty one behind the last. What is asked ends in the
// line errno=0.
// https://www.wireguard.com/xplatform/#cross-platform-userspace-implementation

// process speaks it over a connection.
type uapi struct {
	rw *bufio.ReadWriter
}

func newUAPI(c io.ReadWriter) uapi {
	return uapi{bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))}
}

func (u uapi) get() (Device, error) {
	if _, err := u.rw.WriteString("get=1\n\n"); err != nil {
		return Device{}, err
	}
	if err := u.rw.Flush(); err != nil {
		return Device{}, err
	}
	return readUAPI(u.rw.Reader)
}

func (u uapi) set(c change) error {
	if _, err := u.rw.WriteString(c.text()); err != nil {
		return err
	}
	if err := u.rw.Flush(); err != nil {
		return err
	}
	_, err := readUAPI(u.rw.Reader)
	return err
}

// text is a change as the process is told it.
func (c change) text() string {
	var b strings.Builder
	say := func(key string, value any) { fmt.Fprintf(&b, "%s=%v\n", key, value) }
	say("set", 1)
	if c.Key != nil {
		say("private_key", hex.EncodeToString(c.Key[:]))
	}
	if c.Port != nil {
		say("listen_port", *c.Port)
	}
	for _, k := range c.Gone {
		say("public_key", hex.EncodeToString(k[:]))
		say("remove", true)
	}
	for _, p := range c.Peers {
		say("public_key", hex.EncodeToString(p.Key[:]))
		if p.Endpoint.IsValid() {
			say("endpoint", p.Endpoint)
		}
		if p.Allowed != nil {
			say("replace_allowed_ips", true)
			for _, a := range p.Allowed {
				say("allowed_ip", a)
			}
		}
		if p.New {
			say("persistent_keepalive_interval", keepalive)
		}
	}
	b.WriteString("\n")
	return b.String()
}

// readUAPI reads an answer. What it does not know it passes over.
func readUAPI(r *bufio.Reader) (d Device, err error) {
	d.Peers = map[Key]Peer{}
	var peer *Key
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return d, fmt.Errorf("the answer ends too early: %w", err)
		}
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return d, fmt.Errorf("the answer has a line %q", line)
		}
		if key == "errno" {
			if end, err := r.ReadString('\n'); err != nil || end != "\n" {
				return d, fmt.Errorf("the answer does not end: %q, %w", end, err)
			}
			for _, p := range d.Peers {
				sortPrefixes(p.Allowed)
			}
			return d, errnoOf(value)
		}
		if err := d.take(&peer, key, value); err != nil {
			return d, fmt.Errorf("the answer says %s=%s: %w", key, value, err)
		}
	}
}

func errnoOf(value string) error {
	n, err := strconv.Atoi(value)
	switch {
	case err != nil:
		return fmt.Errorf("the answer ends in errno=%s", value)
	case n != 0:
		return fmt.Errorf("refused: %w", unix.Errno(max(n, -n)))
	}
	return nil
}

// take takes in one line. peer is whom lines speak of, nil in the device's own.
func (d *Device) take(peer **Key, key, value string) error {
	switch key {
	case "private_key", "public_key":
		raw, err := hex.DecodeString(value)
		if err != nil || len(raw) != len(Key{}) {
			return unix.EINVAL
		}
		k := Key(raw)
		if key == "private_key" {
			d.Key = k
			return nil
		}
		*peer = &k
		d.Peers[k] = Peer{}
	case "listen_port":
		port, err := strconv.ParseUint(value, 10, 16)
		d.Port = uint16(port)
		return err
	case "endpoint", "allowed_ip":
		if *peer == nil {
			return unix.EINVAL
		}
		p := d.Peers[**peer]
		var err error
		if key == "endpoint" {
			p.Endpoint, err = netip.ParseAddrPort(value)
		} else {
			var a netip.Prefix
			a, err = netip.ParsePrefix(value)
			p.Allowed = append(p.Allowed, a)
		}
		d.Peers[**peer] = p
		return err
	}
	return nil
}
