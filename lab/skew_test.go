package lab

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSkewAtStart makes clocks wrong of processes that have just been started.
func TestSkewAtStart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("writing to another process's memory needs root")
	}
	if !CanSkew() {
		t.Skip(ErrNoSkew)
	}
	for range 50 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "tell-time")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p, err := identify(cmd.Process.Pid)
		if err == nil {
			err = p.skew(86400)
		}
		_, asked := fmt.Fprintln(in)
		if err := errors.Join(err, asked, in.Close(), cmd.Wait()); err != nil {
			t.Fatal(err)
		}
		var wall int64
		if _, err := fmt.Sscan(out.String(), &wall); err != nil || wall-time.Now().Unix() < 80000 {
			t.Errorf("it says %q (%v)", out.String(), err)
		}
	}
}

// tellTime is what a process of TestSkew does: for every line that it reads, it
// says what its clocks show.
func tellTime() {
	begun := time.Now()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(time.Now().Unix(), int64(time.Since(begun)))
	}
	os.Exit(0)
}

func TestSkew(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("writing to another process's memory needs root")
	}
	if !CanSkew() {
		t.Skip(ErrNoSkew)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "tell-time")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	}()
	clocks := func() (wall, steady int64) {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscan(out, &wall, &steady); err != nil {
			t.Fatal(err)
		}
		return wall, steady
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	_, before := clocks()
	for _, skew := range []int64{3600, -86400, 0, 1 << 40} {
		if err := p.skew(skew); err != nil {
			t.Fatal(err)
		}
		now := time.Now().Unix()
		wall, steady := clocks()
		if wrong := wall - now - skew; wrong < 0 || wrong > 60 {
			t.Errorf("with a skew of %d s the clock shows %d, and it is %d", skew, wall, now)
		}
		if steady < before || steady-before > int64(time.Minute) {
			t.Errorf("with a skew of %d s the steady clock went from %d to %d", skew, before, steady)
		}
		before = steady
	}
	// A paused process stays paused.
	if err := p.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := p.standsAt(); err != nil {
		t.Fatal(err)
	}
	if err := p.skew(0); err != nil {
		t.Fatal(err)
	}
	if _, state, err := stat(p.PID); err != nil || state != 'T' {
		t.Errorf("its state is %c (%v)", state, err)
	}
	if err := p.signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if wall, _ := clocks(); wall-time.Now().Unix() > 60 {
		t.Errorf("it shows %d", wall)
	}
}
