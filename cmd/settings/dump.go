package settings

import (
	"fmt"
	"io"
	"strings"
)

// Dump writes the settings in force as a TOML file that Load accepts. Secrets are redacted; what is not set is shown as a
// comment.
func (l *Loaded) Dump(w io.Writer) error {
	table := ""
	var b strings.Builder
	for _, f := range ordered(fields(&l.Settings)) {
		if t := strings.TrimSuffix(f.path, last(f.path)); t != table {
			table = t
			fmt.Fprintf(&b, "\n[%s]\n", strings.TrimSuffix(t, "."))
		}
		if text, ok := f.text(); ok {
			fmt.Fprintf(&b, "%s = %s\n", last(f.path), text)
		} else {
			fmt.Fprintf(&b, "# %s is not set\n", last(f.path))
		}
	}
	_, err := io.WriteString(w, strings.TrimPrefix(b.String(), "\n"))
	return err
}

// ordered puts the fields of each table together, the root's first, as TOML needs it.
func ordered(fs []field) []field {
	var tables []string
	byTable := map[string][]field{}
	for _, f := range fs {
		t := strings.TrimSuffix(f.path, last(f.path))
		if byTable[t] == nil {
			tables = append(tables, t)
		}
		byTable[t] = append(byTable[t], f)
	}
	out := byTable[""]
	for _, t := range tables {
		if t != "" {
			out = append(out, byTable[t]...)
		}
	}
	return out
}
