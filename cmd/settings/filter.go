package settings

import (
	"fmt"
	"log/slog"
	"strings"
)

// Filter says from which level on messages are logged.
type Filter struct {
	Default    slog.Level
	Components map[string]slog.Level
}

// Level is the lowest level logged for a component; the empty component has the default.
func (f Filter) Level(component string) slog.Level {
	if l, ok := f.Components[component]; ok {
		return l
	}
	return f.Default
}

// off is above every level that is used.
const off = slog.Level(127)

// ParseFilter reads a level and exceptions by component, with commas between: "warn,ingress=debug". The name perdure (or
// restate, which existing files have) stands for all components.
func ParseFilter(s string) (Filter, error) {
	f := Filter{Default: slog.LevelInfo, Components: map[string]slog.Level{}}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, level, named := strings.Cut(part, "=")
		if !named {
			name, level = "", part
		}
		l, err := parseLevel(level)
		if err != nil {
			return Filter{}, err
		}
		switch name = strings.TrimSpace(name); name {
		case "", "perdure", "restate":
			f.Default = l
		default:
			f.Components[name] = l
		}
	}
	return f, nil
}

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "off":
		return off, nil
	}
	return 0, fmt.Errorf("has level %q: levels are error, warn, info, debug and off, such as info,invoker=debug", s)
}
