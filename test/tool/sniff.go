package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// sniff writes a line into a file for each packet of IPv4 that opens something
// and comes in by a link: "tcp CLIENT PORT" for one that asks for a connection,
// "udp CLIENT PORT" for any, "icmp CLIENT 0" for a ping: sniff FILE.
func sniff(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("sniff: name the file to write into")
	}
	const allIP = unix.ETH_P_IP<<8 | unix.ETH_P_IP>>8 // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, allIP&0xffff)
	if err != nil {
		return fmt.Errorf("sniff: %w", err)
	}
	packets := os.NewFile(uintptr(fd), "packets")
	defer context.AfterFunc(ctx, func() { packets.Close() })()
	out, err := os.OpenFile(args[0], os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	conn, err := packets.SyscallConn()
	if err != nil {
		return err
	}
	fmt.Println("sniffing")
	buf := make([]byte, 128)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := conn.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if ctx.Err() != nil {
			return nil
		}
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Pkttype != unix.PACKET_HOST || link.Hatype == unix.ARPHRD_LOOPBACK {
			continue
		}
		if line := opens(buf[:n]); line != "" {
			if _, err := fmt.Fprintln(out, line); err != nil {
				return err
			}
		}
	}
}

// opens describes a packet that opens something, and is empty for others.
func opens(p []byte) string {
	if len(p) < 20 || p[0]>>4 != 4 {
		return ""
	}
	client := netip.AddrFrom4([4]byte(p[12:16]))
	head := int(p[0]&0xf) * 4
	body := p[min(head, len(p)):]
	switch {
	case p[9] == unix.IPPROTO_TCP && len(body) >= 14 && body[13]&0x12 == 0x02: // SYN without ACK
		return fmt.Sprintf("tcp %s %d", client, binary.BigEndian.Uint16(body[2:]))
	case p[9] == unix.IPPROTO_UDP && len(body) >= 4:
		return fmt.Sprintf("udp %s %d", client, binary.BigEndian.Uint16(body[2:]))
	case p[9] == unix.IPPROTO_ICMP && len(body) >= 1 && body[0] == 8:
		return fmt.Sprintf("icmp %s 0", client)
	}
	return ""
}
