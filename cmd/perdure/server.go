package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"perdure/cmd/settings"
	"perdure/nodes/node"
)

// serverFlags are the flags that are settings: flag, key, what it is. --set reaches all others.
var serverFlags = []struct{ flag, key, usage string }{
	{"base-dir", "base-dir", "`directory` of all data (default perdure-data)"},
	{"node-name", "node-name", "`name` that this node keeps (default: the host's name)"},
	{"cluster-name", "cluster-name", "`name` of the cluster (default localcluster)"},
	{"bind-ip", "bind-ip", "`IP` to listen on with all three ports (default 127.0.0.1)"},
	{"bind-address", "bind-address", "`host:port` of the node port: metrics, health, other nodes (default 127.0.0.1:5122)"},
	{"ingress-bind-address", "ingress.bind-address", "`host:port` for callers (default 127.0.0.1:8080)"},
	{"admin-bind-address", "admin.bind-address", "`host:port` for operators (default 127.0.0.1:9070)"},
	{"advertised-address", "advertised-address", "`URL` of the node port as others see it"},
	{"default-num-partitions", "default-num-partitions", "`number` of partitions of a new cluster, 1 to 65535 (default 24)"},
	{"force-node-id", "force-node-id", "`id` that the node must have"},
	{"shutdown-timeout", "shutdown-timeout", "`duration` of a graceful shutdown at most (default 1m)"},
	{"log-filter", "log-filter", "`levels` to log, such as info,invoker=debug (default info)"},
	{"log-format", "log-format", "`format` of the log: pretty, compact or json (default pretty)"},
}

// serverSwitches are those that are true or false.
var serverSwitches = []struct{ flag, key, usage string }{
	{"auto-provision", "auto-provision", "found a new cluster when there is no data (default true)"},
	{"use-random-ports", "use-random-ports", "listen on free ports"},
	{"insecure", "insecure", "allow admin API and node port to be reached from other machines without TLS, as in a container"},
}

const serverHelp = `Start a node: ingress for callers (port 8080), admin API for operators (9070), node port for metrics and
health (5122). Alone, it is a cluster of one, with all its data below --base-dir.

Settings come from, each overriding those before it:
  defaults          perdure server --dump-config prints them all
  a file            TOML, given with --config or PERDURE_CONFIG
  the environment   PERDURE_ and the key, __ for a dot and _ for a dash:
                      worker.invoker.abort-timeout   PERDURE_WORKER__INVOKER__ABORT_TIMEOUT=5m
                      roles                          PERDURE_ROLES=[worker,admin]
  flags             those below, and --set KEY=VALUE for every other key

Sizes are 32MiB or 1.5GB, durations 500ms, "1h 30m" or PT2H.

SIGTERM or SIGINT shuts down gracefully, a second one at once. SIGUSR1 prints the settings in force to standard error.`

const serverExamples = `  perdure server
  perdure server --base-dir /var/lib/perdure --node-name n1 --config /etc/perdure.toml
  perdure server --set worker.invoker.inactivity-timeout=10s --log-filter info,invoker=debug
  PERDURE_DEFAULT_NUM_PARTITIONS=8 PERDURE_INGRESS__BIND_ADDRESS=0.0.0.0:8080 perdure server
  perdure server --bind-ip 0.0.0.0 --insecure     in a container: all ports reachable, nothing protects them`

func (a *app) serverCommand() *cobra.Command {
	var file string
	var sets []string
	var dump bool
	c := &cobra.Command{
		Use: "server", Short: "Start a node", Long: serverHelp, Example: serverExamples, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				file = a.getenv("PERDURE_CONFIG")
			}
			flags, err := settingFlags(c.Flags(), sets)
			if err != nil {
				return err
			}
			l, err := a.load(settings.Sources{File: file, Env: a.env, Flags: flags})
			if err != nil {
				return err
			}
			if dump {
				return l.Dump(a.out)
			}
			return a.serve(c.Context(), l)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVarP(&file, "config", "c", "", "TOML `file` with settings (PERDURE_CONFIG)")
	f.StringVar(&file, "config-file", "", "")
	_ = f.MarkHidden("config-file") // only fails for a flag that is not there
	for _, s := range serverFlags {
		f.String(s.flag, "", s.usage)
	}
	for _, s := range serverSwitches {
		f.Bool(s.flag, false, s.usage)
	}
	f.StringArrayVar(&sets, "set", nil, "`KEY=VALUE` for any setting; can be repeated")
	f.BoolVar(&dump, "dump-config", false, "print the settings in force as TOML and exit")
	return c
}

