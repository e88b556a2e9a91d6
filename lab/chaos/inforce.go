package chaos

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"conclave/lab"
)

// force is a fault on the hosts, until it is undone.
type force struct {
	Fault
	began, until time.Duration // since the start of the run
}

// act is how a kind of fault is done to a host, and undone. What is done to the
// network follows from all faults in force together: see wires.
type act struct {
	do, undo func(d *drill, f Fault, host string) error
}

// byName is an act by the lab's own verb.
func byName(do func(l *lab.Lab, host string) error) func(*drill, Fault, string) error {
	return func(d *drill, _ Fault, host string) error { return do(d.lab, host) }
}

var acts = map[Kind]act{
	Kill:     {byName((*lab.Lab).Kill), start},
	Stop:     {byName((*lab.Lab).Stop), start},
	PowerOff: {powerOff, func(d *drill, _ Fault, host string) error { return boot(d, host, netip.Addr{}) }},
	Readdress: {powerOff, func(d *drill, _ Fault, host string) error {
		return boot(d, host, d.freeAddress())
	}},
	Pause: {byName((*lab.Lab).Pause), byName((*lab.Lab).Resume)},
	Skew: {
		func(d *drill, f Fault, host string) error { return d.lab.Skew(host, f.By) },
		func(d *drill, _ Fault, host string) error { return d.lab.Skew(host, 0) },
	},
	Fill: {byName((*lab.Lab).FillDisk), byName((*lab.Lab).FreeDisk)},
	Corrupt: {func(d *drill, _ Fault, host string) error {
		if err := d.lab.Kill(host); err != nil {
			return err
		}
		// It may have ceased to be a master a moment ago.
		if err := d.lab.CorruptLog(host); err != nil && !errors.Is(err, lab.ErrNoLog) {
			return err
		}
		return nil
	}, start},
}

func powerOff(d *drill, _ Fault, host string) error { return d.lab.PowerOff(host) }

func start(d *drill, _ Fault, host string) error { return d.lab.Start(host, "up") }

func boot(d *drill, host string, address netip.Addr) error {
	if err := d.lab.Boot(host, address); err != nil {
		return err
	}
	return d.lab.Start(host, "up")
}

// freeAddress is an address of the lab that no host has had.
func (d *drill) freeAddress() netip.Addr {
	d.readdressed++
	a := d.lab.Gateway()
	b := a.AsSlice()
	for range 255 - d.readdressed - int(b[len(b)-1]) { // from the end of the subnet downwards
		a = a.Next()
	}
	return a
}

// impose does a fault. What cannot be done is a failure of the drill.
func (d *drill) impose(f Fault) error {
	at := d.since()
	d.mu.Lock()
	d.inForce = append(d.inForce, &force{Fault: f, began: at, until: at + f.For})
	d.mu.Unlock()
	d.tell(at, Event{Kind: "fault", Hosts: f.Hosts, Text: f.String()})
	failed := d.each(f, acts[f.Kind].do)
	if failed != nil {
		return fmt.Errorf("%s: %w", f, failed)
	}
	return nil
}

// lift undoes a fault.
func (d *drill) lift(f *force) error {
	d.mu.Lock()
	d.inForce = slices.DeleteFunc(d.inForce, func(o *force) bool { return o == f })
	d.mu.Unlock()
	failed := d.each(f.Fault, acts[f.Kind].undo)
	at := d.since()
	d.mu.Lock()
	d.past = append(d.past, Span{Kind: f.Kind, Hosts: f.Hosts, Text: f.String(), From: f.began, To: at})
	d.mu.Unlock()
	d.tell(at, Event{Kind: "lifted", Hosts: f.Hosts, Text: string(f.Kind)})
	if failed != nil {
		return fmt.Errorf("undo %s: %w", f.Fault, failed)
	}
	return nil
}

// each does something to all hosts of a fault, and lets everybody see them as
// they are then.
func (d *drill) each(f Fault, do func(*drill, Fault, string) error) error {
	failed := d.wires()
	for _, host := range f.Hosts {
		if do != nil {
			failed = errors.Join(failed, do(d, f, host))
		}
	}
	d.publish()
	return failed
}

// wires makes the lab's network what the faults in force say.
func (d *drill) wires() error {
	loss := map[string]int{}
	d.mu.Lock()
	for _, f := range d.inForce {
		for _, host := range f.Hosts {
			loss[host] += f.Loss
		}
	}
	d.mu.Unlock()
	return d.lab.SetNetwork(d.cuts(), loss)
}

// cuts are the links that the faults in force cut.
func (d *drill) cuts() []lab.Cut {
	var names []string
	for _, h := range d.lab.Hosts {
		names = append(names, h.Name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []lab.Cut
	for _, f := range d.inForce {
		all = append(all, f.cuts(names)...)
	}
	return all
}

// cuts are the links that a fault cuts, of hosts with these names.
func (f Fault) cuts(names []string) (all []lab.Cut) {
	for _, host := range f.Hosts {
		for _, other := range names {
			if slices.Contains(f.Hosts, other) {
				continue
			}
			in, out := lab.Cut{From: other, To: host}, lab.Cut{From: host, To: other}
			switch {
			case f.Kind == Isolate, f.Kind == Partial && slices.Contains(f.Peers, other):
				all = append(all, in, out)
			case f.Kind == Deaf:
				all = append(all, in)
			case f.Kind == Mute:
				all = append(all, out)
			}
		}
	}
	return all
}

// noticeAfter is how long a host may be away unnoticed.
const noticeAfter = 5 * time.Second

// affected is what the faults in force make of a host.
func (d *drill) affected(host string) (s HostState) {
	now := d.since()
	d.mu.Lock()
	defer d.mu.Unlock()
	s.Name = host
	for _, f := range d.inForce {
		if !slices.Contains(f.Hosts, host) {
			continue
		}
		s.Skewed = s.Skewed || f.Kind == Skew
		if f.Kind.takesAway() {
			s.Away, s.Noticed = true, now-f.began > noticeAfter
		}
	}
	return s
}
