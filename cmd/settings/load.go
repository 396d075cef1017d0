// Package settings makes a node's configuration out of its sources: defaults, a TOML file, the environment and flags, each
// overriding those before it.
//
// Its invariant: whatever a user writes is either honoured, reported as having no effect, or refused with the place where
// it stands and the nearest name that exists. Nothing is dropped silently.
package settings

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"perdure/nodes/node"
)

// EnvPrefix starts the names of environment variables that are settings.
const EnvPrefix = "PERDURE_"

// Settings are everything about a server process.
type Settings struct {
	Node node.Config
	Log  Log
}

// Log says what is logged and how.
type Log struct {
	// Filter is a level (error, warn, info, debug) and exceptions by component: "info,invoker=debug". Default: info.
	Filter string `key:"log-filter"`
	// Format is pretty (default; for people), compact (one key=value line each) or json.
	Format string `key:"log-format"`
	// DisableColours turns colours off; they are only used on a terminal anyway. Default: false.
	DisableColours bool `key:"log-disable-ansi-codes"`
}

// Sources are where settings come from, in rising order of precedence.
type Sources struct {
	// File is the path of a TOML file; empty means none.
	File string
	// Env is the environment as os.Environ gives it.
	Env []string
	// Flags are settings from the command line, each with the flag's name for messages.
	Flags []Flag
}

// Flag is one setting from the command line.
type Flag struct{ Name, Key, Value string }

// Notice is something that the operator should know about an accepted setting.
type Notice struct {
	Warn    bool // false: of interest only when looking for a cause
	Key     string
	Origin  string // where it is set
	Message string
}

// Loaded is the outcome of Load.
type Loaded struct {
	Settings
	Notices []Notice
	origins map[string]string // by key: where the value in force was set
}

// Load merges the sources and validates the outcome. Errors are joined, one line for each mistake.
func Load(src Sources) (*Loaded, error) {
	l := &Loaded{origins: map[string]string{}}
	l.Node = node.DefaultConfig()
	l.Log = Log{Filter: "info", Format: "pretty"}
	entries, err := readFile(src.File)
	if err != nil {
		return nil, err
	}
	entries = append(entries, fromEnv(src.Env)...)
	for _, f := range src.Flags {
		entries = append(entries, entry{key: f.Key, raw: f.Value, origin: f.Name})
	}
	if err := l.apply(entries); err != nil {
		return nil, err
	}
	return l, nil
}

// Validate judges the merged settings and says of each mistake where it was set.
func (l *Loaded) Validate() error {
	var out []error
	err := l.Node.Validate()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			out = append(out, l.locate(e))
		}
	} else if err != nil {
		out = append(out, l.locate(err))
	}
	if _, err := ParseFilter(l.Log.Filter); err != nil {
		out = append(out, l.locate(&node.InvalidError{Key: "log-filter", Rule: err.Error()}))
	}
	if !slices.Contains([]string{"pretty", "compact", "json"}, l.Log.Format) {
		out = append(out, l.locate(&node.InvalidError{Key: "log-format", Rule: fmt.Sprintf("is %q: must be pretty, compact or json", l.Log.Format)}))
	}
	return errors.Join(out...)
}

func (l *Loaded) locate(err error) error {
	var invalid *node.InvalidError
	if errors.As(err, &invalid) && l.origins[invalid.Key] != "" {
		return fmt.Errorf("%s: %w", l.origins[invalid.Key], err)
	}
	return err
}

// entry is one setting as one source has it.
type entry struct {
	key    string
	raw    any
	origin string
	shared bool // from a name space that others write to as well: a stranger is not a mistake
}

// readFile reads the settings of a TOML file, sorted by key.
func readFile(path string) ([]entry, error) {
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration file: %w", err)
	}
	return parseFile(path, data)
}