// settingFlags collects what the command line sets.
func settingFlags(f *pflag.FlagSet, sets []string) ([]settings.Flag, error) {
	var out []settings.Flag
	for _, s := range sets {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usagef("--set %s: write it as KEY=VALUE", s)
		}
		out = append(out, settings.Flag{Name: "--set", Key: strings.TrimSpace(key), Value: value})
	}
	add := func(flag, key string) {
		if v := f.Lookup(flag); v.Changed {
			out = append(out, settings.Flag{Name: "--" + flag, Key: key, Value: v.Value.String()})
		}
	}
	for _, s := range serverFlags {
		add(s.flag, s.key)
	}
	for _, s := range serverSwitches {
		add(s.flag, s.key)
	}
	return out, nil
}

// load reads the settings, completes what only the machine knows, and validates.
func (a *app) load(src settings.Sources) (*settings.Loaded, error) {
	l, err := settings.Load(src)
	if err != nil {
		return nil, err
	}
	if l.Node.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("find the host's name, give --node-name instead: %w", err)
		}
		if l.Node.NodeName, err = defaultName(l.Node.BaseDir, host); err != nil {
			return nil, err
		}
	}
	if err := l.Validate(); err != nil {
		return nil, err
	}
	n := &l.Node
	n.Fabric.BindAddress, n.Admin.BindAddress, n.Ingress.BindAddress = n.FabricAddress(), n.AdminAddress(), n.IngressAddress()
	return l, readIdentityKey(&n.Worker.Invoker)
}

// defaultName is the host's name, unless the directory holds only data of nodes with other names: a machine or container
// that was renamed must not silently begin an empty node beside its data.
func defaultName(baseDir, host string) (string, error) {
	entries, err := os.ReadDir(baseDir)
	if errors.Is(err, os.ErrNotExist) {
		return host, nil
	}
	if err != nil {
		return "", fmt.Errorf("look into the data directory: %w", err)
	}
	var others []string
	for _, e := range entries {
		switch {
		case e.Name() == host:
			return host, nil
		case e.IsDir() && !strings.HasPrefix(e.Name(), ".") && e.Name() != "lost+found":
			others = append(others, e.Name())
		}
	}
	if len(others) == 0 {
		return host, nil
	}
	return "", fmt.Errorf("%s holds the data of %s, but this host is called %s: say which node this is with --node-name %s (or --node-name %s for a new one)",
		baseDir, strings.Join(others, ", "), host, others[0], host)
}

// readIdentityKey reads the key that signs requests to services, and checks it before anything is started.
func readIdentityKey(i *node.Invoker) error {
	const key = "worker.invoker.request-identity-private-key-pem-file"
	if i.IdentityKeyFile == "" {
		return nil
	}
	data, err := os.ReadFile(i.IdentityKeyFile)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return fmt.Errorf("%s: %s is not a PEM file: make one with  openssl genpkey -algorithm ed25519", key, i.IdentityKeyFile)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return fmt.Errorf("%s: %s holds no PKCS 8 private key: %w", key, i.IdentityKeyFile, err)
	}
	if _, ok := parsed.(ed25519.PrivateKey); !ok {
		return fmt.Errorf("%s: %s holds a key of type %T: it must be Ed25519", key, i.IdentityKeyFile, parsed)
	}
	i.IdentityKey = node.Secret(data)
	return nil
}

// serve runs a node until it is told to stop or fails.
func (a *app) serve(ctx context.Context, l *settings.Loaded) error {
	filter, err := settings.ParseFilter(l.Log.Filter)
	if err != nil {
		return err
	}
	log := slog.New(newLogHandler(a.err, l.Log, filter, terminal(a.err) && a.getenv("NO_COLOR") == ""))
	log.Info("starting", "version", version, "node", l.Node.NodeName, "cluster", l.Node.ClusterName, "data", absolute(l.Node.DataDir()))
	logNotices(log, l.Notices)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
	defer signal.Stop(signals)
	if a.getenv("GOGC") == "" {
		defer paceGarbage()()
	}
	return (&server{app: a, loaded: l, log: log, signals: signals}).run(ctx)
}

func absolute(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

func logNotices(log *slog.Logger, notices []settings.Notice) {
	for _, n := range notices {
		level := slog.LevelDebug
		if n.Warn {
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "setting "+n.Message, "key", n.Key, "from", n.Origin)
	}
}

// server is a node in this process and the signals that steer it.
type server struct {
	app     *app
	loaded  *settings.Loaded
	log     *slog.Logger
	signals <-chan os.Signal
}

func (s *server) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n, err := s.start(ctx, cancel)
	if err != nil || n == nil {
		return err
	}
	s.announce(n.Addresses())
	return s.wait(ctx, n)
}

