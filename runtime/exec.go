package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

// drainPatience is how long after the end of a command its output may pause
// before it is given up: a process that it left behind can hold the other end
// for ever.
const drainPatience = time.Second

// Exec runs a command in a running container and returns its exit code. If ctx
// ends first, the command is killed. A nil stream is /dev/null; with tty,
// stderr is not used. stdin is read until it ends: its reader must return when
// the caller is done, because a Read cannot be interrupted from here.
func (e *Engine) Exec(ctx context.Context, podID, id string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error) {
	code, err := e.exec(ctx, podID, id, cmd, tty, stdin, stdout, stderr, resize)
	if err != nil {
		return code, fmt.Errorf("exec in container %s of pod %s: %w", id, podID, err)
	}
	return code, nil
}

func (e *Engine) exec(ctx context.Context, podID, id string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error) {
	if len(cmd) == 0 {
		return 0, errors.New("no command")
	}
	conn, err := e.dialPod(podID)
	if err != nil {
		return 0, err
	}
	defer conn.Close()

	s := &streams{done: make(chan struct{})}
	defer s.close()
	var far []*os.File
	defer func() { proto.Close(far) }()
	req := &proto.Exec{Args: cmd, TTY: tty}
	var console *net.UnixConn
	if tty {
		near, child, err := proto.SocketPair()
		if err != nil {
			return 0, err
		}
		defer near.Close()
		console, far = near, []*os.File{child}
	} else {
		req.Stdin, req.Stdout, req.Stderr = stdin != nil, stdout != nil, stderr != nil
		for _, want := range []struct {
			set   bool
			reads bool
			near  **os.File
		}{{req.Stdin, false, &s.in}, {req.Stdout, true, &s.out}, {req.Stderr, true, &s.err}} {
			if !want.set {
				continue
			}
			near, child, err := proto.Pipe(want.reads)
			if err != nil {
				return 0, err
			}
			*want.near = near
			far = append(far, child)
		}
	}
	var started proto.Response
	if err := exchange(ctx, conn, proto.Request{Op: proto.OpExec, ID: id, Exec: req}, far, &started); err != nil {
		return 0, translate(err)
	}
	proto.Close(far)
	far = nil
	// The command is killed by hanging up.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if tty {
		master, err := proto.ReadFile(console)
		if err == nil {
			master, err = proto.Pollable(master)
		}
		if err != nil {
			return 0, fmt.Errorf("receive the terminal: %w", err)
		}
		s.out, s.terminal = master, master
		if stdin != nil {
			s.in = master
		}
		stderr = nil
		go s.resize(resize)
	}
	s.copy(stdin, stdout, stderr)

	var ended proto.Response
	files, err := proto.Read(conn, &ended)
	proto.Close(files)
	s.drain()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("the pod process went away: %w", err)
	}
	if ended.Error != nil {
		return 0, translate(ended.Error)
	}
	return ended.ExitCode, nil
}

// Attach connects to the container's own streams until it exits or ctx ends.
// What it wrote before is in its log only. About stdin see Exec.
func (e *Engine) Attach(ctx context.Context, podID, id string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) error {
	if err := e.attach(ctx, podID, id, stdin, stdout, stderr, resize); err != nil {
		return fmt.Errorf("attach to container %s of pod %s: %w", id, podID, err)
	}
	return nil
}

func (e *Engine) attach(ctx context.Context, podID, id string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) error {
	conn, err := e.dialPod(podID)
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &streams{done: make(chan struct{})}
	defer s.close()
	var far []*os.File
	defer func() { proto.Close(far) }()
	req := &proto.Attach{Stdin: stdin != nil, Stdout: stdout != nil, Stderr: stderr != nil}
	for _, want := range []struct {
		set  bool
		near **os.File
	}{{req.Stdout, &s.out}, {req.Stderr, &s.err}} {
		if !want.set {
			continue
		}
		near, other, err := proto.Pipe(true)
		if err != nil {
			return err
		}
		*want.near = near
		far = append(far, other)
	}
	var attached proto.Response
	files, err := exchangeFiles(ctx, conn, proto.Request{Op: proto.OpAttach, ID: id, Attach: req}, far, &attached)
	if err != nil {
		return translate(err)
	}
	proto.Close(far)
	far = nil
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if len(files) > 0 {
		proto.Close(files[1:])
		// A terminal comes even if nobody types: its size is set through it.
		if isTerminal(files[0]) {
			s.terminal = files[0]
			go s.resize(resize)
		}
		if stdin != nil {
			s.in = files[0]
			s.inEnded = func() {
				// If the container has gone this tells nobody.
				_ = proto.Write(conn, proto.Request{Op: proto.OpAttach, ID: id, Attach: &proto.Attach{CloseStdin: true}})
			}
		}
	}
	s.copy(stdin, stdout, stderr)
	var ended proto.Response
	files, err = proto.Read(conn, &ended)
	proto.Close(files)
	s.drain()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("the pod process went away: %w", err)
	}
	return nil
}

// streams are the near ends of a command's standard streams. in, and terminal,
// may be the same file as out.
type streams struct {
	in, out, err, terminal *os.File
	inEnded                func()        // called when stdin ended by itself
	done                   chan struct{} // closed by close
	ended                  atomic.Bool
	copies                 sync.WaitGroup
}

// copy starts to copy. stdin's goroutine is not waited for: see Exec.
func (s *streams) copy(stdin io.Reader, stdout, stderr io.Writer) {
	if stdin != nil && s.in != nil {
		go func() {
			_, err := io.Copy(s.in, stdin)
			if s.in != s.terminal {
				s.in.Close()
			}
			if err == nil && s.inEnded != nil {
				s.inEnded()
			}
		}()
	}
	for _, c := range []struct {
		w io.Writer
		r *os.File
	}{{stdout, s.out}, {stderr, s.err}} {
		if c.r == nil {
			continue
		}
		if c.w == nil {
			c.w = io.Discard // a terminal nobody looks at must still be emptied
		}
		s.copies.Go(func() { s.copyOut(c.w, c.r) })
	}
}

// copyOut copies until the stream ends, its reader fails, or it pauses after
// the command has ended.
func (s *streams) copyOut(w io.Writer, r *os.File) {
	defer r.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return
			}
			if s.ended.Load() {
				_ = r.SetReadDeadline(time.Now().Add(drainPatience)) // closed is as good
			}
		}
		if err != nil {
			return
		}
	}
}

// drain waits for the rest of the output.
func (s *streams) drain() {
	s.ended.Store(true)
	for _, f := range []*os.File{s.out, s.err} {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainPatience)) // closed is as good
		}
	}
	s.copies.Wait()
}

func (s *streams) close() {
	close(s.done)
	for _, f := range []*os.File{s.in, s.out, s.err, s.terminal} {
		if f != nil {
			f.Close() // twice is as good
		}
	}
}

// resize sets the terminal's size as it is told to.
func (s *streams) resize(sizes <-chan [2]uint16) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			raw, err := s.terminal.SyscallConn()
			if err != nil {
				return
			}
			if raw.Control(func(fd uintptr) {
				// A terminal that is going away needs no size.
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: size[0], Row: size[1]})
			}) != nil {
				return
			}
		case <-s.done:
			return
		}
	}
}

func isTerminal(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) {
		_, ioctlErr = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ)
	}); err != nil {
		return false
	}
	return ioctlErr == nil
}
