package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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

// checkSubschema checks one schema: an object of keywords, or a boolean.
func checkSubschema(v any) error {
	keywords, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(keywords)) { // the first error must not depend on the map's order
		if err := checkKeyword(name, keywords[name]); err != nil {
			return err
		}
	}
	return nil
}

// checkKeyword checks the keywords that matter and goes down into those that hold schemas. All others are annotations or
// data, whatever they look like.
func checkKeyword(name string, v any) error {
	switch name {
	case "$ref", "$dynamicRef":
		if ref, ok := v.(string); ok && !strings.HasPrefix(ref, "#") {
			return errors.New("the schema contains an external reference " + ref +
				". This is not supported, all schemas uploaded to Restate should be normalized first, bundling the external references.")
		}
	case "type":
		return checkTypes(v)
	case "properties", "patternProperties", "$defs", "definitions", "dependentSchemas":
		byName, _ := v.(map[string]any)
		for _, n := range slices.Sorted(maps.Keys(byName)) {
			if err := checkSubschema(byName[n]); err != nil {
				return err
			}
		}
	case "allOf", "anyOf", "oneOf", "prefixItems", "items":
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		for _, e := range list {
			if err := checkSubschema(e); err != nil {
				return err
			}
		}
	case "not", "if", "then", "else", "contains", "propertyNames", "additionalProperties", "additionalItems", "unevaluatedProperties",
		"unevaluatedItems", "contentSchema":
		return checkSubschema(v)
	}
	return nil
}

func checkTypes(v any) error {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, e := range list {
		t, ok := e.(string)
		if !ok {
			return errors.New("a type is not named by a string")
		}
		if err := checkType(t); err != nil {
			return err
		}
	}
	return nil
}

func checkType(t string) error {
	if !slices.Contains(schemaTypes, t) {
		return fmt.Errorf("%q is not a type of JSON schema", t)
	}
	return nil
}