// start starts the node. A signal meanwhile ends the attempt, which is no error: then there is no node.
func (s *server) start(ctx context.Context, cancel context.CancelFunc) (runningNode, error) {
	type outcome struct {
		n   runningNode
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		n, err := s.app.start(ctx, s.loaded.Node, s.log)
		done <- outcome{n, err}
	}()
	stopped := false
	for {
		select {
		case o := <-done:
			if o.err != nil && stopped {
				return nil, nil
			}
			if o.err == nil && stopped {
				return nil, s.shutdown(o.n)
			}
			return o.n, s.explain(o.err)
		case sig := <-s.signals:
			if sig == syscall.SIGUSR1 {
				s.dump()
				continue
			}
			if stopped {
				return nil, exitCode(1)
			}
			stopped = true
			s.log.Info("stopping before the start was finished", "signal", sig.String())
			cancel()
		}
	}
}

func (s *server) wait(ctx context.Context, n runningNode) error {
	for {
		select {
		case <-ctx.Done():
			return s.shutdown(n)
		case err := <-n.Done():
			if err == nil {
				return nil
			}
			return errors.Join(fmt.Errorf("the node ended: %w", err), s.shutdown(n))
		case sig := <-s.signals:
			if sig == syscall.SIGUSR1 {
				s.dump()
				continue
			}
			s.log.Info("shutting down; a second signal stops at once", "signal", sig.String(), "timeout", s.loaded.Node.ShutdownTimeout)
			return s.shutdown(n)
		}
	}
}

// shutdownGrace is how long after its timeout a shutdown is waited for: stores are still made durable then.
const shutdownGrace = 30 * time.Second

// shutdown stops the node within its timeout. A signal meanwhile gives up waiting, and so does a node that hangs, as on
// a disk that does not answer: what was acknowledged is on disk.
func (s *server) shutdown(n runningNode) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.loaded.Node.ShutdownTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Shutdown(ctx) }()
	late := time.NewTimer(s.loaded.Node.ShutdownTimeout + shutdownGrace)
	defer late.Stop()
	for {
		select {
		case <-late.C:
			return fmt.Errorf("the node did not stop within %s and is left as it is; nothing acknowledged is lost", s.loaded.Node.ShutdownTimeout+shutdownGrace)
		case err := <-done:
			if err != nil {
				return fmt.Errorf("shut down: %w", err)
			}
			s.log.Info("stopped")
			return nil
		case sig := <-s.signals:
			if sig == syscall.SIGUSR1 {
				s.dump()
				continue
			}
			s.log.Warn("stopping at once", "signal", sig.String())
			return exitCode(1)
		}
	}
}

func (s *server) dump() {
	if err := s.loaded.Dump(s.app.err); err != nil {
		s.log.Warn("cannot print the settings", "err", err)
	}
}

// explain adds to an error of starting what the user can do about it.
func (s *server) explain(err error) error {
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	flag := "--bind-address, --admin-bind-address or --ingress-bind-address"
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		for _, l := range []struct{ addr, flag string }{
			{s.loaded.Node.FabricAddress(), "--bind-address"},
			{s.loaded.Node.AdminAddress(), "--admin-bind-address"},
			{s.loaded.Node.IngressAddress(), "--ingress-bind-address"},
		} {
			if l.addr == op.Addr.String() {
				flag = l.flag
			}
		}
	}
	return fmt.Errorf("%w: stop the program that has the port, or choose another with %s", err, flag)
}

// announce says that the node is ready and what can be done with it.
func (s *server) announce(at node.Addresses) {
	s.log.Info("listening", "ingress", at.Ingress, "admin", at.Admin, "node_port", at.Fabric)
	if s.loaded.Log.Format == "pretty" {
		fmt.Fprint(s.app.err, banner(at))
	}
}

func banner(at node.Addresses) string {
	admin := ""
	if at.Admin != defaultAdminURL+"/" {
		admin = " --admin-url " + at.Admin
	}
	return fmt.Sprintf(`
  Perdure %s is ready.

    call services     %s
    administer        %s
    metrics, health   %smetrics  %shealth

  Next: start a service written with a Restate SDK, for example on port 9080, and
    register it       perdure deployments register http://localhost:9080%s
    call it           curl %sSERVICE/HANDLER --json '"hello"'

`, version, at.Ingress, at.Admin, at.Fabric, at.Fabric, admin, at.Ingress)
}

// terminal reports whether w is a terminal.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
