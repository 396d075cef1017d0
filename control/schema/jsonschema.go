package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

var schemaTypes = []string{"array", "boolean", "integer", "null", "number", "object", "string"}

// checkJSONSchema checks the form of a JSON schema as far as clients that read it rely on it: an object or a boolean,
// references only into itself, types by their names. Schemas are passed on and never evaluated here.
func checkJSONSchema(raw json.RawMessage) error {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return err
	}
	if _, ok := v.(bool); ok {
		return nil
	}
	if _, ok := v.(map[string]any); !ok {
		return fmt.Errorf(`%s is not of types "boolean", "object"`, raw)
	}
	return checkSubschema(v)
}

func checkSubschema(v any) error {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if err := checkSubschema(e); err != nil {
				return err
			}
		}
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		slices.Sort(names) // the first error must not depend on the map's order
		for _, name := range names {
			if err := checkKeyword(name, v[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkKeyword(name string, v any) error {
	switch name {
	case "$ref", "$dynamicRef":
		if ref, ok := v.(string); ok && !strings.HasPrefix(ref, "#") {
			return errors.New("the schema contains an external reference " + ref +
				". This is not supported, all schemas uploaded to Restate should be normalized first, bundling the external references.")
		}
	case "const", "enum", "default", "examples", "example": // data, not schemas
		return nil
	case "type":
		switch t := v.(type) {
		case string:
			return checkType(t)
		case []any:
			for _, e := range t {
				if s, ok := e.(string); ok {
					if err := checkType(s); err != nil {
						return err
					}
				}
			}
		}
		// An object under this name is a property that is called type.
	}
	return checkSubschema(v)
}

func checkType(t string) error {
	if !slices.Contains(schemaTypes, t) {
		return fmt.Errorf("%q is not a type of JSON schema", t)
	}
	return nil
}
