// Command perdure is the server and the operator's tool for it, in one binary.
//
// It is the only place, together with package settings, that reads flags, the environment, files and signals. Exit codes:
// 0 done, 1 failed, 2 the command line makes no sense.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"perdure/nodes/node"
)

// version is set by the linker.
var version = "dev"

// runningNode is what the server command needs of a started node.
type runningNode interface {
	Addresses() node.Addresses
	// Done yields the error that ended the node, if it ends on its own.
	Done() <-chan error
	Shutdown(ctx context.Context) error
}

// app is one run of the program with everything that it may touch.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      []string
	start    func(context.Context, node.Config, *slog.Logger) (runningNode, error)
	started  bool // a command was found and its arguments make sense
}

func main() {
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Environ(), start: startNode}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// run executes a command line and gives the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var code exitCode
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case !a.started || errors.As(err, &usage):
		fmt.Fprintf(a.err, "perdure: %v\nRun '%s --help' to see what there is.\n", err, cmd.CommandPath())
		return 2
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(a.err, "perdure: %s\n", strings.TrimRight(line, "\n"))
	}
	return 1
}

// exitCode ends the program with this code, everything having been said.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a mistake on the command line that cobra does not see.
type usageError struct{ error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// getenv is the value of a variable, or empty.
func (a *app) getenv(name string) string {
	for i := len(a.env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(a.env[i], name+"="); ok {
			return v
		}
	}
	return ""
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "perdure",
		Short: "Durable execution for services written with the Restate SDKs",
		Long: `Perdure records each step of your services in a log before it is acted on, so that an invocation
survives crashes of the service, of the server and of the machine.

  perdure server                                      start a node that this machine can reach
  perdure deployments register http://localhost:9080  tell it where your services are
  perdure invoke Greeter/Greet --json '"Ada"'         call one`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRun:  func(*cobra.Command, []string) { a.started = true },
		Version:           version,
	}
	root.SetVersionTemplate("perdure {{.Version}}\n")
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.AddCommand(a.serverCommand(), a.deploymentsCommand(), a.servicesCommand(), a.invokeCommand(), a.invocationsCommand(),
		a.doctorCommand(), a.healthCommand(), a.versionCommand())
	return root
}

// group is a command that only has others below it; alone it is a mistake.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return fmt.Errorf("%s needs one of: %s", c.Name(), strings.Join(names(c), ", "))
		}
		return fmt.Errorf("there is no %q among: %s", args[0], strings.Join(names(c), ", "))
	}, RunE: func(*cobra.Command, []string) error { return nil }}
	c.AddCommand(below...)
	return c
}

// argsOf refuses any other number of arguments than low to high, and says what they should be.
func argsOf(low, high int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < low || len(args) > high {
			return fmt.Errorf("%s needs %s, got %d arguments", c.Name(), what, len(args))
		}
		return nil
	}
}

func names(c *cobra.Command) []string {
	var out []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			out = append(out, sub.Name())
		}
	}
	return out
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return printJSON(a.out, map[string]string{"version": version})
			}
			_, err := fmt.Fprintf(a.out, "perdure %s\n", version)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
