package main

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"perdure/cmd/settings"
)

// newLogHandler makes the handler that the settings ask for. Records are written whole and in order.
func newLogHandler(w io.Writer, s settings.Log, filter settings.Filter, terminal bool) slog.Handler {
	all := &slog.HandlerOptions{Level: slog.LevelDebug} // the filter decides
	var h slog.Handler
	switch s.Format {
	case "json":
		h = slog.NewJSONHandler(w, all)
	case "compact":
		h = slog.NewTextHandler(w, all)
	default:
		h = &prettyHandler{w: w, mu: new(sync.Mutex), colours: terminal && !s.DisableColours}
	}
	return &componentHandler{next: h, filter: filter, level: filter.Level("")}
}

// componentHandler lets through what the filter allows for the logger's component, which is the attribute "component" that
// was given with Logger.With.
type componentHandler struct {
	next   slog.Handler
	filter settings.Filter
	level  slog.Level
	inner  bool // inside a group, where the attribute means something else
}

// Enabled implements slog.Handler.
func (h *componentHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

// Handle implements slog.Handler.
func (h *componentHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *componentHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.next = h.next.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == "component" && !h.inner {
			c.level = h.filter.Level(a.Value.String())
		}
	}
	return &c
}

// WithGroup implements slog.Handler.
func (h *componentHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.next, c.inner = h.next.WithGroup(name), h.inner || name != ""
	return &c
}

// prettyHandler writes a line for people: time, level, message, then key=value.
type prettyHandler struct {
	w       io.Writer
	mu      *sync.Mutex // guards w, shared by all derived handlers
	colours bool
	prefix  string // of keys, from groups
	attrs   string // formatted already
}

// Enabled implements slog.Handler.
func (h *prettyHandler) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (h *prettyHandler) Handle(_ context.Context, r slog.Record) error {
	b := make([]byte, 0, 256)
	if !r.Time.IsZero() {
		b = r.Time.AppendFormat(b, "2006-01-02T15:04:05.000Z07:00 ")
	}
	b = append(b, h.paint(r.Level)...)
	b = append(b, r.Message...)
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = h.append(b, h.prefix, a)
		return true
	})
	b = append(b, '\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b)
	return err
}

func (h *prettyHandler) paint(l slog.Level) string {
	s := l.String()
	s += strings.Repeat(" ", max(0, 6-len(s)))
	if !h.colours {
		return s
	}
	colour := "\x1b[2m" // faint
	switch {
	case l >= slog.LevelError:
		colour = "\x1b[31m" // red
	case l >= slog.LevelWarn:
		colour = "\x1b[33m" // yellow
	case l >= slog.LevelInfo:
		colour = "\x1b[32m" // green
	}
	return colour + s + "\x1b[0m"
}

// WithAttrs implements slog.Handler.
func (h *prettyHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	b := []byte(h.attrs)
	for _, a := range attrs {
		b = h.append(b, h.prefix, a)
	}
	c.attrs = string(b)
	return &c
}

// WithGroup implements slog.Handler.
func (h *prettyHandler) WithGroup(name string) slog.Handler {
	c := *h
	if name != "" {
		c.prefix += name + "."
	}
	return &c
}

func (h *prettyHandler) append(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, sub := range v.Group() {
			b = h.append(b, prefix, sub)
		}
		return b
	}
	if a.Equal(slog.Attr{}) {
		return b
	}
	b = append(b, "  "...)
	b = append(append(b, prefix...), a.Key...)
	b = append(b, '=')
	s := v.String()
	if v.Kind() == slog.KindTime {
		s = v.Time().Format(time.RFC3339Nano)
	}
	if needsQuotes(s) {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

func needsQuotes(s string) bool {
	return s == "" || slices.ContainsFunc([]byte(s), func(c byte) bool { return c <= ' ' || c == '"' || c == '=' || c >= 0x7f })
}
