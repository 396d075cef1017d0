package settings

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestTableInReadme: the settings that the README lists exist, and have the defaults that it says.
func TestTableInReadme(t *testing.T) {
	data, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	// in is how a setting is printed, and whether it is set; a listener's address is put together from several settings.
	in := func(l *Loaded, key string) (text string, set, known bool) {
		switch key {
		case "ingress.bind-address":
			return l.Node.IngressAddress(), true, true
		case "admin.bind-address":
			return l.Node.AdminAddress(), true, true
		case "bind-address":
			return l.Node.FabricAddress(), true, true
		}
		for _, f := range fields(&l.Settings) {
			if f.path == key {
				text, set := f.text()
				return text, set && text != `""`, true
			}
		}
		return "", false, false
	}
	unset := mustLoad(t, "", nil)
	_, table, _ := strings.Cut(string(data), "| key | default | |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := strings.Split(table, "\n")[1:]
	for _, row := range rows {
		cells := strings.Split(row, "|")
		var keys []string
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			key := m[1]
			if strings.HasPrefix(key, ".") { // in the table of the one before
				key = keys[len(keys)-1][:strings.LastIndex(keys[len(keys)-1], ".")] + key
			}
			keys = append(keys, key)
		}
		values := strings.Split(strings.ReplaceAll(strings.TrimSpace(cells[2]), "`", ""), ", ")
		for i, key := range keys {
			if prefix, all := strings.CutSuffix(key, "*"); all {
				if !slices.ContainsFunc(fields(&unset.Settings), func(f field) bool { return strings.HasPrefix(f.path, prefix) }) {
					t.Errorf("there are no settings %s", key)
				}
				continue
			}
			want := values[min(i, len(values)-1)]
			got, set, known := in(unset, key)
			switch {
			case !known:
				t.Errorf("there is no setting %s", key)
			case want == "host name":
			case want == "none":
				if set {
					t.Errorf("%s: its default is %s, the README says none", key, got)
				}
			default:
				if w, _, _ := in(mustLoad(t, "", nil, Flag{Name: key, Key: key, Value: want}), key); !set || got != w {
					t.Errorf("%s: its default is %s, the README says %s", key, got, want)
				}
			}
		}
	}
	if len(rows) < 15 {
		t.Errorf("only %d rows were found", len(rows))
	}
}
