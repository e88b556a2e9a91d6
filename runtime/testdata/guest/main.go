// Command guest is what the tests run in containers: one static program with a
// verb per behaviour.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Println("guest without arguments")
		return
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "stderr":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "exit":
		n, err := strconv.Atoi(args[0])
		check(err)
		os.Exit(n)
	case "wait": // ends well when asked to
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGQUIT)
		fmt.Println("ready")
		fmt.Println("got", <-c)
	case "stubborn": // does not end when asked to
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "idle": // says nothing, holds next to nothing
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		<-c
	case "tick": // one numbered line per period, for ever
		d, err := time.ParseDuration(args[0])
		check(err)
		for i := 0; ; i++ {
			fmt.Println("tick", i)
			time.Sleep(d)
		}
	case "tickexit": // some lines, then an exit code
		n, err := strconv.Atoi(args[0])
		check(err)
		code, err := strconv.Atoi(args[1])
		check(err)
		for i := range n {
			fmt.Println("tick", i)
			time.Sleep(10 * time.Millisecond)
		}
		os.Exit(code)
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		check(err)
	case "env":
		for _, e := range os.Environ() {
			fmt.Println(e)
		}
	case "id":
		groups, err := os.Getgroups()
		check(err)
		wd, err := os.Getwd()
		check(err)
		fmt.Println("uid", os.Getuid(), "gid", os.Getgid(), "groups", groups, "home", os.Getenv("HOME"), "wd", wd)
	case "status": // fields of /proc/self/status
		data, err := os.ReadFile("/proc/self/status")
		check(err)
		for line := range strings.Lines(string(data)) {
			for _, a := range args {
				if strings.HasPrefix(line, a+":") {
					fmt.Print(line)
				}
			}
		}
	case "read":
		data, err := os.ReadFile(args[0])
		check(err)
		fmt.Print(string(data))
	case "write":
		check(os.WriteFile(args[0], []byte(args[1]), 0o644))
	case "ls":
		entries, err := os.ReadDir(args[0])
		check(err)
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	case "hostname":
		h, err := os.Hostname()
		check(err)
		fmt.Println(h)
	case "pids":
		entries, err := os.ReadDir("/proc")
		check(err)
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				comm, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
				fmt.Println(e.Name(), strings.TrimSpace(string(comm)))
			}
		}
	case "eat": // MiB
		n, err := strconv.Atoi(args[0])
		check(err)
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("ate", n)
	case "spawn": // leaves a child behind and ends
		c := exec.Command("/proc/self/exe", args...)
		c.Stdout = os.Stdout
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		check(c.Start())
		fmt.Println("child", c.Process.Pid)
	case "tty": // reads a line, then says how large its terminal is
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		check(err)
		var size [4]uint16
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size))); e != 0 {
			check(e)
		}
		fmt.Printf("line %q rows %d columns %d\n", line, size[0], size[1])
	case "try":
		try(args)
	case "hunt":
		hunt(args[0], args[1])
	case "fds":
		fds()
	case "key":
		key(args)
	case "bomb":
		bomb()
	case "flood": // MiB
		n, err := strconv.Atoi(args[0])
		check(err)
		flood(n)
	default:
		check(fmt.Errorf("unknown verb %q", os.Args[1]))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(9)
	}
}
