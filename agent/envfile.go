package agent

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// envFileMax is as large as a file of variables may be.
const envFileMax = 1 << 20

// readEnvFile reads a file of variables in a volume that the pod itself wrote:
// no link leads out of it, and nothing but a file is read.
func readEnvFile(volume, path string) (map[string]string, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, envFileMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > envFileMax {
		return nil, fmt.Errorf("%s has more than %d bytes", path, envFileMax)
	}
	return parseEnvFile(data)
}

// parseEnvFile reads lines of the form VAR='value', which mean what they mean
// to a shell: what is between the quotes is taken as it is, ends of lines
// included. Blank lines and those that begin with # say nothing. The last of
// one name counts.
func parseEnvFile(data []byte) (map[string]string, error) {
	vars := map[string]string{}
	for line := 1; len(data) > 0; {
		fail := func(what string) (map[string]string, error) {
			return nil, fmt.Errorf("line %d: %s", line, what)
		}
		first, rest, _ := bytes.Cut(data, []byte("\n"))
		if text := bytes.TrimSpace(first); len(text) == 0 || text[0] == '#' {
			data = rest
			line++
			continue
		}
		name, _, ok := bytes.Cut(first, []byte("="))
		if !ok {
			return fail("it is no variable: write NAME='value'")
		}
		value := bytes.TrimLeft(data[len(name)+1:], " \t")
		if name = bytes.TrimSpace(name); len(name) == 0 || !validEnvName(string(name)) {
			return fail(fmt.Sprintf("%q is no name of a variable", name))
		}
		if len(value) == 0 || value[0] != '\'' {
			return fail("the value must be in single quotes")
		}
		inside, after, closed := bytes.Cut(value[1:], []byte("'"))
		if !closed {
			return fail("the closing quote is missing")
		}
		trailing, next, _ := bytes.Cut(after, []byte("\n"))
		if len(bytes.TrimSpace(trailing)) > 0 {
			return fail("nothing may follow the closing quote")
		}
		vars[string(name)] = string(inside)
		line += bytes.Count(inside, []byte("\n")) + 1
		data = next
	}
	return vars, nil
}
