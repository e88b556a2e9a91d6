package chaos

import (
	"bytes"
	_ "embed"
	"fmt"
	"html"
	"io"
	"time"
)

// The page is written by hand: the template packages call methods by names that
// nobody knows before, for which the linker keeps every method in the binary.

//go:embed report.css
var style string

// markup is HTML on its way. What is put into it is escaped, be it in a text or
// in an attribute.
type markup struct{ bytes.Buffer }

func (m *markup) put(format string, values ...any) {
	for i, v := range values {
		if s, ok := v.(string); ok {
			values[i] = html.EscapeString(s)
		}
	}
	fmt.Fprintf(m, format, values...)
}

// HTML writes the report as one page that needs nothing else.
func (r *Report) HTML(w io.Writer) error {
	var m markup
	m.put("<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<title>Conclave: chaos, seed %d</title>\n<style>\n", r.Seed)
	m.WriteString(style)
	class := ""
	if len(r.Violations) > 0 {
		class = "bad"
	}
	m.put("</style>\n<h1>Chaos, seed %d: <span class=%q>%s</span></h1>\n", r.Seed, class, r.Result())
	m.put("<p class=\"dim\">%d nodes, %d faults in %s s, begun %s UTC. Again: <code>%s</code></p>\n",
		r.Nodes, len(r.Spans), seconds(r.Sown), r.Started.UTC().Format(time.DateTime), r.Command)
	if len(r.Violations) > 0 {
		m.put("<h2 class=\"bad\">Violations</h2><ol>")
		for _, v := range r.Violations {
			m.put("<li>%s</li>", v)
		}
		m.put("</ol>\n")
	}
	m.picture(r.Timeline())
	m.tables(r)
	m.put("\n<h2>What happened</h2>\n<details><summary>%d events</summary><pre>", len(r.Events))
	for _, e := range r.Events {
		m.put("%8.2f s  %s\n", e.At.Seconds(), e.Line())
	}
	m.put("</pre></details>\n</html>\n")
	_, err := m.WriteTo(w)
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }

// colours explains the picture's.
var colours = [][2]string{
	{"#2e7d32", "leader"}, {"#81c784", "master"}, {"#90caf9", "standby"}, {"#cfd8dc", "node"}, {"#ef6c00", "fault"}, {"#ab47bc", "wrong clock"},
	{"#c62828", "no write, no read, no visit to the Service succeeds (three lines)"},
}

func (m *markup) picture(t Timeline) {
	m.put("\n<h2>Timeline</h2>\n<p class=\"key dim\">")
	for _, c := range colours {
		m.put("\n<span><i style=\"background:%s\"></i>%s</span>", c[0], c[1])
	}
	m.put("</p>\n<div class=\"scroll\"><svg width=\"%d\" height=\"%d\" role=\"img\" aria-label=\"timeline\">\n", t.Width, t.Height)
	for _, tick := range t.Ticks {
		m.put("<line class=\"grid\" x1=\"%[1]d\" x2=\"%[1]d\" y1=\"14\" y2=\"%[2]d\"/><text class=\"dim\" x=\"%[1]d\" y=\"11\">%[3]s</text>\n", tick.X, t.Height, tick.Text)
	}
	for _, lane := range t.Lanes {
		m.put("<text x=\"4\" y=\"%d\">%s</text>\n", lane.TextY, lane.Name)
		for _, b := range lane.Marks {
			m.put("<rect class=\"%s\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"><title>%s</title></rect>\n", b.Class, b.X, b.Y, b.W, b.H, b.Text)
		}
	}
	m.put("</svg></div>\n")
}

func (m *markup) tables(r *Report) {
	m.put("\n<h2>Times</h2>\n<table><tr><th></th><th>times</th><th>median</th><th>p90</th><th>worst</th></tr>\n")
	for _, x := range r.Times {
		m.put("<tr><td>%s</td><td class=\"n\">%d</td>", x.What, len(x.Values))
		for _, q := range []float64{.5, .9, 1} {
			if len(x.Values) > 0 {
				m.put("<td class=\"n\">%s s</td>", seconds(x.Quantile(q)))
			} else {
				m.put("<td></td>")
			}
		}
		m.put("</tr>\n")
	}
	m.put("</table>\n\n<h2>Longest gaps</h2>\n<p class=\"dim\">Without the times during which the host itself was away. Shorter ones than %v s are not counted: clients pause between operations.</p>\n", r.GapFrom())
	m.put("<table><tr><th></th><th>writes</th><th>reads</th><th>Service</th></tr>\n")
	for _, row := range r.GapRows() {
		m.put("<tr>")
		for _, cell := range row {
			m.put("<td>%s</td>", cell)
		}
		m.put("</tr>\n")
	}
	m.put("</table>\n\n<h2>What was checked</h2>\n<table>\n")
	for _, f := range r.Facts() {
		m.put("<tr><th>%s</th><td>%s</td></tr>\n", f[0], f[1])
	}
	m.put("</table>\n")
}
