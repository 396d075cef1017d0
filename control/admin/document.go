package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"unicode"
)

// ownOpenAPI serves the OpenAPI document of the admin API. It is made from the table of routes and the types of the bodies, so
// that it cannot say anything else than the code does.
func (c *call) ownOpenAPI() error {
	c.a.respond(c.w, c.r, http.StatusOK, c.a.document())
	return nil
}

type object = map[string]any

func (a *Admin) document() object {
	d := documenter{schemas: object{}}
	d.schemas["Error"] = object{
		"type": "object", "required": []string{"message", "restate_code"},
		"properties": object{"message": object{"type": "string"}, "restate_code": object{"type": []string{"string", "null"}}},
	}
	paths := object{}
	for _, r := range a.routes() {
		if r.summary == "" {
			continue
		}
		path, params := pathTemplate(r.path)
		item, _ := paths[path].(object)
		if item == nil {
			item = object{}
			paths[path] = item
		}
		item[strings.ToLower(r.method)] = d.operation(&r, params)
	}
	doc := object{
		"openapi": "3.1.0",
		"info":    object{"title": "Admin API", "version": a.cfg.InterfaceVersion, "description": "Register deployments, inspect services, manage invocations."},
		"paths":   paths, "components": object{"schemas": d.schemas},
	}
	if a.cfg.Token != "" {
		doc["components"].(object)["securitySchemes"] = object{"token": object{"type": "http", "scheme": "bearer"}}
		doc["security"] = []object{{"token": []string{}}}
	}
	return doc
}

// pathTemplate turns :name into {name}.
func pathTemplate(path string) (template string, params []string) {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if name, ok := strings.CutPrefix(p, ":"); ok {
			params = append(params, name)
			parts[i] = "{" + name + "}"
		}
	}
	return strings.Join(parts, "/"), params
}

// documenter collects the schemas of bodies.
type documenter struct{ schemas object }

func (d *documenter) operation(r *route, pathParams []string) object {
	op := object{"operationId": strings.ReplaceAll(r.id, "-", "_"), "summary": r.summary}
	var params []object
	for _, p := range pathParams {
		params = append(params, object{"name": p, "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, p := range r.query {
		params = append(params, object{"name": p, "in": "query", "required": false, "schema": object{"type": "string"}})
	}
	if params != nil {
		op["parameters"] = params
	}
	if r.deprecated {
		op["deprecated"] = true
	}
	if r.request != nil {
		op["requestBody"] = object{"required": true, "content": d.content(r.request)}
	}
	success := object{"description": "Success"}
	if r.response != nil {
		success["content"] = d.content(r.response)
	}
	status := r.status
	if status == 0 {
		status = http.StatusOK
	}
	failure := object{"description": "Error", "content": object{"application/json": object{"schema": object{"$ref": "#/components/schemas/Error"}}}}
	op["responses"] = object{strconv.Itoa(status): success, "default": failure}
	return op
}

func (d *documenter) content(body any) object {
	return object{"application/json": object{"schema": d.schema(reflect.TypeOf(body))}}
}

var (
	spanType = reflect.TypeFor[span]()
	rawType  = reflect.TypeFor[json.RawMessage]()
	byteType = reflect.TypeFor[byteArray]()
)

// schema describes a type as encoding/json treats it.
func (d *documenter) schema(t reflect.Type) object {
	switch t {
	case spanType:
		return object{"type": "string", "description": "duration, as in 1h 30m"}
	case rawType:
		return object{}
	case byteType:
		return object{"type": "array", "items": object{"type": "integer", "minimum": 0, "maximum": 255}}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.schema(t.Elem())
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Int, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		return d.structSchema(t)
	}
	return object{}
}

// structSchema puts named types among the components and describes others in place.
func (d *documenter) structSchema(t reflect.Type) object {
	name := schemaName(t)
	ref := object{"$ref": "#/components/schemas/" + name}
	if name != "" {
		if d.schemas[name] != nil {
			return ref
		}
		d.schemas[name] = object{} // ends recursion
	}
	properties, required := object{}, []string{}
	for f := range t.Fields() {
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		properties[tag] = d.schema(f.Type)
		if options != "omitempty" {
			required = append(required, tag)
		}
	}
	s := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		s["required"] = required
	}
	if name == "" {
		return s
	}
	d.schemas[name] = s
	return ref
}

// schemaName makes a public name of a type's: serviceJSON becomes Service.
func schemaName(t reflect.Type) string {
	name, arg, generic := strings.Cut(t.Name(), "[")
	if name == "" {
		return ""
	}
	name = strings.TrimSuffix(name, "JSON")
	if generic && strings.HasSuffix(arg, "serviceJSON]") {
		name = "detailed" + capital(name)
	}
	return capital(name)
}

func capital(s string) string {
	r := []rune(s)
	r[0] = unicode.ToUpper(r[0])
	return string(r)
}
