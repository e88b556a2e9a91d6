package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"conclave/cli/internal/cli"
)

// An initSystem knows how to keep conclave running from boot.
type initSystem struct {
	name    string
	present string // a path that shows that this machine uses it
	file    string
	mode    os.FileMode
	content func(binary, dataDir string) string
	enable  [][]string
	disable [][]string
}

var initSystems = []initSystem{
	{
		name: "systemd", present: "/run/systemd/system", file: "/etc/systemd/system/conclave.service", mode: 0o644,
		content: func(binary, dataDir string) string {
			// KillMode=process: pods outlive a restart of the service.
			return fmt.Sprintf(`[Unit]
Description=Conclave, a Kubernetes cluster of equals
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=%s up --data-dir %s
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`, binary, dataDir)
		},
		enable:  [][]string{{"systemctl", "daemon-reload"}, {"systemctl", "enable", "conclave.service"}},
		disable: [][]string{{"systemctl", "disable", "conclave.service"}, {"systemctl", "daemon-reload"}},
	},
	{
		name: "OpenRC", present: "/sbin/openrc-run", file: "/etc/init.d/conclave", mode: 0o755,
		content: func(binary, dataDir string) string {
			return fmt.Sprintf(`#!/sbin/openrc-run
description="Conclave, a Kubernetes cluster of equals"
supervisor=supervise-daemon
command=%q
command_args="up --data-dir %s"
output_log=/var/log/conclave.log
error_log=/var/log/conclave.log
respawn_delay=1

depend() {
	need net
}
`, binary, dataDir)
		},
		enable:  [][]string{{"rc-update", "add", "conclave", "default"}},
		disable: [][]string{{"rc-update", "del", "conclave", "default"}},
	},
}

func serviceCommand() *cli.Command {
	dataDir := &cli.StringFlag{Name: "data-dir", Value: DefaultDataDir, Usage: "folder of this node's state", EnvVars: []string{"CONCLAVE_DATA_DIR"}}
	root := &cli.PathFlag{Name: "root", Value: "/", Hidden: true}
	return &cli.Command{
		Name: "service", Usage: "start conclave at boot, by systemd or OpenRC",
		Subcommands: []*cli.Command{
			{Name: "install", Usage: "write the service and enable it; it starts at the next boot, or by hand", Flags: []cli.Flag{dataDir, root}, Action: func(c *cli.Context) error {
				binary, err := os.Executable()
				if err != nil {
					return err
				}
				system, err := findInit(c.Path("root"))
				if err != nil {
					return err
				}
				if strings.ContainsAny(binary+c.String("data-dir"), " \"'\n%$") {
					return errors.New("the binary and the data folder must have paths without spaces, quotes, % and $")
				}
				if err := os.WriteFile(c.Path("root")+system.file, []byte(system.content(binary, c.String("data-dir"))), system.mode); err != nil {
					return fmt.Errorf("write the %s service: %w", system.name, err)
				}
				if err := runAll(c, system.enable); err != nil {
					return err
				}
				fmt.Fprintf(c.App.Writer, "%s starts `conclave up` at boot: %s\n", system.name, system.file)
				return nil
			}},
			{Name: "uninstall", Usage: "disable the service and remove it", Flags: []cli.Flag{dataDir, root}, Action: func(c *cli.Context) error {
				system, err := findInit(c.Path("root"))
				if err != nil {
					return err
				}
				if _, err := os.Stat(c.Path("root") + system.file); err != nil {
					return fmt.Errorf("no service is installed: %w", err)
				}
				failed := runAll(c, system.disable)
				if err := os.Remove(c.Path("root") + system.file); err != nil {
					return fmt.Errorf("remove the %s service: %w", system.name, err)
				}
				return failed
			}},
		},
	}
}

func findInit(root string) (initSystem, error) {
	for _, s := range initSystems {
		if _, err := os.Stat(root + s.present); err == nil {
			return s, nil
		}
	}
	return initSystem{}, errors.New("this machine runs neither systemd nor OpenRC: have its init run `conclave up`")
}

// runAll runs the init system's own commands; another root has none.
func runAll(c *cli.Context, commands [][]string) error {
	if c.Path("root") != "/" {
		return nil
	}
	for _, argv := range commands {
		if out, err := exec.CommandContext(c.Context, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
