// Package wireguard makes one link of this host a WireGuard tunnel and keeps it
// as it is told: by the kernel where it can, and otherwise by a process that
// holds wireguard-go and nothing else.
//
// # What is made
//
// A link, of type wireguard (the kernel's) or tun (the process's end of it). It
// stays while this program is away, with its addresses and routes, and the
// kernel's does its work all the same. So does the process: it is this program
// under another name, in a session of its own and in the cgroup in which
// Config.Start puts it, with a socket in Config.Dir. A program that starts
// finds it there and adopts it, unless it speaks another version of what is
// spoken at the socket (process.go): then it is replaced. One that has died is
// started again. It ends when its link is removed, and so needs nobody to end it.
//
// # What always holds
//
//   - Both sorts are told the same: a Device says all, what is there is asked
//     for, and a pure function (Device.to) says the difference. The process
//     understands WireGuard's textual configuration protocol, the kernel
//     generic netlink (uapi.go, kernel.go).
//   - A peer whose address or range changes keeps its session; one that stays
//     as it was is not touched.
//   - A peer that is new is greeted at once, whoever has something to send
//     first: so a session is there again a round trip after one end has lost
//     it.
//   - The private key is on the disk in one file, for root alone, and in the
//     kernel or the process; nothing else shows it.
//   - The process takes a bounded number of packets at a time, and so a bounded
//     amount of memory (process.go).
//
// # Goroutines
//
// While a process lives that is known here, one waits for its end, and calls
// Config.Died; Close ends it. One more reaps a process that was started here;
// it ends with the process.
//
// No machine that builds this has a kernel with WireGuard: what is said to one
// and heard from it is tested by its bytes, against the kernel's header and what
// other programs are known to send.
package wireguard
