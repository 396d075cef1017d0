package settings

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"perdure/control/duration"
	"perdure/nodes/node"
)

// field is one setting inside a Settings value.
type field struct {
	path   string // key with dots between tables
	value  reflect.Value
	secret bool
}

// fields lists the settings of s in the order of declaration. Setting a field's value changes s.
func fields(s *Settings) []field {
	return appendFields(nil, "", reflect.ValueOf(s).Elem())
}

func appendFields(out []field, prefix string, v reflect.Value) []field {
	t := v.Type()
	for i := range t.NumField() {
		key, tagged := t.Field(i).Tag.Lookup("key")
		path := prefix + key
		switch {
		case v.Field(i).Kind() == reflect.Struct && tagged:
			out = appendFields(out, path+".", v.Field(i))
		case v.Field(i).Kind() == reflect.Struct:
			out = appendFields(out, prefix, v.Field(i))
		case tagged:
			secret := t.Field(i).Tag.Get("secret") == "true" || v.Field(i).Type() == reflect.TypeFor[node.Secret]()
			out = append(out, field{path: path, value: v.Field(i), secret: secret})
		}
	}
	return out
}

// set changes a field to a value as the TOML parser makes them, or to a string as the environment and flags have them.
func set(dst reflect.Value, raw any) error {
	if dst.Kind() == reflect.Pointer {
		p := reflect.New(dst.Type().Elem())
		if err := set(p.Elem(), raw); err != nil {
			return err
		}
		dst.Set(p)
		return nil
	}
	switch p := dst.Addr().Interface().(type) {
	case *time.Duration:
		return setDuration(p, raw)
	case *node.Bytes:
		return setBytes(p, raw)
	case *node.Attempts:
		return setAttempts(p, raw)
	case *[]string:
		return setList(p, raw)
	case *map[string]string:
		return setMap(p, raw)
	case *bool:
		return setBool(p, raw)
	case *float64:
		return setFloat(p, raw)
	}
	switch dst.Kind() {
	case reflect.String:
		s, ok := raw.(string)
		if !ok {
			return fmt.Errorf("is %v: must be text, in quotes", raw)
		}
		dst.SetString(s)
		return nil
	case reflect.Int:
		n, err := whole(raw, math.MinInt32, math.MaxInt32)
		dst.SetInt(n)
		return err
	case reflect.Uint32:
		n, err := whole(raw, 0, math.MaxUint32)
		dst.SetUint(uint64(n))
		return err
	}
	panic("settings: a field of type " + dst.Type().String() + " cannot be set") // a mistake in a struct; every test of loading meets it
}

func whole(raw any, low, high int64) (int64, error) {
	var n int64
	switch v := raw.(type) {
	case int64:
		n = v
	case string:
		var err error
		if n, err = strconv.ParseInt(strings.TrimSpace(v), 10, 64); err != nil {
			return 0, fmt.Errorf("is %q: must be a whole number", v)
		}
	default:
		return 0, fmt.Errorf("is %v: must be a whole number", raw)
	}
	if n < low || n > high {
		return 0, fmt.Errorf("is %d: must be between %d and %d", n, low, high)
	}
	return n, nil
}

func setDuration(p *time.Duration, raw any) error {
	s, ok := raw.(string)
	if n, isInt := raw.(int64); isInt {
		s, ok = strconv.FormatInt(n, 10), true
	}
	if !ok {
		return fmt.Errorf("is %v: %s", raw, durationHelp)
	}
	d, err := parseDuration(s)
	if err != nil {
		return err
	}
	*p = d
	return nil
}

func setBytes(p *node.Bytes, raw any) error {
	s, ok := raw.(string)
	if n, isInt := raw.(int64); isInt {
		s, ok = strconv.FormatInt(n, 10), true
	}
	if !ok {
		return fmt.Errorf("is %v: %s", raw, bytesHelp)
	}
	b, err := parseBytes(s)
	if err != nil {
		return err
	}
	*p = b
	return nil
}

