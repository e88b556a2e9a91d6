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

// act is how a kind of fault is done and undone.
type act struct {
	do, undo func(d *drill, host string) error
	// away: the hosts cannot do their duties meanwhile.
	away bool
}

// cut is the act of all faults of the network: which links are cut follows from
// all that are in force.
var cut = act{
	away: true,
	do:   func(*drill, string) error { return nil },
	undo: func(*drill, string) error { return nil },
}

var acts = map[Kind]act{
	Kill: {
		away: true,
		do:   func(d *drill, host string) error { return d.lab.Kill(host) },
		undo: start,
	},
	Stop: {
		away: true,
		do:   func(d *drill, host string) error { return d.lab.Stop(host) },
		undo: start,
	},
	PowerOff: {
		away: true,
		do:   func(d *drill, host string) error { return d.lab.PowerOff(host) },
		undo: func(d *drill, host string) error { return boot(d, host, netip.Addr{}) },
	},
	Readdress: {
		away: true,
		do:   func(d *drill, host string) error { return d.lab.PowerOff(host) },
		undo: func(d *drill, host string) error { return boot(d, host, d.freeAddress()) },
	},
	Pause: {
		away: true,
		do:   func(d *drill, host string) error { return d.lab.Pause(host) },
		undo: func(d *drill, host string) error { return d.lab.Resume(host) },
	},
	Isolate: cut, Deaf: cut, Mute: cut, Partial: cut,
}

func start(d *drill, host string) error { return d.lab.Start(host, "up") }

func boot(d *drill, host string, address netip.Addr) error {
	if err := d.lab.Boot(host, address); err != nil {
		return err
	}
	return start(d, host)
}

// freeAddress is an address of the lab that no host has had.
func (d *drill) freeAddress() netip.Addr {
	d.readdressed++
	a := d.lab.Gateway()
	for range 255 - d.readdressed - int(a.As4()[3]) { // from the end of the subnet downwards
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
	failed := d.each(f.Hosts, acts[f.Kind].do)
	d.publish()
	if failed != nil {
		return fmt.Errorf("%s: %w", f, failed)
	}
	return nil
}

// lift undoes a fault.
func (d *drill) lift(f *force) error {
	failed := func() error {
		d.mu.Lock()
		d.inForce = slices.DeleteFunc(d.inForce, func(o *force) bool { return o == f })
		d.mu.Unlock()
		return d.each(f.Hosts, acts[f.Kind].undo)
	}()
	d.publish()
	at := d.since()
	d.mu.Lock()
	d.past = append(d.past, Span{Kind: string(f.Kind), Hosts: f.Hosts, Text: f.String(), From: f.began, To: at})
	d.mu.Unlock()
	d.tell(at, Event{Kind: "lifted", Hosts: f.Hosts, Text: string(f.Kind)})
	if failed != nil {
		return fmt.Errorf("undo %s: %w", f.Fault, failed)
	}
	return nil
}

func (d *drill) each(hosts []string, do func(d *drill, host string) error) error {
	failed := d.lab.SetCuts(d.cuts())
	for _, host := range hosts {
		failed = errors.Join(failed, do(d, host))
	}
	return failed
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

// away says whether a fault in force keeps a host from its duties, and touched
// whether any fault is in force on it.
func (d *drill) away(host string) (away, touched bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.inForce {
		if slices.Contains(f.Hosts, host) {
			touched = true
			away = away || acts[f.Kind].away
		}
	}
	return away, touched
}