func parseFile(path string, data []byte) ([]entry, error) {
	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			row, col := at.Position()
			return nil, fmt.Errorf("%s:%d:%d: not valid TOML: %s", path, row, col, strings.TrimPrefix(at.Error(), "toml: "))
		}
		return nil, fmt.Errorf("%s: not valid TOML: %w", path, err)
	}
	entries := flatten(nil, path, "", tree)
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return entries, nil
}

// flatten turns tables into dotted keys, except tables that are values themselves.
func flatten(out []entry, path, prefix string, tree map[string]any) []entry {
	for k, v := range tree {
		key := prefix + k
		if sub, ok := v.(map[string]any); ok && !tableValues[key] {
			out = flatten(out, path, key+".", sub)
			continue
		}
		out = append(out, entry{key: key, raw: v, origin: path})
	}
	return out
}

// fromEnv finds the settings in the environment: PERDURE_WORKER__INVOKER__ABORT_TIMEOUT is worker.invoker.abort-timeout.
// Empty values count as not set.
func fromEnv(env []string) []entry {
	var out []entry
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		rest, ok := strings.CutPrefix(name, EnvPrefix)
		if !ok || value == "" || slices.Contains(clientVariables, name) {
			continue
		}
		key := strings.ReplaceAll(strings.ToLower(rest), "__", ".")
		key = strings.ReplaceAll(key, "_", "-")
		out = append(out, entry{key: key, raw: value, origin: name, shared: !strings.Contains(rest, "__")})
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return out
}

// clientVariables start with the prefix, but are read by the commands that talk to a server.
var clientVariables = []string{"PERDURE_CONFIG", "PERDURE_ADMIN_URL", "PERDURE_INGRESS_URL", "PERDURE_TOKEN"}

// EnvName is the environment variable of a key.
func EnvName(key string) string {
	s := strings.ReplaceAll(key, "-", "_")
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(s, ".", "__"))
}

func (l *Loaded) apply(entries []entry) error {
	known := map[string]field{}
	for _, f := range fields(&l.Settings) {
		known[f.path] = f
	}
	var errs []error
	for _, e := range entries {
		if err := l.applyOne(known, e); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.origin, err))
		}
	}
	return errors.Join(errs...)
}

func (l *Loaded) applyOne(known map[string]field, e entry) error {
	if to, ok := aliases[e.key]; ok {
		e.key = to
	}
	f, ok := known[e.key]
	if !ok {
		f, e, ok = tableEntry(known, e)
	}
	if ok {
		if err := set(f.value, e.raw); err != nil {
			return fmt.Errorf("%s %w", f.path, err)
		}
		l.origins[f.path] = e.origin
		return nil
	}
	if n, ok := noEffect(e); ok {
		l.Notices = append(l.Notices, n)
		return nil
	}
	near, distance := nearest(e.key, known)
	if e.shared && distance > max(2, len(e.key)/4) {
		l.Notices = append(l.Notices, Notice{Warn: true, Key: e.key, Origin: e.origin, Message: "is unknown and ignored"})
		return nil
	}
	return unknownKey(e, near, distance)
}

func unknownKey(e entry, near string, distance int) error {
	env := strings.HasPrefix(e.origin, EnvPrefix)
	what := fmt.Sprintf("there is no setting %q", e.key)
	if env {
		what = "there is no such setting"
	}
	switch {
	case distance > len(e.key)/2: // nothing that could have been meant
		return fmt.Errorf("%s; perdure server --dump-config lists all that there are", what)
	case env:
		return fmt.Errorf("%s; the nearest is %s", what, EnvName(near))
	}
	return fmt.Errorf("%s; the nearest is %q", what, near)
}

// tableEntry finds the setting that is a table with e as an entry.
func tableEntry(known map[string]field, e entry) (field, entry, bool) {
	for i := strings.IndexByte(e.key, '.'); i >= 0; {
		if table := e.key[:i]; tableValues[table] {
			e.raw = map[string]any{e.key[i+1:]: e.raw}
			return known[cmp.Or(aliases[table], table)], e, true
		}
		next := strings.IndexByte(e.key[i+1:], '.')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return field{}, e, false
}
