package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"conclave/runtime/internal/proto"
)

// socketPath is a short path to the socket in dir, good while the folder is
// open: a socket's address has 107 bytes, and a data folder may lie deeper.
func socketPath(dir *os.File) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + proto.SocketFile
}

// listen makes the socket of a pod.
func listen(dir string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(dir, proto.SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(d)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// dial calls a pod process.
func dial(dir string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: socketPath(d)})
}

// exchange sends a request and receives the answer; it gives up with ctx.
func exchange(ctx context.Context, conn *net.UnixConn, req proto.Request, send []*os.File, resp *proto.Response) error {
	_, err := exchangeFiles(ctx, conn, req, send, resp)
	return err
}

// exchangeFiles is exchange where the answer carries files.
func exchangeFiles(ctx context.Context, conn *net.UnixConn, req proto.Request, send []*os.File, resp *proto.Response) ([]*os.File, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := proto.Write(conn, req, send...)
	var files []*os.File
	if err == nil {
		files, err = proto.Read(conn, resp)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		proto.Close(files)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	if resp.Error != nil {
		proto.Close(files)
		return nil, resp.Error
	}
	return files, nil
}

// dialPod calls the process of a pod that is up.
func (e *Engine) dialPod(podID string) (*net.UnixConn, error) {
	e.mu.Lock()
	p := e.pods[podID]
	up := p != nil && p.up
	e.mu.Unlock()
	if !up {
		return nil, fmt.Errorf("pod %s: %w", podID, ErrPodNotFound)
	}
	conn, err := dial(p.dir)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w: %w", podID, ErrPodNotFound, err)
	}
	return conn, nil
}

// call makes one request to a pod process and takes in what it says of the
// container. resp may be nil.
func (e *Engine) call(ctx context.Context, p *pod, req proto.Request, send []*os.File, resp *proto.Response) error {
	conn, err := dial(p.dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPodNotFound, err)
	}
	defer conn.Close()
	if resp == nil {
		resp = new(proto.Response)
	}
	err = exchange(ctx, conn, req, send, resp)
	if resp.Record != nil && req.Op != proto.OpRemove {
		e.mu.Lock()
		e.learn(p, *resp.Record, false)
		e.mu.Unlock()
	}
	return translate(err)
}

// translate makes the package's own errors of a pod process'.
func translate(err error) error {
	var pe *proto.Error
	if !errors.As(err, &pe) {
		return err
	}
	known := map[proto.Code]error{
		proto.CodeNotFound:   ErrContainerNotFound,
		proto.CodeExists:     ErrContainerExists,
		proto.CodeNotRunning: ErrContainerNotRunning,
		proto.CodeStart:      ErrStart,
		proto.CodeFenced:     ErrFenced,
	}
	if sentinel, ok := known[pe.Code]; ok {
		return fmt.Errorf("%w: %s", sentinel, pe.Message)
	}
	return pe
}
