package flow

import (
	"math"
	"time"

	"k8s.io/utils/ptr"

	"conclave/api/types"
)

// How seats are divided among levels.

const (
	// Period is how long a division of the seats holds, but for changes of levels.
	Period = 10 * time.Second
	// What is left of the demand of long ago after a period.
	keeps = 0.977
)

// share is what a level may have of the seats, whatever is asked of it.
type share struct {
	nominal  int // its own
	min, max int // when the others borrow from it, and when it borrows
}

// shareOf is that of a level which has part of sum shares. Kubernetes rounds a
// nominal limit up, and the others to the nearest.
func shareOf(spec *types.PriorityLevelSpec, seats int, sum float64) share {
	if sum == 0 {
		return share{max: seats}
	}
	part := func(of int, percent *int32) int {
		return int(math.Round(float64(of) * float64(ptr.Deref(percent, 0)) / 100))
	}
	s := share{nominal: int(math.Ceil(float64(seats) * float64(sharesOf(spec)) / sum)), max: seats}
	switch {
	case spec.Exempt != nil:
		s.min = s.nominal - part(s.nominal, spec.Exempt.LendablePercent)
	case spec.Limited != nil:
		s.min = s.nominal - part(s.nominal, spec.Limited.LendablePercent)
		if b := spec.Limited.BorrowingLimitPercent; b != nil {
			s.max = min(seats, s.nominal+part(s.nominal, b))
		}
	}
	return s
}

func sharesOf(spec *types.PriorityLevelSpec) int32 {
	switch {
	case spec.Exempt != nil:
		return ptr.Deref(spec.Exempt.NominalConcurrencyShares, 0)
	case spec.Limited != nil:
		return ptr.Deref(spec.Limited.NominalConcurrencyShares, 0)
	}
	return 0
}

// claim is what one level gets at least and at most in a division, and what it
// wants.
type claim struct{ low, high, wants float64 }

// claimOf is made of a level's share and its demand. What it has lent it gets back
// as far as it was asked for at any moment; what it wants beyond is what it needs
// nearly all the time. Who has a share has one seat: a request that finds none would
// not make the demand by which there is one.
func claimOf(s share, peak int, wants float64) claim {
	low := float64(max(s.min, min(s.nominal, max(peak, 1))))
	return claim{low, max(low, float64(s.max)), max(low, wants)}
}

// divide is how many of the seats each claim gets: the same part, or multiple, of
// what it wants, within its bounds. All are given away unless nobody may have more.
func divide(seats float64, claims []claim) []int {
	at := func(c claim, part float64) float64 { return min(c.high, max(c.low, c.wants*part)) }
	sum := func(part float64) (all float64) {
		for _, c := range claims {
			all += at(c, part)
		}
		return all
	}
	few, many := 0.0, 1.0
	for sum(many) < seats && many < 1e9 {
		many *= 2
	}
	for range 64 {
		if part := (few + many) / 2; sum(part) < seats {
			few = part
		} else {
			many = part
		}
	}
	given := make([]int, len(claims))
	for i, c := range claims {
		given[i] = int(math.Round(at(c, many)))
	}
	return given
}

// demand is how many seats a level needs, over time: for what it serves and what
// waits.
type demand struct {
	now, peak      int
	sum, squares   float64 // over time, in seats × nanoseconds
	since, changed int64   // when the period began, and when now did; nanoseconds
	smooth         float64
}

func (d *demand) set(seats int, at int64) {
	d.pass(at)
	d.now, d.peak = seats, max(d.peak, seats)
}

// pass lets time go by.
func (d *demand) pass(at int64) {
	if past := float64(at - d.changed); past > 0 {
		d.sum += past * float64(d.now)
		d.squares += past * float64(d.now) * float64(d.now)
		d.changed = at
	}
}

// settle ends a period. It returns the most that was needed in it, and what is
// needed nearly all the time: that rises at once and falls slowly. A period has
// become long if nobody came or went for a while; then only its end counts.
func (d *demand) settle(at int64) (peak int, wants float64) {
	d.pass(at)
	peak = d.peak
	mean, deviation, periods := float64(d.now), 0.0, 1.0
	if past := float64(at - d.since); past >= 2*float64(Period) {
		peak, periods = d.now, past/float64(Period)
	} else if past > 0 {
		mean = d.sum / past
		deviation = math.Sqrt(max(0, d.squares/past-mean*mean))
	}
	left := math.Pow(keeps, periods)
	needs := mean + deviation
	d.smooth = max(needs, left*d.smooth+(1-left)*needs)
	*d = demand{now: d.now, peak: d.now, since: at, changed: at, smooth: d.smooth}
	return peak, d.smooth
}
