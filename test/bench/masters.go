package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"conclave/test/cluster"
)

// killEvery is what the targets say of masters that die one after another.
const killEvery = 15 * time.Second

// masters: the leader of seven nodes loses its power, then the next one, until
// two nodes are left.
func (b *bench) masters(ctx context.Context) error {
	c, down, err := b.formed(ctx, 7)
	if err != nil {
		return err
	}
	defer down()
	if err := waitVoters(ctx, c, 5); err != nil {
		return err
	}
	var left []string
	for _, h := range c.Hosts {
		left = append(left, h.Name)
	}
	w, err := c.Write(ctx, 20*time.Millisecond, left...)
	if err != nil {
		return err
	}
	defer w.Stop()
	var gaps []time.Duration
	for len(left) > 2 {
		if err := pause(ctx, killEvery); err != nil { // the first kill too has writes before it
			return err
		}
		// The first host may be dead: ask whoever is left.
		leader, err := leaderIn(c.On(ctx, left[0], c.Binary, "status"))
		if err != nil {
			return err
		}
		w.Leave(leader)
		left = slices.DeleteFunc(left, func(n string) bool { return n == leader })
		began := time.Now()
		if err := c.PowerOff(leader); err != nil {
			return err
		}
		if err := eachWrites(ctx, w, left); err != nil {
			return err
		}
		best := time.Hour
		for _, h := range left {
			best = min(best, w.Gap(h, began))
		}
		gaps = append(gaps, best)
	}
	w.Stop()
	for _, h := range left {
		lost, err := w.Lost(ctx, h)
		if err != nil {
			return err
		}
		if len(lost) > 0 {
			return fmt.Errorf("%s has lost %d of %d acknowledged writes", h, len(lost), w.Acknowledged(""))
		}
	}
	b.row("7 nodes, leaders killed one after another down to 2 → write accepted", distribution(gaps), "≤ 1.2 s each")
	b.row("the same: acknowledged writes lost", fmt.Sprintf("0 of %d", w.Acknowledged("")), "0")
	return nil
}

// eachWrites waits until every host has accepted writes again.
func eachWrites(ctx context.Context, w *cluster.Writers, hosts []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, h := range hosts {
		before := w.Acknowledged(h)
		if err := cluster.Eventually(ctx, func() error {
			if n := w.Acknowledged(h) - before; n < 20 {
				return fmt.Errorf("%s has accepted %d writes since the death", h, n)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