func setAttempts(p *node.Attempts, raw any) error {
	if raw == "unlimited" {
		*p = node.Unlimited
		return nil
	}
	n, err := whole(raw, 1, math.MaxInt32)
	if err != nil {
		return fmt.Errorf(`%w, or "unlimited"`, err)
	}
	*p = node.Attempts(n)
	return nil
}

func setBool(p *bool, raw any) error {
	switch v := raw.(type) {
	case bool:
		*p = v
		return nil
	case string:
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "true", "1", "yes", "on":
			*p = true
			return nil
		case "false", "0", "no", "off":
			*p = false
			return nil
		}
	}
	return fmt.Errorf("is %v: must be true or false", raw)
}

func setFloat(p *float64, raw any) error {
	switch v := raw.(type) {
	case float64:
		*p = v
	case int64:
		*p = float64(v)
	case string:
		f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		if err != nil {
			return fmt.Errorf("is %q: must be a number", v)
		}
		*p = f
	default:
		return fmt.Errorf("is %v: must be a number", raw)
	}
	if math.IsNaN(*p) || math.IsInf(*p, 0) {
		return fmt.Errorf("is %g: must be a finite number", *p)
	}
	return nil
}

// setList takes a TOML array, or text: [a, b] with or without quotes, or a, b.
func setList(p *[]string, raw any) error {
	if s, ok := raw.(string); ok {
		raw = listOf(s)
	}
	list, ok := raw.([]any)
	if !ok {
		return fmt.Errorf("is %v: must be a list, such as [a, b]", raw)
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		s, ok := e.(string)
		if !ok {
			return fmt.Errorf("has %v: must be a list of texts", e)
		}
		out = append(out, s)
	}
	*p = out
	return nil
}

func listOf(s string) any {
	var parsed struct{ V []any }
	if toml.Unmarshal([]byte("V = "+s), &parsed) == nil {
		return parsed.V
	}
	s = strings.TrimSpace(s)
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	out := []any{}
	for e := range strings.SplitSeq(s, ",") {
		if e = strings.Trim(strings.TrimSpace(e), `"'`); e != "" {
			out = append(out, e)
		}
	}
	return out
}

// setMap adds to the map, so that a later source replaces single entries. Text is an inline table: {x-a = "b"}.
func setMap(p *map[string]string, raw any) error {
	if s, ok := raw.(string); ok {
		var parsed struct{ V map[string]any }
		if err := toml.Unmarshal([]byte("V = "+s), &parsed); err != nil {
			return fmt.Errorf(`is not a table: write {name = "value", other = "value"}`)
		}
		raw = parsed.V
	}
	entries, ok := raw.(map[string]any)
	if !ok {
		return fmt.Errorf("is %T: must be a table of texts", raw)
	}
	out := make(map[string]string, len(*p)+len(entries))
	for k, v := range *p {
		out[k] = v
	}
	for k, v := range entries {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("has a value for %s that is no text: put it in quotes", k)
		}
		out[k] = s
	}
	*p = out
	return nil
}

// text is how a field's value is written in TOML. ok is false for what is not set.
func (f field) text() (s string, ok bool) {
	v := f.value
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "", false
		}
		v = v.Elem()
	}
	switch x := v.Interface().(type) {
	case time.Duration:
		return quote(duration.Format(x)), true
	case node.Bytes:
		return quote(x.String()), true
	case node.Attempts:
		if x == node.Unlimited {
			return quote(x.String()), true
		}
		return x.String(), true
	case node.Secret:
		return quote(x.String()), x != ""
	case string:
		return quote(x), x != ""
	case []string:
		q := make([]string, len(x))
		for i, e := range x {
			q[i] = quote(e)
		}
		return "[" + strings.Join(q, ", ") + "]", len(x) > 0
	case map[string]string:
		return f.table(x), len(x) > 0
	}
	return fmt.Sprint(v.Interface()), true
}

func (f field) table(m map[string]string) string {
	var parts []string
	for k, v := range m {
		if f.secret {
			v = node.Redacted
		}
		parts = append(parts, quote(k)+" = "+quote(v))
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ", ") + "}"
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
