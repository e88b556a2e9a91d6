package runtime

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// A layer is kept unpacked alone. So that other nodes can have it from this one,
// and check it by the digest that its image names, its tar can be made again
// byte for byte: the recipe holds what of the tar is no file's content (headers
// and padding, which compress well), and names the files whose content goes in
// between. It is one gzip stream of steps:
//
//	0, length, bytes        bytes to be written as they are
//	1, length, path, size   the content of a file of the layer
//	2                       the end
//
// Numbers are uvarints. A layer of which a later entry replaces an earlier one
// has no recipe: nobody is served it.
const (
	stepBytes = iota
	stepFile
	stepEnd
)

const (
	literalMax = 32 << 10 // of one step
	pathMax    = 4 << 10
)

// recorder reads a layer's tar and writes its recipe on the way.
type recorder struct {
	from    io.Reader
	out     *bufio.Writer
	literal []byte
	inFile  bool
	copied  int64
	broken  error // why there is no recipe
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	switch {
	case r.broken != nil:
	case r.inFile:
		r.copied += int64(n)
	default:
		r.literal = append(r.literal, b[:n]...)
		if len(r.literal) >= literalMax {
			r.flush()
		}
	}
	return n, err
}

// spoil gives the recipe up.
func (r *recorder) spoil(why string) {
	if r != nil && r.broken == nil {
		r.broken = errors.New(why)
		r.literal = nil
	}
}

func (r *recorder) write(step byte, numbersAndBytes ...any) {
	if r.broken != nil {
		return
	}
	err := r.out.WriteByte(step)
	for _, v := range numbersAndBytes {
		if err != nil {
			break
		}
		switch v := v.(type) {
		case int64:
			_, err = r.out.Write(binary.AppendUvarint(nil, uint64(v)))
		case []byte:
			_, err = r.out.Write(v)
		}
	}
	r.broken = err
}

func (r *recorder) flush() {
	if len(r.literal) > 0 {
		r.write(stepBytes, int64(len(r.literal)), r.literal)
		r.literal = r.literal[:0]
	}
}

// file says that what is read until done is called is the content of a file.
func (r *recorder) file(path string, size int64) (done func()) {
	if r == nil || size == 0 {
		return func() {}
	}
	r.flush()
	if len(path) > pathMax {
		r.spoil("a path is too long")
	}
	r.write(stepFile, int64(len(path)), []byte(path), size)
	r.inFile, r.copied = true, 0
	return func() {
		r.inFile = false
		if r.copied != size { // a sparse file: the tar has less than the file
			r.spoil("a file differs from what the tar has of it")
		}
	}
}

func (r *recorder) end() error {
	r.flush()
	r.write(stepEnd)
	if r.broken != nil {
		return r.broken
	}
	return r.out.Flush()
}

// errNoRecipe says that a layer cannot be packed again.
var errNoRecipe = errors.New("the layer's tar cannot be made again")

func (s *store) recipePath(id string) string { return filepath.Join(s.layersDir(), id+".recipe") }

// packs says whether a layer can be packed again.
func (s *store) packs(diffID string) bool {
	_, err := os.Stat(s.recipePath(layerID(diffID)))
	return err == nil
}

// pack writes a layer's tar. It trusts neither the recipe nor the layer to be
// whole: whoever reads it checks the digest.
func (s *store) pack(ctx context.Context, diffID string, w io.Writer) error {
	release := s.hold([]string{diffID})
	defer release()
	if _, err := s.layer(diffID); err != nil {
		return err
	}
	f, err := os.Open(s.recipePath(layerID(diffID)))
	if errors.Is(err, fs.ErrNotExist) {
		return errNoRecipe
	}
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReaderSize(f, 16<<10))
	if err != nil {
		return fmt.Errorf("%w: recipe of layer %s: %w", ErrDamagedImage, diffID, err)
	}
	root, err := os.OpenFile(filepath.Join(s.layersDir(), layerID(diffID)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	return cook(ctx, root, bufio.NewReaderSize(z, 16<<10), w)
}

// cook follows a recipe.
func cook(ctx context.Context, root *os.File, r *bufio.Reader, w io.Writer) error {
	damaged := func(err error) error { return fmt.Errorf("%w: a layer's recipe: %w", ErrDamagedImage, err) }
	number := func(limit uint64) (int64, error) {
		n, err := binary.ReadUvarint(r)
		if err == nil && n > limit {
			err = fmt.Errorf("%d is too much", n)
		}
		return int64(n), err
	}
	for ctx.Err() == nil {
		step, err := r.ReadByte()
		if err != nil {
			return damaged(err)
		}
		switch step {
		case stepBytes:
			n, err := number(2 * literalMax * 64)
			if err != nil {
				return damaged(err)
			}
			if _, err := io.CopyN(w, r, n); err != nil {
				return err
			}
		case stepFile:
			n, err := number(pathMax)
			if err != nil {
				return damaged(err)
			}
			path := make([]byte, n)
			if _, err := io.ReadFull(r, path); err != nil {
				return damaged(err)
			}
			size, err := number(math.MaxInt64)
			if err != nil {
				return damaged(err)
			}
			if err := copyFile(root, string(path), size, w); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		case stepEnd:
			return nil
		default:
			return damaged(fmt.Errorf("step %d", step))
		}
	}
	return ctx.Err()
}

func copyFile(root *os.File, path string, size int64, w io.Writer) error {
	handle, err := pathrs.OpenatInRoot(root, path)
	if err != nil {
		return err
	}
	defer handle.Close()
	info, err := handle.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return fmt.Errorf("%w: it is not the file that was unpacked", ErrDamagedImage)
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(w, f, size)
	return err
}
