package chaos

import (
	"fmt"
	"time"
)

// Timeline is the picture of a run: a lane for each host, with its role, the
// faults in force on it, and when nobody got anything done by way of it.
type Timeline struct {
	Width, Height int
	Ticks         []Tick
	Lanes         []Lane
}

// Tick is a time on the axis.
type Tick struct {
	X    int
	Text string
}

// Lane is a host's part.
type Lane struct {
	Name  string
	TextY int
	Marks []Mark
}

// Mark is a box.
type Mark struct {
	Class string
	X, W  float64
	Y, H  int
	Text  string
}

// Measures of the picture, in pixels.
const (
	pictureWidth = 1180 // at least
	perSecond    = 5    // at least
	laneTop      = 18
	laneHeight   = 40
	nameWidth    = 70
)

// Timeline draws the run.
func (r *Report) Timeline() Timeline {
	total := max(r.Finished, time.Second)
	scale := max(perSecond, float64(pictureWidth-nameWidth-10)/total.Seconds())
	x := func(at time.Duration) float64 { return nameWidth + at.Seconds()*scale }
	t := Timeline{Width: int(x(total)) + 10, Height: laneTop + laneHeight*len(r.Hosts) + 4}
	for _, step := range []int{5, 10, 30, 60, 300} {
		if float64(step)*scale < 60 && step < 300 {
			continue
		}
		for at := 0; at <= int(total.Seconds()); at += step {
			t.Ticks = append(t.Ticks, Tick{int(x(time.Duration(at) * time.Second)), fmt.Sprintf("%d:%02d", at/60, at%60)})
		}
		break
	}
	for i, host := range r.Hosts {
		top := laneTop + laneHeight*i
		lane := Lane{Name: host, TextY: top + 18}
		mark := func(class string, from, to time.Duration, y, h int, format string, args ...any) {
			text := fmt.Sprintf(format, args...)
			lane.Marks = append(lane.Marks, Mark{class, x(from), max(1, x(to)-x(from)), top + y, h, fmt.Sprintf("%s %s, %.1f to %.1f s", host, text, from.Seconds(), to.Seconds())})
		}
		for j := 0; j < len(r.looks); {
			class := r.looks[j].class(host)
			end := j + 1
			for end < len(r.looks) && r.looks[end].class(host) == class {
				end++
			}
			until := total
			if end < len(r.looks) {
				until = r.looks[end].At
			}
			if class != "down" {
				mark(class, r.looks[j].At, until, 8, 12, "%s", class)
			}
			j = end
		}
		for _, f := range r.Spans {
			for _, hit := range f.Hosts {
				if hit != host {
					continue
				}
				if f.Kind == Skew {
					mark("skew", f.From, f.To, 21, 2, "%s", f.Text)
				} else {
					mark("fault", f.From, f.To, 2, 5, "%s", f.Text)
				}
			}
		}
		for line, what := range gapped {
			for _, g := range r.Gaps {
				if g.Host == host && g.What == what {
					mark("gap", g.From, g.To, 25+4*line, 3, "no %s", what)
				}
			}
		}
		t.Lanes = append(t.Lanes, lane)
	}
	return t
}

// class is a host's role, or "down" when its conclave does not answer.
func (l look) class(host string) string {
	switch role := l.Roles[host]; {
	case !l.Up[host]:
		return "down"
	case role == "":
		return string(Plain)
	default:
		return string(role)
	}
}
